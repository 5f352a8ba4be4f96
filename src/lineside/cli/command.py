"""The command `lineside`: its table of verbs, what an error becomes, and the entry point.

An error becomes one message and an exit status: 2 for bad input or a full disk, 1 for a check that failed, 3 for too
little data to check, 130 when interrupted, 70 for a bug in lineside. LINESIDE_DEBUG=1 shows the stack trace.
"""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer

from lineside import __version__, progress
from lineside.errors import LinesideError, disk_is_full, lacks_memory, lacks_semaphores
from lineside.machine import extra_of, lacking, launched, prepare
from lineside.stages import TABLE

F = TypeVar("F", bound=Callable[..., Any])
FAULT = 70  # as in sysexits.h
STOP_AGAIN = 3.0  # seconds
INTERRUPTED, PIPE = 130, 141  # as a shell reports SIGINT and SIGPIPE
SHARDED = ("label", "encode")  # verbs of which each process that torchrun starts does its share, without the others
SHARED = (*SHARDED, *(entry.name for entry in TABLE if not entry.control_of), "train")  # all others do them together

app = typer.Typer(
    name="lineside",
    help="Turns a vision encoder and a text model that have never met into a verified, compact VLM for robot cells.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def verb(function: F) -> F:
    """Add a function to the table of verbs. An exception in it becomes a message and an exit status."""
    return guarded(function, app, function.__name__)


def guarded(function: F, table: typer.Typer, name: str) -> F:
    """Add a function to a table under the last word of `name`. As `verb`; of several ranks only rank 0 runs a verb that
    they do not share."""

    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> None:
        me = launched()
        if me.rank and name not in SHARED:
            return  # rank 0 does it
        progress.be_quiet(me.rank > 0 and name not in SHARDED)
        try:
            function(*args, **options)
        except typer.Exit:
            raise
        except (Exception, KeyboardInterrupt) as error:
            if os.environ.get("LINESIDE_DEBUG") == "1":
                raise
            progress.clear()
            message, status = explain(KeyboardInterrupt() if _told_to_stop() else error)
            if me.count > 1 and name not in SHARDED:
                message, status = _explain_rank(error, message, status)
            if message:
                progress.say(f"lineside {name}: {message}")
            raise typer.Exit(status) from None

    table.command(name=name.split()[-1])(run)
    return function


def _explain_rank(error: BaseException, message: str, status: int) -> tuple[str, int]:
    """As `explain`, for one of several processes of a run: the first that fails says why, the others are silent."""
    from lineside.ranks import has_lost_a_rank, is_first_to_fail

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # it ends anyway; torchrun tells all others to
    if not is_first_to_fail():
        return "", status
    progress.be_quiet(False)
    if has_lost_a_rank(error):
        lost = (
            "a process of this run has ended without a word (killed, or out of memory?); finished work is kept: run "
            f"the same command again to continue from the last saved state [{' '.join(str(error).split())[:200]}]"
        )
        return lost, 1
    return message, status


def explain(error: BaseException) -> tuple[str, int]:
    """The message for an error, and its exit status."""
    if lacks_memory(error):
        return (
            "out of memory; finished work is kept: end other programs, or make the work smaller (a stage: a smaller "
            "pack_tokens, or checkpointing=true; simulate: fewer workers), and run the same command again",
            2,
        )
    if isinstance(error, LinesideError):
        return str(error), error.exit_status
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; finished work is kept: run the same command again to continue", INTERRUPTED
    if disk_is_full(error):
        where = f" ({name})" if (name := getattr(error, "filename", None)) else ""
        return f"the disk is full{where}; finished work is kept: make room and run the same command again", 2
    if isinstance(error, BrokenPipeError):
        return "the program that read the output has ended", PIPE
    if lacks_semaphores(error):
        return f"processes cannot share a lock here: /dev/shm must be there and writable ({error})", 2
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}", 2
    if isinstance(error, ModuleNotFoundError) and error.name and extra_of(error.name):
        return str(lacking(error.name, "this")), 2
    kind = type(error).__name__
    return f"a bug in lineside, {kind}: {error}\nRun it again with LINESIDE_DEBUG=1 to see where, and report it.", FAULT


_stops: list[int] = []  # the signals that told this process to stop


def _stop(number: int, frame: object) -> None:
    """A scheduler or Ctrl-C stops the job. An import or a callback from C may lose the exception, or make another error
    of it, so it is raised again until the process ends."""
    _stops.append(number)
    signal.setitimer(signal.ITIMER_REAL, STOP_AGAIN, STOP_AGAIN)
    raise KeyboardInterrupt


def _told_to_stop() -> bool:
    """Whether this process was told to stop; it then ends in peace."""
    if _stops:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return bool(_stops)


def main() -> None:
    """Entry point of the command `lineside`."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, _stop)
    prepare()
    try:
        app()
    except KeyboardInterrupt:  # before the verb began
        progress.say(explain(KeyboardInterrupt())[0])
        raise SystemExit(INTERRUPTED) from None
    except SystemExit as end:
        raise SystemExit(INTERRUPTED if _told_to_stop() and end.code else end.code) from None  # a server ends with 0


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Options of the command itself."""
    if show:
        typer.echo(f"lineside {__version__}")
        raise typer.Exit
