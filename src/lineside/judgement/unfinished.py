"""What an evaluation has answered so far: killed and run again, it asks only the questions that are left.

    <out>/.<stage>-<split>-<mode>.answers/MARK-0-512.rollouts     the answers to the first 512 questions
    <out>/.<stage>-<split>-<mode>.answers/MARK.latency            the time of a question, if it was measured

The mark is a hash of all that answers depend on, so those of other weights, questions, settings or code are not found.
A file holds all that was asked together, because a neighbour may change the last bits of a probability. The folder is
removed when the evaluation is whole.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from lineside.errors import LinesideError
from lineside.files import write_atomic
from lineside.judgement.answers import Answerer
from lineside.judgement.latency import LatencyModel
from lineside.judgement.schema import Mode
from lineside.progress import say
from lineside.strict import read_record
from lineside.types import Rollout, Sample

T = TypeVar("T")
Rollouts = tuple[Rollout, ...]


def answers_folder(out: Path | None, stage: str, split: str, mode: Mode) -> Path | None:
    """Where the answers of an evaluation lie that will be written to `out`; None if it is not written."""
    return None if out is None else out / f".{stage}-{split}-{mode}.answers"


def drop_answers(folder: Path | None) -> None:
    """Delete the answers of an evaluation that is whole."""
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


class Unfinished:
    """The answers to some questions so far."""

    def __init__(self, folder: Path | None, mark: str = "") -> None:
        """`folder`: None keeps nothing."""
        self._folder, self._mark = folder, mark

    def of(self, **depends: Any) -> Unfinished:
        """Those that depend on this too: plain data, for JSON."""
        text = json.dumps([self._mark, depends], sort_keys=True)
        return Unfinished(self._folder, hashlib.blake2b(text.encode(), digest_size=16).hexdigest())

    def count(self, total: int, at_once: int) -> int:
        """How many of `total` questions are answered, from the first on; `at_once` are asked together."""
        done = 0
        while self._folder is not None and done < total:
            end = min(done + at_once, total)
            if not self._file(self._folder, done, end).exists():
                break
            done = end
        return done

    def once(self, answer: Answerer) -> Answerer:
        """`answer`, which is asked only what is not answered yet. The questions must come in their order."""
        start = 0

        def some(questions: Sequence[Sample]) -> Sequence[Rollout]:
            nonlocal start
            first, start = start, start + len(questions)
            if self._folder is None:
                return answer(questions)
            path = self._file(self._folder, first, start)
            found = _read(Rollouts, path, lambda known: len(known) == len(questions) and all(map(_is_sound, known)))
            if found is None:
                found = tuple(answer(questions))
                write_atomic(path, TypeAdapter(Rollouts).dump_json(found))
            return found

        return some

    def latency(self, measure: Callable[[], tuple[LatencyModel | None, str]]) -> tuple[LatencyModel | None, str]:
        """The time of a question, and "" or why there is none. What was measured before the kill counts: the answers
        may have been cut by it, and the machine may be busy now."""
        if self._folder is None:
            return measure()
        path = self._folder / f"{self._mark}.latency"
        if (known := _read(LatencyModel, path, _is_time)) is not None:
            return known, ""
        found, why = measure()
        if found is not None:
            write_atomic(path, TypeAdapter(LatencyModel).dump_json(found))
        return found, why

    def _file(self, folder: Path, start: int, end: int) -> Path:
        return folder / f"{self._mark}-{start}-{end}.rollouts"


def _read(kind: type[T], path: Path, is_sound: Callable[[T], bool]) -> T | None:
    """What a file holds; None if there is none, or with a warning if it is damaged."""
    try:
        if is_sound(found := read_record(kind, path, "it is made again")):
            return found
        say(f"warning: {path} is damaged: it is made again")
    except FileNotFoundError:
        pass
    except LinesideError as error:
        say(f"warning: {error}")
    return None


def _is_sound(rollout: Rollout) -> bool:
    logprobs = rollout.sampler_logprobs
    return len(rollout.tokens) == len(logprobs) and all(-math.inf < one < 1e-3 for one in logprobs)


def _is_time(model: LatencyModel) -> bool:
    return all(0 <= value < math.inf for value in asdict(model).values() if value is not None)
