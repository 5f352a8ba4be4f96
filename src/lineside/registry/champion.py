"""The champion of a cell, or another model, as a start for training: its files, and what it was trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lineside.data.store import sample_shards
from lineside.errors import LinesideError
from lineside.model.checkpoint import weights_of
from lineside.recipe import Rates, Recipe, load_run_recipe
from lineside.registry import intake
from lineside.registry.listing import RECIPE
from lineside.registry.store import ALL_CELLS, DATABASE, Registry
from lineside.training.lineage import ancestry, read_lineage, weights_digest


@dataclass(frozen=True, slots=True)
class Champion:
    """The model to start from. `recipe`: of its run, if known. `suites`: folders of the registry's suites. `name`: in
    the registry; None: it is a folder."""

    label: str
    name: str | None
    checkpoint: Path
    weights: str
    recipe: Recipe | None
    suites: tuple[Path, ...] = ()

    @property
    def trained_on(self) -> tuple[Path, ...]:
        """The folders of samples that its recipe names. Raises LinesideError if nothing is known, or samples are
        gone."""
        if self.recipe is None:
            raise LinesideError(
                f"{self.label}: nothing says what it was trained on, and without old data beside the new it forgets: "
                "name the old samples (--old FOLDER), or do without (--replay 0)"
            )
        data = self.recipe.data
        folders = (data.samples or self.recipe.folder / "samples", *(mixed.samples for mixed in data.mix))
        found = tuple(dict.fromkeys(folders))
        if missing := [str(folder) for folder in found if not (folder.is_dir() and sample_shards(folder))]:
            raise LinesideError(
                f"{self.label} was trained on {', '.join(missing)}, and no samples are there now (seen from "
                f"{Path.cwd()}): put them back, name what to replay (--old FOLDER), or do without (--replay 0)"
            )
        return found

    @property
    def digests(self) -> frozenset[str]:
        """The digests of all folders of samples that it or a model before it was trained on."""
        return frozenset(hash for one in self._lineage() for hash in one.get("data", {}).values())

    @property
    def first_rates(self) -> Rates | None:
        """The rates of the first stage 2 among its ancestors; None if none is known."""
        sfts = [one["settings"]["sft"]["learning_rate"] for one in self._lineage() if one.get("stage") == "sft"]
        return Rates.model_validate_json(json.dumps(sfts[-1])) if sfts else None

    def _lineage(self) -> list[Mapping[str, Any]]:
        try:
            return list(ancestry(read_lineage(self.checkpoint)))
        except (KeyError, TypeError):
            raise LinesideError(
                f"{self.checkpoint}/lineage.json: not what lineside writes; delete it: the model works without it"
            ) from None


def find_champion(model: str, registry: Path, cell: str = ALL_CELLS) -> Champion:
    """The model that a name in the registry, NAME@VERSION or a folder means; a name comes before a folder.

    Raises LinesideError for one that is not there, or whose files are not whole.
    """
    known = (registry / DATABASE).is_file()
    with Registry(registry) if known else nullcontext() as opened:
        named = opened is not None and model.partition("@")[0] in opened.names()
    if not named and Path(model).is_dir():
        found = intake.find(Path(model))
        weights_of(found.checkpoint)  # opens every file of weights
        recipe = load_run_recipe(found.run / RECIPE) if found.run else None
        return Champion(str(found.checkpoint), None, found.checkpoint, weights_digest(found.checkpoint), recipe)
    if not known:
        raise LinesideError(
            f"{model}: no such folder, and no registry in {registry}: expected a checkpoint, a run, or a name in a "
            "registry (--registry)"
        )
    with Registry(registry) as opened:
        own = opened.champion(model, cell) if cell else None
        version = own.version if own else opened.version(model)
        item = opened.item(version.model)
        checkpoint = opened.check(item, version.label)
        recipes = [opened.item(hash) for role, hash in opened.sources(version.model) if role == "recipe"]
        recipe = next(
            (load_run_recipe(opened.check(each, "its recipe") / RECIPE) for each in recipes if each.kept), None
        )
        suites = tuple(opened.files(each) for each in opened.items("suite") if each.kept)
    return Champion(version.label, version.name, checkpoint, item.about["weights"], recipe, suites)
