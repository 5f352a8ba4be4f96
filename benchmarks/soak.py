"""A real server under load for as long as asked: how late its answers are, and whether its memory stays flat.

    python benchmarks/soak.py CHECKPOINT [--minutes 30] [--load 1.5] [--frames FOLDER] [--seed 0]

Starts `lineside serve CHECKPOINT` and asks in an open loop: frames come at random times, each with `--questions`
requests at once, of those tasks that are asked without slots. The deadline of a request is its task's budget, times
`--budget`. Load 1 is measured first: what the server answers a second of the same questions, thoughts and all, when
`ROWS` of them are always under way and none has to hurry.

Lateness is measured by the server's clock, and again by the client's. Beside it stand the machine's own stalls: how
long the engine could have run and got no processor, since others had it (`run_delay` of /proc/PID/schedstat). Memory is
the resident one of the front, of the engine and of the process that decodes pictures, over the second half of the run,
when all caches are full; a run of a few minutes is a rehearsal that claims nothing about it.

Writes benchmarks/out/soak.json; the exit status says whether all claims hold.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, pairwise
from pathlib import Path
from statistics import linear_regression
from typing import Any

import httpx2
import numpy as np
from PIL import Image

from common import OUT
from lineside.files import write_atomic

ROWS = 24  # requests that are under way while the load is measured
PICTURES = 256  # more than the caches hold, so every frame is a new one
CACHE_MB = 8  # of features and of frames each: they are full after a few seconds
PATIENCE_MS = 600_000.0
LONG = 15  # minutes from which the slope of memory is a claim: in the first ones the caches fill


@dataclass
class Seen:
    """What became of the requests, in ms. `waits`: (sent, received, total by the server, deadline)."""

    statuses: Counter[int] = field(default_factory=Counter)
    thinking: Counter[str] = field(default_factory=Counter)
    waits: list[tuple[float, float, float, float]] = field(default_factory=list)
    memory: dict[str, list[tuple[float, float]]] = field(default_factory=dict)  # process -> (minutes, MB)
    stalled: list[tuple[float, float]] = field(default_factory=list)  # (when, how long the engine has waited so far)


def now() -> float:
    """Milliseconds of the clock that all processes share."""
    return 1000 * time.monotonic()


@contextmanager
def serving(checkpoint: Path, folder: Path) -> Iterator[tuple[str, int]]:
    """`lineside serve` in a process of its own: its address and process."""
    command = [sys.executable, "-c", "from lineside.cli import main; main()", "serve", f"model={checkpoint}"]
    command += ["--port", "0", "--unjudged", "--prefix-mb", str(CACHE_MB), "--feature-mb", str(CACHE_MB)]
    with (folder / "serve.log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        if not address:
            sys.exit((folder / "serve.log").read_text())
        try:
            yield address, process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=120)


def pictures(folder: Path | None, seed: int) -> list[str]:
    """Data URLs of the pictures in a folder, each altered a little, or of noise."""
    chance = np.random.default_rng(seed)
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png")) if folder else []
    urls = []
    for number in range(PICTURES):
        if paths:
            with Image.open(paths[number % len(paths)]) as opened:
                picture = opened.convert("RGB")
            picture.putpixel((0, 0), tuple(chance.integers(0, 255, 3).tolist()))
        else:
            picture = Image.fromarray(chance.integers(0, 255, (224, 224, 3), dtype=np.uint8))
        picture.save(buffer := io.BytesIO(), "PNG")
        urls.append("data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode())
    return urls


def processes(front: int) -> dict[str, int]:
    """A server's processes by what they are."""
    named = {"front": front}
    for child in Path(f"/proc/{front}/task/{front}/children").read_text().split():
        command = Path(f"/proc/{child}/cmdline").read_bytes()
        if b"lineside.serving.worker" in command:
            named["engine"] = int(child)
        elif b"spawn_main" in command:  # and not Python's resource tracker
            named["decoder"] = int(child)
    return named


