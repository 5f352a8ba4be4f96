"""Real processes: killed at every change of a file, many that write at once, disks that are full or read-only."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lineside.registry.store import Registry
from tests.registry.conftest import add
from tests.torture.child import preloaded

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([*filter(None, sys.path), str(HERE.parents[1])])}


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")
def test_killed_at_any_instant_the_old_champion_or_the_new_one_is_whole(tmp_path: Path) -> None:
    done = preloaded(tmp_path, ["-m", "tests.registry.killed", str(tmp_path / "registry")], capture_output=True)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert min(counts.values()) >= 3, counts  # it was killed at all


WRITER = """
import sys
from pathlib import Path
from lineside.registry.promotion import promote
from lineside.registry.store import Registry
from tests.registry.conftest import add
sys.stdin.readline()
for number in range(6):
    with Registry(Path(sys.argv[1]), create=True) as registry:
        version = add(registry, "bins", f"{sys.argv[2]}-{number}")
        promote(registry, version, force="x")
        add(registry, f"own-{sys.argv[2]}", "same")
"""


def test_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    folder, writers = tmp_path / "registry", 4
    running = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, folder, str(n)], stdin=subprocess.PIPE, text=True, env=ENVIRONMENT
        )
        for n in range(writers)
    ]
    for process in running:  # all have loaded, then all begin: they also make the registry at once
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.close()
    assert [process.wait() for process in running] == [0] * writers
    with Registry(folder) as registry:
        versions = registry.versions("bins")
        assert [version.number for version in versions] == list(range(1, 6 * writers + 1))
        assert len({version.model for version in versions}) == 6 * writers
        assert len({registry.version(f"own-{n}@1").model for n in range(writers)}) == 1
        events = registry.events()
        assert sum(event["what"] == "promote" for event in events) == 6 * writers
        assert sum(event["what"] == "register" for event in events) == 7 * writers
        champion = registry.champion("bins")
        assert champion is not None and champion.promotion == max(e["id"] for e in events if e["what"] == "promote")
        before = [event["before"] for event in events if event["what"] == "promote"]
        assert len(set(before)) == len(before)  # each came after another one: none was overwritten
        for item in registry.items("model"):
            registry.check(item, item.hash)


MOUNTED = """
set -e
mount -t tmpfs -o size={size} tmpfs {place}
cp -a {registry} {place}/registry
{prepare}
exec {python} -c '{verbs}' {place}/registry {words}
"""
VERBS = """
import os, sys
import lineside.models
from lineside.cli import main
for words in sys.argv[2:]:
    if os.fork() == 0:
        sys.argv = ["lineside", *words.split(","), "--registry", sys.argv[1]]
        sys.exit(main())
    print("status", os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""


def mounted(tmp_path: Path, prepare: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Verbs on a copy of a registry on a file system of its own, prepared by a line of shell."""
    (tmp_path / "mount").mkdir()
    script = MOUNTED.format(
        size="400k", place=tmp_path / "mount", registry=tmp_path / "registry", prepare=prepare,
        python=sys.executable, verbs=VERBS, words=" ".join(word.replace(" ", ",") for word in words),
    )  # fmt: skip
    return subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, env=ENVIRONMENT)


def may_mount() -> bool:
    try:
        test = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
        return subprocess.run(test, capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    with Registry(tmp_path / "registry", create=True) as registry:
        add(registry, "bins", "a")
        add(registry, "bins", "b")
    return tmp_path


@pytest.mark.skipif(not may_mount(), reason="may not mount file systems")
def test_read_only_storage_is_read_and_its_refusal_named(filled: Path) -> None:
    remount = f"mount -o remount,ro {filled / 'mount'}"
    done = mounted(filled, remount, "models --json", "registry gc")
    assert done.stdout.count('"version"') == 2
    assert [line for line in done.stdout.splitlines() if line.startswith("status")] == ["status 0", "status 2"]
    assert "read-only: nothing can be registered or promoted here; nothing was changed" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not may_mount(), reason="may not mount file systems")
def test_a_full_disk_is_named_and_nothing_is_half_promoted(filled: Path) -> None:
    place = filled / "mount"
    killed = f"mkdir -p {place}/registry/tmp/1-dead; head -c 100000 /dev/zero > {place}/registry/tmp/1-dead/model"
    fill = f"{killed}; (cat /dev/zero > {place}/filler || true) 2>/dev/null"
    done = mounted(filled, fill, "promote bins@1", "history --json", "registry gc", "promote bins@1")
    statuses = [line for line in done.stdout.splitlines() if line.startswith("status")]
    assert statuses == ["status 2", "status 0", "status 0", "status 0"], done.stderr  # gc makes the room that it can
    assert "deleted: 1 folders that killed processes had left" in done.stderr
    assert done.stderr.count("the disk is full: make room and run the same command again; nothing was changed") == 1
    assert done.stdout.count('"register"') == 2 and '"promote"' not in done.stdout.partition("status 0")[0]
