"""The arms of `make headline` and `make ablations`: each is the recipe `headline` with a few settings changed. On
photographs they are the recipe of that set.

    an arm -> `resolve` -> a job: a run folder, the stage to judge, and the overrides of `lineside train headline ...`

Arms that differ only from a stage on share what comes before. Those of one run (`run`) share its folder, as sft and
rlvr do; the others take frames, samples or a checkpoint of the first run (`{base}`) or of another (`{run:NAME}`). The
order of a table is the order of worth: what is run first matters most.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from headline_photographs import SETS, TEACHER, TRUTH
from lineside.judgement.schema import MODES, Mode
from lineside.recipe import Recipe, load_recipe
from lineside.stages import CONTROLS

RECIPE = "headline"
FAMILIES = ("picking", "kitting", "returns")
SECTIONS = ("parts.nano", "align", "sft", "rlvr")  # what `scale` multiplies: the length of each stage
STEPS = 105  # of stage 3 in an ablation: a quarter of the headline's hour
BRIEF = 7_000_000  # tokens of stage 2 where an ablation trains it anew: fifteen minutes


# Measured on two quiet cores (docs/results.md, make nano); only to say how long the arms will take.
A_MINUTE = {"parts.nano": 500_000, "align": 450_000, "sft": 460_000, "rlvr": 6.9}  # tokens, steps
STEP_TOKENS = 29_500  # tokens trained on in a step of stage 3
DATA_MINUTES, LABEL_MINUTES = 14.0, 3.0  # to simulate, label and encode; to label frames that are there
EVALUATION_MINUTES = 0.6  # 4,000 questions in one mode


@dataclass(frozen=True)
class Arm:
    """One row of a table. `settings` override the recipe; `stage` is judged, and what comes before it is run first."""

    name: str
    about: str  # what a reader sees: how this arm differs
    stage: str = "rlvr"
    run: str | None = None  # name of its run; None: its own name. "": the first run, which others build on
    settings: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()  # arms that are run before it
    against: str = "sft"  # the arm it is compared with
    group: str = ""  # heading in the table of the ablations
    forgets: bool = False  # what it forgot since sft is measured too


# --- what arms share

FRAMES = ("data.simulate=null", "data.frames={base}/frames", "evaluate.baselines=false")
SAMPLES = ("data.simulate=null", "data.samples={base}/samples", "evaluate.baselines=false")
DEV = "evaluate.splits=[dev]"
FROM_SFT = (*SAMPLES, "stages=[rlvr]", "rlvr.from={base}/sft", f"rlvr.max_steps={STEPS}", DEV)


def teacher(acuity: str) -> tuple[str, ...]:
    """A run of its own on the same frames, labelled by a teacher that sees this well."""
    return (*FRAMES, f"data.label.acuity={acuity}")


def control(name: str, about: str) -> Arm:
    """A control in the first run: in place of stage 3, from the same checkpoint, on the same prompts."""
    settings = (f"controls=[{', '.join(CONTROLS[: CONTROLS.index(name) + 1])}]",)
    return Arm(name, f"in its place: {about}", stage=name, run="", settings=settings, needs=("rlvr",), forgets=True)


HEADLINE = (
    Arm("sft", "stage 2 on the typical teacher's answers", stage="sft", run=""),
    Arm("rlvr", "then stage 3 on the records", run="", needs=("sft",), forgets=True),
    control("traced", "more of the teacher's traced answers"),
    control("answers", "the records' answers without traces"),
    control("rejection", "own traces that reach the record's answer"),
    Arm("perfect", "stage 2 on a perfect teacher's answers, same frames", stage="sft", run="perfect",
        settings=(*teacher("1"), "stages=[align, sft]"), needs=("sft",)),
)  # fmt: skip


# A control for as many minutes as stage 3 took; with all prompts the sampling of `rejection` would take longer.
MINUTES = (*(f"{name}.equal=minutes" for name in CONTROLS), "rejection.max_prompts=4000")


def equal_minutes() -> Iterator[Arm]:
    """The controls of the short stage 3 for as many minutes: stage 3 samples most of its time, they train on more."""
    for name in CONTROLS:
        arm = control(name, "as many minutes")
        yield replace(arm, name=f"{name}-minutes", run="short", settings=(*FROM_SFT, *MINUTES, *arm.settings),
                      against="rlvr", group="equal minutes", forgets=False)  # fmt: skip


LEFT_OUT = ("picking/top_free", "kitting/wrong_item", "returns/label_readable")  # tasks, one of each family


def left_out() -> Iterator[Arm]:
    """A short stage 3 without these tasks, and the controls in its place: what becomes of tasks that nobody trains."""
    settings = (*FROM_SFT, f"rlvr.leave_out=[{', '.join(LEFT_OUT)}]")
    yield Arm("left-out", "stage 3 without three tasks", run="left-out", settings=settings, needs=("sft",),
              group="forgetting", forgets=True)  # fmt: skip
    for name in CONTROLS:
        arm = control(name, "the same tokens without the three tasks")
        yield replace(arm, name=f"left-out-{name}", run="left-out", settings=(*settings, *arm.settings),
                      needs=("left-out",), group="forgetting")  # fmt: skip


def changed(name: str, about: str, *settings: str, group: str) -> Arm:
    """A short stage 3 from the shared sft checkpoint, with these settings."""
    return Arm(name, about, settings=(*FROM_SFT, *settings), needs=("sft",), against="rlvr", group=group)


def by_teacher(name: str, acuity: str) -> tuple[Arm, Arm]:
    """Stage 2 and a short stage 3 with another teacher; stage 3 is compared with its own stage 2."""
    settings = (*teacher(acuity), "stages=[align, sft, rlvr]", f"rlvr.max_steps={STEPS}", DEV)
    return (
        Arm(f"{name}-sft", f"stage 2 with the {name} teacher", stage="sft", run=name, settings=settings,
            needs=("sft",), group="teacher"),
        Arm(name, f"then stage 3, {name} teacher", run=name, settings=settings, needs=(f"{name}-sft",),
            against=f"{name}-sft", group="teacher"),
    )  # fmt: skip


def records(percent: int) -> Arm:
    """Prompts from another share of the frames; the sft checkpoint is the shared one."""
    return Arm(
        f"records-{percent}", f"records for {percent}% of the frames",
        settings=(*FRAMES, f"data.label.prompt_share={percent / 100:g}", "stages=[rlvr]", "rlvr.from={base}/sft",
                  f"rlvr.max_steps={STEPS}", DEV),
        needs=("sft",), group="records",
    )  # fmt: skip


TRACE_LOSS = {  # what a question without a valid trace trains, and what a trace weighs
    "plain": ("one mean over all tokens, empty traces too", "sft.trace_weight=null", "sft.untraced=skip"),
    "lambda": ("a trace weighs 0.9, empty traces are trained", "sft.untraced=skip"),
    "masked": ("a trace weighs 0.9, without one thinking is off: the recipe",),
}


def traces(percent: int, *losses: str) -> Iterator[Arm]:
    """A short stage 2 from the shared align checkpoint, with so many traces missing or trivial, by loss. With 0%,
    lambda and masked are the same."""
    first = f"traces-{percent}-{losses[0]}"
    flaws = f"data.label.flaws={{missing: {percent / 200:g}, trivial: {percent / 200:g}, wrong: 0}}"
    for loss in losses:
        name = f"traces-{percent}-{loss}"
        about, *settings = TRACE_LOSS[loss]
        shared = ("data.simulate=null", f"data.samples={{run:{first}}}/samples", "evaluate.baselines=false")
        labelled = (*FRAMES, flaws) if name == first else shared
        yield Arm(
            name, f"{percent}% of the traces missing or trivial: {about}", stage="sft",
            settings=(*labelled, "stages=[sft]", "sft.from={base}/align", f"sft.max_tokens={BRIEF}",
                      "sft.no_think_share=0", "sft.probe=170", *settings, DEV),
            needs=("sft",) if name == first else (first,), against=f"traces-{percent}-masked", group="trace loss",
        )  # fmt: skip


ABLATIONS = (
    Arm("sft", "stage 2, typical teacher", stage="sft", run="", settings=(DEV,), group="teacher"),
    Arm("rlvr", "then stage 3, typical teacher", run="short", settings=(*FROM_SFT, *MINUTES), needs=("sft",),
        group="teacher"),
    *by_teacher("perfect", "1"),
    *by_teacher("strong", "strong"),
    *by_teacher("weak", "weak"),
    *map(records, (5, 10, 25, 50)),
    *equal_minutes(),
    changed("uniform", "prompts drawn uniformly", "rlvr.prompt_choice=uniform", group="prompts"),
    changed("stakes", "prompts drawn by stakes too", "rlvr.stakes=true", group="prompts"),
    changed("two-updates", "two updates on each batch of rollouts", "rlvr.updates=2", group="DAPO's pieces"),
    changed("equal-clip", "two updates, equal clip: eps_high as eps_low", "rlvr.updates=2", "rlvr.eps_high=0.2",
            group="DAPO's pieces"),
    changed("one-round", "no dynamic sampling: one round, dead groups not replaced", "rlvr.max_sampling_rounds=1",
            group="DAPO's pieces"),
    changed("no-overlong", "no overlong penalty", "rlvr.overlong_cache=0", group="DAPO's pieces"),
    changed("std", "advantage over the group's standard deviation", "rlvr.advantage=std", group="DAPO's pieces"),
    changed("rollout-mean", "mean of each rollout first, then over rollouts", "rlvr.mean=rollouts",
            group="DAPO's pieces"),
    changed("exact-only", "reward 1 or 0: no credit for near answers", "rlvr.partial_credit=false", group="reward"),
    changed("set-errors", "a list is credited by its errors, not by F1", "rlvr.set_credit=errors", group="reward"),
    *traces(0, "plain", "masked"),
    *traces(30, "plain", "lambda", "masked"),
    *traces(100, "plain", "lambda", "masked"),
    *left_out(),
    Arm("no-align-sft", "stage 1 left out, stage 2", stage="sft", run="no-align",
        settings=(*SAMPLES, "stages=[sft, rlvr]", "sft.from={base}/parts", f"rlvr.max_steps={STEPS}", DEV),
        needs=("sft",), group="stages"),
    Arm("no-align", "stage 1 left out, then stage 3", run="no-align",
        settings=(*SAMPLES, "stages=[sft, rlvr]", "sft.from={base}/parts", f"rlvr.max_steps={STEPS}", DEV),
        needs=("no-align-sft",), against="rlvr", group="stages"),
    Arm("no-sft", "stage 2 left out", settings=(*FROM_SFT[:-3], "rlvr.from={base}/align", *FROM_SFT[-2:]),
        needs=("sft",), against="rlvr", group="stages"),
    Arm("sft-last", "stage 3 before stage 2", stage="sft", needs=("no-sft",), against="rlvr", group="stages",
        settings=(*SAMPLES, "stages=[sft]", "sft.from={run:no-sft}/rlvr", DEV)),
    Arm("one-sft", "captions, questions and prompts in one sft, from the parts, equal tokens", stage="sft",
        settings=(*SAMPLES, "stages=[sft]", "sft.from={base}/parts", "sft.caption_replay=8",
                  "data.mix=[{samples: {base}/samples/control, weight: 0.43, stages: [sft]}]",
                  f"sft.max_tokens={13_000_000 + STEPS * STEP_TOKENS}", DEV),
        needs=("sft",), against="rlvr", group="stages"),
)  # fmt: skip

PLANTED = "photographs"  # folder in a run: the tables of photographs with a teacher that errs
PHOTOGRAPHS = (  # a quarter of the photographs have records; stage 3 as in the headline, a quarter as long
    f"data.table={{base}}/{PLANTED}", "data.label.question_share=0.75", "data.label.prompt_share=0.25",
    "parts.nano.max_tokens=500000", "align.max_minutes=null", "align.max_tokens=900000",
    "sft.max_minutes=null", "sft.max_tokens=4000000",
    "rlvr.max_minutes=null", f"rlvr.max_steps={STEPS}", "rlvr.prompts=64", "rlvr.advantage=center",
    "rlvr.optimizer=muon", "rlvr.schedule=linear", "rlvr.learning_rate={projector: 1e-3, lm: 2e-4}",
    *(f"{stage}.epochs=1000" for stage in ("parts.nano", "align", "sft", "rlvr")),
    "evaluate.limit=4000", "evaluate.calibration=0",
)  # fmt: skip


def on_photographs(arm: Arm) -> Arm:
    """An arm of the headline on photographs: the teacher errs, or names what is there."""
    if arm.name != "perfect":
        about = arm.about.replace("typical teacher", "teacher")
        return replace(
            arm, about=about, settings=(*PHOTOGRAPHS, f"data.tasks=[{{base}}/{PLANTED}/{TEACHER}]", *arm.settings)
        )
    own = (f"data.tasks=[{{base}}/{PLANTED}/{TRUTH}]", "stages=[align, sft]", "evaluate.baselines=false")
    return replace(arm, settings=(*PHOTOGRAPHS, *own))


TABLES = {
    "headline": HEADLINE,
    "ablations": ABLATIONS,
    **{name: tuple(map(on_photographs, HEADLINE)) for name in SETS},
}

# --- a rehearsal: every step on a model and frames too small to learn anything

TINY_FRAMES = ("data.simulate.frames={train: 24, dev: 6, heldout: 6, shifted: 6}", "data.simulate.size=56")
TINY_PHOTOGRAPHS = ("data.augment.variants=1", "parts.scales=[224]")
TINY = (
    "parts.nano={hidden: 16, layers: 1, heads: 2, vocabulary: 400, max_tokens: 4000, epochs: 1000}",
    "align.max_tokens=4000", "sft.max_tokens=12000", "sft.no_think_share=0",
    "rlvr.max_steps=2", "rlvr.prompts=2", "rlvr.group_size=2", "rlvr.max_new_tokens=6", "rlvr.overlong_cache=2",
    "rlvr.max_sampling_rounds=1", "rejection.max_prompts=2",
    "evaluate.limit=40", "evaluate.max_new_tokens=6", "evaluate.caption_pairs=4",
    "dtype=fp32",
)  # fmt: skip
SIZES = (  # left to TINY and the recipe: 5% of so few frames are none
    "parts.nano.max_tokens", "align.max_tokens", "sft.max_tokens", "rlvr.max_steps", "rlvr.prompts=",
    "rejection.max_prompts", "data.label.prompt_share=0.05",
)  # fmt: skip


# --- from arms to jobs


@dataclass(frozen=True)
class Plan:
    """What the command line decides for all arms."""

    runs: Path = Path("runs")
    scale: float = 1.0
    tiny: bool = False
    photographs: str = ""  # a set of `SETS`, in place of simulated frames

    def folder(self, seed: int, run: str) -> Path:
        """The folder of a run; runs of another scale have other names, so that they stand side by side."""
        scale = "" if self.scale == 1 else f"x{self.scale:g}"
        parts = ("headline", self.photographs, "tiny" if self.tiny else "", scale, str(seed), run)
        return self.runs / "-".join(filter(None, parts))


@dataclass(frozen=True)
class Job:
    """An arm with one seed, ready to be run."""

    arm: Arm
    seed: int
    folder: Path
    preset: str  # the recipe that the overrides change
    overrides: tuple[str, ...]

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe as the arm runs it. Raises LinesideError for a setting that does not exist or fit."""
        return load_recipe(Path(self.preset), self.overrides)

    @property
    def command(self) -> str:
        """The same as one command for a person."""
        verb = self.arm.stage if self.arm.stage in ("sft", "rlvr") else "train"
        return f"lineside {verb} {self.preset} {' '.join(map(_quoted, self.overrides))}"

    def evaluation(self, split: str, mode: Mode) -> Path:
        """The evaluation that the arm ends with."""
        return self.folder / "evaluation" / f"{self.arm.stage}-{split}-{mode}.json"

    @property
    def done(self) -> bool:
        """Whether everything that the arm is judged by is there."""
        recipe = self.recipe
        wanted = [self.evaluation(s, m) for s in recipe.evaluate.splits for m in recipe.evaluate.modes]
        return all(path.exists() for path in [*wanted, *([self.forgetting] if self.arm.forgets else [])])

    @property
    def forgetting(self) -> Path:
        """What the arm forgot since sft."""
        return self.folder / self.arm.stage / "forgetting.json"

    @property
    def sft(self) -> Path:
        """The checkpoint of sft that stage 3, or what stands in its place, begins with."""
        return (self.recipe.rlvr.from_ or self.folder / "sft") / "checkpoint"

    @property
    def samples(self) -> Path:
        """The folder of its samples."""
        return self.recipe.data.samples or self.folder / "samples"

    @property
    def begun(self) -> bool:
        """Whether its stage has a state or a checkpoint."""
        stage = self.folder / self.arm.stage
        return (stage / "checkpoint").exists() or any((stage / "state").glob("step-*"))

    @property
    def minutes(self) -> float:
        """About how long the arm takes from its beginning on two quiet cores."""
        recipe = self.recipe
        stages = [s for s in ("align", "sft", "rlvr") if s in recipe.stages]
        if self.arm.stage not in stages:  # a control: as many tokens as stage 3 trained on, or minutes
            tokens = recipe.section(self.arm.stage).equal == "tokens"
            a_step = STEP_TOKENS / A_MINUTE["sft"] if tokens else 1 / A_MINUTE["rlvr"]
            return (recipe.rlvr.max_steps or 0) * a_step + self._evaluations
        if self.arm.needs and self.arm.stage == "rlvr" and len(stages) > 1:
            stages = ["rlvr"]  # the arm before it has trained the others
        whole = stages[: stages.index(self.arm.stage) + 1]
        parts = ["parts.nano"] if "align" in whole else []
        train = sum(length(recipe, section) / A_MINUTE[section] for section in (*parts, *whole))
        made = recipe.data.simulate or recipe.data.table
        label = LABEL_MINUTES if recipe.data.frames else DATA_MINUTES if made and "sft" in whole else 0
        return train + label + self._evaluations

    @property
    def _evaluations(self) -> float:
        return EVALUATION_MINUTES * len(self.recipe.evaluate.splits) * len(self.recipe.evaluate.modes)


