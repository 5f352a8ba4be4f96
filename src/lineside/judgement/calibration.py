"""Calibrated confidence: of the answers with confidence 0.9, nine in ten are right.

A model's probability of its own answer is far too high: after a trace, most wrong answers get 0.99 and more. So one
curve for each task is fitted on dev, from that probability p to the share of right answers:

    calibrated = sigmoid(slope * logit(p) + offset),  slope >= 0        (Platt scaling: Platt, 1999; Guo et al., 2017)

A temperature alone is not enough: it maps 0.5 to 0.5, so it cannot express that a task is right half as often as its
probabilities say. Isotonic regression fits noise: it has a step for every few questions, and a dev split has about a
hundred scenes. Two numbers for each task keep the order of the answers and need few scenes. Questions have their
natural weights. A task with fewer than `FEWEST_SCENES` scenes on dev is not calibrated, and says so.

The curves are stored in the checkpoint's folder, in `calibration.json`, with the weights and the number format that
they were fitted for; with others they are not used. Another engine, or int8 weights, has a file of its own beside it. A
new checkpoint is a new folder without them.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from lineside.errors import LinesideError
from lineside.files import fingerprint, write_atomic
from lineside.judgement.decisions import thresholds
from lineside.judgement.schema import Bin, Count, Mode, Row, Strict, Thresholds, by_task, natural_weights
from lineside.progress import say
from lineside.types import Costs

FILE = "calibration.json"  # of the model's own decoding; see `file_of`
FEWEST_SCENES = 60
BINS = 10
_LEAST = 1e-6  # probabilities closer to 0 or 1 are set to this: the difference is rounding of the computation

FloatArray = NDArray[np.float64]


class Curve(Strict):
    """One task's calibration and what its decisions need. `slope` null: too few scenes."""

    n: Count
    scenes: Count
    slope: float | None
    offset: float | None
    normal: str | None
    stakes: Costs | None
    binary: bool
    thinking: bool

    def apply(self, confidence: float) -> float | None:
        """The calibrated confidence, or None if the task is not calibrated. No answer (0) stays 0."""
        if self.slope is None or self.offset is None:
            return None
        return float(sigmoid(self.slope * logit(np.array([confidence])) + self.offset)[0]) if confidence else 0.0

    @property
    def acts_from(self) -> Thresholds | None:
        """The calibrated confidence from which a cell acts; None if the task has no stakes."""
        if self.stakes is None:
            return None
        return thresholds(self.stakes, normal=self.normal is not None, binary=self.binary)

    @property
    def note(self) -> str:
        """The reason why there is no calibrated confidence, or ""."""
        if self.slope is not None:
            return ""
        few = f"{self.scenes} of the {FEWEST_SCENES} scenes that it takes on dev"
        return f"not calibrated, n = {self.n} ({few if self.scenes < FEWEST_SCENES else 'no answer on dev counts'})"


class Calibration(Strict):
    """The curves of one checkpoint, by mode and family/task."""

    version: Literal[1] = 1
    checkpoint: str
    dtype: str
    modes: dict[Mode, dict[str, Curve]]

    def curve(self, task: str, *, thinking: bool) -> Curve | None:
        """The curve of a task (family/task) for answers with or without thinking; None if dev was not asked so."""
        # A task that does not think is asked the same way in both modes.
        modes: tuple[Mode, ...] = ("think",) if thinking else ("fast", "think")
        found = [curve for mode in modes if (curve := self.modes.get(mode, {}).get(task))]
        return next((curve for curve in found if curve.thinking == thinking), None)


def certainty(share: float) -> str:
    """A confidence with enough digits to differ from certainty: 0.99996 is `99.996%`, only 1 is `100%`."""
    for digits in range(1, 7):
        text = f"{100 * share:.{digits}f}"
        if not text.startswith("100"):
            return f"{text}%"
    return "100%" if share >= 1 else "over 99.999999%"


def fit_rows(rows: Sequence[Row]) -> dict[str, Curve]:
    """A curve for each task among the rows of a dev split."""
    return {key: _curve(group) for key, group in by_task(rows).items()}


def _curve(rows: Sequence[Row]) -> Curve:
    scenes = len({row.scene for row in rows})
    answered = [row for row in rows if row.confidence > 0]
    slope = offset = None
    if scenes >= FEWEST_SCENES and answered:
        weights, _ = natural_weights(answered)
        slope, offset = fit(
            [row.confidence for row in answered],
            [row.exact for row in answered],
            weights,
        )
    return Curve(
        n=len(rows),
        scenes=scenes,
        slope=slope,
        offset=offset,
        normal=rows[0].normal,
        stakes=rows[0].stakes,
        thinking=bool(rows[0].thinking),
        binary=all(len(row.target.get("options") or ()) == 2 for row in rows),
    )


