"""Everyone's formats as samples and back: LLaVA JSON, ShareGPT, `messages` (JSON lines or Parquet), plain JSON lines.

Our samples travel as one conversation of one question each; all that a format has no place for rides along under one
key, KEY, as a JSON string (a string, since a column of records that differ from row to row is what Arrow cannot hold).
Read back, a row with that key is the sample it was, or is refused if its visible text was changed.

A foreign row has no such key. Each of its assistant turns becomes one training sample, whose question begins with the
turns before it: what "and the other one?" asks is in there. Its target is the answer itself, vouched for by a teacher
alone, so that it enters no suite and no stage 3. The row as it stood travels in `meta.extra["foreign"]` of its first
sample, and is what is written when the samples go back to that format.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

from lineside.data.checks import sample_problems
from lineside.data.readers import plain
from lineside.data.rows import ROLES, sample_extra, sample_from
from lineside.errors import LinesideError
from lineside.types import Image, Meta, Sample, Source, Target

Format = Literal["llava", "sharegpt", "messages", "jsonl", "parquet"]
FORMATS: tuple[str, ...] = get_args(Format)
ARRAYS = ("llava", "sharegpt")  # one JSON array; the others are JSON lines
KEY = "lineside"
FOREIGN = "foreign"
MARK = "<image>"
OPEN, CLOSE = "<think>", "</think>"
MAX_ROW = 64 << 20  # characters of one row

_ROLE = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


@dataclass(frozen=True, slots=True)
class Turn:
    """One side's words; MARK in a user's text is where a picture stands."""

    role: Literal["system", "user", "assistant"]
    text: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """What every format holds. `pictures` are as the row names them: paths, or (bytes, path) where they lie inside."""

    turns: tuple[Turn, ...]
    pictures: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """A row that did not become samples: its number, from 1, and why."""

    row: int
    reason: str


def guess(row: Any) -> Format:
    """The format that a row is most likely in. Raises LinesideError when it is none of them."""
    keys = set(row) if isinstance(row, Mapping) else set()
    if "messages" in keys:
        return "messages"
    if "conversations" in keys:
        return "sharegpt" if "images" in keys else "llava"
    if keys & {"question", "answer"}:
        return "jsonl"
    raise LinesideError(f"a row with the keys {', '.join(sorted(keys)) or 'none'} is in no format that is known here")


# --- one row of each format


def read_conversation(row: Mapping[str, Any], form: Format) -> Conversation:
    """Raises LinesideError with the reason when a row is not in its format."""
    if form == "jsonl":
        question, answer, trace = (_text(row.get(name) or "", name) for name in ("question", "answer", "trace"))
        turns = [Turn("user", question)]
        if "answer" in row:
            turns.append(Turn("assistant", f"{OPEN}{trace}{CLOSE}{answer}" if trace else answer))
        return Conversation(tuple(turns), _pictures(row))
    if form in ARRAYS:
        said = _list(row, "conversations")
        system = [Turn("system", _text(row["system"], "system"))] if row.get("system") else []
        return Conversation((*system, *(_turn(t, "from", "value") for t in said)), _pictures(row))
    turns, inside = [], list[Any]()
    for message in _list(row, "messages"):
        content = message.get("content") if isinstance(message, Mapping) else None
        if isinstance(content, list | tuple):
            texts = []
            for part in content:
                kind = part.get("type") if isinstance(part, Mapping) else None
                if kind == "image":
                    texts.append(MARK)
                    if named := next((part[k] for k in ("image", "path", "url") if part.get(k)), None):
                        inside.append(named)
                elif kind == "text":
                    texts.append(_text(part.get("text") or "", "text"))
                else:
                    raise LinesideError(f"a message part of type {kind!r}: expected text or image")
            message = {**message, "content": "\n".join(texts)}
        turns.append(_turn(message, "role", "content"))
    return Conversation(tuple(turns), tuple(inside) or _pictures(row))


def write_row(turns: Sequence[Turn], pictures: Sequence[Any], form: Format, name: str) -> dict[str, Any]:
    """A conversation as a row of a format; `pictures` as they shall be named there."""
    if form == "jsonl":
        (question, answer) = (turns[0].text, turns[1].text if len(turns) > 1 else None)
        trace, plain = split_trace(answer or "")
        return {
            "id": name,
            "images": list(pictures),
            "question": without_marks(question),
            **({"trace": trace} if trace is not None else {}),
            **({"answer": plain} if answer is not None else {}),
        }
    if form in ARRAYS:
        said = [
            {"from": {"user": "human", "assistant": "gpt"}[t.role], "value": t.text}
            for t in turns
            if t.role != "system"
        ]
        spoken = [t.text for t in turns if t.role == "system"]
        system = {"system": "\n".join(spoken)} if spoken else {}
        named = {"images": list(pictures)} if form == "sharegpt" else {"image": _one(pictures)}
        return {"id": name, **named, "conversations": said, **system}
    messages = [{"role": t.role, "content": _parts(t.text)} for t in turns]
    return {"id": name, "messages": messages, "images": list(pictures)}


def _turn(turn: Any, who: str, what: str) -> Turn:
    if not isinstance(turn, Mapping):
        raise LinesideError("a turn that is no object")
    role = _ROLE.get(str(turn.get(who)))
    if role is None:
        raise LinesideError(f"a turn of {turn.get(who)!r}: expected human or user, gpt or assistant, system")
    return Turn(role, _text(turn.get(what), what))  # pyright: ignore[reportArgumentType]


def _parts(text: str) -> list[dict[str, str]]:
    """A text with marks as the parts of a message; one line end beside a mark belongs to the mark."""
    parts: list[dict[str, str]] = []
    for number, piece in enumerate(text.split(MARK)):
        if number:
            parts.append({"type": "image"})
            piece = piece.removeprefix("\n")
        if piece := piece.removesuffix("\n") if MARK in text else piece:
            parts.append({"type": "text", "text": piece})
    return parts


def _pictures(row: Mapping[str, Any]) -> tuple[Any, ...]:
    found = row.get("images", row.get("image"))
    return () if found is None else tuple(found) if isinstance(found, list | tuple) else (found,)


def _one(pictures: Sequence[Any]) -> Any:
    return pictures[0] if len(pictures) == 1 else list(pictures)


def _list(row: Mapping[str, Any], name: str) -> list[Any]:
    if not isinstance(row.get(name), list) or not row[name]:
        raise LinesideError(f"no list {name!r}")
    return row[name]


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise LinesideError(f"{name} is {type(value).__name__}, not text")
    return value


def without_marks(text: str) -> str:
    """A user's text without the places of the pictures."""
    return (
        "\n".join(part for part in (piece.strip("\n") for piece in text.split(MARK)) if part) if MARK in text else text
    )


