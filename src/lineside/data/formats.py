"""Our samples as rows of other tools' formats, and rows as samples.

Each of our samples becomes a conversation with one question. What the format has no place for is stored under one key,
KEY, as a JSON string (a string, because Arrow cannot hold a column of records with different keys). A row with that key
is read back as the sample it was, or refused if its visible text has changed.

A foreign row has no such key. Each of its assistant turns becomes one training sample; the question begins with the
turns before it, because "and the other one?" needs them. Its target is its own answer, with the provenance of a
teacher, so it enters no suite and no stage 3. The original row is stored in `meta.extra["foreign"]` of its first
sample, and is written when the samples go back to that format.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lineside.data.checks import sample_problems
from lineside.data.conversations import ARRAYS, Conversation, Format, guess, read_conversation, write_row
from lineside.data.pictures import Picture, without_bytes
from lineside.data.rows import ROLES, sample_extra, sample_from
from lineside.data.turns import MARK, Turn, understood, words
from lineside.errors import LinesideError
from lineside.types import Image, Meta, Sample, Source, Target

KEY = "lineside"
FOREIGN = "foreign"


# --- samples as rows


def row_of(sample: Sample, form: Format, pictures: Sequence[str]) -> dict[str, Any]:
    """One of our samples as a row, with everything else about it under KEY."""
    extra = json.dumps(sample_extra(sample), ensure_ascii=False, separators=(",", ":"))
    return {**_visible(sample, form, pictures), KEY: extra}


def _visible(sample: Sample, form: Format, pictures: Sequence[str]) -> dict[str, Any]:
    if form == "jsonl":
        optional = {"trace": sample.trace, "answer": sample.answer}
        said = {"question": sample.question, **{k: v for k, v in optional.items() if v is not None}}
        return {"id": sample.id, "images": list(pictures), **said}
    lines: list[str] = []
    for label, those in itertools.groupby(sample.images, lambda image: image.label):
        lines += [label] * bool(label) + [MARK for _ in those]
    marks = "\n".join(lines)
    turns = [Turn("user", f"{marks}\n{sample.question}" if sample.question else marks)]
    if sample.answer is not None:
        turns.append(Turn("assistant", sample.answer, sample.trace))
    return write_row(turns, pictures, form, sample.id)


def foreign_row(sample: Sample, form: Format, pictures: Sequence[str]) -> dict[str, Any] | None:
    """The row that a foreign sample was read from; None if it is one of ours, or not the first of its row.

    In another conversation format all turns of the row are written anew; in plain JSON lines, which hold one
    question, every sample is written as one of ours.
    """
    kept = sample.meta.extra.get(FOREIGN)
    if not isinstance(kept, Mapping) or "raw" not in kept or (form == "jsonl" and kept.get("format") != "jsonl"):
        return None
    raw = kept["raw"]
    if kept["format"] == form:
        return raw
    return write_row(understood(read_conversation(raw).turns), pictures, form, str(raw.get("id", sample.id)))


# --- rows as samples


def samples_of(
    row: Any,
    number: int,
    form: Format | None,
    load: Callable[[Picture], Image],
    *,
    family: str = "foreign",
    captions: bool = False,
) -> tuple[list[Sample], tuple[str, ...]]:
    """The samples of one row, and its unused keys. `load` reads a picture that a row names.

    `form`: the only format to accept; any if None. `captions`: rows of one turn are captions, whatever their question
    ("Describe the picture"). Raises LinesideError with the reason when the row is refused.
    """
    found = guess(row)
    if form is not None and form != found and not {form, found} <= set(ARRAYS):
        raise LinesideError(f"a row of the format {found}, not {form}")
    if isinstance(row.get(KEY), str):
        return [_ours(row, form or found, load)], ()
    said = read_conversation(row)
    samples = _foreign(said, load, Source(found), number, without_bytes(row), family=family, captions=captions)
    for turn, sample in enumerate(samples, start=1):
        for _, problem in sample_problems(sample):
            raise LinesideError(f"turn {turn}: {problem}")
    return samples, said.unread


def _ours(row: Mapping[str, Any], form: Format, load: Callable[[Picture], Image]) -> Sample:
    shown = {key: value for key, value in row.items() if key != KEY}
    try:
        extra = json.loads(row[KEY])
        said = read_conversation(shown)
        images = [load(picture) for picture in said.pictures]
        roles, paths = extra["roles"], extra["paths"]
        if not images or not len(images) == len(roles) == len(paths) or not set(roles) <= set(ROLES):
            raise LinesideError(f"{len(images)} pictures, but the key {KEY!r} has {len(roles)}")
        sample = sample_from(extra, [Image(i.bytes, role, path) for i, role, path in zip(images, roles, paths)])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LinesideError(f"the key {KEY!r} cannot be read ({type(error).__name__}: {error})") from error
    if said.turns != read_conversation(_visible(sample, form, [p.path for p in said.pictures])).turns:
        raise LinesideError(f"changed since it was written: remove the key {KEY!r} to read it as a foreign row")
    return sample


def _foreign(
    said: Conversation,
    load: Callable[[Picture], Image],
    source: Source,
    row: int,
    raw: Mapping[str, Any],
    *,
    family: str,
    captions: bool,
) -> list[Sample]:
    """A sample of each assistant turn that is trained on; the first keeps the original row."""
    turns = understood(said.turns)
    system = [turn for turn in turns if turn.role == "system"]
    spoken = turns[len(system) :]
    _check(said, turns[: len(system)], spoken, captions)
    images = tuple(load(picture) for picture in said.pictures)
    shown, before = 0, list[str]()
    for turn in system:
        before.append(words(turn.text, shown + 1, len(images)))
        shown += turn.text.count(MARK)
    everything = not any(MARK in turn.text for turn in turns)  # without marks all pictures come first
    found: list[Sample] = []
    for asked, answered in zip(spoken[::2], spoken[1::2]):
        question = words(asked.text, shown + 1, len(images))
        shown += asked.text.count(MARK)
        before.append(question)
        is_caption = not "".join(before) or (captions and len(spoken) == 2)
        if answered.learnt:
            if not (shown or everything):
                raise LinesideError("an answer before any picture")
            kept = {"format": source.teacher, "row": row, "turn": len(found), **({} if found else {"raw": raw})}
            sample = Sample(
                id=f"{source.teacher}-{row:07d}/{len(found)}",
                kind="caption" if is_caption else "qa",
                images=images if everything else images[:shown],
                family=family,
                task="caption" if is_caption else "conversation",
                question="" if is_caption else "\n".join(before),
                trace=None if is_caption else answered.trace,
                answer=answered.text,
                target=None if is_caption else Target("exact", "teacher", accepted=(answered.text,)),
                split="train",
                meta=Meta(scene=images[0].path, extra={FOREIGN: kept}),
                source=source,
            )
            found.append(sample)
        before.append(answered.text)
    if not found or len(found[-1].images) < len(images):
        raise LinesideError("no turn to train on" if not found else "a picture after the last turn to train on")
    return found


def _check(said: Conversation, system: Sequence[Turn], spoken: Sequence[Turn], captions: bool) -> None:
    """Raises LinesideError for a conversation that gives no samples."""
    if not said.pictures:
        raise LinesideError(f"no picture: a sample has at least one; {said.told('images')}")
    if not said.asked and not captions:
        raise LinesideError(
            f"an answer without a question; {said.told('question')}. If its rows are captions, give --captions"
        )
    roles = [turn.role for turn in spoken]
    if roles == ["user"]:
        raise LinesideError(f"a question without an answer; {said.told('answer')}")
    if any(turn.role != "system" for turn in system) or roles != ["user", "assistant"] * (len(roles) // 2) or not roles:
        raise LinesideError("after the system turns, user and assistant must alternate, user first, assistant last")
    marks = sum(turn.text.count(MARK) for turn in (*system, *spoken))
    if marks not in (0, len(said.pictures)):
        raise LinesideError(f"{MARK} occurs {marks} times, for {len(said.pictures)} pictures")
