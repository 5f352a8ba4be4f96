"""Which frames of a source are not labelled yet, and the questions that they leave open.

A frame is labelled if its picture is among the labelled samples, or if its record answers every question of the tasks.
Frames of suites are neither: a suite is drawn at random, else it does not stand for the floor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lineside.data.columns import columns_of_frame, columns_of_sample
from lineside.data.folders import Rejected
from lineside.data.plan import question_id
from lineside.data.recorded import check_columns, columns_carried
from lineside.data.review_list import Form, ReviewQuestion
from lineside.data.selection import Groups
from lineside.data.sources import FrameSource
from lineside.data.store import read_samples, sample_shards
from lineside.data.taskfile import Task, TaskFile
from lineside.data.tasks import open_questions
from lineside.errors import LinesideError
from lineside.images import image_key, undecodable
from lineside.progress import track
from lineside.types import Frame, Image


@dataclass(frozen=True, slots=True)
class OpenFrame:
    """A frame to choose from (without the bytes of its picture), with the questions that its record leaves open."""

    frame: Frame
    groups: Groups
    questions: tuple[ReviewQuestion, ...]


@dataclass
class Stock:
    """What was read. `is_open` says of each picture, in order, whether its frame is open or labelled."""

    open: list[OpenFrame] = field(default_factory=list)
    labelled: list[Groups] = field(default_factory=list)
    is_open: list[bool] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def note(self, groups: Groups, found: OpenFrame | None) -> None:
        """Add a labelled frame, or an open one."""
        self.is_open.append(found is not None)
        if found is None:
            self.labelled.append(groups)
        else:
            self.open.append(found)


def take_stock(
    stock: Stock, source: FrameSource, file: TaskFile | None, labelled: Sequence[Path], balance: Sequence[str]
) -> Iterator[Image]:
    """The pictures of all labelled and open frames, each once; what it is, is noted in `stock` before it is given.

    `file`: without one, every frame that is not labelled is open. `balance`: columns whose values are noted. Raises
    LinesideError for a folder without samples and for a column that no frame has.
    """
    check_columns(balance, columns_carried(source, balance), "--balance")
    met: set[str] = set()
    for folder in labelled:
        yield from _labelled(stock, folder, balance, met)
    for item in track(source.frames(), total=source.total, unit="frames", label="features"):
        if isinstance(item, Rejected) or undecodable(item.image.bytes):
            stock.left_out["cannot be read"] += 1
            continue
        key = image_key(item.image.bytes)
        if key in met:
            stock.left_out["labelled already, or a copy"] += 1
            continue
        met.add(key)
        if item.split != "train":
            stock.left_out["of a suite: suites are drawn at random"] += 1
            continue
        columns = columns_of_frame(item) if balance else {}
        groups = {column: tuple(columns.get(column, ())) for column in balance}
        questions = _open(item, file.tasks) if file else ()
        if file and not questions:
            if not any(task.family == item.family for task in file.tasks):
                stock.left_out[f"of family {item.family}, which no task asks about"] += 1
                continue
            stock.note(groups, None)
        else:
            stock.note(groups, OpenFrame(item.without_pictures(), groups, questions))
        yield item.image


def _labelled(stock: Stock, folder: Path, balance: Sequence[str], met: set[str]) -> Iterator[Image]:
    if not (folder.is_dir() and sample_shards(folder)):
        raise LinesideError(f"--labelled {folder}: no samples here; expected a folder that `lineside label` wrote")
    for sample in track(read_samples(folder), total=None, unit="samples", label=f"labelled: {folder}"):
        if sample.target is None or (key := image_key(sample.images[0].bytes)) in met:
            continue
        met.add(key)
        columns = columns_of_sample(sample) if balance else {}
        stock.note({column: tuple(columns.get(column, ())) for column in balance}, None)
        yield sample.images[0]


def _open(frame: Frame, tasks: Sequence[Task]) -> tuple[ReviewQuestion, ...]:
    """The questions that the frame's record leaves open, for a person."""
    return tuple(
        ReviewQuestion(
            id=question_id(frame, task, one.key),
            frame=frame.id,
            picture="",
            family=frame.family,
            task=task.name,
            key=one.key,
            question=one.question,
            form=Form.of_answer(task.answer, one.options),
            scene=frame.meta.scene,
        )
        for task in tasks
        for one in open_questions(task, frame)
    )
