"""The recipe of a retraining: its data, stages, rates and budgets follow from counts and minutes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lineside.data.contents import Contents
from lineside.errors import LinesideError
from lineside.recipe import Data, Parts, Rates, Recipe, Rlvr, Sft
from lineside.training.forecast import Machine
from lineside.training.replay import MOST_PASSES
from lineside.training.retraining import Given, Plan, plan_retraining
from lineside.training.retraining_words import in_words
from lineside.training.skeleton import Skeleton, skeleton

HERE = Machine("two cores", rate=420e9, memory=25e9, cores=2)
MODEL = skeleton(Parts())
OUT = Path("runs/week7")


def contents(
    name: str, frames: int, *, prompts: int = 0, suite: int = 0, tasks: Mapping[str, int] | None = None
) -> Contents:
    """A folder whose frames are asked five questions each, or prompts, of one task or of several."""
    asked = tasks or {"picking/count": 5 * frames}
    return Contents(
        folder=Path(name),
        frames={"caption": frames, "qa": frames, "prompt": prompts},
        questions={"qa": asked if frames else {}, "prompt": {"picking/count": 5 * prompts} if prompts else {}},
        tasks={kind: {frozenset(asked): n} if n else {} for kind, n in (("qa", frames), ("prompt", prompts))},
        unanswered=prompts if not frames else 0,
        forms={task: frozenset({"number"}) for task in asked},
        names={},
        suites={"dev": suite, "heldout": suite, "shifted": 0},
        sizes={(224, 224): 10},
    )


BASE = contents("base", 3000, prompts=1000, suite=600, tasks={"picking/count": 14_000, "kitting/wrong": 1000})
WEEK = contents("week", 300, prompts=300, suite=200)
OUTCOMES = contents("outcomes", 0, prompts=100)


def plan(
    *new: Contents, minutes: float = 10, machine: Machine = HERE, model: Skeleton = MODEL, **changes: Any
) -> tuple[Given, Plan]:
    recipe = changes.pop("recipe", Recipe(name="champion", data=Data(samples=Path("base"))))
    given = {"old": (BASE,), "rates": Rates(projector=1e-3, lm=2e-3), "encoded": True, **changes}
    found = Given("bins@1", Path("champion"), recipe, new=new, minutes=minutes, **given)
    return found, plan_retraining(found, model, machine, OUT)


def passes(found: Plan, name: str, sizes: Mapping[str, int]) -> dict[str, float]:
    """Passes over each folder at the end of a stage's epochs, by the recipe alone."""
    data, stage = found.recipe.data, found.recipe.section(name)
    weights = {str(data.samples): 1.0, **{str(m.samples): m.weight for m in data.mix if name in m.stages}}
    read = {folder: weights[folder] for folder in weights if sizes[folder]}
    first = next(iter(read))
    return {
        folder: stage.epochs * sizes[first] * weight / read[first] / sizes[folder] for folder, weight in read.items()
    }


def test_a_labelled_week_trains_stage_2_with_old_frames_beside_the_new_ones() -> None:
    given, found = plan(WEEK)
    recipe = found.recipe
    assert (recipe.name, recipe.runs, recipe.stages, recipe.controls) == ("week7", Path("runs"), ("sft",), ())
    assert recipe.sft.from_ == Path("champion") and recipe.data.samples == Path("week")
    assert recipe.evaluate.splits == ("heldout",)
    assert recipe.sft.learning_rate == Rates(projector=3e-4, lm=6e-4, lora=9e-5)
    (mixed,) = recipe.data.mix
    assert mixed.samples == Path("base") and mixed.even and mixed.weight >= 1 and mixed.stages == ("sft",)
    read = passes(found, "sft", {"week": 300, "base": 3000})
    assert read["week"] == pytest.approx(MOST_PASSES, rel=0.01) and read["base"] <= 4.1
    spent = sum(found.seconds.values()) / 60 + sum(part.minutes for part in found.parts)
    assert spent == pytest.approx(10) and recipe.sft.max_minutes == pytest.approx(found.parts[0].minutes, rel=0.01)
    words = "\n".join(in_words(given, found))
    assert "reads the 300 new frames 8.0 times" in words and "rlvr: left out" in words


def test_few_minutes_are_shared_half_and_half() -> None:
    _, found = plan(WEEK, minutes=3)
    (part,) = found.parts
    assert part.new == pytest.approx(part.old) and found.recipe.data.mix[0].weight == 1.0
    _, found = plan(WEEK, minutes=3, share=0.2)
    assert found.recipe.data.mix[0].weight == 0.25
    _, found = plan(WEEK, minutes=3, share=0.0)
    assert found.recipe.data.mix == ()


