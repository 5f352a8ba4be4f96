"""What lineside reads from outside, as targets: sound files to begin with, and the reader.

A target's `files` are a sound input, by name; several texts of one name are several seeds. One file at a time is
changed, the others stay sound. A reader may write into `out` of the folder that it is given, and nowhere else.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import sqlite3
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from lineside.errors import LinesideError

Files = Mapping[str, bytes | Sequence[bytes]]


@dataclass(frozen=True)
class Target:
    """A reader. `parts`: the files of lineside whose lines count as covered or not, by path or pattern."""

    name: str
    parts: tuple[str, ...]
    files: Callable[[], Files]
    read: Callable[[Path], object]
    fuzzed: tuple[str, ...] = ()  # names of the files that are changed; (): all
    refuses: tuple[type[Exception], ...] = (LinesideError,)


TARGETS: dict[str, Target] = {}
_SLOWEST = ("adapter", "checkpoint", "report", "shard-values")
_SLOW = (
    "checkpoint-config", "joined-tables", "label", "outcome-files", "overrides", "registry", "review", "review-page",
    "run-files", "shards", "video",
)  # fmt: skip
SHARES = dict.fromkeys(_SLOWEST, 6.0) | dict.fromkeys(_SLOW, 1.75)
"""Of the time of fuzzing, where the others have 1: a reader that takes long tries little in a time."""


def target(
    name: str, *parts: str, files: Callable[[], Files], fuzzed: tuple[str, ...] = (), also: Sequence[str] = ()
) -> Callable[[Callable[[Path], object]], Callable[[Path], object]]:
    """Add a reader to the table. `also`: further exceptions by which it refuses, as "module:name"."""

    def add(read: Callable[[Path], object]) -> Callable[[Path], object]:
        import importlib

        more = [word.split(":") for word in also]
        refuses = (LinesideError, *(getattr(importlib.import_module(module), kind) for module, kind in more))
        TARGETS[name] = Target(name, parts, files, read, fuzzed, refuses)
        return read

    return add


def text(value: Any) -> bytes:
    """A value as JSON."""
    return json.dumps(value, indent=1).encode()


def drain(items: Iterator[Any]) -> None:
    """Read all, a bounded number."""
    for _ in islice(items, 100_000):
        pass


@contextlib.contextmanager
def refused(*kinds: type[Exception]) -> Iterator[None]:
    """Let a refusal pass, its words to the guard: of several readers each is asked."""
    try:
        yield
    except (LinesideError, *kinds) as error:
        print(error, file=sys.stderr)


def png(seed: int = 0, side: int = 24) -> bytes:
    """A small picture."""
    from tests.conftest import picture

    return picture(seed, side)


# --- recipes, task files, tables


def _recipes() -> Files:
    from lineside.recipe import OWN_RECIPES

    return {"a.yaml": [path.read_bytes() for path in sorted(OWN_RECIPES.glob("*.yaml"))]}


@target("recipe", "recipe.py", "strict.py", "settings.py", files=_recipes)
def _recipe(place: Path) -> None:
    from lineside.recipe import differences, dump_recipe, load_recipe, load_run_recipe

    recipe = load_recipe(place / "a.yaml")
    (place / "out").mkdir(exist_ok=True)
    (place / "out" / "recipe.yaml").write_text(dump_recipe(recipe))
    assert load_run_recipe(place / "out" / "recipe.yaml") == recipe
    differences(recipe, load_recipe(Path("nano")))


_CHANGES = b"""sft.epochs=3
evaluate.splits=[heldout]
data.simulate=null
data.label.body={"a": 1}
data.label.base_url=http://127.0.0.1:1/v1
data.label.key_env=SOME_KEY
rlvr.from=runs/x/sft/checkpoint
parts.scales=[224]
stages=[sft]
"""


@target("overrides", "recipe.py", "strict.py", "settings.py", files=lambda: {"changes": _CHANGES})
def _overrides(place: Path) -> None:
    from lineside.recipe import load_recipe

    for line in (place / "changes").read_bytes().decode("utf-8", "replace").splitlines()[:20]:
        with refused():
            load_recipe(Path("nano"), [line])


def _bins() -> dict[str, bytes]:
    """Photographs with a table, and a task file with every kind of answer."""
    from textwrap import dedent

    from tests.reviewing.conftest import ROWS, TASKS

    lines = [
        "photo,side,parts,state,item,inside,empty,weight,at",
        *(f"{row},2026-01-0{n + 1}T08:00" for n, row in enumerate(ROWS)),
    ]
    return {
        "bins.yaml": dedent(TASKS).encode(),
        "bins/frames.csv": ("\n".join(lines) + "\n").encode(),
        **{f"bins/{number}.png": png(number) for number in range(len(ROWS))},
    }


def _task_files() -> Files:
    from lineside.data.job import SIM_TASKS, task_file

    own = [task_file(name).read_bytes() for name in (*SIM_TASKS, "grocery.yaml", "sorting.yaml")]
    return {**_bins(), "bins.yaml": [_bins()["bins.yaml"], *own]}


def _check(place: Path) -> None:
    from lineside.task import check

    check([place / "bins.yaml"], place / "bins")


_TABLE = (
    "data/table.py",
    "data/tabular.py",
    "data/tasks.py",
    "data/taskcheck.py",
    "data/values.py",
    "data/template.py",
)
target("task-file", "data/taskfile.py", "strict.py", *_TABLE, files=_task_files, fuzzed=("bins.yaml",))(_check)
target("table", *_TABLE, "data/folders.py", files=_bins, fuzzed=("bins/frames.csv",))(_check)


def _lines() -> Files:
    """As `_bins`, with a table of JSON lines that has lists, corners, corrections and times."""
    rows = [
        {
            "photo": f"{n}.png",
            "side": "ab"[n % 2],
            "parts": n,
            "state": "A",
            "item": "red_can",
            "empty": n == 1,
            "inside": ["red can"] * n,
            "weight": 10.5 * n,
            "at": f"2026-01-01T08:0{n}:00Z",
            "lineside_reviewed": {"parts": {"value": 3, "was": n, "by": "a", "at": "2026-01-01"}},
        }
        for n in range(4)
    ]
    found = {name: data for name, data in _bins().items() if name != "bins/frames.csv"}
    yaml = found["bins.yaml"].replace(b"file: frames.csv", b"file: frames.jsonl\n  time: at")
    return {**found, "bins.yaml": yaml, "bins/frames.jsonl": b"".join(json.dumps(row).encode() + b"\n" for row in rows)}


target("table-lines", *_TABLE, "data/reviewed.py", "data/times.py", files=_lines, fuzzed=("bins/frames.jsonl",))(_check)


def _joined() -> Files:
    """As `_bins`, with a log of scales that is joined by time."""
    found = _bins()
    join = b"\n  time: at\n  time_zone: UTC\n  join:\n    - {file: scale.csv, name: scale, time: at, within: 1h}"
    yaml = found["bins.yaml"].replace(b"file: frames.csv", b"file: frames.csv" + join)
    log = "at,grams\n" + "".join(f"2026-01-0{n + 1}T08:0{n}:0{n}Z,{n * 10}\n" for n in range(4))
    return {**found, "bins.yaml": yaml, "bins/scale.csv": log.encode()}


target(
    "joined-tables",
    "data/joins.py",
    "data/timelog.py",
    "data/clocks.py",
    "data/times.py",
    files=_joined,
    fuzzed=("bins/scale.csv", "bins.yaml"),
)(_check)


@target(
    "label",
    "label.py",
    "data/labelling.py",
    "data/recorded.py",
    "data/job.py",
    files=_bins,
    fuzzed=("bins/frames.csv", "bins.yaml"),
)
def _label(place: Path) -> None:
    from lineside.label import label
    from lineside.recipe import Label
    from lineside.validate import validate

    label(place / "bins", place / "out" / "samples", tasks=[place / "bins.yaml"], settings=Label())
    validate(place / "out" / "samples")


_IDENTITY = "0123456789abcdef"


def _job() -> Files:
    """The ledger of a labelling job, as lines that get their checksums, and as it lies there; its marks."""
    import tempfile

    from lineside.data.ledger import Attempt, Ledger

    with tempfile.TemporaryDirectory() as name:
        with Ledger(Path(name)) as ledger:
            ledger.add("ab" * 16, 0, Attempt("error", "busy"))
            ledger.add("ab" * 16, 1, Attempt("answer", "{}", "stop", 5, 6))
            ledger.add("cd" * 16, 0, Attempt("refused", "no"))
            ledger.forget("cd" * 16)
        (path,) = Path(name).iterdir()
        lines = path.read_bytes()
    account = {
        "identity": _IDENTITY,
        "date": "2026-01-01",
        "frames": {"failed": 1},
        "phrasings": {"a/b": []},
    }
    return {
        "entries": b"".join(line.partition(b" ")[2] for line in lines.splitlines(keepends=True)),
        "ledger": lines,
        "started": text({"identity": _IDENTITY, "date": "2026-01-01"}),
        "label.json": text(account),
    }


@target("label-job", "data/ledger.py", "data/job.py", files=_job)
def _read_job(place: Path) -> None:
    from lineside.data.job import STARTED, Identity, claim, phrasings_of
    from lineside.data.ledger import Attempt, Ledger, read_ledger
    from lineside.data.store import SUMMARY

    out = place / "out"
    out.mkdir()
    (out / "teacher-000.ledger").write_bytes((place / "ledger").read_bytes())
    lines = (place / "entries").read_bytes().splitlines()
    (out / "teacher-001.ledger").write_bytes(b"".join(b"%08x %s\n" % (zlib.crc32(line), line) for line in lines))
    with Ledger(out) as ledger:
        for key in ("ab" * 16, "cd" * 16):
            with refused():
                ledger.attempts(key)
            ledger.add(key, 0, Attempt("answer", "x"))
    drain(read_ledger(out / "teacher-001.ledger"))
    (out / STARTED).write_bytes((place / "started").read_bytes())
    for name, retry in ((STARTED, False), (SUMMARY, False), (SUMMARY, True)):
        if name == SUMMARY:
            (out / SUMMARY).write_bytes((place / "label.json").read_bytes())
        with refused():
            claim(out, Identity(_IDENTITY), "2026-01-02", retry_failed=retry)
        with refused():
            phrasings_of(out)


def _planned() -> Files:
    from dataclasses import asdict

    from lineside.sim.weeks import AS_PLANNED, changes
    from lineside.sim.world import FAMILIES, WORLD
    from lineside.simulate import Plan, Shard

    shards = (
        Shard("frames-00000.parquet", "picking", "train", 0, 1, 64, 0, 32),
        Shard("frames-00001.parquet", "kitting", "dev", 0, 1, 64, 0, 20),
    )
    return {"simulate.json": text(asdict(Plan(WORLD, shards, {"1": changes(1, AS_PLANNED, FAMILIES)})))}


@target("simulate-plan", "simulate.py", files=_planned)
def _continue_plan(place: Path) -> None:
    """What a further run would render; nothing is rendered."""
    from lineside.sim.weeks import AS_PLANNED
    from lineside.simulate import PLAN, _plan

    for family, split in (("picking", "train"), ("kitting", "dev"), ("returns", "train")):
        (place / "out").mkdir(exist_ok=True)
        (place / "out" / PLAN).write_bytes((place / "simulate.json").read_bytes())
        with refused():
            wanted = _plan(place / "out", {split: {family: 64}}, seed=0, week=1, size=64, cameras=AS_PLANNED)
            assert sum(shard.count for shard in wanted) >= 64 and len({shard.file for shard in wanted}) == len(wanted)


# --- rows of other trainers, Parquet, tars


def _foreign() -> Files:
    from tests.test_convert import FOREIGN

    texts = [text(rows) for rows in FOREIGN.values()]
    texts += [b"".join(json.dumps(row).encode() + b"\n" for row in rows) for rows in FOREIGN.values()]
    return {"rows": texts, "x/0.png": png(0), "1.png": png(1), "2.png": png(2)}


_ROWS = (
    "convert.py",
    "data/rowfiles.py",
    "data/conversations.py",
    "data/formats.py",
    "data/turns.py",
    "data/pictures.py",
)


@target("rows", *_ROWS, files=_foreign, fuzzed=("rows",))
def _rows(place: Path) -> None:
    from lineside.convert import convert

    convert(place / "rows", place / "out" / "samples")


@target("rows-parquet", *_ROWS, "data/readers.py", files=_foreign, fuzzed=("rows",))
def _rows_parquet(place: Path) -> None:
    """The same rows as Parquet, whatever types pyarrow finds for them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from lineside.convert import convert

    (place / "out").mkdir()
    try:
        rows = json.loads((place / "rows").read_bytes())
        pq.write_table(pa.Table.from_pylist(rows), place / "out" / "rows.parquet")
    except Exception:  # not rows, or not ones that Parquet holds
        return
    convert(place / "out" / "rows.parquet", place / "out" / "samples", images=place)


