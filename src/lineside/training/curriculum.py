"""Which prompts teach: the pass rate of each, measured with the model that stage 3 begins with.

A prompt that is always solved, or never, gives groups of equal rewards, which DAPO drops after they were paid for
(arXiv 2503.14476). Rates are written down as they come, so that an interrupted measurement goes on.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from lineside.data import store as shards
from lineside.data.mixture import Mixture, by_record
from lineside.data.splits import stable_hash
from lineside.errors import LinesideError
from lineside.images import image_key
from lineside.model.features import FeatureStore
from lineside.model.vlm import VLM
from lineside.progress import say, track
from lineside.recipe import Rlvr
from lineside.training.rollout import sample_groups
from lineside.types import Sample

AT_ONCE = 64  # prompts that decode together


def name_of(prompt: Sample) -> str:
    """A prompt by its pictures and words: ids may clash between folders."""
    return f"{stable_hash(*(image_key(image.bytes) for image in prompt.images), prompt.question):016x}"


def teaching(
    vlm: VLM, store: FeatureStore, mixture: Mixture, path: Path, settings: Rlvr, *, seed: int
) -> frozenset[str]:
    """Names of the prompts whose mean reward over some rollouts lies within the curriculum's bounds.

    Rates known by `path` (JSON lines of name, task and rate) are not measured again. Raises LinesideError when no
    prompt is left.
    """
    curriculum = settings.curriculum
    assert curriculum is not None
    rates = _read(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    total = sum(shards.count_samples(part.folder, kind="prompt", split="train") for part in mixture.parts)
    with open(path, "a") as file:
        prompts = track(_prompts(mixture), total=total, unit="prompts", label="pass rates")
        while batch := list(islice(prompts, AT_ONCE)):
            names = [name_of(prompt) for prompt in batch]
            if all(name in rates for name in names):
                continue
            # The batch as a whole, also where a part of it is known: so it samples what an unbroken measurement would.
            groups = sample_groups(
                vlm, store, batch, group_size=curriculum.rollouts, temperature=settings.temperature,
                max_new_tokens=settings.max_new_tokens, seed=stable_hash("pass rates", seed, names[0]) >> 2,
            )  # fmt: skip
            for name, group in zip(names, groups):
                if name not in rates:
                    rates[name] = sum(j.reward for j in group.judgements) / len(group.judgements)
                    line = {"name": name, "task": group.sample.task, "rate": round(rates[name], 6)}
                    file.write(json.dumps(line) + "\n")
            file.flush()
    kept = frozenset(name for name, rate in rates.items() if curriculum.lowest <= rate <= curriculum.highest)
    found = Counter("easy" if rate > curriculum.highest else "hard" for n, rate in rates.items() if n not in kept)
    say(f"rlvr: {len(kept):,} of {len(rates):,} prompts teach; {found['easy']:,} too easy, {found['hard']:,} too hard")
    if not kept:
        raise LinesideError(
            f"no prompt has a mean reward from {curriculum.lowest:g} to {curriculum.highest:g} ({path}): widen "
            "rlvr.curriculum, or leave it out"
        )
    return kept


def _prompts(mixture: Mixture) -> Iterator[Sample]:
    for part in mixture.parts:
        for prompt in shards.read_samples(part.folder, kind="prompt", split="train"):
            if not mixture.vouched or by_record(prompt.target):
                yield prompt


def _read(path: Path) -> dict[str, float]:
    """The rates of a file; what follows a line that a kill has cut off is measured again."""
    rates: dict[str, float] = {}
    if not path.exists():
        return rates
    whole = 0
    with open(path, "rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            try:
                entry = json.loads(line)
                rates[str(entry["name"])] = float(entry["rate"])
            except (ValueError, KeyError, TypeError):
                raise LinesideError(
                    f"{path}: not a file of pass rates; delete it to have them measured again"
                ) from None
            whole += len(line)
    with open(path, "r+b") as file:
        file.truncate(whole)
    return rates
