"""train: from a recipe to a trained and evaluated model. A second run continues where the first stopped.

    simulate -> label -> parts -> align -> sft -> rlvr -> control, each evaluated and the report rewritten after it

With many simulated frames, `train` first shows a few hundred of them, their questions and the baselines. A step whose
result is in the run folder is skipped; an unfinished stage continues from its saved state. The control is stage 2
continued on stage 3's prompts, with the teacher's traces, for as many tokens as stage 3 trained on: stage 3 must beat
it. Left out: training on several machines (one process computes; simulation uses every core, and several processes can
`encode`)."""

from __future__ import annotations

import functools
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path

from lineside import runtime
from lineside.align import align
from lineside.data.card import data_card
from lineside.data.checks import CHECKS, LEAKS, check_apart, inspect, thinking_tasks
from lineside.data.job import check_shard
from lineside.data.mixture import Mixture, Part
from lineside.data.regions import roi_of_samples
from lineside.data.rows import SPLITS
from lineside.data.store import count_frames_with, read_samples, sample_shards
from lineside.errors import CheckFailed, LinesideError
from lineside.evaluate import baselines_of, calibrate_confidence, dev_questions, evaluate
from lineside.files import hold
from lineside.images import decode
from lineside.judgement.audit import audit_of, headline
from lineside.judgement.baselines import Baselines, score_baselines
from lineside.judgement.calibration import Calibration
from lineside.judgement.console import (
    baselines_table,
    cost_table,
    decisions_table,
    findings_table,
    floor_table,
    percent,
    results_table,
    show,
    tasks_table,
)
from lineside.judgement.files import write_atomic
from lineside.judgement.paired import rows_by_id
from lineside.judgement.rundata import main_suite, paired_findings, read_run
from lineside.judgement.schema import STAGES, Evaluation, Mode, Row, read_evaluation
from lineside.label import CONTROL, label
from lineside.machine import give_back_memory
from lineside.model.checkpoint import dtype_of, load, save
from lineside.model.features import FeatureStore
from lineside.model.parts import assemble, calibrate, load_language_model, load_tower, new_projector
from lineside.model.vlm import VLM
from lineside.progress import say, track
from lineside.recipe import Recipe, Sft, differences, dump_recipe, load_run_recipe
from lineside.report import report
from lineside.rlvr import rlvr
from lineside.sft import sft
from lineside.simulate import simulate
from lineside.training.budget import Budget, by_clock, read_budget
from lineside.training.cost import read_cost, read_costs, write_cost
from lineside.training.dtype import compute_dtype
from lineside.training.lineage import changed_inputs, changed_parent, forget_inputs, note_inputs, note_parent
from lineside.training.metrics import read_metrics
from lineside.training.preflight import checkpoint_of, data_problems, length_problems, recipe_problems, refuse
from lineside.training.pretrain import nano_parts, pretrain, read_documents
from lineside.training.state import drop_states
from lineside.types import Image, Sample, Thinking

SHOWN = 10  # questions shown before training
LOOK = 300  # training frames of a family in a first look; only if there are more than twice as many
CALIBRATION = 64  # training pictures from which the nano encoder's feature constants are computed
CONTROL_RATE = 0.3  # the control's peak rate as a share of stage 2's; not tuned yet


def train(recipe: Recipe, *, last: str = "control") -> Path:
    """Run or continue `recipe` up to and including the stage `last`; returns the run folder.

    Raises LinesideError for bad input (everything that can be found before training is reported at once), for a run
    of another recipe or other data, and for a run that another process works on.
    """
    run = _Run(recipe, recipe.folder, last=last)
    with hold(run.folder):
        run.begin()
        run.look()
        run.frames()
        run.samples()
        run.check_inputs()
        note_inputs(run.folder, recipe, run.data)
        run.parts()
        for stage in run.stages:
            run.stage(stage)
        run.finish()
    return recipe.folder


def encode(recipe: Recipe, *, shard: tuple[int, int] | None = None) -> int:
    """Encode the pictures of a run, with the variants of training pictures, into the feature store that all runs of the
    same encoder share; returns how many were encoded. Earlier steps are done first.

    `shard` (rank, ranks): every `ranks`-th picture; the samples must exist. Raises LinesideError for bad input.
    """
    check_shard(shard)
    rank, ranks = shard or (0, 1)
    run = _Run(recipe, recipe.folder, last=recipe.stages[0])
    if ranks > 1 and not run.has_samples:
        raise LinesideError(
            f"{run.data}: no samples yet, and a shard makes none; run `lineside encode` without a shard: it makes "
            "the samples, then encodes, and can be stopped there"
        )
    if ranks == 1:  # a shard writes only features, and many processes may write to their store
        with hold(run.folder):
            run.begin()
            run.frames()
            run.samples()
    return run.encode(rank, ranks)


