"""Rows of other tools as conversations, and back: LLaVA JSON, ShareGPT, `messages`, and a question with its answer.

NAMES lists the meaning of each key, so another spelling is one more word there and no code. A key that gives a row
another meaning (preference pairs, choices, tools) is refused by name; an unknown key is ignored and reported.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from lineside.data.pictures import Picture, picture_of
from lineside.data.rowfiles import held_out
from lineside.data.turns import MARK, Side, Turn
from lineside.errors import LinesideError
from lineside.strict import nearest
from lineside.types import THINK_CLOSE, THINK_OPEN
from lineside.verify.text import normalise

Format = Literal["llava", "sharegpt", "messages", "jsonl", "parquet"]
FORMATS: tuple[str, ...] = get_args(Format)
SHOWN = 12  # most keys named in a message
ARRAYS = ("llava", "sharegpt")  # one JSON array; the other formats are JSON lines

# Meanings of the keys of rows, turns and parts, in any spelling (image_path, imagePath, "Image path"). If a row has
# several keys with one meaning, the first name here counts; else the row is refused unless their values are equal.
NAMES: Mapping[str, tuple[str, ...]] = {
    meaning: tuple(names.split())
    for meaning, names in {
        "turns": "messages conversations conversation message dialogue dialog texts qa qas qa_pairs",
        "question": "question problem query prompt instruction user human question_text user_prompt",
        "input": "input",  # the data of an instruction; without an instruction it is the question
        "answer": "answer answers response output completion solution ground_truth reward_model target label assistant "
        "gpt correct_answer final_answer reference_answer gt gt_answer ground_truth_answer multiple_choice_answer",
        "trace": "trace reasoning_content reasoning thinking thought rationale cot chain_of_thought thoughts think "
        "thought_process thinking_process thinking_content reasoning_text reasoning_process",
        "trace_parts": "reasoning_details thinking_blocks",
        "caption": "caption captions description",
        "text": "text",  # of a row: a caption, if the user says that rows are captions
        "images": "images image img imgs image_path img_path image_paths image_file image_files image_url image_urls "
        "image_name image_filename file_name filename picture pictures photo",
        "system": "system system_prompt",
        "history": "history",
        "mask_history": "mask_history",
        "role": "role from speaker",
        "content": "content value text",
        "id": "id question_id",
        "split": "split data_split dataset_split subset partition",
    }.items()
}


def spelt(key: Any) -> str:
    """A key without the differences between tools: case, underscores, hyphens and spaces."""
    return re.sub(r"[\s_-]+", "", str(key).lower())


_SPELT: Mapping[str, tuple[str, ...]] = {meaning: tuple(map(spelt, names)) for meaning, names in NAMES.items()}
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
# Marks, 0 or 1, false or true. The first kind says that a turn is trained on, the second that it is context only.
_LEARNT = frozenset(
    "loss weight train trainable training train_on_turn label loss_weight loss_scale compute_loss has_loss need_loss "
    "with_loss output_with_loss learn learnable kto_tag".replace("_", "").split()
)
_CONTEXT = frozenset("mask masked is_masked ignore ignore_loss no_loss skip".replace("_", "").split())
# The same for a row, where only false and true are marks: they judge the row's answer.
_GOOD = frozenset("is_correct correct is_valid valid keep desirable is_desirable accepted".replace("_", "").split())
_BAD = frozenset("exclude excluded discard discarded undesirable is_rejected is_bad".replace("_", "").split())
_LIKE_A_MARK = re.compile("loss|mask|train|learn|supervis|weight|ignore|kto")
_OF_TURNS = {
    *(spelt(name) for kind in ("role", "content", "trace", "trace_parts", "question", "input", "answer", "images")
      for name in NAMES[kind]),
    *_LEARNT,
    *_CONTEXT,
}  # fmt: skip
# Keys that give a row another meaning than a question with its answer. Empty values are ignored.
_OTHER = {
    key: reason
    for keys, reason in {
        "chosen rejected rejected_response rejected_messages": "preference pairs are not read: keep the better answer "
        "as the answer",
        "choices options a b c d": "write the choices into the question, and give the answer in its words",
        "video videos audio audios": "only pictures are read",
        "tools functions tool_calls function_call": "tool calls are not read",
        "loss_mask step_loss_mask train_detail": "a mark by token or by character is not read: mark whole turns",
    }.items()
    for key in keys.replace("_", "").split()
}


@dataclass(frozen=True, slots=True)
class Conversation:
    """What every format holds: turns and pictures. `unread` are the keys of its row that are not used."""

    turns: tuple[Turn, ...]
    pictures: tuple[Picture, ...]
    asked: bool  # whether there is a question, even an empty one
    keys: tuple[str, ...]
    unread: tuple[str, ...]

    def told(self, meaning: str) -> str:
        """The keys of the row, for a message, and the nearest unused key to one that is missing."""
        unread = (key.lower() for key in self.unread if spelt(key) not in _SPELT[meaning])
        near = next((hint for key in unread if (hint := nearest(key, NAMES[meaning]))), "")
        return f"its keys are {', '.join(self.keys[:SHOWN])}{near}"


class Fields:
    """The values of a row, turn or part by the meaning of their keys. It remembers which keys were read."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        self._row = row
        self._spelt = {key: spelt(key) for key in row}
        self.read: set[str] = set()

    def __call__(self, meaning: str) -> Any:
        """The value; None if no key has this meaning or it is null. Raises LinesideError if two keys have it."""
        found = self._found(meaning)
        first = [key for key in found if self._spelt[key] == _SPELT[meaning][0]] or list(found)
        first = [key for key in first if self._spelt[key] == "multiplechoiceanswer"] or first  # VQAv2 has `answers` too
        if meaning == "images":  # a picture itself wins over a path to it
            first = [key for key in first if _holds_bytes(found[key])] or first
        if len(first) > 1 and any(found[key] != found[first[0]] for key in first):
            raise LinesideError(f"the keys {' and '.join(map(str, first))} may both be the {meaning}: keep one")
        self.read.update(found if len(first) > 1 else first)
        return found[first[0]] if first else None

    def has(self, meaning: str) -> bool:
        """Whether there is such a value; its key is not marked as read."""
        return bool(self._found(meaning))

    def means(self, key: str, meaning: str) -> bool:
        """Whether this key has this meaning in this row."""
        return key in self._found(meaning)

    def _found(self, meaning: str) -> dict[str, Any]:
        found = {key: value for key, value in self._row.items() if self._spelt[key] in _SPELT[meaning]}
        found = {key: v for key, v in found.items() if v is not None and not (meaning == "images" and v in ("", []))}
        flags = {key for key in found if self._spelt[key] == "label" and isinstance(found[key], bool)}
        if len(found) > len(flags) or any(name in _SPELT["turns"] for name in self._spelt.values()):
            return {key: value for key, value in found.items() if key not in flags}  # true and false judge the row
        return found  # a data set whose answers are true and false


