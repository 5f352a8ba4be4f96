"""The verb outcomes: import, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lineside.cli.command import app, guarded
from lineside.cli.options import AsJson, Margin
from lineside.errors import LinesideError
from lineside.recipe import MARGIN

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
        help="A checkpoint, or samples, of the same tasks: how answers are compared. None: as the server's file says."
    ),
]
Columns = Annotated[
    list[str] | None,
    typer.Option("--column", help="Another name of a column, as truth=net_weight; repeat it.", show_default=False),
]
Decimal = Annotated[
    str | None, typer.Option(metavar=", or .", help="The decimal sign of truths in tables. None: as they show.")
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


def _import(
    files: Files,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the prompts.", show_default=False)],
    answers: Answers = None,
    like: Like = None,
    frames: Annotated[
        Path | None, typer.Option(help="Folder of the pictures, or of frames. None: the server's file, or the table's.")
    ] = None,
    column: Columns = None,
    decimal: Decimal = None,
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
    from lineside.serving.outcome_sources import Sources

    sources = Sources(tuple(files), tuple(answers or ()), like, frames, _names(column or []), _sign(decimal))
    import_outcomes(sources, out, noise=Noise(false_failures, false_successes), within=within)


def _names(pairs: list[str]) -> dict[str, str]:
    for pair in pairs:
        if not all(pair.partition("=")):
            raise LinesideError(f"--column {pair}: expected our name and the table's, such as truth=net_weight")
    return {ours: theirs for ours, _, theirs in (pair.partition("=") for pair in pairs)}


def _sign(text: str | None) -> str | None:
    if text not in (None, ",", "."):
        raise LinesideError(f"--decimal {text}: expected a comma or a point")
    return text


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
    decimal: Decimal = None,
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
    from lineside.serving.outcome_sources import Sources

    report(
        Sources(tuple(files), tuple(answers or ()), like, None, _names(column or []), _sign(decimal)),
        before=before or (),
        promised=promised or (),
        noise=Noise(false_failures, false_successes),
        within=within,
        margin=margin,
        level=level,
        as_json=as_json,
    )


guarded(_report, outcomes, "outcomes report")