def split_trace(text: str) -> tuple[str | None, str]:
    """(trace or None, answer) of an assistant's text."""
    if text.startswith(OPEN) and text.count(OPEN) == text.count(CLOSE) == 1:
        trace, _, answer = text[len(OPEN) :].partition(CLOSE)
        return trace, answer
    return None, text


# --- samples as rows


def row_of(sample: Sample, form: Format, pictures: Sequence[Any]) -> dict[str, Any]:
    """One of our samples as a row, with all that makes it ours under KEY."""
    extra = json.dumps(sample_extra(sample), ensure_ascii=False, separators=(",", ":"))
    return {**_visible(sample, form, pictures), KEY: extra}


def _visible(sample: Sample, form: Format, pictures: Sequence[Any]) -> dict[str, Any]:
    marks = "\n".join([MARK] * len(sample.images))
    turns = [Turn("user", f"{marks}\n{sample.question}" if sample.question else marks)]
    if sample.answer is not None:
        trace = "" if sample.trace is None else f"{OPEN}{sample.trace}{CLOSE}"
        turns.append(Turn("assistant", trace + sample.answer))
    return write_row(turns, pictures, form, sample.id)


def foreign_row(sample: Sample, form: Format) -> dict[str, Any] | None:
    """The row that a foreign sample was read from; None if it is one of ours, or not the first of its row.

    In another format of conversations the row is rendered anew, all its turns; in plain JSON lines, which hold one
    question, every sample goes as one of ours.
    """
    kept = sample.meta.extra.get(FOREIGN)
    if not isinstance(kept, Mapping) or "raw" not in kept or (form == "jsonl" and kept.get("format") != "jsonl"):
        return None
    raw, was = kept["raw"], kept["format"]
    if was == form:
        return raw
    said = read_conversation(raw, was)
    return write_row(said.turns, said.pictures, form, str(raw.get("id", sample.id)))


