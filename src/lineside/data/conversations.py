"""Rows of other tools as conversations, and back: LLaVA JSON, ShareGPT, `messages`, and a question with its answer.

What a key means is told by NAMES, so that a set with names of its own needs a line there and no code. A key that gives
a row another meaning (pairs of answers, choices, tools) is refused by name; one that means nothing here is told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from lineside.data.pictures import Picture, picture_of
from lineside.data.rowfiles import HELD_OUT
from lineside.data.strict import nearest
from lineside.data.turns import MARK, Side, Turn
from lineside.errors import LinesideError
from lineside.verify.parse import CLOSE, OPEN
from lineside.verify.text import normalise

Format = Literal["llava", "sharegpt", "messages", "jsonl", "parquet"]
FORMATS: tuple[str, ...] = get_args(Format)
SHOWN = 12  # keys named at most in a message
ARRAYS = ("llava", "sharegpt")  # one JSON array; the others are JSON lines

# What the keys of rows, turns and parts mean, whatever their case. Of several keys of one meaning the first name here
# counts if it is there; else they are refused, unless they say the same.
NAMES: Mapping[str, tuple[str, ...]] = {
    meaning: tuple(names.split())
    for meaning, names in {
        "turns": "messages conversations conversation dialogue dialog texts qa qas qa_pairs",
        "question": "question problem query prompt instruction user human question_text user_prompt",
        "input": "input",  # what an instruction is about; the question where there is no instruction
        "answer": "answer answers response output completion solution ground_truth reward_model target label assistant "
        "gpt correct_answer final_answer reference_answer gt gt_answer ground_truth_answer",
        "trace": "trace reasoning_content reasoning thinking thought rationale cot chain_of_thought",
        "caption": "caption captions description",
        "text": "text",  # of a row: a caption, where the user says that its rows are captions
        "images": "images image img image_path img_path image_file image_url file_name filename",
        "system": "system system_prompt",
        "history": "history",
        "mask_history": "mask_history",
        "role": "role from speaker",
        "content": "content value text",
        "id": "id question_id",
        "split": "split",
    }.items()
}
_ROLE: Mapping[str, Side] = {
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatgpt"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
_PART = {
    kind: meaning
    for meaning, kinds in {
        "text": "text input_text output_text",
        "picture": "image image_url input_image",
        "trace": "thinking reasoning",
    }.items()
    for kind in kinds.split()
}
_KIND = {type(None): "null", bool: "true or false", int: "a number", float: "a number", dict: "an object",
         list: "a list", str: "text"}  # fmt: skip
# Marks, 0 or 1, false or true: those of the first kind say that a turn is learnt from, of the second, context only.
_LEARNT = ("loss", "weight", "train", "trainable", "train_on_turn", "label", "loss_weight", "loss_scale")
_CONTEXT = ("mask", "masked", "ignore")
_OF_TURNS = {
    *NAMES["role"],
    *NAMES["content"],
    *NAMES["trace"],
    *NAMES["question"],
    *NAMES["answer"],
    *_LEARNT,
    *_CONTEXT,
}
# Keys whose rows mean something else than a question with its answer. Empty ones are nothing.
_OTHER = {
    key: reason
    for keys, reason in {
        "chosen rejected rejected_response rejected_messages": "pairs of a better and a worse answer are not read: "
        "keep the better one as the answer",
        "choices options a b c d": "write the choices into the question, and the answer as it is to be said",
        "video videos audio audios": "only pictures are read",
        "tools functions tool_calls function_call": "calls of tools are not read",
        "loss_mask train_detail": "a mark by token or by character is not read: mark whole turns",
    }.items()
    for key in keys.split()
}


@dataclass(frozen=True, slots=True)
class Conversation:
    """What every format holds: turns and pictures. `unread` are the keys of its row that nothing was made of."""

    turns: tuple[Turn, ...]
    pictures: tuple[Picture, ...]
    asked: bool  # whether there is a question, if only an empty one
    keys: tuple[str, ...]
    unread: tuple[str, ...]

    def told(self, meaning: str) -> str:
        """The keys of the row for a message, and what may be meant by one that was not read."""
        unread = (key.lower() for key in self.unread if key.lower() not in NAMES[meaning])
        near = next((hint for key in unread if (hint := nearest(key, NAMES[meaning]))), "")
        return f"its keys are {', '.join(self.keys[:SHOWN])}{near}"


class Fields:
    """The values of a row, turn or part by what their keys mean; it keeps which keys were read."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        self._row = row
        self._plain = {key: str(key).lower().replace(" ", "_").replace("-", "_") for key in row}
        self.read: set[str] = set()

    def __call__(self, meaning: str) -> Any:
        """The value; None where no key means this, or it is null. Raises LinesideError when two keys may be meant."""
        names, found = NAMES[meaning], dict[str, Any]()
        for key, value in self._row.items():
            flag = self._plain[key] == "label" and isinstance(value, bool)  # whether a row is to be learnt from
            nothing = value is None or (meaning == "images" and value in ("", []))
            if self._plain[key] in names and not nothing and not flag:
                found[key] = value
        first = [key for key in found if self._plain[key] == names[0]] or list(found)
        if len(first) > 1 and any(found[key] != found[first[0]] for key in first):
            raise LinesideError(f"the keys {' and '.join(map(str, first))} may both be the {meaning}: keep one")
        self.read.update(found if len(first) > 1 else first)
        return found[first[0]] if first else None


