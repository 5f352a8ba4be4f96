"""label: frames of either teacher become samples of three stages, and every input is accounted for."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from PIL import Image as Pil
from typer.testing import CliRunner

import lineside
from lineside import cli, files
from lineside.data import store
from lineside.data.checks import inspect
from lineside.data.job import OWN_TASKS, decides, settle, task_file
from lineside.data.readers import Row, TableReader
from lineside.data.sources import Rejected, fingerprint
from lineside.data.store import read_samples
from lineside.data.table import TableFrames
from lineside.data.taskfile import load_task_file
from lineside.errors import LinesideError
from lineside.images import decode, image_key
from lineside.judgement.data_card import data_card
from lineside.label import SIM_TASKS, label
from lineside.recipe import Label
from lineside.task import check
from lineside.types import Frame, Image, Meta, Sample, Split
from lineside.verify.traces import fact_share, trace_problem
from lineside.verify.verifiers import verify
from tests.data.test_duplicates import COPIES, SCENES
from tests.test_files import holder

GROCERY = Path(__file__).parents[2] / "shared" / "data" / "grocery"

TASKS = """
    table:
      file: frames.csv
      family: shop
      split: {column: split, values: {train: train, val: dev, test: heldout}}
      columns: {product: product, group: group, packing: {column: group, values: {Milk: carton}, otherwise: loose}}
      distractors:
        - {name: is_it, column: product, near: group}
    captions:
      - family: shop
        wrong: [product]
        templates:
          - "This is {product}, a kind of {group}."
          - "{group} of the name {product}."
          - "One sees {product}, sold {packing}."
          - "A picture of {product} on a table."
    tasks:
      - family: shop
        name: product
        phrasings: ["Which product is this?", "What is it called?"]
        answer: {kind: exact, column: product}
        trace: "it is sold {packing}; it belongs to the group {group}"
      - family: shop
        name: packing
        phrasings: ["Carton or loose?"]
        answer: {kind: choice, column: packing, options: [carton, loose]}
        trace: "it looks like {product}; it belongs to the group {group}"
        max_share: 0.5
        normal: carton
        stakes: {false_pass: 20}
        budget_ms: 700
      - family: shop
        name: is_it
        each: is_it
        phrasings: ["Is this {item}?"]
        answer: {kind: choice, column: same, options: [yes, no]}
        per_frame: 2
"""


def png_of_noise() -> bytes:
    out = io.BytesIO()
    Pil.effect_noise((64, 64), 80).save(out, "PNG")
    return out.getvalue()


PRODUCTS = [("Ida", "Apple"), ("Boskoop", "Apple"), ("Conference", "Pear"), ("Whole Milk", "Milk")]


def jpeg(number: int) -> bytes:
    out = io.BytesIO()
    Pil.new("RGB", (16, 16), (number % 32 * 8, number // 32 * 16, 80)).save(out, "JPEG")  # no two the same
    return out.getvalue()


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """160 pictures: 120 to train on, a quarter of all in cartons; a task file beside the folder."""
    folder = tmp_path / "shop"
    folder.mkdir()
    lines = ["image,split,product,group"]
    for number in range(160):
        split = "train" if number < 120 else ("val" if number < 140 else "test")
        product, group = PRODUCTS[number % 4]
        lines.append(f"{number}.jpg,{split},{product},{group}")
        (folder / f"{number}.jpg").write_bytes(jpeg(number))
    (folder / "frames.csv").write_text("\n".join(lines))
    (tmp_path / "shop.yaml").write_text(dedent(TASKS))
    return folder


def run(shop: Path, out: str = "out", **options) -> tuple[Path, dict]:
    """Label the shop; `options` are settings of Label or arguments of `label`."""
    folder = shop.parent / out
    keys = {"tasks": [shop.parent / "shop.yaml"], "date": "2026-01-02"}
    settings = Label(**{name: options.pop(name) for name in list(options) if name in Label.model_fields})
    return folder, label(shop, folder, settings=settings, **{**keys, **options})


def test_three_stages_and_suites_from_a_table(shop: Path) -> None:
    out, account = run(shop)
    samples = list(read_samples(out))
    assert account["frames"] == {"read": 160, "labelled": 160, "rejected": 0, "failed": 0, "silent": 0}
    assert account["samples"] == dict(sorted(Counter(f"{s.kind}-{s.split}" for s in samples).items()))
    assert account["samples"]["caption-train"] == 120 * 4
    assert {s.split for s in samples if s.kind == "prompt"} == {"train"}
    assert {s.split for s in samples if s.kind == "qa"} == {"train", "dev", "heldout"}
    for s in samples:
        if s.kind == "caption":
            assert (s.target, s.trace, s.question) == (None, None, "")
        if s.kind == "prompt":
            assert (s.trace, s.answer) == (None, None)
        if s.kind == "qa":
            assert s.answer and s.target and verify(s.answer, s.target).exact
        if s.kind != "caption":
            assert s.target and s.target.provenance == "record"
        assert (s.source.teacher, s.source.date) == ("table", "2026-01-02")
        assert s.meta.scene == s.id.split("/")[0]
    assert len({(s.id, s.kind) for s in samples}) == len(samples)


def test_a_table_is_read_four_times_and_a_row_is_made_a_record_once_each(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How it is written, what values it has, the plan, the samples."""
    count: Counter[str] = Counter()
    rows, record = TableReader.rows, TableFrames._record

    def read(self: TableReader, *, pictures: bool) -> Iterator[Row | Rejected]:
        count["readings"] += 1
        return rows(self, pictures=pictures)

    def made(self: TableFrames, values: Mapping[str, Any]) -> dict[str, Any]:
        count["records"] += 1
        return record(self, values)

    monkeypatch.setattr(TableReader, "rows", read)
    monkeypatch.setattr(TableFrames, "_record", made)
    run(shop)
    assert count == {"readings": 4, "records": 3 * 160}


