"""`make torture-long`: 500 stages in miniature by one process, and whether memory, files, threads or disk grow.

    python -m tests.torture.long [--stages 500] [--folder runs/torture-long] [--out benchmarks/out/torture-long.json]

A round is `lineside train` of a small form of the recipe of `make torture`: align, sft and rlvr, each with its saves
and evaluations, and a report at its end. Each round has a seed of its own, and begins when the run of the round before
is deleted. After each stage the journal gets a line: what the process holds then, once garbage is collected and unused
memory is given back. A stage that is interrupted goes on from its state; slopes are taken within a process, so each
process begins with a new warm-up.

What a process holds after a stage depends on what it held before, so its readings are no independent points on a
line: their regression would be far too sure of itself. The readings are cut into blocks of whole rounds, ten of them
after the warm-up (batch means: Law, Simulation Modeling and Analysis, 2015, ch. 9.5). The slope is the mean step from
a block to the next one, that is last less first. Its interval is Student's t of these steps, widened as for readings
that wander at random: then neighbouring steps have a correlation of a quarter (Working, Econometrica 28, 1960). Of
readings that do not wander it is too wide. A test holds its coverage of both kinds.

The bound of the interval's upper end is one handle or thread in the whole run, and 1% of memory or disk in 100 stages.
What keeps it is flat, or, if the lower end is above 0, grows within its bound. Exit status: 0 all keep their bounds, 1
something does not, 3 too few stages for an interval.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
from rich.table import Table

from lineside.files import hold, write_atomic
from lineside.judgement.stats import LEVEL, Interval
from lineside.machine import give_back_memory, prepare
from lineside.progress import be_quiet, say, track
from lineside.stages import LINE
from tests.torture.cases import CASES

OUT = Path(__file__).parents[2] / "benchmarks" / "out" / "torture-long.json"
WARM = 10  # rounds of a process before its slopes: imports, caches that fill, the allocator
BLOCKS = 10
LEAST = 4  # blocks that an interval needs
WANDERS = 1.5  # variance of a mean of steps that have a correlation of a quarter, to that of independent ones
SHARE = 0.01  # of memory and disk, in 100 stages
SMALLER = (  # a few steps each: what is asked here is what stays when they are over
    "align.epochs=1", "sft.epochs=2", "rlvr.epochs=1", "evaluate.calibration=0",
)  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """What the process holds after a stage."""

    stage: int  # of all stages, from 0
    process: int  # how many have worked on it before
    memory: float  # MB of its own that are resident: pages of libraries come and go as the kernel likes
    peak: float  # most MB that were, during the stage
    handles: int  # open ones: files, sockets, pipes, mapped files of the run
    threads: int
    disk: float  # MB of all files: run, features, samples, temporary ones
    cpu: float  # seconds that the process has computed so far


COUNTS = ("handles", "threads")
HELD = ("memory", "peak", *COUNTS, "disk")


# --- the stages


def do_round(folder: Path, number: int, after: Callable[[str], None]) -> None:
    """Train and judge the stages of a round, or those that are left of it, and call `after` with the name of each. The
    runs of other rounds are deleted before."""
    import lineside.train
    import lineside.training.rollout
    from lineside.recipe import load_recipe
    from lineside.train import _Run, train
    from tests.small_run import by_length

    def stage(self: _Run, name: str, plain: Callable[[_Run, str], None] = _Run.stage) -> None:
        plain(self, name)
        after(name)

    recipe = load_recipe(folder / "recipe.yaml", [f"name=round-{number}", f"seed={number}", *SMALLER])
    for other in set(folder.glob("runs/round-*")) - {recipe.folder}:
        shutil.rmtree(other)
    with (
        patch.object(lineside.training.rollout, "judge", by_length),  # groups of an untrained model are live
        patch.object(_Run, "stage", stage),
        patch.object(lineside.train, "report", lambda *_: None),  # it is the same after each stage; the last one stays
    ):
        train(recipe)


def read(folder: Path, stage: int, process: int) -> Reading:
    """What this process holds now."""
    gc.collect()
    give_back_memory()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    memory, most, files = (int(status[name].split()[0]) / 1024 for name in ("RssAnon", "VmHWM", "RssFile"))
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    handles = len(os.listdir("/proc/self/fd")) - 1  # less the one that lists them
    handles += Path("/proc/self/maps").read_text().count(f" {folder}/")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    used = os.times()
    cpu = round(used.user + used.system, 2)
    return Reading(stage, process, memory, most - files, handles, int(status["Threads"]), size / 2**20, cpu)


def readings_in(journal: Path) -> list[Reading]:
    """The stages that are done."""
    return [Reading(**row) for row in json.loads(journal.read_text())] if journal.exists() else []


def run(folder: Path, journal: Path, stages: int) -> list[Reading]:
    """Do the rounds that are left of so many stages; each stage is written to the journal when it is done."""
    done = readings_in(journal)
    process = done[-1].process + 1 if done else 0
    if not (folder / "recipe.yaml").exists():
        shutil.rmtree(folder, ignore_errors=True)  # begun and killed
        folder.mkdir(parents=True)
        CASES["align"].begin(folder)
    (folder / "temporary").mkdir(exist_ok=True)
    left = range(len(done) // len(LINE), -(-stages // len(LINE)))
    for number in track(left, total=len(left), unit="rounds of three stages", label="torture-long"):

        def after(name: str, number: int = number) -> None:
            stage = number * len(LINE) + LINE.index(name)
            if stage == len(done):  # else an earlier process has done it
                done.append(read(folder, stage, process))
                write_atomic(journal, json.dumps([asdict(one) for one in done], indent=1) + "\n")

        with _silent(folder / "temporary"):
            do_round(folder, number, after)
        if number == left[0]:
            gc.freeze()  # what is imported; looking through it after each stage would take longer than the stage
    gc.unfreeze()
    return done


@contextmanager
def _silent(temporary: Path) -> Iterator[None]:
    """What verbs say is left out, and their temporary files lie in a folder that is measured."""
    be_quiet()
    try:
        with (
            open(os.devnull, "w") as nowhere,
            redirect_stdout(nowhere),
            patch.object(tempfile, "tempdir", str(temporary)),
        ):
            yield
    finally:
        be_quiet(False)


# --- slopes


class Slope(NamedTuple):
    """Growth in 100 stages with its interval, and the mean of the first and of the last block."""

    value: float
    interval: Interval
    first: float
    last: float
    stages: int  # in the blocks


def rounds_of(readings: Sequence[Reading], what: str) -> Iterator[list[float]]:
    """Of each process the mean of each whole round after the warm-up."""
    for _, own in groupby(readings, key=lambda one: one.process):
        rounds = [list(same) for _, same in groupby(own, key=lambda one: one.stage // len(LINE))]
        whole = [np.mean([getattr(one, what) for one in same]) for same in rounds if len(same) == len(LINE)]
        yield [float(one) for one in whole[WARM:]]


@functools.cache
def student(freedom: int) -> float:
    """What Student's t exceeds, without its sign, in one of twenty cases: from a million draws, to 0.3%."""
    return float(np.quantile(np.abs(np.random.default_rng(0).standard_t(freedom, 1_000_000)), LEVEL))


