"""Times of tables: one day is one day however it is written, and what is no date is refused."""

from __future__ import annotations

import pytest

from lineside.data.times import Times, check_form, day_of


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
