"""What further training made a model forget: two checkpoints, one trained from the other, on texts that neither saw.

- Captions of a suite, given their pictures: what stage 1 taught.
- The same captions without a picture, or lines of a file: what the language model knew before it saw any picture.
- Drift: how far the weights of each part moved, ||after - before|| / ||before|| (Frobenius norms over the part).

Likelihood is told as perplexity, exp of the mean loss of a token. Its change is the ratio after to before, with a 95%
interval from a Bayesian bootstrap by scene (Rubin, 1981); above 1 something was forgotten. Answers to questions are
judged by `evaluate` and `compare`. Left out: benchmarks of general language, which a model of a cell need not pass.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field
from torch import Tensor

from lineside.data.suite import scene_of
from lineside.errors import LinesideError
from lineside.judgement import stats
from lineside.judgement.schema import Count, NonNegative, Strict
from lineside.types import Sample

PARTS = {  # of weights, by what their names contain; what none of them names are the norms
    "encoder": ("vision_tower", "vision_model"),
    "projector": ("multi_modal_projector",),
    "embeddings": ("embed_tokens", "lm_head"),
    "attention": ("self_attn",),
    "feed-forward": ("mlp",),
}
NORMS, LM = "norms", "language model"
WITHIN_LM = ("embeddings", "attention", "feed-forward", NORMS)


class Change(Strict):
    """How likely texts are to the earlier and to the later model."""

    n: Count = Field(description="texts")
    tokens: Count
    before: NonNegative = Field(description="perplexity of the earlier checkpoint")
    after: NonNegative = Field(description="perplexity of the later checkpoint")
    ratio: NonNegative = Field(description="after over before: above 1 something was forgotten")
    interval: tuple[NonNegative, NonNegative] = Field(description="95% interval of the ratio, bootstrapped by scene")


class Forgetting(Strict):
    """What a checkpoint forgot since an earlier one."""

    before: str
    after: str
    captions: Change | None = Field(description="captions given their pictures; null: the split has none")
    text: Change | None = Field(description="text without a picture; null: there is none")
    drift: dict[str, NonNegative] = Field(description="||after - before|| / ||before|| by part of the weights")


@dataclass(frozen=True, slots=True)
class Text:
    """A text to be scored: with the sample's picture, or (None) alone. `scene` is what it belongs to."""

    scene: str
    words: str
    sample: Sample | None


Scorer = Callable[[Sequence[Text]], Sequence[Tensor]]  # the log-probability of each token of each text


def caption_texts(captions: Iterable[Sample], *, split: str, limit: int, seen: bool) -> list[Text]:
    """At most `limit` captions of a split, chosen by hash of their ids; with their pictures if `seen`."""
    found = [s for s in captions if s.kind == "caption" and s.split == split and s.answer]
    chosen = sorted(found, key=lambda s: hashlib.sha256(s.id.encode()).digest())[:limit]
    chosen.sort(key=lambda s: (scene_of(s), s.id))  # the captions of a picture stand together
    return [Text(scene_of(s), s.answer or "", s if seen else None) for s in chosen]


def file_texts(path: Path) -> list[Text]:
    """The lines of a text file, each a text of its own without a picture. Raises LinesideError if there are none."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise LinesideError(f"{path}: cannot be read as text ({error}): expected a file of UTF-8 lines") from None
    if not lines:
        raise LinesideError(f"{path}: no line of text in it")
    return [Text(str(number), line, None) for number, line in enumerate(lines)]


def change(texts: Sequence[Text], before: Scorer, after: Scorer, *, seed: int = 0) -> Change | None:
    """The change of the texts' likelihood; None without texts."""
    if not texts:
        return None
    scored = [scorer(texts) for scorer in (before, after)]
    first, second = ([-float(logprobs.double().sum()) for logprobs in one] for one in scored)
    tokens = [len(logprobs) for logprobs in scored[0]]
    rise = stats.ratio([t.scene for t in texts], [b - a for a, b in zip(first, second)], tokens, seed=seed)
    return Change(
        n=len(texts),
        tokens=sum(tokens),
        before=math.exp(sum(first) / sum(tokens)),
        after=math.exp(sum(second) / sum(tokens)),
        ratio=math.exp(rise.value),
        interval=(math.exp(rise.interval.low), math.exp(rise.interval.high)),
    )


def part_of(name: str) -> str:
    """The part that a weight belongs to, by its name in the checkpoint."""
    return next((part for part, marks in PARTS.items() if any(mark in name for mark in marks)), NORMS)


def drift(pairs: Iterable[tuple[str, Tensor, Tensor]]) -> dict[str, float]:
    """||after - before|| / ||before|| by part, and of the language model as a whole, from (name, before, after).

    Raises LinesideError for a weight of two shapes: the checkpoints are not of one model.
    """
    moved: defaultdict[str, float] = defaultdict(float)
    size: defaultdict[str, float] = defaultdict(float)
    for name, before, after in pairs:
        if before.shape != after.shape:
            raise LinesideError(
                f"{name} has the shape {tuple(before.shape)} before and {tuple(after.shape)} after: one checkpoint was "
                "not trained from the other"
            )
        own = part_of(name)
        for part in (own, LM) if own in WITHIN_LM else (own,):
            moved[part] += float((after.double() - before.double()).square().sum())
            size[part] += float(before.double().square().sum())
    order = ("encoder", "projector", LM, *WITHIN_LM)
    return {part: math.sqrt(moved[part] / size[part]) if size[part] else 0.0 for part in order if part in size}


def shared_weights(
    before: Mapping[str, Callable[[], Tensor]], after: Mapping[str, Callable[[], Tensor]]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The weights of both checkpoints, one at a time. Raises LinesideError if they have different names."""
    if different := sorted(before.keys() ^ after.keys()):
        raise LinesideError(
            f"only one of the two checkpoints has {', '.join(different[:3])}: one was not trained from the other"
        )
    for name in sorted(before):
        yield name, before[name](), after[name]()
