"""Answers to records' questions by classifier heads that did not learn from these records (K-fold cross-fitting).

A head that learns a wrong record repeats it. So the scenes of a task are dealt into folds, and the questions of each
fold are answered by a head that learnt from the other folds: one of them decides when to stop, the rest teach. The
heads are those of the baselines (`heads.py`), on the frozen features of `pooled.py` and the question's words.

Shapes: N questions, C answers that a head knows, I picture features.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lineside.data.recorded import Record
from lineside.hashing import stable_hash
from lineside.judgement.heads import BATCH, EPOCHS, Head, Inputs, fit_head
from lineside.judgement.words import Vocabulary
from lineside.progress import track
from lineside.types import Target
from lineside.verify.verifiers import verify

FOLDS = 5
LEAST = 1e-3  # probability from which a record of dev, which may be wrong, counts no further
STEPS = 200  # of few records too: their heads must be as sure as they can be
MOST = 8000  # questions that a head learns from; more take longer and teach little


class Opinion(NamedTuple):
    """What a judge says to a record's question without having learnt from it.

    `rest`: of the probability that is not on `answer`, the share on answers that are right by the record.
    """

    answer: str
    confidence: float
    agrees: bool
    rest: float


def cross_fit(
    records: Sequence[Record], seen: Mapping[str, Tensor], *, seed: int, folds: int = FOLDS
) -> list[Opinion | None]:
    """The opinion of a head about each record; None where no other fold has a record with the same answer.

    `seen`: the features (I,) of each picture by its key. Tasks are fitted apart. The same arguments give the same
    opinions. A task needs scenes in at least three folds; else all its opinions are None.
    """
    found: list[Opinion | None] = [None] * len(records)
    dealt: defaultdict[str, list[list[int]]] = defaultdict(lambda: [[] for _ in range(folds)])
    for index, record in enumerate(records):
        dealt[record.task][stable_hash("fold", seed, record.scene) % folds].append(index)
    jobs = [(task, fold) for task in sorted(dealt) for fold in range(folds)]
    kinds: dict[str, str] = {}
    for task, fold in track(jobs, total=len(jobs), unit="heads", label="cross-fitting"):
        parts = dealt[task]
        held, dev = parts[fold], parts[(fold + 1) % folds]
        train = [i for n, part in enumerate(parts) if n not in (fold, (fold + 1) % folds) for i in part]
        if not held or not dev or not train:
            continue
        train = sorted(train, key=lambda i: stable_hash("learn", seed, records[i].id))[:MOST]
        ask = _Asker([records[i] for i in train], seen)
        tried = (kinds[task],) if task in kinds else ask.kinds
        head = ask.fit(tried, [records[i] for i in dev], seed=seed)
        kinds.setdefault(task, head.kind)
        for index, opinion in zip(held, ask.opinions(head, [records[i] for i in held])):
            found[index] = opinion
    return found


class _Asker:
    """Fits and asks heads for one task."""

    def __init__(self, train: Sequence[Record], seen: Mapping[str, Tensor]) -> None:
        self._train, self._seen = train, seen
        self._vocabulary = Vocabulary.of([record.question for record in train])

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of head that fit the task: a linear one, unless the question's words say what is asked."""
        return ("product", "mlp") if self._vocabulary.index else ("linear",)

    def fit(self, kinds: Sequence[str], dev: Sequence[Record], *, seed: int) -> Head:
        """The head that expects the answers of `dev` most: its probabilities count, not its first choice alone."""
        inputs, dev_inputs = self._inputs(self._train), self._inputs(dev)

        def score(head: Head) -> float:
            known = {name: i for i, name in enumerate(head.classes.names)}
            rows = [row for row, record in enumerate(dev) if record.answer in known]
            told_n = head.shares(dev_inputs)[rows, [known[dev[row].answer] for row in rows]]
            return float(told_n.clamp_min(LEAST).log().mean()) if rows else 0.0

        answers = [record.answer for record in self._train]
        epochs = max(EPOCHS, STEPS * BATCH // len(answers))
        tried = [fit_head(k, inputs, answers, score, members=False, seed=seed, epochs=epochs) for k in kinds]
        return max(tried, key=lambda pair: pair[1])[0]

    def opinions(self, head: Head, records: Sequence[Record]) -> list[Opinion | None]:
        """The opinion about each record; None if the head knows no answer that is right by it."""
        known: dict[Target, list[int]] = {}
        found: list[Opinion | None] = []
        for record, share_C in zip(records, head.shares(self._inputs(records))):
            if record.target not in known:
                names = enumerate(head.classes.names)
                known[record.target] = [i for i, name in names if verify(name, record.target).exact]
            right, best = known[record.target], int(share_C.argmax())
            if not right:
                found.append(None)
                continue
            sure = float(share_C[best])
            others = float(share_C[[i for i in right if i != best]].sum())
            rest = min(1.0, others / max(1.0 - sure, 1e-12))
            found.append(Opinion(head.classes.names[best], sure, best in right, rest))
        return found

    def _inputs(self, records: Sequence[Record]) -> Inputs:
        words = torch.from_numpy(self._vocabulary.encode([record.question for record in records]))
        return Inputs(torch.stack([self._seen[record.picture] for record in records]), words)
