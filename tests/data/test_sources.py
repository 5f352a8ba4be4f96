"""Frames from whatever people have: every input becomes a frame by the mapping, or is refused by name with a reason."""

from __future__ import annotations

import builtins
import gc
import io
import json
import os
import struct
import tarfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as Pil

from lineside.data import folders, readers, store
from lineside.data.sources import FrameSource, Rejected, fingerprint, open_frames
from lineside.data.taskfile import Table
from lineside.errors import LinesideError
from lineside.images import decode
from lineside.types import Frame, Image, Meta


def encoded(picture: Pil.Image, kind: str = "JPEG", **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def jpeg(number: int) -> bytes:
    return encoded(Pil.new("RGB", (16, 16), (number % 256, 80, 80)))


def table(**keys: Any) -> Table:
    return Table.model_validate({"family": "picking", **keys})


def read(source: FrameSource) -> tuple[list[Frame], dict[str, str]]:
    """(frames, {name: reason}); every input is one or the other, the same on a second reading."""
    found = list(source.frames())
    assert found == list(source.frames())
    assert source.total == len(found)
    frames = [item for item in found if isinstance(item, Frame)]
    return frames, {item.name: item.reason for item in found if isinstance(item, Rejected)}


# --- pictures in folders


def test_a_folder_of_pictures_as_cameras_and_phones_write_them(tmp_path: Path) -> None:
    red_left = Pil.new("RGB", (40, 20), (0, 0, 255))
    red_left.paste((255, 0, 0), (0, 0, 20, 20))
    exif = Pil.Exif()
    exif[0x0112] = 6
    pictures = {
        "cam1/turned.jpg": encoded(red_left, exif=exif, quality=95),
        "cam1/deep.tif": encoded(Pil.fromarray(np.full((9, 9), 0x7FFF, np.uint16)), "TIFF"),
        "cam2/grey.png": encoded(Pil.new("L", (9, 9), 90), "PNG"),
        "cam2/palette.png": encoded(red_left.convert("P"), "PNG"),
        "cam2/print.jpg": encoded(red_left.convert("CMYK")),
    }
    for name, data in pictures.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    (tmp_path / ".DS_Store").write_bytes(b"hidden")
    frames, refused = read(open_frames(tmp_path, table(camera="folder", columns={"part": "name"})))
    assert not refused
    assert [f.id for f in frames] == sorted(pictures)
    assert [f.meta.camera for f in frames] == ["cam1", "cam1", "cam2", "cam2", "cam2"]
    assert frames[1].record == {"part": "turned"}
    upright = decode(frames[1].image.bytes)
    assert upright.size == (20, 40) and upright.getpixel((10, 5))[0] > 200
    assert decode(frames[0].image.bytes).getpixel((0, 0)) == (127, 127, 127)
    assert frames[0].image.bytes[:4] == b"\x89PNG"  # shards hold what browsers show


def test_without_a_task_file_the_family_is_enough(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    (frame,), _ = read(open_frames(tmp_path, family="picking"))
    assert (frame.family, frame.meta.scene, frame.record["folder"]) == ("picking", "a.jpg", "")
    with pytest.raises(LinesideError, match="describe how to read it"):
        open_frames(tmp_path)


def test_what_is_no_picture_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "good.jpg").write_bytes(jpeg(1))
    (tmp_path / "notes.txt").write_text("bins of monday")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "vector.jpg").write_text("<svg/>")
    (tmp_path / "large.jpg").write_bytes(b"\xff" * 5000)
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "round").symlink_to(tmp_path)  # a linked folder is not walked round and round
    monkeypatch.setattr(folders, "MAX_BYTES", 4000)
    frames, refused = read(open_frames(tmp_path, table()))
    assert [f.id for f in frames] == ["good.jpg"]
    assert {name: reason.split(":")[0] for name, reason in refused.items()} == {
        "notes.txt": "not an image of a known format (JPEG, PNG, WEBP, BMP, TIFF)",
        "empty.jpg": "not an image",
        "vector.jpg": "not an image of a known format (JPEG, PNG, WEBP, BMP, TIFF)",
        "large.jpg": "image of 5000 bytes",
        "gone.jpg": "image cannot be read",
        "round": "a link to a folder above it, or to one that is read already",
    }


