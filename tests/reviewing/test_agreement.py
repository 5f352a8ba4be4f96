"""Agreement by task: numbers worked by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lineside import cli
from lineside.data.review_list import Form, ReviewQuestion, Said
from lineside.reviewing.agreement import Agreement, agreements, by_chance, category, lines
from lineside.reviewing.log import CANNOT_TELL, Entry
from tests.reviewing.conftest import answer, opened

YES_NO = Form(kind="choice", options=("yes", "no"))


def questions(n: int, form: Form = YES_NO, said: tuple[Said, ...] = (), scene: str = "") -> list[ReviewQuestion]:
    fields = {"picture": "p", "family": "f", "task": "t", "question": "?", "form": form, "said": said, "scene": scene}
    return [ReviewQuestion(id=str(i), frame=f"frame{i}", **fields) for i in range(n)]


def entries(answers: list[str | None], saw: bool = False) -> dict[str, Entry]:
    """None: cannot tell; "": no answer."""
    return {
        str(i): Entry(
            at="t", question=str(i), action="answer" if a else "cannot tell", answer=a or "", key="k", saw=saw
        )
        for i, a in enumerate(answers)
        if a != ""
    }


def test_kappa_worked_by_hand() -> None:
    # 50 answers: both yes 20, first yes and second no 5, first no and second yes 10, both no 15. Equal 35 of 50.
    # By chance 0.5 x 0.6 + 0.5 x 0.4 = 0.5, so kappa = (0.7 - 0.5) / 0.5 = 0.4.
    first = ["yes"] * 25 + ["no"] * 25
    second = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    (found,) = agreements(questions(50), {"anna": entries(list(first)), "ben": entries(list(second))})
    assert (found.n, found.scenes, found.share) == (50, 50, 0.7)
    assert found.kappa == pytest.approx(0.4) and found.kappa_interval is not None
    # 1.96 sqrt(0.7 x 0.3 / 50) = 0.127, and twice that for kappa (Cohen 1960)
    assert found.interval == pytest.approx((0.573, 0.827), abs=0.02)
    assert found.kappa_interval == pytest.approx((0.146, 0.654), abs=0.04)
    assert found.differ[0] == ("20", "yes", "no")


def test_kappa_is_symmetric_and_undefined_where_chance_is_certain() -> None:
    pairs = [("a", "b"), ("a", "a"), ("c", "a"), ("b", "b")]
    assert by_chance(pairs) == by_chance([(b, a) for a, b in pairs]) == pytest.approx(6 / 16)
    assert by_chance([("a", "a")] * 9) is None
    (found,) = agreements(questions(9), {"a": entries(["yes"] * 9), "b": entries(["yes"] * 9)})
    assert (found.share, found.kappa) == (1.0, None)
    assert found.interval[0] == pytest.approx(0.025 ** (1 / 9))  # nine equal answers do not prove that all are


def test_few_scenes_say_little() -> None:
    people = {"a": entries(["yes", "no"] * 20), "b": entries(["yes", "no"] * 20)}
    (found,) = agreements(questions(40, scene="the same"), people)
    assert (found.n, found.scenes, found.interval) == (40, 1, (0.0, 1.0))


def test_answers_are_compared_as_the_verifier_does() -> None:
    form = Form(kind="number", unit="percent", resolution=10.0)
    assert category(form, "40") == category(form, "40 %") != category(form, "50")
    members = Form(kind="set", options=("carton", "can"), counted=True)
    assert category(members, "2 cartons, can") == category(members, "can, carton, carton")
    assert category(YES_NO, "maybe").startswith("?") and category(YES_NO, CANNOT_TELL) == CANNOT_TELL
    people = {"a": entries(["yes", None, None, "no"]), "b": entries(["yes", None, "no", ""])}
    (found,) = agreements(questions(4), people)
    assert (found.n, found.share) == (3, pytest.approx(2 / 3))  # cannot tell is an answer; the fourth has one only
    point = Form(kind="point")
    people = {"a": entries(["0.5, 0.5", "0.1, 0.1"]), "b": entries(["0.51, 0.5", "0.9, 0.1"])}
    (found,) = agreements(questions(2, point), people)
    assert (found.share, found.kappa) == (0.5, None)


def test_people_are_also_compared_with_what_others_said() -> None:
    said = (Said(by="record", answer="yes"), Said(by="model", name="sft", answer="no"))
    people = {"anna": entries(["yes", "yes", "no"], saw=True), "ben": entries(["yes", "no", "no"])}
    found = agreements(questions(3, said=said), people)
    shares = {(one.first, one.second): round(one.share, 3) for one in found}
    assert shares == {
        ("anna", "ben"): 0.667,
        ("anna", "the record"): 0.667, ("anna", "the model sft"): 0.333,
        ("ben", "the record"): 0.333, ("ben", "the model sft"): 0.667,
    }  # fmt: skip
    assert [one.blind for one in found] == [0, 0, 0, 3, 3]
    told = "\n".join(lines(found))
    assert told.startswith("anna and ben:\n  f/t equal 66.7% (") and "n 3, 0 of them blind" in told


def test_the_verb_prints_it_and_says_when_a_second_person_is_missing(bins: Path) -> None:
    review = opened(bins)
    answer(review, {"0.png/count": "5", "1.png/count": "2", "0.png/state": "torn"}, "anna")
    words = ["review", str(bins), "--tasks", str(bins.parent / "bins.yaml"), "--agreement"]
    alone = CliRunner().invoke(cli.app, words)
    assert alone.exit_code == 3 and "anna answered: two people must answer common questions" in alone.stderr
    assert "anna and the record:" in alone.stdout
    answer(review, {"0.png/count": "6", "1.png/count": "2", "0.png/state": "torn"}, "ben")
    both = CliRunner().invoke(cli.app, [*words, "--json"])
    assert both.exit_code == 0
    found = {(one["first"], one["second"], one["task"]): one for one in json.loads(both.stdout)["agreements"]}
    assert found["anna", "ben", "bins/count"]["share"] == 0.5 and found["anna", "ben", "bins/count"]["n"] == 2
    assert set(found["anna", "ben", "bins/state"]) == set(Agreement.__dataclass_fields__)
