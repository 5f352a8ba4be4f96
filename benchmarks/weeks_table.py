"""The table of `make weeks`: exact match of each arm in each week, what it cost, and what is claimed of it.

A record is one arm in one week: exact match on the new week and on all weeks before, with n and the 95% interval by
scene; minutes, tokens and operations of its training; its differences from scratch. What was not run has no record.
`ours` is the model that serves after the week: the challenger if the gate passed it, else the champion before it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

import headline_table
from headline_table import outcomes_of, say_claims
from lineside.files import write_atomic
from lineside.judgement import stats
from lineside.judgement.console import percent, show
from lineside.judgement.paired import compare_rows, rows_by_id
from lineside.judgement.schema import Row, read_evaluation
from lineside.training.cost import read_cost
from weeks_arms import QUESTIONS, Plan, Unit, champion_before, finished
from weeks_data import FULL, changed_in
from weeks_outcomes import TOLD, used

Record = dict[str, Any]
LESS = 0.02  # ours may be this much worse than scratch ...
SHARE = 0.10  # ... at this share of its operations
NEW, OLD = "new", "old"


def served(plan: Plan, unit: Unit) -> str:
    """The run whose answers count for an arm in a week."""
    return champion_before(plan, unit.week + 1)[0] if unit.arm == "ours" and not unit.planted else unit.run


def rows_of(plan: Plan, run: str, weeks: Sequence[int], planted: str = "") -> dict[str, Row]:
    """The rows of a run on the suites of these weeks, as far as it has answered them."""
    paths = [plan.evaluation(run, week, planted) for week in weeks]
    return {id: row for path in paths if path.exists() for id, row in _rows(path).items()}


@functools.cache
def _rows(path: Path) -> dict[str, Row]:
    return rows_by_id(path)


def measured(rows: Mapping[str, Row]) -> Record | None:
    """Exact match, macro over tasks, with its interval; None without rows."""
    if not rows:
        return None
    table = outcomes_of(rows)
    return {"value": stats.macro(table), "interval": list(stats.bootstrap(table, seed=0).macro()), "n": len(rows)}


def cost(plan: Plan, run: str) -> Record | None:
    """What a run's training took: minutes here, tokens, floating-point operations. None if nothing was trained."""
    found = [c for stage in ("align", "sft", "rlvr") if (c := read_cost(plan.run(run) / stage)) is not None]
    if not found:
        return None
    return {
        "minutes": sum(c.trained for c in found) / 60,
        "tokens": sum(c.tokens for c in found),
        "operations": sum(c.operations for c in found),
    }


def record(plan: Plan, unit: Unit) -> Record:
    """One finished unit."""
    run, before = served(plan, unit), range(unit.week)
    out: Record = {"arm": unit.arm, "week": unit.week, "planted": unit.planted, "serves": run}
    out |= {NEW: measured(rows_of(plan, run, [unit.week])), OLD: measured(rows_of(plan, run, before))}
    out["cost"] = cost(plan, unit.run) if unit.arm != "none" or unit.week == 0 else None
    if unit.arm == "ours":
        told = json.loads(plan.verdict(unit.week, unit.planted).read_text())
        out |= {"gate": told["outcome"], "because": told["because"], "gate_n": told["n"]}
        out |= {"challenger": {NEW: measured(rows_of(plan, unit.run, [unit.week], unit.planted)),
                               OLD: measured(rows_of(plan, unit.run, before))}}  # fmt: skip
    if unit.arm in TOLD:
        champion, _ = champion_before(plan, unit.week)
        out["used"] = used(plan, unit.week, unit.arm)
        out["champion"] = {NEW: measured(rows_of(plan, champion, [unit.week]))}
        out["gain"] = {NEW: difference(plan, champion, run, [unit.week]), OLD: difference(plan, champion, run, before)}
    return out


def difference(plan: Plan, first: str, second: str, weeks: Sequence[int]) -> Record | None:
    """The second run less the first on the questions that both answered; None without any."""
    return compared(rows_of(plan, first, weeks), rows_of(plan, second, weeks), (first, second))


def over_weeks(plan: Plan, arm: str, weeks: Sequence[int]) -> Record | None:
    """`ours` less an arm on each week's new questions, all weeks together; each week's own models answered."""
    sides: tuple[dict[str, Row], dict[str, Row]] = {}, {}
    for week in weeks:
        for side, unit in zip(sides, (Unit(arm, week), Unit("ours", week))):
            side |= rows_of(plan, served(plan, unit), [week])
    return compared(*sides, (arm, "ours"))


def compared(first: Mapping[str, Row], second: Mapping[str, Row], names: tuple[str, str]) -> Record | None:
    """The second rows less the first on the questions that both have; None without any."""
    if not (first.keys() & second.keys()):
        return None
    found = compare_rows(first, second, names=names, common_only=True).overall
    return {"difference": found.difference, "interval": list(found.interval), "n": found.n, "scenes": found.scenes}


