"""export: write a checkpoint in the format of another engine, and check it with that engine.

What the format cannot carry is refused before any weights are read. The files are written beside their place and
checked there: the engine answers the same questions as the checkpoint, on square and other pictures, with thinking on
and off. Only an export whose check holds takes the place of an earlier one. With a suite, the exact match that the
export loses is measured too. Left out: int4, and formats of accelerators that we cannot run.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lineside import origin
from lineside.backends.reference import Reference
from lineside.errors import CheckFailed, LinesideError
from lineside.exporting import check as checking
from lineside.exporting import suite as suites
from lineside.exporting.check import Check
from lineside.exporting.engines import Ours, Response
from lineside.exporting.suite import Judged, Lost
from lineside.exporting.targets import TARGETS, Target, To, installed, limits, problem
from lineside.files import fingerprint, hold, make_folder, replace_folder, write_atomic
from lineside.machine import lacking
from lineside.model.checkpoint import load
from lineside.model.config import read_config
from lineside.model.vlm import VLM
from lineside.progress import say
from lineside.runtime import ON_CPU
from lineside.strict import read_record

RECORD = "export.json"


class Export(BaseModel):
    """What lies beside an export's files as export.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    checkpoint: str
    fingerprint: str = Field(description="of the checkpoint's weights")
    to: To
    weights: str = Field(description="number format of the matrices")
    files: dict[str, int] = Field(description="bytes by name")
    engine: str = Field(description="the engine that checked it, with its version; empty if it was not checked")
    limits: list[str] = Field(description="what a user must know")
    reference: str = "the checkpoint's weights, computed in float32"
    check: Check
    suite: list[Lost] = Field([], description="exact match lost, by mode")
    date: str
    git: str | None
    version: str
    machine: str


def export(
    checkpoint: Path,
    *,
    to: To,
    weights: str | None = None,
    out: Path | None = None,
    serve: str | None = None,
    samples: Path | None = None,
    split: str = "heldout",
    limit: int | None = None,
    as_json: bool = False,
) -> Export:
    """Write, check and record an export; prints what was found.

    `serve` "vllm": refuse what vLLM cannot load. `samples`: also measure exact match on `limit` questions of `split`.
    Raises LinesideError for what the format cannot carry, for a missing package, and for a folder that is no export;
    CheckFailed if the check does not hold: the files then lie in `<out>.failed`.
    """
    target = TARGETS[to]
    weights = weights or target.weights[0]
    if weights not in target.weights:
        raise LinesideError(f"--to {to} has no weights {weights}: expected one of {', '.join(target.weights)}")
    config = read_config(checkpoint)
    if why := problem(to, config, _tokenizer(checkpoint), serve=serve):
        raise LinesideError(f"{checkpoint} cannot be exported --to {to}: {why}")
    checked = installed(target.checks)
    for package in (*target.writes, *(() if target.unchecked else (target.checks,))):
        if not installed(package):
            raise lacking(package, f"export --to {to}")
    out = out or checkpoint.absolute().parent / "export" / f"{to}-{weights}"
    if out.exists() and not (out / RECORD).exists() and any(out.iterdir()):
        raise LinesideError(f"{out} is not an export (it has no {RECORD}): give another folder with --out")
    with hold(out.parent, name=f".{out.name}.lock"):
        judged = None
        if samples is not None:
            if not checked:
                raise lacking(target.checks, "--suite")
            judged = suites.judge_checkpoint(load(checkpoint), samples, split=split, limit=limit)
        return _export(checkpoint, config, to, target, weights, out, checked, judged, split, as_json)


