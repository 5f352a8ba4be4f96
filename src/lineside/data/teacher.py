"""Teachers: who gives captions, answers and traces. The simulator's own, and a table of records with templates.

A teacher gives frames, captions (and the same caption with one attribute changed so that it is false), traces with the
facts they may state, and flawed traces as of a worse teacher. Targets come from task file and record alone. A model
behind an API is not such a teacher: it works beside one of these, which has the records (`data.api_teacher`).

The simulator's teacher may make errors, as a real one does. For training frames it then uses what it sees
(`lineside.sim.perception`); targets and suites still come from the record.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from lineside.data import store
from lineside.data.joinreport import JoinReport
from lineside.data.references import named_by, open_references
from lineside.data.sources import open_frames
from lineside.data.splits import SuitePictures
from lineside.data.table import Rejected, Remarks
from lineside.data.taskfile import Captions, Task, TaskFile
from lineside.data.tasks import Candidate, Survey, ask_again, survey, survey_of_teacher, with_teacher_answer
from lineside.data.template import fill, known, slots
from lineside.hashing import hash_uniform, stable_hash
from lineside.types import Frame, Image, Provenance
from lineside.verify.text import clauses

UNSEEN = "the teacher sees nothing to answer by"
TRIVIAL_TRACES = ("ok.", "let me look", "looking at the picture")


class Teacher(Protocol):
    """What `label` needs of a teacher."""

    name: str
    provenance: Provenance
    total: int  # inputs that `frames` will give
    errs: bool  # whether its answers may differ from the record
    remarks: Remarks  # on the inputs, as in `data.sources`; the two below too
    unmapped: Mapping[str, Counter[str]]
    joins: Sequence[JoinReport]

    def frames(self, only: Container[int] | None = None) -> Iterator[Frame | Rejected]:
        """Every input as a frame or as its rejection. Can be called again. `only`: those at these positions."""
        ...

    def captions(self, frame: Frame, count: int) -> list[str]:
        """At most `count` different captions, true for what the teacher sees."""
        ...

    def wrong_caption(self, frame: Frame, caption: str) -> tuple[str, str] | None:
        """(caption with one attribute made false, that attribute), or None."""
        ...

    def answered(self, frame: Frame, task: Task, candidate: Candidate) -> Candidate | None:
        """The question with the teacher's answer; None if it gives none."""
        ...

    def survey(self, frame: Frame, task: Task) -> Survey:
        """The stage-2 questions of a frame with the teacher's answers, and those skipped without an answer."""
        ...

    def trace(self, frame: Frame, task: Task, candidate: Candidate) -> tuple[str | None, tuple[str, ...]]:
        """(the teacher's trace or None, true clauses that a trace of this question may state)."""
        ...

    def references(self, frame: Frame, task: Task, candidate: Candidate) -> tuple[Image, ...]:
        """The reference pictures of the SKUs that a question names."""
        ...

    def check_references(self, suites: SuitePictures) -> None:
        """After all questions were planned.

        Raises LinesideError if a reference picture is that of a frame in a suite, or no SKU has pictures.
        """
        ...

    def spoil(
        self,
        frame: Frame,
        task: Task,
        candidate: Candidate,
        trace: str,
        facts: Sequence[str],
        shares: Mapping[str, float],
    ) -> str | None:
        """The trace as a teacher with these `shares` of flaws (missing, trivial, wrong) gives it."""
        ...


