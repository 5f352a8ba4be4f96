"""The tables of `make headline` and `make ablations`: evaluations of arms, pooled over seeds and compared by scene.

A record is one arm in one suite (a split and a mode): the keys of a claim (claim, value, at_least, holds, n, command)
and what the tables show beside it. An arm without an evaluation has a record too: its value is null and it says "not
run". With several seeds the questions of all are pooled. Each seed has its own frames, so its scenes are others, and
the difference of each seed stands beside the pooled one. Claims are checked at full length only (scale 1, all seeds).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from rich.table import Table
from rich.text import Text

from arms import FAMILIES, LEFT_OUT, Job, Plan, parts_of, suites
from lineside.files import write_atomic
from lineside.judgement import stats
from lineside.judgement.console import percent, points, show
from lineside.judgement.paired import compare_rows, rows_by_id
from lineside.judgement.schema import MODES, Evaluation, Mode, Row, read_evaluation
from lineside.progress import track
from lineside.recipe import differences, load_run_recipe
from lineside.stages import CONTROLS, LINE, STAGES, entry_of
from lineside.training.cost import read_cost
from lineside.training.metrics import read_metrics

Record = dict[str, Any]
PROBED = ("exact", "valid")


@dataclass(frozen=True)
class Results:
    """What the jobs of a table have left, read on demand. Rows are by "seed/id", with "seed/scene" as their scene."""

    jobs: Sequence[Job]

    def of(self, arm: str) -> list[Job]:
        """The jobs of an arm, one a seed."""
        return [job for job in self.jobs if job.arm.name == arm]

    def seeds(self, arm: str, split: str, mode: Mode) -> dict[int, Job]:
        """The seeds of an arm that are evaluated on a suite."""
        return {job.seed: job for job in self.of(arm) if job.evaluation(split, mode).exists()}

    def evaluations(self, arm: str, split: str, mode: Mode) -> list[Evaluation]:
        """The evaluations of an arm, one a seed."""
        return [read_evaluation(job.evaluation(split, mode)) for job in self.seeds(arm, split, mode).values()]

    def rows(self, arm: str, split: str, mode: Mode, seeds: Sequence[int]) -> dict[str, Row]:
        """The rows of these seeds."""
        jobs = self.seeds(arm, split, mode)
        return {f"{s}/{id}": row for s in seeds for id, row in _rows(jobs[s].evaluation(split, mode), s).items()}


@functools.cache
def _rows(path: Path, seed: int) -> dict[str, Row]:
    return {id: row.model_copy(update={"scene": f"{seed}/{row.scene}"}) for id, row in rows_by_id(path).items()}


# --- records


def record(results: Results, arm: str, split: str, mode: Mode, failed: Mapping[str, str], table: str) -> Record:
    """One arm in one suite."""
    jobs = results.of(arm)
    about, found = jobs[0].arm, results.seeds(arm, split, mode)
    out: Record = {
        "claim": f"{arm}, {split}, {mode}: share exact",
        "arm": arm, "about": about.about, "group": about.group, "split": split, "mode": mode, "seeds": list(found),
        "value": None, "at_least": None, "holds": None, "n": 0, "why": "",
        "command": f"{command_of(table)} --arms {arm}",
    }  # fmt: skip
    if not found:
        return {**out, "why": why_not(jobs, failed)}
    rows = results.rows(arm, split, mode, list(found))
    outcomes = outcomes_of(rows)
    judged = results.evaluations(arm, split, mode)
    costs = [cost for job in found.values() if (cost := read_cost(job.folder / about.stage)) is not None]
    valid = [e.valid_trace_rate for e in judged if e.valid_trace_rate is not None]
    return out | {
        "value": stats.macro(outcomes),
        "interval": list(stats.bootstrap(outcomes, seed=0).macro()),
        "holds": True,
        "n": len(rows),
        "families": {f: mean(e.families[f].exact for e in judged) for f in judged[0].families},
        "tasks": {key: mean(e.tasks[key].exact for e in judged) for key in judged[0].tasks},
        "blind": mean(blind) if (blind := [e.blind for e in judged if e.blind is not None]) else None,
        "captions": mean(m) if (m := [e.caption_matching.share for e in judged if e.caption_matching]) else None,
        "valid": mean(valid) if valid else None,
        "answer_tokens": mean(e.answer_tokens for e in judged),
        "response_tokens": mean(e.response_tokens for e in judged),
        "tokens": mean(c.tokens for c in costs) if costs else None,
        "minutes": mean(c.trained for c in costs) / 60 if costs else None,
        "commit": " ".join(sorted({(e.provenance.git or "unknown")[:7] for e in judged})),
        "machine": " ".join(sorted({e.provenance.machine for e in judged})),
        "date": max(e.provenance.date for e in judged)[:10],
        "other": list(dict.fromkeys(line for job in found.values() for line in other_settings(job))),
        "curves": curves(next(iter(found.values()))),
        "forgetting": forgotten[0] if (forgotten := [f for j in found.values() if (f := forgot(j))]) else None,
        "teacher": mean(t) if (t := [x for job in found.values() if (x := teacher_exact(job)) is not None]) else None,
    }


def command_of(table: str) -> str:
    """The command that makes a table."""
    flags = {"headline": "", "ablations": " --ablations"}
    return f"python benchmarks/headline.py{flags.get(table, f' --photographs {table}')}"


def why_not(jobs: Sequence[Job], failed: Mapping[str, str]) -> str:
    """Why an arm has no value."""
    if reasons := [failed[key] for job in jobs if (key := f"{job.arm.name}-{job.seed}") in failed]:
        return f"not run: {reasons[0].splitlines()[0].split('. ')[0]}"  # without the advice, which names folders
    return "not run to its end" if any(job.begun for job in jobs) else "not run"


def other_settings(job: Job) -> list[str]:
    """How the recipe of the job's run differs from that of its arm: "rlvr.max_steps: 420 -> 300". A person may have run
    it with settings of their own. Later stages of the run do not matter."""
    path = job.folder / "recipe.yaml"
    found = differences(job.recipe, load_run_recipe(path)) if path.exists() else []
    later = set(STAGES) - {*LINE[: LINE.index(entry_of(job.arm.stage).slot) + 1], job.arm.stage}
    written = {"device", "dtype"}  # what `auto` stood for
    return [line for line in found if line.split(":")[0].split(".")[0] not in later | written]


def difference(
    results: Results, first: str, second: str, split: str, modes: tuple[Mode, Mode], *, tasks: Sequence[str] = ()
) -> Record | None:
    """The paired difference `second` less `first`, each in its mode, over the seeds that both have; None without any.
    `tasks`: only these."""
    found = [results.seeds(arm, split, mode) for arm, mode in zip((first, second), modes)]
    seeds = [seed for seed in found[0] if seed in found[1]]
    if first == second or not seeds:
        return None

    def compared(seeds: Sequence[int]) -> Any:
        one, two = (results.rows(arm, split, mode, seeds) for arm, mode in zip((first, second), modes))
        if tasks:
            one, two = ({i: row for i, row in rows.items() if row.key in tasks} for rows in (one, two))
        return compare_rows(one, two, names=(first, second))

    whole = compared(seeds)
    parts = {"all": whole.overall, **whole.families, **whole.tasks}
    return {
        "first": first, "second": second, "n": whole.overall.n, "seeds": seeds,
        **{name: [p.difference, *p.interval] for name, p in parts.items()},
        "by_seed": [compared([s]).overall.difference for s in seeds] if len(seeds) > 1 else [],
    }  # fmt: skip


def better_mode(results: Results, arm: str, split: str) -> Mode:
    """The mode in which an arm is more often exact. A control may have been trained for one mode alone."""
    exact = {mode: [e.exact for e in results.evaluations(arm, split, mode)] for mode in MODES}
    return max(MODES, key=lambda mode: mean(exact[mode] or [-1.0]))


def recovered(results: Results, split: str, mode: Mode) -> Record | None:
    """The performance gap recovered by stage 3, over the seeds of sft, rlvr and perfect."""
    arms = ("sft", "rlvr", "perfect")
    seeds = sorted(set.intersection(*(set(results.seeds(arm, split, mode)) for arm in arms)))
    if not seeds:
        return None
    base, better, ceiling = (results.rows(arm, split, mode, seeds) for arm in arms)
    ids = sorted(base.keys() & better.keys() & ceiling.keys())
    found = stats.gap_recovered(
        [base[i].scene for i in ids], [base[i].key for i in ids],
        base=[base[i].exact for i in ids], better=[better[i].exact for i in ids],
        ceiling=[ceiling[i].exact for i in ids], seed=0,
    )  # fmt: skip
    return {"n": len(ids), "seeds": seeds, "value": found.value if found else None,
            "interval": list(found.interval) if found else None}  # fmt: skip


def teacher_exact(job: Job) -> float | None:
    """The share of its labels in which the run's teacher is exact; 1 for a perfect one, None if nobody looked."""
    if audit := _audit(job):
        return float(audit["exact"])
    return 1.0 if job.recipe.data.samples is None and job.recipe.data.label.acuity == 1 else None