def versus(plan: Plan, records: Sequence[Record]) -> list[Record]:
    """Ours less each other arm on the new weeks together, and on all weeks before the last of them."""
    by_unit = {(r["arm"], r["week"]): r for r in records if not r["planted"]}
    found: list[Record] = []
    for arm in ("none", "plain", "scratch"):
        weeks = [w for w in range(1, plan.weeks + 1) if {("ours", w), (arm, w)} <= by_unit.keys()]
        if weeks:
            other, ours = (by_unit[name, weeks[-1]]["serves"] for name in (arm, "ours"))
            old = difference(plan, other, ours, range(weeks[-1]))
            found.append({"arm": arm, NEW: over_weeks(plan, arm, weeks), OLD: old})
    return found


def records_of(plan: Plan, units: Sequence[Unit]) -> list[Record]:
    """The records of what is finished, with differences from scratch and shares of its operations."""
    done = [unit for unit in units if finished(plan, unit)]
    found = [record(plan, unit) for unit in done]
    by_unit = {(r["arm"], r["week"]): r for r in found if not r["planted"]}
    for unit, r in zip(done, found):
        other = by_unit.get(("scratch", unit.week))
        if other is None or unit.arm == "scratch":
            continue
        run = served(plan, unit)
        r["less_scratch"] = {
            NEW: difference(plan, other["serves"], run, [unit.week]),
            OLD: difference(plan, other["serves"], run, range(unit.week)),
        }
        if r["cost"] and other["cost"]:
            r["share"] = r["cost"]["operations"] / other["cost"]["operations"]
    return found


# --- claims


def claims(plan: Plan, records: Sequence[Record]) -> list[Record]:
    """What is claimed. A claim is checked once everything that it needs is run, at full length; else it says so."""
    out: list[Record] = []
    by_unit = {(r["arm"], r["week"]): r for r in records if not r["planted"]}
    weeks = [w for w in range(1, plan.weeks + 1) if ("ours", w) in by_unit and ("scratch", w) in by_unit]
    complete = len(weeks) == plan.weeks
    whole = plan.minutes >= 1 and plan.amounts == FULL and plan.questions >= QUESTIONS and plan.base is None
    full = complete and not plan.tiny and whole and (plan.weeks >= 8 or bool(plan.photographs))

    def claim(text: str, value: float | None, n: int, *, checked: bool, **bound: float) -> None:
        ((name, limit),) = bound.items()
        holds = None
        if checked and value is not None:
            holds = value >= limit if name == "at_least" else value <= limit
        why = "" if holds is not None else "not run" if value is None else "not checked: a small version, or unfinished"
        out.append({"claim": text, "value": value, name: limit, "holds": holds, "n": n, "why": why,
                    "command": plan.command})  # fmt: skip

    last = max(weeks, default=0)
    new = over_weeks(plan, "scratch", weeks) if weeks else None
    old = by_unit["ours", last]["less_scratch"][OLD] if weeks else None
    for what, found in (("each new week, together", new), ("all weeks before, at the end", old)):
        low = found["interval"][0] if found else None
        claim(
            f"ours less scratch on {what}: lower bound", low, found["n"] if found else 0, checked=full, at_least=-LESS
        )
    shares = [by_unit["ours", w]["share"] for w in weeks if "share" in by_unit["ours", w]]
    claim("ours: largest share of scratch's operations", max(shares, default=None), len(shares), checked=full,
          at_most=SHARE)  # fmt: skip
    forgot = None
    if ("plain", last) in by_unit and weeks:
        forgot = difference(plan, by_unit["ours", last]["serves"], by_unit["plain", last]["serves"], range(last))
    claim("plain less ours on all weeks before, at the end: upper bound", forgot["interval"][1] if forgot else None,
          forgot["n"] if forgot else 0, checked=full, at_most=0.0)  # fmt: skip
    r = next((r for r in records if r["arm"] == "verdicts"), None)
    if plan.planted and "verdicts" in plan.arms:
        gain = r["gain"][NEW] if r is not None else None
        claim("outcomes only (verdicts) less the champion on the new week: lower bound",
              gain["interval"][0] if gain else None, gain["n"] if gain else 0, checked=full, at_least=0.0)  # fmt: skip
    for planted, wanted, word in PLANTED_CLAIMS if plan.planted else ():
        r = next((r for r in records if r["planted"] == planted), None)
        right = None
        if r is not None:
            right = float(r["gate"] == wanted and (not word or any(word in reason for reason in r["because"])))
        claim(f"planted {planted}: {wanted}{f', and {word!r} named' if word else ''}", right, r["gate_n"] if r else 0,
              checked=not plan.tiny, at_least=1.0)  # fmt: skip
    return out


PLANTED_CLAIMS = (("labels", "refused", "records"), ("camera", "refused", "camera"), ("noise", "passed", ""))


# --- the console


def told(found: Record | None) -> str:
    """ "53.5% (50.5 to 56.3)"; nothing for None."""
    return headline_table.exact(found) if found else ""


