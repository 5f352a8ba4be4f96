"""Fuzzing of every reader: inputs are changed again and again, guided by what they reach.

    python -m tests.fuzz.harness [--minutes 10] [--targets recipe tar] [--corpus FOLDER] [--jobs 1]

Each target runs in a process of its own with bounded memory. With the package atheris (libFuzzer) coverage guides the
inputs; without it they are changed at random. Inputs that reach something new are kept in the corpus, with which the
next time goes on. The table and benchmarks/out/fuzz.json say how many inputs were tried, how much of the readers they
reach, and what was found; `--repeat FILE` runs one input that was found. Exit status 1 if anything was found.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
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
SAVE_EVERY = 2.0  # seconds
MEASURED = 4.0  # seconds of processor time, for what a target's corpus reaches
LARGEST = 1 << 20  # bytes of an input
TRACED = 8.0  # how many times as long a traced reader may take; a find of this kind is repeated without
WATCHDOG = 300  # seconds after which a process that does not answer is a find of its own


@dataclass
class Account:
    """What a target's process has done. `finds`: what was told of each kind, and the file with an input."""

    target: str
    inputs: int = 0
    seconds: float = 0.0
    guided: bool = False
    corpus: int = 0
    covered: int = 0
    lines: int = 0
    finds: dict[str, list[str]] = field(default_factory=dict)


class Room:
    """A folder with a target's sound files; `run` puts one input in the place of one of them."""

    def __init__(self, target: Any, folder: Path) -> None:
        from tests.fuzz.guard import CANARY

        self.target, self.place = target, folder / "place"
        self.seeds: list[tuple[int, bytes]] = []
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
        with contextlib.suppress(Exception):
            target.read(self.place)  # what it imports, and what these modules write, is not what an input does
        shutil.rmtree(self.place / "out", ignore_errors=True)

    def run(self, data: bytes, slack: float = 1.0) -> Any:
        """What the reader does wrong with an input: the first byte names the file, the rest is its content."""
        from tests.fuzz.guard import find

        if not data:
            return None
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
def room(name: str) -> Iterator[Room]:
    """A target's folder, removed at the end."""
    from tests.fuzz.targets import TARGETS

    folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-")).resolve()
    here = os.getcwd()
    try:
        yield Room(TARGETS[name], folder)
    finally:
        os.chdir(here)
        shutil.rmtree(folder, ignore_errors=True)


def quick(name: str, count: int, seed: int, inputs: Sequence[bytes] = ()) -> dict[str, Any]:
    """Try `inputs`, the target's own files and `count` changed ones; returns what was found, by kind."""
    from tests.fuzz.mutate import mutated

    chance, found = Random(f"{name}/{seed}"), {}
    with room(name) as place:
        seeds = [bytes([index]) + data for index, data in place.seeds]
        for number in range(len(inputs) + len(seeds) + count):
            if number < len(inputs):
                data = inputs[number]
            elif number < len(inputs) + len(seeds):
                data = seeds[number - len(inputs)]
            else:
                base = chance.choice(seeds)
                data = base[:1] + mutated(base[1:], chance)
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

    work = corpus / name
    kept, finds = work / "inputs", work / "finds"
    for folder in (kept, finds):
        folder.mkdir(parents=True, exist_ok=True)
    account = Account(name, guided=atheris is not None)
    begun, saved = time.process_time(), 0.0
    with room(name) as place:
        for index, data in place.seeds:
            _keep(kept, bytes([index]) + data)
        limit_memory()
        current = finds / "running"

        def one(data: bytes) -> None:
            nonlocal saved
            current.write_bytes(data)
            account.inputs += 1
            bad = place.run(data, TRACED)
            if bad is not None and bad.key.startswith("Hang"):
                bad = place.run(data, TRACED)  # once more: what is loaded and compiled the first time is not counted
            if bad is not None and bad.key not in account.finds:
                path = finds / hashlib.sha256(bad.key.encode()).hexdigest()[:12]
                path.write_bytes(data)
                account.finds[bad.key] = [bad.told, str(path)]
                saved = 0.0
            now = time.process_time()
            if now - saved > SAVE_EVERY or now - begun > seconds:
                saved, account.seconds = now, now - begun
                (work / "account.json").write_text(json.dumps(asdict(account), indent=1))
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
                f"-timeout={WATCHDOG}",
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