def _shards() -> Files:
    import tempfile

    from lineside.data.store import write_frames, write_samples
    from lineside.types import Frame, Image, Meta
    from tests.small_run import frame_samples

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_samples(folder, frame_samples(0))
        frame = Frame("f0", Image(png()), "picking", {"count": 3}, Meta(scene="s"), "train")
        write_frames(folder, [frame])
        return {f"data/{path.name}": path.read_bytes() for path in sorted(folder.glob("*.parquet"))}


_STORE = ("data/store.py", "data/shards.py", "data/rows.py", "data/checks.py", "validate.py")


@target("shards", *_STORE, files=_shards)
def _read_shards(place: Path) -> None:
    from lineside.data.store import read_frames, stream_frame_samples
    from lineside.validate import validate

    for read in (
        lambda: drain(read_frames(place / "data")),
        lambda: drain(stream_frame_samples(place / "data", kind="qa", split="train", seed=0, epoch=0)),
    ):
        with refused():
            read()
    validate(place / "data")


def _values() -> Files:
    from lineside.data.rows import samples_table
    from tests.small_run import frame_samples

    rows = samples_table([s for s in frame_samples(0) if s.kind == "qa"]).to_pylist()
    for row in rows:
        row["images"] = [None for _ in row["images"]]
    return {"rows": text(rows)}