class SimTeacher:
    """Ground truth of the simulator's frames; with less acuity, for training frames, what the teacher sees.

    A user's task file may bring its own trace templates.
    """

    name: str = "sim"
    provenance: Provenance = "sim"
    unmapped: Mapping[str, Counter[str]] = {}
    joins: Sequence[JoinReport] = ()

    def __init__(
        self,
        folder: Path,
        acuity: float = 1.0,
        own_kit: Callable[[Frame], bool] = lambda _: False,
        references: int = 0,
    ) -> None:
        """`own_kit`: training frames whose tray is always compared with its own kit (`sim.questions.compared_slots`).
        `references`: pictures of each article that a question names.

        Raises LinesideError when the folder holds no frames.
        """
        from lineside.sim import teacher  # only this teacher needs the simulator's words

        self._folder, self._sim, self._acuity, self.remarks = folder, teacher, acuity, Remarks()
        self._own_kit, self._references = own_kit, references
        self.errs = acuity < 1.0
        self._looked_at: tuple[Frame, Frame] | None = None  # the last frame, and what the teacher saw of it
        self.total = store.count_frames(folder)

    def frames(self, only: Container[int] | None = None) -> Iterator[Frame | Rejected]:
        for position, frame in enumerate(store.read_frames(self._folder)):
            if only is None or position in only:
                yield self._sim.enrich(frame, own_kit=self._own_kit(frame))

    def records(self) -> Iterator[Mapping[str, Any]]:
        """The record of each frame, with the simulator's columns."""
        return (frame.record for frame in self.frames() if isinstance(frame, Frame))

    def captions(self, frame: Frame, count: int) -> list[str]:
        return self._sim.captions(self._view(frame), count)

    def wrong_caption(self, frame: Frame, caption: str) -> tuple[str, str] | None:
        return self._sim.wrong_caption(self._view(frame), caption)

    def answered(self, frame: Frame, task: Task, candidate: Candidate) -> Candidate | None:
        if not self.errs:
            return candidate
        told = ask_again(task, self._seen(frame), candidate.key, provenance="teacher")
        return told if told is not None and told.question == candidate.question else None

    def survey(self, frame: Frame, task: Task) -> Survey:
        found = survey(task, frame, provenance=self.provenance)
        if not self.errs:
            return found
        told = [candidate for c in found.candidates if (candidate := self.answered(frame, task, c)) is not None]
        return Survey(tuple(told), Counter({UNSEEN: len(found.candidates) - len(told)}))

    def trace(self, frame: Frame, task: Task, candidate: Candidate) -> tuple[str | None, tuple[str, ...]]:
        if (view := self._view(frame)) is frame:
            return self._trace(frame, task, candidate)
        told, true = (ask_again(task, f, candidate.key, provenance=self.provenance) for f in (view, frame))
        trace = self._trace(view, task, told)[0] if told is not None else None
        return trace, self._trace(frame, task, true)[1] if true is not None else ()

    def _trace(self, frame: Frame, task: Task, candidate: Candidate) -> tuple[str | None, tuple[str, ...]]:
        if task.trace is not None:
            return _from_template(frame, task, candidate)
        return self._sim.trace(frame, task.name, candidate)

    def references(self, frame: Frame, task: Task, candidate: Candidate) -> tuple[Image, ...]:
        if not self._references:
            return ()
        from lineside.sim.references import references_of  # needs a renderer

        return references_of(frame, named_by(task, frame, candidate.element), self._references)

    def check_references(self, suites: SuitePictures) -> None:
        pass  # every SKU has some, drawn by random numbers of their own

    def _view(self, frame: Frame) -> Frame:
        """The teacher's view: of a training frame what it sees, of a suite's frame the truth."""
        return self._seen(frame) if self.errs and frame.split == "train" else frame

    def _seen(self, frame: Frame) -> Frame:
        if self._looked_at is None or self._looked_at[0] is not frame:
            self._looked_at = frame, self._sim.look(frame, self._acuity)
        return self._looked_at[1]

    def spoil(
        self,
        frame: Frame,
        task: Task,
        candidate: Candidate,
        trace: str,
        facts: Sequence[str],
        shares: Mapping[str, float],
    ) -> str | None:
        key = f"{frame.id}/{task.name}/{candidate.key}"
        return self._sim.spoil(trace, candidate, shares=shares, key=key, facts=facts)


