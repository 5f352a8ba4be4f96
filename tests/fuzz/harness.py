"""Fuzzing of every reader: inputs are changed again and again, guided by what they reach.

    python -m tests.fuzz.harness [--minutes 10] [--targets recipe tar] [--corpus FOLDER] [--jobs 1] [--measured 60]

Each target runs in a process of its own with bounded memory. With the package atheris (libFuzzer) coverage guides the
inputs; without it they are changed at random. Inputs that reach something new are kept in the corpus, with which the
next time goes on. At the end all of them are tried once more in code that is not traced, within the bound of time that
holds there. What several commands have tried adds up: the table and benchmarks/out/fuzz.json say for each target how
many inputs were tried in how many seconds and at which commits, how much of the reader the corpus reaches, and what was
found. A find is tried again by each later command: one that does no harm any more, or only to traced code, is told
apart. `--repeat FILE` runs one input that was found. Exit status 1 if a find still stands.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).parents[2]
CORPUS = ROOT / ".fuzz"
OUT = ROOT / "benchmarks" / "out" / "fuzz.json"
SAVE_EVERY = 2.0  # seconds
LARGEST = 1 << 20  # bytes of an input
TRACED = 8.0  # how many times as long a traced reader may take; the corpus is tried again without
WATCHDOG = 600  # seconds after which a process that is still at one input is a find of its own


@dataclass
class Account:
    """What has been done to a target, by all commands. `seconds`: of processor time, without what comes before the
    first input. `commits`: inputs by commit. `finds`: what was told of each kind, the file with an input, the commit.
    `gone`: those that do no harm any more, or none without tracing."""

    target: str
    inputs: int = 0
    seconds: float = 0.0
    guided: bool = False
    corpus: int = 0
    covered: int = 0
    lines: int = 0
    commits: dict[str, int] = field(default_factory=dict)
    finds: dict[str, list[str]] = field(default_factory=dict)
    gone: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, work: Path) -> Account:
        """The account that is kept in a target's folder of the corpus; a new one if there is none."""
        try:
            return cls(**json.loads((work / "account.json").read_text()))
        except (FileNotFoundError, ValueError, TypeError):  # TypeError: that of an earlier version
            return cls(work.name)

    def write(self, work: Path) -> None:
        """Keep it."""
        new = work / "account.new"
        new.write_text(json.dumps(asdict(self), indent=1))
        new.replace(work / "account.json")

    def note(self, key: str, told: str, path: Path, commit: str) -> None:
        """Add a find, unless one of its kind stands."""
        self.gone.pop(key, None)
        self.finds.setdefault(key, [told, str(path), commit])


class Room:
    """A folder with a target's sound files; `run` puts one input in the place of one of them."""

    def __init__(self, target: Any, folder: Path) -> None:
        from tests.fuzz.guard import CANARY, TOKEN, TOKENS

        os.environ.update(dict.fromkeys(TOKENS, TOKEN))
        self.target, self.place = target, folder / "place"
        self.seeds: list[tuple[int, bytes]] = []
        with silent():
            files = dict(target.files())
        self.names = list(target.fuzzed or files)
        self.sound: dict[str, bytes] = {}
        for name, texts in files.items():
            each = [texts] if isinstance(texts, bytes) else list(texts)
            self.sound[name] = each[0]
            if name in self.names:
                self.seeds += [(self.names.index(name), one) for one in each]
            (self.place / name).parent.mkdir(parents=True, exist_ok=True)
            (self.place / name).write_bytes(each[0])
        outside = folder / "outside"
        outside.mkdir()
        for name in (CANARY, f"{CANARY}.png"):
            (outside / name).write_bytes(b"outside")
        self._changed = ""
        os.chdir(self.place)
        with contextlib.suppress(Exception), silent():
            target.read(self.place)  # what it imports, and what these modules write, is not what an input does
        shutil.rmtree(self.place / "out", ignore_errors=True)

    def run(self, data: bytes, slack: float = 1.0) -> Any:
        """What the reader does wrong with an input: the first byte names the file, the rest is its content. What takes
        too long is tried once more: what is loaded and compiled the first time is not counted."""
        bad = self._run(data, slack) if data else None
        return self._run(data, slack) if bad is not None and bad.key.startswith("Hang") else bad

    def _run(self, data: bytes, slack: float) -> Any:
        from tests.fuzz.guard import find

        name = self.names[data[0] % len(self.names)]
        if self._changed and self._changed != name:
            self._write(self._changed, self.sound[self._changed])
        self._write(name, data[1:])
        self._changed = name
        shutil.rmtree(self.place / "out", ignore_errors=True)
        os.chdir(self.place)
        return find(lambda: self.target.read(self.place), self.place, len(data), self.target.refuses, slack)

    def _write(self, name: str, data: bytes) -> None:
        path = self.place / name
        if path.is_symlink() or not path.parent.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Without what is printed."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


