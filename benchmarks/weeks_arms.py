"""The arms of `make weeks`: how each model of each week is made, answers, and is judged. See benchmarks/weeks.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from arms import A_MINUTE
from lineside.files import write_atomic
from lineside.progress import say
from lineside.recipe import MARGIN, Recipe, load_recipe
from weeks_data import FULL, PLANTED, SETS, Amounts, photograph_week, simulated_week, suite_name
from weeks_outcomes import TOLD, retrained

ARMS = ("none", "ours", "scratch", "plain")
BASE_MINUTES = {"parts.nano": 1.5, "align": 1.0, "sft": 9.5}  # times --minutes: ours is a tenth of it
QUESTIONS = 3000  # of a suite, at most
OTHERS = 1500  # for scratch and plain: a part of the same questions
TINY = (
    "parts.nano={hidden: 16, layers: 1, heads: 2, vocabulary: 400, max_tokens: 4000, epochs: 1000}",
    "align.max_tokens=4000", "sft.max_tokens=12000", "sft.no_think_share=0", "evaluate.max_new_tokens=6", "dtype=fp32",
    "data.augment.variants=1",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What the command line decides, and where things lie."""

    runs: Path = Path("runs")
    weeks: int = 8
    seed: int = 0
    minutes: float = 1.0
    tiny: bool = False
    photographs: str = ""
    data: Path = Path()
    amounts: Amounts = FULL
    questions: int = QUESTIONS
    arms: tuple[str, ...] = (*ARMS, *TOLD)
    base: Path | None = None  # a run whose stage 2 is the base, on whose samples; None: it is trained here

    @property
    def name(self) -> str:
        """Of the results: plans of other lengths stand side by side."""
        parts = ["weeks", self.photographs, "tiny" if self.tiny else ""]
        parts.append("" if self.minutes == 1 else f"x{self.minutes:g}")
        parts.append("" if self.amounts.weekly == FULL.weekly or self.tiny else f"frames{self.amounts.weekly}")
        parts.append("" if self.questions == QUESTIONS else f"questions{self.questions}")
        parts.append(f"from-{self.base.name}" if self.base else "")
        return "-".join(filter(None, parts))

    @property
    def folder(self) -> Path:
        """Everything that is made."""
        return self.runs / f"{self.name}-{self.seed}"

    @property
    def planted(self) -> int:
        """The week of which there are other versions; 0: none."""
        return 0 if self.photographs else (self.weeks + 1) // 2

    @property
    def command(self) -> str:
        """As the user types it."""
        given = [f"--weeks {self.weeks}", f"--seed {self.seed}", f"--minutes {self.minutes:g}"]
        given += ["--tiny"] if self.tiny else []
        given += [f"--photographs {self.photographs}"] if self.photographs else []
        given += [f"--frames {self.amounts.weekly}"] if self.amounts != FULL and not self.tiny else []
        given += [f"--questions {self.questions}"] if self.questions != QUESTIONS else []
        given += [f"--base {self.base}"] if self.base else []
        given += [f"--arms {' '.join(self.arms)}"] if self.arms != (*ARMS, *TOLD) else []
        return f"python benchmarks/weeks.py {' '.join(given)}"

    @cached_property
    def preset(self) -> Recipe:
        """The recipe that the base follows."""
        of = SETS.get(self.photographs)
        return self.recipe("base", "data.samples=none", preset=of.preset if of else "quickstart")

    def recipe(self, name: str, *settings: str, preset: str | None = None) -> Recipe:
        """A recipe of one of the arms. Raises LinesideError for a setting that does not exist or fit."""
        of = SETS.get(self.photographs)
        own = [f"name={name}", f"runs={self.folder}", f"seed={self.seed}", "data.simulate=null", "data.table=null"]
        own += ["stages=[align, sft]", "evaluate.splits=[]", "evaluate.baselines=false"]
        for section in BASE_MINUTES:
            own += [f"{section}.epochs=1000", f"{section}.max_tokens={self.tokens(section)}"]
        own += TINY if self.tiny else ()
        return load_recipe(Path(preset or (of.preset if of else "quickstart")), [*own, *settings])

    def tokens(self, section: str, share: float = 1.0) -> int:
        """The length of a section of the base, times `share`."""
        return max(2000, round(share * self.minutes * BASE_MINUTES[section] * A_MINUTE[section]))

    def samples(self, week: int, planted: str = "") -> Path:
        """The samples of a week, made where they are not there."""
        if self.base is not None and week == 0:
            return self.base / "samples"
        if self.photographs:
            of = SETS[self.photographs]
            return photograph_week(
                self.folder, self.data, of, week, recipe=self.preset, amounts=self.amounts, seed=self.seed
            )
        return simulated_week(self.folder, week, planted, recipe=self.preset, amounts=self.amounts, seed=self.seed)

    @property
    def features(self) -> Path:
        """The feature store of all runs."""
        return (self.base.parent if self.base is not None else self.folder) / "features"

    def verdict(self, week: int, planted: str = "") -> Path:
        """What the gate decided about ours."""
        return self.folder / "verdicts" / f"{suite_name(week, planted)}.json"

    def evaluation(self, run: str, week: int, planted: str = "") -> Path:
        """The answers of a run to the suite of a week."""
        if self.base is not None and (run, week) == ("base", 0):
            return self.base / "evaluation" / "sft-heldout-think.json"  # its run has asked it
        return self.folder / "answers" / run / suite_name(week, planted) / f"{stage_of(run)}-heldout-think.json"

    def run(self, name: str) -> Path:
        """The folder of a run."""
        return self.base if self.base is not None and name == "base" else self.folder / name


