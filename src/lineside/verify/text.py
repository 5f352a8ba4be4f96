"""Untrusted text made comparable: length limits, and a normal form.

Every function is pure, takes time linear in the (capped) length of its input, and returns for every string, also with
lone surrogates and control characters. Unicode compatibility folding is not used. It would turn look-alike characters
into ASCII ones (U+212A KELVIN SIGN into "k", full-width digits into digits), and a look-alike must stay wrong.
"""

from __future__ import annotations

import re

MAX_TEXT = 65_536  # characters of a response that are read
MAX_TRACE = 8_192  # a longer trace is refused without reading it
MAX_ANSWER = 4_096  # a longer answer is refused without reading it
MAX_QUESTION = 8_192  # characters of a question that are compared with the trace

_ASCII_SPACE = " \t\n\r\f\v"
_SPACES = re.compile(r"[ \t\n\r\f\v]+")
# Scripts written without spaces (CJK, kana, hangul) count each character as a word; a decimal number is one word.
_WORD = re.compile(r"[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff]|[^\W_]+(?:\.[0-9]+)?")
# A full stop ends a clause only before white space or the end, so that "0.42" stays whole.
_CLAUSE_END = re.compile(r"[;\n]|\.(?=[ \t\n\r\f\v]|$)")
_LOWERS_INTO_ASCII = "\u212a\u0130"  # the only two non-ASCII characters whose lower case contains an ASCII letter


def lower(text: str) -> str:
    """Lower case that never turns another character into an ASCII letter (str.lower maps U+212A to "k")."""
    if text.isascii():
        return text.lower()
    return "".join(c if c in _LOWERS_INTO_ASCII else c.lower() for c in text)


def normalise(text: str) -> str:
    """The normal form in which answers are compared. It ignores case, repeated ASCII white space and one final full
    stop.

    Everything else counts: a sentence around the answer ("the answer is 5"), quotes, other Unicode forms. The caller
    limits the length.
    """
    text = _SPACES.sub(" ", lower(text)).strip(" ")
    return text[:-1].rstrip(" ") if text.endswith(".") else text


def strip(text: str) -> str:
    """The text without ASCII white space at its ends. No other character is removed."""
    return text.strip(_ASCII_SPACE)


def words(text: str) -> list[str]:
    """Lower-case words: runs of letters and digits. A decimal number is one word, and so is each CJK character."""
    return _WORD.findall(lower(text))


def clauses(text: str) -> list[str]:
    """The clauses of a trace in normal form, split at ";", line ends and full stops, without empty ones."""
    return [clause for clause in (normalise(part) for part in _CLAUSE_END.split(text)) if clause]
