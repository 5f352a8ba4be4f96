"""The alarm of a task that becomes one answer: by hand, told once, and not for what only looks like it."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest

import lineside.rlvr
from lineside.data.store import write_samples
from lineside.errors import CheckFailed
from lineside.model.features import FeatureStore
from lineside.recipe import Rates, Rlvr
from lineside.rlvr import rlvr
from lineside.training import one_answer
from lineside.training.metrics import METRICS, WARNINGS, read_metrics
from lineside.training.one_answer import Answers, TaskAnswers
from lineside.training.watch import Alarm
from lineside.types import Group, Judgement, Mask, Response, Rollout, Sample, Target, Thinking
from lineside.verify.verifiers import verify
from tests.conftest import make_tiny_vlm
from tests.small_run import sample

YES, NO = (Target("choice", "sim", accepted=(word,), options=("yes", "no")) for word in ("yes", "no"))
Step = tuple[list[Group], list[Sample]]


@cache
def prompt(target: Target, task: str = "is_present") -> Sample:
    return replace(sample("prompt", 0, 0, question="is it?", answer=None), task=task, target=target)


def group(target: Target, answers: Sequence[str | None], task: str = "is_present") -> Group:
    judgements = []
    for answer in answers:
        verdict = verify(answer or "", target)
        judgements.append(Judgement(Response("seen", answer, "valid", ""), verdict, verdict.reward))
    return Group(prompt(target, task), (), tuple(judgements))


def told(steps: Sequence[Step], known: Answers | None = None) -> list[Alarm]:
    known = known if known is not None else Answers()
    alarms = []
    for number, (groups, prompts) in enumerate(steps, 1):
        known.see(groups, prompts)
        alarms += known.alarms(number)
    return alarms


def steps_of(truths: Sequence[Target], answers: Sequence[Sequence[str]], *, read: Sequence[Target] = ()) -> list[Step]:
    """A step for each group; the prompts read are those asked, and `read`."""
    return [([group(t, said)], [prompt(one) for one in (t, *read)]) for t, said in zip(truths, answers)]


EVEN = [YES, NO] * 12  # the start: as often yes as no, and answered so
START = steps_of(EVEN, [[t.accepted[0]] * 8 for t in EVEN])


def test_an_alarm_by_hand() -> None:
    """Half of the prompts are "no", at the start half of the answers too: u = 1/2, and each group of nothing but "no"
    adds ln((1 - 1/32) / (1 - 1/4)) = ln(31/24) = 0.25593. 31 groups make 7.934, 32 make 8.190."""
    known = Answers()
    assert told(START, known) == [] and known["picking/is_present"].start == {"yes": 12.0, "no": 12.0}
    said = [["no"] * 8] * 40
    (alarm,) = told(steps_of([YES, NO] * 20, said, read=[YES, NO]), known)
    assert alarm.step == 32 and math.isclose(32 * math.log(31 / 24), 8.190, abs_tol=5e-4)
    assert alarm.numbers == {
        "share of its rollouts": 1.0, "share at the start": 0.5, "share of prompts for which it is right": 0.5,
        "rollout groups": 32.0, "prompts": 96.0,
    }  # fmt: skip
    assert alarm.line(["a", "b"]).startswith(
        'one_answer at step 32: picking/is_present answers "no": share of its rollouts 1, share at the start 0.5, '
        "share of prompts for which it is right 0.5, rollout groups 32, prompts 96; in the step are a, b. Its answer "
    )


def test_a_group_of_another_answer_costs_ln_8() -> None:
    task = TaskAnswers(start={"no": 12.0}, start_groups=24, answer="no", given=19.5, groups=20, right=49, prompts=98)
    assert task.score() == pytest.approx(19.5 * math.log(31 / 24) - 0.5 * math.log(8))
    usual = replace(task, start={"no": 21.6})  # nine tenths at the start: others are due once in ten
    assert usual.score() == pytest.approx(19.5 * math.log((1 - 0.1 / 16) / (1 - 0.1 / 2)) - 0.5 * math.log(8))


def test_asked_only_where_it_is_right_it_is_told_all_the_same() -> None:
    """The fault that stage 3 had: prompts of both answers were read, those of "no" asked, all rollouts exact."""
    (alarm,) = told([*START, *steps_of([NO] * 60, [["no"] * 8] * 60, read=[YES, YES, NO])])
    assert alarm.step <= 24 + 40 and alarm.numbers["share of prompts for which it is right"] == 0.5
    assert told([*START, *steps_of([NO] * 60, [["no"] * 8] * 60, read=[NO, NO, NO])]) == []  # "no" is the truth


def test_an_answer_that_was_common_from_the_start_is_not_told() -> None:
    """The sft model says "no" to seven of eight; that stays so."""
    said = [["no"] * 7 + ["yes"]] * 400
    assert told(steps_of([YES, NO] * 200, said)) == []


def test_a_policy_that_learns_what_is_right_is_not_told() -> None:
    """Nine of ten are "no". At the start it guesses, in the end it is always right."""
    truths = [NO if number % 10 else YES for number in range(300)]
    draw = random.Random(0)
    said = [[t.accepted[0] if draw.random() < 0.5 + number / 360 else draw.choice(["yes", "no"]) for _ in range(8)]
            for number, t in enumerate(truths)]  # fmt: skip
    assert told(steps_of(truths, said)) == []


def test_it_is_told_once_and_again_after_it_was_gone() -> None:
    collapse = steps_of([YES, NO] * 40, [["no"] * 8] * 80)
    recovery = steps_of(EVEN, [[t.accepted[0]] * 8 for t in EVEN])
    assert [alarm.step for alarm in told([*START, *collapse])] == [56]
    assert len(told([*START, *collapse, *recovery * 2, *collapse])) == 2


def test_answers_that_are_missing_count_as_others() -> None:
    assert told([*START, *steps_of([YES, NO] * 40, [["no"] * 5 + [""] * 3] * 80)]) == []


def at(x: float, y: float) -> Target:
    """The square of a tenth that holds the point."""
    column, row = int(x * 10), int(y * 10)
    return Target("point", "sim", x=x, y=y, mask=Mask(10, 10, (row * 10 + column, 1, 99 - row * 10 - column)))


def test_answers_of_any_form() -> None:
    """A point or list of its own for each picture raises nothing; one for all does, unless it is right."""
    draw = random.Random(0)
    places = [(draw.random(), draw.random()) for _ in range(120)]
    points = [at(x, y) for x, y in places]
    own = [[f"{x:.2f}, {y:.2f}"] * 8 for x, y in places]
    lists = [Target("set", "sim", accepted=tuple(draw.sample("abcdef", 2)), options=tuple("abcdef")) for _ in places]
    assert told(steps_of(points, own)) == []
    assert told(steps_of(lists, [[", ".join(t.accepted)] * 8 for t in lists])) == []
    (alarm,) = told([*steps_of(points, own), *steps_of(points[:60], [["0.70, 0.63"] * 8] * 60)])
    assert alarm.about == 'picking/is_present answers "0.70, 0.63"' and alarm.numbers["rollout groups"] == 24
    assert told([*steps_of(points, own), *steps_of([at(0.75, 0.65)] * 60, [["0.70, 0.63"] * 8] * 60)]) == []
    (alarm,) = told([*steps_of(lists, [["a, b"] * 8] * 30 + [["none"] * 8] * 90)])
    assert alarm.about.endswith('"none"')


def test_samples_where_the_answer_is_wrong_are_named_first() -> None:
    asked = [replace(group(t, ["no"] * 8), sample=replace(prompt(t), id=name)) for name, t in (("a", NO), ("b", YES))]
    known = TaskAnswers(start={"yes": 12.0, "no": 12.0}, start_groups=24)
    known.see(asked, [prompt(NO), prompt(YES)])
    assert known.samples == ["b", "a"]


def test_targets_that_only_say_what_is_wrong_are_left_out() -> None:
    wrong = Target("not", "outcome", wrong=(YES,))
    assert told([*START, *steps_of([wrong] * 80, [["no"] * 8] * 80)]) == []


def test_each_task_is_looked_at_alone_and_its_own_samples_are_named() -> None:
    steps = [(
        [replace(group(t, ["no"] * 8 if n >= 24 else [t.accepted[0]] * 8, task=name),
                 sample=replace(prompt(t, name), id=f"{name}-{n}"))
         for name, t in (("collapsed", (YES, NO)[n % 2]), ("sound", NO))],
        [prompt((YES, NO)[n % 2], "collapsed"), prompt(NO, "sound")],
    ) for n in range(100)]  # fmt: skip
    (alarm,) = told(steps)
    assert alarm.about.startswith("picking/collapsed ")
    assert alarm.samples == (f"collapsed-{alarm.step - 1}",)


def test_a_run_that_is_resumed_tells_the_same() -> None:
    steps = [*START, *steps_of([YES, NO] * 40, [["no"] * 8] * 80)]
    whole = told(steps)
    for cut in (3, 24, 30, 55, 56, 57):
        known = Answers()
        before = told(steps[:cut], known)
        again = Answers.of(json.loads(json.dumps(known.state())))
        after = [replace(alarm, step=alarm.step + cut) for alarm in told(steps[cut:], again)]
        assert before + after == whole


def test_a_state_is_a_copy() -> None:
    known = Answers()
    told(START[:3], known)
    state = known.state()
    kept = json.dumps(state)
    told(START, Answers.of(state))
    told(START, known)
    assert json.dumps(state) == kept


def test_noise_raises_nothing() -> None:
    """Policies that know nothing, half and all, 300 groups each; docs/experiments.md has longer measurements."""
    draw = random.Random(0)
    for known, share in product((0.0, 0.5, 1.0), (0.5, 0.7, 0.9)):
        truths = [NO if draw.random() < share else YES for _ in range(300)]
        said = [[t.accepted[0] if draw.random() < known else "no" if draw.random() < share else "yes"] * 8
                for t in truths]  # fmt: skip
        assert told(steps_of(truths, said)) == []


# --- in a stage


class Planted:
    """Answers "3" and "4" by turns, half of the rollouts each; `count_all` from the given step on with "3" alone."""

    thinking = Thinking(knows=False)

    def __init__(self, vlm: Any, start: float, version: int) -> None:
        self.encode, self.start, self.version = vlm.tokenizer.encode, start, version

    def sample(self, prompts: Sequence[Any], *, samples: int, **_: Any) -> list[tuple[Rollout, ...]]:
        said = []
        for one in prompts:
            words = ["3"] if self.version >= self.start and "red" in one.question else ["3", "4"]
            tokens = [(*self.encode(words[number % len(words)]), 2) for number in range(samples)]
            said.append(tuple(Rollout(t, (-1.0,) * len(t), words[n % len(words)], True) for n, t in enumerate(tokens)))
        return said

    def refresh(self, version: int) -> None:
        self.version = version


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Two tasks of whole numbers, 3 or 4, on 16 frames."""
    write_samples(tmp_path / "samples", [
        replace(sample("prompt", frame, which, question=f"how many {colour} cans?", answer=None), task=task,
                target=Target("number", "sim", value=3.0 + frame % 2, tolerance=2.0))
        for frame in range(16) for which, (task, colour) in enumerate((("count_all", "red"), ("count_blue", "blue")))
    ])  # fmt: skip
    return tmp_path / "samples"


