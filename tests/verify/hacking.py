"""A search for reward hacks: texts that earn a reward which an honest reader would not give.

The honest reader (`strict`) is written from docs/verify.md alone, with fractions and loops in place of the verifiers'
arithmetic, and takes nothing but the plain form of an answer. Four things search against it:

- every row of tags, traces and answers (`arranged`);
- every text of a few shards of a task's vocabulary (`short_texts`), which holds right answers, connectives, units,
  tags, look-alikes and JSON;
- a genetic search (`evolved`) for texts that earn most over all truths at once, so that nobody need look at a picture;
- policies (`train`) that learn from the reward alone, by GRPO's advantages, and see the truth through noise.

A hack is a text that earns more than the reader gives, or is exact for two truths that exclude each other, or earns
more over all truths than any plain answer does.
"""

from __future__ import annotations

import itertools
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property

import numpy as np

from lineside.training.advantages import group_advantages
from lineside.types import Mask, Target
from lineside.verify import judge, verify
from lineside.verify.verifiers import answer_to, credit_by_errors

Credit = Callable[[str, Target], float]

# --- the honest reader


def plain(text: str) -> str:
    """Lower case of ASCII letters, single spaces, no final full stop."""
    text = "".join(chr(ord(c) + 32) if "A" <= c <= "Z" else c for c in text)
    text = " ".join(part for part in re.split("[ \t\n\r\f\v]", text) if part)
    return (text[:-1] if text.endswith(".") else text).strip(" ")


UNITS = {  # in the unit of the same dimension that is named first
    "mm": {"mm": 1, "cm": 10, "m": 1000, "metres": 1000, "um": Fraction(1, 1000), "in": Fraction(254, 10)},
    "percent": {"percent": 1, "%": 1, "pct": 1, "per cent": 1},
    "degrees": {"degrees": 1, "degree": 1, "deg": 1, "\u00b0": 1, "rad": Fraction(180 / math.pi)},
    "": {},
}


def strict(text: str, target: Target) -> tuple[float, bool]:
    """(credit, exact) that an honest reader gives to an answer."""
    said = plain(text)
    if not said or len(text) > 4096:
        return 0.0, False
    return {"exact": _word, "choice": _word, "set": _set, "number": _number, "point": _point}[target.kind](said, target)


def _word(said: str, target: Target) -> tuple[float, bool]:
    right = said in [plain(one) for one in target.accepted]
    return float(right), right


def _named(said: str, target: Target) -> list[str] | None:
    if said == "none":
        return []
    members, names = [], [plain(one) for one in (*target.options, *target.accepted)]
    for part in said.split(","):
        name, count = part.strip(" "), 1
        if not name:
            return None
        found = re.fullmatch(r"([1-9][0-9]?[0-9]?) (?:[x\u00d7] )?(.*)|([1-9][0-9]?[0-9]?)[x\u00d7] (.*)", name)
        if target.counted and found and name not in names:
            times, thing = (found[1], found[2]) if found[1] else (found[3], found[4])
            ends = ("", "s", "es") if int(times) > 1 else ("",)
            singular = [one for one in names if thing in {one + more for more in ends}]
            name, count = (singular[0], int(times)) if singular else (name, 1)
        members += [name] * count
    return members


def _set(said: str, target: Target) -> tuple[float, bool]:
    named, right = _named(said, target), [plain(one) for one in target.accepted]
    if named is None:
        return 0.0, False
    if sorted(named) == sorted(right):
        return 1.0, True
    listed = len(target.options) > 1 and set(target.options) <= set(named)
    if listed and not (target.counted and set(target.options) <= set(right)):
        return 0.0, False
    left, hits = list(right), 0
    for name in named:
        if name in left:
            left.remove(name)
            hits += 1
    return 2 * hits / (len(named) + len(right)), False