def _export(
    checkpoint: Path,
    config: dict[str, Any],
    to: To,
    target: Target,
    weights: str,
    out: Path,
    checked: bool,
    judged: Judged | None,
    split: str,
    as_json: bool,
) -> Export:
    vlm = load(checkpoint, dtype=torch.float32)
    # A tracer cannot follow the kernels of this machine: it would write their results as constants.
    vlm.use(Reference())
    asked = checking.questions(vlm)
    ours = checking.answers(Ours(vlm), asked, "checkpoint in float32")
    work = out.with_name(out.name + ".tmp")
    shutil.rmtree(work, ignore_errors=True)
    make_folder(work)
    try:
        target.write(vlm, checkpoint, work, weights, lambda part: say(f"export: {part}"))
        files = {str(p.relative_to(work)): p.stat().st_size for p in sorted(work.rglob("*")) if p.is_file()}
        engine, found, lost = "", _unchecked(target, to), []
        if checked:
            engine, found, lost = _checked(vlm, target, work, ours, asked, weights, judged, split)
        record = Export(
            checkpoint=str(checkpoint),
            fingerprint=fingerprint(checkpoint),
            to=to,
            weights=weights,
            files=files,
            engine=engine,
            limits=limits(to, config, weights, int(vlm.tower.config.image_size)),
            check=found,
            suite=lost,
            date=origin.now(),
            git=origin.git_commit(),
            version=origin.version(),
            machine=origin.machine(ON_CPU, torch.float32),
        )
        write_atomic(work / RECORD, record.model_dump_json(indent=2) + "\n")
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)  # an unfinished export only fills the disk
        raise
    if found.wrong:
        failed = out.with_name(out.name + ".failed")
        replace_folder(work, failed)
        raise CheckFailed(
            f"the export is not the checkpoint: {found.wrong}. Its files lie in {failed}; do not use them"
        )
    replace_folder(work, out)
    if as_json:
        print(record.model_dump_json(indent=2))
    else:
        _show(record, out)
    return record


def _checked(
    vlm: VLM,
    target: Target,
    folder: Path,
    ours: Sequence[Response],
    asked: Sequence[checking.CheckQuestion],
    weights: str,
    judged: Judged | None,
    split: str,
) -> tuple[str, Check, list[Lost]]:
    """The engine and its version, the check, and the exact match lost if a suite is given."""
    with target.engine(vlm, folder) as engine:
        found = checking.compare(vlm, ours, engine, asked, weights=weights, prepare=target.prepare)
        lost = []
        if judged is not None and not found.wrong:
            way = partial(checking.prepared, vlm) if target.prepare else None
            lost = suites.lost(vlm, engine, judged, split=split, prepare=way)
        return f"{engine.name} {engine.version}", found, lost


def _unchecked(target: Target, to: To) -> Check:
    return Check(
        made=False,
        why_not=f"{target.checks} is not installed: pip install 'lineside[export]', then export --to {to} again",
    )


def _tokenizer(checkpoint: Path) -> dict[str, Any]:
    path = checkpoint / "tokenizer.json"
    try:
        return read_record(dict[str, Any], path, "copy the whole folder of the checkpoint")
    except OSError as error:
        raise LinesideError(f"{path}: {error.strerror}: copy the whole folder of the checkpoint") from None


def _show(record: Export, out: Path) -> None:
    rows: list[tuple[str, str]] = []
    size = sum(record.files.values()) / 1e6
    rows.append(("export", f"{out} ({record.to}, {record.weights}, {size:,.1f} MB)"))
    found = record.check
    if found.overall is None:
        rows.append(("check", f"NOT MADE: {found.why_not}"))
    else:
        all_ = found.overall
        rows.append(("checked with", f"{record.engine}, against {record.reference}"))
        rows.append(("difference", f"at most {all_.max_difference:.2g} of log-probability, {all_.steps} steps"))
        rows.append(("greedy", f"{all_.greedy_same} of {all_.questions} answers are the same"))
        rows.append(("prompts", f"{found.prompts} of {found.prompts} have the tokens of training"))
        for shape, part in found.unprepared.items():
            rows.append(("", f"picture sent as it is, {shape}: differs by {part.max_difference:.2g}"))
    for one in record.suite:
        low, high = (100 * x for x in one.interval)
        shares = f"{100 * one.checkpoint:.1f}% -> {100 * one.export:.1f}%: lost {100 * one.lost:.1f} points"
        rows.append(
            (
                f"exact, {one.mode}",
                f"{shares} ({low:.1f} to {high:.1f}); n {one.n:,}, {one.split}; "
                f"{100 * one.same_answers:.1f}% of answers the same",
            )
        )
    for text in record.limits:
        rows.append(("note", text))
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, Text(value))  # square brackets in it are not markup
    Console().print(table)
