"""What captions are made of: phrases that know how they can be made false.

A caption is a list of phrases. Their builders (captions_bins, captions_stations) have the record at hand and list, for
each phrase, other wordings that do not hold of the frame: a colour that nothing there has, a count that is off. So a
wrong caption differs from the true one in one attribute, is false by the record and has as many words.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from lineside.sim.words import VALUES, Look, dice, known_looks, places_near
from lineside.types import Frame, Split

MOST_WORDS = 40
SENTENCES = (1, 1, 2, 2, 3)  # of a caption, each as likely
ROUNDS = 12  # times that the kinds of caption are gone through for new ones


@dataclass(frozen=True, slots=True)
class Phrase:
    """A piece of a caption. `wrong` lists (attribute, the piece made false) in as many words; it is called only where a
    caption is to be made false, as most never are."""

    text: str
    wrong: Callable[[], Sequence[tuple[str, str]]] = tuple


Caption = list[Phrase]
Builder = Callable[["View", random.Random], Caption | None]


class View:
    """A frame as the builders of captions see it: its record, and of each part its look and the places it is near."""

    def __init__(self, frame: Frame) -> None:
        self.record = frame.record
        self._split, self._week = frame.split, frame.meta.week
        self.parts = [(Look.of(part), places_near(part)) for part in frame.record.get("parts", ())]

    def variants(self, look: Look, kinds: tuple[str, ...] = ()) -> tuple[tuple[str, Look], ...]:
        """(attribute, look) for what one could take a look for: see `variants`."""
        return variants(look, self._split, self._week, kinds)

    def counts(self, look: Look, where: str | None = None) -> set[int]:
        """Every number of such parts that one may rightly name (at a place, or in all).

        "1 red can" is right beside a striped one whether or not that is counted, and what lies at a border is in both
        places.
        """
        near = [(other == look, places) for other, places in self.parts if look.fits(other)]
        numbers: set[int] = set()
        for counted in (near, [(same, places) for same, places in near if same]):
            low = sum(where is None or places == (where,) for _, places in counted)
            high = sum(where is None or where in places for _, places in counted)
            numbers |= set(range(low, high + 1))
        return numbers

    def too_many(self, count: int, look: Look, where: str | None = None) -> bool:
        """Whether there are not so many such parts (there), however one counts."""
        near = sum(look.fits(other) and (where is None or where in places) for other, places in self.parts)
        return count > near


def stream(frame: Frame, aspects: Sequence[Sequence[Builder]]) -> Iterator[Caption]:
    """Captions of a frame by the hash of its id, no two alike, with something to get wrong in each.

    `aspects` groups the builders. None of the captions has more than `MOST_WORDS` words; each has one to three
    sentences, of as many aspects, so that a sentence made false is not given away by another. The first captions begin
    with one of each kind.
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
    """The sentences one after another, without those that there is no room for."""
    caption: Caption = []
    for sentence in sentences:
        longer = joined([caption, sentence], " ") if caption else sentence
        if len(render(longer).split()) <= MOST_WORDS:
            caption = longer
    return caption


def render(caption: Caption) -> str:
    return "".join(phrase.text for phrase in caption)


def falsehoods(caption: Caption) -> dict[str, list[tuple[int, str]]]:
    """By attribute, the ways to make a caption false: (index of the phrase, its new text)."""
    ways: dict[str, list[tuple[int, str]]] = {}
    for index, phrase in enumerate(caption):
        for attribute, text in phrase.wrong():
            ways.setdefault(attribute, []).append((index, text))
    return ways


def falsify(caption: Caption, rng: random.Random) -> tuple[str, str]:
    """(the caption with one attribute wrong, which): any attribute it speaks of is as likely."""
    ways = falsehoods(caption)
    attribute = rng.choice(sorted(ways))
    index, text = rng.choice(ways[attribute])
    changed = [*caption[:index], Phrase(text), *caption[index + 1 :]]
    return render(changed), attribute


def plain(text: str) -> Phrase:
    return Phrase(text)


def phrase(text: str, wrong: Iterable[tuple[str, str]]) -> Phrase:
    """A phrase whose (attribute, text) to make it false are gone through once, when they are first asked for."""
    return Phrase(text, cache(lambda: tuple(wrong)))


def swap(text: str, attribute: str, others: Iterable[str]) -> Phrase:
    """A phrase that other texts make false; those of another length are left out."""
    length = len(text.split())
    return phrase(text, ((attribute, other) for other in others if len(other.split()) == length))


def number(text: str, value: int, attribute: str = "count", *, least: int = 0, most: int = 99) -> Phrase:
    """A phrase with a number at "#": off by one or two, or by about a quarter or a half where it is large."""
    others = [other for other in off(value) if least <= other <= most]
    return swap(text.replace("#", str(value)), attribute, [text.replace("#", str(other)) for other in others])


def off(value: int) -> list[int]:
    """Numbers that a count may be mistaken for: one or two off, or a quarter or a half where it is large."""
    step = max(1, round(value / 4))
    return [value + shift for shift in (-2 * step, -step, step, 2 * step)]


@cache
def variants(look: Look, split: Split, week: int, kinds: tuple[str, ...] = ()) -> tuple[tuple[str, Look], ...]:
    """(attribute, look) for what is one said attribute apart, fits a known article and has as many words.

    Known are those of the split and week, of `kinds` if any are given.
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
    """Lists of phrases in a row with text between them."""
    caption: Caption = []
    for index, item in enumerate(items):
        caption += [plain(between)] * bool(index) + item
    return caption
