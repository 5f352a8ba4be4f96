"""Checks of a data set, row by row and between its splits (DESIGN 3, 8, 10).

Suites are read before training data, and a leak is found by lookup. So memory grows with the suites, not with the
training data.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lineside.data import duplicates, rows, shards, store
from lineside.data.mixture import OUTCOME_ONLY
from lineside.data.splits import By, names_of, side_of
from lineside.data.taskfile import Splits
from lineside.errors import CheckFailed, LinesideError
from lineside.hashing import SHARES, stable_hash
from lineside.hashmap import HashMap, Texts
from lineside.images import decode, image_key, undecodable
from lineside.progress import track
from lineside.strict import build
from lineside.types import SUITES, Frame, Image, Sample, Target, Thinking
from lineside.verify.text import normalise
from lineside.verify.traces import problem_of_trace, trace_options, trace_problem
from lineside.verify.verifiers import target_problem, verify

LISTED = 200  # problems of a check that are listed; all are counted
ORDER = ("shifted", "dev", "heldout", "train")  # each is compared with those before it
CHECKS = {
    "rows": "every row can be read",
    "pictures": "every picture can be decoded",
    "texts": "captions, questions and answers are not empty",
    "ids": "no two rows of one kind have the same id",
    "targets": "targets are complete, and each sample's answer is right by its target",
    "provenance": "no suite and no stage-3 prompt has a target from a teacher alone, and no answer one from an outcome",
    "picture leak": "no picture in two splits",
    "near leak": "no near-duplicate of a picture in another split",
    "reference leak": "no reference picture is the picture of a frame in a suite",
    "prompt leak": "no stage-3 prompt (picture and question) is in a suite",
    "scene leak": "no scene in two splits",
    "split leak": "no scene, day, cell, camera or SKU by which the data were split is in two splits",
    "sku leak": "no SKU of shifted in train or dev",
    "cell leak": "no cell of shifted in train or dev",
    "tokens": "the data have tokens to learn from",
    "context": "every sample fits the model's context",
    "captions": "at least as many captions as questions to train on",
}
LEAKS = ("picture leak", "reference leak", "prompt leak", "scene leak")  # a suite with training data proves nothing

Measure = Callable[[Sample], tuple[int, int]]  # (length in tokens, supervised tokens) of a sample


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem. `row` counts from 0 in `file`; -1 for a problem of the whole data set."""

    file: str
    row: int
    id: str
    reason: str


@dataclass
class Report:
    """Result of `inspect`. `notes` name the checks that were not made in full."""

    problems: dict[str, list[Problem]] = field(default_factory=lambda: {name: [] for name in CHECKS})
    counts: Counter[str] = field(default_factory=Counter)  # problems by check
    rows: Counter[str] = field(default_factory=Counter)  # by kind and split
    supervised: Counter[str] = field(default_factory=Counter)  # tokens (characters without a measure) by kind and split
    traces: Counter[str] = field(default_factory=Counter)  # of stage 2: valid, or why not
    longest: int = 0  # sample, in tokens
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """No check failed."""
        return not self.counts

    def add(self, check: str, problem: Problem) -> None:
        """Count a problem, and keep it while fewer than LISTED are kept."""
        self.counts[check] += 1
        if len(self.problems[check]) < LISTED:
            self.problems[check].append(problem)

    def to_json(self) -> dict[str, Any]:
        """As plain data, in the order of CHECKS."""
        checks = {
            name: {
                "ok": not self.counts[name],
                "count": self.counts[name],
                "note": self.notes.get(name, ""),
                "problems": [{"file": p.file, "row": p.row, "id": p.id, "reason": p.reason} for p in problems],
            }
            for name, problems in self.problems.items()
        }
        return {
            "ok": self.ok,
            "rows": dict(self.rows),
            "supervised": dict(self.supervised),
            "traces": dict(self.traces),
            "longest": self.longest,
            "checks": checks,
        }


