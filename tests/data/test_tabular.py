"""Tables of text: one strict reader for what spreadsheets and libraries write, or a refusal that names the line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lineside.data.tabular import Form, delimiter_of, read_table
from lineside.errors import LinesideError


def rows(tmp_path: Path, text: str | bytes, name: str = "t.csv", **form: Any) -> list[dict[str, Any] | str]:
    (tmp_path / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return [row for _, row in read_table(tmp_path / name, Form(**form))]


A = {"image": "a.jpg", "n": "1"}
B = {"image": "b.jpg", "n": "2"}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("image,n\na.jpg,1\nb.jpg,2\n", "t.csv"),
        ("image;n\r\na.jpg;1\r\nb.jpg;2\r\n", "t.csv"),
        ("image\tn\na.jpg\t1\nb.jpg\t2", "t.CSV"),
        ("image|n\na.jpg|1\nb.jpg|2\n", "t.csv"),
        ("image\tn\na.jpg\t1\nb.jpg\t2\n", "t.tsv"),
        ("sep=;\nimage;n\na.jpg;1\nb.jpg;2\n", "t.csv"),
        ('"sep=;"\nimage;n\na.jpg;1\nb.jpg;2\n', "t.csv"),
        ("\nimage,n\na.jpg,1\n\n,\nb.jpg,2\n,,\n".replace(",,\n", ",\n"), "t.csv"),  # empty rows
        ("image , n\n a.jpg, 1\n b.jpg , 2\n", "t.csv"),
        (",image,n\n0,a.jpg,1\n1,b.jpg,2\n", "t.csv"),  # the index that pandas writes
        ("image,n,\na.jpg,1,\nb.jpg,2,\n", "t.csv"),  # a separator at the end
        ('"image","n"\r"a.jpg","1"\r"b.jpg","2"\r', "t.csv"),  # line ends of old
        ('{"image": "a.jpg", "n": "1"}\r\n\r\n{"image": "b.jpg", "n": "2"}', "t.JSONL"),
    ],
)
def test_what_spreadsheets_and_libraries_write(tmp_path: Path, text: str, name: str) -> None:
    assert rows(tmp_path, text, name) == [A, B]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_encodings_are_told_by_their_mark(tmp_path: Path, encoding: str) -> None:
    assert rows(tmp_path, "image,farbe\na.jpg,grün\n".encode(encoding)) == [{"image": "a.jpg", "farbe": "grün"}]


def test_other_encodings_are_refused_by_line_and_taken_when_told(tmp_path: Path) -> None:
    text = "image,farbe\na.jpg,rot\nb.jpg,grün\n"
    with pytest.raises(LinesideError, match=r"line 3: not UTF-8. In Windows-1252 it reads .*grün.*encoding: cp1252"):
        rows(tmp_path, text.encode("cp1252"))
    assert rows(tmp_path, text.encode("cp1252"), encoding="cp1252")[1] == {"image": "b.jpg", "farbe": "grün"}
    with pytest.raises(LinesideError, match="UTF-16 without a byte-order mark: set `encoding: utf-16-le`"):
        rows(tmp_path, text.encode("utf-16-le"))
    assert len(rows(tmp_path, text.encode("utf-16-le"), encoding="utf-16-le")) == 2
    with pytest.raises(LinesideError, match="is not ascii: correct `encoding: ascii` in the table"):
        rows(tmp_path, text.encode("cp1252"), encoding="ascii")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('a.jpg,1,x\nb.jpg,2,"x\nc.jpg,3,x\n', "line 3: a quoted field begins here and never ends"),
        ('a.jpg,1,"x\nb.jpg,2,x\nc.jpg,3,x"\n', r"line 2: a quoted field ends only at line 4 .*'b.jpg,2,x'"),
        ('a.jpg,1,"x\nb.jpg,2,"x"\n', "line 2: text follows a closing quote"),
        ('"a.jpg,1,x\nb.jpg",2,x\n', "line 2: a quoted field ends only at line 3"),
    ],
)
def test_a_quote_that_is_not_closed_swallows_nothing(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(LinesideError, match=message):
        rows(tmp_path, "image,n,text\n" + body)


def test_text_of_several_lines_and_quotes_within_are_kept(tmp_path: Path) -> None:
    body = 'image,n,text\na.jpg,1,"one, two\nthree, ""four"", five"\nb.jpg,2,5" pipe\n'
    assert [row["text"] for row in rows(tmp_path, body) if isinstance(row, dict)] == [
        'one, two\nthree, "four", five',
        '5" pipe',
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,n,n\na,1,2\n", r"two columns are called 'n' \(number 2 and 3\)"),
        ("image,n, n \na,1,2\n", "two columns are called 'n'"),
        ("", "the file is empty"),
        ("\n\n", "the file is empty"),
        ("im\0age,n\na,1\n", "NUL"),
        ("a;b,c\n1;2,3\n", "separated by commas or by semicolons: set `delimiter: ','` in"),
    ],
)
def test_a_table_that_is_spoilt_is_refused_as_a_whole(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(LinesideError, match=message):
        rows(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# made by MES\nimage,n\na.jpg,1\n", "its first line '# made by MES' has 1 fields, its rows have 2"),
        ("image,n\na.jpg,1,\nb.jpg,2,\n", "its first line 'image,n' has 2 fields, its rows have 3"),
        ("<html>\n<body>404</body>\n", "no table: HTML or XML"),
        ("PK\x03\x04\x00\n1\n", "no table: a workbook"),
        ('{"image": "a.jpg"}\n', "no table: JSON"),
    ],
)
def test_what_is_no_table_is_told_as_such(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(LinesideError, match=message):
        list(read_table(tmp_path / "t.csv"))


def test_a_bad_row_spoils_no_other(tmp_path: Path) -> None:
    found = rows(tmp_path, "image,n\n# a comment\na.jpg,1\nc.jpg,1,5\nd\0.jpg,1\nb.jpg,2\n")
    assert found == [
        "1 fields, but the header has 2",
        A,
        "3 fields, but the header has 2; put a text with ',' in quotes",
        "a NUL character in it",
        B,
    ]


def test_the_separator_is_told_by_header_and_rows_together(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('image,note\na.jpg,"x;y"\nb.jpg,p;q;r\n')
    assert delimiter_of(path) == ","
    path.write_text("image;note, in full\na.jpg;x\nb.jpg;y, z\nc.jpg;p\n")
    assert delimiter_of(path) == ";"
    assert delimiter_of(path, Form(delimiter=",")) == ","


def test_json_without_a_number_says_what_to_write(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"n": NaN}\n')
    assert list(read_table(tmp_path / "t.jsonl")) == [(1, "not JSON (NaN is not JSON: write null)")]


def test_json_lines_are_exact_and_no_key_stands_twice(tmp_path: Path) -> None:
    text = '{"n": 4006381333931.0, "x": 0.1, "y": 1e3}\n{"n": 1, "n": 2}\n{"n": {"a": 1, "a": 2}}\n'
    found = rows(tmp_path, text, "t.jsonl")
    assert found[0] == {"n": 4006381333931, "x": 0.1, "y": 1000}
    assert isinstance(found[0], dict) and type(found[0]["n"]) is int
    assert found[1:] == ["not JSON (the key 'n' occurs twice)", "not JSON (the key 'a' occurs twice)"]
