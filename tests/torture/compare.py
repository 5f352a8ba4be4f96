"""What a verb leaves in a folder, without clocks: two that are equal did the same work.

All bytes count but these: `CLOCKS` in JSON, the cost table and dates of a report, the order of a ledger's lines, the
names and times of TensorBoard's events, times and file format of a registry.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

CLOCKS = ("time", "date", "seconds", "matrix_rate", "latency_note", "made", "at", "since", "registered")
LOCKS = ("lock",)  # of the feature store, which stays


def contents(folder: Path) -> dict[str, str]:
    """The hash of each file without clocks, by its name below the folder; empty folders too."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir():
            if not any(path.iterdir()):
                found[name] = "an empty folder"
        elif path.name not in LOCKS and not path.name.endswith(("-wal", "-shm")):
            kind = next((k for k in _PLAIN if re.search(k, name)), None)
            found[re.sub(r"events\.out.*", "events", name)] = _hash(_PLAIN[kind](path) if kind else path.read_bytes())
    return found


def differences(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """The names that are not the same in both."""
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if k not in CLOCKS and not k.startswith("seconds")}
    return [_plain(one) for one in value] if isinstance(value, list) else value


def _json(path: Path) -> bytes:
    return json.dumps(_plain(json.loads(path.read_bytes())), sort_keys=True).encode()


def _lines(path: Path) -> bytes:
    return b"\n".join(json.dumps(_plain(json.loads(line))).encode() for line in path.read_bytes().splitlines())


def _ledger(path: Path) -> bytes:
    return b"\n".join(sorted(path.read_bytes().splitlines()))


def _page(path: Path) -> bytes:
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", "DATE", text)
    text = re.sub(r"other processes had \d+% of", "other processes had N of", text)
    table = r"<table(?:(?!</table>).)*(?:operations|FLOP|seconds)(?:(?!</table>).)*</table>"
    return re.sub(table, "COST", text, flags=re.S).encode()


def _events(path: Path) -> bytes:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    rows = [
        (value.tag, event.step, value.tensor.float_val[0] if value.tensor.float_val else value.simple_value)
        for event in EventFileLoader(str(path)).Load()
        for value in event.summary.value
        if not value.tag.startswith("seconds")
    ]
    return json.dumps(sorted(rows)).encode()


def _registry(path: Path) -> bytes:
    db = sqlite3.connect(path)
    tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
    found = {}
    for table in tables:
        columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})") if row[1] not in (*CLOCKS, "who")]
        found[table] = sorted(map(repr, db.execute(f"SELECT {', '.join(columns)} FROM {table}")))
    db.close()
    return json.dumps(found).encode()


_PLAIN: dict[str, Callable[[Path], bytes]] = {
    r"\.json$": _json,
    r"\.jsonl$": _lines,
    r"\.ledger$": _ledger,
    r"report\.html$": _page,
    r"events\.out\.": _events,
    r"registry\.sqlite$": _registry,
}
