"""A recipe: every setting of a run, from YAML. Strict: an unknown key or a wrong type is an error with file and line.

    recipe = load_recipe(Path("recipes/nano.yaml"), ["seed=1", "sft.learning_rate.lm=3e-4"])

What a setting does stands under it below. Settings are frozen; sections left out of the file take their defaults.
The reading of YAML and the wording of errors are in `lineside.settings` and `lineside.data.strict`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator

from lineside.data.strict import nearest
from lineside.errors import LinesideError
from lineside.settings import Settings, differing, dump, load
from lineside.sim.acuity import PERFECT, acuity_of

OWN_RECIPES = Path(__file__).parent / "recipes"

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Family = Literal["picking", "kitting", "returns"]
Split = Literal["train", "dev", "heldout", "shifted"]
StageName = Literal["align", "sft", "rlvr"]

FEW_FRAMES = 20_000  # of a table of records: so few that all of them serve both stage 2 and stage 3


class Counts(Settings):
    """Frames of each family, by split."""

    train: Count = 1000
    """What the three stages learn from."""
    dev: Whole = 100
    """For all tuning."""
    heldout: Whole = 200
    """Unseen scenes; looked at once a run."""
    shifted: Whole = 100
    """Unseen SKUs, packaging and light in unseen cells."""


class Simulate(Settings):
    """Frames from the simulated fleet."""

    families: tuple[Family, ...] = ("picking", "kitting", "returns")
    """Which cells to run."""
    frames: Counts = Counts()
    """How many frames of each family."""
    week: Whole = 0
    """Weeks add and retire SKUs, packaging and light."""
    size: Annotated[int, Field(ge=32, le=2048)] = 224
    """Side of the square picture in pixels."""


class Flaws(Settings):
    """Shares of the traces that the simulator's teacher spoils on purpose, since real teachers do."""

    missing: Share = 0.0
    """Share of the traces that are left out."""
    trivial: Share = 0.0
    """Share of the traces that say nothing."""
    wrong: Share = 0.0
    """Share of the traces that hold a false statement in good form."""


def _acuity(given: object) -> object:
    """A number for the names of `lineside.sim.acuity`."""
    if isinstance(given, str | int | float) and not isinstance(given, bool):
        try:
            return acuity_of(given)
        except LinesideError as error:
            raise ValueError(str(error)) from None
    return given


class Label(Settings):
    """From frames to samples: how many captions, questions and prompts. `lineside label` has each as a flag.

    What is None is decided by the teacher (`settled`). The two shares take different frames as long as they sum to at
    most 1; beyond that, some frames serve both stages.
    """

    captions_per_frame: Count | None = None
    """Captions of a training frame (stage 1), at most. None: 4, and from records as many as questions."""
    questions_per_frame: Count = 8
    """Questions of a training frame, at most; as many prompts."""
    question_share: Share | None = None
    """Share of the training frames that get questions with traces and answers (stage 2). None: 0.5; 1 where records are
    the teacher of at most 20,000 frames, 0.75 of more."""
    prompt_share: Share | None = None
    """Share of the training frames that get prompts with targets alone (stage 3). None: 0.25; 1 where records are the
    teacher of at most 20,000 frames."""
    flaws: Flaws = Flaws()
    """Spoilt traces."""
    thin: bool = False
    """Leave out near-duplicates, camera by camera."""
    drop_leaks: bool = False
    """Leave out a training frame whose very picture is in a suite as well."""
    acuity: Annotated[float, BeforeValidator(_acuity)] = PERFECT
    """How well the simulator's teacher sees: 0 to 1, or strong, typical, weak. Below 1 it errs in captions and stage 2,
    as a strong model does; stage-3 targets and suites stay true."""

    @model_validator(mode="after")
    def _fits(self) -> Label:
        given = (self.captions_per_frame, self.question_share, self.prompt_share)
        if None not in given:
            self.check_captions(self.questions_per_frame)
        return self

    def settled(self, *, records: bool, frames: int = 0, questions: int = 0) -> Label:
        """These settings with every None decided.

        `records`: whether a table of records is the teacher, of `frames` inputs, whose tasks ask a frame `questions`
        questions at most. Raises ValueError for fewer captions than questions.
        """
        few = records and frames <= FEW_FRAMES
        asked = min(self.questions_per_frame, questions) if records else self.questions_per_frame
        defaults = {
            "captions_per_frame": max(4, asked) if records else 4,
            "question_share": 1.0 if few else 0.75 if records else 0.5,
            "prompt_share": 1.0 if few else 0.25,
        }
        found = self.model_copy(update={k: v for k, v in defaults.items() if getattr(self, k) is None})
        found.check_captions(asked)
        return found

    def check_captions(self, questions: int) -> None:
        """Raises ValueError if the frames get fewer captions than questions, or than prompts, by the settings alone."""
        captions, shares = self.captions_per_frame or 0, (self.question_share or 0.0, self.prompt_share or 0.0)
        if captions < questions * max(shares):
            needed = math.ceil(questions * max(shares) - 1e-9)
            raise ValueError(
                f"fewer captions than questions: captions_per_frame is {captions}, but there are up to {questions} "
                f"questions on {shares[0]:g} (question_share) and as many prompts on {shares[1]:g} (prompt_share) of "
                f"the frames. Set captions_per_frame to {needed} or more, questions_per_frame to "
                f"{max(1, int(captions / max(shares)))} or fewer, or a smaller share"
            )