# --- rows as samples


def samples_of(
    row: Any,
    number: int,
    form: Format,
    load: Callable[[Any], Image],
    *,
    family: str = "foreign",
    captions: bool = False,
) -> list[Sample]:
    """The samples of one row. `load` gives the picture that a row names.

    `captions`: rows of one turn are captions, whatever they ask ("Describe the picture"). Raises LinesideError with the
    reason when the row is refused.
    """
    if not isinstance(row, Mapping):
        raise LinesideError("not a JSON object")
    if isinstance(row.get(KEY), str):
        return [_ours(row, form, load)]
    said = read_conversation(row, form)
    samples = _foreign(said, number, form, load, family=family, captions=captions)
    raw = {**row, "images": [_name(p) for p in said.pictures]} if form == "parquet" else dict(row)
    kept = {"format": "messages" if form == "parquet" else form, "row": number}
    for turn, sample in enumerate(samples):
        extra = {FOREIGN: {**kept, "turn": turn, **({"raw": raw} if turn == 0 else {})}}
        samples[turn] = sample = replace(sample, meta=replace(sample.meta, extra=extra))
        for _, problem in sample_problems(sample):
            raise LinesideError(f"turn {turn + 1}: {problem}")
    return samples


def _ours(row: Mapping[str, Any], form: Format, load: Callable[[Any], Image]) -> Sample:
    try:
        extra = json.loads(row[KEY])
        named = read_conversation(row, form).pictures
        images = [load(name) for name in named]
        roles, paths = extra["roles"], extra["paths"]
        if not images or not len(images) == len(roles) == len(paths) or not set(roles) <= set(ROLES):
            raise LinesideError(f"{len(images)} pictures, where the key {KEY!r} says {len(roles)}")
        sample = sample_from(extra, [Image(i.bytes, role, path) for i, role, path in zip(images, roles, paths)])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LinesideError(f"the key {KEY!r} cannot be read ({type(error).__name__}: {error})") from error
    if read_conversation(row, form).turns != read_conversation(_visible(sample, form, named), form).turns:
        raise LinesideError(f"changed since it was written: take the key {KEY!r} away to read it as a foreign row")
    return sample


def _foreign(
    said: Conversation, number: int, form: Format, load: Callable[[Any], Image], *, family: str, captions: bool
) -> list[Sample]:
    system = [t.text for t in said.turns if t.role == "system"]
    turns = [t for t in said.turns if t.role != "system"]
    if not said.pictures:
        raise LinesideError("no picture: a sample has at least one")
    if len(turns) % 2 or not turns or any(t.role != ("user", "assistant")[n % 2] for n, t in enumerate(turns)):
        raise LinesideError("user and assistant must take turns, a user first and an assistant last")
    marks = [t.text.count(MARK) for t in turns]
    if sum(marks) not in (0, len(said.pictures)) or any(marks[1::2]):
        raise LinesideError(f"{sum(marks)} places for {len(said.pictures)} pictures")
    images = tuple(load(name) for name in said.pictures)
    found: list[Sample] = []
    before = list(system)
    for n in range(0, len(turns), 2):
        shown = sum(marks[: n + 1]) if sum(marks) else len(images)
        if not shown:
            raise LinesideError("an answer before any picture")
        asked = without_marks(turns[n].text)
        trace, answer = split_trace(turns[n + 1].text)
        is_caption = not "".join([*before, asked]) or (captions and len(turns) == 2)
        sample = Sample(
            id=f"{form}-{number:07d}/{n // 2}",
            kind="caption" if is_caption else "qa",
            images=images[:shown],
            family=family,
            task="caption" if is_caption else "conversation",
            question="" if is_caption else "\n".join([*before, asked]),
            trace=None if is_caption else trace,
            answer=answer,
            target=None if is_caption else Target("exact", "teacher", accepted=(answer,)),
            split="train",
            meta=Meta(scene=images[0].path),
            source=Source(form),
        )
        found.append(sample)
        before += [asked, answer]
    return found


