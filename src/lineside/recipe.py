"""A recipe: every setting of a run, from YAML. Strict: an unknown key or a wrong type is an error with file and line.

    recipe = load_recipe(Path("recipes/nano.yaml"), ["seed=1", "sft.learning_rate.lm=3e-4"])

The docstring under a setting says what it does. Settings are frozen; sections missing in the file take their defaults.
`lineside.settings` and `lineside.strict` read the YAML and word the errors.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from lineside.errors import LinesideError
from lineside.settings import UNALTERED, Augment, Lora, Settings, differing, dump, load
from lineside.sim.acuity import PERFECT, acuity_of
from lineside.stages import CONTROLS, LINE, entry_of, is_control
from lineside.strict import nearest
from lineside.types import Split

OWN_RECIPES = Path(__file__).parent / "recipes"

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Family = Literal["picking", "kitting", "returns"]
if TYPE_CHECKING:
    StageName = ControlName = str
else:
    StageName, ControlName = Literal[LINE], Literal[CONTROLS]
TeacherName = Literal["sim", "table", "api"]
AlarmKind = Literal[
    "loss_spike", "gradient_spike", "entropy_collapse", "length_drift", "dead_groups", "reward_hacking", "stock_traces",
    "one_answer",
]  # fmt: skip

ROUTE_BELOW = 0.75  # with the default stakes a person costs a quarter of a wrong answer: 1 - 1/4
MARGIN = 0.03  # three points: equally good models pass if there are enough scenes
FEW_FRAMES = 20_000  # a table of records with at most this many frames uses all of them for stage 2 and for stage 3


class Counts(Settings):
    """Frames of each family, by split."""

    train: Count = 1000
    """To train the three stages on."""
    dev: Whole = 100
    """To tune on."""
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
    """Week of the fleet: SKUs, packaging and light change by week."""
    size: Annotated[int, Field(ge=32, le=2048)] = 224
    """Side of the square picture in pixels."""


ERRS = "A teacher that errs (sim, table)"  # heading of its flags


class Flaws(Settings):
    """Shares of the traces that the simulator's teacher spoils on purpose, as real teachers do."""

    panel: ClassVar[str] = ERRS
    missing: Share = 0.0
    """Share of the traces that are left out."""
    trivial: Share = 0.0
    """Share of the traces without content."""
    wrong: Share = 0.0
    """Share of the traces that contain a false statement in correct form."""


def _acuity(given: object) -> object:
    """Turn a name from `lineside.sim.acuity` into its number."""
    if isinstance(given, str | int | float) and not isinstance(given, bool):
        try:
            return acuity_of(given)
        except LinesideError as error:
            raise ValueError(str(error)) from None
    return given


class Who(Settings):
    """Who labels, and whether it is tested first."""

    teacher: TeacherName | None = None
    """Who gives captions, answers and traces. sim: the simulator. table: the records beside the pictures. api: a model
    behind an endpoint. None: table if the task file (in a recipe: the data) has a `table`, else sim."""
    audit: Count | None = None
    """First compare the teacher with the records of this many training frames: how often it is right by task, what it
    confuses, what to do. None: no frames; all frames if the teacher is known to err and costs nothing."""


class Amounts(Settings):
    """How many captions, questions and prompts are made of which frames."""

    panel: ClassVar[str] = "How much, of which frames"
    captions_per_frame: Count | None = None
    """Captions of a training frame (stage 1), at most. None: 4; with records as the teacher as many as questions."""
    questions_per_frame: Count = 8
    """Questions of a training frame, at most; the same limit holds for prompts."""
    question_share: Share | None = None
    """Share of the training frames that get questions with traces and answers (stage 2). None: 0.5; with records as the
    teacher 1 for up to 20,000 frames, 0.75 for more."""
    prompt_share: Share | None = None
    """Share of the training frames that get prompts with targets and no answers (stage 3). None: 0.25; with records as
    the teacher 1 for up to 20,000 frames."""
    flaws: Flaws = Flaws()
    """Traces that are spoiled on purpose."""
    thin: bool = False
    """Leave out near-duplicates of the same camera."""
    drop_leaks: bool = False
    """Leave out a training frame whose picture is also in a suite."""


class Erring(Settings):
    """Errors of the simulator's teacher."""

    panel: ClassVar[str] = ERRS
    acuity: Annotated[float, BeforeValidator(_acuity)] = PERFECT
    """How well the simulator's teacher sees: 0 to 1, or strong, typical, weak. Below 1 it makes errors in captions and
    stage 2, as a strong model does; stage-3 targets and suites stay true."""
    references: Whole = 0
    """Reference pictures of each SKU that stand beside the frame where a question names an article of the simulator:
    the article alone on a plain background. A table of records states its own (`table.references`). 0: none."""


def _body(given: object) -> object:
    """A flag gives the fields of a request as JSON."""
    try:
        return json.loads(given) if isinstance(given, str) else given
    except (ValueError, RecursionError) as error:
        raise ValueError(f'not JSON ({error}); expected an object such as {{"temperature": 0.7}}') from None


