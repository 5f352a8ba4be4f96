"""How the time of an update grows with the rollouts of a prompt, image tokens, and questions of a frame: trees or rows.

    python benchmarks/growth_compute.py [--tiny]

Forward and backward of projector and LM without optimiser; both sides get the features. Our side packs trees. The other
side is the same checkpoint in transformers with the same sequences as rows of equal length, logits at targets only, and
eight rows at once, as in a good trainer without trees. Medians of `--repeats` runs; the sides take turns. Writes
growth-*.json and growth-*.png into benchmarks/out; makes no claim.

    rollouts     2 ... 64 responses of 32 tokens below one prompt of 24 tokens and 49 image tokens
    image        49 ... 1024 image tokens above 8 responses
    questions    1 ... 32 questions of 12 tokens, traces of 30, below 49 image tokens
"""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import LlavaForConditionalGeneration

from common import OUT, Options, Work, given_tokens, model_folder, options, vocabulary
from lineside.machine import ENVIRONMENT
from lineside.model.render import BLANK
from lineside.model.tree import ANSWER, Node
from lineside.runtime import DTYPES
from lineside.training.stage import trainable, warm_up
from ours import ready
from race import ProcessSide, Score, Turn, agree, gradients, in_float32

ROWS = 8  # in one forward of the other side


@dataclass(frozen=True)
class Case(Work):
    """One point of a curve: `group` responses below each of `prompts` prompts of `asked` tokens below one picture."""

    prompts: int = 1
    asked: int = 24


def prompt_tokens(work: Case) -> list[tuple[int, ...]]:
    """Random prompts."""
    rng = random.Random(work.seed)
    return [tuple(rng.randrange(*work.vocabulary) for _ in range(work.asked)) for _ in range(work.prompts)]


def features_for(image_tokens: int, width: int) -> torch.Tensor:
    """(1, P, D_e) of noise, the same on both sides."""
    return torch.randn(1, image_tokens, width, generator=torch.Generator().manual_seed(0)).bfloat16()


def our_side(work: Case, turn: Turn) -> None:
    """Trees."""
    vlm, _ = ready(replace(work, stored=False))
    trainable(vlm, ("projector", "lm"))
    warm_up(vlm)
    given = given_tokens(work, work.prompts * work.group)
    children = []
    for i, prompt in enumerate(prompt_tokens(work)):
        own = given[i * work.group : (i + 1) * work.group]
        leaves = [Node(t, roles=(ANSWER,) * len(t), leaf=i * work.group + j) for j, t in enumerate(own)]
        children.append(Node(prompt, children=tuple(leaves)))
    tree = Node(vlm.render.prefix([BLANK]), images=(0,), children=tuple(children))
    features = features_for(vlm.render.image_tokens(BLANK), vlm.tower.config.hidden_size)

    def step() -> tuple[torch.Tensor, torch.Tensor]:
        pack = vlm.pack([tree])
        logprobs = vlm.logprobs(pack, features.to(vlm.dtype))
        (-logprobs.mean()).backward()
        order = torch.argsort(pack.leaf, stable=True)
        return pack.target[order], logprobs.detach().cpu()[order]

    with in_float32(vlm.model):
        tokens, logprobs = step()
        score = Score(tokens, logprobs, gradients(vlm.model))
    turn.scored(score)
    while True:
        step()
        vlm.model.zero_grad(set_to_none=True)
        turn.done()


