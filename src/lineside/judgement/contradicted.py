"""Which records of a suite cannot be right: where two models surely say otherwise.

A gate trusts its suites. But a week's records can be wrong (a scanner, an import, a person), or its pictures can show
something else (a camera that was struck). Then the suite measures nothing, and a model that is trained on the same week
learns it. Both models have answered every question with a calibrated confidence p, so for each record there is

    L = m / p        m: how often records of its task say this;  p: what the models believe of it

and the share of wrong records is the one that maximises sum log((1 - e) + e L), with a 95% interval by profile
likelihood by scene: the estimate of `suspects`, without its heads. The two models' logarithms are averaged, since they
see through one encoder; where only one of them contradicts a record, it counts as no sign of an error: a challenger
that is sure and wrong says nothing about the record. The share is estimated for the whole suite and for each cell and
camera, and is compared with that of all other suites: no model is calibrated perfectly. Where a single cell stands out,
its pictures are compared with those of the other suites (`drift`): if they have changed too, it is the camera. Left
out: questions without calibrated confidence, and points.

What it cannot tell apart: wrong records from a floor on which both models are sure and wrong. So the bound is far above
what models show that are a week behind.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from lineside.data.columns import columns_of_sample
from lineside.data.recorded import answer_text
from lineside.data.store import read_samples
from lineside.data.suite import scene_of
from lineside.images import image_key
from lineside.judgement.drift import LEAST_SCENES, two_sample
from lineside.judgement.pooled import AT_ONCE, Describer, open_store
from lineside.judgement.schema import Count, Rate, Row
from lineside.judgement.stats import Interval
from lineside.judgement.suspects import DROP, Estimate, estimate
from lineside.runtime import Runtime
from lineside.types import Image, Target
from lineside.verify.verifiers import verify

WRONG = 0.08  # a suite stands if its share of wrong records may be higher than that of the others by no more than this
PLACES = ("cell", "camera")  # what is looked at apart
LEVEL = 0.01  # of the test whether the pictures of a place have changed
MOST = 300  # pictures of each side in that test
SURE = 1e-3  # a confidence closer to 0 or 1 counts as this

Pair = tuple[Row, Row]
Changed = Callable[[str, str, str], float | None]  # suite, column, value -> p of "its pictures are as in the others"


class Contradicted(BaseModel):
    """A suite, or a place in it, whose records both models contradict."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    suite: str
    place: str = Field(description='"cell c14"; "" for the whole suite')
    n: Count = Field(description="questions judged")
    scenes: Count
    share: Rate = Field(description="share of the records that are probably wrong")
    interval: tuple[Rate, Rate]
    pictures: float | None = Field(description="p of the test that the place's pictures are as in the other suites")
    cause: str

    @property
    def where(self) -> str:
        """The suite, and the place in it."""
        return f"{self.suite}, {self.place}" if self.place else self.suite

    @property
    def told(self) -> str:
        """For people, in one line."""
        low, high = self.interval
        return (
            f"{self.where}: both models contradict about {self.share:.0%} of the records ({low:.0%} to {high:.0%}, "
            f"n {self.n:,}); {self.cause}"
        )


@dataclass(frozen=True, slots=True)
class Judged:
    """The questions that both models answered with calibrated confidence. `key`: (suite, question)."""

    ratios: Mapping[tuple[str, str], float]
    rows: Mapping[tuple[str, str], Row]

    @staticmethod
    def of(suites: Mapping[str, Sequence[Pair]]) -> Judged:
        """All of them."""
        ratios = {(suite, id): ratio for suite, pairs in suites.items() for id, ratio in _ratios(pairs).items()}
        rows = {(suite, a.id): a for suite, pairs in suites.items() for a, _ in pairs}
        return Judged(ratios, rows)

    def estimate(self, keys: Iterable[tuple[str, str]], drop: float = DROP) -> Estimate:
        """The share of wrong records among these; 0 to 1 for none."""
        chosen = sorted(keys)
        if not chosen:
            return Estimate(0.0, Interval(0.0, 1.0))
        return estimate([self.ratios[k] for k in chosen], [f"{k[0]} {self.rows[k].scene}" for k in chosen], drop=drop)

    def stands(self, keys: Collection[tuple[str, str]], others: Iterable[tuple[str, str]], drop: float = DROP) -> bool:
        """Whether no more of these records need be wrong than of the others, but for `WRONG`."""
        return self.estimate(keys, drop).interval.low <= self.estimate(others).share + WRONG


def contradicted(judged: Judged, changed: Changed | None = None) -> list[Contradicted]:
    """The suites and places whose records cannot be right. `changed`: tests a place's pictures; None: they are not
    compared. The level of all places of a suite together is 5%."""
    found: list[Contradicted] = []
    for suite in dict.fromkeys(key[0] for key in judged.ratios):
        here = {key for key in judged.ratios if key[0] == suite}
        others = judged.ratios.keys() - here
        places = _places(here, judged.rows)
        z = NormalDist().inv_cdf(1 - 0.025 / max(1, len(places)))
        alone = {
            place: keys
            for place, keys in places.items()
            if not judged.stands(keys, judged.ratios.keys() - keys, z * z / 2)
        }
        rest = here - set().union(*alone.values())
        if rest and not judged.stands(rest, others):
            found.append(_told(suite, "", judged, here, None))
            continue
        for (column, value), keys in alone.items():
            p = changed(suite, column, value) if changed is not None else None
            found.append(_told(suite, f"{column} {value}", judged, keys, p))
    return found