def _key_env(name: str) -> str:
    """The value is not told: it may be the key."""
    if name and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError("expected the name of an environment variable, such as OPENAI_API_KEY, and never the key")
    return name


def _address(url: str) -> str:
    """The value is not told: it may hold a password."""
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        sound, parts = False, urlsplit("")
    if not sound:
        raise ValueError("not an http or https address; expected such as https://api.openai.com/v1")
    if parts.username or parts.password or parts.query:
        raise ValueError("holds a name, password or query; the key belongs in an environment variable (key_env)")
    return url


_OF_KEYS = re.compile(r"(?i)(x-)?api[-_]?key|.*authorization|.*(secret|password).*|(access|auth|bearer)[-_]?token")


def _names_in(value: object) -> Iterator[str]:
    """All names in JSON, at every depth."""
    if isinstance(value, dict):
        yield from value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _names_in(inner)


class Api(Settings):
    """A teacher behind an API: whom to ask for what. What decides its replies is part of a job's identity."""

    panel: ClassVar[str] = "A teacher behind an API (--teacher api)"
    model: str = ""
    """Name of the model at the endpoint."""
    base_url: Annotated[str, AfterValidator(_address)] = "https://api.openai.com/v1"
    """URL of an endpoint with OpenAI's chat completions."""
    key_env: Annotated[str, AfterValidator(_key_env)] = "OPENAI_API_KEY"
    """Environment variable that holds the key; '' for no key."""
    prompts: Path | None = None
    """Folder with your own prompts: captions.md, traces.md ..."""
    samples: Count = 3
    """Samples of each answer without a record."""
    agree: Count | None = None
    """How many of them must be the same. None: all."""
    own_questions: Whole = 0
    """Questions of a frame that the model makes up."""
    trust_teacher: bool = False
    """Let stage 3 use answers without a record."""
    structured: Literal["schema", "object", "none"] = "schema"
    """The response_format to send."""
    max_tokens: Count = 2048
    """Longest reply."""
    body: Annotated[dict[str, Any], BeforeValidator(_body)] = {}  # noqa: RUF012 - copied by pydantic
    """More fields of each request, such as {"temperature": 0.7}; null removes one."""
    attempts: Count = 5
    """Attempts at each request, before it counts as failed or its reply as unusable."""

    @model_validator(mode="after")
    def _can_be_asked(self) -> Api:
        if not self.samples // 2 < self.agreeing <= self.samples:
            raise ValueError(
                f"agree is {self.agree} of {self.samples} samples: expected more than half and at most all of them"
            )
        if reserved := sorted({"model", "messages", "stream", "n"} & set(self.body)):
            raise ValueError(f"body: {', '.join(reserved)} is set by lineside itself")
        if held := next(filter(_OF_KEYS.fullmatch, _names_in(self.body)), ""):
            raise ValueError(
                f"body: {held} may hold a key, and a run writes its recipe down: the key belongs in an environment "
                "variable (key_env)"
            )
        return self

    @property
    def agreeing(self) -> int:
        """How many samples of an answer must be the same."""
        return self.agree or self.samples

    @property
    def asking(self) -> dict[str, Any]:
        """What decides the teacher's replies, but for the prompts, as plain data. A model may move to another place."""
        decide = ("model", "structured", "max_tokens", "body", "attempts")
        names = (*decide, "samples", "agree", "own_questions", "trust_teacher")
        return {name: getattr(self, name) for name in names} | {"agree": self.agreeing}


class Requests(Settings):
    """How an API is asked. Nothing here changes the samples, so a job can be continued with other values."""

    panel: ClassVar[str] = "How an API is asked: pace, patience, budget"
    in_flight: Count = 16
    """Requests at the same time."""
    per_minute: Annotated[float, Field(ge=0)] = 0.0
    """Requests a minute; 0: no limit."""
    timeout: Positive = 120.0
    """Seconds to wait for a reply."""
    backoff: Annotated[float, Field(ge=0)] = 1.0
    """Seconds before the second attempt at a request; doubled each time."""
    patience: Annotated[float, Field(ge=0)] = 600.0
    """Seconds without any served request after which the job ends."""
    budget_requests: Count | None = None
    """Stop after this many requests of the folder, earlier runs included. None: no limit."""
    budget_tokens: Count | None = None
    """Stop after this many tokens, in + out. None: no limit."""
    budget_usd: Positive | None = None
    """Stop after this many US dollars. None: no limit."""
    usd_in: Annotated[float, Field(ge=0)] = 0.0
    """Price of a million input tokens."""
    usd_out: Annotated[float, Field(ge=0)] = 0.0
    """Price of a million output tokens."""
    retry_failed: bool = False
    """Repeat requests that failed in an earlier run."""

    @model_validator(mode="after")
    def _can_be_counted(self) -> Requests:
        if self.budget_usd is not None and self.usd_in + self.usd_out == 0:
            raise ValueError(
                "a budget in money needs the prices per million tokens: give your provider's prices with usd_in and "
                "usd_out (--usd-in and --usd-out)"
            )
        return self


