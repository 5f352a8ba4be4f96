"""The text of foreign turns: where pictures are in it, and where a trace ends and an answer begins.

Other tools have their own marks and tags. Known ones become ours. An unknown or unpaired mark or tag is refused by
name, so it never becomes text to learn.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lineside.errors import LinesideError
from lineside.verify.text import strip

Side = Literal["system", "user", "assistant"]
MARK = "<image>"

_MARK = re.compile(
    r"<\|vision_start\|>\s*<\|image_pad\|>\s*<\|vision_end\|>|<\|(?:image_pad|image|image_placeholder|img)\|>"
    r"|<(?:image|ImageHere|image_placeholder|image_token|start_of_image|image_soft_token|IMG_CONTEXT)>|\[IMG\]",
    re.IGNORECASE,
)
_NUMBERED = re.compile(r"<\|?(?:image|img)[ _-]?(\d{1,4})\|?>", re.IGNORECASE)
_UNKNOWN = re.compile(
    r"<\|?/?(?!image>)(?:image|img|vision|video|audio|picture)\b[^<>\n]{0,80}\|?>|<\|?/?(?:image|img|vision|video|audio)_\w*\|?>"
    r"|</(?:image|img)>|\[/?IMG\w*\]|<bbox>|<ref-object>",
    re.IGNORECASE,
)
_LEAD = re.compile(rf"\s*(?:{MARK}\s*)+")
_CALLED = re.compile(r"\b((?:the |this )?(?:picture|image|photo|photograph|frame))[ \t]*\Z", re.IGNORECASE)
_SENTENCE_END = ("", ".", "?", "!", ":")
# Templates of other models write a trace between their own tags or tokens.
_THINK = {
    "<|begin_of_thought|>": "<think>",
    "<|end_of_thought|>": "</think>",
    "<|begin_of_solution|>": "<answer>",
    "<|end_of_solution|>": "</answer>",
    "<start_working_out>": "<think>",
    "<end_working_out>": "</think>",
    "[think]": "<think>",
    "[/think]": "</think>",
    "\u25c1think\u25b7": "<think>",
    "\u25c1/think\u25b7": "</think>",
}
_THINK_TOKEN = re.compile("|".join(map(re.escape, _THINK)), re.IGNORECASE)
_TRACE_TAG = re.compile(
    r"<\s*(/?)\s*((?:\w+:)?(?:think|thinking|thoughts?|thought_process|thinking_process|reason|reasoning|rationale"
    r"|scratchpad|analysis|cot|chain_of_thought|working_out))(?:\s[^<>]{0,80})?>",
    re.IGNORECASE,
)
_ANSWER_TAG = re.compile(
    r"<\s*(/?)\s*(answer|final_answer|solution|conclusion|response|output|result)\s*>", re.IGNORECASE
)
# Text that looks like a tag around a trace or an answer and is not listed above.
_STRAY_TAG = re.compile(
    r"(?:<|\[|\u25c1|&lt;)\s*/?[\w:.-]*(?:think|thought|reason|rationale|scratchpad|reflect)[\w:.-]*\s*/?"
    r"(?:>|\]|\u25b7|&gt;)",
    re.IGNORECASE,
)
_FIRST_TAG = re.compile(r"<([A-Za-z][\w:.-]*)\s*/?>")
_HTML = re.compile(
    r"a|b|blockquote|body|br|caption|code|col|d[dlt]|del|div|em|h[1-6]|head|hr|html|i|ins|kbd|li|mark|math|[ou]l|p|pre|q|s"
    r"|section|small|span|strong|su[bp]|svg|table|tbody|t[dhr]|tfoot|thead|title|u",
    re.IGNORECASE,
)
_CONTROL = re.compile(
    r"<\|[\w:./-]{1,40}\|>|<\uff5c[^<>]{1,40}\uff5c>|<(?:start|end)_of_\w{1,20}>|<unused\d{1,4}>|<(?:bos|eos|pad|unk)>"
    r"|<fake_token_around_image>|\[/?INST\]|<</?SYS>>|\A\s*<s>|</s>\s*\Z",
    re.IGNORECASE,
)
# Start and end of a prompt that was rendered for another model.
_OPENED = re.compile(r"\W{0,4}(?:user|human|instruction)\s?:", re.IGNORECASE)
_LEFT_OPEN = re.compile(r"\W(?:assistant|response|gpt)\s?:\Z", re.IGNORECASE)
_BOXED = re.compile(r"(?:\$+|\\\(|\\\[)?\s*\\boxed\{(.*)\}\s*(?:\$+|\\\)|\\\])?\.?", re.DOTALL)
_PLAIN_TEXT = re.compile(r"\\(?:text|mathrm|textbf)\{([^{}\\]*)\}")
HASHES = "\n####"  # GSM8K and data sets like it write the answer after these


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn; MARK in a user's text is the place of a picture. `learnt`: False is context for later turns."""

    role: Side
    text: str
    trace: str | None = None
    learnt: bool = True


