"""A folder of pictures with a table: columns by mapping, every row accounted for."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pil

from lineside.data.table import Rejected, TableFrames
from lineside.data.taskfile import Column, Table, load_task_file
from lineside.errors import LinesideError
from lineside.types import Frame

FRUIT = [
    ("a.jpg", "train", "Golden-Delicious", "Apple", "Fruit"),
    ("b.jpg", "val", "Granny-Smith", "Apple", "Fruit"),
    ("c.jpg", "test", "Arla-Milk", "Milk", "Packages"),
]
MAPPING: dict[str, Any] = {
    "file": "frames.csv",
    "family": "grocery",
    "split": {"column": "split", "values": {"train": "train", "val": "dev", "test": "heldout"}},
    "columns": {
        "product": {"column": "product", "words": True},
        "group": "group",
        "packing": {"column": "aisle", "values": {"Packages": "carton"}, "otherwise": "loose"},
    },
}


def jpeg(colour: int = 9) -> bytes:
    out = io.BytesIO()
    Pil.new("RGB", (16, 16), (colour, 80, 80)).save(out, "JPEG")
    return out.getvalue()


def folder(tmp_path: Path, rows: list[tuple] | None = None, header: str = "image,split,product,group,aisle") -> Path:
    rows = FRUIT if rows is None else rows
    (tmp_path / "frames.csv").write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    for number, row in enumerate(rows):
        if str(row[0]).endswith(".jpg") and "/" not in str(row[0]):
            (tmp_path / str(row[0])).write_bytes(jpeg(number))
    return tmp_path


def table(path: Path, **changes: Any) -> TableFrames:
    return TableFrames(path, Table.model_validate({**MAPPING, **changes}))


def test_rows_become_frames_by_the_mapping(tmp_path: Path) -> None:
    frames = list(table(folder(tmp_path), skus="product").frames())
    assert all(isinstance(f, Frame) for f in frames)
    first, second, third = frames
    assert (first.id, first.family, first.split, first.meta.scene) == ("a.jpg", "grocery", "train", "a.jpg")
    assert first.record == {"product": "Golden Delicious", "group": "Apple", "packing": "loose"}
    assert (second.split, third.split, third.record["packing"]) == ("dev", "heldout", "carton")
    assert third.meta.skus == ("Arla-Milk",)
    assert first.image.bytes == (tmp_path / "a.jpg").read_bytes()


def test_columns_by_which_results_are_shown_go_with_the_frame(tmp_path: Path) -> None:
    """By the names of the record, else of the table; a list is several values, an empty cell none."""
    rows = [("a.jpg", "7.0", "4", "x|y"), ("b.jpg", "", "90", "x")]
    columns = {"light": {"column": "lux", "values": {"0-50": "dim", ">50": "bright"}},
               "tags": {"column": "tags", "type": "list"}}  # fmt: skip
    given: dict[str, Any] = {"file": "frames.csv", "family": "f", "columns": columns}
    made = Table.model_validate({**given, "by": ["light", "shift", "tags"]})
    found = list(TableFrames(folder(tmp_path, rows, "image,shift,lux,tags"), made).frames())
    assert [f.meta.extra["columns"] for f in found if isinstance(f, Frame)] == [
        {"light": ["dim"], "shift": ["7"], "tags": ["x", "y"]},
        {"light": ["bright"], "shift": [], "tags": ["x"]},
    ]
    with pytest.raises(LinesideError, match=r"no column 'shfit'; did you mean 'shift'"):
        TableFrames(tmp_path, Table.model_validate({**given, "by": ["shfit"]}))
    for name, key in (("cell", "cell"), ("sku", "skus"), ("day", "time")):
        with pytest.raises(ValueError, match=f"from the key `{key}`: set that key"):
            Table.model_validate({**given, "by": [name]})
    Table.model_validate({**given, "cell": "cell", "by": ["cell"]})


def test_a_second_table_is_joined(tmp_path: Path) -> None:
    path = folder(tmp_path)
    (path / "products.csv").write_text(
        'product,description\nGolden-Delicious,"Green, sweet. Round. Cheap."\nGranny-Smith,Sour.\n'
    )
    columns = {"product": "product", "text": {"column": "description", "sentences": 2}}
    frames = list(table(path, join=[{"file": "products.csv", "on": "product"}], columns=columns).frames())
    assert frames[0].record["text"] == "Green, sweet. Round."
    assert frames[2] == Rejected(f"{path}/frames.csv, row 3", "product 'Arla-Milk' has no row in products.csv")


def test_json_lines_keep_their_types(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg())
    record = {"image": "a.jpg", "parts": [{"name": "can"}], "count": 3, "empty": False}
    (tmp_path / "t.jsonl").write_text(json.dumps(record) + "\n\nnot json\n[1]\n")
    found = list(table(tmp_path, file="t.jsonl", split=None, columns={}).frames())
    assert found[0].record == record
    assert [r.reason.split(" (")[0] for r in found[1:]] == ["not JSON", "not a JSON object"]
    assert found[1].name.endswith("t.jsonl, row 3")


def test_typed_columns(tmp_path: Path) -> None:
    path = folder(
        tmp_path,
        [("a.jpg", "1.50", "yes", "x|y"), ("b.jpg", "nan", "no", ""), ("c.jpg", "", "maybe", "")],
        "image,w,ok,l",
    )
    columns = {name: {"column": name, "type": kind} for name, kind in (("w", "number"), ("ok", "bool"), ("l", "list"))}
    found = list(table(path, split=None, columns=columns).frames())
    assert found[0].record == {"w": 1.5, "ok": True, "l": ["x", "y"]}
    assert found[1].record == {"w": None, "ok": False, "l": None}
    assert "'ok' holds 'maybe': expected true or false" in found[2].reason


def test_every_row_is_a_frame_or_says_why_not(tmp_path: Path) -> None:
    rows = [
        ("a.jpg", "train", "x", "y", "z"),
        ("a.jpg", "train", "x", "y", "z"),
        ("absent.png", "train", "x", "y", "z"),
        ("../secret.jpg", "train", "x", "y", "z"),
        ("/etc/passwd", "train", "x", "y", "z"),
        ("", "train", "x", "y", "z"),
        ("b.jpg", "validation", "x", "y", "z"),
        ("b.jpg", "train", "x"),
        ("note.txt", "train", "x", "y", "z"),
    ]
    (tmp_path / "set").mkdir()
    path = folder(tmp_path / "set", rows)
    (tmp_path / "secret.jpg").write_bytes(jpeg())
    (path / "note.txt").write_text("no picture")
    opened = table(path)
    found = list(opened.frames())
    assert opened.total == len(found) == len(rows)
    reasons = [item.reason if isinstance(item, Rejected) else "" for item in found]
    assert reasons[0] == ""
    expected = ["", "listed twice", "No such file", *["inside the folder"] * 2, "no picture is named"]
    expected += ["split 'validation' is not mapped", "3 fields, but the header has 5", "not an image"]
    assert [e in reason for e, reason in zip(expected, reasons, strict=True)] == [True] * len(rows)
    assert "row 3: absent.png" in found[2].name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"columns": {"product": "prodcut"}}, "no column 'prodcut'; did you mean 'product'.*it has image, split"),
        ({"image": "picture"}, "no column 'picture'"),
        ({"scene": "shop"}, "no column 'shop'"),
        ({"file": "absent.csv"}, r"absent\.csv: the table cannot be read"),
        ({"join": [{"file": "frames.csv", "on": "sku"}]}, "no column 'sku'"),
        ({"join": [{"file": "frames.csv", "on": "aisle"}]}, "aisle 'Fruit' occurs twice"),
        ({"distractors": [{"name": "is_it", "column": "brand"}]}, "distractors 'is_it': no column 'brand'"),
    ],
)
def test_a_mapping_that_does_not_fit_the_table(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LinesideError, match=message):
        table(folder(tmp_path), **changes)


def test_an_empty_table_and_one_that_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(LinesideError, match="no rows"):
        table(folder(tmp_path, []))
    (tmp_path / "frames.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LinesideError, match="is not utf-16"):
        table(tmp_path)


def test_distractors_are_the_own_value_and_others_as_frequent_as_in_the_table(tmp_path: Path) -> None:
    rows = [
        (f"{i}.jpg", "train", p, g, "Fruit")
        for i in range(60)
        for p, g in [[("A1", "A"), ("A2", "A"), ("B1", "B")][i % 3]]
    ]
    opened = table(folder(tmp_path, rows), distractors=[{"name": "is_it", "column": "product", "near": "group"}])
    drawn: dict[str, list[str]] = {"A1": [], "A2": [], "B1": []}
    for frame in opened.frames():
        assert isinstance(frame, Frame)
        own, other = frame.record["is_it"]
        assert own == {"item": frame.record["product"], "same": True}
        assert other["same"] is False
        assert other["item"] != frame.record["product"]
        drawn[frame.record["product"]].append(other["item"])
    assert drawn["A1"].count("A2") > drawn["A1"].count("B1") > 0  # half near, half from all
    assert set(drawn["B1"]) == {"A1", "A2"}  # nothing else in group B


def test_a_split_by_hash_of_what_the_mapping_names(tmp_path: Path) -> None:
    rows = [(f"{n}.jpg", f"2026-01-{n % 9 + 1:02d}T10:00", "x", "y", "z") for n in range(60)]
    rows.append(("timeless.jpg", "", "x", "y", "z"))
    opened = table(folder(tmp_path, rows, "image,at,product,group,aisle"), time="at", split={"by": "day"})
    found = list(opened.frames())
    sides: dict[str, set[str]] = {}
    for frame in found[:60]:
        assert isinstance(frame, Frame)
        sides.setdefault(frame.meta.time[:10], set()).add(frame.split)
    assert len(sides) == 9 and all(len(side) == 1 for side in sides.values())
    assert isinstance(found[60], Rejected) and "no day to split by" in found[60].reason


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({}, "not both"),
        ({"column": "split"}, "belong together"),
        ({"column": "split", "values": {"a": "dev"}, "by": "day"}, "not both"),
        ({"by": "day", "shares": {"train": 0.5, "dev": 0.2}}, "sum to 1"),
        ({"by": "day", "shares": {"train": 0.5, "shifted": 0.5}}, "never drawn"),
        ({"column": "split", "values": {"a": "dev"}, "salt": "x"}, "split by hash"),
    ],
)
def test_a_split_that_is_none(split: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Table.model_validate({**MAPPING, "split": split})


def test_typed_rows_keep_their_types_unless_the_mapping_says_otherwise(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg())
    (tmp_path / "t.jsonl").write_text(json.dumps({"image": "a.jpg", "n": 3, "ok": True, "scan": {"code": "4006"}}))
    columns = {"n": "n", "ok": "ok", "scan": "scan", "text": {"column": "n", "type": "text"}}
    (found,) = table(tmp_path, file="t.jsonl", split=None, columns=columns).frames()
    assert isinstance(found, Frame)
    assert found.record == {"n": 3, "ok": True, "scan": {"code": "4006"}, "text": "3"}


@pytest.mark.parametrize(
    ("key", "inside", "outside"),
    [
        ("0-10", ["0", "10", "5.5", "0.0"], ["-1", "10.1", "x", "", "1e0", "0x5", "٥"]),
        ("-5--1", ["-5", "-1", "-3"], ["0", "5"]),
        ("-5 - 5", ["0"], ["6"]),
        ("0..1", ["0.5"], ["2"]),
        ("3 to 4", ["3"], ["2"]),
        ("1–2", ["1.5"], ["3"]),
        ("<5", ["4.9", "-100"], ["5"]),
        ("<=5", ["5"], ["5.1"]),
        ("≥ 5", ["5", "1000"], ["4.9"]),
        (">5", ["5.1"], ["5"]),
        ("50+", ["50", "99"], ["49"]),
    ],
)
def test_a_key_may_be_a_range_of_numbers(key: str, inside: list[str], outside: list[str]) -> None:
    column = Column(column="n", values={key: "in"})
    assert [column.entry(value) for value in inside] == [key] * len(inside)
    assert [column.entry(value) for value in outside] == [None] * len(outside)


@pytest.mark.parametrize("key", ["2026-01", "36-36", "a-b", "10-", "-", "1-2-3", "0-10 mm"])
def test_a_key_that_is_no_range_is_a_word(key: str) -> None:
    column = Column(column="n", values={key: "in"})
    assert column.entry(key) == key and column.entry("5") is None


def test_an_end_of_two_ranges_belongs_to_the_higher_and_a_word_goes_first() -> None:
    column = Column(column="n", values={"0-10": "a", "10-50": "b", ">=50": "c", "20": "d"})
    assert [column.entry(v) for v in ("9", "10", "49.9", "50", "20", "51")] == [
        "0-10",
        "10-50",
        "10-50",
        ">=50",
        "20",
        ">=50",
    ]
    with pytest.raises(ValueError, match="the ranges '0-10' and '5-20' overlap"):
        Column(column="n", values={"0-10": "a", "5-20": "b"})


def test_numbers_become_words_and_what_is_not_listed_is_passed_on(tmp_path: Path) -> None:
    fill = 'fill: {column: fill, values: {"0-10": empty, "10-90": part, ">=90": full}}'
    state = 'state: {column: state, values: {OK: ok}, otherwise: "{value}", words: true}'
    number = 'n: {column: fill, values: {"-1": null}, otherwise: "{value}", type: number}'
    text = f"table: {{file: frames.csv, family: p, columns: {{{fill}, {state}, {number}}}}}\n{TASK_OF_FILL}"
    (tmp_path / "t.yaml").write_text(text)
    (tmp_path / "frames.csv").write_text("image,fill,state\na.png,0,OK\na.png,10,bent_part\na.png,95.5,\na.png,-1,OK\n")
    table = load_task_file(tmp_path / "t.yaml").table
    assert table is not None
    opened = TableFrames(tmp_path, table)
    assert list(opened.records()) == [
        {"fill": "empty", "state": "ok", "n": 0},
        {"fill": "part", "state": "bent part", "n": 10},
        {"fill": "full", "state": None, "n": 95.5},
        {"fill": None, "state": "ok", "n": None},
    ]
    assert opened.unmapped == {"fill": {"-1": 1}}
    with pytest.raises(LinesideError, match=r'"\{value\}" passes the value on'):
        (tmp_path / "t.yaml").write_text(text.replace('"{value}", words', '"bin {value}", words'))
        load_task_file(tmp_path / "t.yaml")


TASK_OF_FILL = """
tasks: [{family: p, name: n, phrasings: ["How full?"], answer: {kind: exact, column: fill}}]
"""


def test_class_labels_find_their_values_however_they_were_written(tmp_path: Path) -> None:
    rows = [
        (f"{n}.jpg", *cells) for n, cells in enumerate([("0", "0.0", "True"), ("1", "1.0", "FALSE"), ("7", "", "")])
    ]
    names = {"values": {0: "empty", 1: "full"}}
    columns = {"a": {"column": "a", **names}, "b": {"column": "b", **names}}
    columns["ok"] = {"column": "ok", "values": {True: "good", False: "bad"}}
    split = {"column": "b", "values": {0: "train", 1: "dev"}}
    found = list(table(folder(tmp_path, rows, "image,a,b,ok"), columns=columns, split=split).frames())
    assert [f.record for f in found[:2] if isinstance(f, Frame)] == [
        {"a": "empty", "b": "empty", "ok": "good"}, {"a": "full", "b": "full", "ok": "bad"},
    ]  # fmt: skip
    assert [f.split for f in found[:2] if isinstance(f, Frame)] == ["train", "dev"]
    assert isinstance(found[2], Rejected) and "split '' is not mapped" in found[2].reason


def test_numbers_of_a_table_are_exact_or_refused(tmp_path: Path) -> None:
    cells = ["4006381333931", "12345678901234567890", "1.50", "1_000", "inf", "１２", "0x10"]
    rows = [(f"{n}.jpg", cell) for n, cell in enumerate(cells)]
    columns = {"n": {"column": "n", "type": "number"}}
    found = list(table(folder(tmp_path, rows, "image,n"), split=None, columns=columns).frames())
    assert [f.record["n"] for f in found if isinstance(f, Frame)] == [4006381333931, 12345678901234567890, 1.5]
    assert [f.reason for f in found if isinstance(f, Rejected)] == [
        f"column 'n' holds {cell!r}: expected a number" for cell in cells[3:]
    ]


def test_cells_and_skus_are_one_however_the_number_was_written(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    (tmp_path / "b.jpg").write_bytes(jpeg(2))
    (tmp_path / "t.jsonl").write_text(
        '{"image": "a.jpg", "cell": 1.0, "sku": [7, 7.0]}\n{"image": "b.jpg", "cell": "1", "sku": "7|8|"}\n'
    )
    frames = list(table(tmp_path, file="t.jsonl", split=None, columns={}, cell="cell", skus="sku").frames())
    assert [(f.meta.cell, f.meta.skus) for f in frames if isinstance(f, Frame)] == [("1", ("7",)), ("1", ("7", "8"))]


def read_all(path: Path, **changes: Any) -> tuple[list[dict[str, Any]], list[str], dict[str, Any]]:
    """(records, reasons of refusals, remarks) of a table without a split of its own."""
    opened = table(path, split=None, **changes)
    found = list(opened.frames())
    records = [dict(f.record) for f in found if isinstance(f, Frame)]
    return records, [f.reason for f in found if isinstance(f, Rejected)], opened.remarks.to_json()


NUMBER = {"n": {"column": "n", "type": "number"}}


@pytest.mark.parametrize(
    ("cells", "told", "numbers"),
    [
        (["0,0", "1,5", "1.234,5"], {}, [0, 1.5, 1234.5]),
        (["0.25", "1,234.5"], {}, [0.25, 1234.5]),
        (["1,234", "0,125"], {}, [1.234, 0.125]),
        (["1,234,567", "2.5"], {}, [1234567, 2.5]),
        (["1,234"], {"decimal": "."}, [1234]),
        (["1,234"], {"decimal": ","}, [1.234]),
        (["1.234", "1,5"], {"decimal": ","}, [1234, 1.5]),
        (["1.234", "2"], {}, [1.234, 2]),
    ],
)
def test_the_decimal_sign_is_told_by_all_numbers_of_the_table(
    tmp_path: Path, cells: list[str], told: dict[str, str], numbers: list[float]
) -> None:
    rows = [(f"{n}.jpg", f'"{cell}"') for n, cell in enumerate(cells)]
    records, reasons, remarks = read_all(folder(tmp_path, rows, "image,n"), columns=NUMBER, **told)
    assert ([r["n"] for r in records], reasons) == (numbers, [])
    assert ("table is read with a decimal comma" in remarks) == bool(not told and {1.5, 0.125} & set(numbers))


def test_numbers_that_could_mean_two_things_are_refused(tmp_path: Path) -> None:
    for cells, message in ((["1,234", "2"], "with thousands or with decimals"), (["1,5", "2.5"], "has both")):
        rows = [(f"{n}.jpg", f'"{cell}"') for n, cell in enumerate(cells)]
        with pytest.raises(LinesideError, match=f"{message}.*set `decimal"):
            table(folder(tmp_path, rows, "image,n"), split=None, columns=NUMBER)
    rows = [("0.jpg", '"1,5"'), ("1.jpg", "1.234")]  # a comma for sure; the other could be with thousands
    records, reasons, _ = read_all(folder(tmp_path, rows, "image,n"), columns=NUMBER)
    assert [r["n"] for r in records] == [1.5]
    assert reasons == ["column 'n' holds '1.234': expected a number with a decimal comma"]


def test_with_semicolons_a_point_may_group_thousands(tmp_path: Path) -> None:
    rows = [(f"{n}.jpg;{cell}",) for n, cell in enumerate(["1.250", "2"])]
    for n in range(2):
        (tmp_path / f"{n}.jpg").write_bytes(jpeg(n))
    with pytest.raises(LinesideError, match=r"has '1\.250', which could be with thousands or with decimals.*`decimal"):
        table(folder(tmp_path, rows, "image;n"), split=None, columns=NUMBER)
    for sign, number in ((".", 1.25), (",", 1250)):
        records, _, _ = read_all(folder(tmp_path, rows, "image;n"), columns=NUMBER, decimal=sign)
        assert [r["n"] for r in records] == [number, 2]


def test_what_programs_write_into_empty_cells_is_no_value(tmp_path: Path) -> None:
    words = ["NULL", "nan", "<NA>", "#N/A", "\\N", "#DIV/0!"]
    rows = [(f"{n}.jpg", word, word) for n, word in enumerate([*words, "None", "N/A"])]
    columns = {"n": "n", "m": {"column": "m", "values": {"NULL": "no label"}, "otherwise": "other"}}
    records, reasons, remarks = read_all(folder(tmp_path, rows, "image,n,m"), columns=columns)
    assert [r["n"] for r in records] == [None] * 6 + ["None", "N/A"] and not reasons
    assert [r["m"] for r in records] == ["no label"] + [None] * 5 + ["other", "other"]  # the user says what NULL is
    told = remarks["cells hold a word for nothing and are read as empty"]
    assert told == {"count": 11, "examples": ["NULL in n", "nan in n", "nan in m"]}


def test_a_picture_whose_row_is_refused_is_named_by_a_row(tmp_path: Path) -> None:
    path = folder(tmp_path, [("0.jpg", "x"), ("1.jpg", "2")], "image,n")
    reader = TableFrames(
        path,
        Table.model_validate({**MAPPING, "split": None, "columns": NUMBER}),
        beside=lambda: [(name, "picture") for name in ("0.jpg", "1.jpg", "2.jpg")],
    )
    assert [isinstance(found, Rejected) for found in reader.frames()] == [True, False]
    (told,) = reader.remarks.to_json().values()
    assert told == {"count": 1, "examples": ["2.jpg"]}


def test_ranges_are_held_against_numbers_with_a_comma(tmp_path: Path) -> None:
    rows = [("0.jpg", '"5,5"'), ("1.jpg", '"50,0"')]
    columns = {"n": {"column": "n", "values": {"0-10": "little", ">10": "much"}}}
    records, _, _ = read_all(folder(tmp_path, rows, "image,n"), columns=columns)
    assert [r["n"] for r in records] == ["little", "much"]


def test_integers_that_pandas_wrote_as_floats_are_integers_again(tmp_path: Path) -> None:
    rows = [("0.jpg", "4006381333931.0", "1.0"), ("1.jpg", "", "2.0"), ("2.jpg", "7.0", "2.1")]
    records, _, remarks = read_all(
        folder(tmp_path, rows, "image,order,version"), columns={"o": "order", "v": "version"}
    )
    assert records == [{"o": "4006381333931", "v": "1.0"}, {"o": None, "v": "2.0"}, {"o": "7", "v": "2.1"}]
    (told,) = remarks.items()
    assert "read as integers" in told[0] and told[1] == {"count": 1, "examples": ["order"]}


@pytest.mark.parametrize(
    "form", ["2026-01-{d:02d}T{h:02d}:00", "1/{d}/2026 {h}:00", "2601{d:02d}-{h:02d}00", "{epoch}"]
)
def test_a_day_is_on_one_side_however_it_is_written(tmp_path: Path, form: str) -> None:
    moments = [(d, h, 1767225600 + 86400 * (d - 1) + 3600 * h) for d in range(1, 16) for h in range(4)]
    rows = [(f"{n}.jpg", form.format(d=d, h=h, epoch=epoch)) for n, (d, h, epoch) in enumerate(moments)]
    told = {"time_format": "%y%m%d-%H%M"} if form.startswith("2601") else {}
    shares = {"train": 0.5, "dev": 0.25, "heldout": 0.25}
    opened = table(
        folder(tmp_path, rows, "image,at"), time="at", columns={}, split={"by": "day", "shares": shares}, **told
    )
    sides: dict[str, set[str]] = {}
    for frame in opened.frames():
        assert isinstance(frame, Frame)
        sides.setdefault(frame.meta.time[:10], set()).add(frame.split)
    assert sorted(sides) == [f"2026-01-{d:02d}" for d in range(1, 16)]
    assert all(len(side) == 1 for side in sides.values()) and len(set().union(*sides.values())) > 1


def test_times_that_tell_no_day_are_refused_where_days_split_and_kept_elsewhere(tmp_path: Path) -> None:
    path = folder(tmp_path, [("0.jpg", "260101-000700"), ("1.jpg", "1/2/2026")], "image,at")
    found = list(table(path, time="at", columns={}, split={"by": "day"}).frames())
    assert [f.reason.split(":")[0] for f in found if isinstance(f, Rejected)] == [
        "the time cannot be read", "the time is unclear"
    ]  # fmt: skip
    kept = [f.meta.time for f in table(path, time="at", columns={}, split=None).frames() if isinstance(f, Frame)]
    assert kept == ["260101-000700", "1/2/2026"]


def test_two_rows_that_name_one_picture_in_two_ways(tmp_path: Path) -> None:
    path = folder(tmp_path, [("a.jpg",), ("./a.jpg",), ("A.JPG",), ("a",)], "image")
    found = list(table(path, split=None, columns={}).frames())
    assert [f.id if isinstance(f, Frame) else f.reason for f in found] == [
        "a.jpg", *["listed twice: expected one row for each picture"] * 3
    ]  # fmt: skip