class Augment(Settings):
    """Altered copies of the training pictures, so that a frozen encoder shows more than was photographed."""

    variants: Count = 1
    """Variants of each picture, itself among them; each pass over the data takes the next. 1: the picture alone."""
    mirror: bool = False
    """Half of the variants are mirrored. Not where answers tell left from right."""
    crop: Annotated[float, Field(ge=0, le=0.9)] = 0.0
    """Largest share of its area that a variant leaves out, at sides up to a quarter longer or shorter."""
    light: Annotated[float, Field(ge=0, le=0.9)] = 0.0
    """Largest share by which a variant is brighter or darker, and its contrast and colours stronger or weaker."""

    @property
    def moves(self) -> bool:
        """Whether things lie elsewhere in a variant than in its picture."""
        return self.variants > 1 and (self.mirror or self.crop > 0)

    @model_validator(mode="after")
    def _alters(self) -> Augment:
        if self.variants > 1 and not (self.mirror or self.crop or self.light):
            raise ValueError("variants that differ in nothing: set mirror, crop or light as well")
        return self


UNALTERED = Augment()


class Mixed(Settings):
    """A further folder of samples to train on; nothing of it is judged."""

    samples: Path
    """A folder that `lineside label` or `lineside convert` wrote."""
    weight: Positive = 1.0
    """Frames of it for each frame of the recipe's own data; a folder that runs out is gone through again."""
    stages: tuple[StageName, ...] = ("align", "sft", "rlvr")
    """Where it takes part, if it has samples of the stage's kind."""


class Data(Settings):
    """Where samples come from: exactly one of `simulate`, `table`, `frames` and `samples`."""

    simulate: Simulate | None = None
    """Simulate the fleet, then label with the simulator's own ground truth."""
    table: Path | None = None
    """Pictures and records of one's own, in whatever they lie in; read in place. The task file says how."""
    frames: Path | None = None
    """A folder that `lineside simulate` wrote; it is labelled."""
    samples: Path | None = None
    """A folder that `lineside label` wrote; used as it is."""
    tasks: tuple[Path, ...] = ()
    """Task files, by path or by the name of one of the package's; none means the simulator's."""
    label: Label = Label()
    """How many captions, questions and prompts."""
    mix: tuple[Mixed, ...] = ()
    """Further folders of samples mixed into training, by weight."""
    augment: Augment = UNALTERED
    """Variants of the training pictures, for all three stages."""
    check: bool = True
    """Validate the samples before anything is trained on them: a picture on both sides of a split ends the run."""

    @model_validator(mode="after")
    def _one_source(self) -> Data:
        sources = ("simulate", "table", "frames", "samples")
        given = [name for name in sources if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"exactly one of {', '.join(sources)} must be given, got {' and '.join(given) or 'none'}")
        if self.simulate is not None or self.frames is not None:
            self.label.settled(records=False)  # what cannot be labelled is told before anything is simulated
        if self.table is not None and self.label.acuity != PERFECT:
            raise ValueError("label.acuity is of the simulator's teacher; a table says what its records say")
        if self.table is not None and not self.tasks:
            raise ValueError("a table needs task files of its own: set data.tasks")
        if self.augment.moves and (self.simulate is not None or self.frames is not None):
            raise ValueError(
                "augment.mirror and augment.crop move things, and the simulator's questions ask where things are"
            )
        return self


