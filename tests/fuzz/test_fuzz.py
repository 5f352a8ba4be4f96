"""Fuzzing in short: every reader gets its sound files, inputs that once did harm, and a few changed ones by seed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from lineside.errors import LinesideError
from tests.fuzz.guard import CANARY, find, watched
from tests.fuzz.harness import ROOT, quick, room
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


def test_the_guard_sees_what_a_reader_must_not_do(tmp_path: Path) -> None:
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
