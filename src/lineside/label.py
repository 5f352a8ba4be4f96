"""label: from frames to samples for the three stages. Every input is accounted for.

Stage 1 gets captions of every training frame; stage 2 questions with traces and answers from a share of the frames;
stage 3 prompts with targets and no answers from another share (`control/` holds the same questions with traces and
answers, for the control `traced`). The other splits become suites: questions with balanced answers, each with
the weight that restores the natural prevalence, and captions with their false twins. A frame never has fewer captions
than questions.

A teacher behind an API is asked about the training frames after the plan is made and before samples are written. Each
of its answers is saved in a journal first, and the samples are written from the journal. So a job that is killed and
run again writes the same samples as one that is not. Suites never use the API: they are made from records alone. With
`audit`, and always if the teacher is known to make errors, it is first compared with the records.
Left out: a teacher behind an API that sees the `views` of a frame; one is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import date as Date
from pathlib import Path
from typing import Any

from lineside.data.api_teacher import ApiTeacher
from lineside.data.asking import ask
from lineside.data.job import (
    CONTROL,
    OWN_TASKS,
    SIM_TASKS,
    Identity,
    check_shard,
    claim,
    decides,
    finish,
    settle,
    task_file,
    tell,
)
from lineside.data.labelling import Labelling
from lineside.data.ledger import Ledger
from lineside.data.plan import uses_of
from lineside.data.prompts import load_prompts
from lineside.data.regions import roi_stated
from lineside.data.sources import own_shards
from lineside.data.taskfile import Splits, Table, TaskFile, check_thinking, merge
from lineside.data.teacher import SimTeacher, TableTeacher, Teacher
from lineside.errors import LinesideError
from lineside.files import hold
from lineside.hashing import SHARES
from lineside.judgement.audit_job import audit_teacher, is_audited
from lineside.progress import say
from lineside.recipe import Label, TeacherName
from lineside.types import Source

__all__ = ["CONTROL", "SIM_TASKS", "label"]

FAMILY = "frames"  # of pictures without records or tasks, about which an API is asked
DEFAULTS = Label()
Shard = tuple[int, int]


def label(
    frames: Path,
    out: Path,
    *,
    tasks: Sequence[Path] = (),
    settings: Label = DEFAULTS,
    seed: int = 0,
    date: str = "",
    shard: Shard | None = None,
) -> dict[str, Any]:
    """Write the samples of `frames` into `out`; returns the account that is written to `out/label.json`.

    `frames`: a folder of frame shards (teacher "sim"), or any input of `data.sources` ("table", and "api", which needs
    no records). `tasks`: task files, by path or by the name of one of the package's own; none means the simulator's,
    and for "api" questions of the teacher's own. `date`: date of the job, today if empty; a job that is continued keeps
    its first date. A finished job is not repeated, but it can be audited later. An unfinished one starts over, but no
    question goes to an API twice. `shard`: (rank, ranks): ask an API about a share of the frames only; a run without it
    then writes the samples. Raises LinesideError for bad input, for a folder that holds other samples or
    is in use by another process, and when the disk is full; BudgetReached when the budget is spent.
    """
    if out.exists() and frames.exists() and out.samefile(frames):
        raise LinesideError(f"{out}: the samples need their own folder, not the folder of the frames")
    files = [task_file(path) for path in tasks]
    teacher = settings.teacher or _teacher_of(frames, files)
    if not tasks and teacher == "sim":
        files = [task_file(name) for name in SIM_TASKS]
    if teacher != "api" and shard is not None:
        raise LinesideError(f"shard: only the requests to an API are shared out; the teacher is {teacher}")
    check_shard(shard)
    settled = settle(settings, teacher)  # wrong settings are reported before anything is read
    settings = settled if teacher != "table" else settings.model_copy(update={"teacher": teacher})
    api = None
    if teacher == "api":
        if not files and not settings.own_questions:
            settings = settings.model_copy(update={"own_questions": settings.questions_per_frame})
        api = ApiTeacher(settings, load_prompts(settings.prompts))
    job = _Job(frames, out, files, settings, api, seed, shard)
    with hold(out, shared=shard is not None):  # ranks share the folder; one process writes the samples
        return job.run(date or Date.today().isoformat())


@dataclass(frozen=True)
class _Job:
    """What `label` was asked for, with the teacher decided. No other job writes to the folder."""

    frames: Path
    out: Path
    files: Sequence[Path]
    settings: Label
    api: ApiTeacher | None
    seed: int
    shard: Shard | None

    def run(self, date: str) -> dict[str, Any]:
        """The job itself; returns the account."""
        out, settings, teacher, sole = self.out, self.settings, self.settings.teacher or "", self.shard is None
        identity = Identity.of(self.frames, self.files, teacher, self.decided(settings))
        claimed = claim(out, identity, date, sole=sole, retry_failed=settings.retry_failed)
        if claimed.finished and is_audited(claimed.finished, settings.audit):
            say(f"label: {out} is already labelled")
            return claimed.finished
        file = merge(self.files) if self.files or not self.api else TaskFile.model_construct(tasks=(), table=None)
        source = self.teacher(file)
        if teacher == "table":
            check_thinking(file.tasks)
            settings = settle(settings, "table", frames=source.total, tasks=file.tasks)
        words = Source(source.name, identity.hash, claimed.date)
        job = Labelling(source, file, settings, words, self.api, seed=self.seed, audit=self.audited(source))
        for line in (line for join in source.joins for line in join.lines()):
            say(f"label: {line}")
        job.account.unmapped = {name: dict(values.most_common()) for name, values in source.unmapped.items()}
        with Ledger(out, rank=self.shard[0] if self.shard else 0) if self.api else nullcontext() as ledger:
            job.plan(out, alone=sole and not claimed.finished)
            audit = audit_teacher(job, out, ledger, self.shard)
            audited = {"audit": audit} if audit else {}
            if claimed.finished:
                finish(out, found := {**claimed.finished, **audited})
                return found
            if ledger is not None:
                asked = ask(job, ledger, self.shard)
                if self.shard is not None:
                    return self.shared(asked, ledger)
            job.write(out, ledger)
        summary = {
            "version": 1,
            "identity": identity.hash,
            "teacher": settings.model if self.api else source.name,
            "date": claimed.date,
            "settings": self.decided(settings),
            **job.account.to_json(),
            "phrasings": {f"{task.family}/{task.name}": list(task.phrasings) for task in file.tasks},
            **audited,
            "remarks": source.remarks.to_json(),
            "roi": roi_stated(file.table),
            "views": list(file.table.views) if file.table else [],
            "joins": [join.to_json() for join in source.joins],
            "split": how_split(file.table) if source.name == "table" else None,
        }
        finish(out, summary)
        tell(summary, file.tasks, out)
        for line in source.remarks.lines():
            say(f"label: {line}")
        return summary

    def decided(self, settings: Label) -> dict[str, Any]:
        """Everything that decides the samples but for frames and task files."""
        prompts = {name: prompt.hash for name, prompt in self.api.prompts.items()} if self.api else {}
        return decides(settings, self.seed) | ({"prompts": prompts} if prompts else {})

    def teacher(self, file: TaskFile) -> Teacher:
        """The teacher that has the records."""
        settings, name, files = self.settings, self.settings.teacher, self.files
        ours = bool(files) and all(path.parent == OWN_TASKS and path.name in SIM_TASKS for path in files)
        if name == "sim" or (name == "api" and ours and own_shards(self.frames)):
            shares = {"question_share": settings.question_share or 0.0, "prompt_share": settings.prompt_share or 0.0}
            prompted = lambda frame: uses_of(frame, seed=self.seed, **shares) == ("prompt",)  # noqa: E731
            if settings.references and not any(task.references for task in file.tasks):
                raise LinesideError(
                    f"references is {settings.references}, and no task says which SKUs its question names: add "
                    "`references` to a task (`lineside task keys references`)"
                )
            return SimTeacher(self.frames, settings.acuity, prompted, settings.references)
        if settings.references:
            raise LinesideError(
                "references is a setting of the simulator: a table states its own with `table.references` of the task "
                "file"
            )
        if name == "api" and file.table is not None and file.table.views:
            raise LinesideError(
                "views: a teacher behind an API is shown one picture of a frame, and would answer without its views: "
                "leave `views` out of the table, or label from records (teacher: table)"
            )
        families = {task.family for task in file.tasks}
        family = (families.pop() if len(families) == 1 else FAMILY) if name == "api" else None
        return TableTeacher(self.frames, file, family=family)

    def audited(self, source: Teacher) -> int | None:
        """The number of training frames on which the teacher is tested first; None: all of them.

        Raises LinesideError if there is nothing to compare the teacher with.
        """
        known_to_err = source.errs and self.api is None
        if self.settings.audit and source.name == "table" and not self.api and not known_to_err:
            raise LinesideError(
                "audit: the teacher 'table' is the records themselves: there is nothing to compare, unless the table "
                "also has a teacher's answers (`lineside task keys teacher_column`)"
            )
        return self.settings.audit if self.settings.audit is not None else None if known_to_err else 0

    def shared(self, asked: int, ledger: Ledger) -> dict[str, Any]:
        """The usage of one rank."""
        rank, ranks = self.shard or (0, 1)
        if ranks > 1:
            say(f"label: rank {rank} of {ranks} is done; when all are, run label without a shard to write the samples")
        return {"asked": asked, "requests": ledger.requests, "rank": rank, "ranks": ranks}


def how_split(table: Table | None) -> dict[str, Any] | None:
    """How splits were decided, so that `validate` can check it; None where the data brought its own."""
    split = (table.split or Splits(by="scene")) if table else None
    if split is None or split.by is None:
        return None
    return {"by": split.by, "shares": dict(split.shares or SHARES), "salt": split.salt}


def _teacher_of(frames: Path, files: Sequence[Path]) -> TeacherName:
    """The teacher when none is given: "table" if a task file has a `table` section, else "sim".

    Raises LinesideError if neither is possible.
    """
    if files and merge(files).table is not None:
        return "table"
    if frames.exists() and not own_shards(frames):
        lacks = (
            f"{', '.join(map(str, files))} has no `table` section that says how to read it: add one"
            if files
            else "no task file says how to read it and what to ask: give one with --tasks"
        )
        raise LinesideError(
            f"{frames} holds no frames of the simulator (frames-*.parquet), and {lacks} (`lineside task keys` lists "
            "all keys of a task file), or ask a model with --teacher api"
        )
    return "sim"
