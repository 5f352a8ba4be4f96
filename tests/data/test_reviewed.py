"""Corrections by people in a table: they override the record, and what cannot be read is refused by row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lineside.data.reviewed import COLUMN, MARK, Reviewed, cell_text, corrected, home_of, read_cell
from lineside.data.sources import fingerprint, open_frames
from lineside.data.taskfile import Table
from lineside.errors import LinesideError
from lineside.types import Frame
from tests.conftest import picture

BY = {"by": "anna", "at": "2026-01-02T10:00:00Z"}


def bins(path: Path, cells: list[str], **changes) -> tuple[Path, Table]:
    path.mkdir(exist_ok=True)
    quoted = [cell.replace('"', '""') for cell in cells]
    rows = [f'{number}.png,{number},A,"{cell}"' for number, cell in enumerate(quoted)]
    (path / "frames.csv").write_text("\n".join([f"image,parts,state,{COLUMN}", *rows]))
    for number in range(len(cells)):
        (path / f"{number}.png").write_bytes(picture(number, 16))
    columns = {"count": {"column": "parts", "type": "number"}, "state": {"column": "state", "values": {"A": "intact"}}}
    return path, Table.model_validate({"family": "bins", "file": "frames.csv", "columns": columns, **changes})


def test_a_correction_overrides_the_value_that_the_mapping_gives(tmp_path: Path) -> None:
    cell = cell_text({"state": Reviewed(value="dented", was="intact", **BY), "count": Reviewed(value=None, **BY)})
    first, second = open_frames(*bins(tmp_path, [cell, ""])).frames()
    assert isinstance(first, Frame) and isinstance(second, Frame)
    assert first.record == {"count": None, "state": "dented"}
    assert first.meta.extra == {"reviewed": {"state": BY, "count": BY}}
    assert second.record == {"count": 1, "state": "intact"} and second.meta.extra == {}


def test_without_a_mapping_the_column_is_no_part_of_the_record(tmp_path: Path) -> None:
    cell = cell_text({"state": Reviewed(value="dented", **BY)})
    first, second = open_frames(*bins(tmp_path, [cell, ""], columns={})).frames()
    assert isinstance(first, Frame) and isinstance(second, Frame)
    assert first.record == {"image": "0.png", "parts": "0", "state": "dented"}
    assert second.record == {"image": "1.png", "parts": "1", "state": "A"}


@pytest.mark.parametrize(
    "cell, message",
    [
        ("{", "is not JSON"),
        ("[1]", "expected an object by column"),
        ('{"count": 5}', "count"),
        ('{"count": {"value": 5, "by": "anna"}}', "'at' is missing"),
        ('{"count": {"value": 5, "by": "anna", "at": "", "why": ""}}', "unknown key"),
        ('{"slots.2.state": {"value": 5, "by": "anna", "at": ""}}', "no 'slots.2.state' to correct"),
    ],
)
def test_a_cell_that_is_no_correction_refuses_its_row_only(tmp_path: Path, cell: str, message: str) -> None:
    first, second = open_frames(*bins(tmp_path, [cell, ""])).frames()
    assert not isinstance(first, Frame) and message in first.reason
    assert isinstance(second, Frame)


def test_a_path_leads_into_lists_and_records_and_changes_nothing_else() -> None:
    record = {"slots": [{"state": "empty"}, {"state": "full"}], "line": {"item": "can", "count": 2}}
    before = json.dumps(record)
    found = {"slots.1.state": Reviewed(value="empty", **BY), "line.count": Reviewed(value=3, **BY)}
    assert corrected(record, found) == {
        "slots": [{"state": "empty"}, {"state": "empty"}],
        "line": {"item": "can", "count": 3},
    }
    assert json.dumps(record) == before
    with pytest.raises(LinesideError, match=r"no 'slots\.2\.state'"):
        corrected(record, {"slots.2.state": Reviewed(value="", **BY)})


def test_a_cell_comes_back_and_is_ascii() -> None:
    found = {"count": Reviewed(value=[1, "é"], was=None, by="Zoë", at="t")}
    assert read_cell(cell_text(found)) == found and cell_text(found).isascii()
    assert (cell_text({}), read_cell(""), read_cell(None)) == ("", {}, {})


def test_records_in_a_folder_of_a_review_name_the_pictures_of_the_reviewed_folder(tmp_path: Path) -> None:
    folder, table = bins(tmp_path / "bins", ["", ""])
    before = fingerprint(folder, table)
    review = folder / "review"
    review.mkdir()
    (review / MARK).write_text('{"frames": ".."}')
    (review / "records.csv").write_bytes((folder / "frames.csv").read_bytes())
    assert fingerprint(folder, table) == before  # a review changes no labelling job
    assert home_of(review / "records.csv") == folder
    assert [f.id for f in open_frames(review / "records.csv", table).frames() if isinstance(f, Frame)] == [
        "0.png",
        "1.png",
    ]
    (review / MARK).write_text('{"frame": ".."}')
    with pytest.raises(LinesideError, match="did you mean 'frames'"):
        home_of(review / "records.csv")
