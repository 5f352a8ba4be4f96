"""models: the registry from the command line: what is there, what came from what, promote, roll back.

A model is known by the content of its files, and by NAME@VERSION. `register` brings it in with its recipe, evaluations,
suites and lineage; `promote` makes it the champion, in one atomic step that running servers follow; `rollback` goes
back. Left out: a registry on several machines at once (SQLite's log needs one machine).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lineside.judgement.console import ABSENT, comparison_table, new_table, percent, show
from lineside.progress import say
from lineside.registry.difference import Difference
from lineside.registry.difference import diff as differ
from lineside.registry.listing import EVERYWHERE, Exact, Line, Origin, cell_name, lines, origin
from lineside.registry.policy import Policy, clean, policy_of, set_policy, size_of
from lineside.registry.promotion import Change, roll_back
from lineside.registry.promotion import promote as promote_version
from lineside.registry.store import Registry, short


def list_models(folder: Path, name: str | None, *, as_json: bool = False) -> None:
    """Print all versions, those of a name, or all that is known of one (NAME@VERSION). Raises LinesideError for a name
    or version that is not known."""
    with Registry(folder) as registry:
        if name is not None and "@" in name:
            _show_origin(origin(registry, registry.version(name)), as_json=as_json)
            return
        found = lines(registry, name)
    if as_json:
        _print({"registry": str(folder), "models": [line.model_dump(mode="json") for line in found]})
        return
    table = new_table(f"models in {folder}")
    for column in ("model", "state", "exact", "on", "from", "hash", "size", "registered"):
        table.add_column(column, justify="right" if column in ("exact", "size") else "left", no_wrap=True)
    for line in found:
        on = line.exact
        table.add_row(
            f"{line.name}@{line.version}",
            "; ".join([_state(line), *_trials(line)]),
            percent(on.exact if on else None),
            f"{_suite(on)} {on.mode}, n {on.n:,}{' (simulated)' if on.simulated else ''}" if on else ABSENT,
            line.parent or " > ".join(line.stages) or ABSENT,
            short(line.model),
            megabytes(line.bytes) if line.kept else "deleted",
            line.registered[:16].replace("T", " "),
        )
    show(table)


def _show_origin(found: Origin, *, as_json: bool) -> None:
    if as_json:
        _print(found.model_dump(mode="json"))
        return
    table = new_table(f"{found.name}@{found.version}: {_state(found)}")
    table.add_column("what")
    table.add_column("which", overflow="fold")
    for trial in _trials(found):
        table.add_row("on trial", trial)
    table.add_row("model", found.model)
    table.add_row("files", f"{found.path}, {megabytes(found.bytes)}" if found.path else "deleted; this is the record")
    table.add_row("trained from", found.parent or "no registered version")
    table.add_row("stages", " > ".join(found.stages) or ABSENT)
    table.add_row("trained", found.trained or ABSENT)
    table.add_row("registered", found.registered)
    for name, hash in found.data.items():
        table.add_row(f"data {name}", hash)
    table.add_row("recipe", found.recipe or ABSENT)
    for one in found.evaluations:
        exact = f"exact {percent(one.exact)} ({percent(one.interval[0])} to {percent(one.interval[1])}), n {one.n:,}"
        simulated, suite = " (simulated)" if one.simulated else "", short(one.suite) if one.suite else "not kept"
        table.add_row(f"{_suite(one)} {one.mode} by {one.by}", f"{exact}{simulated}; suite {suite}")
    for one in found.verdicts:
        table.add_row(f"against {one.champion}", f"{one.outcome}, {one.time}")
    table.add_row("came from it", ", ".join(found.children) or ABSENT)
    show(table)


def register(folder: Path, model: Path, name: str, *, evaluations: Sequence[Path] = (), as_json: bool = False) -> str:
    """Bring a run's last model, or a checkpoint, into the registry; returns its NAME@VERSION. Raises LinesideError as
    `intake.register`."""
    from lineside.registry import intake  # loads torch

    found = intake.find(model)
    with Registry(folder, create=True) as registry:
        done = intake.register(registry, found, name, evaluations)
        (line,) = (line for line in lines(registry, name) if line.version == done.version.number)
        champion, policy = registry.champion(name), policy_of(registry)
        if policy is not None:
            _clean(registry, policy, spare=done.version.model)
    if as_json:
        _print({**line.model_dump(mode="json"), "new": done.new})
        return done.version.label
    label = done.version.label
    say(f"{found.checkpoint} is {label}{'' if done.new else ' already'}, with {done.evaluations} evaluations")
    if champion is None:
        say(f"{name} has no champion yet: `lineside promote {label}` makes this one it")
    elif champion.version != done.version:
        say(f"champion is {champion.version.label}: `lineside diff {name} {label}` shows what differs")
    print(label)
    return label


def history(folder: Path, name: str | None, *, as_json: bool = False) -> None:
    """Print what was registered, promoted, rolled back and deleted. Raises LinesideError for a name not known."""
    with Registry(folder) as registry:
        registry.versions(name)
        events = registry.events(name)
    if as_json:
        _print({"registry": str(folder), "events": events})
        return
    table = new_table(f"history of {name or folder}")
    for column in ("when", "what", "model", "cells", "verdict", "reason", "who"):
        table.add_column(column, no_wrap=column != "reason")
    for event in events:
        by_cell = event["what"] in ("promote", "rollback", "follow", "shadow", "canary", "stop")
        table.add_row(
            event["time"][:19].replace("T", " "),
            event["what"],
            f"{event['name']}@{event['number']}" if event["name"] else "",
            cell_name(event["cell"]) if by_cell else "",
            short(event["verdict"] or ""),
            event["reason"] or "",
            event["who"],
        )
    show(table)


def diff(folder: Path, first: str, second: str, *, margin: float, seed: int = 0, as_json: bool = False) -> Difference:
    """Print how two versions differ. Raises LinesideError for versions that are not known."""
    with Registry(folder) as registry:
        found = differ(registry, registry.version(first), registry.version(second), margin=margin, seed=seed)
    if as_json:
        print(found.model_dump_json(indent=2))
        return found
    unknown = {
        "recipe": "one of them was registered without its run",
        "data": "one of them has no lineage",
        "parts": "nothing that both say of them is kept",
        "files": "those of one were deleted",
    }
    for title, why in unknown.items():
        changed: list[str] | None = getattr(found, title)
        print(f"{title}: {f'not known: {why}' if changed is None else '' if changed else 'the same'}")
        for line in changed or ():
            print(f"  {line}")
    for one in found.unpaired:
        numbers = f"{percent(one.first)} and {percent(one.second)}"
        print(f"{one.name}: exact {numbers}, not compared: {one.why}")
    for name, comparison in found.compared.items():
        print(f"{name}: {comparison.verdict}")
        show(comparison_table(comparison))
    return found


def promote(folder: Path, version: str, *, cell: str = "", force: str | None = None, as_json: bool = False) -> Change:
    """Make a version the champion. Raises LinesideError, CheckFailed or TooLittleData as `promotion.promote`."""
    with Registry(folder) as registry:
        changed = promote_version(registry, registry.version(version), cell=cell, force=force)
    return _tell(changed, "is the champion", as_json)


def rollback(
    folder: Path, name: str, *, cell: str = "", to: str | None = None, follow: bool = False, as_json: bool = False
) -> Change:
    """Go back to an earlier champion. Raises LinesideError as `promotion.roll_back`."""
    with Registry(folder) as registry:
        target = registry.version(to) if to is not None else None
        changed = roll_back(registry, name, cell=cell, to=target, follow=follow)
    return _tell(changed, "is the champion again", as_json)


def gc(folder: Path, *, keep: int, most: str | None, always: bool = False, as_json: bool = False) -> None:
    """Delete old models by a policy. Raises LinesideError for a size that is none, CheckFailed if what must stay takes
    more than it."""
    policy = Policy(keep, None if most is None else size_of(most))
    with Registry(folder) as registry:
        if always:
            set_policy(registry, policy)
        found = _clean(registry, policy)
    if as_json:
        _print(found)


def _clean(registry: Registry, policy: Policy, *, spare: str = "") -> dict[str, Any]:
    done = clean(registry, policy, spare=spare)
    for version in done.deleted:
        say(f"deleted: {version.label}; its record stays")
    for version in done.busy:
        say(f"kept: {version.label}, a server uses it")
    if done.leftovers:
        say(f"deleted: {done.leftovers} folders that killed processes had left")
    say(f"{registry.folder}: {megabytes(done.left)} of files, {megabytes(done.bytes)} freed")
    if policy.bytes is not None and done.left > policy.bytes:
        say(
            f"warning: that is more than {megabytes(policy.bytes)}: champions, the one before each, models in use, "
            "suites and evaluations stay"
        )
    return asdict(done)


def _tell(changed: Change, what: str, as_json: bool) -> Change:
    if as_json:
        _print(
            {
                "before": changed.before.label if changed.before else None,
                "after": changed.after.label,
                "cell": changed.cell or None,
                "apart": {champion.cell: champion.version.label for champion in changed.apart},
                "unasked": list(changed.unasked),
            }
        )
        return changed
    if changed.before == changed.after:
        say(f"{changed.after.label} {what} of {cell_name(changed.cell)} already; nothing was changed")
    else:
        before = f", in place of {changed.before.label}" if changed.before else ""
        say(f"{changed.after.label} {what} of {cell_name(changed.cell)}{before}; running servers follow")
    if changed.unasked:
        say(
            f"note: its gate did not ask {', '.join(changed.unasked)}, which came later: `lineside gate "
            f"{changed.after.label}` would"
        )
    for champion in changed.apart:
        say(
            f"note: {champion.cell} keeps its own, {champion.version.label}: `lineside rollback "
            f"{champion.version.name} --cell {champion.cell} --follow` lets it follow"
        )
    print(changed.after.label)
    return changed


def _suite(one: Exact) -> str:
    return f"{one.run}/{one.split}" if one.run else one.split


def _state(line: Line) -> str:
    cells = [cell for cell in line.champion_of if cell != EVERYWHERE]
    if EVERYWHERE in line.champion_of or not cells:
        return line.state
    return f"champion of {', '.join(cells)}"


def _trials(line: Line) -> list[str]:
    places: dict[tuple[str, float], list[str]] = {}
    for trial in line.trials:
        places.setdefault((trial.kind, trial.share), []).append(trial.cell)
    return [f"{kind} for {share:.1%} in {', '.join(cells)}" for (kind, share), cells in places.items()]


def megabytes(count: int) -> str:
    """A size for people."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _print(data: Mapping[str, Any]) -> None:
    print(json.dumps(data, indent=2, ensure_ascii=False))
