"""The ledger of a labelling job: every attempt at every request, written before it is used (append-only).

A line is `crc32 json`. An attempt is written with one system call, so a killed process loses no reply that it received;
a power cut loses what came after the last `sync`. An incomplete last line is cut off. A damaged line in the middle is
skipped and reported, and its request is sent again. Each rank of a job writes its own ledger and reads all of them, so
ranks need no other merging.
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
from lineside.files import flush, make_folder
from lineside.progress import say

PATTERN = "teacher-*.ledger"
_CHUNK = 8192
_FILE_BITS = 48  # a position is (number of the file) << 48 | offset


@dataclass(frozen=True, slots=True)
class Attempt:
    """How one attempt at a request ended.

    answer: `text` is the teacher's reply, usable or not. error: `text` says what went wrong. refused: the endpoint
    will never serve this request. `finish` is the endpoint's reason for stopping.
    """

    status: Literal["answer", "error", "refused"]
    text: str
    finish: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Ledger:
    """The attempts of a folder, by request. Memory: about 200 bytes a request; the texts stay on disk."""

    def __init__(self, folder: Path, rank: int = 0) -> None:
        """Opens the rank's own file for writing and reads those of all ranks.

        Raises LinesideError when another process writes to it, or the folder cannot be written.
        """
        self._folder = folder
        self._path = folder / PATTERN.replace("*", f"{rank:03d}")
        self._places: dict[bytes, tuple[int, ...]] = {}
        self.requests = self.prompt_tokens = self.completion_tokens = 0  # totals of all attempts
        with disk(folder, self._path.name):
            make_folder(folder)
            self._file = open(self._path, "a+b", buffering=0)  # noqa: SIM115 - open as long as the ledger
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise LinesideError(f"{self._path}: another process is labelling into this folder: wait for it") from None
        # In the order of ranks: if two hold the same request, every process uses the same answer.
        self._paths = sorted(folder.glob(PATTERN))
        self._end = [self._scan(number) for number in range(len(self._paths))][self._paths.index(self._path)]
        self._readers = [open(path, "rb", buffering=0) for path in self._paths]  # noqa: SIM115
        self._own = self._paths.index(self._path)
        if self._end < os.path.getsize(self._path):  # a kill in the middle of a line
            with disk(folder, self._path.name):
                self._file.truncate(self._end)
        flush(folder)

    def attempts(self, key: str) -> list[Attempt]:
        """The attempts at a request so far, in order."""
        return [self._read(place) for place in self._places.get(bytes.fromhex(key), ())]

    def add(self, key: str, number: int, attempt: Attempt) -> None:
        """Write down attempt `number` (from 0). Raises LinesideError when the disk is full."""
        place = self._append({"key": key, "attempt": number, **asdict(attempt)})
        self._note(bytes.fromhex(key), number, place, attempt.prompt_tokens, attempt.completion_tokens)

    def forget(self, key: str) -> None:
        """Allow a request to be sent again; its past usage stays counted."""
        self._append({"key": key, "forget": True})
        self._places.pop(bytes.fromhex(key), None)

    def sync(self) -> None:
        """Flush to disk, so that a power cut loses none of what was added."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush, and release the file for other processes."""
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
        if number == len(known):  # else another rank sent the same request (two frames, one picture): the first counts
            self._places[key] = (*known, place)

    def _scan(self, number: int) -> int:
        """Record every line of a file; returns the end of its last complete line."""
        end = 0
        with open(self._paths[number], "rb") as file:
            for line_number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                entry = _decode(line)
                if entry is None:
                    say(f"label: {file.name}, line {line_number} is damaged: its request is sent again")
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
    """The undamaged lines of one ledger, in order."""
    with open(path, "rb") as file:
        for line in file:
            if (entry := _decode(line)) is not None:
                yield entry


def _encode(entry: dict[str, Any]) -> bytes:
    text = json.dumps(entry, ensure_ascii=True).encode()  # ASCII: a lone surrogate or line end cannot break a line
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _decode(line: bytes) -> dict[str, Any] | None:
    """The entry of a line, None if it is damaged."""
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(text):
        return None
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return entry if _is_sound(entry) else None


def _is_sound(entry: Any) -> bool:
    """Whether a line that has its checksum is one of ours: somebody else may have written the file."""
    try:
        bytes.fromhex(entry["key"])
        if entry.get("forget"):
            return True
        numbers = [entry[name] for name in ("attempt", "prompt_tokens", "completion_tokens")]
        texts = [entry[name] for name in ("text", "finish")]
    except (TypeError, ValueError, LookupError, AttributeError):
        return False
    return (
        entry.get("status") in ("answer", "error", "refused")
        and all(type(number) is int and number >= 0 for number in numbers)
        and all(isinstance(text, str) for text in texts)
    )
