"""The time of a picture, read from the forms in which tables write it, down to the right day.

Read without a setting: ISO 8601, year first with any of - / . : between, digits such as 20260301 or 20260301_101500,
seconds (also milli-, micro-, nanoseconds) since 1970, a month by its English name, and day.month.year with points. With
slashes or dashes, day and month are ambiguous: all times of a table together decide, or the user sets `time_format`.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Literal

YEARS = range(1970, 2100)
_EPOCH = {10: 0, 13: 3, 16: 6, 19: 9}  # digits since 2001 -> decimal places below a second
_MONTHS = {"JanFebMarAprMayJunJulAugSepOctNovDec"[3 * n : 3 * n + 3].lower(): n + 1 for n in range(12)}

_CLOCK = (
    r"(?:[T ,_-]+(?P<hour>[0-9]{1,2})[:.h-]?(?P<minute>[0-9]{2})(?:[:.-]?(?P<second>[0-9]{2})(?P<part>[.,][0-9]+)?)?)?"
    r"(?:\s*(?P<half>[AaPp])\.?[Mm]\.?)?\s*(?P<zone>Z|UTC|GMT|[+-][0-9]{2}:?(?:[0-9]{2})?)?"
)
_YEAR_FIRST = re.compile(r"(?P<year>[0-9]{4})(?P<sep>[-/.:_])(?P<month>[0-9]{1,2})(?P=sep)(?P<day>[0-9]{1,2})" + _CLOCK)
_DIGITS = re.compile(
    r"(?P<year>[0-9]{4})(?P<month>[0-9]{2})(?P<day>[0-9]{2})"
    r"(?:[T _-]?(?P<hour>[0-9]{2})(?:(?P<minute>[0-9]{2})(?:(?P<second>[0-9]{2})(?P<part>[.,]?[0-9]{1,9})?)?)?)?"
    r"(?P<zone>Z|[+-][0-9]{4})?"
)
_YEAR_LAST = re.compile(r"(?P<first>[0-9]{1,2})(?P<sep>[-/.])(?P<other>[0-9]{1,2})(?P=sep)(?P<year>[0-9]{4})" + _CLOCK)
_DAY_NAME = r"(?:[A-Za-z]{3,9},?\s+)?"
_MONTH_NAME = (
    re.compile(_DAY_NAME + r"(?P<day>[0-9]{1,2})[ .-]+(?P<name>[A-Za-z]{3,9})\.?,?[ -]+(?P<year>[0-9]{4})" + _CLOCK),
    re.compile(_DAY_NAME + r"(?P<name>[A-Za-z]{3,9})\.? +(?P<day>[0-9]{1,2}),? +(?P<year>[0-9]{4})" + _CLOCK),
)
Order = Literal["day first", "month first"]


class Times:
    """Reads the times of one table. `note` all of them before the first `read`: others may settle what 3/4/2026 is."""

    def __init__(self, form: str | None = None) -> None:
        """`form`: how times are written, as for `datetime.strptime`, if the user sets it."""
        self.form = form
        self._orders: dict[Order, str] = {}  # order -> a time that proves it

    def note(self, text: str) -> None:
        """Add one time."""
        match = _YEAR_LAST.fullmatch(text.strip())
        if match and match["sep"] != ".":
            first, other = int(match["first"]), int(match["other"])
            if first > 12 >= other:
                self._orders.setdefault("day first", text)
            elif other > 12 >= first:
                self._orders.setdefault("month first", text)

    def read(self, text: str) -> datetime:
        """A moment; a day alone is its midnight. Raises ValueError saying what is wrong and what to do."""
        text = text.strip()
        if self.form is not None:
            try:
                return datetime.strptime(text, self.form)
            except ValueError:
                raise ValueError(f"does not match time_format: {text!r:.40} is not {self.form!r}") from None
        match = _YEAR_FIRST.fullmatch(text) or _DIGITS.fullmatch(text)
        seconds = _epoch(text)
        if match and (seconds is None or _is_date(match)):  # 2026010112 is a day and an hour
            return _moment(text, match, int(match["month"]), int(match["day"]))
        if seconds is not None:
            return datetime.fromtimestamp(seconds, UTC)
        if match := _YEAR_LAST.fullmatch(text):
            day, month = int(match["first"]), int(match["other"])
            if match["sep"] != "." and self._order(text) == "month first":
                day, month = month, day
            return _moment(text, match, month, day)
        for pattern in _MONTH_NAME:
            if (match := pattern.fullmatch(text)) and (month := _MONTHS.get(match["name"][:3].lower())):
                return _moment(text, match, month, int(match["day"]))
        raise ValueError(
            f"cannot be read: {text!r:.40}. Write 2026-03-01T10:15:00, or set its form with `time_format` in "
            "the table section, such as time_format: '%d%m%y-%H%M'"
        )

    def _order(self, text: str) -> Order:
        if len(self._orders) == 2:
            day, month = self._orders["day first"], self._orders["month first"]
            raise ValueError(
                f"is unclear: {text!r:.40}; some are day first ({day!r:.40}), others month first ({month!r:.40})"
            )
        if not self._orders:
            raise ValueError(
                f"is unclear: {text!r:.40}, day or month first? Set `time_format` in the table section, such "
                "as time_format: '%d/%m/%Y' or '%m/%d/%Y %H:%M'"
            )
        return next(iter(self._orders))


def check_form(form: str) -> str:
    """The form. Raises ValueError if it does not give a day."""
    parts = set(re.findall(r"%[-_0^#]?([A-Za-z])", form))
    whole = parts & {"c", "x"}
    if not whole and not (
        parts & {"Y", "y", "G"} and (parts & {"j"} or (parts & {"m", "b", "B"} and parts & {"d", "e"}))
    ):
        raise ValueError(f"{form!r} names no day: expected year, month and day, such as '%d/%m/%Y %H:%M:%S'")
    try:
        datetime.strptime(datetime(2026, 3, 1, 10, 15).strftime(form), form)
    except ValueError as error:
        raise ValueError(f"{form!r} cannot be read back ({error})") from None
    return form


def day_of(text: str) -> str:
    """The day of a stored time, "2026-03-01". Raises ValueError for other text."""
    return Times().read(text).date().isoformat()


def _epoch(text: str) -> float | None:
    """Seconds since 1970 where the text can be a count of them, or of their thousandths and so on."""
    whole, _, part = text.partition(".")
    if not whole.isascii() or not whole.isdigit() or whole[0] == "0" or len(whole) not in _EPOCH:
        return None
    if part and not (part.isascii() and part.isdigit()):
        return None
    return int(whole) / 10 ** _EPOCH[len(whole)] + (float(f"0.{part}") if part else 0.0)


def _is_date(match: re.Match[str]) -> bool:
    """Whether digits are an existing date and hour."""
    hour, minute, second = (int(match[name] or 0) for name in ("hour", "minute", "second"))
    try:
        datetime(int(match["year"]), int(match["month"]), int(match["day"]), hour, minute, second)
    except ValueError:
        return False
    return int(match["year"]) in YEARS


def _moment(text: str, match: re.Match[str], month: int, day: int) -> datetime:
    parts = match.groupdict()
    hour = int(parts["hour"] or 0)
    if half := parts.get("half"):
        if not 1 <= hour <= 12:
            raise ValueError(f"cannot be read: {text!r:.40} has no hour {hour} before or after noon")
        hour = hour % 12 + (12 if half in "Pp" else 0)
    part = (parts["part"] or "").lstrip(".,")[:6].ljust(6, "0")
    year = int(parts["year"])
    try:
        if year not in YEARS:
            raise ValueError(f"year {year}")
        day_itself = date(year, month, day)
        moment = datetime(
            *day_itself.timetuple()[:3], hour, int(parts["minute"] or 0), int(parts["second"] or 0), int(part)
        )
    except ValueError as error:
        raise ValueError(f"cannot be read: {text!r:.40} ({error})") from None
    return moment.replace(tzinfo=_zone(parts["zone"]))


def _zone(text: str | None) -> timezone | None:
    if not text:
        return None
    if text[0] not in "+-":
        return UTC
    hours, minutes = int(text[1:3]), int(text[3:].lstrip(":") or 0)
    return timezone((-1 if text[0] == "-" else 1) * timedelta(hours=hours, minutes=minutes))
