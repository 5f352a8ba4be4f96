"""The errors of a verb: bad input (exit status 2), a failed check (1), too little data for a check (3)."""

import errno
from pathlib import Path
from traceback import walk_tb


class LinesideError(Exception):
    """Bad input or environment. The message says what was wrong, what was expected and what to do. Exit status 2."""

    exit_status = 2


class CheckFailed(LinesideError):
    """The input is fine, but the check it asked for does not hold (validate, compare). Exit status 1."""

    exit_status = 1


class TooLittleData(LinesideError):
    """The input is fine, but there is too little of it to decide the check (compare). Exit status 3."""

    exit_status = 3


class EngineEnded(LinesideError):
    """Another process that computes for this one has ended, or does not answer: nothing more can be asked of it."""


def disk_is_full(error: BaseException | None) -> bool:
    """Whether an error, or its cause, is a full disk or a used-up quota.

    Arrow and libraries written in Rust (safetensors, tokenizers) raise their own errors; only the text holds the
    system's error number.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if getattr(error, "errno", None) in _FULL or any(words in str(error) for words in _FULL_TEXTS):
            return True
        error = error.__cause__ or error.__context__
    return False


def lacks_semaphores(error: BaseException) -> bool:
    """Whether Python could not make a lock that processes share. It lies in /dev/shm, which some containers lack, or do
    not let a user write to."""
    frames = (frame.f_code.co_filename for frame, _ in walk_tb(error.__traceback__))
    return isinstance(error, OSError) and any(Path(name).parts[-2:] == _LOCKS for name in frames)


def lacks_memory(error: BaseException) -> bool:
    """Whether an error, or what it was raised from, is a lack of memory. torch says so by text alone on a CPU, and by a
    type of its own on a GPU."""
    found: BaseException | None = error
    while found is not None:
        text = str(found)
        if isinstance(found, MemoryError) or any(words in text for words in _NO_MEMORY):
            return True
        found = found.__cause__ or (None if isinstance(found, LinesideError) else found.__context__)
    return False


_LOCKS = ("multiprocessing", "synchronize.py")  # where the standard library makes them
_NO_MEMORY = ("can't allocate memory", "not enough memory", "CUDA out of memory", f"[Errno {errno.ENOMEM}]")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_TEXTS = tuple(
    text for number in _FULL for text in (f"os error {number})", f"errno {number}]", f"[Errno {number}]")
)
