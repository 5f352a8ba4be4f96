"""Share of the machine's own bf16 matrix rate that sft's forward and backward reach.

    python benchmarks/matrix_share.py [--tiny]

The matrix rate is the best, over three shapes (the feed-forward's two and a square), of plain products in the same
process and by turns with the packs. The operations counted are those of the mathematics alone: products with weights,
attention along each token's own path, logits at targets; backward twice the forward (once for the projector, whose
input needs no gradient); no padding, no norms, no recomputation. Not timed: tokenising, packing, optimiser.
"""

# ruff: noqa: E402

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from lineside.machine import prepare

prepare()  # as the command does, before torch is loaded

import torch
from torch import nn

from common import Lengths, Options, Work, model_folder, options, record, sample_folder, samples
from lineside.model.fuse import fuse
from lineside.model.tree import Node, Pack
from lineside.model.vlm import VLM
from lineside.training.stage import trainable, warm_up
from lineside.training.trees import features_of, frame_tree, packs_of
from ours import first_frames, ready

FRAMES, QUESTIONS = 8, 8


def operations(vlm: VLM, trees: list[Node], pack: Pack) -> float:
    """Floating-point operations of forward and backward of these trees."""
    weights = sum(m.weight.numel() for m in vlm.language_model.modules() if isinstance(m, nn.Linear))
    config = vlm.model.config.get_text_config()
    width = config.num_attention_heads * (config.head_dim or config.hidden_size // config.num_attention_heads)
    pairs = sum(_pairs(tree, 0) for tree in trees)
    forward = 2.0 * weights * len(pack) + 4.0 * width * config.num_hidden_layers * pairs
    forward += 2.0 * vlm.model.lm_head.weight.numel() * len(pack.target)
    projector = 2.0 * sum(p.numel() for p in vlm.projector.parameters() if p.ndim == 2) * len(pack.image_slots)
    return 3.0 * forward + 2.0 * projector  # the gradient ends at the projector's weights


def _pairs(node: Node, above: int) -> int:
    """(query, key) pairs: each token with its ancestors and itself."""
    own = len(node.tokens)
    return own * above + own * (own + 1) // 2 + sum(_pairs(child, above + own) for child in node.children)


def seconds(run: Callable[[], object], device: str) -> float:
    """Of one call."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def products(device: str, tiny: bool) -> list[tuple[float, Callable[[], object]]]:
    """Matrix products in bf16 with their operations."""
    size = 256 if tiny else (8192 if device == "cuda" else 2048)
    shapes = [(2 * size, 576, 1536), (2 * size, 1536, 576), (size, size, size)]
    made = []
    for n, k, m in shapes:
        a = torch.randn(n, k, device=device, dtype=torch.bfloat16)
        b = torch.randn(m, k, device=device, dtype=torch.bfloat16)
        made.append((2.0 * n * k * m, lambda a=a, b=b: nn.functional.linear(a, b)))
    return made


def main(settings: Options) -> None:
    model, source = model_folder(49, tiny=settings.tiny)
    data = samples("qa", FRAMES, QUESTIONS, Lengths().shorter(settings.tiny), seed=settings.seed)
    work = Work(model, sample_folder("matrix", data, tiny=settings.tiny), settings.device, frames=FRAMES, stored=True)
    vlm, store = ready(work)
    trainable(vlm, ("projector", "lm"))
    fuse(vlm.language_model)
    warm_up(vlm)
    frames = [frame_tree(vlm, group) for group in first_frames(work.samples, FRAMES)]
    ((pack, images),) = packs_of(vlm, frames, 10**9)
    pack = pack.to(settings.device)
    features = features_of(store, images)

    def step() -> None:
        (-vlm.logprobs(pack, features).mean()).backward()
        vlm.model.zero_grad(set_to_none=True)

    plain = products(settings.device, settings.tiny)
    took, rates = [], [[] for _ in plain]
    for number in range(settings.warmup + settings.repeats):
        for rate, (count, product) in zip(rates, plain):
            rate += [count / seconds(product, settings.device) for _ in range(5)][
                1:
            ]  # the first brings it to the caches
        once = seconds(step, settings.device)
        took += [once] if number >= settings.warmup else []
    matrix = max(statistics.median(rate) for rate in rates)
    count, median = operations(vlm, [frame.tree for frame in frames], pack), statistics.median(took)
    bare = count / matrix
    spread = f"{count / 1e9:.3g} GFLOP in {min(took):.3g} to {max(took):.3g} s"
    note = f"{source}, bf16, {settings.device}; {len(pack)} tokens, {spread}; matrix rate {matrix / 1e9:.0f} GFLOP/s"
    row = {"work": "sft forward and backward, share of the matrix rate", "peer": "plain bf16 products"}
    row |= {"ratio": bare / median, "at_least": 0.55, "equal": None, "ours_s": median, "peer_s": bare}
    record({**row, "details": note}, settings)


if __name__ == "__main__":
    main(options(__doc__))
