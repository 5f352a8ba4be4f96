"""The passes of a labelling job over its frames: plan the questions, write the samples. The verb is `label`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lineside.data import store
from lineside.data.api_teacher import OWN_TASK, ApiTeacher, Heard, Posed, Wants
from lineside.data.dispatch import replay
from lineside.data.duplicates import near_duplicates
from lineside.data.job import CONTROL, DROPPED, EXAMPLES, FAILED, PICTURES, REJECTED, Account, Lines, kind_of
from lineside.data.ledger import Ledger
from lineside.data.plan import AuditPlan, Balance, FrameQuestion, question_id, questions, thinned, uses_of
from lineside.data.splits import SuitePictures
from lineside.data.table import Rejected
from lineside.data.taskfile import Task, TaskFile
from lineside.data.tasks import Survey, survey, unanswered
from lineside.data.teacher import Teacher
from lineside.errors import LinesideError
from lineside.images import image_key, keep_pictures, undecodable
from lineside.progress import track
from lineside.recipe import Label
from lineside.types import SUITES, Frame, Sample, SampleKind, Source

SUITE_CAPTIONS = 1  # a frame of a suite, for caption matching
OVER_SHARE = "over the answer's share"
OVER_FRAME = "over the questions per frame"
OVER_CAPTIONS = "more questions than captions"
UNTRUSTED = "only the teacher would vouch for it"


class Labelling:
    """One labelling job: a pass that plans, one that asks an API if there is one, a pass that writes samples."""

    def __init__(
        self,
        teacher: Teacher,
        file: TaskFile,
        settings: Label,
        source: Source,
        api_teacher: ApiTeacher | None,
        *,
        seed: int,
        audit: int | None = 0,
    ) -> None:
        """`settings`: with every None decided (`job.settle`). `audit`: number of training frames; None: all."""
        self.teacher, self.file, self.settings, self.source, self.seed = teacher, file, settings, source, seed
        self.api_teacher = api_teacher
        self.account = Account()
        self.to_ask = 0  # frames that the API teacher is asked about
        self._balance = Balance(seed)
        most = settings.questions_per_frame if api_teacher is not None else None  # what one request can ask
        self.audited = AuditPlan(audit, most, seed)
        self._bad = bytearray()  # of each input, 1 if it is rejected
        self._twins: dict[str, Sample] = {}  # stage-2 twins of the current frame's prompts
        self._flaws = settings.flaws.model_dump()
        self._suites = SuitePictures()
        self._shown: Counter[str] = Counter()  # small pictures kept, by the file that lists their frames

    def plan(self, out: Path, *, alone: bool = True) -> None:
        """Read every input once: reject broken ones and duplicates, count the questions of the others.

        `alone`: False for one rank of several, which does not write the files of the folder. Raises LinesideError when
        no input is left to label.
        """
        repeats = near_duplicates(self._all("learn cameras"), self._all("compare")) if self.settings.thin else {}
        drop = self.settings.drop_leaks
        for item in self._all("learn the suites") if drop else ():
            self._suites.meet(item)
        first = ""  # first rejection
        with Lines(out, REJECTED) if alone else nullcontext() as rejected:
            for position, item in enumerate(self._all("plan")):
                self.account.frames["read"] += 1
                refusal = item if isinstance(item, Rejected) else repeats.get(position) or _undecodable(item)
                refusal = refusal or (self._leak(item) if drop and isinstance(item, Frame) else None)
                self._suites.meet(item)
                self._bad.append(refusal is not None)
                if refusal is not None:
                    seen = self._picture(item, REJECTED, out) if rejected and position in repeats else {}
                    self._reject(refusal.name, refusal.reason, rejected, **seen)
                    first = first or f"{refusal.name}: {refusal.reason}"
                elif isinstance(item, Frame):
                    self._meet(item)
        if self.account.frames["rejected"] == self.account.frames["read"]:
            read, reasons = self.account.frames["read"], self.account.rejected.most_common(3)
            raise LinesideError(
                f"none of the {read} inputs can be labelled: {'; '.join(f'{count} {why}' for why, count in reasons)}. "
                f"{out / REJECTED} lists them; the first is {first}"
            )
        self.teacher.check_references(self._suites)
        self.account.unbalanced = self._balance.settle(self.file.tasks)
        self.audited.settle(self.file.tasks)

    def _all(self, what: str) -> Iterator[Frame | Rejected]:
        return track(self.teacher.frames(), total=self.teacher.total, unit="frames", label=f"label: {what}")

    def _meet(self, frame: Frame) -> None:
        if self.api_teacher is not None:
            self.api_teacher.meet(frame)
            self.to_ask += frame.split == "train"
        uses, asked = self._uses(frame), self._asked(frame, Counter())
        self.account.uses.update([frame.split, *(use for use in uses if use not in SUITES)])
        self.account.uses["both"] += len(uses) == 2
        for use in uses:
            for one in self._as_labelled(frame, use, asked, Counter()):
                self._balance.count(use, one)
        for one in asked if uses else ():
            self.teacher.references(frame, one.task, one.candidate)
        self.audited.meet(frame, asked)

    def _leak(self, frame: Frame) -> Rejected | None:
        """The rejection of a training frame whose picture is also in a suite; else None."""
        for image in frame.images if frame.split == "train" else ():
            if other := self._suites.of(image):
                which = f", the view {image.name}," if image.role == "view" else ""
                return Rejected(frame.id, f"leak: the same picture{which} as {other[0]} of {other[1]}")
        return None

    def good_frames(self) -> Iterator[tuple[int, Frame]]:
        """(position, frame) of every input that was not rejected."""
        for position, frame in enumerate(self.teacher.frames()):
            if not self._bad[position] and isinstance(frame, Frame):
                yield position, frame

    def wants(self, frame: Frame) -> Wants:
        """What the API teacher is asked about a frame; of a suite's frame nothing."""
        if self.api_teacher is None or frame.split != "train":
            return Wants()
        uses, captions = self._uses(frame), self.settings.captions_per_frame or 0
        if not uses:
            return Wants(captions)
        found = self._asked(frame, Counter())
        chosen = [a for use in uses for a, _ in self._chosen(use, found, Counter())]
        asked = {a.id: a for a in chosen if a.task.thinking is not False}  # their traces are requested
        if uses == ("prompt",) and not self.settings.trust_teacher:
            return Wants(captions, tuple(asked.values()))
        stage = 2 if "qa" in uses else 3
        return Wants(captions, tuple(asked.values()), self._posed(frame), self.settings.own_questions, stage)

    def write(self, out: Path, ledger: Ledger | None = None) -> None:
        """Write the samples of every frame, those of one frame together, and the lists of what was left out.

        `ledger`: what the API teacher said. Errors as `store.write_samples`.
        """
        total = self.account.frames["read"] - self.account.frames["rejected"]
        frames = track(self.good_frames(), total=total, unit="frames", label="label: write")
        with (
            store.SampleWriter(out) as samples,
            store.SampleWriter(out / CONTROL) as control,
            Lines(out, REJECTED, "a") as rejected,
            Lines(out, FAILED) as failed,
            Lines(out, DROPPED) as dropped,
        ):
            for _, frame in frames:
                if leak := self._leak(frame):
                    self.account.leaks.append(f"{frame.id} of train is {leak.reason.removeprefix('leak: ')}")
                heard = self._heard(frame, ledger)
                seen = self._picture(frame, DROPPED, out) if heard.dropped else {}
                for said in heard.dropped:
                    self.account.unused[f"{said.what}: {said.reason}"] += 1
                    dropped.add(frame=frame.id, what=said.what, text=said.text, reason=said.reason, **seen)
                if heard.failed:
                    self.account.frames["failed"] += 1
                    failed.add(name=frame.id, error=heard.failed)
                    continue
                captions = self._captions(frame, heard)
                given = captions + self._questions(frame, len(captions), heard)
                if not given and heard.unusable:
                    seen = self._picture(frame, REJECTED, out)
                    self._reject(frame.id, f"the teacher's reply: {heard.unusable}", rejected, **seen)
                    continue
                self.account.frames["labelled" if given else "silent"] += 1
                for sample in given:
                    samples.add(sample)
                    self.account.add(sample)
                    if sample.kind == "prompt" and sample.id in self._twins:
                        control.add(self._twins[sample.id])

    def to_audit(self) -> Iterator[tuple[int, Frame, list[FrameQuestion]]]:
        """(position, frame, questions with recorded answers) of every frame in the audit."""
        for position, frame in self.good_frames():
            if self.audited.takes(frame) and (asked := self.audited.chosen(self._asked(frame, Counter()))):
                yield position, frame, asked

    def _reject(self, name: str, reason: str, rejected: Lines | None, **seen: str) -> None:
        self.account.frames["rejected"] += 1
        self.account.rejected[kind_of(reason)] += 1
        if rejected is not None:
            rejected.add(name=name, reason=reason, **seen)

    def _picture(self, item: Frame | Rejected, file: str, out: Path) -> dict[str, str]:
        """Save a small picture of one of the first frames that `file` lists, for the data card; returns its name."""
        if not isinstance(item, Frame) or self._shown[file] == EXAMPLES:
            return {}
        self._shown[file] += 1
        keep_pictures(out / PICTURES, [item.image])
        return {"picture": image_key(item.image.bytes)}

    def _heard(self, frame: Frame, ledger: Ledger | None) -> Heard:
        """What the API teacher said about a frame, by the ledger."""
        wants = self.wants(frame)
        if self.api_teacher is None or ledger is None or wants == Wants():
            return Heard()
        conversation = self.api_teacher.converse(frame, wants)
        return replay(conversation, ledger, self.settings.attempts, self.account.usage)

    def _posed(self, frame: Frame) -> tuple[Posed, ...]:
        """The questions of the task file without a recorded answer."""
        return tuple(
            Posed(question_id(frame, task, key), task, question, key)
            for task in self.file.tasks
            for key, question in unanswered(task, frame)
        )

    def _uses(self, frame: Frame) -> tuple[str, ...]:
        questions, prompts = self.settings.question_share or 0.0, self.settings.prompt_share or 0.0
        return uses_of(frame, seed=self.seed, question_share=questions, prompt_share=prompts)

    def _asked(self, frame: Frame, dropped: Counter[str]) -> list[FrameQuestion]:
        """The possible questions of a frame, before answers are balanced."""
        return self._surveyed(frame, lambda task: survey(task, frame, provenance=self.teacher.provenance), dropped)

    def _surveyed(
        self, frame: Frame, survey_of: Callable[[Task], Survey], dropped: Counter[str]
    ) -> list[FrameQuestion]:
        surveys = [(task, survey_of(task)) for task in self.file.tasks]
        for _, found in surveys:
            dropped.update(found.skipped)
        return list(questions(frame, [(task, found.candidates) for task, found in surveys]))

    def _as_labelled(
        self, frame: Frame, use: str, asked: Sequence[FrameQuestion], dropped: Counter[str]
    ) -> Sequence[FrameQuestion]:
        """The questions with the answers of their labels: in stage 2 those of the teacher."""
        if use != "qa" or self.api_teacher is not None or not self.teacher.errs:
            return asked
        return self._surveyed(frame, lambda task: self.teacher.survey(frame, task), dropped)

    def _chosen(
        self, use: str, asked: Sequence[FrameQuestion], dropped: Counter[str]
    ) -> list[tuple[FrameQuestion, float]]:
        """(question, weight) of the questions that are kept; for training at most `questions_per_frame`."""
        kept = [(a, weight) for a in asked if (weight := self._balance.keeps(use, a))]
        dropped[OVER_SHARE] += len(asked) - len(kept)
        if use in SUITES:
            return kept
        chosen = thinned([a for a, _ in kept], self.settings.questions_per_frame, seed=self.seed)
        dropped[OVER_FRAME] += len(kept) - len(chosen)
        return [(a, 1.0) for a in chosen]

    def _captions(self, frame: Frame, heard: Heard) -> list[Sample]:
        train = frame.split == "train"
        found: list[Sample] = []
        if train and self.api_teacher is not None:
            source = self._word("captions")
            for number, text in enumerate(heard.captions):
                sample = self._sample(frame, f"{frame.id}/caption/{number}", "caption", answer=text, extra={})
                found.append(replace(sample, source=source))
            return found
        texts = self.teacher.captions(frame, (self.settings.captions_per_frame or 0) if train else SUITE_CAPTIONS)
        for number, text in enumerate(texts):
            extra: dict[str, Any] = {}
            if not train and (wrong := self.teacher.wrong_caption(frame, text)):
                extra = {"wrong": wrong[0], "wrong_attribute": wrong[1]}
            found.append(self._sample(frame, f"{frame.id}/caption/{number}", "caption", answer=text, extra=extra))
        return found

    def _questions(self, frame: Frame, captions: int, heard: Heard) -> list[Sample]:
        """Samples of the chosen questions, and of those for which only the API teacher vouches."""
        if not (uses := self._uses(frame)):
            return []
        asked = self._asked(frame, self.account.dropped)
        return [sample for use in uses for sample in self._questions_for(use, frame, asked, captions, heard)]

    def _questions_for(
        self, use: str, frame: Frame, found: list[FrameQuestion], captions: int, heard: Heard
    ) -> list[Sample]:
        dropped = self.account.dropped
        chosen = self._chosen(use, self._as_labelled(frame, use, found, dropped), dropped)
        if use in SUITES:
            return [self._question(frame, a, use, weight, heard) for a, weight in chosen]
        vouched = heard.asked  # by the API teacher alone
        if use == "prompt" and self.api_teacher is not None and not self.settings.trust_teacher:
            dropped[UNTRUSTED] += len(self._posed(frame))
            vouched = []
        asked = [a for a, _ in chosen] + vouched
        room = max(0, self.account.samples["caption-train"] + captions - self.account.samples[f"{use}-train"])
        dropped[OVER_CAPTIONS] += len(asked[room:])
        samples = [self._question(frame, a, use, 1.0, heard) for a in asked[:room]]
        if use == "qa":
            return samples
        self._twins = {sample.id: sample for sample in samples if sample.answer is not None}
        return [replace(sample, kind="prompt", trace=None, answer=None) for sample in samples]

    def _question(self, frame: Frame, asked: FrameQuestion, use: str, weight: float, heard: Heard) -> Sample:
        task, candidate = asked.task, asked.candidate
        twin = use == "prompt" and self.api_teacher is None  # whose answer is the teacher's
        told = self.teacher.answered(frame, task, candidate) if twin else candidate
        source: Source = self.source
        agreement = heard.agreement.get(asked.id)
        trace, facts = None, ()
        if agreement is None and task.thinking is not False:
            trace, facts = self.teacher.trace(frame, task, candidate)
        extra: dict[str, Any] = {"facts": list(facts), "task_version": task.version}
        if agreement is not None:
            extra["agreement"] = asdict(agreement)
            self.account.agreement[f"{agreement.agree} of {agreement.samples}"] += 1
        if use == "prompt":
            extra["stakes"] = asdict(task.stakes.costs)  # stage 3 may draw by them
        if use in SUITES:
            extra |= {"weight": weight, "budget_ms": task.budget_ms, "stakes": asdict(task.stakes.costs)}
            extra |= {"normal": task.normal} if task.normal is not None else {}
        elif self.api_teacher is not None:
            trace = None if task.thinking is False else heard.traces.get(asked.id)
            own = "answers" if task.name != OWN_TASK else "prompts" if use == "prompt" else "questions"
            source = self._word("traces" if agreement is None else own)
        elif trace is not None and any(self._flaws.values()):
            trace = self.teacher.spoil(frame, task, told or candidate, trace, facts, self._flaws)
        sample = self._sample(frame, asked.id, "qa", answer=told.answer if told is not None else None, extra=extra)
        beside = self.teacher.references(frame, task, candidate)
        return replace(
            sample,
            images=sample.images + beside,
            task=task.name,
            question=candidate.question,
            trace=trace,
            target=candidate.target,
            source=source,
        )

    def _word(self, prompt: str) -> Source:
        """The source of words that the API teacher said to a prompt."""
        assert self.api_teacher is not None
        return Source(self.settings.model, self.api_teacher.prompts[prompt].hash, self.source.date)

    def _sample(
        self, frame: Frame, name: str, kind: SampleKind, *, answer: str | None, extra: Mapping[str, Any]
    ) -> Sample:
        return Sample(
            id=name,
            kind=kind,
            images=frame.images,
            family=frame.family,
            task="caption",
            question="",
            trace=None,
            answer=answer,
            target=None,
            split=frame.split,
            meta=replace(frame.meta, extra={**frame.meta.extra, **extra}),
            source=self.source,
        )


def _undecodable(frame: Frame) -> Rejected | None:
    why = undecodable(frame.image.bytes)
    return Rejected(frame.id, why) if why else None