def guess(row: Any) -> Format:
    """The format that a row is in, by its keys. Raises LinesideError when it is none of them."""
    if not isinstance(row, Mapping):
        raise LinesideError("not a JSON object")
    fields = Fields(row)
    if fields("turns") is not None:
        if "conversations" not in fields.read:
            return "messages"
        return "sharegpt" if "images" in row else "llava"
    if all(fields(meaning) is None for meaning in ("question", "input", "answer", "caption", "text")):
        keys = ", ".join(map(str, list(row)[:SHOWN])) or "none"
        raise LinesideError(
            f"no turns, question, answer or caption among its keys ({keys}): rename those that are meant"
        )
    return "jsonl"


def is_row(row: Any) -> bool:
    """Whether this is a row of a known format."""
    try:
        return bool(guess(row))
    except LinesideError:
        return False


# --- one row as a conversation


def read_conversation(row: Mapping[str, Any]) -> Conversation:
    """Turns and pictures of a row of any format. Raises LinesideError with the reason when it is not understood."""
    fields = Fields(row)
    said = fields("turns")
    _refuse_other(row)
    _refuse_held(row, fields("split"), said is not None)
    pictures = list[Picture]()
    turns = [Turn("system", _text(system, "system"))] if (system := fields("system")) else []
    if history := fields("history"):
        turns += _turns(history, pictures)
    question, asked = fields("question"), True
    if said is None and isinstance(question, list) and all(isinstance(turn, Mapping) for turn in question):
        said = question  # a prompt of turns
    if said is not None:
        turns += _turns(said, pictures)
    else:
        parts = [question, fields("input")]
        is_caption = fields("caption") is not None and fields("answer") is None
        asked = is_caption or any(part is not None for part in parts)
        turns.append(Turn("user", "\n".join(part for part in (_text(p or "", "question") for p in parts) if part)))
    if turns and turns[-1].role == "user":
        turns += _answer(fields, pictures, ("answer",) if turns[-1].text else ("answer", "caption", "text"))
    if fields("mask_history"):
        last = max((n for n, turn in enumerate(turns) if turn.role == "assistant"), default=-1)
        turns = [replace(turn, learnt=turn.learnt and n == last) for n, turn in enumerate(turns)]
    beside = fields("images")
    listed = beside if isinstance(beside, list | tuple) else [] if beside is None else [beside]
    named = [picture_of(picture) for picture in listed]
    if pictures and named and pictures != named:
        raise LinesideError("pictures are named in the turns and beside them: keep one")
    fields("id")
    unread = [str(key) for key in row if key not in fields.read and row[key] is not None]
    of_turns = {
        str(key).lower() for turn in said or () if isinstance(turn, Mapping) for key in turn if turn[key] is not None
    }
    unread += [f"{key} of a turn" for key in sorted(of_turns - _OF_TURNS)]
    return Conversation(tuple(turns), tuple(pictures or named), asked, tuple(map(str, row)), tuple(unread))


