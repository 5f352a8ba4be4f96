"""Is a trace a trace? Validity with a reason, the four published classes, and the share of true facts.

The classes are those of "Reasoning-trace collapse" (arXiv 2605.21127; parser in ThinkPack): valid (complete, not blank,
extractable), empty (both tags, nothing inside), truncated (opened, never closed), missing; their shares sum to 1. The
paper tests only for blanks. Here a trace that is written but says nothing counts as empty too, with the reason beside
it, so that a model cannot meet the gate with "ok". The tests are lexical and lean towards accepting: they cannot tell a
true trace from a false one (`fact_share` can, where the truth is known), only one that works from one that does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import get_args

from lineside.types import Response, TraceClass
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

MIN_WORDS = 3  # "blue box" is no working
MIN_CONTENT = 2  # of them not filler
_LOOP_PERIOD = 30  # words; the longest phrase looked for when a trace goes round in circles

# Words that announce thinking without doing any; what can carry an observation (no, none, left, seen) is not here.
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
    """Why a trace is not valid, one of the constants of this module, or "" if it is.

    `answer` is what the response went on to answer (None if it never did), `options` what the question offered.
    Total on strings, linear in the capped length. Source: arXiv 2605.21127 for blank; the rest is ours (DESIGN 4).
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


def fact_share(trace: str, facts: Sequence[str]) -> float | None:
    """The share of a trace's distinct clauses that are among the facts known to be true, in [0, 1].

    Clauses are compared in normal form and whole; the conclusion ("so 3 red") is left out, since the verifier judges
    the answer. A true clause that `facts` does not list counts as false, so a low share may be a short list. None
    where there is nothing to judge: no facts, no clause but a conclusion, or a trace over the cap.
    """
    known = {clause for fact in facts for clause in clauses(fact)}
    stated = {c for c in clauses(trace) if c.split(" ", 1)[0] not in _CONCLUDES} if len(trace) <= MAX_TRACE else set()
    if not known or not stated:
        return None
    return len(stated & known) / len(stated)


def trace_shares(responses: Iterable[Response]) -> dict[TraceClass, float]:
    """Share of each of the four classes among responses with thinking on; they sum to 1 (all 0 if there are none).

    Source: VR, ER, TR and MR of arXiv 2605.21127, with trivial counted as empty.
    """
    counts: dict[TraceClass, int] = dict.fromkeys(get_args(TraceClass), 0)
    for response in responses:
        counts[response.trace_class] += 1
    total = sum(counts.values())
    return {name: count / total if total else 0.0 for name, count in counts.items()}


def _says_nothing(trace: str, said: list[str], question: str, answer: str | None) -> str:
    """Trivial, copies the answer or restates the question; "" if the trace adds something to both.

    One clause that holds no word beyond the asking sentence and the answer is the two of them over again. Several
    different ones are kept whatever their words: "2 empty; 5 empty; so 2, 5" works out "Which slots are empty?". Before
    a number equal ones are kept too: "red can, red can; so 2" counts.
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
    """The words of a trace less every verbatim copy of the question (as strings: replace is linear, a scan is not)."""
    if not asked or len(asked) > len(said):
        return said
    return f" {' '.join(said)} ".replace(f" {' '.join(asked)} ", " ").split(" ")[1:-1]


def _asking_sentence(question: str) -> str:
    """The last sentence that ends in "?", or the whole question: a bill of materials before it is not what is asked."""
    head, mark, _ = question.rpartition("?")
    if not mark:
        return question
    return head[max(head.rfind(". "), head.rfind("? "), head.rfind("\n")) + 1 :]


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def _parts(trace: str) -> list[tuple[str, ...]]:
    """The content words of each part before the conclusion, commas separating parts as clause ends do."""
    evidence = [clause for clause in clauses(trace) if clause.split(" ", 1)[0] not in _CONCLUDES]
    parts = [tuple(w for w in words(part) if w not in _FILLER) for clause in evidence for part in clause.split(",")]
    return [part for part in parts if part]


def _loops(trace: str, said: list[str]) -> bool:
    """Whether the trace goes round in circles.

    A list of equal parts is no loop ("red can, red can, red can; so 3"). One is: a phrase of six words or more four
    times over, any phrase six times over forty words or more, a token six times with nothing between, or a run of
    letters that is no word.
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
    """Whether a phrase is not itself a shorter one repeated."""
    size = len(phrase)
    return not any(size % part == 0 and phrase[:part] * (size // part) == phrase for part in range(1, size))


def _contradicts(trace: str, answer: str, options: Sequence[str]) -> bool:
    """Whether the last clause concludes ("so N") with something that cannot stand beside the answer.

    Only like is held against like: a plain number against a number in the same unit, or one of the options (yes and
    no always among them) against another. A hedge, a second number or any other wording is left alone.
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
    """Whether the conclusion is "N" or "N things" and the answer another number in a comparable unit."""
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
