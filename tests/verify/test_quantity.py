"""The number grammar: what is read, to the last bit, and what is not a quantity at all."""

import pytest

from lineside.verify.quantity import convert, read_quantity

READ = [
    ("5", (5.0, "")),
    ("-5", (-5.0, "")),
    ("+5", (5.0, "")),
    ("05", (5.0, "")),
    ("0.1", (0.1, "")),
    (".5", (0.5, "")),
    ("1,234,567.5", (1234567.5, "")),
    ("123456789012345", (123456789012345.0, "")),
    ("0.123456789", (0.123456789, "")),
    ("7.5 cm", (7.5, "cm")),
    ("7.5cm", (7.5, "cm")),
    ("70%", (70.0, "%")),
    ("3 red cans", (3.0, "red cans")),
]
REFUSED = [
    *("", " 5", "5 ", "5.", ".", "-", "5-", "1e3", "1_000", "1 000", "1,00", "1,0000", "12,34", "5/2", "5, 6", "5 6"),
    *("0x10", "nan", "inf", "infinity", "\u0665", "\uff15", "\u00b2", "1" * 16, "0." + "1" * 10, "5 mm 6 mm", "5 mm3"),
    *("5  mm", "5\tmm", "5 -mm", "--5", "1,234,567,890,123,456", "5" + "m" * 70),
    *("0,122", "012,345"),
]


@pytest.mark.parametrize("text, quantity", READ)
def test_reads_one_quantity(text, quantity):
    assert read_quantity(text) == quantity


@pytest.mark.parametrize("text", REFUSED, ids=lambda t: ascii(t)[:30])
def test_refuses_the_rest(text):
    quantity = read_quantity(text)
    # "1e3", "1_000" and "0x10" read as a number with a unit that no table holds, which convert then refuses
    assert quantity is None or (convert(*quantity, "") is None and convert(*quantity, "mm") is None)


def test_length_is_capped_whatever_the_unit():
    assert read_quantity("5 " + "m" * 62) is not None
    assert read_quantity("5 " + "m" * 63) is None


def test_agrees_with_the_language_on_plain_decimals():
    for thousandths in range(5000):
        text = f"{thousandths // 1000}.{thousandths % 1000:03d}"
        assert read_quantity(text) == (float(text), "")


@pytest.mark.parametrize(
    "value, unit, to, expected",
    [
        (7.5, "cm", "mm", 75.0),
        (75.0, "mm", "m", 0.075),
        (2.0, "in", "mm", 50.8),
        (1.25, "kg", "g", 1250.0),
        (1.0, "lb", "oz", 16.0),
        (1.5, "min", "s", 90.0),
        (250.0, "ms", "s", 0.25),
        (2.0, "h", "min", 120.0),
        (33.0, "cl", "ml", 330.0),
        (3.141592653589793, "rad", "degrees", 180.0),
        (70.0, "%", "percent", 70.0),
        (70.0, "", "percent", 70.0),
        (3.0, "layers", "layers", 3.0),
    ],
)
def test_converts_within_a_dimension(value, unit, to, expected):
    assert convert(value, unit, to) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "unit, to", [("kg", "mm"), ("s", "m"), ("%", "degrees"), ("mm", ""), ("furlong", "mm"), ("mm2", "mm")]
)
def test_refuses_another_dimension(unit, to):
    assert convert(1.0, unit, to) is None
