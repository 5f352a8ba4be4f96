"""The controls of stage 3: what a user would train in its place, from the same checkpoint, on the same prompts.

    traced      more of the teacher's answers with traces, as `label` wrote them to `control/`
    answers     the records' answers without traces
    rejection   the model's own answers that are right, with their traces (rejection.py)

Each control is stage 2 continued, for as many tokens as stage 3 trained on, or for as many minutes as it took
(DESIGN 8). It trains on ordinary samples, and `samples.json` in its folder says how many prompts they answer and why
the others are left out.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from lineside.data.job import CONTROL
from lineside.data.mixture import Mixture, Part, by_record
from lineside.data.store import SampleWriter, count_samples, read_samples, sample_shards
from lineside.errors import LinesideError
from lineside.files import write_atomic
from lineside.progress import say, track
from lineside.recipe import Rates, Recipe, Sft
from lineside.stages import entry_of
from lineside.strict import read_record
from lineside.training.cost import read_cost, write_cost
from lineside.training.metrics import read_metrics
from lineside.types import Sample
from lineside.verify.verifiers import answer_to, verify

FILE = "samples.json"
JOURNAL = "rollouts.jsonl"  # of the batches that were sampled, beside the samples
RATE = 0.3  # peak learning rate of a control, as a share of that of sft, unless its settings say another
FOR_EVER = 1e6  # epochs: a control ends by its tokens

# stage 3's prompts, folders to write samples to; by keyword vlm, store and recipe, for those that sample -> the account
Make = Callable[..., "Account"]

NO_TEACHER = "the teacher gave no answer"
NO_ANSWER = "their target has no answer that can be written"
UNVOUCHED = "only a teacher vouches for their target"
BY_OUTCOME = "their target comes from an outcome, which never becomes an answer of stage 2"


@dataclass(frozen=True, slots=True)
class Account:
    """What became of stage 3's prompts in a control."""

    prompts: int
    samples: int  # to train on
    left_out: Mapping[str, int] = field(default_factory=dict)  # reason -> prompts
    rollouts: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)  # of sampling, by phase
    operations: float = 0.0  # of sampling

    def line(self) -> str:
        """One line for the console."""
        left = "; ".join(f"left out {n:,}: {why}" for why, n in self.left_out.items())
        sampled = f", {self.rollouts:,} rollouts" if self.rollouts else ""
        return (
            f"{self.samples:,} samples from {self.prompts:,} prompts of stage 3{sampled}{f' ({left})' if left else ''}"
        )


def read_account(folder: Path) -> Account | None:
    """The account in a control's folder; None if its samples are not complete. Raises LinesideError for a bad file."""
    path = folder / FILE
    if not path.exists():
        return None
    return read_record(Account, path, f"delete {folder} to make the control again")


def prepare(name: str, prompts: Mixture, folder: Path, make: Make) -> Mixture:
    """What a control trains on, made by `make` of stage 3's `prompts` unless it is there. Writes the account to
    `folder`.

    Raises LinesideError if no prompt gives a sample.
    """
    made = [folder / ("samples" if n == 0 else f"samples-{n}") for n in range(len(prompts.parts))]
    sources = [part.folder / CONTROL for part in prompts.parts] if name == "traced" else made
    account = read_account(folder)
    if account is None:
        account = make(prompts, made)
        if not account.samples:
            raise LinesideError(
                f"{name}: nothing to train on: {account.line()}. Leave the control out of `controls`, or delete "
                f"{folder} and change its settings"
            )
        write_atomic(folder / FILE, json.dumps(asdict(account), indent=1) + "\n")
    say(f"{name}: {account.line()}")
    parts = (Part(there, part.weight) for there, part in zip(sources, prompts.parts) if _has_questions(there))
    return replace(prompts, parts=tuple(parts))


def _has_questions(folder: Path) -> bool:
    return folder.is_dir() and count_samples(folder, kind="qa", split="train") > 0


def traced(prompts: Mixture, made: list[Path], **_: object) -> Account:
    """The account of the teacher's answers; `label` has written the samples."""
    taught = tuple(Part(part.folder / CONTROL) for part in prompts.parts if _has_questions(part.folder / CONTROL))
    alone, total = prompts.teachers("prompt")
    taught_alone, taught_total = Mixture(taught, leave_out=prompts.leave_out).teachers("qa")
    if not prompts.vouched:
        alone = taught_alone = 0
    samples = taught_total - taught_alone
    return Account(total, samples, counted({UNVOUCHED: alone, NO_TEACHER: total - alone - samples}))