def rows_side(work: Case, turn: Turn) -> None:
    """Rows, through transformers alone."""
    model: Any = LlavaForConditionalGeneration.from_pretrained(work.model, dtype=DTYPES[work.dtype])
    model = model.to(work.device).train()
    model.model.vision_tower.requires_grad_(False)
    prefix = json.loads((work.model / "prefix.json").read_text())
    given = given_tokens(work, work.prompts * work.group)
    heads = [prompt for prompt in prompt_tokens(work) for _ in range(work.group)]
    ids = torch.tensor([[*prefix, *head, *own] for head, own in zip(heads, given)], device=work.device)
    count = prefix.count(model.config.image_token_id)
    features = features_for(count, model.config.vision_config.hidden_size).to(work.device)
    targets = torch.tensor(given, device=work.device)

    def step() -> torch.Tensor:
        out = []
        for part in torch.arange(len(ids), device=work.device).split(ROWS):
            embeds = model.get_input_embeddings()(ids[part])
            image = model.model.multi_modal_projector(features.to(embeds.dtype)).expand(len(part), -1, -1)
            slots = (ids[part] == model.config.image_token_id)[..., None].expand_as(embeds)
            embeds = embeds.masked_scatter(slots, image.to(embeds.dtype))
            logits = model(inputs_embeds=embeds, logits_to_keep=work.new_tokens + 1, use_cache=False).logits[:, :-1]
            logprobs = -torch.nn.functional.cross_entropy(
                logits.flatten(0, 1).float(), targets[part].flatten(), reduction="none"
            )
            (-logprobs.sum() / targets.numel()).backward()
            out.append(logprobs.detach().cpu())
        return torch.cat(out)

    with in_float32(model):
        logprobs = step()
        score = Score(targets.flatten().cpu(), logprobs, gradients(model))
    turn.scored(score)
    while True:
        step()
        model.zero_grad(set_to_none=True)
        turn.done()


def case(image_tokens: int, settings: Options, **sizes: Any) -> Case:
    """A point of a curve. The tokens of the picture's prefix are written beside the model for the other side."""
    model, _ = model_folder(image_tokens, tiny=settings.tiny)
    if not (model / "prefix.json").exists():
        from lineside.model.checkpoint import load

        (model / "prefix.json").write_text(json.dumps(load(model).render.prefix([BLANK])))
    sizes = {"group": 8, "new_tokens": 6 if settings.tiny else 32, **sizes}
    return Case(
        model, model, settings.device, frames=1, dtype=settings.dtype, vocabulary=vocabulary(settings.tiny), **sizes
    )


def curves(settings: Options) -> dict[str, list[tuple[int, Case]]]:
    """All points; in a rehearsal only small ones."""

    def upto(*values: int) -> Sequence[int]:
        return values[:2] if settings.tiny else values

    return {
        "rollouts": [(g, case(49, settings, group=g)) for g in upto(2, 4, 8, 16, 32, 64)],
        "image": [(p, case(p, settings)) for p in upto(49, 196, 256, 784, 1024)],
        "questions": [(q, case(49, settings, group=1, prompts=q, asked=12)) for q in upto(1, 2, 4, 8, 16, 32)],
    }


def measure(work: Case, settings: Options) -> dict[str, Any]:
    """Both sides at one point."""
    ours, theirs = ProcessSide(our_side, work, ENVIRONMENT), ProcessSide(rows_side, work)
    try:
        equal, words = agree(ours.score(), theirs.score())
        pairs = [(ours.step(), theirs.step()) for _ in range(settings.warmup + settings.repeats)][settings.warmup :]
    finally:
        ours.close()
        theirs.close()
    ours_s, rows_s = (statistics.median(side) for side in zip(*pairs))
    return {"ours_s": ours_s, "rows_s": rows_s, "ratio": rows_s / ours_s, "equal": equal, "agreement": words}


def plot(name: str, points: list[dict[str, Any]], path: Path) -> None:
    """Seconds against size, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 3.5))
    for key, label in (("rows_s", "rows (transformers)"), ("ours_s", "trees (lineside)")):
        axes.plot([p["size"] for p in points], [p[key] for p in points], marker="o", label=label)
    axes.set(xscale="log", yscale="log", ylabel="seconds, forward and backward")
    axes.set_xlabel({"rollouts": "rollouts of one prompt", "image": "image tokens"}.get(name, "questions a frame"))
    axes.set_xticks([p["size"] for p in points], [str(p["size"]) for p in points])
    axes.minorticks_off()
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main(settings: Options) -> None:
    suffix = "-tiny" if settings.tiny else ""
    for name, cases in curves(settings).items():
        points = []
        for size, work in cases:
            point = {"size": size, **measure(work, settings)}
            points.append(point)
            print(
                f"{name} {size}: trees {point['ours_s']:.3g} s, rows {point['rows_s']:.3g} s, {point['ratio']:.2f}x, "
                f"{'equal' if point['equal'] else 'NOT EQUAL'} ({point['agreement']})",
                flush=True,
            )
            (OUT / f"growth-{name}{suffix}.json").write_text(json.dumps(points, indent=1) + "\n")
        plot(name, points, OUT / f"growth-{name}{suffix}.png")


if __name__ == "__main__":
    main(options(__doc__))
