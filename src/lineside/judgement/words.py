"""Questions as bags of words and as templates without their slots, for the baselines that only read questions."""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WORDS = 1500  # unigrams and bigrams kept for a task
FEWEST_IN_TEMPLATE = 5  # a template with fewer questions in train gets the task's majority answer


def words(question: str) -> list[str]:
    """Lower-case words and numbers, in order."""
    return re.findall(r"[a-z0-9]+", question.lower())


def _grams(question: str) -> set[str]:
    """Words and neighbouring pairs."""
    unigrams = words(question)
    return {*unigrams, *(f"{a} {b}" for a, b in itertools.pairwise(unigrams))}


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The words and pairs of a task's training questions that occur more than once but not always."""

    index: dict[str, int]

    @classmethod
    def of(cls, questions: Sequence[str]) -> Vocabulary:
        """The `WORDS` most frequent ones; ties are broken alphabetically."""
        counts = Counter(gram for question in questions for gram in _grams(question))
        kept = [gram for gram, count in counts.items() if 1 < count < len(questions)]
        kept = sorted(kept, key=lambda gram: (-counts[gram], gram))[:WORDS]
        return cls({gram: i for i, gram in enumerate(kept)})

    def encode(self, questions: Sequence[str]) -> NDArray[np.float32]:
        """(N, words) of 0 and 1."""
        bag_NW = np.zeros((len(questions), len(self.index)), dtype=np.float32)
        for row, question in enumerate(questions):
            for gram in _grams(question):
                column = self.index.get(gram)
                if column is not None:
                    bag_NW[row, column] = 1.0
        return bag_NW


@dataclass(frozen=True, slots=True)
class MajorityByTemplate:
    """The most frequent training answer of the question's template, or of the task if the template is new or rare.

    A template is the question without its slot words. A data set does not mark slots, but their words are rarer: words
    in less than `share` of the task's questions count as slots. With share 0 the template is the question itself, above
    1 it is the task; the best share is chosen on dev.
    """

    share: float
    common: frozenset[str]
    answers: dict[tuple[str, ...], str]
    fallback: str

    @classmethod
    def fit(cls, questions: Sequence[str], answers: Sequence[str], *, share: float) -> MajorityByTemplate:
        """Counts answers by template; ties go to the answer that sorts first."""
        counts = Counter(word for question in questions for word in set(words(question)))
        common = frozenset(word for word, count in counts.items() if count >= share * len(questions))
        by_template: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
        for question, answer in zip(questions, answers):
            by_template[_template(question, common)][answer] += 1
        frequent = {t: majority(c) for t, c in by_template.items() if c.total() >= FEWEST_IN_TEMPLATE}
        return cls(share, common, frequent, majority(Counter(answers)))

    def predict(self, questions: Sequence[str]) -> list[str]:
        """One answer for each question."""
        return [self.answers.get(_template(question, self.common), self.fallback) for question in questions]


def _template(question: str, common: frozenset[str]) -> tuple[str, ...]:
    """The question's words; each run of words that are not `common` becomes one `_`."""
    masked: list[str] = []
    for word in words(question):
        piece = word if word in common else "_"
        if piece != "_" or masked[-1:] != ["_"]:
            masked.append(piece)
    return tuple(masked)


def majority(counts: Counter[str]) -> str:
    """The most frequent answer; ties are broken alphabetically."""
    return min(counts, key=lambda answer: (-counts[answer], answer))
