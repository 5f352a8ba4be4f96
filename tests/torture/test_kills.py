"""The short form of `make torture`, and the model of a disk that it cuts the power of."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.torture.cases import CASES
from tests.torture.child import Ended, preloaded
from tests.torture.kills import term
from tests.torture.replay import Change, Disk, Promised, boundaries, flushed_lines, last_states

FEW = "--verbs=label,encode,promote --kills=2 --cuts=2 --full=1 --memory=1 --terms=1 --workers=1"
MORE = "--verbs=simulate,align,sft,rlvr,evaluate --kills=2 --cuts=3 --full=1 --memory=1 --terms=1"


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")
@pytest.mark.parametrize("few", [FEW, pytest.param(MORE, marks=pytest.mark.slow)])
def test_killed_without_power_disk_or_memory_it_goes_on_and_ends_the_same(tmp_path: Path, few: str) -> None:
    words = ["-m", "tests.torture.kills", "--folder", str(tmp_path / "torture"), "--out", str(tmp_path / "out.json")]
    done = preloaded(tmp_path, [*words, *few.split()], capture_output=True)
    claims = json.loads((tmp_path / "out.json").read_text()) if (tmp_path / "out.json").exists() else []
    assert done.returncode == 0 and len(claims) == 6, done.stdout + done.stderr[-3000:]
    assert all(claim["holds"] and claim["n"] > 0 for claim in claims)


def change(kind: str, path: Path, data: bytes = b"", *, other: Path | str = "", number: int = 0, at: int = 0) -> Change:
    return Change(kind, str(path), str(other), number, at, data)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def replayed(root: Path, changes: list[Change]) -> Disk:
    disk = Disk(root)
    for one in changes:
        disk.apply(one)
    return disk


def test_a_power_cut_leaves_what_was_flushed(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "old").write_bytes(b"old")
    new, place = root / ".new", root / "old"
    written = [change("create", new, number=1), change("write", new, b"new")]
    renamed = change("rename", new, other=place)
    flushed, named = change("fsync", new), change("fsync", root)
    cases = {  # what is done -> what is left of only the flushed, and of all names without content
        (*written, renamed): ({"old": b"old"}, {"old": b""}),
        (*written, flushed, renamed): ({"old": b"old"}, {"old": b"new"}),
        (*written, renamed, named): ({"old": b""}, {"old": b""}),
        (*written, flushed, renamed, named): ({"old": b"new"}, {"old": b"new"}),
    }
    for number, (done, wanted) in enumerate(cases.items()):
        disk = replayed(root, list(done))
        for kept, want in zip(("flushed", "names"), wanted):
            disk.left(tmp_path / f"{kept}{number}", kept, random.Random(0))
            assert files(tmp_path / f"{kept}{number}") == want
        disk.now(tmp_path / f"now{number}")
        assert files(tmp_path / f"now{number}") == {"old": b"new"}
    assert list(boundaries([*written, flushed, renamed, named], root)) == [3, 5]


def test_what_was_not_flushed_is_there_torn_or_gone(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    log = root / "log"
    done = [change("create", log, number=1), change("write", log, b"one "), change("fsync", log), change("fsync", root),
            change("write", log, b"two", at=4), change("unlink", log, number=1)]  # fmt: skip
    found = set()
    for seed in range(60):
        disk = replayed(root, done[:-1] if seed % 2 else done)
        disk.left(tmp_path / str(seed), "some", random.Random(seed))
        found.add(files(tmp_path / str(seed)).get("log"))
    assert found == {None, b"one ", b"one two", b"one t", b"one \0\0\0"}


def test_a_rename_that_the_log_lacks_is_seen_by_the_number_of_the_file(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    done = [change("create", root / ".tmpX", number=7), change("write", root / ".tmpX", b"w"),
            change("fsync", root / "weights", number=7), change("fsync", root)]  # fmt: skip
    replayed(root, done).left(tmp_path / "left", "flushed", random.Random(0))
    assert files(tmp_path / "left") == {"weights": b"w"}


def lost(root: Path, changes: list[Change]) -> list[str]:
    """What is promised after these changes, and is not there after a power cut that leaves what was flushed."""
    disk, promised = Disk(root), Promised()
    for one in changes:
        disk.apply(one)
        promised.apply(one, disk)
    shutil.rmtree(root)
    disk.left(root, "flushed", random.Random(0))
    return [str(Path(path).relative_to(root)) for path in promised.lost()]


def test_a_name_that_is_flushed_promises_its_content(tmp_path: Path) -> None:
    root = tmp_path / "root"
    new, place, named = root / ".new", root / "a", change("fsync", root)
    begun = [change("create", new, number=1), change("write", new, b"new")]
    renamed, flushed = change("rename", new, other=place), change("fsync", new)
    after = [change("create", new, number=2), change("write", new, b"2"), flushed, renamed]
    cases = {  # what is done -> what is lost
        "no flush at all": ([*begun, renamed], []),
        "its name alone": ([*begun, renamed, named], ["a"]),
        "its content too": ([*begun, flushed, renamed, named], []),
        "it is replaced, and the name of the new one is not flushed": ([*begun, flushed, renamed, named, *after], []),
        "it is gone again": ([*begun, renamed, named, change("unlink", place, number=1)], []),
        "a folder": ([change("mkdir", new), change("create", new / "w", number=3), change("write", new / "w", b"w"),
                      change("fsync", new), renamed, named], ["a/w"]),
    }  # fmt: skip
    for what, (done, wanted) in cases.items():
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        assert lost(root, done) == wanted, what


def test_what_was_flushed_of_states_and_ledgers() -> None:
    folder = Path("/run/sft/state")
    state = lambda step: folder / f"step-{step:08d}.safetensors"  # noqa: E731
    third, fourth = (change("rename", folder / ".new", other=state(step)) for step in (3, 4))
    named = change("fsync", folder)
    assert last_states([third]) == {}
    assert last_states([third, named, fourth]) == {str(folder): 3}
    assert last_states([third, named, fourth, named, change("unlink", state(3))]) == {str(folder): 4}
    assert last_states([third, named, change("unlink", state(3))]) == {}  # the stage is done
    ledger = Path("/out/teacher-000.ledger")
    line = change("write", ledger, b"one\n")
    assert flushed_lines([line, line, change("fsync", ledger), line]) == {str(ledger): 2}
    assert flushed_lines([line]) == {}


@pytest.mark.parametrize("status, told, wrong", [
    (130, True, ""), (-15, True, "status -15"), (0, True, "status 0"), (0, False, "no signal"), (130, True, "a fault"),
])  # fmt: skip
def test_only_a_verb_that_ends_with_130_holds(status: int, told: bool, wrong: str) -> None:
    said = "Traceback" if wrong == "a fault" else ""
    bench: Any = SimpleNamespace(
        whole=lambda case: SimpleNamespace(seconds=1.0), start=lambda case: None, again=lambda case: ("", None),
        run=lambda case, after: Ended(status, said, 1.0, told=told, left_after=0.25),
    )  # fmt: skip
    trial = term(bench, CASES["promote"], 0)
    assert bool(trial.wrong) == bool(wrong) and (wrong == "a fault" or wrong in trial.wrong)
    assert trial.left_after == (0.0 if wrong else 0.25)