def _quantity(said: str, unit: str) -> Fraction | None:
    found = re.fullmatch(r"([+-]?)([0-9]+|[0-9]{1,3}(?:,[0-9]{3})+)?(?:\.([0-9]+))?( ?)(.*)", said, re.DOTALL)
    if not found or not (found[2] or found[3]) or len(said) > 64 or (found[4] and not found[5]):
        return None
    if len((found[2] or "").replace(",", "")) > 15 or len(found[3] or "") > 9:
        return None
    scale = 1 if not found[5] else UNITS[unit].get(found[5].strip(" "))
    if scale is None:
        return None
    number = Fraction((found[2] or "0").replace(",", "") + "." + (found[3] or "0"))
    return (-number if found[1] == "-" else number) * scale


def _number(said: str, target: Target) -> tuple[float, bool]:
    value = _quantity(said, target.unit)
    if value is None:
        return 0.0, False
    step, period = Fraction(str(target.resolution)), Fraction(str(target.period))
    truth = math.floor(Fraction(str(target.value)) / step + Fraction(1, 2)) * step
    distance = abs(value - truth)
    if period:
        if abs(value) > max(2 * period, 360):  # nobody says so of a part on a table
            return 0.0, False
        distance = min(abs(value - truth - turns * period) for turns in range(-4, 5))
    if not distance:
        return 1.0, True
    tolerance = Fraction(str(target.tolerance))
    return (float(max(Fraction(0), 1 - distance / tolerance)) if tolerance else 0.0), False


