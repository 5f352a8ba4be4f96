"""Judge a response against its target. Label filter, reward, evaluation and server all call this function."""

from __future__ import annotations

from lineside.types import Judgement, Target, Verdict
from lineside.verify.parse import parse
from lineside.verify.text import MAX_TEXT
from lineside.verify.traces import trace_options
from lineside.verify.verifiers import target_problem, verify


def judge(text: str, target: Target, *, thinking: bool, finished: bool, question: str = "") -> Judgement:
    """Parse the response, verify its answer, and gate the reward. It returns for every string.

    `verdict` judges the answer alone, whatever the trace is (pass@1 of arXiv 2605.21127). `reward` is the credit of the
    verdict if thinking is off or the trace is valid, else 0 (DESIGN 4). A response that did not reach eos or is longer
    than MAX_TEXT may be cut off: "1" may have become "12". It is never exact and its reward is 0. So is the reward of a
    response without an answer or a valid trace if the target is of kind `not`, which does not score other answers.
    """
    finished = finished and len(text) <= MAX_TEXT
    words_offered = target.kind in ("choice", "exact", "not") and not target_problem(target)
    options = trace_options(target) if words_offered else ()
    response = parse(text, thinking=thinking, finished=finished, question=question, options=options)
    if response.answer is None:
        verdict = Verdict(0.0, False, "no answer")
    elif not finished:
        verdict = Verdict(0.0, False, "cut off")
    else:
        verdict = verify(response.answer, target)
    gate = not thinking or response.trace_class == "valid"
    return Judgement(response, verdict, verdict.reward if gate else 0.0, verdict.scored or not gate)
