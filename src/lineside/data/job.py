"""Bookkeeping of a labelling job: its settings, its account, and its folder.

A job is known by its identity, the hash of everything that decides the samples. So a finished job is never repeated,
and two jobs never mix in one folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import lineside
from lineside.data.shards import disk
from lineside.data.sources import fingerprint
from lineside.data.store import SUMMARY, account_of
from lineside.data.taskfile import Task, merge, said_by
from lineside.data.tasks import NO_OPTION
from lineside.errors import LinesideError
from lineside.files import drop_temporaries, flush, make_folder, rename, temporary_of, write_atomic
from lineside.progress import say
from lineside.recipe import OF_API, Label, TeacherName
from lineside.strict import read_record
from lineside.types import Sample
from lineside.verify.traces import problem_of_trace

OWN_TASKS = Path(lineside.__file__).parent / "tasks"
SIM_TASKS = ("picking.yaml", "kitting.yaml", "returns.yaml")  # those of the simulator's frames
STARTED, CONTROL = "label.started", "control"
REJECTED, FAILED, DROPPED = "rejected.jsonl", "failed.jsonl", "dropped.jsonl"
PICTURES = "left-out"  # folder with small pictures of the frames that these files list
EXAMPLES = 12  # lines of each file in the data card, and frames of which a small picture is kept


def rank_of(shard: str, environment: Mapping[str, str]) -> tuple[int, int] | None:
    """(rank, ranks) of "i/n", else torchrun's from the environment; None for a single process.

    Raises LinesideError for text that is not i/n.
    """
    if not shard:
        ranks = environment.get("WORLD_SIZE", "1")
        shard = f"{environment.get('RANK', '0')}/{ranks}" if ranks != "1" else ""
    if not shard:
        return None
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", shard)
    if match is None:
        raise LinesideError(f"shard {shard!r}: expected i/n, such as 0/4")
    return int(match[1]), int(match[2])


def check_shard(shard: tuple[int, int] | None) -> None:
    """Raises LinesideError for a rank outside 0 to ranks - 1."""
    if shard is not None and not 0 <= shard[0] < shard[1]:
        raise LinesideError(f"shard {shard[0]}/{shard[1]}: expected i/n with i from 0 to n - 1")


# Settings added after the first labelled folders. They are part of a job's identity only when they differ from their
# defaults, so that older folders keep their identity.
_LATER = ("drop_leaks", "acuity", "references")


def decides(settings: Label, seed: int) -> dict[str, Any]:
    """The settings that decide the samples, as plain data; those of an API that decide its replies under "asking"."""
    plain = settings.model_dump(exclude={"teacher", "audit", *OF_API})
    fields = type(settings).model_fields
    decided = {k: v for k, v in plain.items() if k not in _LATER or v != fields[k].default} | {"seed": seed}
    return decided | ({"asking": settings.asking} if settings.teacher == "api" else {})


def settle(settings: Label, teacher: TeacherName, *, frames: int = 0, tasks: Sequence[Task] = ()) -> Label:
    """The settings with every None decided (`Label.settled`). Raises LinesideError for settings that do not fit."""
    asked: Counter[str] = Counter()
    for task in tasks:
        asked[task.family] += task.per_frame
    try:
        return settings.settled(teacher, frames=frames, questions=max(asked.values(), default=0))
    except ValueError as error:
        flags = "flags have the same names: --captions-per-frame; in a recipe they are keys of data.label"
        raise LinesideError(f"{error} ({flags})") from None


def kind_of(reason: str) -> str:
    """The part of a reason that similar inputs share, to count by."""
    return reason.split(":")[0].split("(")[0].strip()


@dataclass
class Account:
    """What happened to every input: frames read = labelled + rejected + failed + silent.

    Rejected: the frame or the teacher's replies cannot be used. Failed: the teacher's endpoint gave no answer. Silent:
    the frame gets no sample.
    """

    frames: Counter[str] = field(default_factory=Counter)
    uses: Counter[str] = field(default_factory=Counter)  # good frames by split; of the training frames by stage
    rejected: Counter[str] = field(default_factory=Counter)  # frames, by reason
    samples: Counter[str] = field(default_factory=Counter)  # by kind and split
    tasks: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))  # ... of each task
    dropped: Counter[str] = field(default_factory=Counter)  # questions, by reason
    traces: Counter[str] = field(default_factory=Counter)  # of stage 2: valid, or why not
    unmapped: dict[str, dict[str, int]] = field(default_factory=dict)  # column values without an entry in `values`
    unbalanced: list[str] = field(default_factory=list)  # tasks whose max_share is not reached
    leaks: list[str] = field(default_factory=list)  # training pictures that are also in a suite
    thinking: set[str] = field(default_factory=set)  # tasks with a valid trace in a training question
    unused: Counter[str] = field(default_factory=Counter)  # unused parts of an API's replies, by kind and reason
    agreement: Counter[str] = field(default_factory=Counter)  # questions without a record, by agreement: "3 of 3"
    references: Counter[str] = field(default_factory=Counter)  # questions with reference pictures, and these pictures
    usage: Counter[str] = field(default_factory=Counter)  # answers of an API and their tokens

    def add(self, sample: Sample) -> None:
        """Count one sample."""
        name = f"{sample.kind}-{sample.split}"
        self.samples[name] += 1
        if sample.kind != "caption":
            self.tasks[sample.key][name] += 1
        if beside := sample.references:
            self.references.update(questions=1, pictures=len(beside))
        if name == "qa-train":
            problem = problem_of_trace(sample)
            self.traces[problem or "valid"] += 1
            if not problem:
                self.thinking.add(sample.key)

    def to_json(self) -> dict[str, Any]:
        """As plain data, for the summary."""
        frames = ("read", "labelled", "rejected", "failed", "silent")
        plain: dict[str, Any] = {
            "frames": {name: self.frames[name] for name in frames},
            "uses": dict(self.uses),
            "rejected": dict(self.rejected.most_common()),
            "samples": dict(sorted(self.samples.items())),
            "tasks": {name: dict(counts) for name, counts in sorted(self.tasks.items())},
            "dropped": dict(self.dropped.most_common()),
            "traces": dict(self.traces.most_common()),
            "unmapped": self.unmapped,
            "unbalanced": self.unbalanced,
            "leaks": self.leaks,
            "thinking": sorted(self.thinking),
        }
        if self.references:
            plain["references"] = dict(self.references)
        if self.usage:
            plain["api"] = {
                **{name: self.usage[name] for name in ("answers", "prompt_tokens", "completion_tokens")},
                "agreement": dict(sorted(self.agreement.items())),
                "unused": dict(self.unused.most_common()),
            }
        return plain


def phrasings_of(samples: Path) -> dict[str, tuple[str, ...]]:
    """The phrasings of each family/task that `label` kept in its account; none for other samples."""
    found = (account_of(samples) or {}).get("phrasings", {})
    try:
        return {str(name): tuple(map(str, templates)) for name, templates in found.items()}
    except (TypeError, AttributeError):
        return {}


def tell(summary: Mapping[str, Any], tasks: Sequence[Task], out: Path) -> None:
    """Print the account in a few lines, and the tasks without samples."""
    frames, samples = summary["frames"], summary["samples"]
    say(
        f"label: {frames['read']:,} frames read, {frames['labelled']:,} labelled, {frames['rejected']:,} rejected, "
        f"{frames['failed']:,} failed, {frames['silent']:,} without samples"
    )
    say("label: samples: " + (", ".join(f"{count:,} {name}" for name, count in samples.items()) or "none"))
    if beside := summary.get("references"):
        say(f"label: {beside['questions']:,} questions have reference pictures, {beside['pictures']:,} in all")
    say(_told_uses(summary["uses"], summary["settings"]))
    if leaks := summary["leaks"]:
        say(
            f"label: {len(leaks)} training pictures are also in a suite, see {out / SUMMARY}: {leaks[0]}. Training "
            "on them makes the suite worthless: leave them out with --drop-leaks (drop_leaks: true in a recipe)"
        )
    if frames["rejected"]:
        say(
            f"label: rejected, see {out / REJECTED}: "
            + "; ".join(f"{n} {why}" for why, n in summary["rejected"].items())
        )
    if frames["failed"]:
        say(f"label: failed, see {out / FAILED}; --retry-failed (retry_failed: true in a recipe) repeats the requests")
    if api := summary.get("api"):
        say(
            f"label: {api['answers']:,} answers of the teacher, {api['prompt_tokens']:,} tokens in, "
            f"{api['completion_tokens']:,} out"
        )
        if unused := api["unused"]:
            worst = "; ".join(f"{count} {why}" for why, count in list(unused.items())[:6])
            say(f"label: parts of the teacher's replies that are not used, see {out / DROPPED}: {worst}")
        if agreement := api["agreement"]:
            say(
                "label: questions with answers from the teacher alone, by samples that agree: "
                + ", ".join(f"{count} with {share}" for share, count in agreement.items())
            )
    for name, values in summary["unmapped"].items():
        told = ", ".join(f"{value!r} {count:,}" for value, count in list(values.items())[:5])
        say(
            f"label: column {name!r}: {sum(values.values()):,} cells hold a value without an entry in `values`, and "
            f"are unknown: {told}; `lineside task check` names the nearest entries"
        )
    if outside := summary["dropped"].get(NO_OPTION):
        say(f"label: {outside:,} questions are not asked: {NO_OPTION}; `lineside task check` names the values")
    for task in tasks:
        if not summary["tasks"].get(f"{task.family}/{task.name}"):
            say(f"label: the task {task.family}/{task.name} has no question for these frames")
    if uneven := summary["unbalanced"]:
        say(f"label: {len(uneven)} sets of answers are too uneven to balance, see {out / SUMMARY}: {uneven[0]} ...")


def _told_uses(uses: Mapping[str, int], settings: Mapping[str, Any]) -> str:
    """How many training frames serve which stage, by which settings."""
    both = f"; {uses['both']:,} of them serve both" if uses.get("both") else ""
    return (
        f"label: of {uses.get('train', 0):,} training frames {uses.get('qa', 0):,} are used for stage 2 "
        f"(question_share {settings['question_share']:g}) and {uses.get('prompt', 0):,} for stage 3 "
        f"(prompt_share {settings['prompt_share']:g}){both}"
    )


def task_file(path: Path | str) -> Path:
    """The file, else the package's own file of that name. Raises LinesideError if neither exists."""
    for found in (Path(path), OWN_TASKS / path):
        if found.is_file():
            return found
    if Path(path).is_dir():
        raise LinesideError(f"{path}: a folder; expected a task file")
    own = sorted(file.name for file in OWN_TASKS.iterdir())
    raise LinesideError(f"{path}: no such task file; the package has {', '.join(own)}")


