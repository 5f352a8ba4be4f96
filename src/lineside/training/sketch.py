"""Sketches: pictures made of words. Pretraining on text gives them to the LM in place of pictures.

Each clause of a frame's captions is put on the grid of the picture's tokens, at the place that it names ("at the top
left") and as often as it says ("3 red cans"). The embedding of a token is the sum of the embeddings of its words. So
the LM learns to find, combine and count things that are scattered and superposed. A projector gives it pictures in the
same form, and align then only has to write what the LM can already read. docs/experiments.md has the gain."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lineside.model.vlm import VLM
from lineside.runtime import upload
from lineside.types import Sample

ROWS = {"top": 0, "upper": 0, "bottom": 2, "lower": 2}
COLUMNS = {"left": 0, "right": 2}
CENTRE = ("middle", "center", "centre")
JOINTS = ("at", "in", "on", "the", "and")  # removed together with the words for a place
UNSAID = 0.7  # share of clauses without their words for number and place: the LM must count and locate by itself
MOST_COPIES = 40
NOISE = 0.3  # relative to the scale of the embeddings

_CLAUSE = re.compile(r"[.,:;]\s+|[.,:;]$")
Slots = list[list[int]]  # token ids at each position of a picture's grid, row by row


def clauses_of(captions: Sequence[str]) -> list[str]:
    """The distinct clauses of a frame's captions, in order."""
    return list(dict.fromkeys(c.strip() for text in captions for c in _CLAUSE.split(text) if c.strip()))


def place_of(words: Sequence[str]) -> tuple[int, int] | None:
    """(row, column) of the place that a clause names, on a grid of 3 x 3; None if it names none."""
    rows = [ROWS[w] for w in words if w in ROWS]
    columns = [COLUMNS[w] for w in words if w in COLUMNS]
    if not rows and not columns and not any(w in CENTRE for w in words):
        return None
    return (rows[0] if rows else 1), (columns[0] if columns else 1)


def drawn(captions: Sequence[str], slots: int, rng: random.Random) -> list[list[str]]:
    """The phrases at each of the `slots` positions of a picture's grid. All randomness comes from `rng`."""
    side = round(slots**0.5)
    square = side * side == slots
    out: list[list[str]] = [[] for _ in range(slots)]
    for clause in clauses_of(captions):
        words = clause.split()
        place = place_of(words) if square else None
        copies = int(words[0]) if words[0].isascii() and words[0].isdigit() and len(words[0]) < 3 else 1
        if rng.random() < UNSAID and place is not None:
            words = [w for w in words if w not in (*ROWS, *COLUMNS, *CENTRE, *JOINTS)]
            if copies > 0 and words and words[0].isdigit():
                words = words[1:]
        elif place is None and copies > 1:  # other clauses place these things: keep the clause once, or leave it out
            copies = int(rng.random() < 0.5)
        else:
            copies = 1
        cells = range(slots)
        if place is not None:
            rows, columns = (range(round(k * side / 3), round((k + 1) * side / 3)) for k in place)
            cells = [r * side + c for r in rows for c in columns]
        for _ in range(min(copies, MOST_COPIES)):
            out[rng.choice(cells)].append(" ".join(words))
    return out


def sketch(vlm: VLM, group: Sequence[Sample], rng: random.Random) -> Slots:
    """The sketch of a frame's captions: token ids, one list for each picture token."""
    captions = [s.answer for s in group if s.kind == "caption" and s.answer]
    phrases = drawn(captions, vlm.render.image_tokens(group[0].images[0]), rng)
    return [[token for phrase in slot for token in vlm.render.encode_untrusted(" " + phrase)] for slot in phrases]


def embed_sketches(vlm: VLM, sketches: Sequence[Slots]) -> Tensor:
    """-> (I, P, D). At each position: the sum of the embeddings of its words, divided by the square root of their
    number, plus noise. An empty position has only noise. Gradients reach the embedding table."""
    table = vlm.model.get_input_embeddings().weight
    assert isinstance(table, Tensor)
    slots = [slot for picture in sketches for slot in picture]
    lengths = torch.tensor([len(slot) for slot in slots])
    starts = lengths.cumsum(0) - lengths
    tokens = torch.tensor([token for slot in slots for token in slot], dtype=torch.long)
    bags, root = upload(starts, table.device), upload(lengths.clamp(min=1).sqrt()[:, None], table.device)
    summed = nn.functional.embedding_bag(upload(tokens, table.device), table.float(), bags, mode="sum") / root
    noise = upload(torch.randn(summed.shape), table.device) * table.detach().float().square().mean().sqrt() * NOISE
    return (summed + noise).view(len(sketches), -1, table.shape[1]).to(table.dtype)
