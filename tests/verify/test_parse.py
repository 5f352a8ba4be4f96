"""Where the trace ends and the answer begins, and the four published classes (arXiv 2605.21127)."""

import itertools

import pytest

from lineside.types import Response
from lineside.verify import parse, trace_shares
from lineside.verify.text import MAX_TEXT

WORK = "left: 2 red can, 1 blue box; right: 1 red can; so 3 red"


def on(text, finished=True, question="How many red cans are there?"):
    return parse(text, thinking=True, finished=finished, question=question)


def test_whole_response_is_taken_apart():
    assert on(f"<think>{WORK}</think>3") == Response(WORK, "3", "valid", "")
    assert on(f" \n<think> {WORK}\n</think>\n 3 \n") == Response(WORK, "3", "valid", "")


CASES = [  # text, finished, class, answer, reason
    ("3", True, "missing", "3", "missing"),
    ("", True, "missing", "", "missing"),
    ("", False, "missing", None, "missing"),
    (f"<think>{WORK}", True, "truncated", None, "never closed"),
    (f"<think>{WORK}", False, "truncated", None, "never closed"),
    (f"<think>{WORK}</thin", False, "truncated", None, "never closed"),
    (f"<think>{WORK}<think>", False, "truncated", None, "never closed"),
    ("<think></think>3", True, "empty", "3", "blank"),
    ("<think> \n\u00a0</think>3", True, "empty", "3", "blank"),
    ("<think>...</think>3", True, "empty", "3", "trivial"),
    ("<think>ok</think>3", True, "empty", "3", "trivial"),
    ("<think>so 3</think>3", True, "empty", "3", "copies the answer"),
    (f"<think>{WORK}</think>", True, "valid", "", ""),
    (f"<think>{WORK}</think>", False, "valid", None, ""),
    (f"<think>{WORK}</think>1", False, "valid", "1", ""),  # on its way to 12; judge() gives nothing for it
    (f"{WORK}</think>3", True, "missing", None, "tags out of place"),
    (f"3<think>{WORK}</think>3", True, "missing", None, "tags out of place"),
    (f"\u200b<think>{WORK}</think>3", True, "missing", None, "tags out of place"),
    (f"<think><think>{WORK}</think>3", True, "missing", None, "tags out of place"),
    (f"<think>{WORK}</think></think>3", True, "missing", None, "tags out of place"),
    (f"<think>a<think>{WORK}</think>b</think>3", True, "missing", None, "tags out of place"),
    (f"<think>{WORK}</think>3<think>4</think>", True, "missing", None, "tags out of place"),
    (f"<think>{WORK}</think>3</think>4", True, "missing", None, "tags out of place"),
    (f"</think>3<think>{WORK}", True, "missing", None, "tags out of place"),
    (f"<THINK>{WORK}</THINK>3", True, "missing", f"<THINK>{WORK}</THINK>3", "missing"),
    (
        f"\uff1cthink\uff1e{WORK}\uff1c/think\uff1e3",
        True,
        "missing",
        f"\uff1cthink\uff1e{WORK}\uff1c/think\uff1e3",
        "missing",
    ),
]


@pytest.mark.parametrize("text, finished, trace_class, answer, reason", CASES)
def test_class_answer_and_reason(text, finished, trace_class, answer, reason):
    response = on(text, finished)
    assert (response.trace_class, response.answer, response.reason) == (trace_class, answer, reason)


def test_thinking_off_is_all_answer():
    assert parse("yes", thinking=False, finished=True) == Response(None, "yes", "missing", "thinking is off")
    assert parse("<think>a</think>yes", thinking=False, finished=True).answer == "<think>a</think>yes"
    assert parse("", thinking=False, finished=False).answer is None


def test_only_the_first_characters_are_read():
    head = f"<think>{WORK}</think>3"
    head += " " * (MAX_TEXT - len(head))
    assert on(head).answer == "3"
    assert on(head + "<think>nested</think>4") == on(head, finished=False)


def published(text):
    """The public definition, in its parser's order: a close tag ends a block, else an open one was cut off."""
    before, close, _ = text.partition("</think>")
    if close:
        return "valid" if before.replace("<think>", "", 1).strip() else "empty"
    return "truncated" if "<think>" in text else "missing"


PIECES = ("", "<think>", "</think>", " ", "ok", WORK)


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_classes_agree_with_the_public_definition_but_where_we_are_stricter(length):
    """Ours calls valid only what the paper does, and differs only by trivial -> empty and misplaced -> missing."""
    seen = set()
    for pieces in itertools.product(PIECES, repeat=length):
        text = "".join(pieces)
        ours, theirs = on(text), published(text)
        seen.add((theirs, ours.trace_class))
        if ours.reason == "tags out of place":
            assert theirs in ("valid", "empty") and ours.answer is None
        elif ours.reason in ("trivial", "copies the answer"):
            assert (theirs, ours.trace_class) == ("valid", "empty")
        else:
            assert ours.trace_class == theirs
    assert length < 3 or ("valid", "valid") in seen


def test_shares_sum_to_one_and_count_trivial_as_empty():
    texts = (
        [f"<think>{WORK}</think>3"] * 5 + ["<think></think>3", "<think>ok</think>3"] + [f"<think>{WORK}"] + ["3"] * 2
    )
    shares = trace_shares(on(text) for text in texts)
    assert shares == {"valid": 0.5, "empty": 0.2, "truncated": 0.1, "missing": 0.2}
    assert sum(shares.values()) == pytest.approx(1.0)
    assert trace_shares([]) == dict.fromkeys(shares, 0.0)
