"""The log of a person's answers: nothing confirmed is ever lost, nothing counts twice."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from lineside.errors import LinesideError
from lineside.reviewing.log import Action, Entry, Log, person_name, read_answers


def entry(question: str, answer: str = "4", action: Action = "answer", key: str = "") -> Entry:
    return Entry(at="t", question=question, action=action, answer=answer, key=key or os.urandom(8).hex())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "answers" / "anna.jsonl"


def test_the_last_action_on_a_question_stands_and_an_undo_brings_back_the_one_before(path: Path) -> None:
    log = Log(path)
    first, second = entry("a", "4"), entry("a", "5")
    for one in (first, entry("b"), second):
        assert log.add(one)
    assert log.of("a") == second and log.last == second
    log.add(entry("a", action="undo", answer=""))
    assert log.of("a") == first and log.revision("a") == 3 and log.revision("b") == 1
    assert log.last is not None and log.last.question == "b"
    log.close()
    again = Log(path)
    assert (again.of("a"), again.last, again.revision("a")) == (first, log.last, 3)
    again.close()
    assert read_answers(path) == {"a": first, "b": log.of("b")}


def test_the_same_action_sent_twice_counts_once(path: Path) -> None:
    log = Log(path)
    assert log.add(entry("a", key="k")) and not log.add(entry("a", key="k"))
    log.close()
    again = Log(path)
    assert not again.add(entry("a", key="k")) and len(path.read_text().splitlines()) == 1
    again.close()


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_line_that_was_cut_off_was_never_confirmed_and_the_log_goes_on(path: Path, cut: int) -> None:
    log = Log(path)
    log.add(entry("a"))
    whole = path.read_bytes()
    log.add(entry("b"))
    log.close()
    path.write_bytes(path.read_bytes()[: len(whole) + cut])
    assert read_answers(path).keys() == {"a"}
    log = Log(path)
    assert path.read_bytes() == whole
    log.add(entry("c"))
    log.close()
    assert read_answers(path).keys() == {"a", "c"}


@pytest.mark.parametrize("line", ["no json", "[]", '{"at": "t"}', '{"at":"t","question":"a","action":"eat","key":"k"}'])
def test_a_broken_line_before_the_last_is_named(path: Path, line: str) -> None:
    path.parent.mkdir()
    path.write_text(f"{line}\n{entry('a').model_dump_json()}\n")
    with pytest.raises(LinesideError, match=r"anna\.jsonl, line 1"):
        Log(path)


def test_a_full_disk_leaves_the_log_as_it_was_and_the_answer_can_be_sent_again(path: Path, monkeypatch) -> None:
    log = Log(path)
    log.add(entry("a"))
    before = path.read_bytes()
    real = os.write

    def half(file: int, data: bytes) -> int:
        if len(data) > 10:
            return real(file, data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", lambda file, data: half(file, bytes(data)[: max(10, len(data) // 2)]))
    with pytest.raises(LinesideError, match="the disk is full"):
        log.add(entry("b", key="k"))
    monkeypatch.setattr(os, "write", real)
    assert path.read_bytes() == before and log.of("b") is None
    assert log.add(entry("b", key="k"))
    log.close()
    assert read_answers(path).keys() == {"a", "b"}


def test_after_it_is_closed_nothing_is_written_anywhere(path: Path) -> None:
    log = Log(path)
    log.close()
    with open(path.parent / "other", "w") as other, pytest.raises(LinesideError, match="the program is ending"):
        log.add(entry("a"))
        assert other.fileno() >= 0
    assert (path.parent / "other").read_bytes() == path.read_bytes() == b""


def test_skipped_questions_are_no_answers(path: Path) -> None:
    log = Log(path)
    log.add(entry("a", "", "skip"))
    log.add(entry("b", "", "cannot tell"))
    log.close()
    assert read_answers(path).keys() == {"b"}


@pytest.mark.parametrize("name", ["anna", "Zoë B.-2", "anna@example.com"[:40], "李"])
def test_a_name_names_a_file(name: str) -> None:
    assert person_name(f" {name} ") == name


@pytest.mark.parametrize("name", ["", "..", ".anna", "a/b", "a\\b", "a\nb", "x" * 41, "a."])
def test_a_name_that_could_lead_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(LinesideError, match="expected a name"):
        person_name(name)
