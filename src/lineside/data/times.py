"""The time of a picture, read from the forms in which tables write it, down to the right day.

Read without a setting: ISO 8601, year first with any of - / . : between, digits such as 20260301 or 20260301_101500,
seconds (also milli-, micro-, nanoseconds) since 1970, a month by its English name, and day.month.year with points. With
slashes or dashes, day and month are ambiguous: all times of a table together decide, or the user sets `time_format`.
`NamePattern` reads the time in a file's name. `instants` makes times of several clocks comparable: a clock time that
occurs twice where clocks are set back has two, and one that is skipped is refused.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from pathlib import PurePosixPath
from typing import Any, Literal
from zoneinfo import ZoneInfo, available_timezones

from lineside.data.values import read_number
from lineside.strict import nearest

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
SECOND = 1_000_000  # microseconds, the unit of instants
_START = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_DURATION = re.compile(r"(?P<number>[+-]?[0-9.]+)\s*(?P<unit>[a-z]*)")
_UNITS = {
    **dict.fromkeys(("ms", "millisecond", "milliseconds"), 0.001),
    **dict.fromkeys(("", "s", "sec", "second", "seconds"), 1.0),
    **dict.fromkeys(("min", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hour", "hours"), 3600.0),
}
MAX_SECONDS = 366 * 86400.0


class Times:
    """Reads the times of one table. `note` all of them before the first `read`: others may settle what 3/4/2026 is."""

    def __init__(self, form: str | None = None) -> None:
        """`form`: how times are written, as for `datetime.strptime`, if the user sets it."""
        self.form = form
        self._orders: dict[Order, str] = {}  # order -> a time that proves it

    def note(self, text: str) -> None:
        """Add one time."""
        if text[:4].isdigit():  # the year is first
            return
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
        if self.form is None and text[4:5] == text[7:8] == "-" and text[13:14] == text[16:17] == ":":
            try:  # the usual form, several times as fast as the patterns
                if (moment := datetime.fromisoformat(text)).year in YEARS:
                    return moment
            except ValueError:
                pass
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

    def check(self) -> None:
        """Raises ValueError if some of the times that were noted are day first and others month first."""
        if len(self._orders) == 2:
            day, month = self._orders["day first"], self._orders["month first"]
            raise ValueError(f"is unclear: some are day first ({day!r:.40}), others month first ({month!r:.40})")

    def _order(self, text: str) -> Order:
        self.check()
        if not self._orders:
            raise ValueError(
                f"is unclear: {text!r:.40}, day or month first? Set `time_format` in the table section, such "
                "as time_format: '%d/%m/%Y' or '%m/%d/%Y %H:%M'"
            )
        return next(iter(self._orders))


class NamePattern:
    """A time in the names of files: strptime codes, `%s` for seconds since 1970 (also milli-, micro-, nanoseconds),
    and `*` for any text. It fits the last part of a path, or all of it if the pattern has a "/"; a suffix may be left
    out.

    Worked: "cam*_%Y%m%d-%H%M%S_%f" reads "night/cam2_20260301-101500_250.jpg" as 2026-03-01T10:15:00.250.
    """

    def __init__(self, pattern: str) -> None:
        """Raises ValueError for a pattern with an unknown code, a code that occurs twice, or no day."""
        self._pattern = pattern
        parts = re.findall(r"%.|[*]|[^%*]+|%", pattern)
        codes = [part[1:] for part in parts if part[0] == "%"]
        if unknown := [code for code in codes if f"%{code}" not in _NAME_TEXTS]:
            known = " ".join(_NAME_TEXTS)
            raise ValueError(f"{pattern!r}: the code %{unknown[0]} is not known; expected one of {known}")
        if len(set(codes)) < len(codes):
            raise ValueError(f"{pattern!r}: a code occurs twice; write * for text that does not matter")
        self._form = " ".join(f"%{code}" for code in codes)
        if "s" in codes and len(codes) > 1:
            raise ValueError(f"{pattern!r}: %s is a whole time; it goes with no other code")
        if "s" not in codes:
            check_form(self._form)
        # The shortest and the longest text for each * must give the same time, or the place is unclear.
        self._fits = [
            re.compile("".join(texts.get(part) or re.escape(part) for part in parts))
            for texts in ({**_NAME_TEXTS, "*": some} for some in (".*?", ".*"))
        ]

    def read(self, name: str) -> datetime:
        """The time in a file's name. Raises ValueError saying what is wrong."""
        path = PurePosixPath(name.replace("\\", "/"))
        whole = path.as_posix() if "/" in self._pattern else path.name
        for text in dict.fromkeys((whole, whole.removesuffix(path.suffix))):
            found = {match.groups() for fit in self._fits if (match := fit.fullmatch(text))}
            if len(found) > 1:
                raise ValueError(f"is unclear: {self._pattern!r} fits {text!r:.80} in several ways")
            if found:
                parts = found.pop()
                if self._form == "%s":
                    return Times().read(parts[0])
                try:
                    return datetime.strptime(" ".join(parts), self._form)
                except ValueError as error:
                    raise ValueError(f"cannot be read in {text!r:.80} ({error})") from None
        raise ValueError(f"is not in the name: {whole!r:.80} does not fit {self._pattern!r}")


