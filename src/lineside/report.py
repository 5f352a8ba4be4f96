"""report: a run, or a selection of samples, as one page (DESIGN 8, 10).

Reads a run folder (evaluations, their rows and small pictures, training metrics, the recipe) and writes `report.html`:
self-contained, no script, no download. Stages without results are left out, and `train` rewrites the page after each
stage. Nothing is computed for it but paired differences; all other numbers come from evaluation files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lineside.data.store import sample_shards
from lineside.errors import LinesideError
from lineside.files import write_atomic
from lineside.judgement.page import PAGE, render
from lineside.judgement.rundata import Finding, Run, paired_findings, read_run
from lineside.judgement.slices import conditions, render_slice

SHOWN = 60  # samples on a page


def report(
    folder: Path, *, out: Path | None = None, where: Sequence[str] = (), limit: int = SHOWN, seed: int = 0
) -> Path:
    """Writes the page of a run, or of a folder of samples, to `out` (default `report.html` in it) atomically and
    returns its path.

    `where` ("task=count_all") and `limit` select samples. Raises LinesideError when `folder` is neither, a file in it
    is broken, or no sample matches.
    """
    path = out or folder / PAGE
    if folder.is_dir() and sample_shards(folder):
        page = render_slice(folder, conditions(where), limit=limit, seed=seed)
    elif where:
        raise LinesideError(f"{folder}: --where selects samples, and this folder holds none")
    else:
        run = read_run(folder)
        page = _rendered(run, paired_findings(run, seed=seed))
    write_atomic(path, page)
    return path


def _rendered(run: Run, findings: Sequence[Finding]) -> str:
    """The page. Raises LinesideError for a data card that no page can show, in whatever way it is damaged."""
    try:
        return render(run, findings)
    except Exception as error:
        if run.data is None or isinstance(error, LinesideError):
            raise
        render(replace(run, data=None), findings)  # else the card is not the cause
        raise LinesideError(
            f"{run.folder / 'data.json'}: not a data card ({type(error).__name__}: {str(error)[:100]}); delete it to "
            "write it again"
        ) from error