@contextlib.contextmanager
def room(name: str) -> Iterator[Room]:
    """A target's folder, removed at the end."""
    from tests.fuzz.targets import TARGETS

    folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-")).resolve()
    here, environment = os.getcwd(), dict(os.environ)
    try:
        yield Room(TARGETS[name], folder)
    finally:
        os.chdir(here)
        os.environ.clear()
        os.environ.update(environment)
        shutil.rmtree(folder, ignore_errors=True)


def quick(name: str, count: int, seed: int) -> dict[str, Any]:
    """Try a target's own files and `count` changed ones; returns what was found, by kind."""
    from tests.fuzz.mutate import mutated

    chance, found = Random(f"{name}/{seed}"), {}
    with room(name) as place:
        seeds = [bytes([index]) + data for index, data in place.seeds]
        for number in range(len(seeds) + count):
            base = seeds[number] if number < len(seeds) else chance.choice(seeds)
            data = base if number < len(seeds) else base[:1] + mutated(base[1:], chance)
            if (bad := place.run(data)) is not None:
                found.setdefault(bad.key, (bad.told, data))
    return found


# --- the process of a target


def child(name: str, seconds: float, corpus: Path, seed: int) -> None:
    """Fuzz one target for a time, and keep the account up to date."""
    sys.path.insert(0, str(ROOT))
    try:
        import atheris  # pyright: ignore[reportMissingImports]
    except ImportError:
        atheris = None
    with atheris.instrument_imports(include=["lineside"]) if atheris else contextlib.nullcontext():
        _import_all(name)
    from tests.fuzz.guard import limit_memory
    from tests.fuzz.mutate import mutated

    work, commit = corpus / name, _commit()
    kept, finds = work / "inputs", work / "finds"
    for folder in (kept, finds):
        folder.mkdir(parents=True, exist_ok=True)
    account = Account.of(work)
    account.guided, before = atheris is not None, account.seconds
    with room(name) as place:
        for index, data in place.seeds:
            _keep(kept, bytes([index]) + data)
        limit_memory()
        current = finds / "running"
        begun, saved = time.process_time(), 0.0  # what it takes to begin is not the target's

        def one(data: bytes) -> None:
            nonlocal saved
            current.write_bytes(data)
            account.inputs += 1
            account.commits[commit] = account.commits.get(commit, 0) + 1
            bad = place.run(data, TRACED)
            if bad is not None and bad.key not in account.finds:
                path = finds / hashlib.sha256(bad.key.encode()).hexdigest()[:12]
                path.write_bytes(data)
                account.note(bad.key, bad.told, path, commit)
                saved = 0.0
            now = time.process_time()
            if now - saved > SAVE_EVERY or now - begun > seconds:
                saved, account.seconds = now, before + now - begun
                account.write(work)
            if now - begun > seconds:
                current.unlink()
                shutil.rmtree(place.place.parent, ignore_errors=True)
                os._exit(0)

        def change(data: bytes, most: int, number: int) -> bytes:
            chance = Random(number)
            if atheris is not None and chance.random() < 0.3:
                return data[:1] + atheris.Mutate(data[1:], most - 1)
            return data[:1] + mutated(data[1:], chance, most - 1)

        if atheris is not None:
            options = [
                f"-seed={seed + 1}",
                f"-max_len={LARGEST}",
                "-timeout=0",  # the alarm is the guard's
                "-rss_limit_mb=0",
                "-print_final_stats=0",
            ]
            atheris.Setup(
                [name, *options, f"-artifact_prefix={finds}/", str(kept)],
                one,
                custom_mutator=change,
                internal_libfuzzer=True,
            )
            atheris.Fuzz()
        chance = Random(f"{name}/{seed}")
        inputs = [path.read_bytes() for path in sorted(kept.iterdir())]
        while True:
            one(change(chance.choice(inputs), LARGEST, chance.getrandbits(60)))