@dataclass(frozen=True)
class Identity:
    """Hash of everything that decides the samples: task files, settings, teacher, and the frames by `fingerprint`.

    The task files count by what they say (`said_by`): a comment changes nothing. `by_bytes` is the hash of earlier
    versions, in which they counted byte by byte; a folder that was labelled by one is still the same job.
    """

    hash: str
    by_bytes: str = ""

    @classmethod
    def of(cls, frames: Path, files: Sequence[Path], teacher: str, settings: Mapping[str, Any]) -> Identity:
        """Raises LinesideError when the frames are missing."""
        if not frames.exists():
            raise LinesideError(f"{frames}: no such folder of frames, and no such file")
        table = merge(files).table if files and teacher != "sim" else None
        before = json.dumps([lineside.__version__, teacher, settings], sort_keys=True).encode()
        after = fingerprint(frames, table).encode()
        beside = teacher != "sim" or "references" in settings  # else the simulator shows none, whatever tasks name
        forms = (
            (said_by(files, references=beside).encode() if files else b""),
            b"".join(path.read_bytes() for path in files),
        )
        return cls(*(hashlib.blake2b(before + form + after, digest_size=8).hexdigest() for form in forms))


@dataclass(frozen=True)
class Claim:
    """A folder that this job may write to: the date of the job, and its account if it is finished."""

    date: str
    finished: dict[str, Any] | None = None


