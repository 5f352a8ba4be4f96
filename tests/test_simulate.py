"""The verb: shards that any number of workers make alike, resumed and extended without touching what is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from lineside.data.store import read_frames
from lineside.errors import LinesideError
from lineside.sim.weeks import Cameras
from lineside.sim.world import WORLD, generate_frames
from lineside.simulate import PLAN, contact_sheet, simulate, spread
from lineside.types import Frame
from tests.test_files import holder

WANTED = {"train": {"picking": 2, "returns": 2}, "shifted": {"kitting": 1}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("frames")
    try:
        assert simulate(out, frames=WANTED, seed=4, workers=1, sheet=0) == 5
    except LinesideError as error:
        pytest.skip(f"no renderer: {error}")
    return out


def content(folder: Path) -> dict[str, tuple[bytes, str]]:
    return {f.id: (f.image.bytes, f.split) for f in read_frames(folder)}


def test_frames_divided_over_families() -> None:
    assert spread({"dev": 10}, ("picking", "kitting", "returns")) == {"dev": {"picking": 4, "kitting": 3, "returns": 3}}
    assert sum(spread({"dev": 11})["dev"].values()) == 11
    with pytest.raises(LinesideError, match="no family"):
        spread({"dev": 1}, ())


def test_what_was_asked_for_is_there(made: Path) -> None:
    frames = list(read_frames(made))
    assert sorted((f.split, f.family) for f in frames) == [
        ("shifted", "kitting"), ("train", "picking"), ("train", "picking"), ("train", "returns"), ("train", "returns"),
    ]  # fmt: skip
    (direct,) = generate_frames(family="picking", count=1, seed=4, split="train", start=1)
    assert content(made)[direct.id] == (direct.image.bytes, "train")
    assert not list(made.glob(".*"))  # nothing half done lies about


def test_two_workers_make_what_one_makes(made: Path, tmp_path: Path) -> None:
    assert simulate(tmp_path, frames=WANTED, seed=4, workers=2, sheet=0) == 5
    assert content(tmp_path) == content(made)


def test_only_what_is_missing_is_rendered_again(made: Path, tmp_path: Path) -> None:
    for path in made.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    lost, *kept = sorted(tmp_path.glob("frames-*.parquet"))
    before = {p.name: p.stat().st_mtime_ns for p in kept}
    lost.unlink()
    assert simulate(tmp_path, frames=WANTED, seed=4, workers=1, sheet=0) == 2
    assert content(tmp_path) == content(made)
    assert {p.name: p.stat().st_mtime_ns for p in kept} == before
    assert simulate(tmp_path, frames=WANTED, seed=4, workers=1, sheet=0) == 0


def test_asking_for_more_adds_and_moves_nothing(made: Path, tmp_path: Path) -> None:
    for path in made.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    old = content(made)
    assert simulate(tmp_path, frames={"train": {"picking": 3}, "dev": {"returns": 1}}, seed=4, workers=1, sheet=0) == 2
    new = content(tmp_path)
    assert len(new) == 7 and all(new[key] == value for key, value in old.items())
    assert simulate(tmp_path, frames={"train": {"picking": 1}}, seed=4, week=1, workers=1, sheet=0) == 1
    assert len(content(tmp_path)) == 8


def test_a_struck_camera_changes_the_picture_and_not_the_record(made: Path, tmp_path: Path) -> None:
    cell = next(f.meta.cell for f in read_frames(made) if f.family == "returns")
    simulate(tmp_path, frames=WANTED, seed=4, workers=1, sheet=0, cameras=Cameras(knocked=(cell,)))
    before = {f.id: f for f in read_frames(made)}
    for frame in read_frames(tmp_path):
        old = before[frame.id]
        assert frame.record == old.record
        assert (frame.image.bytes == old.image.bytes) == (frame.meta.cell != cell)
    with pytest.raises(LinesideError, match=f"knocked {cell}, not none"):
        simulate(tmp_path, frames=WANTED, seed=4, workers=1, sheet=0)


def test_a_moved_camera_changes_the_truth_with_the_picture(made: Path) -> None:
    old = next(f for f in read_frames(made) if f.family == "returns")
    (new,) = generate_frames(
        family="returns", count=1, seed=4, split="train", cameras=Cameras(moved=(old.meta.cell or "",))
    )
    assert new.id == old.id and new.image.bytes != old.image.bytes
    assert new.record["label"] != old.record["label"]  # where it stands in the picture
    assert new.record["condition"] == old.record["condition"]


def test_the_folder_says_what_a_week_changed(tmp_path: Path) -> None:
    moved = Cameras(moved=("c25",))
    simulate(tmp_path, frames={"train": {"returns": 1}}, seed=4, week=3, size=56, workers=1, sheet=0, cameras=moved)
    week = json.loads((tmp_path / PLAN).read_text())["weeks"]["3"]
    assert week["moved"] == ["c25"] and week["knocked"] == []
    assert len(week["new"]) == 3 and len(week["retired"]) == 3 and len(week["repackaged"]) == 23
    assert set(week["light"]) <= {f"c{n}" for n in range(24, 36)}
    simulate(tmp_path, frames={"train": {"kitting": 1}}, seed=4, week=3, size=56, workers=1, sheet=0)
    assert json.loads((tmp_path / PLAN).read_text())["weeks"]["3"]["moved"] == ["c25"]  # still so for the returns


@pytest.mark.parametrize(("cell", "problem"), [("c99", "no such cell"), ("c01", "a cell of picking")])
def test_a_cell_that_is_not_there_is_named(tmp_path: Path, cell: str, problem: str) -> None:
    with pytest.raises(LinesideError, match=f"knocked {cell}: {problem}"):
        simulate(tmp_path / "new", frames={"train": {"returns": 1}}, cameras=Cameras(knocked=(cell,)))
    assert not (tmp_path / "new").exists()


def test_a_folder_of_another_kind_is_refused(made: Path, tmp_path: Path) -> None:
    with pytest.raises(LinesideError, match="224 pixels, not 112"):
        simulate(made, frames=WANTED, seed=4, size=112, workers=1, sheet=0)
    (tmp_path / PLAN).write_text("{")
    with pytest.raises(LinesideError, match="not a plan"):
        simulate(tmp_path, frames=WANTED, workers=1, sheet=0)
    (tmp_path / PLAN).write_text(json.dumps({"world": WORLD + 1, "shards": []}))
    with pytest.raises(LinesideError, match="another folder"):
        simulate(tmp_path, frames=WANTED, workers=1, sheet=0)


def test_two_simulations_do_not_write_into_one_folder(tmp_path: Path) -> None:
    with holder(tmp_path) as process, pytest.raises(LinesideError, match=f"process {process.pid} on"):
        simulate(tmp_path, frames={"train": {"returns": 1}}, seed=0, size=56)
    assert not (tmp_path / "simulate.json").exists()


def test_wishes_are_checked_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(LinesideError, match="no family 'sorting'"):
        simulate(tmp_path / "new", frames={"train": {"sorting": 3}})
    with pytest.raises(LinesideError, match="no split 'test'"):
        simulate(tmp_path / "new", frames={"test": {"picking": 3}})
    assert not (tmp_path / "new").exists()


def test_a_full_disk_keeps_finished_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: Path) -> None:
    from lineside import simulate as verb

    write, calls = verb.write_frames, []

    def fills_up(folder: Path, frames: object, **options: object) -> int:
        calls.append(folder)
        if len(calls) == 2:
            raise LinesideError("the disk is full")
        return write(folder, frames, **options)  # pyright: ignore

    monkeypatch.setattr(verb, "write_frames", fills_up)
    with pytest.raises(LinesideError, match="full"):
        simulate(tmp_path, frames=WANTED, seed=4, workers=1, sheet=0)
    assert len(list(tmp_path.glob("frames-*.parquet"))) == 1
    assert simulate(tmp_path, frames=WANTED, seed=4, workers=1, sheet=0) == 3
    assert content(tmp_path) == content(made)


def test_contact_sheet_shows_every_frame(made: Path, tmp_path: Path) -> None:
    frames: list[Frame] = list(read_frames(made))
    contact_sheet(frames, tmp_path / "sheets" / "all.png")
    sheet = Image.open(tmp_path / "sheets" / "all.png")
    assert sheet.format == "PNG" and sheet.height > 3 * 224  # three families, a row each at least
    with pytest.raises(LinesideError, match="at least one frame"):
        contact_sheet([], tmp_path / "none.png")


def test_a_simulation_ends_with_a_sheet_of_its_first_frames(tmp_path: Path) -> None:
    simulate(tmp_path, frames={"train": {"picking": 2, "returns": 2}}, seed=4, size=112, workers=1, sheet=1)
    with Image.open(tmp_path / "contact-sheet.png") as sheet:
        assert sheet.format == "PNG" and sheet.height > 224