def _holds_bytes(value: Any) -> bool:
    first = value[0] if isinstance(value, list | tuple) and value else value
    held = first.values() if isinstance(first, Mapping) else (first,)
    return any(isinstance(inner, bytes) or str(inner).startswith("data:") for inner in held)


def guess(row: Any) -> Format:
    """The format of a row, by its keys. Raises LinesideError when it is none of them."""
    if not isinstance(row, Mapping):
        raise LinesideError("not a JSON object")
    fields = Fields(row)
    if fields("turns") is not None:
        if "conversations" not in fields.read:
            return "messages"
        return "sharegpt" if "images" in row else "llava"
    if all(fields(meaning) is None for meaning in ("question", "input", "answer", "caption", "text")):
        keys = ", ".join(map(str, list(row)[:SHOWN])) or "none"
        raise LinesideError(f"no turns, question, answer or caption among its keys ({keys}): rename the right ones")
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
    said = _unpacked(fields("turns"))
    _refuse_other(row)
    _refuse_held(row, fields, said is not None)
    pictures = list[Picture]()
    turns = [Turn("system", _text(system, "system"))] if (system := fields("system")) else []
    if history := fields("history"):
        turns += _turns(history, pictures)
    question, asked = _unpacked(fields("question")), True
    if said is None and isinstance(question, list) and all(isinstance(turn, Mapping) for turn in question):
        said = question  # the prompt is a list of turns
    if said is not None:
        turns += _turns(said, pictures)
    else:
        parts = [question, fields("input")]
        is_caption = fields.has("caption") and not fields.has("answer")
        asked = is_caption or any(part is not None for part in parts)
        turns.append(Turn("user", "\n".join(part for part in (_text(p or "", "question") for p in parts) if part)))
    answers = [place for place, turn in enumerate(turns) if turn.role == "assistant"]
    if said is not None and answers == [len(turns) - 1] and turns[-1].trace is None:
        turns[-1] = replace(turns[-1], trace=_trace(fields))  # the trace is beside the turns
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
        str(key)
        for turn in said or ()
        if isinstance(turn, Mapping)
        for key in turn
        if turn[key] is not None and spelt(key) not in _OF_TURNS
    }
    unread += [f"{key} of a turn" for key in sorted(of_turns)]
    return Conversation(tuple(turns), tuple(pictures or named), asked, tuple(map(str, row)), tuple(unread))


