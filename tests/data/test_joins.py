"""Tables joined by time: each frame has the row it would have by trying every row, and nothing unclear is taken."""

from __future__ import annotations

import csv
import json
import random
import re
from datetime import datetime, timedelta
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pil
from pydantic import ValidationError

from lineside.data.checks import inspect
from lineside.data.joinreport import NO_END, NO_KEY, NO_PARTNER, NO_ROW, NO_TIME, SEVERAL_ROWS, TAKEN, TWICE, UNCLEAR
from lineside.data.joins import TimeJoin
from lineside.data.sources import open_frames
from lineside.data.table import TableFrames
from lineside.data.taskfile import Join, Table
from lineside.errors import LinesideError
from lineside.judgement.data_card import data_card
from lineside.label import label
from lineside.types import Frame
from tests.fuzz.guard import CANARY, watched

START = datetime(2026, 3, 2, 10, 42, 7)


def at(seconds: float) -> str:
    return (START + timedelta(seconds=seconds)).isoformat(timespec="milliseconds")


def write(path: Path, header: str, rows: list[tuple[Any, ...]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header.split(","), *rows])


def opened(folder: Path, frames: list[tuple[Any, Any]], *joins: dict[str, Any], **changes: Any) -> TableFrames:
    """A table of frames (cell, time) whose pictures are 0.png, 1.png ..."""
    folder.mkdir(exist_ok=True)
    if not (folder / "frames.csv").exists():
        write(folder / "frames.csv", "image,cell,taken", [(f"{n}.png", *row) for n, row in enumerate(frames)])
    for number in range(len(frames)):
        Pil.new("RGB", (8, 8), (number % 256, number // 256, 7)).save(folder / f"{number}.png")
    table = {"file": "frames.csv", "family": "p", "time": "taken", "join": joins, **changes}
    return TableFrames(folder, Table.model_validate(table))


def column(source: TableFrames, name: str) -> list[Any]:
    return [record[name] for record in source.records()]


LINES = {"file": "lines.csv", "on": "cell", "start": "opened", "end": "closed"}
SCALE = {"file": "scale.csv", "on": "cell", "time": "at", "within": "2 s"}
PICKS = {"file": "picks.csv", "on": "cell", "time": "at", "within": "10 s", "side": "after", "several": "first"}


def test_the_order_line_that_is_open(tmp_path: Path) -> None:
    write(
        tmp_path / "lines.csv",
        "cell,opened,closed,order",
        [(17, at(-60), at(0), "A"), (17, at(0), at(30), "B"), (17, at(40), "", "C"), (18, at(-9), at(9), "D")],
    )
    frames = [(17, at(t)) for t in (-61, -60, 0, 29.999, 30, 40, 9999)] + [(18, at(0)), (19, at(0)), ("", at(0))]
    found = opened(tmp_path, [*frames, (17, "")], LINES)
    # A line holds from its start to just before its end; an end that is not written is still open.
    assert column(found, "order") == [None, "A", "B", "B", None, "C", "C", "D", None, None, None]
    report = found.joins[0]
    assert (report.frames, report.matched, report.rows) == (11, 6, 4)
    assert report.outcomes == {NO_ROW: 2, NO_PARTNER: 1, NO_KEY: 1, NO_TIME: 1}
    assert "frames.csv, row 1, 0.png (2026-03-02T10:41:06.000, cell '17')" in report.examples[NO_ROW]
    assert any("6 of 11 frames have a row" in line for line in report.lines())


def test_a_log_of_starts_alone(tmp_path: Path) -> None:
    rows = [(1, at(0), "A"), (1, at(10), "B"), (2, at(5), "X"), (1, at(20), "C"), (1, at(20), "D")]
    write(tmp_path / "lines.csv", "cell,opened,order", rows)
    spec = {"file": "lines.csv", "on": "cell", "start": "opened"}
    found = opened(tmp_path, [(1, at(t)) for t in (-1, 0, 9.9, 10, 25)] + [(2, at(99))], spec)
    assert column(found, "order") == [None, "A", "A", "B", None, "X"]
    assert found.joins[0].outcomes == {NO_ROW: 1, SEVERAL_ROWS: 1}


def test_an_end_that_is_missing_is_told_and_never_guessed(tmp_path: Path) -> None:
    write(tmp_path / "lines.csv", "cell,opened,closed,order", [(1, at(0), "", "A"), (1, at(10), at(20), "B")])
    frames = [(1, at(t)) for t in (5, 15, 25)]
    found = opened(tmp_path, frames, LINES)
    assert column(found, "order") == ["A", None, "A"]
    assert found.joins[0].examples[SEVERAL_ROWS][0].endswith("rows 1, 2")
    assert found.joins[0].unread[NO_END] == 1
    assert column(opened(tmp_path, frames, {**LINES, "several": "last"}), "order") == ["A", "B", "A"]


def test_a_reading_within_two_seconds(tmp_path: Path) -> None:
    rows = [(1, at(0), 100), (1, at(2), 200), (1, at(10), 300), (1, at(10), 300), (1, at(20), 1), (1, at(20), 2)]
    write(tmp_path / "scale.csv", "cell,at,grams", rows)
    frames = [(1, at(t)) for t in (-2, -2.001, 1, 0.9, 3.5, 8, 12.001, 20)]
    assert column(opened(tmp_path, frames, SCALE), "grams") == ["100", None, None, None, "200", "300", None, None]
    nearest = opened(tmp_path, frames, {**SCALE, "several": "nearest"})
    # Between two as near, and at two of one moment, none is taken. A copy of a row is no second row.
    assert column(nearest, "grams") == ["100", None, None, "100", "200", "300", None, None]
    assert nearest.joins[0].outcomes == {NO_ROW: 2, SEVERAL_ROWS: 2}
    before = opened(tmp_path, frames, {**SCALE, "side": "before"})
    assert column(before, "grams") == [None, None, "100", "100", "200", None, None, None]


def test_the_pick_after_the_frame_belongs_to_one_frame_if_asked(tmp_path: Path) -> None:
    write(tmp_path / "picks.csv", "cell,at,result", [(1, at(4), "ok"), (1, at(33), "slip")])
    frames = [(1, at(t)) for t in (0, 25, 30, 34)]
    found = opened(tmp_path, frames, PICKS)
    assert column(found, "result") == ["ok", "slip", "slip", None]
    assert found.joins[0].shared == 1 and any("taken by several frames" in line for line in found.joins[0].lines())
    once = opened(tmp_path, frames, {**PICKS, "once": True})
    assert column(once, "result") == ["ok", None, "slip", None]
    assert once.joins[0].outcomes == {TAKEN: 1, NO_ROW: 1} and once.joins[0].shared == 0


@pytest.mark.parametrize("seed", range(6))
def test_it_equals_trying_every_row(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    events = [(rng.choice("ab"), rng.choice("12"), rng.randrange(0, 60), n) for n in range(30)]
    write(tmp_path / "e.csv", "station,lane,at,n", [(c, lane, at(t), n) for c, lane, t, n in events])
    frames = [(rng.choice("abc"), rng.randrange(-5, 65)) for _ in range(40)]
    within, side = rng.choice([1, 3, 7]), rng.choice(["before", "after", "either"])
    several = rng.choice(["refuse", "nearest", "first", "last"])
    spec = {"file": "e.csv", "on": {"cell": "station"}, "time": "at", "within": within, "side": side}
    found = opened(tmp_path, [(c, at(t)) for c, t in frames], {**spec, "several": several})
    expected: list[str | None] = []
    for cell, t in frames:
        low, high = (-within if side != "after" else 0), (within if side != "before" else 0)
        held = [(e, n) for station, _, e, n in events if station == cell and low <= e - t <= high]
        score = {"nearest": lambda e, t=t: abs(e - t), "first": lambda e: e, "last": lambda e: -e}.get(several)
        best = [n for e, n in held if score is None or score(e) == min(score(other) for other, _ in held)]
        expected.append(str(best[0]) if len(best) == 1 else None)
    assert column(found, "n") == expected
    assert found.joins[0].matched == sum(n is not None for n in expected)
    assert found.joins[0].frames == len(frames) == found.joins[0].matched + found.joins[0].outcomes.total()


def planted(folder: Path, offset: float, *, cells: int = 2, drift: float = 0.0) -> list[tuple[int, str]]:
    """Frames of some cells, and a scale whose clock is ahead: a reading for each frame."""
    rng = random.Random(5)
    frames, readings = list[tuple[int, float]](), list[tuple[int, str, int]]()
    for cell in range(cells):
        t = 0.0
        for n in range(150):
            t += 6 + rng.expovariate(1 / 10)
            frames.append((cell, t))
            ahead = offset * (cell + 1) + drift * t
            readings.append((cell, at(t + ahead + rng.gauss(0, 0.05)), 1000 * cell + n))
    folder.mkdir(exist_ok=True)
    write(folder / "scale.csv", "cell,at,grams", sorted(readings, key=lambda row: row[1]))
    return [(cell, at(t)) for cell, t in frames]


def test_a_planted_offset_is_told_and_taken_off_only_if_asked(tmp_path: Path) -> None:
    frames = planted(tmp_path, 1.5, cells=1)
    plain = opened(tmp_path, frames, {**SCALE, "several": "nearest"})
    assert plain.joins[0].offsets[""].seconds == pytest.approx(1.5, abs=0.02) and not plain.joins[0].applied
    assert any("1.5" in line and "ahead" in line and "nothing is taken off" in line for line in plain.joins[0].lines())
    auto = opened(tmp_path, frames, {**SCALE, "within": "500 ms", "offset": "auto"})
    assert column(auto, "grams") == [str(n) for n in range(150)]
    given = opened(tmp_path, frames, {**SCALE, "within": "500 ms", "offset": "1.5 s"})
    assert column(given, "grams") == [str(n) for n in range(150)]


def test_each_clock_has_an_offset_of_its_own(tmp_path: Path) -> None:
    frames = planted(tmp_path, 40.0)
    with open(tmp_path / "scale.csv", "a") as file:
        file.write(f"99,{at(0)},1\n")  # a station that has no frames here
    spec = {**SCALE, "within": "500 ms", "offset": "auto", "clock": "cell"}
    found = opened(tmp_path, frames, spec)
    assert found.joins[0].applied == {"0": pytest.approx(40, abs=0.05), "1": pytest.approx(80, abs=0.05)}
    assert column(found, "grams") == [str(1000 * cell + n) for cell in (0, 1) for n in range(150)]


def test_a_drifting_clock_is_followed(tmp_path: Path) -> None:
    frames = planted(tmp_path, 3.0, cells=1, drift=0.0005)  # a bad clock: 43 s a day
    found = opened(tmp_path, frames, {**SCALE, "within": "500 ms", "several": "nearest", "offset": "auto"})
    assert found.joins[0].matched >= 148 and found.joins[0].offsets[""].drift == pytest.approx(0.0005 * 86400, rel=0.1)
    wrong = [n for n, grams in enumerate(column(found, "grams")) if grams not in (str(n), None)]
    assert not wrong


def test_an_offset_that_is_not_clear_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "scale.csv", "cell,at,grams", [(1, at(10 * n + 4), n) for n in range(200)])
    with pytest.raises(LinesideError, match=r"offset: auto.*not clear: several offsets are equally good"):
        opened(tmp_path, [(1, at(10 * n)) for n in range(200)], {**SCALE, "offset": "auto"})


def test_a_clock_that_was_set_says_when_and_what_to_do(tmp_path: Path) -> None:
    rng = random.Random(3)
    times = list(accumulate(rng.expovariate(1 / 15) + 3 for _ in range(400)))
    frames = [(0, at(t)) for t in times]
    moved = [(0, at(t + (1 if n < 200 else -59)), n) for n, t in enumerate(times)]
    write(tmp_path / "scale.csv", "cell,at,grams", moved)
    spec = {**SCALE, "several": "nearest", "offset": "auto"}
    with pytest.raises(LinesideError) as error:
        opened(tmp_path, frames, spec)
    told = str(error.value)
    first, second = (datetime.fromisoformat(when) for when in re.findall(r"between (\S+) and ([^\s.]+\.\d+)", told)[0])
    assert first < datetime.fromisoformat(at(times[200])) < second  # where it was set
    assert "it changes from 1 s to -59 s: one of the clocks was set" in told
    assert "In scale.csv its time goes backwards once, by" in told and "at row 201" in told
    assert "add a column to scale.csv that tells the rows before from those after, and name it in `clock`" in told
    # As it says: with such a column every frame has its row.
    write(
        tmp_path / "scale.csv", "cell,at,grams,part", [(*row, "a" if n < 200 else "b") for n, row in enumerate(moved)]
    )
    assert column(opened(tmp_path, frames, {**spec, "clock": "part"}), "grams") == [str(n) for n in range(400)]
    # The frames' clock was set: then their times are wrong, not those of the table.
    write(tmp_path / "scale.csv", "cell,at,grams", [(0, at(t), n) for n, t in enumerate(times)])
    (tmp_path / "frames.csv").unlink()
    with pytest.raises(
        LinesideError, match=r"frames' table its time goes backwards once, by .* at row 201: correct the times of"
    ):
        opened(tmp_path, [(0, at(t - (0 if n < 200 else 60))) for n, t in enumerate(times)], spec)


def test_an_offset_of_a_log_of_other_days_names_both_sides(tmp_path: Path) -> None:
    write(tmp_path / "scale.csv", "cell,at,grams", [(1, at(86400 * 365 + 10 * n), n) for n in range(50)])
    with pytest.raises(
        LinesideError, match=r"no row lies within .* The frames have 2026-03-02.* scale.csv has 2027-03-02"
    ):
        opened(tmp_path, [(1, at(10 * n)) for n in range(50)], {**SCALE, "offset": "auto"})


@pytest.mark.parametrize(("ours", "theirs"), [("R1", "r1"), ("R 1", "R1"), ("07", "7"), ("cell-4", "Cell 4")])
def test_keys_that_are_only_written_in_another_way_are_named(tmp_path: Path, ours: str, theirs: str) -> None:
    said = rf"{ours!r} and {theirs!r} differ only in capitals, spaces, dashes or leading zeros: make them equal"
    write(tmp_path / "scale.csv", "cell,at,grams", [(theirs, at(0), 1)])
    with pytest.raises(LinesideError, match=said):
        opened(tmp_path, [(ours, at(0))], SCALE)
    write(tmp_path / "cells.csv", "cell,kind", [(theirs, 1)])
    with pytest.raises(LinesideError, match=said):
        opened(tmp_path, [(ours, at(0))], {"file": "cells.csv", "on": "cell"})


def test_a_join_that_matches_nothing_names_both_sides(tmp_path: Path) -> None:
    frames = planted(tmp_path, 3600.0, cells=1)
    with pytest.raises(LinesideError) as error:
        opened(tmp_path, frames, SCALE)
    message = str(error.value)
    assert "scale.csv: no frame has a row in it (150 frames have no row at their time)" in message
    assert "The frames have 2026-03-02T10:42" in message and "scale.csv has 2026-03-02T11:42" in message
    assert "cell '0'" in message and "1 h 00 min ahead of the frames, a whole number of hours" in message
    write(tmp_path / "scale.csv", "cell,at,grams", [("c17", at(0), 1)])
    with pytest.raises(LinesideError, match=r"150 frames have a value in `on` that no row has.*cell '0'.*cell 'c17'"):
        opened(tmp_path, frames, SCALE)
    write(tmp_path / "products.csv", "cell,product", [("c17", "can")])
    with pytest.raises(LinesideError, match=r"products.csv: no frame has a row in it: cell of the frames is '0'"):
        opened(tmp_path, frames, {"file": "products.csv", "on": "cell"})


def test_daylight_saving(tmp_path: Path) -> None:
    # On 2026-10-25 clocks in Berlin show 02:00 to 03:00 twice; on 2026-03-29 they skip that hour.
    write(
        tmp_path / "scale.csv",
        "cell,at,grams",
        [
            (1, "2026-10-25T01:30:00+00:00", 1),  # 02:30, the second time
            (1, "2026-10-25T03:30:00+00:00", 2),
            (1, "2026-07-01T10:00:00Z", 3),
        ],
    )
    frames = [(1, f"2026-{t}") for t in ("10-25T02:30:00", "10-25T04:30:00", "07-01T12:00:00", "03-29T02:30:00")]
    found = opened(tmp_path, frames, SCALE, time_zone="Europe/Berlin")
    assert column(found, "grams") == [None, "2", "3", None]
    assert found.joins[0].outcomes == {TWICE: 1, NO_TIME: 1}
    assert "is skipped by the clocks of Europe/Berlin" in found.joins[0].examples[NO_TIME][0]


def test_a_row_whose_time_the_clock_shows_twice_is_not_taken(tmp_path: Path) -> None:
    rows = [(1, "2026-10-25T02:30:00", 1), (1, "2026-10-25T04:30:00", 2), (1, "2026-03-29T02:10:00", 9)]
    write(tmp_path / "scale.csv", "cell,at,grams", rows)
    frames = [(1, f"2026-10-25T0{t}:30:00Z") for t in (0, 1, 3)]
    found = opened(tmp_path, frames, {**SCALE, "several": "nearest", "time_zone": "Europe/Berlin"})
    assert column(found, "grams") == [None, None, "2"]
    assert found.joins[0].outcomes == {UNCLEAR: 2}
    assert found.joins[0].unread == {"have a time in at that cannot be used": 1}
    write(tmp_path / "lines.csv", "cell,opened,closed,order", [(1, "2026-10-25T02:30:00", "2026-10-25T05:00:00", "A")])
    found = opened(tmp_path, [*frames], {**LINES, "time_zone": "Europe/Berlin"})
    assert column(found, "order") == [None, "A", "A"]  # from 01:30 UTC on it is open in either case
    assert found.joins[0].outcomes == {UNCLEAR: 1}


def test_times_with_and_without_a_zone_are_not_compared(tmp_path: Path) -> None:
    write(tmp_path / "scale.csv", "cell,at,grams", [(1, "1772448127", 1)])  # seconds since 1970 have a zone
    with pytest.raises(LinesideError, match=r"the times of the frames have no zone.*time_zone.*in the table section"):
        opened(tmp_path / "f", [(1, at(0))], {**SCALE, "file": "../scale.csv"})
    found = opened(tmp_path / "f", [(1, at(0))], {**SCALE, "file": "../scale.csv"}, time_zone="UTC")
    assert column(found, "grams") == ["1"]
    write(tmp_path / "scale.csv", "cell,at,grams", [(1, at(0), 1), (1, at(0) + "Z", 2)])
    with pytest.raises(LinesideError, match=r"row 2 has a time with a zone, row 1 one without"):
        opened(tmp_path / "f", [(1, at(0))], {**SCALE, "file": "../scale.csv"})


def test_a_clock_that_jumps_is_told(tmp_path: Path) -> None:
    rows = [(1, at(10 * n - (60 if n > 30 else 0)), n) for n in range(60)]
    write(tmp_path / "scale.csv", "cell,at,grams", rows)
    found = opened(tmp_path, [(1, at(0))], SCALE)
    assert found.joins[0].jump is not None and (found.joins[0].jump.count, found.joins[0].jump.row) == (1, 32)
    assert any("goes backwards once, by 50 s at row 32" in line for line in found.joins[0].lines())
    assert found.joins[0].frames_jump is None
    frames = [(1, at(10 * n - (60 if n > 30 else 0))) for n in range(60)]
    (tmp_path / "frames.csv").unlink()
    jumped = opened(tmp_path, frames, {**SCALE, "several": "first"}).joins[0]
    assert jumped.frames_jump == jumped.jump
    assert any("the frames' clock: its time goes backwards" in line for line in jumped.lines())


def test_the_frame_time_stands_in_its_name_or_in_the_picture(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures" / "cam1"
    pictures.mkdir(parents=True)
    for number, seconds in enumerate((0, 5)):
        taken = START + timedelta(seconds=seconds)
        picture, exif = Pil.new("RGB", (8, 8), (number, 0, 0)), Pil.Exif()
        exif.get_ifd(0x8769)[0x9003] = f"{taken:%Y:%m:%d %H:%M:%S}"
        picture.save(pictures / f"cam1_{taken:%Y%m%d_%H%M%S}_250.jpg", exif=exif)
    Pil.new("RGB", (8, 8), (9, 9, 9)).save(pictures / "holiday.jpg")
    write(tmp_path / "scale.csv", "folder,at,grams", [("cam1", at(0), 1), ("cam1", at(5), 2)])
    spec = {**SCALE, "file": "../scale.csv", "on": "folder", "within": "300 ms"}
    for time_from in ("cam*_%Y%m%d_%H%M%S_%f", "*/cam1_%Y%m%d_%H%M%S_*.jpg", "exif"):
        table = Table.model_validate({"family": "p", "time_from": time_from, "join": [spec]})
        source = open_frames(tmp_path / "pictures", table)
        assert isinstance(source, TableFrames)
        assert column(source, "grams") == ["1", "2", None]
        assert source.joins[0].outcomes == {NO_TIME: 1}
        good = [frame for frame in source.frames() if isinstance(frame, Frame) and "holiday" not in frame.id]
        part = ".250000" if "%f" in time_from else ""
        assert [frame.meta.time for frame in good] == [f"2026-03-02T10:42:{s}{part}" for s in ("07", "12")]


def test_a_later_table_uses_the_columns_of_an_earlier_one(tmp_path: Path) -> None:
    write(tmp_path / "lines.csv", "cell,opened,closed,tote", [(1, at(0), at(9), "T7"), (1, at(9), at(20), "T8")])
    write(tmp_path / "totes.csv", "tote,product", [("T7", "can"), ("T8", "box")])
    write(tmp_path / "scale.csv", "tote,at,grams", [("T8", at(10), 5), ("T7", at(10), 6)])
    scale = {**SCALE, "on": "tote", "name": "scale"}
    found = opened(tmp_path, [(1, at(5)), (1, at(10))], LINES, {"file": "totes.csv", "on": "tote"}, scale)
    assert column(found, "product") == ["can", "box"]
    assert [(join.frames, join.matched) for join in found.joins] == [(2, 2), (2, 2), (2, 1)]  # each frame counts once
    assert column(found, "scale.grams") == [None, "5"]
    frames = [frame for frame in found.frames() if isinstance(frame, Frame)]
    assert [frame.record["scale.grams"] for frame in frames] == [None, "5"]


def test_columns_that_an_earlier_table_has_too_are_told(tmp_path: Path) -> None:
    write(tmp_path / "scale.csv", "cell,at,taken,grams", [(1, at(0), "by hand", 5)])
    found = opened(tmp_path, [(1, at(0))], SCALE)
    assert found.joins[0].hidden == ["taken"] and column(found, "taken") == [at(0)]
    named = opened(tmp_path, [(1, at(0))], {**SCALE, "name": "scale"})
    assert named.joins[0].hidden == [] and column(named, "scale.taken") == ["by hand"]


def test_rows_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    (tmp_path / "scale.csv").write_text(
        f"cell,at,grams\n1,{at(0)},5\n1,,6\n1,soon,7\n1,{at(3)}\n1,NULL,8\n", encoding="utf-8"
    )
    found = opened(tmp_path, [(1, at(0))], SCALE)
    report = found.joins[0]
    assert (report.rows, report.matched) == (5, 1)
    assert dict(report.unread) == {"cannot be read": 1, "have no at": 2, "have a time in at that cannot be used": 1}
    assert "row 3 (cannot be read: 'soon'" in report.examples["have a time in at that cannot be used"][0]
    write(tmp_path / "lines.csv", "cell,opened,closed,order", [(1, at(5), at(4), "A"), (1, at(-5), at(4), "B")])
    assert opened(tmp_path, [(1, at(0))], LINES).joins[0].unread == {"end before they start": 1}


def test_other_times_of_the_log_show_how_one_is_written(tmp_path: Path) -> None:
    rows = [(1, "03/02/2026 10:42:07", 5), (1, "03/14/2026 10:42:07", 6)]
    write(tmp_path / "scale.csv", "cell,at,grams", rows)
    assert column(opened(tmp_path, [(1, at(0))], SCALE), "grams") == ["5"]
    write(tmp_path / "scale.csv", "cell,at,grams", [*rows, (1, "14/03/2026 10:42:07", 7)])
    with pytest.raises(LinesideError, match=r"some are day first.*set `time_format` in this join"):
        opened(tmp_path, [(1, at(0))], SCALE)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"file": "a.csv"}, "on: name the column that both tables have"),
        ({"file": "a.csv", "time": "at"}, "within: a join by `time` needs"),
        ({"file": "a.csv", "time": "at", "within": "-1 s"}, "within: a join by `time` needs"),
        ({"file": "a.csv", "time": "at", "within": "2 parsecs"}, "is no length of time"),
        ({"file": "a.csv", "time": "at", "start": "s", "within": 2}, "not both"),
        ({"file": "a.csv", "on": "a", "within": 2}, "within: belong to a join by time"),
        ({"file": "a.csv", "start": "s", "within": 2}, "within: belong to `time`"),
        ({"file": "a.csv", "start": "s", "several": "nearest"}, "nearest belongs to events"),
        ({"file": "a.csv", "on": "a", "end": "e"}, "end"),
        ({"file": "a.csv", "time": "at", "within": 2, "time_zone": "Europe/Berln"}, "did you mean 'Europe/Berlin'"),
    ],
)
def test_a_join_that_makes_no_sense(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Join.model_validate(spec)


def test_a_join_by_time_needs_the_time_of_the_frames() -> None:
    with pytest.raises(ValidationError, match="set time"):
        Table.model_validate({"family": "p", "join": [SCALE]})
    with pytest.raises(ValidationError, match=r"%Q is not known"):
        Table.model_validate({"family": "p", "time_from": "%Q"})
    with pytest.raises(ValidationError, match="names no day"):
        Table.model_validate({"family": "p", "time_from": "*_%H%M%S"})


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "scale.csv: the table cannot be read"),
        ({"scale.csv": "cell,moment\n1,2\n"}, "no column 'at'"),
        ({"scale.csv": "station,at\n1,2\n"}, "no column 'cell'"),
        ({"scale.csv": ""}, "the file is empty"),
        ({"scale.csv": 'cell,at\n"1,2\n'}, "never ends"),
    ],
)
def test_a_table_that_does_not_fit(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(LinesideError, match=message):
        opened(tmp_path, [(1, at(0))], SCALE)


def test_frames_lack_the_column_of_the_key(tmp_path: Path) -> None:
    write(tmp_path / "scale.csv", "station,at", [(1, at(0))])
    with pytest.raises(LinesideError, match="no column 'station'"):
        opened(tmp_path, [(1, at(0))], {**SCALE, "on": "station"})


def test_json_lines_whose_rows_have_different_keys(tmp_path: Path) -> None:
    rows = [{"cell": 1, "at": at(0), "grams": 5}, {"cell": 1, "at": at(9), "note": "x"}, {"cell": 1}]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = opened(tmp_path, [(1, at(0)), (1, at(9)), (1, at(50))], {**SCALE, "file": "log.jsonl"})
    assert [(r["grams"], r["note"]) for r in found.records()] == [(5, None), (None, "x"), (None, None)]
    assert found.joins[0].unread == {"lack the column 'at'": 1}


def test_only_rows_that_frames_have_are_kept(tmp_path: Path) -> None:
    write(tmp_path / "scale.csv", "cell,at,grams", [(1, at(n), n) for n in range(5000)])
    found = opened(tmp_path, [(1, at(700)), (1, at(701))], {**SCALE, "several": "nearest"})
    join = found._joins[0]
    assert isinstance(join, TimeJoin) and len(join._rows) == 2
    assert column(found, "grams") == ["700", "701"]


def test_label_and_the_data_card_have_the_account(tmp_path: Path) -> None:
    write(tmp_path / "scale.csv", "cell,at,grams", [(1, at(10 * n), 100 + n) for n in range(30)])
    frames = [(1, at(10 * n + (0 if n % 3 else 5))) for n in range(30)]
    opened(tmp_path, frames, SCALE)
    task = tmp_path.parent / "scale.yaml"
    task.write_text(
        "table: {file: frames.csv, family: p, time: taken, columns: {grams: {column: grams, type: number}},\n"
        "  join: [{file: scale.csv, on: cell, time: at, within: 2 s}]}\n"
        "captions: [{family: p, templates: ['{grams} grams.']}]\n"
        "tasks: [{family: p, name: grams, phrasings: ['How heavy?'], answer: {kind: number, column: grams}}]\n"
    )
    samples = tmp_path.parent / "samples"
    account = label(tmp_path, samples, tasks=[task])
    join = account["joins"][0]
    assert (join["matched"], join["frames"], join["without"]) == (20, 30, {NO_ROW: 10})
    assert len(join["examples"][NO_ROW]) == 3
    assert data_card(samples, inspect(samples))["account"]["joins"] == account["joins"]


def test_a_join_reads_the_table_that_the_task_file_names_and_none_that_a_cell_names(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    elsewhere = tmp_path / "outside" / f"{CANARY}.csv"
    write(elsewhere, "cell,weight", [(17, 5)])
    named = ["../outside/canary.csv", str(elsewhere), f"file://{elsewhere}", "{cell}", '=WEBSERVICE("http://x")']
    folder = tmp_path / "frames"
    folder.mkdir()
    write(folder / "notes.csv", "cell,note", list(enumerate(named)))
    with watched(folder) as broken:
        found = opened(folder, [(number, at(0)) for number in range(5)], {"file": "notes.csv", "on": "cell"})
        assert column(found, "note") == named
    assert broken == []
    again = tmp_path / "again"
    with watched(again) as broken:  # as a user of this machine: a task file is read before it is used
        found = opened(again, [(17, at(0))], {"file": "../outside/canary.csv", "on": "cell"})
        assert column(found, "weight") == ["5"]
    assert set(broken) == {f"outside: read {elsewhere}"}