def claim(out: Path, identity: Identity, date: str, *, sole: bool = True, retry_failed: bool = False) -> Claim:
    """Claim a folder for the job of this identity, and remove the samples of an unfinished job from it, with
    what a killed process has left.

    The first claim fixes the date, so a job that continues tomorrow writes the same bytes. `sole`: False for one rank
    of several, which neither writes nor removes samples. `retry_failed`: a finished job with failed frames is opened
    again. Raises LinesideError when the folder holds samples of another job, or cannot be written.
    """
    if (out / SUMMARY).is_file():
        finished = read_record(dict[str, Any], out / SUMMARY, f"remove {out} and label again")
        if finished.get("identity") not in (identity.hash, identity.by_bytes):
            raise LinesideError(
                f"{out} holds samples of other frames, tasks or settings: give another folder or remove it"
            )
        date = str(finished.get("date", date))
        frames = finished.get("frames")
        if not retry_failed or not (isinstance(frames, dict) and frames.get("failed")):
            (out / STARTED).unlink(missing_ok=True)  # a power cut may have brought it back
            return Claim(date, finished)
        _start(out, identity.hash, date)
        with disk(out, SUMMARY):
            (out / SUMMARY).unlink(missing_ok=True)
    folders = [folder for folder in (out, out / CONTROL) if folder.is_dir()]
    left = [path for folder in folders for path in folder.glob("*-*-*.parquet*")]
    if left and not (out / STARTED).is_file():
        raise LinesideError(f"{out} holds samples that `lineside label` did not write: give another folder")
    if sole and (out / STARTED).is_file():  # this job, or one like it, was killed here
        for folder in (*folders, out / PICTURES):
            drop_temporaries(folder)
    for path in left if sole else ():
        path.unlink()
    return Claim(_start(out, identity.hash, date))


