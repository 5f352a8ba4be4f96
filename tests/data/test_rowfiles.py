"""Files of rows: every shape gives the same rows, what is none is refused by name, and time is linear."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lineside.data import rowfiles
from lineside.data.conversations import is_row
from lineside.data.rowfiles import held_out, json_rows, rows_of
from lineside.errors import LinesideError

ROWS = [{"image": "p.png", "question": "Größe ]}?", "answer": str(n), "n": n / 4} for n in range(4)]
LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
ARRAY = json.dumps(ROWS, ensure_ascii=False)
SHAPES: dict[str, bytes] = {
    "array": ARRAY.encode(),
    "array of escapes": json.dumps(ROWS).encode(),
    "array over lines": json.dumps(ROWS, indent=1).encode(),
    "trailing comma": (ARRAY[:-1] + ",\n]").encode(),
    "lines": LINES.encode(),
    "lines of Windows": LINES.replace("\n", "\r\n").encode(),
    "byte order mark": LINES.encode("utf-8-sig"),
    "UTF-16": ARRAY.encode("utf-16"),
    "UTF-16 without a mark": LINES.encode("utf-16-le"),
    "pretty": "\n".join(json.dumps(row, indent=2) for row in ROWS).encode(),
    "one after another": "".join(json.dumps(row) for row in ROWS).encode(),
    "wrapped": json.dumps({"version": 1, "data": ROWS}).encode(),
    "wrapped over lines": json.dumps({"info": {"by": "me"}, "rows": ROWS, "n": []}, indent=2).encode(),
    "under ids": json.dumps({str(n): row for n, row in enumerate(ROWS)}).encode(),
    "gzip": gzip.compress(LINES.encode()),
    "bzip2": bz2.compress(ARRAY.encode()),
    "xz": lzma.compress(ARRAY.encode("utf-16")),
}


@pytest.fixture
def file(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(data: bytes) -> Path:
        (tmp_path / "rows.txt").write_bytes(data)
        return tmp_path / "rows.txt"

    return write


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_gives_the_same_rows(file: Callable[[bytes], Path], name: str) -> None:
    assert list(rows_of(file(SHAPES[name]), is_row)) == list(enumerate(ROWS, start=1))


def test_one_row_is_a_file_of_one_row(file: Callable[[bytes], Path]) -> None:
    turns = {"image": "p.png", "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "3"}]}
    for text in (json.dumps(turns), json.dumps(turns, indent=2), json.dumps([turns])):
        assert list(rows_of(file(text.encode()), is_row)) == [(1, turns)]
    assert list(rows_of(file(b"[]"), is_row)) == []


def test_parquet_is_told_by_its_content(file: Callable[[bytes], Path], tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert [row for _, row in rows_of(file((tmp_path / "a.parquet").read_bytes()), is_row)] == ROWS


def test_a_folder_that_holds_several_splits_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in ("train-00000-of-00002", "train-00001-of-00002"):
        pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "data" / f"{name}.parquet")
    assert [number for number, _ in rows_of(tmp_path, is_row)] == list(range(1, 9))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "data" / "test-00000-of-00001.parquet")
    with pytest.raises(LinesideError, match="belongs to the split test"):
        list(rows_of(tmp_path, is_row))


@pytest.mark.parametrize(
    "name",
    [
        "test/0000.parquet",
        "default/validation/0.parquet",
        "testmini-00000-of-00001.parquet",
        "val2014-0.parquet",
        "part-dev-0.parquet",
    ],
)
def test_the_split_of_a_file_is_told_by_its_folders_and_its_name(tmp_path: Path, name: str) -> None:
    for path in ("train/0000.parquet", "ai2d_test_free/train-0.parquet", name):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / path)
    with pytest.raises(LinesideError, match=f"belongs to the split .* \\({name}\\)"):
        list(rows_of(tmp_path, is_row))
    assert len(list(rows_of(tmp_path / name, is_row))) == 4  # the user names it
    (tmp_path / name).unlink()
    assert len(list(rows_of(tmp_path, is_row))) == 8


def test_names_of_splits() -> None:
    held = "test testdev test-dev test_std testA val valid validation minival val2014 dev eval heldout held-out shifted"
    for split in held.split():
        assert held_out(split) and held_out(split.upper())
    for split in ("train", "training", "trainval", "train_test", "train2014", "value", "testament", "device", "", "0"):
        assert not held_out(split)


def test_numbers_of_single_precision_are_as_they_were_written(tmp_path: Path) -> None:
    for kind in (pa.float16(), pa.float32(), pa.float64()):
        table = pa.table({"answer": pa.array(np.array([0.1, 2.5, 3], kind.to_pandas_dtype()), kind)})
        pq.write_table(table, tmp_path / "a.parquet")
        assert [row["answer"] for _, row in rows_of(tmp_path / "a.parquet", is_row)] == [0.1, 2.5, 3]


BAD: dict[str, tuple[bytes, int, str]] = {  # rows before the fault
    "cut": (ARRAY[:-20].encode(), 3, "row 4: not JSON from here on (Unterminated string"),
    "no comma": (b'[{"a": 1} {"b": 2}]', 1, "row 2: expected a comma"),
    "more": (ARRAY.encode() + b" []", 4, "row 5: something follows the end of the list"),
    "deep": (b'[{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}]", 0, "nested too deep"),
    "cp1252": (ARRAY.encode("cp1252"), 0, "iconv"),
    "empty": (b"", 0, "this file is empty"),
    "blank": (b" \n \n", 0, "this file is empty"),
    "a web page": (b"<!DOCTYPE html><html>404</html>", 0, "HTML or XML"),
    "a table": (b"image,question,answer\np.png,?,1\n", 0, "label --teacher table"),
    "words": (b"hello", 0, "this is not JSON"),
    "zip": (b"PK\x03\x04\x00\x00\x00\x00", 0, "a zip archive, or a workbook"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", 0, "git lfs pull"),
    "cut gzip": (gzip.compress(LINES.encode())[:-10], 0, "cannot be read"),
    "several lists": (json.dumps({"train": ROWS, "test": ROWS}).encode(), 0, "under train, test"),
    "test alone": (json.dumps({"info": 1, "test": ROWS}).encode(), 0, "the rows of the split test"),
    "commas": (LINES.replace("\n", ",\n").encode(), 1, "a comma between rows"),
    "python": (str(ROWS[0]).encode(), 0, "single quotes are Python's notation"),
    "arrow stream": (b"\xff\xff\xff\xff\x10\x00", 0, "Dataset.to_parquet"),
    "pickle": (b"\x80\x04\x95", 0, "a Python pickle"),
    "parquet": (b"PAR1 and no more", 0, "cannot be read as Parquet"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_file_of_rows_is_refused_by_name(file: Callable[[bytes], Path], name: str) -> None:
    data, before, reason = BAD[name]
    found: list[Any] = []
    with pytest.raises(LinesideError) as error:
        for row in rows_of(file(data), is_row):
            found.append(row)  # what came before the fault must be seen
    assert reason in str(error.value)
    assert len(found) == before


FAULTS = {
    '{"a": NaN}': "NaN is not JSON",
    '{"a": -Infinity}': "-Infinity is not JSON",
    '{"a": 1e999}': "too large",
    '{"a": 1, "b": 2, "a": 3}': "the key 'a' occurs twice",
    '{"a": "\\ud800"}': "half of a surrogate pair",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_unsound_row_is_refused_and_the_rest_goes_on(file: Callable[[bytes], Path], fault: str) -> None:
    for text in (f'[{{"x": 1}}, {fault}, {{"x": 2}}]', f'{{"x": 1}}\n{fault}\n{{"x": 2}}'):
        first, bad, last = list(json_rows(file(text.encode())))
        assert (first, last) == ((1, {"x": 1}), (3, {"x": 2}))
        assert bad[0] == 2 and isinstance(bad[1], LinesideError) and FAULTS[fault] in str(bad[1])


def test_a_value_without_an_end_is_refused(file: Callable[[bytes], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rowfiles, "MAX_ROW", 200_000)
    for text in ('[{"a": 1}, {"b": "', '{"a": "'):
        with pytest.raises(LinesideError, match="over 200,000 characters"):
            list(json_rows(file(text.encode() + b"x" * 1_000_000)))


def test_a_bad_line_is_refused_and_the_rest_goes_on(file: Callable[[bytes], Path]) -> None:
    found = list(json_rows(file(b'{"a": \n\n{"a": 1}\n{"a": 2} {"a": 3}\n[1]\n')))
    assert [number for number, _ in found] == [1, 3, 4, 5]
    assert [isinstance(row, LinesideError) for _, row in found] == [True, False, True, False]
    assert "more follows at character 9" in str(found[2][1])


def test_numbers_stay_what_they_are(file: Callable[[bytes], Path]) -> None:
    text = '{"a": 0.1, "b": 18446744073709551615, "c": 2.50, "d": 7.0, "e": 1e3}'
    for shape in (f"[{text}]", text):
        ((_, row),) = json_rows(file(shape.encode()))
        assert json.dumps(row) == '{"a": 0.1, "b": 18446744073709551615, "c": 2.5, "d": 7.0, "e": 1000.0}'


def test_a_large_array_is_never_held(file: Callable[[bytes], Path]) -> None:
    rows = [{"id": n, "text": "x" * 3000} for n in range(2000)]
    path = file(json.dumps(rows).encode())
    tracemalloc.start()
    assert sum(row["id"] for _, row in json_rows(path)) == sum(range(2000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_500_000  # of a file of 6 MB


def test_a_long_row_makes_no_later_row_slower(file: Callable[[bytes], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted: characters that are copied to make room. A long row among 4,000 short ones adds a few times its size."""
    held: list[int] = []
    more = rowfiles._Values._more

    def counted(values: Any) -> bool:
        held.append(len(values._text) - values._at)
        return more(values)

    monkeypatch.setattr(rowfiles._Values, "_more", counted)
    short = [{"id": n, "text": "x" * 100} for n in range(4000)]
    assert sum(1 for _ in json_rows(file(json.dumps(short).encode()))) == 4000
    without = sum(held)
    held.clear()
    size = 4_000_000
    assert sum(1 for _ in json_rows(file(json.dumps([{"text": "A" * size}, *short]).encode()))) == 4001
    assert sum(held) < without + 4 * size