# --- training


def stage_of(run: str) -> str:
    """The stage by which a run ends."""
    return "rlvr" if run.startswith(TOLD) else "sft"


def checkpoint(plan: Plan, run: str) -> Path:
    """The checkpoint of a run."""
    return plan.run(run) / stage_of(run) / "checkpoint"


def trained(recipe: Recipe) -> Path:
    """Train a recipe to its end, or go on with it."""
    from lineside.train import train

    train(recipe)
    return recipe.folder / "sft" / "checkpoint"


def base(plan: Plan) -> Path:
    """The model of week 0."""
    return trained(plan.recipe("base", f"data.samples={plan.samples(0)}"))


def scratch(plan: Plan, week: int) -> Path:
    """A new model on all data so far, as often over each frame as the base."""
    from lineside.data.store import count_frames_with

    folders = [plan.samples(w) for w in range(week + 1)]
    sizes = [count_frames_with(folder, kind="qa", split="train") for folder in folders]
    more = sum(sizes) / sizes[0]
    mix = ", ".join(f"{{samples: {f}, weight: {size / sizes[0]:.4f}}}" for f, size in zip(folders[1:], sizes[1:]))
    lengths = [f"{section}.max_tokens={plan.tokens(section, more)}" for section in ("align", "sft")]
    settings = lengths if not plan.tiny else []
    return trained(plan.recipe(f"scratch-{week}", f"data.samples={folders[0]}", f"data.mix=[{mix}]", *settings))


def plain(plan: Plan, week: int) -> Path:
    """The model of the week before, trained on this week alone with the tokens and rates of ours."""
    from lineside.recipe import load_run_recipe

    ours = load_run_recipe(plan.folder / f"ours-{week}" / "recipe.yaml").sft
    before = plan.run(f"plain-{week - 1}" if week > 1 else "base") / "sft"
    rates = f"{{projector: {ours.learning_rate.projector}, lm: {ours.learning_rate.lm}}}"
    return trained(
        plan.recipe(
            f"plain-{week}", f"data.samples={plan.samples(week)}", "stages=[sft]", f"sft.from={before}",
            f"sft.max_tokens={ours.max_tokens}", f"sft.learning_rate={rates}",
        )
    )  # fmt: skip


def ours(plan: Plan, week: int, planted: str = "") -> Path:
    """The challenger of a week, from the champion before it."""
    from lineside.retrain import Request, retrain

    champion, learnt = champion_before(plan, week)
    name = Unit("ours", week, planted).run
    new = [plan.samples(w) for w in range(learnt + 1, week)] + [plan.samples(week, planted)]
    request = Request(
        model=str(checkpoint(plan, champion)),
        new=tuple(new),
        old=tuple(plan.samples(w) for w in range(learnt + 1)),
        minutes=plan.minutes,
        changes=(f"runs={plan.folder}", f"seed={plan.seed}", f"sft.max_tokens={weekly_tokens(plan)}",
                 "evaluate.splits=[]", "evaluate.baselines=false"),
        stages=("sft",),
    )  # fmt: skip
    retrain(request, out=plan.folder / name)
    return checkpoint(plan, name)


def weekly_tokens(plan: Plan) -> int:
    """Tokens of a week's retraining: `--minutes` on two quiet cores."""
    return 4000 if plan.tiny else max(2000, round(plan.minutes * A_MINUTE["sft"]))


def champion_before(plan: Plan, week: int) -> tuple[str, int]:
    """The run of the champion when a week begins, and the last week that it has learnt."""
    for earlier in range(week - 1, 0, -1):
        path = plan.verdict(earlier)
        if path.exists() and json.loads(path.read_text())["outcome"] == "passed":
            return f"ours-{earlier}", earlier
    return "base", 0


# --- answers and verdicts


def answers(plan: Plan, run: str, week: int, planted: str = "") -> Path:
    """The evaluation of a run on the suite of a week, made where it is not there."""
    from lineside.evaluate import evaluate_checkpoint

    path = plan.evaluation(run, week, planted)
    if not path.exists():
        evaluate_checkpoint(
            checkpoint(plan, run),
            plan.samples(week, planted),
            stage=stage_of(run),
            limit=40 if plan.tiny else OTHERS if run.startswith(("scratch", "plain")) else plan.questions,
            max_new_tokens=plan.preset.evaluate.max_new_tokens,
            with_baselines=False,
            features=plan.features,
            out=path.parent,
        )
    return path


