"""report: a run as one page to look at (DESIGN 8, 10).

Reads what a run folder holds (evaluations, their rows and small pictures, training metrics, the recipe) and writes
`report.html`: self-contained, no script, nothing fetched. Stages that have not run yet are left out, so that `train`
rewrites the page after each. Left out: any number that is not in an evaluation file; the page computes paired
differences only.
"""

from __future__ import annotations

from pathlib import Path

from lineside.judgement.files import write_atomic
from lineside.judgement.page import render
from lineside.judgement.rundata import read_run


def report(run: Path, *, out: Path | None = None, seed: int = 0) -> Path:
    """Writes the page of `run` to `out` (default `<run>/report.html`) atomically and returns its path.

    Raises LinesideError when `run` is no folder or a file in it is broken.
    """
    path = out or run / "report.html"
    write_atomic(path, render(read_run(run), seed=seed))
    return path