class NanoLM(Settings):
    """The language model that the preset `nano` makes from the training split's text alone."""

    hidden: Count = 256
    """Width."""
    layers: Count = 6
    """Depth."""
    heads: Count = 4
    """Attention heads; must divide `hidden`."""
    vocabulary: Annotated[int, Field(ge=300)] = 2048
    """Size of the byte-level BPE vocabulary."""
    context: Count = 1024
    """Longest sequence, image tokens included."""
    epochs: Positive = 2.0
    """Passes over the text at most."""
    max_minutes: Positive = 2.0
    """Time to pretrain on text, turned into `max_tokens` once, by the speed measured before. Not looked at where
    `max_tokens` is given."""
    max_tokens: Count | None = None
    """Tokens of text at most."""
    learning_rate: Positive = 2e-3
    """Peak rate of that."""
    step_tokens: Count = 2048
    """Tokens an optimiser step of that gathers."""

    @model_validator(mode="after")
    def _heads_fit(self) -> NanoLM:
        if self.hidden % (2 * self.heads):
            raise ValueError(f"hidden ({self.hidden}) must be an even multiple of heads ({self.heads})")
        return self


class Parts(Settings):
    """The encoder and the language model that have never met."""

    preset: Literal["nano", "smollm2", "siglip"] = "nano"
    """nano, smollm2: no hub needed. siglip: any SigLIP or CLIP tower with any Llama- or Qwen-type LM."""
    encoder: str | None = None
    """Folder or hub id of the vision tower (preset siglip only)."""
    lm: str | None = None
    """Folder or hub id of the language model (preset siglip only)."""
    scales: Annotated[tuple[Literal[448, 224], ...], Field(min_length=1, max_length=2)] = (448,)
    """Sides in pixels at which EfficientNet sees a picture, largest first. 448: small parts. 224 as well: what fills
    the picture, for a quarter more pixels."""
    nano: NanoLM = NanoLM()
    """Size of the nano LM (preset nano only)."""

    @model_validator(mode="after")
    def _preset_fits(self) -> Parts:
        if list(self.scales) != sorted(set(self.scales), reverse=True):
            raise ValueError("scales: each side once, the largest first")
        if self.preset == "siglip" and self.scales != (448,):
            raise ValueError("scales are EfficientNet's; a tower of your own has its own picture size")
        if self.preset == "siglip" and not (self.encoder and self.lm):
            raise ValueError("preset siglip needs both parts.encoder and parts.lm (a folder or a hub id)")
        if self.preset != "siglip" and (self.encoder or self.lm):
            raise ValueError(f"preset {self.preset} brings its own encoder and lm; parts of your own: preset siglip")
        return self


class ProjectorRate(Settings):
    """Peak learning rate of the only part that stage 1 trains."""

    projector: Positive = 1e-3
    """Of the projector."""


class Rates(Settings):
    """Peak learning rates of the two parts that stages 2 and 3 train."""

    projector: Positive = 5e-4
    """Of the projector."""
    lm: Positive = 3e-4
    """Of the language model."""


class Stage(Settings):
    """What every stage has. It ends with the first of `epochs`, `max_steps` and `max_tokens` that is reached."""

    epochs: Positive = 1.0
    """Passes over the frames that have samples for the stage."""
    max_minutes: Positive | None = None
    """Time to train, turned into `max_tokens` (in stage 3 `max_steps`) once, by the speed measured on the stage's own
    data before it begins. Not looked at where `max_steps` or `max_tokens` is given."""
    max_steps: Count | None = None
    """Optimiser steps; in stage 3 those that found nothing to learn from as well."""
    max_tokens: Count | None = None
    """Tokens through the LM."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Course of the learning rate after the warm-up."""
    warmup: Share = 0.03
    """Share of the stage over which the learning rate rises."""
    min_lr_ratio: Share = 0.1
    """Learning rate at the end of a cosine or linear schedule, as a share of the peak rate."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: orthogonalised steps for hidden matrices, AdamW for the rest; fewer steps where the LM is small and new."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """On matrices only."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Gradients with a larger norm are scaled down to it; 0 does not clip."""
    pack_tokens: Count = 8192
    """Tokens of one packed forward and backward: bounds memory, changes no number."""
    checkpointing: bool = False
    """Compute each layer again in backward instead of keeping it: less memory for more time, both measured and printed
    before the stage begins."""
    save_seconds: Positive = 120.0
    """Time between two saved states; also how much work an interruption may cost."""
    from_: Path | None = Field(default=None, alias="from")
    """Begin with this checkpoint (its folder, or that of a stage of any run) and not with the stage before."""


