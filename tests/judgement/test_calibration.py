"""Calibration: curves that are found again, honest ends, error by hand, and files that fit one checkpoint only."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lineside.errors import LinesideError
from lineside.judgement.calibration import (
    FEWEST_SCENES,
    FILE,
    Calibration,
    Curve,
    fit,
    fit_rows,
    read_calibration,
    reliability,
    write_calibration,
)
from tests.judgement.conftest import choice, row, wrong


def share(slope: float, offset: float, p: float) -> float:
    return 1 / (1 + math.exp(-(slope * math.log(p / (1 - p)) + offset)))


def test_a_curve_is_found_again() -> None:
    random = np.random.default_rng(0)
    confidence = random.uniform(0.01, 0.999, 20_000)
    exact = random.random(20_000) < [share(0.5, -0.7, p) for p in confidence]
    slope, offset = fit(confidence.tolist(), exact.tolist(), [1.0] * 20_000)
    assert slope == pytest.approx(0.5, abs=0.03) and offset == pytest.approx(-0.7, abs=0.05)


def test_two_levels_worked_by_hand() -> None:
    """At 0.5 one of two is right, at 0.9 three of four: the two points fix the curve, but for the one question of
    either kind that is drawn in, which with a thousand of each hardly counts."""
    confidence, exact = [0.5] * 1000 + [0.9] * 1000, [True, False] * 500 + [True, True, True, False] * 250
    slope, offset = fit(confidence, exact, [1.0] * 2000)
    assert share(slope, offset, 0.5) == pytest.approx(0.5, abs=0.002)
    assert share(slope, offset, 0.9) == pytest.approx(0.75, abs=0.002)


def test_questions_weigh_as_often_as_they_arise() -> None:
    slope, offset = fit([0.9] * 1000, [True] * 500 + [False] * 500, [3.0] * 500 + [1.0] * 500)
    assert share(slope, offset, 0.9) == pytest.approx(0.75, abs=0.002)


@pytest.mark.parametrize("right", [True, False])
def test_answers_that_are_all_alike_make_nothing_certain(right: bool) -> None:
    slope, offset = fit([0.99999] * 60, [right] * 60, [1.0] * 60)
    assert share(slope, offset, 0.99999) == pytest.approx(61 / 62 if right else 1 / 62, abs=1e-4)


def test_a_curve_that_falls_is_flat() -> None:
    slope, offset = fit([0.1] * 100 + [0.9] * 100, [True] * 100 + [False] * 100, [1.0] * 200)
    assert slope == 0.0 and share(slope, offset, 0.9) == pytest.approx(0.5)


@pytest.mark.parametrize("p", [0.0, 1e-300, 1.0])
def test_a_probability_at_either_end(p: float) -> None:
    curve = Curve(n=60, scenes=60, slope=1.0, offset=0.0, normal=None, stakes=None, binary=True, thinking=True)
    found = curve.apply(p)
    assert found is not None and 0.0 <= found <= 1.0 and (found == 0.0) == (p == 0.0)


def test_the_calibration_error_worked_by_hand() -> None:
    """Four of 0.95 with two right, one of 0.1 that is wrong: (4 x 0.45 + 1 x 0.1) / 5."""
    bins, error = reliability([0.95, 0.95, 0.95, 0.95, 0.1], [True, True, False, False, False], [1.0] * 5)
    assert error == pytest.approx((4 * 0.45 + 0.1) / 5)
    assert [(b.n, b.exact) for b in bins] == [(1, 0.0), (4, 0.5)]
    assert reliability([1.0], [True], [1.0])[1] == 0.0
    assert reliability([0.9, 0.9], [True, False], [9.0, 1.0])[1] == pytest.approx(0.0)  # nine such arise for each other
    assert reliability([0.9, 0.9], [True, False], [0.0, 1.0])[1] == pytest.approx(0.9)


def rows(scenes: int, **changes: Any) -> list[Any]:
    return [(row if i % 4 else wrong)(str(i), confidence=0.99, **changes) for i in range(scenes)]


def test_too_few_scenes_are_not_calibrated_and_say_so() -> None:
    few = fit_rows(rows(FEWEST_SCENES - 20))["picking/empty"]
    assert few.apply(0.99) is None and few.note == "not calibrated, n = 40 (40 of the 60 scenes that it takes on dev)"
    same = fit_rows([r.model_copy(update={"scene": "one"}) for r in rows(200)])["picking/empty"]
    assert same.slope is None  # many questions about one scene are one scene
    enough = fit_rows(rows(FEWEST_SCENES))["picking/empty"]
    assert enough.note == "" and enough.apply(0.99) == pytest.approx(0.75, abs=0.02)


def test_a_calibration_belongs_to_one_checkpoint_and_one_number_format(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"x" * 5_000_000)
    assert read_calibration(tmp_path, "float32") == (
        None,
        "not calibrated: no dev questions were answered with this checkpoint (`lineside evaluate` does)",
    )
    curves = fit_rows(rows(80, target=choice("no").to_json()))
    write_calibration(tmp_path, "float32", "think", curves)
    both = write_calibration(tmp_path, "float32", "fast", curves)
    assert set(both.modes) == {"think", "fast"}
    assert read_calibration(tmp_path, "float32") == (both, "")
    assert "fitted for float32, this computes in bfloat16" in read_calibration(tmp_path, "bfloat16")[1]
    weights.write_bytes(b"x" * 4_999_999 + b"y")
    assert "fitted for other weights" in read_calibration(tmp_path, "float32")[1]
    again = write_calibration(tmp_path, "float32", "think", curves)  # what was fitted for others is not kept
    assert set(again.modes) == {"think"}


def test_a_curve_is_used_only_for_answers_given_as_on_dev() -> None:
    """A task that does not think is asked the same way in both modes; one that thinks is not."""
    fits = fit_rows(rows(80, thinking=True)), fit_rows(rows(80, thinking=False))
    (task,) = fits[0]
    thinks, fast = (found[task] for found in fits)
    one = Calibration(checkpoint="", dtype="float32", modes={"think": {task: fast}})
    assert one.curve(task, thinking=False) == fast and one.curve(task, thinking=True) is None
    both = Calibration(checkpoint="", dtype="float32", modes={"think": {task: thinks}, "fast": {task: fast}})
    assert both.curve(task, thinking=True) == thinks and both.curve(task, thinking=False) == fast
    only_fast = Calibration(checkpoint="", dtype="float32", modes={"fast": {task: fast}})
    assert only_fast.curve(task, thinking=True) is None and only_fast.curve("other", thinking=False) is None


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"version": 2}), "\x00"])
def test_a_broken_file_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(LinesideError, match=r"calibration\.json: not a calibration: .*; delete it"):
        read_calibration(tmp_path, "float32")