def test_steps_or_tokens_that_are_stated_are_kept_and_planned_with() -> None:
    stated = Recipe(name="x", data=Data(samples=Path("base")), sft=Sft(max_tokens=1_000_000))
    _, found = plan(WEEK, minutes=0.5, recipe=stated)  # too few minutes, which nothing is left to need
    _, more = plan(WEEK, minutes=0.5, recipe=stated.model_copy(update={"sft": Sft(max_tokens=2_000_000)}))
    assert found.recipe.sft.max_tokens == 1_000_000
    assert more.parts[0].minutes == pytest.approx(2 * found.parts[0].minutes)
    assert more.parts[0].old > found.parts[0].old
    by_steps = stated.model_copy(update={"sft": Sft(max_steps=244)})
    assert plan(WEEK, recipe=by_steps)[1].parts[0].minutes == pytest.approx(found.parts[0].minutes, rel=0.01)


def test_outcomes_alone_train_stage_3_and_are_judged_on_what_was() -> None:
    given, found = plan(OUTCOMES)
    recipe = found.recipe
    assert recipe.stages == ("rlvr",) and recipe.rlvr.from_ == Path("champion") and recipe.sft.from_ is None
    assert recipe.data.samples == Path("base") and recipe.evaluate.splits == ("heldout",)
    (mixed,) = recipe.data.mix
    assert (mixed.samples, mixed.weight, mixed.even) == (Path("outcomes"), 1.0, False)  # half and half
    assert recipe.rlvr.learning_rate == Rates(projector=5e-5, lm=5e-5, lora=5e-5)  # its own, not a part of stage 2's
    assert "sft: left out: no new questions with answers" in "\n".join(in_words(given, found))
    _, found = plan(OUTCOMES, share=0.0)
    assert found.recipe.data.samples == Path("outcomes") and found.recipe.evaluate.splits == ()


def test_a_week_with_outcomes_trains_both_and_each_folder_is_read_by_its_stage() -> None:
    _, found = plan(WEEK, OUTCOMES, minutes=30)
    assert found.recipe.stages == ("sft", "rlvr") and found.recipe.rlvr.from_ is None
    assert found.parts[1].minutes / found.parts[0].minutes == pytest.approx(1 / 3)  # 100 of 400 frames
    mixed = [(str(m.samples), m.stages) for m in found.recipe.data.mix]
    assert mixed == [("base", ("sft",)), ("outcomes", ("rlvr",)), ("base", ("rlvr",))]
    weights = {str(m.samples): m.weight for m in found.recipe.data.mix if m.stages == ("rlvr",)}
    assert weights == {"outcomes": pytest.approx(1 / 3, rel=0.01), "base": pytest.approx(4 / 3, rel=0.01)}
    again = Recipe(name="x", data=Data(samples=Path("base")), rlvr=Rlvr.model_validate({"from": "older"}, strict=False))
    assert plan(WEEK, OUTCOMES, minutes=30, recipe=again)[1].recipe.rlvr.from_ is None  # of an earlier retraining
    assert plan(WEEK, OUTCOMES, stages=("rlvr",))[1].recipe.stages == ("rlvr",)


def test_all_old_folders_are_replayed_by_their_tasks() -> None:
    earlier = contents("week6", 300, suite=100, tasks={"returns/open": 1500})
    _, found = plan(WEEK, minutes=3, old=(BASE, earlier))
    weights = {str(m.samples): m.weight for m in found.recipe.data.mix}
    assert sum(weights.values()) == pytest.approx(1, rel=0.01)
    assert weights["week6"] == pytest.approx(1 / 3, rel=0.01)  # one of three tasks


def test_minutes_that_are_too_few_are_refused_with_those_that_are_enough() -> None:
    with pytest.raises(LinesideError, match=r"--minutes 0\.5 are not enough for one step") as refused:
        plan(WEEK, minutes=0.5)
    enough = re.search(r"At least --minutes (\d+)", str(refused.value))
    assert enough and plan(WEEK, minutes=int(enough[1]))[1].parts


def test_an_adapter_is_trained_where_memory_is_not_enough() -> None:
    model = skeleton(Parts(preset="smollm2"))
    with pytest.raises(LinesideError, match=r"or an adapter \(--lora\)") as refused:
        plan(WEEK, lora=False, machine=replace(HERE, memory=1e9), model=model)
    needed = re.search(r"needs some ([\d.]+) GB", str(refused.value))
    assert needed
    less = replace(HERE, memory=1e9 * float(needed[1]) - 0.5e9)
    assert plan(WEEK, machine=less, model=model)[1].recipe.sft.train == ("projector", "lora")
    assert plan(WEEK, model=model)[1].recipe.sft.train == ("projector", "lm")
    assert plan(WEEK, lora=True)[1].recipe.sft.train == ("projector", "lora")


def test_nothing_new_is_refused() -> None:
    with pytest.raises(LinesideError, match="nothing new to train on in empty"):
        plan(contents("empty", 0))
    with pytest.raises(LinesideError, match="--stages sft: no new questions"):
        plan(OUTCOMES, stages=("sft", "rlvr"))