class Label(Requests, Api, Erring, Amounts, Who):
    """From frames to samples: who labels, and how many captions, questions and prompts. `lineside label` has each as a
    flag. Settings from `model` on are those of a teacher behind an API.

    The teacher decides each setting that is None (`settled`). The two shares use different frames if they sum to at
    most 1; else some frames serve both stages.
    """

    @model_validator(mode="after")
    def _fits(self) -> Label:
        given = (self.captions_per_frame, self.question_share, self.prompt_share)
        if None not in given:
            self.check_captions(self.questions_per_frame)
        if self.teacher is not None:
            self.check_teacher(self.teacher)
        stray = [name for name in OF_API if getattr(self, name) != Label.model_fields[name].default]
        if stray and self.teacher != "api":
            raise ValueError(
                f"{', '.join(stray)}: of a teacher behind an API, and the teacher is {self.teacher or 'not given'}; "
                "set teacher: api (--teacher api) to ask one"
            )
        return self

    def check_teacher(self, teacher: str) -> None:
        """Raises ValueError for settings that this teacher does not have, or lacks."""
        if teacher != "sim" and self.acuity != PERFECT:
            raise ValueError(f"acuity is a setting of the teacher 'sim'; the teacher '{teacher}' does not have it")
        if teacher == "api" and not self.model:
            raise ValueError("no model: give the name of the teacher's model at its endpoint (--model)")
        if teacher == "api" and any(self.flaws.model_dump().values()):
            raise ValueError("flawed traces come from the teachers 'sim' and 'table'; an API writes its own traces")

    def settled(self, teacher: TeacherName, *, frames: int = 0, questions: int = 0) -> Label:
        """These settings with every None decided.

        The teacher 'table' has `frames` inputs, and its tasks ask at most `questions` questions of a frame. Raises
        ValueError as `check_teacher`, and for fewer captions than questions.
        """
        self.check_teacher(teacher)
        records = teacher == "table"
        few = records and frames <= FEW_FRAMES
        asked = min(self.questions_per_frame, questions) if records else self.questions_per_frame
        defaults = {
            "teacher": teacher,
            "captions_per_frame": max(4, asked) if records else 4,
            "question_share": 1.0 if few else 0.75 if records else 0.5,
            "prompt_share": 1.0 if few else 0.25,
        }
        found = self.model_copy(update={k: v for k, v in defaults.items() if getattr(self, k) is None})
        found.check_captions(asked)
        return found

    def check_captions(self, questions: int) -> None:
        """Raises ValueError if these settings alone give frames fewer captions than questions, or than prompts."""
        captions, shares = self.captions_per_frame or 0, (self.question_share or 0.0, self.prompt_share or 0.0)
        if captions < questions * max(shares):
            needed = math.ceil(questions * max(shares) - 1e-9)
            raise ValueError(
                f"fewer captions than questions: captions_per_frame is {captions}, but there are up to {questions} "
                f"questions on {shares[0]:g} (question_share) and as many prompts on {shares[1]:g} (prompt_share) of "
                f"the frames. Set captions_per_frame to {needed} or more, questions_per_frame to "
                f"{max(1, int(captions / max(shares)))} or fewer, or a smaller share"
            )


OF_API = (*Api.model_fields, *Requests.model_fields)  # settings of a teacher behind an API


class Mixed(Settings):
    """Another folder of samples to train on. It is never evaluated on; its dev questions calibrate confidence too."""

    samples: Path
    """A folder that `lineside label` or `lineside convert` wrote."""
    weight: Positive = 1.0
    """Frames taken from it for each frame of the recipe's own data; a folder that runs out starts again."""
    even: bool = False
    """Whether its tasks get like shares: in a pass, frames of rare tasks come up to four times, and some of common
    ones not at all."""
    stages: tuple[StageName, ...] = ("align", "sft", "rlvr")
    """Stages that use it, if it has samples of the stage's kind."""


class Data(Settings):
    """Where samples come from: exactly one of `simulate`, `table`, `frames` and `samples`."""

    simulate: Simulate | None = None
    """Simulate the fleet, then label with the simulator's ground truth."""
    table: Path | None = None
    """Your own pictures and records, in a folder or archive, read in place. The task file says how."""
    frames: Path | None = None
    """A folder that `lineside simulate` wrote; it is labelled first."""
    samples: Path | None = None
    """A folder that `lineside label` wrote; used unchanged."""
    tasks: tuple[Path, ...] = ()
    """Task files, by path or by the name of one of the package's own; none means the simulator's."""
    label: Label = Label()
    """How to label: who, and how many captions, questions and prompts."""
    mix: tuple[Mixed, ...] = ()
    """More folders of samples for training, by weight."""
    augment: Augment = UNALTERED
    """Variants of the training pictures, for all three stages."""
    leave_out: tuple[str, ...] = ()
    """Ids of training samples that the stages leave out, such as those that stopped a run with numbers that are not
    finite. The only setting of the data that may change while a run goes on."""
    check: bool = True
    """Validate the samples before training: a picture in two splits stops the run."""

    @model_validator(mode="after")
    def _one_source(self) -> Data:
        sources = ("simulate", "table", "frames", "samples")
        given = [name for name in sources if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"exactly one of {', '.join(sources)} must be given, got {' and '.join(given) or 'none'}")
        if self.samples is None and self.teacher != "table":
            self.label.settled(self.teacher)  # wrong label settings are reported before anything is simulated
        if self.table is not None:
            self._check_table()
        if self.augment.moves and (self.simulate is not None or self.frames is not None):
            raise ValueError(
                "augment.mirror and augment.crop move things, and the simulator's questions ask where things are"
            )
        return self

    @property
    def teacher(self) -> TeacherName:
        """Who labels: as given, else the records of a table or the simulator."""
        return self.label.teacher or ("table" if self.table is not None else "sim")

    def _check_table(self) -> None:
        if self.teacher == "sim":
            raise ValueError("label.teacher: sim labels the simulator's frames; a table has the teacher table or api")
        if self.label.references:
            raise ValueError("label.references is a setting of the simulator; a table has its own `references`")
        if not self.tasks and self.teacher == "table":
            raise ValueError("a table needs its own task files: set data.tasks")
        self.label.check_teacher(self.teacher)


