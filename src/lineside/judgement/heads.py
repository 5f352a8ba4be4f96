"""Small classifier heads: from fixed numbers (pooled features, bags of words) to one of the answers seen in training.

Shapes: N questions, I picture features, W word features, H hidden, C classes.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 400
HIDDEN = 96
EPOCHS = 40
PATIENCE = 4
BATCH = 128
RATE = {"linear": 3e-3, "mlp": 1e-3, "product": 1e-3}
WEIGHT_DECAY = 0.05
NONE = "none"  # the canonical text of an empty set


class Linear(nn.Module):
    """Multinomial logistic regression on picture and words, concatenated."""

    def __init__(self, picture: int, words: int, classes: int) -> None:
        super().__init__()
        self.out = nn.Linear(picture + words, classes)

    def forward(self, picture_NI: Tensor, words_NW: Tensor) -> Tensor:
        """(N, C) logits."""
        return self.out(torch.cat([picture_NI, words_NW], 1))


class Mlp(nn.Module):
    """One hidden layer over picture and words."""

    def __init__(self, picture: int, words: int, classes: int) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(picture + words, HIDDEN), nn.Linear(HIDDEN, classes)

    def forward(self, picture_NI: Tensor, words_NW: Tensor) -> Tensor:
        """(N, C) logits."""
        hidden_NH = functional.gelu(self.hidden(torch.cat([picture_NI, words_NW], 1)))
        return self.out(functional.dropout(hidden_NH, 0.2, self.training))


class Product(nn.Module):
    """The words' features times the picture's: the fair form for "is there a red can?"."""

    def __init__(self, picture: int, words: int, classes: int) -> None:
        super().__init__()
        self.picture, self.words = nn.Linear(picture, HIDDEN), nn.Linear(words, HIDDEN)
        self.out = nn.Linear(2 * HIDDEN, classes)

    def forward(self, picture_NI: Tensor, words_NW: Tensor) -> Tensor:
        """(N, C) logits."""
        seen_NH, asked_NH = self.picture(picture_NI), self.words(words_NW)
        both_N2H = torch.cat([seen_NH * asked_NH, functional.gelu(seen_NH + asked_NH)], 1)
        return self.out(functional.dropout(both_N2H, 0.2, self.training))


KINDS: dict[str, type[nn.Module]] = {"linear": Linear, "mlp": Mlp, "product": Product}


@dataclass(frozen=True, slots=True)
class Classes:
    """The answers that a head can give. `members`: classes are members of a set, and several may be true at once."""

    names: tuple[str, ...]
    members: bool

    @classmethod
    def of(cls, answers: Sequence[str], *, members: bool) -> Classes:
        """The `CLASSES` most frequent training answers (or members of them)."""
        counts = Counter(part for answer in answers for part in _parts(answer, members))
        names = sorted(counts, key=lambda name: (-counts[name], name))[:CLASSES]
        return cls(tuple(names), members)

    def encode(self, answers: Sequence[str]) -> Tensor:
        """(N, C) of 0 and 1. A row of zeros: the answer is not among the classes (or the set is empty)."""
        column = {name: i for i, name in enumerate(self.names)}
        target_NC = torch.zeros(len(answers), len(self.names))
        for row, answer in enumerate(answers):
            for part in _parts(answer, self.members):
                if part in column:
                    target_NC[row, column[part]] = 1.0
        return target_NC

    def decode(self, logits_NC: Tensor) -> list[str]:
        """One answer text for each row."""
        if not self.members:
            return [self.names[i] for i in logits_NC.argmax(1).tolist()]
        return [
            ", ".join(name for name, holds in zip(self.names, row) if holds) or NONE for row in (logits_NC > 0).tolist()
        ]


def _parts(answer: str, members: bool) -> list[str]:
    if not members:
        return [answer]
    return [] if answer.strip().lower() == NONE else [part.strip() for part in answer.split(",") if part.strip()]


@dataclass(frozen=True, slots=True)
class Inputs:
    """A head's inputs for N questions; a head without words, or without the picture, gets no columns for it."""

    picture_NI: Tensor
    words_NW: Tensor


@dataclass(frozen=True, slots=True)
class Head:
    """A fitted head."""

    kind: str
    net: nn.Module
    classes: Classes

    @torch.no_grad()
    def predict(self, inputs: Inputs) -> list[str]:
        """One answer for each question."""
        return self.classes.decode(self.net(inputs.picture_NI, inputs.words_NW))

    @torch.no_grad()
    def shares(self, inputs: Inputs) -> Tensor:
        """(N, C): the probability of each class. Raises ValueError for classes that are members of a set."""
        if self.classes.members:
            raise ValueError("members of a set are true together: they have no distribution")
        return functional.softmax(self.net(inputs.picture_NI, inputs.words_NW).double(), 1)


def fit_head(
    kind: str,
    inputs: Inputs,
    answers: Sequence[str],
    score: Callable[[Head], float],
    *,
    members: bool,
    seed: int,
    epochs: int = EPOCHS,
) -> tuple[Head, float]:
    """Trains with AdamW for at most `epochs` and keeps the epoch with the best `score` on dev.

    Stops after `PATIENCE` epochs without a better one. Returns the head and its score.
    """
    classes = Classes.of(answers, members=members)
    if not classes.names:  # every training answer is the empty set
        classes = Classes((NONE,), members=False)
    target_NC = classes.encode(answers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = KINDS[kind](inputs.picture_NI.shape[1], inputs.words_NW.shape[1], len(classes.names))
        optimizer = torch.optim.AdamW(net.parameters(), lr=RATE[kind], weight_decay=WEIGHT_DECAY)
        head, best, best_weights, since = Head(kind, net, classes), -math.inf, net.state_dict(), 0
        for _ in range(epochs):
            net.train()
            for rows in torch.randperm(len(answers)).split(BATCH):
                logits_NC = net(inputs.picture_NI[rows], inputs.words_NW[rows])
                optimizer.zero_grad(set_to_none=True)
                _loss(logits_NC, target_NC[rows], classes.members).backward()
                optimizer.step()
            net.eval()
            reached = score(head)
            if reached > best:
                best, best_weights, since = reached, copy.deepcopy(net.state_dict()), 0
            else:
                since += 1
            if since >= PATIENCE:
                break
        net.load_state_dict(best_weights)
    return head, best


def _loss(logits_NC: Tensor, target_NC: Tensor, members: bool) -> Tensor:
    if members:
        return functional.binary_cross_entropy_with_logits(logits_NC, target_NC)
    return -(target_NC * functional.log_softmax(logits_NC, 1)).sum(1).mean()
