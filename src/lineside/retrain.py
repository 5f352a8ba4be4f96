"""retrain: from the champion, new samples, outcomes and a number of minutes to a challenger.

It writes a recipe into the challenger's run (retrain.yaml) and runs it as `lineside train` does: stage 2 on new
answers, stage 3 where only the truth is known, both with old samples beside the new ones, so that little is forgotten.
Killed and run again it goes on. With a registry the challenger is registered, and the gate may judge it.

Left out: labelling (`lineside label`, `lineside outcomes`), and stage 1, since encoder and projector have met."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lineside.data.checks import check_apart
from lineside.data.contents import Contents, agree, contents_of
from lineside.data.regions import check_same_roi, roi_of_samples
from lineside.data.store import sample_shards
from lineside.errors import LinesideError
from lineside.files import write_atomic
from lineside.gate import gate as run_gate
from lineside.judgement.schema import read_evaluation
from lineside.judgement.typed import read_forms
from lineside.machine import launched
from lineside.model.config import read_config
from lineside.models import register
from lineside.plan import free_bytes, this_machine
from lineside.progress import say
from lineside.recipe import Data, Parts, Recipe, dump_recipe, load_recipe
from lineside.registry.champion import Champion, find_champion
from lineside.registry.listing import RECIPE
from lineside.registry.promotion import of_cell
from lineside.registry.store import ALL_CELLS, DATABASE, NAME, Registry, check_name
from lineside.registry.suites import every_suite
from lineside.strict import read_record
from lineside.train import train
from lineside.training.lineage import samples_digest
from lineside.training.retraining import STAGES, Given, plan_retraining
from lineside.training.retraining_words import in_words
from lineside.training.skeleton import skeleton

RECIPE_OF, REQUEST = "retrain.yaml", "retrain.json"
PLANNED = {  # settings that a retraining decides, and what says them instead
    "name": "--out",
    "stages": "--stages",
    "controls": "`lineside train` on the recipe that it writes",
    "data.samples": "the folders of SAMPLES and --outcomes",
    "data.simulate": "the folders of SAMPLES and --outcomes",
    "data.mix": "--old and --replay",
    "parts": "CHAMPION",
    "sft.from": "CHAMPION",
    "rlvr.from": "CHAMPION",
}


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for. `model`: a name in the registry (its champion), NAME@VERSION, or the folder of a checkpoint or
    run. `new`: folders of samples. `outcomes`: the same, of prompts whose truth came later. `old`: what to replay;
    None: what the champion was trained on. `replay`, `stages`, `lora`: None: chosen. `changes`: settings of the recipe,
    "key=value"."""

    model: str
    new: tuple[Path, ...]
    outcomes: tuple[Path, ...] = ()
    old: tuple[Path, ...] | None = None
    minutes: float = 10.0
    replay: float | None = None
    stages: tuple[str, ...] | None = None
    lora: bool | None = None
    changes: tuple[str, ...] = ()

    def told(self, champion: Champion) -> dict[str, Any]:
        """As plain data, with the champion that is meant."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self), default=str))
        return {**plain, "model": champion.label, "weights": champion.weights}


@dataclass(frozen=True, slots=True)
class Retrained:
    """The challenger: its run, its checkpoint, and its version if it was registered."""

    run: Path
    checkpoint: Path
    version: str | None = None


def retrain(
    request: Request,
    *,
    out: Path | None = None,
    registry: Path = Path("registry"),
    cell: str = ALL_CELLS,
    name: str | None = None,
    dry_run: bool = False,
    gate: bool = False,
) -> Retrained | None:
    """Train a challenger in the run folder `out` (None: runs/MODEL-FOLDER). It is registered as `name` (None: the
    champion's). Returns None after a `dry_run`, which only says what would be done.

    Raises LinesideError for bad input, for minutes that are too few, and for a folder of another run or request; as the
    gate does with `gate`.
    """
    if launched().count > 1:
        raise LinesideError(
            "retrain is one process. It writes its recipe before it trains: stop it then, train with `torchrun -m "
            "lineside train OUT/retrain.yaml`, and run the same retrain again: it evaluates and registers"
        )
    started = time.monotonic()
    champion = find_champion(request.model, registry, cell)
    name = name if name is not None else champion.name
    if gate and name is None:
        raise LinesideError("--gate compares versions of a registry: give the champion by its name there, or --name")
    if name is not None:
        check_name(name)
    for change in request.changes:
        key = change.partition("=")[0].strip()
        if settled := next((one for one in PLANNED if f"{key}.".startswith(f"{one}.")), None):
            raise LinesideError(f"--set {key}: a retraining decides it by itself; say it with {PLANNED[settled]}")
    if name is not None and not dry_run:
        with Registry(registry, create=True) as opened, opened.staging(), opened.transaction():
            pass  # a registry that cannot be written is told now, not after the training
    out = out or _default_out(champion, request)
    if not NAME.fullmatch(out.name):
        raise LinesideError(f"--out {out}: its name is that of a run: expected letters, digits, dot, dash, underscore")
    told = request.told(champion)
    if not _continues(out, told):
        lines, recipe = _planned(request, champion, out)
        print("\n".join(lines))
        if dry_run:
            return None
        text = "".join(f"# {line}\n" for line in lines) + dump_recipe(recipe, defaults=False)
        write_atomic(out / RECIPE_OF, text)
        write_atomic(out / REQUEST, json.dumps(told, indent=1) + "\n")
    else:
        print("".join(line[2:] for line in (out / RECIPE_OF).open() if line.startswith("# ")), end="")
        if dry_run:
            return None
    recipe = _of_folder(load_recipe(out / RECIPE_OF), out)
    train(recipe)
    say(f"{out}: {(time.monotonic() - started) / 60:.1f} minutes; {request.minutes:g} were given")
    checkpoint = out / recipe.stages[-1] / "checkpoint"
    if name is None:
        say(f"not registered: `lineside register {out} --name NAME` brings it into a registry, with a gate")
        return Retrained(out, checkpoint)
    version = register(registry, out, name)
    command = f"lineside gate {version} --registry {registry}{of_cell(cell)}"
    say(f"{version} is the challenger: may it take the champion's place? {command}")
    for suite in _new_suites(registry, out, recipe) if recipe.data.samples in request.new else ():
        say(f"and must it be better on the new samples? {command} --better-on {suite}")
    if gate:
        run_gate(registry, version, against=champion.label if champion.name else None, cell=cell)
    return Retrained(out, checkpoint, version)


def _new_suites(registry: Path, out: Path, recipe: Recipe) -> list[str]:
    """The names in the registry of the suites on which the challenger was judged."""
    judged = (out / "evaluation").glob(f"{recipe.stages[-1]}-*-*.json")
    digests = {read_evaluation(path).provenance.data for path in judged}
    with Registry(registry) as opened:
        asked = (suite for suite in every_suite(opened) if suite.left_out is None)
        return [suite.name for suite in asked if suite.item.about["digest"] in digests]


def _default_out(champion: Champion, request: Request) -> Path:
    runs = champion.recipe.runs if champion.recipe else Path("runs")
    folders = (*request.new, *request.outcomes)
    if not folders:
        raise LinesideError("nothing new: give folders of samples (`lineside label` writes them), or --outcomes")
    first = folders[0].resolve()
    name = f"{champion.name or 'retrained'}-{first.parent.name if first.name == 'samples' else first.name}"
    return runs / re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:64]


def _old(request: Request, champion: Champion) -> tuple[Path, ...]:
    """What is replayed: as given, else what the champion was trained on."""
    if request.replay == 0.0:
        return ()
    return champion.trained_on if request.old is None else request.old


def _continues(out: Path, told: dict[str, Any]) -> bool:
    """Whether `out` holds this retraining. Raises LinesideError if it holds another one, or another run."""
    if not (out / REQUEST).exists():
        if (out / RECIPE).exists():
            raise LinesideError(f"{out}: another run, which `retrain` did not begin: give another folder with --out")
        if out.is_dir() and ((out / DATABASE).exists() or (out / "config.json").exists() or sample_shards(out)):
            raise LinesideError(f"{out} holds samples, a checkpoint or a registry: give a folder of its own with --out")
        return False
    before = read_record(dict[str, Any], out / REQUEST, "give another folder with --out")
    changed = [
        f"{key}: {before.get(key)} before, {value} now" for key, value in told.items() if before.get(key) != value
    ]
    if changed:
        raise LinesideError(
            f"{out} holds another retraining ({'; '.join(changed)}): give another folder with --out, run it as it "
            f"began, or edit and run its recipe with `lineside train {out / RECIPE_OF}`"
        )
    say(f"{out}: continuing")
    return True


def _planned(request: Request, champion: Champion, out: Path) -> tuple[list[str], Recipe]:
    """The plan in words, and the recipe."""
    new = [contents_of(folder) for folder in (*request.new, *request.outcomes)]
    old = [contents_of(folder) for folder in _old(request, champion)]
    _check_new(champion, new, old)
    check_apart([*champion.suites, *(each.folder for each in old)], [each.folder for each in new])
    parts = Parts(vlm=str(champion.checkpoint))
    recipe = champion.recipe or Recipe(name="x", data=Data(samples=champion.checkpoint), parts=parts, stages=("sft",))
    recipe = _changed(_open_again(recipe), request.changes)
    given = Given(
        label=champion.label,
        checkpoint=champion.checkpoint,
        recipe=recipe,
        rates=champion.first_rates or recipe.sft.learning_rate,
        new=tuple(new),
        old=tuple(old),
        minutes=request.minutes,
        known=frozenset(read_forms(champion.checkpoint)),
        encoded=(out.parent / "features").is_dir(),
        share=request.replay,
        stages=request.stages,
        lora=request.lora,
    )
    plan = plan_retraining(given, skeleton(parts), this_machine(recipe), out)
    plan = replace(plan, recipe=_of_folder(_changed(plan.recipe, request.changes), out))
    if plan.bytes > (free := free_bytes(out)):
        raise LinesideError(
            f"{out}: features, states and checkpoints take some {plan.bytes / 1e9:.1f} GB, and {free / 1e9:.1f} are "
            "free: make room, or give a folder on another disk with --out"
        )
    return list(in_words(given, plan)), plan.recipe


def _open_again(recipe: Recipe) -> Recipe:
    """The champion's recipe without what its own run settled: where it computed, how long, on what it was judged."""
    unlimited = {"max_steps": None, "max_tokens": None, "max_minutes": None}
    sections: dict[str, Any] = {name: recipe.section(name).model_copy(update=unlimited) for name in STAGES}
    sections["evaluate"] = recipe.evaluate.model_copy(update={"splits": ("heldout", "shifted"), "baselines": False})
    return recipe.model_copy(update={"device": "auto", "dtype": "auto", **sections})


def _of_folder(recipe: Recipe, out: Path) -> Recipe:
    """The recipe as that of the run in `out`, whatever its settings say."""
    return recipe.model_copy(update={"name": out.name, "runs": out.parent})


def _changed(recipe: Recipe, changes: Sequence[str]) -> Recipe:
    with tempfile.TemporaryDirectory() as place:
        write_atomic(path := Path(place) / RECIPE_OF, dump_recipe(recipe))
        return load_recipe(path, changes)


def _check_new(champion: Champion, new: Sequence[Contents], old: Sequence[Contents]) -> None:
    """Raises LinesideError for data that the champion has learnt already or that contradict what it knows."""
    known: dict[str, set[str]] = {task: {form.kind} for task, form in read_forms(champion.checkpoint).items()}
    for each in old:
        for task, kinds in each.forms.items():
            known.setdefault(task, set()).update(kinds)
    replayed = {each.folder.resolve() for each in old}
    given: dict[str, Path] = {}
    for each in new:
        if each.folder.resolve() in replayed or (digest := samples_digest(each.folder)) in champion.digests:
            raise LinesideError(f"{each.folder}: {champion.label} was trained on it already: give what is new")
        if (first := given.setdefault(digest, each.folder)) is not each.folder:
            raise LinesideError(f"{each.folder} holds the same samples as {first}: give one of them")
        for task, kinds in each.forms.items():
            if not agree(kinds, known.get(task, ())):
                raise LinesideError(
                    f"{each.folder}: the answers of {task} are of the kind {' and '.join(sorted(kinds))}, and "
                    f"{champion.label} has learnt it as {' and '.join(sorted(known[task]))}: give the task another name"
                )
        check_same_roi(read_config(champion.checkpoint).get("roi"), roi_of_samples(each.folder), each.folder)
