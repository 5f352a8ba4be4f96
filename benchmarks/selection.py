"""Frames chosen by `lineside select` against random frames at the same budget: accuracy of classifier heads.

    python benchmarks/selection.py FRAMES [--tasks grocery.yaml] [--task grocery/product] [--balance sku]
        [--checkpoint C] [--features F] [--seeds 5] [--budgets 100 200 400 800]

The training frames are taken for unlabelled. Each side labels up to the first budget, then up to the next, and so on.
A linear head on the frozen features is fitted to the labelled ones, stopped on dev, and judged on heldout: a cheap
judge, not a VLM. Sides: random frames; `select`; `select` with the doubt of the head that the side had before,
calibrated on dev as a model's is; with --balance both once more with these columns balanced. Writes
benchmarks/out/selection.json and selection.svg.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from matplotlib import pyplot
from torch import Tensor

from lineside.data.recorded import Record
from lineside.data.selection import Candidate, select
from lineside.files import write_atomic
from lineside.judgement.calibration import fit, logit, sigmoid
from lineside.judgement.heads import BATCH, EPOCHS, Head, Inputs, fit_head
from lineside.progress import track
from lineside.runtime import ON_CPU
from lineside.task_audit import described, recorded_of
from lineside.verify.verifiers import verify

OUT = Path(__file__).parent / "out"
SIDES = ("random", "select", "select with doubt")  # and the last two "balanced"
BALANCED = ", balanced"
STEPS = 300
T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 8: 2.36, 10: 2.26}  # Student's t, two-sided, by number of seeds


@dataclass(frozen=True)
class Data:
    """The records of one task by split, and their features (n, I)."""

    records: dict[str, list[Record]]
    seen: dict[str, Tensor]

    def inputs(self, records: Sequence[Record]) -> Inputs:
        """A head's inputs, without words."""
        return Inputs(torch.stack([self.seen[record.picture] for record in records]), torch.zeros(len(records), 0))

    def exact(self, head: Head, split: str) -> float:
        """Share of a split's records that the head answers exactly."""
        return fmean(self.right(head, split))

    def right(self, head: Head, split: str) -> list[bool]:
        """Whether the head answers each record of a split exactly."""
        records = self.records[split]
        told = zip(head.predict(self.inputs(records)), records)
        return [verify(answer, record.target).exact for answer, record in told]

    def doubts(self, head: Head, records: Sequence[Record]) -> list[float]:
        """1 less the confidence of the head's answers, calibrated on dev."""
        dev = self.right(head, "dev")
        slope, offset = fit(self.sure(head, self.records["dev"]).tolist(), dev, [1.0] * len(dev))
        return (1.0 - sigmoid(slope * logit(self.sure(head, records)) + offset)).tolist()

    def sure(self, head: Head, records: Sequence[Record]) -> np.ndarray:
        """(N,): the head's own probability of its answers."""
        return head.shares(self.inputs(records)).amax(1).numpy()