def length(recipe: Recipe, section: str) -> int:
    """Tokens or steps of a stage as the recipe gives them; 0 without a limit."""
    settings = recipe.parts.nano if section == "parts.nano" else getattr(recipe, section)
    return settings.max_tokens or getattr(settings, "max_steps", None) or 0


def resolve(arm: Arm, plan: Plan, seed: int) -> Job:
    """The job of an arm: the places filled in, every length multiplied by the plan's scale."""
    run = arm.name if arm.run is None else arm.run
    folder, base = plan.folder(seed, run), plan.folder(seed, "")
    settings = [_placed(setting, base, plan, seed) for setting in arm.settings]
    if plan.tiny:
        data = TINY_PHOTOGRAPHS if plan.photographs else TINY_FRAMES
        settings = [*data, *TINY, *(s for s in settings if not s.startswith(SIZES))]
    overrides = [f"name={folder.name}", f"runs={plan.runs}", f"seed={seed}", *settings]
    preset = plan.photographs or RECIPE
    if plan.scale != 1:
        recipe = load_recipe(Path(preset), overrides)
        for section in SECTIONS:
            unit = "max_steps" if section == "rlvr" else "max_tokens"
            overrides.append(f"{section}.{unit}={max(1, round(plan.scale * length(recipe, section)))}")
    return Job(arm, seed, folder, preset, tuple(overrides))


