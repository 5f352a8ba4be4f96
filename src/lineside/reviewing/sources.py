"""What is reviewed: a list, photographs with a task file, samples, or the wrong answers of an evaluation, as questions.

Pictures that lie in files are shown from there. Pictures that lie inside Parquet, archives or videos are copied once
into the folder of the review, named by their content.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lineside.data.folders import PictureFolder, read_file
from lineside.data.job import SIM_TASKS, task_file
from lineside.data.plan import question_id
from lineside.data.review_list import LIST, Form, ReviewQuestion, Said, keep_picture, read_list
from lineside.data.reviewed import MARK, Mark, home_of, read_mark
from lineside.data.sources import FrameSource, Rejected, open_frames, own_shards
from lineside.data.store import read_samples, sample_shards
from lineside.data.suite import is_question, reference_of
from lineside.data.tabular import is_json, read_table
from lineside.data.taskfile import Task, TaskFile, merge
from lineside.data.tasks import ask_again, unanswered
from lineside.data.teacher import SimTeacher
from lineside.data.template import column, slots
from lineside.errors import LinesideError
from lineside.files import is_file, write_atomic
from lineside.hashing import stable_hash
from lineside.images import image_key, stored
from lineside.judgement.schema import MODES, Evaluation, Row, read_evaluation, read_rows, rows_path
from lineside.progress import say, track
from lineside.stages import STAGES
from lineside.strict import nearest
from lineside.types import Frame, Sample, Target
from lineside.verify.verifiers import verify

SPLITS = ("heldout", "dev", "shifted", "train")


@dataclass(frozen=True)
class Review:
    """The questions of a review, the folder that it writes to, and the folder in which its pictures lie.

    `questions` are those that were chosen, `every` all that there are: records hold the answers to all of them.
    `tasks` and `frames`, where they are known, are what records are written by. `splits`: by question, if known.
    """

    path: Path
    folder: Path
    questions: tuple[ReviewQuestion, ...]
    pictures: Path
    tasks: TaskFile | None = None
    frames: Path | None = None
    bits: int | None = None
    every: tuple[ReviewQuestion, ...] = ()
    splits: Mapping[str, str] = field(default_factory=dict)
    whole: bool = False  # whether people see whole pictures, also where the task file has a `roi`

    def picture(self, question: ReviewQuestion) -> bytes:
        """The picture of a question, as a browser shows it. Raises LinesideError when it cannot be read."""
        name = PictureFolder(self.pictures).find(question.picture)
        return stored(read_file(self.pictures / name), bits=self.bits)[0]


@dataclass(frozen=True)
class Choice:
    """Which questions are taken: of these tasks and splits; at most `limit`, by hash of the picture's frame."""

    tasks: tuple[str, ...] = ()
    split: str | None = None
    limit: int | None = None


def open_review(
    path: Path,
    *,
    tasks: Sequence[Path] = (),
    frames: Path | None = None,
    samples: Path | None = None,
    out: Path | None = None,
    choice: Choice = Choice(),
) -> Review:
    """The review of `path`; `out` is its folder, by default `review` in the folder, or beside the file.

    `samples`: where the full-size pictures of an evaluation lie. Raises LinesideError when there is nothing to review
    there, or no question is left.
    """
    if not path.exists():
        raise LinesideError(f"{path}: no such folder or file to review")
    if frames is not None and not frames.exists():
        raise LinesideError(f"--frames {frames}: no such folder or file of frames")
    folder = out or (path / "review" if path.is_dir() else path.with_name(f"{path.stem}.review"))
    file = merge([task_file(task) for task in tasks]) if tasks else None
    review = Review(path, folder, (), path if path.is_dir() else path.parent, file, frames)
    inside: Inside | None = None
    if (found := _list(path, tasks)) is not None:
        review = replace(review, questions=tuple(read_list(found)))
    elif path.is_file() and path.suffix == ".json":
        review, inside = _evaluation(review, path, samples)
    elif path.is_dir() and own_shards(path) and (file is None or file.table is None):
        review = _frames(review, file or merge([task_file(name) for name in SIM_TASKS]), SimTeacher(path))
    elif path.is_dir() and sample_shards(path):
        review, inside = _samples(review)
    elif path.is_dir() and (evaluation := _evaluation_in(path)) is not None:
        review, inside = _evaluation(review, evaluation, samples)
    elif file is not None:
        review = _photographs(review, file)
    else:
        raise LinesideError(
            f"{path}: expected samples of `lineside label`, an evaluation, or a list of questions ({LIST}); for a "
            "folder of pictures say with --tasks what to ask"
        )
    review = replace(review, questions=_chosen(review, choice), every=review.questions)
    if inside is not None:
        review = _with_pictures(review, inside)
    _mark(review)
    return review


