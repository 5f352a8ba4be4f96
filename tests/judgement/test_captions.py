"""Caption matching with a scorer that is ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from lineside.judgement.captions import choose_pairs, match_captions
from lineside.types import Sample
from tests.judgement.conftest import question


def caption(id: str, wrong: Any, **changes: Any) -> Sample:
    extra = {"wrong": wrong, **changes.pop("extra", {})}
    return question(id, None, kind="caption", answer="a red can", extra=extra, **changes)


def test_a_caption_the_language_model_likes_anyway_does_not_win() -> None:
    # Without the picture "a red can" scores -1 and "a blue can" -3; the picture moves them to -0.9 and -2.
    def score(asked: Sequence[tuple[Sample, str, bool]]) -> list[float]:
        table = {
            ("a red can", True): -0.9,
            ("a red can", False): -1.0,
            ("a blue can", True): -2.0,
            ("a blue can", False): -3.0,
        }
        return [table[text, with_picture] for _, text, with_picture in asked]

    found = match_captions(choose_pairs([caption("a", "a blue can")], split="heldout", limit=9), score, seed=0)
    assert found is not None and found.share == 0.0


def test_shares_by_attribute_ties_and_interval() -> None:
    gains = {"a": 1.0, "b": 1.0, "c": -1.0, "d": 0.0}
    samples = [caption(id, ["a blue can", "colour" if id in "ab" else "kind"], scene=f"s{id}") for id in gains]

    def score(asked: Sequence[tuple[Sample, str, bool]]) -> list[float]:
        return [gains[s.id] if text == "a red can" and seen else 0.0 for s, text, seen in asked]

    found = match_captions(choose_pairs(samples, split="heldout", limit=9), score, seed=0, at_once=3)
    assert found is not None
    assert (found.n, found.share) == (4, (1 + 1 + 0 + 0.5) / 4)
    assert found.attributes == {"colour": 1.0, "kind": 0.25}
    assert found.interval[0] < found.share < found.interval[1]


def test_pairs_need_a_wrong_caption_of_the_split() -> None:
    samples = [
        caption("a", "a blue can", extra={"wrong_attribute": "colour"}),
        caption("b", None),
        caption("c", ""),
        caption("d", "a blue can", split="train"),
        caption("e", ["only one"]),
        question("f", None, extra={"wrong": "x"}),
    ]
    (pair,) = choose_pairs(samples, split="heldout", limit=9)
    assert (pair.true, pair.wrong, pair.attribute) == ("a red can", "a blue can", "colour")
    assert match_captions([], lambda _: [], seed=0) is None


def test_the_limit_chooses_the_same_pairs_in_any_order() -> None:
    samples = [caption(f"c{i}", "a blue can") for i in range(30)]
    chosen = [p.sample.id for p in choose_pairs(samples, split="heldout", limit=5)]
    assert len(chosen) == 5
    assert chosen == [p.sample.id for p in choose_pairs(samples[::-1], split="heldout", limit=5)]


def test_a_scorer_that_drops_one_is_noticed() -> None:
    pairs = choose_pairs([caption("a", "a blue can")], split="heldout", limit=9)
    with pytest.raises(ValueError):
        match_captions(pairs, lambda asked: [0.0] * (len(asked) - 1), seed=0)