@target("shard-values", *_STORE, files=_values)
def _shard_values(place: Path) -> None:
    """Samples whose columns have the right types and any value."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from lineside.data.rows import SAMPLE_SCHEMA
    from lineside.data.store import read_samples
    from lineside.report import report
    from lineside.validate import validate

    folder = place / "out"
    folder.mkdir()
    try:
        rows, one = json.loads((place / "rows").read_bytes()), {"bytes": png(), "path": ""}
        for row in rows:
            row["images"] = [one for _ in row["images"]]
        pq.write_table(pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA), folder / "qa-train-00000.parquet")
    except Exception:
        return
    for read in (
        lambda: drain(read_samples(folder)),
        lambda: validate(folder, show=1),
        lambda: report(folder, out=folder / "page.html"),
    ):
        with refused():
            read()


_YAML = b"""
table: {family: bins, image: png}
captions: [{family: bins, templates: [a bin]}]
tasks: [{family: bins, name: n, phrasings: ['How many?'], answer: {kind: number, column: parts}}]
"""


def _tars() -> Files:
    found = []
    for kind in ("w", "w:gz"):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode=kind) as tar:
            members = {"a.png": png(1), "a.json": b'{"parts": 4, "state": "A"}', "b/c.png": png(2), "b/c.txt": b"hello"}
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        found.append(out.getvalue())
    return {"a.yaml": _YAML, "tars/a.tar": found[0], "tars/a.tar.gz": found[1]}


def _frames(name: str) -> Callable[[Path], None]:
    def read(place: Path) -> None:
        from lineside.data.sources import fingerprint, open_frames
        from lineside.data.taskfile import load_task_file

        table = load_task_file(place / "a.yaml").table
        assert table is not None
        for path in sorted((place / name).iterdir()):
            source = open_frames(path, table)
            fingerprint(path, table)
            drain(source.frames())
            drain(source.records())

    return read


target("tar", "data/readers.py", "data/sources.py", files=_tars, fuzzed=("tars/a.tar", "tars/a.tar.gz"))(
    _frames("tars")
)

_MEMBERS = [
    {"name": "a.png", "picture": 1},
    {"name": "a.json", "text": '{"parts": 4}'},
    {"name": "../outside/canary.png", "picture": 2},
    {"name": "b.png", "type": 2, "linkname": "../outside/canary.png"},
    {"name": "c.png", "type": 1, "linkname": "/etc/hostname"},
    {"name": "d", "type": 5},
    {"name": "/tmp/e.png", "picture": 3},
    {"name": "f.png", "size": 10**12},
]


@target("tar-members", "data/readers.py", files=lambda: {"members": text(_MEMBERS)})
def _members(place: Path) -> None:
    """Tars with any member: names, links, devices, sizes."""
    (place / "out").mkdir()
    try:
        with tarfile.open(place / "out" / "a.tar", "w") as tar:
            for member in json.loads((place / "members").read_bytes()):
                data = png(member["picture"] % 9) if "picture" in member else str(member.get("text", "")).encode()
                info = tarfile.TarInfo(member["name"])
                info.type, info.linkname = bytes([48 + member.get("type", 0) % 8]), str(member.get("linkname", ""))
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
                if member.get("size"):
                    break
    except Exception:
        return
    from lineside.data.sources import open_frames
    from lineside.data.taskfile import Table

    drain(open_frames(place / "out" / "a.tar", Table(family="bins", image="png")).frames())


# --- pictures and videos


def _pictures() -> Files:
    from PIL import Image

    found = []
    grey16 = Image.fromarray(__import__("numpy").full((9, 7), 3000, "uint16"))
    exif = Image.Exif()
    exif[0x0112], exif[0x9003] = 6, "2026:01:02 03:04:05"
    for kind, image, options in [
        ("PNG", Image.open(io.BytesIO(png())), {"exif": exif}),
        ("JPEG", Image.open(io.BytesIO(png())), {"exif": exif}),
        ("WEBP", Image.open(io.BytesIO(png())), {}),
        ("BMP", Image.open(io.BytesIO(png())), {}),
        ("TIFF", Image.open(io.BytesIO(png())), {"compression": "tiff_lzw"}),
        ("PNG", grey16, {}),
        ("TIFF", grey16, {}),
        ("PNG", Image.new("P", (5, 5)), {"transparency": 0}),
        ("JPEG", Image.new("CMYK", (9, 9)), {}),
        ("TIFF", Image.new("LAB", (9, 9)), {}),
        ("PNG", Image.new("LA", (4, 4)), {}),
    ]:
        out = io.BytesIO()
        image.save(out, kind, **options)
        found.append(out.getvalue())
    return {"picture": found}


@target("picture", "images.py", "data/regions.py", files=_pictures)
def _picture(place: Path) -> None:
    from lineside.data.regions import shown_to_model
    from lineside.images import decode, exif_time, grey_bits, picture_size, stored, thumbnail, undecodable
    from lineside.types import Image

    data = (place / "picture").read_bytes()
    roi = {"box": [0.1, 0.1, 0.9, 0.9], "tiles": 2}
    assert isinstance(undecodable(data), str)
    for read in (
        lambda: decode(data),
        lambda: decode(data, least_side=4),
        lambda: decode(data, bits=12),
        lambda: picture_size(data),
        lambda: exif_time(data),
        lambda: stored(data),
        lambda: thumbnail(data, name="x"),
        lambda: grey_bits(data),
        lambda: shown_to_model(Image(data), roi),
        lambda: shown_to_model(Image(data), None, box="1,1,3,3"),
    ):
        with refused():
            read()


def _videos() -> Files:
    import av
    from PIL import Image

    found: dict[str, bytes] = {}
    for suffix, codec in (("mp4", "mpeg4"), ("avi", "mjpeg")):
        out = io.BytesIO()
        with av.open(out, "w", format=suffix) as video:
            stream = video.add_stream(codec, rate=5)
            stream.width = stream.height = 32  # pyright: ignore[reportAttributeAccessIssue]
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"  # pyright: ignore[reportAttributeAccessIssue]
            for number in range(6):
                frame = av.VideoFrame.from_image(Image.open(io.BytesIO(png(number, 32))))
                video.mux(stream.encode(frame))  # pyright: ignore[reportAttributeAccessIssue]
            video.mux(stream.encode())  # pyright: ignore[reportAttributeAccessIssue]
        found[f"videos/a.{suffix}"] = out.getvalue()
    return {"a.yaml": _YAML.replace(b"image: png", b"every: 0.5"), **found}


target("video", "data/readers.py", files=_videos, fuzzed=("videos/a.mp4", "videos/a.avi"))(_frames("videos"))


# --- checkpoints


def _checkpoint() -> dict[str, bytes]:
    import tempfile

    from lineside.model.checkpoint import save
    from tests.conftest import make_tiny_vlm

    with tempfile.TemporaryDirectory() as name:
        save(make_tiny_vlm(), Path(name) / "c")
        return {f"c/{path.name}": path.read_bytes() for path in sorted((Path(name) / "c").iterdir())}


_MODEL = ("model/checkpoint.py", "model/vocabulary.py", "families/__init__.py", "families/llava.py", "families/base.py")


@target("checkpoint", *_MODEL, files=_checkpoint)
def _load(place: Path) -> None:
    from lineside.model.checkpoint import load

    vlm = load(place / "c")
    _ = vlm.context, vlm.thinking, vlm.roi, vlm.references


@target(
    "checkpoint-config",
    *_MODEL,
    files=_checkpoint,
    fuzzed=("c/config.json", "c/processor_config.json", "c/tokenizer_config.json"),
)
def _family(place: Path) -> None:
    """Without the weights, as `lineside validate --checkpoint` reads it."""
    from lineside.validate import of_checkpoint

    of_checkpoint(place / "c")


def _beside() -> Files:
    """What lies beside the weights of a checkpoint of a run, and in the folders of its stages."""
    form = {"kind": "number", "unit": "g", "resolution": 1.0}
    return {
        "c/answers.json": text({"tasks": {"bins/n": form}}),
        "c/lineage.json": text(
            {
                "stage": "sft",
                "parent": {"weights": "x", "lineage": None},
                "data": {},
                "parts": None,
                "date": "",
                "code": "",
            }
        ),
        "c/confidence-think-fp32-local-full.json": text({}),
        "c/config.json": b"{}",
        "out/-0-2.rollouts": text(
            [{"tokens": [5, 2], "sampler_logprobs": [-0.5, -0.1], "text": "no", "finished": True}] * 2
        ),
        "out/.latency": text({"base_ms": 20.0, "per_token_ms": 3.0, "measured": 1, "p50_ms": 21.0}),
        "budget.json": text({"minutes": 1.0, "unit": "tokens", "number": 5, "per_minute": 5.0, "steps": 3}),
        "cost.json": text({"tokens": 4, "seconds": {"update": 1.0}}),
        "samples.json": text({"prompts": 3, "samples": 2, "left_out": {"x": 1}}),
        "metrics.jsonl": b'{"step": 1, "loss": 0.5}\n{"step": 2, "loss": null}\n',
        "inputs.json": text({"samples": {"a": {"size": 1, "time": 2, "hash": "x"}}}),
        "label.json": text({"identity": "x", "audit": None, "frames": {}}),
    }


@target(
    "run-files", "training/*.py", "judgement/typed.py", "judgement/calibration.py", "judgement/unfinished.py",
    files=_beside,
)  # fmt: skip
def _read_beside(place: Path) -> None:
    from lineside.data.store import account_of
    from lineside.judgement.calibration import read_calibration
    from lineside.judgement.typed import read_forms, task_of
    from lineside.judgement.unfinished import Unfinished
    from lineside.registry.intake import Found, _about
    from lineside.training.budget import read_budget
    from lineside.training.controls import read_account
    from lineside.training.cost import read_cost
    from lineside.training.lineage import _noted, read_lineage
    from lineside.training.metrics import MetricsLog, read_metrics

    for read in (
        lambda: task_of("How many?", read_forms(place / "c")),
        lambda: read_lineage(place / "c"),
        lambda: read_calibration(place / "c", "think-fp32-local-full"),
        lambda: read_budget(place, 1.0),
        lambda: read_cost(place),
        lambda: read_account(place),
        lambda: read_metrics(place / "metrics.jsonl"),
        lambda: _noted(place),
        lambda: _about(Found(place / "c")),
        lambda: account_of(place),
        lambda: _answered(Unfinished(place / "out")),
    ):
        with refused():
            read()
    (place / "out").mkdir(exist_ok=True)
    (place / "out" / "metrics.jsonl").write_bytes((place / "metrics.jsonl").read_bytes())
    MetricsLog(place / "out", step=1, label="x").close()


def _answered(unfinished: Any) -> None:
    from lineside.judgement.answers import confidence
    from lineside.types import Rollout

    answered = unfinished.once(lambda asked: [Rollout((2,), (0.0,), "", finished=True)] * len(asked))
    for rollout in answered([None, None]):
        confidence(rollout.sampler_logprobs)
    unfinished.latency(lambda: (None, "not measured"))


def _state() -> Files:
    import tempfile

    import torch

    from lineside.training.state import State, save_state

    with tempfile.TemporaryDirectory() as name:
        path = save_state(Path(name), State(3, {"w": torch.ones(2, 2)}, {"epoch": 1}, {"seconds": 2.0}))
        return {f"state/{path.name}": path.read_bytes()}


@target("state", "training/state.py", files=_state)
def _load_state(place: Path) -> None:
    from lineside.training.state import load_state, restore_rng

    state = load_state(place / "state")
    if state is not None:
        restore_rng(state)


@functools.cache
def _seeing() -> Any:
    from tests.conftest import make_tiny_vlm

    return make_tiny_vlm().requires_grad_(False)


def _features() -> Files:
    """A feature store of this version, and the index of one of before."""
    import tempfile

    from lineside.model.features import FeatureStore
    from lineside.types import Image

    with tempfile.TemporaryDirectory() as name:
        store = FeatureStore(Path(name), _seeing())
        (row, _) = store.get([Image(png(0)), Image(png(1))])
        assert store.folder is not None
        paths = sorted(path for path in store.folder.iterdir() if path.name != "lock")
        found = {path.name: path.read_bytes() for path in paths}
    line = json.loads(found["index.jsonl"])
    before = json.dumps({"k": line["k"], "s": 0, "r": 0}).encode() + b"\n"
    shape = {"shape": list(row.shape), "dtype": "bfloat16"}
    return {
        **found,
        "index.jsonl": [found["index.jsonl"], before],
        "meta.json": [text(shape), found["meta.json"]],
    }


@target("features", "model/features.py", files=_features)
def _read_features(place: Path) -> None:
    import torch

    from lineside.model.features import FeatureStore, encoder_key
    from lineside.types import Image

    folder = place / "out" / encoder_key(_seeing(), torch.bfloat16)
    folder.mkdir(parents=True)
    for path in place.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    store = FeatureStore(place / "out", _seeing())
    for images in ([Image(png(0))], [Image(png(1)), Image(png(2))]):
        with refused():
            assert all(len(row.shape) == 2 for row in store.get(images))


def _adapter() -> Files:
    import tempfile

    from lineside.model import adapter
    from lineside.model.checkpoint import load, save
    from lineside.settings import Lora
    from tests.conftest import make_tiny_vlm

    with tempfile.TemporaryDirectory() as name:
        base = Path(name) / "base"
        save(make_tiny_vlm(), base)
        vlm = load(base)
        adapter.attach(vlm, Lora(rank=2, alpha=4), base, seed=0)
        (Path(name) / "run").mkdir()
        save(vlm, Path(name) / "run" / "checkpoint")
        found = {f"base/{path.name}": path.read_bytes() for path in sorted(base.iterdir())}
        lora = {f"run/adapter/{p.name}": p.read_bytes() for p in sorted((Path(name) / "run" / "adapter").iterdir())}
    config = json.loads(lora["run/adapter/adapter_config.json"]) | {"base_model_name_or_path": "../x/base"}
    return {**found, **lora, "run/adapter/adapter_config.json": text(config)}


@target(
    "adapter",
    "model/adapter.py",
    files=_adapter,
    fuzzed=("run/adapter/adapter_config.json", "run/adapter/adapter_model.safetensors", "run/adapter/config.json"),
)
def _load_adapter(place: Path) -> None:
    from lineside.model.checkpoint import load

    path = place / "run" / "adapter" / "adapter_config.json"
    data = path.read_bytes()  # the place of the base is known only now
    path.write_bytes(data.replace(b"../x/base", str(place / "base").encode()))
    try:
        load(place / "run" / "adapter")
    finally:
        path.write_bytes(data)


# --- judgement, registry, outcomes


def _evaluations() -> Files:
    import tempfile

    from lineside.judgement.schema import write_evaluation
    from lineside.judgement.summary import summarise
    from tests.judgement.conftest import beside_rows, row, wrong

    found: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as name:
        for stage, rows in (("sft", [row("a"), wrong("b")]), ("rlvr", [row("a"), row("b")])):
            evaluation = summarise(rows, **{**beside_rows(), "stage": stage})
            write_evaluation(Path(name), evaluation, rows)
        found = {f"run/evaluation/{path.name}": path.read_bytes() for path in sorted(Path(name).iterdir())}
    log = b"".join(json.dumps({"step": n, "loss": 1 / (n + 1), "reward": None}).encode() + b"\n" for n in range(5))
    return {
        **found,
        "run/sft/metrics.jsonl": log,
        "run/recipe.yaml": b"name: x\n",
        "run/data.json": b"{}",
        "run/sft/cost.json": b"{}",
    }


@target(
    "compare",
    "compare.py",
    "judgement/paired.py",
    "judgement/schema.py",
    files=_evaluations,
    fuzzed=("run/evaluation/sft-heldout-think.json", "run/evaluation/sft-heldout-think.rows.jsonl"),
)
def _compare(place: Path) -> None:
    from lineside.compare import compare

    compare(*(place / "run" / "evaluation" / f"{stage}-heldout-think.json" for stage in ("sft", "rlvr")))


@target("report", "report.py", "judgement/page.py", "judgement/rundata.py", files=_evaluations)
def _report(place: Path) -> None:
    from lineside.report import report

    (place / "out").mkdir()
    report(place / "run", out=place / "out" / "page.html")


def _registry() -> Files:
    import tempfile

    from lineside.registry.store import Registry
    from tests.registry.conftest import add

    with tempfile.TemporaryDirectory() as name:
        with Registry(Path(name) / "r", create=True) as registry:
            add(registry, "bins", "one")
            add(registry, "bins", "two")
        with contextlib.closing(sqlite3.connect(Path(name) / "r" / "registry.sqlite")) as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        paths = [path for path in sorted((Path(name) / "r").rglob("*")) if path.is_file()]
        return {
            f"r/{p.relative_to(Path(name) / 'r')}": p.read_bytes()
            for p in paths
            if p.suffix in (".sqlite", ".json", ".safetensors")
        }


@target("registry", "registry/*.py", "models.py", files=_registry)
def _read_registry(place: Path) -> None:
    import shutil

    from lineside.models import history, list_models
    from lineside.registry.store import Registry

    shutil.copytree(place / "r", place / "out")
    list_models(place / "out", None)
    list_models(place / "out", "bins@1")
    history(place / "out", None)
    with Registry(place / "out") as registry:
        for item in registry.items("model"):
            registry.check(item, "a model")


def _told() -> Files:
    answer = {"text": "3", "kind": "number", "value": 3.0, "task": "bins/n"}
    return {
        "told": text({"id": "a", "truth": "4"}),
        "answer": text(answer),
        "form": text({"kind": "number", "unit": "", "resolution": 1.0}),
    }


@target("outcomes", "serving/outcomes.py", "serving/api.py", files=_told, also=("lineside.serving.api:ApiError",))
def _outcomes(place: Path) -> None:
    from pydantic import ValidationError

    from lineside.judgement.schema import TypedAnswer
    from lineside.judgement.typed import Form
    from lineside.serving.api import Outcome, read
    from lineside.serving.outcomes import Outcomes, judge_truth

    form = None
    with refused(ValidationError):
        form = Form.model_validate_json((place / "form").read_bytes())
    kept = Outcomes(place / "out" / "o.sqlite", days=1, max_bytes=1 << 20, frames=True)
    with contextlib.closing(kept):
        with refused(ValidationError):
            typed = TypedAnswer.model_validate_json((place / "answer").read_bytes())
            kept.keep("a", [b"x"], "q", typed, model="m", version="1")
        told = read(Outcome, (place / "told").read_bytes())
        found = kept.find(told.id)
        verdict = judge_truth(found["answer"]["text"] if found else "3", told.truth, form)
        if verdict:
            kept.tell(told.id, told.truth, verdict)
        kept.last(100)
        kept.delete(told.id)


def _floor() -> Files:
    """Tables of outcomes, a server's log, and what their answers are compared with."""
    import tempfile

    from lineside.judgement.typed import Forms
    from lineside.serving.outcomes import Outcomes
    from tests.serving.test_outcomes import typed
    from tests.test_outcomes import FORMS, row, table

    told = [
        row(0, "count", "3", truth=4, cell="c1", sku="4711;4712", time="2026-03-02T10:00:00"),
        row(1, "weight", "120 g", truth="0.12 kg", told="2026-03-02T11:00:00Z"),
        row(2, "state", "torn", verdict="failed"),
        row(0, "pick", "(0.5, 0.5)", verdict="failed", id="a"),
    ]
    with tempfile.TemporaryDirectory() as name:
        rows = {f"told.{kind}": table(Path(name) / f"told.{kind}", told).read_bytes() for kind in ("csv", "jsonl")}
        kept = Outcomes(Path(name) / "log.sqlite", days=1e6, max_bytes=1 << 20, frames=True)
        kept.keep("a", [png()], "how many?", typed("3"), model="m", version="1")
        kept.close()
        rows["log.sqlite"] = (Path(name) / "log.sqlite").read_bytes()
    return {
        **rows,
        "model/config.json": b"{}",
        "model/tasks.json": Forms(tasks=FORMS).model_dump_json().encode(),
        **{f"photos/f{number}.png": png(number) for number in range(3)},
    }