@dataclass(frozen=True)
class Inside:
    """Where pictures lie that a question names by their keys: in samples, or as small copies beside an evaluation."""

    samples: Path | None
    split: str | None
    small: Path | None = None


def _with_pictures(review: Review, inside: Inside) -> Review:
    """The review with the pictures of its questions in its own folder. A question without a picture is left out."""
    wanted = {question.picture for question in review.questions}
    found: dict[str, str] = {}
    if inside.samples is not None:
        samples = read_samples(inside.samples, split=inside.split)
        for sample in track(samples, total=None, unit="samples", label="review: pictures"):
            key = image_key(sample.images[0].bytes)
            if key in wanted and key not in found:
                found[key] = keep_picture(review.folder, sample.images[0].bytes, sample.id)
                if len(found) == len(wanted):
                    break
    small = {key: inside.small / f"{key}.jpg" for key in wanted - found.keys()} if inside.small else {}
    kept = {key: keep_picture(review.folder, file.read_bytes(), key) for key, file in small.items() if file.is_file()}
    if kept:
        say(f"review: {len(kept):,} pictures are small copies; --samples FOLDER says where the whole ones lie")
    names = {**found, **kept}
    questions = [q.model_copy(update={"picture": names[q.picture]}) for q in review.questions if q.picture in names]
    if left := len(review.questions) - len(questions):
        say(f"review: {left:,} questions are left out: their pictures are not in the samples")
    if not questions:
        raise LinesideError(f"{review.path}: none of the pictures is there: --samples FOLDER says where they lie")
    return replace(review, questions=tuple(questions), pictures=review.folder)


def _mark(review: Review) -> None:
    """Mark the folder of the review, so that it is not read as frames, and its records find their pictures."""
    path = review.folder / MARK
    frames = None
    if review.frames is not None:
        home = review.frames if review.frames.is_dir() else home_of(review.frames)
        frames = os.path.relpath(home.resolve(), review.folder.resolve())
    if not path.is_file() or (frames is not None and read_mark(path).frames != frames):
        try:
            write_atomic(path, Mark(frames=frames).model_dump_json() + "\n")
        except LinesideError as error:
            raise LinesideError(f"{error}; --out names another folder for the review") from error


def _chosen(review: Review, choice: Choice) -> tuple[ReviewQuestion, ...]:
    found, names = review.questions, {q.task_name for q in review.questions}
    for name in choice.tasks:
        if name not in names:
            known = ", ".join(sorted(names))
            raise LinesideError(f"--task {name!r}: no question of this task{nearest(name, names)}; there are {known}")
    if choice.split is not None:
        if not review.splits:
            raise LinesideError(f"{review.path}: --split chooses among photographs and samples only")
        found = tuple(q for q in found if review.splits[q.id] == choice.split)
    if choice.tasks:
        found = tuple(q for q in found if q.task_name in choice.tasks)
    if choice.limit is not None and len(found) > choice.limit:
        order = sorted(range(len(found)), key=lambda i: (stable_hash("review", found[i].frame), i))
        found = tuple(found[i] for i in sorted(order[: choice.limit]))
    if not found:
        raise LinesideError(f"{review.path}: no question to review")
    return found


def _list(path: Path, tasks: Sequence[Path]) -> Path | None:
    """The file of a list of questions. With a task file, JSON lines may be the table of photographs instead."""
    if path.is_dir():
        return path / LIST if (path / LIST).is_file() else None
    return path if is_json(path) and (not tasks or _holds_questions(path)) else None


def _holds_questions(path: Path) -> bool:
    """Whether the first row of JSON lines is a question."""
    first = next((row for _, row in read_table(path) if isinstance(row, dict)), {})
    return {"question", "form", "picture"} <= first.keys()


# --- photographs and the simulator's frames


def _photographs(review: Review, file: TaskFile) -> Review:
    if file.table is None:
        raise LinesideError(f"{review.path}: the task file has no `table` section that says how the pictures are read")
    source = open_frames(review.path, file.table.uncut)
    home = review.path if review.path.is_dir() else home_of(review.path)
    root = home / (file.table.pictures or "")
    pictures = root if root.is_dir() else home
    review = replace(review, frames=review.path, bits=file.table.bits, pictures=pictures, whole=True)
    return _frames(review, file, source)


