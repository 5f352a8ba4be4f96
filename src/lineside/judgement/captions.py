"""Caption matching: does the picture make the true caption more likely than one with a single attribute changed?

DESIGN 4. A caption's score is its mean log-probability given the picture, minus the same without the picture. So what
the language model alone finds likely cancels. Chance is one half; a tie counts half.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from lineside.data.suite import scene_of
from lineside.judgement.schema import CaptionMatching
from lineside.judgement.stats import bootstrap, tabulate
from lineside.progress import track
from lineside.types import Sample

# (sample, text, whether with its picture) for each caption -> mean log-probability of a token
Scorer = Callable[[Sequence[tuple[Sample, str, bool]]], Sequence[float]]
_ALL = "captions"


@dataclass(frozen=True, slots=True)
class Pair:
    """A caption sample, the same caption with one attribute changed so that it is false, and which attribute."""

    sample: Sample
    true: str
    wrong: str
    attribute: str


def choose_pairs(samples: Iterable[Sample], *, split: str, limit: int) -> list[Pair]:
    """Pairs from caption samples of `split` that carry `meta.extra["wrong"]`; `limit` of them chosen by hash of id.

    `wrong` is the changed caption, or a pair (changed caption, attribute); `wrong_attribute` may name the attribute
    too.
    """
    pairs: list[Pair] = []
    for sample in samples:
        wrong = sample.meta.extra.get("wrong")
        attribute = str(sample.meta.extra.get("wrong_attribute", ""))
        if isinstance(wrong, Sequence) and not isinstance(wrong, str) and len(wrong) == 2:
            wrong, attribute = wrong
        if sample.kind == "caption" and sample.split == split and sample.answer and isinstance(wrong, str) and wrong:
            pairs.append(Pair(sample, sample.answer, wrong, str(attribute)))
    chosen = sorted(pairs, key=lambda pair: hashlib.sha256(pair.sample.id.encode()).digest())[:limit]
    return sorted(chosen, key=lambda pair: (scene_of(pair.sample), pair.sample.id))  # groups by picture


def match_captions(
    pairs: Sequence[Pair], score: Scorer, *, seed: int, at_once: int = 32, label: str = "caption matching"
) -> CaptionMatching | None:
    """Share of pairs in which the true caption gains more from the picture than the wrong one; None without pairs."""
    if not pairs:
        return None
    wins: list[float] = []
    chunks = [pairs[start : start + at_once] for start in range(0, len(pairs), at_once)]
    for chunk in track(chunks, total=len(chunks), unit="batches", label=label):
        asked = [(p.sample, text, seen) for p in chunk for text in (p.true, p.wrong) for seen in (True, False)]
        scores = list(score(asked))
        for true_seen, true_unseen, wrong_seen, wrong_unseen in zip(*[iter(scores)] * 4, strict=True):
            gain = (true_seen - true_unseen) - (wrong_seen - wrong_unseen)
            wins.append(0.5 if gain == 0 else float(gain > 0))
    outcomes = tabulate([scene_of(pair.sample) for pair in pairs], [_ALL] * len(pairs), wins)
    by_attribute: dict[str, list[float]] = defaultdict(list)
    for pair, win in zip(pairs, wins):
        if pair.attribute:
            by_attribute[pair.attribute].append(win)
    return CaptionMatching(
        n=len(pairs),
        share=sum(wins) / len(wins),
        interval=bootstrap(outcomes, seed=seed).task(_ALL),
        attributes={name: sum(values) / len(values) for name, values in sorted(by_attribute.items())},
    )