def _name(picture: Any) -> str:
    return picture[1] if isinstance(picture, tuple) else str(picture)


# --- rows of a file, streamed


def json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """(number from 1, row or LinesideError) of a JSON array, or of JSON lines; never more than a row is held.

    Raises LinesideError when the file cannot be read, or is damaged so that the next row cannot be found.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            start = file.read(1)
            while start and start.isspace():
                start = file.read(1)
            if start == "[":
                yield from _array(file, path)
            else:
                for number, line in enumerate(_lines(start, file), start=1):
                    if line.strip():
                        yield number, _loaded(line)
    except (OSError, UnicodeDecodeError) as error:
        raise LinesideError(f"{path}: cannot be read ({error})") from error


def _lines(start: str, file: Any) -> Iterator[str]:
    while line := start + file.readline(MAX_ROW):
        if len(line) >= MAX_ROW:
            raise LinesideError(f"a line of over {MAX_ROW} characters: this is no file of rows")
        yield line
        start = ""


def _array(file: Any, path: Path) -> Iterator[tuple[int, Any]]:
    buffer, number, at_end = "", 0, False
    decoder = json.JSONDecoder(parse_constant=_no_constant)
    while True:
        buffer = buffer.lstrip(" \t\r\n")
        if buffer.startswith("]"):
            return
        try:
            if not buffer:
                raise ValueError("nothing")
            row, end = decoder.raw_decode(buffer)
            rest = buffer[end:].lstrip(" \t\r\n")
            if not rest and not at_end:
                raise ValueError("the row may go on")
            if rest[:1] not in (",", "]"):
                raise LinesideError(f"{path}, row {number + 1}: expected a comma or the end of the list after it")
        except (ValueError, RecursionError) as error:
            if at_end or len(buffer) > MAX_ROW or isinstance(error, RecursionError):
                raise LinesideError(f"{path}, row {number + 1}: not JSON from here on ({error})") from error
            more = file.read(max(1 << 16, len(buffer)))  # as much again, so that a large row is not tried too often
            at_end = not more
            buffer += more
            continue
        number += 1
        yield number, _clean(row)
        buffer = rest.removeprefix(",")


def _loaded(line: str) -> Any:
    try:
        return _clean(json.loads(line, parse_constant=_no_constant))
    except (ValueError, RecursionError) as error:
        return LinesideError(f"not JSON ({error})")


def _clean(row: Any) -> Any:
    try:
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:  # half a surrogate pair can be written in JSON, and nowhere else
        return LinesideError(f"text that is no Unicode ({error})"[:200])
    return row


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def parquet_rows(files: Sequence[Path]) -> Iterator[tuple[int, Any]]:
    """(number from 1, row) of `messages` in Parquet; pictures as (bytes, path)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    for file in files:
        try:
            with pq.ParquetFile(file) as shard:
                for batch in shard.iter_batches(batch_size=32):
                    for row in batch.to_pylist():
                        number += 1
                        pictures = [
                            (p.get("bytes") or b"", p.get("path") or f"images/{number}-{place}")
                            if isinstance(p, Mapping)
                            else (p or b"", f"images/{number}-{place}")
                            for place, p in enumerate(_pictures(row))
                        ]
                        others = {k: plain(v) for k, v in row.items() if k not in ("image", "images")}
                        yield number, {**others, "images": pictures}
        except (pa.ArrowException, OSError) as error:
            raise LinesideError(f"{file}: cannot be read as Parquet ({str(error).splitlines()[0]})") from error


def safe_name(name: Any) -> PurePosixPath:
    """A picture's path inside a data set. Raises LinesideError for one that leads elsewhere."""
    if not isinstance(name, str) or not name:
        raise LinesideError(f"a picture named {name!r:.60}: expected a path")
    if "://" in name or name.startswith("data:"):
        raise LinesideError(f"the picture {name[:80]!r} is not in a file: download it first and name the file")
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name:
        raise LinesideError(f"the picture {name[:80]!r} must lie inside the folder of pictures")
    return pure