def resident(process: int) -> float:
    """Megabytes of a process that are in memory."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def waited(process: int) -> float:
    """Milliseconds that a process could have run and did not."""
    return int(Path(f"/proc/{process}/schedstat").read_text().split()[1]) / 1e6


class Client:
    """Asks the server, and keeps what became of it."""

    def __init__(self, http: httpx2.AsyncClient, urls: Sequence[str], tasks: dict[str, Any], seed: int) -> None:
        self.http, self.urls, self.tasks = http, urls, tasks
        self.chance, self.frames, self.seen = random.Random(seed), count(), Seen()

    def frame(self, questions: int) -> list[tuple[str, str]]:
        """A new frame and as many questions about it: (URL, task) each."""
        url = self.urls[next(self.frames) % len(self.urls)]
        return [(url, self.chance.choice(sorted(self.tasks))) for _ in range(questions)]

    async def ask(self, url: str, task: str, deadline: float) -> None:
        """One request."""
        text = self.tasks[task]["phrasings"][0]
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
        body = {"model": "model", "messages": [{"role": "user", "content": content}]}
        sent = now()
        answer = await self.http.post(
            "v1/chat/completions", json={**body, "lineside": {"task": task, "deadline_ms": deadline}}
        )
        self.seen.statuses[answer.status_code] += 1
        if answer.status_code == 200:
            own = answer.json()["lineside"]
            self.seen.thinking[own["thinking"]] += 1
            self.seen.waits.append((sent, now(), own["ms"]["total"], deadline))

    async def capacity(self, seconds: float, questions: int) -> float:
        """Answers a second without haste, when `ROWS` requests are always under way."""
        end, answered = now() + 1000 * seconds, 0

        async def worker() -> None:
            nonlocal answered
            while now() < end:
                asked = self.frame(questions)
                await asyncio.gather(*(self.ask(url, task, PATIENCE_MS) for url, task in asked))
                answered += len(asked)

        start = now()
        await asyncio.gather(*(worker() for _ in range(max(1, ROWS // questions))))
        rate = answered / (now() - start) * 1000
        self.seen = Seen()
        return rate

    async def run(self, rate: float, minutes: float, questions: int, budget: float, front: int) -> None:
        """`rate` requests a second for so many minutes, and the memory of the server's processes meanwhile."""
        start, tasks, named = now(), set[asyncio.Task[None]](), processes(front)
        end = start + 60_000 * minutes

        async def sample() -> None:
            for turn in count():
                self.seen.stalled.append((now(), waited(named["engine"])))
                for name, process in named.items() if not turn % 40 else ():
                    self.seen.memory.setdefault(name, []).append(((now() - start) / 60_000, resident(process)))
                await asyncio.sleep(0.05)

        sampling = asyncio.create_task(sample())
        due = start
        while due < end:
            due += self.chance.expovariate(rate / questions) * 1000  # of its own clock: a late client does not ask less
            await asyncio.sleep(max(0.0, (due - now()) / 1000))
            for url, task in self.frame(questions):
                given = budget * self.tasks[task]["budget_ms"]
                tasks.add(one := asyncio.create_task(self.ask(url, task, given)))
                one.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
        sampling.cancel()


