"""Records that both models contradict: how many, where, and whether it is the records or the camera."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lineside.data.store import write_samples
from lineside.judgement import contradicted as module
from lineside.judgement.contradicted import Judged, compare_pictures, contradicted
from lineside.judgement.gate import Answered, gate
from lineside.judgement.schema import Row
from lineside.judgement.summary import summarise
from lineside.runtime import ON_CPU
from lineside.types import Image
from tests.conftest import picture
from tests.judgement.conftest import choice, question, row, summary_arguments  # noqa: F401

CELLS = 6
Pairs = list[tuple[Row, Row]]


def suite(
    name: str, wrong: float = 0.0, *, cell: str = "", sure: float = 0.95, right: float = 0.95, scenes: int = 300
) -> Pairs:
    """A yes/no question a scene, in six cells; both models are right with probability `right` and say `sure`. A share
    of the records is another frame's, in all cells or in one."""
    rng = np.random.default_rng(len(name) + scenes)
    made: Pairs = []
    for n in range(scenes):
        truth, here = rng.choice(["yes", "no"]), f"c{n % CELLS}"
        other = {"yes": "no", "no": "yes"}[truth]
        mistaken = rng.random() < wrong and cell in ("", here)
        record = str(rng.choice([truth, other])) if mistaken else truth
        says = [truth if rng.random() < right else other for _ in range(2)]
        made.append(
            tuple(  # pyright: ignore[reportArgumentType]
                row(
                    f"{name}-{n}", scene=f"{name}-{n}", target=choice(record).to_json(), reference=record, answer=said,
                    exact=said == record, calibrated=sure, thinking=True,
                    columns={"cell": [here], "camera": [f"{here}-top"]},
                )
                for said in says
            )
        )  # fmt: skip
    return made


def found(*suites: Pairs, changed: Any = None) -> list[module.Contradicted]:
    return contradicted(Judged.of({f"week {n}": pairs for n, pairs in enumerate(suites)}), changed)


def test_right_records_stand() -> None:
    assert found(suite("a"), suite("bb"), suite("ccc")) == []
    assert found(suite("a", scenes=2000)) == []


def test_wrong_records_are_found_in_its_suite_and_estimated() -> None:
    (bad,) = found(suite("a"), suite("bb", 0.3, scenes=600))
    assert (bad.suite, bad.place) == ("week 1", "") and "records" in bad.cause and "camera" not in bad.cause
    assert bad.n == bad.scenes == 600 and bad.interval[0] > 0.1 and abs(bad.share - 0.3) < 0.08


@pytest.mark.parametrize(
    ("p", "cause"),
    [(0.001, "camera of cell c2"), (0.4, "records of cell c2"), (None, "records or camera of cell c2")],
)
def test_one_cell_alone_is_named_and_its_pictures_decide_what_it_is(p: float | None, cause: str) -> None:
    asked: list[tuple[str, str, str]] = []

    def changed(*place: str) -> float | None:
        asked.append(place)  # pyright: ignore[reportArgumentType]
        return p

    (bad,) = found(suite("a"), suite("bb", 0.7, cell="c2"), changed=changed)
    assert (bad.suite, bad.place, bad.pictures) == ("week 1", "cell c2", p) and cause in bad.cause
    assert asked == [("week 1", "cell", "c2")]  # not its camera once more


def test_models_that_are_too_sure_everywhere_accuse_no_suite() -> None:
    too_sure = {"sure": 0.95, "right": 0.8}
    assert found(suite("a", **too_sure), suite("bb", **too_sure)) == []


def test_one_model_alone_accuses_nothing() -> None:
    pairs = [(a, b.model_copy(update={"answer": a.reference, "exact": True})) for a, b in suite("a", right=0.7)]
    assert found(pairs, suite("bb")) == []


def test_what_cannot_be_judged_is_left_out() -> None:
    point = {"kind": "point", "provenance": "sim"}
    pairs = [(a.model_copy(update={"target": point}), b) for a, b in suite("a", 0.5)]
    assert found(pairs) == [] and not Judged.of({"a": pairs}).ratios
    uncalibrated = [(a, b.model_copy(update={"calibrated": None})) for a, b in suite("a", 0.5)]
    assert not Judged.of({"a": uncalibrated}).ratios


def test_the_gate_refuses_and_names_the_suite(summary_arguments: dict[str, Any]) -> None:  # noqa: F811
    def answered(name: str, pairs: Pairs) -> Answered:
        sides = [(summarise(rows, **summary_arguments), {r.id: r for r in rows}) for rows in map(list, zip(*pairs))]
        return Answered(name, *sides)

    good, names = answered("week 1", suite("x", right=1.0, scenes=400)), ("bins@1", "bins@2")
    assert gate([good], names=names, margin=0.03).outcome == "passed"
    bad = answered("week 2", suite("yy", 0.3, right=1.0, scenes=400))
    verdict = gate([good, bad], names=names, margin=0.03)
    assert verdict.outcome == "refused" and verdict.checks["records"].verdict == "refused"
    assert verdict.because[0].startswith("week 2: both models contradict about ") and "records" in verdict.because[0]
    assert [one.suite for one in verdict.contradicted] == ["week 2"]


def test_the_pictures_of_a_place_are_compared_with_the_same_place_of_the_other_suites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def features(images: Any) -> list[torch.Tensor]:  # dark pictures and bright ones differ
        values = [int.from_bytes(image.bytes[-40:-36], "big") % 97 / 97 for image in images]
        return [torch.tensor([[v, 1.0 if b"bright" in image.bytes else 0.0]]) for v, image in zip(values, images)]

    monkeypatch.setattr(module, "open_store", lambda *_: SimpleNamespace(get=features))
    for name, bright in (("old", ()), ("same", ()), ("new", ("c1",))):
        samples = [
            question(
                f"{name}{cell}{n}", choice("yes"), scene=f"{name}{cell}{n}", cell=cell,
                images=(Image(picture(n) + (b"bright" if cell in bright else b"darker")),),
            )
            for cell in ("c1", "c2") for n in range(12)
        ]  # fmt: skip
        write_samples(tmp_path / name, samples)
    folders = {name: tmp_path / name for name in ("old", "same", "new")}
    changed = compare_pictures(folders, tmp_path, None, ON_CPU)
    assert changed("new", "cell", "c1") == pytest.approx(0.001)  # the least p of 999 permutations
    assert (changed("new", "cell", "c2") or 0) > 0.05
    assert changed("new", "cell", "c9") is None  # no picture of it