def test_stages_two_and_three_do_not_share_frames_and_the_control_has_the_prompts_with_answers(shop: Path) -> None:
    out, _ = run(shop, question_share=0.5, prompt_share=0.4)
    qa = {s.meta.scene for s in read_samples(out, kind="qa", split="train")}
    prompts = {s.id: s for s in read_samples(out, kind="prompt")}
    assert qa.isdisjoint({s.meta.scene for s in prompts.values()})
    twins = {s.id: s for s in read_samples(out / "control")}
    assert twins.keys() == prompts.keys()
    for name, twin in twins.items():
        assert (twin.kind, twin.question, twin.target) == ("qa", prompts[name].question, prompts[name].target)
        assert twin.answer and twin.target and verify(twin.answer, twin.target).exact


def test_suites_are_balanced_and_weights_restore_the_natural_prevalence(shop: Path) -> None:
    out, _ = run(shop)
    packing = [s for s in read_samples(out, kind="qa", split="heldout") if s.task == "packing"]
    assert Counter(s.answer for s in packing) == {"carton": 5, "loose": 5}  # of 5 and 15
    weights = {s.answer: s.meta.extra["weight"] for s in packing}
    assert weights == {"carton": 1.0, "loose": 3.0}
    assert packing[0].meta.extra["budget_ms"] == 700
    assert packing[0].meta.extra["stakes"] == {
        "wrong": 1.0,
        "false_pass": 20.0,
        "false_stop": 1.0,
        "refusal": 0.25,
    }
    assert packing[0].meta.extra["normal"] == "carton"
    assert not any("normal" in s.meta.extra for s in read_samples(out, kind="qa") if s.task != "packing")


def test_traces_state_facts_and_do_not_give_the_answer_away(shop: Path) -> None:
    out, account = run(shop)
    product = [s for s in read_samples(out, kind="qa", split="train") if s.task == "product"]
    for s in product:
        assert s.trace and s.answer
        assert trace_problem(s.trace, question=s.question, answer=s.answer) == ""
        assert fact_share(s.trace, s.meta.extra["facts"]) == 1.0
        assert s.answer not in s.trace
    assert set(account["traces"]) == {"valid", "blank"}  # is_it has no trace template


def test_suite_captions_bring_a_false_twin_one_attribute_apart(shop: Path) -> None:
    out, _ = run(shop)
    captions = list(read_samples(out, kind="caption", split="dev"))
    assert len(captions) == 20
    names = [product for product, _ in PRODUCTS]
    for s in captions:
        assert s.answer
        true, false = ([n for n in names if n in text] for text in (s.answer, s.meta.extra["wrong"]))
        assert s.meta.extra["wrong_attribute"] == "product"
        assert len(true) == len(false) == 1
        assert true != false
        assert s.answer.replace(true[0], false[0]) == s.meta.extra["wrong"]
        if true == ["Ida"] and "kind of" in s.answer:
            assert false == ["Boskoop"]  # of the same group, so that the sentence stays likely
    assert all("wrong" not in s.meta.extra for s in read_samples(out, kind="caption", split="train"))


