"""`make torture`: verbs are killed, lose power, get a full disk, no memory and SIGTERM, and are then run again. They
must end like the unbroken run, byte by byte but for clocks (compare.py).

    python -m tests.torture.kills [--verbs align,sft] [--kills 50] [--folder runs/torture] [--workers 2]

A kill is SIGKILL, every other one at a random call that changes a file, the rest after a random share of the verb's own
time. A power cut comes after a random flush (replay.py), or with `--cuts every` after each one. It goes on where it was
stopped, prints a table and writes its claims to benchmarks/out/torture.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.torture.cases import CASES, Case
from tests.torture.child import Arm, Ended, import_all, preloaded, run
from tests.torture.compare import contents, differences
from tests.torture.replay import Change, Disk, Kept, Promised, boundaries, flushed_lines, last_states, read_log

OUT = Path(__file__).parents[2] / "benchmarks" / "out" / "torture.json"
MOST_KILLED = ("label", "align", "sft", "rlvr", "evaluate", "promote")
KEPT: tuple[Kept, ...] = ("flushed", "names", "some")
NEEDS_NONE = "it needs none"  # large allocations: nothing was tried
EVERY = "boundaries"  # power cuts after each flush of a verb; how many there are is known once it has run
TRIES = 20  # to find an instant before the end of a verb, whose time varies


@dataclass(frozen=True)
class Whole:
    """A verb's unbroken run."""

    contents: Mapping[str, str]
    seconds: float
    calls: int
    allocations: int


@dataclass(frozen=True)
class Trial:
    """One trial and what came of it. `wrong`: "" if all is as it should be. `lost`: CPU seconds more than unbroken;
    `left_after`: CPU seconds from SIGTERM to the end. `boundary`: the flush after which power was cut, of `of`."""

    verb: str
    kind: str
    number: int
    at: str
    wrong: str
    lost: float = 0.0
    left_after: float = 0.0
    boundary: int = 0
    of: int = 0


