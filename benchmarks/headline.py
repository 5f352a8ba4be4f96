"""What stage 3 is worth with a teacher that errs, and what each piece of the recipe is worth: `make headline`,
`make ablations`.

    python benchmarks/headline.py [--ablations] [--arms sft rlvr] [--seeds 0 1 2] [--scale 0.3] [--dry-run] [--table]
    python benchmarks/headline.py --photographs sorting --data ../shared/data/sorting

Runs the arms of benchmarks/arms.py one after another, in order of worth. An arm that is done is not run again, one that
was interrupted goes on: stop it whenever you like, and run the same command again. At the end, and at any time with
--table, it prints the tables and writes benchmarks/out/headline.json (or ablations.json); with --page they go into a
page too, with plots and frames. An arm that was not run is shown as "not run". `--scale 0.3` multiplies the length of
every stage, in runs of their own; `--tiny` rehearses all of it on frames and a model too small to learn anything.
Neither claims anything. `--photographs` runs the headline's arms on real photographs, whose teacher takes near classes
for one another (benchmarks/headline_photographs.py), and writes benchmarks/out/headline-sorting.json (or -grocery).

Exit status: 0 every claim that could be checked holds, 1 one does not or an arm failed, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from arms import PLANTED, TABLES, Job, Plan, resolve, with_needs
from headline_photographs import SETS, plant
from lineside.errors import LinesideError
from lineside.files import write_atomic
from lineside.machine import prepare
from lineside.progress import clear, say

OUT = Path(__file__).parent / "out"
SEEDS = {"headline": (0, 1, 2)}  # of the other tables: one


def run(jobs: Sequence[Job]) -> dict[str, str]:
    """Run what is not done, in order; returns why arms failed, by the name of their run and arm.

    The time that is left is told before each arm: from the minutes on quiet cores and what this machine takes of them.
    """
    from lineside.train import train

    failed: dict[str, str] = {}
    todo = [job for job in jobs if not job.done]
    say(f"{len(todo)} of {len(jobs)} arms to run, about {hours(todo)} on two quiet cores")
    expected = spent = 0.0  # minutes of the arms done in this session
    for number, job in enumerate(todo, 1):
        pace = spent / expected if expected else 1.0
        say(
            f"\n=== arm {number} of {len(todo)}: {job.arm.name}, seed {job.seed}: {job.arm.about}\n    {job.command}\n"
            f"    about {job.minutes * pace:.0f} minutes; all that is left: about {hours(todo[number - 1 :], pace)}"
        )
        if broken := [name for name in job.arm.needs if f"{name}-{job.seed}" in failed]:
            failed[f"{job.arm.name}-{job.seed}"] = f"it needs {broken[0]}, which failed"
            continue
        start, fresh = time.monotonic(), not job.begun
        try:
            train(job.recipe, last=job.arm.stage)
            if job.arm.forgets:
                note_forgetting(job)
        except LinesideError as error:
            clear()
            failed[f"{job.arm.name}-{job.seed}"] = str(error)
            say(f"{job.arm.name}, seed {job.seed}: {error}")
            continue
        if fresh:  # an arm that went on took only a part of its time
            expected, spent = expected + job.minutes, spent + (time.monotonic() - start) / 60
    return failed


def note_forgetting(job: Job) -> None:
    """Measure what an arm forgot since sft, on its first split."""
    from lineside.evaluate import forgetting

    recipe = job.recipe
    found = forgetting(
        job.folder / job.arm.stage / "checkpoint", job.sft, job.samples,
        split=recipe.evaluate.splits[0], features=recipe.runs / "features",
    )  # fmt: skip
    write_atomic(job.forgetting, found.model_dump_json(indent=1) + "\n")


def hours(jobs: Sequence[Job], pace: float = 1.0) -> str:
    """The time that the jobs take, in words."""
    minutes = pace * sum(job.minutes for job in jobs)
    return f"{minutes:.0f} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"


def show_plan(jobs: Sequence[Job]) -> None:
    """Print every arm with its state, its minutes and its command."""
    for job in jobs:
        state = "done" if job.done else "begun" if job.begun else "to run"
        print(f"{job.arm.name}, seed {job.seed} ({state}): {job.arm.about}; about {job.minutes:.0f} minutes")
        print(f"    {job.command}")
    left = [job for job in jobs if not job.done]
    print(f"{len(left)} of {len(jobs)} arms to run: about {hours(left)} on two quiet cores")


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ablations", action="store_true", help="the table of the ablations, not the headline's")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="only these, and what they need; default: all")
    parser.add_argument(
        "--seeds", nargs="+", type=int, metavar="SEED", help="default: 0 1 2; of ablations and photographs: 0"
    )
    parser.add_argument("--photographs", choices=sorted(SETS), default="", help="in place of simulated frames")
    parser.add_argument("--data", type=Path, help="folder of the photographs (../shared/data/NAME)")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies tokens and steps of every stage")
    parser.add_argument("--tiny", action="store_true", help="rehearse on tiny frames and a tiny model: minutes")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the results")
    parser.add_argument("--page", type=Path, help="also put the tables into this page, such as docs/headline.md")
    parser.add_argument("--dry-run", action="store_true", help="print the arms, their commands and hours; run nothing")
    parser.add_argument("--table", action="store_true", help="run nothing; print and write what is there")
    given = parser.parse_args()
    if given.ablations and given.photographs:
        parser.error("--ablations: they are of simulated frames; leave out --photographs")
    known = [arm.name for arm in TABLES[table_of(given)]]
    if unknown := [name for name in given.arms or () if name not in known]:
        parser.error(f"--arms {unknown[0]}: no such arm; expected some of {', '.join(known)}")
    if not given.scale > 0:
        parser.error(f"--scale {given.scale:g}: expected a number above 0, such as 0.3")
    return given


def table_of(given: argparse.Namespace) -> str:
    """The table that the command line asks for."""
    return given.photographs or ("ablations" if given.ablations else "headline")


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler stops the job: save, as after Ctrl-C
    given = options()
    prepare()
    table = table_of(given)
    arms, seeds = TABLES[table], tuple(given.seeds or SEEDS.get(table, (0,)))
    plan = Plan(given.runs, given.scale, given.tiny, given.photographs)
    chosen = with_needs(given.arms or [arm.name for arm in arms], arms)
    jobs = [resolve(arm, plan, seed) for seed in seeds for arm in chosen]
    if given.dry_run:
        show_plan(jobs)
        return 0
    try:
        import headline_page  # noqa: F401  now: the code of a run of hours may change on disk
        from headline_table import publish

        if given.photographs and not given.table:
            data, features = given.data or Path("../shared/data") / table, given.runs / "features"
            for seed in seeds:
                plant(table, data, plan.folder(seed, "") / PLANTED, features=features, tiny=given.tiny)
        failed = {} if given.table else run(jobs)
        every = [resolve(arm, plan, seed) for seed in seeds for arm in arms]  # those not asked for are "not run"
        status = publish(table, every, plan, given.out, failed, page=given.page)
    except KeyboardInterrupt:
        clear()
        say("interrupted; everything that is finished is kept: run the same command again to go on")
        return 130
    return 1 if failed else status


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except LinesideError as error:
        clear()
        say(f"headline: {error}")
        raise SystemExit(error.exit_status) from None
