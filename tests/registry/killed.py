"""Run by test_killed.py in a process with preload.c preloaded: kills children at every change of a file, one after the
other, and looks at the registry that they leave. Prints how many calls each operation makes, as JSON."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

from lineside.registry.policy import Policy, clean
from lineside.registry.promotion import line_of, promote, roll_back
from lineside.registry.store import DATABASE, Registry
from tests.registry.conftest import add
from tests.torture.child import library

FOLDER = Path(sys.argv[1])


def dies(n: int, half: bool, operation: Callable[[Registry], object]) -> bool:
    """Whether a child that runs the operation is killed by its n-th call."""
    child = os.fork()
    if child == 0:
        with Registry(FOLDER) as registry:  # opening a file that a killed process left is part of it
            preload = library()
            preload.arm(n, int(half))
            operation(registry)
            preload.arm(0, 0)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL) or status == 0, status
    return os.WIFSIGNALED(status)


def whole() -> None:
    """The file is sound, and everything that it keeps is there."""
    db = sqlite3.connect(FOLDER / DATABASE)
    assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert db.execute("PRAGMA foreign_key_check").fetchall() == []
    db.close()
    with Registry(FOLDER) as registry:
        for item in registry.items("model"):
            if item.kept:
                registry.check(item, item.hash)


def at_every_call(operation: Callable[[Registry], object], check: Callable[[Registry, bool], None]) -> int:
    """Kill the operation at its 1st, 2nd ... call, until it comes through. `check`: (registry, killed)."""
    n = 0
    while True:
        n += 1
        for half in (False, True):
            killed = dies(n, half, operation)
            whole()
            with Registry(FOLDER) as registry:
                check(registry, killed)
        if not killed:
            return n - 1


def champion(registry: Registry) -> int:
    found = registry.champion("bins")
    assert found is not None
    return found.version.number


def promoted(registry: Registry, killed: bool) -> None:
    assert champion(registry) in ((1, 2) if killed else (2,))
    promotions = [event for event in registry.events("bins") if event["what"] == "promote"]
    if champion(registry) == 2:
        assert promotions[-1]["number"] == 2 and [v.number for v in line_of(registry, "bins")] == [2, 1]
        roll_back(registry, "bins")
    else:
        assert [v.number for v in line_of(registry, "bins")] == [1]


def rolled_back(registry: Registry, killed: bool) -> None:
    assert champion(registry) in ((1, 2) if killed else (1,))
    if champion(registry) == 1:
        promote(registry, registry.version("bins@2"), force="x")


def registered(registry: Registry, killed: bool) -> None:
    names = registry.names()
    assert "kits" in names or killed
    clean(registry, Policy(9))
    assert not list((registry.folder / "tmp").iterdir())
    assert {path.name for path in (registry.folder / "models").iterdir()} == {
        item.hash for item in registry.items("model") if item.kept
    }
    if "kits" in names:  # once more from the start
        with registry.transaction():
            (version,) = registry.versions("kits")
            for table, key in (("events", "name"), ("versions", "name")):
                registry.execute(f"DELETE FROM {table} WHERE {key} = 'kits'")
            registry.execute("DELETE FROM items WHERE hash = ?", version.model)
        clean(registry, Policy(9))


def cleaned(registry: Registry, killed: bool) -> None:
    (old,) = (version for version in registry.versions("old") if version.number == 1)
    item = registry.item(old.model)
    assert not item.kept or killed
    assert registry.version("old@2") and registry.item(registry.version("old@2").model).kept
    assert add(registry, "old", "c") == old and registry.item(old.model).kept
    registry.check(registry.item(old.model), "old@1")


def main() -> None:
    with Registry(FOLDER, create=True) as registry:
        one, _ = add(registry, "bins", "a"), add(registry, "bins", "b")
        promote(registry, one)
    counts = {}
    counts["promote"] = at_every_call(lambda r: promote(r, r.version("bins@2"), force="x"), promoted)
    with Registry(FOLDER) as registry:
        promote(registry, registry.version("bins@2"), force="x")
    counts["rollback"] = at_every_call(lambda r: roll_back(r, "bins"), rolled_back)
    counts["register"] = at_every_call(lambda r: add(r, "kits", "k"), registered)
    with Registry(FOLDER) as registry:
        add(registry, "old", "c"), add(registry, "old", "d")
    counts["gc"] = at_every_call(lambda r: clean(r, Policy(1)), cleaned)
    print(json.dumps(counts))


main()