def inspect(data: Path, *, measure: Measure | None = None, context: int | None = None, decoded: bool = True) -> Report:
    """Check every row of a folder of samples or frames. `measure` and `context` come from a model's renderer.

    `decoded`: False does not decode pictures, which takes a tenth of the time and skips the check for near-duplicates.
    Raises LinesideError when the folder holds no data set or a whole shard cannot be read.
    """
    split, note = _how_split(data)
    report, leaks, names, outcomes = Report(), _Leaks(decoded, split), array("Q"), 0
    if note:
        report.notes["split leak"] = note
    if not decoded:
        for check in ("pictures", "near leak"):
            report.notes[check] = "only `lineside validate` checks it"
    paths = shard_files(data)
    if measure is None:
        report.notes["context"] = "not checked: no checkpoint was given"
    for path, number, item in track(_items(paths), total=shards.count_rows(paths), unit="rows", label="validate"):
        if isinstance(item, LinesideError):
            report.rows["unreadable"] += 1
            report.add("rows", Problem(path.name, number, "", str(item)))
            continue
        place = (path.name, number, item.id)
        leaks.look(item, place, report)
        names.append(stable_hash("frame" if isinstance(item, Frame) else item.kind, item.id))
        if isinstance(item, Frame):
            report.rows[f"frames-{item.split}"] += 1
            continue
        name = f"{item.kind}-{item.split}"
        report.rows[name] += 1
        for check, reason in sample_problems(item):
            report.add(check, Problem(*place, reason))
        if name == "qa-train":
            report.traces[problem_of_trace(item) or "valid"] += 1
        length, supervised = measure(item) if measure else (0, len(item.answer or ""))
        report.longest = max(report.longest, length)
        report.supervised[name] += supervised
        outcomes += item.kind == "prompt" and item.target is not None and item.target.provenance == "outcome"
        if context is not None and length > context:
            report.add("context", Problem(*place, f"{length} tokens; the model's context is {context}"))
    leaks.finish(report)
    _check_names(names, paths, report)
    _check_totals(report, outcomes)
    return report


def check_apart(data: Path | Sequence[Path], mixed: Sequence[Path]) -> None:
    """Check that no training picture of the folders `mixed` is in a suite of `data`, one folder or several.

    Only the bytes of pictures are compared, because scenes have other names in every folder. Raises CheckFailed naming
    the first leak.
    """
    if not mixed:
        return
    shown = HashMap()  # hash of a picture -> the suite that shows it
    suites = [(suite, split) for suite in ([data] if isinstance(data, Path) else data) for split in SUITES]
    for number, (suite, split) in enumerate(suites):
        for _, key in _pictures(store.read_samples(suite, split=split), references=False):
            shown[stable_hash(key)] = number
    for folder in mixed:
        paths = store.sample_shards(folder, split="train")
        samples = store.read_samples(folder, split="train")
        told = track(samples, total=shards.count_rows(paths), unit="rows", label=f"check {folder}")
        for name, key in _pictures(told):
            if (number := shown.get(stable_hash(key))) is not None:
                suite, split = suites[number]
                raise CheckFailed(
                    f"{folder}: the picture of {name} is also in the suite {split} of {suite}: a model trained "
                    "on it would be judged on its training data. Remove it from one of the two."
                )


def _pictures(samples: Iterable[Sample], *, references: bool = True) -> Iterator[tuple[str, str]]:
    """(id of a sample, key of its picture), once for neighbouring rows that share a picture object."""
    last: tuple[Image, ...] = ()
    for sample in samples:
        images = sample.images if references else sample.frame_images
        if [image.bytes for image in images] != [image.bytes for image in last]:
            last = images
            yield from ((sample.id, image_key(image.bytes)) for image in images)


