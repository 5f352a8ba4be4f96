"""Which records are probably wrong: where judges that did not learn from a record disagree with it most surely.

A record is wrong with some prior share e. If it is right, it says what a judge would say with the judge's calibrated
probability p; if it is wrong, it says anything that records of its task say, as often as they say it, m. So for every
record i there is a ratio L_i = m_i / p_i, and

    e = the share that maximises  sum_i log((1 - e) + e L_i)            (mixture with known components)
    P(record i is wrong) = e L_i / ((1 - e) + e L_i)                    (Bayes)

e is that of the record's task, or of its worst source (a cell, a person) where that is surely higher. The judge's
probabilities are calibrated together with e, by expectation-maximisation: Platt's curve is fitted with each record
weighted by its probability of being right. Calibrated on all records alike, a judge that is always right would seem to
err as often as the records do. This is the idea of confident learning (Northcutt et al., arXiv 1911.00068): noise is
estimated from out-of-sample probabilities, and the surest answers are believed. It differs in that it gives each record
a probability. What it cannot tell apart: a wrong record from a judge that is sure and wrong.

Judges that see the picture through the same encoder (heads, model) err together: the logarithms of their ratios are
averaged. A teacher does not share it: its logarithm is added.

Shapes: N records.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lineside.data.recorded import Record
from lineside.judgement.calibration import FEWEST_SCENES, fit, logit, sigmoid
from lineside.judgement.crossfit import Opinion
from lineside.judgement.stats import Interval
from lineside.verify.verifiers import verify

FLAT = 0.02  # share of the probability beside the answer that is spread over all answers: a head's tails are too thin
ROUNDS = 60  # of expectation-maximisation
SUREST = 0.2  # share of a judge's answers that are taken to be right ...
ERRS = 0.01  # ... but for these
MOST_WRONG = 0.15  # of the records that the surest answers are about: beyond it the judge is doubted, not the records
DROP = 1.92  # of the log-likelihood at the ends of a 95% interval: half of chi-squared's 3.84 with one degree

FloatArray = NDArray[np.float64]


class Estimate(NamedTuple):
    """The share of wrong records and its 95% interval."""

    share: float
    interval: Interval


Sources = Mapping[str, Mapping[str, tuple[int, Estimate]]]  # {"cell": {"17": (records, estimate)}}


@dataclass(frozen=True, slots=True)
class Suspect:
    """A record, the probability that it is wrong, and what each judge says (None: it was not asked).

    The confidence of an opinion is calibrated here.
    """

    record: Record
    wrong: float
    heads: Opinion | None
    model: Opinion | None


@dataclass(frozen=True, slots=True)
class Found:
    """Every record that was judged, the most suspicious first; the wrong ones estimated by source and value.

    `by_source`: {"column": {value: (n, estimate)}}. `left_out`: records that were not judged, by reason.
    """

    suspects: tuple[Suspect, ...]
    by_source: Sources
    left_out: Counter[str]

    def above(self, cut: float) -> list[Suspect]:
        """The records to look at."""
        return [suspect for suspect in self.suspects if suspect.wrong >= cut]


def find_suspects(
    records: Sequence[Record], heads: Sequence[Opinion | None], model: Sequence[Opinion | None] | None = None
) -> Found:
    """Judge N records by the opinions of heads and, where it was asked, of a model; and by the teacher's answers."""
    model = model or [None] * len(records)
    left_out: Counter[str] = Counter()
    by_task: dict[str, list[int]] = defaultdict(list)
    for index, record in enumerate(records):
        if heads[index] is None and model[index] is None:
            left_out[f"{record.task}: no other scenes have the same answer"] += 1
        else:
            by_task[record.task].append(index)
    judged: list[tuple[Suspect, float]] = []
    for task, rows in sorted(by_task.items()):
        if (scenes := len({records[i].scene for i in rows})) < FEWEST_SCENES:
            left_out[f"{task}: {scenes} scenes, {FEWEST_SCENES} are needed"] += len(rows)
            continue
        found = _judge_task([records[i] for i in rows], [heads[i] for i in rows], [model[i] for i in rows])
        if missing := len(rows) - len(found):
            left_out[f"{task}: no judge is good enough: the records contradict its surest answers"] += missing
        judged += found
    by_source = _by_source(judged)
    judged = [(_by_its_sources(suspect, ratio, by_source), ratio) for suspect, ratio in judged]
    judged.sort(key=lambda pair: (-pair[0].wrong, pair[0].record.id))
    return Found(tuple(suspect for suspect, _ in judged), by_source, left_out)


