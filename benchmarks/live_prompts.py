"""Stage 3 with prompts chosen by the chance that their group is live, against prompts drawn uniformly.

    python benchmarks/live_prompts.py RUN [--steps 12] [--tiny]

RUN is the folder of a run with a checkpoint of sft (`lineside train quickstart`). Both sides start from it with the
run's settings of rlvr, each in its own process, and take turns after each step. The script counts, over all sampled
groups and by task, the share that is live in exactness (some answers are exact, some are not) and in reward (rewards
differ by at least 0.05). Steps a minute are optimiser steps with their sampling. `--tiny` is a rehearsal with a random
model and random rewards: it takes seconds and makes no claim.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lineside.rlvr
import lineside.training.rollout
from common import OUT, WORDS, Lengths, model_folder, sample_folder, samples
from lineside.files import write_atomic
from lineside.machine import ENVIRONMENT, keep_memory
from lineside.model.checkpoint import load
from lineside.model.features import FeatureStore
from lineside.recipe import Rlvr, load_run_recipe
from lineside.runtime import Runtime
from lineside.training.advantages import is_dead_group
from lineside.training.choice import passes
from lineside.types import Group, Sample, Target, Verdict
from lineside.verify.judge import judge
from race import ProcessSide, Turn, stepping

CHOICES = ("uniform", "live")
LIVE_SHARE = 0.6  # of the groups sampled with live, on exactness


@dataclass(frozen=True)
class Work:
    """What one side does. Fields as in `race.Work` where they have the same name."""

    model: Path
    samples: Path
    settings: Rlvr
    out: Path  # JSON lines, one a group sampled
    features: Path | None
    seed: int
    lots: bool = False
    device: str = "cpu"


def side(work: Work, turn: Turn) -> None:
    """A run's stage 3; every group that is sampled is noted."""
    keep_memory()
    vlm = load(work.model, device=work.device)
    sample_groups = lineside.rlvr.sample_groups

    def noted(*args: Any, **options: Any) -> list[Group]:
        groups = sample_groups(*args, **options)
        with open(work.out, "a") as file:
            for group in groups:
                rewards = [judgement.reward for judgement in group.judgements]
                row = {
                    "task": f"{group.sample.family}/{group.sample.task}",
                    "exact": len(set(passes(group))) > 1,
                    "reward": not is_dead_group(rewards),
                    "solved": any(passes(group)),
                    "tokens": sum(len(rollout.tokens) for rollout in group.rollouts),
                }
                file.write(json.dumps(row) + "\n")
        return groups

    lots = patch.object(lineside.training.rollout, "judge", by_lot if work.lots else judge)
    watched = patch.object(lineside.rlvr, "sample_groups", noted)
    turn.begin()
    with tempfile.TemporaryDirectory() as folder, stepping(lineside.rlvr, turn), lots, watched:
        store = FeatureStore(work.features, vlm, runtime=Runtime(vlm.device))
        lineside.rlvr.rlvr(
            vlm, store, work.samples, Path(folder), work.settings, runtime=Runtime(vlm.device, seed=work.seed)
        )


def by_lot(text: str, target: Target, **options: Any) -> Any:
    """A rehearsal's judge: passes as often as the target says."""
    exact = random.Random(text + target.accepted[0]).random() < float(target.accepted[0])
    judged = judge(text, target, **options)
    return replace(judged, verdict=Verdict(float(exact), exact, ""), reward=float(exact))


def compare(works: dict[str, Work], steps: int) -> dict[str, dict[str, Any]]:
    """Both sides by turns; what each sampled, and its steps a minute."""
    sides = {
        choice: ProcessSide(side, work, ENVIRONMENT)  # pyright: ignore[reportArgumentType] # work of another kind
        for choice, work in works.items()
    }
    seconds: dict[str, list[float]] = {choice: [] for choice in works}
    try:
        for number in range(steps + 1):
            for choice, one in sides.items():
                took = one.step()
                if number:  # the first compiles and starts its clock with loading
                    seconds[choice].append(took)
                print(f"step {number}: {choice} {took:.1f} s", flush=True)
    finally:
        for one in sides.values():
            one.close()
    return {choice: found(work.out, seconds[choice]) for choice, work in works.items()}


