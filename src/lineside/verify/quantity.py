"""Numbers with units, read by our own grammar.

    quantity = [sign] (digits | thousands) ["." digits] [" "] [unit]      sign = "+" | "-", digits = ASCII 0 to 9

"0,122" is none: nobody writes thousands so, and where a comma is the decimal sign it is not 122.

Text from outside is never given to `int` or `float`, because they accept "1_000", Arabic-Indic digits, "nan", "inf" and
"1e999". The grammar has no exponents, fractions, ranges, number words or hedges: a text is exactly one quantity, or it
is none.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal

MAX_QUANTITY = 64  # characters; longer text is not a quantity

_NUMBER = r"(?:([0-9]{1,15}|[1-9][0-9]{0,2}(?:,[0-9]{3}){1,4})(?:\.([0-9]{1,9}))?|\.([0-9]{1,9}))"
_QUANTITY = re.compile(rf"([+-]?){_NUMBER}(?: ?([^0-9+\-.,/ ][^0-9+\-,]*))?")

# dimension -> {spelling: size in the dimension's smallest unit}
_DIMENSIONS: dict[str, dict[str, float]] = {
    "length": {
        **dict.fromkeys(("um", "micrometre", "micrometres", "micrometer", "micrometers", "micron", "microns"), 1.0),
        **dict.fromkeys(("mm", "millimetre", "millimetres", "millimeter", "millimeters"), 1e3),
        **dict.fromkeys(("cm", "centimetre", "centimetres", "centimeter", "centimeters"), 1e4),
        **dict.fromkeys(("m", "metre", "metres", "meter", "meters"), 1e6),
        **dict.fromkeys(("in", "inch", "inches"), 25_400.0),
        **dict.fromkeys(("ft", "foot", "feet"), 304_800.0),
    },
    "mass": {
        **dict.fromkeys(("mg", "milligram", "milligrams"), 1.0),
        **dict.fromkeys(("g", "gram", "grams"), 1e3),
        **dict.fromkeys(("kg", "kilogram", "kilograms"), 1e6),
        **dict.fromkeys(("oz", "ounce", "ounces"), 28_349.523125),
        **dict.fromkeys(("lb", "lbs", "pound", "pounds"), 453_592.37),
    },
    "time": {
        **dict.fromkeys(("us", "microsecond", "microseconds"), 1.0),
        **dict.fromkeys(("ms", "millisecond", "milliseconds"), 1e3),
        **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1e6),
        **dict.fromkeys(("min", "mins", "minute", "minutes"), 6e7),
        **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), 3.6e9),
    },
    "volume": {
        **dict.fromkeys(("ml", "millilitre", "millilitres", "milliliter", "milliliters"), 1.0),
        **dict.fromkeys(("cl", "centilitre", "centilitres", "centiliter", "centiliters"), 10.0),
        **dict.fromkeys(("l", "litre", "litres", "liter", "liters"), 1e3),
    },
    "angle": {
        **dict.fromkeys(("degree", "degrees", "deg", "\u00b0"), 1.0),
        **dict.fromkeys(("rad", "radian", "radians"), 180.0 / math.pi),
    },
    "share": {**dict.fromkeys(("percent", "per cent", "pct", "%"), 1.0)},
}
_UNITS = {name: (dimension, size) for dimension, sizes in _DIMENSIONS.items() for name, size in sizes.items()}


def read_quantity(text: str) -> tuple[float, str] | None:
    """(number, unit as written or "") if a text in normal form is one quantity and nothing else, else None.

    The number is a correctly rounded quotient of two integers, which are built digit by digit; so it is always finite.
    """
    match = _QUANTITY.fullmatch(text) if len(text) <= MAX_QUANTITY else None
    if match is None:
        return None
    sign, whole, fraction, bare_fraction, unit = match.groups()
    decimals = fraction or bare_fraction or ""
    mantissa = 0
    for digit in (whole or "").replace(",", "") + decimals:
        mantissa = mantissa * 10 + (ord(digit) - 48)
    value = mantissa / 10 ** len(decimals)
    return (-value if sign == "-" else value), (unit or "").rstrip(" ")


def known_unit(unit: str) -> bool:
    """Whether a unit in normal form can be converted to others of its dimension."""
    return unit in _UNITS


def convert(value: float, unit: str, to: str) -> float | None:
    """`value` converted from `unit` to the unit `to` (both in normal form), or None if that is impossible.

    A number without a unit is in the unit `to`. Units that are equal as text need no conversion. Otherwise both must be
    known units of the same dimension.
    """
    if unit in ("", to):
        return value
    if unit not in _UNITS or to not in _UNITS or _UNITS[unit][0] != _UNITS[to][0]:
        return None
    return value * _UNITS[unit][1] / _UNITS[to][1]


def number_text(value: float, resolution: float, period: float = 0.0) -> str:
    """A number as an answer: at its resolution, within its period, without trailing zeros."""
    exact = Decimal(math.floor(value / resolution + 0.5)) * Decimal(repr(resolution))
    if period:
        exact %= Decimal(repr(period))
    text = f"{exact:f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text in ("-0", "") else text
