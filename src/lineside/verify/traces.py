"""Is a trace valid? Validity with a reason, the four published classes, and the share of true facts.

The classes are those of "Reasoning-trace collapse" (arXiv 2605.21127; parser in ThinkPack): valid (complete, not blank,
extractable), empty (both tags, nothing between them), truncated (opened, never closed), missing. Their shares sum to 1.
The paper only tests whether a trace is blank. Here a trace without content also counts as empty, with a reason, so that
a model cannot pass the gate with "ok". The tests compare words and accept in case of doubt. They cannot find a false
trace (`fact_share` can, if the truth is known); they only find a trace that does no reasoning.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import get_args

from lineside.types import Response, Sample, Target, TraceClass
from lineside.verify.quantity import convert, known_unit, read_quantity
from lineside.verify.text import MAX_ANSWER, MAX_QUESTION, MAX_TRACE, clauses, normalise, words

MISSING = "missing"
MISPLACED = "tags out of place"
UNCLOSED = "never closed"
BLANK = "blank"
TRIVIAL = "trivial"
TOO_LONG = "too long"
REPEATS = "repeats itself"
RESTATES = "restates the question"
COPIES = "copies the answer"
CONTRADICTS = "contradicts the answer"

MIN_WORDS = 3  # "blue box" is too short to be reasoning
MIN_CONTENT = 2  # words of a trace that are not filler
_LOOP_PERIOD = 30  # words of the longest phrase whose repetition is found

# Words that announce thinking but add nothing. Words that can state an observation (no, none, left, seen) are not here.
_FILLER_WORDS = """
    a an the i we me us it its this that these those is are was be am do does did to of in on at by for with and or if
    so thus then hence therefore now first next finally let lets s m ll look looks looking check checking see examine
    count counting consider find figure out determine decide identify analyze analyse need needs want will should must
    going try think thinking thought thoughts reason reasoning step steps careful carefully closely question asks
    asked asking answer answers final image picture photo frame task here hmm um uh ok okay well sure please just
    what how
