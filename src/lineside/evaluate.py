"""evaluate: test a checkpoint on a suite, and say how reliable the number is (DESIGN 8).

Every question of a split is answered once, greedily, by the one generator (`model.generate`), with thinking on
(`think`) or off (`fast`), and judged by `verify.judge`. A task whose training samples have no trace is asked with
thinking off in both modes; rows and tables say so. The result is one JSON object (`evaluation.schema.json`):
exact match as the macro mean over tasks with intervals bootstrapped by scene; beside it the blind and the classifier
baseline, the four trace classes (arXiv 2605.21127), latency, the share exact within the task's time budget, caption
matching, the natural-prevalence table and the risk-coverage curve. Every question's row lies in a file beside it.
Killed and run again, it asks only what is not answered yet (judgement/unfinished.py).

Left out: sampling at a temperature (a cell asks once and acts), and partial credit.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lineside import origin
from lineside.data.checks import thinking_tasks, trained_skus
from lineside.data.columns import columns_of
from lineside.data.regions import check_same_roi, roi_of_samples
from lineside.data.store import count_frames_with, read_samples
from lineside.data.suite import suite, suite_digest
from lineside.data.views import check_same_views, views_of
from lineside.errors import LinesideError
from lineside.files import fingerprint, hold, stamps
from lineside.images import decode, image_key, keep_pictures, seen_key
from lineside.judgement.answers import Answerer, answer_questions, budget_of, thinks
from lineside.judgement.baselines import MAX_PICTURES, Baselines, fit_baselines
from lineside.judgement.calibration import (
    Calibration,
    Curve,
    fit_rows,
    read_calibration,
    write_calibration,
)
from lineside.judgement.captions import Pair, choose_pairs, match_captions
from lineside.judgement.columns import check_columns
from lineside.judgement.forgetting import (
    PROBED,
    Forgetting,
    Likelihood,
    Scorer,
    Text,
    caption_texts,
    change,
    choose_captions,
    drift,
    file_texts,
    likelihoods,
    shared_weights,
)
from lineside.judgement.latency import LatencyModel, measure_if_idle, spread
from lineside.judgement.mistakes import keep_full_size
from lineside.judgement.pooled import Features
from lineside.judgement.schema import (
    MODES,
    STAGE_NAME,
    CaptionMatching,
    Decoding,
    Evaluation,
    Mode,
    Provenance,
    Row,
    write_evaluation,
)
from lineside.judgement.summary import summarise
from lineside.judgement.typed import forms_in, keep_forms, read_forms
from lineside.judgement.unfinished import Unfinished, answers_folder, drop_answers
from lineside.model.checkpoint import load, weights_of
from lineside.model.features import FeatureStore, encoder_key
from lineside.model.generate import Prompt
from lineside.model.render import CAPTION_PROMPT
from lineside.model.score import score
from lineside.model.vlm import VLM
from lineside.progress import say, track
from lineside.recipe import ROUTE_BELOW
from lineside.runtime import ON_CPU, Runtime
from lineside.serving.engines import engine_of, load_engine
from lineside.serving.judging import Limit, as_served, deadline_limit
from lineside.serving.pairs import PLAIN, EnginePair
from lineside.stages import STAGES
from lineside.training.lineage import LINEAGE, is_calibration, keeps_captions
from lineside.training.sampler import LocalSampler, answerer
from lineside.types import NO_VLLM, Image, Sample, VllmAt

MAX_NEW_TOKENS = 96
CAPTION_PAIRS = 300
CALIBRATION_QUESTIONS = 2000  # of dev, spread evenly over tasks
AT_ONCE = 512  # questions that are answered together, and kept in one file until the evaluation is whole
FORGETTING_TEXTS = 2000  # captions, or lines of a file
TEXTS_AT_ONCE = 64
PICTURES_A_FAMILY = 48  # small copies beside the evaluation, for the report's cards


def evaluate(
    vlm: VLM,
    store: FeatureStore,
    samples: Iterable[Sample],
    *,
    stage: str,
    split: str,
    mode: Mode = "think",
    seed: int = 0,
    baselines: Baselines | None = None,
    captions: Iterable[Sample] = (),
    budgets: Mapping[tuple[str, str], float] | None = None,
    caption_pairs: int = CAPTION_PAIRS,
    limit: int | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    time_questions: bool = True,
    calibration: Calibration | None = None,
    by: Sequence[str] = (),
    trained_skus: Collection[str] = (),
    route_below: float = ROUTE_BELOW,
    checkpoint: Path | None = None,
    deadlines: bool = False,
    out: Path | None = None,
) -> Evaluation:
    """Answers and judges the questions of `split` among `samples`; writes the files below `out` if given.

    With `checkpoint` and `out`, answers are kept until the evaluation is whole: after a kill it goes on from there.

    `captions`: caption samples for caption matching (none: left out), of which `caption_pairs` are compared.
    `budgets`: milliseconds by (family, task); they win over the samples' own `meta.extra["budget_ms"]`. `limit`: at
    most this many questions, spread evenly over tasks. `time_questions` False leaves latency out. `calibration`: the
    checkpoint's calibrated confidence. `by`: columns to break exact match down by, beside those that are broken down
    anyway. `trained_skus`: those of the training frames; a question about another is about a new SKU. `route_below`:
    tasks with a smaller share of exact answers are routed to a person. `checkpoint`: the folder that `vlm` is of; its
    fingerprint goes into the evaluation, without which the server does not take the weights for judged. `deadlines`:
    traces are cut as the server cuts them for the budget. Raises LinesideError when no question of the split can be
    judged.
    """
    if not re.fullmatch(STAGE_NAME, stage):
        raise LinesideError(f"stage {stage!r}: expected letters, digits, _ and . only, because it names files")
    asked = suite(samples, split=split, limit=limit)
    if not asked.questions:
        heard = f" ({asked.left_out} have only a teacher's target, which is not used in a held-out suite)"
        raise LinesideError(
            f"nothing to evaluate in split {split!r}: expected qa or prompt samples of that split with a target"
            f"{heard if asked.left_out else ''}"
        )
    name = f"{stage} {split} {mode}"
    pairs = choose_pairs(captions, split=split, limit=caption_pairs)
    _warm(store, [*asked.questions, *(pair.sample for pair in pairs)], label=f"{name}: features")
    thinking = partial(thinks, mode, vlm.thinking)
    keep = answers_folder(out, stage, split, mode)
    asking = _Asking(vlm, store, checkpoint, thinking, max_new_tokens, seed)
    unfinished = asking.unfinished(keep, asked.questions)
    latency, untimed = None, "not measured: not requested"
    if time_questions:
        time = partial(_time, vlm, store, asked.questions, thinking, max_new_tokens=max_new_tokens)
        latency, untimed = unfinished.latency(time)
    limits = None
    if deadlines:
        if latency is None:
            raise LinesideError(
                f"deadlines need the time of an answer, which was {untimed}: try again on an idle machine"
            )
        limits = deadline_limit(latency, partial(budget_of, budgets=budgets or {}), max_new_tokens)
        unfinished = unfinished.of(limits=[limits(sample) for sample in asked.questions])
    curves = calibration.modes.get(mode, {}) if calibration is not None else {}
    rows = asking.rows(
        asked.questions,
        unfinished,
        name=name,
        limit=limits,
        latency=latency,
        budgets=budgets or {},
        baselines=baselines,
        curves=curves,
        trained_skus=trained_skus,
    )
    evaluation = summarise(
        rows,
        stage=stage,
        split=split,
        mode=mode,
        seed=seed,
        latency=latency,
        untimed=untimed,
        by=by,
        route_below=route_below,
        notes=_uncalibrated({s.key for s in asked.questions}, curves),
        captions=_captions(vlm, store, pairs, seed=seed, name=name),
        decoding=Decoding(
            temperature=0.0,
            max_new_tokens=max_new_tokens,
            dtype=origin.name_of(vlm.dtype),
            engine=vlm.backend.engine,
            weights=vlm.backend.weights,
            deadlines=deadlines,
        ),
        provenance=Provenance(
            date=origin.now(),
            seed=seed,
            git=origin.git_commit(),
            version=origin.version(),
            machine=origin.machine(store.runtime, vlm.dtype),
            data=suite_digest(asked.questions),
            scenes=len({row.scene for row in rows}),
            left_out=asked.left_out,
            checkpoint=fingerprint(checkpoint) if checkpoint is not None else None,
        ),
    )
    if out is not None:
        save(out, evaluation, rows, asked.questions)
    drop_answers(keep)
    return evaluation


def evaluate_checkpoint(
    checkpoint: Path,
    data: Path,
    *,
    split: str = "heldout",
    mode: Mode = "think",
    stage: str | None = None,
    limit: int | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    with_baselines: bool = True,
    with_calibration: bool = True,
    features: Path | None = None,
    by: Sequence[str] = (),
    route_below: float = ROUTE_BELOW,
    out: Path | None = None,
    pair: EnginePair = PLAIN,
    vllm: VllmAt = NO_VLLM,
    deadlines: bool = False,
    runtime: Runtime = ON_CPU,
) -> Evaluation:
    """The verb: one checkpoint on one split of a data folder. `stage` defaults to the checkpoint's place in a run.

    `pair`: the engine that decodes, and its weights. `vllm`: where vLLM is. `deadlines`: as of `evaluate`. `runtime`:
    where to compute, and the seed; without a dtype in the checkpoint's own, which the evaluation records. `features` is
    the folder of a feature store to reuse. Raises LinesideError for a checkpoint or data that do not fit, and for a
    column of `by` that no question carries.
    """
    if mode not in MODES:
        raise LinesideError(f"mode {mode!r}: expected one of {', '.join(MODES)}")
    stage = stage or stage_of(checkpoint)
    questions = list(read_samples(data, kind="qa", split=split))
    trained = trained_skus([data])
    check_columns(by, (columns_of(question, trained) for question in questions))
    # Other evaluations may go into the same folder; only the same one must not be written twice at once.
    alone = hold(out, name=f".{stage}-{split}-{mode}.lock") if out is not None else nullcontext()
    with alone, ExitStack() as ending:
        vlm = load_judged(checkpoint, data, questions, pair=pair, vllm=vllm, runtime=runtime)
        ending.callback(vlm.backend.close)
        if not read_forms(checkpoint):
            keep_forms(checkpoint, forms_in(data))
        store = FeatureStore(features, vlm, runtime=runtime)
        calibration = None
        if with_calibration and split != "dev":  # on dev it would be judged on the data it was fitted on
            calibration = calibrate_confidence(
                vlm,
                store,
                dev_questions(data),
                checkpoint,
                mode=mode,
                max_new_tokens=max_new_tokens,
                seed=runtime.seed,
                keep=answers_folder(out, stage, split, mode),
            )
        return evaluate(
            vlm,
            store,
            questions,
            stage=stage,
            split=split,
            mode=mode,
            seed=runtime.seed,
            baselines=baselines_of(data, store.get, seed=runtime.seed) if with_baselines else None,
            captions=read_samples(data, kind="caption", split=split),
            limit=limit,
            max_new_tokens=max_new_tokens,
            calibration=calibration,
            by=by,
            trained_skus=trained,
            route_below=route_below,
            checkpoint=checkpoint,
            deadlines=deadlines,
            out=out,
        )


def load_judged(
    checkpoint: Path,
    data: Path,
    questions: Sequence[Sample],
    *,
    pair: EnginePair = PLAIN,
    vllm: VllmAt = NO_VLLM,
    runtime: Runtime = ON_CPU,
) -> VLM:
    """The model of a checkpoint, ready for the questions of a data folder. Raises LinesideError if they do not fit."""
    vlm = load_engine(checkpoint, pair, dtype=runtime.dtype, device=runtime.device, vllm=vllm)
    check_same_roi(vlm.roi, roi_of_samples(data), data)
    check_same_views(vlm.views, views_of(questions, data), data)
    if vlm.references != (beside := any(question.references for question in questions)):
        say(f"note: {data} {'shows' if beside else 'lacks'} reference pictures, and the checkpoint was trained with"
            f"{'out' if beside else ''} them")  # fmt: skip
    vlm.thinking = vlm.thinking.over(thinking_tasks([data]))
    return vlm


def forgetting(
    checkpoint: Path,
    before: Path,
    data: Path,
    *,
    split: str = "heldout",
    text: Path | None = None,
    features: Path | None = None,
    runtime: Runtime = ON_CPU,
) -> Forgetting:
    """What `checkpoint` forgot since `before`, by the captions of a split (judgement/forgetting.py).

    `text`: a file whose lines are scored without a picture; None: the captions are. Raises LinesideError for
    checkpoints that are not of one model, and for a file that cannot be read.
    """
    moved = drift(shared_weights(weights_of(before), weights_of(checkpoint)))
    captions = choose_captions(read_samples(data, kind="caption", split=split), split=split, limit=FORGETTING_TEXTS)
    seen, alone = (caption_texts(captions, seen=s) for s in (True, False))
    if text is not None:
        alone = file_texts(text)[:FORGETTING_TEXTS]
    scorers = _scorers(before, checkpoint, features, runtime)
    return Forgetting(
        before=str(before),
        after=str(checkpoint),
        captions=change(likelihoods(seen, *scorers), seed=runtime.seed),
        text=change(likelihoods(alone, *scorers), seed=runtime.seed),
        drift=moved,
    )


def caption_likelihoods(
    before: Path,
    after: Path,
    suites: Mapping[str, tuple[Path, str]],
    *,
    features: Path | None = None,
    runtime: Runtime = ON_CPU,
) -> dict[str, list[Likelihood]]:
    """How likely the captions of suites (folder and split, by name) are to two checkpoints, given their pictures: at
    most `PROBED` of each. Suites without captions are left out. Empty if the earlier one was trained without captions:
    it has none to forget."""
    chosen = {
        name: choose_captions(read_samples(folder, kind="caption", split=split), split=split, limit=PROBED)
        for name, (folder, split) in suites.items()
    }
    if not any(chosen.values()) or not keeps_captions(before):
        return {}
    scorers = _scorers(before, after, features, runtime)
    found = iter(likelihoods(caption_texts(chain.from_iterable(chosen.values()), seen=True), *scorers))
    return {name: list(islice(found, len(captions))) for name, captions in chosen.items() if captions}


def _scorers(before: Path, after: Path, features: Path | None, runtime: Runtime) -> tuple[Scorer, Scorer]:
    """The scorers of two checkpoints. Where their encoders are the same, each picture is encoded once."""
    vlms = [load(path, dtype=runtime.dtype, device=runtime.device) for path in (before, after)]
    stores = [FeatureStore(features, vlm, runtime=runtime) for vlm in vlms]
    same = len({encoder_key(vlm, store.dtype) for vlm, store in zip(vlms, stores)}) == 1
    first, second = zip(vlms, (stores[0], stores[0] if same else stores[1]))
    return partial(_logprobs, *first), partial(_logprobs, *second)


def _logprobs(vlm: VLM, store: FeatureStore, texts: Sequence[Text]) -> list[Tensor]:
    """The log-probability of each token of each text, as an answer to the prompt of captions."""
    starts = range(0, len(texts), TEXTS_AT_ONCE)
    found: list[Tensor] = []
    for start in track(starts, total=len(starts), unit="batches", label="texts"):
        some = texts[start : start + TEXTS_AT_ONCE]
        prompts = [Prompt(t.sample.images if t.sample else (), CAPTION_PROMPT, thinking=False) for t in some]
        found += score(vlm, store, prompts, [t.words for t in some])
    return found


def calibrate_confidence(
    vlm: VLM,
    store: FeatureStore,
    dev: Iterable[Sample],
    checkpoint: Path,
    *,
    mode: Mode,
    limit: int | None = CALIBRATION_QUESTIONS,
    max_new_tokens: int = MAX_NEW_TOKENS,
    seed: int = 0,
    keep: Path | None = None,
) -> Calibration | None:
    """The calibration of a checkpoint in a mode: read from the checkpoint, else fitted on `dev` and saved there.

    None if there are no dev questions. At most `limit` of them are answered. `keep`: the folder of what the evaluation
    has answered so far.
    """
    found, _ = read_calibration(checkpoint, vlm.form)
    if found is not None and mode in found.modes:
        return found
    asked = suite(dev, split="dev", limit=limit)
    if not asked.questions:
        return found
    name = f"calibration {mode}"
    _warm(store, asked.questions, label=f"{name}: features")
    asking = _Asking(vlm, store, checkpoint, partial(thinks, mode, vlm.thinking), max_new_tokens, seed)
    rows = asking.rows(asked.questions, asking.unfinished(keep, asked.questions), name=name)
    return write_calibration(checkpoint, vlm.form, mode, fit_rows(rows))


def dev_questions(data: Path) -> Iterable[Sample]:
    """The questions of a data folder's dev split; none if it has no such split."""
    return read_samples(data, kind="qa", split="dev")