class Bench:
    """Bases and unbroken runs of the verbs in a folder of its own; all runs happen in `folder/work`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.work = folder, folder / "work"
        folder.mkdir(parents=True, exist_ok=True)
        self._whole: dict[str, Whole] = {}

    def base(self, case: Case) -> Path:
        """What the verb begins from."""
        place = self.folder / f"{case.name}.base"
        if not place.exists():
            if case.after:
                self.whole(CASES[case.after])
            self._clear()
            if case.after:
                shutil.copytree(self.folder / f"{case.after}.whole", self.work)
            else:
                self.work.mkdir()
            _must(run(lambda: case.begin(self.work), self.folder / "none"), f"{case.name}: its beginning")
            self.work.rename(place)
        return place

    def start(self, case: Case) -> None:
        """Put the beginning of a verb into `work`."""
        base = self.base(case)
        self._clear()
        shutil.copytree(base, self.work)

    def whole(self, case: Case) -> Whole:
        """The unbroken run. Its log, replayed, must give what it left; else the log misses changes."""
        told = self.folder / f"{case.name}.json"
        if case.name not in self._whole and told.exists():
            self._whole[case.name] = Whole(**json.loads(told.read_text()))
        if case.name not in self._whole:
            log, kept = self.folder / f"{case.name}.log", self.folder / f"{case.name}.whole"
            self.start(case)
            disk = Disk(self.work)
            done = _must(run(lambda: case.do(self.work), self.work, {"record": (str(log).encode(),)}), case.name)
            changes = read_log(log)
            for change in changes:
                disk.apply(change)
            found = contents(self.work)
            shutil.rmtree(kept, ignore_errors=True)
            self.work.rename(kept)
            disk.now(self.work)
            assert not (odd := differences(contents(self.work), found)), f"{case.name}: the log lacks changes of {odd}"
            self._whole[case.name] = Whole(found, done.seconds, done.calls, done.allocations)
            told.write_text(json.dumps(asdict(self._whole[case.name])))
        return self._whole[case.name]

    def changes(self, case: Case) -> list[Change]:
        """The log of the unbroken run."""
        self.whole(case)
        return read_log(self.folder / f"{case.name}.log")

    def boundaries(self, case: Case) -> list[int]:
        """Where its power can be cut: after how many changes a flush has ended."""
        return list(boundaries(self.changes(case), self.work))

    def run(self, case: Case, arm: Arm | None = None, *, after: float | None = None) -> Ended:
        """The verb, on what lies in `work`."""
        return run(lambda: case.do(self.work), self.work, arm, after=after)

    def again(self, case: Case) -> tuple[str, Ended]:
        """Run the verb again. What differs from the unbroken run then, or its error."""
        done = self.run(case)
        if done.status != 0:
            return f"status {done.status}: {done.said[-400:]}", done
        odd = differences(contents(self.work), dict(self.whole(case).contents))
        return (f"differs: {', '.join(odd[:6])}" if odd else ""), done

    def _clear(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)


def _must(done: Ended, what: str) -> Ended:
    assert done.status == 0, f"{what} ends with {done.status}: {done.said[-2000:]}"
    return done


# --- trials


def kill(bench: Bench, case: Case, number: int) -> Trial:
    """SIGKILL at a random instant, then the verb again."""
    whole, chance = bench.whole(case), random.Random(f"kill {case.name} {number}")
    most = whole.seconds
    for _ in range(TRIES):
        if number % 2:
            seconds = chance.uniform(0, most)
            at, arm = f"after {seconds:.3f} s", {"time_out": (seconds,)}
        else:
            call, half = chance.randrange(whole.calls) + 1, chance.randrange(2)
            at, arm = f"at change {call}{' half written' * half}", {"arm": (call, half)}
        bench.start(case)
        if (first := bench.run(case, arm)).killed:
            break
        most = min(most, first.seconds)  # the unbroken run may have been the first one, which compiles
    else:
        return Trial(case.name, "kills", number, at, f"never killed, status {first.status}")
    wrong, second = bench.again(case)
    return Trial(case.name, "kills", number, at, wrong, first.seconds + second.seconds - whole.seconds)


def cut(bench: Bench, case: Case, number: int) -> Trial:
    """A power cut right after a random flush; each fourth one comes after the last change."""
    chance, ends = random.Random(f"cut {case.name} {number}"), bench.boundaries(case)
    which = len(ends) - 1 if number % 4 == 0 else chance.randrange(len(ends))
    return _cut(bench, case, "cuts", number, which, KEPT[number % len(KEPT)], chance)


def boundary(bench: Bench, case: Case, number: int) -> Trial:
    """A power cut right after a flush, one after another. What is kept goes by turns, also where flushes come in
    threes."""
    kept = KEPT[(number + number // len(KEPT)) % len(KEPT)]
    return _cut(bench, case, EVERY, number, number, kept, random.Random(f"boundary {case.name} {number}"))


def _cut(bench: Bench, case: Case, kind: str, number: int, which: int, kept: Kept, chance: random.Random) -> Trial:
    """A power cut after a flush, then the verb again. What was durable must be there; at the end, all."""
    whole, changes, ends = bench.whole(case), bench.changes(case), bench.boundaries(case)
    at = ends[which]
    bench.start(case)
    disk, promised = Disk(bench.work), Promised()
    for change in changes[:at]:
        disk.apply(change)
        promised.apply(change, disk)
    shutil.rmtree(bench.work)
    disk.left(bench.work, kept, chance)
    found = run(lambda: _read_again(bench.work, changes[:at]), bench.work)
    where = f"flush {which + 1} of {len(ends)}, after change {at} of {len(changes)}, {kept}"
    where += f": {len(promised.files)} files{found.said.rstrip()}"
    lost = promised.lost()
    if at == len(changes):
        there = contents(bench.work)
        lost += [name for name in whole.contents if there.get(name) != whole.contents[name]]
    wrong = f"was done, and is lost: {', '.join(lost[:6])}" if lost else ""
    if found.status:
        wrong = f"what was flushed is not read again: {found.said[-400:]}"
    return Trial(case.name, kind, number, where, wrong or bench.again(case)[0], boundary=which + 1, of=len(ends))


def _read_again(folder: Path, changes: list[Change]) -> None:
    """Read the states and ledgers that a cut has left, as the verb does. Says what is there; raises AssertionError if
    that is less than what was flushed."""
    from lineside.data.ledger import Ledger
    from lineside.training.state import load_state

    for place, step in last_states(changes).items():
        state = load_state(Path(place))
        assert state is not None and state.step >= step, f"{place}: {state and state.step}, flushed: {step}"
        print(f", state {state.step} (flushed {step})", end="")
    for path, lines in flushed_lines(changes).items():
        with tempfile.TemporaryDirectory() as copy:  # to open it cuts off an unfinished line
            shutil.copy(path, copy)
            with Ledger(Path(copy)) as ledger:
                assert ledger.requests >= lines, f"{path}: {ledger.requests} of {lines} replies"
                print(f", {ledger.requests} replies (flushed {lines})", end="")


def full(bench: Bench, case: Case, number: int) -> Trial:
    """The disk is full from a random change on; with room again the verb goes on."""
    return _refused(bench, case, number, "full", "fill", bench.whole(case).calls, ("disk is full", "make room"))


def memory(bench: Bench, case: Case, number: int) -> Trial:
    """No large allocation succeeds from a random one on; with memory again the verb goes on."""
    return _refused(bench, case, number, "memory", "starve", bench.whole(case).allocations, ("memory",))


def _refused(bench: Bench, case: Case, number: int, kind: str, function: str, most: int, words: Sequence[str]) -> Trial:
    if not most:
        return Trial(case.name, kind, number, NEEDS_NONE, "")
    call = random.Random(f"{kind} {case.name} {number}").randrange(most) + 1
    at, arm = f"from {call} of {most} on", {function: (call,)}
    bench.start(case)
    first = bench.run(case, arm)
    told = all(word in first.said for word in words) and "Traceback" not in first.said
    died = kind == "memory" and first.status < 0  # a library that cannot say that memory has run out
    if (first.status not in (0, 2) and not died) or (first.status == 2 and not told):
        return Trial(case.name, kind, number, at, f"status {first.status}: {first.said[-600:]}")
    return Trial(case.name, kind, number, at, bench.again(case)[0])


def term(bench: Bench, case: Case, number: int) -> Trial:
    """SIGTERM after a random share of the verb's own time, then the verb again."""
    whole, chance = bench.whole(case), random.Random(f"term {case.name} {number}")
    most = whole.seconds
    for _ in range(TRIES):
        after = chance.uniform(0, most)
        bench.start(case)
        first = bench.run(case, after=after)
        if first.told:
            break
        most = min(most, first.seconds)
    at = f"after {after:.2f} s"
    if not first.told:
        return Trial(case.name, "terms", number, at, f"no signal: it ended before, {TRIES} times")
    if first.status != 130 or "Traceback" in first.said:
        return Trial(case.name, "terms", number, at, f"status {first.status}: {first.said[-400:]}")
    return Trial(case.name, "terms", number, at, bench.again(case)[0], left_after=first.left_after)


