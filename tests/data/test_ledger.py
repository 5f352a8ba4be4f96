"""The ledger: what was added is there again, torn and damaged lines lose nothing else, one writer at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from lineside.data.ledger import Attempt, Ledger, read_ledger
from lineside.errors import LinesideError

A, B = "00" * 16, "ff" * 16
SAID = Attempt("answer", 'two lines\nand \ud800 "quotes"', "stop", 100, 20)
LOST = Attempt("error", "HTTP 500")


def filled(folder: Path) -> Path:
    with Ledger(folder) as ledger:
        ledger.add(A, 0, LOST)
        ledger.add(A, 1, SAID)
        ledger.add(B, 0, SAID)
    return folder / "teacher-000.ledger"


def test_what_was_added_is_there_again(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.add(A, 0, LOST)
        assert ledger.attempts(A) == [LOST]  # while it is open as well
        ledger.add(A, 1, SAID)
        assert ledger.attempts(B) == []
    with Ledger(tmp_path) as ledger:
        assert ledger.attempts(A) == [LOST, SAID]
        assert (ledger.requests, ledger.prompt_tokens, ledger.completion_tokens) == (2, 100, 20)


@pytest.mark.parametrize("cut", [1, 5, 60])
def test_a_torn_last_line_is_cut_off_and_written_again(tmp_path: Path, cut: int) -> None:
    path = filled(tmp_path)
    path.write_bytes(path.read_bytes()[:-cut])
    with Ledger(tmp_path) as ledger:
        assert ledger.attempts(A) == [LOST, SAID]
        assert ledger.attempts(B) == []
        ledger.add(B, 0, LOST)
        assert ledger.attempts(B) == [LOST]
    assert [(e["key"], e["attempt"]) for e in read_ledger(path)] == [(A, 0), (A, 1), (B, 0)]


def test_a_damaged_line_in_the_middle_loses_its_own_answer_alone(tmp_path: Path, capsys) -> None:
    path = filled(tmp_path)
    lines = path.read_bytes().split(b"\n")
    lines[1] = lines[1].replace(b"quotes", b"quoted")  # JSON still, and not what was written
    path.write_bytes(b"\n".join(lines))
    with Ledger(tmp_path) as ledger:
        assert ledger.attempts(A) == [LOST]
        assert ledger.attempts(B) == [SAID]
    assert "line 2 is damaged" in capsys.readouterr().err


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with Ledger(tmp_path), pytest.raises(LinesideError, match="another process is labelling into this folder"):
        Ledger(tmp_path)
    Ledger(tmp_path).close()


def test_ranks_write_apart_and_read_each_other_and_the_first_answer_counts(tmp_path: Path) -> None:
    other = Attempt("answer", "another", "stop")
    with Ledger(tmp_path, rank=1) as one, Ledger(tmp_path, rank=0) as zero:
        one.add(A, 0, other)
        zero.add(A, 0, SAID)
        one.add(B, 0, other)
    for rank in (0, 1, 2):
        with Ledger(tmp_path, rank=rank) as ledger:
            assert (ledger.attempts(A), ledger.attempts(B)) == ([SAID], [other])


def test_forgotten_is_asked_anew_and_stays_counted(tmp_path: Path) -> None:
    filled(tmp_path)
    with Ledger(tmp_path) as ledger:
        ledger.forget(A)
        ledger.add(A, 0, SAID)
    with Ledger(tmp_path) as ledger:
        assert ledger.attempts(A) == [SAID]
        assert ledger.requests == 4


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger, open("/dev/full", "wb", buffering=0) as full:
        ledger._file, real = full, ledger._file
        with pytest.raises(LinesideError, match="disk is full"):
            ledger.add(A, 0, SAID)
        ledger._file = real
        ledger.add(A, 0, SAID)
        assert ledger.attempts(A) == [SAID]