def judge(plan: Plan, week: int, planted: str = "") -> dict[str, Any]:
    """What the gate says to the challenger of a week, on the suites of all weeks so far; kept."""
    from lineside.evaluate import caption_likelihoods
    from lineside.judgement.contradicted import compare_pictures
    from lineside.judgement.gate import Answered, gate
    from lineside.judgement.paired import rows_by_id
    from lineside.judgement.schema import read_evaluation
    from lineside.runtime import ON_CPU

    path = plan.verdict(week, planted)
    if path.exists():
        return json.loads(path.read_text())
    champion, _ = champion_before(plan, week)
    challenger = Unit("ours", week, planted).run
    suites = [(w, "") for w in range(week)] + [(week, planted)]
    folders = {f"week {w}": plan.samples(w, which) for w, which in suites}
    both = checkpoint(plan, champion), checkpoint(plan, challenger)
    held = {name: (folder, "heldout") for name, folder in folders.items()}
    captions = caption_likelihoods(*both, held, features=plan.features)
    answered = []
    for name, each in zip(folders, suites):
        sides = [answers(plan, run, *each) for run in (champion, challenger)]
        first, second = ((read_evaluation(side), rows_by_id(side)) for side in sides)
        answered.append(Answered(name, first, second, captions.get(name, ())))
    changed = compare_pictures(folders, both[0], plan.features, ON_CPU)
    found = gate(answered, names=(champion, challenger), margin=MARGIN, changed=changed, seed=plan.seed)
    told = {"outcome": found.outcome, "because": found.because, "champion": champion, "challenger": challenger,
            "n": found.exact.overall.n, "scenes": found.exact.overall.scenes}  # fmt: skip
    write_atomic(path, json.dumps({**told, "gate": found.model_dump(mode="json")}, indent=1) + "\n")
    return told


# --- the units, in order


@dataclass(frozen=True)
class Unit:
    """One arm in one week: what is kept when it is done."""

    arm: str
    week: int
    planted: str = ""

    @property
    def run(self) -> str:
        """The run whose model the arm asks in this week."""
        if self.arm == "none" or self.week == 0:
            return "base"
        return f"{self.arm}-{self.week}{'-' + self.planted if self.planted else ''}"


def units(plan: Plan) -> list[Unit]:
    """All units, week by week, as the tables show them."""
    found = [Unit("none", 0)]
    for week in range(1, plan.weeks + 1):
        found += [Unit(arm, week) for arm in ARMS]
        if week == plan.planted:
            found += [Unit("ours", week, planted) for planted in PLANTED] + [Unit(arm, week) for arm in TOLD]
    return [unit for unit in found if unit.week == 0 or unit.arm in plan.arms]


TRAIN: dict[str, Callable[[Plan, int], Path]] = {"scratch": scratch, "plain": plain}


def run_unit(plan: Plan, unit: Unit) -> None:
    """Train what the unit needs and let it answer; what is there is kept."""
    if not (checkpoint(plan, unit.run) / "config.json").exists():
        if unit.run == "base":
            base(plan)
        elif unit.arm == "ours":
            ours(plan, unit.week, unit.planted)
        elif unit.arm in TOLD:
            before, learnt = champion_before(plan, unit.week)
            retrained(plan, unit.week, unit.arm, checkpoint(plan, before), learnt, plan.folder / unit.run)
        else:
            TRAIN[unit.arm](plan, unit.week)
    for week in range(unit.week):
        answers(plan, unit.run, week)
    answers(plan, unit.run, unit.week, unit.planted)
    if unit.arm == "ours":
        told = judge(plan, unit.week, unit.planted)
        say(f"week {unit.week}{' ' + unit.planted if unit.planted else ''}: {told['outcome']}"
            f"{': ' + '; '.join(told['because']) if told['because'] else ''}")  # fmt: skip


def finished(plan: Plan, unit: Unit) -> bool:
    """Whether a unit's results are all there."""
    suites = [*((week, "") for week in range(unit.week)), (unit.week, unit.planted)]
    whole = all(plan.evaluation(unit.run, *suite).exists() for suite in suites)
    return whole and (unit.arm != "ours" or plan.verdict(unit.week, unit.planted).exists())


def turns(plan: Plan) -> list[Unit]:
    """All units in the order in which they are run: a model trained anew costs most, so these come last, and the one
    that has seen all weeks comes first of them."""
    every = units(plan)
    anew = [unit for unit in every if unit.arm == "scratch"]
    return [unit for unit in every if unit.arm != "scratch"] + anew[::-1]


def run(plan: Plan) -> None:
    """Run what is not done, each in its turn."""
    every = turns(plan)
    for number, unit in enumerate(every, 1):
        if not finished(plan, unit):
            what = f"{unit.arm}{', planted: ' + unit.planted if unit.planted else ''}"
            say(f"\n=== {number} of {len(every)}: week {unit.week} of {plan.weeks}, {what}")
            run_unit(plan, unit)