@target(
    "outcome-files", "outcomes.py", "judgement/outcomes.py", "judgement/outcome_pictures.py",
    "serving/outcome_sources.py", "serving/outcomes.py", files=_floor,
    fuzzed=("told.csv", "told.jsonl", "log.sqlite", "model/tasks.json"),
)  # fmt: skip
def _import_outcomes(place: Path) -> None:
    import shutil

    from lineside.outcomes import import_outcomes
    from lineside.outcomes_report import report
    from lineside.serving.outcome_sources import Sources

    (place / "out").mkdir()
    shutil.copy(place / "log.sqlite", place / "out" / "log.sqlite")  # SQLite writes its own log beside it
    for path in (place / "told.csv", place / "told.jsonl", place / "out" / "log.sqlite"):
        sources = Sources((path,), like=place / "model", frames=place)
        with refused():
            import_outcomes(sources, place / "out" / path.suffix)
        with refused():
            report(sources)


def _sent() -> Files:
    from lineside.images import image_key
    from tests.serving.test_outcomes import typed

    key = image_key(png())
    answer = {
        "id": "a", "time": 1.0, "model": "m", "version": "1", "frame": key, "question": "how many?",
        "answer": typed("3").model_dump_json(), "truth": "4", "verdict": None, "told": 2.0,
        "about": json.dumps({"cell": "c1", "beside": [{"key": key, "name": "side"}]}), "shadow_version": "2",
        "shadow_answer": typed("4").model_dump_json(),
    }  # fmt: skip
    return {
        "sent": text({"machine": "m1", "answers": [answer, {**answer, "id": "b", "about": None}]}),
        "key": key.encode(),
    }


