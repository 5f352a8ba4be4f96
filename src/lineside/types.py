"""The data types of lineside: Frame, Task, Target, Sample, Verdict, Rollout, Group. All frozen; one field, one meaning.

This file imports nothing of lineside. `to_json`/`from_json` round-trip exactly; files hold a target in this form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

AnswerKind = Literal["exact", "choice", "set", "number", "point"]
TargetKind = Literal[AnswerKind, "not"]
Provenance = Literal["record", "sim", "outcome", "teacher"]
SampleKind = Literal["caption", "qa", "prompt"]
Split = Literal["train", "dev", "heldout", "shifted"]
SPLITS: tuple[Split, ...] = get_args(Split)
SUITES = SPLITS[1:]  # what a model is judged on; never trained on
Role = Literal["frame", "view", "crop", "reference"]
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"  # around a trace
COLUMNS = "columns"  # key of `Meta.extra` with more columns by which results are broken down
TraceClass = Literal["valid", "empty", "truncated", "missing"]  # arXiv 2605.21127; trivial counts as empty
EngineName = Literal["local", "openvino", "vllm"]  # what decodes: our own steps, an OpenVINO export, or vLLM
Outcome = Literal["passed", "refused", "too little data"]  # of a gate
Weights = Literal["full", "int8"]  # as decoding reads them: in the number format of the computation, or quantised


@dataclass(frozen=True, slots=True)
class VllmAt:
    """Where vLLM is: the Python of its environment (None: it is not given), and the share of the device's memory that
    it takes, beside the model of this process."""

    python: Path | None = None
    memory: float = 0.3


NO_VLLM = VllmAt()


@dataclass(frozen=True, slots=True)
class Image:
    """One encoded picture (JPEG, PNG or WebP bytes) and its role in the sample.

    `variant` above 0 is an altered copy (model/augment.py); files hold the original picture, variant 0. A picture of
    role `view` shows the frame's scene once more: `name` says from where ("side"). One of role `reference` shows what a
    question is about, beside the frame: `name` is its SKU as the question calls it, and `text` what the master data say
    of it ("" for nothing).
    """

    bytes: bytes
    role: Role = "frame"
    path: str = ""
    variant: int = 0
    name: str = ""
    text: str = ""

    @property
    def label(self) -> str:
        """What stands before a view or reference: "side:", "small red can:", or "4711 (can of 330 ml):"; "" for a
        picture without a name."""
        if not self.name and self.role != "reference":
            return ""
        return f"{self.name} ({self.text}):" if self.text else f"{self.name}:"


@dataclass(frozen=True, slots=True)
class Mask:
    """Run-length mask: `runs` alternate off, on, off, ... over the row-major pixels of a `height` x `width` grid."""

    height: int
    width: int
    runs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Target:
    """What a right answer is, and where that is known from. Only the fields of its kind are set.

    exact: `accepted` spellings. choice: any one of `accepted` is right, `options` are all that were offered.
    set: `accepted` are the members (may be empty: the answer is then "none"), `options` the universe if there is one;
    `counted`: a multiset; a member appears as many times as it is counted.
    number: `value` asked at `resolution`, credit within `tolerance`, `unit` understood, `period` > 0 for angles.
    point: normalised `x`, `y` in [0, 1] (one point inside) and the `mask` that an exact answer must fall in.
    not: an outcome said that an answer is wrong; what is right is not known. `wrong`: for each such answer the target
    that it would fulfil. `doubt`: P(outcome says so | the answer is right) / P(outcome says so | it is wrong); 0 for an
    outcome that never errs.
    """

    kind: TargetKind
    provenance: Provenance
    accepted: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    value: float = 0.0
    resolution: float = 1.0
    tolerance: float = 1.0
    unit: str = ""
    period: float = 0.0
    x: float = 0.0
    y: float = 0.0
    mask: Mask | None = None
    counted: bool = False
    wrong: tuple[Target, ...] = ()
    doubt: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Only the fields that differ from their defaults, to keep files small."""
        plain = asdict(self) | {"wrong": [target.to_json() for target in self.wrong]}
        always = ("kind", "provenance")
        return {f.name: plain[f.name] for f in fields(self) if f.name in always or getattr(self, f.name) != f.default}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Target:
        """Raises TypeError on an unknown field or a field of the wrong type, KeyError without kind or provenance."""
        data = dict(data)
        for name in ("accepted", "options"):
            data[name] = _strings(data.get(name, ()), name)
        if not isinstance(data.get("counted", False), bool):
            raise TypeError(f"counted: expected true or false, got {data['counted']!r}"[:200])
        mask = data.pop("mask", None)
        if mask is not None:
            numbers = (mask["height"], mask["width"], *mask["runs"])
            if set(mask) != {"height", "width", "runs"} or any(type(n) is not int for n in numbers):
                raise TypeError("mask: expected whole numbers height, width and runs")
            data["mask"] = Mask(mask["height"], mask["width"], tuple(mask["runs"]))
        if not isinstance(wrong := data.get("wrong", ()), list | tuple) or any("wrong" in target for target in wrong):
            raise TypeError("wrong: expected a list of targets, none of which has its own")
        data["wrong"] = tuple(map(cls.from_json, wrong))
        return cls(kind=data.pop("kind"), provenance=data.pop("provenance"), **data)