def _keep(folder: Path, data: bytes) -> None:
    (folder / hashlib.sha1(data, usedforsecurity=False).hexdigest()).write_bytes(data)


def _import_all(name: str) -> None:
    """Import the modules of a target's parts, so that they are traced."""
    import importlib

    from tests.fuzz.targets import TARGETS

    for path in _parts(TARGETS[name]):
        importlib.import_module("lineside." + ".".join(path.with_suffix("").parts).removesuffix(".__init__"))


def _parts(target: Any) -> list[Path]:
    from tests.fuzz.guard import SOURCE

    found = {path.relative_to(SOURCE) for pattern in target.parts for path in SOURCE.glob(pattern)}
    assert found, target.name
    return sorted(path for path in found if path.name != "__init__.py")


def replay(name: str, corpus: Path, seconds: float) -> None:
    """Try a target's whole corpus in code that is not traced, within the bound of time that holds there; then count the
    lines that it reaches, for at most `seconds` of processor time."""
    sys.path.insert(0, str(ROOT))
    from tests.fuzz.guard import limit_memory

    work, commit = corpus / name, _commit()
    finds, account = work / "finds", Account.of(work)
    finds.mkdir(parents=True, exist_ok=True)
    with room(name) as place:
        kept = [path.read_bytes() for path in sorted((work / "inputs").iterdir())]
        inputs = [*(bytes([index]) + data for index, data in place.seeds), *kept]
        limit_memory()
        for data in inputs:
            (finds / "running").write_bytes(data)
            if (bad := place.run(data)) is not None:
                path = finds / hashlib.sha256(f"untraced {bad.key}".encode()).hexdigest()[:12]
                path.write_bytes(data)
                account.note(bad.key, bad.told, path, commit)
        (finds / "running").unlink()
        account.corpus = len(kept)
        account.write(work)
        account.covered, account.lines = _reached(place, inputs, seconds)
    account.write(work)


def _reached(place: Room, inputs: Sequence[bytes], seconds: float) -> tuple[int, int]:
    """(lines of a target's parts that inputs reach, their lines)."""
    from tests.fuzz.guard import SOURCE

    files = {str(SOURCE / path) for path in _parts(place.target)}
    left = {file: set(_lines_of(compile(Path(file).read_text(), file, "exec"))) for file in files}
    every = sum(map(len, left.values()))
    own: dict[Any, set[int]] = {}  # of each piece of code, the lines that are not reached yet: others run untraced

    def trace(frame: Any, event: str, argument: Any) -> Any:
        code = frame.f_code
        if code.co_filename not in files:
            return None
        missing = left[code.co_filename]
        missing.discard(frame.f_lineno)
        if code not in own:
            own[code] = {line for _, _, line in code.co_lines() if line}
        own[code] &= missing
        if not own[code]:
            return None

        def line(frame: Any, event: str, argument: Any) -> Any:
            missing.discard(frame.f_lineno)
            return line

        return line

    begun = time.process_time()
    sys.settrace(trace)
    try:
        for data in inputs:
            place.run(data, 100 * TRACED)
            if time.process_time() - begun > seconds:
                break
    finally:
        sys.settrace(None)
    return every - sum(map(len, left.values())), every


