"""The API teacher: the requests about a frame, and the replies that are used.

A conversation about one frame is a generator of requests; its result is what was accepted. Acceptance uses the rules of
`verify/`: a trace must be valid and must not contradict the record; an answer without a record must be the same in
`agree` of `samples` samples. What is not used is listed with the reason.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from lineside.data.dispatch import Conversation, Question, Reply
from lineside.data.endpoint import Request
from lineside.data.plan import FrameQuestion
from lineside.data.prompts import PromptFile
from lineside.data.replies import (
    Answered,
    AnswersReply,
    BadReply,
    CaptionsReply,
    PromptsReply,
    QuestionsReply,
    TracesReply,
    caption_problem,
    holds_markup,
    question_problem,
    read_reply,
    schema_of,
)
from lineside.data.taskfile import Answer, Task
from lineside.data.tasks import Candidate, parse_teacher_answer
from lineside.data.template import value_text
from lineside.images import image_key
from lineside.recipe import Label
from lineside.strict import Strict
from lineside.types import Frame, Target
from lineside.verify.records import record_problem
from lineside.verify.text import strip
from lineside.verify.traces import trace_options, trace_problem
from lineside.verify.verifiers import verify

T = TypeVar("T")

OWN_TASK = "own"  # name of the task for questions that the teacher makes up
COUNT_TOLERANCE = 2.0  # as for every count (DESIGN 3)
MOST_VALUES = 200  # different texts of a column; with more it holds names, not classes
MOST_RECORD = 2000  # characters of a record in a prompt
DISAGREES = "the teacher does not agree with itself"


@dataclass(frozen=True, slots=True)
class Posed:
    """A question of a task file without a recorded answer."""

    id: str
    task: Task
    question: str
    key: str


@dataclass(frozen=True, slots=True)
class Wants:
    """What a job asks about a frame. `own`: number of questions that the teacher makes up, for `stage` 2 or 3."""

    captions: int = 0
    asked: tuple[FrameQuestion, ...] = ()  # the record gives the answers: traces are wanted
    posed: tuple[Posed, ...] = ()
    own: int = 0
    stage: Literal[2, 3] = 2


@dataclass(frozen=True, slots=True)
class Dropped:
    """A part of a reply that is not used."""

    what: Literal["caption", "trace", "question", "answer", "reply"]
    text: str
    reason: str


@dataclass(frozen=True, slots=True)
class Agreement:
    """How many samples of an answer are the same for the verifier."""

    samples: int
    agree: int


@dataclass
class Heard:
    """Result of a conversation. `failed`: why the endpoint gave no answer; the frame then has no samples."""

    captions: list[str] = field(default_factory=list)
    traces: dict[str, str] = field(default_factory=dict)  # by question
    asked: list[FrameQuestion] = field(default_factory=list)  # the teacher alone vouches for these
    agreement: dict[str, Agreement] = field(default_factory=dict)  # ... by question
    dropped: list[Dropped] = field(default_factory=list)
    failed: str = ""

    @property
    def unusable(self) -> str:
        """Why a reply could not be read, "" if all could be read."""
        return next((dropped.reason for dropped in self.dropped if dropped.what == "reply"), "")

    def drop(self, what: Literal["caption", "trace", "question", "answer", "reply"], text: str, reason: str) -> None:
        """Record a part that is not used."""
        self.dropped.append(Dropped(what, text, reason))

    def take(self, name: str, reply: Reply[T]) -> T | None:
        """The value of a reply; if there is none, the reason is recorded."""
        if reply.status == "failed":
            self.failed = self.failed or reply.reason
        elif reply.status == "unusable":
            self.drop("reply", "", f"{name}: {reply.reason}")
        return reply.value


class ApiTeacher:
    """Asks about frames. `meet` must be called for every frame before the first conversation, to collect all values."""

    def __init__(self, settings: Label, prompts: Mapping[str, PromptFile]) -> None:
        self.settings, self.prompts = settings, prompts
        self._values: dict[str, set[str]] = {}  # of columns with at most MOST_VALUES
        self._names: set[str] = set()  # columns with more than MOST_VALUES values

    def meet(self, frame: Frame) -> None:
        """Collect the values of the record's columns, to recognise a false value later."""
        for name, value in frame.record.items():
            if isinstance(value, str) and name not in self._names:
                values = self._values.setdefault(name, set())
                values.add(value)
                if len(values) > MOST_VALUES:
                    self._names.add(name)
                    del self._values[name]

    def converse(self, frame: Frame, wants: Wants) -> Conversation[Heard]:
        """One frame: captions, traces, questions without a record; then answers to the teacher's own questions."""
        heard, samples = Heard(), self.settings.samples
        picture = image_key(frame.image.bytes)
        known = {"record": record_text(frame.record), "family": frame.family}

        def ask(name: str, model: type[Strict], read: Callable[[str], T], sample: int = 0, **slots: object):
            text = self.prompts[name].fill(**known, **slots)
            key = _key(self.settings, text, model, picture, sample)
            return Question(Request(key, text, frame.image, schema_of(model)), read)

        first: dict[str, Question[Any]] = {}
        if wants.captions:
            first["captions"] = ask("captions", CaptionsReply, _captions, count=wants.captions)
        if wants.asked:
            listed = numbered([_with_answer(asked.candidate) for asked in wants.asked])
            first["traces"] = ask(
                "traces", TracesReply, _by_id(TracesReply, _traces, len(wants.asked)), questions=listed
            )
        answers = _by_id(AnswersReply, _answers, len(wants.posed))
        for sample in range(samples if wants.posed else 0):
            listed = numbered([_with_options(posed.question, posed.task.answer) for posed in wants.posed])
            first[f"answers {sample}"] = ask("answers", AnswersReply, answers, sample, questions=listed)
        if wants.own:
            name, model = ("questions", QuestionsReply) if wants.stage == 2 else ("prompts", PromptsReply)
            first["own"] = ask(name, model, _questions(model), count=wants.own)
        if not first:
            return heard
        said = dict(zip(first, (yield list(first.values()))))

        if "captions" in said:
            self._hear_captions(heard, frame, heard.take("captions", said["captions"]) or (), wants.captions)
        if "traces" in said:
            traces = heard.take("traces", said["traces"]) or {}
            for number, asked in enumerate(wants.asked, 1):
                self._hear_trace(heard, frame, asked, traces.get(number))
        given = [heard.take("answers", reply) or {} for name, reply in said.items() if name.startswith("answers")]
        if given:
            self._hear_posed(heard, frame, wants.posed, given)
        if "own" in said and (own := self._own(heard, frame, heard.take("questions", said["own"]) or (), wants.own)):
            again: list[Mapping[int, Answered]] = []
            if samples > 1:
                listed = numbered([_with_options(asked.candidate.question, asked.task.answer) for asked, _ in own])
                answers = _by_id(AnswersReply, _answers, len(own))
                questions = [ask("answers", AnswersReply, answers, n, questions=listed) for n in range(1, samples)]
                again = [heard.take("answers", reply) or {} for reply in (yield questions)]
            for number, (asked, trace) in enumerate(own, 1):
                texts = [asked.candidate.answer, *(a[number].answer for a in again if number in a)]
                if self._agreed(heard, asked, texts):
                    self._hear_trace(heard, frame, asked, trace)
        return heard

    def audit(self, frame: Frame, asked: Sequence[FrameQuestion]) -> Conversation[dict[str, str] | None]:
        """What the teacher answers, by question, where the record knows the answers and the teacher is not told them.

        None if the endpoint gave no readable reply.
        """
        prompt, listed = self.prompts["answers"], [_with_form(a.candidate.question, a.candidate.target) for a in asked]
        text = prompt.fill(record="", family=frame.family, questions=numbered(listed))
        key = _key(self.settings, text, AnswersReply, image_key(frame.image.bytes), 0)
        request = Request(key, text, frame.image, schema_of(AnswersReply))
        (reply,) = yield [Question(request, _by_id(AnswersReply, _answers, len(asked)))]
        if reply.value is None:
            return None
        return {a.id: strip(reply.value[number].answer) for number, a in enumerate(asked, 1) if number in reply.value}

    def _hear_captions(self, heard: Heard, frame: Frame, said: Sequence[str], most: int) -> None:
        for caption in map(strip, said):
            problem = caption_problem(caption, heard.captions) or record_problem(caption, frame.record, self._values)
            if problem or len(heard.captions) == most:
                heard.drop("caption", caption, problem or "more than requested")
            else:
                heard.captions.append(caption)

    def _hear_trace(self, heard: Heard, frame: Frame, asked: FrameQuestion, said: str | None) -> None:
        candidate, trace = asked.candidate, strip(said or "")
        if said is None:
            heard.drop("trace", candidate.question, "not given")
            return
        options = trace_options(candidate.target)
        problem = trace_problem(trace, question=candidate.question, answer=candidate.answer, options=options)
        problem = problem or ("holds markup" if holds_markup(trace) else "")
        problem = problem or record_problem(trace, {**frame.record, **candidate.element}, self._values)
        if problem:
            heard.drop("trace", trace, problem)
        else:
            heard.traces[asked.id] = trace

    def _hear_posed(
        self, heard: Heard, frame: Frame, posed: Sequence[Posed], samples: Sequence[Mapping[int, Answered]]
    ) -> None:
        """Questions of the task file: the first sample's answer, if enough other samples are the same."""
        for number, question in enumerate(posed, 1):
            given = [sample[number] for sample in samples if number in sample]
            found = parse_teacher_answer(question.task.answer, given[0].answer) if given else None
            if found is None:
                heard.drop("answer", question.question, "not an answer of its kind" if given else "not given")
                continue
            asked = FrameQuestion(question.id, question.task, Candidate(question.question, *found, {}, question.key))
            if self._agreed(heard, asked, [answer.answer for answer in given]):
                self._hear_trace(heard, frame, asked, given[0].trace)

    def _own(
        self, heard: Heard, frame: Frame, said: Sequence[Any], most: int
    ) -> list[tuple[FrameQuestion, str | None]]:
        """The teacher's own questions that can be checked, each with its trace (stage 2) or None (stage 3)."""
        own: list[tuple[FrameQuestion, str | None]] = []
        for number, item in enumerate(said):
            question = strip(item.question)
            problem = question_problem(question, [asked.candidate.question for asked, _ in own])
            answer = Answer.model_construct(
                **{name: f.get_default(call_default_factory=True) for name, f in Answer.model_fields.items()}
                | {"kind": item.kind, "options": item.options, "unit": strip(item.unit), "tolerance": COUNT_TOLERANCE}
            )
            if not problem and item.kind == "choice" and len(set(item.options)) < 2:
                problem = "a choice of fewer than two"
            found = None if problem else parse_teacher_answer(answer, item.answer)
            if found is None or len(own) == most:
                heard.drop("question", question, problem or ("more than requested" if found else "cannot be checked"))
                continue
            task = Task.model_construct(
                **{name: f.get_default(call_default_factory=True) for name, f in Task.model_fields.items()}
                | {"family": frame.family, "name": OWN_TASK, "phrasings": (question,), "answer": answer}
            )
            candidate = Candidate(question, *found, {}, str(number))
            own.append(
                (FrameQuestion(f"{frame.id}/{OWN_TASK}/{number}", task, candidate), getattr(item, "trace", None))
            )
        return own

    def _agreed(self, heard: Heard, asked: FrameQuestion, texts: Sequence[str]) -> bool:
        """Whether enough of the answers are right by the target of the first. The number is noted in any case."""
        agree = sum(verify(strip(text), asked.candidate.target).exact for text in texts)
        if agree < self.settings.agreeing:
            heard.drop("question", asked.candidate.question, DISAGREES)
            return False
        heard.asked.append(asked)
        heard.agreement[asked.id] = Agreement(self.settings.samples, agree)
        return True


