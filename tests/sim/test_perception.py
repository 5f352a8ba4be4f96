"""What a teacher that errs sees: valid records, one view of a frame in all that is said of it, errors that nest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest

from lineside.data.tasks import Candidate, ask_again, candidates
from lineside.errors import LinesideError
from lineside.sim.acuity import ACUITIES, acuity_of
from lineside.sim.catalogue import catalogue
from lineside.sim.perception import INTACT, SLIGHTEST, confusable, missed, perceive
from lineside.sim.questions import mask_of
from lineside.sim.teacher import captions, enrich, look, trace
from lineside.sim.traces_stations import DEGREES
from lineside.sim.words import Look, known_looks
from lineside.types import Frame
from lineside.verify.traces import fact_share, trace_problem
from lineside.verify.verifiers import verify
from tests.sim.claims import claims
from tests.sim.conftest import tasks_of
from tests.sim.records import kitting, part, picking, random_frame, returns

FAMILIES = ("picking", "kitting", "returns")
MANY = 120  # frames of each family
SKUS = {sku.description: sku for sku in catalogue()}


@cache
def frames(family: str) -> tuple[Frame, ...]:
    return tuple(enrich(random_frame(family, number)) for number in range(MANY))


def asked(frame: Frame) -> Iterator[tuple[str, Candidate, Candidate | None]]:
    """(task, the truth's own question, the same as it is answered at acuity 0.3) for all that is asked of a frame."""
    seen = look(frame, 0.3)
    for task in tasks_of(frame.family):
        for candidate in candidates(task, frame, provenance="sim"):
            yield task.name, candidate, ask_again(task, seen, candidate.key, provenance="teacher")


# ----------------------------------------------------------------------------------------------------- valid records


def test_perfect_eyes_see_the_frame_itself() -> None:
    for family in FAMILIES:
        for frame in frames(family)[:5]:
            assert perceive(frame, 1.0) is frame and look(frame, 1.0) is frame


def articles_known(frame: Frame, names: list[str]) -> bool:
    known = {other.text for other in known_looks(frame.split, frame.meta.week)}
    return all(name in known for name in names)


@pytest.mark.parametrize("acuity", [0.9, 0.5, 0.0])
def test_a_misread_bin_is_one_that_the_simulator_could_have_written(acuity: float) -> None:
    changed = 0
    for frame in frames("picking"):
        true, seen = frame.record, perceive(frame, acuity).record
        changed += seen["parts"] != true["parts"]
        places = [(p["x"], p["y"], p["box"], p["mask"], p["pixels"]) for p in true["parts"]]
        for p in seen["parts"]:
            sku = SKUS[p["description"]]
            assert (sku.id, sku.colour, sku.kind, sku.pattern, sku.size) == (
                p["sku"], p["colour"], p["kind"], p["pattern"], p["size"],
            )  # fmt: skip
            assert (p["x"], p["y"], p["box"], p["mask"], p["pixels"]) in places  # where something is
            assert mask_of(p["mask"]).any() and 1 <= p["bin"] <= seen["bins"] == true["bins"]
        assert articles_known(frame, [p["description"] for p in seen["parts"]])
        assert len(seen["parts"]) <= len(true["parts"])
        assert seen["empty"] == (not seen["parts"]) or seen["parts"] == true["parts"]
        assert 0 <= seen["fill_percent"] <= 100
        # Off by whole steps: as far from where the rounding turns as the truth is.
        assert (seen["fill_percent"] - true["fill_percent"]) % 10 == pytest.approx(0, abs=1e-6) or (
            seen["fill_percent"] - true["fill_percent"]
        ) % 10 == pytest.approx(10, abs=1e-6)
    assert changed > MANY / 4


@pytest.mark.parametrize("acuity", [0.9, 0.5, 0.0])
def test_a_misread_kit_is_one_that_the_simulator_could_have_written(acuity: float) -> None:
    changed = 0
    for frame in frames("kitting"):
        true, seen = frame.record, perceive(frame, acuity).record
        for before, after in zip(true["slots"], seen["slots"], strict=True):
            changed += before != after
            assert {**before, "found": 0, "status": 0} == {**after, "found": 0, "status": 0}
            found, expected, status = after["found"], after["expected"], after["status"]
            assert (found is None) == (status == "empty")
            assert (found == expected) == (status in ("ok", "half_seated"))
            assert status != "half_seated" or before["status"] == "half_seated"
            assert found is None or articles_known(frame, [found])
        assert seen["complete"] == all(slot["status"] == "ok" for slot in seen["slots"])
        assert articles_known(frame, [item["description"] for item in seen["beside"]])
        assert [(i["x"], i["y"]) for i in seen["beside"]] == [(i["x"], i["y"]) for i in true["beside"]]
    assert changed > MANY / 10


@pytest.mark.parametrize("acuity", [0.9, 0.5, 0.0])
def test_a_misread_return_is_one_that_the_simulator_could_have_written(acuity: float) -> None:
    changed = 0
    for frame in frames("returns"):
        seen = perceive(frame, acuity).record
        changed += seen["condition"] != frame.record["condition"]
        sku = SKUS[seen["item"]]
        assert (sku.colour, sku.kind, sku.pattern, sku.size) == (
            seen["colour"], seen["kind"], seen["pattern"], seen["size"],
        )  # fmt: skip
        assert seen["item"] not in seen["similar"] and len(seen["similar"]) == len(frame.record["similar"])
        if seen["condition"] == "intact":
            assert seen["severity"] < 0.1 and seen["damage_box"] is None
        else:
            x0, y0, x1, y1 = seen["damage_box"]
            assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1 and 0.3 <= seen["severity"] <= 1
        assert set(seen["confusers"]) <= {"tape", "shadow", "print"}
        assert len(set(seen["confusers"])) == len(seen["confusers"])
        label = seen["label"]
        assert label["readable"] == (label["present"] and not label["fault"])
        assert label["present"] == frame.record["label"]["present"]
    assert changed > MANY / 40


def test_severities_are_those_of_the_simulator() -> None:
    rules = pytest.importorskip("lineside.sim.returns", reason="needs the simulator")
    assert INTACT < rules.INTACT and SLIGHTEST > rules.DAMAGED
    assert 0.7 in [bound for bound, _ in DEGREES]


def test_real_frames_misread(real_frames) -> None:
    for family in FAMILIES:
        for frame in real_frames(family, 6):
            enriched = enrich(replace(frame, split="train"))
            for caption in captions(look(enriched, 0.2), 4):
                assert all(true for _, true in claims(look(enriched, 0.2), caption)), caption
            list(asked(enriched))


# ---------------------------------------------------------------------------------------- one view in all that is said


@pytest.mark.parametrize("family", FAMILIES)
def test_captions_say_what_was_seen(family: str) -> None:
    otherwise = 0
    for frame in frames(family)[:60]:
        seen = look(frame, 0.3)
        for caption in captions(seen, 4):
            for claim, true in claims(seen, caption):
                assert true, f"{frame.id}: {claim!r} in {caption!r}"
        otherwise += captions(seen, 4) != captions(frame, 4)
    assert otherwise > 20


@pytest.mark.parametrize("family", FAMILIES)
def test_traces_are_valid_and_say_what_was_seen(family: str) -> None:
    wrong = total = 0
    for frame in frames(family):
        seen = look(frame, 0.3)
        for name, candidate, told in asked(frame):
            total += 1
            if told is None:
                assert name in ("pick_point", "top_free")  # a part that was missed has no place
                continue
            assert told.question == candidate.question
            assert verify(told.answer, told.target).exact and told.target.provenance == "teacher"
            text, facts = trace(seen, name, told)
            options = told.target.options if told.target.kind in ("choice", "exact") else ()
            assert not trace_problem(text, question=told.question, answer=told.answer, options=options), text
            assert fact_share(text, facts) in (1.0, None)
            wrong += not verify(told.answer, candidate.target).exact
    assert 0.1 < wrong / total < 0.6


def test_answers_about_one_frame_agree() -> None:
    for frame in frames("kitting"):
        said = {name: told.answer for name, _, told in asked(frame) if told is not None}
        empty = said["slots_to_fill"].split(", ") if said["slots_to_fill"] != "none" else []
        assert int(said["slots_filled"]) + len(empty) == len(frame.record["slots"])
        if said["kit_complete"] == "yes":
            assert said["wrong_item"] == said["missing"] == "none" and not empty
        elif not empty:
            assert said["wrong_item"] != "none"
    for frame in frames("returns"):
        told = [(name, q, answer) for name, q, answer in asked(frame) if answer is not None]
        said = {name: answer.answer for name, _, answer in told}
        for name, _, answer in told:
            if name == "disposition":
                element = answer.element
                by_label = element["label_action"] and said["label_readable"] == "no"
                action = element["label_action"] if by_label else element["rules"][said["condition"]]
                assert answer.answer == action
    for frame in frames("picking"):
        seen = look(frame, 0.3).record
        for name, _, told in asked(frame):
            if name == "count_all":
                assert told is not None and int(told.answer) == len(seen["parts"])
            if name == "is_present" and told is not None:
                fits = [p for p in seen["parts"] if Look(*(told.element[k] for k in _LOOK)).fits(Look.of(p))]
                assert (told.answer == "yes") == bool(fits)


_LOOK = ("size", "pattern", "colour", "kind")


def test_the_question_is_the_truths_own_where_the_reading_is_not() -> None:
    """Two red cans of which neither is seen are still asked for, and the answer is that there is none."""
    hidden = [part("red can", x, 0.5, visible=0.1, free=False, id=0) for x in (0.2, 0.8)]
    ids = (f"f{n}" for n in range(200))
    frame = next(f for i in ids if not perceive(f := enrich(picking(hidden, id=i)), 0.0).record["parts"])
    assert perceive(frame, 0.0).record["empty"] is True
    said = {(name, q.question): (q.answer, told.answer if told else None) for name, q, told in asked_at(frame, 0.0)}
    assert {told for (name, _), (_, told) in said.items() if name == "pick_point"} <= {None}
    for (name, _), (true, told) in said.items():
        if name == "count_described":
            assert (true, told) in (("2", "0"), ("0", "0"))
        if name == "is_empty":
            assert (true, told) == ("no", "yes")
        if name == "count_all":
            assert (true, told) == ("2", "0")


def asked_at(frame: Frame, acuity: float) -> Iterator[tuple[str, Candidate, Candidate | None]]:
    seen = look(frame, acuity)
    for task in tasks_of(frame.family):
        for candidate in candidates(task, frame, provenance="sim"):
            yield task.name, candidate, ask_again(task, seen, candidate.key, provenance="teacher")


# ------------------------------------------------------------------------------------------------ where errors are made


def test_the_less_shows_the_sooner_a_part_is_missed() -> None:
    rates = [missed({"visible": share}) for share in (1.0, 0.9, 0.5, 0.1)]
    assert rates == pytest.approx([0.14, 0.226, 0.57, 0.914])
    bins = [enrich(picking([part("red can", 0.3, 0.3), part("blue tub", 0.7, 0.7, visible=0.15)], id=f"b{n}"))
            for n in range(300)]  # fmt: skip
    kept = [{p["x"] for p in perceive(frame, 0.5).record["parts"]} for frame in bins]
    assert sum(0.3 in xs for xs in kept) / 300 == pytest.approx(1 - 0.5 * 0.14, abs=0.05)
    assert sum(0.7 in xs for xs in kept) / 300 == pytest.approx(1 - 0.5 * (0.14 + 0.86 * 0.85), abs=0.09)


def test_neighbours_are_taken_for_one_another_and_strangers_are_not() -> None:
    red = Look(colour="red", kind="can")
    assert confusable(red, Look(colour="orange", kind="can")) and confusable(red, Look(colour="red", kind="tub"))
    assert confusable(red, red.change(size="small")) and confusable(red, red.change(pattern="dotted"))
    assert not confusable(red, red) and not confusable(red, Look(colour="green", kind="can"))
    assert not confusable(red, Look(colour="orange", kind="tub"))  # two attributes apart


def test_all_parts_of_a_look_are_taken_for_the_same() -> None:
    for number in range(40):
        frame = enrich(picking([part("red can", 0.1 + 0.2 * n, 0.5) for n in range(4)], id=f"s{number}"))
        assert len({p["description"] for p in perceive(frame, 0.0).record["parts"]}) <= 1


def test_what_the_kit_wants_is_read_into_a_look_alike() -> None:
    slots = [("red can", "orange can", "wrong"), ("red can", "red can", "half_seated"), ("blue tub", None, "empty")]
    read = [perceive(enrich(kitting(3, slots, id=f"k{n}")), 0.5).record["slots"] for n in range(400)]
    alike, seat, gap = ([slots[n]["status"] for slots in read] for n in range(3))
    assert alike.count("ok") / 400 == pytest.approx(0.5, abs=0.07)  # LOOK_ALIKE 1.0, half of it
    assert seat.count("ok") / 400 == pytest.approx(0.45, abs=0.07)
    assert gap.count("ok") / 400 == pytest.approx(0.06, abs=0.04)
    far = [("red can", "white rod", "wrong")] * 2 + [("blue tub", "blue tub", "ok")]
    read = [perceive(enrich(kitting(3, far, id=f"k{n}")), 0.5).record["slots"] for n in range(400)]
    assert [slots[0]["status"] for slots in read].count("ok") / 400 == pytest.approx(0.15, abs=0.05)


def test_slight_damage_is_taken_for_none_and_heavy_damage_seldom() -> None:
    def intact(severity: float) -> float:
        seen = [perceive(enrich(returns(condition="torn", id=f"r{n}", severity=severity)), 0.5) for n in range(300)]
        return sum(frame.record["condition"] == "intact" for frame in seen) / 300

    assert intact(0.4) == pytest.approx(0.5, abs=0.08)
    assert intact(1.0) == pytest.approx(0.05, abs=0.04)


def test_a_mark_is_taken_for_damage_and_nothing_for_nothing() -> None:
    marked = [perceive(returns(confusers=["shadow"], id=f"r{n}"), 0.5).record for n in range(300)]
    assert sum(record["condition"] == "dented" for record in marked) / 300 == pytest.approx(0.3, abs=0.07)
    assert all(not record["confusers"] for record in marked if record["condition"] == "dented")
    assert {perceive(returns(id=f"r{n}"), 0.0).record["condition"] for n in range(50)} == {"intact"}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_stronger_teacher_misreads_a_weaker_one_misreads(family: str) -> None:
    strong_wrong = 0
    for frame in frames(family):
        true = frame.record
        by = [perceive(frame, acuity).record for acuity in (0.8, 0.5, 0.2)]
        assert [perceive(frame, 0.5).record] == [by[1]]  # and the same again
        for stronger, weaker in pairwise(by):
            for name in ("condition", "item", "fill_percent"):
                if name in true and stronger[name] != true[name]:
                    strong_wrong += 1
                    assert weaker[name] != true[name]
            if family == "returns" and stronger["label"] != true["label"]:
                assert weaker["label"] == stronger["label"]
            if family == "picking":
                kept = [{(p["x"], p["y"], p["box"][0]) for p in record["parts"]} for record in (stronger, weaker)]
                strong_wrong += len(kept[0]) < len(true["parts"])
                assert kept[1] <= kept[0]
            if family == "kitting":
                for slot, one, other in zip(true["slots"], stronger["slots"], weaker["slots"], strict=True):
                    wrong = (one["found"], one["status"]) != (slot["found"], slot["status"])
                    strong_wrong += wrong
                    assert not wrong or (other["found"], other["status"]) != (slot["found"], slot["status"])
    assert strong_wrong


# ------------------------------------------------------------------------------------------------------------ acuities


def test_names_and_numbers() -> None:
    assert acuity_of("typical") == acuity_of("0.5") == acuity_of(0.5) == 0.5
    assert ACUITIES["weak"] < ACUITIES["typical"] < ACUITIES["strong"] < 1.0 == acuity_of(1)
    with pytest.raises(
        LinesideError, match=r"'typcal' is not an acuity.*strong, typical, weak; did you mean 'typical'\?"
    ):
        acuity_of("typcal")
    for bad in ("1.5", -0.1, "nan", "inf"):
        with pytest.raises(LinesideError, match="expected 0 to 1, or one of strong, typical, weak"):
            acuity_of(bad)
