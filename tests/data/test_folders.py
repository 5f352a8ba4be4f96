"""Files of folders, once each, and the file that a name of another machine means."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from lineside.data.folders import PictureFolder, Rejected, read_file, walk
from lineside.errors import LinesideError


def files(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def walked(folder: Path) -> tuple[list[str], dict[str, str]]:
    found = list(walk(folder))
    return [f for f in found if isinstance(f, str)], {f.name: f.reason for f in found if isinstance(f, Rejected)}


def test_linked_folders_and_files_are_read_but_nothing_twice(tmp_path: Path) -> None:
    files(tmp_path / "store", "cam1/a.jpg", "blobs/7f")
    frames = files(tmp_path / "frames", "cam0/a.jpg", ".annex/9c", ".hidden.jpg")
    (frames / "cam1").symlink_to(tmp_path / "store" / "cam1")
    (frames / "cam2.jpg").symlink_to(tmp_path / "store" / "blobs" / "7f")
    (frames / "cam3.jpg").symlink_to(frames / ".annex" / "9c")
    (frames / "latest").symlink_to(frames / "cam0")
    (frames / "same.jpg").symlink_to(frames / "cam0" / "a.jpg")
    (frames / "again").symlink_to(tmp_path / "store" / "cam1")
    (frames / "up").symlink_to(tmp_path)
    (frames / "self").symlink_to(frames)
    (tmp_path / "store" / "cam1" / "round").symlink_to(tmp_path / "store" / "cam1")
    found, rejected = walked(frames)
    assert found == ["cam0/a.jpg", "cam1/a.jpg", "cam2.jpg", "cam3.jpg"] or found == [
        "again/a.jpg",
        "cam0/a.jpg",
        "cam2.jpg",
        "cam3.jpg",
    ]
    assert rejected.keys() == {"again/round", "cam1", "latest", "same.jpg", "self", "up"}
    assert "read in its own place" in rejected["latest"] and "folder above" in rejected["up"]


def test_a_file_outside_is_read_under_one_name(tmp_path: Path) -> None:
    """Whether the link to the file comes first or the link to its folder."""
    files(tmp_path / "store", "a.jpg", "b.jpg", "c.jpg")
    frames = files(tmp_path / "frames", "own.jpg")
    for name, meant in (("a1", "a.jpg"), ("a2", "a.jpg"), ("m", ""), ("z", "b.jpg")):
        (frames / name).symlink_to(tmp_path / "store" / meant)
    found, rejected = walked(frames)
    assert found == ["a1", "m/b.jpg", "m/c.jpg", "own.jpg"]
    assert rejected == dict.fromkeys(("a2", "m/a.jpg", "z"), "a link to a file that is read under another name")


def test_links_that_lead_nowhere_and_things_that_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "gone.jpg").symlink_to("nothing.jpg")
    (tmp_path / "one.jpg").symlink_to("two.jpg")
    (tmp_path / "two.jpg").symlink_to("one.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.jpg")
    found, rejected = walked(tmp_path)
    assert found == ["gone.jpg", "one.jpg", "pipe.jpg", "two.jpg", "zero.jpg"] and not rejected
    for name in found:
        reason = "not a file" if name in ("pipe.jpg", "zero.jpg") else "a link that leads nowhere"
        with pytest.raises(LinesideError, match=reason):
            read_file(tmp_path / name)
    with pytest.raises(LinesideError, match="No such file"):
        read_file(tmp_path / "absent.jpg")


def test_what_this_tool_wrote_into_the_folder_is_no_input(tmp_path: Path) -> None:
    files(tmp_path, "a.jpg", "samples/label.json", "samples/left-out/b.jpg", "other/label.started", "other/c.jpg")
    files(tmp_path, "run/recipe.yaml", "run/sft/d.jpg", "kit/recipe.yaml", "kit/e.jpg")
    assert walked(tmp_path)[0] == ["a.jpg", "kit/e.jpg", "kit/recipe.yaml"]


@pytest.mark.parametrize(
    ("named", "found"),
    [
        ("cam1/a.jpg", "cam1/a.jpg"),
        ("./cam1//a.jpg", "cam1/a.jpg"),
        (" cam1/a.jpg ", "cam1/a.jpg"),
        ("cam1\\a.jpg", "cam1/a.jpg"),
        ("CAM1/A.JPG", "cam1/a.jpg"),
        ("cam1/a", "cam1/a.jpg"),
        ("7", "7.png"),
        (unicodedata.normalize("NFD", "größe.jpg"), "größe.jpg"),
        ("frame.001", "frame.001.jpg"),
    ],
)
def test_the_one_file_that_a_name_can_mean(tmp_path: Path, named: str, found: str) -> None:
    folder = PictureFolder(files(tmp_path, "cam1/a.jpg", "7.png", "größe.jpg", "frame.001.jpg", "x/b.jpg"))
    assert folder.find(named) == found


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("b.jpg", r"No such file; x/b.jpg exists \(set `pictures: x`"),
        ("cam1/aa.jpg", "did you mean 'cam1/a.jpg'"),
        ("c", r"could mean c\.(jpg or c\.png|png or c\.jpg)"),
        ("", "no picture is named"),
        ("a\0.jpg", "no picture is named"),
        ("../a.jpg", "inside the folder"),
        ("/data/cam1/a.jpg", "inside the folder; cam1/a.jpg exists"),
        ("C:\\data\\cam1\\a.jpg", "inside the folder; cam1/a.jpg exists"),
        ("\\\\server\\cam1\\a.jpg", "inside the folder"),
        ("s3://bucket/a.jpg", "inside the folder"),
    ],
)
def test_a_name_that_means_none_or_several_is_refused_with_the_nearest(
    tmp_path: Path, named: str, message: str
) -> None:
    folder = PictureFolder(files(tmp_path, "cam1/a.jpg", "x/b.jpg", "c.jpg", "c.png"))
    with pytest.raises(LinesideError, match=message):
        folder.find(named)


def test_an_absolute_name_within_the_folder_is_taken(tmp_path: Path) -> None:
    folder = files(tmp_path / "f", "cam1/a.jpg")
    assert PictureFolder(folder).find(str(folder / "cam1" / "a.jpg")) == "cam1/a.jpg"
    with pytest.raises(LinesideError, match="no such folder of pictures; beside it: f"):
        PictureFolder(tmp_path / "g")