def record_text(record: Mapping[str, Any]) -> str:
    """The text of a record in a prompt: its plain columns, one a line; "" if it has none."""
    lines: list[str] = []
    for name, value in record.items():
        plain = isinstance(value, str | bool | int | float)
        if isinstance(value, list | tuple):
            plain = all(isinstance(item, str | int | float) for item in value)
        if plain and (text := value_text(value)) is not None and len(text) <= MOST_RECORD // 8:
            lines.append(f"- {name}: {' '.join(text.split())}")
    text = "\n".join(lines)[:MOST_RECORD].rstrip()
    return f"\nWhat is known of it:\n{text}\n" if text else ""


def numbered(lines: Sequence[str]) -> str:
    """Lines with their numbers, from 1."""
    return "\n".join(f"{number}. {line}" for number, line in enumerate(lines, 1))


def _with_answer(candidate: Candidate) -> str:
    return f"{candidate.question} Answer: {candidate.answer}"


def _with_options(question: str, answer: Answer) -> str:
    if answer.counted:
        kinds = f"of these: {', '.join(answer.options)}; " if answer.options else ""
        return f'{question} ({kinds}how many of each, separated by commas, such as "2 cartons, can"; or "none")'
    if answer.options:
        return f"{question} (one of: {', '.join(answer.options)})"
    unit = f" in {answer.unit}" if answer.unit else ""
    forms = {"number": f"a number{unit}", "set": 'members separated by commas, or "none"'}
    return f"{question} ({forms[answer.kind]})" if answer.kind in forms else question


