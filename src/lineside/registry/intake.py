"""What a run or a checkpoint brings into the registry: the model, its recipe, evaluations, suites, and its lineage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lineside.data.store import SUMMARY, read_samples, sample_shards, write_samples
from lineside.data.suite import suite, suite_digest
from lineside.errors import LinesideError
from lineside.files import fingerprint
from lineside.judgement.forgetting import PROBED, choose_captions
from lineside.judgement.schema import Evaluation, read_evaluation, rows_path
from lineside.model.checkpoint import weights_of
from lineside.model.config import read_config
from lineside.progress import say
from lineside.recipe import load_run_recipe
from lineside.registry.listing import RECIPE
from lineside.registry.manifest import files_below, problems
from lineside.registry.store import Item, Registry, Staged, Version, now
from lineside.stages import LINE
from lineside.training.lineage import ancestry, read_lineage, weights_digest


@dataclass(frozen=True, slots=True)
class Found:
    """A checkpoint, and the run and stage that it lies in, if it does."""

    checkpoint: Path
    run: Path | None = None
    stage: str | None = None


@dataclass(frozen=True, slots=True)
class Registered:
    """What was registered. `new`: whether the version is."""

    version: Version
    new: bool
    evaluations: int
    suites: int


def find(path: Path) -> Found:
    """The checkpoint that a path means: of a run its last stage's. Raises LinesideError if there is none."""
    if (path / RECIPE).is_file():
        done = [stage for stage in LINE if (path / stage / "checkpoint" / "config.json").is_file()]
        if not done:
            raise LinesideError(f"{path}: a run without a trained stage; `lineside train` trains them")
        return Found(path / done[-1] / "checkpoint", path, done[-1])
    checkpoint = path / "checkpoint" if (path / "checkpoint" / "config.json").is_file() else path
    read_config(checkpoint)
    stage = checkpoint.resolve().parent
    if checkpoint.name == "checkpoint" and (stage.parent / RECIPE).is_file():
        return Found(checkpoint, stage.parent, stage.name)
    return Found(checkpoint)


def register(registry: Registry, found: Found, name: str, evaluations: Sequence[Path] = ()) -> Registered:
    """Bring a model and what belongs to it into the registry, in one step.

    `evaluations`: files beside those of its run. Raises LinesideError for a checkpoint, evaluation or lineage that
    cannot be read, for a suite that is not the one that was evaluated, and if it cannot be written.
    """
    weights_of(found.checkpoint)  # opens every file of weights
    own = _of_run(found)
    judged = {path: _of_these_weights(path, found.checkpoint) for path in (*own, *evaluations)}
    about = _about(found)
    with registry.staging() as place:
        model = registry.stage(place, "model", files_below(found.checkpoint), about)
        recipe = _recipe(registry, place, found)
        suites = _suites(registry, place, found, [judged[path] for path in own])
        results = [_evaluation(registry, place, path, evaluation) for path, evaluation in judged.items()]
        with registry.transaction():
            came = [(f"data {key}", hash) for key, hash in about["data"].items()]
            for key, hash in about["data"].items():
                registry.note(Item(hash, "data", {"name": key, "run": about["run"]}, 0, False, now()))
            if recipe is not None:
                came.append(("recipe", registry.put(recipe).hash))
            for staged in suites:
                registry.put(staged)
            registry.put(model, came)
            for staged in results:
                registry.put(staged, [("model", model.item.hash), *_suite_of(registry, staged)])
            version, new = registry.add_version(name, model.item.hash)
    return Registered(version, new, len(results), len(suites))


def add_evaluation(registry: Registry, model: str, path: Path) -> Item:
    """Keep an evaluation of a registered model, given by its hash. Raises LinesideError for a file that is none."""
    with registry.staging() as place:
        staged = _evaluation(registry, place, path, read_evaluation(path))
        with registry.transaction():
            return registry.put(staged, [("model", model), *_suite_of(registry, staged)])


def _suite_of(registry: Registry, evaluation: Staged) -> list[tuple[str, str]]:
    """The kept suite that an evaluation is of, as its source."""
    digest = evaluation.item.about["digest"]
    return [("suite", item.hash) for item in registry.items("suite") if item.about["digest"] == digest][-1:]


