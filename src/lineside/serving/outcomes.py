"""What became of answers: each is kept for a while, the truth can be told later, and the verifier judges it.

Off by default. One SQLite file, bounded in size and age: the oldest answers go first, with their pictures. Pictures are
kept only if asked for; without them a frame is known by the hash of its bytes. Anything can be deleted.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from lineside.errors import LinesideError
from lineside.images import image_key
from lineside.judgement.outcomes import Logged, Row, form_of
from lineside.judgement.schema import TypedAnswer
from lineside.judgement.typed import TEXT, Form
from lineside.progress import say
from lineside.types import Image
from lineside.verify.verifiers import verify

Told = Literal["right", "wrong", "unknown", "succeeded", "failed"]  # the last two are told without a truth
_MAGIC = b"SQLite format 3\0"
PRUNE_EVERY = 64  # answers
VERSION_DIGITS = 16  # of a model's hash: replies and logs name the version by them
COLUMNS = ("id", "time", "model", "version", "frame", "question", "answer", "truth", "verdict", "told", "about")
_BESIDE = """instr(about, '"key"')"""  # whether pictures stood beside the frame
_TABLES = """
CREATE TABLE IF NOT EXISTS answers (id TEXT PRIMARY KEY, time REAL, model TEXT, version TEXT, frame TEXT, question TEXT,
    answer TEXT, truth TEXT, verdict TEXT, told REAL, about TEXT);
CREATE INDEX IF NOT EXISTS answers_time ON answers (time);
CREATE INDEX IF NOT EXISTS answers_frame ON answers (frame);
CREATE INDEX IF NOT EXISTS answers_frames ON answers (frame) WHERE instr(frame, ',');
CREATE TABLE IF NOT EXISTS frames (key TEXT PRIMARY KEY, data BLOB);
CREATE TABLE IF NOT EXISTS shadows (id TEXT PRIMARY KEY, version TEXT NOT NULL, answer TEXT NOT NULL);
CREATE TRIGGER IF NOT EXISTS shadows_gone AFTER DELETE ON answers BEGIN DELETE FROM shadows WHERE id = OLD.id; END;
"""


def judge_truth(answer: str | None, truth: str, form: Form | None) -> Told | None:
    """Whether an answer is right if `truth` is the truth; None if `truth` is no answer to the question.

    "unknown" where the checkpoint does not say how an answer is compared: a number whose resolution it does not have.
    """
    if (known := (form or TEXT).target_for(truth)) is None:
        return None
    if form is not None and not form.is_compared:
        return "unknown"
    return "right" if answer is not None and verify(answer, known).exact else "wrong"


@dataclass(frozen=True, slots=True)
class About:
    """What an answer is about, besides frame and question: where it was asked, how the picture was cut (`roi`, `box`:
    see `data.regions.shown_to_model`), the views and references beside it, and how its answers are compared."""

    cell: str = ""
    camera: str | None = None
    skus: tuple[str, ...] = ()
    roi: dict[str, Any] | None = None
    box: str | None = None
    beside: tuple[Image, ...] = ()
    form: Form | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain data; a picture by its key."""
        plain = {"cell": self.cell, "camera": self.camera, "skus": list(self.skus), "roi": self.roi, "box": self.box}
        beside = [
            {"key": image_key(one.bytes), "role": one.role, "name": one.name, "text": one.text} for one in self.beside
        ]
        return plain | {"beside": beside, "form": self.form.model_dump(mode="json") if self.form else None}


NOTHING = About()
_KEEP = """INSERT OR REPLACE INTO answers (id, time, model, version, frame, question, answer, about)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?)"""


