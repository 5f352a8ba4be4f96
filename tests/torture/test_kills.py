"""The short form of `make torture`, and the model of a disk that it cuts the power of."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

from tests.torture.child import preloaded
from tests.torture.replay import Change, Disk, boundaries

FEW = "--verbs=label,encode,promote --kills=2 --cuts=2 --full=1 --memory=1 --terms=1 --workers=1"


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")
@pytest.mark.parametrize("few", [FEW, pytest.param("--verbs=align,sft,rlvr,evaluate --kills=2 --cuts=3 --full=1 "
                                                   "--memory=1 --terms=1", marks=pytest.mark.slow)])  # fmt: skip
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
