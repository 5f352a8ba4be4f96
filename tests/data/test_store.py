"""Shards on disk: equal after a round trip, streamed with flat memory, resumable, and clear about what is broken."""

from __future__ import annotations

import io
import json
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as Pil

from lineside.data import rows, shards, store
from lineside.errors import LinesideError
from lineside.types import Frame, Image, Mask, Meta, Sample, Source, Target


def picture(number: int) -> bytes:
    out = io.BytesIO()
    Pil.new("RGB", (8, 8), (number % 256, number // 256 % 256, 7)).save(out, "PNG")
    return out.getvalue()


def meta(number: int) -> Meta:
    return Meta(
        f"scene{number}",
        "c01",
        "top",
        "2026-01-02T03:04:05",
        3,
        ("sku1", "sku2"),
        {"facts": ["a can lies left"], "n": 1.5},
    )


def frame(number: int, split: str = "train") -> Frame:
    record = {"count": number, "parts": [{"x": 0.5, "free": True}], "none": None, "word": "\u00e5"}
    return Frame(f"f{number}", Image(picture(number), "frame", f"{number}.png"), "picking", record, meta(number), split)


def sample(
    number: int, row: int, *, kind: str = "qa", split: str = "train", images: tuple[Image, ...] | None = None
) -> Sample:
    target = Target("number", "sim", value=3.0, tolerance=2.0) if kind != "caption" else None
    return Sample(
        f"f{number}/{kind}/{row}",
        kind,
        images or (Image(picture(number), "frame", f"{number}.png"),),
        "picking",
        "count",
        "How many?" if kind != "caption" else "",
        None if row % 2 else "one can, then another",
        None if kind == "prompt" else "3",
        target,
        split,
        meta(number),
        Source("sim", "abc", "2026-01-02"),
    )


def dataset(folder: Path, frames: int, per_frame: int, **options) -> list[Sample]:
    samples = [sample(f, r) for f in range(frames) for r in range(per_frame)]
    assert store.write_samples(folder, iter(samples), **options) == len(samples)
    return samples


def test_frames_are_equal_after_a_round_trip(tmp_path: Path) -> None:
    frames = [frame(i, "dev" if i % 3 == 0 else "train") for i in range(10)]
    assert store.write_frames(tmp_path, iter(frames), shard_rows=4) == 10
    assert [p.name for p in store.frame_shards(tmp_path)] == [f"frames-0000{i}.parquet" for i in range(3)]
    assert list(store.read_frames(tmp_path)) == frames
    assert list(store.read_frames(tmp_path, split="dev")) == [f for f in frames if f.split == "dev"]


def test_samples_are_equal_after_a_round_trip(tmp_path: Path) -> None:
    two = (Image(picture(1), "frame", "a.png"), Image(picture(2), "reference", ""))
    point = Target("point", "sim", x=0.25, y=0.5, mask=Mask(2, 2, (1, 2, 1)))
    samples = [
        sample(1, 0),
        sample(1, 1),
        sample(2, 0, images=two),
        sample(3, 1, kind="prompt"),
        sample(3, 0, kind="caption", split="dev"),
    ]
    samples.append(
        Sample("p", "qa", two, "picking", "pick", "Where?", None, "0.25, 0.50", point, "heldout", Meta(), Source())
    )
    store.write_samples(tmp_path, samples)
    key = lambda s: (s.id, s.split)  # noqa: E731
    assert sorted(store.read_samples(tmp_path), key=key) == sorted(samples, key=key)
    assert list(store.read_samples(tmp_path, kind="prompt")) == [samples[3]]
    assert list(store.read_samples(tmp_path, kind="qa", split="heldout")) == [samples[5]]


def test_a_shared_picture_is_stored_once_and_held_once(tmp_path: Path) -> None:
    large = tuple(Image(bytes([n]) * 200_000, "frame", "") for n in range(3))
    store.write_samples(tmp_path, [sample(n, r, images=(large[n],)) for n in range(3) for r in range(100)])
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) < 3 * 200_000 + 100_000
    held = {id(s.images[0].bytes) for s in list(store.read_samples(tmp_path))}
    assert len(held) == 3


def test_writing_again_appends(tmp_path: Path) -> None:
    store.write_frames(tmp_path, [frame(1)])
    store.write_frames(tmp_path, [frame(2)])
    assert [f.id for f in store.read_frames(tmp_path)] == ["f1", "f2"]


def test_a_frame_never_straddles_a_shard(tmp_path: Path) -> None:
    dataset(tmp_path, frames=10, per_frame=7, shard_rows=16)
    paths = store.sample_shards(tmp_path)
    assert len(paths) > 2
    owners = [{s.meta.scene for _, s in shards.scan(p, shards.SAMPLES) if isinstance(s, Sample)} for p in paths]
    assert sum(map(len, owners)) == len(set().union(*owners)) == 10


def test_groups_hold_all_samples_of_a_frame_once_an_epoch(tmp_path: Path) -> None:
    samples = dataset(tmp_path, frames=50, per_frame=5, shard_rows=40)
    groups = list(store.stream_frame_samples(tmp_path, kind="qa", split="train", seed=1, epoch=0))
    assert [len(g) for g in groups] == [5] * 50
    assert all(len({s.meta.scene for s in g}) == 1 for g in groups)
    assert sorted(s.id for g in groups for s in g) == sorted(s.id for s in samples)
    assert store.count_samples(tmp_path, kind="qa", split="train") == 250
    assert store.count_samples(tmp_path, kind="qa", split="dev") == 0
    assert store.count_frames_with(tmp_path, kind="qa", split="train") == 50


def test_the_order_depends_on_seed_and_epoch_alone(tmp_path: Path) -> None:
    dataset(tmp_path, frames=60, per_frame=2, shard_rows=20)

    def order(seed: int, epoch: int) -> list[str]:
        return [g[0].id for g in store.stream_frame_samples(tmp_path, kind="qa", split="train", seed=seed, epoch=epoch)]

    assert order(1, 0) == order(1, 0)
    assert len({tuple(order(s, e)) for s in (1, 2) for e in (0, 1)}) == 4
    assert order(1, 0) != sorted(order(1, 0))


@pytest.mark.parametrize("skip", [0, 1, 17, 59, 60, 100])
def test_skipping_equals_the_unbroken_stream(tmp_path: Path, skip: int) -> None:
    dataset(tmp_path, frames=60, per_frame=3, shard_rows=30)
    unbroken = list(store.stream_frame_samples(tmp_path, kind="qa", split="train", seed=5, epoch=2))
    assert (
        list(store.stream_frame_samples(tmp_path, kind="qa", split="train", seed=5, epoch=2, skip=skip))
        == unbroken[skip:]
    )


def test_skipping_reads_no_row_group_that_it_does_not_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset(tmp_path, frames=60, per_frame=3, shard_rows=9)
    reads: list[int] = []
    real = store.read_row_group
    monkeypatch.setattr(store, "read_row_group", lambda *a, **k: reads.append(1) or real(*a, **k))
    assert len(list(store.stream_frame_samples(tmp_path, kind="qa", split="train", seed=5, epoch=2, skip=58))) == 2
    assert 1 <= len(reads) <= 2


def test_the_stream_holds_a_window_not_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Live rows (those of the row groups that the stream still holds) must not grow with the data set."""
    monkeypatch.setattr(store, "WINDOW_ROWS", 64)
    live, most = {}, {}
    real = store.read_row_group

    class Held:
        """A table that reports when it is let go."""

        def __init__(self, table: pa.Table, size: str) -> None:
            self.table, self.size = table, size
            live[size] = live.get(size, 0) + table.num_rows
            most[size] = max(most.get(size, 0), live[size])

        def slice(self, start: int, count: int) -> pa.Table:
            return self.table.slice(start, count)

        def __del__(self) -> None:
            live[self.size] -= self.table.num_rows

    for size, frames in (("small", 100), ("large", 800)):
        dataset(tmp_path / size, frames=frames, per_frame=4, shard_rows=16)
        monkeypatch.setattr(store, "read_row_group", lambda *a, _s=size, **k: Held(real(*a, **k), _s))
        for _ in store.stream_frame_samples(tmp_path / size, kind="qa", split="train", seed=0, epoch=0):
            pass
    assert most == {"small": 64, "large": 64}
    assert live == {"small": 0, "large": 0}


def test_what_was_written_apart_is_met_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three kinds of frame, one behind the other on disk: the first window holds some of each, in every pass."""
    monkeypatch.setattr(store, "WINDOW_ROWS", 120)
    dataset(tmp_path, frames=270, per_frame=2, shard_rows=20)
    for epoch in range(20):
        stream = store.stream_frame_samples(tmp_path, kind="qa", split="train", seed=0, epoch=epoch)
        first = [int(group[0].id.split("/")[0][1:]) // 90 for group in islice(stream, 50)]
        assert min(first.count(kind) for kind in range(3)) >= 5


def test_shards_of_another_writer_stream_too(tmp_path: Path) -> None:
    """No list of groups, and no dictionary: groups are found by their pictures."""
    samples = [sample(f, r) for f in range(6) for r in range(3)]
    plain = pa.Table.from_pylist(
        [
            {**row, "images": [{"bytes": d, "path": p} for d, p in row["images"]]}
            for row in rows.sample_rows(rows.samples_table(samples))
        ],
        schema=rows.SAMPLE_SCHEMA,
    )
    pq.write_table(plain, tmp_path / "qa-train-00000.parquet", use_dictionary=False)
    groups = list(store.stream_frame_samples(tmp_path, kind="qa", split="train", seed=0, epoch=0))
    assert sorted(s.id for g in groups for s in g) == sorted(s.id for s in samples)
    assert [len(g) for g in groups] == [3] * 6


@pytest.mark.parametrize("noted", ["[[1", "7", "[[2]]", "[[-1]]", "[[1.0]]", '["x"]', "[" * 100_000])
def test_a_list_of_groups_that_is_none_is_refused(tmp_path: Path, noted: str) -> None:
    dataset(tmp_path, frames=1, per_frame=1)
    path = tmp_path / "qa-train-00000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, shards.GROUPS_KEY.encode(): noted}), path)
    with pytest.raises(LinesideError, match="its list of groups does not match its rows; write the shard again"):
        next(store.stream_frame_samples(tmp_path, kind="qa", split="train", seed=0, epoch=0))


def test_the_schema_tells_datasets_which_columns_are_pictures(tmp_path: Path) -> None:
    store.write_frames(tmp_path, [frame(1)])
    dataset(tmp_path, frames=1, per_frame=1)
    for name, column, feature in (("frames", "image", {"_type": "Image"}), ("qa-train", "images", None)):
        schema = pq.read_schema(tmp_path / f"{name}-00000.parquet")
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        assert list(features) == schema.names
        assert features[column] == (feature or {"feature": {"_type": "Image"}, "_type": "Sequence"})
        assert features["week"] == {"dtype": "int32", "_type": "Value"}
        assert "dictionary" not in str(schema.field(column).type)


def test_a_full_disk_keeps_finished_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, opened = shards._create, []

    def create(path: Path):
        opened.append(path)
        return real(path) if len(opened) < 3 else open("/dev/full", "wb")  # writes to it end in ENOSPC

    monkeypatch.setattr(shards, "_create", create)
    with pytest.raises(LinesideError, match="disk is full") as error:
        store.write_frames(tmp_path, (frame(i) for i in range(20)), shard_rows=4)
    assert str(tmp_path) in str(error.value)
    assert [f.id for f in store.read_frames(tmp_path)] == [f"f{i}" for i in range(8)]
    assert not list(tmp_path.glob("*.tmp*"))


def test_an_interrupted_writer_leaves_whole_shards_only(tmp_path: Path) -> None:
    def broken():
        yield from (frame(i) for i in range(6))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.write_frames(tmp_path, broken(), shard_rows=4)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["frames-00000.parquet"]


@pytest.mark.parametrize("damage", ["truncated", "noise", "empty"])
def test_a_corrupt_shard_is_named(tmp_path: Path, damage: str) -> None:
    dataset(tmp_path, frames=5, per_frame=2)
    path = tmp_path / "qa-train-00000.parquet"
    whole = path.read_bytes()
    path.write_bytes({"truncated": whole[: len(whole) // 2], "noise": b"not parquet" * 9, "empty": b""}[damage])
    for read in (
        lambda: list(store.read_samples(tmp_path)),
        lambda: list(store.stream_frame_samples(tmp_path, kind="qa", split="train", seed=0, epoch=0)),
        lambda: store.count_samples(tmp_path, kind="qa", split="train"),
    ):
        with pytest.raises(LinesideError, match=r"qa-train-00000\.parquet"):
            read()


def test_a_shard_with_damaged_pages_is_named(tmp_path: Path) -> None:
    dataset(tmp_path, frames=5, per_frame=2)
    path = tmp_path / "qa-train-00000.parquet"
    data = bytearray(path.read_bytes())
    data[4 : len(data) // 3] = bytes(len(data) // 3 - 4)
    path.write_bytes(data)
    with pytest.raises(LinesideError, match=r"qa-train-00000\.parquet"):
        list(store.read_samples(tmp_path))


def rewrite(path: Path, change) -> None:
    table = pq.read_table(path)
    pq.write_table(change(table), path)


def test_a_wrong_column_type_names_column_and_file(tmp_path: Path) -> None:
    dataset(tmp_path, frames=2, per_frame=2)
    path = tmp_path / "qa-train-00000.parquet"
    rewrite(path, lambda t: t.set_column(t.column_names.index("question"), "question", pa.array([1, 2, 3, 4])))
    with pytest.raises(LinesideError, match=r"qa-train-00000\.parquet.*'question' is int64; expected string"):
        list(store.read_samples(tmp_path))
    rewrite(path, lambda t: t.drop_columns(["question"]))
    with pytest.raises(LinesideError, match=r"qa-train-00000\.parquet: no column 'question'.*it has id, kind"):
        list(store.read_samples(tmp_path))


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("split", "test", "split 'test': expected one of train, dev"),
        ("kind", "chat", "kind 'chat': expected one of caption"),
        ("target", "{", "'target' is not JSON"),
        ("target", "[1]", "'target' holds a list"),
        ("target", '{"kind":"exact"}', "provenance"),
        ("id", "", "'id' is empty"),
        ("roles", ["painting"], "role 'painting'"),
        ("roles", ["frame", "view"], "1 images but 2 roles"),
        ("images", [], "no image bytes"),
    ],
)
def test_a_bad_row_is_named_by_file_and_number(tmp_path: Path, column: str, value, reason: str) -> None:
    dataset(tmp_path, frames=3, per_frame=1)
    path = tmp_path / "qa-train-00000.parquet"

    def change(table: pa.Table) -> pa.Table:
        values = table.column(column).to_pylist()
        values[1] = value
        return table.set_column(
            table.column_names.index(column), column, pa.array(values, table.schema.field(column).type)
        )

    rewrite(path, change)
    with pytest.raises(LinesideError, match=rf"qa-train-00000\.parquet, row 1: .*{reason}"):
        list(store.read_samples(tmp_path))
    found = list(shards.scan(path, shards.SAMPLES))
    assert [n for n, item in found if isinstance(item, LinesideError)] == [1]
    assert [n for n, _ in found] == [0, 1, 2]


def test_what_cannot_be_json_is_refused_before_it_is_written(tmp_path: Path) -> None:
    bad = Frame("f1", Image(picture(1)), "picking", {"x": float("nan")}, Meta(), "train")
    with pytest.raises(LinesideError, match="f1: record cannot be written as JSON"):
        store.write_frames(tmp_path, [bad])


def test_missing_data_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(LinesideError, match="lineside simulate"):
        list(store.read_frames(tmp_path))
    with pytest.raises(LinesideError, match="no such folder"):
        list(store.read_samples(tmp_path / "absent"))
    with pytest.raises(LinesideError, match="no qa samples of split dev"):
        list(store.stream_frame_samples(tmp_path, kind="qa", split="dev", seed=0, epoch=0))
