"""train: from a recipe to a trained and evaluated model. A second run continues where the first stopped.

    simulate -> label -> parts -> align -> sft -> rlvr -> controls, each evaluated and the report rewritten after it

With many simulated frames, `train` first shows a few hundred of them, their questions and the baselines. A step whose
result is in the run folder is skipped; an unfinished stage continues from its saved state. A control is stage 2
continued on stage 3's prompts (training/controls.py); stage 3 must beat it.

`torchrun -m lineside train` trains on several GPUs and machines: all processes train the stages together (ranks.py,
training/stage.py). Everything else is done by rank 0 alone, while the others wait. All read the run's folder, so
machines must share it."""

from __future__ import annotations

import functools
import json
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from lineside.data.checks import CHECKS, LEAKS, check_apart, inspect, references_in, thinking_tasks, trained_skus
from lineside.data.job import check_shard
from lineside.data.mixture import Mixture
from lineside.data.regions import roi_of_samples
from lineside.data.store import count_frames_with, read_samples
from lineside.data.views import views_in
from lineside.errors import CheckFailed, LinesideError
from lineside.evaluate import baselines_of, calibrate_confidence, dev_questions, evaluate
from lineside.files import hold, write_atomic
from lineside.images import decode, image_key
from lineside.judgement.baselines import Baselines, score_baselines
from lineside.judgement.calibration import Calibration, share_calibration
from lineside.judgement.closing import close_run
from lineside.judgement.console import (
    baselines_table,
    percent,
    show,
)
from lineside.judgement.data_card import data_card
from lineside.judgement.schema import Mode
from lineside.judgement.typed import Form, forms_in, keep_forms, read_forms
from lineside.judgement.unfinished import answers_folder, drop_answers
from lineside.label import label
from lineside.machine import give_back_memory
from lineside.model.checkpoint import ADAPTER, load, load_trainable, save
from lineside.model.config import is_adapter
from lineside.model.features import FeatureStore
from lineside.model.parts import (
    assemble,
    calibrate,
    load_finished,
    load_language_model,
    load_tower,
    new_projector,
)
from lineside.model.vlm import VLM
from lineside.progress import say, track
from lineside.ranks import joined
from lineside.recipe import Recipe
from lineside.report import report
from lineside.rlvr import prompts_of
from lineside.runtime import DTYPES, ON_CPU, Runtime, find_device
from lineside.simulate import simulate
from lineside.stages import LINE, STAGES, entry_of, is_asked, is_control, load_function
from lineside.training.controls import count_sampling, prepare, settings_of
from lineside.training.cost import read_cost, write_cost
from lineside.training.lineage import BESIDE, note_code, note_inputs, note_parent, read_lineage, write_lineage
from lineside.training.preflight import data_problems, length_problems, refuse
from lineside.training.pretrain import nano_parts, pretrain, read_documents
from lineside.training.runfolder import RunFolder
from lineside.training.state import drop_states
from lineside.training.tracking import tracked
from lineside.types import SPLITS, Image, Sample, Thinking

SHOWN = 10  # questions shown before training
LOOK = 300  # training frames of a family in a first look; only if there are more than twice as many
CALIBRATION = 64  # training pictures from which the nano encoder's feature constants are computed


def train(recipe: Recipe, *, last: str = STAGES[-1]) -> Path:
    """Run or continue `recipe` up to and including the stage `last`; returns the run folder.

    Raises LinesideError for bad input (everything that can be found before training is reported at once), for a run
    of another recipe or other data, and for a run that another process works on.
    """
    device = find_device(recipe.device)
    with joined(device) as ranks:
        run = _Run(recipe, recipe.folder, last=last, ranks=ranks)
        with hold(run.folder) if run.ranks.rank == 0 else nullcontext():
            run.ranks.first(run.prepare)
            run.agree()
            for stage in run.stages:
                run.stage(stage)
            run.ranks.first(run.finish)
    return recipe.folder