"""
_FILLER = frozenset(_FILLER_WORDS.split())
_CONCLUDES = frozenset(("so", "thus", "hence", "therefore"))
_LEAD_INS = ("the answer is ", "answer is ", "answer: ", "it is ", "that is ", "there are ", "there is ", "that makes ")
_HEDGE_WORDS = "about around nearly almost roughly approximately over under more less of half tenths or out"
_HEDGES = frozenset(_HEDGE_WORDS.split())


def trace_problem(trace: str, *, question: str = "", answer: str | None = None, options: Sequence[str] = ()) -> str:
    """Why a trace is not valid (one of the constants of this module), or "" if it is valid.

    `answer` is the answer that follows it (None if there is none); `options` are those in the question. It returns for
    every string, in time linear in the capped length. Source: arXiv 2605.21127 for blank; the rest is ours (DESIGN 4).
    """
    if len(trace) > MAX_TRACE:
        return TOO_LONG
    said = words(trace)
    if not said:
        return TRIVIAL if trace.strip() else BLANK
    answer = normalise(answer) if answer is not None and len(answer) <= MAX_ANSWER else None
    if problem := _says_nothing(trace, said, question[:MAX_QUESTION], answer):
        return problem
    if _loops(trace, said):
        return REPEATS
    if answer and _contradicts(trace, answer, options):
        return CONTRADICTS
    return ""


def problem_of_trace(sample: Sample) -> str:
    """`trace_problem` of a sample with a question: why its trace is not valid, "" if it is. No trace is BLANK."""
    return _problem(sample.trace or "", sample.question, sample.answer, trace_options(sample.target))


@lru_cache(maxsize=1 << 15)  # training asks again in every epoch
def _problem(trace: str, question: str, answer: str | None, options: tuple[str, ...]) -> str:
    return trace_problem(trace, question=question, answer=answer, options=options)


def trace_options(target: Target | None) -> tuple[str, ...]:
    """The options that a trace's conclusion is compared with; none unless the target is a choice or exact, or says what
    is wrong of such a question."""
    if target is not None and target.kind == "not" and target.wrong:
        target = target.wrong[0]
    return tuple(target.options) if target is not None and target.kind in ("choice", "exact") else ()


def fact_share(trace: str, facts: Sequence[str]) -> float | None:
    """The share of a trace's distinct clauses that are among the known true facts, in [0, 1].

    Whole clauses are compared in normal form. The conclusion ("so 3 red") is left out, because the verifier judges the
    answer. A true clause that is not in `facts` counts as false, so an incomplete list lowers the share. None if there
    is nothing to judge: no facts, only a conclusion, or a trace longer than MAX_TRACE.
    """
    known = {clause for fact in facts for clause in clauses(fact)}
    stated = {c for c in clauses(trace) if c.split(" ", 1)[0] not in _CONCLUDES} if len(trace) <= MAX_TRACE else set()
    if not known or not stated:
        return None
    return len(stated & known) / len(stated)


def trace_shares(responses: Iterable[Response]) -> dict[TraceClass, float]:
    """Share of each of the four classes in responses with thinking on. They sum to 1, or are all 0 without responses.

    Source: VR, ER, TR and MR of arXiv 2605.21127; trivial counts as empty.
    """
    counts: dict[TraceClass, int] = dict.fromkeys(get_args(TraceClass), 0)
    for response in responses:
        counts[response.trace_class] += 1
    total = sum(counts.values())
    return {name: count / total if total else 0.0 for name, count in counts.items()}


def _says_nothing(trace: str, said: list[str], question: str, answer: str | None) -> str:
    """TRIVIAL, COPIES or RESTATES, or "" if the trace adds something to question and answer.

    A single clause whose words are all in the question or the answer only repeats them. Several different clauses are
    accepted, whatever their words: "2 empty; 5 empty; so 2, 5" answers "Which slots are empty?" by reasoning. If the
    answer is a number, equal clauses are accepted too: "red can, red can; so 2" counts.
    """
    asked = words(question)
    rest = _without(said, asked)
    content = [word for word in rest if word not in _FILLER]
    answered = set(words(answer or ""))
    if answered and said and not [w for w in said if w not in _FILLER and w not in answered]:
        return COPIES if any(w in answered for w in said) else TRIVIAL
    if len(rest) < len(said) and not [w for w in content if w not in answered]:
        return RESTATES
    if len(said) < MIN_WORDS or len(content) < MIN_CONTENT:
        return TRIVIAL
    asking = {_singular(word) for word in words(_asking_sentence(question))}
    new = [word for word in content if word not in answered and _singular(word) not in asking]
    if new:
        return ""
    parts = _parts(trace)
    counts = answer is not None and read_quantity(answer) is not None
    return RESTATES if len(parts if counts else set(parts)) < 2 else ""


def _without(said: list[str], asked: list[str]) -> list[str]:
    """The words of a trace without verbatim copies of the question. (On strings, because `replace` takes linear
    time.)"""
    if not asked or len(asked) > len(said):
        return said
    return f" {' '.join(said)} ".replace(f" {' '.join(asked)} ", " ").split(" ")[1:-1]


def _asking_sentence(question: str) -> str:
    """The last sentence that ends with "?", without a bill of materials before it; else the whole question."""
    head, mark, _ = question.rpartition("?")
    if not mark:
        return question
    return head[max(head.rfind(". "), head.rfind("? "), head.rfind("\n")) + 1 :]


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def _parts(trace: str) -> list[tuple[str, ...]]:
    """The content words of each part of a trace before its conclusion. Parts are clauses, split at commas as well."""
    evidence = [clause for clause in clauses(trace) if clause.split(" ", 1)[0] not in _CONCLUDES]
    parts = [tuple(w for w in words(part) if w not in _FILLER) for clause in evidence for part in clause.split(",")]
    return [part for part in parts if part]


def _loops(trace: str, said: list[str]) -> bool:
    """Whether the trace repeats itself.

    A list of equal parts is no repetition ("red can, red can, red can; so 3"). These are: four times in a row a phrase
    of at least six words; six times in a row any phrase, over at least forty words; six times in a row the same token;
    a word of more than 40 characters, of which at most 8 are different.
    """
    tokens = trace.split()
    for i in range(5, len(tokens)):
        if tokens[i] == tokens[i - 5] and tokens[i][-1].isalnum() and len(set(tokens[i - 5 : i])) == 1:
            return True
    if any(len(word) > 40 and len(set(word)) <= 8 for word in said):
        return True
    for period in range(1, min(_LOOP_PERIOD, len(said) // 4) + 1):
        run = 0
        for i in range(period, len(said)):
            run = run + 1 if said[i] == said[i - period] else 0
            times, covered = run // period + 1, run + period
            if covered >= 40 and times >= 6:
                return True
            if times >= 4 and period >= 6 and _primitive(said[i - period : i]):
                return True
    return False


def _primitive(phrase: list[str]) -> bool:
    """Whether a phrase is not itself a repetition of a shorter one."""
    size = len(phrase)
    return not any(size % part == 0 and phrase[:part] * (size // part) == phrase for part in range(1, size))


def _contradicts(trace: str, answer: str, options: Sequence[str]) -> bool:
    """Whether the last clause draws a conclusion ("so N") that contradicts the answer.

    A plain number is compared with a number in a comparable unit, and an option ("yes" and "no" are always options)
    with another option. A conclusion with a hedge, a second number or any other wording is not judged.
    """
    last = clauses(trace)[-1:]
    head = last[0].split(" ") if last else []
    marks = [i for i, word in enumerate(head) if word in _CONCLUDES]
    if not marks:
        return False
    conclusion = " ".join(head[marks[-1] + 1 :])
    for lead in _LEAD_INS:
        conclusion = conclusion.removeprefix(lead)
    offered = {"yes", "no", *(normalise(option) for option in options)}
    if conclusion in offered and answer in offered:
        return conclusion != answer
    return _other_number(conclusion, answer)


def _other_number(conclusion: str, answer: str) -> bool:
    """Whether the conclusion is "N" or "N things", and the answer is another number in a comparable unit."""
    given = read_quantity(answer)
    number, _, things = conclusion.partition(" ")
    concluded = read_quantity(number.rstrip(","))
    if given is None or concluded is None or any(c.isdigit() for c in things) or _HEDGES & set(things.split(" ")):
        return False
    unit = concluded[1] or (things if known_unit(things) else "")
    if known_unit(unit) != known_unit(given[1]):
        return False
    value = convert(concluded[0], unit, given[1]) if unit else concluded[0]
    return value is not None and abs(value - given[0]) > 1e-6 * max(1.0, abs(given[0]))