def measure(name: str, corpus: Path) -> tuple[int, int]:
    """(lines of a target's parts that its corpus reaches, their lines)."""
    sys.path.insert(0, str(ROOT))
    from tests.fuzz.guard import SOURCE
    from tests.fuzz.targets import TARGETS

    files = {str(SOURCE / path) for path in _parts(TARGETS[name])}
    reached: set[tuple[str, int]] = set()

    def trace(frame: Any, event: str, argument: Any) -> Any:
        file = frame.f_code.co_filename
        if file not in files:
            return None

        def line(frame: Any, event: str, argument: Any) -> Any:
            reached.add((file, frame.f_lineno))
            return line

        reached.add((file, frame.f_lineno))
        return line

    with room(name) as place:
        inputs = [bytes([index]) + data for index, data in place.seeds]
        inputs += [path.read_bytes() for path in sorted((corpus / name / "inputs").iterdir())][:1000]
        sys.settrace(trace)
        try:
            begun = time.process_time()
            for data in inputs:
                place.run(data, 100 * TRACED)
                if time.process_time() - begun > MEASURED:
                    break
        finally:
            sys.settrace(None)
    every = {(file, line) for file in files for line in _lines_of(compile(Path(file).read_text(), file, "exec"))}
    return len(reached & every), len(every)


def _lines_of(code: Any, top: bool = True) -> Iterator[int]:
    """The lines of functions: those at the top of a file run when it is imported."""
    for constant in code.co_consts:
        if hasattr(constant, "co_code"):
            yield from _lines_of(constant, False)
    if not top and code.co_flags & 2:  # a function, not the body of a class
        yield from (line for _, _, line in code.co_lines() if line and line != code.co_firstlineno)


# --- all targets


def fuzz(names: Sequence[str], minutes: float, corpus: Path, jobs: int, seed: int) -> list[Account]:
    """Fuzz the targets by turns, `jobs` at a time, for `minutes` of processor time in all; then measure what they
    reach."""
    seconds = 60 * minutes / len(names)
    waiting, running, done = list(names), {}, []
    while waiting or running:
        while waiting and len(running) < jobs:
            name = waiting.pop(0)
            _clear(corpus / name)
            running[name] = _start(name, seconds, corpus, seed)
        time.sleep(0.2)
        for name, process in list(running.items()):
            if process.poll() is None:
                continue
            account = _account(corpus / name, name)
            if process.returncode != 0:
                _died(account, corpus / name, process.returncode)
                if account.seconds < seconds - 1 and len(account.finds) < 20:  # it goes on with the rest of its time
                    _write(corpus / name, account)
                    running[name] = _start(name, seconds - account.seconds, corpus, seed + account.inputs)
                    continue
            del running[name]
            done.append(_measured(account, corpus))
            print(_line(account), flush=True)
    return done


def _clear(work: Path) -> None:
    for name in ("account.json", "before.json"):
        (work / name).unlink(missing_ok=True)
    shutil.rmtree(work / "finds", ignore_errors=True)


def _start(name: str, seconds: float, corpus: Path, seed: int) -> subprocess.Popen[bytes]:
    (corpus / name).mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.fuzz.harness", "--child", name, str(seconds), str(corpus), str(seed)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "LINESIDE_BACKEND": "reference"}
    with open(corpus / name / "log", "ab") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)