def summary(seen: Seen, minutes: float) -> dict[str, Any]:
    """The numbers of a run. A late answer is put down to the machine if it would not be late without the stalls in its
    time."""
    accepted, (times, stalls) = max(1, len(seen.waits)), zip(*seen.stalled)

    def stall(sent: float, received: float) -> float:
        begun, ended = (bisect_left(times, at) for at in (sent, received))
        return stalls[min(ended, len(stalls) - 1)] - stalls[max(0, begun - 1)]

    over = [(sent, received) for sent, received, total, given in seen.waits if total > 1.1 * given]
    own = [1 for s, r, total, given in seen.waits if total > 1.1 * given and total - stall(s, r) > 1.1 * given]
    waits = sorted(total for _, _, total, _ in seen.waits)
    memory = {}
    for name, points in seen.memory.items():
        half = [point for point in points if point[0] >= minutes / 2]
        slope = linear_regression(*zip(*half)).slope if len(half) > 2 else float("nan")
        memory[name] = {"mb": points[-1][1], "first_mb": points[0][1], "mb_per_hour": 60 * slope}
    return {
        "accepted": len(seen.waits),
        "statuses": dict(seen.statuses),
        "thinking": dict(seen.thinking),
        "in_time_per_s": sum(total <= given for *_, total, given in seen.waits) / (60 * minutes),
        "late": sum(total > given for *_, total, given in seen.waits) / accepted,
        "late_over_10": len(over) / accepted,
        "late_over_10_without_stalls": len(own) / accepted,
        "client_late_over_10": sum(r - s > 1.1 * given for s, r, _, given in seen.waits) / accepted,
        "p50_ms": waits[len(waits) // 2] if waits else None,
        "p99_ms": waits[int(0.99 * len(waits))] if waits else None,
        "stalled_share": (stalls[-1] - stalls[0]) / (times[-1] - times[0]),
        "longest_stall_ms_in_50": max(later - one for one, later in pairwise(stalls)),
        "memory": memory,
    }


async def drive(chosen: argparse.Namespace, address: str, front: int) -> dict[str, Any]:
    """Measure the load, run, and say what was seen."""
    async with httpx2.AsyncClient(base_url=address, timeout=PATIENCE_MS / 1000) as http:
        while (await http.get("readyz")).status_code != 200:
            await asyncio.sleep(0.2)
        (model,) = (await http.get("v1/models")).json()["data"]
        tasks = {
            name: task
            for name, task in model["lineside"]["tasks"].items()
            if task["phrasings"] and "{" not in task["phrasings"][0] and task["budget_ms"]
        }
        if not tasks:
            sys.exit(f"{chosen.checkpoint}: no task that has a budget and is asked without slots (tasks.json)")
        client = Client(http, pictures(chosen.frames, chosen.seed), tasks, chosen.seed)
        capacity = await client.capacity(chosen.measure, chosen.questions)
        print(f"without haste: {capacity:.2f} answers a second; tasks: {', '.join(sorted(tasks))}", flush=True)
        await client.run(chosen.load * capacity, chosen.minutes, chosen.questions, chosen.budget, front)
    return {"load_1_per_s": capacity, **summary(client.seen, chosen.minutes)}


def main() -> int:
    """Run and write the claims."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--load", type=float, default=1.5)
    parser.add_argument("--questions", type=int, default=5, help="about each frame, as requests of their own")
    parser.add_argument("--budget", type=float, default=1.0, help="factor on the tasks' budgets, for slower machines")
    parser.add_argument("--measure", type=float, default=20.0, help="seconds in which load 1 is measured")
    parser.add_argument("--frames", type=Path, help="folder of pictures; without one they are noise")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, serving(chosen.checkpoint, Path(name)) as (address, front):
        found = asyncio.run(drive(chosen, address, front))
    print(json.dumps(found, indent=2))
    command = " ".join(["python", "benchmarks/soak.py", *sys.argv[1:]])
    others = sum(n for status, n in found["statuses"].items() if status not in (200, 503))
    values = [
        ("accepted answers over 10% late, but for the machine's stalls", found["late_over_10_without_stalls"], 0.001),
        ("requests that were neither answered nor refused", others, 0),
        *(
            (f"memory of the {name}: growth in its second half, share an hour", one["mb_per_hour"] / one["mb"], 0.01)
            for name, one in found["memory"].items()
            if chosen.minutes >= LONG
        ),
    ]
    claims = [
        {"claim": claim, "value": value, "at_most": most, "holds": value <= most, "n": found["accepted"]}
        | {"command": command, **found}
        for claim, value, most in values
    ]
    write_atomic(OUT / "soak.json", json.dumps(claims, indent=2) + "\n")
    for one in claims:
        print(f"{one['claim']}: {one['value']:.5f}, {'holds' if one['holds'] else 'DOES NOT HOLD'}")
    if chosen.minutes < LONG:
        print(f"memory: not measured, since the caches fill in the first {LONG} minutes")
    return 0 if all(one["holds"] for one in claims) else 1


if __name__ == "__main__":
    sys.exit(main())