def _turns(said: Any, pictures: list[Picture]) -> list[Turn]:
    """Turns of a list, or of one turn; their pictures are added to `pictures`."""
    said = [said] if isinstance(said, Mapping) else said
    if not isinstance(said, list | tuple) or not said:
        raise LinesideError(f"the turns are {_KIND.get(type(said), 'none')}: expected a list of turns")
    found: list[Turn] = []
    for turn in said:
        fields = Fields(turn if isinstance(turn, Mapping) else {})
        if _is_pair(turn) or (not fields.has("role") and fields.has("answer")):
            found += _pair(turn, fields)
        else:
            found.append(_turn(turn, pictures))
    return found


def _pair(turn: Any, fields: Fields) -> list[Turn]:
    """The user's and the assistant's turn of a question with its answer. They may have a mark."""
    if isinstance(turn, Mapping):
        _refuse_other(turn)
        system, learnt = fields("system"), _learnt(turn)
        asked = "\n".join(_text(part, "question") for part in (fields("question"), fields("input")) if part)
        answered, trace = fields("answer"), _trace(fields)
        before = [Turn("system", _text(system, "system"))] if system else []
    else:
        (asked, answered), before, trace, learnt = turn, [], None, None
    answer = Turn("assistant", answer_text(answered), trace, learnt is not False)
    return [*before, Turn("user", _text(asked, "question")), answer]


def _unpacked(value: Any) -> Any:
    """Turns that a table's column holds as JSON text; any other value unchanged."""
    if not isinstance(value, str) or not re.match(r"\s*\[\s*\{\s*[\"'](?:role|from|content|value)\b", value):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise LinesideError(f"turns as text that is not JSON ({error}): write them with json.dumps") from error


def _is_pair(turn: Any) -> bool:
    """Whether it is a list of two, question and answer, as in a chat history."""
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
    content, trace, beside = fields("content"), _trace(fields), fields("images")
    if isinstance(content, list | tuple):
        content, within = _parts_read(content, pictures)
        trace = within if trace is None else trace
    text = _text(content, "content")
    if beside is not None:  # pictures of this turn
        named = [picture_of(p) for p in (beside if isinstance(beside, list | tuple) else [beside])]
        pictures += named
        text = text if MARK in text else MARK * len(named) + text
    learnt = _learnt(turn)
    if learnt and role == "user":
        raise LinesideError("a turn of the user is marked for training, but only answers are: remove the mark")
    if trace and role != "assistant":
        raise LinesideError(f"a trace in a turn of {role}: only answers have one")
    return Turn(role, text, trace, learnt is not False)


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
        if _learnt(part) is False:
            raise LinesideError("a part of a message is marked as not for training: mark whole turns")
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
    """The assistant's turn from a row's own keys, the first of these meanings; empty if there is no answer."""
    found = next((value for meaning in meanings if (value := fields(meaning)) is not None), None)
    if found is None:
        return []
    if isinstance(found, list | tuple) and found and all(isinstance(f, Mapping) and Fields(f)("role") for f in found):
        return _turns(found, pictures)
    return [Turn("assistant", answer_text(found), _trace(fields))]


