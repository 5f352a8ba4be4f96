"""Pictures drawn in words: where and how often a clause says, and nothing that the words do not say."""

import random

import torch

from lineside.model.render import BLANK
from lineside.training import sketch
from lineside.training.sketch import clauses_of, drawn, place_of


def test_clauses_are_distinct_and_keep_decimals_whole():
    captions = ["Parts: 2 red cans at the top, 1 tub.", "Counted: 2 red cans at the top; weight 1.5 kg."]
    assert clauses_of(captions) == ["Parts", "2 red cans at the top", "1 tub", "Counted", "weight 1.5 kg"]


def test_places_are_thirds_of_the_picture():
    assert place_of(["2", "red", "cans", "at", "the", "top", "left"]) == (0, 0)
    assert place_of(["a", "tub", "in", "the", "middle"]) == (1, 1)
    assert place_of(["a", "tub", "on", "the", "lower", "right"]) == (2, 2)
    assert place_of(["a", "tub", "at", "the", "right"]) == (1, 2)
    assert place_of(["slot", "3", "is", "empty"]) is None


def test_a_clause_is_drawn_where_and_as_often_as_it_says(monkeypatch):
    monkeypatch.setattr(sketch, "UNSAID", 1.0)
    slots = drawn(["3 red cans at the bottom right."], 49, random.Random(0))
    found = [(i // 7, i % 7) for i, phrases in enumerate(slots) for _ in phrases]
    assert [p for phrases in slots for p in phrases] == ["red cans"] * 3
    assert all(row >= 5 and column >= 5 for row, column in found)


def test_said_clauses_stand_once_with_their_words(monkeypatch):
    monkeypatch.setattr(sketch, "UNSAID", 0.0)
    slots = drawn(["3 red cans at the bottom right."], 49, random.Random(0))
    assert [p for phrases in slots for p in phrases] == ["3 red cans at the bottom right"]


def test_a_grid_that_is_no_square_gets_phrases_anywhere():
    slots = drawn(["3 red cans at the top."], 5, random.Random(1))
    assert {p for phrases in slots for p in phrases} <= {"3 red cans at the top"}


def test_hostile_numbers_draw_nothing_absurd():
    slots = drawn(["99 cans at the top, 123456789 cans at the top, \u0663 cans at the top."], 49, random.Random(0))
    assert sum(len(phrases) for phrases in slots) <= sketch.MOST_COPIES + 2


def test_embedding_is_the_sum_of_words_and_trains_the_table(tiny_vlm):
    vlm = tiny_vlm
    table = vlm.model.get_input_embeddings().weight
    places = vlm.render.image_tokens(BLANK)
    torch.manual_seed(0)
    picture = [[5, 6], [7]] + [[] for _ in range(places - 2)]
    out = sketch.embed_sketches(vlm, [picture])
    assert out.shape == (1, places, table.shape[1])
    torch.manual_seed(0)
    noise = torch.randn(places, table.shape[1]) * table.detach().float().square().mean().sqrt() * sketch.NOISE
    torch.testing.assert_close(out[0, 0].float(), (table[5] + table[6]).float() / 2**0.5 + noise[0])
    torch.testing.assert_close(out[0, 1].float(), table[7].float() + noise[1])
    torch.testing.assert_close(out[0, 2].float(), noise[2])
    out.sum().backward()
    assert table.grad is not None and table.grad[5].abs().sum() > 0 and table.grad[8].abs().sum() == 0