def _frames(review: Review, file: TaskFile, source: FrameSource | SimTeacher) -> Review:
    closed = [f"{task.family}/{task.name}" for task in file.tasks if task.answer.column is None]
    if closed:
        say(f"review: {', '.join(closed)}: not asked, because no column of the record would hold the answer")
    open_tasks = [task for task in file.tasks if task.answer.column is not None]
    found: list[ReviewQuestion] = []
    splits: dict[str, str] = {}
    refused: list[str] = []
    pictures = review.pictures
    plain: bool | None = None
    for item in track(source.frames(), total=source.total, unit="frames", label="review: read"):
        if isinstance(item, Rejected):
            refused.append(f"{item.name}: {item.reason}")
            continue
        asked = [question for task in open_tasks for question in _asked(task, item)]
        if plain is None:
            plain = is_file(pictures / item.id)
        if asked:
            picture = item.id if plain else keep_picture(review.folder, item.image.bytes, item.id)
            found += [question.model_copy(update={"picture": picture}) for question in asked]
            splits |= dict.fromkeys((question.id for question in asked), item.split)
    if refused:
        say(f"review: {len(refused)} inputs cannot be shown, such as {refused[0]}")
    root = pictures if plain else review.folder
    return replace(review, questions=tuple(found), tasks=file, pictures=root, splits=splits)


def _asked(task: Task, frame: Frame) -> Iterator[ReviewQuestion]:
    """The questions of a task for a frame, also where the record has no answer."""
    answer, frame = task.answer, with_answer_columns(task, frame)
    blank = answer.model_copy(update={"column": None, "margin_column": None})
    fixed = task.each is None and not any(map(slots, task.phrasings))  # asks the same however it is phrased
    for key, text in unanswered(task.model_copy(update={"answer": blank}), frame):
        candidate = ask_again(task, frame, key, provenance="record")
        if candidate is not None:
            form = Form.of_target(candidate.target)
        elif (options := _options(task, frame)) is not None:
            form = Form.of_answer(answer, options)
        else:
            continue
        yield ReviewQuestion(
            id=question_id(frame, task, key),
            frame=frame.id,
            picture="",
            family=frame.family,
            task=task.name,
            key=key,
            question=text,
            form=form,
            said=() if candidate is None else (Said(by="record", answer=candidate.answer), *_teacher(task, frame, key)),
            scene=frame.meta.scene,
            about=f"{frame.family}/{task.name}" if fixed else "",
        )


def with_answer_columns(task: Task, frame: Frame) -> Frame:
    """The frame with the columns of a task's answer, empty where the table does not have them."""
    answer = task.answer
    named = [name for name in (answer.column, answer.mask_column, answer.accepted_column) if name and "." not in name]
    return replace(frame, record={**dict.fromkeys(named), **frame.record})


def _options(task: Task, frame: Frame) -> tuple[str, ...] | None:
    """The options of a question without an answer; None where the record does not say them."""
    if task.answer.options_column is None:
        return task.answer.options
    try:
        found = column(frame.record, task.answer.options_column, "")
    except LinesideError:
        return None
    return tuple(map(str, found)) if isinstance(found, list | tuple) else None


def _teacher(task: Task, frame: Frame, key: str) -> tuple[Said, ...]:
    """What the table says that a teacher answered."""
    if task.answer.teacher_column is None:
        return ()
    own = {"column": task.answer.teacher_column, "teacher_column": None, "accepted_column": None}
    told = task.model_copy(update={"answer": task.answer.model_copy(update=own)})
    said = ask_again(told, frame, key, provenance="teacher")
    return () if said is None else (Said(by="teacher", name=task.answer.teacher_column, answer=said.answer),)


# --- samples


def _samples(review: Review) -> tuple[Review, Inside]:
    found: dict[tuple[str, ...], ReviewQuestion] = {}
    splits: dict[tuple[str, ...], str] = {}
    samples = track(read_samples(review.path), total=None, unit="samples", label="review: read")
    for sample in samples:
        if sample.target is None or not is_question(sample) or not sample.question:
            continue
        picture = image_key(sample.images[0].bytes)
        key = (picture, sample.family, sample.task, sample.question)
        said = _said_in(sample, sample.target)
        if (known := found.get(key)) is not None:
            more = tuple(one for one in said if one not in known.said)
            found[key] = known.model_copy(update={"said": known.said + more})
            continue
        splits[key] = sample.split
        found[key] = ReviewQuestion(
            **_named(sample.id, sample.task),
            picture=picture,
            family=sample.family,
            question=sample.question,
            form=Form.of_target(sample.target),
            said=said,
            scene=sample.meta.scene,
        )
    questions = _unique(found.values())
    by_id = {question.id: split for question, split in zip(questions, splits.values())}
    return replace(review, questions=questions, splits=by_id), Inside(review.path, None)


