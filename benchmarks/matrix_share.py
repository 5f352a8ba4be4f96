"""How much of the machine's matrix rate the forward and backward of sft reach.

    python benchmarks/matrix_share.py [--tiny]

The matrix rate is that of plain products in the same process, the best of three shapes (the two of the feed-forward,
and a square). Products and packs are measured by turns. Operations are counted as in the cost line of a run
(`lineside.training.operations`): without padding and norms, and each once. Not timed: tokenising, packing, optimiser.
"""

# ruff: noqa: E402

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from lineside.machine import prepare

prepare()  # as in the command `lineside`, before torch is loaded

import torch

from common import Lengths, Options, Work, model_folder, options, record, sample_folder, samples
from lineside.model.features import features_of
from lineside.runtime import DTYPES
from lineside.training.operations import measure_matrix_rate, update_operations
from lineside.training.packing import image_tree, packs_of
from lineside.training.stage import trainable, warm_up
from ours import first_frames, ready

FRAMES, QUESTIONS = 8, 8


def seconds(run: Callable[[], object], device: str) -> float:
    """Seconds of one call."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main(settings: Options) -> None:
    model, source = model_folder(49, tiny=settings.tiny)
    data = samples("qa", FRAMES, QUESTIONS, Lengths().shorter(settings.tiny), seed=settings.seed)
    folder = sample_folder("matrix", data, tiny=settings.tiny)
    work = Work(model, folder, settings.device, frames=FRAMES, dtype=settings.dtype, stored=True)
    vlm, store = ready(work)
    trainable(vlm, ("projector", "lm"))
    warm_up(vlm)
    frames = [image_tree(vlm, group) for group in first_frames(work.samples, FRAMES)]
    ((pack, images),) = packs_of(vlm, frames, 10**9)
    pack = pack.to(torch.device(settings.device))
    features = features_of(store, images)

    def step() -> None:
        (-vlm.logprobs(pack, features).mean()).backward()
        vlm.model.zero_grad(set_to_none=True)

    size = 256 if settings.tiny else None
    took, rates = [], []
    for number in range(settings.warmup + settings.repeats):
        rates.append(measure_matrix_rate(torch.device(settings.device), DTYPES[settings.dtype], size))
        once = seconds(step, settings.device)
        took += [once] if number >= settings.warmup else []
    matrix = statistics.median(rates)
    count, median = update_operations(vlm, pack), statistics.median(took)
    bare = count / matrix
    spread = f"{count / 1e9:.3g} GFLOP in {min(took):.3g} to {max(took):.3g} s"
    note = f"{source}, {settings.how}; {len(pack)} tokens, {spread}; matrix rate {matrix / 1e9:.0f} GFLOP/s"
    row = {"work": "sft forward and backward, share of the matrix rate", "peer": "plain matrix products"}
    row |= {"ratio": bare / median, "at_least": 0.55, "equal": None, "ours_s": median, "peer_s": bare}
    record({**row, "details": note}, settings)


if __name__ == "__main__":
    main(options(__doc__))