def teacher_tasks(job: Job) -> dict[str, float]:
    """The same share by task; empty if nobody looked."""
    return {key: float(rate["exact"]) for key, rate in _audit(job).get("tasks", {}).items()}


def _audit(job: Job) -> dict[str, Any]:
    """What `label` found of the teacher; empty if nobody looked."""
    return _label(job.samples / "label.json").get("audit") or {}


@functools.cache
def _label(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def forgot(job: Job) -> dict[str, Any] | None:
    """What the arm forgot since sft; None if it is not measured."""
    return json.loads(job.forgetting.read_text()) if job.forgetting.exists() else None


def curves(job: Job) -> dict[str, list[list[float]]]:
    """What a probe found during the stage: [progress, share] by name; nothing without a probe."""
    path = job.folder / job.arm.stage / "metrics.jsonl"
    rows = read_metrics(path) if path.exists() else []
    found = {name: [[r["progress"], r[f"probe/{name}"]] for r in rows if f"probe/{name}" in r] for name in PROBED}
    return {name: points for name, points in found.items() if points}


def outcomes_of(rows: Mapping[str, Row]) -> stats.Outcomes:
    """Which answers are exact, by scene and task."""
    listed = list(rows.values())
    return stats.tabulate([r.scene for r in listed], [r.key for r in listed], [float(r.exact) for r in listed])


# --- claims


def claims(records: Sequence[Record], results: Results, plan: Plan, seeds: int) -> list[Record]:
    """What the headline claims of `heldout` with thinking on, after an hour of stage 3 and with three seeds; of
    photographs the order of the arms. What is shorter, of other settings or of fewer seeds, is shown without a
    bound."""
    full = plan.scale == 1 and not plan.tiny and not any(r.get("other") for r in records)
    by_arm = {r["arm"]: r for r in records if (r["split"], r["mode"]) == ("heldout", "think")}
    sft, rlvr = by_arm["sft"], by_arm["rlvr"]
    out: list[Record] = []

    def claim(text: str, value: float | None, n: int, have: Sequence[int], **bound: float) -> None:
        ((name, limit),) = bound.items()
        checked = value is not None and full and len(have) >= seeds
        unchecked = "not run" if value is None else "not checked: shorter, other settings, or fewer seeds"
        holds = (value >= limit if name == "at_least" else value <= limit) if checked and value is not None else None
        out.append({"claim": text, "value": value, name: limit, "holds": holds, "n": n, "seeds": list(have),
                    "why": "" if checked else unchecked,
                    "command": command_of(plan.photographs or "headline")})  # fmt: skip

    gain = rlvr.get("less") or {}
    for part in ("all",) if plan.photographs else ("all", *FAMILIES):
        low = gain[part][1] if part in gain else None
        claim(f"rlvr less sft, {part}: lower bound", low, gain.get("n", 0), gain.get("seeds", []), at_least=0.0)
    for name in CONTROLS:
        modes = better_mode(results, name, "heldout"), better_mode(results, "rlvr", "heldout")
        over = difference(results, name, "rlvr", "heldout", modes) or {}
        low = over["all"][1] if over else None
        text = f"rlvr less {name}, each in its better mode: lower bound"
        claim(text, low, over.get("n", 0), over.get("seeds", []), at_least=0.0)
        out[-1] |= {"difference": over.get("all"), "modes": list(modes)}
    if plan.photographs:
        return out
    gap = recovered(results, "heldout", "think") or {"value": None, "n": 0, "seeds": []}
    claim("performance gap recovered", gap["value"], gap["n"], gap["seeds"], at_least=0.5)
    out[-1] |= {"interval": gap.get("interval")}
    if gap["seeds"] and gap["value"] is None:
        out[-1]["why"] = "no gap: the perfect teacher's sft is not clearly better than sft"
    claim("valid traces after rlvr", rlvr.get("valid"), rlvr["n"], rlvr["seeds"], at_least=0.97)
    longer = rlvr["response_tokens"] / sft["response_tokens"] if rlvr["seeds"] and sft["seeds"] else None
    claim("tokens of a response, rlvr to sft", longer, rlvr["n"], rlvr["seeds"], at_most=1.0)
    below = below_teacher(by_arm, results)
    claim("tasks on which rlvr is below the teacher and the perfect teacher's sft is not",
          None if below is None else float(len(below)), rlvr["n"], rlvr["seeds"], at_most=0.0)  # fmt: skip
    out[-1]["tasks"] = below
    return out


def below_teacher(by_arm: Mapping[str, Record], results: Results) -> list[str] | None:
    """The tasks on which the perfect teacher's sft is above the typical teacher, and rlvr is not."""
    rlvr, perfect = by_arm["rlvr"], by_arm["perfect"]
    if not rlvr["seeds"] or not perfect["seeds"]:
        return None
    teacher = teacher_tasks(results.of("sft")[0])
    return [key for key, exact in teacher.items()
            if perfect["tasks"].get(key, 0.0) > exact >= rlvr["tasks"].get(key, 0.0)]  # fmt: skip


# --- the console


def table_of(records: Sequence[Record], title: str, parts: Sequence[str]) -> Table:
    """One suite as a table; an arm that was not run is a line that says so. `parts`: families or tasks told apart."""
    out = Table(title=title, title_justify="left", box=None, pad_edge=False)
    out.add_column("arm", no_wrap=True)
    numbers = ("exact", "less", "points", *map(short, parts), "rlvr less it", "n", "seeds", "valid", "tokens")
    for column in (*numbers, "M trained", "minutes"):
        out.add_column(column, justify="right", no_wrap=True)
    for r in records:
        if r["value"] is None:
            out.add_row(Text(r["arm"]), Text("not run", "dim"))
            continue
        less, over = r.get("less"), r.get("rlvr_less")
        out.add_row(
            Text(r["arm"]),
            exact(r),
            less["first"] if less else "",
            told(less and less["all"]),
            *(points(less[f][0], sign=True) if less and f in less else "" for f in parts),
            told(over and over["all"]),
            f"{r['n']:,}",
            " ".join(map(str, r["seeds"])),
            percent(r["valid"]),
            f"{r['response_tokens']:.0f}",
            "" if r["tokens"] is None else f"{r['tokens'] / 1e6:.2f}",
            "" if r["minutes"] is None else f"{r['minutes']:.0f}",
        )
    reasons = [f"{r['arm']}: {r['why']}" for r in records if r["value"] is None]
    out.caption, out.caption_justify = Text("\n".join(reasons)), "left"
    return out


def short(part: str) -> str:
    """A family, or a task without its family."""
    return part.rpartition("/")[2]


def exact(r: Record) -> str:
    """ "53.5% (50.5 to 56.3)"."""
    low, high = r["interval"]
    return f"{percent(r['value'])} ({100 * low:.1f} to {100 * high:.1f})"


def say_claims(claims: Sequence[Record]) -> None:
    """Print each claim with its bound, and whether it holds."""
    for c in claims:
        state = {True: "holds", False: "DOES NOT HOLD", None: c["why"]}[c["holds"]]
        value = "" if c["value"] is None else f"{c['value']:.3f} "
        print(f"{c['claim']}: {value}({bound(c)}, n {c['n']:,}): {state}")


def bound(claim: Record) -> str:
    """ "at least 0.5", "at most 1"."""
    return f"at least {claim['at_least']:g}" if "at_least" in claim else f"at most {claim['at_most']:g}"


def told(difference: Sequence[float] | None) -> str:
    """ "+2.4 (+0.9 to +4.1)"; nothing for None."""
    if not difference:
        return ""
    value, low, high = (points(x, sign=True) for x in difference)
    return f"{value} ({low} to {high})"


def publish(
    table: str, jobs: Sequence[Job], plan: Plan, out: Path, failed: Mapping[str, str], *, page: Path | None = None
) -> int:
    """Print the tables, write the JSON and the page; returns the exit status: 1 if a claim does not hold."""
    results, records = Results(jobs), []
    arms = list(dict.fromkeys(job.arm.name for job in jobs))
    places: list[tuple[str, Mode, str]] = [(split, mode, arm) for split, mode in suites(table) for arm in arms]
    for split, mode, arm in track(places, total=len(places), unit="results", label="tables"):
        records.append(record(results, arm, split, mode, failed, table))
    against = {job.arm.name: job.arm.against for job in jobs}
    ran = [r for r in records if r["value"] is not None]
    for r in track(ran, total=len(ran), unit="results", label="comparisons"):
        suite = r["split"], (r["mode"], r["mode"])
        r["less"] = difference(results, against[r["arm"]], r["arm"], *suite)
        if r["group"] == "forgetting":
            r["left_out"] = difference(results, "sft", r["arm"], *suite, tasks=LEFT_OUT)
        if r["arm"] in (*CONTROLS, "perfect"):
            r["rlvr_less"] = difference(results, r["arm"], "rlvr", *suite)
    for split, mode in suites(table):
        scale = "" if plan.scale == 1 else f", every stage {plan.scale:g} of its length"
        kind = "photographs" if plan.photographs else "simulated"
        title = f"\n{table}, {split}, thinking {'on' if mode == 'think' else 'off'} ({kind}{scale})"
        show(table_of([r for r in records if (r["split"], r["mode"]) == (split, mode)], title, parts_of(table)))
    made = [] if table == "ablations" else claims(records, results, plan, seeds=3 if table == "headline" else 1)
    say_claims(made)
    name = f"headline-{table}" if plan.photographs else table
    path = out / f"{name}{'-tiny' if plan.tiny else ''}.json"
    write_atomic(path, json.dumps([{**r, "scale": plan.scale} for r in [*made, *records]], indent=1) + "\n")
    print(f"written: {path}")
    if page is not None:
        from headline_page import write_page

        write_page(page, table, made, records, results, plan)
        print(f"written: {page}")
    return int(any(c["holds"] is False for c in made))
