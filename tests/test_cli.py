"""The command: its table of verbs, and that what ends badly ends in one message and the right status."""

import errno
import signal
import subprocess
import sys
import time

import pytest
import typer
from safetensors import SafetensorError
from typer.testing import CliRunner

from lineside import __version__, cli, progress
from lineside.cli import command
from lineside.errors import CheckFailed, LinesideError

PIPELINE = [
    "simulate", "select", "drift", "label", "review", "validate", "convert", "encode", "align", "sft", "rlvr", "train",
    "plan", "ask", "evaluate", "compare", "report", "export", "serve", "retrain", "models", "register", "gate",
    "promote", "rollback", "history", "diff",
]  # fmt: skip
HEAVY = "{'torch', 'transformers', 'mujoco', 'matplotlib', 'pyarrow'}"


def verbs() -> list[str]:
    return [str(verb.name) for verb in cli.app.registered_commands]


def test_the_table_is_in_the_order_of_the_pipeline():
    assert verbs() == [name for name in PIPELINE if name in verbs()]
    assert len(verbs()) >= 11


def test_no_help_page_loads_torch():
    code = f"""
import functools, sys
import typer.testing
from typer.testing import CliRunner
from lineside import cli
typer.testing._get_command = functools.cache(typer.testing._get_command)  # else all verbs are made anew for each page
for words in [[], *([str(c.name)] for c in cli.app.registered_commands)]:
    result = CliRunner().invoke(cli.app, [*words, "--help"])
    assert result.exit_code == 0 and "Usage: " in result.output, (words, result.output)
print(sorted({HEAVY} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_version():
    assert CliRunner().invoke(cli.app, ["--version"]).output.strip() == f"lineside {__version__}"


@pytest.mark.parametrize("words", [["no-such-verb"], ["report"], ["report", "x", "--no-such-option"], []])
def test_words_that_make_no_command_exit_with_2(words):
    assert CliRunner().invoke(cli.app, words).exit_code == 2


@pytest.fixture
def run(monkeypatch):
    """Run a verb that raises the given error, as the command would."""
    monkeypatch.setattr(command, "app", typer.Typer(pretty_exceptions_enable=False))

    def run(error: BaseException):
        def fail() -> None:
            raise error

        command.verb(fail)
        return CliRunner().invoke(command.app, [])

    return run


def caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error, status, message",
    [
        (LinesideError("row 7: no picture"), 2, "lineside fail: row 7: no picture"),
        (CheckFailed("worse by 3 points"), 1, "lineside fail: worse by 3 points"),
        (KeyboardInterrupt(), 130, "run the same command again to continue"),
        (OSError(errno.ENOSPC, "No space left on device", "runs/a.parquet"), 2, "the disk is full (runs/a.parquet)"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "the disk is full; finished work is kept"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 2, "the disk is full; finished work is kept"),
        (
            SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
            2,
            "disk is full",
        ),
        (caused(RuntimeError("worker"), OSError(errno.ENOSPC, "No space left on device")), 2, "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "runs"), 2, "lineside fail: runs: Permission denied"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141, "has ended"),
        (ZeroDivisionError("division by zero"), 70, "a bug in lineside, ZeroDivisionError: division by zero"),
    ],
)
def test_one_message_and_a_status(run, error, status, message):
    result = run(error)
    assert result.exit_code == status
    assert message in result.stderr
    assert "Traceback" not in result.output and result.stdout == ""


def test_stack_traces_are_for_debugging(run, monkeypatch):
    monkeypatch.setenv("LINESIDE_DEBUG", "1")
    result = run(LinesideError("row 7"))
    assert isinstance(result.exception, LinesideError) and "row 7" not in result.output


def test_a_message_is_printed_as_it_is(run):
    assert "expected [1, 2] or [/red]" in run(LinesideError("expected [1, 2] or [/red]")).stderr


def test_a_verb_that_ends_well(monkeypatch):
    monkeypatch.setattr(command, "app", typer.Typer())
    command.verb(lambda: typer.echo("fine"))
    result = CliRunner().invoke(command.app, [])
    assert (result.exit_code, result.stdout) == (0, "fine\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_or_a_scheduler_in_the_middle_of_a_loop(number):
    code = """
import time, typer
from lineside.cli import command
from lineside.progress import track
command.app = typer.Typer(pretty_exceptions_enable=False)
def simulate() -> None:
    for number in track(range(10**6), total=10**6, unit="frames", label="simulate"):
        print(number, flush=True)
        time.sleep(0.01)
command.verb(simulate)
command.main()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(number)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "run the same command again to continue" in err and "Traceback" not in err


def test_an_interrupt_that_a_library_loses_is_repeated_and_an_error_made_of_it_is_none():
    code = """
import sys, time, typer
from lineside.cli import command
command.app, command.STOP_AGAIN = typer.Typer(pretty_exceptions_enable=False), 0.2
class Lost:
    def __del__(self) -> None:
        print("in a callback", flush=True)
        time.sleep(60)
def simulate() -> None:
    lost = Lost()
    del lost  # what is raised in there is ignored
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        raise ImportError("initialization failed")
command.verb(simulate)
command.main()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130 and "a bug" not in err
    assert "lineside simulate: interrupted; finished work is kept" in err


def test_a_bar_left_standing_is_taken_down(monkeypatch):
    stopped = []

    class Bar:
        def stop(self):
            stopped.append(time.monotonic())

    monkeypatch.setattr(progress, "_bars", Bar())
    progress.clear()
    progress.clear()
    assert len(stopped) == 1


@pytest.mark.parametrize(
    "words, message",
    [
        (["task", "check", "{samples}", "bins.yaml"], "the task file first, then the frames"),
        (["evaluate", "{samples}", "{model}"], "frames or samples: are two folders swapped?"),
        (["ask", "{model}", "what?", "p.png"], "expected a picture file: lineside ask CHECKPOINT PICTURE QUESTION"),
        (["ask", "p.png", "{model}", "what?"], "expected a picture file: lineside ask CHECKPOINT PICTURE QUESTION"),
        (["compare", "{model}", "{model}"], "a folder; expected an evaluation"),
        (["train", "seed=1", "nano"], "the recipe comes first, then the settings"),
        (["train", "{model}"], "a folder; expected a YAML file"),
    ],
)
def test_swapped_arguments_are_told(tmp_path, words, message):
    for name in ("samples", "model"):
        (tmp_path / name).mkdir()
    (tmp_path / "samples" / "qa-train-00000.parquet").write_bytes(b"")
    words = [word.format(samples=tmp_path / "samples", model=tmp_path / "model") for word in words]
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == 2 and message in done.stderr