class NanoLM(Settings):
    """The language model of the preset `nano`, made from nothing but the training split's text."""

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
    """Most passes over the text."""
    max_minutes: Positive = 2.0
    """Time to pretrain on text. It is turned into `max_tokens` once, by a speed that is measured first. Ignored if
    `max_tokens` is given."""
    max_tokens: Count | None = None
    """Most tokens of text."""
    learning_rate: Positive = 2e-3
    """Peak learning rate of the pretraining."""
    step_tokens: Count = 2048
    """Tokens of one optimiser step of the pretraining."""

    @model_validator(mode="after")
    def _heads_fit(self) -> NanoLM:
        if self.hidden % (2 * self.heads):
            raise ValueError(f"hidden ({self.hidden}) must be an even multiple of heads ({self.heads})")
        return self


class Parts(Settings):
    """The encoder and the language model that have never met; or a finished model in their place."""

    preset: Literal["nano", "smollm2", "siglip"] = "nano"
    """nano, smollm2: no hub needed. siglip: any SigLIP or CLIP tower with any Llama- or Qwen-type LM."""
    vlm: str | None = None
    """Folder or hub id of a finished vision-language model, in place of a preset. Its projector is trained already, so
    `stages` are [sft, rlvr]."""
    encoder: str | None = None
    """Folder or hub id of the vision tower (preset siglip only)."""
    lm: str | None = None
    """Folder or hub id of the language model (preset siglip only)."""
    scales: Annotated[tuple[Literal[448, 224], ...], Field(min_length=1, max_length=2)] = (448,)
    """Sides in pixels at which EfficientNet sees a picture, largest first. 448: for small parts. With 224 added: for
    objects that fill the picture too, at a quarter more pixels."""
    nano: NanoLM = NanoLM()
    """Size of the nano LM (preset nano only)."""

    @model_validator(mode="after")
    def _preset_fits(self) -> Parts:
        if self.vlm is not None:
            if self.encoder or self.lm or self.preset != "nano" or self.scales != (448,):
                raise ValueError("vlm is a whole model: leave out preset, encoder, lm and scales")
            return self
        if list(self.scales) != sorted(set(self.scales), reverse=True):
            raise ValueError("scales: give each side once, the largest first")
        if self.preset == "siglip" and self.scales != (448,):
            raise ValueError("scales belong to EfficientNet; your own tower has its own picture size")
        if self.preset == "siglip" and not (self.encoder and self.lm):
            raise ValueError("preset siglip needs both parts.encoder and parts.lm (a folder or a hub id)")
        if self.preset != "siglip" and (self.encoder or self.lm):
            raise ValueError(f"preset {self.preset} has its own encoder and lm; for your own parts use preset siglip")
        return self

    @property
    def makes_lm(self) -> bool:
        """Whether the run trains a language model of its own first."""
        return self.preset == "nano" and self.vlm is None


class ProjectorRate(Settings):
    """Peak learning rate of stage 1, which trains the projector alone."""

    projector: Positive = 1e-3
    """Peak learning rate of the projector."""


class Rates(Settings):
    """Peak learning rates of the parts that stages 2 and 3 train."""

    projector: Positive = 5e-4
    """Peak learning rate of the projector."""
    lm: Positive = 3e-4
    """Peak learning rate of the language model."""
    lora: Positive = 3e-4
    """Peak learning rate of the adapter (`lora`); only for stages that train one."""

    def of(self, parts: Sequence[str]) -> dict[str, float]:
        """The rates of the parts that train."""
        return {part: getattr(self, part) for part in parts}


def _parts(train: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(train)) < len(train) or {"lm", "lora"} <= set(train):
        raise ValueError(
            f"got {', '.join(train)}: give each part once, and lm or lora but not both (lora leaves the weights of lm "
            "as they are)"
        )
    return train


Trained = Annotated[  # not strict: `_no_curriculum` makes a list of it
    tuple[Literal["projector", "lm", "lora"], ...], Field(strict=False, min_length=1), AfterValidator(_parts)
]


