"""What weekly retraining is worth: eight simulated weeks, or photographs whose classes arrive over time.

    python benchmarks/weeks.py [--weeks 8] [--seed 0] [--minutes 1] [--table] [--page docs/weeks.md]
    python benchmarks/weeks.py --photographs sorting --data ../shared/data/sorting
    python benchmarks/weeks.py --weeks 1 --base runs/quickstart --arms none verdicts truths

A base model is trained on week 0. Then, in each week, four arms:

    none      the base model, left alone
    ours      `lineside retrain` from the champion, in `--minutes`; the gate decides whether it becomes the champion
    scratch   the base's recipe on all data so far, as often over each frame as the base
    plain     the base fine-tuned each week on that week alone, with as many tokens as ours

Each answers the new week's questions and those of all weeks before. Simulated weeks also have three other versions of
one week (benchmarks/weeks_data.py): two bad ones, which the gate must refuse with the cause named, and one with
harmless noise, which it must pass. Minutes are those of two quiet cores and are turned into tokens, so that recipe and
seed give the models again; the table also says how long the training took here.

Of the same week, three arms are told nothing but what became of the champion's answers, and train stage 3 alone
(benchmarks/weeks_outcomes.py): verdicts, failures and truths.

The arm scratch takes most of the hours. It comes last, its last week first, and what was not run has no row.
Everything that is finished is kept: stop it whenever you like, and run the same command again. `--weeks 2 --minutes
0.2` is a small version, `--tiny` rehearses on frames and a model too small to learn anything. Results go to
benchmarks/out/weeks.json (or weeks-sorting.json ...), and with --page into a page with its plot.

Exit status: 0 every claim that could be checked holds, 1 one does not, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lineside.errors import LinesideError
from lineside.machine import prepare
from lineside.progress import clear, say
from weeks_arms import ARMS, QUESTIONS, Plan, finished, run, turns, units
from weeks_data import FULL, SETS, Amounts
from weeks_outcomes import TOLD

OUT = Path(__file__).parent / "out"


def options(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weeks", type=int, help="default: 8; of photographs: as many as classes arrive in")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=1.0, help="of a retraining, on two quiet cores; the base and "
                        "scratch have twelve times as many")  # fmt: skip
    parser.add_argument("--frames", type=int, help="training frames of each family in a week (default 150); week 0 has "
                        "six times as many")  # fmt: skip
    parser.add_argument("--questions", type=int, default=QUESTIONS, help="of a week's suite, at most")
    parser.add_argument("--arms", nargs="+", choices=(*ARMS, *TOLD), default=(*ARMS, *TOLD), metavar="ARM",
                        help=f"only these of {', '.join((*ARMS, *TOLD))}")  # fmt: skip
    parser.add_argument("--base", type=Path, metavar="RUN", help="begin with stage 2 of this run, such as "
                        "runs/quickstart of `make demo`, and its samples as week 0")  # fmt: skip
    parser.add_argument("--photographs", choices=sorted(SETS), default="", help="in place of simulated weeks")
    parser.add_argument("--data", type=Path, help="folder of the photographs (../shared/data/NAME)")
    parser.add_argument("--tiny", action="store_true", help="rehearse on tiny frames, or a few photographs, and a tiny "
                        "model")  # fmt: skip
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the results")
    parser.add_argument("--page", type=Path, help="also put the tables into this page, such as docs/weeks.md")
    parser.add_argument("--dry-run", action="store_true", help="print what is done and what is not; run nothing")
    parser.add_argument("--table", action="store_true", help="run nothing; print and write what is there")
    return parser.parse_args(given)


def plan_of(given: argparse.Namespace) -> Plan:
    """Raises LinesideError for numbers that make no sense, and for photographs that are not there."""
    if not given.minutes > 0:
        raise LinesideError(f"--minutes {given.minutes:g}: expected a number above 0, such as 1")
    most = len(SETS[given.photographs].arrive) if given.photographs else None
    weeks = given.weeks if given.weeks is not None else most or 8
    if weeks < 1 or (most is not None and weeks > most):
        raise LinesideError(
            f"--weeks {weeks}: expected 1 to {most}" if most else f"--weeks {weeks}: expected 1 or more"
        )
    amounts = FULL
    if given.frames is not None:
        if given.frames < 1:
            raise LinesideError(f"--frames {given.frames}: expected 1 or more")
        amounts = replace(amounts, base=6 * given.frames, weekly=given.frames)
    if given.tiny:
        amounts = Amounts(base=24, weekly=12, heldout=12, dev=6, size=56, share=0.05)
    data = given.data or Path("../shared/data") / given.photographs
    if given.photographs and not given.table and not data.exists():
        raise LinesideError(f"{data}: no such folder of photographs; give it with --data")
    if "plain" in given.arms and "ours" not in given.arms:
        raise LinesideError("--arms plain: it takes as many tokens as ours: name ours too")
    if given.base is not None and given.photographs:
        raise LinesideError("--base: a run of simulated frames; photographs are dealt into weeks with week 0")
    if given.base is not None and not (given.base / "evaluation" / "sft-heldout-think.json").exists():
        raise LinesideError(f"--base {given.base}: no run with an evaluated stage 2; `make demo` makes runs/quickstart")
    return Plan(given.runs, weeks, given.seed, given.minutes, given.tiny, given.photographs, data, amounts,
                given.questions, tuple(given.arms), given.base)  # fmt: skip


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler stops the job: save, as after Ctrl-C
    given = options()
    plan = plan_of(given)
    if given.dry_run:
        for unit in turns(plan):
            print(
                f"{'done' if finished(plan, unit) else 'to run'}: week {unit.week}, {unit.arm} {unit.planted}".rstrip()
            )
        return 0
    prepare()
    try:
        import weeks_page  # noqa: F401  now: the code of a run of hours may change on disk
        from weeks_table import publish

        if not given.table:
            run(plan)
        return publish(plan, units(plan), given.out, page=given.page)
    except KeyboardInterrupt:
        clear()
        say("interrupted; everything that is finished is kept: run the same command again to go on")
        return 130


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except LinesideError as error:
        clear()
        say(f"weeks: {error}")
        raise SystemExit(error.exit_status) from None
