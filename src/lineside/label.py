"""label: from frames to samples for the three stages, every input accounted for.

Stage 1 gets captions of every training frame; stage 2 questions with traces and answers from a share of the frames;
stage 3 prompts with targets alone from another share (the same questions with traces and answers lie in `control/`, for
the control run of DESIGN 8). The other splits become suites: questions with balanced answers, each with the weight that
restores the natural prevalence, and captions with their false twins. Never fewer captions than questions.
Left out: the API teacher, agreement of several samples, journalled requests.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date as Date
from pathlib import Path
from typing import Any, Literal

from lineside.data import store
from lineside.data.duplicates import near_duplicates
from lineside.data.job import CONTROL, REJECTED, SUMMARY, Account, Settings, claim, finish, identity_of, task_file
from lineside.data.plan import SUITES, Asked, Balance, questions, thinned, use_of
from lineside.data.shards import disk
from lineside.data.table import Rejected
from lineside.data.taskfile import TaskFile, merge
from lineside.data.tasks import survey
from lineside.data.teacher import SimTeacher, TableTeacher, Teacher
from lineside.errors import LinesideError
from lineside.images import decode
from lineside.progress import say, track
from lineside.types import Frame, Sample, SampleKind, Source

SIM_TASKS = ("picking.yaml", "kitting.yaml", "returns.yaml")
SUITE_CAPTIONS = 1  # a frame of a suite, for caption matching
OVER_SHARE = "over the answer's share"
OVER_FRAME = "over the questions per frame"
OVER_CAPTIONS = "more questions than captions"


def label(
    frames: Path,
    out: Path,
    *,
    tasks: Sequence[Path] = (),
    teacher: Literal["sim", "table"] = "sim",
    captions_per_frame: int = 4,
    questions_per_frame: int = 8,
    question_share: float = 0.5,
    prompt_share: float = 0.25,
    flaws: Mapping[str, float] | None = None,
    thin: bool = False,
    seed: int = 0,
    date: str = "",
) -> dict[str, Any]:
    """Write the samples of `frames` into `out`; returns the account that is written to `out/label.json`.

    `frames`: a folder of frame shards (teacher "sim"), or whatever `data.sources` opens (teacher "table"). `tasks`:
    task files, by path or by the name of one of the package's own; none means the simulator's. `flaws`: shares of
    "missing", "trivial" and "wrong" traces in stage 2. `thin`: reject frames that repeat another of their camera.
    `date`: of the job, today if empty. A finished job is not done again; an unfinished one is started over. Raises
    LinesideError for bad input, for a folder that holds other samples, and when the disk is full.
    """
    settings = Settings(
        captions_per_frame, questions_per_frame, question_share, prompt_share, dict(flaws or {}), seed, thin
    )
    settings.check()
    files = [task_file(path) for path in tasks or (SIM_TASKS if teacher == "sim" else ())]
    identity = identity_of(frames, files, teacher, vars(settings))
    if finished := claim(out, identity):
        say(f"label: {out} is labelled already")
        return finished
    file = merge(files)
    source: Teacher = SimTeacher(frames) if teacher == "sim" else TableTeacher(frames, file)
    job = _Job(source, file, settings, Source(source.name, identity, date or Date.today().isoformat()))
    job.plan(out)
    with store.SampleWriter(out) as samples, store.SampleWriter(out / CONTROL) as control:
        for sample in job.samples():
            samples.add(sample)
            job.account.add(sample)
            if sample.kind == "prompt":
                control.add(job.twin(sample))
    summary = job.summary(identity)
    finish(out, summary)
    _tell(summary, file, out)
    return summary


class _Job:
    """One labelling job: a pass that plans, a pass that gives samples."""

    def __init__(self, teacher: Teacher, file: TaskFile, settings: Settings, source: Source) -> None:
        self.teacher, self.file, self.settings, self.source = teacher, file, settings, source
        self.account = Account()
        self._balance = Balance(settings.seed)
        self._bad: set[int] = set()  # positions of inputs that are rejected
        self._twins: dict[str, Sample] = {}  # of the current frame's prompts

    def plan(self, out: Path) -> None:
        """Look at every input once: reject what is broken or repeats another, count what can be asked of the rest."""
        repeats = near_duplicates(self._all("learn cameras"), self._all("compare")) if self.settings.thin else {}
        with disk(out, REJECTED), open(out / REJECTED, "w", encoding="utf-8") as rejected:
            for position, item in enumerate(
                track(self.teacher.frames(), total=self.teacher.total, unit="frames", label="label: plan")
            ):
                self.account.frames["read"] += 1
                refusal = item if isinstance(item, Rejected) else repeats.get(position) or _undecodable(item)
                if refusal is not None:
                    self._bad.add(position)
                    self.account.frames["rejected"] += 1
                    self.account.rejected[_kind_of(refusal.reason)] += 1
                    rejected.write(json.dumps({"name": refusal.name, "reason": refusal.reason}) + "\n")
                elif isinstance(item, Frame) and (use := self._use(item)):
                    for asked in self._asked(item, Counter()):
                        self._balance.count(use, asked)
        if self.account.frames["rejected"] == self.account.frames["read"]:
            raise LinesideError(
                f"none of the {self.account.frames['read']} inputs can be labelled: {out / REJECTED} says why"
            )
        self.account.unbalanced = self._balance.settle(self.file.tasks)

    def _all(self, what: str) -> Iterator[Frame | Rejected]:
        return track(self.teacher.frames(), total=self.teacher.total, unit="frames", label=f"label: {what}")

    def samples(self) -> Iterator[Sample]:
        """The samples of every frame, those of one frame together."""
        items = track(self.teacher.frames(), total=self.teacher.total, unit="frames", label="label: write")
        for position, frame in enumerate(items):
            if position in self._bad or isinstance(frame, Rejected):
                continue
            captions = self._captions(frame)
            given = captions + self._questions(frame, len(captions))
            self.account.frames["labelled" if given else "silent"] += 1
            yield from given

    def twin(self, prompt: Sample) -> Sample:
        """The question of a prompt with trace and answer, as stage 2 would have it."""
        return self._twins[prompt.id]

    def summary(self, identity: str) -> dict[str, Any]:
        """The account as JSON."""
        account, settings = self.account, self.settings
        return {
            "version": 1,
            "identity": identity,
            "teacher": self.source.teacher,
            "date": self.source.date,
            "settings": {**vars(settings), "flaws": dict(settings.flaws)},
            "frames": {name: account.frames[name] for name in ("read", "labelled", "rejected", "silent")},
            "rejected": dict(account.rejected.most_common()),
            "samples": dict(sorted(account.samples.items())),
            "tasks": {name: dict(counts) for name, counts in sorted(account.tasks.items())},
            "dropped": dict(account.dropped.most_common()),
            "traces": dict(account.traces.most_common()),
            "unbalanced": account.unbalanced,
        }

    def _use(self, frame: Frame) -> str | None:
        settings = self.settings
        return use_of(
            frame, seed=settings.seed, question_share=settings.question_share, prompt_share=settings.prompt_share
        )

    def _asked(self, frame: Frame, dropped: Counter[str]) -> list[Asked]:
        """What a frame can be asked, before answers are balanced."""
        surveys = [(task, survey(task, frame, provenance=self.teacher.provenance)) for task in self.file.tasks]
        for _, found in surveys:
            dropped.update(found.skipped)
        return list(questions(frame, [(task, found.candidates) for task, found in surveys]))

    def _captions(self, frame: Frame) -> list[Sample]:
        train = frame.split == "train"
        texts = self.teacher.captions(frame, self.settings.captions_per_frame if train else SUITE_CAPTIONS)
        found: list[Sample] = []
        for number, text in enumerate(texts):
            extra: dict[str, Any] = {}
            if not train and (wrong := self.teacher.wrong_caption(frame, text)):
                extra = {"wrong": wrong[0], "wrong_attribute": wrong[1]}
            found.append(self._sample(frame, f"{frame.id}/caption/{number}", "caption", answer=text, extra=extra))
        return found

    def _questions(self, frame: Frame, captions: int) -> list[Sample]:
        """Samples of the balanced questions; of a training frame at most `questions_per_frame`."""
        use = self._use(frame)
        if use is None:
            return []
        dropped = self.account.dropped
        asked = self._asked(frame, dropped)
        kept = [(a, weight) for a in asked if (weight := self._balance.keeps(use, a))]
        dropped[OVER_SHARE] += len(asked) - len(kept)
        if use in SUITES:
            return [self._question(frame, a, use, weight) for a, weight in kept]
        chosen = thinned([a for a, _ in kept], self.settings.questions_per_frame, seed=self.settings.seed)
        dropped[OVER_FRAME] += len(kept) - len(chosen)
        room = max(0, self.account.samples["caption-train"] + captions - self.account.samples[f"{use}-train"])
        dropped[OVER_CAPTIONS] += len(chosen[room:])
        found = [self._question(frame, a, use, 1.0) for a in chosen[:room]]
        if use == "qa":
            return found
        self._twins = {sample.id: sample for sample in found}
        return [replace(sample, kind="prompt", trace=None, answer=None) for sample in found]

    def _question(self, frame: Frame, asked: Asked, use: str, weight: float) -> Sample:
        task, candidate = asked.task, asked.candidate
        trace, facts = self.teacher.trace(frame, task, candidate)
        if trace is not None and use not in SUITES and self.settings.flaws:
            trace = self.teacher.spoil(frame, task, candidate, trace, facts, self.settings.flaws)
        extra: dict[str, Any] = {"facts": list(facts), "task_version": task.version}
        if use in SUITES:
            extra |= {"weight": weight, "budget_ms": task.budget_ms, "stakes": task.stakes.model_dump()}
        sample = self._sample(frame, asked.id, "qa", answer=candidate.answer, extra=extra)
        return replace(sample, task=task.name, question=candidate.question, trace=trace, target=candidate.target)

    def _sample(self, frame: Frame, name: str, kind: SampleKind, *, answer: str, extra: Mapping[str, Any]) -> Sample:
        return Sample(
            id=name,
            kind=kind,
            images=(frame.image,),
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
    try:
        decode(frame.image.bytes)
    except LinesideError as error:
        return Rejected(frame.id, str(error))
    return None


def _kind_of(reason: str) -> str:
    """The part of a reason that is the same for like inputs, to count by."""
    return reason.split(":")[0].split("(")[0].strip()


def _tell(summary: Mapping[str, Any], file: TaskFile, out: Path) -> None:
    """The account in a few lines, and the tasks that came out empty."""
    frames, samples = summary["frames"], summary["samples"]
    say(f"label: {frames['read']} frames read, {frames['labelled']} labelled, {frames['rejected']} rejected, "
        f"{frames['silent']} with nothing to say")  # fmt: skip
    say("label: " + ", ".join(f"{count} {name}" for name, count in samples.items()))
    if frames["rejected"]:
        say(
            f"label: rejected, see {out / REJECTED}: "
            + "; ".join(f"{n} {why}" for why, n in summary["rejected"].items())
        )
    for task in file.tasks:
        if not summary["tasks"].get(f"{task.family}/{task.name}"):
            say(f"label: the task {task.family}/{task.name} asked nothing of these frames")
    if uneven := summary["unbalanced"]:
        say(f"label: answers of {len(uneven)} sets are too uneven to balance, see {out / SUMMARY}: {uneven[0]} ...")