def _strings(values: Any, name: str) -> tuple[str, ...]:
    if not isinstance(values, list | tuple) or not all(isinstance(v, str) for v in values):
        raise TypeError(f"{name}: expected a list of strings, got {values!r}"[:200])
    return tuple(values)


@dataclass(frozen=True, slots=True)
class Costs:
    """Costs of the outcomes of an answer, in one unit: see `stakes` of a task file. A right answer costs nothing."""

    wrong: float
    false_pass: float
    false_stop: float
    refusal: float

    @classmethod
    def of(
        cls,
        wrong: float = 1.0,
        *,
        false_pass: float | None = None,
        false_stop: float | None = None,
        refusal: float | None = None,
    ) -> Costs:
        """A mistake without a price costs as much as a wrong answer, a refusal a quarter of that."""
        return cls(
            wrong=wrong,
            false_pass=wrong if false_pass is None else false_pass,
            false_stop=wrong if false_stop is None else false_stop,
            refusal=wrong / 4 if refusal is None else refusal,
        )


@dataclass(frozen=True, slots=True)
class Meta:
    """Where and when a picture was taken, so that splits cannot leak. Empty strings where unknown."""

    scene: str = ""
    cell: str = ""
    camera: str = ""
    time: str = ""
    week: int = 0
    skus: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Region:
    """The part of a picture that is shown: `box` (left, top, right, bottom) of a picture of `size`, in pixels."""

    size: tuple[int, int]
    box: tuple[int, int, int, int]

    def within(self, x: float, y: float) -> tuple[float, float]:
        """A point of the whole picture within the region; both normalised, outside it below 0 or above 1."""
        left, top, right, bottom = self.box
        return (x * self.size[0] - left) / (right - left), (y * self.size[1] - top) / (bottom - top)

    def outside(self, x: float, y: float) -> tuple[float, float]:
        """A point within the region in the whole picture; both normalised."""
        left, top, right, bottom = self.box
        return (left + x * (right - left)) / self.size[0], (top + y * (bottom - top)) / self.size[1]

    @property
    def told(self) -> str:
        """For people: "640x480 of 1920x1080 pixels"."""
        left, top, right, bottom = self.box
        return f"{right - left}x{bottom - top} of {self.size[0]}x{self.size[1]} pixels"


@dataclass(frozen=True, slots=True)
class Frame:
    """A picture with its record: a scan, an order line, a simulator's ground truth.

    `image` shows `region` of the camera's picture (None: all of it), `tiles` are parts of that region, or the whole
    picture. `views` are further pictures of the scene, each with its name.
    """

    id: str
    image: Image
    family: str
    record: Mapping[str, Any]
    meta: Meta
    split: Split
    region: Region | None = None
    tiles: tuple[Image, ...] = ()
    views: tuple[Image, ...] = ()

    @property
    def images(self) -> tuple[Image, ...]:
        """All its pictures, in the order in which a model sees them."""
        return (self.image, *self.tiles, *self.views)

    def without_pictures(self) -> Frame:
        """The frame with the name of its picture alone: many of them are kept in memory."""
        return replace(self, image=Image(b"", path=self.image.path), tiles=(), views=())


