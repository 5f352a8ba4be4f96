"""The evaluation object and its rows: what `evaluate` writes, and `compare` and `report` read.

An evaluation outlives its run, so it holds its seed, data hash, decoding, machine and code version beside the numbers.
Rates are shares from 0 to 1. The models below are the only definition; `json_schema()` is written to
`lineside/evaluation.schema.json` and `answer_schema()` to `lineside/answer.schema.json`, and a test checks that they
are equal.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
    model_validator,
)

from lineside.errors import LinesideError
from lineside.files import write_atomic
from lineside.types import Costs, EngineName, TraceClass, Weights

SCHEMA_VERSION = 2
STAGE_NAME = "[A-Za-z0-9][A-Za-z0-9_.]*"

Mode = Literal["think", "fast"]
MODES: tuple[Mode, ...] = ("think", "fast")
Rate = Annotated[float, Field(ge=0, le=1)]
Signed = Annotated[float, Field(ge=-1, le=1)]
Count = Annotated[int, Field(ge=0)]
NonNegative = Annotated[float, Field(ge=0)]
RateInterval = Annotated[tuple[Rate, Rate], Field(description="95% interval, bootstrapped by scene")]
Name = Annotated[str, Field(pattern=f"^{STAGE_NAME}$", max_length=64)]


class Strict(BaseModel):
    """Base of everything that is written to files: no unknown fields, only finite numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Paired(Strict):
    """A paired difference on the same questions."""

    difference: Signed
    interval: tuple[Signed, Signed]


class FalseFacts(Strict):
    """Traces that are valid in form and state something false: at least one clause is not among the known facts."""

    n: Count = Field(description="valid traces that state something, about pictures whose facts are known")
    rate: Rate
    interval: RateInterval


class TaskResult(Strict):
    """One task of one family."""

    family: str
    task: str
    n: Count
    thinking: bool | None = Field(default=None, description="asked with thinking on; null: not kept")
    exact: Rate
    interval: RateInterval
    yes_no: bool = Field(description="every target is yes or no")
    blind: Rate | None = Field(description="best baseline that never sees the picture; null: not fitted")
    classifier: Rate | None = Field(description="classifier head on the frozen features; null: not fitted")
    over_blind: Paired | None = Field(description="exact less blind, paired")
    budget_ms: NonNegative | None = Field(description="the task's time budget; null: it has none")
    within_budget: Rate | None = Field(description="share exact and in time 95 times in 100; null: not measured")
    latency_ms: NonNegative | None
    valid_trace_rate: Rate | None
    false_facts: FalseFacts | None = Field(default=None, description="of the valid traces; null: no facts are known")

    @property
    def below_blind(self) -> bool:
        """Whether a guess that sees no picture does better."""
        return self.blind is not None and self.exact < self.blind


class FamilyResult(Strict):
    """Macro mean over the tasks of one family."""

    n: Count
    exact: Rate
    interval: RateInterval
    blind: Rate | None
    classifier: Rate | None


class Share(Strict):
    """Exact answers among some questions."""

    n: Count
    scenes: Count
    exact: Rate


class ValueResult(Share):
    """The questions with one value of a column."""

    value: str
    interval: RateInterval
    expected: Rate = Field(description="mean over its questions of how often their tasks are exact in the whole suite")
    tasks: dict[str, Share] = Field(description="by family/task")

    @property
    def beyond(self) -> float:
        """Wrong answers more than expected; below 0: fewer."""
        return self.n * (self.expected - self.exact)


class Breakdown(Strict):
    """Exact match by the values of a column. Of many values the worst and the commonest are listed."""

    values: list[ValueResult] = Field(description="the most wrong answers beyond expectation first")
    other_values: Count = Field(description="values that are not listed")
    other_n: Count = Field(description="questions that have one of them")
    other_exact: Rate | None
    without: Count = Field(description="questions without a value in this column")


class CaptionMatching(Strict):
    """How often the true caption wins over the same with one attribute changed; chance is 0.5."""

    n: Count
    share: Rate
    interval: RateInterval
    attributes: dict[str, Rate] = Field(description="share by the attribute that was changed")


