"""Maps of hashes and lists of texts: what a dict and a list say, in a few bytes an entry."""

from __future__ import annotations

import random
import tracemalloc

import pytest

from lineside import hashmap
from lineside.hashing import stable_hash
from lineside.hashmap import HashMap, Texts


@pytest.mark.parametrize("most", [2, 3, 2048])
def test_a_map_says_what_a_dict_says(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashmap, "MOST", most)
    rng, ours, theirs = random.Random(most), HashMap(), dict[int, int]()
    edges = [0, 1, 2**63 - 1, 2**63, 2**64 - 1]
    keys = edges + [rng.getrandbits(64) for _ in range(300)]
    for _ in range(2000):
        key, value = rng.choice(keys), rng.choice([0, 1, rng.getrandbits(63), 2**63 - 1])
        assert ours.get(key) == theirs.get(key)
        assert (key in ours) == (key in theirs)
        ours[key] = theirs[key] = value
        assert len(ours) == len(theirs)
    assert [ours.get(key) for key in keys] == [theirs.get(key) for key in keys]
    assert ours.get(rng.getrandbits(64)) is None


def test_texts_come_back_by_their_number() -> None:
    texts, given = Texts(), ["", "a", "Ünïcode 箱", "half a pair \ud800", "", "x" * 1000]
    assert [texts.add(text) for text in given] == list(range(6))
    assert [texts[number] for number in range(len(texts))] == given
    with pytest.raises((IndexError, ValueError)):
        texts[6]


def test_an_entry_takes_a_few_bytes() -> None:
    def held(count: int) -> int:
        tracemalloc.start()
        kept, names = HashMap(), Texts()
        for number in range(count):
            kept[stable_hash(number)] = names.add(f"frame-{number:07d}")
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(kept) == len(names) == count
        return size

    few, many = held(8_000), held(32_000)
    assert (many - few) / 24_000 < 16 / 0.6 + (13 + 8) * 1.25  # hash and number, blocks half full; text and end
