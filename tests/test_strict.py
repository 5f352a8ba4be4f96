"""YAML as an engineer means it: words stay words, and what cannot be meant is refused with its line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lineside.data.taskfile import Answer, Column, Splits, Table
from lineside.errors import LinesideError
from lineside.strict import build, read_yaml


def yaml(tmp_path: Path, text: str | bytes) -> dict[str, Any]:
    path = tmp_path / "t.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_yaml(path)


def test_words_that_yaml_would_turn_into_something_else_stay_words(tmp_path: Path) -> None:
    read = yaml(tmp_path, "a: [no, on, 010, 6:00, 2026-01-02, 1_000, 0x1F, True]\nb: [true, 1e-4, 12, -3, .5, null]\n")
    assert read["a"] == ["no", "on", "010", "6:00", "2026-01-02", "1_000", "0x1F", "True"]
    assert read["b"] == [True, 1e-4, 12, -3, 0.5, None]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_files_of_windows_editors(tmp_path: Path, encoding: str) -> None:
    assert yaml(tmp_path, "a: 1\r\nb: grün\r\n".encode(encoding)) == {"a": 1, "b": "grün"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a: gr\xfcn\n", "cannot be read .*expected UTF-8"),
        (b"a:\n\t- b\n", "line 2: .*indent with spaces, not with tabs"),
        (b"a: [How many: parts?]\n", "in quotes"),
        (b"a: 1\na: 2\n", "line 2: .*'a' occurs twice"),
        (b"1: a\n'1': b\n", "line 2: .*'1' occurs twice"),
    ],
)
def test_what_is_no_yaml_is_refused_with_its_line(tmp_path: Path, text: bytes, message: str) -> None:
    with pytest.raises(LinesideError, match=message):
        yaml(tmp_path, text)


def test_whole_numbers_are_taken_as_words_where_words_are_wanted() -> None:
    assert build(Answer, {"kind": "choice", "column": "x", "options": [1, "two"]}, "t").options == ("1", "two")
    assert build(Column, {"column": "x", "values": {0: "a", 2.0: "b", True: "c", "3": "d"}}, "t").values == {
        "0": "a", "2": "b", "true": "c", "3": "d",
    }  # fmt: skip
    assert build(Splits, {"column": "s", "values": {0: "train", 1: "dev"}}, "t").values == {"0": "train", "1": "dev"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([None, "full"], "options.0: YAML reads this as null.*in quotes"),
        ([0.5], "reads this as 0.5"),
        ([True], "reads this as true"),
    ],
)
def test_options_that_yaml_has_changed_are_refused(options: list[Any], message: str) -> None:
    with pytest.raises(LinesideError, match=message):
        build(Answer, {"kind": "choice", "column": "x", "options": options}, "t")


def test_a_mistake_in_a_column_names_its_key_and_nothing_of_the_checker() -> None:
    with pytest.raises(LinesideError) as told:
        build(Table, {"family": "p", "columns": {"state": {"column": "state", "valeus": {}}}}, "t.yaml")
    assert "t.yaml: unknown key 'columns.state.valeus'; did you mean 'values'?" in str(told.value)
    assert "function" not in str(told.value)
    for values in ({None: "a"}, {1: "a", "1.0": "b"}):
        with pytest.raises(LinesideError, match=r"columns\.state\.values: (a key is empty|two keys are the same)"):
            build(Table, {"family": "p", "columns": {"state": {"column": "state", "values": values}}}, "t.yaml")


def test_a_device_without_an_end_is_not_read_to_its_end() -> None:
    with pytest.raises(LinesideError, match="too large to be settings"):
        read_yaml(Path("/dev/zero"))


def test_references_are_counted_as_what_they_stand_for(tmp_path: Path) -> None:
    assert yaml(tmp_path, "a: &a [1, 2]\nb: [*a, *a]\n") == {"a": [1, 2], "b": [[1, 2], [1, 2]]}
    levels = "\n".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 10))
    for text, message in (
        (f"l0: &l0 [x, x]\n{levels}\n", "more than 500,000 values"),  # two thousand million
        ("a: &a {b: *a}\n", "line 1: .*holds itself"),
        ("a: " + "[" * 100_000, "more than 64 brackets are open"),
        ("- " * 50_000, "not valid YAML|expected keys and values"),
        ("a: " + "9" * 5000, "not valid YAML"),
    ):
        with pytest.raises(LinesideError, match=message):
            yaml(tmp_path, text)
