"""What `train` prints at its end: the tables of a run, the path of its report, and commands to try."""

from __future__ import annotations

from pathlib import Path

from lineside.data.regions import roi_of_samples
from lineside.data.store import read_samples
from lineside.judgement.arms import arms_table
from lineside.judgement.audit import audit_of, headline
from lineside.judgement.console import (
    cost_table,
    decisions_table,
    findings_table,
    floor_table,
    results_table,
    show,
    tasks_table,
)
from lineside.judgement.files import write_atomic
from lineside.judgement.paired import rows_by_id
from lineside.judgement.rundata import paired_findings, read_run
from lineside.judgement.schema import Evaluation, Row
from lineside.progress import say
from lineside.types import Image


def say_results(folder: Path, samples: Path, page: Path) -> None:
    """Print the results of the run in `folder`, which was judged on the suites in `samples`."""
    run = read_run(folder)
    if (result := run.result) is not None:
        show(tasks_table(result))
        show(floor_table(result))
        show(decisions_table(result))
        if audit := audit_of(run.data):
            say(headline(audit))
        show(results_table(run.evaluations))
    if findings := paired_findings(run):
        show(findings_table(findings))
        if (table := arms_table(run, findings)) is not None:
            show(table)
    show(cost_table(run.costs))
    say(f"report: {page}")
    if result is not None:
        say_examples(folder, samples, result)


def say_examples(folder: Path, samples: Path, evaluation: Evaluation) -> None:
    """Print the command for a question with a right answer and for one with a wrong answer; keep the pictures."""
    checkpoint = folder / evaluation.stage / "checkpoint"
    mode = " --mode fast" if evaluation.mode == "fast" else ""
    mode += " --roi whole" if roi_of_samples(samples) else ""  # these pictures are cut already
    for kind, row, image in examples(folder, samples, evaluation):
        picture = folder / f"example-{kind}.jpg"
        write_atomic(picture, image.bytes)
        say(
            f"ask it yourself; the model's answer is {kind}, the reference is {row.reference!r}:\n"
            f'  lineside ask {checkpoint} {picture} "{row.question}" --task {row.key}{mode}'
        )


def examples(folder: Path, samples: Path, evaluation: Evaluation) -> list[tuple[str, Row, Image]]:
    """A question with a right answer and one with a wrong answer, with their pictures.

    Each is the first of its kind; a right answer that the model would act on comes before one that it would refuse.
    """
    rows = rows_by_id(folder / "evaluation" / f"{evaluation.name}.json")
    acted_on = any(row.exact and row.decision == "act" for row in rows.values())
    found: dict[str, tuple[str, Row, Image]] = {}
    for sample in read_samples(samples, kind="qa", split=evaluation.split):
        row = rows.get(sample.id)
        if row is None or len(sample.images) != 1 or (row.exact and acted_on and row.decision != "act"):
            continue
        kind = "right" if row.exact else "wrong"
        found.setdefault(kind, (kind, row, sample.images[0]))
        if len(found) == 2:
            break
    return [found[kind] for kind in ("right", "wrong") if kind in found]