def _by_its_sources(suspect: Suspect, ratio: float, by_source: Sources) -> Suspect:
    """With the prior share of its worst source, where surely more records are wrong than in its task."""
    sources = suspect.record.sources.items()
    shares = [by_source[source][value][1].interval.low for source, value in sources if source in by_source]
    return replace(suspect, wrong=max(suspect.wrong, _wrong(max(shares, default=0.0), ratio)))


def _by_source(judged: Sequence[tuple[Suspect, float]]) -> Sources:
    """The estimate of each value of each source that has at least two values, and of the columns."""
    rows: dict[str, dict[str, list[tuple[float, str]]]] = defaultdict(lambda: defaultdict(list))
    for suspect, ratio in judged:
        for source, value in suspect.record.sources.items():
            rows[source][value].append((ratio, suspect.record.scene))
    return {
        source: {value: (len(these), estimate(*zip(*these))) for value, these in sorted(values.items())}
        for source, values in rows.items()
        if len(values) > 1 or source == "column"
    }


def _judge_task(
    records: Sequence[Record], heads: Sequence[Opinion | None], model: Sequence[Opinion | None]
) -> list[tuple[Suspect, float]]:
    """The records of one task with their ratios L."""
    often = Counter(record.answer for record in records)
    frequency = {answer: count / len(records) for answer, count in often.items()}
    (by_heads, log_heads), (by_model, log_model) = (_judge(records, said, frequency) for said in (heads, model))
    _, log_teacher = _judge(records, [_told(record, frequency) for record in records], frequency, unsaid=True)
    seeing_N2 = np.stack([log_heads, log_model], 1)
    judged = np.flatnonzero(~np.isnan(seeing_N2).all(1))
    seeing_n = np.nanmean(seeing_N2[judged], 1)
    ratio_n = np.exp(seeing_n + np.nan_to_num(log_teacher[judged], nan=0.0)).tolist()
    share = _share(ratio_n)
    return [
        (Suspect(records[i], _wrong(share, ratio), by_heads[i], by_model[i]), ratio)
        for i, ratio in zip(judged.tolist(), ratio_n)
    ]


def _told(record: Record, frequency: Mapping[str, float]) -> Opinion | None:
    """A teacher's answer as an opinion, without a confidence."""
    return None if record.said is None else _opinion(record, record.said, 0.5, frequency)


def _judge(
    records: Sequence[Record], opinions: Sequence[Opinion | None], often: Mapping[str, float], *, unsaid: bool = False
) -> tuple[list[Opinion | None], FloatArray]:
    """One judge's opinions with calibrated confidence, and (N,) log L by it alone.

    `unsaid`: it says no confidence, so that all its answers get the share of records that it agrees with. None and NaN
    where it was not asked, or where it cannot be calibrated: it is not good enough, or was asked about too few scenes.
    """
    given = [(i, opinion) for i, opinion in enumerate(opinions) if opinion is not None]
    log_N: FloatArray = np.full(len(records), np.nan)
    found: list[Opinion | None] = [None] * len(records)
    if len({records[i].scene for i, _ in given}) < FEWEST_SCENES:
        return found, log_N
    agrees_n = np.array([opinion.agrees for _, opinion in given])
    anything_n = np.array([often[records[i].answer] for i, _ in given])
    others_n = np.array([max(1.0 - often.get(opinion.answer, 0.0), 1e-12) for _, opinion in given])
    rest_n = np.array([opinion.rest for _, opinion in given])
    rest_n = (1 - FLAT) * rest_n + FLAT * np.minimum(1.0, anything_n / others_n)
    confidence = [opinion.confidence for _, opinion in given]
    if unsaid:
        sure_n = np.full(len(given), float(agrees_n.mean()))
    else:
        sure_n = calibrated(confidence, agrees_n, rest_n, anything_n)
    if sure_n is None:
        return found, log_N
    right_n = np.where(agrees_n, sure_n, (1 - sure_n) * rest_n)
    for (i, opinion), sure, right, anything in zip(given, sure_n, right_n, anything_n):
        found[i] = opinion._replace(confidence=float(sure))
        log_N[i] = math.log(anything) - math.log(max(right, 1e-12))
    return found, log_N