def shard_files(data: Path) -> list[Path]:
    """Shards of samples and frames, suites first. Raises LinesideError when there are none."""
    if not data.is_dir():
        raise LinesideError(f"{data}: no such folder; expected one that `lineside label` or `lineside simulate` wrote")
    samples = [p for split in ORDER for kind in rows.KINDS for p in sorted(data.glob(f"{kind}-{split}-[0-9]*.parquet"))]
    frames = sorted(data.glob("frames-[0-9]*.parquet"))
    if not samples and not frames:
        raise LinesideError(f"{data}: no samples (<kind>-<split>-*.parquet) and no frames (frames-*.parquet) in it")
    return samples + frames


def sample_problems(sample: Sample) -> Iterator[tuple[str, str]]:
    """(check, reason) for each problem of the sample itself."""
    answer = (sample.answer or "").strip()
    if sample.kind != "prompt" and not answer:
        yield "texts", f"a {sample.kind} sample without an answer has no supervised tokens"
    if sample.kind == "caption":
        return
    if not sample.question.strip():
        yield "texts", f"a {sample.kind} sample without a question"
    target = sample.target
    if target is None:
        yield "texts", f"a {sample.kind} sample without a target"
        return
    if problem := target_problem(target):
        yield "targets", f"bad target: {problem}"
    elif answer and not (verdict := verify(answer, target)).exact:
        yield "targets", f"the answer {answer[:60]!r} is not right by its own target: {verdict.reason}"
    if target.provenance == "teacher" and (sample.kind == "prompt" or sample.split != "train"):
        where = "stage-3 prompts need" if sample.kind == "prompt" else f"the suite {sample.split} needs"
        yield "provenance", f"the target comes from a teacher alone; {where} records or a simulator"
    if target.provenance == "outcome" and sample.kind == "qa" and sample.split == "train":
        yield "provenance", f"the target comes from an outcome: {OUTCOME_ONLY}"
    if target.kind == "not" and sample.kind != "prompt":
        yield "targets", "a target that says what is wrong serves stage 3 alone: no answer is right by it"


def thinking_tasks(folders: Iterable[Path]) -> Thinking:
    """Which tasks think: those with a valid trace in at least one training question. Reads no picture.

    Raises LinesideError for a missing folder or a shard that cannot be read.
    """
    found: dict[str, bool] = {}
    columns = ["family", "task", "question", "trace", "answer", "target"]
    for path in (path for folder in folders for path in store.sample_shards(folder, kind="qa", split="train")):
        for row in store.read_columns(path, columns):
            name = f"{row['family']}/{row['task']}"
            found[name] = found.get(name, False) or _has_valid_trace(row)
    return Thinking(found)


def trained_skus(folders: Iterable[Path]) -> frozenset[str]:
    """The SKUs of the training frames; none where the data do not say. Reads no picture. Errors as `thinking_tasks`."""
    paths = (path for folder in folders for path in store.sample_shards(folder, split="train"))
    return frozenset(sku for path in paths for row in store.read_columns(path, ["skus"]) for sku in row["skus"] or ())


def references_in(folders: Iterable[Path]) -> bool:
    """Whether any training question has reference pictures. Reads no picture. Errors as `thinking_tasks`."""
    paths = (path for folder in folders for path in store.sample_shards(folder, kind="qa", split="train"))
    return any("reference" in (row["roles"] or ()) for path in paths for row in store.read_columns(path, ["roles"]))


def _has_valid_trace(row: dict[str, Any]) -> bool:
    if not row["trace"]:
        return False
    try:
        target = Target.from_json(json.loads(row["target"])) if row["target"] else None
    except (ValueError, TypeError, KeyError):  # `inspect` reports it
        target = None
    trace, question = row["trace"], row["question"] or ""
    return not trace_problem(trace, question=question, answer=row["answer"], options=trace_options(target))


def _items(paths: list[Path]) -> Iterator[tuple[Path, int, Sample | Frame | LinesideError]]:
    """Every row once, in the order of ORDER. A shard of frames may hold several splits and is read once for each."""
    frames = [path for path in paths if path.name.startswith("frames-")]
    for path in paths:
        if path not in frames:
            yield from ((path, number, item) for number, item in shards.scan(path, shards.SAMPLES))
    for path in frames:  # unreadable rows first: their split may be the reason
        found = shards.scan(path, shards.FRAMES)
        yield from ((path, number, item) for number, item in found if isinstance(item, LinesideError))
    for split in ORDER:
        for path in frames:
            for number, item in shards.scan(path, shards.FRAMES, split=split):
                if isinstance(item, Frame):
                    yield path, number, item


