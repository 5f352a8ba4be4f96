"""Untrusted text made comparable: length caps first, then a normal form that no look-alike character survives.

Every function here is pure, linear in the (capped) length of its input and total: it returns for any string, lone
surrogates and control characters included. Nothing is folded by Unicode compatibility rules, since those turn other
characters into ASCII ones (U+212A KELVIN SIGN becomes "k", full-width digits become digits): a homoglyph stays wrong.
"""

from __future__ import annotations

import re

MAX_TEXT = 65_536  # characters of a response that are ever looked at
MAX_TRACE = 8_192  # a longer trace is refused, not read
MAX_ANSWER = 4_096  # a longer answer is refused, not read
MAX_QUESTION = 8_192  # of a question this much is compared with the trace

_ASCII_SPACE = " \t\n\r\f\v"
_SPACES = re.compile(r"[ \t\n\r\f\v]+")
# Scripts written without spaces (CJK, kana, hangul) count each character as a word; a decimal number is one word.
_WORD = re.compile(r"[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff]|[^\W_]+(?:\.[0-9]+)?")
# A full stop ends a clause only before white space or the end, so that "0.42" stays whole.
_CLAUSE_END = re.compile(r"[;\n]|\.(?=[ \t\n\r\f\v]|$)")
_LOWERS_INTO_ASCII = "\u212a\u0130"  # the only two characters outside ASCII whose lower case holds an ASCII letter


def lower(text: str) -> str:
    """Lower case that never makes an ASCII letter of another character (str.lower maps U+212A to "k")."""
    if text.isascii():
        return text.lower()
    return "".join(c if c in _LOWERS_INTO_ASCII else c.lower() for c in text)


def normalise(text: str) -> str:
    """The light normal form in which answers are compared: case, ASCII white space, one final full stop.

    Nothing else is forgiven: no wrapper ("the answer is 5"), no quotes, no Unicode folding. The caller caps the length.
    """
    text = _SPACES.sub(" ", lower(text)).strip(" ")
    return text[:-1].rstrip(" ") if text.endswith(".") else text


def strip(text: str) -> str:
    """Without ASCII white space at either end; no other character is invisible to the protocol."""
    return text.strip(_ASCII_SPACE)


def words(text: str) -> list[str]:
    """Lower-case words: runs of letters and digits, a decimal number whole, a CJK character each."""
    return _WORD.findall(lower(text))


def clauses(text: str) -> list[str]:
    """The clauses of a trace in normal form, split at ";", line ends and full stops; empty ones are dropped."""
    return [clause for clause in (normalise(part) for part in _CLAUSE_END.split(text)) if clause]
