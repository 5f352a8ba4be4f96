"""suites: which suites of the registry gates ask, and which they leave out because their records are wrong, and why.

Left out: correcting a suite. Samples are labelled again from right records; a run on them brings a suite of its own.
"""

from __future__ import annotations

import json
from pathlib import Path

from rich.text import Text

from lineside.judgement.console import new_table, show
from lineside.progress import say
from lineside.registry import suites
from lineside.registry.store import Registry


def list_suites(folder: Path, *, as_json: bool = False) -> None:
    """Print the suites that the registry keeps, and which of them gates leave out, and why."""
    with Registry(folder) as registry:
        found = suites.every_suite(registry)
    if as_json:
        shown = [
            {"suite": one.name, "n": one.item.about["n"], "scenes": one.item.about["scenes"], "kept": one.item.made,
             "digest": one.item.about["digest"], "left_out": one.left_out}
            for one in found
        ]  # fmt: skip
        print(json.dumps({"registry": str(folder), "suites": shown}, indent=2, ensure_ascii=False))
        return
    table = new_table(f"suites in {folder}")
    for column in ("suite", "n", "scenes", "kept since", "gates"):
        table.add_column(column, justify="right" if column in ("n", "scenes") else "left", no_wrap=column != "gates")
    for one in found:
        n, scenes = (f"{one.item.about[key]:,}" for key in ("n", "scenes"))
        state = "ask it" if one.left_out is None else f"leave it out: {one.left_out}"
        table.add_row(Text(one.name), n, scenes, one.item.made[:10], Text(state))
    show(table)


def leave_out(folder: Path, suite: str, reason: str, *, as_json: bool = False) -> None:
    """Let later gates leave a suite out. Raises LinesideError as `registry.suites.leave_out`."""
    with Registry(folder) as registry:
        learnt = suites.leave_out(registry, suite, reason)
    say(f"gates leave {suite} out from now on, and say so: {reason.strip()}")
    if learnt:
        labels = ", ".join(version.label for version in learnt)
        say(f"note: {labels}: trained in the run that brought it, and may have learnt what is wrong; no gate tells now")
    if as_json:
        list_suites(folder, as_json=True)


def take_back(folder: Path, suite: str, *, as_json: bool = False) -> None:
    """Let later gates ask a suite again. Raises LinesideError as `registry.suites.take_back`."""
    with Registry(folder) as registry:
        suites.take_back(registry, suite)
    say(f"gates ask {suite} again")
    if as_json:
        list_suites(folder, as_json=True)