def slope_of(processes: Sequence[Sequence[float]], *, each: int = len(LINE)) -> Slope | None:
    """The slope of the values of each process, one for `each` stages; None if they are too few for an interval."""
    size = max(1, sum(map(len, processes)) // BLOCKS)
    blocks = [np.reshape(own[: len(own) // size * size], (-1, size)).mean(1) for own in processes]
    blocks = [own for own in blocks if len(own) > 1]
    if sum(map(len, blocks)) < LEAST:
        return None
    steps = np.concatenate([np.diff(own) for own in blocks]) * (100 / (size * each))
    half = student(len(steps) - 1) * steps.std(ddof=1) * (WANDERS / len(steps)) ** 0.5
    mean, stages = float(steps.mean()), sum(map(len, blocks)) * size * each
    bounds = Interval(mean - float(half), mean + float(half))
    return Slope(mean, bounds, float(blocks[0][0]), float(blocks[-1][-1]), stages)


def claims(readings: Sequence[Reading], command: str) -> list[dict[str, Any]]:
    """A claim for each thing that a process holds: the upper end of its slope's interval. One without an interval has
    no value and does not hold."""
    rows = []
    for what in HELD:
        found = slope_of(list(rounds_of(readings, what)))
        unit = "" if what in COUNTS else " MB"
        row: dict[str, Any] = {"claim": f"{what}: most{unit} that it grows in 100 stages, upper end of the interval"}
        row |= {"what": what, "value": None, "at_most": None, "holds": False, "n": len(readings), "command": command}
        if found:
            most = 100 / len(readings) if what in COUNTS else SHARE * found.first
            row |= {"value": found.interval.high, "at_most": most, "holds": found.interval.high <= most}
            row |= {"slope": found.value, "interval": found.interval, "first": found.first, "last": found.last}
            row |= {"stages_after_warm_up": found.stages, "processes": readings[-1].process + 1}
        rows.append(row)
    return rows


def verdict(row: dict[str, Any]) -> str:
    """A claim in words."""
    if row["value"] is None:
        return "too few stages"
    if row["interval"][0] > 0:
        return "grows, within its bound" if row["holds"] else "GROWS"
    return "flat" if row["holds"] else "NOT SHOWN TO BE FLAT"


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """The claims for people."""
    made = Table("what", "first", "last", "in 100 stages", "95% interval", "at most", "verdict")
    for row in rows:
        cells = [""] * 5
        if row["value"] is not None:
            low, high = row["interval"]
            cells = [f"{row['first']:.2f}", f"{row['last']:.2f}", f"{row['slope']:+.3f}", f"{low:+.3f} to {high:+.3f}"]
            cells.append(f"{row['at_most']:.3f}")
        made.add_row(row["what"] + ("" if row["what"] in COUNTS else ", MB"), *cells, verdict(row))
    return made


def main(words: Sequence[str] | None = None) -> int:
    """Do the stages that are left, print the table, write the claims."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", type=int, default=500)
    parser.add_argument("--folder", type=Path, default=Path("runs") / "torture-long")
    parser.add_argument("--out", type=Path, default=OUT)
    chosen = parser.parse_args(words)
    prepare()
    from lineside.judgement.console import show
    from lineside.origin import git_commit

    folder = (chosen.folder / (git_commit() or "unknown")).absolute()  # other code, other slopes
    with hold(folder):
        readings = run(folder / "work", folder / "journal.json", chosen.stages)
    rows = claims(readings, f"make torture-long TORTURE='--stages {chosen.stages}'")
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(chosen.out, json.dumps(rows, indent=1) + "\n")
    show(table(rows))
    cpu = sum(max(one.cpu for one in own) for _, own in groupby(readings, key=lambda r: r.process))
    say(f"{len(readings)} stages in {cpu / 60:.1f} minutes of processor time; claims in {chosen.out}")
    return 0 if all(row["holds"] for row in rows) else 3 if any(row["value"] is None for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