def _trace(fields: Fields) -> str | None:
    """The trace in its own field: a text, or a list of steps; None if there is none."""
    found = fields("trace")
    return _steps(fields("trace_parts") if found is None else found)


def _steps(value: Any) -> str | None:
    if isinstance(value, Mapping):
        value = next((value[key] for key in ("text", "thinking", "content", "summary") if value.get(key)), value)
    if isinstance(value, list | tuple):
        return "\n".join(step for item in value if (step := _steps(item))) or None
    return None if value is None else _text(value, "trace")


def answer_text(value: Any) -> str:
    """An answer as text: numbers as decimals without an exponent, true as yes, false as no.

    For a list of several annotators' answers, the answer of more than half of them; for an object its
    `ground_truth` or `answer`. Raises LinesideError for other values.
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
    """What the marks of a turn say: True it is trained on, False it is context only, None there are no marks."""
    found = None
    for key, value in turn.items():
        name = spelt(key)
        if value is None or name not in _LEARNT | _CONTEXT:
            if value is not None and name not in _OTHER and _LIKE_A_MARK.search(name):
                raise LinesideError(f"the unknown key {key!r} may mark what is trained on: write loss: true or false")
            continue
        if value not in (0, 1):
            raise LinesideError(f"the mark {key}: {str(value).lower():.40}: expected 0 or 1, false or true")
        learnt = bool(value) is (name in _LEARNT)
        if found not in (None, learnt):
            raise LinesideError("the marks disagree about whether a turn is trained on")
        found = learnt
    return found


def _refuse_other(holder: Mapping[str, Any]) -> None:
    """Raises LinesideError for keys that give a row or a turn a meaning that is not read."""
    for key, value in holder.items():
        if value not in (None, "", [], {}) and (reason := _OTHER.get(spelt(key))):
            raise LinesideError(f"the key {key!r}: {reason}")


def _refuse_held(row: Mapping[str, Any], fields: Fields, turns: bool) -> None:
    """Raises LinesideError for a row that says that it is not for training.

    A number beside turns is a mark. In a plain row it may be the weight of an object, and a label is a class.
    """
    extra = row.get("extra_info")
    for name in (fields("split"), extra.get("split") if isinstance(extra, Mapping) else None):
        if held_out(str(name)):
            raise LinesideError(f"a row of the split {name!r}: converted rows become training data; leave it out")
    for key, value in row.items():
        name, is_flag = spelt(key), isinstance(value, bool)
        if fields.means(key, "answer"):
            continue
        judged = is_flag and name in (_BAD if value else _GOOD)
        marked = name in _LEARNT | _CONTEXT and (is_flag or (turns and name != "label"))
        if judged or (marked and _learnt({key: value}) is False):
            raise LinesideError(f"the row is marked {key}: {str(value).lower()}, so not for training; leave it out")


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        columns = name == "question" and isinstance(value, list | Mapping)
        hint = "; if the file holds columns, write its rows (pandas: to_json with orient='records')" if columns else ""
        raise LinesideError(f"the {name} is {_KIND.get(type(value), 'not text')}: expected text{hint}")
    return value


# --- a conversation as a row


def write_row(turns: Sequence[Turn], pictures: Sequence[str], form: Format, name: str) -> dict[str, Any]:
    """Turns as a row of a conversation format; `pictures` are their names in the row."""
    if not any(MARK in turn.text for turn in turns if turn.role != "assistant"):
        first = next(n for n, turn in enumerate(turns) if turn.role == "user")
        asked = "\n".join([MARK] * len(pictures) + [turns[first].text] * bool(turns[first].text))
        turns = [*turns[:first], replace(turns[first], text=asked), *turns[first + 1 :]]
    texts = [turn.text if turn.trace is None else f"{THINK_OPEN}{turn.trace}{THINK_CLOSE}{turn.text}" for turn in turns]
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
