"""The log of one person's answers: JSON lines, each on the disk before the page goes on.

Only whole lines count. A line that a killed process cut off was never confirmed, so it is taken away; a broken line
before the last is an error, because then somebody else wrote to the file. Nothing is ever changed or removed: an undo
is a line too.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Annotated, Literal

from pydantic import Field

from lineside.data.review_list import ReviewQuestion
from lineside.data.shards import disk
from lineside.data.tabular import read_json
from lineside.errors import LinesideError
from lineside.files import flush, make_folder
from lineside.progress import say
from lineside.strict import Strict, build

FOLDER = "answers"  # in the folder of a review: one log for each person
CANNOT_TELL = "cannot tell"
_PERSON = re.compile(r"\w[\w .@+-]{0,39}")

Action = Literal["answer", "cannot tell", "skip", "undo"]


class Entry(Strict):
    """One action of a person. `key` is new for each action, so that one that is sent twice counts once.

    `answer` is in the form of its task. `asked`: the question's subject, "" if it is not kept. `saw`: what others said
    was shown before. An `undo` takes back the last entry of its question.
    """

    at: str
    question: str
    action: Action
    answer: str = ""
    key: Annotated[str, Field(min_length=1, max_length=100)]
    asked: str = ""
    saw: bool = False
    seconds: Annotated[float, Field(ge=0)] = 0.0
    via: str = "page"

    @property
    def told(self) -> str:
        """The answer, or CANNOT_TELL."""
        return CANNOT_TELL if self.action == CANNOT_TELL else self.answer

    def is_about(self, question: ReviewQuestion) -> bool:
        """Whether it is still an answer to this question: the record may name another thing by now."""
        return self.question == question.id and self.asked in ("", question.subject)


def now() -> str:
    """The time in UTC, as 2026-01-02T10:00:00Z."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def person_name(text: str) -> str:
    """A person's name as it names a file. Raises LinesideError for other text."""
    name = unicodedata.normalize("NFC", text.strip())
    if not _PERSON.fullmatch(name) or name.endswith("."):
        raise LinesideError(
            f"--person {text[:60]!r}: expected a name of letters, digits, spaces or . @ + -, at most 40 characters"
        )
    return name


class Log:
    """The answers of a person, open for writing. One process at a time (`files.hold`)."""

    def __init__(self, path: Path) -> None:
        """Raises LinesideError when the file is broken or cannot be written."""
        self._entries: dict[str, list[Entry]] = {}  # by question; undone entries are taken away
        self._order: list[Entry] = []
        self._keys: dict[str, Entry] = {}
        self._revisions: Counter[str] = Counter()  # by question
        self._lock, self._closed = Lock(), False
        self.path = path
        entries, self._size, torn = _read(path)
        with disk(path.parent, path.name):
            make_folder(path.parent)
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
            os.ftruncate(self._file, self._size)
            os.lseek(self._file, self._size, os.SEEK_SET)
            flush(path.parent)
        if torn:
            say(f"review: {path}: the last line was cut off when the program was stopped; it was not confirmed")
        for entry in entries:
            self._note(entry)

    def add(self, entry: Entry) -> bool:
        """Append an entry; when this returns, it is on the disk. False if its key is there already.

        Raises LinesideError when the disk is full or cannot be written: the entry is then not in the file.
        """
        with self._lock:
            if self._closed:  # the number of its file may already be another file's
                raise LinesideError("the program is ending: the answer was not saved")
            if entry.key in self._keys:
                return False
            self._append(entry.model_dump_json(exclude_defaults=True).encode() + b"\n")
            self._note(entry)
        return True

    def _append(self, line: bytes) -> None:
        with disk(self.path.parent, self.path.name):
            try:
                left = memoryview(line)
                while left:
                    left = left[os.write(self._file, left) :]
                os.fsync(self._file)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(self._file, self._size)
                    os.lseek(self._file, self._size, os.SEEK_SET)
                raise
        self._size += len(line)

    def known(self, key: str) -> Entry | None:
        """The entry of this key, if it is in the log."""
        return self._keys.get(key)

    def of(self, question: str) -> Entry | None:
        """What the person last did with a question; None: nothing, or it is undone."""
        entries = self._entries.get(question)
        return entries[-1] if entries else None

    def answered(self, question: str) -> bool:
        """Whether the person ever answered a question, also if that is undone."""
        return any(entry.question == question and entry.action in ("answer", CANNOT_TELL) for entry in self._order)

    def revision(self, question: str) -> int:
        """Changes with every entry about the question: a page that shows an older one is out of date."""
        return self._revisions[question]

    @property
    def last(self) -> Entry | None:
        """The last entry that is not undone."""
        standing = {entry.key for entries in self._entries.values() for entry in entries}
        return next((entry for entry in reversed(self._order) if entry.key in standing), None)

    def close(self) -> None:
        """Close the file. Nothing can be added any more. A second call does nothing."""
        with self._lock:
            if not self._closed:  # the number of a closed file may be another file's by now
                self._closed = True
                os.close(self._file)

    def _note(self, entry: Entry) -> None:
        self._keys[entry.key] = entry
        self._order.append(entry)
        self._revisions[entry.question] += 1
        _apply(self._entries, entry)


def read_answers(path: Path) -> dict[str, Entry]:
    """The last answer or "cannot tell" of each question in a log; skipped and undone ones are left out."""
    found: dict[str, list[Entry]] = {}
    for entry in _read(path)[0]:
        _apply(found, entry)
    last = {question: entries[-1] for question, entries in found.items() if entries}
    return {question: entry for question, entry in last.items() if entry.action != "skip"}


def read_people(folder: Path, questions: Iterable[ReviewQuestion]) -> dict[str, dict[str, Entry]]:
    """The answers of every person to these questions, by name, from the folder of a review."""
    asked = {question.id: question for question in questions}
    found: dict[str, dict[str, Entry]] = {}
    for path in sorted((folder / FOLDER).glob("*.jsonl")):
        answers = {name: e for name, e in read_answers(path).items() if name in asked and e.is_about(asked[name])}
        if answers:
            found[path.stem] = answers
    return found


def _apply(found: dict[str, list[Entry]], entry: Entry) -> None:
    entries = found.setdefault(entry.question, [])
    if entry.action != "undo":
        entries.append(entry)
    elif entries:
        entries.pop()


def _read(path: Path) -> tuple[list[Entry], int, bool]:
    """(entries, bytes of whole lines, whether a cut-off line follows)."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return [], 0, False
    except OSError as error:
        raise LinesideError(f"{path}: cannot be read ({error.strerror or error})") from error
    size = data.rfind(b"\n") + 1
    return list(_entries(path, data[:size])), size, size < len(data)


def _entries(path: Path, data: bytes) -> Iterator[Entry]:
    for number, line in enumerate(data.splitlines(), 1):
        where = f"{path}, line {number}"
        try:
            plain = read_json(line.decode("utf-8"))
        except (UnicodeError, ValueError, RecursionError) as error:
            raise LinesideError(f"{where}: not a line of answers ({error}); mend or remove it") from error
        yield build(Entry, plain if isinstance(plain, dict) else {}, where)