def _told(suite: str, place: str, judged: Judged, keys: Collection[tuple[str, str]], p: float | None) -> Contradicted:
    made = judged.estimate(keys)
    if not place:
        cause = "records: they are wrong in many places at once; look at where they come from"
    elif p is None:
        cause = f"records or camera of {place}: its pictures were not compared"
    elif p <= LEVEL:
        cause = f"camera of {place}: its pictures have changed, and they do not show what the records say"
    else:
        cause = f"records of {place}: its pictures are as before"
    return Contradicted(
        suite=suite,
        place=place,
        n=len(keys),
        scenes=len({judged.rows[key].scene for key in keys}),
        share=made.share,
        interval=made.interval,
        pictures=p,
        cause=cause,
    )


def _places(
    keys: Iterable[tuple[str, str]], rows: Mapping[tuple[str, str], Row]
) -> dict[tuple[str, str], set[tuple[str, str]]]:
    """The questions of each cell and camera; none for a column with a single value. A cell with one camera is a place
    once."""
    found: dict[str, dict[str, set[tuple[str, str]]]] = {column: defaultdict(set) for column in PLACES}
    for key in sorted(keys):
        for column in PLACES:
            for value in rows[key].columns.get(column, ()):
                found[column][value].add(key)
    once: dict[frozenset[tuple[str, str]], tuple[str, str]] = {}
    for column, values in found.items():
        for value, some in values.items() if len(values) > 1 else ():
            once.setdefault(frozenset(some), (column, value))
    return {place: set(some) for some, place in once.items()}


def _ratios(pairs: Sequence[Pair]) -> dict[str, float]:
    """L of each question that both models answered with calibrated confidence, by its id."""
    said = {a.id: answer_text(Target.from_json(a.target)) for a, _ in pairs if a.target.get("kind") != "point"}
    often: dict[str, Counter[str]] = defaultdict(Counter)
    for a, _ in pairs:
        if a.id in said:
            often[a.key][said[a.id]] += 1
    found = {}
    for pair in pairs:
        if (id := pair[0].id) not in said or any(row.calibrated is None for row in pair):
            continue
        counts = often[pair[0].key]
        anything = counts[said[id]] / counts.total()
        believed = [_believed(row, anything, counts) for row in pair]
        ratio = anything / math.sqrt(believed[0] * believed[1])
        found[id] = ratio if max(believed) < anything else min(1.0, ratio)  # one model alone contradicts nothing
    return found


def _believed(row: Row, anything: float, counts: Counter[str]) -> float:
    """The probability that a model gives to what the record says. Beside its own answer it is spread as often as the
    records of the task say each."""
    sure = min(max(row.calibrated or 0.0, SURE), 1 - SURE)
    if verify(row.answer or "", Target.from_json(row.target)).exact:
        return max(sure, anything)  # agreement speaks for no error, though nearly all records may say the same
    others = max(1 - counts[row.answer or ""] / counts.total(), 1e-12)
    return (1 - sure) * min(1.0, anything / others)


def compare_pictures(suites: Mapping[str, Path], checkpoint: Path, features: Path | None, runtime: Runtime) -> Changed:
    """Tests the pictures of a place in one suite against those in the others. `suites`: folders of samples by name.
    `checkpoint`: its encoder describes them."""

    def changed(suite: str, column: str, value: str) -> float | None:
        here = _pictures([suites[suite]], column, value)
        there = _pictures([path for name, path in suites.items() if name != suite], column, value)
        if min(len({scene for scene, _ in side.values()}) for side in (here, there)) < LEAST_SCENES:
            return None
        both = [*here.values(), *there.values()]
        store = open_store(checkpoint, features, lambda: (image for _, image in both), runtime)
        describer = Describer(store.get, seed=runtime.seed)
        for start in range(0, len(both), AT_ONCE):
            describer.add([image for _, image in both[start : start + AT_ONCE]])
        scenes = [f"{n < len(here)} {scene}" for n, (scene, _) in enumerate(both)]
        described = describer.described().double().numpy()
        return two_sample(np.asarray(described, dtype=np.float64), scenes, len(here), seed=runtime.seed)[0]

    return changed


def _pictures(folders: Iterable[Path], column: str, value: str) -> dict[str, tuple[str, Image]]:
    """At most `MOST` pictures of a place by their key, each with its scene."""
    found: dict[str, tuple[str, Image]] = {}
    for folder in folders:
        for sample in read_samples(folder, kind="qa"):
            if len(found) == MOST:
                return found  # the other folders are not read
            if value in columns_of_sample(sample).get(column, ()) and sample.frame_images:
                image = sample.frame_images[0]
                found.setdefault(image_key(image.bytes), (scene_of(sample), image))
    return found