def _about(found: Found) -> dict[str, Any]:
    lineage = read_lineage(found.checkpoint)
    try:
        chain = list(ancestry(lineage))
        newest_first = [str(one["stage"]) for one in chain]
        return {
            "run": found.run.resolve().name if found.run else None,
            "stage": found.stage,
            "stages": newest_first[::-1] or ([found.stage] if found.stage else []),
            "weights": weights_digest(found.checkpoint),
            "ancestors": [str(one["parent"]["weights"]) for one in chain],
            "data": {key: hash for one in reversed(chain) for key, hash in one["data"].items()},
            "parts": chain[0]["parts"] if chain else None,
            "trained": chain[0]["date"] if chain else None,
            "code": chain[0]["code"] if chain else None,
        }
    except (KeyError, TypeError, AttributeError):
        raise LinesideError(
            f"{found.checkpoint}/lineage.json: not what lineside writes; delete it: the model works without it"
        ) from None


def _of_run(found: Found) -> list[Path]:
    """The evaluations of a stage in its run."""
    if found.run is None:
        return []
    return sorted((found.run / "evaluation").glob(f"{found.stage}-*-*.json"))


def _of_these_weights(path: Path, checkpoint: Path) -> Evaluation:
    """An evaluation that was made with a checkpoint. Raises LinesideError for one of other weights."""
    evaluation = read_evaluation(path)
    made_with = evaluation.provenance.checkpoint  # evaluations of before 2026-11-30 do not say
    if made_with is not None and made_with != fingerprint(checkpoint):
        raise LinesideError(
            f"{path} is the evaluation of other weights than {checkpoint}: evaluate it again, or move the file away"
        )
    return evaluation


def _recipe(registry: Registry, place: Path, found: Found) -> Staged | None:
    if found.run is None:
        return None
    recipe = load_run_recipe(found.run / RECIPE)
    return registry.stage(place, "recipe", {RECIPE: found.run / RECIPE}, {"name": recipe.name, "seed": recipe.seed})


def _evaluation(registry: Registry, place: Path, path: Path, found: Evaluation) -> Staged:
    rows = rows_path(path)
    if not rows.is_file():
        raise LinesideError(f"{rows}: no such file; it belongs to {path.name}, and a paired comparison needs it")
    about = {
        "name": found.name, "stage": found.stage, "split": found.split, "mode": found.mode, "n": found.n,
        "by": f"{found.decoding.engine} {found.decoding.weights}",
        "exact": found.exact, "interval": list(found.interval), "simulated": found.simulated,
        "digest": found.provenance.data, "date": found.provenance.date,
    }  # fmt: skip
    return registry.stage(
        place, "evaluation", {f"{found.name}.json": path, rows_path(Path(found.name)).name: rows}, about
    )


def _suites(registry: Registry, place: Path, found: Found, evaluations: Sequence[Evaluation]) -> list[Staged]:
    """The questions of the run's evaluations, if they are not kept whole yet, and some captions of their splits.

    Raises LinesideError where the samples are not those that were evaluated.
    """
    wanted = {one.provenance.data: one for one in evaluations}
    for item in registry.items("suite"):
        if item.about["digest"] in wanted and item.kept and not problems(registry.path(item), item.hash):
            del wanted[item.about["digest"]]
    if found.run is None or not wanted:
        return []
    samples = load_run_recipe(found.run / RECIPE).data.samples or found.run / "samples"
    if not samples.is_dir():
        say(f"{samples}: no samples any more, so the suites are not kept: later models cannot be asked the same")
        return []
    staged = []
    for digest, one in wanted.items():
        shards = sample_shards(samples, kind="qa", split=one.split)
        asked = suite(read_samples(samples, kind="qa", split=one.split), split=one.split, limit=one.n)
        if suite_digest(asked.questions) != digest:
            raise LinesideError(
                f"{samples}: the suite {one.split} has changed since {one.name} was evaluated on it: put the earlier "
                "samples back, or evaluate again"
            )
        captions = read_samples(samples, kind="caption", split=one.split)
        write_samples(told := place / f"captions-{digest}", choose_captions(captions, split=one.split, limit=PROBED))
        files = {path.name: path for path in (*shards, samples / SUMMARY, *told.glob("*")) if path.is_file()}
        about = {"split": one.split, "digest": digest, "n": one.n, "scenes": one.provenance.scenes}
        staged.append(registry.stage(place, "suite", files, {**about, "run": found.run.resolve().name}))
    return staged
