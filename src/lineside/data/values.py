"""Values of records: text from outside as a number, and a value as text. Exact, in ASCII; nothing is evaluated."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

MAX_DIGITS = 64  # characters of a number
MAX_EXPONENT = 300
LONGEST_KEY = 80  # characters of a text by which results are grouped
POSITIONAL = range(-9, 21)  # decimal exponents that are written without "e"

# What programs write into a cell that holds nothing: pandas, data bases, and Excel where a formula fails. "None", "N/A"
# and "-" can be answers, and stay text.
MISSING = frozenset(
    {"nan", "NaN", "NAN", "NaT", "<NA>", "NULL", "null", "(null)", "[null]", "\\N", "#N/A", "#NV", "#REF!", "#BEZUG!"}
    | {"#DIV/0!", "#VALUE!", "#WERT!", "#NAME?", "#NUM!", "#ZAHL!", "#NULL!"}
)

_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?")
_WHOLE_FLOAT = re.compile(r"([+-]?[0-9]+)\.0+")


class ClassLabel(str):
    """The name of a class that a data set stores as an index. It keeps all names: name and index can be looked up."""

    index: int
    names: tuple[str, ...]

    def __new__(cls, index: int, names: Sequence[str]) -> ClassLabel:
        """Raises IndexError for an index that has no name."""
        if index < 0:
            raise IndexError(index)
        label = super().__new__(cls, names[index])
        label.index, label.names = index, tuple(names)
        return label


def read_number(text: str, decimal: str = ".", *, groups: bool = False) -> int | float | None:
    """The number in a text, a whole one as an integer with all its digits; None if it is not a number.

    ASCII digits with a decimal sign and an exponent: "1_000", "0x1F", "nan" and "12 mm" are not numbers. `decimal` is
    the decimal sign; the other of "." and "," may group thousands where that is certain ("1.234,5"), and with `groups`
    also where the text alone could mean either ("1.234").
    """
    text = text.strip()
    group = "," if decimal == "." else "."
    if group in text:
        if not _grouped(text, group, decimal) or not (groups or decimal in text or text.count(group) > 1):
            return None
        text = text.replace(group, "")
    text = text.replace(decimal, ".")
    if len(text) > MAX_DIGITS or not _NUMBER.fullmatch(text):
        return None
    number = Decimal(text)
    if number and abs(number.adjusted()) > MAX_EXPONENT:
        return None
    return int(number) if number == number.to_integral_value() else float(number)


def _grouped(text: str, group: str, decimal: str) -> bool:
    """Whether `group` separates thousands, as in 1,234 or 1,234.5."""
    pattern = rf"[+-]?[1-9][0-9]{{0,2}}(?:{re.escape(group)}[0-9]{{3}})+(?:{re.escape(decimal)}[0-9]*)?"
    return re.fullmatch(pattern, text) is not None


class DecimalSign:
    """Decides which of "." and "," is the decimal sign of a table's numbers: `note` each of them, then `decide`."""

    def __init__(self) -> None:
        self._proofs: dict[str, str] = {}  # decimal sign -> a number that only makes sense with it
        self._unclear = ""  # a number such as 1,234
        self._pointed = ""  # a number such as 1.234

    def note(self, text: str) -> None:
        """Add one number."""
        if "," not in text and "." not in text:
            return
        text = text.strip()
        as_point, as_comma = read_number(text, ".") is not None, read_number(text, ",") is not None
        if _grouped(text, ",", ".") and text.count(",") == 1 and "." not in text:
            self._unclear = self._unclear or text
        elif as_comma and not as_point:
            self._proofs.setdefault(",", text)
        elif _grouped(text, ".", ",") and text.count(".") == 1 and "," not in text:
            self._pointed = self._pointed or text
        elif as_point and not as_comma and not (_grouped(text, ".", ",") and "," not in text):
            self._proofs.setdefault(".", text)

    def decide(self, *, semicolons: bool = False) -> str:
        """The sign. `semicolons`: they separate the fields, as where "," is the decimal sign: 1.234 is unclear then.

        Raises ValueError with the reason where the numbers contradict each other or could mean either.
        """
        if len(self._proofs) == 2:
            raise ValueError(f"has both {self._proofs['.']!r} and {self._proofs[',']!r}")
        unclear = self._unclear or (self._pointed if semicolons else "")
        if not self._proofs and unclear:
            raise ValueError(f"has {unclear!r}, which could be with thousands or with decimals")
        return next(iter(self._proofs), ".")


def decimal_text(value: float) -> str:
    """A number as a person writes it: 15 significant digits (a float's decimal precision), no exponent, no ".0".

    Worked: 4006381333931.0 is "4006381333931", 0.1 + 0.2 is "0.3", 1e-05 is "0.00001", 1e-300 stays "1e-300".
    """
    if isinstance(value, int):
        return str(value)
    number = Decimal(f"{value:.15g}")
    if not number.is_finite() or (number and number.adjusted() not in POSITIONAL):
        return f"{value:.15g}"
    text = f"{number:f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


def texts_of(value: Any) -> list[str]:
    """A value as texts by which it is grouped, a list as several; none for an empty value or a record."""
    if isinstance(value, list | tuple):
        return list(dict.fromkeys(text for one in value for text in texts_of(one)))
    text = "" if isinstance(value, Mapping) else key_text(value)
    return [text[:LONGEST_KEY]] if text else []


def key_text(value: Any) -> str:
    """The text by which a value is looked up and grouped: 1, 1.0 and "1.0" are "1", True and "TRUE" are "true"."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return decimal_text(value)
    text = str(value).strip()
    if whole := _WHOLE_FLOAT.fullmatch(text):
        return whole[1]
    return text.lower() if text.lower() in ("true", "false") else text


def skus_of(value: Any) -> tuple[str, ...]:
    """The SKUs of a list, or of a text with "|" between them, each once."""
    found = value if isinstance(value, list | tuple) else str(value).split("|") if value is not None else []
    return tuple(dict.fromkeys(sku for sku in map(key_text, found) if sku))
