"""The data card: what a set of samples contains, what was left out and why, and whether its splits are sound.

One JSON object with the account of `label` (if there is one), the checks of `validate`, and the balance of each task's
answers. The report shows it.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from itertools import islice
from pathlib import Path
from typing import Any

from lineside.data import store
from lineside.data.checks import Report
from lineside.data.job import DROPPED, EXAMPLES, PICTURES, REJECTED, SUMMARY
from lineside.errors import LinesideError
from lineside.images import jpeg_uri
from lineside.judgement.audit import with_pictures
from lineside.strict import read_record

VERSION = 1
COMMONEST = 5  # answers of a task that are listed


def data_card(samples: Path, report: Report) -> dict[str, Any]:
    """The card of a folder of samples. Raises LinesideError when a file in it is broken."""
    checks = report.to_json()
    for check in checks["checks"].values():
        check["problems"] = check["problems"][:EXAMPLES]
    return {
        "version": VERSION,
        "account": _account(samples),
        "rejected": _lines(samples / REJECTED),
        "dropped": _lines(samples / DROPPED),
        "rows": checks["rows"],
        "traces": checks["traces"],
        "checks": checks["checks"],
        "tasks": balance(samples),
    }


def balance(samples: Path) -> dict[str, dict[str, Any]]:
    """For each family/task the number of questions by kind and split, the number of different answers in training, and
    the commonest answers with their shares. Pictures are not read."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    answers: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for kind in ("qa", "prompt"):
        for path in store.sample_shards(samples, kind=kind):
            for row in store.read_columns(path, ("kind", "split", "family", "task", "answer")):
                name = f"{row['family']}/{row['task']}"
                counts[name][f"{row['kind']}-{row['split']}"] += 1
                if (row["kind"], row["split"]) == ("qa", "train"):
                    answers[name][str(row["answer"])] += 1
    return {
        name: {
            "samples": dict(counts[name]),
            "answers": len(answers[name]),
            "commonest": [
                {"answer": answer, "share": round(n / answers[name].total(), 4)}
                for answer, n in answers[name].most_common(COMMONEST)
            ],
        }
        for name in sorted(counts)
    }


def _account(samples: Path) -> dict[str, Any] | None:
    """The account that `label` wrote, with the pictures of its audit; None for samples from elsewhere."""
    path = samples / SUMMARY
    if not path.is_file():
        return None
    account = read_record(dict[str, Any], path, "not the account of a labelling job; remove the folder and label again")
    if account.get("audit"):
        account["audit"] = with_pictures(account["audit"], samples)
    return account


def _lines(path: Path) -> list[dict[str, Any]]:
    """The first lines of a list of left-out inputs, with their saved pictures as data URIs."""
    if not path.is_file():
        return []
    with open(path, encoding="utf-8") as file:
        try:
            lines = [json.loads(line) for line in islice(file, EXAMPLES)]
        except ValueError as error:
            raise LinesideError(f"{path}: expected a JSON object on each line: {error}") from None
    for line in lines:
        if key := line.pop("picture", None):
            line["picture"] = jpeg_uri((path.parent / PICTURES / f"{key}.jpg").read_bytes())
    return lines
