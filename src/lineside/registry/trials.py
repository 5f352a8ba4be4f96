"""Trials: a version runs beside the champion of some cells for a share of their requests, in shadow or as a canary.

A trial ends when it is stopped, or when its version becomes the champion there (`promotion`).
"""

from __future__ import annotations

from typing import get_args

from lineside.errors import CheckFailed, LinesideError
from lineside.registry.promotion import check_cell, check_kept, check_reason, of_cell, verdict_of
from lineside.registry.store import ALL_CELLS, Registry, Trial, TrialKind, Version, now


def start(
    registry: Registry, version: Version, *, kind: TrialKind, share: float, cell: str = ALL_CELLS,
    force: str | None = None,
) -> tuple[Trial, Trial | None]:  # fmt: skip
    """Begin a trial; returns it, and the one of this name in these cells in whose place it comes. `force`: the reason
    to let a version answer that the gate has refused, or has not judged.

    Raises CheckFailed if the gate has refused it and LinesideError if it has not judged it, both for a canary only; and
    LinesideError for files that are not whole, or where there is no champion beside which it could run.
    """
    assert kind in get_args(TrialKind), kind
    check_cell(cell)
    check_reason(force)
    if not 0 < share <= 1:
        raise LinesideError(f"--share {share:g}: expected a share of the requests above 0 and at most 1, such as 0.1")
    registry.check(registry.item(version.model), version.label)  # before the transaction, since it takes a while
    with registry.transaction():
        check_kept(registry, version)
        verdict = _allowed(registry, version, kind, cell, force)
        trial, others = Trial(version, cell, kind, share, now()), registry.trials()
        before = next((one for one in others if (one.version.name, one.cell) == (version.name, cell)), None)
        registry.set_trials([trial, *(one for one in others if one != before)])
        why = f"{share:.1%} of requests{f': {force}' if force else ''}"
        registry.event(kind, version, cell=cell, verdict=verdict, reason=why)
    return trial, before


def _allowed(registry: Registry, version: Version, kind: TrialKind, cell: str, force: str | None) -> str | None:
    """The hash of the gate's verdict about a version beside the champion of a cell, if there is one. Raises if it may
    not run there."""
    champion = registry.answering(version.name, cell)
    if champion is None:
        raise LinesideError(f"{version.name} has no champion beside which it could run: `lineside promote` makes one")
    if champion.version == version:
        raise LinesideError(f"{version.label} is the champion there: a trial is for another version")
    verdict = verdict_of(registry, version.model, champion.version.model)
    if kind == "canary" and force is None and (verdict is None or verdict.outcome == "refused"):
        pair = f"{version.label} against {champion.version.label}"
        told = f"a robot acts on a canary's answers, and the gate has {'not judged' if verdict is None else 'refused'}"
        told += f" {pair}: `lineside trial start` without --canary lets it answer in shadow; --force keeps your reason"
        if verdict is None:
            raise LinesideError(f"{told}; `lineside gate {version.label}{of_cell(cell)}` judges it")
        raise CheckFailed(told)
    return verdict.item.hash if verdict else None


def stop(registry: Registry, name: str, *, cell: str = ALL_CELLS) -> Trial:
    """End a trial. Raises LinesideError if there is none."""
    registry.versions(name)
    with registry.transaction():
        running = registry.trials()
        found = next((one for one in running if (one.version.name, one.cell) == (name, cell)), None)
        if found is None:
            others = ", ".join(f"{one.version.label}{of_cell(one.cell)}" for one in running) or "none"
            raise LinesideError(f"there is no trial of {name}{of_cell(cell)}; running: {others}")
        registry.set_trials(one for one in running if one != found)
        registry.event("stop", found.version, cell=cell)
    return found
