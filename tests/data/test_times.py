"""Times of tables: one day is one day however it is written, and what is no date is refused."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from lineside.data.times import NamePattern, Times, check_form, day_of, instants, read_duration, read_zone, told_seconds


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-03-01", "2026-03-01T00:00:00"),
        ("2026-03-01T10:15:00", "2026-03-01T10:15:00"),
        ("2026-03-01 10:15:00.25", "2026-03-01T10:15:00.250000"),
        ("2026-03-01T23:30:00-08:00", "2026-03-01T23:30:00-08:00"),  # the day where the camera stands
        ("2026-03-01T10:15Z", "2026-03-01T10:15:00+00:00"),
        ("2026/3/1 10:15", "2026-03-01T10:15:00"),
        ("2026.03.01", "2026-03-01T00:00:00"),
        ("2026:03:01 10:15:00", "2026-03-01T10:15:00"),  # EXIF
        ("20260301", "2026-03-01T00:00:00"),
        ("20260301_101500", "2026-03-01T10:15:00"),
        ("20260301101500", "2026-03-01T10:15:00"),
        ("1772360100", "2026-03-01T10:15:00+00:00"),
        ("1772360100000", "2026-03-01T10:15:00+00:00"),
        ("1772360100000000000", "2026-03-01T10:15:00+00:00"),
        ("2026030110", "2026-03-01T10:00:00"),  # not the 2,026,030,110th second since 1970
        ("20260301101500250", "2026-03-01T10:15:00.250000"),
        ("2026030110150025", "2026-03-01T10:15:00.250000"),
        ("1772360100123456", "2026-03-01T10:15:00.123456+00:00"),
        ("1772360100.5", "2026-03-01T10:15:00.500000+00:00"),
        ("01.03.2026 10:15", "2026-03-01T10:15:00"),
        ("1 Mar 2026 10:15", "2026-03-01T10:15:00"),
        ("Mar 1, 2026", "2026-03-01T00:00:00"),
        ("Sun, 01 Mar 2026 10:15:00 +0100", "2026-03-01T10:15:00+01:00"),
    ],
)
def test_forms_that_can_only_mean_one_thing(text: str, moment: str) -> None:
    assert Times().read(text).isoformat() == moment
    assert day_of(text) == "2026-03-01"


@pytest.mark.parametrize(
    "text",
    ["", "monday", "260101-000700", "1/2/26", "2026-13-01", "2026-02-30", "2026-03-01T25:00", "46082", "12.5",
     "99999999", "17672256", "2026-03-01T10:15:00+99:99", "01/03", "1. März 2026", "32.01.2026", "0000000000"],
)  # fmt: skip
def test_what_is_no_date_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Times().read(text)


def test_day_and_month_with_slashes_are_told_by_the_other_times_of_the_table() -> None:
    def read(*texts: str) -> list[str]:
        times = Times()
        for text in texts:
            times.note(text)
        return [times.read(text).date().isoformat() for text in texts]

    assert read("1/2/2026 0:07", "1/13/2026 11:07 PM") == ["2026-01-02", "2026-01-13"]
    assert read("01-02-2026", "13-01-2026") == ["2026-02-01", "2026-01-13"]
    with pytest.raises(ValueError, match=r"day or month first.*time_format"):
        read("1/2/2026", "2/1/2026")
    with pytest.raises(ValueError, match="some are day first"):
        read("1/13/2026", "13/1/2026", "1/2/2026")


def test_noon_and_midnight_of_twelve_hours() -> None:
    times = Times()
    times.note("1/13/2026")
    found = [times.read(f"1/1/2026 {clock}").hour for clock in ("12:07 AM", "1:07 AM", "12:07 PM", "1:07 PM")]
    assert found == [0, 1, 12, 13]


def test_a_form_that_the_user_says_is_kept_to() -> None:
    assert Times("%y%m%d-%H%M%S").read("260101-000700").isoformat() == "2026-01-01T00:07:00"
    with pytest.raises(ValueError, match="does not match time_format"):
        Times("%d/%m/%Y").read("2026-03-01")
    for form in ("%H:%M", "%d.%m.", "day"):
        with pytest.raises(ValueError, match="names no day"):
            check_form(form)


@pytest.mark.parametrize(
    ("pattern", "name", "moment"),
    [
        ("cam*_%Y%m%d-%H%M%S_%f", "night/cam2_20260301-101500_250.jpg", "2026-03-01T10:15:00.250000"),
        ("%Y-%m-%d/*_%H%M%S.png", "2026-03-01/x_101500.png", "2026-03-01T10:15:00"),
        ("*_%s", "cam12_1772360100123.jpg", "2026-03-01T10:15:00.123000+00:00"),
        ("*%Y%m%d%H%M%S*", "cam_20260301101500_a.jpg", "2026-03-01T10:15:00"),
        ("%d.%m.%y %I-%M-%S %p", "01.03.26 10-15-00 PM.jpg", "2026-03-01T22:15:00"),
        ("%Y%j*", "2026060.jpg", "2026-03-01T00:00:00"),
        ("%Y%m%dT%H%M%S%z", "a\\20260301T101500+0100.jpg", "2026-03-01T10:15:00+01:00"),
    ],
)
def test_a_time_in_a_name(pattern: str, name: str, moment: str) -> None:
    assert NamePattern(pattern).read(name).isoformat() == moment


@pytest.mark.parametrize(
    ("pattern", "name", "problem"),
    [
        ("cam_%Y%m%d", "dog.jpg", "is not in the name"),
        ("cam_%Y%m%d", "cam_20261301.jpg", "cannot be read"),
        ("*%Y%m%d*", "1920260301_20260302.jpg", "several ways"),
        ("*_%s", "cam_17.jpg", "is not in the name"),
    ],
)
def test_a_name_without_a_clear_time(pattern: str, name: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        NamePattern(pattern).read(name)


@pytest.mark.parametrize("pattern", ["%Y%m%d%Y", "%s_%Y", "%H%M", "%Q%Y%m%d", "100%"])
def test_a_pattern_that_cannot_be_read(pattern: str) -> None:
    with pytest.raises(ValueError):
        NamePattern(pattern)


@pytest.mark.parametrize(
    ("text", "seconds"), [("2 s", 2), ("500ms", 0.5), ("10 min", 600), ("-1.5 h", -5400), (3, 3), (0.25, 0.25)]
)
def test_lengths_of_time(text: object, seconds: float) -> None:
    assert read_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "2 days", "1_000 s", True, None, "1e400 s", "2,5 s", "nan"])
def test_what_is_no_length_of_time(text: object) -> None:
    with pytest.raises(ValueError, match="no length of time"):
        read_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (0.25, "250 ms"), (-3.2, "-3.2 s"), (90, "90 s"), (125, "2 min 5 s"), (3600, "1 h 00 min"),
     (-7384, "-2 h 03 min 4 s")],
)  # fmt: skip
def test_lengths_of_time_are_told(seconds: float, text: str) -> None:
    assert told_seconds(seconds) == text


def test_instants_where_clocks_are_changed() -> None:
    berlin = read_zone("Europe/Berlin")
    hour = 3600 * 10**6
    summer = instants(datetime(2026, 7, 1, 12), berlin)
    assert summer == instants(datetime(2026, 7, 1, 10, tzinfo=UTC), None)
    first, second = instants(datetime(2026, 10, 25, 2, 30), berlin)
    assert second - first == hour
    assert len(instants(datetime(2026, 10, 25, 3, 0), berlin)) == 1
    with pytest.raises(ValueError, match="skipped by the clocks of Europe/Berlin"):
        instants(datetime(2026, 3, 29, 2, 30), berlin)
    assert instants(datetime(2026, 3, 29, 2, 30), None) == instants(datetime(2026, 3, 29, 2, 30, tzinfo=UTC), berlin)
    assert instants(datetime(2026, 3, 1), read_zone("+02:00"))[0] == instants(datetime(2026, 3, 1), None)[0] - 2 * hour
    for name in ("Mars/Olympus", "", "../etc/passwd", "+2"):
        with pytest.raises(ValueError, match="unknown time zone"):
            read_zone(name)


@pytest.mark.parametrize("text", ["2026-03-01T10:15:00", "2026-03-01 10:15:00.250", "2026-03-01T10:15:00+01:00",
                                  "2026-03-01T10:15:00Z", "2026-03-01 10:15:00,5"])  # fmt: skip
def test_the_fast_reading_equals_the_slow_one(text: str) -> None:
    assert Times().read(text) == Times().read(text.replace("-03-", "/03/").replace("-01", "/01", 1))


def test_a_one_digit_month_shows_the_order_too() -> None:
    times = Times()
    for text in ("13-3-2026", "4-3-2026 10:00"):
        times.note(text)
    assert times.read("4-3-2026 10:00").isoformat() == "2026-03-04T10:00:00"
