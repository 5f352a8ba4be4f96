"""Answers from and for other tools: which question an entry of their file is about, and into whose log it goes."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from lineside.data.review_list import ReviewQuestion
from lineside.errors import LinesideError
from lineside.files import hold
from lineside.reviewing.log import CANNOT_TELL, FOLDER, Entry, Log, now, person_name
from lineside.reviewing.sources import Review

MAX_BYTES = 512 << 20
SHOWN = 8  # refused entries that are named
_UPLOADED = re.compile(r"[0-9a-f]{8}-(.+)")  # Label Studio's prefix of an uploaded file

People = Mapping[str, Mapping[str, Entry]]


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer in a file of another tool: `answer` as it stands there, CANNOT_TELL for a flag."""

    question: ReviewQuestion
    person: str
    answer: str
    at: str = ""


@dataclass
class Found:
    """What a file of another tool holds."""

    answers: list[Answered] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)  # entries that are no answers here, with the reason
    empty: int = 0  # entries that nobody has answered


class Finder:
    """Finds the question that an entry is about.

    A picture is one of ours if its path ends with our whole name, or is an end of it ("17.jpg" for "cam1/17.jpg").
    "cam3/17.jpg" is then another picture.
    """

    def __init__(self, questions: Sequence[ReviewQuestion]) -> None:
        self._by_id = {question.id: question for question in questions}
        self._whole: defaultdict[str, list[ReviewQuestion]] = defaultdict(list)
        self._ends: defaultdict[str, list[ReviewQuestion]] = defaultdict(list)
        for question in questions:
            for name in {question.frame, question.picture}:
                self._whole[name].append(question)
                for end in _ends(name)[1:]:
                    self._ends[end].append(question)

    def find(
        self, name: str | None, picture: str, *, task: str | None = None, text: str | None = None
    ) -> ReviewQuestion:
        """The question `name`, else the only one about this picture of this task and text.

        Raises LinesideError when there is none, or several could be meant.
        """
        if name:
            if name not in self._by_id:
                raise LinesideError(f"no question {name[:80]!r} here")
            return self._by_id[name]
        path = unquote(picture.partition("?d=")[2] or picture).replace("\\", "/")
        uploaded = _UPLOADED.fullmatch(path.rpartition("/")[2])
        about = next((self._whole[end] for end in _ends(path) if end in self._whole), [])
        for end in (path, *([uploaded[1]] if uploaded else [])):
            about = about or self._whole.get(end) or self._ends.get(end, [])
        if not about:
            raise LinesideError(f"no picture {picture[:80]!r} here")
        known = [q for q in about if (task is None or task in (q.task, q.task_name)) and text in (None, q.question)]
        if len(known) != 1:
            several = f"{len(known)} questions" if known else "no question"
            said = "".join(f", {what} {value[:40]!r}" for what, value in (("task", task), ("question", text)) if value)
            raise LinesideError(f"{several} about the picture {picture[:80]!r}{said}: expected one")
        return known[0]


def _ends(path: str) -> list[str]:
    """ "a/b/c" as "a/b/c", "b/c", "c"."""
    parts = path.split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]


def read_whole(path: Path) -> bytes:
    """The bytes of a file. Raises LinesideError when it cannot be read, is too large, or is an archive."""
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise LinesideError(f"{path}: {size} bytes: at most {MAX_BYTES} are read")
        data = path.read_bytes()
    except OSError as error:
        raise LinesideError(f"{path}: cannot be read ({error.strerror or error})") from error
    if data.startswith(b"PK"):
        raise LinesideError(f"{path}: an archive: unpack it first, and name the file of annotations")
    return data


def keep(review: Review, found: Found, *, person: str | None, via: str) -> Counter[str]:
    """Append the answers to the logs of their people; returns how many are new, the same as before, and refused.

    `person`: whose answers they all are. An answer that its person gave before is not written again, so that a file
    can be read twice. Raises LinesideError when a log is in use or cannot be written.
    """
    counts: Counter[str] = Counter()
    by_person: defaultdict[str, list[Answered]] = defaultdict(list)
    for answered in found.answers:
        try:
            by_person[person_name(person or answered.person)].append(answered)
        except LinesideError as error:
            found.refused.append(f"{answered.question.id}: {error}")
    for name, answers in sorted(by_person.items()):
        logs = review.folder / FOLDER
        with hold(logs, name=f".{name}.lock"), closing(Log(logs / f"{name}.jsonl")) as log:
            _append(log, answers, found, counts, via)
    counts["refused"] = len(found.refused)
    return counts


def _append(log: Log, answers: Iterable[Answered], found: Found, counts: Counter[str], via: str) -> None:
    for one in answers:
        try:
            told = "" if one.answer == CANNOT_TELL else one.question.form.read(one.answer)[0]
        except LinesideError as error:
            found.refused.append(f"{one.question.id}: {error}")
            continue
        action = "answer" if told else "cannot tell"
        before = log.of(one.question.id)
        if before is not None and before.is_about(one.question) and (before.action, before.answer) == (action, told):
            counts["same"] += 1
            continue
        number = log.revision(one.question.id)
        key = hashlib.sha256(f"{via}/{one.question.id}/{told}/{number}".encode()).hexdigest()[:32]
        at, name, asked = one.at or now(), one.question.id, one.question.subject
        log.add(Entry(at=at, question=name, action=action, answer=told, key=key, asked=asked, via=via))
        counts["new"] += 1