class StageSettings(Settings):
    """Settings of every stage. It ends at the first of `epochs`, `max_steps` and `max_tokens` that is reached."""

    epochs: Positive = 1.0
    """Passes over the frames with samples for the stage."""
    max_minutes: Positive | None = None
    """Time to train. It is turned into `max_tokens` (in stage 3 into `max_steps`) once, by a speed that is measured on
    the stage's data before it begins. Ignored if `max_steps` or `max_tokens` is given."""
    max_steps: Count | None = None
    """Most optimiser steps; in stage 3, steps without a live group count too."""
    max_tokens: Count | None = None
    """Most tokens through the LM."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Learning rate schedule after the warm-up."""
    warmup: Share = 0.03
    """Share of the stage over which the learning rate rises."""
    min_lr_ratio: Share = 0.1
    """Learning rate at the end of a cosine or linear schedule, as a share of the peak rate."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: orthogonalised steps for hidden matrices, AdamW for the rest; needs fewer steps if the LM is small and
    new."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Weight decay of the matrices; other parameters have none."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Gradients with a larger norm are scaled down to it; 0 does not clip."""
    pack_tokens: Count = 8192
    """Tokens of one packed forward and backward: limits memory and changes no result."""
    checkpointing: bool = False
    """Gradient checkpointing: compute each layer again in backward instead of keeping it. Less memory, more time; both
    are measured and printed before the stage begins."""
    save_seconds: Positive = 120.0
    """Time between two saved states: the most work that a kill or a power cut costs."""
    keep_states: Count = 2
    """Saved states to keep; older ones are deleted. A damaged one is passed over for the one before it."""
    halt_on: Annotated[tuple[AlarmKind, ...], Field(strict=False)] = ()  # `_no_curriculum` makes a list of it
    """Warnings that stop the stage, with its state saved; run again, it goes on all the same. Without it they are told,
    and kept in `warnings.jsonl` of the stage."""
    from_: Path | None = Field(default=None, alias="from")
    """Start from this checkpoint (its folder, or that of a stage of any run), not from the previous stage."""


class Align(StageSettings):
    """Stage 1: the projector, on captions."""

    learning_rate: ProjectorRate = ProjectorRate()
    """Peak learning rate."""
    step_tokens: Count = 4096
    """Tokens of one optimiser step, context included: whole frames, each with all its captions."""


class Sft(StageSettings):
    """Stage 2: projector and LM, on questions with traces and answers."""

    epochs: Positive = 3.0
    """Passes over the frames with questions."""
    train: Trained = ("projector", "lm")
    """Parts that train. lora: an adapter in place of lm, which then stays as it is; the section `lora` shapes it."""
    learning_rate: Rates = Rates()
    """Peak learning rates."""
    step_tokens: Count = 4096
    """Tokens of one optimiser step, context included: whole frames, each with all its questions."""
    trace_weight: Annotated[float, Field(gt=0, lt=1)] | None = 0.3
    """lambda: weight of the trace's loss; the answer's weight is 1. null: one mean over all tokens, as in plain
    fine-tuning, for ablations."""
    untraced: Literal["off", "skip"] = "off"
    """How a question without a valid trace is trained. off: with thinking off. skip: with thinking on and whatever
    trace there is, as in plain fine-tuning, for ablations: it teaches the model to skip its trace."""
    no_think_share: Share = 0.0
    """Share of the questions with a trace that are trained a second time with thinking off, answer only."""
    caption_replay: Whole = 0
    """Captions of a frame trained beside its questions, so that the model does not forget captions; held in memory."""
    feature_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the encoder's channels set to 0 in each picture of a step; against overfitting on few pictures."""
    probe: Whole = 0
    """Questions of dev that are answered at every tenth of the stage: the shares exact and with a valid trace are the
    curves `probe/exact` and `probe/valid`."""

    @model_validator(mode="after")
    def _thinks_or_not(self) -> Sft:
        if self.untraced == "skip" and self.no_think_share > 0:
            raise ValueError("untraced: skip trains every question with thinking on: set no_think_share to 0")
        return self


class Vllm(Settings):
    """Rollouts by vLLM (`sampler: vllm`): an engine in a process of its own."""

    python: Path | None = None
    """Python of an environment of its own with vLLM 0.32 or newer, such as vllm/bin/python."""
    memory: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of the device's memory that vLLM takes, beside the trainer."""
    context: Count | None = None
    """Longest prompt with its rollout, in tokens. null: the model's context, at most 4096."""
    patience: Positive = 600.0
    """Seconds to wait for its start, and for the rollouts of a round."""
    importance_cap: Annotated[float, Field(ge=1)] | None = 2.0
    """Truncated importance sampling: a token weighs min(p / q, importance_cap), for the probability p that the trainer
    gives it and q that vLLM drew it with. null: every token weighs 1."""
    max_gap: Positive | None = None
    """Stop if vLLM's log-probabilities are further than this from the trainer's, in nats a token. null: what rounding
    explains, 0.1 in bf16 and 0.001 in fp32."""