def _uncalibrated(tasks: Iterable[str], curves: Mapping[str, Curve]) -> dict[str, str]:
    """The reason why a task is not calibrated, by family/task."""
    notes = {task: curves[task].note if task in curves else "not calibrated, n = 0" for task in sorted(tasks)}
    return {task: note for task, note in notes.items() if note}


def baselines_of(data: Path, features: Features, *, seed: int = 0) -> Baselines:
    """Baselines fitted on a data folder's train split and chosen on its dev split; keeps some thousand pictures in
    memory."""

    def some(split: str) -> list[Sample]:
        groups = count_frames_with(data, kind="qa", split=split)
        share = min(1.0, MAX_PICTURES / groups) if groups else 0.0
        chosen = read_samples(data, kind="qa", split=split) if groups else ()
        return [s for s in chosen if share == 1.0 or int(image_key(s.images[0].bytes), 16) < share * 2**128]

    return fit_baselines(some("train"), features, dev=some("dev"), seed=seed)


def stage_of(checkpoint: Path) -> str:
    """`sft` for `runs/x/sft/checkpoint`, else `model`."""
    return next((part for part in reversed(checkpoint.absolute().parts) if part in STAGES), "model")


def save(out: Path, evaluation: Evaluation, rows: Sequence[Row], questions: Sequence[Sample]) -> Path:
    """Writes the rows, the evaluation and pictures for the report: small ones for its cards, and full-size ones for the
    most confident wrong answers. Returns the evaluation's path.

    The small pictures of a family are those whose keys sort first, so every stage and mode keeps the same ones.
    """
    for family in {sample.family for sample in questions}:
        by_key = {
            image_key(image.bytes): sample
            for sample in questions
            if sample.family == family
            for image in sample.frame_images
        }
        for key in sorted(by_key)[:PICTURES_A_FAMILY]:
            keep_pictures(out / "pictures", by_key[key].frame_images)
    keep_full_size(out, rows, (image for sample in questions for image in sample.frame_images))
    return write_evaluation(out, evaluation, rows)


