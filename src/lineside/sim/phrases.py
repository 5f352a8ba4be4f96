"""The phrases of captions. Each phrase knows how it can be made false.

A caption is a list of phrases. The builders (captions_bins, captions_stations) know the record. For each phrase they
list other texts that are false for this frame: a colour that no part has, a wrong count. So a wrong caption differs
from the true one in one attribute, is false by the record, and has the same number of words.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from lineside.sim.words import VALUES, Look, dice, known_looks, places_near
from lineside.types import Frame, Split

MOST_WORDS = 40
SENTENCES = (1, 1, 2, 2, 3)  # numbers of sentences of a caption, each with the same probability
ROUNDS = 12  # passes over the kinds of caption in search of new ones


@dataclass(frozen=True, slots=True)
class Phrase:
    """A piece of a caption. `wrong` lists (attribute, false text), each with the same number of words. It is called
    only when a caption is made false, which is rare."""

    text: str
    wrong: Callable[[], Sequence[tuple[str, str]]] = tuple


Caption = list[Phrase]
Builder = Callable[["View", random.Random], Caption | None]


class View:
    """A frame for the builders of captions: its record, and the look and the possible places of each part."""

    def __init__(self, frame: Frame) -> None:
        self.record = frame.record
        self._split, self._week = frame.split, frame.meta.week
        self.parts = [(Look.of(part), places_near(part)) for part in frame.record.get("parts", ())]

    def variants(self, look: Look, kinds: tuple[str, ...] = ()) -> tuple[tuple[str, Look], ...]:
        """(attribute, look) for similar looks: see `variants`."""
        return variants(look, self._split, self._week, kinds)

    def counts(self, look: Look, where: str | None = None) -> set[int]:
        """All numbers of such parts (at a place, or in all) that are right.

        Beside a striped red can, "1 red can" and "2 red cans" are both right. A part at a border is in both places.
        """
        near = [(other == look, places) for other, places in self.parts if look.fits(other)]
        numbers: set[int] = set()
        for counted in (near, [(same, places) for same, places in near if same]):
            low = sum(where is None or places == (where,) for _, places in counted)
            high = sum(where is None or where in places for _, places in counted)
            numbers |= set(range(low, high + 1))
        return numbers

    def too_many(self, count: int, look: Look, where: str | None = None) -> bool:
        """Whether there are fewer such parts (there), however one counts."""
        near = sum(look.fits(other) and (where is None or where in places) for other, places in self.parts)
        return count > near


def stream(frame: Frame, aspects: Sequence[Sequence[Builder]]) -> Iterator[Caption]:
    """Captions of a frame, chosen by the hash of its id. No two are the same, and each can be made false.

    `aspects` groups the builders. A caption has at most `MOST_WORDS` words and one to three sentences. Each sentence is
    about another aspect, so that no other sentence shows that one is false. The first captions begin with one of each
    kind.
    """
    seen: set[str] = set()
    view = View(frame)
    kinds = [(aspect, builder) for aspect, builders in enumerate(aspects) for builder in builders]
    for turn in range(ROUNDS):
        for index in dice(frame.id, "captions", turn).sample(range(len(kinds)), len(kinds)):
            rng = dice(frame.id, "caption", turn, index)
            aspect, builder = kinds[index]
            others = [rng.choice(builders) for other, builders in enumerate(aspects) if other != aspect]
            chosen = [builder, *rng.sample(others, min(len(others), rng.choice(SENTENCES) - 1))]
            caption = _sentences([sentence for build in chosen if (sentence := build(view, rng))])
            text = render(caption)
            if text not in seen and any(phrase.wrong() for phrase in caption):
                seen.add(text)
                yield caption


def _sentences(sentences: Sequence[Caption]) -> Caption:
    """The sentences one after another, without those that are too long for the caption."""
    caption: Caption = []
    for sentence in sentences:
        longer = joined([caption, sentence], " ") if caption else sentence
        if len(render(longer).split()) <= MOST_WORDS:
            caption = longer
    return caption


def render(caption: Caption) -> str:
    return "".join(phrase.text for phrase in caption)


def falsehoods(caption: Caption) -> dict[str, list[tuple[int, str]]]:
    """The ways to make a caption false, by attribute: (index of the phrase, its new text)."""
    ways: dict[str, list[tuple[int, str]]] = {}
    for index, phrase in enumerate(caption):
        for attribute, text in phrase.wrong():
            ways.setdefault(attribute, []).append((index, text))
    return ways


def falsify(caption: Caption, rng: random.Random) -> tuple[str, str]:
    """(the caption with one attribute made false, that attribute). Each attribute in it has the same probability."""
    ways = falsehoods(caption)
    attribute = rng.choice(sorted(ways))
    index, text = rng.choice(ways[attribute])
    changed = [*caption[:index], Phrase(text), *caption[index + 1 :]]
    return render(changed), attribute


def plain(text: str) -> Phrase:
    return Phrase(text)


def phrase(text: str, wrong: Iterable[tuple[str, str]]) -> Phrase:
    """A phrase with (attribute, false text) pairs. They are computed once, when they are first needed."""
    return Phrase(text, cache(lambda: tuple(wrong)))


def swap(text: str, attribute: str, others: Iterable[str]) -> Phrase:
    """A phrase that other texts make false. Those with another number of words are left out."""
    length = len(text.split())
    return phrase(text, ((attribute, other) for other in others if len(other.split()) == length))


def number(text: str, value: int, attribute: str = "count", *, least: int = 0, most: int = 99) -> Phrase:
    """A phrase with a number at "#". Wrong numbers are off by 1 or 2, large ones by about a quarter or a half."""
    others = [other for other in off(value) if least <= other <= most]
    return swap(text.replace("#", str(value)), attribute, [text.replace("#", str(other)) for other in others])


def off(value: int) -> list[int]:
    """Wrong numbers for a count: off by 1 or 2, for a large count by about a quarter or a half."""
    step = max(1, round(value / 4))
    return [value + shift for shift in (-2 * step, -step, step, 2 * step)]


@cache
def variants(look: Look, split: Split, week: int, kinds: tuple[str, ...] = ()) -> tuple[tuple[str, Look], ...]:
    """(attribute, look) for looks that differ in one named attribute, fit a known article and have as many words.

    The known articles are those of the split and week, and of `kinds` if any are given.
    """
    known = [article for article in known_looks(split, week) if not kinds or article.kind in kinds]
    found = []
    for name, values in VALUES.items():
        said = getattr(look, name)
        for value in values:
            other = look.change(**{name: value})
            same_length = len(other.text.split()) == len(look.text.split())
            if said and value not in ("", said) and same_length and any(map(other.fits, known)):
                found.append((name, other))
    return tuple(found)


def joined(items: Sequence[Caption], between: str = ", ") -> Caption:
    """Lists of phrases joined into one, with a text between them."""
    caption: Caption = []
    for index, item in enumerate(items):
        caption += [plain(between)] * bool(index) + item
    return caption
