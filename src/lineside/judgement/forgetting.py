"""What further training made a model forget: two checkpoints, one trained from the other, on texts that neither saw.

- Captions of a suite, given their pictures: what stage 1 taught.
- The same captions without a picture, or lines of a file: what the language model knew before it saw any picture.
- Drift: how far the weights of each part moved, ||after - before|| / ||before|| (Frobenius norms over the part).

Likelihood is told as perplexity, exp of the mean loss of a token. Its change is the ratio after to before, with a 95%
interval from a Bayesian bootstrap by scene (Rubin, 1981); above 1 something was forgotten. Where the two language
models have other tokens, both losses are shared out over those of the earlier one: the texts are the same. The gate
asks for the captions of all suites (`gate`). Answers to questions are judged by `evaluate` and `compare`. Left out:
benchmarks of general language, which a model of a cell need not pass.
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
IMPOSSIBLE = 700.0  # nats a token: the perplexity would be no number
PROBED = 200  # captions of a suite by which a gate judges
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


@dataclass(frozen=True, slots=True)
class Likelihood:
    """How likely a text is to the earlier and to the later model: its loss in nats, over `tokens` of the earlier."""

    scene: str
    tokens: int
    before: float
    after: float


def choose_captions(samples: Iterable[Sample], *, split: str, limit: int) -> list[Sample]:
    """At most `limit` captions of a split, chosen by hash of their ids; those of a picture stand together."""
    found = [s for s in samples if s.kind == "caption" and s.split == split and s.answer]
    chosen = sorted(found, key=lambda s: hashlib.sha256(s.id.encode()).digest())[:limit]
    return sorted(chosen, key=lambda s: (scene_of(s), s.id))


def caption_texts(captions: Iterable[Sample], *, seen: bool) -> list[Text]:
    """Captions as texts; with their pictures if `seen`."""
    return [Text(scene_of(s), s.answer or "", s if seen else None) for s in captions]


def file_texts(path: Path) -> list[Text]:
    """The lines of a text file, each a text of its own without a picture. Raises LinesideError if there are none."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise LinesideError(f"{path}: cannot be read as text ({error}): expected a file of UTF-8 lines") from None
    if not lines:
        raise LinesideError(f"{path}: no line of text in it")
    return [Text(str(number), line, None) for number, line in enumerate(lines)]


def likelihoods(texts: Sequence[Text], before: Scorer, after: Scorer) -> list[Likelihood]:
    """How likely each text is to both models. Raises LinesideError for a model to which one is impossible."""
    scored = zip(texts, before(texts), after(texts), strict=True)
    return [
        Likelihood(text.scene, len(first), _loss(first, "earlier"), _loss(second, "later"))
        for text, first, second in scored
    ]


def _loss(logprobs: Tensor, model: str) -> float:
    loss = -float(logprobs.double().sum())
    if not loss < IMPOSSIBLE * len(logprobs):
        raise LinesideError(f"the {model} checkpoint gives a text a likelihood of 0, or none: its weights are damaged")
    return loss


def change(texts: Sequence[Likelihood], *, seed: int = 0) -> Change | None:
    """The change of the texts' likelihood; None without texts."""
    if not texts:
        return None
    tokens = [text.tokens for text in texts]
    rise = stats.ratio([t.scene for t in texts], [t.after - t.before for t in texts], tokens, seed=seed)
    return Change(
        n=len(texts),
        tokens=sum(tokens),
        before=math.exp(sum(t.before for t in texts) / sum(tokens)),
        after=math.exp(sum(t.after for t in texts) / sum(tokens)),
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
