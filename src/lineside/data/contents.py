"""What a folder of samples holds, from its columns and a few pictures: frames, tasks, kinds of answers, suites."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from lineside.data import store
from lineside.data.mixture import by_record
from lineside.errors import LinesideError
from lineside.images import picture_size
from lineside.types import SUITES, Target

LOOKED_AT = 200  # samples whose pictures are measured
NAMED_KINDS = ("exact", "choice", "set")  # of answers that are names


@dataclass(frozen=True, slots=True)
class Contents:
    """`frames`: with training samples, by kind. `questions`: training samples by kind and family/task; prompts that
    only a teacher vouches for do not count. `tasks`: frames by kind and what they are asked. `unanswered`: frames with
    prompts and no questions with answers. `forms`: kinds of targets by task. `names`: answers by task, where they are
    names. `suites`: questions by split. `sizes`: (height, width) of some pictures."""

    folder: Path
    frames: Mapping[str, int]
    questions: Mapping[str, Mapping[str, int]]
    tasks: Mapping[str, Mapping[frozenset[str], int]]
    unanswered: int
    forms: Mapping[str, frozenset[str]]
    names: Mapping[str, frozenset[str]]
    suites: Mapping[str, int]
    sizes: Mapping[tuple[int, int], int]

    @property
    def trained(self) -> int:
        """Frames with anything to train stage 2 or 3 on."""
        return self.frames["qa"] + self.unanswered


def contents_of(folder: Path) -> Contents:
    """Raises LinesideError for a missing folder, or a shard or picture that cannot be read."""
    frames = {kind: store.count_frames_with(folder, kind=kind, split="train") for kind in ("caption", "qa", "prompt")}
    questions: dict[str, Counter[str]] = {"qa": Counter(), "prompt": Counter()}
    scenes: dict[str, set[str]] = {"qa": set(), "prompt": set()}
    forms: dict[str, set[str]] = defaultdict(set)
    names: dict[str, set[str]] = defaultdict(set)
    for kind in questions:
        for path in store.sample_shards(folder, kind=kind, split="train"):
            for row in store.read_columns(path, ("family", "task", "target", "scene")):
                task, target = f"{row['family']}/{row['task']}", _target(row["target"])
                if kind == "prompt" and not by_record(target):
                    continue
                questions[kind][task] += 1
                scenes[kind].add(row["scene"] or "")
                if target is not None:
                    forms[task].add(target.kind)
                    names[task].update(target.accepted if target.kind in NAMED_KINDS else ())
    apart = len(scenes["prompt"] - scenes["qa"]) / max(1, len(scenes["prompt"]))  # share of the scenes of prompts
    known = bool(scenes["prompt"]) and "" not in scenes["qa"] | scenes["prompt"]
    alone = round(apart * frames["prompt"]) if known else max(0, frames["prompt"] - frames["qa"])
    alone = alone if questions["prompt"] else 0
    return Contents(
        folder=folder,
        frames=frames,
        questions=questions,
        tasks={kind: Counter(store.tasks_of_frames(folder, kind=kind, split="train")) for kind in questions},
        unanswered=alone,
        forms={task: frozenset(kinds) for task, kinds in forms.items()},
        names={task: frozenset(each) for task, each in names.items()},
        suites={split: count_judged(folder, split) for split in SUITES},
        sizes=_sizes(folder),
    )


def agree(kinds: Collection[str], known: Collection[str]) -> bool:
    """Whether targets of these kinds may be of one task. An outcome knows a choice as a word, or only what is wrong."""
    one, other = ({"exact" if kind == "choice" else kind for kind in each} - {"not"} for each in (kinds, known))
    return not one or not other or bool(one & other)


def count_judged(folder: Path, split: str) -> int:
    """Number of questions that a suite of this split can have: those with a target, in suites that are held out by more
    than a teacher's word."""
    paths = store.sample_shards(folder, kind="qa", split=split)
    found = (_target(row["target"]) for path in paths for row in store.read_columns(path, ("target",)))
    return sum(target is not None and (split == "dev" or by_record(target)) for target in found)


def _target(text: str | None) -> Target | None:
    with suppress(ValueError, TypeError, KeyError, AttributeError):  # `validate` reports it
        return Target.from_json(json.loads(text)) if text else None
    return None


def _sizes(folder: Path) -> Counter[tuple[int, int]]:
    found: Counter[tuple[int, int]] = Counter()
    last = b""
    for sample in islice(store.read_samples(folder, split="train"), LOOKED_AT):
        if sample.images[0].bytes != last:
            last = sample.images[0].bytes
            try:
                found[picture_size(last)] += 1
            except LinesideError as error:
                raise LinesideError(f"{folder}: the picture of {sample.id}: {error}") from None
    return found