class _Leaks:
    """Pictures, scenes, SKUs and cells of the suites, to compare later splits with."""

    def __init__(self, decoded: bool, split: Splits | None) -> None:
        self._decoded, self._split = decoded, split
        # check -> hash of the name -> number of the row that has it first; in the last four bits, the splits of which
        # that was told
        self._seen: dict[str, HashMap] = defaultdict(HashMap)
        self._rows, self._splits = Texts(), bytearray()  # of each row by number: its id, its split
        self._row = ("", -1, "")  # the place of the last one
        self._last: bytes = b""
        self._beside: dict[str, tuple[str, tuple[str, int, str]]] = {}  # key of a reference -> its SKU, its first row
        self._near = duplicates.Leaks()

    def look(self, item: Sample | Frame, place: tuple[str, int, str], report: Report) -> None:
        """Check the pictures of a row, and whether the row shares picture, scene, SKU or cell with another split."""
        for image in item.references if isinstance(item, Sample) else ():
            if (key := image_key(image.bytes)) not in self._beside:
                self._beside[key] = image.name, place
                if self._decoded and (why := undecodable(image.bytes)):
                    report.add("pictures", Problem(*place, f"the reference of {image.name}: {why}"))
        for image in item.images if isinstance(item, Frame) else item.frame_images:
            if image.bytes is not self._last:  # the rows of a frame are neighbours and share the bytes object
                self._last = image.bytes
                leaks = self._hold(
                    "picture leak", image_key(image.bytes), item.split, place, report, told=f"of {place[2]}"
                )
                if not self._decoded:
                    continue
                try:
                    picture = decode(image.bytes)
                except LinesideError as error:
                    report.add("pictures", Problem(*place, str(error)))
                    continue
                if not leaks and image.role == "frame":
                    self._near.look(item, picture, place)
        if isinstance(item, Sample) and item.question and (item.kind == "prompt" or item.split != "train"):
            asked = " ".join([*(image_key(image.bytes) for image in item.frame_images), normalise(item.question)])
            self._hold("prompt leak", asked, item.split, place, report, told=f"and question of {item.id}")
        if item.meta.scene:
            self._hold("scene leak", item.meta.scene, item.split, place, report)
        if self._split is not None and self._split.by is not None:
            self._prove(self._split, self._split.by, item, place, report)
        if item.split != "heldout":  # SKUs and cells of shifted must be new to train and dev only
            for sku in item.meta.skus:
                self._hold("sku leak", sku, item.split, place, report)
            if item.meta.cell:
                self._hold("cell leak", item.meta.cell, item.split, place, report)

    def _prove(self, split: Splits, by: By, item: Sample | Frame, place: tuple[str, int, str], report: Report) -> None:
        """Check that the scene, day, cell or camera of an item is in one split. For SKUs the split is drawn again,
        because a suite may show trained SKUs beside a held-out one."""
        try:
            if by != "sku":
                for name in names_of(item.meta, by):
                    self._hold("split leak", name, item.split, place, report, told=f"{by} {name}")
            elif (side := side_of(item.meta, by=by, shares=split.shares or SHARES, salt=split.salt)) != item.split:
                report.add("split leak", Problem(*place, f"its SKUs belong to {side}; it is in {item.split}"))
        except LinesideError as error:
            report.add("split leak", Problem(*place, str(error)))

    def finish(self, report: Report) -> None:
        """Report what is known only after all rows. A reference may stand in every split, but no suite may show it."""
        suites = self._seen["picture leak"]
        for key, (name, place) in self._beside.items():
            if (held := suites.get(stable_hash(key))) is not None:
                row = held >> 4
                reason = f"the reference of {name} is the picture of {self._rows[row]}, a frame of "
                reason += ORDER[self._splits[row]]
                report.add("reference leak", Problem(*place, f"{reason}: take another picture of that SKU"))
        if self._near.share < 1:
            kept = f"{self._near.share:.2%} of the suites' pictures, drawn by hash"
            report.notes["near leak"] = f"in part: each picture is compared with {kept}"
        for leak in self._near.found():
            reason = f"the picture of {leak.split} looks the same as that of {leak.other} in {leak.other_split}"
            report.add("near leak", Problem(*leak.place, reason))

    def _hold(
        self, check: str, name: str, split: str, place: tuple[str, int, str], report: Report, *, told: str = ""
    ) -> bool:
        """Report a problem once if an earlier split has the name; else remember it if a later split may have it too.

        Returns whether an earlier split has the name.
        """
        key, seen, own = stable_hash(name), self._seen[check], ORDER.index(split)
        held = seen.get(key)
        whole = check in ("picture leak", "prompt leak", "scene leak", "split leak")
        if held is None:
            if split == "shifted" or (split != "train" and whole):
                seen[key] = self._number(place, own) << 4
            return False
        row, other = held >> 4, self._splits[held >> 4]
        if other != own and not held & (bit := 1 << own):
            seen[key] = held | bit
            what = f"the {told}" if check == "split leak" else f"the {check.removesuffix(' leak')} {told or name}"
            where = f": it is the picture of {self._rows[row]}" if check == "picture leak" else ""
            report.add(check, Problem(*place, f"{what} of {split} is also in {ORDER[other]}{where}"))
        return other != own

    def _number(self, place: tuple[str, int, str], split: int) -> int:
        """The number of a row whose id and split are kept, once for all its names."""
        if place != self._row:
            self._row = place
            self._rows.add(place[2])
            self._splits.append(split)
        return len(self._rows) - 1


