"""The book-keeping of a labelling job: its settings, its account, and its folder, claimed once and finished once.

A finished job is known by its identity, the hash of all that decides the samples, so that it is never done twice nor
mixed with another.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lineside
from lineside.data.checks import problem_of_trace
from lineside.data.shards import disk
from lineside.data.sources import fingerprint
from lineside.data.taskfile import merge
from lineside.errors import LinesideError
from lineside.types import Sample

OWN_TASKS = Path(lineside.__file__).parent / "tasks"
SUMMARY, STARTED, REJECTED, CONTROL = "label.json", "label.started", "rejected.jsonl", "control"


@dataclass(frozen=True)
class Settings:
    """How many captions, questions and prompts. `flaws`: shares of missing, trivial and wrong traces in stage 2."""

    captions_per_frame: int
    questions_per_frame: int
    question_share: float
    prompt_share: float
    flaws: Mapping[str, float]
    seed: int
    thin: bool = False  # near-duplicates

    def check(self) -> None:
        """Raises LinesideError for shares that are none, or for fewer captions than questions."""
        for name in ("question_share", "prompt_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise LinesideError(f"{name} is {getattr(self, name)}: expected 0 to 1")
        if self.question_share + self.prompt_share > 1:
            raise LinesideError(
                f"question_share {self.question_share} and prompt_share {self.prompt_share} are of different frames "
                "and cannot be more than 1 together"
            )
        if self.captions_per_frame < self.questions_per_frame * max(self.question_share, self.prompt_share):
            raise LinesideError(
                f"fewer captions than questions: {self.captions_per_frame} captions a frame, but "
                f"{self.questions_per_frame} questions on {self.question_share:g} and as many prompts on "
                f"{self.prompt_share:g} of the frames"
            )


@dataclass
class Account:
    """What became of every input: frames read = labelled + rejected + silent (nothing could be said of them)."""

    frames: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)  # frames, by reason
    samples: Counter[str] = field(default_factory=Counter)  # by kind and split
    tasks: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))  # ... of each task
    dropped: Counter[str] = field(default_factory=Counter)  # questions, by reason
    traces: Counter[str] = field(default_factory=Counter)  # of stage 2: valid, or why not
    unbalanced: list[str] = field(default_factory=list)  # tasks whose max_share could not be held

    def add(self, sample: Sample) -> None:
        """Count one sample."""
        name = f"{sample.kind}-{sample.split}"
        self.samples[name] += 1
        if sample.kind != "caption":
            self.tasks[f"{sample.family}/{sample.task}"][name] += 1
        if name == "qa-train":
            self.traces[problem_of_trace(sample) or "valid"] += 1


def task_file(path: Path | str) -> Path:
    """The file itself, else the package's own of that name. Whether it exists is left to `identity_of`."""
    own = OWN_TASKS / path
    if not Path(path).is_file() and own.is_file():
        return own
    return Path(path)


def identity_of(frames: Path, files: Sequence[Path], teacher: str, settings: Mapping[str, Any]) -> str:
    """Hash of all that decides the samples: task files, settings, teacher, and the frames as `fingerprint` knows them.

    Raises LinesideError when the frames or a task file are missing.
    """
    if not frames.exists():
        raise LinesideError(f"{frames}: no such folder of frames, and no file")
    digest = hashlib.blake2b(digest_size=8)
    digest.update(json.dumps([lineside.__version__, teacher, settings], sort_keys=True).encode())
    for path in files:
        if not path.is_file():
            raise LinesideError(
                f"{path}: no such task file; the package has {', '.join(sorted(f.name for f in OWN_TASKS.iterdir()))}"
            )
        digest.update(path.read_bytes())
    table = merge(files).table if files and teacher != "sim" else None
    digest.update(fingerprint(frames, table).encode())
    return digest.hexdigest()


def claim(out: Path, identity: str) -> dict[str, Any] | None:
    """The account of a finished job of this identity, else None and a folder cleared of what a broken-off job left.

    Raises LinesideError when the folder holds samples of something else, or cannot be written.
    """
    if (out / SUMMARY).is_file():
        try:
            finished = json.loads((out / SUMMARY).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise LinesideError(f"{out / SUMMARY} cannot be read ({error}): remove {out} and label again") from error
        if not isinstance(finished, dict) or finished.get("identity") != identity:
            raise LinesideError(
                f"{out} holds samples of other frames, tasks or settings: give another folder or remove it"
            )
        return finished
    folders = [folder for folder in (out, out / CONTROL) if folder.is_dir()]
    left = [path for folder in folders for path in folder.glob("*-*-*.parquet*")]
    if left and not (out / STARTED).is_file():
        raise LinesideError(f"{out} holds samples that no labelling job of this tool wrote: give another folder")
    for path in left:
        path.unlink()
    with disk(out, STARTED):
        out.mkdir(parents=True, exist_ok=True)
        (out / STARTED).write_text(identity, encoding="utf-8")
    return None


def finish(out: Path, account: Mapping[str, Any]) -> None:
    """Write the account, which marks the job as done."""
    path = out / SUMMARY
    temporary = path.with_suffix(".tmp")
    with disk(out, SUMMARY):
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(account, file, indent=2, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        (out / STARTED).unlink(missing_ok=True)