class Outcomes:
    """The file of answers and truths. Used by one thread."""

    def __init__(
        self, path: Path, *, days: float, max_bytes: int, frames: bool, clock: Callable[[], float] = time.time
    ) -> None:
        """Raises LinesideError if the file cannot be opened."""
        self.path, self._days, self._max_bytes, self._frames, self._clock = path, days, max_bytes, frames, clock
        self._count, self._losing = 0, False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None, timeout=1.0)
            for pragma in ("auto_vacuum = FULL", "journal_mode = WAL", "synchronous = NORMAL"):
                self._db.execute(f"PRAGMA {pragma}")
            self._db.executescript(_TABLES)
            if "about" not in {row[1] for row in self._db.execute("PRAGMA table_info(answers)")}:  # before 2026-11-30
                self._db.execute("ALTER TABLE answers ADD COLUMN about TEXT")
            self._db.execute(f"CREATE INDEX IF NOT EXISTS answers_beside ON answers (about) WHERE {_BESIDE}")
        except (OSError, sqlite3.Error) as error:
            raise LinesideError(
                f"{path}: cannot be used for outcomes ({error}); expected a new file, or its own"
            ) from None

    def keep(
        self,
        name: str,
        pictures: Sequence[bytes],
        question: str,
        typed: TypedAnswer,
        *,
        model: str,
        version: str,
        about: About = NOTHING,
    ) -> bool:
        """Keep an answer; whether it is kept. A full disk or a busy file loses the answer, never the reply."""
        keys = [image_key(data) for data in pictures]
        frame = ",".join(keys)
        row = (
            name, self._clock(), model, version, frame, question, typed.model_dump_json(), json.dumps(about.to_json())
        )  # fmt: skip
        try:
            if self._frames:  # before the answer: a picture of no answer goes with the next pruning
                pairs = [*zip(keys, pictures), *((image_key(one.bytes), one.bytes) for one in about.beside)]
                self._db.executemany("INSERT OR IGNORE INTO frames VALUES (?, ?)", pairs)
            self._db.execute(_KEEP, row)
        except sqlite3.Error as error:
            if not self._losing:
                say(f"serve: {self.path}: answers are not kept ({error}); lineside:outcomes_lost counts them")
            self._losing = True
            return False
        self._losing = False
        self._count += 1
        if self._count % PRUNE_EVERY == 1:
            with suppress(sqlite3.Error):
                self.prune()
        return True

    def keep_shadow(self, name: str, typed: TypedAnswer, *, version: str) -> None:
        """Keep what another version answers to the question of an answer that is kept. Nobody has used it."""
        row = (name, version, typed.model_dump_json(), name)
        there = "SELECT ?, ?, ? WHERE EXISTS (SELECT 1 FROM answers WHERE id = ?)"
        with suppress(sqlite3.Error):
            self._db.execute(f"INSERT OR REPLACE INTO shadows {there}", row)

    def find(self, name: str) -> dict[str, Any] | None:
        """An answer by its id."""
        return next(iter(self._rows("WHERE id = ?", (name,))), None)

    def last(self, count: int) -> list[dict[str, Any]]:
        """The last answers, newest first."""
        return self._rows("ORDER BY time DESC LIMIT ?", (count,))

    def tell(self, name: str, truth: str | None, verdict: Told) -> None:
        """Keep the truth about an answer, or only whether it served (None). What was told before is replaced."""
        row = (truth, verdict, self._clock(), name)
        self._db.execute("UPDATE answers SET truth = ?, verdict = ?, told = ? WHERE id = ?", row)

    def delete(self, name: str) -> bool:
        """Delete an answer, and its pictures if no other answer is about them. Whether there was one."""
        found = self._db.execute("DELETE FROM answers WHERE id = ?", (name,)).rowcount
        self._drop_frames()
        return bool(found)

    def prune(self) -> None:
        """Delete what is too old, then the oldest until the file is small enough."""
        oldest = self._clock() - self._days * 86_400
        self._db.execute("DELETE FROM answers WHERE time < ?", (oldest,))
        self._drop_frames()
        while self._bytes() > self._max_bytes:
            tenth = "SELECT id FROM answers ORDER BY time LIMIT (SELECT 1 + count(*) / 10 FROM answers)"
            if not self._db.execute(f"DELETE FROM answers WHERE id IN ({tenth})").rowcount:
                break
            self._drop_frames()
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _bytes(self) -> int:
        (pages,), (size,) = (self._db.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "page_size"))
        return pages * size

    def _drop_frames(self) -> None:
        """Delete pictures that no answer is about."""
        if self._frames:
            one = "SELECT 1 FROM answers WHERE frame = frames.key"
            several = "SELECT 1 FROM answers WHERE instr(frame, ',') AND instr(frame, frames.key)"  # an index has these
            beside = f"SELECT 1 FROM answers WHERE {_BESIDE} AND instr(about, frames.key)"  # and another one these
            none = " AND ".join(f"NOT EXISTS ({some})" for some in (one, several, beside))
            self._db.execute(f"DELETE FROM frames WHERE {none}")

    def _rows(self, where: str, values: Sequence[Any]) -> list[dict[str, Any]]:
        found = self._db.execute(f"SELECT {', '.join(COLUMNS)} FROM answers {where}", tuple(values)).fetchall()
        rows = [dict(zip(COLUMNS, row, strict=True)) for row in found]
        return [{**row, "answer": json.loads(row["answer"]), "about": json.loads(row["about"] or "{}")} for row in rows]