def _check_names(names: array[int], paths: list[Path], report: Report) -> None:
    """Report rows with the kind and id of an earlier one. `names`: one 8-byte hash for each row."""
    hashes = np.frombuffer(names, np.uint64)
    hashes.sort()  # in place
    twice = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    if not twice:
        return
    first: dict[int, str] = {}
    for path, number, item in _items(paths):
        if isinstance(item, LinesideError):
            continue
        kind = "frame" if isinstance(item, Frame) else item.kind
        if (name := stable_hash(kind, item.id)) in twice:
            place = f"{path.name} row {number}"
            if name in first:
                report.add("ids", Problem(path.name, number, item.id, f"a {kind} of this id is also in {first[name]}"))
            first.setdefault(name, place)


def _how_split(data: Path) -> tuple[Splits | None, str]:
    """(how a labelling job split its frames, or None; else why that is not known), from the account beside its
    samples."""
    if (account := store.account_of(data)) is None:
        return None, "not checked: the folder has no account of a labelling job"
    if isinstance(split := account.get("split"), dict):
        return build(Splits, split, str(data / store.SUMMARY)), ""
    return None, "not checked: the data's own split"


def _check_totals(report: Report, outcomes: int) -> None:
    """Check the data set as a whole. `outcomes`: prompts whose target is an outcome."""
    train = [name for name in report.rows if name in ("caption-train", "qa-train", "prompt-train")]
    if outcomes and outcomes == report.rows.total():
        report.notes["tokens"] = "outcomes alone: they serve stage 3, and have no answers to train on"
    elif train and not any(report.supervised[name] for name in ("caption-train", "qa-train")):
        report.add("tokens", Problem("", -1, "", "zero supervised tokens: no caption and no answer to train on"))
    captions, questions = report.rows["caption-train"], report.rows["qa-train"]
    if 0 < captions < questions:
        report.add("captions", Problem("", -1, "", f"{captions} captions for {questions} questions"))
    elif questions and not captions:
        report.notes["captions"] = "no captions: stage 1 cannot be trained on this data"