@dataclass
class _Run:
    """The steps of one run. Each first checks whether it is done."""

    recipe: Recipe
    folder: Path
    last: str = "control"  # stage to train
    labelled: str = "samples"  # folder of the samples, unless they are the user's own
    fitted: Baselines | None = None

    def begin(self) -> None:
        """Report all errors of the recipe at once. Write the recipe down, or check that the run began with the same
        one."""
        if self.recipe.stages[0] not in STAGES[: STAGES.index(self.last) + 1]:
            raise LinesideError(f"stages={list(self.recipe.stages)} leaves nothing to train up to {self.last}")
        data = data_problems(self.recipe, self.data, self.stages) if self.has_samples else ()
        paths = recipe_problems(self.recipe, self.stages, assembled=self.first.exists())
        refuse(chain(paths, data, self._other_parents()))
        path = self.folder / "recipe.yaml"
        if path.exists():
            changed = [
                c
                for c in differences(self.as_run(load_run_recipe(path)), self.as_run(self.recipe))
                if self._fixed(c.split(":")[0])
            ]
            if changed:
                raise LinesideError(
                    f"{self.folder} began with another recipe: {'; '.join(changed)}. "
                    "Give this run another name (name=...), or delete the folder to start over."
                )
            self.check_inputs()
            say(f"{self.folder}: continuing")
        self.write_recipe()

    def budgets(self, recipe: Recipe) -> dict[str, Budget]:
        """The measured budgets of the sections of a recipe that are given in minutes, as far as they are known."""
        nano = Sft(max_minutes=recipe.parts.nano.max_minutes, max_tokens=recipe.parts.nano.max_tokens)
        sections = {"parts": nano, **{stage: getattr(recipe, stage) for stage in recipe.stages}}
        found = {key: read_budget(self.folder / key, by_clock(settings)) for key, settings in sections.items()}
        return {key: budget for key, budget in found.items() if budget is not None}

    def as_run(self, recipe: Recipe) -> Recipe:
        """The recipe with measured tokens or steps in place of minutes: with its seed it gives the model again."""
        changes: dict[str, object] = {}
        for key, budget in self.budgets(recipe).items():
            section = recipe.parts.nano if key == "parts" else getattr(recipe, key)
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
        control = self.recipe.control and "rlvr" in self.recipe.stages
        chosen = (*self.recipe.stages, *(("control",) if control else ()))
        return [stage for stage in STAGES[: STAGES.index(self.last) + 1] if stage in chosen]

    def _begun(self, stage: str) -> bool:
        """Whether a stage has a saved state or result. A stage killed before its first save has none."""
        folder = self.folder / stage
        return (folder / "checkpoint").exists() or any((folder / "state").glob("step-*"))

    def _fixed(self, key: str) -> bool:
        """Whether a setting has already shaped a part of this run, so that it must not change."""
        section = key.split(".")[0]
        begun = [stage for stage in ("parts", *STAGES) if self._begun(stage)]
        made = self.data != self.recipe.data.samples and (self.has_samples or (self.folder / "frames").exists())
        if section in STAGES:
            return section in begun or (section == "sft" and "control" in begun)
        if section == "evaluate":
            return any((self.folder / "evaluation").glob("*.json"))
        if section in ("parts", "dtype"):
            return bool(begun)
        return bool(begun) or made

    def check_inputs(self) -> None:
        """Check whether the data are the same as when the run began.

        Raises LinesideError if other data were used for what is already trained. Before training, changed samples are
        checked again.
        """
        if what := changed_inputs(self.folder, self.recipe, self.data):
            if any(map(self._begun, ("parts", *STAGES))):
                raise LinesideError(
                    f"{self.folder}: its data have changed since it began: {what}. Its models and evaluations come "
                    "from the earlier data: put them back, or give this run another name (name=...)"
                )
            say(f"{self.folder}: its data have changed, and nothing is trained yet: they are checked again: {what}")
            forget_inputs(self.folder)

    def parent(self, stage: str) -> Path:
        """The checkpoint that a stage starts from."""
        if stage == "control":
            return self.parent("rlvr")
        if (path := getattr(self.recipe, stage).from_) is not None:
            return checkpoint_of(path)
        place = self.recipe.stages.index(stage)
        return self.folder / (self.recipe.stages[place - 1] if place else "parts") / "checkpoint"

    @property
    def first(self) -> Path:
        """The checkpoint before any training: the parts, or the one that the first stage starts from."""
        return self.parent(self.recipe.stages[0])

    def _other_parents(self) -> Iterator[str]:
        """Stages whose starting checkpoint has changed or is missing."""
        for stage in filter(self._begun, self.stages):
            if what := changed_parent(self.folder / stage, parent := self.parent(stage)):
                yield (
                    f"{self.folder / stage} was trained from {parent}, which has changed ({what}): put the "
                    f"earlier one back, or delete {self.folder / stage} and what was trained from it"
                )

    # --- data

    def look(self) -> None:
        """Show the first frames, their questions and baselines, before all frames are simulated and labelled.

        Rendered and encoded frames are reused. The baselines beside every accuracy are fitted on all frames.
        """
        data = self.recipe.data
        if data.simulate is None or data.simulate.frames.train <= 2 * LOOK or self.has_samples:
            return
        frames = data.simulate.frames.model_copy(update={"train": LOOK})
        simulated = data.simulate.model_copy(update={"frames": frames})
        few = data.model_copy(update={"simulate": simulated, "check": False})
        first = _Run(self.recipe.model_copy(update={"data": few}), self.folder, self.last, labelled="look")
        say(f"first look: {LOOK} of {data.simulate.frames.train:,} training frames of each family")
        first.frames()
        first.samples()
        first.show_baselines(first.assembled()[0])
        shutil.rmtree(first.data)

    def frames(self) -> None:
        """Simulate, unless the frames are the user's own."""
        simulated = self.recipe.data.simulate
        if simulated is None:
            return
        counts = {split: {str(f): n for f in simulated.families} for split, n in simulated.frames.model_dump().items()}
        out = self.folder / "frames"
        simulate(
            out,
            frames=counts,
            seed=self.recipe.seed,
            week=simulated.week,
            workers=self.recipe.workers,
            size=simulated.size,
        )

    def samples(self) -> None:
        """Label the frames for the three stages."""
        data = self.recipe.data
        if data.samples is None:
            source = data.table or data.frames or self.folder / "frames"
            label(
                source,
                self.data,
                tasks=data.tasks,
                teacher="table" if data.table else "sim",
                settings=data.label,
                seed=self.recipe.seed,
            )
        if self.labelled == "samples":  # in a first look a stage may have no samples
            refuse(data_problems(self.recipe, self.data, self.stages))
        self.check()
        for number, sample in enumerate(read_samples(self.data, kind="qa", split="train")):
            if number == SHOWN * 7:
                break
            if number % 7 == 0:
                say(f"  {sample.family}: {sample.question}  [{sample.trace or 'no trace'}] -> {sample.answer}")

    def check(self) -> None:
        """Validate the samples once, and keep the result as the run's data card."""
        path = self.folder / "data.json"
        if path.exists() or not self.recipe.data.check:
            return
        found = inspect(self.data, decoded=False)
        leaks = [name for name in LEAKS if found.counts[name]]
        for name in filter(found.counts.get, CHECKS):
            say(f"check: {name} ({found.counts[name]}), such as {found.problems[name][0].reason}")
        if leaks:
            raise CheckFailed(
                f"{self.data}: {', '.join(leaks)}: the model would be trained on data of a suite. `lineside validate "
                f"{self.data}` names the rows; data.label.drop_leaks=true leaves out training frames whose picture "
                "is in a suite; data.check=false trains anyway"
            )
        write_atomic(path, json.dumps(data_card(self.data, found), indent=1, ensure_ascii=False))

    @property
    def data(self) -> Path:
        """Folder of the samples."""
        return self.recipe.data.samples or self.folder / self.labelled

    @property
    def has_samples(self) -> bool:
        return self.data.is_dir() and bool(sample_shards(self.data))

    def mixture(self, stage: str) -> Mixture:
        """What a stage trains on: the run's own samples and what the recipe mixes in."""
        mixed = (Part(m.samples, m.weight) for m in self.recipe.data.mix if stage in m.stages)
        return Mixture((Part(self.data), *mixed), self.recipe.data.augment)

    # --- model

    def parts(self) -> None:
        """Assemble encoder, projector and LM. Before any training, show the baselines on the frozen features."""
        folder = self.folder / "parts"
        if not any(map(self._begun, STAGES)):
            check_apart(self.data, [mixed.samples for mixed in self.recipe.data.mix])
        if self.first.exists():
            drop_states(folder / "state")  # from a process that was killed
            if not any(map(self._begun, STAGES)):
                self.lengths(self.load(self.first))
            return
        settings, seed = self.recipe.parts, self.recipe.seed
        vlm, documents = self.assembled()
        self.lengths(vlm)
        self.show_baselines(vlm)
        if settings.preset == "nano":
            pretrain(vlm, documents, folder, settings.nano, seed=seed)
            new_projector(vlm, seed=seed)  # its scale follows the embeddings, which the pretraining changed
        save(vlm, folder / "checkpoint")
        self.write_recipe()
        drop_states(folder / "state")

    def lengths(self, vlm: VLM) -> None:
        """Raises LinesideError naming samples of any stage or suite that exceed the model's context."""
        refuse(length_problems(self.recipe, self.data, self.stages, vlm.render, vlm.context))

    def assembled(self) -> tuple[VLM, list[tuple[Sample, ...]]]:
        """The parts before any training, in the run's number format; and the text to pretrain a nano LM on."""
        settings, seed = self.recipe.parts, self.recipe.seed
        folders = [part.folder for part in self.mixture("sft").parts]
        documents = read_documents(folders) if settings.preset == "nano" else []
        if settings.preset == "nano":
            vlm = nano_parts(documents, settings, seed=seed)
        else:
            tower, processor = load_tower(settings.encoder or "efficientnet-lite0", settings.scales)
            lm, tokenizer = load_language_model(settings.lm or "smollm2")
            vlm = assemble(tower, processor, lm, tokenizer, seed=seed)
        calibrate(vlm, (decode(image.bytes) for image in self._pictures(CALIBRATION)))
        vlm.model.to(self.dtype)  # pyright: ignore[reportArgumentType] # transformers' wrapper of `to` drops self
        return vlm, documents

    def encode(self, rank: int, ranks: int) -> int:
        """Encode every `ranks`-th picture, with the variants of training pictures, into the store."""
        store = self.store(self.load(self.first) if self.first.exists() else self.assembled()[0])
        counts, pictures = zip(*map(self._seen, SPLITS))
        return _encode(store, islice(chain(*pictures), rank, None, ranks), len(range(rank, sum(counts), ranks)))

    def _seen(self, split: str) -> tuple[int, Iterator[Image]]:
        """(number of pictures, pictures) of a split as the encoder sees them, with the variants of training pictures.
        The number is exact if each frame has one picture."""
        frames = count_frames_with(self.data, kind="caption", split=split)
        variants = self.recipe.data.augment.variants if split == "train" else 1
        pictures = self._pictures(frames, split=split)
        return frames * variants, (replace(image, variant=v) for image in pictures for v in range(variants))

    def _pictures(self, limit: int, kind: str = "caption", split: str = "train") -> Iterator[Image]:
        """The pictures of at most `limit` frames. The samples of a frame are stored together."""
        shown: tuple[Image, ...] = ()
        for sample in read_samples(self.data, kind=kind, split=split):
            if sample.images != shown:
                if limit == 0:
                    return
                limit, shown = limit - 1, sample.images
                yield from shown

    def load(self, checkpoint: Path) -> VLM:
        """A checkpoint in the run's number format."""
        vlm = load(checkpoint, dtype=self.dtype)
        vlm.thinking = vlm.thinking.over(self.thinking)
        vlm.roi = roi_of_samples(self.data)
        return vlm

    @functools.cached_property
    def thinking(self) -> Thinking:
        """Which tasks think, by their samples: for checkpoints that are not yet trained on any."""
        return thinking_tasks(part.folder for part in self.mixture("sft").parts)

    @functools.cached_property
    def dtype(self):  # torch.dtype
        """Number format of the run: measured once on this machine, then read from the run's first checkpoint."""
        known = self.recipe.dtype == "auto" and self.first.exists()
        return dtype_of(self.first) if known else compute_dtype(self.recipe.dtype, runtime.DEFAULT)

    def store(self, vlm: VLM) -> FeatureStore:
        """Features that all stages share, and all runs of the same encoder."""
        return FeatureStore(self.recipe.runs / "features", vlm, augment=self.recipe.data.augment)

    # --- stages

    def stage(self, name: str) -> None:
        """Train a stage if it has no checkpoint, evaluate what is not evaluated, rewrite the report."""
        folder = self.folder / name
        vlm = None
        give_back_memory()
        if not (folder / "checkpoint").exists():
            if not self._begun(name):
                note_parent(folder, self.parent(name))
            vlm = self.load(self.parent(name))
            store = self.store(vlm)
            recipe = self.recipe
            # the control trains on the prompts of stage 3
            control = Mixture((Part(self.data / CONTROL),), recipe.data.augment, not recipe.rlvr.teacher_targets)
            self.encode_ahead(store, name)
            todo: dict[str, Callable[[], None]] = {
                "align": lambda: align(vlm, store, self.mixture(name), folder, recipe.align, seed=recipe.seed),
                "sft": lambda: sft(vlm, store, self.mixture(name), folder, recipe.sft, seed=recipe.seed),
                "rlvr": lambda: rlvr(vlm, store, self.mixture(name), folder, recipe.rlvr, seed=recipe.seed),
                "control": lambda: sft(
                    vlm, store, control, folder, self.control_settings(), seed=recipe.seed, label=name
                ),
            }
            todo[name]()
            self.write_recipe()
        drop_states(folder / "state")  # from a process that was killed
        self.evaluate(name)
        report(self.folder)

    def encode_ahead(self, store: FeatureStore, stage: str) -> None:
        """Encode the training pictures before a stage if they have variants, or if the stage has a time budget that
        encoding would use up."""
        minutes = stage in self.recipe.stages and getattr(self.recipe, stage).max_minutes
        if minutes or self.recipe.data.augment.variants > 1:
            count, pictures = self._seen("train")
            _encode(store, pictures, count)

    def control_settings(self) -> Sft:
        """Settings of stage 2 for as many tokens as stage 3 trained on."""
        tokens = sum(row.get("tokens", 0.0) for row in read_metrics(self.folder / "rlvr" / "metrics.jsonl"))
        sft, rates = self.recipe.sft, self.recipe.sft.learning_rate
        lowered = rates.model_copy(update={"projector": rates.projector * CONTROL_RATE, "lm": rates.lm * CONTROL_RATE})
        return sft.model_copy(
            update={"epochs": 1e6, "max_minutes": None, "max_tokens": max(1, int(tokens)), "learning_rate": lowered}
        )

    # --- judgement

    def baselines(self, vlm: VLM | None = None) -> Baselines | None:
        """Blind and classifier baselines, fitted on train, chosen on dev; once in a process."""
        if self.recipe.evaluate.baselines and self.fitted is None:
            store = self.store(vlm or self.load(self.first))
            total = count_frames_with(self.data, kind="qa", split="train")
            _encode(store, self._pictures(total, kind="qa"), total)
            self.fitted = baselines_of(self.data, store.get, seed=self.recipe.seed)
        return self.fitted

    def show_baselines(self, vlm: VLM) -> None:
        """Print the accuracy of the baselines."""
        baselines = self.baselines(vlm) if self.recipe.evaluate.splits else None
        if baselines is not None:
            split = self.recipe.evaluate.splits[0]
            say(f"baselines on {split}: a guesser without the picture, and classifier heads on the frozen features")
            questions = list(read_samples(self.data, kind="qa", split=split))
            show(baselines_table(score_baselines(baselines, questions)))

    def evaluate(self, stage: str) -> None:
        """Evaluate every split and mode that has no evaluation yet. align is judged by captions, in think mode only."""
        settings = self.recipe.evaluate
        vlm = None
        for split in settings.splits:
            for mode in settings.modes if stage != "align" else settings.modes[:1]:
                if self._evaluation(stage, split, mode).exists():
                    continue
                vlm = vlm or self.load(self.folder / stage / "checkpoint")
                with_captions = settings.caption_pairs > 0 and mode == settings.modes[0]  # captions have no mode
                give_back_memory()
                start = time.monotonic()
                calibration = self.calibration(vlm, stage, mode) if split != "dev" and stage != "align" else None
                done = evaluate(
                    vlm,
                    self.store(vlm),
                    read_samples(self.data, kind="qa", split=split),
                    stage=stage,
                    split=split,
                    mode=mode,
                    seed=self.recipe.seed,
                    baselines=self.baselines(),
                    captions=read_samples(self.data, kind="caption", split=split) if with_captions else (),
                    caption_pairs=settings.caption_pairs,
                    limit=settings.limit,
                    max_new_tokens=settings.max_new_tokens,
                    calibration=calibration,
                    out=self.folder / "evaluation",
                )
                say(
                    f"{done.name}: exact {percent(done.exact)} (95% interval {percent(done.interval[0])} to "
                    f"{percent(done.interval[1])}), blind {percent(done.blind)}"
                )
                if (cost := read_cost(self.folder / stage)) is not None:
                    cost.spend("evaluate", time.monotonic() - start)
                    write_cost(self.folder / stage, cost)

    def calibration(self, vlm: VLM, stage: str, mode: Mode) -> Calibration | None:
        """Calibration of a stage's confidence, fitted on dev once."""
        settings = self.recipe.evaluate
        if not settings.calibration:
            return None
        return calibrate_confidence(
            vlm,
            self.store(vlm),
            dev_questions(self.data),
            self.folder / stage / "checkpoint",
            mode=mode,
            limit=settings.calibration,
            max_new_tokens=settings.max_new_tokens,
            seed=self.recipe.seed,
        )

    def _evaluation(self, stage: str, split: str, mode: Mode) -> Path:
        return self.folder / "evaluation" / f"{stage}-{split}-{mode}.json"

    def finish(self) -> None:
        """Print the table, the path of the page, and commands to try."""
        page = report(self.folder)
        paths = [
            self._evaluation(stage, split, mode)
            for split in self.recipe.evaluate.splits
            for stage in ("align", "sft", "control", "rlvr")
            for mode in self.recipe.evaluate.modes
        ]
        found: list[Evaluation] = [read_evaluation(path) for path in paths if path.exists()]
        run = read_run(self.folder)
        if found:
            show(tasks_table(main_suite(found)[-1]))
            show(floor_table(main_suite(found)[-1]))
            show(decisions_table(main_suite(found)[-1]))
            if audit := audit_of(run.data):
                say(headline(audit))
            show(results_table(found))
        if findings := paired_findings(run):
            show(findings_table(findings))
        show(cost_table(read_costs(self.folder, STAGES)))
        say(f"report: {page}")
        if found:
            self.show_examples(main_suite(found)[-1])

    def show_examples(self, evaluation: Evaluation) -> None:
        """Print the command for a question with a right answer and for one with a wrong answer; keep the pictures."""
        checkpoint = self.folder / evaluation.stage / "checkpoint"
        mode = " --mode fast" if evaluation.mode == "fast" else ""
        mode += " --roi whole" if roi_of_samples(self.data) else ""  # these pictures are cut already
        for kind, row, image in self.examples(evaluation):
            picture = self.folder / f"example-{kind}.jpg"
            write_atomic(picture, image.bytes)
            say(
                f"ask it yourself; the model's answer is {kind}, the reference is {row.reference!r}:\n"
                f'  lineside ask {checkpoint} {picture} "{row.question}" --task {row.key}{mode}'
            )

    def examples(self, evaluation: Evaluation) -> list[tuple[str, Row, Image]]:
        """The first question with a right answer and the first with a wrong one, with their pictures."""
        rows = rows_by_id(self._evaluation(evaluation.stage, evaluation.split, evaluation.mode))
        found: dict[str, tuple[str, Row, Image]] = {}
        for sample in read_samples(self.data, kind="qa", split=evaluation.split):
            row = rows.get(sample.id)
            if row is not None and len(sample.images) == 1:
                kind = "right" if row.exact else "wrong"
                found.setdefault(kind, (kind, row, sample.images[0]))
            if len(found) == 2:
                break
        return [found[kind] for kind in ("right", "wrong") if kind in found]


def _encode(store: FeatureStore, pictures: Iterable[Image], total: int) -> int:
    """Put the features of these pictures into the store and show a bar. Returns how many pictures there were."""
    return sum(1 for _ in track(store.warm(pictures), total=total, unit="pictures", label="encode"))
