"""trial start | stop | judge: a version runs beside the champion for a share of requests, until the gate has its n.

In shadow it answers after the champion, in time that nobody else wants, and only the champion's answer is used. As a
canary it really answers. `judge` compares both on the questions whose truth was told: a non-inferiority test, paired,
by frame, as `lineside compare` makes it.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

from lineside.errors import CheckFailed, LinesideError, TooLittleData
from lineside.files import write_atomic
from lineside.fleet.live import Live, forms_of, live
from lineside.judgement.console import comparison_table, show
from lineside.judgement.paired import Comparison, compare_rows
from lineside.progress import say
from lineside.registry import trials
from lineside.registry.listing import cell_name
from lineside.registry.store import Registry, Version

OPEN = "label_first.csv"


def start(
    folder: Path, version: str, *, share: float, cell: str = "", canary: bool = False, force: str | None = None
) -> None:
    """Begin a trial. Raises LinesideError or CheckFailed as `trials.start`."""
    with Registry(folder) as registry:
        found = registry.version(version)
        kind: trials.Kind = "canary" if canary else "shadow"
        trial = trials.start(registry, found, kind=kind, share=share, cell=cell, force=force)
    what = "answers" if canary else "answers in shadow"
    say(f"{found.label} {what} {trial.share:.1%} of the requests of {cell_name(cell)}; running servers follow")
    if not canary:
        say("servers need --outcomes: a shadow's answers are only kept there")
    print(found.label)


def stop(folder: Path, name: str, *, cell: str = "") -> None:
    """End a trial. Raises LinesideError if there is none."""
    with Registry(folder) as registry:
        trial = trials.stop(registry, name, cell=cell)
    say(f"the trial of {trial.version.label} in {cell_name(cell)} has ended; running servers follow")
    print(trial.version.label)


def judge(
    folder: Path,
    version: str,
    *,
    log: Path,
    cell: str = "",
    margin: float,
    out: Path | None = None,
    seed: int = 0,
    as_json: bool = False,
) -> Comparison:
    """Compare a version with the champion of a cell on the answers of a log. `out`: a folder for the pairs that differ
    and have no truth yet.

    Raises CheckFailed if the version is worse, TooLittleData if nothing can be said, with the frames that are missing,
    and LinesideError for a log or versions that cannot be used.
    """
    with Registry(folder) as registry:
        second = registry.version(version)
        champion = registry.champion(second.name, cell) or registry.champion(second.name)
        if champion is None or champion.version.model == second.model:
            raise LinesideError(f"{second.label} has no other champion beside it in {cell_name(cell)}")
        first = champion.version
        found = live(log, first, second, {**forms_of(registry, first), **forms_of(registry, second)})
    _tell(found, first, second)
    if out is not None:
        write_atomic(out / OPEN, _table(found))
        say(f"{out / OPEN}: {len(found.open):,} pairs that differ and have no truth yet")
    if not found.first:
        raise TooLittleData(
            f"{found.pairs:,} pairs of {first.label} and {second.label} in {log}, and the truth of none was told: tell "
            "it to the server (POST /v1/outcomes)"
        )
    names = first.label, second.label
    compared = compare_rows(found.first, found.second, names=names, margin=margin, seed=seed)
    if as_json:
        print(compared.model_dump_json(indent=2))
    else:
        show(comparison_table(compared))
    told = f"{second.label} against {first.label}, live: {compared.verdict}{_because(compared)}"
    if compared.verdict == "worse":
        raise CheckFailed(told)
    if compared.verdict == "too little data":
        raise TooLittleData(told)
    say(told)
    return compared


def _because(compared: Comparison) -> str:
    because = compared.because.replace("scenes needed", "frames needed")
    return f": {because}" if because else ""


def _tell(found: Live, first: Version, second: Version) -> None:
    say(
        f"{found.pairs:,} questions were answered by {first.label} and {second.label}, {found.agree:,} alike; the "
        f"truth of {found.told:,} was told, and {len(found.first):,} can be compared"
    )
    if found.unusable:
        say(f"{found.unusable:,} were left out: their truth is no answer to the question, or cannot be compared")
    if found.pairs and found.told < found.pairs:
        say("note: if the truth is told for failures alone, this favours the challenger: tell it for a random share")


def _table(found: Live) -> str:
    text = io.StringIO()
    table = csv.DictWriter(text, ["id", "frame", "question", "first", "second"], lineterminator="\n")
    table.writeheader()
    table.writerows(found.open)
    return text.getvalue()
