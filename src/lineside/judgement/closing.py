"""The end of `train`: the report of the run, its tables, and commands to try, all from one reading of its folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lineside.data.regions import roi_of_samples
from lineside.data.store import read_samples
from lineside.files import write_atomic
from lineside.judgement.arms import arms_table
from lineside.judgement.audit import audit_of, headline
from lineside.judgement.console import (
    cost_table,
    decisions_table,
    findings_table,
    floor_table,
    results_table,
    routes_text,
    show,
    tasks_table,
)
from lineside.judgement.page import PAGE, render
from lineside.judgement.rundata import paired_findings, read_run
from lineside.judgement.schema import Evaluation, Row
from lineside.machine import program
from lineside.progress import say
from lineside.types import Image


def close_run(folder: Path, samples: Path) -> None:
    """Write the report of the run in `folder` and print its results. `samples`: the suites that it was judged on."""
    run = read_run(folder)
    findings = paired_findings(run)
    page = folder / PAGE
    write_atomic(page, render(run, findings))
    if (result := run.result) is not None:
        show(tasks_table(result))
        show(floor_table(result))
        show(decisions_table(result))
        show(routes_text(run.suites))
        if audit := audit_of(run.data):
            say(headline(audit))
        show(results_table(run.evaluations))
    if findings:
        show(findings_table(findings))
        if (table := arms_table(run, findings)) is not None:
            show(table)
    for stage, lines in run.warnings.items():
        say(f"{stage}: {len(lines)} warning{'s' * (len(lines) != 1)} while it trained, the first: {lines[0]}")
    show(cost_table(run.costs))
    say(f"report: {page}")
    if result is not None:
        say_examples(folder, samples, result, run.main_rows.get(result.stage, {}))


def say_examples(folder: Path, samples: Path, evaluation: Evaluation, rows: Mapping[str, Row]) -> None:
    """Print the command for a question with a right answer and for one with a wrong answer; keep the pictures.

    `rows`: those of the evaluation, by id.
    """
    checkpoint = folder / evaluation.stage / "checkpoint"
    mode = " --mode fast" if evaluation.mode == "fast" else ""
    mode += " --roi whole" if roi_of_samples(samples) else ""  # these pictures are cut already
    for kind, row, image in examples(samples, evaluation.split, rows):
        picture = folder / f"example-{kind}.jpg"
        write_atomic(picture, image.bytes)
        say(
            f"ask it yourself; the model's answer is {kind}, the reference is {row.reference!r}:\n"
            f'  {program()} ask {checkpoint} {picture} "{row.question}" --task {row.key}{mode}'
        )
    say(f"serve it to robots and browsers:\n  {program()} serve {checkpoint}")


def examples(samples: Path, split: str, rows: Mapping[str, Row]) -> list[tuple[str, Row, Image]]:
    """A question of a split with a right answer and one with a wrong answer, with their pictures. `rows`: by id.

    Each is the first of its kind; a right answer that the model would act on comes before one that it would refuse.
    """
    acted_on = any(row.exact and row.decision == "act" for row in rows.values())
    found: dict[str, tuple[str, Row, Image]] = {}
    for sample in read_samples(samples, kind="qa", split=split):
        row = rows.get(sample.id)
        if row is None or len(sample.images) != 1 or (row.exact and acted_on and row.decision != "act"):
            continue
        kind = "right" if row.exact else "wrong"
        found.setdefault(kind, (kind, row, sample.images[0]))
        if len(found) == 2:
            break
    return [found[kind] for kind in ("right", "wrong") if kind in found]