class _Unseen(FeatureStore):
    """A store without memory: a timed question pays for its encoder too."""

    def __init__(self, vlm: VLM, runtime: Runtime, dtype: torch.dtype = torch.bfloat16) -> None:
        self.vlm, self.runtime, self.dtype = vlm, runtime, dtype

    def get(self, images: Sequence[Image]) -> list[Tensor]:
        """(P, D_e) of each, encoded anew."""
        encoded = self.vlm.features(self.vlm.pixels([decode(image.bytes) for image in images]))
        return [row.to(self.dtype).cpu() for row in encoded]


def _time(
    vlm: VLM,
    store: FeatureStore,
    questions: Sequence[Sample],
    thinking: Callable[[Sample], bool],
    *,
    max_new_tokens: int,
) -> tuple[LatencyModel | None, str]:
    unseen = _Unseen(vlm, store.runtime)
    sampler = LocalSampler(vlm, unseen)
    engine = engine_of(vlm, store=unseen) if vlm.backend.engine == "vllm" else None  # which `generate` cannot ask

    def answer(sample: Sample, at_most: int) -> int:
        if engine is not None:
            (rollout,) = as_served(engine, {}, thinking, max_new_tokens=at_most)([sample])
            return len(rollout.tokens)
        prompt = Prompt(sample.images, sample.question, thinking(sample))
        ((rollout,),) = sampler.sample([prompt], max_new_tokens=at_most)
        return len(rollout.tokens)

    return measure_if_idle(answer, spread(questions), max_new_tokens=max_new_tokens)