def test_names_and_values_that_cannot_be_written_again_are_refused(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "a.jpg").write_bytes(jpeg(1))
    name = os.fsdecode(b"caf\xe9.jpg")  # Latin-1, as old cameras write it
    (tmp_path / "plain" / name).write_bytes(jpeg(2))
    frames, refused = read(open_frames(tmp_path / "plain", table()))
    assert [f.id for f in frames] == ["a.jpg"]
    assert refused == {"caf\\udce9.jpg": "text that is not Unicode"}
    rows = [
        '{"image": "plain/a.jpg", "n": NaN}',
        '{"image": "plain/a.jpg", "n": "\\ud800"}',
        '{"image": "plain/a.jpg"}',
    ]
    (tmp_path / "frames.jsonl").write_text("\n".join(rows))
    frames, refused = read(open_frames(tmp_path, table()))
    assert len(frames) == 1
    assert [reason.split(" (")[0] for reason in refused.values()] == [
        "not JSON", "text that is not Unicode"
    ]  # fmt: skip
    pq.write_table(pa.table({"image": [jpeg(1)], "n": [float("nan")]}), tmp_path / "x.parquet")
    (frame,), _ = read(open_frames(tmp_path / "x.parquet", table()))
    assert frame.record["n"] is None


def test_our_own_shards_are_taken_as_they_are_and_a_bad_row_stops_nothing(tmp_path: Path) -> None:
    frames = [
        Frame(f"f{n}", Image(jpeg(n)), "kitting", {"bom": ["a"]}, Meta(f"s{n}", "c1", time="t"), "dev")
        for n in range(3)
    ]
    store.write_frames(tmp_path, frames)
    assert read(open_frames(tmp_path)) == (frames, {})
    assert [r["bom"] for r in open_frames(tmp_path).records()] == [["a"]] * 3
    path = next(tmp_path.glob("*.parquet"))
    broken = pq.read_table(path)
    records = broken.column("record").to_pylist()
    records[1] = "{"
    pq.write_table(broken.set_column(broken.column_names.index("record"), "record", pa.array(records)), path)
    found, refused = read(open_frames(tmp_path))
    assert [f.id for f in found] == ["f0", "f2"]
    assert list(refused) == [f"{path}, row 1"]


# --- Parquet of others


def test_foreign_parquet_with_bytes_structs_or_paths(tmp_path: Path) -> None:
    (tmp_path / "2.jpg").write_bytes(jpeg(2))
    rows = {"count": [1, 2, 3], "when": pa.array([0, 1, 2], pa.timestamp("s")), "cell": ["a", "b", "c"]}
    mapping = {"cell": "cell", "time": "when", "columns": {"count": "count"}, "scene": "cell"}
    pictures = {
        "bytes": pa.array([jpeg(0), jpeg(1), None]),
        "struct": pa.array(
            [{"bytes": jpeg(0), "path": "0.jpg"}, {"bytes": None, "path": "2.jpg"}, {"bytes": None, "path": None}]
        ),
        "path": pa.array(["2.jpg", "../secret.jpg", None]),
    }
    seen = {}
    for name, column in pictures.items():
        pq.write_table(pa.table({**rows, "pixels": column}), tmp_path / f"{name}.parquet")
        source = open_frames(tmp_path, table(file=f"{name}.parquet", image="pixels", **mapping))
        assert [r["count"] for r in source.records()] == [1, 2, 3]
        seen[name] = read(source)
    frames, refused = seen["bytes"]
    assert [f.id for f in frames] == ["bytes.parquet#0", "bytes.parquet#1"]
    assert frames[1].image.bytes == jpeg(1)
    assert frames[1].record == {"count": 2}
    assert (frames[1].meta.cell, frames[1].meta.time) == ("b", "1970-01-01T00:00:01")
    assert list(refused.values()) == ["no image bytes in this row"]
    frames, refused = seen["struct"]
    assert [(f.id, f.image.bytes) for f in frames] == [("0.jpg", jpeg(0)), ("2.jpg", jpeg(2))]
    assert list(refused.values()) == ["no image bytes in this row"]
    frames, refused = seen["path"]
    assert [f.image.bytes for f in frames] == [jpeg(2)]
    assert list(refused.values()) == ["the picture must lie inside the folder", "no picture is named"]