def _lines_of(code: Any, top: bool = True) -> Iterator[int]:
    """The lines of functions: those at the top of a file run when it is imported."""
    for constant in code.co_consts:
        if hasattr(constant, "co_code"):
            yield from _lines_of(constant, False)
    if not top and code.co_flags & 2:  # a function, not the body of a class
        yield from (line for _, _, line in code.co_lines() if line and line != code.co_firstlineno)


# --- all targets


def fuzz(names: Sequence[str], minutes: float, corpus: Path, jobs: int, seed: int, measured: float) -> list[Account]:
    """Fuzz the targets by turns, `jobs` at a time, for `minutes` of processor time in all, shared out by SHARES; then
    try what was kept and found once more."""
    from tests.fuzz.targets import SHARES

    shares = {name: SHARES.get(name, 1.0) for name in names}
    waiting, done = list(names), []
    running: dict[str, tuple[subprocess.Popen[bytes], float]] = {}  # with the seconds at which it is done
    while waiting or running:
        while waiting and len(running) < jobs:
            name = waiting.pop(0)
            until = Account.of(corpus / name).seconds + 60 * minutes * shares[name] / sum(shares.values())
            running[name] = _start(name, until, corpus, seed), until
        time.sleep(0.2)
        for name, (process, until) in list(running.items()):
            if process.poll() is None:
                _look_after(process, corpus / name)
                continue
            account = Account.of(corpus / name)
            if process.returncode != 0:
                _died(account, corpus / name, process.returncode)
                if account.seconds < until - 1 and len(account.finds) < 20:  # it goes on with the rest of its time
                    running[name] = _start(name, until, corpus, seed + account.inputs), until
                    continue
            del running[name]
            done.append(_again(corpus, name, measured))
            print(_line(done[-1]), flush=True)
    return done


def _start(name: str, until: float, corpus: Path, seed: int) -> subprocess.Popen[bytes]:
    seconds = max(1.0, until - Account.of(corpus / name).seconds)
    return _process(corpus / name, "--child", name, str(seconds), str(corpus), str(seed))


def _process(work: Path, *words: str) -> subprocess.Popen[bytes]:
    from tests.fuzz.guard import TOKEN, TOKENS

    work.mkdir(parents=True, exist_ok=True)
    (work / "finds" / "running").unlink(missing_ok=True)  # of a command that was killed
    command = [sys.executable, "-m", "tests.fuzz.harness", *words]
    environment = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "LINESIDE_BACKEND": "reference"}
    environment = {**os.environ, **environment, **dict.fromkeys(TOKENS, TOKEN)}
    with open(work / "log", "ab") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)


def _look_after(process: subprocess.Popen[bytes], work: Path) -> None:
    """End a process that stays at one input, in code where no alarm of Python's reaches it."""
    with contextlib.suppress(FileNotFoundError):
        if time.time() - (work / "finds" / "running").stat().st_mtime > WATCHDOG:
            process.kill()


def _again(corpus: Path, name: str, measured: float) -> Account:
    """Try the finds once more, each in a process of its own, then the corpus, untraced."""
    work = corpus / name
    account = Account.of(work)
    for key, (told, path, commit) in list(account.finds.items()):
        process = _process(work, "--repeat", path, "--targets", name)
        if _ended(process, work) == 0:
            account.gone[key] = [told, path, commit]
            del account.finds[key]
    account.write(work)
    status = _ended(_process(work, "--replay", name, str(corpus), str(measured)), work)
    account = Account.of(work)
    if status != 0:
        _died(account, work, status)
    return account


