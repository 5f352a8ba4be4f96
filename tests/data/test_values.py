"""Numbers in and out of text without loss, and the text by which values are looked up."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lineside.data.template import fill, value_text
from lineside.data.values import ClassLabel, decimal_text, key_text, read_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("4006381333931", 4006381333931),
        (" 12 ", 12),
        ("12345678901234567890", 12345678901234567890),  # more digits than a float holds
        ("4.00638e+12", 4006380000000),
        ("1234567.5", 1234567.5),
        ("-0.0", 0),
        ("+.5", 0.5),
        ("7.", 7),
        ("1e-3", 0.001),
    ],
)
def test_a_number_keeps_its_digits(text: str, number: float) -> None:
    found = read_number(text)
    assert found == number and type(found) is type(number)


@pytest.mark.parametrize(
    "text",
    ["", "1_000", "1,5", "1 000", "0x1F", "nan", "inf", "-Infinity", "12 mm", "１２", "٣", "1e9999", "1e99999999",
     "--1", "1e", ".", "1" * 65, "1.5.2", "True"],
)  # fmt: skip
def test_what_is_no_number(text: str) -> None:
    assert read_number(text) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (4006381333931.0, "4006381333931"),
        (1234567.5, "1234567.5"),
        (0.1 + 0.2, "0.3"),
        (1e-05, "0.00001"),
        (1e20, "100000000000000000000"),
        (1e-300, "1e-300"),
        (-0.0, "0"),
        (12, "12"),
        (123456.789012345, "123456.789012345"),
    ],
)
def test_a_number_in_a_sentence_has_all_its_digits(value: float, text: str) -> None:
    assert decimal_text(value) == text
    assert fill("{x} mg", {"x": value}, "here") == f"{text} mg"
    assert value_text([{"count": value}]) == text


@given(st.decimals(-(10**8), 10**8, places=6, allow_nan=False))
def test_what_was_written_with_fifteen_digits_is_written_so_again(number: Any) -> None:
    found = read_number(f"{number:f}")
    assert found is not None
    assert decimal_text(found) == (f"{number:f}".rstrip("0").rstrip(".") if number else "0")


@pytest.mark.parametrize(
    ("value", "key"),
    [(1, "1"), (1.0, "1"), ("1.0", "1"), ("1.00", "1"), ("-1.0", "-1"), (" full ", "full"), (True, "true"),
     ("TRUE", "true"), ("False", "false"), (None, ""), (0.5, "0.5"), ("0.50", "0.50"), ("007", "007"), 
     ("1.0.0", "1.0.0")],
)  # fmt: skip
def test_the_text_by_which_a_value_is_looked_up(value: Any, key: str) -> None:
    assert key_text(value) == key


def test_a_class_label_is_its_name() -> None:
    label = ClassLabel(1, ["empty", "full"])
    assert label == "full" and label.index == 1 and key_text(label) == "full"
    with pytest.raises(IndexError):
        ClassLabel(-1, ["empty"])
