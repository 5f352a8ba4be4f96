"""The most confident wrong answers of an evaluation, with their pictures at full size.

`evaluate` keeps the pictures beside its rows; the report shows them. Both choose by the same rule, so they choose the
same: answers that a cell would act on first, then those with calibrated confidence, each by falling confidence; of a
task and of a picture not all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lineside.files import write_atomic
from lineside.images import image_key, jpeg_uri, thumbnail
from lineside.judgement.calibration import certainty
from lineside.judgement.cards import cut, mark_of, parts_of, target_text
from lineside.judgement.columns import ON_REQUEST
from lineside.judgement.console import task_name
from lineside.judgement.schema import Row
from lineside.types import Image, Target
from lineside.verify.stakes import outcome
from lineside.verify.text import normalise
from lineside.verify.verifiers import read_point

FOLDER = "full"  # beside the rows
SHOWN, OF_A_TASK = 8, 2
SIDE, BYTES = 1920, 500_000  # pixels and file size of a picture at most; the page holds them all


@dataclass(frozen=True, slots=True)
class Mistake:
    """A wrong answer as the page shows it. `aim` and `said`: the target and the answer of a point."""

    task: str
    pictures: tuple[str, ...]  # data URIs; empty if they were not kept
    context: str
    question: str
    trace: str
    answer: str
    target: str
    outcome: str  # "false pass" ..., with what it costs
    confidence: str
    acted: str
    places: str  # the values of its columns
    id: str
    aim: tuple[float, float] | None
    said: tuple[float, float] | None


def most_confident(rows: Iterable[Row]) -> list[Row]:
    """The rows to show, the worst first. A missing answer is no confident one."""
    wrong = sorted((row for row in rows if not row.exact and row.answer), key=_badness)
    chosen: list[Row] = []
    for most in (OF_A_TASK, SHOWN):
        tasks = Counter(row.key for row in chosen)
        seen = {key for row in chosen for key in row.images}
        for row in wrong:
            if len(chosen) < SHOWN and tasks[row.key] < most and not seen & set(row.images):
                chosen.append(row)
                tasks[row.key] += 1
                seen.update(row.images)
    return sorted(chosen, key=_badness)


def _badness(row: Row) -> tuple[bool, bool, float, str]:
    sure = row.confidence if row.calibrated is None else row.calibrated
    return row.decision != "act", row.calibrated is None, -sure, row.id


def keep_full_size(folder: Path, rows: Iterable[Row], images: Iterable[Image]) -> None:
    """Writes the pictures of the chosen rows below `folder`, without metadata; at most SIDE pixels wide and high."""
    wanted = {key for row in most_confident(rows) for key in row.images}
    for image in images:
        if (key := image_key(image.bytes)) in wanted and not (path := folder / FOLDER / f"{key}.jpg").exists():
            name, side = image.path or key, SIDE
            while len(data := thumbnail(image.bytes, name=name, side=side)) > BYTES:
                side = side * 3 // 4
            write_atomic(path, data)


def mistakes(rows: Iterable[Row], folder: Path) -> list[Mistake]:
    """The chosen rows of an evaluation whose files are in `folder`."""
    return [_mistake(row, folder) for row in most_confident(rows)]


def _mistake(row: Row, folder: Path) -> Mistake:
    context, asked = parts_of(cut(row.question))
    paths = [folder / FOLDER / f"{key}.jpg" for key in row.images]
    return Mistake(
        task=task_name(row.key),
        pictures=tuple(jpeg_uri(path.read_bytes()) for path in paths) if all(p.is_file() for p in paths) else (),
        context=context,
        question=asked,
        trace=cut(row.trace or ""),
        answer=cut(row.answer or ""),
        target=target_text(row),
        outcome=_outcome(row),
        confidence=_confidence(row),
        acted={"act": "a cell acts on it", "refuse": "a cell refuses it", None: ""}[row.decision],
        places=", ".join(
            f"{name} {' and '.join(values[:3])}" for name, values in row.columns.items() if name not in ON_REQUEST
        ),
        id=row.id,
        aim=mark_of(row),
        said=_point(row),
    )


def _outcome(row: Row) -> str:
    found = outcome(row.answer, Target.from_json(row.target), row.normal)
    if row.stakes is None:
        return found
    costs = {"false pass": row.stakes.false_pass, "false stop": row.stakes.false_stop}
    return f"{found}, costs {costs.get(found, row.stakes.wrong):g}"


def _confidence(row: Row) -> str:
    if row.calibrated is None:
        return f"not calibrated; the model itself gives {certainty(row.confidence)}"
    return f"{certainty(row.calibrated)}, calibrated on dev"


def _point(row: Row) -> tuple[float, float] | None:
    """Where in the picture the answer points."""
    found = read_point(normalise(row.answer or "")) if mark_of(row) is not None else None
    return None if found is None or max(found) > 1.0 else found