def _ended(process: subprocess.Popen[bytes], work: Path) -> int:
    while process.poll() is None:
        time.sleep(0.1)
        _look_after(process, work)
    return process.returncode


def _died(account: Account, work: Path, status: int) -> None:
    """A process that ended by itself: what it was doing is a find."""
    running = work / "finds" / "running"
    log = (work / "log").read_text(errors="replace")[-2000:]
    number = len(account.finds) + len(account.gone)
    place = work / "finds" / f"died-{number}"
    if running.exists():
        running.rename(place)
    key = f"process ended: {signal.Signals(-status).name if status < 0 else status} {number}"
    account.note(key, log, place, _commit())
    account.write(work)


def _commit() -> str:
    """The commit of what is fuzzed; "+" behind it if files were changed since."""
    words = ["git", "describe", "--always", "--exclude=*", "--abbrev=7", "--dirty=+"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _line(account: Account) -> str:
    share = f"{account.covered}/{account.lines}" if account.lines else "not measured"
    gone = f" ({len(account.gone)} gone)" if account.gone else ""
    return (
        f"{account.target:18} {account.inputs:>9,} inputs {account.seconds:>7,.0f} s   lines {share:>12}   "
        f"corpus {account.corpus:>6,}   finds {len(account.finds)}{gone}"
    )


def main() -> int:
    """Fuzz, print a table and the finds, write the claims."""
    if "--child" in sys.argv:
        name, seconds, corpus, seed = sys.argv[sys.argv.index("--child") + 1 :]
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        child(name, float(seconds), Path(corpus), int(seed))
        return 0
    if "--replay" in sys.argv:
        name, corpus, seconds = sys.argv[sys.argv.index("--replay") + 1 :]
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        replay(name, Path(corpus), float(seconds))
        return 0
    sys.path.insert(0, str(ROOT))
    from tests.fuzz.guard import limit_memory
    from tests.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="of processor time, shared by the targets")
    parser.add_argument("--targets", nargs="*", default=sorted(TARGETS), choices=sorted(TARGETS), metavar="NAME")
    parser.add_argument("--corpus", type=Path, default=CORPUS)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--measured", type=float, default=60.0, help="seconds a target, at most, to count the lines that it reaches"
    )
    parser.add_argument("--out", type=Path, default=OUT, help="the claims, and what was tried in all")
    parser.add_argument("--repeat", type=Path, help="an input that was found; give its target with --targets")
    chosen = parser.parse_args()
    if chosen.repeat:
        data = chosen.repeat.read_bytes()
        with room(chosen.targets[0]) as place:
            limit_memory()
            bad = place.run(data)
        print(bad.told if bad else "nothing wrong")
        return bool(bad)
    corpus = chosen.corpus.resolve()
    fuzz(chosen.targets, chosen.minutes, corpus, chosen.jobs, chosen.seed, chosen.measured)
    every = [account for name in sorted(TARGETS) if (account := Account.of(corpus / name)).inputs]
    for account in every:
        for key, (told, path, commit) in account.finds.items():
            print(f"\n--- {account.target} at {commit}: {key}\n{told}\n{path}")
    finds = sum(len(account.finds) for account in every)
    claim = {
        "claim": "inputs of fuzzing that do harm, kinds",
        "value": finds,
        "at_most": 0,
        "holds": not finds,
        "n": sum(account.inputs for account in every),
        "command": " ".join(["python -m tests.fuzz.harness", *sys.argv[1:]]),
        "hours": round(sum(account.seconds for account in every) / 3600, 2),
        "commits": sorted({commit for account in every for commit in account.commits}),
        "targets": {a.target: {k: v for k, v in asdict(a).items() if k != "target"} for a in every},
    }
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps([claim], indent=2) + "\n")
    print(f"\n{claim['n']:,} inputs, {claim['hours']} hours of {len(every)} targets in all: {finds} kinds of finds")
    return 1 if finds else 0


if __name__ == "__main__":
    sys.exit(main())