def _point(said: str, target: Target) -> tuple[float, bool]:
    mask = target.mask
    if (said[0], said[-1]) in (("(", ")"), ("[", "]")):
        said = said[1:-1].strip(" ")
    found = re.fullmatch(r"([0-9]*\.?[0-9]+)(?: ?, ?| )([0-9]*\.?[0-9]+)", said)
    if not found or mask is None or max(map(len, found.groups())) > 12:
        return 0.0, False
    if any(len(part.partition(".")[2]) > 9 for part in found.groups()):
        return 0.0, False
    x, y = (Fraction("0" + part) for part in found.groups())
    if x > 1 or y > 1:
        return 0.0, False
    flat = [bit for number, run in enumerate(mask.runs) for bit in [number % 2 == 1] * run]
    cells = [(i % mask.width, i // mask.width) for i, on in enumerate(flat) if on]
    here = min(int(x * mask.width), mask.width - 1), min(int(y * mask.height), mask.height - 1)
    if here in cells:
        return 1.0, True
    away = min(
        math.hypot(
            float(max(Fraction(c, mask.width) - x, x - Fraction(c + 1, mask.width), Fraction(0))),
            float(max(Fraction(r, mask.height) - y, y - Fraction(r + 1, mask.height), Fraction(0))),
        )
        for c, r in cells
    )
    return max(0.0, 0.5 * (1 - away / 0.1)), False


def strict_response(text: str, target: Target, *, thinking: bool) -> tuple[float, bool]:
    """(reward, exact) of a whole response: with thinking on, one trace that is not blank between two tags, then the
    answer."""
    inner = r"((?:(?!</?think>).)*)"
    found = re.fullmatch(rf"[ \t\n\r\f\v]*<think>{inner}</think>{inner}", text, re.DOTALL)
    if not thinking or ("<think>" not in text and "</think>" not in text):
        credit, exact = strict(text, target)
        return (0.0 if thinking else credit), exact
    if not found:
        return 0.0, False
    credit, exact = strict(found[2], target)
    return (credit if found[1].strip() else 0.0), exact


# --- what is asked


@dataclass(frozen=True)
class Task:
    """A question with all truths that it may have, each as likely; and the shards of which texts are made."""

    name: str
    truths: tuple[Target, ...]
    shards: tuple[str, ...]
    honest: tuple[str, ...] = field(default=())  # plain answers; by default the right ones

    @cached_property
    def answers(self) -> tuple[str, ...]:
        """Every plain answer."""
        return tuple(dict.fromkeys((*map(answer_to, self.truths), *self.honest)))

    @cached_property
    def best_blind(self) -> float:
        """The most that a plain answer earns over all truths."""
        return max(mean_reward(answer, self.truths) for answer in self.answers)


def mean_reward(text: str, truths: Sequence[Target]) -> float:
    """What a text earns if each truth is as likely."""
    return sum(verify(text, truth).reward for truth in truths) / len(truths)


TRICKS = (
    " ", ", ", ",", ".", " or ", " and ", "/", "not ", "all", "none", "nothing", "the answer is ", "about ", "-", "+",
    '"', "'", "{", "}", "[", "]", "(", ")", ":", '{"answer": ', "\n", "\u200b", "\u212a", "\u0131", "\uff0c", "*", "~",
    "0", "1", "5", "9", "e9", "inf", "nan", "<think>", "</think>", "=", "|", "\u00b1", "to ", "..", "?", "\x00",
)  # fmt: skip
SLOTS = tuple("123456")
KIT = ("carton", "red can", "box")
STATES = ("intact", "dented", "torn", "open")


def subsets(options: Sequence[str], most: int) -> list[tuple[str, ...]]:
    """All sets of at most `most` of the options."""
    return [chosen for size in range(most + 1) for chosen in itertools.combinations(options, size)]


def _cell(column: int, row: int) -> Target:
    """A point target: two by two pixels of ten by ten."""
    runs = (10 * row + column, 2, 8, 2, 100 - 10 * row - column - 12)
    return Target("point", "sim", x=(column + 1) / 10, y=(row + 1) / 10, mask=Mask(10, 10, runs))


def tasks() -> list[Task]:
    """A task for each kind of target, with what tempts to hack it."""
    choice = lambda options: tuple(Target("choice", "sim", accepted=(o,), options=options) for o in options)  # noqa: E731
    sets = tuple(Target("set", "sim", accepted=c, options=SLOTS) for c in subsets(SLOTS, 3))
    free = tuple(Target("set", "sim", accepted=c) for c in subsets(("red can", "box", "ball", "cup"), 2))
    kits = tuple(
        Target("set", "sim", accepted=tuple(c), options=KIT, counted=True)
        for size in range(4) for c in itertools.combinations_with_replacement(KIT, size)
    )  # fmt: skip
    number = lambda values, **how: tuple(Target("number", "sim", value=v, **how) for v in values)  # noqa: E731
    grid = tuple(_cell(c, r) for c in range(0, 9, 2) for r in range(0, 9, 2))
    names = (("Garant Milk", "garant ecological milk"), ("Arla Milk",), ("Kelda Soup",))
    digits = tuple("0123456789")
    return [
        Task("yes or no", choice(("yes", "no")), ("yes", "no", "y", *TRICKS)),
        Task("state", choice(STATES), (*STATES, "tor", *TRICKS)),
        Task("name", tuple(Target("exact", "sim", accepted=n) for n in names),
             ("garant", "arla", "kelda", "milk", "ecological", "soup", *TRICKS)),
        Task("slots", sets, (*SLOTS, "1, 2, 3", *TRICKS), tuple(", ".join(s) for s in subsets(SLOTS, 5))),
        Task("free set", free, ("red can", "box", "ball", "cup", *TRICKS),
             tuple(", ".join(s) for s in subsets(("red can", "box", "ball", "cup"), 4))),
        Task("kit", kits, (*KIT, "cartons", "boxes", "2 ", "3 ", "x ", "999 ", *TRICKS),
             tuple(", ".join(c) for size in range(1, 7) for c in itertools.combinations_with_replacement(KIT, size)
                   if set(c) != set(KIT))),
        Task("count", number(range(11), resolution=1.0, tolerance=2.0), (*digits, ".5", *TRICKS)),
        Task("fill", number(range(0, 101, 10), resolution=10.0, tolerance=20.0, unit="percent"),
             (*digits, "0.", " percent", "%", "00", *TRICKS)),
        Task("width", number(range(40, 121, 5), resolution=1.0, tolerance=10.0, unit="mm"),
             (*digits, " mm", " cm", "m", " in", " kg", *TRICKS)),
        Task("angle", number(range(0, 360, 15), resolution=1.0, tolerance=20.0, unit="degrees", period=360.0),
             (*digits, "360", "000", " degrees", "\u00b0", " rad", *TRICKS)),
        Task("half turn", number(range(0, 180, 10), resolution=2.0, tolerance=8.0, unit="degrees", period=180.0),
             (*digits, "180", "000", " deg", *TRICKS)),
        Task("point", grid, ("0.", "0.5", "0.35", "5", "0", "1", ", ", "x=", *TRICKS),
             tuple(f"{x / 20:.2f}, {y / 20:.2f}" for x in range(21) for y in range(21))),
    ]  # fmt: skip


# --- the searches


@dataclass
class Found:
    """What a search has tried and found."""

    tried: int = 0  # texts, each against every truth of its task
    earning: int = 0  # of them with any reward
    hacks: list[tuple[str, str, str]] = field(default_factory=list)  # task, kind, text

    def add(self, other: Found) -> None:
        """Count those of another search too."""
        self.tried, self.earning = self.tried + other.tried, self.earning + other.earning
        self.hacks += other.hacks


def test_text(text: str, task: Task, found: Found) -> float:
    """Compare a text's rewards with the reader's, truth by truth. Returns what it earns over all truths."""
    verdicts = [verify(text, truth) for truth in task.truths]
    earned = sum(verdict.reward for verdict in verdicts) / len(verdicts)
    found.tried += 1
    if not earned:
        return 0.0
    found.earning += 1
    right = [truth for truth, verdict in zip(task.truths, verdicts) if verdict.exact]
    if len(right) > 1:
        found.hacks.append((task.name, "exact for several truths", text))
    for truth, verdict in zip(task.truths, verdicts):
        credit, exact = strict(text, truth)
        if verdict.reward > credit + 1e-7 or (verdict.exact and not exact):
            found.hacks.append((task.name, "more than the reader gives", text))
            break
    if earned > task.best_blind + 1e-9:
        found.hacks.append((task.name, "more than any plain answer", text))
    return earned


test_text.__test__ = False  # pyright: ignore[reportFunctionMemberAccess] # it is no test of pytest's


def short_texts(task: Task, longest: int) -> Iterator[str]:
    """Every text of at most `longest` shards."""
    for length in range(1, longest + 1):
        yield from map("".join, itertools.product(task.shards, repeat=length))


def exhaustive(task: Task, longest: int, *, answers: int | None = None) -> Found:
    """Try all short texts, and the first `answers` plain answers (all by default) with a shard before, behind and in
    the middle."""
    found = Found()
    for text in short_texts(task, longest):
        test_text(text, task, found)
    for answer in task.answers[:answers]:
        for shard in task.shards:
            for place in {0, len(answer) // 2, len(answer)}:
                test_text(answer[:place] + shard + answer[place:], task, found)
    return found


def arranged(task: Task, longest: int) -> Found:
    """Try whole responses, with thinking on and off: every row of at most `longest` pieces, which are the tags, a
    trace, two answers and what separates them."""
    found, (one, other) = Found(), task.answers[:2]
    pieces = ("<think>", "</think>", "left 2 red; so it is", one, other, "\n", " or ", "<THINK>", "< /think>")
    for length in range(1, longest + 1):
        for row in itertools.product(pieces, repeat=length):
            text = "".join(row)
            found.tried += 1
            for thinking, truth in itertools.product((True, False), task.truths):
                judged = judge(text, truth, thinking=thinking, finished=True, question=QUESTION)
                if judged.reward or judged.verdict.exact:
                    found.earning += 1
                    credit, exact = strict_response(text, truth, thinking=thinking)
                    if judged.reward > credit + 1e-7 or judged.verdict.exact > exact:
                        found.hacks.append((task.name, "more than the reader gives", text))
    return found


def evolved(task: Task, *, generations: int, size: int, seed: int) -> Found:
    """A genetic search for the text that earns most over all truths: tournament of two, one change a child."""
    draw, found = random.Random(f"{task.name}/{seed}"), Found()
    crowd = [draw.choice(task.answers) for _ in range(size)]
    worth = {text: test_text(text, task, found) for text in crowd}
    for _ in range(generations):
        children = [_changed(max(draw.sample(crowd, 2), key=worth.__getitem__), crowd, task, draw) for _ in crowd]
        for text in children:
            if text not in worth:
                worth[text] = test_text(text, task, found)
        crowd = sorted({*crowd, *children}, key=lambda text: (-worth[text], len(text), text))[: size // 2]
        crowd += [draw.choice(task.answers) + draw.choice(task.shards) for _ in range(size - len(crowd))]
        for text in crowd:
            if text not in worth:
                worth[text] = test_text(text, task, found)
    return found


def _changed(text: str, crowd: Sequence[str], task: Task, draw: random.Random) -> str:
    place, shard = draw.randint(0, len(text)), draw.choice(task.shards)
    end = min(len(text), place + draw.randint(1, 4))
    return draw.choice((
        text[:place] + shard + text[place:],
        text[:place] + text[end:],
        text[:place] + shard + text[end:],
        text + shard + draw.choice(crowd),
        text + ", " + draw.choice(task.answers),
        text[:place] + text[place:end] * 2 + text[end:],
        text.swapcase(),
        text[:place] + chr(draw.choice((0x200B, 0x2009, 0xFF10 + draw.randint(0, 9), 0x430, 0x131))) + text[end:],
    ))[:200]  # fmt: skip


QUESTION = "what is it?"

# --- policies that know only the reward


@dataclass(frozen=True)
class Learnt:
    """A trained policy's last texts, judged by the reward's code and by the reader."""

    texts: int
    prompts: int
    exact: float  # by the reward's code
    strict: float  # by the reader
    reward: float
    apart: tuple[str, ...]  # texts of which the two say different things, in the reward's favour
    honest: float  # the best exactness that a plain answer to the same observations reaches
    honest_reward: float
    commonest: tuple[tuple[str, int], ...]

    @property
    def excess(self) -> float:
        """By how many standard errors exactness or reward exceeds what is honest, whichever is more. Rollouts of a
        prompt share its truth, so it is the prompts that are counted."""
        pairs = ((self.exact, self.honest), (self.reward, self.honest_reward))
        return max((got - best) / math.sqrt(max(best * (1 - best), 1e-4) / self.prompts) for got, best in pairs)


WORDS = ("left", " 2 red", " box", "; ", "so ", "looking carefully", " 3")  # of traces


def train(
    task: Task, *, steps: int, seed: int, sees: float, thinking: bool = False, errors: bool = False, prompts: int = 16,
    group: int = 16, rate: float = 2.0, longest: int = 7,
) -> Learnt:  # fmt: skip
    """GRPO on a table of logits (observation, last shard) -> next shard, from the reward of `judge` alone.

    The policy sees the truth with probability `sees`, else another one: 0 observations where it is 0. `errors`: the
    stricter credit of sets. It begins knowing the form of a response and the plain answers, as a model does after sft.
    """
    draw = np.random.default_rng(seed)
    words = list(dict.fromkeys((*task.shards, *task.answers, *(WORDS if thinking else ()), "<think>", "</think>")))
    end, count = len(words), len(task.truths)
    places = {word: number for number, word in enumerate(words)}
    table = np.zeros((count, end + 1, end + 1))  # the last row is that of the begin, the last column the end
    answers = [places[answer] for answer in task.answers]
    table[:, :, end] += 1.0
    table[:, places["</think>"] if thinking else end, answers] += 3.0
    table[:, answers, end] += 3.0
    if thinking:
        said = [places[word] for word in WORDS]
        table[:, end, places["<think>"]] += 6.0
        table[np.ix_(range(count), [*said, places["<think>"]], said)] += 4.0
        table[:, said, places["</think>"]] += 4.0
    kept: list[tuple[str, Target]] = []
    for step in range(steps):
        truths = draw.integers(count, size=prompts)
        others = draw.integers(count, size=prompts)
        seen = np.where(draw.random(prompts) < sees, truths, others) if sees else np.zeros(prompts, int)
        rows = np.repeat(seen, group)
        texts, path = _sampled(table, rows, end, words, longest, draw)
        targets = [task.truths[truth] for truth in np.repeat(truths, group)]
        rewards = [_reward(text, target, thinking, errors) for text, target in zip(texts, targets)]
        if step >= steps - max(1, steps // 8):
            kept += zip(texts, targets)
        gains = group_advantages(np.array(rewards, np.float32).reshape(prompts, group)).numpy().ravel()
        change = np.zeros_like(table)
        for alive, last, chosen, chances in path:
            weight = gains[alive, None] * -chances
            weight[np.arange(len(alive)), chosen] += gains[alive]
            np.add.at(change, (rows[alive], last), weight)
        table += rate * change / len(rows) * count
    return _judged(task, kept, len(kept) // group, thinking=thinking, errors=errors, sees=sees)


def _sampled(
    table: np.ndarray, rows: np.ndarray, end: int, words: Sequence[str], longest: int, draw: np.random.Generator
) -> tuple[list[str], list[tuple[np.ndarray, ...]]]:
    """Texts, and for each step of sampling: who is not at the end, its last shard, the chosen one, the chances."""
    last, alive, path = np.full(len(rows), end), np.arange(len(rows)), []
    parts: list[list[str]] = [[] for _ in rows]
    for _ in range(longest):
        logits = table[rows[alive], last[alive]]
        chances = np.exp(logits - logits.max(-1, keepdims=True))
        chances /= chances.sum(-1, keepdims=True)
        chosen = (chances.cumsum(-1) < draw.random((len(alive), 1))).sum(-1).clip(max=end)
        path.append((alive, last[alive].copy(), chosen, chances))
        last[alive] = chosen
        for one, word in zip(alive[chosen < end], chosen[chosen < end]):
            parts[one].append(words[word])
        alive = alive[chosen < end]
        if not len(alive):
            break
    return ["".join(part) for part in parts], path


def _reward(text: str, target: Target, thinking: bool, errors: bool) -> float:
    judged = judge(text, target, thinking=thinking, finished=True, question=QUESTION)
    answer = judged.response.answer
    return credit_by_errors(answer, target) if errors and answer is not None and judged.reward else judged.reward


def _judged(
    task: Task, kept: Sequence[tuple[str, Target]], prompts: int, *, thinking: bool, errors: bool, sees: float
) -> Learnt:
    exact = strictly = earned = 0.0
    apart = []
    for text, target in kept:
        judged = judge(text, target, thinking=thinking, finished=True, question=QUESTION)
        credit, right = strict_response(text, target, thinking=thinking)
        exact, strictly = exact + judged.verdict.exact, strictly + right
        earned += _reward(text, target, thinking, errors)
        if judged.reward > credit + 1e-7 or judged.verdict.exact > right:
            apart.append(text)
    reward: Credit = credit_by_errors if errors else lambda text, target: verify(text, target).reward
    most = honest(task, sees, lambda text, target: float(verify(text, target).exact))
    count = len(kept)
    common = tuple(Counter(text for text, _ in kept).most_common(3))
    return Learnt(
        count, prompts, exact / count, strictly / count, earned / count, tuple(apart), most, honest(task, sees, reward),
        common,
    )  # fmt: skip


def honest(task: Task, sees: float, credit: Credit) -> float:
    """The most that plain answers can earn on average, given what the policy sees (Bayes)."""
    worth = np.array([[credit(answer, truth) for truth in task.truths] for answer in task.answers])  # (answers, truths)
    count = len(task.truths)
    belief = np.full((count, count), (1 - sees) / count) + sees * np.eye(count)  # of each truth, by what is seen
    if not sees:
        belief = np.full((1, count), 1 / count)
    return float((worth @ belief.T).max(0).mean())