def less(found: Record | None) -> str:
    """ "+2.4 (+0.9 to +4.1)"; nothing for None."""
    return headline_table.told([found["difference"], *found["interval"]]) if found else ""


def name_of(r: Record) -> str:
    """ "ours", "ours, planted: camera", or "outcomes only: verdicts"."""
    told = "outcomes only: " if r["arm"] in TOLD else ""
    return told + r["arm"] + (f", planted: {r['planted']}" if r["planted"] else "")


def table_of(plan: Plan, records: Sequence[Record]) -> Table:
    """All weeks as a table."""
    title = f"\nexact match by week{' (simulated)' if not plan.photographs else ', ' + plan.photographs}"
    out = Table(title=title, title_justify="left", box=None, pad_edge=False)
    out.add_column("week", justify="right")
    out.add_column("arm", no_wrap=True)
    for column in ("new week", "all before", "less scratch: new", "before", "minutes", "M tokens", "of scratch"):
        out.add_column(column, justify="right", no_wrap=True)
    out.add_column("gate")
    for r in records:
        shown, spent, apart = r.get("challenger", r) if r["planted"] else r, r["cost"], r.get("less_scratch", {})
        out.add_row(
            str(r["week"]),
            Text(name_of(r)),
            told(shown[NEW]),
            told(shown[OLD]),
            less(apart.get(NEW)),
            less(apart.get(OLD)),
            f"{spent['minutes']:.1f}" if spent else "",
            f"{spent['tokens'] / 1e6:.2f}" if spent else "",
            percent(r["share"]) if "share" in r else "",
            Text(r.get("gate", "")),
        )
    return out


OUTCOME_COLUMNS = ("week with outcomes only", "outcomes", "new week before", "after", "gain", "gain on all before", "n")


def outcome_rows(records: Sequence[Record]) -> list[tuple[str, ...]]:
    """What outcomes alone gave: a row for each arm that is told nothing else."""
    return [
        (
            f"week {r['week']}, {r['arm']}",
            ", ".join(f"{count:,} by {kind}" for kind, count in r["used"].items()),
            told(r["champion"][NEW]),
            told(r[NEW]),
            less(r["gain"][NEW]),
            less(r["gain"][OLD]),
            "; ".join(f"{part['n']:,}" for part in r["gain"].values() if part),
        )
        for r in records
        if r["arm"] in TOLD
    ]


def outcome_table(rows: Sequence[tuple[str, ...]]) -> Table:
    """`outcome_rows` for the console."""
    out = Table(title="\nstage 3 alone, on what became of answers", title_justify="left", box=None, pad_edge=False)
    for column in OUTCOME_COLUMNS:
        out.add_column(column, no_wrap=True)
    for row in rows:
        out.add_row(*map(Text, row))
    return out


@dataclass(frozen=True)
class Results:
    """What the page shows. `versus`: ours less each other arm. `changes`: what each week brought. `left`: what was not
    run."""

    plan: Plan
    claims: Sequence[Record]
    records: Sequence[Record]
    versus: Sequence[Record]
    changes: Mapping[int, Mapping[str, list[str]]]
    provenance: Mapping[str, str]
    left: Sequence[Unit]


def publish(plan: Plan, units: Sequence[Unit], out: Path, *, page: Path | None = None) -> int:
    """Print the tables, write the JSON and the page; returns the exit status: 1 if a claim does not hold."""
    records = records_of(plan, units)
    show(table_of(plan, records))
    if rows := outcome_rows(records):
        show(outcome_table(rows))
    left = [unit for unit in units if not finished(plan, unit)]
    if left:
        print(f"not run: {len(left)} of {len(units)} arms and weeks")
    made = claims(plan, records)
    say_claims(made)
    provenance = {"commit": commits(plan, records), "machine": machines(plan, records), "command": plan.command}
    path = out / f"{plan.name}.json"
    write_atomic(path, json.dumps([*made, *({**r, **provenance} for r in records)], indent=1) + "\n")
    print(f"written: {path}")
    if page is not None:
        from weeks_page import write_page

        changes = {week: changed_in(plan.folder, week) for week in range(1, plan.weeks + 1)}
        write_page(page, Results(plan, made, records, versus(plan, records), changes, provenance, left))
        print(f"written: {page}")
    return int(any(c["holds"] is False for c in made))


def _provenances(plan: Plan, records: Sequence[Record]) -> list[Any]:
    paths = {plan.evaluation(r["serves"], r["week"]) for r in records}
    return [read_evaluation(path).provenance for path in sorted(paths) if path.exists()]


def commits(plan: Plan, records: Sequence[Record]) -> str:
    """The commits that the answers come from."""
    return " ".join(sorted({(p.git or "unknown")[:7] for p in _provenances(plan, records)}))


def machines(plan: Plan, records: Sequence[Record]) -> str:
    """The machines that the answers come from."""
    return "; ".join(sorted({p.machine for p in _provenances(plan, records)}))