def fit(confidence: Sequence[float], exact: Sequence[bool], weights: Sequence[float]) -> tuple[float, float]:
    """Slope and offset with the least weighted cross entropy, by Newton's method with halved steps.

    The targets are smoothed by one question of each kind ((N+ + 1) / (N+ + 2) for right: Platt, 1999), so that a task
    with only right answers does not give a certain curve. A falling curve is replaced by one of slope 0.
    """
    x_N, right_N = logit(np.asarray(confidence, dtype=np.float64)), np.asarray(exact, dtype=bool)
    weight_N = np.asarray(weights, dtype=np.float64)
    weight_N = weight_N * (len(weight_N) / weight_N.sum())
    right, wrong = float(weight_N[right_N].sum()), float(weight_N[~right_N].sum())
    truth_N = np.where(right_N, (right + 1) / (right + 2), 1 / (wrong + 2))
    middle, scale = float(np.average(x_N, weights=weight_N)), max(float(np.std(x_N)), 1e-9)
    z_N2 = np.stack([(x_N - middle) / scale, np.ones_like(x_N)], 1)

    def loss(at_2: FloatArray) -> float:
        score_N = z_N2 @ at_2
        return float(weight_N @ (np.logaddexp(0.0, score_N) - truth_N * score_N)) + 1e-6 * float(at_2 @ at_2)

    at_2 = np.zeros(2)
    for _ in range(50):
        share_N = sigmoid(z_N2 @ at_2)
        slope_2 = z_N2.T @ (weight_N * (share_N - truth_N)) + 2e-6 * at_2
        curve_22 = (z_N2 * (weight_N * share_N * (1 - share_N))[:, None]).T @ z_N2 + 2e-6 * np.eye(2)
        step_2 = np.linalg.solve(curve_22, slope_2)
        while loss(at_2 - step_2) > loss(at_2) and np.abs(step_2).max() > 1e-12:
            step_2 = step_2 / 2
        at_2 = at_2 - step_2
        if np.abs(step_2).max() < 1e-10:
            break
    if at_2[0] <= 0:
        mean = float(np.average(truth_N, weights=weight_N))
        return 0.0, math.log(mean / (1 - mean))
    slope = float(at_2[0]) / scale
    return slope, float(at_2[1]) - slope * middle


def reliability(
    confidence: Sequence[float], exact: Sequence[bool], weights: Sequence[float]
) -> tuple[list[Bin], float]:
    """Bins of equal width that hold questions, and the expected calibration error (Guo et al., arXiv 1706.04599).

    ECE = sum over bins of W_bin / W * |share right - mean confidence|, W the weight of the questions.
    """
    held: dict[int, list[int]] = defaultdict(list)
    for i, one in enumerate(confidence):
        if weights[i] > 0:
            held[min(BINS - 1, int(one * BINS))].append(i)
    bins: list[Bin] = []
    error = 0.0
    for _, these in sorted(held.items()):
        weight = math.fsum(weights[i] for i in these)
        mean = math.fsum(weights[i] * confidence[i] for i in these) / weight
        right = math.fsum(weights[i] * exact[i] for i in these) / weight
        error += weight * abs(right - mean)
        bins.append(Bin(confidence=min(1.0, mean), exact=min(1.0, right), n=len(these)))
    return bins, min(1.0, error / (math.fsum(weights) or 1.0))


def file_of(form: str) -> str:
    """The file's name for a way to compute (`VLM.form`): calibration-openvino-int8.json for "float32 openvino int8"."""
    return "-".join([FILE.removesuffix(".json"), *form.split()[1:]]) + ".json"


def read_calibration(checkpoint: Path, form: str) -> tuple[Calibration | None, str]:
    """The calibration in a checkpoint's folder for a way to compute (`VLM.form`); and "", or why there is none to use.

    Raises LinesideError for a file that cannot be read.
    """
    path, by = checkpoint / file_of(form), "".join(f" {word}" for word in form.split()[1:])
    if not path.is_file():
        asked = f"no dev questions were answered with this checkpoint{by and f' by{by}'}"
        return None, f"not calibrated: {asked} (`lineside evaluate` does)"
    try:
        found = Calibration.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = " ".join(str(error).split())[:200]
        raise LinesideError(f"{path}: not a calibration: {reason}; delete it to fit it again") from None
    if found.checkpoint != fingerprint(checkpoint):
        return None, f"not calibrated: {path.name} was fitted for other weights"
    if found.dtype != form:
        return None, f"not calibrated: {path.name} was fitted for {found.dtype}, this computes in {form}"
    return found, ""


def write_calibration(checkpoint: Path, form: str, mode: Mode, curves: dict[str, Curve]) -> Calibration:
    """Writes the curves of a mode into the checkpoint's folder, beside those of the other mode."""
    path = checkpoint / file_of(form)
    found, _ = read_calibration(checkpoint, form) if path.is_file() else (None, "")
    modes: dict[Mode, dict[str, Curve]] = {**(found.modes if found else {}), mode: curves}
    calibration = Calibration(checkpoint=fingerprint(checkpoint), dtype=form, modes=modes)
    try:
        write_atomic(path, json.dumps(calibration.model_dump(mode="json"), indent=2) + "\n")
    except LinesideError as error:  # the evaluation goes on if the checkpoint is read-only
        say(f"warning: the calibration is used here but not saved: {error}")
    return calibration


def share_calibration(checkpoint: Path, other: Path) -> None:
    """Give another folder with the same weights in another form (an adapter) the valid calibrations of `checkpoint`.
    Raises LinesideError if one cannot be read or written."""
    for path in checkpoint.glob(f"{FILE.removesuffix('.json')}*.json"):
        found = Calibration.model_validate_json(path.read_bytes())
        if found.checkpoint == fingerprint(checkpoint):
            shared = found.model_copy(update={"checkpoint": fingerprint(other)})
            write_atomic(other / path.name, json.dumps(shared.model_dump(mode="json"), indent=2) + "\n")


def logit(share_N: FloatArray) -> FloatArray:
    """log(p / (1 - p)), finite at 0 and 1 too."""
    clipped_N = np.clip(share_N, _LEAST, 1 - _LEAST)
    return np.log(clipped_N / (1 - clipped_N))


def sigmoid(score_N: FloatArray) -> FloatArray:
    """The probability of a logit."""
    return 1 / (1 + np.exp(-np.clip(score_N, -60, 60)))
