"""The verb outcomes: import, report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lineside.cli.command import app, guarded
from lineside.cli.options import AsJson, Decimal, Delimiter, Encoding, Margin, written
from lineside.errors import LinesideError
from lineside.recipe import MARGIN

if TYPE_CHECKING:
    from lineside.serving.outcome_sources import Sources

Files = Annotated[
    list[Path],
    typer.Argument(
        metavar="FILE...", help="Outcomes: .csv, .tsv, .jsonl, or the file of `serve --outcomes`.", show_default=False
    ),
]
Answers = Annotated[
    list[Path] | None,
    typer.Option(help="A log of answers that the outcomes belong to, if they do not hold them; repeat it."),
]
Like = Annotated[
    Path | None,
    typer.Option(
        help="A checkpoint, run or samples of these tasks: how answers are compared. None: as the server's file says."
    ),
]
Columns = Annotated[
    list[str] | None,
    typer.Option("--column", help="Another name of a column, as truth=net_weight; repeat it.", show_default=False),
]
Since = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="Leave out what was told before, such as 2026-03-02 or 2026-03-02T06:00:00Z."),
]
Within = Annotated[
    float | None,
    typer.Option(
        min=0, help="Seconds: an outcome without an id belongs to the last answer of its cell at most so long before."
    ),
]
FalseFailures = Annotated[
    float, typer.Option(min=0, max=1, help="Share of right answers whose verdict is `failed`: the gripper's fault.")
]
FalseSuccesses = Annotated[
    float, typer.Option(min=0, max=1, help="Share of wrong answers whose verdict is `succeeded`.")
]

outcomes = typer.Typer(
    help="What became of answers: prompts for stage 3 (import), and whether the floor still gets what was promised "
    "(report).",
    no_args_is_help=True,
)
app.add_typer(outcomes, name="outcomes")


def _sources(
    files: list[Path],
    answers: list[Path] | None,
    like: Path | None,
    frames: Path | None,
    columns: list[str] | None,
    encoding: str | None,
    delimiter: str | None,
    decimal: str | None,
    since: str | None,
) -> Sources:
    """What the options say. Raises LinesideError for one that says nothing."""
    from lineside.judgement.outcomes import seconds_of
    from lineside.serving.outcome_sources import Sources

    pairs = [pair.partition("=") for pair in columns or []]
    if empty := next((pair for pair in pairs if not all(pair)), None):
        raise LinesideError(f"--column {''.join(empty)}: expected our name and the table's, such as truth=net_weight")
    form, told = written(encoding, delimiter, decimal), seconds_of(since) if since else None
    return Sources(
        tuple(files),
        tuple(answers or ()),
        like,
        frames,
        {ours: theirs for ours, _, theirs in pairs},
        form,
        told,
    )


def _import(
    files: Files,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the prompts.", show_default=False)],
    answers: Answers = None,
    like: Like = None,
    frames: Annotated[
        Path | None, typer.Option(help="Folder of the pictures, or of frames. None: the server's file, or the table's.")
    ] = None,
    column: Columns = None,
    encoding: Encoding = None,
    delimiter: Delimiter = None,
    decimal: Decimal = None,
    since: Since = None,
    within: Within = None,
    false_failures: FalseFailures = 0.1,
    false_successes: FalseSuccesses = 0.0,
) -> None:
    """Truths and verdicts about answers -> prompts for stage 3, with every outcome accounted for.

    A row has the answer (frame, question, task, answer) or says whose outcome it is (id), and a truth (the right
    answer) or a verdict (succeeded, failed). A truth or a success becomes a target; after a failure, giving that answer
    again is wrong, and nothing is said of others.
    """
    from lineside.judgement.outcomes import Noise
    from lineside.outcomes import import_outcomes

    sources = _sources(files, answers, like, frames, column, encoding, delimiter, decimal, since)
    import_outcomes(sources, out, noise=Noise(false_failures, false_successes), within=within)


guarded(_import, outcomes, "outcomes import")


def _report(
    files: Files,
    answers: Answers = None,
    like: Like = None,
    before: Annotated[
        list[Path] | None, typer.Option(help="Answers of before, to compare those of now with; repeat it.")
    ] = None,
    promised: Annotated[
        list[Path] | None, typer.Option(help="An evaluation: what the floor should get; repeat it for several suites.")
    ] = None,
    column: Columns = None,
    encoding: Encoding = None,
    delimiter: Delimiter = None,
    decimal: Decimal = None,
    since: Since = None,
    within: Within = None,
    false_failures: FalseFailures = 0.1,
    false_successes: FalseSuccesses = 0.0,
    margin: Margin = MARGIN,
    level: Annotated[float, typer.Option(help="Probability of any false alarm, for accuracy and drift each.")] = 0.05,
    as_json: AsJson = False,
) -> None:
    """Answers and what became of them -> live accuracy by task, cell and SKU, drift of answers, alarms.

    Exit status 1 on an alarm, which names task, cell or SKU.
    """
    from lineside.judgement.outcomes import Noise
    from lineside.outcomes_report import report

    report(
        _sources(files, answers, like, None, column, encoding, delimiter, decimal, since),
        before=before or (),
        promised=promised or (),
        noise=Noise(false_failures, false_successes),
        within=within,
        margin=margin,
        level=level,
        as_json=as_json,
    )


guarded(_report, outcomes, "outcomes report")