def test_a_data_set_of_the_datasets_library(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    pictures = [Pil.new("RGB", (16, 16), (n, 0, 0)) for n in range(3)]
    made = datasets.Dataset.from_dict({"image": pictures, "label": [0, 1, 2]}).cast_column("image", datasets.Image())
    made.to_parquet(tmp_path / "train.parquet")
    frames, refused = read(open_frames(tmp_path, table(columns={"label": "label"})))
    assert not refused and [f.record for f in frames] == [{"label": n} for n in range(3)]
    assert decode(frames[2].image.bytes).getpixel((0, 0)) == (2, 0, 0)


def test_parquet_that_is_cut_off_and_a_column_that_is_not_there(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [jpeg(0)], "n": [1]}), tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-20])
    frames, refused = read(open_frames(tmp_path, table()))
    assert len(frames) == 1
    assert [("b.parquet" in name, "Parquet" in reason) for name, reason in refused.items()] == [(True, True)]
    with pytest.raises(LinesideError, match="no column 'imag'; did you mean 'image'"):
        open_frames(tmp_path, table(file="a.parquet", image="imag"))


# --- WebDataset


def tar(path: Path, members: list[tuple[str | tarfile.TarInfo, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as out:  # type: ignore[call-overload]
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(data) if info.isreg() else 0
            out.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return path


def link(name: str, kind: bytes, to: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    return info


def test_tars_group_neighbours_of_one_stem(tmp_path: Path) -> None:
    record = {"count": 3, "bom": [{"item": "can"}], "cell": "c7"}
    members = [
        ("a/001.jpg", jpeg(1)), ("a/001.json", json.dumps(record).encode()),
        ("a/002.txt", b" three cans \n"), ("a/002.PNG", encoded(Pil.new("RGB", (8, 8)), "PNG")),
    ]  # fmt: skip
    tar(tmp_path / "x-0.tar", members)
    tar(tmp_path / "x-1.tar.gz", [("b.jpg", jpeg(2))], "w:gz")
    mapping = table(columns={})
    frames, refused = read(open_frames(tmp_path, mapping))
    assert not refused
    assert [f.id for f in frames] == ["x-0.tar/a/001", "x-0.tar/a/002", "x-1.tar.gz/b"]
    assert frames[0].record == {"key": "a/001", "image": "x-0.tar/a/001", **record}
    assert frames[0].image.bytes == jpeg(1)
    assert frames[1].record["txt"] == "three cans"
    assert [r.get("count") for r in open_frames(tmp_path, mapping).records()] == [3, None, None]


def test_hostile_tars_are_refused_member_by_member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MAX_BYTES", 4000)
    tar(
        tmp_path / "x.tar",
        [
            ("../out.jpg", jpeg(1)),
            ("/etc/passwd.jpg", jpeg(1)),
            (link("l.jpg", tarfile.SYMTYPE, "/etc/passwd"), b""),
            (link("h.jpg", tarfile.LNKTYPE, "good.jpg"), b""),
            (link("pipe.jpg", tarfile.FIFOTYPE, ""), b""),
            ("huge.jpg", b"\0" * 5000),
            ("alone.json", b"{}"),
            ("two.left.jpg", jpeg(1)),
            ("two.right.jpg", jpeg(2)),
            ("text.jpg", jpeg(1)),
            ("text.json", b"[1]"),
            ("deep.jpg", jpeg(1)),
            ("deep.json", b"[" * 3000),
            ("good.jpg", jpeg(3)),
            ("good.npy", b"\x93NUMPY\xff"),
        ],
    )
    frames, refused = read(open_frames(tmp_path, table()))
    assert [(f.id, f.image.bytes) for f in frames] == [("x.tar/good", jpeg(3))]
    told = {name.rpartition(": ")[2]: reason for name, reason in refused.items()}
    expected = {
        "../out": "leads out", "/etc/passwd": "leads out", "l": "a link", "h": "a link",
        "pipe": "not a plain file", "huge": "5000 bytes", "alone": "no picture", "two": "2 pictures",
        "text": "not an object", "deep": "cannot be read",
    }  # fmt: skip
    assert told.keys() == expected.keys()
    assert all(part in told[name] for name, part in expected.items())
    assert list(tmp_path.iterdir()) == [tmp_path / "x.tar"]
    frames, _ = read(open_frames(tmp_path, table(image="left.jpg")))
    assert [(f.id, f.image.bytes) for f in frames] == [("x.tar/two", jpeg(1)), ("x.tar/good", jpeg(3))]


def test_a_tar_that_breaks_off_and_one_that_is_none(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", [("1.jpg", jpeg(1)), ("2.jpg", jpeg(2) * 9)])
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:3000])
    (tmp_path / "b.tar").write_bytes(b"no tar at all" * 99)
    frames, refused = read(open_frames(tmp_path, table()))
    assert [f.id for f in frames] == ["a.tar/1"]
    assert [Path(name).name for name in refused] == ["a.tar", "b.tar"]
    assert all("breaks off" in reason for reason in refused.values())


# --- videos


def clip(path: Path, frames: int, rate: int = 10) -> Path:
    """A film whose picture gets brighter: 2 a frame."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=rate)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for number in range(frames):
            pixels = np.full((64, 64, 3), number * 2, np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        out.mux(stream.encode())
    return path


def test_frames_of_a_video_do_not_stay(tmp_path: Path) -> None:
    """Without waiting for the collector: a folder of videos would fill the memory."""
    av = pytest.importorskip("av")
    path = clip(tmp_path / "a.mp4", 8)
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            reader = readers.VideoReader(tmp_path, [path], 0.1)
            assert len([row for row in reader.rows(pictures=True) if isinstance(row, readers.Row)]) == 8
            assert not any(isinstance(one, av.VideoFrame) for one in gc.get_objects())
    finally:
        gc.enable()


def test_a_frame_every_half_second_of_a_video(tmp_path: Path) -> None:
    (tmp_path / "episodes").mkdir()
    clip(tmp_path / "episodes" / "one.mp4", 31)
    (tmp_path / "episodes.csv").write_text("video,cell,picked\nepisodes/one.mp4,c3,yes\n")
    mapping = table(
        file="episodes/*.mp4",
        every=0.5,
        join=[{"file": "episodes.csv", "on": "video"}],
        cell="cell",
        columns={"second": "second", "picked": {"column": "picked", "type": "bool"}},
    )
    frames, refused = read(open_frames(tmp_path, mapping))
    assert not refused
    assert [f.record["second"] for f in frames] == [0, 0.5, 1, 1.5, 2, 2.5, 3]
    assert frames[3].id == "episodes/one.mp4@1.5s"
    grey = [np.asarray(decode(f.image.bytes)).mean() for f in frames]
    assert grey == pytest.approx([0, 10, 20, 30, 40, 50, 60], abs=3)  # frames 0, 5, 10, ...
    assert {f.meta.scene for f in frames} == {"episodes/one.mp4"}  # so that an episode lies on one side
    assert len({f.split for f in frames}) == 1
    assert frames[0].record["picked"] is True and frames[0].meta.cell == "c3"


def test_videos_that_cannot_be_read(tmp_path: Path) -> None:
    whole = clip(tmp_path / "a.avi", 30)
    (tmp_path / "b.avi").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (tmp_path / "c.mp4").write_bytes(b"\0" * 999)
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(jpeg(1))
    (tmp_path / "d.mp4").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n")
    (tmp_path / "e.mp4").write_text(f"ffconcat version 1.0\nfile '{secret}'\n")
    frames, refused = read(open_frames(tmp_path, table(every=0.5, file="*.[am][vp][i4]")))
    assert len([f for f in frames if f.id.startswith("a.avi")]) == 6
    assert not [f for f in frames if f.id.startswith(("c", "d", "e"))]
    assert {name.split("@")[0] for name in refused} >= {"c.mp4", "d.mp4", "e.mp4"}


def test_without_the_library_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.mp4").write_bytes(b"")
    real = builtins.__import__

    def no_av(name: str, *args: Any, **keys: Any) -> Any:
        if name == "av":
            raise ImportError(name)
        return real(name, *args, **keys)

    monkeypatch.setattr(builtins, "__import__", no_av)
    with pytest.raises(LinesideError, match=r"pip install 'lineside\[video\]'"):
        open_frames(tmp_path, table())


# --- which is which


@pytest.mark.parametrize(
    ("files", "file", "message"),
    [
        (["a.parquet", "a.tar"], None, "it holds parquet and tar files: name those to read"),
        (["frames.csv", "metadata.csv"], None, "name those to read"),
        (["a.csv", "b.csv"], "*.csv", "one table, or files of one kind"),
        (["a.csv"], "b.csv", "no such file; did you mean 'a.csv'.; the folder has a.csv"),
        (["a.csv"], "../a.csv", "must be inside the folder"),
        (["a.zip"], "a.zip", "unpack it first; expected .csv, .tsv, .jsonl"),
        (["a.xlsx"], "a.xlsx", "save the sheet as CSV first"),
        ([], None, "no rows"),
    ],
)
def test_what_cannot_be_told_apart_is_asked(tmp_path: Path, files: list[str], file: str | None, message: str) -> None:
    for name in files:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(LinesideError, match=message):
        open_frames(tmp_path, table(file=file))


def test_one_file_alone(tmp_path: Path) -> None:
    tar(tmp_path / "x.tar", [("1.jpg", jpeg(1))])
    (frame,), _ = read(open_frames(tmp_path / "x.tar", table()))
    assert frame.id == "x.tar/1"
    with pytest.raises(LinesideError, match="no such file or folder"):
        open_frames(tmp_path / "y.tar", table())


def test_the_fingerprint_moves_with_the_frames(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    one = fingerprint(tmp_path, table())
    assert one == fingerprint(tmp_path, table())
    (tmp_path / "b.jpg").write_bytes(jpeg(2))
    two = fingerprint(tmp_path, table())
    (tmp_path / "frames.csv").write_text("image,n\na.jpg,1\n")
    three = fingerprint(tmp_path, table())
    (tmp_path / "frames.csv").write_text("image,n\na.jpg,2\n")
    assert len({one, two, three, fingerprint(tmp_path, table())}) == 4


# --- what columns of Parquet hold


def parquet(path: Path, columns: dict[str, Any], **keys: Any) -> dict[str, list[Any]]:
    """The values of each column as records have them."""
    rows = len(next(iter(columns.values())))
    pq.write_table(pa.table({**columns, "image": [jpeg(n) for n in range(rows)]}), path)
    frames, refused = read(open_frames(path, table(columns={name: name for name in columns}, **keys)))
    assert not refused
    return {name: [frame.record[name] for frame in frames] for name in columns}


def test_numbers_of_parquet_come_as_they_were_written(tmp_path: Path) -> None:
    found = parquet(
        tmp_path / "x.parquet",
        {
            "order": pa.array(
                [4006381333931.0, None, 4006381333933.0]
            ),  # integers beside a null, as pandas writes them
            "single": pa.array([0.1, 2.5, 3.0], pa.float32()),
            "box": pa.array([[0.1, 0.2], [], None], pa.list_(pa.float32())),
            "price": pa.array([Decimal("1.10"), Decimal("2.00"), None]),
            "part": pa.array(["a", "b", "a"]).dictionary_encode(),
            "large": pa.array(["a", "b", None], pa.large_string()),
            "view": pa.array(["a", "b", None], pa.string_view()),
            "tiny": pa.array([1, 2, None], pa.uint8()),
            "nan": pa.array([float("nan"), 1.5, 2.0]),
        },
    )
    assert found == {
        "order": [4006381333931, None, 4006381333933],
        "single": [0.1, 2.5, 3],
        "box": [[0.1, 0.2], [], None],
        "price": [1.1, 2, None],
        "part": ["a", "b", "a"],
        "large": ["a", "b", None],
        "view": ["a", "b", None],
        "tiny": [1, 2, None],
        "nan": [None, 1.5, 2],
    }
    assert type(found["order"][0]) is int and type(found["single"][2]) is int


def test_moments_of_parquet_in_any_unit_and_zone(tmp_path: Path) -> None:
    berlin = pa.timestamp("ns", "Europe/Berlin")
    found = parquet(
        tmp_path / "x.parquet",
        {
            "fine": pa.array([1_767_225_600_000_000_001], pa.timestamp("ns")),
            "zoned": pa.array([1_767_225_600_000_000_000], berlin),
            "day": pa.array([20454], pa.date32()),
            "took": pa.array([1_500_000_001], pa.duration("ns")),
            "clock": pa.array([36_000_000_000_001], pa.time64("ns")),
        },
    )
    assert found == {
        "fine": ["2026-01-01T00:00:00"],
        "zoned": ["2026-01-01T01:00:00+01:00"],
        "day": ["2026-01-01"],
        "took": [1.5],
        "clock": ["10:00:00"],
    }


def test_classes_of_the_datasets_library_are_found_by_name_or_index(tmp_path: Path) -> None:
    features = {"image": {"_type": "Image"}, "state": {"names": ["empty", "full"], "_type": "ClassLabel"}}
    features["tags"] = {"feature": {"names": ["wet", "torn"], "_type": "ClassLabel"}, "_type": "List"}
    rows = {"image": [jpeg(n) for n in range(3)], "state": [0, 1, -1], "tags": [[0, 1], [], [1]]}
    made = pa.table(rows).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(made, tmp_path / "x.parquet")
    columns = {
        "state": "state",
        "tags": "tags",
        "by_name": {"column": "state", "values": {"empty": "nothing in it", "full": "no room"}},
        "by_index": {"column": "state", "values": {0: "nothing in it", 1: "no room"}},
    }
    frames, refused = read(open_frames(tmp_path, table(columns=columns)))
    assert not refused
    assert [f.record["state"] for f in frames] == ["empty", "full", None]
    assert [f.record["tags"] for f in frames] == [["wet", "torn"], [], ["torn"]]
    assert [f.record["by_name"] for f in frames] == ["nothing in it", "no room", None]
    assert [f.record["by_index"] for f in frames] == ["nothing in it", "no room", None]


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    twice = pa.Table.from_arrays([pa.array([jpeg(1)]), pa.array([1]), pa.array([2])], names=["image", "n", "n"])
    pq.write_table(twice, tmp_path / "x.parquet")
    with pytest.raises(LinesideError, match="two columns are called 'n'"):
        open_frames(tmp_path, table())


def test_a_categorical_column_of_paths_names_pictures(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    pq.write_table(pa.table({"image": pa.array(["a.jpg"]).dictionary_encode()}), tmp_path / "x.parquet")
    (frame,), _ = read(open_frames(tmp_path, table(file="x.parquet")))
    assert frame.image.bytes == jpeg(1)


# --- every input accounted for


def test_pictures_that_no_row_names_and_files_that_are_not_read_are_told(tmp_path: Path) -> None:
    for name in ("images/a.jpg", "images/b.jpg", "images/c.heic", "loose.png", "products.csv", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(jpeg(1))
    tar(tmp_path / "old.tar", [("1.jpg", jpeg(1))])
    (tmp_path / "Frames.csv").write_text("image,n\na.jpg,1\n")
    source = open_frames(tmp_path, table(pictures="images"))
    assert source.remarks.to_json() == {}
    assert [f.id for f in read(source)[0]] == ["a.jpg"]
    assert source.remarks.to_json() == {
        "pictures lie in the folder that no row names": {
            "count": 3,
            "examples": ["images/b.jpg", "images/c.heic", "loose.png"],
        },
        "files lie in the folder that could hold frames and are not read": {"count": 1, "examples": ["old.tar"]},
    }
    tars = open_frames(tmp_path, table(file="*.tar"))
    read(tars)
    assert tars.remarks.counts == {"files lie in the folder that could hold frames and are not read": 4}


def test_a_name_with_the_signs_of_a_pattern_and_names_in_capitals(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    for name, text in (("frames [A].csv", "image\na.jpg\n"), ("ROWS.JSONL", '{"image": "a.jpg"}\n')):
        (tmp_path / name).write_text(text)
        (frame,), _ = read(open_frames(tmp_path, table(file=name)))
        assert frame.id == "a.jpg"
    (frame,), _ = read(open_frames(tmp_path, table(file="*.jsonl")))
    assert frame.id == "a.jpg"


def test_the_fingerprint_moves_with_the_pictures_of_a_table_and_not_with_what_is_written_beside(tmp_path: Path) -> None:
    (tmp_path / "frames.csv").write_text("image\na.jpg\n")
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    one = fingerprint(tmp_path, table())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "label.started").write_text("{}")
    (tmp_path / "out" / "b.jpg").write_bytes(jpeg(2))
    assert fingerprint(tmp_path, table()) == one
    (tmp_path / "a.jpg").write_bytes(jpeg(1) + b"more")
    assert fingerprint(tmp_path, table()) != one


def deep(top: int) -> bytes:
    """A grey PNG of 16 bits that is `top` all over."""
    return encoded(Pil.fromarray(np.full((8, 8), top, np.uint16)), "PNG")


def shades(frames: list[Frame]) -> dict[str, int]:
    return {f.id: decode(f.image.bytes).getpixel((0, 0))[0] for f in frames}


READ = "grey pictures of 16 bits are read as {} bits, which the brightest of their camera needs (see `bits`)"


def test_further_pages_are_told(tmp_path: Path) -> None:
    pages = Pil.new("RGB", (8, 8)), Pil.new("RGB", (8, 8), (9, 9, 9))
    (tmp_path / "pages.tif").write_bytes(encoded(pages[0], "TIFF", save_all=True, append_images=[pages[1]]))
    source = open_frames(tmp_path, table())
    frames, _ = read(source)
    assert shades(frames) == {"pages.tif": 0}
    assert source.remarks.counts == {"TIFF pictures have further pages or frames: the first is read": 1}


def test_one_camera_has_one_scale(tmp_path: Path) -> None:
    """The lights go down in the second picture: it is darker, not stretched to the same white."""
    for name, top in (("day.png", 4000), ("dusk.png", 500), ("night.png", 200)):
        (tmp_path / name).write_bytes(deep(top))
    source = open_frames(tmp_path, table())
    frames, refused = read(source)
    assert shades(frames) == {"day.png": 250, "dusk.png": 31}
    assert "nearly black" in refused["night.png"] and "`bits: 12`" in refused["night.png"]
    assert source.remarks.counts == {READ.format(12): 2}
    frames, refused = read(open_frames(tmp_path, table(bits=12)))
    assert shades(frames) == {"day.png": 250, "dusk.png": 31, "night.png": 12} and not refused
    frames, refused = read(open_frames(tmp_path, table(bits=10)))
    assert shades(frames) == {"dusk.png": 125, "night.png": 50}
    assert "more than the 10 bits" in refused["day.png"]


def test_each_camera_has_its_own_scale(tmp_path: Path) -> None:
    for name, top in (("a/1.png", 1000), ("a/2.png", 300), ("b/1.png", 65000), ("b/2.png", 30000)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(deep(top))
    frames, refused = read(open_frames(tmp_path, table(camera="folder")))
    assert shades(frames) == {"a/1.png": 250, "a/2.png": 75, "b/1.png": 253, "b/2.png": 117} and not refused
    _, refused = read(open_frames(tmp_path, table()))
    assert set(refused) == {"a/1.png", "a/2.png"} and "name the column `camera`" in refused["a/1.png"]


@pytest.mark.parametrize("form", ["parquet", "tar"])
def test_deep_greys_in_archives_have_one_scale(tmp_path: Path, form: str) -> None:
    tops = {"1": 500, "2": 4000}
    if form == "parquet":
        rows = {"image": [{"bytes": deep(top), "path": name} for name, top in tops.items()]}
        pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    else:
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            for name, top in tops.items():
                for suffix, data in (("png", deep(top)), ("json", b"{}")):
                    member = tarfile.TarInfo(f"{name}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    frames, _ = read(open_frames(tmp_path, table()))
    assert list(shades(frames).values()) == [31, 250]


@pytest.mark.parametrize(
    ("matrix", "corner"),
    [
        ((1, 0, 0, 1), "top left"),
        ((0, 1, -1, 0), "top right"),  # held upright: a quarter turn clockwise
        ((-1, 0, 0, -1), "bottom right"),
        ((0, -1, 1, 0), "bottom left"),
        ((-1, 0, 0, 1), "top right"),  # a mirror
        ((1, 0, 0, -1), "bottom left"),
    ],
)
def test_a_video_comes_as_a_player_shows_it(matrix: tuple[int, ...], corner: str) -> None:
    picture = Pil.new("L", (4, 2))
    picture.putpixel((0, 0), 255)

    class Kind:
        name = "DISPLAYMATRIX"

    class Matrix:
        type = Kind

        def __bytes__(self) -> bytes:
            a, b, c, d = (value << 16 for value in matrix)
            return struct.pack("<9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)

    class FakeFrame:
        side_data = (Matrix(),)

    turn = readers._turn_of(FakeFrame())
    shown = picture if turn is None else picture.transpose(turn)
    width, height = shown.size
    corners = {"top left": (0, 0), "top right": (width - 1, 0)}
    corners |= {"bottom left": (0, height - 1), "bottom right": (width - 1, height - 1)}
    assert [name for name, place in corners.items() if shown.getpixel(place) == 255] == [corner]
    assert shown.size == ((2, 4) if matrix[0] == 0 else (4, 2))


def test_numbers_that_name_pictures_and_lists_of_pictures(tmp_path: Path) -> None:
    (tmp_path / "0.jpg").write_bytes(jpeg(1))
    pq.write_table(pa.table({"image": [0, 7]}), tmp_path / "x.parquet")
    frames, refused = read(open_frames(tmp_path, table(file="x.parquet")))
    assert [f.id for f in frames] == ["0.jpg"]
    assert ["No such file" in reason for reason in refused.values()] == [True]
    pq.write_table(pa.table({"image": [[jpeg(1), jpeg(2)]]}), tmp_path / "x.parquet")
    _, refused = read(open_frames(tmp_path, table(file="x.parquet")))
    assert list(refused.values()) == ["a list of 2 pictures in this row: expected one row for each picture"]
