"""The folder of a run, and what it began with: recipe, budgets, data and checkpoints. `train` fills it.

A run goes on only with what it began with. Settings that have not shaped anything yet may change.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from lineside.data.mixture import Mixture, Part
from lineside.data.store import sample_shards
from lineside.errors import LinesideError
from lineside.files import write_atomic
from lineside.model.checkpoint import dtype_of
from lineside.progress import say
from lineside.recipe import Recipe, Sft, differences, dump_recipe, load_run_recipe
from lineside.runtime import Runtime, compute_dtype, dtype_name, find_device
from lineside.stages import PARTS, STAGES, entry_of
from lineside.training.budget import Budget, by_clock, read_budget
from lineside.training.controls import FILE as SAMPLES
from lineside.training.controls import JOURNAL, minutes_of
from lineside.training.lineage import changed_inputs, changed_parent, forget_inputs
from lineside.training.preflight import checkpoint_of, data_problems, recipe_problems, refuse


@dataclass
class RunFolder:
    """A recipe and the folder that it is run in."""

    recipe: Recipe
    folder: Path
    last: str = STAGES[-1]  # stage to train
    labelled: str = "samples"  # folder of the samples, unless they are the user's own

    def begin(self) -> None:
        """Report all errors of the recipe at once. Write the recipe down, or check that the run began with the same
        one."""
        if not self.stages:
            raise LinesideError(f"stages={list(self.recipe.stages)} leaves nothing to train up to {self.last}")
        data = data_problems(self.recipe, self.data, self.stages) if self.has_samples else ()
        paths = recipe_problems(self.recipe, self.stages, assembled=self.first.exists(), labelled=self.has_samples)
        refuse(chain(paths, data, self.other_parents()))
        path = self.folder / "recipe.yaml"
        say(f"{self.folder}: computing on {self.runtime.line()}")
        if path.exists():
            changed = [
                c
                for c in differences(self.as_run(load_run_recipe(path)), self.as_run(self.recipe))
                if self.fixed(c.split(":")[0])
            ]
            if changed:
                raise LinesideError(
                    f"{self.folder} began with another recipe: {'; '.join(changed)}. "
                    "Give this run another name (name=...), or delete the folder to start over."
                )
            self.check_inputs()
            say(f"{self.folder}: continuing")
        self.write_recipe()

    @functools.cached_property
    def runtime(self) -> Runtime:
        """Where the run computes. If the recipe leaves the number format open, a run keeps the one that it began with.
        Raises LinesideError for a device that is not there."""
        device, dtype, path = find_device(self.recipe.device), self.recipe.dtype, self.folder / "recipe.yaml"
        if dtype == "auto" and path.exists() and any(map(self.begun, ("parts", *STAGES))):
            dtype = load_run_recipe(path).dtype
        known = dtype == "auto" and self.first.exists()
        return Runtime(device, dtype_of(self.first) if known else compute_dtype(dtype, device), self.recipe.seed)

    def budgets(self, recipe: Recipe) -> dict[str, Budget]:
        """The measured budgets of the sections of a recipe that are given in minutes, as far as they are known."""
        nano = Sft(max_minutes=recipe.parts.nano.max_minutes, max_tokens=recipe.parts.nano.max_tokens)
        sections = {"parts": nano, **{stage: recipe.section(stage) for stage in recipe.stages}}
        minutes = {key: by_clock(settings) for key, settings in sections.items()}
        minutes |= {control: minutes_of(recipe, self.folder, control) for control in recipe.trained_controls}
        found = {key: read_budget(self.folder / key, limit) for key, limit in minutes.items()}
        return {key: budget for key, budget in found.items() if budget is not None}

    def as_run(self, recipe: Recipe) -> Recipe:
        """The recipe with measured tokens or steps in place of minutes, and with the device and number format that auto
        stands for: with its seed it gives the model again."""
        changes: dict[str, object] = {"device": self.runtime.device.type}
        if recipe.dtype == "auto":
            changes["dtype"] = dtype_name(self.runtime.dtype)
        for key, budget in self.budgets(recipe).items():
            section = recipe.parts.nano if key == "parts" else recipe.section(key)
            section = section.model_copy(update={f"max_{budget.unit}": budget.number})
            changes[key] = recipe.parts.model_copy(update={"nano": section}) if key == "parts" else section
        return recipe.model_copy(update=changes)

    def write_recipe(self) -> None:
        """Write the recipe as run, with the speeds by which its minutes were converted."""
        lines = [
            f"# {'parts.nano' if key == 'parts' else key}: {b.line()}\n" for key, b in self.budgets(self.recipe).items()
        ]
        write_atomic(self.folder / "recipe.yaml", "".join(lines) + dump_recipe(self.as_run(self.recipe)))

    @property
    def stages(self) -> list[str]:
        """The stages to train, in order."""
        chosen = (*self.recipe.stages, *self.recipe.trained_controls)
        return [stage for stage in STAGES[: STAGES.index(self.last) + 1] if stage in chosen]

    def begun(self, stage: str) -> bool:
        """Whether a stage has a saved state or result, or a control its samples. A stage killed before its first save
        has none."""
        folder = self.folder / stage
        made = ("checkpoint", SAMPLES, f"samples*/{JOURNAL}", "state/step-*")
        return any(any(folder.glob(name)) for name in made)

    def fixed(self, key: str) -> bool:
        """Whether a setting has already shaped a part of this run, so that it must not change."""
        section = key.split(".")[0]
        begun = [stage for stage in (PARTS, *STAGES) if self.begun(stage)]
        made = self.data != self.recipe.data.samples and (self.has_samples or (self.folder / "frames").exists())
        if section in STAGES:
            return any(section in entry_of(stage).sections for stage in begun if stage != PARTS)
        if section == "lora":
            return any("lora" in self.recipe.trained_parts(stage) for stage in begun if stage != PARTS)
        if section == "evaluate":
            return any((self.folder / "evaluation").glob("*.json"))
        if section in ("parts", "dtype"):
            return bool(begun)
        # A run may go on elsewhere, with more or less room, and without a sample that stopped it.
        if key in ("device", "features_gb", "data.leave_out"):
            return False
        return bool(begun) or made

    def check_inputs(self) -> None:
        """Check whether the data are the same as when the run began.

        Raises LinesideError if other data were used for what is already trained. Before training, changed samples are
        checked again.
        """
        if what := changed_inputs(self.folder, self.recipe, self.data):
            if any(map(self.begun, (PARTS, *STAGES))):
                raise LinesideError(
                    f"{self.folder}: its data have changed since it began: {what}. Its models and evaluations come "
                    "from the earlier data: put them back, or give this run another name (name=...)"
                )
            say(f"{self.folder}: its data have changed, and nothing is trained yet: they are checked again: {what}")
            forget_inputs(self.folder)

    def parent(self, stage: str) -> Path:
        """The checkpoint that a stage starts from, or the adapter that it goes on with. A control starts where stage 3
        does."""
        entry, lora = entry_of(entry_of(stage).slot), "lora" in self.recipe.trained_parts(stage)
        if (path := self.recipe.section(entry.name).from_) is not None:
            return checkpoint_of(path, lora=lora)
        before = entry.parent
        while before != PARTS and before not in self.recipe.stages:
            before = entry_of(before).parent
        found = checkpoint_of(self.folder / before, lora=lora)
        return found if found != self.folder / before else found / "checkpoint"

    @property
    def first(self) -> Path:
        """The checkpoint before any training: the parts, or the one that the first stage starts from."""
        return self.parent(self.recipe.first)

    def other_parents(self) -> Iterator[str]:
        """Stages whose starting checkpoint has changed or is missing."""
        for stage in filter(self.begun, self.stages):
            if what := changed_parent(self.folder / stage, parent := self.parent(stage)):
                yield (
                    f"{self.folder / stage} was trained from {parent}, which has changed ({what}): put the "
                    f"earlier one back, or delete {self.folder / stage} and what was trained from it"
                )

    @property
    def data(self) -> Path:
        """Folder of the samples."""
        return self.recipe.data.samples or self.folder / self.labelled

    @property
    def has_samples(self) -> bool:
        """Whether that folder holds any."""
        return self.data.is_dir() and bool(sample_shards(self.data))

    @property
    def mixed_in(self) -> list[Path]:
        """The other folders of samples that any stage trains on, each once."""
        return list(dict.fromkeys(mixed.samples for mixed in self.recipe.data.mix))

    def mixture(self, stage: str) -> Mixture:
        """What a stage trains on: the run's own samples and what the recipe mixes in."""
        data = self.recipe.data
        mixed = (Part(m.samples, m.weight, m.even) for m in data.mix if stage in m.stages)
        return Mixture((Part(self.data), *mixed), data.augment, without=frozenset(data.leave_out))
