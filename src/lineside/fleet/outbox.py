"""Answers on their way home: what a machine's log holds and home does not have yet.

A trigger notes every answer, and every truth that is told later, in the transaction that writes it. What home has
acknowledged is struck out. A machine or a home that is killed in between sends or gets the same again, and home knows
answers by their ids: at least once on the way, once in effect. The backlog is the log itself: while home is offline it
is bounded as the log is, by age and size, and the oldest answers go first, sent or not.
"""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from lineside.errors import LinesideError
from lineside.fleet.client import Home, Offline
from lineside.progress import say
from lineside.serving.outcomes import COLUMNS
from lineside.strict import Strict, Tuple

SENT = (*COLUMNS, "shadow_version", "shadow_answer")  # what another version answered, if one was asked
ROWS = 200  # answers sent at once
_TABLES = """
CREATE TABLE IF NOT EXISTS outbox (seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE);
INSERT OR IGNORE INTO outbox (id) SELECT id FROM answers ORDER BY time;
CREATE TRIGGER IF NOT EXISTS outbox_new AFTER INSERT ON answers
    BEGIN INSERT OR REPLACE INTO outbox (id) VALUES (NEW.id); END;
CREATE TRIGGER IF NOT EXISTS outbox_told AFTER UPDATE ON answers
    BEGIN INSERT OR REPLACE INTO outbox (id) VALUES (NEW.id); END;
CREATE TRIGGER IF NOT EXISTS outbox_shadow AFTER INSERT ON shadows
    BEGIN INSERT OR REPLACE INTO outbox (id) VALUES (NEW.id); END;
CREATE TRIGGER IF NOT EXISTS outbox_gone AFTER DELETE ON answers
    BEGIN DELETE FROM outbox WHERE id = OLD.id; END;
"""


class Reply(Strict):
    """What home says of answers: ids that it refused, and why; keys of pictures that it lacks."""

    refused: dict[str, str]
    lacks: Annotated[Tuple[str], Field(max_length=8 * ROWS)]


class Outbox:
    """The answers of a log that wait. Used by one thread; the log must exist."""

    def __init__(self, path: Path, *, machine: str) -> None:
        """Raises LinesideError if the file cannot be used."""
        self._path, self._machine = path, machine
        try:
            place = f"{path.resolve().as_uri()}?mode=rw"
            self._db = sqlite3.connect(place, isolation_level=None, timeout=10.0, uri=True)
            if not self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'outbox_shadow'").fetchone():
                self._db.executescript(f"BEGIN IMMEDIATE; {_TABLES} COMMIT;")
        except sqlite3.Error as error:
            raise LinesideError(f"{path}: cannot be used as a log of answers ({error})") from None

    @property
    def waiting(self) -> int:
        """Answers that home does not have."""
        return self._db.execute("SELECT count(*) FROM outbox").fetchone()[0]

    def send(self, home: Home) -> int:
        """Send the answers that wait for longest; returns how many. Raises Offline, and LinesideError for a log that
        cannot be read or written."""
        try:
            rows = self._first()
            if not rows:
                return 0
            body = {"machine": self._machine, "answers": [answer for _, answer in rows]}
            try:
                reply = Reply.model_validate_json(home.send(json.dumps(body).encode()))
            except ValidationError:
                raise Offline(f"{home.url}: its reply to answers cannot be read") from None
            for key in reply.lacks:
                for (data,) in self._db.execute("SELECT data FROM frames WHERE key = ?", (key,)).fetchall():
                    home.send_frame(key, data)
            for name, why in reply.refused.items():
                say(f"serve: home refuses the answer {name}: {why[:200]}; it stays here")
            self._db.execute("BEGIN IMMEDIATE")
            with self._db:  # a transaction that stayed open would keep the server from writing its log
                self._db.executemany("DELETE FROM outbox WHERE seq = ?", [(seq,) for seq, _ in rows])
            return len(rows)
        except sqlite3.Error as error:
            raise LinesideError(f"{self._path}: {error}") from None

    def _first(self) -> list[tuple[int, dict[str, Any]]]:
        columns = ", ".join([*(f"answers.{name}" for name in COLUMNS), "shadows.version", "shadows.answer"])
        joined = "outbox JOIN answers ON answers.id = outbox.id LEFT JOIN shadows ON shadows.id = outbox.id"
        query = f"SELECT seq, {columns} FROM {joined} ORDER BY seq LIMIT {ROWS}"
        return [(seq, dict(zip(SENT, row, strict=True))) for seq, *row in self._db.execute(query).fetchall()]