_NAME_TEXTS = dict.fromkeys(("%y", "%m", "%d", "%H", "%M", "%S", "%I"), "([0-9]{2})") | {
    "%Y": "([0-9]{4})", "%j": "([0-9]{3})", "%f": "([0-9]{1,6})", "%p": "([AaPp][Mm])", "%b": "([A-Za-z]{3})",
    "%z": "(Z|[+-][0-9]{2}:?[0-9]{2})",
    "%s": r"(?<![0-9])([0-9]{10}(?:\.[0-9]+|(?:[0-9]{3}){0,3}))(?![0-9])",
}  # fmt: skip


def read_duration(value: Any) -> float:
    """Seconds of "2 s", "500 ms", "10 min", "1.5 h" or a number of seconds. Raises ValueError for other values."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        number, unit = value, ""
    else:
        match = _DURATION.fullmatch(str(value).strip())
        number, unit = (read_number(match["number"]), match["unit"]) if match else (None, "")
    if number is None or unit not in _UNITS or not abs(number * _UNITS[unit]) <= MAX_SECONDS:
        raise ValueError(f"{value!r:.40} is no length of time: write 2 s, 500 ms, 10 min or 1 h")
    return number * _UNITS[unit]


def told_seconds(seconds: float) -> str:
    """A length of time for people, with its sign: "3.2 s", "-250 ms", "1 h 00 min"."""
    size, sign = abs(seconds), "-" if seconds < 0 else ""
    if size < 1:
        return f"{sign}{size * 1000:.0f} ms" if size else "0 s"
    if size < 120:
        return f"{sign}{size:.4g} s"
    minutes, rest = divmod(round(size), 60)
    hours, minutes = divmod(minutes, 60)
    rounded = f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"
    return f"{sign}{rounded} {rest} s" if rest else f"{sign}{rounded}"


def check_zone(name: str) -> str:
    """The name of a time zone. Raises ValueError for one that is not known."""
    read_zone(name)
    return name


def read_zone(name: str) -> tzinfo:
    """A zone by its IANA name (Europe/Berlin, which knows daylight saving) or by +02:00. Raises ValueError."""
    if re.fullmatch(r"[+-][0-9]{2}:?[0-9]{2}", name):
        return _zone(name) or UTC
    try:
        return UTC if name in ("Z", "UTC") else ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError(
            f"unknown time zone {name!r}{nearest(name, available_timezones())}; expected a name such as Europe/Berlin, "
            "or an offset such as +02:00"
        ) from None


def instants(moment: datetime, zone: tzinfo | None) -> tuple[int, ...]:
    """Microseconds since 1970 UTC of a time. `zone`: of a time without its own; None: such a time is taken as UTC.

    Two of them for a time that the clocks of the zone show twice, in the hour in which daylight saving ends. Raises
    ValueError for one that they never show, in the hour that is skipped when it begins.
    """
    if moment.tzinfo is not None or zone is None:
        return (_instant(moment if moment.tzinfo else moment.replace(tzinfo=UTC)),)
    first, second = (_instant(moment.replace(tzinfo=zone, fold=fold)) for fold in (0, 1))
    if first > second:  # PEP 495: so only in a gap
        raise ValueError(f"does not exist: {moment.isoformat()} is skipped by the clocks of {zone}")
    return (first,) if first == second else (first, second)


def _instant(moment: datetime) -> int:
    return (moment - _START) // _MICROSECOND


def told_instant(instant: int, zone: tzinfo | None, *, zoned: bool) -> str:
    """An instant as the clock shows it, to the millisecond."""
    moment = _START + instant * _MICROSECOND
    moment = moment.astimezone(zone) if zoned and zone else moment
    return (moment if zoned else moment.replace(tzinfo=None)).isoformat(timespec="milliseconds")


def check_form(form: str) -> str:
    """The form. Raises ValueError if it does not give a day."""
    parts = set(re.findall(r"%[-_0^#]?([A-Za-z])", form))
    whole = parts & {"c", "x"}
    if not whole and not (
        parts & {"Y", "y", "G"} and (parts & {"j"} or (parts & {"m", "b", "B"} and parts & {"d", "e"}))
    ):
        raise ValueError(f"{form!r} names no day: expected year, month and day, such as '%d/%m/%Y %H:%M:%S'")
    try:
        datetime.strptime(datetime(2026, 3, 1, 10, 15, tzinfo=UTC).strftime(form), form)
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
