"""trial start | stop | judge: a version runs beside the champion for a share of requests, until the gate has its n.

In shadow it answers after the champion, in time that nobody else wants, and only the champion's answer is used. As a
canary it really answers. `judge` compares both on the questions whose truth was told: a non-inferiority test, paired,
by frame, as `lineside compare` makes it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from lineside.data.tabular import AS_FOUND, Form
from lineside.errors import CheckFailed, LinesideError, TooLittleData
from lineside.files import write_atomic
from lineside.fleet.pairs import Pairs, read_pairs
from lineside.judgement.console import comparison_table, show
from lineside.judgement.paired import Comparison, compare_rows
from lineside.judgement.typed import read_forms
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
        kind = "canary" if canary else "shadow"
        trial, before = trials.start(registry, found, kind=kind, share=share, cell=cell, force=force)
    what = "answers" if canary else "answers in shadow"
    instead = f", in place of the {before.kind} {before.version.label}" if before else ""
    say(f"{found.label} {what} {trial.share:.1%} of the requests of {cell_name(cell)}{instead}; running servers follow")
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
    truths: Sequence[Path] = (),
    written: Form = AS_FOUND,
    cell: str = "",
    margin: float,
    out: Path | None = None,
    seed: int = 0,
    as_json: bool = False,
) -> Comparison:
    """Compare a version with the champion of a cell on the answers of a log. `truths`: tables that tell of them too;
    `written`: how. `out`: a folder for the pairs that differ and have no truth yet.

    Raises CheckFailed if the version is worse, TooLittleData if nothing can be said, with the frames that are missing,
    and LinesideError for a log or versions that cannot be used.
    """
    with Registry(folder) as registry:
        second, first = _both(registry, version, cell)
        forms = {
            task: form for one in (first, second)
            for task, form in read_forms(registry.files(registry.item(one.model))).items()
        }  # fmt: skip
    found = read_pairs(log, first, second, forms, truths, written)
    _tell(found, first, second)
    if out is not None:
        write_atomic(out / OPEN, _table(found))
        say(f"{out / OPEN}: {len(found.open):,} pairs that differ and have no truth yet")
    if not found.first:
        raise TooLittleData(
            f"{log}: no pair of {first.label} and {second.label} has a truth that can be used; tell it to the server "
            f"(POST /v1/outcomes), or fill in {OPEN} of --out and give it with --truth"
        )
    compared = compare_rows(
        found.first, found.second, names=(first.label, second.label), margin=margin, seed=seed
    )  # fmt: skip
    if as_json:
        print(compared.model_dump_json(indent=2))
    else:
        show(comparison_table(compared))
    because = compared.because.replace("scenes needed", "frames needed")
    told = f"{second.label} against {first.label}, live: {compared.verdict}{f': {because}' if because else ''}"
    if compared.verdict == "worse":
        raise CheckFailed(told)
    if compared.verdict == "too little data":
        raise TooLittleData(told)
    say(told)
    return compared


def _both(registry: Registry, version: str, cell: str) -> tuple[Version, Version]:
    """The version, and the champion beside which it runs."""
    found = registry.version(version)
    champion = registry.answering(found.name, cell)
    if champion is None or champion.version == found:
        raise LinesideError(f"{found.label} has no other champion beside it in {cell_name(cell)}")
    return found, champion.version


def _tell(found: Pairs, first: Version, second: Version) -> None:
    account = found.account
    say(
        f"{found.count:,} questions were answered by {first.label} and {second.label}, {found.agree:,} alike; the "
        f"truth of {found.told:,} was told, and {len(found.first):,} can be compared"
    )
    if account.left_out:
        say(f"{account.left_out.total():,} are left out: {account.told()}")
    if found.told < found.count:
        say("note: if the truth is told for failures alone, this favours the challenger: tell it for a random share")


def _table(found: Pairs) -> str:
    text = io.StringIO()
    table = csv.DictWriter(text, ["id", "frame", "question", "truth", "first", "second"], lineterminator="\n")
    table.writeheader()
    table.writerows(found.open)
    return text.getvalue()
