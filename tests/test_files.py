"""A folder has one writer, and a file that has changed is noticed."""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import lineside.files
from lineside.errors import LinesideError
from lineside.files import (
    LOCK,
    Stamp,
    changes,
    dump_stamps,
    hold,
    rename,
    replace_folder,
    replacing,
    stamps,
    write_atomic,
)
from lineside.strict import read_record

SOURCE = Path(lineside.files.__file__).parent

HOLDER = """
import sys
from pathlib import Path
from lineside.files import hold
with hold(Path(sys.argv[1]), shared=sys.argv[2] == "shared"):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(folder: Path, kind: str = "alone") -> Iterator[subprocess.Popen[str]]:
    """Another process that holds `folder` until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.communicate()


def test_a_read_only_folder_stays_as_it_is_for_root_too(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir(mode=0o555)
    with pytest.raises(LinesideError, match="its folder is read-only"):
        write_atomic(tmp_path / "kept" / "tasks.json", "{}")
    assert not list((tmp_path / "kept").iterdir())


def test_a_second_process_is_refused_and_told_who_the_first_is(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with holder(folder) as process:
        for shared in (False, True):
            with pytest.raises(LinesideError) as error, hold(folder, shared=shared):
                pass
            for words in (str(folder), f"process {process.pid} on ", "since 20", "-c ", "wait until it ends"):
                assert words in str(error.value)
        with hold(folder, name=".other"):  # another lock of the same folder
            pass
    with hold(folder):
        (folder / "work").touch()
    assert [path.name for path in folder.iterdir()] == ["work"]


def test_a_killed_process_keeps_nobody_out(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (tmp_path / LOCK).exists()  # stale
        with hold(tmp_path), pytest.raises(LinesideError, match=f"process {os.getpid()} on"), hold(tmp_path):
            pass
    assert not (tmp_path / LOCK).exists()


def test_what_killed_processes_left_of_files_is_removed_and_what_others_write_is_not(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    (tmp_path / "below").mkdir()
    left = [tmp_path / f".a.json.{child.pid}.tmp", tmp_path / "below" / f".b.{os.getpid()}.tmp"]
    kept = [tmp_path / "c.tmp", tmp_path / ".c.tmp", tmp_path / f".d.{os.getppid()}.tmp"]
    for path in (*left, *kept):
        path.touch()
    with hold(tmp_path, shared=True):  # another one may write
        assert all(path.exists() for path in left)
    with hold(tmp_path):
        assert not any(path.exists() for path in left) and all(path.exists() for path in kept)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write_atomic(path, "one")
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_text("tw")
        raise ZeroDivisionError
    assert [(p.name, p.read_text()) for p in path.parent.iterdir()] == [("file", "one")]
    (tmp_path / "new.tmp").mkdir()
    (tmp_path / "new.tmp" / "file").write_text("two")
    replace_folder(tmp_path / "new.tmp", tmp_path / "new")
    assert path.read_text() == "two" and [p.name for p in tmp_path.iterdir()] == ["new"]


def test_only_one_function_gives_files_other_names() -> None:
    """So that each name is flushed: by the source, of all modules."""

    def renames(call: ast.Call) -> bool:
        if not isinstance(call.func, ast.Attribute):
            return False
        of, name = call.func.value, call.func.attr
        if isinstance(of, ast.Name) and of.id in ("os", "shutil"):
            return name in ("rename", "renames", "replace", "move")
        return name == "rename" or (name == "replace" and len(call.args) == 1 and not call.keywords)  # of a Path

    found = []
    suspect = re.compile(r"rename|os\.replace|shutil\.move|from (os|shutil) import|\.replace\([^,]+?\)")
    for path in sorted(SOURCE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if not suspect.search(text):  # to parse all takes seconds
            continue
        tree = ast.parse(text)
        found += [f"{path.name}: {ast.unparse(node)}" for node in ast.walk(tree)
                  if (isinstance(node, ast.Call) and renames(node))
                  or (isinstance(node, ast.ImportFrom) and node.module in ("os", "shutil")
                      and {"rename", "renames", "replace", "move"} & {one.name for one in node.names})]  # fmt: skip
    assert found == ["files.py: os.replace(path, to)"]


@pytest.mark.parametrize("folder", [False, True])
def test_a_name_is_flushed_where_it_was_and_where_it_is(
    tmp_path: Path, folder: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "to").mkdir()
    old, new = tmp_path / "from" / "a", tmp_path / "to" / "b"
    _ = old.mkdir() if folder else old.write_text("kept")
    flushed: list[Path] = []
    monkeypatch.setattr(lineside.files, "flush", flushed.append)
    rename(old, new)
    assert flushed == [new.parent, old.parent] and new.exists() and not old.exists()
    rename(new, new.with_name("c"))
    assert flushed[2:] == [new.parent]


def test_several_share_and_one_alone_is_kept_out(tmp_path: Path) -> None:
    with holder(tmp_path, "shared") as first, holder(tmp_path, "shared") as second:
        with hold(tmp_path, shared=True):
            pass
        for process in (first, second):
            with pytest.raises(LinesideError, match="in use"), hold(tmp_path):
                pass
            process.communicate()
        with hold(tmp_path):
            pass


def test_a_folder_made_for_nothing_is_gone_again(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), hold(tmp_path / "a" / "b"):
        raise ZeroDivisionError
    assert not (tmp_path / "a" / "b").exists()
    (tmp_path / "file").touch()
    with pytest.raises(LinesideError, match="cannot be written to"), hold(tmp_path / "file" / "b"):
        pass


def test_changes_are_of_contents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text(name)
    before = stamps(sorted(tmp_path.iterdir()), root=tmp_path)
    (tmp_path.parent / "stamps").write_text(json.dumps(dump_stamps(before)))
    assert read_record(dict[str, Stamp], tmp_path.parent / "stamps", "") == before and changes(before, before) == []
    os.utime(tmp_path / "a")  # written again, the same: a copy of the folder
    (tmp_path / "b").write_text("B")
    (tmp_path / "c").unlink()
    (tmp_path / "d").write_text("d")
    now = stamps([*sorted(tmp_path.iterdir()), tmp_path / "c"], before, root=tmp_path)
    assert changes(before, now) == ["b has changed", "c is gone", "d is new"]

    monkeypatch.setattr("lineside.files._hash", lambda path: pytest.fail(f"{path} is read again"))
    assert stamps(sorted(tmp_path.iterdir()), now, root=tmp_path) == now
