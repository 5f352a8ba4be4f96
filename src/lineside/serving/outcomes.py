"""What became of answers: each is kept for a while, the truth can be told later, and the verifier judges it.

Off by default. One SQLite file, bounded in size and age: the oldest answers go first, with their pictures. Pictures are
kept only if asked for; without them a frame is known by the hash of its bytes. Anything can be deleted.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from lineside.errors import LinesideError
from lineside.images import image_key
from lineside.judgement.schema import TypedAnswer
from lineside.judgement.typed import Form
from lineside.types import Target
from lineside.verify.verifiers import verify, with_truth

Told = Literal["right", "wrong", "unknown"]
PRUNE_EVERY = 64  # answers
COLUMNS = ("id", "time", "model", "version", "frame", "question", "answer", "truth", "verdict", "told")
_TABLES = """
CREATE TABLE IF NOT EXISTS answers (id TEXT PRIMARY KEY, time REAL, model TEXT, version TEXT, frame TEXT, question TEXT,
    answer TEXT, truth TEXT, verdict TEXT, told REAL);
CREATE INDEX IF NOT EXISTS answers_time ON answers (time);
CREATE INDEX IF NOT EXISTS answers_frame ON answers (frame);
CREATE INDEX IF NOT EXISTS answers_frames ON answers (frame) WHERE instr(frame, ',');
CREATE TABLE IF NOT EXISTS frames (key TEXT PRIMARY KEY, data BLOB);
"""


def judge_truth(answer: str | None, truth: str, form: Form | None) -> Told | None:
    """Whether an answer is right if `truth` is the truth; None if `truth` is no answer to the question.

    "unknown" where the checkpoint does not say how an answer is compared: a number whose resolution it does not have.
    """
    target = form.target if form is not None else Target("exact", "record")
    if target.kind == "choice" and not target.options:  # they differ from frame to frame
        target = Target("exact", "record")
    if form is not None and target.kind == "number":
        if form.resolution is None and form.unit:
            return "unknown" if with_truth(target, truth) is not None else None
        target = replace(target, resolution=form.resolution or 1.0, period=form.period)
    if (known := with_truth(target, truth)) is None:
        return None
    return "right" if answer is not None and verify(answer, known).exact else "wrong"


class Outcomes:
    """The file of answers and truths. Used by one thread."""

    def __init__(
        self, path: Path, *, days: float, max_bytes: int, frames: bool, clock: Callable[[], float] = time.time
    ) -> None:
        """Raises LinesideError if the file cannot be opened."""
        self.path, self._days, self._max_bytes, self._frames, self._clock = path, days, max_bytes, frames, clock
        self._count = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None, timeout=1.0)
            for pragma in ("auto_vacuum = FULL", "journal_mode = WAL", "synchronous = NORMAL"):
                self._db.execute(f"PRAGMA {pragma}")
            self._db.executescript(_TABLES)
        except (OSError, sqlite3.Error) as error:
            raise LinesideError(
                f"{path}: cannot be used for outcomes ({error}); expected a new file, or its own"
            ) from None

    def keep(
        self, name: str, pictures: Sequence[bytes], question: str, typed: TypedAnswer, *, model: str, version: str
    ) -> None:
        """Keep an answer. A full disk or a busy file loses the answer, never the reply."""
        frame = ",".join(map(image_key, pictures))
        row = (name, self._clock(), model, version, frame, question, typed.model_dump_json())
        try:
            self._db.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, NULL, NULL, NULL)", row)
            if self._frames:
                pairs = [(image_key(data), data) for data in pictures]
                self._db.executemany("INSERT OR IGNORE INTO frames VALUES (?, ?)", pairs)
            self._count += 1
            if self._count % PRUNE_EVERY == 1:
                self.prune()
        except sqlite3.Error:
            pass

    def find(self, name: str) -> dict[str, Any] | None:
        """An answer by its id."""
        return next(iter(self._rows("WHERE id = ?", (name,))), None)

    def last(self, count: int) -> list[dict[str, Any]]:
        """The last answers, newest first."""
        return self._rows("ORDER BY time DESC LIMIT ?", (count,))

    def tell(self, name: str, truth: str, verdict: Told) -> None:
        """Keep the truth about an answer."""
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
            self._db.execute(f"DELETE FROM frames WHERE NOT EXISTS ({one}) AND NOT EXISTS ({several})")

    def _rows(self, where: str, values: Sequence[Any]) -> list[dict[str, Any]]:
        found = self._db.execute(f"SELECT {', '.join(COLUMNS)} FROM answers {where}", tuple(values)).fetchall()
        rows = [dict(zip(COLUMNS, row, strict=True)) for row in found]
        return [{**row, "answer": json.loads(row["answer"])} for row in rows]