@dataclass(frozen=True, slots=True)
class Source:
    """Who wrote the text of a sample: teacher ("sim", "table", a model name), hash of its prompt, date of the job."""

    teacher: str = ""
    prompt_hash: str = ""
    date: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """One line of training or judgement.

    caption: answer only; qa: question, trace or None, answer, target; prompt: question and target only. `images` are
    the pictures of the frame, which all its samples share, and then the references of this question.
    """

    id: str
    kind: SampleKind
    images: tuple[Image, ...]
    family: str
    task: str
    question: str
    trace: str | None
    answer: str | None
    target: Target | None
    split: Split
    meta: Meta
    source: Source

    @property
    def key(self) -> str:
        """`family/task`."""
        return f"{self.family}/{self.task}"

    @property
    def frame_images(self) -> tuple[Image, ...]:
        """The pictures of the frame: its picture, its region and tiles, its views."""
        return frame_images(self.images)

    @property
    def references(self) -> tuple[Image, ...]:
        """The reference pictures that stand beside the frame in this question."""
        return references(self.images)


def frame_images(images: Sequence[Image]) -> tuple[Image, ...]:
    """Those pictures that are not references."""
    return tuple(image for image in images if image.role != "reference")


def references(images: Sequence[Image]) -> tuple[Image, ...]:
    """Those pictures that are references."""
    return tuple(image for image in images if image.role == "reference")


@dataclass(frozen=True, slots=True)
class Thinking:
    """Whether a model is asked to think, by "family/task": yes if training gave that task traces.

    A task that is not listed thinks if any other task does, or if none is listed and the model `knows` how to.
    """

    tasks: Mapping[str, bool] = field(default_factory=dict)
    knows: bool = True

    def of(self, family: str, task: str) -> bool:
        """Whether to ask with thinking on."""
        return self.tasks.get(f"{family}/{task}", self.default)

    @property
    def default(self) -> bool:
        """Whether to think for a question of an unknown task."""
        return any(self.tasks.values()) if self.tasks else self.knows

    def over(self, other: Thinking) -> Thinking:
        """Entries of both; this one wins."""
        return Thinking({**other.tasks, **self.tasks}, self.knows)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Result of the verifier: partial credit in [0, 1] for training, exact for every accuracy, and the reason.

    `scored`: False if nobody knows whether the answer is right (a target of kind `not`); the reward is then 0 and
    means nothing.
    """

    reward: float
    exact: bool
    reason: str
    scored: bool = True


@dataclass(frozen=True, slots=True)
class Response:
    """Untrusted text split into trace and answer. `answer` is None when the response has none."""

    trace: str | None
    answer: str | None
    trace_class: TraceClass
    reason: str  # why the trace is not valid; "" when it is


@dataclass(frozen=True, slots=True)
class Judgement:
    """A response judged by its target. `reward` needs a valid trace with thinking on, `verdict` does not. `scored`:
    whether the reward is known; without a valid trace it is 0, whatever the answer."""

    response: Response
    verdict: Verdict
    reward: float
    scored: bool = True


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled response: token ids (eos included if it was reached) and the sampler's log-probability of each.

    `policy_version`: optimiser steps of the weights that it was sampled from. `cut`: a deadline ended its trace, or it
    was refused.
    """

    tokens: tuple[int, ...]
    sampler_logprobs: tuple[float, ...]
    text: str
    finished: bool
    policy_version: int = 0
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """G rollouts of one prompt, asked with `thinking` on or off, and what the judge says of each."""

    sample: Sample
    rollouts: tuple[Rollout, ...]
    judgements: tuple[Judgement, ...]
    thinking: bool = True