class Rlvr(StageSettings):
    """Stage 3: projector and LM, on prompts with verifiable targets (GRPO in DAPO's form)."""

    schedule: Literal["cosine", "linear", "constant"] = "constant"
    """Course of the learning rate after the warm-up."""
    train: Trained = ("projector", "lm")
    """Parts that train, as in `sft`. The adapter of the stage before goes on, if that has one."""
    learning_rate: Rates = Rates(projector=5e-5, lm=5e-5, lora=5e-5)
    """Peak learning rates."""
    prompts: Count = 32
    """Live groups collected before an update."""
    prompts_per_frame: Count = 2
    """Prompts of one frame in a step, which share its image tokens; used with prompt_choice: uniform."""
    group_size: Annotated[int, Field(ge=2)] = 8
    """Rollouts of one prompt."""
    temperature: Positive = 1.0
    """Sampling temperature. There is no top-k and no top-p."""
    max_new_tokens: Count = 96
    """Longest rollout in tokens."""
    overlong_cache: Whole = 16
    """Soft overlong penalty: over this many last tokens before max_new_tokens the penalty grows to -1."""
    eps_low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Lower clip of the probability ratio: 1 - eps_low."""
    eps_high: Positive = 0.28
    """Upper clip of the probability ratio: 1 + eps_high."""
    updates: Count = 1
    """Optimiser steps on one batch of rollouts; the clip acts from the second on."""
    mean: Literal["tokens", "rollouts"] = "tokens"
    """What weighs the same in the loss. tokens: every token of the live groups (DAPO). rollouts: every rollout, however
    long (GRPO)."""
    partial_credit: bool = True
    """Whether an answer that is nearly right earns a part of the reward (numbers within the tolerance, sets by member,
    points by distance). false: only an exact answer earns any."""
    advantage: Literal["std", "center"] = "std"
    """std: divide the advantage by the group's standard deviation (GRPO). center: do not (Dr. GRPO)."""
    set_credit: Literal["f1", "errors"] = "f1"
    """Reward of a list that is not exact. f1: F1, which also pays for naming more members when unsure. errors: 1 -
    (members left out or named wrongly) / right members: naming pays only for what is likelier right than wrong."""
    max_sampling_rounds: Count = 3
    """Most rounds of sampling in a step; after them the step goes on with the live groups it has."""
    prompt_choice: Literal["live", "uniform"] = "live"
    """live: of every four prompts, the one whose rollouts are most likely to get different rewards, by the results of
    earlier ones like it; the answers of a task are asked as often as they come. uniform: `prompts_per_frame` prompts of
    each frame."""
    task_floor: Share = 0.5
    """Share of the prompts that is divided evenly among the tasks, so that none starves; with live."""
    stakes: bool = False
    """Whether prompts are also drawn by the cost of a mistake in their task (`stakes`); with prompt_choice: live."""
    no_think_share: Share = 0.0
    """Share of the prompts that are asked with thinking off, of tasks that think: a line without time for a trace, or a
    deadline that cuts it, gets such answers. The other prompts train traces."""
    sampler: Literal["local", "vllm"] = "local"
    """Who samples rollouts. local: the trainer's own model. vllm: vLLM, in a process of its own (section `vllm`)."""
    vllm: Vllm = Vllm()
    """The engine of `sampler: vllm`."""
    leave_out: Annotated[tuple[str, ...], Field(strict=False)] = ()  # `_no_curriculum` makes a list of it
    """Tasks (family/task) whose prompts stage 3 and its controls leave out: to see what becomes of a task that they do
    not train."""
    teacher_targets: bool = False
    """Whether to train on targets that come from a teacher alone."""

    @model_validator(mode="before")
    @classmethod
    def _no_curriculum(cls, data: object) -> object:
        if isinstance(data, dict) and "curriculum" in data:
            if data["curriculum"] is not None:
                raise ValueError(
                    "curriculum is removed: prompt_choice: live (the default) finds the useful prompts during training"
                )
            data = {key: value for key, value in data.items() if key != "curriculum"}  # null in runs of before
        return data

    @model_validator(mode="after")
    def _fits(self) -> Rlvr:
        if self.overlong_cache > self.max_new_tokens:
            raise ValueError(f"overlong_cache ({self.overlong_cache}) exceeds max_new_tokens ({self.max_new_tokens})")
        return self


class ControlRates(Settings):
    """Peak learning rates of a control."""

    projector: Positive | None = None
    """Peak learning rate of the projector. null: 0.3 times that of `sft`."""
    lm: Positive | None = None
    """Peak learning rate of the language model. null: 0.3 times that of `sft`."""
    lora: Positive | None = None
    """Peak learning rate of the adapter. null: 0.3 times that of `sft`."""


class Control(Settings):
    """Settings of a control. All others are those of `sft`."""

    learning_rate: ControlRates = ControlRates()
    """Peak learning rates."""
    equal: Literal["tokens", "minutes"] = "tokens"
    """What the control has in common with stage 3: the tokens trained on, or the minutes, sampling included. Minutes
    are turned into tokens once, as in `max_minutes`."""
    max_tokens: Count | None = None
    """Most tokens through the LM, in place of `equal`. With it, a control can be trained without stage 3."""