def counted(left_out: Mapping[str, int]) -> dict[str, int]:
    """The reasons that were met."""
    return {why: n for why, n in left_out.items() if n}


def answers(prompts: Mixture, made: list[Path], **_: object) -> Account:
    """Write the records' answers to the prompts of each folder of the mixture."""
    left: Counter[str] = Counter()
    total = written = 0
    for part, out in zip(prompts.parts, made):
        shutil.rmtree(out, ignore_errors=True)  # of a process that was killed
        with SampleWriter(out) as writer:
            for sample in _prompts(part.folder):
                if prompts.leaves_out(sample.id, sample.family, sample.task):
                    continue
                total += 1
                assert sample.target is not None  # checked before training
                answer = answer_to(sample.target)
                if sample.target.provenance == "outcome":
                    left[BY_OUTCOME] += 1
                elif prompts.vouched and not by_record(sample.target):
                    left[UNVOUCHED] += 1
                elif not verify(answer, sample.target).exact:
                    left[NO_ANSWER] += 1
                else:
                    writer.add(replace(sample, kind="qa", answer=answer))
        written += writer.written
    return Account(total, written, dict(left))


def _prompts(folder: Path) -> Iterator[Sample]:
    if not sample_shards(folder, kind="prompt", split="train"):
        return iter(())
    total = count_samples(folder, kind="prompt", split="train")
    return iter(track(read_samples(folder, kind="prompt", split="train"), total=total, unit="prompts", label="answers"))


def count_sampling(folder: Path) -> None:
    """Add the cost of sampling to the cost of a control, once."""
    account, cost = read_account(folder), read_cost(folder)
    if account is None or cost is None or not account.rollouts or "decode" in cost.seconds:
        return
    for phase, seconds in account.seconds.items():
        cost.spend(phase, seconds)
    cost.operations += account.operations
    write_cost(folder, cost)


def settings_of(recipe: Recipe, run: Path, name: str) -> Sft:
    """The settings of a control: those of sft, with its own rates and length.

    Raises LinesideError if it is to take as many minutes as stage 3, and those are not known.
    """
    own, rates = recipe.section(name), recipe.sft.learning_rate
    minutes = minutes_of(recipe, run, name)
    if minutes is None and own.max_tokens is None and own.equal == "minutes":
        raise LinesideError(
            f"{name}.equal=minutes: no cost.json in {run / entry_of(name).slot}: give {name}.max_tokens"
        )
    return recipe.sft.model_copy(
        update={
            "learning_rate": Rates(
                projector=own.learning_rate.projector or RATE * rates.projector,
                lm=own.learning_rate.lm or RATE * rates.lm,
                lora=own.learning_rate.lora or RATE * rates.lora,
            ),
            "epochs": FOR_EVER,
            "max_steps": None,
            "max_minutes": minutes,
            "max_tokens": None if minutes is not None else own.max_tokens or trained_tokens(run / entry_of(name).slot),
            "from_": None,
            "probe": 0,  # there are no questions of dev beside its samples
            "untraced": "off" if name == "answers" else recipe.sft.untraced,  # its samples have no traces to skip
        }
    )


def trained_tokens(stage: Path) -> int:
    """Tokens that a stage has trained on, by its log."""
    return max(1, int(sum(row.get("tokens", 0.0) for row in read_metrics(stage / "metrics.jsonl"))))


def minutes_of(recipe: Recipe, run: Path, name: str) -> float | None:
    """The minutes that a control trains: those of stage 3 less those of its own sampling. None if its length is in
    tokens, or not known yet.

    Raises LinesideError if sampling has left none.
    """
    own, cost = recipe.section(name), read_cost(run / entry_of(name).slot)
    if own.max_tokens is not None or own.equal == "tokens" or cost is None:
        return None
    account = read_account(run / name)
    sampled = sum(account.seconds.values()) / 60 if account is not None else 0.0
    if (left := cost.trained / 60 - sampled) <= 0:
        raise LinesideError(
            f"{name}: its sampling took {sampled:.1f} minutes, and stage 3 only {cost.trained / 60:.1f}: delete "
            f"{run / name} and lower {name}.max_prompts or {name}.group_size, or set {name}.equal=tokens"
        )
    return left