@target(
    "sent-home", "fleet/intake.py", "serving/outcomes.py", files=_sent, also=("lineside.serving.api:ApiError",)
)  # fmt: skip
def _sent_home(place: Path) -> None:
    from lineside.fleet.intake import Intake, Sent
    from lineside.serving.api import read

    home = Intake(place / "out" / "home.sqlite", days=1e6, max_bytes=1 << 20, frames=True)
    with contextlib.closing(home):
        with refused():
            home.take_frame((place / "key").read_bytes().decode("utf-8", "replace"), png())
        told = home.take(read(Sent, (place / "sent").read_bytes()), "key")
        assert set(told) == {"refused", "lacks"}
        home.last(100)


def _signed() -> Files:
    import tempfile

    from lineside.fleet.signing import make_keys, read_private, signed
    from lineside.fleet.state import state_of
    from lineside.registry.promotion import promote
    from lineside.registry.store import Registry
    from tests.registry.conftest import add

    with tempfile.TemporaryDirectory() as name:
        with Registry(Path(name) / "r", create=True) as registry:
            promote(registry, add(registry, "bins", "one"), force="x")
            state = state_of(registry).model_dump_json().encode()
        public = make_keys(Path(name) / "k")
        envelope = signed(state, read_private(Path(name) / "k"))
        return {"envelope": envelope, "state": state, "public": public.read_bytes()}


