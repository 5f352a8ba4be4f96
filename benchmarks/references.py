"""What reference pictures give on SKUs that training never showed, by their number: none, one, three.

    python benchmarks/references.py WORK RUN [--train 450] [--shifted 200] [--tokens 600000] [--seed 0]

Simulated picking cells, a nano model, one thread. RUN is a finished run, such as runs/quickstart: its stage 2, trained
without references, goes on with the three tasks that name an article (how many, is it there, where is it), once for
each number of reference pictures: on the same frames, questions, tokens and steps. With references a question takes
more tokens, so the same tokens are fewer questions. Each model is judged on `shifted`: unseen SKUs in unseen packaging,
light and cells. Only some questions name one SKU ("small red can"); others are vague ("red part") and have no
reference. The differences are paired by question, their intervals bootstrapped by scene.

Run it again to continue. The script makes no claim. It writes benchmarks/out/references.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from lineside.data.job import OWN_TASKS
from lineside.evaluate import evaluate_checkpoint
from lineside.files import write_atomic
from lineside.judgement import stats
from lineside.judgement.schema import Row, read_rows
from lineside.recipe import load_recipe
from lineside.simulate import simulate
from lineside.strict import read_yaml
from lineside.train import train

OUT = Path(__file__).parent / "out"
COUNTS = (0, 1, 3)
NAMED = ("count_described", "is_present", "pick_point")
DRAWS = 5000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--train", type=int, default=450)
    parser.add_argument("--shifted", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=600_000, help="of stage 2")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    work: Path = options.work.resolve()
    counts = {"train": options.train, "dev": 20, "heldout": 20, "shifted": options.shifted}
    frames = {split: {"picking": count} for split, count in counts.items()}
    simulate(work / "frames", frames=frames, seed=options.seed, workers=1, sheet=0)
    tasks = [task for task in read_yaml(OWN_TASKS / "picking.yaml")["tasks"] if task["name"] in NAMED]
    write_atomic(work / "named.yaml", json.dumps({"tasks": tasks}))
    rows = {count: answers(work, options.run, count, options.tokens, options.seed) for count in COUNTS}
    beside = {key for key, row in rows[COUNTS[-1]].items() if row.reference_pictures}
    groups = [(what, keys, task) for what, keys in (("named", beside), ("vague", set(rows[0]) - beside))
              for task in (None, *NAMED)]  # fmt: skip
    found = [line for what, keys, task in groups if (line := judged(rows, keys, what, task))]
    for line in found:
        print(json.dumps(line))
    sizes = {"train": options.train, "shifted": options.shifted, "tokens": options.tokens, "seed": options.seed}
    write_atomic(OUT / "references.json", json.dumps({**sizes, "rows": found}, indent=1))


def answers(work: Path, start: Path, count: int, tokens: int, seed: int) -> dict[str, Row]:
    """The rows of the model with `count` references on `shifted`, by id; trained and judged if it is not yet."""
    run, out = work / f"references-{count}", work / "judged" / str(count)
    for source, place in (("parts", "parts"), ("sft", "align")):  # its stage 2 in the place of an aligned model
        if not (run / place).exists():
            shutil.copytree(start / source / "checkpoint", run / place / "checkpoint")
    data = [f"data.frames={work / 'frames'}", f"data.tasks=[{work / 'named.yaml'}]", "data.simulate=null"]
    data += [f"data.label.references={count}", "data.label.question_share=1", "data.label.prompt_share=0"]
    size = ["data.label.acuity=1.0", "sft.max_minutes=null", f"sft.max_tokens={tokens}", "evaluate.splits=[]"]
    named = [f"name=references-{count}", f"runs={work}", f"seed={seed}"]
    train(load_recipe(Path("quickstart"), [*named, *data, *size]), last="sft")
    if not (path := out / "sft-shifted-think.rows.jsonl").exists():
        evaluate_checkpoint(
            run / "sft" / "checkpoint", run / "samples", split="shifted", with_baselines=False, with_calibration=False,
            features=work / "features", out=out,
        )  # fmt: skip
    return {row.id: row for row in read_rows(path)}


def judged(rows: dict[int, dict[str, Row]], keys: set[str], what: str, task: str | None) -> dict[str, object] | None:
    """Exact by number of references over some questions, and the differences from none; None without a question."""
    asked = sorted(key for key in keys if task is None or rows[0][key].task == task)
    if not asked:
        return None
    scenes = [rows[0][key].scene for key in asked]
    line: dict[str, object] = {"questions": what, "task": task or "all", "n": len(asked), "scenes": len(set(scenes))}
    for count in COUNTS:
        right = [[rows[count][key].exact] for key in asked]
        (mean,) = stats.weighted_means(scenes, right, [1.0] * len(asked), highest=[1.0], seed=0)
        line[f"exact_{count}"] = [round(float(v), 4) for v in (mean.value, *mean.interval)]
        if count:
            gain = [float(rows[count][key].exact) - float(rows[0][key].exact) for key in asked]
            line[f"gain_{count}"] = [round(v, 4) for v in paired(scenes, gain)]
    return line


def paired(scenes: list[str], gain: list[float]) -> tuple[float, float, float]:
    """Mean gain with its 95% interval, drawn by scene."""
    by_scene: dict[str, list[float]] = defaultdict(list)
    for scene, value in zip(scenes, gain):
        by_scene[scene].append(value)
    sums = np.array([[sum(values), len(values)] for values in by_scene.values()])
    drawn = np.random.default_rng(0).integers(0, len(sums), (DRAWS, len(sums)))
    total = sums[drawn].sum(1)
    low, high = np.quantile(total[:, 0] / total[:, 1], (0.025, 0.975))
    return float(np.mean(gain)), float(low), float(high)


if __name__ == "__main__":
    main()