class Rejection(Control):
    """Settings of the control `rejection`. All others are those of `sft`; rollouts are as long as those of `rlvr`."""

    group_size: Count = 8
    """Rollouts of one prompt."""
    keep: Count = 4
    """Most different right answers of one prompt that are trained on."""
    temperature: Positive = 1.0
    """Sampling temperature."""
    max_prompts: Count | None = None
    """Most prompts to sample, of each folder of samples. null: all."""


class Evaluate(Settings):
    """Evaluation after each stage."""

    splits: tuple[Split, ...] = ("heldout",)
    """Splits to evaluate; never train."""
    modes: tuple[Literal["think", "fast"], ...] = ("think", "fast")
    """think: trace, then answer. fast: answer at once."""
    limit: Count | None = None
    """Most questions of a split, spread evenly over tasks."""
    caption_pairs: Whole = 200
    """Pairs of a true and a false caption for caption matching; 0 turns it off."""
    max_new_tokens: Count = 96
    """Longest answer in tokens, trace included."""
    baselines: bool = True
    """Also fit the blind guesser and the classifier heads."""
    calibration: Whole = 2000
    """Questions of dev to calibrate confidence on, spread evenly over tasks; 0 turns it off."""
    margin: Share = MARGIN
    """A loss of up to this share of exact answers is accepted where the report compares stages: 0.03 is three points.
    `lineside compare` has it as --margin."""
    route_below: Share = ROUTE_BELOW
    """Tasks with a smaller share of exact answers are listed as "route to a person", over all questions and over those
    about new SKUs. With the default stakes, where a person costs a quarter of a wrong answer, acting on every answer
    pays from 0.75 on."""

    @model_validator(mode="after")
    def _judges_unseen(self) -> Evaluate:
        if "train" in self.splits:
            raise ValueError("splits must not name train: a model is not evaluated on its training data")
        return self


class Recipe(Settings):
    """A whole run: frames to a trained and judged model."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]
    """Name of the run and of its folder: letters, digits, dot, dash, underscore."""
    seed: Whole = 0
    """Seed of all random choices."""
    runs: Path = Path("runs")
    """Folder of all runs."""
    workers: Whole = 0
    """Processes of the simulator; 0: one for each core."""
    features_gb: Positive = 40.0
    """Most disk for the encoder's features, which all runs of the same encoder share, in GB. Pictures beyond it are
    encoded each time they are needed."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: on a CUDA device if there is one, else on the CPU. CUDA_VISIBLE_DEVICES chooses among
    several. The run's own recipe names what was taken."""
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Number format to compute in; auto takes bf16 if the device multiplies it faster. Master weights are always
    fp32. The run's own recipe names what was taken."""
    track: Literal["wandb", "mlflow"] | None = None
    """Experiment tracker that gets the curves too, beside TensorBoard. It writes into the run's folder and sends
    nothing, unless WANDB_MODE or MLFLOW_TRACKING_URI say otherwise. Not part of lineside: pip install wandb or
    mlflow."""
    data: Data
    """Frames and samples."""
    parts: Parts = Parts()
    """Parts of the model."""
    lora: Lora = Lora()
    """The adapter of the stages that train one (`sft.train`, `rlvr.train`)."""
    stages: tuple[StageName, ...] = ("align", "sft", "rlvr")
    """Stages to train, in this order. Each starts from the checkpoint of the stage before, the first from the parts.
    []: only controls, from `rlvr.from`."""
    align: Align = Align()
    """Stage 1."""
    sft: Sft = Sft()
    """Stage 2."""
    rlvr: Rlvr = Rlvr()
    """Stage 3."""
    controls: tuple[ControlName, ...] = ("traced",)
    """What to train in place of stage 3, on its prompts and from the checkpoint that it starts from, to compare it
    with, in this order. []: nothing."""
    traced: Control = Control()
    """Control: more of the teacher's answers with traces."""
    answers: Control = Control()
    """Control: the records' answers without traces."""
    rejection: Rejection = Rejection()
    """Control: the model's own answers that are right, with their traces."""
    evaluate: Evaluate = Evaluate()
    """Evaluation."""

    @model_validator(mode="after")
    def _in_order(self) -> Recipe:
        if self.parts.vlm and "stages" not in self.model_fields_set:
            return self.model_copy(update={"stages": LINE[1:]})
        if self.parts.vlm and LINE[0] in self.stages:
            raise ValueError(
                f"stages: {LINE[0]} trains the projector of parts that have never met, and that of a finished model "
                f"(parts.vlm) is trained: expected {', '.join(LINE[1:])}"
            )
        if list(self.stages) != [stage for stage in LINE if stage in self.stages]:
            raise ValueError(f"stages: each once, in the order {', '.join(LINE)}; sft.from, rlvr.from: other starts")
        if list(self.controls) != [control for control in CONTROLS if control in self.controls]:
            raise ValueError(f"controls: each once, in the order {', '.join(CONTROLS)}")
        if not self.stages and (self.rlvr.from_ is None or not self.trained_controls):
            raise ValueError(
                "stages: [] trains controls alone: give rlvr.from, the checkpoint that they start from, and their "
                "max_tokens"
            )
        return self

    @property
    def trained_controls(self) -> tuple[ControlName, ...]:
        """The controls whose length is known: by stage 3, or by their `max_tokens`."""
        return tuple(
            name for name in self.controls if entry_of(name).slot in self.stages or self.section(name).max_tokens
        )

    @property
    def first(self) -> StageName:
        """The stage whose start is the run's start."""
        return self.stages[0] if self.stages else entry_of(self.trained_controls[0]).slot

    def section(self, stage: str) -> Any:
        """The settings of a stage or control."""
        return getattr(self, stage)

    def trained_parts(self, stage: str) -> tuple[str, ...]:
        """The parts that a stage trains. A control trains those of stage 2."""
        return getattr(self.sft if is_control(stage) else self.section(stage), "train", ("projector",))

    @property
    def folder(self) -> Path:
        """Folder of this run."""
        return self.runs / self.name


