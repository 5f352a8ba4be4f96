"""Targets come from files that anyone may write: what `Target.from_json` lets through must not make the judge raise."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lineside.types import Mask, Target
from lineside.verify import judge, target_problem, verify

SOUND = [
    Target("exact", "record", accepted=("Garant milk", "milk")),
    Target("choice", "sim", accepted=("yes",), options=("yes", "no")),
    Target("set", "sim"),
    Target("set", "teacher", accepted=("2",), options=("1", "2")),
    Target("set", "sim", accepted=("can", "can"), options=("can", "box"), counted=True),
    Target("number", "sim", value=178.25, resolution=0.5, tolerance=8, unit="degrees", period=180),
    Target("point", "sim", x=0.5, y=0.5, mask=Mask(2, 2, (3, 1))),
    Target("not", "outcome", wrong=(Target("number", "outcome", value=3), Target("set", "outcome")), doubt=0.1),
]
value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["1_0", "\u0663"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
masks = st.fixed_dictionaries(
    {"height": value, "width": value, "runs": value | st.lists(st.integers(-1, 9), max_size=4)}
)
hostile = st.fixed_dictionaries(
    {"kind": st.sampled_from(["exact", "choice", "set", "number", "point", "not"]) | value},
    optional={
        "provenance": st.sampled_from(["sim", "record", "outcome", "teacher"]) | value,
        **dict.fromkeys(("accepted", "options", "value", "resolution", "tolerance", "unit", "period", "x", "y"), value),
        "mask": masks | value,
        "counted": st.booleans() | value,
        "wrong": st.lists(st.sampled_from([target.to_json() for target in SOUND[:3]]) | value, max_size=2) | value,
        "doubt": st.floats(0, 1) | value,
    },
)


@pytest.mark.parametrize("target", SOUND, ids=lambda t: t.kind)
def test_a_sound_target_survives_its_file(target):
    assert Target.from_json(json.loads(json.dumps(target.to_json()))) == target
    assert target_problem(target) == ""


@settings(derandomize=True, database=None, max_examples=600)
@given(hostile, st.sampled_from(["yes", "5", "none", "0.5, 0.5", ""]))
def test_what_passes_the_reader_does_not_break_the_judge(data, answer):
    try:
        target = Target.from_json(data)
    except (TypeError, KeyError, ValueError, OverflowError):
        return
    verdict = verify(answer, target)
    judged = judge(f"<think>left 2, right 3; so 5</think>{answer}", target, thinking=True, finished=True)
    assert judged.verdict == verdict
    if target_problem(target):
        assert verdict.reward == 0.0 and not verdict.exact


@pytest.mark.parametrize("missing", ["kind", "provenance"])
def test_without_kind_or_provenance_there_is_no_target(missing):
    data = SOUND[0].to_json()
    del data[missing]
    with pytest.raises(KeyError):
        Target.from_json(data)


def test_a_field_of_another_version_is_refused():
    with pytest.raises(TypeError):
        Target.from_json({**SOUND[0].to_json(), "weight": 1})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"provenance": "record"}, "only an outcome"),
        ({"wrong": ()}, "name the answer"),
        ({"wrong": (SOUND[-1],)}, "none of kind not"),
        ({"wrong": (Target("exact", "outcome"),)}, "wrong: accepted is empty"),
        ({"doubt": 1.0}, "below 1"),
        ({"doubt": True}, "below 1"),
        ({"kind": "number"}, "belong to a target of kind not"),
    ],
)
def test_an_unsound_not_target_is_named(changes, reason):
    assert reason in target_problem(replace(SOUND[-1], **changes))


def test_a_not_target_holds_no_other():
    inner = SOUND[-1].to_json()
    with pytest.raises(TypeError, match="none of which"):
        Target.from_json({**inner, "wrong": [inner]})