def understood(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """The turns with every mark as MARK and traces split from answers. Raises LinesideError for ambiguous text."""
    numbers = [int(n) for turn in turns for n in _NUMBERED.findall(turn.text)]
    if numbers and (numbers[0] > 1 or numbers != list(range(numbers[0], numbers[0] + len(numbers)))):
        raise LinesideError(f"picture marks {numbers} are not in order: write {MARK} at the place of each picture")
    found = []
    for turn in turns:
        text = _NUMBERED.sub(MARK, _MARK.sub(MARK, turn.text))
        text = _THINK_TOKEN.sub(lambda token: _THINK[token[0].lower()], text)
        if control := _CONTROL.search(text):
            raise LinesideError(f"the control token {control[0]!r} of another model: remove it from the text")
        if turn.role == "user" and _OPENED.match(strip(text)) and _LEFT_OPEN.search(strip(text)[-24:]):
            raise LinesideError(
                f"the question is a prompt rendered for another model ({strip(text)[-24:]!r} at its end): give the "
                "question alone"
            )
        if unknown := _UNKNOWN.search(text):
            raise LinesideError(f"the mark {unknown[0]!r} of another tool: write {MARK} at the place of a picture")
        if turn.role == "assistant":
            if MARK in text:
                raise LinesideError(f"the answer holds the mark {MARK}: pictures belong in questions")
            trace, text = split_trace(text)
            beside = strip(turn.trace or "") or None
            if beside and trace and beside != trace:
                raise LinesideError("a trace in its own field and another one in the text: keep one")
            turn = replace(turn, trace=beside or trace)
        found.append(replace(turn, text=text))
    return tuple(found)


def split_trace(text: str) -> tuple[str | None, str]:
    """(trace or None, answer) of an assistant's text.

    The tags are `<think>` and similar, once each; the opening one may be missing, because some chat templates write it
    into the prompt. Without tags, the text before a last line "#### answer" is the trace. An empty trace is None.
    `<answer>` and similar, or `\\boxed{}`, around a whole answer is removed. Raises LinesideError for tags that do not
    pair, nest, have text before them, or are unknown.
    """
    tags = list(_TRACE_TAG.finditer(text))
    trace = None
    if tags:
        shape, names = [tag[1] for tag in tags], {tag[2].lower() for tag in tags}
        before = text[: tags[0].start()] if shape[0] == "" else ""
        if shape not in (["", "/"], ["/"]) or len(names) > 1 or strip(before):
            told = " ".join(tag[0] for tag in tags[:6])
            raise LinesideError(f"the tags {told} are not one trace at the start: expected <think>trace</think>answer")
        trace = strip(text[tags[0].end() if shape[0] == "" else 0 : tags[-1].start()]) or None
        text = text[tags[-1].end() :]
    elif HASHES in text and "\n" not in (last := strip(text).rpartition(HASHES))[2]:
        trace, text = strip(last[0]) or None, last[2]
    return trace, _bare(strip(text))


def _bare(answer: str) -> str:
    """An answer without the wrapper in which other trainers expect it."""
    if tags := list(_ANSWER_TAG.finditer(answer)):
        inside = len(tags) == 2 and not tags[0][1] and tags[1][1]
        if not inside or tags[0].start() or tags[1].end() < len(answer):
            raise LinesideError("the tags <answer> and </answer> are not once around the whole answer")
        answer = strip(answer[tags[0].end() : tags[1].start()])
    if stray := _STRAY_TAG.search(answer) or _foreign_tag(answer):
        raise LinesideError(
            f"the tag {stray[0]!r} in the answer is not known: put a trace between <think> and </think> before the "
            "answer, and write the answer without a tag"
        )
    boxed = _BOXED.fullmatch(answer)
    if boxed and _balanced(boxed[1]):
        return strip(plain[1] if (plain := _PLAIN_TEXT.fullmatch(strip(boxed[1]))) else boxed[1])
    if "\\boxed{" in answer:
        raise LinesideError(
            "\\boxed{} is inside a longer answer: give its content as the answer, and the text before it as a trace"
        )
    return answer


def _foreign_tag(answer: str) -> re.Match[str] | None:
    """The tag at the start of an answer, if it is not an HTML tag."""
    first = _FIRST_TAG.match(answer)
    return first if first and not _HTML.fullmatch(first[1]) else None


def _balanced(text: str) -> bool:
    depth = 0
    for sign in re.findall(r"(?<!\\)[{}]", text):
        depth += 1 if sign == "{" else -1
        if depth < 0:
            return False
    return depth == 0


def words(text: str, first: int, pictures: int) -> str:
    """A user's text without marks: a sample shows its pictures before the question.

    Marks before or after the text, or between sentences, are removed. A mark within a sentence becomes words: "the
    picture", or "picture 2" if there are several, so that "not in <image>" keeps its meaning.

    first: number, from 1, of the first mark's picture. pictures: number of pictures in the conversation.
    """
    lead = _LEAD.match(text)
    if lead and MARK not in text[lead.end() :]:
        return text[lead.end() :]
    out, *pieces = text.split(MARK)
    for number, piece in enumerate(pieces, start=first):
        line = out.rpartition("\n")[2].rstrip(" \t")
        before, after = line[-1:], piece.lstrip(" \t").partition("\n")[0][:1]
        labels = before == ":" and pictures > 1  # "A: <image> B: <image>"
        if labels or before not in _SENTENCE_END or after.islower() or after in set(",;)?!."):
            name = "the picture" if pictures == 1 else f"picture {number}"
            if called := _CALLED.search(out):  # "in the picture <image>" already has the words
                out, name = out[: called.start(1)], called[1] if pictures == 1 else f"{called[1]} {number}"
            out = (f"{out.rstrip(' ')} " if before else out) + name + (" " if piece[:1].isalnum() else "") + piece
        elif before and after:
            out = f"{out.rstrip(' ')}\n{piece.lstrip(' ')}"
        else:  # a mark on its own line is removed with the line end
            out += piece.lstrip(" \t") if before else piece.lstrip(" \t").removeprefix("\n")
    return strip(out) if pieces else text
