"""The ledger of a labelling job: every attempt at every request, written down before it is used (append-only).

A line is `crc32 json`. An attempt is written with one system call, so that a killed process loses nothing that it had
been answered; what a power cut may lose is what came after the last `sync`. A torn last line is cut off, a damaged one
in the middle is passed over and told: its request is asked again. Each rank of a job writes a ledger of its own and all
are read, so that merging ranks means reading them.
"""

from __future__ import annotations

import fcntl
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from lineside.data.shards import disk
from lineside.errors import LinesideError
from lineside.progress import say

PATTERN = "teacher-*.ledger"
_CHUNK = 8192
_FILE_BITS = 48  # a place is (number of the file) << 48 | offset


@dataclass(frozen=True, slots=True)
class Attempt:
    """How one attempt at a request ended.

    answer: `text` is what the teacher wrote, whether or not it can be used. error: `text` says what went wrong on the
    way. refused: the endpoint will never serve this request. `finish` is the endpoint's reason for stopping.
    """

    status: Literal["answer", "error", "refused"]
    text: str
    finish: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Ledger:
    """The attempts of a folder, by request. Memory: some 200 bytes a request; the texts stay on disk."""

    def __init__(self, folder: Path, rank: int = 0) -> None:
        """Opens rank's file for writing and reads those of all ranks.

        Raises LinesideError when another process writes to it, or the folder cannot be written.
        """
        self._folder = folder
        self._path = folder / PATTERN.replace("*", f"{rank:03d}")
        self._places: dict[bytes, tuple[int, ...]] = {}
        self.requests = self.prompt_tokens = self.completion_tokens = 0  # what all attempts together came to
        with disk(folder, self._path.name):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = open(self._path, "a+b", buffering=0)  # noqa: SIM115 - open for as long as the ledger is
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise LinesideError(f"{self._path}: another process is labelling into this folder: wait for it") from None
        # In the order of ranks, so that where two hold the same request every process takes the same answer.
        self._paths = sorted(folder.glob(PATTERN))
        self._end = [self._scan(number) for number in range(len(self._paths))][self._paths.index(self._path)]
        self._readers = [open(path, "rb", buffering=0) for path in self._paths]  # noqa: SIM115
        self._own = self._paths.index(self._path)
        if self._end < os.path.getsize(self._path):  # torn by a kill in the middle of a line
            with disk(folder, self._path.name):
                self._file.truncate(self._end)

    def attempts(self, key: str) -> list[Attempt]:
        """What was tried for a request so far, in order."""
        return [self._read(place) for place in self._places.get(bytes.fromhex(key), ())]

    def add(self, key: str, number: int, attempt: Attempt) -> None:
        """Write down attempt `number` (from 0). Raises LinesideError when the disk is full."""
        place = self._append({"key": key, "attempt": number, **asdict(attempt)})
        self._note(bytes.fromhex(key), number, place, attempt.prompt_tokens, attempt.completion_tokens)

    def forget(self, key: str) -> None:
        """Let a request be asked anew; what it has cost stays counted."""
        self._append({"key": key, "forget": True})
        self._places.pop(bytes.fromhex(key), None)

    def sync(self) -> None:
        """Make sure that a power cut loses none of what was added."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Sync, and let other processes have the file."""
        self.sync()
        for file in (self._file, *self._readers):
            file.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *problem: Any) -> None:
        self.close()

    def _append(self, entry: dict[str, Any]) -> int:
        line = _encode(entry)
        with disk(self._folder, self._path.name):
            written = self._file.write(line)
            if written != len(line):  # the disk filled up in the middle of the line
                self._file.truncate(self._end)
                raise LinesideError(f"{self._folder}: the disk is full while writing {self._path.name}; run again")
        place, self._end = self._own << _FILE_BITS | self._end, self._end + len(line)
        return place

    def _note(self, key: bytes, number: int, place: int, prompt_tokens: int, completion_tokens: int) -> None:
        self.requests += 1
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens
        known = self._places.get(key, ())
        if number == len(known):  # else another rank asked the same (two frames with one picture): the first one counts
            self._places[key] = (*known, place)

    def _scan(self, number: int) -> int:
        """Note every line of a file; returns where its last whole line ends."""
        end = 0
        with open(self._paths[number], "rb") as file:
            for line_number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                entry = _decode(line)
                if entry is None:
                    say(f"label: {file.name}, line {line_number} is damaged: what it answered will be asked again")
                elif entry.get("forget"):
                    self._places.pop(bytes.fromhex(entry["key"]), None)
                else:
                    place = number << _FILE_BITS | end
                    tokens = entry["prompt_tokens"], entry["completion_tokens"]
                    self._note(bytes.fromhex(entry["key"]), entry["attempt"], place, *tokens)
                end += len(line)
        return end

    def _read(self, place: int) -> Attempt:
        file, offset = self._readers[place >> _FILE_BITS], place & (1 << _FILE_BITS) - 1
        line = b""
        while not line.endswith(b"\n"):
            chunk = os.pread(file.fileno(), _CHUNK, offset + len(line))
            if not chunk:
                break
            head, end, _ = chunk.partition(b"\n")
            line += head + end
        entry = _decode(line)
        if entry is None:
            raise LinesideError(f"{file.name}: changed while it was read; run again")
        return Attempt(**{name: entry[name] for name in Attempt.__slots__})


def read_ledger(path: Path) -> Iterator[dict[str, Any]]:
    """The sound lines of one ledger, as they were written."""
    with open(path, "rb") as file:
        for line in file:
            if (entry := _decode(line)) is not None:
                yield entry


def _encode(entry: dict[str, Any]) -> bytes:
    text = json.dumps(entry, ensure_ascii=True).encode()  # ASCII: no lone surrogate and no line end can break a line
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _decode(line: bytes) -> dict[str, Any] | None:
    """The entry of a line, None if it is not whole."""
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(text):
        return None
    return json.loads(text)
