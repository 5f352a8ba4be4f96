"""What captions are made of: phrases that know how they can be made false.

A caption is a list of phrases. Their builders (captions_bins, captions_stations) have the record at hand and list, for
each phrase, other wordings that do not hold of the frame: a colour that nothing there has, a count that is off. So a
wrong caption differs from the true one in one attribute, is false by the record and has as many words.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from lineside.sim.words import VALUES, Look, dice, known_looks
from lineside.types import Frame, Split

MOST_WORDS = 40
ROUNDS = 12  # times that the kinds of caption are gone through for new ones


@dataclass(frozen=True, slots=True)
class Phrase:
    """A piece of a caption; `wrong` holds (attribute, the piece made false) in as many words."""

    text: str
    wrong: tuple[tuple[str, str], ...] = ()


Caption = list[Phrase]
Builder = Callable[[Frame, random.Random], Caption | None]


def stream(frame: Frame, builders: Sequence[Builder]) -> Iterator[Caption]:
    """Captions of a frame by the hash of its id, no two alike, with something to get wrong in each.

    None has more than `MOST_WORDS` words. The first ones are one of each kind.
    """
    seen: set[str] = set()
    for turn in range(ROUNDS):
        order = dice(frame.id, "captions", turn).sample(range(len(builders)), len(builders))
        for index in order:
            caption = builders[index](frame, dice(frame.id, "caption", turn, index))
            text = render(caption) if caption else ""
            if caption and text not in seen and len(text.split()) <= MOST_WORDS and falsehoods(caption):
                seen.add(text)
                yield caption


def render(caption: Caption) -> str:
    return "".join(phrase.text for phrase in caption)


def falsehoods(caption: Caption) -> dict[str, list[tuple[int, str]]]:
    """By attribute, the ways to make a caption false: (index of the phrase, its new text)."""
    ways: dict[str, list[tuple[int, str]]] = {}
    for index, phrase in enumerate(caption):
        for attribute, text in phrase.wrong:
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


def swap(text: str, attribute: str, others: Sequence[str]) -> Phrase:
    """A phrase that other texts make false; those of another length are left out."""
    return Phrase(text, tuple((attribute, other) for other in others if len(other.split()) == len(text.split())))


def number(text: str, value: int, attribute: str = "count", *, least: int = 0, most: int = 99) -> Phrase:
    """A phrase with a number at "#": off by one or two, or by about a quarter or a half where it is large."""
    step = max(1, round(value / 4))
    others = [value + shift for shift in (-2 * step, -step, step, 2 * step) if least <= value + shift <= most]
    return swap(text.replace("#", str(value)), attribute, [text.replace("#", str(other)) for other in others])


def variants(look: Look, split: Split) -> Iterator[tuple[str, Look]]:
    """(attribute, look) for what is one said attribute apart, fits an article of the split and has as many words."""
    for name, values in VALUES.items():
        said = getattr(look, name)
        for value in values:
            other = look.change(**{name: value})
            same_length = len(other.text.split()) == len(look.text.split())
            if said and value not in ("", said) and same_length and any(map(other.fits, known_looks(split))):
                yield name, other


def joined(items: Sequence[Caption], between: str = ", ") -> Caption:
    """Lists of phrases in a row with text between them."""
    caption: Caption = []
    for index, item in enumerate(items):
        caption += [plain(between)] * bool(index) + item
    return caption