class TableTeacher:
    """Records in the sentences of the task file. Flaws made on purpose use values of another row.

    If a task names a `teacher_column`, the table also holds a teacher's answers, and stage 2 learns them.
    """

    name: str = "table"
    provenance: Provenance = "record"

    def __init__(self, frames: Path, file: TaskFile, *, family: str | None = None) -> None:
        """`family`: of pictures without a `table` section. Raises LinesideError when both are missing, or the section
        does not fit the table."""
        templates = [t for c in file.captions for t in c.templates] + [task.trace for task in file.tasks if task.trace]
        wanted = list(dict.fromkeys(name for template in templates for name in slots(template)))
        self._table = open_frames(frames, file.table, family=family, keep=wanted)
        self._captions = {captions.family: captions for captions in file.captions}
        self.errs = any(task.answer.teacher_column is not None for task in file.tasks)
        self.total, self.remarks, self.rows = self._table.total, self._table.remarks, self._table.kept.rows
        self.unmapped, self.joins = self._table.unmapped, self._table.joins
        self._pictures = open_references(self._table, file.table)

    def frames(self, only: Container[int] | None = None) -> Iterator[Frame | Rejected]:
        return self._table.frames(only)

    def captions(self, frame: Frame, count: int) -> list[str]:
        captions = self._captions.get(frame.family)
        if captions is None:
            return []
        filled = [fill(t, frame.record, _captions_of(frame)) for t in captions.templates]
        first = stable_hash(frame.id, "captions") % len(filled)
        return list(dict.fromkeys(text for text in filled[first:] + filled[:first] if text))[:count]

    def wrong_caption(self, frame: Frame, caption: str) -> tuple[str, str] | None:
        captions = self._captions[frame.family]
        for template in captions.templates:
            if fill(template, frame.record, _captions_of(frame)) == caption:
                return self._falsify(frame, captions, template, caption)
        return None

    def _falsify(self, frame: Frame, captions: Captions, template: str, caption: str) -> tuple[str, str] | None:
        """Change one column, preferably to that of a row which agrees in the template's other columns."""
        used = slots(template)
        own = known(frame.record, used)
        changeable = [name for name in captions.wrong if name in used]
        for name in sorted(changeable, key=lambda n: stable_hash(frame.id, caption, n)):
            beside = [other for other in used if other != name]
            rows = [row for row in self.rows if row.get(name) not in (None, own[name])]
            alike = [row for row in rows if all(row.get(other) == own[other] for other in beside)]
            pool = sorted({str(row[name]): row[name] for row in alike or rows}.items())
            if pool:
                value = pool[stable_hash(frame.id, caption, name, "value") % len(pool)][1]
                wrong = fill(template, {**frame.record, name: value}, _captions_of(frame))
                if wrong and wrong != caption:
                    return wrong, name
        return None

    def answered(self, frame: Frame, task: Task, candidate: Candidate) -> Candidate | None:
        return candidate if task.answer.teacher_column is None else with_teacher_answer(task, frame, candidate)

    def references(self, frame: Frame, task: Task, candidate: Candidate) -> tuple[Image, ...]:
        return self._pictures.of(named_by(task, frame, candidate.element)) if self._pictures else ()

    def check_references(self, suites: SuitePictures) -> None:
        if self._pictures:
            self._pictures.check(suites)

    def survey(self, frame: Frame, task: Task) -> Survey:
        if task.answer.teacher_column is None:
            return survey(task, frame, provenance=self.provenance)
        return survey_of_teacher(task, frame)

    def trace(self, frame: Frame, task: Task, candidate: Candidate) -> tuple[str | None, tuple[str, ...]]:
        return _from_template(frame, task, candidate)

    def spoil(
        self,
        frame: Frame,
        task: Task,
        candidate: Candidate,
        trace: str,
        facts: Sequence[str],
        shares: Mapping[str, float],
    ) -> str | None:
        key = (frame.id, task.name, candidate.key)
        draw = hash_uniform(*key, "flaw")
        for flaw in ("missing", "trivial", "wrong"):
            draw -= shares.get(flaw, 0.0)
            if draw < 0.0:
                break
        else:
            return trace
        if flaw == "missing":
            return None
        if flaw == "trivial":
            return TRIVIAL_TRACES[stable_hash(*key) % len(TRIVIAL_TRACES)]
        row = self.rows[stable_hash(*key, "row") % len(self.rows)]
        return fill(task.trace or "", {**frame.record, **candidate.element, **row}, _captions_of(frame)) or trace


def _from_template(frame: Frame, task: Task, candidate: Candidate) -> tuple[str | None, tuple[str, ...]]:
    if task.trace is None:
        return None, ()
    where = f"trace of task {task.family}/{task.name}, frame {frame.id}"
    trace = fill(task.trace, {**frame.record, **candidate.element}, where)
    return trace, tuple(clauses(trace)) if trace else ()


def _captions_of(frame: Frame) -> str:
    return f"captions of family {frame.family}, frame {frame.id}"