RENAMED = {  # keys of earlier versions: old dotted name -> new name
    **{f"{stage}.floor": "min_lr_ratio" for stage in LINE},
    **{f"{stage}.clip": "max_grad_norm" for stage in LINE},
    "sft.fast": "no_think_share",
    "sft.captions": "caption_replay",
    "rlvr.refills": "max_sampling_rounds",
    "control": "controls",
}
OLD_VALUES = {"control": {True: ["traced"], False: []}}  # of renamed keys: old value -> new value


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe. `overrides` are "dotted.key=value" with the value as in YAML; they override the file.

    Raises LinesideError naming the file, the line and, for an unknown key, the nearest or the new name.
    """
    return load(Recipe, recipe_file(path), overrides, renamed=RENAMED, old_values=OLD_VALUES)


def load_run_recipe(path: Path) -> Recipe:
    """Read the recipe that a run has written. Unlike `load_recipe` it takes keys by their old names, so that a run of
    an earlier version can be continued."""
    return load(Recipe, path, renamed=RENAMED, old_values=OLD_VALUES, take_old_names=True)


def recipe_file(path: Path) -> Path:
    """The file, else the package's own recipe of that name: `nano`, `nano.yaml` and `recipes/nano.yaml` are one.

    Raises LinesideError if neither exists.
    """
    own = {file.stem: file for file in sorted(OWN_RECIPES.glob("*.yaml"))}
    named = path.parent in (Path(), Path("recipes")) and path.suffix in ("", ".yaml")
    if not path.is_file() and named and path.stem in own:
        return own[path.stem]
    if not path.exists():
        first = ": the recipe comes first, then the settings that change it" if "=" in path.name else ""
        raise LinesideError(
            f"{path}: no such recipe{first or nearest(path.stem, own)}; expected a YAML file, or one of the package's "
            f"own: {', '.join(own)}"
        )
    return path


def dump_recipe(recipe: Recipe, *, defaults: bool = True) -> str:
    """The recipe as YAML, with every setting or with those that differ from their defaults; `load_recipe` of it gives
    an equal recipe."""
    return dump(recipe, defaults=defaults)


def differences(before: Recipe, after: Recipe) -> list[str]:
    """Settings that differ and change results, one line each ("sft.epochs: 3.0 -> 4.0").

    Paths of data are not compared (`data.samples: a -> b`), because a run keeps fingerprints of the data itself.
    """
    return [line for line in differing(_placeless(before), _placeless(after)) if line.split(":")[0] not in NO_NUMBER]


NO_NUMBER = {
    *(
        "name",
        "runs",
        "workers",
        "track",
        "controls",
        "stages",
        "data.check",
        "evaluate.splits",
        "evaluate.modes",
        "evaluate.margin",
    ),
    *(
        f"{stage}.{key}"
        for stage in LINE
        for key in ("save_seconds", "keep_states", "pack_tokens", "checkpointing", "halt_on")
    ),
    *(f"rlvr.vllm.{key}" for key in ("python", "memory", "context", "patience", "max_gap")),
    *(f"data.label.{key}" for key in ("audit", "base_url", "key_env", *Requests.model_fields)),
}
_PLACE = Path("somewhere")


def _placeless(recipe: Recipe) -> Recipe:
    """The recipe with the same place in all data paths, and with label settings only as far as they shaped the data:
    samples are there already, and frames that are simulated are labelled by what None stands for."""
    data = recipe.data
    if data.samples is not None:
        data = data.model_copy(update={"label": Label()})
    elif data.teacher != "table":
        data = data.model_copy(update={"label": data.label.settled(data.teacher)})
    places = {name: _PLACE for name in ("samples", "table", "frames") if getattr(data, name) is not None}
    tasks, mix = (_PLACE,) * len(data.tasks), tuple(m.model_copy(update={"samples": _PLACE}) for m in data.mix)
    return recipe.model_copy(update={"data": data.model_copy(update={**places, "tasks": tasks, "mix": mix})})