def _named(name: str, task: str) -> dict[str, Any]:
    """The keys of a question that the id of its sample tells: `frame/task/key` (`plan.question_id`)."""
    frame, cut, key = name.rpartition(f"/{task}") if task else ("", "", "")
    if not cut:
        return {"id": f"{name}/{task}", "frame": name, "task": task or "question"}
    return {"id": name, "frame": frame, "task": task, "key": key.removeprefix("/")}


def _unique(questions: Iterable[ReviewQuestion]) -> tuple[ReviewQuestion, ...]:
    """Questions with ids that differ: of two phrasings of one id the second gets a number."""
    seen: dict[str, int] = {}
    found = []
    for question in questions:
        seen[question.id] = seen.get(question.id, 0) + 1
        number = seen[question.id]
        found.append(question if number == 1 else question.model_copy(update={"id": f"{question.id}#{number}"}))
    return tuple(found)


def _said_in(sample: Sample, target: Target) -> tuple[Said, ...]:
    """What the record says, and what a teacher wrote if that is something else."""
    name, recorded = sample.source.teacher, target.provenance != "teacher"
    record = (Said(by="record", answer=reference_of(replace(sample, answer=None))),) if recorded else ()
    if sample.answer is None or (recorded and name in ("table", "sim") and verify(sample.answer, target).exact):
        return record
    return (*record, Said(by="teacher", name=name, answer=sample.answer, trace=sample.trace))


# --- an evaluation


def _evaluation_in(folder: Path) -> Path | None:
    """The evaluation of a run, or of a folder of evaluations: of its last stage, on the first of SPLITS; None: none."""
    inside = folder / "evaluation" if (folder / "evaluation").is_dir() else folder
    found = {path: read_evaluation(path) for path in sorted(inside.glob("*-*-*.json")) if rows_path(path).is_file()}
    if not found:
        return None

    def place(item: tuple[Path, Evaluation]) -> tuple[int, int, int]:
        one = item[1]
        split = SPLITS.index(one.split) if one.split in SPLITS else len(SPLITS)
        return split, MODES.index(one.mode), -STAGES.index(one.stage) if one.stage in STAGES[:-1] else 0

    chosen = min(found.items(), key=place)[0]
    if len(found) > 1:
        say(f"review: the wrong answers of {chosen.name}; name another of {len(found)} evaluations to review that")
    return chosen


def _evaluation(review: Review, path: Path, samples: Path | None) -> tuple[Review, Inside]:
    evaluation = read_evaluation(path)
    wrong = (row for row in read_rows(rows_path(path)) if not row.exact and row.images and row.question)
    rows = sorted(wrong, key=_sureness, reverse=True)
    if not rows:
        raise LinesideError(f"{path}: no wrong answer to review")
    found = _unique(_of_row(row, evaluation.stage, path) for row in rows)
    inside = Inside(samples or _samples_of(path.parent.parent), evaluation.split, path.parent / "pictures")
    return replace(review, questions=found), inside


def _sureness(row: Row) -> float:
    return row.confidence if row.calibrated is None else row.calibrated


def _of_row(row: Row, stage: str, path: Path) -> ReviewQuestion:
    try:
        target = Target.from_json(row.target)
        form = Form.of_target(target)
    except (TypeError, KeyError, ValueError) as error:
        raise LinesideError(f"{rows_path(path)}, {row.id}: its target is none ({error})") from error
    model = Said(by="model", name=stage, answer=row.answer or "", confidence=_sureness(row), trace=row.trace)
    by = "teacher" if target.provenance == "teacher" else "record"
    return ReviewQuestion(
        **_named(row.id, row.task),
        picture=row.images[0],
        family=row.family,
        question=row.question,
        form=form,
        said=(Said(by=by, answer=row.reference), model),
        scene=row.scene,
        why=f"the model's answer is not exact: {row.reason}",
    )


def _samples_of(run: Path) -> Path | None:
    """The folder of the samples of a run, by its recipe."""
    from lineside.recipe import load_recipe

    if (run / "samples").is_dir():
        return run / "samples"
    try:
        samples = load_recipe(run / "recipe.yaml").data.samples if (run / "recipe.yaml").is_file() else None
    except LinesideError:
        return None
    return samples if samples is not None and samples.is_dir() else None