@dataclass(frozen=True)
class _Asking:
    """How questions are asked. `thinking`: which of them with thinking on."""

    vlm: VLM
    store: FeatureStore
    checkpoint: Path | None
    thinking: Callable[[Sample], bool]
    max_new_tokens: int
    seed: int

    def rows(
        self,
        questions: Sequence[Sample],
        unfinished: Unfinished,
        *,
        name: str,
        limit: Limit | None = None,
        **judging: Any,
    ) -> list[Row]:
        """The rows of questions, of which those are asked that are not answered yet. `judging`: as of
        `answer_questions`."""
        answers = answer_questions(
            questions,
            unfinished.once(self.answerer(limit)),
            thinking=self.thinking,
            think_close=self.vlm.render.think_close,
            at_once=AT_ONCE,
            **judging,
        )
        if done := unfinished.count(len(questions), AT_ONCE):
            say(f"{name}: goes on: {done:,} of {len(questions):,} answered")
        known = list(islice(answers, done))
        return known + list(track(answers, total=len(questions) - done, unit="questions", label=name))

    def answerer(self, limit: Limit | None) -> Answerer:
        """What answers the questions: what serves, where that may give other tokens than `generate` does. The model's
        own decoding without deadlines gives the same (tests/serving/test_engine.py), and many rows together are
        faster."""
        vlm, store, new = self.vlm, self.store, self.max_new_tokens
        if limit is None and (vlm.backend.engine, vlm.backend.weights) == PLAIN:
            return answerer(LocalSampler(vlm, store), self.thinking, max_new_tokens=new, seed=self.seed)
        forms = read_forms(self.checkpoint) if self.checkpoint is not None else {}
        more = {} if limit is None else {"limit": limit}
        return as_served(engine_of(vlm, store=store), forms, self.thinking, max_new_tokens=new, **more)

    def unfinished(self, folder: Path | None, questions: Sequence[Sample]) -> Unfinished:
        """The answers in a folder that were given to these questions in this way; None: none are kept."""
        if folder is None or self.checkpoint is None:
            return Unfinished(None)

        def hashes(root: Path, files: Iterable[Path]) -> dict[str, str]:
            return {name: stamp.hash for name, stamp in stamps(files, root=root).items()}

        vlm, code = self.vlm, Path(__file__).parent
        written_later = {LINEAGE, *filter(is_calibration, os.listdir(self.checkpoint))}  # no answer depends on them
        told = (path for path in self.checkpoint.glob("*.json") if path.name not in written_later)
        return Unfinished(folder).of(
            code=hashes(code, (path for path in code.rglob("*") if path.is_file() and path.suffix != ".pyc")),
            machine=[origin.machine(self.store.runtime, vlm.dtype), torch.get_num_threads()],
            checkpoint=[fingerprint(self.checkpoint), hashes(self.checkpoint, told)],
            model=[vlm.model.config.to_json_string(), vlm.render.switches],
            features=list(map(str, vlm.family.fingerprint(self.store.dtype))),
            decoding=[vlm.form, vlm.backend.name, vlm.backend.rows, self.max_new_tokens, self.seed, AT_ONCE],
            questions=[
                [sample.id, sample.question, self.thinking(sample)]
                + [[seen_key(image), image.role, image.name, image.text] for image in sample.images]
                for sample in questions
            ],
        )


def _captions(vlm: VLM, store: FeatureStore, pairs: Sequence[Pair], *, seed: int, name: str) -> CaptionMatching | None:
    def mean_logprobs(asked: Sequence[tuple[Sample, str, bool]]) -> list[float]:
        prompts = [Prompt(s.images if seen else (), CAPTION_PROMPT, thinking=False) for s, _, seen in asked]
        return [float(tokens.mean()) for tokens in score(vlm, store, prompts, [text for _, text, _ in asked])]

    return match_captions(pairs, mean_logprobs, seed=seed, label=f"{name}: captions")


def _warm(store: FeatureStore, samples: Sequence[Sample], *, label: str) -> None:
    images = {image_key(image.bytes): image for sample in samples for image in sample.images}
    for _ in track(store.warm(images.values()), total=len(images), unit="pictures", label=label):
        pass