def test_flaws_come_in_the_shares_asked_for(shop: Path) -> None:
    out, _ = run(shop, flaws={"missing": 0.2, "trivial": 0.2, "wrong": 0.2}, questions_per_frame=4, question_share=0.75)
    traced = [s for s in read_samples(out, kind="qa", split="train") if s.task != "is_it"]
    seen = Counter(
        "missing" if s.trace is None
        else "trivial" if trace_problem(s.trace, question=s.question, answer=s.answer)
        else "true" if fact_share(s.trace, s.meta.extra["facts"]) == 1.0
        else "wrong"
        for s in traced
    )  # fmt: skip
    assert {name: n / len(traced) for name, n in seen.items()} == pytest.approx(
        {"missing": 0.2, "trivial": 0.2, "wrong": 0.15, "true": 0.45}, abs=0.1
    )  # a borrowed row may agree with the own one
    assert all(s.trace for s in read_samples(out, kind="qa", split="heldout") if s.task != "is_it")


def test_never_fewer_captions_than_questions(shop: Path) -> None:
    with pytest.raises(LinesideError, match=r"captions_per_frame is 2, .* Set captions_per_frame to 4 or more"):
        run(shop, captions_per_frame=2, questions_per_frame=4, question_share=0.75)  # and all frames for stage 3
    one = [line for line in TASKS.splitlines() if not line.strip().startswith(('- "{group}', '- "One', '- "A'))]
    (shop.parent / "shop.yaml").write_text(dedent("\n".join(one)))  # one caption a frame, though four are asked for
    _, account = run(shop, "few", captions_per_frame=4, questions_per_frame=4, question_share=1.0, prompt_share=0.0)
    counts = account["samples"]
    assert counts["qa-train"] <= counts["caption-train"] == 120
    assert account["dropped"]["more questions than captions"] > 0


def test_labelling_again_gives_the_same_bytes_and_a_finished_job_is_not_done_twice(shop: Path) -> None:
    one, _ = run(shop, "one")
    two, _ = run(shop, "two")
    for path in one.glob("**/*.parquet"):
        assert path.read_bytes() == (two / path.relative_to(one)).read_bytes()
    before = {p: p.stat().st_mtime_ns for p in one.iterdir()}
    assert run(shop, "one")[1] == json.loads((one / "label.json").read_text())
    assert {p: p.stat().st_mtime_ns for p in one.iterdir()} == before
    with pytest.raises(LinesideError, match="other frames, tasks or settings"):
        run(shop, "one", seed=1)


def test_two_jobs_do_not_label_into_one_folder(shop: Path) -> None:
    out = shop.parent / "out"
    for kind in ("alone", "shared"):  # another job, or a rank of one that asks a teacher
        with holder(out, kind) as process, pytest.raises(LinesideError, match=f"process {process.pid} on"):
            run(shop, "out")
    assert not list(out.glob("*.parquet"))