class PerThousand(Strict):
    """A number in a thousand questions at natural prevalence."""

    value: NonNegative
    interval: tuple[NonNegative, NonNegative] = Field(description="95% interval, bootstrapped by scene")


class Prevalence(Strict):
    """A task's questions at natural prevalence, as they arise on the floor, and the cost of mistakes."""

    n: Count
    scenes: Count
    exact: Rate
    interval: RateInterval
    weighted: bool = Field(description="false: the data carry no weights, so this is the prevalence as asked")
    normal: str | None = Field(description="the task's declared normal answer; null: it declares none")
    normal_share: Rate | None = Field(description="share of questions whose truth is the normal answer")
    false_passes: PerThousand | None = Field(description="the truth is not normal, the answer is; null: no normal")
    false_stops: PerThousand | None = Field(description="the truth is normal, the answer is not; null: no normal")
    stakes: Costs | None = Field(description="what mistakes cost; null: the data do not say")
    cost: PerThousand | None = Field(description="expected cost if every answer is acted on, in the stakes' unit")


class Bin(Strict):
    """Answers of similar confidence: their mean confidence, and the share that is right."""

    confidence: Rate = Field(description="mean")
    exact: Rate
    n: Count


SURE = 0.99  # wrong answers of so much confidence are counted


class SureWrong(Strict):
    """The wrong answers, and those with a confidence of 0.99 and more."""

    n: Count
    sure: Count = Field(description="calibrated")
    sure_uncalibrated: Count = Field(description="by the model's own probability")


class CalibrationError(Strict):
    """How far confidence differs from the share that is right, on this suite, before and after calibration on dev."""

    n: Count = Field(description="questions of calibrated tasks")
    ece: Rate = Field(description="expected calibration error in bins of a tenth (arXiv 1706.04599), calibrated")
    ece_uncalibrated: Rate = Field(description="the same of the model's own probability")
    bins: list[Bin]
    bins_uncalibrated: list[Bin]
    wrong: SureWrong | None = Field(default=None, description="null: not kept")


class Thresholds(Strict):
    """The calibrated confidence from which a cell acts."""

    normal: Rate = Field(description="on the normal answer; without one on any")
    other: Rate


class Decision(Strict):
    """Advice to the owner of the cells for a task. Rates are at natural prevalence, per thousand questions."""

    verdict: Literal["use", "use with refusal", "do not use"]
    because: str
    below_blind: bool
    calibrated: bool
    acts_from: Thresholds | None = Field(
        description="refusing is cheaper below it; null: not calibrated, or all is acted on"
    )
    scenes: Count
    scenes_needed: Count | None = Field(
        description="about so many in all would settle the verdict; null: it is settled"
    )
    scenes_for_two_points: Count = Field(description="about so many in all give the accuracy to two points")
    refused: PerThousand | None = Field(description="questions handed to a person; null: not calibrated")
    slips: PerThousand = Field(description="mistakes that are acted on, under the advised policy")
    false_passes: PerThousand | None
    false_stops: PerThousand | None
    cost: PerThousand = Field(description="of the advised policy")
    cost_acting: PerThousand = Field(description="if every answer is acted on")
    cost_person: NonNegative = Field(description="if a person is asked everything")


class Coverage(Strict):
    """Accuracy (macro-weighted) of the questions that are answered when those below a confidence are refused."""

    coverage: Rate
    accuracy: Rate
    threshold: Rate


class Route(Strict):
    """A task whose questions go to a person: too few answers are exact."""

    task: str = Field(description="family/task")
    new_skus: bool = Field(description="over the questions about SKUs that training never showed; else over all")
    n: Count
    scenes: Count
    exact: Rate
    interval: tuple[Rate, Rate]


class Latency(Strict):
    """Time of one question alone (batch 1, picture not cached): measured on a few, estimated for the rest."""

    base_ms: NonNegative = Field(description="encode, prefill and first token: median of the measured")
    per_token_ms: NonNegative = Field(description="each further token: median of the measured")
    measured: Count = Field(description="questions measured; other rows are base + per token x (tokens - 1)")
    p50_ms: NonNegative = Field(description="of the questions measured, on an idle machine (provenance names it)")
    p95_ms: NonNegative | None = Field(description="null: fewer than 40 measured")
    p99_ms: NonNegative | None = Field(description="null: fewer than 100 measured")