def found(path: Path, seconds: list[float]) -> dict[str, Any]:
    """Shares over all groups of a side."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    share = lambda name, rows=rows: sum(row[name] for row in rows) / max(1, len(rows))  # noqa: E731
    unsolved = [row for row in rows if not row["solved"]]
    tasks = Counter(row["task"] for row in rows)
    return {
        "groups": len(rows),
        "live/exact": share("exact"),
        "live/reward": share("reward"),
        "live/reward where none passes": share("reward", unsolved),
        "steps/minute": 60 * len(seconds) / sum(seconds),
        "tokens/step": sum(row["tokens"] for row in rows) / (len(seconds) + 1),
        "tasks": {
            task: [count, share("exact", [r for r in rows if r["task"] == task])] for task, count in tasks.items()
        },
    }


def rehearsal(seed: int) -> dict[str, Any]:
    """A tiny model, and three tasks of which one teaches."""
    model, _ = model_folder(49, tiny=True)

    def prompts() -> Iterator[Sample]:
        for number, sample in enumerate(samples("prompt", 40, 3, Lengths().shorter(True), seed=seed)):
            chance = ("0.0", "0.5", "1.0")[number % 3]
            target = Target(kind="exact", provenance="sim", accepted=(chance,))
            yield replace(sample, task=WORDS[number % 3], target=target)

    settings = Rlvr(prompts=6, group_size=4, max_new_tokens=6, overlong_cache=0)
    folder = sample_folder("live", prompts(), tiny=True)
    return {"model": model, "samples": folder, "settings": settings, "features": None, "lots": True}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="folder of a run with a checkpoint of sft")
    parser.add_argument("--steps", type=int, default=12, help="optimiser steps of each side that are timed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="rehearse on a random model")
    given = parser.parse_args()
    if given.run is None and not given.tiny:
        parser.error("RUN is missing: the folder of a run with sft/checkpoint, or --tiny to rehearse")
    with tempfile.TemporaryDirectory() as scratch:
        if given.tiny or given.run is None:
            what = rehearsal(given.seed)
        else:
            recipe = load_run_recipe(given.run / "recipe.yaml")
            what = {
                "model": given.run / "sft" / "checkpoint",
                "samples": recipe.data.samples or given.run / "samples",
                "settings": recipe.rlvr,
                "features": given.run.parent / "features",
            }
        endless = {"epochs": 1e6, "max_minutes": None, "schedule": "constant", "save_seconds": 1e9}
        works = {}
        for choice in CHOICES:
            settings = what["settings"].model_copy(update={**endless, "prompt_choice": choice})
            works[choice] = Work(**{**what, "settings": settings}, out=Path(scratch) / choice, seed=given.seed)
        result = compare(works, given.steps)
    for choice, numbers in result.items():
        tasks = numbers.pop("tasks")
        print(choice, ", ".join(f"{name} {value:.3f}" for name, value in numbers.items()))
        for task, (count, share) in sorted(tasks.items()):
            print(f"    {task}: {count} groups, {share:.0%} live on exactness")
    return claims(result, given)


def claims(result: dict[str, dict[str, Any]], given: argparse.Namespace) -> int:
    """Print and write what is claimed; 1 if a claim does not hold. A rehearsal claims nothing."""
    live, uniform = result["live"], result["uniform"]
    command = f"python benchmarks/live_prompts.py {given.run} --steps {given.steps} --seed {given.seed}"
    rows = [
        {"claim": "live on exactness, of groups sampled", "value": live["live/exact"], "at_least": LIVE_SHARE},
        {"claim": "live on reward, the same", "value": live["live/reward"], "at_least": LIVE_SHARE},
        {"claim": "the same, live to uniform", "value": live["live/exact"] / max(1e-9, uniform["live/exact"])},
        {"claim": "steps a minute, live to uniform", "value": live["steps/minute"] / uniform["steps/minute"]},
    ]  # fmt: skip
    for row in rows:
        at_least = row.setdefault("at_least", None)
        row |= {"holds": at_least is None or row["value"] >= at_least, "n": live["groups"], "command": command}
        print(f"{row['claim']}: {row['value']:.3f}" + ("" if at_least is None else f" (at least {at_least})"))
    if given.tiny:
        return 0
    OUT.mkdir(exist_ok=True)
    write_atomic(OUT / "live_prompts.json", json.dumps(rows, indent=1))
    return 0 if all(row["holds"] for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
