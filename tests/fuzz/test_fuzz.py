"""Fuzzing in short: every reader gets its sound files, inputs that once did harm, and a few changed ones by seed."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest

from lineside.errors import LinesideError
from tests.fuzz import guard
from tests.fuzz.guard import CANARY, TOKEN, find, watched
from tests.fuzz.harness import ROOT, Account, quick, room
from tests.fuzz.mutate import mutated
from tests.fuzz.targets import TARGETS

HARMFUL = Path(__file__).with_name("regressions")  # TARGET--WHAT: an input that once did harm
SLOW = ("adapter", "checkpoint", "label", "overrides", "report", "video", "compare")
CHANGED = 8


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in sorted(TARGETS)])
def test_a_reader_reads_or_refuses(name: str) -> None:
    assert {key: told for key, (told, _) in quick(name, CHANGED, seed=0).items()} == {}


@pytest.mark.parametrize("path", sorted(HARMFUL.iterdir()), ids=lambda path: path.name)
def test_what_once_did_harm_does_none(path: Path) -> None:
    with room(path.name.split("--")[0]) as place:
        bad = place.run(path.read_bytes())
    assert bad is None, bad.told


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TARGETS))
def test_the_sound_files_of_a_target_are_read(name: str) -> None:
    """A target whose files are refused at once would fuzz nothing."""
    with room(name) as place:
        try:
            TARGETS[name].read(place.place)
        except LinesideError as refused:
            assert name in ("compare", "shards"), refused  # too few answers; the noise of the small run


def test_changes_are_fixed_by_the_seed_and_keep_forms_whole() -> None:
    sound = json.dumps({"a": [1, {"b": "c"}], "d": None}).encode()
    first, again = ([mutated(sound, Random(seed)) for seed in range(300)] for _ in range(2))
    assert first == again and len(set(first)) > 200
    whole = 0
    for text in first:
        try:
            json.loads(text)
            whole += 1
        except (ValueError, RecursionError):
            continue
    assert 60 < whole < 280  # many changes reach beyond the parser, many do not


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_guard_sees_what_a_reader_must_not_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def told() -> None:
        raise LinesideError("no") from ValueError(TOKEN)

    class Last:
        def __del__(self) -> None:
            _ = [None for _ in iter(int, 1)]

    def finalised() -> None:
        Last()  # the first Hang is lost in there
        _ = [None for _ in iter(int, 1)]

    def flooded() -> None:
        with contextlib.suppress(OSError):
            (place / "a").write_bytes(bytes(2 << 20))

    monkeypatch.setattr(guard, "WAITS", 0.3)
    monkeypatch.setattr(guard, "WRITTEN", 1 << 20)
    place, outside = tmp_path / "place", tmp_path / f"{CANARY}.txt"
    place.mkdir()
    outside.write_text("x")
    refuses = (LinesideError,)
    assert find(lambda: (place / "a").write_text("x"), place, 1, refuses) is None
    for harm, key in (
        (lambda: (tmp_path / "b").write_text("x"), "outside: written"),
        (lambda: (place / ".." / "e").mkdir(), "outside: os.mkdir"),
        (lambda: (place / "a").rename(tmp_path / "c"), "outside: os.rename"),
        (outside.read_text, "outside: read"),
        (lambda: {}["x"], "KeyError"),
        (lambda: [None for _ in iter(int, 1)], "Hang"),
        (lambda: [os.stat(place) for _ in iter(int, 1)], "Hang"),  # the kernel computes
        (finalised, "Hang"),
        (lambda: time.sleep(60), "Wait"),
        (lambda: os.read(os.pipe()[0], 1), "Wait"),
        (flooded, "Flood"),
        (lambda: [(place / str(n)).write_bytes(bytes(1 << 18)) for n in range(5)], "flood: 1,310,720 bytes in 5 files"),
        (lambda: (place / "a").write_text(f"x {TOKEN}"), "token written"),
        (lambda: print(TOKEN), "token told"),
        (told, "token told"),
        (lambda: __import__("subprocess").run(["true"]), "subprocess.Popen"),
        (lambda: __import__("pickle").loads(b"cos\nsystem\n."), "pickle.find_class"),
    ):
        found = find(harm, place, 1, refuses)
        assert found is not None and found.key.startswith(key), (key, found)
    with watched(place) as broken:
        pass
    (tmp_path / "d").write_text("x")  # nobody watches any more
    assert not broken


def test_memory_is_bounded_in_the_process_of_a_target() -> None:
    code = "from tests.fuzz.guard import limit_memory; limit_memory(1 << 28); bytearray(1 << 30)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "MemoryError" in done.stderr


def test_a_find_stands_until_it_is_gone_and_comes_back(tmp_path: Path) -> None:
    work = tmp_path / "tar"
    work.mkdir()
    assert Account.of(work) == Account("tar")
    account = Account("tar", inputs=5, seconds=2.0, commits={"a": 5})
    account.note("KeyError", "x", work / "1", "a")
    account.note("KeyError", "y", work / "2", "b")  # the first of a kind is kept
    account.gone["Hang"] = ["z", "", "a"]
    account.write(work)
    again = Account.of(work)
    assert again == account and again.finds == {"KeyError": ["x", str(work / "1"), "a"]}
    again.note("Hang", "w", work / "3", "b")
    assert list(again.finds) == ["KeyError", "Hang"] and again.gone == {}


@pytest.mark.slow
def test_what_several_commands_try_adds_up(tmp_path: Path) -> None:
    words = ["--minutes", "0.02", "--measured", "1", "--targets", "verifiers", "--corpus", str(tmp_path / "c")]
    command = [sys.executable, "-m", "tests.fuzz.harness", *words, "--out", str(tmp_path / "fuzz.json")]
    tried = []
    for _ in range(2):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        (claim,) = json.loads((tmp_path / "fuzz.json").read_text())
        assert done.returncode == 0 and claim["holds"], done.stdout + done.stderr
        one = claim["targets"]["verifiers"]
        assert one["inputs"] == sum(one["commits"].values()) == claim["n"]
        assert 0 < one["covered"] <= one["lines"] and one["corpus"] > 3 and list(one["commits"]) == claim["commits"]
        tried.append((one["inputs"], one["seconds"]))
    assert tried[1][0] > tried[0][0] + 3 and tried[0][1] >= 1.2 and tried[1][1] >= 2.4