def _with_form(question: str, target: Target) -> str:
    """A question with the expected form of its answer."""
    options = ", ".join(target.options)
    unit = f" in {target.unit}" if target.unit else ""
    step = f", to the nearest {target.resolution:g}" if target.resolution != 1.0 else ""
    forms = {
        "choice": f"one of: {options}",
        "exact": f"one of: {options}" if options else "a name",
        "number": f"a number{unit}{step}",
        "set": f'{f"of {options}: " if options else ""}members separated by commas, or "none"',
        "point": 'a point "x, y", each from 0 to 1 of the picture, from its top left',
    }
    return f"{question} ({forms[target.kind]})"


def _key(settings: Label, text: str, model: type[Strict], picture: str, sample: int) -> str:
    """Hash of everything that decides a reply. The endpoint's address is not part of it: a model may move."""
    sent = [settings.model, settings.structured, settings.max_tokens, dict(settings.body)]
    decides = [*sent, model.__name__, picture, sample]
    return hashlib.blake2b(json.dumps([*decides, text], sort_keys=True).encode(), digest_size=16).hexdigest()


def _captions(text: str) -> tuple[str, ...]:
    return read_reply(CaptionsReply, text).captions


def _questions(model: type[QuestionsReply] | type[PromptsReply]) -> Callable[[str], Sequence[Any]]:
    return lambda text: read_reply(model, text).questions


def _traces(reply: TracesReply) -> list[tuple[int, str]]:
    return [(entry.id, entry.trace) for entry in reply.traces]


def _answers(reply: AnswersReply) -> list[tuple[int, Answered]]:
    return [(entry.id, entry) for entry in reply.answers]


R = TypeVar("R", bound=Strict)


def _by_id(model: type[R], entries: Callable[[R], list[tuple[int, T]]], most: int) -> Callable[[str], dict[int, T]]:
    """A reader of entries numbered 1 to `most`, none twice; some may be missing."""

    def read(text: str) -> dict[int, T]:
        listed = entries(read_reply(model, text))
        found = dict(listed)
        if len(found) != len(listed) or not all(1 <= number <= most for number in found):
            raise BadReply("not as asked: an id stands twice or was not asked")
        return found

    return read