def _turns(said: Any, pictures: list[Picture]) -> list[Turn]:
    """Turns of a list, or of one turn; the pictures named in them are added to `pictures`."""
    said = [said] if isinstance(said, Mapping) else said
    if not isinstance(said, list | tuple) or not said:
        raise LinesideError(f"the turns are {_KIND.get(type(said), 'none')}: expected a list of turns")
    found: list[Turn] = []
    for turn in said:
        fields = Fields(turn if isinstance(turn, Mapping) else {})
        asked, answered = turn if _is_pair(turn) else (fields("question"), fields("answer"))
        if fields("role") is None and asked is not None and answered is not None:
            found += [Turn("user", _text(asked, "question")), Turn("assistant", answer_text(answered))]
        else:
            found.append(_turn(turn, pictures))
    return found


def _is_pair(turn: Any) -> bool:
    """Whether it is a question and its answer in a list of two, as a history has them."""
    return isinstance(turn, list | tuple) and len(turn) == 2


def _turn(turn: Any, pictures: list[Picture]) -> Turn:
    if not isinstance(turn, Mapping):
        raise LinesideError("a turn that is not an object")
    fields = Fields(turn)
    _refuse_other(turn)
    named = fields("role")
    role = _ROLE.get(str(named).lower())
    if role is None:
        raise LinesideError(f"a turn of {named!r}: expected human or user, gpt or assistant, system")
    content, trace = fields("content"), fields("trace")
    if isinstance(content, list | tuple):
        content, within = _parts_read(content, pictures)
        trace = within if trace is None else trace
    learnt = _learnt(turn)
    if learnt and role == "user":
        raise LinesideError("a turn of the user is marked to be learnt from: only answers are; take the mark away")
    return Turn(role, _text(content, "content"), _optional(trace, "trace"), learnt is not False)


def _parts_read(parts: Sequence[Any], pictures: list[Picture]) -> tuple[str, str | None]:
    """(text with MARK where pictures stand, trace or None) of the parts of a message."""
    text, traces, marks, before = "", list[str](), 0, len(pictures)
    for part in parts:
        part = {"type": "text", "text": part} if isinstance(part, str) else part
        if not isinstance(part, Mapping):
            raise LinesideError("a part of a message that is not an object")
        kind = part.get("type") or next((key for key in _PART if part.get(key) is not None), None)
        meaning = _PART.get(str(kind))
        held = {key: value for key, value in part.items() if key != "type" and value is not None}
        if meaning is None:
            raise LinesideError(f"a message part of type {kind!r}: expected text or image")
        if meaning == "picture":
            place = held.pop("index", None)
            text += MARK if place is None else f"<image {place}>"
            marks += 1
            if held:
                pictures.append(picture_of(held))
            continue
        said = _text(next((held[key] for key in ("text", str(kind)) if key in held), ""), str(kind))
        if meaning == "trace":
            traces.append(said)
        else:
            text += f"\n{said}" if text and not text.endswith(MARK) else said
    if len(pictures) not in (before, before + marks):
        raise LinesideError("a message names some of its pictures and not others")
    return text, "\n".join(traces) or None


def _answer(fields: Fields, pictures: list[Picture], meanings: Sequence[str]) -> list[Turn]:
    """The assistant's turn out of a row's own keys, the first of these meanings; none where there is no answer."""
    found = next((value for meaning in meanings if (value := fields(meaning)) is not None), None)
    if found is None:
        return []
    if isinstance(found, list | tuple) and found and all(isinstance(f, Mapping) and Fields(f)("role") for f in found):
        return _turns(found, pictures)
    return [Turn("assistant", answer_text(found), _optional(fields("trace"), "trace"))]