SETTINGS = Rlvr(
    epochs=2, prompts=8, group_size=4, max_new_tokens=8, overlong_cache=0, prompt_choice="uniform", schedule="constant",
    learning_rate=Rates(projector=1e-4, lm=1e-4),
)  # fmt: skip


def trained(
    monkeypatch: pytest.MonkeyPatch, samples: Path, folder: Path, start: float, **settings: Any
) -> list[dict[str, Any]]:
    """The warnings of a stage whose task count_all gives one answer from step `start` on."""

    @contextmanager
    def sampler(vlm: Any, store: Any, settings: Any, folder: Path, version: int) -> Iterator[Planted]:
        yield Planted(vlm, start, version)

    monkeypatch.setattr(lineside.rlvr, "sampler_of", sampler)
    monkeypatch.setattr(one_answer, "START", 6)
    monkeypatch.setattr(one_answer, "FEWEST", 6)
    monkeypatch.setattr(one_answer, "SURE", 2.0)
    vlm = make_tiny_vlm()
    rlvr(vlm, FeatureStore(None, vlm), samples, folder, SETTINGS.model_copy(update=settings))
    return read_metrics(folder / WARNINGS) if (folder / WARNINGS).exists() else []


def test_a_stage_tells_of_a_planted_collapse_and_stops_if_asked_to(
    monkeypatch: pytest.MonkeyPatch, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert trained(monkeypatch, prompts, tmp_path / "sound", math.inf) == []
    (row,) = trained(monkeypatch, prompts, tmp_path / "whole", 4)
    assert row["kind"] == "one_answer" and 5 < row["step"] < 20
    assert row["line"].startswith(f'one_answer at step {row["step"]}: picking/count_all answers "3"')
    assert row["samples"] and all(name.endswith("-prompt-0") for name in row["samples"])  # of this task
    assert f"rlvr: warning: {row['line']}" in capsys.readouterr().err
    with pytest.raises(CheckFailed, match="rlvr: halt_on: one_answer at step"):
        trained(monkeypatch, prompts, tmp_path / "halted", 4, halt_on=("one_answer",))
    assert read_metrics(tmp_path / "halted" / METRICS)[-1]["step"] == row["step"]
    trained(monkeypatch, prompts, tmp_path / "halted", 4, halt_on=("one_answer",))  # it goes on
    for name in (METRICS, WARNINGS):
        kept = [[{k: v for k, v in one.items() if k != "time" and not k.startswith("seconds")}
                 for one in read_metrics(tmp_path / run / name)] for run in ("whole", "halted")]  # fmt: skip
        assert kept[0] == kept[1]


def test_a_stage_of_one_task_tells_although_no_group_is_live_any_more(
    monkeypatch: pytest.MonkeyPatch, prompts: Path, tmp_path: Path
) -> None:
    """A task that is one answer has no live group, so no step makes an update."""
    with pytest.raises(CheckFailed, match=r"one_answer at step .* picking/count_all"):
        trained(monkeypatch, prompts, tmp_path / "alone", 2, halt_on=("one_answer",), leave_out=("picking/count_blue",))
