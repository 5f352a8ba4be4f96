"""Progress for anything that takes over two seconds: a bar on a terminal, a line now and then in a log file.

All of it goes to standard error. Standard output has only the result of a verb (tables, JSON), so it can be piped.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")

QUIET_SECONDS = 10.0  # time between two lines if there is no terminal

_quiet = False
_console: Console | None = None
_bars: Progress | None = None  # a process has one display: an inner loop adds its bar to that of the outer loop


def be_quiet(quiet: bool = True) -> None:
    """Show nothing from now on: of several processes that do the same, one speaks."""
    global _quiet
    _quiet = quiet


def say(text: str) -> None:
    """Print one line on standard error, unchanged: square brackets are not markup and long lines are not wrapped."""
    if _quiet:
        return
    _stderr().print(text, markup=False, highlight=False, soft_wrap=True)


def track(items: Iterable[T], *, total: int | None, unit: str, label: str) -> Iterator[T]:
    """Yield `items` and show progress to the user.

    `total` is the number of items; if it is None, no remaining time is shown. At the end, also if the loop ends early,
    the line "label: n unit in s (rate/s)" is printed. `unit` is a plural noun ("frames").
    """
    if _quiet:
        yield from items
        return
    loop = _bar if _stderr().is_terminal else _lines
    start = time.monotonic()
    done = 0
    try:
        for item in loop(items, total, unit, label):
            yield item
            done += 1
    finally:
        say(f"{label}: {_pace(done, unit, time.monotonic() - start)}")


def clear() -> None:
    """Remove a bar that is still shown after an exception (it would hide the cursor). Error handlers call this."""
    global _bars
    if _bars is not None:
        _bars.stop()
        _bars = None


def _lines(items: Iterable[T], total: int | None, unit: str, label: str) -> Iterator[T]:
    start = last = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if now - last >= QUIET_SECONDS:
            last = now
            of = f" of {total:,}" if total is not None else ""
            left = f", {_span((now - start) * (total - done) / done)} left" if total is not None and done else ""
            say(f"{label}: {done:,}{of} {unit} ({_rate(done, now - start)}{left})")
        yield item


def _bar(items: Iterable[T], total: int | None, unit: str, label: str) -> Iterator[T]:
    global _bars
    outermost = _bars is None
    bars = _bars or Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[count]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=_stderr(),
        transient=True,  # the bar disappears; the last line of `track` stays
    )
    if outermost:
        bars.start()
        _bars = bars
    task: TaskID = bars.add_task(label, total=total, count="")
    start = time.monotonic()
    try:
        for done, item in enumerate(items):
            yield item
            count = f"{done + 1:,}{f'/{total:,}' if total is not None else ''} {unit}"
            bars.update(task, completed=done + 1, count=f"{count}  {_rate(done + 1, time.monotonic() - start)}")
    finally:
        bars.remove_task(task)
        if outermost:
            clear()


def _pace(count: int, unit: str, seconds: float) -> str:
    return f"{count:,} {unit} in {_span(seconds)} ({_rate(count, seconds)})"


def _rate(count: int, seconds: float) -> str:
    rate = count / max(seconds, 1e-9)
    return f"{rate:,.0f}/s" if rate >= 100 else f"{rate:.2g}/s" if rate < 1 else f"{rate:.1f}/s"


def _span(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


def _stderr() -> Console:
    # If sys.stderr was replaced (by a test or a redirect), a new console is needed to write to the new stream.
    global _console
    if _console is None or _console.file is not sys.stderr:
        _console = Console(file=sys.stderr)
    return _console
