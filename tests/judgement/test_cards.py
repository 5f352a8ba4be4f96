"""Which questions get a card, and what stands on it."""

from __future__ import annotations

from pathlib import Path

from lineside.judgement.cards import SHOWN, choose_cards
from lineside.judgement.schema import Row
from lineside.types import Mask, Target
from tests.judgement.conftest import choice, row, wrong


def pictures(folder: Path, rows: dict[str, Row]) -> Path:
    for key in {key for r in rows.values() for key in r.images}:
        (folder / f"{key}.jpg").write_bytes(b"jpeg of " + key.encode())
    return folder


def by_id(*rows: Row) -> dict[str, Row]:
    return {r.id: r for r in rows}


def test_every_outcome_is_shown_side_by_side(tmp_path: Path) -> None:
    names = {"learned": "ab", "right": "cd", "lost": "ef", "wrong": "gh"}
    align = by_id(*(wrong(i) for i in "abcdefgh"))
    sft = by_id(*((row if i in names["right"] + names["lost"] else wrong)(i) for i in "abcdefgh"))
    rlvr = by_id(*((row if i in names["right"] + names["learned"] else wrong)(i) for i in "abcdefgh"))
    rows = {"align": align, "sft": sft, "rlvr": rlvr}
    (family, cards), *none = choose_cards(rows, pictures(tmp_path, sft)).items()
    assert family == "picking" and not none
    assert [c.outcome for c in cards] == ["learned", "learned", "right", "lost", "wrong", "wrong"]
    assert len({c.pictures for c in cards}) == 6
    assert all([a.stage for a in c.answers] == ["align", "sft", "rlvr"] for c in cards)
    assert [a.exact for a in cards[0].answers] == [False, False, True]
    assert cards == choose_cards(rows, tmp_path)["picking"]


def test_other_outcomes_fill_in_and_tasks_take_turns(tmp_path: Path) -> None:
    rows = by_id(*(row(f"{task}{i}", task=task) for task in ("count", "empty", "fill") for i in range(5)))
    cards = choose_cards({"sft": rows}, pictures(tmp_path, rows))["picking"]
    assert len(cards) == 6 and {c.outcome for c in cards} == {"right"}
    assert sorted(c.task for c in cards) == ["count", "count", "empty", "empty", "fill", "fill"]


def test_only_questions_with_a_kept_picture_that_every_stage_answered(tmp_path: Path) -> None:
    sft, rlvr = by_id(row("a"), row("b"), row("c")), by_id(row("a"), row("b"))
    pictures(tmp_path, by_id(row("a"), row("c")))
    (card,) = choose_cards({"sft": sft, "rlvr": rlvr}, tmp_path)["picking"]
    assert card.pictures[0].startswith("data:image/jpeg;base64,")
    assert choose_cards({"sft": sft}, tmp_path / "none") == {}
    assert choose_cards({}, tmp_path) == {}


def test_what_stands_on_a_card(tmp_path: Path) -> None:
    point = Target("point", "sim", x=0.25, y=1.5, mask=Mask(1, 1, (0, 1))).to_json()
    several = choice("red can", "blue box", options=()).to_json()
    cut_off = {"answer": None, "trace": None, "trace_class": "truncated", "text": "<think>on and on", "confidence": 0.0}
    rows = by_id(
        row("p", family="a", target=point, question="Kit: 1 red can, 2 blue box. 3 slots. Where is it?"),
        row("s", family="b", target=several, trace="x" * 5000),
        wrong("c", family="c", reason="no answer", **cut_off),
    )
    cards = choose_cards({"sft": rows}, pictures(tmp_path, rows))
    assert cards["a"][0].mark == (0.25, 1.0) and cards["a"][0].target == "inside the marked part"
    assert (cards["a"][0].context, cards["a"][0].question) == ("Kit: 1 red can, 2 blue box. 3 slots.", "Where is it?")
    assert cards["b"][0].context == ""
    assert cards["b"][0].target == "red can or blue box"
    assert len(cards["b"][0].answers[0].trace) < SHOWN + 10
    (answer,) = cards["c"][0].answers
    assert (answer.answer, answer.trace, answer.note) == ("", "<think>on and on", "no answer; trace truncated")
