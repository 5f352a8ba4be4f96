"""Two processes that train together against one: tokens a second, the share lost to waiting, and equal losses.

    python benchmarks/two_processes.py [--tiny] [--steps 6] [--repeats 3]
    python benchmarks/two_processes.py --reading [--frames 96] [--repeats 5]

Stage 2 of a random model of nano's shape in float32, by the reference backend, one thread a process, gloo on this
machine: the same recipe and samples by one process and by two, in turn. A step is 16 frames with 8 questions each.
Waiting is the time in collectives: of weights and gradients (FSDP2) and of the few numbers that ranks agree on; it is
that of the rank that waits most. On a busy machine it includes the time in which the other process does not run, and
the gain may be none: read the numbers as ratios of this run.

`--reading` measures what a rank does beside computing: it reads the rows of all ranks, and lays out its own frames as
trees. Process time, for frames with eight traced questions and a tokenizer like nano's. It makes no claim.

The claims go into benchmarks/out/two_processes.json: a list of claim, value, at_least or at_most, holds, n, command.
The exit status is 0 if all hold. On GPUs with NCCL nothing is measured yet.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from common import OUT, Lengths, model_folder, sample_folder, samples

FRAMES, QUESTIONS = 16, 8  # of a step
PICTURE = 49  # its tokens
WARM = 1  # steps that do not count
COLLECTIVES = ("all_gather_into_tensor", "reduce_scatter_tensor", "broadcast")  # of weights, gradients, Muon's updates


def train(rank: int, count: int, port: int, given: argparse.Namespace, line: Connection) -> None:
    """Train in this process; rank 0 sends what it logged of each step and how long each rank had waited after it."""
    names = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "MASTER_PORT": port}
    os.environ |= {name: str(number) for name, number in names.items()} | {"MASTER_ADDR": "127.0.0.1"}
    import torch.distributed as dist

    from lineside import progress
    from lineside.model.checkpoint import load
    from lineside.model.features import FeatureStore
    from lineside.ranks import joined
    from lineside.recipe import Sft
    from lineside.runtime import CPU, Runtime
    from lineside.sft import sft
    from lineside.training.metrics import read_metrics
    from lineside.training.stage import Stage

    torch.set_num_threads(1)
    progress.be_quiet()
    waited, by_step = [0.0], []

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*args, **options)
            finally:
                waited[0] += time.perf_counter() - start

        return run

    def noted(step: Callable[..., None]) -> Callable[..., None]:
        def run(*args: Any, **options: Any) -> None:
            step(*args, **options)
            by_step.append(waited[0])

        return run

    for name in COLLECTIVES:
        setattr(dist, name, timed(getattr(dist, name)))
    Runtime.exchange, Runtime.all_reduce = timed(Runtime.exchange), timed(Runtime.all_reduce)
    Stage.step = noted(Stage.step)
    with joined(CPU) as runtime, tempfile.TemporaryDirectory() as folder:
        vlm = load(given.model, dtype=torch.float32)
        store = FeatureStore(None, vlm, runtime=runtime)
        settings = Sft(max_steps=given.steps + WARM, epochs=1e6, step_tokens=given.step_tokens, save_seconds=1e9)
        sft(vlm, store, given.samples, Path(folder), settings, runtime=runtime)
        by_rank = runtime.exchange(by_step)
        if rank == 0:
            line.send((read_metrics(Path(folder) / "metrics.jsonl"), by_rank))


def run(count: int, given: argparse.Namespace) -> tuple[list[float], float, float]:
    """Losses of the steps, tokens a second, and the share of the time that the rank that waits most has waited."""
    context = multiprocessing.get_context("spawn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here, there = context.Pipe(duplex=False)
    children = [context.Process(target=train, args=(rank, count, port, given, there)) for rank in range(count)]
    for child in children:
        child.start()
    there.close()
    rows, by_rank = here.recv()
    for child in children:
        child.join()
    seconds = rows[-1]["seconds"] - rows[WARM - 1]["seconds"]
    tokens = sum(row["tokens"] for row in rows[WARM:])
    waited = max(by_step[-1] - by_step[WARM - 1] for by_step in by_rank)
    return [row["loss"] for row in rows], tokens / seconds, waited / seconds


def reading(given: argparse.Namespace) -> None:
    """Print what the rows of a frame and its tree take."""
    from lineside.data.mixture import Mixture
    from lineside.model.checkpoint import load
    from lineside.training.packing import image_tree

    torch.set_num_threads(1)
    mixture = Mixture.of(given.samples)
    rows, trees = [], []
    for epoch in range(given.repeats):  # each in an order of its own
        start = time.process_time()
        frames = list(mixture.stream("qa", seed=0, epoch=epoch))
        rows.append(1000 * (time.process_time() - start) / len(frames))
        vlm = load(given.model, dtype=torch.float32)  # its cache of tokenised texts is new
        start = time.process_time()
        sizes = [image_tree(vlm, frame).tree.size() for frame in frames]
        trees.append(1000 * (time.process_time() - start) / len(frames))
    size = statistics.mean(sizes)
    print(f"{len(sizes)} frames of {size:.0f} tokens, {given.repeats} passes; process time in ms a frame:")
    for what, times in (("its rows, times the number of ranks", rows), ("its tree", trees)):
        print(f"{what}: {statistics.median(times):.2f} (median; {min(times):.2f} to {max(times):.2f})")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a two-layer model and short steps: a rehearsal")
    parser.add_argument("--steps", type=int, default=6, help="steps that are timed")
    parser.add_argument("--repeats", type=int, default=3, help="pairs of runs, or passes; the median counts")
    parser.add_argument("--reading", action="store_true", help="measure reading alone")
    parser.add_argument("--frames", type=int, default=96, help="frames of --reading")
    given = parser.parse_args()
    os.environ.setdefault("LINESIDE_BACKEND", "reference")  # compiling takes longer than the steps
    lengths = Lengths().shorter(given.tiny)
    given.model, _ = model_folder(PICTURE, tiny=given.tiny, nano=True)
    frames = given.frames if given.reading else 8 if given.tiny else FRAMES * 2
    given.samples = sample_folder(
        "reading" if given.reading else "two", samples("qa", frames, QUESTIONS, lengths), tiny=given.tiny
    )
    if given.reading:
        reading(given)
        shutil.rmtree(given.samples, ignore_errors=True)
        return 0
    given.step_tokens = 1000 if given.tiny else FRAMES * (PICTURE + QUESTIONS * 45)
    pairs = [(run(1, given), run(2, given)) for _ in range(given.repeats)]
    apart = max(abs(a - b) / a for one, two in pairs for a, b in zip(one[0], two[0], strict=True))
    ratio = statistics.median(two[1] / one[1] for one, two in pairs)
    waited = statistics.median(two[2] for _, two in pairs)
    for one, two in pairs:
        print(f"one process {one[1]:,.0f} tokens/s; two {two[1]:,.0f}; a rank waited up to {100 * two[2]:.0f}%")
    print(f"{given.repeats} pairs of {given.steps} steps: {ratio:.2f} times the tokens a second of one process, median")
    print(f"the rank that waits most: {100 * waited:.0f}% of the time, median")
    command = " ".join(["python", "benchmarks/two_processes.py", *sys.argv[1:]])
    name = "largest relative difference between the losses of one process and of two"
    claims = [{"claim": name, "value": apart, "at_most": 1e-4, "holds": apart <= 1e-4, "n": given.repeats}]
    OUT.mkdir(exist_ok=True)
    file = OUT / f"two_processes{'-tiny' if given.tiny else ''}.json"
    file.write_text(json.dumps([row | {"command": command} for row in claims], indent=1) + "\n")
    print(f"{name}: {apart:.1e} (at most 1e-4): {'holds' if claims[0]['holds'] else 'DOES NOT HOLD'}; {file}")
    shutil.rmtree(given.samples, ignore_errors=True)
    return 0 if claims[0]["holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
