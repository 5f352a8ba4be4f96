"""select: which frames to label next, for a budget: balanced, unlike what is labelled, doubtful to the model.

A frame is a candidate if its picture is not among the labelled samples and its record leaves a question of the tasks
unanswered. `data.selection` chooses: facility location on the frozen encoder's features (see there for the sources).
Where a model is given, it answers the open questions, and a frame weighs by the doubt about its least certain answer,
by confidence calibrated on dev. Left out: rounds. Label what was chosen, and run it again.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from lineside.data.job import task_file
from lineside.data.regions import check_same_roi, roi_stated
from lineside.data.review_list import write_list
from lineside.data.selection import Candidate, Pick
from lineside.data.selection import select as choose
from lineside.data.sources import FrameSource, open_frames
from lineside.data.taskfile import TaskFile, merge
from lineside.data.unlabelled import Stock, take_stock
from lineside.data.views import check_same_views
from lineside.errors import LinesideError
from lineside.files import hold, write_atomic
from lineside.images import undecodable
from lineside.judgement.console import certainty
from lineside.judgement.doubt import Doubter
from lineside.judgement.pooled import AT_ONCE, Describer, open_store
from lineside.model.features import FeatureStore
from lineside.progress import say
from lineside.runtime import ON_CPU, Runtime
from lineside.types import Frame, Image

LIST, ACCOUNT = "select.csv", "select.json"
SHOWN = 8


def select(
    frames: Path,
    out: Path,
    *,
    budget: int | None = None,
    usd: float | None = None,
    usd_per_answer: float | None = None,
    tasks: Sequence[Path] = (),
    labelled: Sequence[Path] = (),
    balance: Sequence[str] = (),
    checkpoint: Path | None = None,
    features: Path | None = None,
    runtime: Runtime = ON_CPU,
) -> dict[str, Any]:
    """Choose frames of `frames` to label and write them into `out`; returns the account.

    `budget`: frames; or `usd` with `usd_per_answer`. `labelled`: folders of samples. `balance`: columns whose values
    are balanced. `checkpoint`: its encoder describes the pictures; with `tasks` it also answers, for its doubt.
    Writes `select.csv` and, with `tasks`, a list for `lineside review`. Raises LinesideError for bad input, a budget
    that chooses nothing or everything, and where no frame is unlabelled.
    """
    unit, most = _budget(budget, usd, usd_per_answer)
    file = merge([task_file(path) for path in tasks]) if tasks else None
    source = open_frames(frames, file.table if file else None, family="frames")
    with hold(out):
        store = open_store(checkpoint, features, lambda: _images(source), runtime)
        if checkpoint is not None and file is not None:
            check_same_roi(store.vlm.roi, roi_stated(file.table), frames)
            check_same_views(store.vlm.views, tuple(file.table.views) if file.table else (), frames)
        stock, seen_NI = _read(source, file, labelled, balance, store, seed=runtime.seed)
        if not stock.open:
            raise LinesideError(f"{frames}: no unlabelled frame{_reasons(stock)}")
        asks = Doubter(store, checkpoint) if checkpoint is not None and file is not None else None
        stock.open, doubts = asks.answers(source, stock.open) if asks else (stock.open, [None] * len(stock.open))
        price = usd_per_answer or 1.0
        candidates = [
            Candidate(one.frame.id, one.groups, doubt, price * max(1, len(one.questions)) if unit == "$" else 1.0)
            for one, doubt in zip(stock.open, doubts)
        ]
        _check_budget(most, unit, candidates)
        for column in balance:
            if len({one.groups[column] for one in stock.open}) == 1:
                say(f"warning: --balance {column}: all unlabelled frames have the same value, so it balances nothing")
        open_N = np.array(stock.is_open)
        picks = choose(
            candidates,
            seen_NI[open_N],
            budget=most,
            labelled_MI=seen_NI[~open_N],
            labelled_groups=stock.labelled,
            seed=runtime.seed,
        )
        account = {
            "chosen": len(picks),
            "unlabelled": len(candidates),
            "labelled": len(stock.labelled),
            "left_out": stock.left_out,
            "balance": list(balance),
            "seed": runtime.seed,
            "not_calibrated": asks.uncalibrated if asks else [],
            "spent": round(sum(candidates[pick.index].cost for pick in picks), 4),
            "unit": unit,
        }
        _write(out, account, picks, candidates, stock, source)
    _tell(account, picks, candidates, out)
    return account


def _budget(budget: int | None, usd: float | None, each: float | None) -> tuple[str, float]:
    """("frames" or "$", how many)."""
    if (budget is None) == (usd is None):
        raise LinesideError("give --budget N, a number of frames, or --usd X with --usd-per-answer P")
    if budget is not None:
        if budget < 1:
            raise LinesideError(f"--budget {budget}: expected at least 1 frame")
        return "frames", float(budget)
    assert usd is not None
    if each is None or not 0 < each < math.inf:
        raise LinesideError("--usd needs the price of one answer: --usd-per-answer 0.05")
    if not each <= usd < math.inf:
        raise LinesideError(f"--usd {usd:g}: expected at least the price of one answer, {each:g} $")
    return "$", usd


def _check_budget(most: float, unit: str, candidates: Sequence[Candidate]) -> None:
    """Raises LinesideError for a budget that pays for nothing, or for more than there is."""
    total, least = sum(one.cost for one in candidates), min(one.cost for one in candidates)
    if unit == "frames" and most > total:
        raise LinesideError(
            f"--budget {most:,.0f}: only {len(candidates):,} frames are unlabelled; ask for at most that"
        )
    if unit == "$" and most > total + 1e-9:
        raise LinesideError(
            f"--usd {most:g}: all {len(candidates):,} unlabelled frames cost {total:.2f} $; there is nothing to choose"
        )
    if most < least - 1e-9:
        raise LinesideError(f"--usd {most:g}: the cheapest frame costs {least:.2f} $, with all its questions")


def _images(source: FrameSource) -> Iterator[Image]:
    for item in source.frames():
        if isinstance(item, Frame) and not undecodable(item.image.bytes):
            yield item.image


def _read(
    source: FrameSource,
    file: TaskFile | None,
    labelled: Sequence[Path],
    balance: Sequence[str],
    store: FeatureStore,
    *,
    seed: int,
) -> tuple[Stock, np.ndarray]:
    """Every labelled frame and every candidate, and the features (N, I) of both in the order of `is_open`."""
    stock, describer = Stock(), Describer(store.get, seed=seed)
    stream = take_stock(stock, source, file, labelled, balance)
    while images := list(islice(stream, AT_ONCE)):
        describer.add(images)
    return stock, describer.described().float().numpy() if stock.is_open else np.zeros((0, 1), np.float32)


def reason(pick: Pick, candidate: Candidate) -> str:
    """Why a frame is chosen, for a person."""
    parts = [f"{column} {value or 'unknown'} had {had}" for column, (value, had) in pick.had.items()]
    if pick.nearest is not None:
        parts.append(f"similarity {pick.nearest:.2f} to the nearest labelled or chosen frame (1: the same)")
    closest = f"nearest of these to {pick.stands_for:,} unlabelled frames"
    parts.append("like no other frame" if pick.stands_for <= 1 else closest)
    if candidate.doubt is not None:
        parts.append(f"the model is {certainty(1.0 - candidate.doubt)} sure of its least certain answer")
    return "; ".join(parts)


def _reasons(stock: Stock) -> str:
    answered = {"answered by their records": len(stock.labelled)} if stock.labelled else {}
    told = ", ".join(f"{count:,} {why}" for why, count in {**answered, **stock.left_out}.items())
    return f": {told}" if told else ": it holds no frame"


def _write(
    out: Path,
    account: Mapping[str, Any],
    picks: Sequence[Pick],
    candidates: Sequence[Candidate],
    stock: Stock,
    source: FrameSource,
) -> None:
    text = io.StringIO()
    columns: list[str] = list(account["balance"])
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["rank", "file", "frame", *columns, "similarity", "stands_for", "doubt", "why"])
    for rank, pick in enumerate(picks, 1):
        one, candidate = stock.open[pick.index], candidates[pick.index]
        values = [" | ".join(one.groups.get(column, ())) for column in columns]
        near = "" if pick.nearest is None else f"{pick.nearest:.4f}"
        doubt = "" if candidate.doubt is None else f"{candidate.doubt:.4f}"
        name = one.frame.image.path or one.frame.id
        writer.writerow([rank, name, one.frame.id, *values, near, pick.stands_for, doubt, reason(pick, candidate)])
    write_atomic(out / LIST, text.getvalue())
    write_atomic(out / ACCOUNT, json.dumps(account, indent=2, ensure_ascii=False) + "\n")
    asked = {stock.open[pick.index].frame.id: pick for pick in picks if stock.open[pick.index].questions}
    if asked:
        pictures = {
            item.id: item.image.bytes for item in source.frames() if isinstance(item, Frame) and item.id in asked
        }
        write_list(
            out,
            (
                (question.model_copy(update={"why": reason(pick, candidates[pick.index])}), pictures[frame])
                for frame, pick in asked.items()
                for question in stock.open[pick.index].questions
            ),
        )


def _tell(account: Mapping[str, Any], picks: Sequence[Pick], candidates: Sequence[Candidate], out: Path) -> None:
    for rank, pick in enumerate(picks[:SHOWN], 1):
        print(f"{rank:>4}  {candidates[pick.index].id}: {reason(pick, candidates[pick.index])}")
    if len(picks) > SHOWN:
        print(f"      and {len(picks) - SHOWN:,} more in {out / LIST}")
    spent = f", for {account['spent']:.2f} $" if account["unit"] == "$" else ""
    print(
        f"{account['chosen']:,} of {account['unlabelled']:,} unlabelled frames chosen{spent}, beside "
        f"{account['labelled']:,} labelled: {out / LIST}"
    )
    if any(account["not_calibrated"]):
        say(f"not calibrated, so without doubt: {', '.join(account['not_calibrated'])}")
