"""Photographs with a teacher that errs, for `headline.py --photographs`: near classes are confused at a published rate.

What a model misreads is not chance: it takes a photograph for the class that it resembles. So the teacher errs on the
training photographs that resemble another class most, by the features of an EfficientNet trained on ImageNet: of each
photograph the cosine to the mean of its own class (without itself), less that to the nearest other mean. Those with the
smallest difference are misread as that other class, as many as the published rate says. The error is fixed by
photograph: captions, traces and answers of one photograph agree with each other. Suites and stage 3's prompts keep to
the records.

`plant` writes a folder that `label` reads: the tables of the set with what the teacher saw in further columns
(`said_`), and two task files, of this teacher and of one that is never wrong. The photographs stay where they are.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from lineside.data.job import OWN_TASKS
from lineside.errors import LinesideError
from lineside.files import write_atomic
from lineside.hashing import stable_hash
from lineside.runtime import ON_CPU
from lineside.strict import read_yaml
from lineside.task_audit import described, recorded_of

TEACHER, TRUTH = "teacher.yaml", "truth.yaml"
SAID = "said_"
TINY = 40  # photographs of a split in a rehearsal


@dataclass(frozen=True)
class Photographs:
    """A set of photographs. `exact`: the share of training photographs that the teacher names rightly. `tasks`: the
    first one asks for the class; all are told apart in the tables."""

    exact: float
    tasks: tuple[str, ...]


SETS = {
    # OpenCLIP without training on TrashNet (Recycling 2025, 10(4), 144; doi.org/10.3390/recycling10040144).
    "sorting": Photographs(0.763, ("sorting/material", "sorting/chute", "sorting/is_it")),
    # No published rate of these products; GPT-4o on MMAD (arXiv 2410.09453), as the simulated `typical` teacher.
    "grocery": Photographs(0.749, ("grocery/product", "grocery/group", "grocery/packing", "grocery/is_it")),
}


def plant(name: str, data: Path, out: Path, *, features: Path, tiny: bool = False) -> None:
    """Write the folder `out` of the set `name`, whose photographs lie in `data`, once.

    Raises LinesideError for a folder that is missing, or that the set's task file does not fit.
    """
    if (out / TEACHER).exists():
        return
    if not data.is_dir():
        raise LinesideError(f"{data}: no such folder of photographs; give it with --data")
    spec = read_yaml(OWN_TASKS / f"{name}.yaml")
    table, wanted = spec["table"], SETS[name]
    rows = read_rows(data / table["file"])
    if tiny:
        rows = few(rows, table["image"], table["split"]["column"])
    for join in table.get("join", ()):
        joined = read_rows(data / join["file"])
        write_rows(out / join["file"], joined)
        write_rows(out / f"{SAID}{join['file']}", [_said(row) for row in joined])
    table["pictures"] = str(data.resolve())
    write_rows(out / table["file"], rows)
    write_atomic(out / TRUTH, json.dumps(spec, indent=1) + "\n")
    recorded = recorded_of([out / TRUTH], out, ["split"])
    records, seen = described(recorded, None, features, replace(ON_CPU, dtype=torch.float32))
    taught = [r for r in records if r.task == wanted.tasks[0] and r.sources["split"] == "train"]
    wrong = misread(torch.stack([seen[r.picture] for r in taught]), [r.answer for r in taught], wanted.exact)
    like = {r.answer: r.frame for r in reversed(taught)}  # a photograph of each class
    saw = {r.frame: like[wrong[n]] for n, r in enumerate(taught) if n in wrong}
    by_name = {row[table["image"]]: row for row in rows}
    planted = [row | _said(by_name[saw.get(frame, frame)]) for frame, row in by_name.items()]
    write_rows(out / table["file"], planted)
    write_atomic(out / TEACHER, json.dumps(as_told(spec), indent=1) + "\n")


def misread(features_nI: Tensor, classes: Sequence[str], exact: float) -> dict[int, str]:
    """The photographs that the teacher misreads, by number, and the class that it takes each for: 1 - `exact` of all,
    those nearest to another class. A photograph that is alone in its class is not misread.

    `features_nI`: (n, I), a row a photograph. With one class none is misread.
    """
    names = sorted(set(classes))
    own_n = torch.tensor([names.index(c) for c in classes])
    is_own_nC = torch.nn.functional.one_hot(own_n, len(names)).bool()
    unit_nI = normalize(features_nI.double(), dim=1)
    sums_CI = is_own_nC.T.double() @ unit_nI
    near_nC = unit_nI @ normalize(sums_CI, dim=1).T
    itself_n = (unit_nI * normalize(sums_CI[own_n] - unit_nI, dim=1)).sum(1)
    other_n, which_n = near_nC.masked_fill(is_own_nC, -torch.inf).max(1)
    alone_n = is_own_nC.sum(0)[own_n] == 1
    margin_n = (itself_n - other_n).masked_fill(alone_n, torch.inf)
    nearest = [n for n in margin_n.argsort(stable=True).tolist() if margin_n[n] < torch.inf]
    return {n: names[which_n[n]] for n in nearest[: round((1 - exact) * len(classes))]}


def few(rows: Sequence[dict[str, str]], image: str, split: str) -> list[dict[str, str]]:
    """At most `TINY` rows of each split, by hash."""
    by_hash = sorted(rows, key=lambda row: stable_hash("few", row[image]))
    return [row for part in {r[split]: 0 for r in rows} for row in [r for r in by_hash if r[split] == part][:TINY]]


# --- the task file of the teacher


def as_told(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The task file whose captions, traces and answers of stage 2 come from the `said_` columns."""
    table, names = spec["table"], set(spec["table"]["columns"])
    joins = table.get("join", [])
    said_joins = [join | {"file": SAID + join["file"], "on": SAID + join["on"]} for join in joins]
    columns = table["columns"] | {SAID + name: _column_said(column) for name, column in table["columns"].items()}
    distractors = [d | {"teacher_column": SAID + d["column"]} for d in table["distractors"]]
    return {
        **spec,
        "table": {**table, "join": joins + said_joins, "columns": columns, "distractors": distractors},
        "captions": [
            c | {"templates": [_told(t, names) for t in c["templates"]], "wrong": [SAID + w for w in c["wrong"]]}
            for c in spec["captions"]
        ],
        "tasks": [
            task | {"trace": _told(task["trace"], names), "answer": _answer_said(task["answer"], names)}
            for task in spec["tasks"]
        ],
    }


def _column_said(column: str | dict[str, Any]) -> str | dict[str, Any]:
    return SAID + column if isinstance(column, str) else column | {"column": SAID + column["column"]}


def _answer_said(answer: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    """An element of a list (`distractors`) has what the teacher says of it as `said`."""
    return {**answer, "teacher_column": SAID + answer["column"] if answer["column"] in names else "said"}


def _told(template: str, names: set[str]) -> str:
    """A sentence of the teacher: its slots name what it saw."""
    return re.sub(r"\{(a )?(\w+)\}", lambda m: f"{{{m[1] or ''}{SAID if m[2] in names else ''}{m[2]}}}", template)


# --- tables


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Write rows of the same columns as a CSV file."""
    text = StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text.getvalue())


def _said(row: Mapping[str, str]) -> dict[str, str]:
    return {SAID + name: value for name, value in row.items()}
