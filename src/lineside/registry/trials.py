"""Trials: a version that runs beside the champion of some cells for a share of their requests.

shadow: it answers after the champion has, and only the champion's answer is used. canary: it really answers. A trial
ends when it is stopped, or when the version becomes the champion there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal, get_args

from lineside.errors import CheckFailed, LinesideError
from lineside.registry.promotion import check_cell, of_cell, verdict_of
from lineside.registry.store import ALL_CELLS, Registry, Version, now

Kind = Literal["shadow", "canary"]


@dataclass(frozen=True, slots=True)
class Trial:
    """`share`: of the requests, above 0 and at most 1."""

    version: Version
    cell: str
    kind: Kind
    share: float
    since: str


def trials(registry: Registry) -> list[Trial]:
    """All trials, but for those of a version that is the champion by now; that of all cells comes first."""
    found: list[Trial] = []
    for row in registry.rows("SELECT key, value FROM settings WHERE key LIKE 'trial %' ORDER BY key"):
        _, name, cell = row["key"].split(" ")
        told = json.loads(row["value"])
        version = next((one for one in registry.versions(name) if one.number == told["number"]), None)
        champion = registry.champion(name, cell) or registry.champion(name)
        if version is not None and champion is not None and champion.version.model != version.model:
            found.append(Trial(version, cell, told["kind"], told["share"], told["since"]))
    return found


def start(
    registry: Registry, version: Version, *, kind: Kind, share: float, cell: str = ALL_CELLS, force: str | None = None
) -> Trial:
    """Begin a trial, in place of the one that the name has in these cells. `force`: the reason to let a version answer
    that the gate has refused, or has not judged.

    Raises CheckFailed if the gate has refused it and LinesideError if it has not judged it, both for a canary only; and
    LinesideError for files that are not whole, or where there is no champion beside which it could run.
    """
    assert kind in get_args(Kind), kind
    check_cell(cell)
    if not 0 < share <= 1:
        raise LinesideError(f"--share {share:g}: expected a share of the requests above 0 and at most 1, such as 0.1")
    champion = registry.champion(version.name, cell) or registry.champion(version.name)
    if champion is None:
        raise LinesideError(f"{version.name} has no champion beside which it could run: `lineside promote` makes one")
    if champion.version.model == version.model:
        raise LinesideError(f"{version.label} is the champion there: a trial is for another version")
    verdict = verdict_of(registry, version.model, champion.version.model)
    if kind == "canary" and force is None and (verdict is None or verdict.outcome == "refused"):
        pair = f"{version.label} against {champion.version.label}"
        told = f"a robot acts on a canary's answers, and the gate has {'not judged' if verdict is None else 'refused'}"
        told += f" {pair}: `lineside trial start` without --canary lets it answer in shadow; --force keeps your reason"
        raise LinesideError(told) if verdict is None else CheckFailed(told)
    registry.check(registry.item(version.model), version.label)
    trial = Trial(version, cell, kind, share, now())
    with registry.transaction():
        write(registry, trial)
        registry.event(
            kind, version, cell=cell, verdict=verdict.item.hash if verdict else None,
            reason=f"{share:.1%} of requests{f': {force}' if force else ''}",
        )  # fmt: skip
    return trial


def write(registry: Registry, trial: Trial) -> None:
    """Inside a transaction: keep a trial."""
    told = {"number": trial.version.number, "kind": trial.kind, "share": trial.share, "since": trial.since}
    key = f"trial {trial.version.name} {trial.cell}"
    registry.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", key, json.dumps(told))


def stop(registry: Registry, name: str, *, cell: str = ALL_CELLS) -> Trial:
    """End a trial. Raises LinesideError if there is none."""
    registry.versions(name)
    with registry.transaction():
        found = next((one for one in trials(registry) if (one.version.name, one.cell) == (name, cell)), None)
        if found is None:
            others = ", ".join(f"{one.version.label}{of_cell(one.cell)}" for one in trials(registry)) or "none"
            raise LinesideError(f"there is no trial of {name}{of_cell(cell)}; running: {others}")
        registry.execute("DELETE FROM settings WHERE key = ?", f"trial {name} {cell}")
        registry.event("stop", found.version, cell=cell)
    return found
