"""Bad numbers: the samples behind a step whose loss or gradient is not finite, for a person to look at.

A pack with such numbers is cut in two until single responses are left (`packing.split`): attention carries a NaN of one
response to all others of its pack, so only a response that is computed alone can be judged. That takes the time of a
few steps, once, before the run stops.
"""

from __future__ import annotations

import json
import math
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lineside.errors import CheckFailed
from lineside.files import write_atomic
from lineside.images import image_key, image_suffix
from lineside.model.tree import NONE, Node, Pack
from lineside.model.vlm import VLM, Features
from lineside.runtime import ON_CPU, Runtime
from lineside.training.losses import Metrics
from lineside.training.packing import split
from lineside.types import Group, Image, Rollout

FOLDER, FILE = "not_finite", "responses.jsonl"  # in the folder of a stage
PICTURES = 8  # most pictures that each rank keeps
TEXT = 2000  # most characters of a response that are kept
NAMED = 20  # samples that the message names
Loss = Callable[[Pack, Features, slice], tuple[Tensor, Metrics]]


class NotFinite(CheckFailed):
    """A step was not taken, because its loss or its gradient is not finite."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A response of a step that was not taken. `loss`: mean cross-entropy of its tokens, null if that is not finite.
    `finite`: whether loss and gradient are, of it alone or of a part of its pack."""

    sample: str  # its id
    pictures: tuple[str, ...]
    response: str
    tokens: int
    loss: float | None
    finite: bool
    file: str | None = None  # its first picture, beside this row


@dataclass(frozen=True, slots=True)
class Found:
    """A response with the pictures that it is about."""

    scored: Scored
    images: tuple[Any, ...]


def responses(pack: Pack, images: Sequence[Any]) -> Iterator[tuple[Node, tuple[Any, ...]]]:
    """The nodes of a pack with targets, in the order of its targets, each with the pictures above it."""
    left = iter(images)

    def below(node: Node, above: tuple[Any, ...]) -> Iterator[tuple[Node, tuple[Any, ...]]]:
        seen = (*above, *islice(left, len(node.images)))
        if any(role != NONE for role in node.roles):
            yield node, seen
        for child in node.children:
            yield from below(child, seen)

    for tree in pack.trees:
        yield from below(tree, ())


def examine(
    vlm: VLM, pack: Pack, features: Features, images: Sequence[Any], loss_of: Loss, start: int = 0
) -> list[Found]:
    """Every response of a pack with its loss. `images`: the pictures of the features. `start`: the number of its first
    target among those of the step.

    Out of memory counts as not finite, so that the pack is cut."""
    try:
        finite, logprobs = _computed(vlm, pack, features, loss_of, slice(start, start + len(pack.target)))
    except torch.OutOfMemoryError:
        finite, logprobs = False, torch.full((len(pack.target),), math.nan)
    if not finite and (halves := split(vlm, pack, features)):
        found = []
        for half, seen in halves:
            found += examine(vlm, half, seen, [images[i] for i in half.images], loss_of, start)
            start += len(half.target)
        return found
    found, first = [], 0
    for node, shown in responses(pack, images):
        tokens = sum(role != NONE for role in node.roles)
        loss = -float(logprobs[first : first + tokens].mean())
        first += tokens
        text = vlm.render.decode(node.tokens)[:TEXT]
        scored = Scored(
            node.name, tuple(map(_name, shown)), text, tokens, loss if math.isfinite(loss) else None, finite
        )
        found.append(Found(scored, shown))
    return found


def _computed(vlm: VLM, pack: Pack, features: Features, loss_of: Loss, place: slice) -> tuple[bool, Tensor]:
    """Whether loss and gradient of a pack are finite; and (M,) the log-probabilities of its targets, on the CPU."""
    seen: list[Tensor] = []
    hook = vlm.register_forward_hook(lambda _, given, out: seen.append(out.logprobs.detach()))
    try:
        loss, _ = loss_of(pack, features, place)
    finally:
        hook.remove()
    weights = [weight for weight in vlm.parameters() if weight.requires_grad]
    gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    finite = all(bool(torch.isfinite(one).all()) for one in (loss, *gradients) if one is not None)
    return finite, seen[-1].cpu()


def _name(image: Any) -> str:
    """What a person finds a picture by."""
    return (image.path or image_key(image.bytes)) if isinstance(image, Image) else "a sketch"