ENGINES = "local: our own decoding; openvino: the decoder of an OpenVINO export; vllm: vLLM"


class Judged(Strict):
    """What wrote the answers. The server may serve a checkpoint only by what was judged."""

    engine: EngineName = Field(description=ENGINES)
    weights: Weights = Field(description="full: in the number format of the computation; int8: quantised for decoding")
    dtype: str | None = Field(description="number format of the computation; null: not kept")
    thinking: bool


class Decoding(Strict):
    """How the answers were written."""

    temperature: NonNegative
    max_new_tokens: Count
    dtype: str | None = Field(
        default=None,
        description="number format of the computation: the checkpoint's own unless a flag says another; null: not kept",
    )
    engine: EngineName = Field(default="local", description=ENGINES)
    weights: Weights = Field(
        default="full", description="full: in the number format of the computation; int8: quantised for decoding"
    )
    deadlines: bool = Field(
        default=False, description="traces were cut as the server cuts them for the task's time budget"
    )


class Provenance(Strict):
    """Origin of the numbers."""

    date: str
    seed: int
    git: str | None = Field(description="commit of the code, + when it had changes; null outside a checkout")
    version: str
    machine: str
    data: str = Field(description="SHA-256 over id, question, target and picture of every question")
    scenes: Count
    left_out: Count = Field(description="questions left out because only a teacher vouches for their target")
    checkpoint: str | None = Field(default=None, description="fingerprint of the checkpoint's weights; null: not kept")


class Evaluation(Strict):
    """One suite (a split) answered by one stage in one mode."""

    schema_version: Literal[2] = SCHEMA_VERSION
    stage: Name
    split: Name
    mode: Mode
    simulated: bool
    n: Count
    exact: Rate = Field(description="macro mean over tasks of the share of exact answers")
    interval: RateInterval
    families: dict[str, FamilyResult]
    tasks: dict[str, TaskResult] = Field(description="by family/task")
    blind: Rate | None = Field(description="macro mean of the blind baseline on the same questions")
    classifier: Rate | None = Field(description="macro mean of the classifier heads on the same questions")
    over_blind: Paired | None
    valid_trace_rate: Rate | None = Field(
        description="of questions asked with thinking on; valid, empty, truncated, missing sum to 1; null without any"
    )
    empty: Rate | None
    truncated: Rate | None
    missing: Rate | None
    false_facts: FalseFacts | None = Field(default=None, description="of the valid traces; null: no facts are known")
    exact_given_valid: Rate | None = Field(description="micro mean over outputs with a valid trace; null without any")
    facts_true: Rate | None = Field(description="mean share of true facts among those the traces state")
    facts_all_true: Rate | None = Field(description="share of traces (that state any known fact) with none false")
    answer_tokens: NonNegative = Field(description="mean tokens of the answer, end token included, trace excluded")
    response_tokens: NonNegative = Field(description="mean tokens written, trace included")
    unfinished: Rate = Field(description="share of responses cut off at max_new_tokens")
    latency_ms: NonNegative | None = Field(description="median time of a question alone; null: not measured")
    latency: Latency | None
    latency_note: str = Field(default="", description="why latency was not measured")
    within_budget: Rate | None = Field(
        description="macro mean of the share exact and in the task's time 95 times in 100; null: not measured"
    )
    caption_matching: CaptionMatching | None
    prevalence: dict[str, Prevalence]
    decisions: dict[str, Decision] = Field(default={}, description="by family/task; only tasks whose stakes are known")
    routes: list[Route] = Field(default=[], description="tasks that are routed to a person: exact below `route_below`")
    route_below: Rate | None = Field(default=None, description="null: not kept")
    calibration: CalibrationError | None = Field(default=None, description="null: no task is calibrated")
    calibration_notes: dict[str, str] = Field(default={}, description="by family/task: why it is not calibrated")
    by: dict[str, Breakdown] = Field(default={}, description="exact match by the values of columns, by column")
    risk_coverage: list[Coverage]
    mean_risk: Rate = Field(description="error rate averaged over all coverages")
    decoding: Decoding
    provenance: Provenance

    @model_validator(mode="before")
    @classmethod
    def _from_version_1(cls, data: Any) -> Any:
        """Version 1 counted false alarms against the commonest answer and timed on machines that could be busy: both
        are dropped, the rest is unchanged."""
        if not isinstance(data, dict) or data.get("schema_version") != 1:
            return data
        untimed = {"latency_ms": None, "within_budget": None}
        tasks = data.get("tasks")
        if isinstance(tasks, dict):
            data = {**data, "tasks": {k: {**t, **untimed} if isinstance(t, dict) else t for k, t in tasks.items()}}
        note = "not measured: nobody looked whether the machine was idle"
        new = {"schema_version": SCHEMA_VERSION, "prevalence": {}, "latency": None, "latency_note": note}
        return {**data, **untimed, **new}

    @property
    def judged(self) -> Judged:
        """What wrote its answers."""
        how = self.decoding
        return Judged(engine=how.engine, weights=how.weights, dtype=how.dtype, thinking=self.mode == "think")

    @property
    def is_plain(self) -> bool:
        """Whether the model's own decoding with full weights answered, as in training."""
        return (self.decoding.engine, self.decoding.weights) == ("local", "full")

    @property
    def name(self) -> str:
        """The name of its files: `<stage>-<split>-<mode>`, and `-<engine>-<weights>` behind it unless it is plain."""
        by = "" if self.is_plain else f"-{self.decoding.engine}-{self.decoding.weights}"
        return f"{self.stage}-{self.split}-{self.mode}{by}"