@target("signed-state", "fleet/state.py", "fleet/signing.py", files=_signed)
def _read_signed(place: Path) -> None:
    from lineside.fleet.signing import opened, read_public
    from lineside.fleet.state import check_kinds, read_state

    with refused():
        read_state(opened((place / "envelope").read_bytes(), [read_public(place / "public")]))
    for served in read_state((place / "state").read_bytes()).of_cell("a").values():
        check_kinds(served)


# --- requests, replies, verifiers


def _requests() -> Files:
    import base64

    url = "data:image/png;base64," + base64.b64encode(png(0, 8)).decode()
    chat = {
        "model": "m",
        "max_tokens": 4,
        "stop": ["x"],
        "seed": 1,
        "logprobs": True,
        "top_logprobs": 2,
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": url}},
                    {"type": "text", "text": "4711 (a can):"},
                    {"type": "image_url", "image_url": {"url": url}},
                    {"type": "text", "text": "is it?"},
                ],
            }
        ],
        "lineside": {"task": "bins/n", "slots": {"item": "can"}, "deadline_ms": 100, "roi": "0,0,4,4"},
    }
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0}, "s": {"enum": ["a", "b"]}}}
    forms = [
        {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        {"type": "regex", "regex": "[0-9]{1,3}"},
        {"type": "json_object"},
    ]
    frame = {
        "model": "m",
        "image": url,
        "questions": [{"question": "x", "task": "bins/n", "response_format": forms[0]}],
        "references": [{"image": url, "name": "4711"}],
    }
    return {
        "chat": [text(chat), *(text({**chat, "stop": None, "response_format": form}) for form in forms)],
        "frame": text(frame),
        "told": text({"id": "a", "truth": "b"}),
    }


@target(
    "requests",
    "serving/api.py",
    "serving/requests.py",
    "serving/grammar.py",
    "serving/pictures.py",
    files=_requests,
    also=("lineside.serving.api:ApiError",),
)
def _read_requests(place: Path) -> None:
    from lineside.serving.api import ApiError, Chat, Outcome, Questions, read
    from lineside.serving.pictures import _show, data_url
    from lineside.serving.requests import _grammar, turn

    def chat() -> None:
        asked = read(Chat, (place / "chat").read_bytes())
        _, urls, references = turn(asked)
        _grammar(asked.response_format)
        for url in [*urls, *(one.image for one in references)]:
            _show(data_url(url), None, asked.lineside.camera, asked.lineside.roi, 1 << 20)

    def frame() -> None:
        for one in read(Questions, (place / "frame").read_bytes()).questions:
            _grammar(one.response_format)

    for step in (chat, frame, lambda: read(Outcome, (place / "told").read_bytes())):
        with refused(ApiError):
            step()


_REPLIES = [
    {"captions": ["A red can lies in the bin."]},
    {"traces": [{"id": 1, "trace": "two; so 2", "answer": "2"}]},
    {"questions": [{"question": "How many cans?", "trace": "two", "answer": "2", "kind": "number"}]},
    {"answers": [{"id": 1, "answer": "2"}]},
]


@target(
    "replies",
    "data/replies.py",
    "data/endpoint.py",
    files=lambda: {
        "reply": [
            text(
                {
                    "choices": [{"message": {"content": json.dumps(r)}, "finish_reason": "stop"}],
                    "usage": {"prompt_tokens": 3},
                }
            )
            for r in _REPLIES
        ],
        "text": [json.dumps(r).encode() for r in _REPLIES],
        "wait": b"120",
    },
    also=("lineside.data.replies:BadReply",),
)
def _replies(place: Path) -> None:
    from lineside.data import replies
    from lineside.data.endpoint import _message, read_completion, retry_after

    body = (place / "reply").read_bytes()
    attempt = read_completion(body)
    _message(body)
    retry_after((place / "wait").read_bytes().decode("latin-1"), now=0.0)
    for said in (attempt.text, (place / "text").read_bytes().decode("utf-8", "surrogateescape")):
        for kind in ("CaptionsReply", "TracesReply", "QuestionsReply", "PromptsReply", "AnswersReply"):
            with refused(replies.BadReply):
                replies.read_reply(getattr(replies, kind), said)


def _targets() -> Files:
    from tests.verify.test_total import TARGETS as KINDS

    return {
        "target": [text(kind.to_json()) for kind in KINDS.values()],
        "answer": [b"3", b"<think>two; so 2</think>2", b"red can, 2 x box", b"0.5, 0.5", b"70 percent"],
        "question": b"How many?",
    }


@target("verifiers", "verify/*.py", "types.py", files=_targets)
def _verify(place: Path) -> None:
    from lineside.types import Target as Truth
    from lineside.verify.judge import judge

    answer, question = (
        (place / name).read_bytes().decode("utf-8", "surrogateescape") for name in ("answer", "question")
    )
    try:
        truth = Truth.from_json(json.loads((place / "target").read_bytes()))
    except (TypeError, KeyError, ValueError, AttributeError, RecursionError):  # what readers of a target expect
        truth = Truth("exact", "sim", accepted=("red can",))
    for thinking in (True, False):
        judged = judge(answer, truth, thinking=thinking, finished=True, question=question)
        assert 0 <= judged.reward <= 1 and judged.verdict.exact <= (judged.verdict.reward == 1)


# --- review


def _review() -> Files:
    import tempfile

    from lineside.review import export
    from lineside.reviewing.log import FOLDER
    from lineside.reviewing.sources import open_review

    found = _bins()
    with tempfile.TemporaryDirectory() as name:
        for file, data in found.items():
            (Path(name) / file).parent.mkdir(parents=True, exist_ok=True)
            (Path(name) / file).write_bytes(data)
        from tests.reviewing.conftest import answer, opened

        review = opened(Path(name) / "bins")
        answer(review, {question.id: None for question in review.questions[:2]})
        export(review, "label-studio", Path(name) / "l.json")
        export(review, "cvat", Path(name) / "c.xml")
        log = (review.folder / FOLDER / "anna.jsonl").read_bytes()
        exports = {"l.json": (Path(name) / "l.json").read_bytes(), "c.xml": (Path(name) / "c.xml").read_bytes()}
        lines = b"".join(
            q.model_dump_json(exclude_defaults=True).encode() + b"\n"
            for q in open_review(Path(name) / "bins", tasks=[Path(name) / "bins.yaml"]).questions[:4]
        )
    return {**found, **exports, "log": log, "list/review.jsonl": lines, **{f"list/{n}.png": png(n) for n in range(4)}}


@target(
    "review",
    "reviewing/*.py",
    "data/review_list.py",
    files=_review,
    fuzzed=("l.json", "c.xml", "log", "list/review.jsonl"),
)
def _read_review(place: Path) -> None:
    from lineside.review import export, read_file
    from lineside.reviewing.log import FOLDER
    from lineside.reviewing.sources import open_review

    def list_of() -> None:
        listed = open_review(place / "list", out=place / "out" / "l")
        for question in listed.questions[:3]:
            with refused():
                listed.picture(question)
        export(listed, "cvat", place / "out" / "again.xml")
        export(listed, "label-studio", place / "out" / "again.json")

    def logs() -> None:
        review = open_review(place / "bins", tasks=[place / "bins.yaml"], out=place / "out" / "r")
        (place / "out" / "r" / FOLDER).mkdir(parents=True, exist_ok=True)
        (place / "out" / "r" / FOLDER / "anna.jsonl").write_bytes((place / "log").read_bytes())
        for name in ("l.json", "c.xml"):
            with refused():
                read_file(review, place / name)

    for step in (list_of, logs):
        with refused():
            step()


def _page() -> Files:
    found = {name: data for name, data in _review().items() if name.startswith("list/")}
    first = json.loads(found["list/review.jsonl"].splitlines()[0])["id"]
    sent = {"question": first, "revision": 0, "action": "answer", "answer": "3", "key": "0123456789abcdef"}
    return {
        **found,
        "sent": text(sent),
        "undo": text({"last": "0123456789abcdef", "key": "fedcba9876543210"}),
        "at": first.encode(),
    }


@target(
    "review-page", "reviewing/session.py", "reviewing/log.py", "data/review_list.py",
    files=_page, fuzzed=("sent", "undo", "at"),
)  # fmt: skip
def _use_page(place: Path) -> None:
    """What the page's server does with a body, below HTTP."""
    from lineside.data.tabular import read_json
    from lineside.reviewing.log import Log
    from lineside.reviewing.session import Sent, SentUndo, Session
    from lineside.reviewing.sources import open_review
    from lineside.strict import build

    review = open_review(place / "list", out=place / "out" / "r")
    with contextlib.closing(Log(place / "out" / "r" / "answers" / "anna.jsonl")) as log:
        session = Session(review, log, "anna", blind=True)
        at = (place / "at").read_bytes().decode("utf-8", "replace")
        for kind, name, act in ((Sent, "sent", session.save), (SentUndo, "undo", session.undo)):
            try:
                data = read_json((place / name).read_bytes().decode("utf-8"))
            except (ValueError, RecursionError):  # the server refuses what is no JSON
                continue
            with refused():
                act(build(kind, data if isinstance(data, dict) else {}, "the page"))  # pyright: ignore[reportArgumentType]
        for step in (lambda: session.state(at, 1), lambda: session.picture(at)):
            with refused():
                step()