def keep(folder: Path, step: int, found: Sequence[Found], runtime: Runtime) -> list[Scored]:
    """Write the responses of all ranks to `folder`, those that are not finite first, with the pictures of these.
    Returns them. What an earlier stop has left there is removed."""
    runtime.first(lambda: shutil.rmtree(folder, ignore_errors=True))
    own, kept = [], 0
    for one in found:
        scored = asdict(one.scored)
        shown = next((image for image in one.images if isinstance(image, Image)), None)
        if shown is not None and not one.scored.finite and kept < PICTURES:
            kept += 1
            scored["file"] = f"picture-{runtime.rank}-{kept}{image_suffix(shown.bytes)}"
            write_atomic(folder / scored["file"], shown.bytes)
        own.append(scored)
    told = [Scored(**{**row, "pictures": tuple(row["pictures"])}) for rows in runtime.exchange(own) for row in rows]
    told.sort(key=lambda row: (row.finite, -(row.loss or 0.0)))
    rows = [{"step": step, **asdict(row)} for row in told]
    runtime.first(lambda: write_atomic(folder / FILE, "".join(json.dumps(row) + "\n" for row in rows)))
    return told


def told(
    label: str, lower: str, step: int, wrong: str, rows: Sequence[Scored], folder: Path, *, saved: bool = True
) -> str:
    """The message of a step that is not taken. `lower`: the settings to lower. `folder`: of the stage. `saved`: whether
    the step before it can be gone on from; between two updates on the same rollouts it cannot."""
    bad = [row for row in rows if not row.finite]
    names = list(dict.fromkeys(row.sample for row in bad))
    kept = "Weights and optimiser are as before it" + (
        f"; the state of step {step - 1:,} is saved" if saved and step > 1 else ""
    )
    where = f"{folder / FOLDER / FILE} lists the {len(rows):,} responses of the step, with their losses"
    again = (
        f"start the stage over with a lower {lower}: delete {folder} and run again"
        if step > 1 else f"run again with a lower {lower}"
    )  # fmt: skip
    if not bad:
        odd = "Alone each of its responses is finite, so the numbers of the whole step are too large"
        advice = f"Run the same command again; if it stops here again, {again}"
    elif 2 * len(names) > len({row.sample for row in rows}):
        odd = f"{len(bad):,} of them are not finite: training has diverged"
        advice = again[0].upper() + again[1:]
    else:
        odd = (
            f"{len(bad):,} of them are not finite: of the samples {_listed(names)}, whose pictures lie beside that file"
        )
        on = f" goes on after {f'step {step - 1:,}' if saved else 'the last saved step'} and" if step > 1 else ""
        setting = shlex.quote(f"data.leave_out={json.dumps(names[:NAMED], ensure_ascii=False)}")
        advice = (
            f"Look at them. The same command with {setting} (and what you left out before){on} leaves them out; if "
            f"they look right, {again}"
        )
    return f"{label}: step {step:,} is not taken: {wrong}. {kept}. {where}. {odd}. {advice}"


def _listed(names: Sequence[str]) -> str:
    """The first NAMED names, and how many more there are."""
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED:,} more" if len(names) > NAMED else "")


def check_rollouts(label: str, groups: Sequence[Group], folder: Path, step: int = 1, runtime: Runtime = ON_CPU) -> None:
    """Raises NotFinite if the policy's own log-probability of a token is not finite: its rewards would all be alike,
    and training would go on and learn nothing. All rollouts are then written down as the responses of `step` in the
    stage's `folder`. Every rank gives the same groups."""
    rollouts = [(group, rollout) for group in groups for rollout in group.rollouts]
    bad = [group.sample.id for group, rollout in rollouts if not math.isfinite(sum(rollout.sampler_logprobs))]
    if bad:
        own = rollouts if runtime.rank == 0 else []
        keep(folder / FOLDER, step, [_sampled(group, rollout) for group, rollout in own], runtime)
        raise NotFinite(
            f"{label}: {len(bad):,} of {len(rollouts):,} rollouts have log-probabilities that are not finite, those of "
            f"the samples {_listed(list(dict.fromkeys(bad)))}. Step {step:,} is not taken with them. "
            f"{folder / FOLDER / FILE} lists all rollouts, and the pictures lie beside that file. Of few samples: look "
            'at their pictures; "data.leave_out=[...]" leaves samples out. Of most: the model is damaged or its '
            "numbers overflow; try dtype=fp32, or train the stage before again with a lower learning rate"
        )


def _sampled(group: Group, rollout: Rollout) -> Found:
    """A rollout with the sampler's own log-probabilities as its loss."""
    loss = -sum(rollout.sampler_logprobs) / max(1, len(rollout.tokens))
    finite, shown = math.isfinite(loss), group.sample.images
    scored = Scored(
        group.sample.id, tuple(map(_name, shown)), rollout.text[:TEXT], len(rollout.tokens), loss if finite else None,
        finite,
    )  # fmt: skip
    return Found(scored, shown)