def _start(out: Path, identity: str, date: str) -> str:
    """Mark a folder as begun, unless this job has begun it; returns the date of the job."""
    path = out / STARTED
    temporary = temporary_of(path)
    with disk(out, STARTED):
        make_folder(out)
        if (begun := _begun(path, identity)) is not None:
            return begun
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump({"identity": identity, "date": date}, file)
        flush(temporary)
        try:
            os.link(temporary, path)  # fails if it exists: only the first of several ranks succeeds
        except FileExistsError:
            if (begun := _begun(path, identity)) is not None:
                return begun
            rename(temporary, path)  # the mark of another, unfinished job
        finally:
            temporary.unlink(missing_ok=True)
        flush(out)
    return date


def _begun(path: Path, identity: str) -> str | None:
    try:
        begun = json.loads(path.read_text(encoding="utf-8"))
        return str(begun["date"]) if begun["identity"] == identity else None
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return None


class Lines:
    """A file of JSON lines; it is on the disk when the `with` block ends."""

    def __init__(self, out: Path, name: str, mode: Literal["w", "a"] = "w") -> None:
        self._out, self._name, self._mode = out, name, mode

    def __enter__(self) -> Lines:
        with disk(self._out, self._name):
            self._file = open(self._out / self._name, self._mode, encoding="utf-8")
        return self

    def add(self, **entry: Any) -> None:
        """Write one line."""
        with disk(self._out, self._name):
            self._file.write(json.dumps(entry) + "\n")

    def __exit__(self, *problem: Any) -> None:
        with disk(self._out, self._name):
            self._file.close()
            if (self._out / self._name).is_file():
                flush(self._out / self._name)
                flush(self._out)


def finish(out: Path, account: Mapping[str, Any]) -> None:
    """Write the account, which marks the job as finished."""
    write_atomic(out / SUMMARY, json.dumps(account, indent=2, ensure_ascii=False))
    with disk(out, STARTED):
        (out / STARTED).unlink(missing_ok=True)
