"""A labelling job against the torture server, unbroken and killed, and whether the two are the same.

Real HTTP, real processes, real SIGKILL. `python tests/torture/harness.py` is `make torture-label`.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image as Pil

from lineside.data import store
from lineside.data.ledger import read_ledger
from lineside.machine import end_with_parent
from lineside.types import Frame, Image, Meta

SERVER = Path(__file__).parent / "server.py"
COMMAND = [sys.executable, "-c", "from lineside.cli import main; main()", "label"]
KEY = "torture-key-5e1f"
TURNS = 4
TASKS = """
tasks:
  - {family: bin, name: count, phrasings: ["How many parts?"], answer: {kind: number, column: count, tolerance: 2}}
  - family: bin
    name: state
    phrasings: ["Is the bin full, half or bare?"]
    answer: {kind: choice, column: state, options: [full, half, bare]}
    max_share: 0.4
  - {family: bin, name: upright, when: ask, phrasings: ["Is the item upright?"],
     answer: {kind: choice, options: ["yes", "no"]}}
"""


def write_frames(folder: Path, count: int, *, sound: bool = False) -> None:
    """Small frames with records and a task file; one in a hundred cut off, one in twenty of a suite unless `sound`."""

    def frames() -> Iterator[Frame]:
        for number in range(count):
            out = io.BytesIO()
            Pil.new("RGB", (16, 16), (number % 256, number // 256, 80)).save(out, "PNG")
            data = out.getvalue()[:-40] if number % 100 == 7 and not sound else out.getvalue()
            state = ("full", "half", "half", "bare")[number % 4]
            record = {"count": number % 9, "state": state, "ask": number % 5 == 0}
            split = "heldout" if number % 20 == 3 and not sound else "train"
            yield Frame(f"f{number:05d}", Image(data), "bin", record, Meta(f"s{number}"), split)

    store.write_frames(folder / "frames", frames())
    (folder / "tasks.yaml").write_text(TASKS)


@contextmanager
def serving(**options: float | str) -> Iterator[tuple[str, Counter]]:
    """A server process: (its base URL, what it has served, known when the block ends)."""
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    process = subprocess.Popen(
        [sys.executable, str(SERVER), *words], stdout=subprocess.PIPE, text=True, preexec_fn=end_with_parent
    )
    assert process.stdout is not None
    served: Counter = Counter()
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1", served
    finally:
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=30)
        served.update(json.loads(out or "{}"))


class Job:
    """One labelling job and its folder."""

    def __init__(self, folder: Path, name: str, url: str, *, in_flight: int = 64, words: Sequence[str] = ()) -> None:
        self.out = folder / name
        self.words = [
            str(folder / "frames"), str(self.out), "--teacher", "api", "--tasks", str(folder / "tasks.yaml"),
            "--model", "hat", "--base-url", url, "--key-env", "TORTURE_KEY", "--in-flight", str(in_flight),
            "--timeout", "2", "--backoff", "0.1", "--captions-per-frame", "4", "--questions-per-frame", "4", *words,
        ]  # fmt: skip
        self.ledger = self.out / "teacher-000.ledger"
        self.said = ""

    def start(self) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "TORTURE_KEY": KEY, "no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}
        return subprocess.Popen([*COMMAND, *self.words], env=environment, stderr=open(f"{self.out}.err", "ab"))

    def finish(self) -> float:
        """Run to the end; seconds it took."""
        start = time.monotonic()
        status = self.start().wait(timeout=900)
        self.said = Path(f"{self.out}.err").read_text()
        assert status == 0, self.said[-2000:]
        return time.monotonic() - start

    def kill_when(self, reached, *, limit: float = 300.0) -> bool:
        """Start, and SIGKILL when `reached(seconds)`; False if it ended by itself before."""
        process, start = self.start(), time.monotonic()
        while process.poll() is None and time.monotonic() - start < limit:
            if reached(time.monotonic() - start):
                process.kill()
                process.wait()
                return True
            time.sleep(0.002)
        process.kill()
        return False

    def killed(self, kills: int, whole: Job, seed: int) -> int:
        """Kill the job `kills` times: early, while it asks (by ledger size) and while it writes; how many it took."""
        size, chance, done = whole.ledger.stat().st_size, random.Random(seed), 0
        early, writing = max(1, kills // 7), max(1, kills // 7)
        for _ in range(early):
            delay = chance.uniform(0.1, 3.0)
            done += self.kill_when(lambda seconds, delay=delay: seconds > delay)
        for mark in sorted(chance.uniform(0.02, 0.98) * size for _ in range(kills - early - writing)):
            done += self.kill_when(lambda _, mark=mark: self.ledger.exists() and self.ledger.stat().st_size >= mark)
        # The file that the writing pass opens first, then one shard, two shards ... so that the kills lie in that pass.
        opened = self.out / "dropped.jsonl"
        for number in range(writing):
            before = _changed(opened)

            def written(_: float, before: int = before, number: int = number) -> bool:
                return _changed(opened) != before and len(list(self.out.glob("*.parquet*"))) >= number

            done += self.kill_when(written)
        return done

    def files(self) -> dict[str, str]:
        """Hashes of all that the job wrote but the ledger, which holds answers in the order they came."""
        found = sorted(path for path in self.out.rglob("*") if path.is_file() and path.suffix != ".ledger")
        return {str(p.relative_to(self.out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}

    def account(self, folder: Path) -> dict[str, set[str]]:
        """Every frame by what became of it. Raises AssertionError when one is in two places, or in none."""
        names = [frame.id for frame in store.read_frames(folder / "frames")]
        parts = {"labelled": {sample.meta.scene.replace("s", "") for sample in store.read_samples(self.out)}}
        parts["labelled"] = {name for name in names if str(int(name[1:])) in parts["labelled"]}
        for part in ("rejected", "failed"):
            lines = [json.loads(line)["name"] for line in (self.out / f"{part}.jsonl").read_text().splitlines()]
            assert len(lines) == len(set(lines)), f"{part}: a frame twice"
            parts[part] = set(lines)
        told = json.loads((self.out / "label.json").read_text())["frames"]
        assert {part: len(frames) for part, frames in parts.items()} == {part: told[part] for part in parts}, told
        assert sum(map(len, parts.values())) == len(set().union(*parts.values())) == len(names), "a frame twice or lost"
        ids = [(sample.id, sample.kind) for sample in store.read_samples(self.out)]
        assert len(ids) == len(set(ids)), "a sample twice"
        return parts


def _changed(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def _seconds_of(name: str, said: str) -> float:
    """How long a pass took, as the job told it at its end: "label: ask: 1,280 frames in 20.8 s (61.5/s)"."""
    minutes, seconds = re.findall(rf"label: {name}: [\d,]+ frames in (?:(\d+) min )?([\d.]+) s \(", said)[-1]
    return 60 * int(minutes or 0) + float(seconds)


def torture(
    folder: Path,
    *,
    frames: int,
    kills: int,
    seed: int,
    in_flight: int = 64,
    stall: float = 4.0,
    words: Sequence[str] = (),
) -> dict[str, object]:
    """The two jobs, compared. Raises AssertionError where they differ or anything is lost, doubled or told."""
    write_frames(folder, frames)
    with serving(seed=seed, stall=stall) as (url, served):
        whole = Job(folder, "whole", url, in_flight=in_flight, words=words)
        seconds = whole.finish()
    for turn in range(TURNS):  # on a busy machine a kill may come when the job has ended: then all over again
        with serving(seed=seed, stall=stall) as (url, served_again):
            broken = Job(folder, f"broken{turn}", url, in_flight=in_flight, words=words)
            done = broken.killed(kills, whole, seed + turn)
            broken.finish()
        if done == kills:
            break
    else:
        raise AssertionError(f"{done} of {kills} kills came before the end, {TURNS} times")
    assert whole.files() == broken.files(), "the resumed job differs from the unbroken one"
    parts = broken.account(folder)
    whole.account(folder)
    journalled = [(e["key"], e["attempt"]) for e in read_ledger(broken.ledger)]
    assert len(journalled) == len(set(journalled)), "an attempt was journalled twice"
    assert served_again["attempts served again"] - served_again["429"] <= kills * in_flight, "asked again without need"
    for path in folder.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), f"{path} holds the key"
    return {
        "frames": {part: len(found) for part, found in parts.items()},
        "unbroken seconds": round(seconds, 1),
        "kills": done,
        "journalled": len(journalled),
        "served": dict(served),
        "served with kills": dict(served_again),
    }


def overhead(folder: Path, *, in_flight: int = 64, rounds: int = 20) -> dict[str, float]:
    """Wall time of asking against the ideal, requests * latency / in_flight, with answers that take one second."""
    write_frames(folder, in_flight * rounds, sound=True)
    with serving(faults=0.0, latency=1.0) as (url, served):
        words = ["--question-share", "0", "--prompt-share", "0", "--timeout", "30"]
        job = Job(folder, "timed", url, in_flight=in_flight, words=words)
        start = os.times()
        total = job.finish()
        used = os.times()
    ideal = served["200"] / in_flight  # a last round that is not full takes as long as a full one: counted as ours
    asking = _seconds_of("ask", job.said)
    cpu = used.children_user + used.children_system - start.children_user - start.children_system
    return {
        "requests": served["200"],
        "ideal seconds": ideal,
        "asking seconds": asking,
        "overhead percent": 100 * (asking / ideal - 1),
        "whole command seconds": round(total, 1),
        "cpu seconds of client and server": round(cpu, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--frames", type=int, default=5000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        options = ["--timeout", "10"]  # well above what a busy machine takes, below a stall
        result = torture(
            Path(folder), frames=words.frames, kills=words.kills, seed=words.seed, stall=12.0, words=options
        )
    print(f"killed {words.kills} times, result identical: {json.dumps(result)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        print(f"overhead: {json.dumps(overhead(Path(folder)))}")


if __name__ == "__main__":
    main()