class Counted(Strict):
    """A member of a list where things are counted."""

    name: str
    count: Annotated[int, Field(ge=1)]


class TypedAnswer(Strict):
    """One answer as a machine reads it: from `ask --json`, and in the rows of an evaluation."""

    value: (
        StrictBool | StrictInt | StrictFloat | StrictStr | tuple[Rate, Rate] | list[StrictStr] | list[Counted]
    ) | None = Field(
        description="yes/no: a boolean; number: in `unit`; choice, text: a string; list: strings; counts: names with "
        "counts; point: [x, y] from the top left, in `unit`; null: there is no answer of this kind"
    )
    unit: str | None = Field(description="of a number, as the task file states it; of a point: 'of width and height'")
    confidence: Rate | None = Field(description="calibrated probability that the answer is right; null: not calibrated")
    decision: Literal["act", "refuse"] = Field(
        description="act only if the answer is of its kind, and its calibrated confidence reaches the threshold that "
        "the task's stakes give; refuse in every other case, so also if it is not calibrated"
    )
    trace: str | None = Field(description="the reasoning before the answer; null: thinking was off, or there is none")
    ms: NonNegative | None = Field(description="milliseconds for this answer; null: not measured")
    kind: Literal["yes/no", "number", "choice", "text", "list", "counts", "point"]
    task: str | None = Field(description="family/task; null: not known, and the answer is text")
    text: str | None = Field(description="the answer as the model wrote it")
    because: str = Field(description="the reason of the decision")


class Row(Strict):
    """One question of a suite: the question, the response and the verdict."""

    id: str
    scene: str
    family: str
    task: str
    question: str
    target: dict[str, Any]
    reference: str = Field(description="a right answer as text, for people to read")
    images: list[str] = Field(description="key of each picture (lineside.images.image_key of its bytes)")
    reference_pictures: dict[str, Annotated[int, Field(ge=1)]] = Field(
        default={}, description="reference pictures beside the frame, by the SKU that they show"
    )
    thinking: bool | None = Field(default=None, description="asked with thinking on; null: not kept")
    text: str
    trace: str | None
    answer: str | None
    exact: bool
    reward: Rate
    reason: str
    trace_class: TraceClass
    trace_problem: str
    facts: Rate | None = Field(description="share of true facts among those the trace states; null: states none known")
    tokens: Count
    answer_tokens: Count
    finished: bool
    cut: bool = Field(default=False, description="a deadline ended the trace, or the server refuses the question")
    confidence: Rate = Field(description="probability the model gave to its answer's tokens, end token included")
    calibrated: Rate | None = Field(default=None, description="confidence calibrated on dev; null: not calibrated")
    decision: Literal["act", "refuse"] | None = Field(default=None, description="by stakes and calibrated confidence")
    latency_ms: NonNegative | None = Field(description="estimated from the measured ones")
    budget_ms: NonNegative | None
    within_budget: bool | None = Field(description="exact and in time 95 times in 100; null: time was not measured")
    normal: str | None = Field(default=None, description="the task's normal answer; null: it declares none")
    stakes: Costs | None = Field(default=None, description="what mistakes cost; null: the data do not say")
    typed: TypedAnswer | None = Field(default=None, description="the answer by answer.schema.json; null: not kept")
    columns: dict[str, list[str]] = Field(
        default={}, description="cell, camera, SKU ... of the frame: the values of each column that it carries"
    )
    weight: NonNegative | None = Field(description="questions on the floor that this one stands for; null: unknown")
    blind: str | None
    blind_exact: bool | None
    classifier: str | None
    classifier_exact: bool | None

    @property
    def key(self) -> str:
        """`family/task`."""
        return f"{self.family}/{self.task}"


