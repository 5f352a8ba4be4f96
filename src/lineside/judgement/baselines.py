"""The two baselines beside every accuracy (DESIGN 8): fitted on train, chosen on dev, judged by the same verifier.

Blind: never sees the picture. For each task the better of two: the majority answer per question template, and a
question-only model (logistic regression or a small network over the question's words and word pairs).

Classifier ("why a VLM?"): one head for each task on the same frozen features, each picture's tokens pooled by mean and
by maximum, reduced to their principal components. The answer often depends on what the question names, so the head
sees the question's words too. Of a linear, a one-hidden-layer and a multiplicative head, the best on dev is kept.

Both choose among answers seen in training. A point is a cell of an 8 x 8 grid. A set is decided member by member or as
a whole, whichever is better on dev. Without dev questions a seventh of the training scenes takes their place.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lineside.data.suite import reference_of, scene_of, target_of
from lineside.errors import LinesideError
from lineside.images import image_key
from lineside.judgement.heads import Head, Inputs, fit_head
from lineside.judgement.pooled import AT_ONCE, MAX_PICTURES, Features, Projection, fit_projection, pool
from lineside.judgement.words import MajorityByTemplate, Vocabulary, majority
from lineside.progress import track
from lineside.types import Sample
from lineside.verify.verifiers import verify

MAX_QUESTIONS = 4000  # of a task
GRID = 8
TEMPLATE_SHARES = (1.1, 0.2, 0.05, 0.0)
DEV_ONE_IN = 7


class Guess(NamedTuple):
    """The baselines' answers to one question."""

    blind: str
    classifier: str


@dataclass(frozen=True, slots=True)
class Pictures:
    """Frozen features of pictures as a few hundred standardised numbers each."""

    features: Features
    project: Projection
    cache: dict[str, Tensor]

    def encode(self, samples: Sequence[Sample]) -> Tensor:
        """(N, I). A sample with several pictures gets their mean, one without any gets zeros."""
        missing = {k: i for s in samples for i in s.frame_images if (k := image_key(i.bytes)) not in self.cache}
        for keys in _chunks(list(missing), AT_ONCE):
            self.cache.update(zip(keys, self.project(pool(self.features([missing[key] for key in keys])))))
        none = torch.zeros(self.project.components_DI.shape[1])
        rows = [[self.cache[image_key(image.bytes)] for image in sample.frame_images] or [none] for sample in samples]
        return torch.stack([torch.stack(row).mean(0) for row in rows])


@dataclass(frozen=True, slots=True)
class TaskBaselines:
    """The chosen baselines of one task. Exactly one of `template` and `question` is set."""

    vocabulary: Vocabulary
    template: MajorityByTemplate | None
    question: Head | None
    classifier: Head
    dev_blind: float
    dev_classifier: float

    @property
    def chosen(self) -> str:
        """Names of the two that were best on dev."""
        blind = "majority by template" if self.question is None else f"question-only {self.question.kind}"
        return f"blind: {blind}; classifier: {self.classifier.kind}"


@dataclass(frozen=True, slots=True)
class Baselines:
    """Fitted baselines by (family, task). Memory grows with the pictures asked about: some hundred numbers each."""

    pictures: Pictures
    tasks: dict[tuple[str, str], TaskBaselines]
    fallback: str

    def predict(self, samples: Sequence[Sample]) -> list[Guess]:
        """Answers as text, for the verifier. A task that is not in train gets train's most frequent answer."""
        guesses = [Guess(self.fallback, self.fallback)] * len(samples)
        by_task: dict[tuple[str, str], list[int]] = defaultdict(list)
        for index, sample in enumerate(samples):
            by_task[sample.family, sample.task].append(index)
        for key, indices in by_task.items():
            task = self.tasks.get(key)
            if task is not None:
                asked = [samples[i] for i in indices]
                for index, guess in zip(indices, _predict(task, self.pictures, asked)):
                    guesses[index] = guess
        return guesses


def fit_baselines(
    train: Sequence[Sample], features: Features, *, dev: Sequence[Sample] = (), seed: int = 0
) -> Baselines:
    """Fits both baselines of every task in `train` (samples without a target are skipped).

    `features` gives the frozen encoder's features, e.g. `FeatureStore.get`. The same arguments give the same result.
    Raises LinesideError when no sample of `train` has a target.
    """
    train, dev = _questions(train), _questions(dev)
    if not train:
        raise LinesideError("baselines: no training question has a target; expected qa samples of split train")
    pictures = _fit_pictures(train, features, seed=seed)
    by_task = _by_task(_within(train, MAX_PICTURES))
    dev_by_task = _by_task(dev)
    tasks: dict[tuple[str, str], TaskBaselines] = {}
    for key in track(sorted(by_task), total=len(by_task), unit="tasks", label="baselines"):
        tasks[key] = _fit_task(*_fit_and_dev(by_task[key], dev_by_task.get(key, [])), pictures, seed=seed)
    return Baselines(pictures, tasks, majority(Counter(_label(sample) for sample in train)))


def score_baselines(baselines: Baselines, samples: Sequence[Sample]) -> dict[str, tuple[int, float, float]]:
    """By family/task: questions, share exact of the blind baseline, share exact of the classifier."""
    exact: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    samples = _questions(samples)
    for sample, guess in zip(samples, baselines.predict(samples)):
        target = target_of(sample)
        verdicts = verify(guess.blind, target).exact, verify(guess.classifier, target).exact
        exact[sample.key].append(verdicts)
    return {
        key: (len(pairs), sum(b for b, _ in pairs) / len(pairs), sum(c for _, c in pairs) / len(pairs))
        for key, pairs in sorted(exact.items())
    }