def test_a_broken_off_job_is_started_over(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = run(shop, "whole")
    real, calls = store.SampleWriter.add, []

    def add(self: store.SampleWriter, sample: Sample) -> None:
        calls.append(sample)
        if len(calls) == 300:
            raise KeyboardInterrupt
        real(self, sample)

    monkeypatch.setattr(store.SampleWriter, "add", add)
    with pytest.raises(KeyboardInterrupt):
        run(shop, "broken")
    monkeypatch.undo()
    left = [shop.parent / "broken" / "left-out" / ".a1.jpg.12345.tmp", shop.parent / "broken" / ".label.json.12345.tmp"]
    mine = shop.parent / "broken" / ".notes.tmp"  # no name of ours
    for path in (*left, mine):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")
    out, _ = run(shop, "broken")
    assert mine.exists() and not any(path.exists() for path in left)
    names = {p.relative_to(whole) for p in whole.glob("**/*.parquet")}
    assert {p.relative_to(out) for p in out.glob("**/*.parquet*")} == names
    assert all((whole / n).read_bytes() == (out / n).read_bytes() for n in names)
    assert not (out / "label.started").exists()


@pytest.mark.parametrize("name", ["label.json", "rejected.jsonl"])
def test_a_full_disk_is_told_and_the_samples_stay(shop: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (shop / "0.jpg").write_bytes(b"")  # so that there is something to reject
    (shop.parent / "out").mkdir()
    full = shop.parent / "full" if name == "label.json" else shop.parent / "out" / name
    full.symlink_to("/dev/full")
    beside = files.temporary_of
    monkeypatch.setattr(files, "temporary_of", lambda path: full if path.name == "label.json" else beside(path))
    with pytest.raises(LinesideError, match="disk is full"):
        run(shop)
    monkeypatch.undo()
    full.unlink(missing_ok=True)
    assert run(shop)[1]["frames"]["rejected"] == 1


def test_a_comment_in_the_task_file_costs_no_relabelling(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, account = run(shop)
    tasks, written = shop.parent / "shop.yaml", (out / "qa-train-00000.parquet").stat().st_mtime_ns
    text = tasks.read_text()
    tasks.write_text(
        "# reviewed\n"
        + text.replace(
            "columns: {product: product, group: group,", "columns: {\n    group:   group, product: {column: product},"
        )
    )
    assert run(shop)[1] == account and "already labelled" in capsys.readouterr().err
    assert (out / "qa-train-00000.parquet").stat().st_mtime_ns == written
    for before, after in (("Which product is this?", "What product is this?"), ("max_share: 0.5", "max_share: 0.6")):
        tasks.write_text(text.replace(before, after))
        with pytest.raises(LinesideError, match="other frames, tasks or settings"):
            run(shop)


def test_a_folder_that_an_earlier_version_labelled_is_known(shop: Path) -> None:
    out, account = run(shop)
    tasks = shop.parent / "shop.yaml"
    job = [lineside.__version__, "table", decides(Label(), 0)]
    digest = hashlib.blake2b(json.dumps(job, sort_keys=True).encode(), digest_size=8)
    digest.update(tasks.read_bytes())
    digest.update(fingerprint(shop, load_task_file(tasks).table).encode())
    (out / "label.json").write_text(json.dumps({**account, "identity": digest.hexdigest()}))
    assert run(shop)[1]["identity"] == digest.hexdigest()


def test_an_account_that_cannot_be_read(shop: Path) -> None:
    (shop.parent / "out").mkdir()
    (shop.parent / "out" / "label.json").write_text("{")
    with pytest.raises(LinesideError, match=r"label\.json cannot be read"):
        run(shop)


def test_samples_of_somebody_else_are_not_touched(shop: Path) -> None:
    (shop.parent / "out").mkdir()
    (shop.parent / "out" / "qa-train-00000.parquet").write_bytes(b"mine")
    with pytest.raises(LinesideError, match="`lineside label` did not write"):
        run(shop)
    assert (shop.parent / "out" / "qa-train-00000.parquet").read_bytes() == b"mine"


def test_broken_inputs_are_rejected_by_name_with_a_reason(shop: Path) -> None:
    (shop / "0.jpg").write_bytes(png_of_noise()[:-400])
    (shop / "1.jpg").write_bytes(b"<html>")
    (shop / "2.jpg").unlink()
    with open(shop / "frames.csv", "a") as file:
        file.write("\n3.jpg,train,Ida,Apple\nshort,row")
    out, account = run(shop)
    assert account["frames"] == {"read": 162, "labelled": 157, "rejected": 5, "failed": 0, "silent": 0}
    assert sum(account["rejected"].values()) == 5
    lines = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    told = {line["name"].rpartition(" ")[2]: line["reason"] for line in lines}
    assert "damaged or cut off" in told["0.jpg"]
    assert "known format" in told["1.jpg"]
    assert "No such file" in told["2.jpg"]
    assert "listed twice" in told["3.jpg"]
    assert {s.meta.scene for s in read_samples(out)}.isdisjoint({"0.jpg", "1.jpg", "2.jpg"})


def test_a_tar_is_labelled_as_a_table_is(tmp_path: Path) -> None:
    """The same frames as WebDataset: the mapping is the same, and so are questions and answers."""
    with tarfile.open(tmp_path / "shop.tar", "w") as out:
        for number in range(40):
            product, group = PRODUCTS[number % 4]
            record = {"split": ("train", "val", "test")[number % 3], "product": product, "group": group}
            for name, data in (
                (f"{number:03d}.json", json.dumps(record).encode()),
                (f"{number:03d}.jpg", jpeg(number)),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                out.addfile(info, io.BytesIO(data))
    (tmp_path / "shop.yaml").write_text(dedent(TASKS).replace("file: frames.csv", ""))
    keys = {"tasks": [tmp_path / "shop.yaml"], "settings": Label(teacher="table")}
    account = label(tmp_path / "shop.tar", tmp_path / "out", **keys)
    assert account["frames"] == {"read": 40, "labelled": 40, "rejected": 0, "failed": 0, "silent": 0}
    samples = list(read_samples(tmp_path / "out", kind="qa"))
    asked = {s.answer for s in samples if s.task == "product"}
    assert asked == {product for product, _ in PRODUCTS}
    assert {s.id.split("/")[0] for s in samples} == {"shop.tar"}
    assert label(tmp_path / "shop.tar", tmp_path / "out", **keys) == account  # known again by its name and size


def test_thinning_rejects_what_repeats_and_says_of_what(tmp_path: Path) -> None:
    frames = [replace(f, family="shop", record={"n": n}) for n, f in enumerate(SCENES[:80])]
    copies = [replace(f, id=f"copy{n}", image=Image(COPIES["re-encoded"](n))) for n, f in enumerate(frames[:10])]
    store.write_frames(tmp_path / "frames", [*frames, *copies])
    (tmp_path / "t.yaml").write_text(
        "tasks: [{family: shop, name: n, phrasings: ['Which?'], answer: {kind: number, column: n}}]\n"
        "captions: [{family: shop, templates: ['Bin {n}.', 'The bin {n}.', '{n} it is.', 'It is {n}.']}]\n"
    )
    tasks = [tmp_path / "t.yaml"]
    every = label(tmp_path / "frames", tmp_path / "all", tasks=tasks, settings=Label(teacher="table"))
    assert every["frames"]["labelled"] == 90
    account = label(tmp_path / "frames", tmp_path / "thin", tasks=tasks, settings=Label(teacher="table", thin=True))
    assert account["frames"] == {"read": 90, "labelled": 80, "rejected": 10, "failed": 0, "silent": 0}
    assert account["rejected"] == {"near-duplicate": 10}
    lines = [json.loads(line) for line in (tmp_path / "thin" / "rejected.jsonl").read_text().splitlines()]
    key = image_key(copies[0].image.bytes)
    assert lines[0] == {"name": "copy0", "reason": "near-duplicate: looks the same as s0", "picture": key}
    card = data_card(tmp_path / "thin", inspect(tmp_path / "thin"))
    assert [line["name"] for line in card["rejected"]] == [f"copy{n}" for n in range(10)]
    shown = base64.b64decode(card["rejected"][0]["picture"].removeprefix("data:image/jpeg;base64,"))
    assert max(decode(shown).size) <= 320


def test_nothing_left_to_label_is_an_error(shop: Path) -> None:
    for path in shop.glob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(LinesideError, match=r"none of the 160 inputs can be labelled: .*rejected\.jsonl"):
        run(shop)


def test_a_column_that_the_records_lack_is_an_error_with_its_name(shop: Path) -> None:
    text = (shop.parent / "shop.yaml").read_text()
    (shop.parent / "shop.yaml").write_text(text.replace("kind: exact, column: product", "kind: exact, column: prodct"))
    with pytest.raises(LinesideError, match="no column 'prodct'; did you mean 'product'"):
        run(shop)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": []}, "no task file says how to read it and what to ask: give one with --tasks"),
        ({"tasks": [], "teacher": "table"}, "no task file given"),
        ({"tasks": [Path("absent.yaml")]}, r"absent\.yaml: no such task file; the package has grocery\.yaml"),
        ({"teacher": "sim"}, r"no frames \(frames-\*\.parquet\)"),
    ],
)
def test_bad_settings_say_what_to_do(shop: Path, options: dict, message: str) -> None:
    with pytest.raises(LinesideError, match=message):
        run(shop, **options)


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(LinesideError, match="no such folder of frames"):
        label(tmp_path / "absent", tmp_path / "out")


def returns(number: int, split: Split) -> Frame:
    """A frame as the simulator writes it, by hand."""
    condition = ("intact", "dented", "torn", "open")[number % 4]
    record = {
        "item": "red can",
        "colour": "red",
        "kind": "can",
        "pattern": "",
        "size": "",
        "condition": condition,
        "severity": 0.0 if condition == "intact" else 0.6,
        "confusers": [],
        "damage_box": None if condition == "intact" else [0.4, 0.4, 0.5, 0.5],
        "label": {"present": True, "readable": number % 2 == 0, "x": 0.5, "y": 0.5},
        "similar": ["blue can", "red box"],
    }
    name = f"{split}{number}"
    return Frame(name, Image(jpeg(number)), "returns", record, Meta(name, "c01", skus=("sku1",)), split)


def test_the_simulators_teacher(tmp_path: Path) -> None:
    def frames() -> Iterator[Frame]:
        yield from (returns(n, "train") for n in range(60))
        yield from (returns(n, "heldout") for n in range(60, 80))

    store.write_frames(tmp_path / "frames", frames())
    settings = Label(captions_per_frame=6, questions_per_frame=4)
    account = label(tmp_path / "frames", tmp_path / "out", settings=settings)
    assert account["teacher"] == "sim"
    assert account["frames"]["labelled"] == 80
    samples = list(read_samples(tmp_path / "out"))
    suite = [s for s in samples if s.split == "heldout" and s.kind == "qa"]
    assert {s.task for s in suite} >= {"condition", "label_readable"}
    for s in suite:
        assert s.answer and s.trace and s.target and s.target.provenance == "sim"
        assert verify(s.answer, s.target).exact
        assert trace_problem(s.trace, question=s.question, answer=s.answer) == ""
        assert fact_share(s.trace, s.meta.extra["facts"]) == 1.0
    assert any(s.meta.extra.get("wrong") for s in samples if s.split == "heldout" and s.kind == "caption")


@pytest.mark.skipif(not GROCERY.is_dir(), reason="the grocery photographs are not here")
def test_the_grocery_task_file_fits_the_set(tmp_path: Path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    lines = (GROCERY / "frames.csv").read_text().splitlines()
    (few / "frames.csv").write_text("\n".join([lines[0], *lines[1::60]]))
    (few / "products.csv").write_bytes((GROCERY / "products.csv").read_bytes())
    for name in ("train", "val", "test"):
        (few / name).symlink_to(GROCERY / name)
    account = label(few, tmp_path / "out", tasks=[Path("grocery.yaml")], settings=Label(captions_per_frame=8))
    assert account["frames"]["labelled"] == len(lines[1::60])
    assert account["traces"].keys() == {"valid"}
    suite = list(read_samples(tmp_path / "out", kind="qa", split="heldout"))
    assert Counter(s.task for s in suite)["product"] == sum(",test," in line for line in lines[1::60])
    assert any(s.answer == "Golden Delicious" for s in read_samples(tmp_path / "out", kind="qa"))


def test_with_records_all_training_frames_serve_both_stages_unless_shares_are_set(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, account = run(shop)
    train = {f"{number}.jpg" for number in range(120)}
    for kind in ("qa", "prompt", "caption"):
        assert {s.id.split("/")[0] for s in read_samples(out, kind=kind, split="train")} == train
    assert account["uses"] == {"train": 120, "qa": 120, "prompt": 120, "both": 120, "dev": 20, "heldout": 20}
    told = " ".join(capsys.readouterr().err.split())
    assert "of 120 training frames 120 are used for stage 2 (question_share 1) and 120 for stage 3" in told
    assert "120 of them serve both" in told
    _, account = run(shop, "half", question_share=0.5, prompt_share=0.5)
    assert account["uses"]["qa"] + account["uses"]["prompt"] == account["uses"]["train"]
    assert "both" not in {name for name, count in account["uses"].items() if count}


def test_many_frames_are_shared_out() -> None:
    few, many = (settle(Label(), "table", frames=n) for n in (20_000, 20_001))
    assert (few.question_share, few.prompt_share) == (1.0, 1.0)
    assert (many.question_share, many.prompt_share) == (0.75, 0.25)
    sim = settle(Label(), "sim", frames=10)
    assert (sim.captions_per_frame, sim.question_share, sim.prompt_share) == (4, 0.5, 0.25)


def test_what_decides_a_job_stays_what_it_was_for_settings_that_were_there() -> None:
    """Folders labelled before a setting was added are known again, and the samples' source is the same."""
    decided = decides(settle(Label(), "sim"), 3)
    assert decided == {
        "captions_per_frame": 4,
        "questions_per_frame": 8,
        "question_share": 0.5,
        "prompt_share": 0.25,
        "flaws": {"missing": 0.0, "trivial": 0.0, "wrong": 0.0},
        "thin": False,
        "seed": 3,
    }
    assert decides(Label(drop_leaks=True), 3)["drop_leaks"] is True
    asked = {"teacher": "api", "model": "m", "base_url": "http://a/v1", "key_env": "K", "in_flight": 3, "usd_in": 1.0}
    decided = decides(settle(Label(**asked, budget_usd=2.0, retry_failed=True, audit=5), "api"), 3)
    assert json.dumps(decided["asking"]) == (  # as it was written, so that a folder is continued byte for byte
        '{"model": "m", "structured": "schema", "max_tokens": 2048, "body": {}, "attempts": 5, "samples": 3, '
        '"agree": 3, "own_questions": 0, "trust_teacher": false}'
    )
    assert decided.keys() - {"asking"} == decides(settle(Label(), "sim"), 3).keys()


def test_the_tasks_that_think_are_those_with_a_valid_trace_in_training(shop: Path) -> None:
    assert run(shop)[1]["thinking"] == ["shop/packing", "shop/product"]


def test_a_picture_of_a_suite_in_training_is_named_with_both_files_and_left_out_if_asked(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (shop / "7.jpg").write_bytes((shop / "150.jpg").read_bytes())  # train and heldout
    (shop / "9.jpg").write_bytes((shop / "8.jpg").read_bytes())  # both in train: no leak
    _, account = run(shop)
    assert account["leaks"] == ["7.jpg of train is the same picture as 150.jpg of heldout"]
    told = " ".join(capsys.readouterr().err.split())
    assert "1 training pictures are also in a suite" in told and "--drop-leaks" in told
    out, account = run(shop, "dropped", drop_leaks=True)
    assert account["frames"] == {"read": 160, "labelled": 159, "rejected": 1, "failed": 0, "silent": 0}
    assert account["leaks"] == [] and account["rejected"] == {"leak": 1}
    (line,) = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert line == {"name": "7.jpg", "reason": "leak: the same picture as 150.jpg of heldout"}
    assert "7.jpg" not in {s.meta.scene for s in read_samples(out)}
    assert inspect(out).counts["picture leak"] == 0


def test_nothing_says_how_to_read_the_folder(shop: Path) -> None:
    text = (shop.parent / "shop.yaml").read_text()
    (shop.parent / "shop.yaml").write_text("captions:" + text.partition("captions:")[2])
    with pytest.raises(LinesideError, match=r"shop\.yaml has no `table` section that says how to read it: add one"):
        run(shop)


def test_each_setting_is_a_flag_of_the_same_name(shop: Path) -> None:
    words = [str(shop), str(shop.parent / "out"), "-t", str(shop.parent / "shop.yaml"), "--flaws-missing", "0.5"]
    done = CliRunner().invoke(cli.app, ["label", *words, "--question-share", "0.5", "--prompt-share", "0", "--thin"])
    assert done.exit_code == 0, done.output
    account = json.loads((shop.parent / "out" / "label.json").read_text())
    tasks = load_task_file(shop.parent / "shop.yaml").tasks
    assert account["phrasings"] == {f"{task.family}/{task.name}": list(task.phrasings) for task in tasks}
    told = account["settings"]
    assert (told["question_share"], told["prompt_share"], told["thin"]) == (0.5, 0.0, True)
    assert told["flaws"] == {"missing": 0.5, "trivial": 0.0, "wrong": 0.0}
    shown = CliRunner(env={"COLUMNS": "200"}).invoke(cli.app, ["label", "--help"]).output
    flags = {f"--{'-'.join(key).replace('_', '-')}" for key in leaves(Label().model_dump())}
    assert flags and all(flag in shown for flag in flags)


def leaves(settings: dict, above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    return [
        key
        for name, value in settings.items()
        for key in (leaves(value, (*above, name)) if isinstance(value, dict) else [(*above, name)])
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--question-share", "1.5"], "question_share: expected 1.0 or less, got 1.5"),
        (["--captions", "4"], "--captions-per-frame"),  # the old spelling is refused with the new one
        (["--questions", "4"], "--questions-per-frame"),
        (["--missing", "0.1"], "--flaws-missing"),
        (["--captions-per-frame", "1", "--questions-per-frame", "3"], "Set captions_per_frame to 3 or more"),
    ],
)
def test_wrong_flags(shop: Path, words: list[str], message: str) -> None:
    given = [str(shop), str(shop.parent / "out"), "-t", str(shop.parent / "shop.yaml"), *words]
    done = CliRunner(env={"COLUMNS": "400"}).invoke(cli.app, ["label", *given])
    assert done.exit_code == 2 and message in done.output + done.stderr


def test_a_task_that_shall_not_think_has_no_traces(tmp_path: Path) -> None:
    store.write_frames(tmp_path / "frames", (returns(n, ("train", "heldout")[n % 2]) for n in range(40)))
    text = (Path(lineside.__file__).parent / "tasks" / "returns.yaml").read_text()
    (tmp_path / "t.yaml").write_text(text.replace("name: condition\n", "name: condition\n    thinking: false\n"))
    account = label(tmp_path / "frames", tmp_path / "out", tasks=[tmp_path / "t.yaml"])
    samples = [*read_samples(tmp_path / "out", kind="qa"), *read_samples(tmp_path / "out" / "control")]
    assert {s.split for s in samples if s.task == "condition"} == {"train", "heldout"}
    assert {s.trace is None for s in samples if s.task == "condition"} == {True}
    assert {s.trace is None for s in samples if s.task == "label_readable"} == {False}
    assert "returns/label_readable" in account["thinking"] and "returns/condition" not in account["thinking"]


def test_values_that_nothing_maps_are_told_and_kept_in_the_account(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (shop.parent / "shop.yaml").read_text()
    (shop.parent / "shop.yaml").write_text(text.replace("{Milk: carton}, otherwise: loose", "{Milk: carton}"))
    _, account = run(shop)
    assert account["unmapped"] == {"packing": {"Apple": 80, "Pear": 40}}
    told = " ".join(capsys.readouterr().err.split())
    assert "column 'packing': 120 cells hold a value without an entry in `values`" in told and "'Apple' 80" in told


SORTING = Path(__file__).parents[2] / "shared" / "data" / "sorting"


@pytest.mark.skipif(not SORTING.is_dir(), reason="the photographs of waste are not here")
def test_the_sorting_task_file_fits_the_set(tmp_path: Path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    lines = (SORTING / "pieces.csv").read_text().splitlines()
    (few / "pieces.csv").write_text("\n".join([lines[0], *lines[1::40]]))
    (few / "frames").symlink_to(SORTING / "frames")
    assert check([task_file("sorting.yaml")], few).problems == []
    account = label(few, tmp_path / "out", tasks=[Path("sorting.yaml")])
    assert account["frames"]["labelled"] == len(lines[1::40])
    assert account["traces"].keys() == {"valid"} and not account["unmapped"]
    assert account["uses"]["qa"] == account["uses"]["prompt"] == sum(",train," in line for line in lines[1::40])
    asked = {s.answer for s in read_samples(tmp_path / "out", kind="qa") if s.task == "chute"}
    assert asked <= {"fibre", "glass", "plastic", "metal", "residual"} and len(asked) > 3


def test_the_packages_own_task_files_load_and_the_recipes_find_them() -> None:
    names = {path.name for path in OWN_TASKS.iterdir()}
    assert {"grocery.yaml", "sorting.yaml", *SIM_TASKS} == names
    for name in names:
        assert load_task_file(OWN_TASKS / name).tasks


def test_what_is_not_asked_is_counted_once_where_a_frame_serves_both_stages(shop: Path) -> None:
    text = (shop.parent / "shop.yaml").read_text().replace("options: [carton, loose]", "options: [carton, box]")
    (shop.parent / "shop.yaml").write_text(text)
    assert run(shop)[1]["dropped"]["truth not among the options"] == 120  # three of four frames, each once


def test_what_no_row_names_and_how_the_split_was_made_stand_in_the_account(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (shop / "unnamed.jpg").write_bytes(jpeg(200))
    _, summary = run(shop)
    assert summary["remarks"]["pictures lie in the folder that no row names"] == {
        "count": 1, "examples": ["unnamed.jpg"]
    }  # fmt: skip
    assert "label: 1 pictures lie in the folder that no row names: unnamed.jpg" in capsys.readouterr().err
    assert summary["split"] is None  # the table's own


def test_samples_need_a_folder_of_their_own_and_one_within_the_frames_is_no_input(shop: Path) -> None:
    with pytest.raises(LinesideError, match="their own folder"):
        run(shop, "shop")
    _, first = run(shop, "shop/samples")
    _, again = run(shop, "shop/samples")
    assert first == again and first["frames"]["rejected"] == 0
