"""The suites that the registry keeps, by name, and those that its owner leaves out of gates.

A suite whose records are wrong measures nothing, and the gate refuses every challenger for it. Only a person can say so
for sure: a suite is left out by name, with a reason, which is kept and shown with every later verdict. It stays in the
registry, and can be taken back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lineside.errors import LinesideError
from lineside.registry.store import Item, Registry, Version
from lineside.strict import nearest

_LEFT_OUT = "suites left out"  # key of the settings: reasons by the suite's hash


@dataclass(frozen=True, slots=True)
class Suite:
    """A kept suite. `name`: RUN/SPLIT, with digits of its digest where an older one has the same. `left_out`: the
    reason why gates leave it out; None: they ask it."""

    name: str
    item: Item
    left_out: str | None = None


def every_suite(registry: Registry) -> list[Suite]:
    """All kept suites, the oldest first."""
    reasons = _reasons(registry)
    names: dict[str, Suite] = {}
    for item in registry.items("suite"):
        if item.kept:
            name = f"{item.about['run']}/{item.about['split']}"
            name = name if name not in names else f"{name}-{item.about['digest'][:6]}"
            names[name] = Suite(name, item, reasons.get(item.hash))
    return list(names.values())


def suites_of(registry: Registry) -> dict[str, Item]:
    """The suites that a gate asks, by name, the oldest first. Raises LinesideError if there are none."""
    every = every_suite(registry)
    found = {suite.name: suite.item for suite in every if suite.left_out is None}
    if not found and every:
        raise LinesideError(
            f"{registry.folder}: every suite is left out ({', '.join(suite.name for suite in every)}): take one back "
            "with `lineside registry take-back SUITE`, or register a run with right records"
        )
    if not found:
        raise LinesideError(
            f"{registry.folder} keeps no suite: `lineside register RUN` brings those of a run whose samples are still "
            "there"
        )
    return found


def left_out_of(registry: Registry) -> dict[str, str]:
    """The reasons of the suites that gates leave out, by name."""
    return {suite.name: suite.left_out for suite in every_suite(registry) if suite.left_out is not None}


def leave_out(registry: Registry, name: str, reason: str) -> list[Version]:
    """Leave a suite out of later gates; a new reason replaces an older one. Returns the versions that were trained in
    the suite's run, and may have learnt what is wrong in it.

    Raises LinesideError for an unknown suite and for an empty reason.
    """
    if not reason.strip():
        raise LinesideError("every later verdict shows the reason: write one, such as 'the scanner of line 2 slipped'")
    with registry.transaction():
        suite = _named(registry, name)
        _keep(registry, {**_reasons(registry), suite.item.hash: reason.strip()})
        registry.event("leave out", reason=f"{name}: {reason.strip()}")
    run = suite.item.about["run"]
    return [version for version in registry.versions() if registry.item(version.model).about["run"] == run]


def take_back(registry: Registry, name: str) -> None:
    """Let later gates ask a suite again. Raises LinesideError for one that is unknown or not left out."""
    with registry.transaction():
        suite = _named(registry, name)
        if suite.left_out is None:
            out = ", ".join(left_out_of(registry)) or "none"
            raise LinesideError(f"{name} is not left out: gates ask it already (left out: {out})")
        _keep(registry, {hash: why for hash, why in _reasons(registry).items() if hash != suite.item.hash})
        registry.event("take back", reason=f"{name}: was left out: {suite.left_out}")


def _named(registry: Registry, name: str) -> Suite:
    every = every_suite(registry)
    for suite in every:
        if suite.name == name:
            return suite
    names = [suite.name for suite in every]
    raise LinesideError(
        f"no suite named {name!r} in {registry.folder}{nearest(name, names)} (suites here: "
        f"{', '.join(names) or 'none'})"
    )


def _reasons(registry: Registry) -> Mapping[str, str]:
    return registry.setting(_LEFT_OUT) or {}


def _keep(registry: Registry, reasons: Mapping[str, str]) -> None:
    registry.set_setting(_LEFT_OUT, reasons)