def _fit_task(train: list[Sample], dev: list[Sample], pictures: Pictures, *, seed: int) -> TaskBaselines:
    """Fits every candidate of one task and keeps the best on dev of either baseline; ties go to the simpler."""
    answers, questions = [_label(s) for s in train], [s.question for s in train]
    vocabulary = Vocabulary.of(questions)
    words, dev_words = (torch.from_numpy(vocabulary.encode([s.question for s in part])) for part in (train, dev))
    seen, dev_seen = pictures.encode(train), pictures.encode(dev)
    targets = [target_of(sample) for sample in dev]

    def score(guesses: list[str]) -> float:
        return sum(verify(guess, target).exact for guess, target in zip(guesses, targets)) / len(targets)

    templates = [MajorityByTemplate.fit(questions, answers, share=share) for share in TEMPLATE_SHARES]
    template = max(templates, key=lambda t: score(t.predict([s.question for s in dev])))
    template_score = score(template.predict([s.question for s in dev]))
    set_forms = (False, True) if targets[0].kind == "set" else (False,)

    def best(kinds: Sequence[str], inputs: Inputs, dev_inputs: Inputs) -> tuple[Head, float]:
        fitted = [
            fit_head(kind, inputs, answers, lambda head: score(head.predict(dev_inputs)), members=members, seed=seed)
            for kind in kinds
            for members in set_forms
        ]
        return max(fitted, key=lambda pair: pair[1])

    question, question_score = None, -1.0
    if vocabulary.index:  # else all questions are the same to a model of words, and the majority is all there is
        question, question_score = best(
            ("linear", "mlp"), Inputs(seen[:, :0], words), Inputs(dev_seen[:, :0], dev_words)
        )
    kinds = ("linear", "mlp", "product") if vocabulary.index else ("linear", "mlp")
    classifier, classifier_score = best(kinds, Inputs(seen, words), Inputs(dev_seen, dev_words))
    by_template = template_score >= question_score
    return TaskBaselines(
        vocabulary,
        template if by_template else None,
        None if by_template else question,
        classifier,
        max(template_score, question_score),
        classifier_score,
    )


def _predict(task: TaskBaselines, pictures: Pictures, samples: Sequence[Sample]) -> list[Guess]:
    questions = [sample.question for sample in samples]
    words = torch.from_numpy(task.vocabulary.encode(questions))
    seen = pictures.encode(samples)
    if task.question is not None:
        blind = task.question.predict(Inputs(seen[:, :0], words))
    else:
        assert task.template is not None
        blind = task.template.predict(questions)
    return [Guess(*pair) for pair in zip(blind, task.classifier.predict(Inputs(seen, words)))]


def _fit_pictures(train: Sequence[Sample], features: Features, *, seed: int) -> Pictures:
    """Principal components of the pooled features of train's pictures."""
    images = {image_key(i.bytes): i for sample in _within(train, MAX_PICTURES) for i in sample.frame_images}
    if not images:
        return Pictures(features, Projection(torch.zeros(0), torch.zeros(0, 0)), {})
    chunks = _chunks(list(images), AT_ONCE)
    label = "pooled features for the baselines"
    pooled_nD = torch.cat(
        [
            pool(features([images[key] for key in keys]))
            for keys in track(chunks, total=len(chunks), unit="batches", label=label)
        ]
    )
    project = fit_projection(pooled_nD, seed=seed)
    return Pictures(features, project, dict(zip(images, project(pooled_nD))))


def _questions(samples: Sequence[Sample]) -> list[Sample]:
    """Each question with a target once."""
    unique: dict[tuple[object, ...], Sample] = {}
    for sample in samples:
        if sample.target is not None and sample.kind != "caption":
            key = (*(image_key(i.bytes) for i in sample.frame_images), sample.family, sample.task, sample.question)
            unique.setdefault(key, sample)
    return list(unique.values())


def _by_task(samples: Sequence[Sample]) -> dict[tuple[str, str], list[Sample]]:
    by_task: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for sample in samples:
        if len(by_task[sample.family, sample.task]) < MAX_QUESTIONS:
            by_task[sample.family, sample.task].append(sample)
    return by_task


def _fit_and_dev(train: list[Sample], dev: list[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Train and dev of one task. Without dev questions, dev is a seventh of train's scenes, chosen by hash."""
    if dev:
        return train, dev
    chosen = [_hash(scene_of(sample)) % DEV_ONE_IN == 0 for sample in train]
    held = [sample for sample, taken in zip(train, chosen) if taken]
    kept = [sample for sample, taken in zip(train, chosen) if not taken]
    return (kept, held) if kept and held else (train, train)


def _within(samples: Sequence[Sample], pictures: int) -> list[Sample]:
    """The samples of at most `pictures` pictures: those whose names sort first (names are hashes)."""
    names = sorted({image_key(i.bytes) for sample in samples for i in sample.frame_images})
    if len(names) <= pictures:
        return list(samples)
    last = names[pictures - 1]
    return [sample for sample in samples if all(image_key(i.bytes) <= last for i in sample.frame_images)]


def _label(sample: Sample) -> str:
    """The answer as a class: its text, or for a point the centre of its grid cell."""
    target = target_of(sample)
    if target.kind != "point":
        return reference_of(sample)
    x, y = ((min(GRID - 1, int(v * GRID)) + 0.5) / GRID for v in (target.x, target.y))
    return f"{x:.2f}, {y:.2f}"


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _chunks(items: list[str], size: int) -> list[list[str]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
