"""Untrusted text -> Response: the trace, the answer, and the class of the trace.

The protocol (DESIGN 4): with thinking on the model writes `<think>trace</think>answer<eos>`, with thinking off
`answer<eos>`. Each tag occurs exactly once, the opening one first. A response that breaks this rule has no answer, so
no arrangement of tags can give the judge two answers to choose from.
"""

from __future__ import annotations

from collections.abc import Sequence

from lineside.types import THINK_CLOSE, THINK_OPEN, Response
from lineside.verify.text import MAX_TEXT, strip
from lineside.verify.traces import MISPLACED, MISSING, UNCLOSED, trace_problem

THINKING_OFF = "thinking is off"


def parse(text: str, *, thinking: bool, finished: bool, question: str = "", options: Sequence[str] = ()) -> Response:
    """Split a response into trace and answer. It returns for every string and reads only the first MAX_TEXT characters.

    text: what the model wrote after the prompt, without eos. finished: whether it reached eos. question, options: the
    question and the options in it; only the validity of the trace depends on them. With thinking on:

        no tag at all                        missing, all of it is the answer
        opened, never closed                 truncated, no answer
        one of each, opening tag first       valid or, with a reason, empty; the answer follows
        anything else                        missing ("tags out of place"), no answer

    With thinking off, the whole text is the answer and the class is missing. If there is no text for the answer, it is
    "" if the response is finished and None if not. Source: arXiv 2605.21127 and ThinkPack's parser. That one accepts
    text before the tags, a closing tag without an opening one, and tags in the answer; this one does not.
    """
    finished = finished and len(text) <= MAX_TEXT
    text = strip(text[:MAX_TEXT])
    if not thinking:
        return Response(None, _answer(text, finished), "missing", THINKING_OFF)
    opened, closed = text.count(THINK_OPEN), text.count(THINK_CLOSE)
    if not opened and not closed:
        return Response(None, _answer(text, finished), "missing", MISSING)
    if not closed:
        return Response(strip(text.partition(THINK_OPEN)[2]), None, "truncated", UNCLOSED)
    if opened != 1 or closed != 1 or not text.startswith(THINK_OPEN):
        return Response(None, None, "missing", MISPLACED)
    trace, _, rest = text[len(THINK_OPEN) :].partition(THINK_CLOSE)
    trace, answer = strip(trace), _answer(rest, finished)
    problem = trace_problem(trace, question=question, answer=answer if finished else None, options=options)
    return Response(trace, answer, "empty" if problem else "valid", problem)


def _answer(text: str, finished: bool) -> str | None:
    text = strip(text)
    return text if text or finished else None