def with_needs(chosen: Iterable[str], arms: Sequence[Arm]) -> list[Arm]:
    """The named arms and all that they need, in the order of the table."""
    by_name = {arm.name: arm for arm in arms}
    wanted: set[str] = set()

    def take(name: str) -> None:
        if name not in wanted:
            wanted.add(name)
            for needed in by_name[name].needs:
                take(needed)

    for name in chosen:
        take(name)
    return [arm for arm in arms if arm.name in wanted]


def _placed(setting: str, base: Path, plan: Plan, seed: int) -> str:
    """The setting with folders in place of `{base}` and `{run:NAME}`."""
    head, mark, rest = setting.partition("{run:")
    if mark:
        name, _, tail = rest.partition("}")
        setting = f"{head}{plan.folder(seed, name)}{tail}"
    return setting.replace("{base}", str(base))


def _quoted(text: str) -> str:
    return json.dumps(text) if any(c in text for c in " []{}") else text


def suites(table: str) -> Iterator[tuple[str, Mode]]:
    """The suites of a table, the main one first."""
    for split in {"headline": ("heldout", "shifted"), "ablations": ("dev",)}.get(table, ("heldout",)):
        for mode in MODES:
            yield split, mode


def parts_of(table: str) -> tuple[str, ...]:
    """What a table tells apart: families, or the tasks of a set of photographs."""
    return SETS[table].tasks if table in SETS else FAMILIES