def _account(work: Path, name: str) -> Account:
    """What the target's processes have told so far."""
    found = Account(name)
    for file in ("before.json", "account.json"):
        with contextlib.suppress(FileNotFoundError, ValueError):
            one = Account(**json.loads((work / file).read_text()))
            found.inputs, found.seconds = found.inputs + one.inputs, found.seconds + one.seconds
            found.finds |= one.finds
            found.guided = one.guided
    return found


def _write(work: Path, account: Account) -> None:
    (work / "before.json").write_text(json.dumps(asdict(account)))
    (work / "account.json").unlink(missing_ok=True)


def _died(account: Account, work: Path, status: int) -> None:
    """A process that ended by itself: what it was doing is a find."""
    key = f"process ended: {signal.Signals(-status).name if status < 0 else status}"
    running = work / "finds" / "running"
    log = (work / "log").read_text(errors="replace")[-2000:]
    place = work / "finds" / f"died-{len(account.finds)}"
    if running.exists():
        running.rename(place)
    account.finds.setdefault(f"{key} {len(account.finds)}", [log, str(place)])


def _measured(account: Account, corpus: Path) -> Account:
    command = [sys.executable, "-m", "tests.fuzz.harness", "--measure", account.target, str(corpus)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "LINESIDE_BACKEND": "reference"}
    told = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False).stdout
    with contextlib.suppress(ValueError, IndexError):
        account.covered, account.lines = json.loads(told.splitlines()[-1])
    account.corpus = len(list((corpus / account.target / "inputs").iterdir()))
    return account


def _line(account: Account) -> str:
    share = f"{account.covered}/{account.lines}" if account.lines else "not measured"
    return (
        f"{account.target:18} {account.inputs:>9,} inputs {account.seconds:>7,.0f} s   lines {share:>12}   "
        f"corpus {account.corpus:>6,}   finds {len(account.finds)}"
    )


def main() -> int:
    """Fuzz, print a table and the finds, write the claims."""
    if "--child" in sys.argv:
        name, seconds, corpus, seed = sys.argv[sys.argv.index("--child") + 1 :]
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        child(name, float(seconds), Path(corpus), int(seed))
        return 0
    if "--measure" in sys.argv:
        name, corpus = sys.argv[sys.argv.index("--measure") + 1 :]
        print(json.dumps(measure(name, Path(corpus))))
        return 0
    sys.path.insert(0, str(ROOT))
    from tests.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="of processor time, shared by the targets")
    parser.add_argument("--targets", nargs="*", default=sorted(TARGETS), choices=sorted(TARGETS), metavar="NAME")
    parser.add_argument("--corpus", type=Path, default=CORPUS)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeat", type=Path, help="an input that was found; give its target with --targets")
    chosen = parser.parse_args()
    if chosen.repeat:
        with room(chosen.targets[0]) as place:
            bad = place.run(chosen.repeat.read_bytes())
        print(bad.told if bad else "nothing wrong")
        return bool(bad)
    done = fuzz(chosen.targets, chosen.minutes, chosen.corpus.resolve(), chosen.jobs, chosen.seed)
    for account in done:
        for key, (told, path) in account.finds.items():
            print(f"\n--- {account.target}: {key}\n{told}\n{path}")
    finds = sum(len(account.finds) for account in done)
    command = " ".join(["python -m tests.fuzz.harness", *sys.argv[1:]])
    claim = {
        "claim": "inputs of fuzzing that did harm, kinds",
        "value": finds,
        "at_most": 0,
        "holds": not finds,
        "n": sum(account.inputs for account in done),
        "command": command,
        "hours": round(sum(account.seconds for account in done) / 3600, 2),
        "targets": {a.target: {k: v for k, v in asdict(a).items() if k != "target"} for a in done},
    }
    out = ROOT / "benchmarks" / "out" / "fuzz.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps([claim], indent=2) + "\n")
    print(f"\n{claim['n']:,} inputs, {claim['hours']} hours of {len(done)} targets: {finds} kinds of finds")
    return 1 if finds else 0


if __name__ == "__main__":
    sys.exit(main())