def answer_text(value: Any) -> str:
    """An answer as text: numbers as decimals without an exponent, true as yes, false as no.

    Of a list, as several annotators give, the answer that more than half of them share; of an object its
    `ground_truth` or `answer`. Raises LinesideError for what is none of these.
    """
    if isinstance(value, Mapping):
        value = next((value[key] for key in ("ground_truth", "answer") if value.get(key) is not None), value)
    if isinstance(value, list | tuple) and value:
        texts = [answer_text(item) for item in value]
        (most, count), *_ = Counter(map(normalise, texts)).most_common()
        if 2 * count > len(texts):
            return next(text for text in texts if normalise(text) == most)
        raise LinesideError(f"the answers differ ({', '.join(texts)[:80]}): keep one")
    if not isinstance(value, str | int | float):
        raise LinesideError(f"the answer is {_KIND.get(type(value), 'not text')}: expected text or a number")
    if isinstance(value, bool):
        return "yes" if value else "no"
    return np.format_float_positional(value, trim="-") if isinstance(value, float) else str(value)


def _learnt(turn: Mapping[str, Any]) -> bool | None:
    """What its marks say of a turn: True it is learnt from, False it is context only, None nothing."""
    found = None
    for key, value in turn.items():
        name = str(key).lower()
        if value is None or name not in (*_LEARNT, *_CONTEXT):
            continue
        if value not in (0, 1):
            raise LinesideError(f"the mark {key}: {str(value).lower():.40}: expected 0 or 1, false or true")
        learnt = bool(value) is (name in _LEARNT)
        if found not in (None, learnt):
            raise LinesideError("marks that disagree whether a turn is learnt from")
        found = learnt
    return found


def _refuse_other(holder: Mapping[str, Any]) -> None:
    """Raises LinesideError for keys that give a row, or a turn, a meaning that is not read."""
    for key, value in holder.items():
        if value not in (None, "", [], {}) and (reason := _OTHER.get(str(key).lower())):
            raise LinesideError(f"the key {key!r}: {reason}")


def _refuse_held(row: Mapping[str, Any], split: Any, turns: bool) -> None:
    """Raises LinesideError for a row that says itself that it is not to be trained on.

    A number beside turns is a mark; in a plain row it may be the weight of a thing, and beside both a label is a class.
    """
    extra = row.get("extra_info")
    for name in (split, extra.get("split") if isinstance(extra, Mapping) else None):
        if str(name).lower() in HELD_OUT:
            raise LinesideError(f"a row of the split {name!r}: what is converted becomes training data; leave it out")
    for key, value in row.items():
        is_mark = isinstance(value, bool) or (turns and str(key).lower() != "label")
        if is_mark and _learnt({key: value}) is False:
            raise LinesideError(f"the row is marked {key}: {str(value).lower()}, not to be learnt from; leave it out")


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise LinesideError(f"the {name} is {_KIND.get(type(value), 'not text')}: expected text")
    return value


def _optional(value: Any, name: str) -> str | None:
    return None if value is None else _text(value, name)


# --- a conversation as a row


def write_row(turns: Sequence[Turn], pictures: Sequence[str], form: Format, name: str) -> dict[str, Any]:
    """Turns as a row of a format of conversations; `pictures` as they shall be named there."""
    if not any(MARK in turn.text for turn in turns if turn.role != "assistant"):
        first = next(n for n, turn in enumerate(turns) if turn.role == "user")
        asked = "\n".join([MARK] * len(pictures) + [turns[first].text] * bool(turns[first].text))
        turns = [*turns[:first], replace(turns[first], text=asked), *turns[first + 1 :]]
    texts = [turn.text if turn.trace is None else f"{OPEN}{turn.trace}{CLOSE}{turn.text}" for turn in turns]
    marks = [{} if turn.learnt else {"loss": False} for turn in turns]
    if form in ARRAYS:
        speaker = {"user": "human", "assistant": "gpt"}
        said = [
            {"from": speaker[turn.role], "value": text, **mark}
            for turn, text, mark in zip(turns, texts, marks)
            if turn.role != "system"
        ]
        spoken = [turn.text for turn in turns if turn.role == "system"]
        system = {"system": "\n".join(spoken)} if spoken else {}
        one = pictures[0] if len(pictures) == 1 else list(pictures)
        named = {"images": list(pictures)} if form == "sharegpt" else {"image": one}
        return {"id": name, **named, "conversations": said, **system}
    messages = [{"role": t.role, "content": _parts(text), **mark} for t, text, mark in zip(turns, texts, marks)]
    return {"id": name, "messages": messages, "images": list(pictures)}


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
