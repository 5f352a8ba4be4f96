"""label: from frames to samples for the three stages. Every input is accounted for.

Stage 1 gets captions of every training frame; stage 2 questions with traces and answers from a share of the frames;
stage 3 prompts with targets and no answers from another share (`control/` holds the same questions with traces and
answers, for the control `traced`). The other splits become suites: questions with balanced answers, each with
the weight that restores the natural prevalence, and captions with their false twins. A frame never has fewer captions
than questions.

A teacher behind an API is asked about the training frames after the plan is made and before samples are written. Each
of its answers is saved in a journal first, and the samples are written from the journal. So a job that is killed and
run again writes the same samples as one that is not. Suites never use the API: they are made from records alone. With
`audit`, and always if the teacher is known to make errors, it is first compared with the records (`data.audit`).
Left out: several pictures in one sample, except the tiles of a `roi`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from datetime import date as Date
from pathlib import Path
from typing import Any, Literal

from lineside.data.api_teacher import ApiTeacher
from lineside.data.asking import ask
from lineside.data.job import (
    CONTROL,
    OWN_TASKS,
    SIM_TASKS,
    Api,
    Identity,
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
from lineside.recipe import Label
from lineside.sim.acuity import PERFECT
from lineside.types import Source

__all__ = ["CONTROL", "SIM_TASKS", "label"]

FAMILY = "frames"  # of pictures without records or tasks, about which an API is asked
DEFAULTS = Label()


def label(
    frames: Path,
    out: Path,
    *,
    tasks: Sequence[Path] = (),
    teacher: Literal["sim", "table", "api"] | None = None,
    settings: Label = DEFAULTS,
    seed: int = 0,
    date: str = "",
    api: Api | None = None,
    audit: int | None = None,
) -> dict[str, Any]:
    """Write the samples of `frames` into `out`; returns the account that is written to `out/label.json`.

    `frames`: a folder of frame shards (teacher "sim"), or any input of `data.sources` ("table", and "api", which takes
    `api` and needs no records). `tasks`: task files, by path or by the name of one of the package's own; none means the
    simulator's, and for "api" questions of the teacher's own. `teacher`: None takes "table" if a task file has a
    `table` section, else "sim". `date`: date of the job, today if empty; a job that is continued keeps its first date.
    A finished job is not repeated. An unfinished one starts over, but no question goes to an API twice.
    `audit`: number of training frames with records on which the teacher is tested before it labels (`data.audit`);
    None: all of them if the teacher is known to make errors and costs nothing, else none. A finished job can be audited
    without labelling again. Raises LinesideError for bad input, for a folder that holds other samples or is in use by
    another process, and when the disk is full; BudgetReached when the budget of `api` is spent.
    """
    if out.exists() and frames.exists() and out.samefile(frames):
        raise LinesideError(f"{out}: the samples need their own folder, not the folder of the frames")
    files = [task_file(path) for path in tasks]
    teacher = teacher or _teacher_of(frames, files)
    if not tasks and teacher == "sim":
        files = [task_file(name) for name in SIM_TASKS]
    if teacher != "sim" and settings.acuity != PERFECT:
        raise LinesideError(f"acuity is a setting of the teacher 'sim'; the teacher '{teacher}' does not have it")
    if teacher != "table":
        settings = settle(settings, records=False)
    api_teacher, decided = None, decides(settings, seed)
    if teacher == "api":
        api = _checked(api, files, settings)
        api_teacher = ApiTeacher(api.asking, load_prompts(api.prompts))
        prompts = {name: prompt.hash for name, prompt in api_teacher.prompts.items()}
        decided |= {"asking": asdict(api.asking), "prompts": prompts}
    identity = Identity.of(frames, files, teacher, decided)
    ranked = api is not None and api.shard is not None  # ranks share the folder; one process writes the samples
    with hold(out, shared=ranked):
        return _labelled(frames, out, files, settings, teacher, api_teacher, api, date, decided, identity, seed, audit)


def _labelled(
    frames: Path,
    out: Path,
    files: Sequence[Path],
    settings: Label,
    teacher: str,
    api_teacher: ApiTeacher | None,
    api: Api | None,
    date: str,
    decided: Mapping[str, Any],
    identity: Identity,
    seed: int,
    audit: int | None,
) -> dict[str, Any]:
    """The job itself. No other job writes to the folder."""
    sole, retry = api is None or api.shard is None, api is not None and api.retry_failed
    claimed = claim(out, identity, date or Date.today().isoformat(), sole=sole, retry_failed=retry)
    if claimed.finished and is_audited(claimed.finished, audit):
        say(f"label: {out} is already labelled")
        return claimed.finished
    file = merge(files) if files or teacher != "api" else TaskFile.model_construct(tasks=(), captions=(), table=None)
    source = _teacher(teacher, frames, file, files, settings, seed)
    if teacher == "table":
        check_thinking(file.tasks)
        settings = settle(settings, records=True, frames=source.total, tasks=file.tasks)
        decided = decides(settings, seed)
    known_to_err = source.errs and api_teacher is None
    if audit and isinstance(source, TableTeacher) and api_teacher is None and not known_to_err:
        raise LinesideError(
            "audit: the teacher 'table' is the records themselves: there is nothing to compare, unless the table also "
            "has a teacher's answers (`lineside task keys teacher_column`)"
        )
    words = Source(source.name, identity.hash, claimed.date)
    limit = audit if audit is not None else None if known_to_err else 0
    job = Labelling(source, file, settings, words, api_teacher, seed=seed, audit=limit)
    if isinstance(source, TableTeacher):
        for line in (line for join in source.joins for line in join.lines()):
            say(f"label: {line}")
        job.account.unmapped = {name: dict(values.most_common()) for name, values in source.unmapped.items()}
    with Ledger(out, rank=api.shard[0] if api.shard else 0) if api is not None else nullcontext() as ledger:
        job.plan(out, alone=sole and not claimed.finished)
        account = audit_teacher(job, out, ledger, api)
        if claimed.finished:
            found = {**claimed.finished, **({"audit": account} if account else {})}
            finish(out, found)
            return found
        if api is not None and ledger is not None:
            asked = ask(job, ledger, api)
            if not sole:
                return asked
        job.write(out, ledger)
    summary = {
        "version": 1,
        "identity": identity.hash,
        "teacher": api.asking.model if api else source.name,
        "date": claimed.date,
        "settings": decided,
        **job.account.to_json(),
        "phrasings": {f"{task.family}/{task.name}": list(task.phrasings) for task in file.tasks},
        **({"audit": account} if account else {}),
        "remarks": source.remarks.to_json(),
        "roi": roi_stated(file.table),
        "joins": [join.to_json() for join in source.joins] if isinstance(source, TableTeacher) else [],
        "split": how_split(file.table) if source.name == "table" else None,
    }
    finish(out, summary)
    tell(summary, file.tasks, out)
    for line in source.remarks.lines():
        say(f"label: {line}")
    return summary


def how_split(table: Table | None) -> dict[str, Any] | None:
    """How splits were decided, so that `validate` can check it; None where the data brought its own."""
    split = (table.split or Splits(by="scene")) if table else None
    if split is None or split.by is None:
        return None
    return {"by": split.by, "shares": dict(split.shares or SHARES), "salt": split.salt}


def _teacher_of(frames: Path, files: Sequence[Path]) -> Literal["sim", "table"]:
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


def _checked(api: Api | None, files: Sequence[Path], settings: Label) -> Api:
    """The API's settings; without tasks, with questions that the model makes up."""
    if api is None:
        raise LinesideError("the teacher 'api' needs a model and an endpoint: give --model and --base-url")
    api.check()
    if any(settings.flaws.model_dump().values()):
        raise LinesideError("flawed traces come from the teachers 'sim' and 'table' only; an API writes its own traces")
    if not files and not api.asking.own_questions:
        api = replace(api, asking=replace(api.asking, own_questions=settings.questions_per_frame))
    return api


def _teacher(name: str, frames: Path, file: TaskFile, files: Sequence[Path], settings: Label, seed: int) -> Teacher:
    """The teacher that has the records."""
    ours = bool(files) and all(path.parent == OWN_TASKS and path.name in SIM_TASKS for path in files)
    if name == "sim" or (name == "api" and ours and own_shards(frames)):
        shares = {"question_share": settings.question_share or 0.0, "prompt_share": settings.prompt_share or 0.0}
        own_kit = lambda frame: uses_of(frame, seed=seed, **shares) == ("prompt",)  # noqa: E731
        return SimTeacher(frames, settings.acuity, own_kit, settings.references)
    families = {task.family for task in file.tasks}
    family = (families.pop() if len(families) == 1 else FAMILY) if name == "api" else None
    return TableTeacher(frames, file, family=family)
