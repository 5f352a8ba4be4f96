"""The one place where a response meets its target: label filter, reward, evaluation and server all call this."""

from __future__ import annotations

from lineside.types import Judgement, Target, Verdict
from lineside.verify.parse import parse
from lineside.verify.text import MAX_TEXT
from lineside.verify.verifiers import target_problem, verify


def judge(text: str, target: Target, *, thinking: bool, finished: bool, question: str = "") -> Judgement:
    """Parse, verify, gate. Total on strings.

    `verdict` is the verifier's word on the answer, whatever the trace (pass@1 of arXiv 2605.21127); `reward` is its
    credit, times 1 if thinking is off or the trace is valid, else 0 (DESIGN 4). A response that did not reach eos, or
    runs over the cap, has no whole answer: "1" may have been on its way to "12". It is never exact and earns nothing.
    """
    finished = finished and len(text) <= MAX_TEXT
    words_offered = target.kind in ("choice", "exact") and not target_problem(target)
    options = target.options if words_offered else ()
    response = parse(text, thinking=thinking, finished=finished, question=question, options=options)
    if response.answer is None:
        verdict = Verdict(0.0, False, "no answer")
    elif not finished:
        verdict = Verdict(0.0, False, "cut off")
    else:
        verdict = verify(response.answer, target)
    gate = not thinking or response.trace_class == "valid"
    return Judgement(response, verdict, verdict.reward if gate else 0.0)