class Align(Stage):
    """Stage 1: the projector, on captions."""

    learning_rate: ProjectorRate = ProjectorRate()
    """Peak rate."""
    step_tokens: Count = 4096
    """Tokens, context included, of one optimiser step: whole frames, each with all its captions."""


class Sft(Stage):
    """Stage 2: projector and LM, on questions with traces and answers."""

    epochs: Positive = 3.0
    """Passes over the frames that have questions."""
    learning_rate: Rates = Rates()
    """Peak rates."""
    step_tokens: Count = 4096
    """Tokens, context included, of one optimiser step: whole frames, each with all its questions."""
    trace_weight: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """lambda: weight of the trace's words beside the answer's."""
    no_think_share: Share = 0.0
    """Share of the questions with a trace that are trained a second time with thinking off, answer only."""
    caption_replay: Whole = 0
    """Captions of a frame trained beside its questions, so that the model does not forget captions; held in memory."""
    feature_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the encoder's channels silenced in each picture of a step; where few pictures are learnt by heart."""


class Rlvr(Stage):
    """Stage 3: projector and LM, on prompts with verifiable targets (GRPO in DAPO's form)."""

    schedule: Literal["cosine", "linear", "constant"] = "constant"
    """Course of the learning rate after the warm-up."""
    learning_rate: Rates = Rates(projector=5e-5, lm=5e-5)
    """Peak rates."""
    prompts: Count = 32
    """Live groups collected before an update."""
    prompts_per_frame: Count = 2
    """Prompts taken of one frame, which share its image tokens; with uniform."""
    group_size: Annotated[int, Field(ge=2)] = 8
    """Rollouts of one prompt."""
    temperature: Positive = 1.0
    """Of the sampling; there is no top-k and no top-p."""
    max_new_tokens: Count = 96
    """Longest rollout."""
    overlong_cache: Whole = 16
    """The last tokens before the longest, over which the penalty grows to -1."""
    eps_low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Lower clip."""
    eps_high: Positive = 0.28
    """Upper clip."""
    updates: Count = 1
    """Optimiser steps on a batch of rollouts; the clip acts from the second on."""
    advantage: Literal["std", "center"] = "std"
    """std: divided by the group's deviation (GRPO). center: not (Dr. GRPO)."""
    max_sampling_rounds: Count = 3
    """Most rounds of sampling in a step; after them the step goes on with the live groups it has."""
    prompt_choice: Literal["live", "uniform"] = "live"
    """live: of every four prompts the one whose answers are the likeliest to differ, by what its like gave before.
    uniform: `prompts_per_frame` of each frame."""
    task_floor: Share = 0.5
    """Share of the prompts that every task gets by its number of prompts alone, so that none starves; with live."""
    stakes: bool = False
    """Whether prompts are drawn also by what a mistake costs in their task (`stakes` of its file); with live."""
    teacher_targets: bool = False
    """Whether targets that only a teacher vouches for may give reward."""

    @model_validator(mode="before")
    @classmethod
    def _no_curriculum(cls, data: object) -> object:
        if isinstance(data, dict) and "curriculum" in data:
            if data["curriculum"] is not None:
                raise ValueError(
                    "curriculum, a measurement before the stage, is gone: prompt_choice: live (the default) learns "
                    "while it trains which prompts teach"
                )
            data = {key: value for key, value in data.items() if key != "curriculum"}  # null in runs of before
        return data

    @model_validator(mode="after")
    def _fits(self) -> Rlvr:
        if self.overlong_cache > self.max_new_tokens:
            raise ValueError(f"overlong_cache ({self.overlong_cache}) exceeds max_new_tokens ({self.max_new_tokens})")
        return self


class Evaluate(Settings):
    """Judgement after each stage."""

    splits: tuple[Split, ...] = ("heldout",)
    """Which splits; never train."""
    modes: tuple[Literal["think", "fast"], ...] = ("think", "fast")
    """think: trace, then answer. fast: answer at once."""
    limit: Count | None = None
    """At most this many questions a split, spread evenly over tasks."""
    caption_pairs: Whole = 200
    """Pairs of a true and a false caption to tell apart; 0 leaves it out."""
    max_new_tokens: Count = 96
    """Longest answer, trace included."""
    baselines: bool = True
    """Also fit the blind guesser and the classifier heads."""
    calibration: Whole = 2000
    """Questions of dev on which confidence is calibrated, spread evenly over tasks; 0 leaves it out."""

    @model_validator(mode="after")
    def _judges_unseen(self) -> Evaluate:
        if "train" in self.splits:
            raise ValueError("splits must not name train: what was learnt from is not judged on")
        return self