def by_task(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows by family/task, in alphabetical order."""
    groups: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.key].append(row)
    return dict(sorted(groups.items()))


def natural_weights(rows: Sequence[Row]) -> tuple[list[float], bool]:
    """How many natural questions each row represents, and whether the data say so; else each represents itself."""
    weighted = all(row.weight is not None for row in rows) and any(row.weight for row in rows)
    return ([row.weight or 0.0 for row in rows] if weighted else [1.0] * len(rows)), weighted


def json_schema() -> dict[str, Any]:
    """The published JSON schema (draft 2020-12) of an evaluation."""
    return _published(Evaluation)


def answer_schema() -> dict[str, Any]:
    """The published JSON schema (draft 2020-12) of a typed answer."""
    return _published(TypedAnswer)


def _published(model: type[BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def write_evaluation(folder: Path, evaluation: Evaluation, rows: Iterable[Row]) -> Path:
    """Writes `<name>.rows.jsonl`, then `<name>.json`, each atomically: the object never exists without its rows."""
    write_atomic(folder / f"{evaluation.name}.rows.jsonl", "".join(row.model_dump_json() + "\n" for row in rows))
    path = folder / f"{evaluation.name}.json"
    write_atomic(path, json.dumps(evaluation.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n")
    return path


def read_evaluation(path: Path) -> Evaluation:
    """Reads one evaluation. Raises LinesideError naming the file and the first wrong field."""
    try:
        return Evaluation.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise LinesideError(f"{path}: no such file; expected an evaluation written by `lineside evaluate`") from None
    except IsADirectoryError:
        files = sorted(str(file) for file in [*path.glob("*.json"), *path.glob("evaluation/*.json")])
        named = f"; it holds {', '.join(files[:4])}{' ...' if len(files) > 4 else ''}" if files else ""
        raise LinesideError(f"{path}: a folder; expected an evaluation, a file in its evaluation/{named}") from None
    except OSError as error:
        raise LinesideError(f"{path}: cannot be read ({error.strerror})") from error
    except ValidationError as error:
        rows = "these are its rows: give the .json beside them"
        rows = f"; {rows if path.name.endswith('.rows.jsonl') else '`lineside evaluate` writes it anew'}"
        raise LinesideError(f"{path}: not an evaluation of this version: {_first(error)}{rows}") from None


def rows_path(path: Path) -> Path:
    """Path of the rows beside an evaluation."""
    return path.with_name(path.name.removesuffix(".json") + ".rows.jsonl")


def read_rows(path: Path) -> Iterator[Row]:
    """Streams rows. Raises LinesideError naming file, line and field."""
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    yield Row.model_validate_json(line)
                except ValidationError as error:
                    raise LinesideError(f"{path}, line {number}: not a row of an evaluation: {_first(error)}") from None
    except FileNotFoundError:
        raise LinesideError(f"{path}: no such file; it is written beside the evaluation and holds its rows") from None
    except OSError as error:
        raise LinesideError(f"{path}: cannot be read ({error.strerror})") from error


def _first(error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, problem['loc'])) or 'the whole'}: {problem['msg']}"