def fitted(data: Data, labelled: Sequence[Record], seed: int) -> Head:
    """A linear head of the labelled records."""
    epochs = max(EPOCHS, STEPS * BATCH // len(labelled))
    answers = [record.answer for record in labelled]
    inputs = data.inputs(labelled)
    return fit_head("linear", inputs, answers, lambda h: data.exact(h, "dev"), members=False, seed=seed, epochs=epochs)[
        0
    ]


def curve(data: Data, side: str, budgets: Sequence[int], seed: int, balance: Sequence[str]) -> list[float]:
    """Accuracy on heldout at each budget."""
    train = data.records["train"]
    columns = balance if side.endswith(BALANCED) else ()
    groups = [{column: (record.sources[column],) for column in columns} for record in train]
    seen_NI = data.inputs(train).picture_NI.numpy()
    order = np.random.default_rng(seed).permutation(len(train))
    labelled: list[int] = []
    head: Head | None = None
    found: list[float] = []
    for budget in budgets:
        if side == "random":
            labelled = order[:budget].tolist()
        else:
            left = [i for i in range(len(train)) if i not in set(labelled)]
            doubts: list[float | None] = [None] * len(left)
            if head is not None and "doubt" in side:
                doubts[:] = data.doubts(head, [train[i] for i in left])
            picks = select(
                [Candidate(train[i].id, groups[i], doubt) for i, doubt in zip(left, doubts)],
                seen_NI[left],
                budget=budget - len(labelled),
                labelled_MI=seen_NI[labelled] if labelled else None,
                labelled_groups=[groups[i] for i in labelled],
                seed=seed,
            )
            labelled += [left[pick.index] for pick in picks]
        head = fitted(data, [train[i] for i in labelled], seed)
        found.append(data.exact(head, "heldout"))
    return found


def drawn(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """The curves: mean over seeds, and 95% intervals."""
    figure, axes = pyplot.subplots(figsize=(5.4, 3.6))
    for side, style in zip(dict.fromkeys(row["side"] for row in rows), ("o--", "s-", "^-", "s:", "^:")):
        mine = [row for row in rows if row["side"] == side]
        xs, ys = [row["budget"] for row in mine], [100 * row["exact"] for row in mine]
        axes.errorbar(xs, ys, [100 * row["half"] for row in mine], fmt=style, capsize=3, linewidth=1.4, label=side)
    axes.set_xscale("log")
    budgets = sorted({row["budget"] for row in rows})
    axes.set_xticks(budgets, [f"{budget:,}" for budget in budgets])
    axes.minorticks_off()
    axes.set_xlabel("labelled frames")
    axes.set_ylabel("exact on heldout, %")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("frames", type=Path)
    parser.add_argument("--tasks", type=Path, nargs="*", default=[])
    parser.add_argument("--task", required=True)
    parser.add_argument("--balance", nargs="*", default=[])
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--features", type=Path)
    parser.add_argument("--seeds", type=int, default=5, choices=sorted(T_95))
    parser.add_argument("--budgets", type=int, nargs="*", default=[100, 200, 400, 800])
    given = parser.parse_args()
    records, seen = described(
        recorded_of(given.tasks, given.frames, ["split", *given.balance]), given.checkpoint, given.features, ON_CPU
    )
    by_split: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record.task == given.task:
            by_split[record.sources["split"]].append(record)
    data = Data(by_split, seen)
    sides = [*SIDES, *(side + BALANCED for side in SIDES[1:] if given.balance)]
    runs = [(side, seed) for seed in range(given.seeds) for side in sides]
    exact: dict[tuple[str, int], list[float]] = {}
    for side, seed in track(runs, total=len(runs), unit="curves", label="selection"):
        exact[side, seed] = curve(data, side, given.budgets, seed, given.balance)
        print(side, seed, [round(value, 4) for value in exact[side, seed]], flush=True)
    rows = [
        row_of(exact, side, place, budget, given.seeds) for side in sides for place, budget in enumerate(given.budgets)
    ]
    write_atomic(OUT / "selection.json", json.dumps(rows, indent=2) + "\n")
    drawn(rows, OUT / "selection.svg")
    for row in rows:
        print(
            f"{row['side']:28} {row['budget']:6,} {100 * row['exact']:.1f} +- {100 * row['half']:.1f}; less random "
            f"{100 * row['gain']:+.1f} ({100 * row['gain_interval'][0]:+.1f} to {100 * row['gain_interval'][1]:+.1f})"
        )
    return 0


def row_of(exact: dict[tuple[str, int], list[float]], side: str, place: int, budget: int, seeds: int) -> dict[str, Any]:
    """The mean over seeds, and the paired gain over random, with 95% intervals by Student's t."""
    mine = [exact[side, seed][place] for seed in range(seeds)]
    gains = [value - exact["random", seed][place] for seed, value in enumerate(mine)]
    half, gain = T_95[seeds] * stdev(mine) / seeds**0.5, fmean(gains)
    spread = T_95[seeds] * stdev(gains) / seeds**0.5
    return {
        "side": side,
        "budget": budget,
        "exact": fmean(mine),
        "half": half,
        "gain": gain,
        "gain_interval": [gain - spread, gain + spread],
        "seeds": seeds,
    }


if __name__ == "__main__":
    raise SystemExit(main())
