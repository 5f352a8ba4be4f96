"""The simulator's teacher: traces worked by hand, captions read back against the record, flaws in their shares."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from lineside.data.tasks import candidates
from lineside.errors import LinesideError
from lineside.sim.teacher import captions, enrich, spoil, trace, wrong_caption
from lineside.types import Frame
from lineside.verify.traces import fact_share, trace_problem
from tests.sim.claims import claims
from tests.sim.conftest import tasks_of
from tests.sim.records import kitting, part, picking, random_frame, returns

FAMILIES = ("picking", "kitting", "returns")
KIT_TASKS = ("kit_complete", "wrong_item", "missing")
# They walk a kit of up to twelve slots word by word; `missing` then lists what is missing, with how many of each.
MOST_WORDS = {**dict.fromkeys(KIT_TASKS, 150), "missing": 160}
OTHERS_MOST_WORDS = 31


@dataclass(frozen=True)
class FakeCandidate:
    answer: str = ""
    element: dict[str, Any] = field(default_factory=dict)


def look(colour: str = "", kind: str = "", pattern: str = "", size: str = "") -> dict[str, str]:
    return {"size": size, "pattern": pattern, "colour": colour, "kind": kind}


BIN = [
    part("red can", 0.2, 0.2),
    part("striped red can", 0.2, 0.25, free=False),
    part("blue tub", 0.8, 0.5, depth=0.06),
    part("red ball", 0.5, 0.9),
]
CROWD = [part("red can", 0.1 + 0.2 * (n % 5), 0.2 + 0.3 * (n // 5)) for n in range(12)]


@pytest.mark.parametrize(
    ("task", "element", "said"),
    [
        ("count_all", {},
         "4 parts; red can top left; striped red can top left; blue tub right; red ball bottom; so 4 in all"),
        ("count_described", look(colour="red"),
         "red: can, ball; 3 fit; red can top left; striped red can top left; red ball bottom; so 3 in all"),
        ("count_described", look("red", "can"),
         "cans: red, striped red; 2 fit; red can top left; striped red can top left; so 2 in all"),
        ("count_described", look("green", "can"), "cans: red, striped red; none fits; so 0 in all"),
        ("count_described", look("red", "pouch"), "no pouches; red: can, ball; none fits; so 0 in all"),
        ("count_described", look("green"), "nothing green; colours: red, blue; none fits; so 0 in all"),
        ("bins", {}, "bin 1 holds a few; bin 2 holds nothing; so 2 in all"),
        ("is_empty", {}, "red can top left; striped red can top left; blue tub right; so there is something to pick"),
        ("is_present", look("red", "can", "striped"), "cans: red, striped red; one is at 2,2; so it is there"),
        ("is_present", look("blue", "can"), "cans: red, striped red; so none fits"),
        ("is_present", look(kind="rod"), "no rods; kinds: can, tub, ball; so none fits"),
        ("top_free", {},
         "striped red can at 2,2 is blocked; blue tub at 8,5 is free; so nothing lies on the blue tub"),
        ("pick_point", look("blue", "tub"),
         "blue tub at 8,5; from 7 to 8 tenths across; from 4 to 5 tenths down; so aim at its middle"),
        ("fill_level", {}, "4 parts; they cover 0 tenths; few are blocked; so less than a quarter"),
    ],
)  # fmt: skip
def test_traces_of_a_bin(task: str, element: dict[str, str], said: str) -> None:
    text, facts = trace(enrich(picking(BIN, bins=2)), task, FakeCandidate(element=element))
    assert text == said
    assert set(said.split("; ")) <= set(facts)


def test_many_parts_are_counted_by_row_with_sums_on_the_way() -> None:
    # Centres at x = .1 .3 .5 .7 .9 and y = .2 .5 .8: rows of 5, 5 and 2.
    text, _ = trace(enrich(picking(CROWD)), "count_all", FakeCandidate())
    assert text == "top 5; middle 5; 10 now; bottom 2; so 12 in all"


def test_many_described_parts_are_counted_in_words_of_their_own() -> None:
    text, facts = trace(
        enrich(picking([*CROWD, part("blue tub", 0.5, 0.5)])), "count_described", FakeCandidate(element=look("red"))
    )
    assert text == "red: can; many fit; fit top 5; fit middle 5; 10 now; fit bottom 2; so 12 in all"
    assert "fit middle 6" not in facts


def test_a_row_without_parts_is_said_to_be_so() -> None:
    parts = [p for p in CROWD if p["y"] > 0.4]
    text, _ = trace(enrich(picking(parts)), "count_all", FakeCandidate())
    assert text == "top none; middle 5; bottom 2; so 7 in all"


def test_facts_allow_the_neighbouring_place_at_a_border_only() -> None:
    _, facts = trace(enrich(picking([part("red can", 0.34, 0.2)])), "count_all", FakeCandidate())
    assert {"red can top", "red can top left"} <= set(facts) and "red can top right" not in facts
    assert {"top 1", "middle none"} <= set(facts) and "middle 1" not in facts
    _, facts = trace(enrich(picking([part("red can", 0.2, 0.34)])), "count_all", FakeCandidate())
    assert {"top 1", "middle none", "top none", "middle 1"} <= set(facts) and "bottom 1" not in facts


def test_facts_allow_the_neighbouring_tenth_at_a_border_only() -> None:
    frame = enrich(picking([part("red can", 0.305, 0.25)]))
    for task, said in (("is_present", "one is at {}"), ("top_free", "red can at {} is free")):
        text, facts = trace(frame, task, FakeCandidate(element=look("red", "can")))
        assert said.format("3,2") in text.split("; ")
        near = {spot for spot in ("2,2", "3,2", "4,2", "3,1", "3,3") if said.format(spot) in facts}
        assert near == {"2,2", "3,2"}


@pytest.mark.parametrize(
    ("dunnage", "said"),
    [
        (True, "only packing in sight; no part on it; so nothing to pick"),
        (False, "bare floor in sight; no part on it; so nothing to pick"),
    ],
)
def test_empty_bins(dunnage: bool, said: str) -> None:
    frame = enrich(picking([], dunnage=dunnage, fill_percent=20.0))
    assert trace(frame, "is_empty", FakeCandidate())[0] == said
    assert trace(frame, "fill_level", FakeCandidate())[0] == said.replace("nothing to pick", "less than a quarter")


KIT = [
    ("red can", "red can", "ok"),
    ("blue tub", None, "empty"),
    ("red ball", "striped red ball", "wrong"),
    ("green carton", "green carton", "half_seated"),
]


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("slots_to_fill", "1 full; 2 empty; 3 full; 4 full; so those are to fill"),
        ("slots_filled", "row 1 holds 1; row 2 holds 2, 3 now; so 3 in all"),
        ("kit_complete",
         "1 red red can can ok; 2 blue tub empty; 3 plain striped red red ball ball wrong; "
         "4 green green carton carton half seated; so not all is right"),
        ("wrong_item",
         "1 red red can can ok; 2 blue tub empty; 3 plain striped red red ball ball wrong; "
         "4 green green carton carton half seated; so 3 and 4 are wrong"),
        ("missing",
         "1 red red can can ok; 2 blue tub empty; 3 plain striped red red ball ball wrong; "
         "4 green green carton carton half seated; lacking 2: blue tub, 3: red ball; so that is missing"),
    ],
)  # fmt: skip
def test_traces_of_a_kit(task: str, said: str) -> None:
    assert trace(enrich(kitting(2, KIT)), task, FakeCandidate())[0] == said


def test_a_kit_that_lacks_nothing_and_one_that_lacks_the_same_twice() -> None:
    full = [("red can", "red can", "ok"), ("blue tub", "blue tub", "ok")]
    assert trace(enrich(kitting(2, full)), "missing", FakeCandidate())[0] == (
        "1 red red can can ok; 2 blue blue tub tub ok; so all is there"
    )
    bare = [("red can", None, "empty"), ("red can", None, "empty")]
    assert trace(enrich(kitting(2, bare)), "missing", FakeCandidate())[0] == (
        "1 red can empty; 2 red can empty; lacking 1 2: 2 red cans; so that is missing"
    )


@pytest.mark.parametrize(
    ("task", "element", "said"),
    [
        ("condition", {}, "shadow and tape only marks; a face is pressed in top left; clear damage; so it is dented"),
        ("label_readable", {}, "label bottom; its print is smudged; so it cannot be read"),
        ("matches_order", {"order": "green carton"},
         "seen red carton; red green differ; carton carton same; so the colour differs"),
        ("matches_order", {"order": "red carton"},
         "seen red carton; red red same; carton carton same; so they are the same"),
        ("disposition", {"policy": "", "action": "outlet", "label_action": ""},
         "shadow and tape only marks; a face is pressed in top left; clear damage; so dented outlet"),
        ("disposition", {"policy": "", "action": "relabel", "label_action": "relabel"},
         "label bottom; its print is smudged; so unreadable label relabel"),
    ],
)  # fmt: skip
def test_traces_of_a_return(task: str, element: dict[str, str], said: str) -> None:
    label = {"present": True, "readable": False, "fault": "smudged", "x": 0.5, "y": 0.8}
    frame = enrich(returns(condition="dented", confusers=["tape", "shadow"], label=label))
    assert trace(frame, task, FakeCandidate(element=element))[0] == said


def test_intact_and_open_items_are_told_by_their_sign() -> None:
    assert (
        trace(enrich(returns()), "condition", FakeCandidate())[0]
        == "no marks; faces flat and edges closed; so it is intact"
    )
    text, facts = trace(enrich(returns(condition="open")), "condition", FakeCandidate())
    assert text == "no marks; the top is not closed; so it is open"
    assert not any("damage" in fact for fact in facts)
    gone = returns(label={"present": False, "readable": False, "fault": "", "x": 0.0, "y": 0.0})
    assert trace(enrich(gone), "label_readable", FakeCandidate())[0] == "no label in sight; so it cannot be read"


def check_traces(frames: list[Frame]) -> Counter[str]:
    """Every trace valid, true by its own facts, and consistent with the answer; returns questions by task."""
    asked: Counter[str] = Counter()
    for frame in map(enrich, frames):
        for task in tasks_of(frame.family):
            for candidate in candidates(task, frame, provenance="sim"):
                text, facts = trace(frame, task.name, candidate)
                options = candidate.target.options if candidate.target.kind == "choice" else ()
                problem = trace_problem(text, question=candidate.question, answer=candidate.answer, options=options)
                assert problem == "", (task.name, candidate.question, text, candidate.answer)
                assert fact_share(text, facts) == 1.0
                assert text.split("; ")[-1].startswith("so ") and text != candidate.answer
                assert len(text.split()) <= MOST_WORDS.get(task.name, OTHERS_MOST_WORDS)
                if task.answer.kind == "number" and not task.answer.unit:
                    assert text.endswith(f"so {candidate.answer} in all")
                asked[task.name] += 1
    return asked


@pytest.mark.parametrize("family", FAMILIES)
def test_every_trace_is_valid_true_and_ends_in_its_answer(family: str) -> None:
    asked = check_traces([random_frame(family, number) for number in range(100)])
    assert set(asked) == {task.name for task in tasks_of(family)}
    assert min(asked.values()) > 30


def check_captions(frames: list[Frame], count: int = 8) -> Counter[str]:
    """Every caption true in all it says; the wrong one false in what was changed; returns what was changed."""
    changed: Counter[str] = Counter()
    for frame in frames:
        texts = captions(frame, count)
        assert len(texts) == len(set(texts)) and captions(frame, 3) == texts[:3]
        assert len(texts) == count
        for text in texts:
            said = claims(frame, text)
            assert all(holds for _, holds in said), (text, said)
            assert len(text.split()) <= 40
            pair = wrong_caption(frame, text)
            assert pair is not None
            wrong, attribute = pair
            assert wrong_caption(frame, text) == pair
            assert len(wrong.split()) == len(text.split())
            false = [claim for claim, holds in claims(frame, wrong) if not holds]
            assert false, (text, wrong)
            changed[attribute] += 1
    return changed


@pytest.mark.parametrize(
    ("family", "attributes"),
    [
        ("picking", {"count", "colour", "kind", "pattern", "place", "fill", "bins", "packing", "state"}),
        ("kitting", {"count", "colour", "kind", "pattern", "slot", "seat", "rows"}),
        ("returns", {"colour", "kind", "pattern", "condition", "degree", "place", "label", "marks"}),
    ],
)
def test_captions_are_true_and_wrong_ones_false(family: str, attributes: set[str]) -> None:
    changed = check_captions([random_frame(family, number) for number in range(40)])
    assert set(changed) == attributes


def test_a_false_caption_differs_in_one_claim() -> None:
    frame = picking([part("red can", 0.2, 0.2), part("blue tub", 0.8, 0.8), part("green ball", 0.8, 0.2)])
    for text in captions(frame, 20):
        wrong, attribute = wrong_caption(frame, text) or ("", "")
        false = [claim for claim, holds in claims(frame, wrong) if not holds]
        assert len(false) == 1, (text, wrong)
        assert attribute in ("count", "colour", "kind", "place", "fill", "bins", "state")


def test_captions_of_a_frame_cover_different_facts() -> None:
    frame = picking(BIN)
    texts = captions(frame, 20)
    covered = {claim for text in texts for claim, _ in claims(frame, text)}
    assert len(covered) >= 15
    assert max(len(text.split()) for text in texts) >= 30 and min(len(text.split()) for text in texts) <= 12


def test_only_our_own_captions_have_a_wrong_twin() -> None:
    assert wrong_caption(picking(BIN), "A bin with things in it.") is None
    with pytest.raises(LinesideError, match="'packing'"):
        captions(replace(picking([]), family="packing"), 3)
    with pytest.raises(LinesideError, match=r"'weigh'.*count_all"):
        trace(enrich(picking([])), "weigh", FakeCandidate())


SHARES = {"missing": 0.2, "trivial": 0.1, "wrong": 0.3}


def test_flaws_come_in_their_shares_and_by_the_key_alone() -> None:
    text = "red can top left; blue tub right; so 2 in all"
    facts = text.split("; ")
    given = [spoil(text, FakeCandidate("2"), shares=SHARES, key=f"k{n}", facts=facts) for n in range(2000)]
    assert given == [spoil(text, FakeCandidate("2"), shares=SHARES, key=f"k{n}", facts=facts) for n in range(2000)]
    missing = given.count(None)
    whole = given.count(text)
    wrong = [g for g in given if g and g != text and g.endswith("so 2 in all")]
    trivial = len(given) - missing - whole - len(wrong)
    for count, share in ((missing, 0.2), (trivial, 0.1), (len(wrong), 0.3), (whole, 0.4)):
        assert abs(count / 2000 - share) < 0.04  # 3.6 standard deviations at worst
    assert all(fact_share(g, facts) == 0.5 for g in wrong)
    assert spoil(text, FakeCandidate("2"), shares={}, key="k") == text


@pytest.mark.parametrize("family", FAMILIES)
def test_wrong_traces_are_valid_and_false_and_trivial_ones_are_refused(family: str) -> None:
    false, tried = 0, 0
    for frame in (enrich(random_frame(family, number)) for number in range(20)):
        for task in tasks_of(family):
            for candidate in candidates(task, frame, provenance="sim"):
                text, facts = trace(frame, task.name, candidate)
                options = candidate.target.options if candidate.target.kind == "choice" else ()
                known = {"question": candidate.question, "answer": candidate.answer, "options": options}
                wrong = spoil(text, candidate, shares={"wrong": 1.0}, key=candidate.key, facts=facts) or ""
                assert trace_problem(wrong, **known) == ""
                share = fact_share(wrong, facts)
                tried, false = tried + 1, false + (share is not None and share < 1)
                for n in range(5):
                    trivial = spoil(text, candidate, shares={"trivial": 1.0}, key=f"{n}", facts=facts) or ""
                    assert trace_problem(trivial, **known) != ""
    assert false / tried > 0.97


@pytest.mark.parametrize("shares", [{"lazy": 0.1}, {"wrong": -0.1}, {"wrong": 0.7, "missing": 0.4}])
def test_impossible_shares_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(LinesideError, match="missing, trivial, wrong"):
        spoil("a trace of it", FakeCandidate(), shares=shares, key="k")


@pytest.mark.parametrize("family", FAMILIES)
def test_real_frames(family: str, real_frames) -> None:
    frames = real_frames(family, 6)
    assert sum(check_traces(frames).values()) > 10
    check_captions(frames)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_two_hundred_real_frames(family: str, real_frames) -> None:
    frames = real_frames(family, 200)
    check_traces(frames)
    check_captions(frames)
