"""Champions: which version answers in which cells, and the one atomic step that changes it.

A promotion is an event that knows the promotion before it. So a rollback goes back step by step, as far as the first
champion. A cell without a champion of its own follows the champion of all cells; to roll back its first own promotion
makes it follow again.

A new champion needs a gate verdict for exactly this pair, challenger against the champion in whose place it comes. The
first champion of a name has nothing to be compared with. A reason given by a person replaces a verdict, and is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from lineside.errors import CheckFailed, LinesideError, TooLittleData
from lineside.registry.store import ALL_CELLS, NAME, Champion, Item, Registry, Version, now
from lineside.registry.suites import every_suite
from lineside.types import Outcome


@dataclass(frozen=True, slots=True)
class GateOutcome:
    """What a gate found of a challenger against a champion. `item`: its files, such as the page."""

    challenger: str
    champion: str
    outcome: Outcome
    item: Item
    time: str


@dataclass(frozen=True, slots=True)
class Change:
    """A change of champions. `before`, `after`: the versions that answer in the cell. `unasked`: suites that were kept
    since the verdict that allowed it."""

    before: Version | None
    after: Version
    cell: str
    apart: tuple[Champion, ...] = ()
    """Cells that keep a champion of their own."""
    unasked: tuple[str, ...] = ()


# --- verdicts of a gate


def add_verdict(
    registry: Registry, challenger: str, champion: str, outcome: Outcome, files: Mapping[str, Path],
    about: Mapping[str, Any],
) -> GateOutcome:  # fmt: skip
    """Keep the verdict of a gate about two models, given by their hashes, with its files (JSON, page).

    The newest verdict about a pair counts. Raises LinesideError as `Registry.stage` and `Registry.transaction` do.
    """
    assert outcome in get_args(Outcome), outcome
    with registry.staging() as place:
        staged = registry.stage(place, "verdict", files, {**about, "outcome": outcome})
        with registry.transaction():
            item = registry.put(staged, [("challenger", challenger), ("champion", champion)])
            registry.execute(
                "INSERT INTO verdicts (challenger, champion, outcome, item, time) VALUES (?, ?, ?, ?, ?)",
                challenger, champion, outcome, item.hash, now(),
            )  # fmt: skip
    found = verdict_of(registry, challenger, champion)
    assert found is not None
    return found


def verdict_of(registry: Registry, challenger: str, champion: str) -> GateOutcome | None:
    """The newest verdict about a pair of models, by their hashes."""
    query = "SELECT * FROM verdicts WHERE challenger = ? AND champion = ? ORDER BY id DESC LIMIT 1"
    for row in registry.rows(query, challenger, champion):
        return GateOutcome(challenger, champion, row["outcome"], registry.item(row["item"]), row["time"])
    return None


# --- promote, roll back


def promote(registry: Registry, version: Version, *, cell: str = ALL_CELLS, force: str | None = None) -> Change:
    """Make a version the champion of all cells, or of one. `force`: the reason to do so without a passed verdict.

    Raises CheckFailed (refused) or TooLittleData by the gate's verdict, and LinesideError without one, if its files are
    not whole, or if the champion of a cell comes before that of all cells. Nothing is changed then.
    """
    check_cell(cell)
    check_reason(force)
    registry.check(registry.item(version.model), version.label)  # before the transaction, since it takes a while
    with registry.transaction():
        whole, own = registry.champion(version.name), registry.champion(version.name, cell)
        if cell != ALL_CELLS and whole is None:
            raise LinesideError(
                f"{version.name} has no champion yet: the first is promoted for all cells, without --cell; a cell "
                "may then get another one"
            )
        now_there = own or whole
        check_kept(registry, version)
        if own is not None and own.version == version:
            return Change(version, version, cell, _apart(registry, version, cell))
        line = line_of(registry, version.name, cell)
        verdict = None if now_there is None else _allowed(registry, version, now_there.version, cell, force, line)
        event = registry.event(
            "promote", version, cell=cell, before=own.promotion if own else None, verdict=verdict, reason=force
        )
        registry.execute("INSERT OR REPLACE INTO champions VALUES (?, ?, ?)", version.name, cell, event)
        _end_trials(registry)
        before = now_there.version if now_there else None
        return Change(before, version, cell, _apart(registry, version, cell), _unasked(registry, verdict))


def roll_back(
    registry: Registry, name: str, *, cell: str = ALL_CELLS, to: Version | None = None, follow: bool = False
) -> Change:
    """Go back to the champion before this one, or to an earlier one (`to`). `follow`: a cell has none of its own any
    more. No verdict is asked for.

    Raises LinesideError if there is nothing before, or its files are not whole. Nothing is changed then.
    """
    check_cell(cell)
    if "@" in name:
        raise LinesideError(
            f"{name}: expected a name; `lineside rollback {name.partition('@')[0]} --to {name}` goes back to it"
        )
    registry.versions(name)
    if follow and (cell == ALL_CELLS or to is not None):
        raise LinesideError("--follow is for a cell: name it with --cell, and leave out --to")
    target = _earlier(registry, name, cell, to, follow)  # a first look, to read its files before the transaction
    after = target.version if isinstance(target, _Promotion) else target
    registry.check(registry.item(after.model), after.label)
    with registry.transaction():
        if _earlier(registry, name, cell, to, follow) != target:
            raise LinesideError(
                f"another process has just changed the champion of {name}: look at it, and run it again"
            )
        own = registry.champion(name, cell)
        assert own is not None
        if isinstance(target, _Promotion):
            registry.event("rollback", after, cell=cell, before=own.promotion)
            registry.execute("INSERT OR REPLACE INTO champions VALUES (?, ?, ?)", name, cell, target.event)
        else:
            registry.event("follow", after, cell=cell, before=own.promotion)
            registry.execute("DELETE FROM champions WHERE name = ? AND cell = ?", name, cell)
        _end_trials(registry)
        return Change(own.version, after, cell, _apart(registry, after, cell))


def line_of(registry: Registry, name: str, cell: str = ALL_CELLS) -> list[Version]:
    """The champion of a cell and those before it, to which a rollback goes, the newest first."""
    return [promotion.version for promotion in _line(registry, name, cell)]


@dataclass(frozen=True, slots=True)
class _Promotion:
    event: int
    version: Version


def _line(registry: Registry, name: str, cell: str) -> list[_Promotion]:
    own = registry.champion(name, cell)
    if own is None:
        return []
    events = {event["id"]: event for event in registry.events(name)}
    versions = {version.number: version for version in registry.versions(name)}
    line, event = [], own.promotion
    while event is not None:
        line.append(_Promotion(event, versions[events[event]["number"]]))
        event = events[event]["before"]
    return line


def _earlier(registry: Registry, name: str, cell: str, to: Version | None, follow: bool) -> _Promotion | Version:
    """The promotion to go back to, or the version of all cells that a cell then follows."""
    line, whole = _line(registry, name, cell), registry.champion(name)
    if whole is None:
        raise LinesideError(f"{name} has no champion, so there is nothing to roll back")
    where = f" in {cell}" if cell else ""
    if not line:
        raise LinesideError(
            f"{cell} has no champion of its own: it follows {whole.version.label}. `lineside rollback {name}` rolls "
            "back all cells"
        )
    if follow or (to is None and len(line) == 1 and cell):
        return whole.version
    if to is not None:
        for promotion in line[1:]:
            if promotion.version == to:
                return promotion
        earlier = ", ".join(dict.fromkeys(p.version.label for p in line[1:])) or "none"
        raise LinesideError(f"{to.label} was no champion before {line[0].version.label}{where}; earlier: {earlier}")
    if len(line) == 1:
        raise LinesideError(f"{line[0].version.label} is the first champion of {name}: there is nothing before it")
    return line[1]


def _allowed(
    registry: Registry, challenger: Version, champion: Version, cell: str, force: str | None, line: Sequence[Version]
) -> str | None:
    """The hash of the verdict that allows a promotion, or None if none is needed. Raises if it is not allowed."""
    if challenger == champion:  # a cell is to keep what answers there already
        return None
    verdict = verdict_of(registry, challenger.model, champion.model)
    if verdict is not None and verdict.outcome == "passed":
        return verdict.item.hash
    if force is not None:
        return None if verdict is None else verdict.item.hash
    pair = f"{challenger.label} against {champion.label}"
    there = of_cell(cell)
    anyway = f"`lineside promote {challenger.label}{there} --force 'REASON'` promotes it without, and keeps the reason"
    if challenger in line:
        back = f"lineside rollback {challenger.name} --to {challenger.label}{there}"
        anyway = f"`{back}` goes back to it, since it was champion"
    if verdict is None:
        raise LinesideError(
            f"there is no gate verdict for {pair}, and a new champion needs one that passed: `lineside gate "
            f"{challenger.label}{there}` makes it. {anyway}"
        )
    told = f"the gate's verdict for {pair} of {verdict.time}: {verdict.outcome}. {anyway}"
    raise TooLittleData(told) if verdict.outcome == "too little data" else CheckFailed(told)


def _unasked(registry: Registry, verdict: str | None) -> tuple[str, ...]:
    """The suites that gates ask now, and that the gate of a verdict did not."""
    asked = registry.item(verdict).about.get("suites") if verdict is not None else None  # verdicts of before do not say
    every = every_suite(registry) if asked is not None else []
    return tuple(one.name for one in every if one.left_out is None and one.item.about["digest"] not in asked)


def of_cell(cell: str) -> str:
    """The option of a command that a message names."""
    return f" --cell {cell}" if cell != ALL_CELLS else ""


def _apart(registry: Registry, version: Version, cell: str) -> tuple[Champion, ...]:
    if cell != ALL_CELLS:
        return ()
    return tuple(found for found in registry.champions(version.name) if found.cell != ALL_CELLS)


def _end_trials(registry: Registry) -> None:
    """A trial is over where its version has become the champion."""
    registry.set_trials(
        trial for trial in registry.trials()
        if (there := registry.answering(trial.version.name, trial.cell)) is None or there.version != trial.version
    )  # fmt: skip


def check_reason(force: str | None) -> None:
    """Raises LinesideError for a reason that says nothing."""
    if force is not None and not force.strip():
        raise LinesideError("--force keeps the reason in the history: write one, such as --force 'line 3 stands still'")


def check_kept(registry: Registry, version: Version) -> None:
    """Inside a transaction, after its files were read: raises LinesideError if they were deleted meanwhile."""
    if not registry.item(version.model).kept:
        raise LinesideError(f"{version.label}: its files have just been deleted; register it again")


def check_cell(cell: str) -> None:
    """Raises LinesideError for what is no cell."""
    if cell != ALL_CELLS and not NAME.fullmatch(cell):
        raise LinesideError(f"cell {cell!r}: expected up to 64 letters, digits, _, . and -, such as cell-7")
