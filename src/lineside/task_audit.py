"""task audit: which records are probably wrong, by source, for a person to settle.

Every record that answers a question of the tasks is compared with judges that did not learn from it: classifier heads
on the frozen encoder's features, cross-fitted by scene (`judgement.crossfit`), and the answers of a model in
evaluations on splits it was not trained on. A teacher's answers from the table (`answer.teacher_column`) are a third.
Where they disagree with a record and are sure, it is suspect (`judgement.suspects`, after confident learning: Northcutt
et al., arXiv 1911.00068). Left out: points, and records whose answer no other scene has.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import Tensor

from lineside.data.job import SIM_TASKS, task_file
from lineside.data.recorded import Record, Recorded, recorded_in_frames, recorded_in_samples
from lineside.data.review_list import write_list
from lineside.data.sources import open_frames, own_shards
from lineside.data.store import sample_shards
from lineside.data.taskfile import merge
from lineside.data.teacher import SimTeacher
from lineside.errors import LinesideError, TooLittleData
from lineside.files import hold, write_atomic
from lineside.images import image_key
from lineside.judgement.console import show
from lineside.judgement.crossfit import FOLDS, cross_fit
from lineside.judgement.pooled import AT_ONCE, Describer, open_store
from lineside.judgement.schema import read_evaluation, read_rows, rows_path
from lineside.judgement.suspects import Found, find_suspects, opinions_of_model
from lineside.judgement.suspects_page import account, render, review_question, table
from lineside.progress import say, track
from lineside.runtime import ON_CPU, Runtime
from lineside.types import Image

CUT = 0.3
# Share of the heads' answers that are right, by calibrated confidence. Below it the estimates were twice too high.
WEAK = 0.9
ACCOUNT, PAGE = "suspects.json", "suspects.html"


def audit(
    files: Sequence[Path],
    data: Path,
    out: Path,
    *,
    checkpoint: Path | None = None,
    evaluations: Sequence[Path] = (),
    by: Sequence[str] = (),
    features: Path | None = None,
    cut: float = CUT,
    runtime: Runtime = ON_CPU,
    as_json: bool = False,
) -> dict[str, Any]:
    """Write the records of `data` that are wrong with a probability of at least `cut` into `out`; returns the account.

    `data`: frames, asked by the task `files`; or without files samples, or a simulator's frames with its own tasks.
    `checkpoint`: its encoder is used. `evaluations`: of a model, whose answers are a judge. `by`: more columns to tell
    records apart. `features`: feature store to reuse. Writes `review.jsonl` and pictures for `lineside review`,
    `suspects.json` and `suspects.html`. Raises LinesideError for bad input, TooLittleData if nothing can be judged.
    """
    recorded = recorded_of(files, data, by)
    answers, model = _answers(evaluations)
    with hold(out):
        records, seen = described(recorded, checkpoint, features, runtime)
        if not records:
            raise LinesideError(f"{data}: no record answers a question of the tasks{_told(recorded)}")
        if answers and not any(record.id in answers for record in records):
            raise LinesideError(f"{evaluations[0]}: it answers no question of {data}: evaluate the model on these data")
        heads = cross_fit(records, seen, seed=runtime.seed)
        found = find_suspects(records, heads, opinions_of_model(records, answers))
        if not found.suspects:
            reasons = "; ".join(f"{count:,}: {reason}" for reason, count in found.left_out.most_common(3))
            raise TooLittleData(f"{data}: none of {len(records):,} records can be judged ({reasons})")
        judges = _judges(model, any(record.said is not None for record in records), found)
        told = account(found, cut=cut, judges=judges, left_out=recorded.left_out)
        _write(found, told, recorded, out, model)
    if as_json:
        print(json.dumps(told, indent=2, ensure_ascii=False))
    else:
        show(table(told))
        say(judges)
        say(f"look at them: lineside review {out}; the page: {out / PAGE}")
    return told


def recorded_of(files: Sequence[Path], data: Path, by: Sequence[str]) -> Recorded:
    """The records of frames or samples, see `audit`. Raises LinesideError for a folder that holds neither."""
    if files:
        file = merge([task_file(path) for path in files])
        return recorded_in_frames(open_frames(data, file.table), file, by=by)
    if data.is_dir() and sample_shards(data):
        return recorded_in_samples(data, by=by)
    if own_shards(data):
        tasks = merge([task_file(name) for name in SIM_TASKS])
        return recorded_in_frames(SimTeacher(data), tasks, by=by)
    if not data.exists():
        raise LinesideError(f"{data}: no such folder of frames or samples")
    raise LinesideError(f"{data}: no samples and no simulated frames; name the task file first: task audit FILE {data}")


def _told(recorded: Recorded) -> str:
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in recorded.left_out.most_common(4))
    return f" ({reasons})" if reasons else ""


def _answers(evaluations: Sequence[Path]) -> tuple[dict[str, tuple[str | None, float]], str]:
    """{question id: (answer, the model's own probability)} and the name of the model."""
    found: dict[str, tuple[str | None, float]] = {}
    names: list[str] = []
    for path in evaluations:
        evaluation = read_evaluation(path)
        if evaluation.split == "train":
            raise LinesideError(
                f"{path}: answers about split train: a model agrees with the records that it was trained on. Give "
                "evaluations of dev, heldout or shifted; records of train are judged by cross-fitted heads"
            )
        names.append(f"{evaluation.stage} {evaluation.mode}")
        for row in read_rows(rows_path(path)):
            if row.id in found:
                raise LinesideError(f"{path}: {row.id} is answered by two evaluations: give one for each split")
            found[row.id] = row.answer, row.confidence
    return found, " and ".join(dict.fromkeys(names))


def _judges(model: str, teacher: bool, found: Found) -> str:
    """Who judged, and how far the heads can be believed."""
    sure: dict[str, list[float]] = defaultdict(list)
    for suspect in found.suspects:
        if suspect.heads is not None:
            sure[suspect.record.task].append(suspect.heads.confidence)
    right = {task: fmean(shares) for task, shares in sorted(sure.items())}
    told = f"Judges: classifier heads on the frozen encoder's features, cross-fitted in {FOLDS} folds by scene"
    if right:
        told += f" (right in about {', '.join(f'{share:.0%} of {task}' for task, share in right.items())})"
    told += f"; the model ({model}) on splits that it was not trained on" if model else ""
    told += "; a teacher's answers." if teacher else "."
    if weak := [task for task, share in right.items() if share < WEAK]:
        told += (
            f" Weak heads ({', '.join(weak)}) take their own errors for wrong records: fewer are wrong than estimated."
        )
    return told


def described(
    recorded: Recorded, checkpoint: Path | None, features: Path | None, runtime: Runtime
) -> tuple[list[Record], dict[str, Tensor]]:
    """Every record, and the features (I,) of each picture by its key."""
    store = open_store(checkpoint, features, lambda: (image for image, _ in recorded.read()), runtime)
    describer = Describer(store.get, seed=runtime.seed)
    records: list[Record] = []
    keys: dict[str, None] = {}

    def unseen() -> Iterator[Image]:
        for image, found in track(recorded.read(), total=recorded.total or None, unit="frames", label="features"):
            records.extend(found)
            key = image_key(image.bytes)
            if found and key not in keys:
                keys[key] = None
                yield image

    stream = unseen()
    while images := list(islice(stream, AT_ONCE)):
        describer.add(images)
    return records, dict(zip(keys, describer.described())) if keys else {}


def _write(found: Found, told: dict[str, Any], recorded: Recorded, out: Path, model: str) -> None:
    flagged = found.above(told["cut"])
    wanted = {suspect.record.picture for suspect in flagged}
    pictures: dict[str, bytes] = {}
    for image, _ in track(recorded.read(), total=recorded.total or None, unit="frames", label="pictures"):
        if len(pictures) == len(wanted):
            break
        if (key := image_key(image.bytes)) in wanted:
            pictures.setdefault(key, image.bytes)
    write_list(out, ((review_question(suspect, model), pictures[suspect.record.picture]) for suspect in flagged))
    write_atomic(out / ACCOUNT, json.dumps(told, indent=2, ensure_ascii=False) + "\n")
    write_atomic(out / PAGE, render(told, flagged, pictures, str(out)))
