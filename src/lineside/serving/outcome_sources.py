"""Where outcomes are read from: tables, servers' logs, and what says how answers are compared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lineside.data.regions import roi_of_samples
from lineside.data.store import sample_shards
from lineside.data.tabular import AS_FOUND
from lineside.data.tabular import Form as Written
from lineside.errors import LinesideError
from lineside.judgement.outcomes import Account, Logged, Row, read_file
from lineside.judgement.typed import Form, forms_in, read_forms
from lineside.registry.listing import RECIPE
from lineside.serving.outcomes import Log, is_log

EXPECTED = "a table (.csv, .tsv, .jsonl) or the file of `lineside serve --outcomes`"


@dataclass(frozen=True)
class Sources:
    """Where outcomes and what belongs to them lie. `files`: tables and servers' logs. `answers`: logs of answers that
    `files` tell about. `like`: a checkpoint or samples, which say how answers are compared. `frames`: pictures.
    `written`: how tables, and the numbers of their truths, are written. `since`: seconds since 1970; None: of any
    time."""

    files: tuple[Path, ...]
    answers: tuple[Path, ...] = ()
    like: Path | None = None
    frames: Path | None = None
    columns: Mapping[str, str] | None = None
    written: Written = AS_FOUND
    since: float | None = None

    def read(self, account: Account) -> tuple[list[Row], list[Logged], dict[Path, Log]]:
        """The rows of the files, the logged answers, and the servers' logs. Raises LinesideError for what cannot be
        read."""
        logs: dict[Path, Log] = {}

        def rows_of(path: Path, into: Account) -> list[Row]:
            if not path.is_file():
                raise LinesideError(f"{path}: {'a folder' if path.is_dir() else 'no such file'}; expected {EXPECTED}")
            if not is_log(path):
                return read_file(path, self.columns or {}, into, self.written)
            logs[path] = Log(path)
            return logs[path].rows()

        files, also = (list({path.resolve(): path for path in paths}.values()) for paths in (self.files, self.answers))
        rows = [row for path in files for row in rows_of(path, account)]
        beside = Account()
        answers = [row.place for path in also for row in rows_of(path, beside) if row.has_answer]
        if beside.left_out:
            account.remarks.append(f"{beside.read:,} rows of the answers cannot be read: {beside.told()}")
        answers += [row.place for row in rows if row.has_answer]
        account.answers = len(answers)
        return rows, answers, logs


def like(path: Path | None) -> tuple[dict[str, Form], dict[str, Any] | None]:
    """How the answers of tasks are compared, and how pictures are cut, by a checkpoint, a run or samples."""
    if path is None:
        return {}, None
    if path.is_dir() and sample_shards(path):
        return forms_in(path), roi_of_samples(path)
    if (path / RECIPE).is_file():
        from lineside.registry.intake import find  # loads torch

        path = find(path).checkpoint
    config = path / "config.json"
    if not config.is_file():
        raise LinesideError(f"{path}: neither a checkpoint, nor a run, nor a folder of samples")
    if not (forms := read_forms(path)):
        raise LinesideError(f"{path}: it does not say how answers are compared: `lineside evaluate` writes tasks.json")
    try:
        return forms, json.loads(config.read_text(encoding="utf-8")).get("roi")
    except (OSError, ValueError, AttributeError) as error:
        raise LinesideError(f"{config}: cannot be read ({error})") from None