def is_log(path: Path) -> bool:
    """Whether a file is an SQLite file, as the server keeps its answers in."""
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


class Log:
    """A file of answers that a server has kept, to read. The server may go on writing it."""

    def __init__(self, path: Path) -> None:
        """Raises LinesideError for a file without answers of a server."""
        self.path = path
        if not path.is_file():
            raise LinesideError(f"{path}: no such file; expected the answers of a server (`lineside serve --outcomes`)")
        try:
            self._db = self._open("mode=ro")
        except sqlite3.Error:  # a copy on a disk that cannot be written, where the log's index cannot be made
            try:
                self._db = self._open("mode=ro&immutable=1")
            except sqlite3.Error as error:
                raise LinesideError(f"{path}: no answers of a server can be read in it ({error})") from None

    def _open(self, how: str) -> sqlite3.Connection:
        db = sqlite3.connect(f"file:{quote(str(self.path.absolute()))}?{how}", uri=True, timeout=5.0)
        self._columns = {row[1] for row in db.execute("PRAGMA table_info(answers)")}
        if not {"id", "time", "frame", "question", "answer", "truth", "verdict"} <= self._columns:
            raise sqlite3.DatabaseError("it has no table of answers")
        return db

    def rows(self) -> list[Row]:
        """Every answer, oldest first, with what was told of it. Raises LinesideError for a damaged file."""
        names = [name if name in self._columns else f"NULL AS {name}" for name in COLUMNS]
        found: list[Row] = []
        try:
            for values in self._db.execute(f"SELECT {', '.join(names)} FROM answers ORDER BY time, id"):
                found.append(self._row(dict(zip(COLUMNS, values, strict=True))))
        except (sqlite3.Error, ValueError, TypeError, AttributeError) as error:
            raise LinesideError(f"{self.path}: damaged: {' '.join(str(error).split())[:200]}") from None
        return found

    def shadows(self) -> dict[str, tuple[str, str | None]]:
        """By the id of an answer: which other version was asked the same in shadow, and what it answered. Raises
        LinesideError for a damaged file."""
        try:
            if not self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'shadows'").fetchone():
                return {}  # a log of before there were any
            rows = self._db.execute("SELECT id, version, answer FROM shadows").fetchall()
            return {name: (version, json.loads(answer)["text"]) for name, version, answer in rows}
        except (sqlite3.Error, ValueError, TypeError, KeyError) as error:
            raise LinesideError(f"{self.path}: damaged: {' '.join(str(error).split())[:200]}") from None

    def _row(self, row: dict[str, Any]) -> Row:
        typed, about = json.loads(row["answer"]), json.loads(row["about"] or "{}")
        place = Logged(
            home=self.path, where=f"{self.path.name}, {row['id']}", id=row["id"], time=row["time"], model=row["model"],
            version=row["version"], frame=row["frame"], question=row["question"], task=typed["task"] or "",
            answer=typed["text"], decision=typed["decision"], cell=about.get("cell", ""),
            camera=about.get("camera") or "", skus=tuple(about.get("skus", ())), form=form_of(about.get("form")),
            about=about,
        )  # fmt: skip
        verdict = row["verdict"] if row["verdict"] in ("succeeded", "failed") else None
        return Row(place, True, row["truth"], verdict, row["told"])

    def picture(self, key: str) -> bytes | None:
        """A picture by its key; None if it was not kept (`--outcome-frames`)."""
        found = self._db.execute("SELECT data FROM frames WHERE key = ?", (key,)).fetchone()
        return None if found is None else bytes(found[0])