def calibrated(
    confidence: Sequence[float], agrees_n: NDArray[np.bool_], rest_n: FloatArray, anything_n: FloatArray
) -> FloatArray | None:
    """(n,) the calibrated confidence of a judge, fitted together with the share of wrong records.

    Records that are probably wrong hardly count, so that they do not make the judge look worse than it is. Where all
    answers are equally sure, nothing tells the judge's errors from those of the records; so its surest answers are
    taken to be right but for one in a hundred. None if the records contradict more than `MOST_WRONG` of the surest
    answers: then the judge is not good enough, or too many records are wrong to tell which.
    """
    logit_n = logit(np.asarray(confidence, dtype=np.float64))
    surest = np.argsort(-logit_n, kind="stable")[: max(FEWEST_SCENES // 2, int(SUREST * len(logit_n)))]
    share = 1.0 - float(agrees_n[surest].mean())
    if share > MOST_WRONG:
        return None
    sure_n, wrong_n = np.full(len(agrees_n), 0.5), np.zeros(len(agrees_n))
    for _ in range(ROUNDS):
        slope, offset = fit(confidence, agrees_n.tolist(), (1.0 - wrong_n).tolist())
        lift = max(0.0, math.log((1 - ERRS) / ERRS) - float((slope * logit_n[surest] + offset).mean()))
        sure_n = sigmoid(slope * logit_n + offset + lift)
        right_n = np.where(agrees_n, sure_n, (1 - sure_n) * rest_n)
        wrong_n = share * anything_n / (share * anything_n + (1 - share) * right_n)
        before, share = share, float(wrong_n.mean())
        if abs(share - before) < 1e-6:
            break
    return sure_n


def _wrong(share: float, ratio: float) -> float:
    return share * ratio / (share * ratio + 1.0 - share)


def _share(ratios: Sequence[float]) -> float:
    """The share of wrong records with the greatest likelihood. It is concave in the share: its slope is bisected."""
    ratio_N = np.asarray(ratios, dtype=np.float64)

    def slope(at: float) -> float:
        return float(((ratio_N - 1) / (1 + at * (ratio_N - 1))).sum())

    low, high = 0.0, 1.0 - 1e-9
    if slope(low) <= 0:
        return 0.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return low


def estimate(ratios: Sequence[float], scenes: Sequence[str], *, drop: float = DROP) -> Estimate:
    """The share of wrong records among N, with an interval by profile likelihood: 95%, or by another `drop`.

    Records of one scene may be wrong together, so the N records count as if they were as many as their scenes. The
    interval is that of the model above: it does not know of judges that are sure and wrong. Raises ValueError for N 0.
    """
    if not ratios:
        raise ValueError("no records: a share is not defined")
    ratio_N, held = np.asarray(ratios, dtype=np.float64), len(set(scenes)) / len(scenes)
    best = _share(ratios)

    def lost(at: float) -> float:
        with np.errstate(divide="ignore"):
            level = np.log1p(np.array([best, at])[:, None] * (ratio_N - 1)).sum(1)
        return held * float(level[0] - level[1]) - drop

    return Estimate(best, Interval(_crossing(lost, best, 0.0), _crossing(lost, best, 1.0 - 1e-9)))


def _crossing(lost: Callable[[float], float], inside: float, outside: float) -> float:
    """Where a falling likelihood leaves the interval, between a share inside and one at the end of its range."""
    if lost(outside) <= 0:
        return round(outside, 6)
    for _ in range(40):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if lost(middle) <= 0 else (inside, middle)
    return inside


def opinions_of_model(
    records: Sequence[Record], answers: Mapping[str, tuple[str | None, float]]
) -> list[Opinion | None]:
    """A model's answers, {record id: (answer, its own probability)}, as opinions. None where it was not asked.

    Beside its answer a model's probability is spread as often as the records of the task say each answer.
    """
    often: dict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        often[record.task][record.answer] += 1
    share = {task: {answer: n / counts.total() for answer, n in counts.items()} for task, counts in often.items()}
    asked = [(record, answers.get(record.id)) for record in records]
    return [_opinion(record, said[0] or "", said[1], share[record.task]) if said else None for record, said in asked]


def _opinion(record: Record, said: str, sure: float, frequency: Mapping[str, float]) -> Opinion:
    agrees = verify(said, record.target).exact
    others = max(1.0 - frequency.get(said, 0.0), 1e-12)
    return Opinion(said, sure, agrees, 0.0 if agrees else min(1.0, frequency.get(record.answer, 0.0) / others))


def expected_wrong(suspects: Sequence[Suspect]) -> float:
    """How many of these records are expected to be wrong."""
    return math.fsum(suspect.wrong for suspect in suspects)