class Recipe(Settings):
    """A whole run: frames to a trained and judged model."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]
    """Name of the run and of its folder: letters, digits, dot, dash, underscore."""
    seed: Whole = 0
    """Everything random follows from it."""
    runs: Path = Path("runs")
    """Folder of all runs."""
    workers: Whole = 0
    """Processes to simulate with; 0 means one a core."""
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the compute; auto takes bf16 where this machine multiplies it faster. Master weights are fp32 in any case."""
    data: Data
    """Frames and samples."""
    parts: Parts = Parts()
    """What the model is made of."""
    stages: Annotated[tuple[StageName, ...], Field(min_length=1)] = ("align", "sft", "rlvr")
    """Which stages to train, in this order; each begins with the checkpoint of the one before, the first with the
    parts."""
    align: Align = Align()
    """Stage 1."""
    sft: Sft = Sft()
    """Stage 2."""
    rlvr: Rlvr = Rlvr()
    """Stage 3."""
    control: bool = True
    """Also train stage 2 on, on stage 3's prompts for the same tokens, to hold stage 3 against."""
    evaluate: Evaluate = Evaluate()
    """Judgement."""

    @model_validator(mode="after")
    def _in_order(self) -> Recipe:
        if list(self.stages) != [stage for stage in get_args(StageName) if stage in self.stages]:
            raise ValueError("stages: each once, in the order align, sft, rlvr; sft.from and rlvr.from begin elsewhere")
        return self

    @property
    def folder(self) -> Path:
        """Folder of this run."""
        return self.runs / self.name


RENAMED = {  # keys of earlier versions: old dotted name -> new name
    **{f"{stage}.floor": "min_lr_ratio" for stage in get_args(StageName)},
    **{f"{stage}.clip": "max_grad_norm" for stage in get_args(StageName)},
    "sft.fast": "no_think_share",
    "sft.captions": "caption_replay",
    "rlvr.refills": "max_sampling_rounds",
}


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe; `overrides` are "dotted.key=value" with the value written as in YAML, and win over the file.

    Raises LinesideError naming the file, the line and, for an unknown key, the nearest or the new name.
    """
    return load(Recipe, recipe_file(path), overrides, renamed=RENAMED)


def load_run_recipe(path: Path) -> Recipe:
    """Read the recipe that a run has written. Unlike `load_recipe` it takes keys by their old names, so that a run of
    an earlier version can be continued."""
    return load(Recipe, path, renamed=RENAMED, take_old_names=True)


def recipe_file(path: Path) -> Path:
    """The file itself, else the package's own recipe of that name: `nano`, `nano.yaml` and `recipes/nano.yaml` are one.

    Raises LinesideError when there is neither.
    """
    own = {file.stem: file for file in sorted(OWN_RECIPES.glob("*.yaml"))}
    named = path.parent in (Path(), Path("recipes")) and path.suffix in ("", ".yaml")
    if not path.is_file() and named and path.stem in own:
        return own[path.stem]
    if not path.exists():
        raise LinesideError(
            f"{path}: no such recipe{nearest(path.stem, own)}; expected a YAML file, or one of the package's own: "
            f"{', '.join(own)}"
        )
    return path


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML with every setting written out; `load_recipe` of it gives an equal recipe."""
    return dump(recipe)


def differences(before: Recipe, after: Recipe) -> list[str]:
    """What changed that changes a number, one line a setting ("sft.epochs: 3.0 -> 4.0").

    Where data lie is no number, since a run keeps fingerprints of what is in them: `data.samples: a -> b` is none.
    """
    return [line for line in differing(_placeless(before), _placeless(after)) if line.split(":")[0] not in NO_NUMBER]


NO_NUMBER = {
    *("name", "runs", "workers", "control", "stages", "data.check", "evaluate.splits", "evaluate.modes"),
    *(f"{stage}.{key}" for stage in get_args(StageName) for key in ("save_seconds", "pack_tokens", "checkpointing")),
}
_PLACE = Path("somewhere")


def _placeless(recipe: Recipe) -> Recipe:
    """The same with every path of data in one place."""
    data = recipe.data
    places = {name: _PLACE for name in ("samples", "table", "frames") if getattr(data, name) is not None}
    tasks, mix = (_PLACE,) * len(data.tasks), tuple(m.model_copy(update={"samples": _PLACE}) for m in data.mix)
    return recipe.model_copy(update={"data": data.model_copy(update={**places, "tasks": tasks, "mix": mix})})
