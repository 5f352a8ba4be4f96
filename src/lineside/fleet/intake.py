"""Answers that machines send home: one log of all machines, in the format of a machine's own.

An answer is known by its id. One that comes again changes nothing; the truth that was told last counts. Who sent an
answer first is the only one who may change it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator

from lineside.errors import LinesideError
from lineside.fleet.outbox import ROWS
from lineside.images import image_key
from lineside.judgement.schema import TypedAnswer
from lineside.serving.api import Strict
from lineside.serving.outcomes import COLUMNS, Outcomes, Told

PRUNE_EVERY = 4096  # answers
_TABLES = """
CREATE TABLE IF NOT EXISTS origins (id TEXT PRIMARY KEY, machine TEXT NOT NULL, sender TEXT NOT NULL);
"""
_INSERT = f"""
INSERT INTO answers ({", ".join(COLUMNS)}) VALUES ({", ".join("?" * len(COLUMNS))})
ON CONFLICT (id) DO UPDATE SET truth = excluded.truth, verdict = excluded.verdict, told = excluded.told
WHERE excluded.told IS NOT NULL AND (answers.told IS NULL OR excluded.told > answers.told)
"""
Short = Annotated[str, Field(max_length=200)]


class SentAnswer(Strict):
    """A row of a machine's log."""

    id: Annotated[str, Field(pattern="^[A-Za-z0-9._-]{1,100}$")]
    time: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    model: Short
    version: Short
    frame: Annotated[str, Field(pattern="^([0-9a-f]{32}(,[0-9a-f]{32}){0,63})?$")]
    question: Annotated[str, Field(max_length=1 << 16)]
    answer: Annotated[str, Field(max_length=1 << 20)]
    truth: Annotated[str, Field(max_length=1000)] | None
    verdict: Told | None
    told: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None
    about: Annotated[str, Field(max_length=1 << 16)] | None = None
    shadow_version: Short | None = None
    shadow_answer: Annotated[str, Field(max_length=1 << 20)] | None = None

    @property
    def pictures(self) -> list[str]:
        """The keys of the frame's pictures, and of those beside it."""
        beside = json.loads(self.about or "{}").get("beside", ())
        return [key for key in (*self.frame.split(","), *(one["key"] for one in beside)) if key]

    @field_validator("about")
    @classmethod
    def _plain(cls, about: str | None) -> str | None:
        try:
            keys = [one["key"] for one in json.loads(about or "{}").get("beside", ())]
            known = all(re.fullmatch("[0-9a-f]{32}", key) for key in keys)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            known = False
        if not known:
            raise ValueError("it does not say which pictures stood beside the frame")
        return about

    @field_validator("answer", "shadow_answer")
    @classmethod
    def _typed(cls, answer: str | None) -> str | None:
        if answer is not None:
            TypedAnswer.model_validate_json(answer)
        return answer


class Sent(Strict):
    """`POST /v1/answers`. Each answer is read by itself, so that a bad one holds up no other."""

    machine: Annotated[str, Field(min_length=1, max_length=64)]
    answers: Annotated[list[dict[str, Any]], Field(max_length=ROWS)]


class Intake(Outcomes):
    """The log of all machines. Used by one thread."""

    def __init__(self, path: Path, *, days: float, max_bytes: int, frames: bool) -> None:
        """Raises LinesideError if the file cannot be opened."""
        super().__init__(path, days=days, max_bytes=max_bytes, frames=frames)
        self._db.execute("PRAGMA synchronous = FULL")  # what was acknowledged holds after a power cut
        self._db.executescript(_TABLES)
        self._since = 0

    def take(self, sent: Sent, sender: str) -> dict[str, Any]:
        """Keep answers, all at once. Returns the reply: those that are refused, and pictures that are lacking.

        Raises sqlite3.Error if they cannot be written; then none was.
        """
        refused: dict[str, str] = {}
        rows = list(self._readable(sent.answers, refused))
        self._db.execute("BEGIN IMMEDIATE")
        with self._db:
            for row in rows:
                self._db.execute("INSERT OR IGNORE INTO origins VALUES (?, ?, ?)", (row.id, sent.machine, sender))
                (owner,) = self._db.execute("SELECT sender FROM origins WHERE id = ?", (row.id,)).fetchone()
                if owner != sender:
                    refused[row.id] = "another machine has sent an answer of this id"
                    continue
                self._db.execute(_INSERT, [getattr(row, name) for name in COLUMNS])
                if row.shadow_version is not None and row.shadow_answer is not None:
                    shadow = (row.id, row.shadow_version, row.shadow_answer)
                    self._db.execute("INSERT OR IGNORE INTO shadows VALUES (?, ?, ?)", shadow)
        self._since += len(rows)
        self._bound()
        return {"refused": refused, "lacks": self._lacks(rows)}

    def take_frame(self, key: str, data: bytes) -> None:
        """Keep a picture. Raises LinesideError if it is not that of the key."""
        if image_key(data) != key:
            raise LinesideError("the picture is not that of its key")
        if self._frames:
            self._db.execute("INSERT OR IGNORE INTO frames VALUES (?, ?)", (key, data))
            self._bound()

    def _bound(self) -> None:
        """Prune now and then, and at once if the file is too large, whatever it is that came."""
        if self._since >= PRUNE_EVERY or self._bytes() > self._max_bytes:
            self._since = 0
            self.prune()
            self._db.execute("DELETE FROM origins WHERE id NOT IN (SELECT id FROM answers)")

    def _readable(self, answers: Sequence[Mapping[str, Any]], refused: dict[str, str]) -> Iterator[SentAnswer]:
        for answer in answers:
            try:
                yield SentAnswer.model_validate(answer)
            except ValidationError as error:
                first = error.errors(include_url=False, include_input=False, include_context=False)[0]
                refused[str(answer.get("id"))[:100]] = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"[:200]

    def _lacks(self, rows: Sequence[SentAnswer]) -> list[str]:
        if not self._frames:
            return []
        keys = dict.fromkeys(key for row in rows for key in row.pictures)
        return [key for key in keys if not self._db.execute("SELECT 1 FROM frames WHERE key = ?", (key,)).fetchone()]
