"""outcomes: what became of answers -> prompts of stage 3, and whether the floor still gets what was promised.

`import` joins truths and verdicts to the answers they belong to (judgement/outcomes.py), finds their pictures, and
writes a folder of prompts with targets of provenance `outcome`, which a recipe takes as any other (`data.mix`). Every
outcome is accounted for. `report` gives the live accuracy with intervals, and alarms (judgement/live.py).

Left out: what an outcome says about other questions of its frame.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lineside.data.store import SampleWriter
from lineside.data.tabular import AS_FOUND
from lineside.errors import LinesideError
from lineside.files import hold, replace_folder, write_atomic
from lineside.hashing import stable_hash
from lineside.images import image_key
from lineside.judgement.outcome_pictures import Pictures, Shown
from lineside.judgement.outcomes import (
    NO_FORM,
    NO_TASK,
    NOISE,
    Account,
    Found,
    Logged,
    Noise,
    join,
    settle,
    told_since,
    told_time,
)
from lineside.progress import say, track
from lineside.serving.outcome_sources import Sources, like
from lineside.types import SUITES, Frame, Sample, Source

FILE, LEFT_OUT = "outcomes.json", "left-out.jsonl"
NO_PICTURE = "unknown frame: there is no such picture"
BAD_PICTURE = "the picture cannot be shown to the model"
IN_SUITE = "the frame is one of a suite, which is never trained on"


def import_outcomes(
    sources: Sources, out: Path, *, noise: Noise = NOISE, within: float | None = None
) -> dict[str, Any]:
    """Write the prompts that outcomes give into `out`, and return the account that is written to `outcomes.json`.

    `within`: seconds; an outcome without an id or a frame belongs to the last answer of its cell so long before. Raises
    LinesideError for bad input, where nothing can be used, and for a folder with other samples: nothing is then
    written.
    """
    identity = _identity(sources, noise, within)
    with hold(out.parent, name=f".{out.name}.lock"):
        if (known := _known(out)) is not None:
            if known.get("identity") == identity:
                say(f"outcomes: {out} has these outcomes already")
                return known
            raise LinesideError(f"{out} holds other samples: give another folder, or remove it")
        account = Account()
        rows, answers, logs = sources.read(account)
        forms, roi = like(sources.like)
        told = join(rows, answers, forms, account, within=within, decimal=sources.written.decimal)
        account.untold = account.answers - len({id(one.answer) for one in told})
        told = told_since(told, sources.since, account)
        pictures = Pictures(sources.frames, {path: log.picture for path, log in logs.items()}, roi)
        found = settle(told, forms, noise, account, picture=pictures.known_by)
        staged = out.with_name(f".{out.name}.new")
        shutil.rmtree(staged, ignore_errors=True)  # of a process that was killed
        try:
            written = _write(staged, found, pictures, account)
            if not written:
                raise LinesideError(f"no outcome can be used: {_advice(account)}")
            summary = {
                "version": 1, "identity": identity, "files": [str(path) for path in sources.files], **asdict(noise),
                "prompts": written, **account.to_json(),
            }  # fmt: skip
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in account.rows)
            write_atomic(staged / LEFT_OUT, lines)
            write_atomic(staged / FILE, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
            replace_folder(staged, out)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    _tell(out, account, written)
    return summary


def _identity(sources: Sources, noise: Noise, within: float | None) -> str:
    """Hash of everything that decides the prompts but the pictures."""
    digest = hashlib.blake2b(digest_size=8)
    plain = [asdict(noise), within, str(sources.like), str(sources.frames), dict(sources.columns or {})]
    written = asdict(sources.written)
    said = {"decimal": written.pop("decimal"), "written": written, "since": sources.since}
    plain += [said] if sources.since or sources.written != AS_FOUND else []
    digest.update(json.dumps(plain, sort_keys=True).encode())
    for path in (*sources.files, *sources.answers):
        with suppress(OSError):  # `Sources.read` says what is wrong
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _known(out: Path) -> dict[str, Any] | None:
    """The account of a folder, {} for one of something else; None if nothing is there."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        found = json.loads((out / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


# --- prompts


def _write(folder: Path, found: Sequence[Found], pictures: Pictures, account: Account) -> int:
    """Write the prompts, those of a frame together; returns their number."""
    groups: dict[str, list[Found]] = {}
    for one in found:
        groups.setdefault(one.told[0].answer.frame, []).append(one)
    left = dict(groups)
    with SampleWriter(folder) as writer:
        for names, frame in pictures.in_shards(set(groups)):
            for name in sorted(names):
                _write_frame(writer, left.pop(name, []), pictures, account, frame)
        shown = track(left.values(), total=len(left), unit="frames", label="outcomes: read pictures")
        for group in shown:
            _write_frame(writer, group, pictures, account, None)
    return writer.written


def _write_frame(
    writer: SampleWriter, group: Sequence[Found], pictures: Pictures, account: Account, frame: Frame | None
) -> None:
    for one in group:
        answer, detail = one.told[0].answer, ""
        try:
            shown = pictures.shown(answer, frame)
            reason = NO_PICTURE if shown is None else IN_SUITE if shown.split in SUITES else ""
        except LinesideError as error:
            shown, reason, detail = None, BAD_PICTURE, str(error)
        if shown is None or reason:
            for lost in one.told:
                account.leave(reason, lost.where, detail or answer.frame)
                account.used[lost.kind] -= 1
            continue
        writer.add(_sample(one, answer, shown))


def _sample(one: Found, answer: Logged, shown: Shown) -> Sample:
    family, _, task = one.task.partition("/")
    last = max((told.time or told.answer.time or 0.0 for told in one.told), default=0.0)
    pictures = ",".join(f"{image.name} {image_key(image.bytes)}" for image in shown.images)
    return Sample(
        id=f"outcome/{stable_hash(pictures, answer.question):016x}/{task}",
        kind="prompt",
        images=shown.images,
        family=family,
        task=task,
        question=answer.question,
        trace=None,
        answer=None,
        target=one.target,
        split="train",
        meta=replace(shown.meta, extra={**shown.meta.extra, "outcome": one.by}),
        source=Source(
            f"outcome of {answer.model}" if answer.model else "outcome", answer.version, told_time(last or None)[:10]
        ),
    )


def _advice(account: Account) -> str:
    told = account.told()
    if NO_PICTURE in account.left_out:
        told += ". Pictures: serve with --outcome-frames, or give their folder with --frames"
    if {NO_TASK, NO_FORM} & set(account.left_out):
        told += ". Tasks, and how their answers are compared: name the checkpoint that answered with --like"
    return told


def _tell(out: Path, account: Account, written: int) -> None:
    used = ", ".join(f"{count:,} by {kind}" for kind, count in account.used.items() if count)
    say(f"outcomes: {account.read:,} outcomes of {account.answers:,} answers give {written:,} prompts ({used})")
    if account.untold:
        say(f"outcomes: nothing is told of {account.untold:,} answers")
    if account.left_out:
        say(f"outcomes: {account.left_out.total():,} are left out, see {out / LEFT_OUT}: {_advice(account)}")
    for line in account.remarks:
        say(f"outcomes: {line}")
    say(f"outcomes: train on them with data.mix: [{{samples: {out}}}], or data.samples={out}")