KINDS: dict[str, Callable[[Bench, Case, int], Trial]] = {
    "kills": kill, "cuts": cut, EVERY: boundary, "full": full, "memory": memory, "terms": term,
}  # fmt: skip


# --- all of them


def planned(verbs: Sequence[str], counts: Mapping[str, int]) -> list[tuple[str, str, int]]:
    """(verb, kind, number) of each trial, and one of kind EVERY for all of a verb. The verbs of the claim get all
    kills, the others a fifth."""
    return [
        (verb, kind, number)
        for verb in verbs
        for kind in KINDS
        for number in range(counts[kind] if kind != "kills" or verb in MOST_KILLED else -(-counts[kind] // 5))
    ]


def work(folder: Path, todo: Sequence[tuple[str, str, int]], journal: Path) -> None:
    """Do the trials of one worker; each is written to the journal when it is done."""
    bench, done = Bench(folder), {(t.verb, t.kind, t.number) for t in read_journals(folder.parent)}
    with journal.open("a") as file:
        for verb, kind, first in todo:
            for number in range(len(bench.boundaries(CASES[verb]))) if kind == EVERY else (first,):
                if (verb, kind, number) in done:
                    continue
                trial = KINDS[kind](bench, CASES[verb], number)
                file.write(json.dumps(asdict(trial)) + "\n")
                file.flush()
                print(f"{verb} {kind} {number}: {trial.at}: {trial.wrong or 'identical'}", file=sys.stderr, flush=True)


def read_journals(folder: Path) -> list[Trial]:
    """The trials that are done."""
    lines = (line for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines())
    found = {(t.verb, t.kind, t.number): t for t in (Trial(**json.loads(line)) for line in lines)}
    return list(found.values())


def in_workers(folder: Path, todo: Sequence[tuple[str, str, int]], workers: int) -> None:
    """Share the trials out by verb and kind, so that few workers need the same unbroken runs. All boundaries of a verb
    are of one run's log, so always the same worker's."""
    todo = sorted(todo, key=lambda one: one[1] != EVERY)
    children = []
    for number in range(workers):
        if (child := os.fork()) == 0:
            try:
                work(folder / f"worker{number}", todo[number::workers], folder / f"{number}-{os.getpid()}.jsonl")
                os._exit(0)
            except BaseException as error:
                print(f"torture: {error!r}", file=sys.stderr, flush=True)
                os._exit(1)
        children.append(child)
    failed = [child for child in children if os.waitpid(child, 0)[1] != 0]
    if failed:
        raise SystemExit("torture: a worker failed; what is done is kept: run it again")


def table(trials: Sequence[Trial]) -> Iterator[str]:
    """A line a verb: of each kind, how many were identical of how many, and the seconds lost by a kill."""
    yield f"{'verb':10}" + "".join(f"{kind:>11}" for kind in KINDS) + f"{'lost':>8}  CPU s a kill, mean"
    for verb in dict.fromkeys(t.verb for t in trials):
        own = [t for t in trials if t.verb == verb]
        cells = [[t for t in own if t.kind == kind] for kind in KINDS]
        lost = [t.lost for t in cells[0]]
        mean = f"{sum(lost) / len(lost):8.2f}" if lost else f"{'':8}"
        yield f"{verb:10}" + "".join(f"{f'{sum(not t.wrong for t in c)}/{len(c)}':>11}" for c in cells) + mean
    for verb, (tried, of) in flushes(trials).items():
        yield f"{verb}: power was cut after {tried} of {of} flushes"


def flushes(trials: Sequence[Trial]) -> dict[str, tuple[int, int]]:
    """Of each verb, after how many of its flushes power was cut, and how many it has."""
    cuts = [trial for trial in trials if trial.of]
    return {
        verb: (len({t.boundary for t in cuts if t.verb == verb}), max(t.of for t in cuts if t.verb == verb))
        for verb in dict.fromkeys(trial.verb for trial in cuts)
    }


def claims(trials: Sequence[Trial], command: str) -> list[dict[str, Any]]:
    """What is claimed, kind by kind, as all benchmarks write it."""
    names = {
        "kills": "runs identical to the unbroken one after SIGKILL, share",
        "cuts": "runs identical after a power cut, nothing lost that was done, share",
        EVERY: "runs identical after a power cut at each flush, nothing lost that was done, share",
        "full": "runs that name a full disk and go on identically, share",
        "memory": "runs that name a lack of memory and go on identically, share",
        "terms": "runs that SIGTERM ends with 130 and that go on identically, share",
    }
    rows = []
    for kind, name in names.items():
        if of := [t for t in trials if t.kind == kind]:
            value = sum(not t.wrong for t in of) / len(of)
            rows.append({"claim": name, "value": value, "at_least": 1.0, "holds": value >= 1, "n": len(of)})
            if kind in ("cuts", EVERY):
                rows[-1]["flushes tried, of"] = flushes(of)
    if slow := [t.left_after for t in trials if t.kind == "terms"]:
        row = {"claim": "most CPU seconds from SIGTERM to the end", "value": round(max(slow), 2), "at_most": 10.0}
        rows.append({**row, "holds": max(slow) <= 10, "n": len(slow)})
    verbs = Counter(t.verb for t in trials if t.kind == "kills")
    return [{**row, "command": command, "kills": verbs} for row in rows]


def _every(text: str) -> int | str:
    """A number of cuts, or `every`."""
    return EVERY if text == "every" else int(text)


def main(words: Sequence[str] | None = None) -> int:
    """Torture what is not done yet, print the table, write the claims."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--verbs", default=",".join(CASES))
    for kind, count in {"kills": 50, "cuts": 15, "full": 5, "memory": 3, "terms": 5}.items():
        parser.add_argument(f"--{kind}", type=_every if kind == "cuts" else int, default=count)
    parser.add_argument("--folder", type=Path, default=Path("runs") / "torture")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=OUT)
    chosen = parser.parse_args(words)
    if "preload" not in os.environ.get("LD_PRELOAD", ""):
        with tempfile.TemporaryDirectory() as folder:
            return preloaded(Path(folder), ["-m", "tests.torture.kills", *(words or sys.argv[1:])]).returncode
    from lineside.origin import git_commit

    folder = (chosen.folder / (git_commit() or "unknown")).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    import_all()
    start, done = time.monotonic(), {(t.verb, t.kind, t.number) for t in read_journals(folder)}
    counts = {kind: getattr(chosen, kind) for kind in KINDS if kind != EVERY} | {EVERY: 0}
    if counts["cuts"] == EVERY:
        counts |= {"cuts": 0, EVERY: 1}
    todo = [one for one in planned(chosen.verbs.split(","), counts) if one not in done or one[1] == EVERY]
    print(f"torture: {len(done)} trials are done, {len(todo)} are left, in {folder}", file=sys.stderr, flush=True)
    in_workers(folder, todo, chosen.workers)
    trials = [trial for trial in read_journals(folder) if trial.at != NEEDS_NONE]
    print("\n".join(table(trials)))
    for trial in trials:
        if trial.wrong:
            print(f"{trial.verb} {trial.kind} {trial.number}, {trial.at}: {trial.wrong}")
    rows = claims(trials, "make torture")
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(rows, indent=1) + "\n")
    print(f"{len(todo)} trials in {(time.monotonic() - start) / 60:.1f} min; claims in {chosen.out}", file=sys.stderr)
    return int(not all(row["holds"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