def encode(recipe: Recipe, *, shard: tuple[int, int] | None = None) -> int:
    """Encode the pictures of a run, with the variants of training pictures, into the feature store that all runs of the
    same encoder share; returns how many were encoded. Earlier steps are done first.

    `shard` (rank, ranks): every `ranks`-th picture; the samples must exist. Raises LinesideError for bad input.
    """
    check_shard(shard)
    rank, ranks = shard or (0, 1)
    run = _Run(recipe, recipe.folder, last=recipe.stages[0] if recipe.stages else STAGES[-1])
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
class _Run(RunFolder):
    """The steps of one run. Each first checks whether it is done."""

    fitted: Baselines | None = None
    ranks: Runtime = ON_CPU  # the processes that train together; `runtime` is of what one does alone

    # --- data

    def prepare(self) -> None:
        """All that comes before the first stage."""
        self.begin()
        if self.ranks.world_size > 1:
            say(f"{self.folder}: {self.ranks.world_size} processes train together")
        self.look()
        self.frames()
        self.samples()
        self.check_inputs()
        note_inputs(self.folder, self.recipe, self.data)
        self.parts()

    def agree(self) -> None:
        """Compute in the number format that rank 0 has chosen; its measurement may differ from this rank's."""
        chosen = next(name for name, dtype in DTYPES.items() if self.ranks.rank or dtype == self.runtime.dtype)
        self.runtime = Runtime(self.ranks.device, DTYPES[self.ranks.said(chosen)], self.recipe.seed)

    def look(self) -> None:
        """Show the first frames, their questions and baselines, before all frames are simulated and labelled.

        Rendered and encoded frames are reused. The baselines beside every accuracy are fitted on all frames.
        """
        data = self.recipe.data
        if data.simulate is None or data.simulate.frames.train <= 2 * LOOK or self.has_samples or data.teacher == "api":
            return  # an API would be paid for its answers twice
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
            settings = data.label.model_copy(update={"teacher": data.teacher})
            label(source, self.data, tasks=data.tasks, settings=settings, seed=self.recipe.seed)
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

    # --- model

    def parts(self) -> None:
        """Assemble encoder, projector and LM. Before any training, show the baselines on the frozen features."""
        folder = self.folder / "parts"
        if not any(map(self.begun, STAGES)):
            check_apart(self.data, self.mixed_in)
        if self.first.exists():
            drop_states(folder / "state")  # from a process that was killed
            if not any(map(self.begun, STAGES)):
                self.lengths(self.load(self.first))
            return
        settings, seed = self.recipe.parts, self.recipe.seed
        vlm, documents = self.assembled()
        self.lengths(vlm)
        self.show_baselines(vlm)
        if settings.makes_lm:
            pretrain(vlm, documents, folder, settings.nano, self.runtime)
            new_projector(vlm, seed=seed)  # its scale follows the embeddings, which the pretraining changed
        save(vlm, folder / "checkpoint")
        self.write_recipe()
        drop_states(folder / "state")

    def lengths(self, vlm: VLM) -> None:
        """Raises LinesideError naming samples of any stage or suite that exceed the model's context."""
        refuse(length_problems(self.recipe, self.data, self.stages, vlm.render, vlm.context))

    def assembled(self) -> tuple[VLM, list[tuple[Sample, ...]]]:
        """The parts before any training, in the run's number format and on its device; and the text to pretrain a nano
        LM on."""
        settings, seed = self.recipe.parts, self.recipe.seed
        folders = [part.folder for part in self.mixture("sft").parts]
        documents = read_documents(folders) if settings.makes_lm else []
        if settings.makes_lm:
            vlm = nano_parts(documents, settings, seed=seed)
        elif settings.vlm is not None:
            vlm = load_finished(settings.vlm)
        else:
            tower, processor = load_tower(settings.encoder or "efficientnet-lite0", settings.scales)
            lm, tokenizer = load_language_model(settings.lm or "smollm2")
            vlm = assemble(tower, processor, lm, tokenizer, seed=seed)
        calibrate(vlm, (decode(image.bytes) for image in self._pictures(CALIBRATION)))
        vlm.to(self.runtime.device, self.runtime.dtype)
        vlm.render.switches = True  # training teaches the think switch
        return vlm, documents

    def encode(self, rank: int, ranks: int) -> int:
        """Encode every `ranks`-th picture, with the variants of training pictures, into the store."""
        store = self.store(self.load(self.first) if self.first.exists() else self.assembled()[0])
        counts, pictures = zip(*map(self._seen, SPLITS))
        beside = [image for split in SPLITS for image in self._beside(split)]
        count = len(range(rank, sum(counts) + len(beside), ranks))
        return _encode(store, islice(chain(*pictures, beside), rank, None, ranks), count)

    def _seen(self, split: str) -> tuple[int, Iterator[Image]]:
        """(number of pictures, pictures) of a split as the encoder sees them, with the variants of training pictures.
        The number is exact if each frame has one picture."""
        frames = count_frames_with(self.data, kind="caption", split=split)
        variants = self.recipe.data.augment.variants if split == "train" else 1
        pictures = self._pictures(frames, split=split)
        return frames * variants, (replace(image, variant=v) for image in pictures for v in range(variants))

    def _beside(self, split: str) -> list[Image]:
        """The reference pictures of a split, each once."""
        if not self.references:
            return []
        samples = (s for kind in ("qa", "prompt") for s in read_samples(self.data, kind=kind, split=split))
        return list({image_key(image.bytes): image for sample in samples for image in sample.references}.values())

    def _pictures(self, limit: int, kind: str = "caption", split: str = "train") -> Iterator[Image]:
        """The pictures of at most `limit` frames. The samples of a frame are stored together."""
        shown: tuple[Image, ...] = ()
        for sample in read_samples(self.data, kind=kind, split=split):
            if sample.frame_images != shown:
                if limit == 0:
                    return
                limit, shown = limit - 1, sample.frame_images
                yield from shown

    def load(self, checkpoint: Path, *, train: str = "") -> VLM:
        """A checkpoint in the run's number format and on its device; with an adapter if the stage `train` trains
        one."""
        where: dict[str, Any] = {"dtype": self.runtime.dtype, "device": self.runtime.device}
        if train and "lora" in self.recipe.trained_parts(train):
            dropout = 0.0 if train == "rlvr" else self.recipe.lora.dropout
            lora = self.recipe.lora.model_copy(update={"dropout": dropout})
            vlm = load_trainable(checkpoint, lora, seed=self.recipe.seed, **where)
        else:
            vlm = load(checkpoint, **where)
        vlm.render.switches = True  # training teaches the think switch
        vlm.thinking = vlm.thinking.over(self.thinking)
        vlm.roi = roi_of_samples(self.data)
        vlm.references = self.references
        vlm.views = self.views
        return vlm

    @functools.cached_property
    def thinking(self) -> Thinking:
        """Which tasks think, by their samples: for checkpoints that are not yet trained on any."""
        return thinking_tasks(part.folder for part in self.mixture("sft").parts)

    @functools.cached_property
    def references(self) -> bool:
        """Whether the model is trained with reference pictures."""
        return references_in(part.folder for part in self.mixture("sft").parts)

    @functools.cached_property
    def views(self) -> tuple[str, ...]:
        """The further pictures of a frame that the model is trained with."""
        return views_in(part.folder for part in self.mixture("sft").parts)

    @functools.cached_property
    def trained_skus(self) -> frozenset[str]:
        """The SKUs of the frames that any stage trains on."""
        return trained_skus({part.folder for stage in LINE for part in self.mixture(stage).parts})

    @functools.cached_property
    def forms(self) -> dict[str, Form]:
        """What the answers of the tasks look like, for `ask`."""
        folders = [part.folder for part in self.mixture("sft").parts]
        return {name: form for folder in reversed(folders) for name, form in forms_in(folder).items()}

    def store(self, vlm: VLM, runtime: Runtime | None = None) -> FeatureStore:
        """Features that all stages share, and all runs of the same encoder."""
        folder, most = self.recipe.runs / "features", round(self.recipe.features_gb * 1e9)
        augment, runtime = self.recipe.data.augment, runtime or self.runtime
        return FeatureStore(folder, vlm, runtime=runtime, augment=augment, max_bytes=most)

    # --- stages

    def stage(self, name: str) -> None:
        """Train a stage if it has no checkpoint, evaluate what is not evaluated, rewrite the report."""
        give_back_memory()
        self.runtime.free_memory()
        if not (trained := self.ranks.said((self.folder / name / "checkpoint").exists())):
            self.train(name)
        self.ranks.first(lambda: self.judge(name, trained_here=not trained))

    def train(self, name: str) -> None:
        """Train a stage, on all ranks together."""
        folder, together = self.folder / name, replace(self.ranks, dtype=self.runtime.dtype, seed=self.recipe.seed)
        begun = self.ranks.said(self.begun(name))
        self.ranks.first(lambda: note_code(folder) if begun else note_parent(folder, self.parent(name)))
        vlm = self.load(self.parent(name), train=name)
        store = self.store(vlm, together)
        self.encode_ahead(store, name)
        if is_control(name):
            made: list[Mixture] = []
            self.ranks.first(lambda: made.append(self.control(name, vlm, self.store(vlm))))
            samples = made[0] if made else self.control(name, vlm, store)
            settings = settings_of(self.recipe, self.folder, name)
            options = {"keep_thinking": True}  # a task thinks as it did before
        else:
            samples, settings, options = self.mixture(name), self.recipe.section(name), {}
        do = load_function(entry_of(name).function)
        track = self.recipe.track if together.rank == 0 else None
        with tracked(track, folder, self.recipe.name, name, settings.model_dump(mode="json")):
            do(vlm, store, samples, folder, settings, runtime=together, label=name, **options)

    def judge(self, name: str, *, trained_here: bool) -> None:
        """Write down what a trained stage came from, evaluate what is not evaluated, rewrite the report."""
        folder = self.folder / name
        if trained_here:
            self.write_recipe()
        drop_states(folder / "state")  # from a process that was killed
        if read_lineage(folder / "checkpoint") is None:
            write_lineage(self.folder, name, self.recipe)
        if not read_forms(folder / "checkpoint"):  # else all samples would be read each time a run goes on
            keep_forms(folder / "checkpoint", {**read_forms(self.parent(name)), **self.forms})
        if is_control(name):
            count_sampling(folder)
        self.evaluate(name)
        if is_adapter(folder / ADAPTER):
            tell_adapter(folder / "checkpoint", folder / ADAPTER)
        if name != self.stages[-1]:  # its report is the final one
            report(self.folder)

    def encode_ahead(self, store: FeatureStore, stage: str) -> None:
        """Encode the training pictures before a stage if they have variants, or if the stage has a time budget that
        encoding would use up. Each rank encodes its share."""
        minutes = stage in self.recipe.stages and self.recipe.section(stage).max_minutes
        if minutes or self.recipe.data.augment.variants > 1:
            count, pictures = self._seen("train")
            beside = self._beside("train")
            rank, ranks = store.runtime.rank, store.runtime.world_size
            total = len(range(rank, count + len(beside), ranks))
            _encode(store, islice(chain(pictures, beside), rank, None, ranks), total)
            store.runtime.exchange(None)

    def control(self, name: str, vlm: VLM, store: FeatureStore) -> Mixture:
        """What a control trains on, made of the prompts of the stage in whose place it is."""
        prompts = prompts_of(self.mixture(entry_of(name).slot), self.recipe.rlvr)
        make = functools.partial(load_function(entry_of(name).makes), vlm=vlm, store=store, recipe=self.recipe)
        return prepare(name, prompts, self.folder / name, make)

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
        """Evaluate every split and mode that has no evaluation yet. A stage that is asked nothing is judged
        by captions, in one mode only."""
        settings = self.recipe.evaluate
        vlm = None
        for split in settings.splits:
            for mode in settings.modes if is_asked(stage) else settings.modes[:1]:
                keep = answers_folder(self.folder / "evaluation", stage, split, mode)
                if self._evaluation(stage, split, mode).exists():
                    drop_answers(keep)  # of a process that was killed right behind it
                    continue
                vlm = vlm or self.load(self.folder / stage / "checkpoint")
                with_captions = settings.caption_pairs > 0 and mode == settings.modes[0]  # captions have no mode
                give_back_memory()
                self.runtime.free_memory()
                start = time.monotonic()
                calibration = self.calibration(vlm, stage, mode, keep) if split != "dev" and is_asked(stage) else None
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
                    trained_skus=self.trained_skus,
                    route_below=settings.route_below,
                    checkpoint=self.folder / stage / "checkpoint",
                    out=self.folder / "evaluation",
                )
                say(
                    f"{done.name}: exact {percent(done.exact)} (95% interval {percent(done.interval[0])} to "
                    f"{percent(done.interval[1])}), blind {percent(done.blind)}"
                )
                if (cost := read_cost(self.folder / stage)) is not None:
                    cost.spend("evaluate", time.monotonic() - start)
                    write_cost(self.folder / stage, cost)

    def calibration(self, vlm: VLM, stage: str, mode: Mode, keep: Path | None = None) -> Calibration | None:
        """Calibration of a stage's confidence, fitted once, on dev of all folders that the run trains on. `keep`: as of
        `calibrate_confidence`."""
        settings = self.recipe.evaluate
        if not settings.calibration:
            return None
        return calibrate_confidence(
            vlm,
            self.store(vlm),
            chain.from_iterable(dev_questions(folder) for folder in dict.fromkeys((self.data, *self.mixed_in))),
            self.folder / stage / "checkpoint",
            mode=mode,
            limit=settings.calibration,
            max_new_tokens=settings.max_new_tokens,
            seed=self.recipe.seed,
            keep=keep,
        )

    def _evaluation(self, stage: str, split: str, mode: Mode) -> Path:
        return self.folder / "evaluation" / f"{stage}-{split}-{mode}.json"

    def finish(self) -> None:
        """Write the final report, print the tables and commands to try."""
        close_run(self.folder, self.data)


def tell_adapter(checkpoint: Path, adapter: Path) -> None:
    """Give an adapter what lies beside the merged checkpoint: lineage, tasks, and the calibration, which holds for it
    too, since it is loaded as the same weights."""
    for path in (checkpoint / name for name in BESIDE):
        if path.exists():
            write_atomic(adapter / path.name, path.read_bytes())
    share_calibration(checkpoint, adapter)


def _encode(store: FeatureStore, pictures: Iterable[Image], total: int) -> int:
    """Put the features of these pictures into the store and show a bar. Returns how many pictures there were."""
    return sum(1 for _ in track(store.warm(pictures), total=total, unit="pictures", label="encode"))
