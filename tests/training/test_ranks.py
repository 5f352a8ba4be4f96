"""Several processes train what one does, to rounding, and go on from each other's states.

They are forked from a process of their own (tests/forked.py)."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lineside.model.tree import Node
from lineside.runtime import Runtime
from lineside.training.forecast import Machine, held_bytes
from lineside.training.packing import ImageTree, deal, steps_of
from lineside.training.shared_steps import shared_steps
from lineside.types import Image, Sample
from tests.families.finished import KINDS
from tests.small_run import sample

ROOT = Path(__file__).parents[2]


def scenario(name: str, folder: Path) -> dict[str, Any]:
    """What a scenario of tests/forked.py finds."""
    command = [sys.executable, "-m", "tests.forked", name, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "found.json").read_text())


@given(st.lists(st.integers(1, 500), max_size=40), st.integers(1, 9))
def test_each_thing_is_dealt_once_and_no_hand_has_much_more(sizes: list[int], hands: int) -> None:
    dealt = deal(sizes, hands)
    assert len(dealt) == hands and sorted(itertools.chain(*dealt)) == list(range(len(sizes)))
    assert all(numbers == sorted(numbers) for numbers in dealt)
    held = [sum(sizes[number] for number in numbers) for numbers in dealt]
    assert max(held) - min(held) <= max(sizes, default=0)
    assert deal(sizes, 1) == [list(range(len(sizes)))]


class Together:
    """Ranks as threads of this process: what a Runtime tells."""

    def __init__(self, count: int) -> None:
        self.world_size, self._told, self._wait = count, [None] * count, threading.Barrier(count)
        self._mine = threading.local()

    @property
    def rank(self) -> int:
        return self._mine.rank

    def exchange(self, value: Any) -> list[Any]:
        self._told[self.rank] = value
        self._wait.wait()
        told = list(self._told)
        self._wait.wait()
        return told

    def run(self, work: Callable[[], Any]) -> list[Any]:
        def one(rank: int) -> Any:
            self._mine.rank = rank
            return work()

        with ThreadPoolExecutor(self.world_size) as pool:
            return list(pool.map(one, range(self.world_size)))


@given(st.lists(st.tuples(st.integers(1, 90), st.integers(0, 2)), max_size=30), st.integers(1, 4), st.integers(1, 200))
@settings(max_examples=40)
def test_steps_of_several_ranks_are_those_of_one(frames: list[tuple[int, int]], ranks: int, tokens: int) -> None:
    def lay(samples: Sequence[Sample]) -> ImageTree[Image]:
        size, pictures = frames[int(samples[0].id)]
        return ImageTree(Node((1,) * size, images=tuple(range(pictures))), samples[0].images)

    def stream() -> Iterator[tuple[tuple[Sample, ...], dict[str, int]]]:
        for number, (size, pictures) in enumerate(frames):
            image = Image(str(number).encode())
            row = replace(sample("qa", 0, 0, question="?" * (size % 17)), id=str(number), images=(image,) * pictures)
            yield (row,), {"groups": number + 1}

    want = [([tree.images for tree in held], c) for held, c in steps_of(((lay(s), c) for s, c in stream()), tokens)]
    runtime: Any = Together(ranks)
    found = runtime.run(lambda: list(shared_steps(stream(), lay, lambda _: (1, 1, 1), tokens, runtime)))
    for number, (images, cursor) in enumerate(want):
        steps = [steps[number] for steps in found]
        assert all(step.cursor == cursor for step in steps)
        trees = sorted((tree.tree.images, tree.images) for step in steps for tree in step.trees if tree.images)
        assert [one for _, one in trees] == [one for one in images if one]  # each once
        assert [i for numbers, _ in trees for i in numbers] == list(range(sum(map(len, images))))
        assert sum(len(step.trees) for step in steps) == len(images)
    assert all(len(steps) == len(want) for steps in found)


FRAMES = st.tuples(st.integers(0, 3), st.booleans(), st.sampled_from((20, 200, 4000)))


# The step is full before its last frame by the frames' true sizes, though not by what they should take.
TIGHT = [(0, False, 20)] * 2 + [(0, False, 4000)] * 3 + [(0, True, 200), (1, False, 4000), (3, True, 200)]
TIGHT += [(3, True, 4000), (0, False, 4000), (0, False, 20)] + [(0, False, 200)] * 2 + [(0, False, 4000)] * 3
TIGHT += [(0, True, 200), (1, True, 20), (2, True, 200), (3, True, 4000), (0, False, 4000), (0, False, 200)]
TIGHT += [(0, False, 4000)] * 3 + [(2, True, 200)] * 2 + [(1, True, 4000)] * 2


@given(st.lists(FRAMES, min_size=20, max_size=60), st.integers(2, 4), st.floats(0.1, 1.0))
@example(TIGHT, 4, 0.5)
@settings(max_examples=12, deadline=None)
def test_ranks_get_equal_tokens(frames: list[tuple[int, bool, int]], ranks: int, density: float) -> None:
    """Pictures of 1,088 tokens and small ones, none to three a frame, beside short and long texts, and a reference that
    two questions share."""

    def shown(image: Image) -> Sequence[int]:
        return range(1088 if image.path == "large" else 49)

    def lay(samples: Sequence[Sample]) -> ImageTree[Image]:
        pictures = (*samples[0].frame_images, *samples[0].references)
        text = round(density * sum(len(s.question) + len(s.answer or "") for s in samples))
        return ImageTree(Node((1,) * (text + sum(len(shown(image)) for image in pictures))), ())

    def stream(first: int) -> Iterator[tuple[tuple[Sample, ...], dict[str, int]]]:
        for number, (pictures, large, length) in enumerate(frames[first:], start=first):
            image = Image(b"", path="large" if large else "")
            beside = Image(b"", role="reference", path="large", name="can")
            images = (*(image,) * pictures, *(beside,) * (length == 200))
            row = replace(sample("qa", 0, 0, question="?" * (length // 2), answer=""), images=images)
            yield (row, row), {"groups": number + 1}

    def dealt(first: int) -> list[tuple[int, list[list[int]]]]:
        """The cursor after each step from frame `first` on, and the sizes of each rank's trees."""
        runtime: Any = Together(ranks)
        found = runtime.run(lambda: list(shared_steps(stream(first), lay, shown, 20_000, runtime)))
        steps = zip(*found, strict=True)
        return [(step[0].cursor["groups"], [[t.tree.size() for t in own.trees] for own in step]) for step in steps]

    steps = dealt(0)
    for _, sizes in steps:
        held, largest = [sum(own) for own in sizes], max(itertools.chain(*sizes))
        if sum(held) >= 20_000:  # the last step may end before the texts' density is known
            assert max(held) - min(held) <= largest + len(frames), (held, largest)  # and a token a frame for rounding
    assert dealt(steps[0][0]) == steps[1:]  # a run that goes on deals as an unbroken one


def test_what_was_read_before_a_stream_begins_anew_is_dropped() -> None:
    era = [0]

    def stream() -> Iterator[tuple[tuple[Sample, ...], dict[str, int]]]:
        for number in range(8):
            era[0] += number == 3
            yield (sample("qa", 0, number, question="???"),), {"groups": number}

    def lay(samples: Sequence[Sample]) -> ImageTree[Image]:
        return ImageTree(Node((1,) * 10), ())

    found = list(shared_steps(stream(), lay, lambda _: (), 40, Runtime(), begun=lambda: era[0]))
    assert [step.cursor["groups"] for step in found] == [6, 7] and [len(step.trees) for step in found] == [4, 1]


def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    found = scenario("equal", tmp_path)
    assert found["status"] == [[0], [0, 0]] * 2
    everything, alone = found["blank"]  # in how many steps a rank had no tree
    assert everything["align"] > 0 and alone == {"sft": 2, "rlvr": 2}
    for weights, curves in found["lonely"]:  # a rank without a frame, or without live groups, takes part
        assert weights < 1e-5 and curves < 1e-4
    weights, curves = found["small"]
    assert weights < 1e-5 and curves < 1e-4
    stopped, samples, states = found["halted"]  # by an alarm that rank 0 alone has seen
    assert stopped == [1, 1] and len(samples) == 8 and states == ["step-00000002.safetensors"]
    ended, states, again, weights, curves = found["left"]
    assert ended == [130, 130] and again == [0, 0] and len(states) == 1 and weights == curves == 0
    assert states[0] < "step-00000003.safetensors"  # the step under way was left out by both


@pytest.mark.slow
def test_they_do_so_with_every_setting_and_stop_together(tmp_path: Path) -> None:
    found = scenario("settings", tmp_path)
    assert found["status"] == [[0, 0]] * 2 + [[0], [0, 0]] * 2
    for machines in (1, 2):  # what a plan counts of a rank is what it holds
        gathered, gradient, state, trained, part = found[f"held-{machines}"][0]
        planned = partial(held_bytes, Machine("", 1, 1, count=2, node=2 // machines), trained, trained)
        assert gathered == 2 * trained and gradient == 4 * trained
        assert gathered + gradient + state + part == pytest.approx(planned(packs=2), rel=0.02)
        assert gathered + state + part == pytest.approx(planned(packs=1), rel=0.02)
    weights, curves = found["muon"]  # its products are in bf16
    assert weights < 1e-3 and curves < 1e-5
    weights, curves = found["ahead"]  # with the thread that reads ahead, and gradient checkpointing
    assert weights < 1e-5 and curves < 1e-4
    stopped, bad, fine, step, states = found["poisoned"]  # all stop before the same step, and the sample is found
    assert stopped == [1, 1] and "f5-qa" in bad and all(name.startswith("f5") for name in bad)
    assert len(fine) > 1 and "f5-qa" not in fine
    assert states == ([f"step-{step - 1:08d}.safetensors"] if step > 1 else [])
    assert found["collapsed"] == [[1, 1], ["f1-prompt-0"]]  # an alarm that all ranks have seen is told once
    stopped, steps, warnings, states = found["dead"]  # steps without an update: logged once, saved, and stopped
    assert stopped == [1, 1] and steps == [1, 2, 3, 4] and warnings == 1
    assert states == ["step-00000004.safetensors"]
    if "lora" in found:  # with peft
        assert found["lora-status"] == [[0], [0, 0]]
        weights, curves = found["lora"]
        assert weights < 1e-5 and curves < 1e-4


# After 6 and 50 steps: the largest difference of a weight, and the largest relative one of a curve; several times what
# was seen (docs/scale.md). Rounding alone does as much to one process; Muon orthogonalises in bf16, so there it grows.
SIX = {"align": (1e-6, 2e-6), "sft": (5e-6, 3e-6), "muon": (1e-2, 1e-3), "rlvr": (5e-6, 5e-5)}
FIFTY = {"align": (1e-6, 2e-6), "sft": (3e-5, 3e-4), "muon": (3e-2, 2e-1), "rlvr": (1e-6, 3e-5), "bf16": (1e-2, 1e-3)}


@pytest.mark.slow
def test_they_do_so_over_fifty_steps_on_one_machine_and_on_two(tmp_path: Path) -> None:
    found = scenario("long", tmp_path)
    assert len(found) == 3 * len(FIFTY)
    for name, (_, weights, gradients, curves) in found.items():
        ends = ", ".join(f"{max(curves[:steps]):.1e} up to {steps}" for steps in (1, 5, 20, 50))
        print(f"{name}: first gradients {gradients:.1e}; curves {ends}; weights {weights:.1e}")
    for name, (ended, weights, gradients, curves) in found.items():
        stage, _, what = name.partition(", ")
        assert ended == ([0] if what == "packs" else [0, 0])
        assert weights < FIFTY[stage][0] and max(curves) < FIFTY[stage][1], (name, weights, curves)
        if stage != "bf16":
            assert len(curves) == 50 and gradients < 1e-6 and curves[0] < 2e-6, (name, gradients, curves)


@pytest.mark.slow
def test_they_train_a_finished_model_of_each_family_as_one_does(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    found = scenario("finished", tmp_path)
    assert len(found) == 3 * len(KINDS)
    for what, (ended, *apart) in found.items():
        assert ended == [[0], [0, 0]] and max(apart) < 1e-4, (what, ended, apart)


@pytest.mark.slow
def test_they_go_on_from_each_others_states_and_after_a_kill(tmp_path: Path) -> None:
    found = scenario("resumed", tmp_path)
    for stage in SIX:
        for before, after in ((2, 1), (1, 2)):
            stopped, states, ended, weights, curves = found[f"{stage}-{before}-{after}"]
            assert stopped == [130] * before and ended == [0] * after
            assert states == ["step-00000003.safetensors"]  # the step under way was finished by all, and saved
            assert weights < SIX[stage][0] and curves < SIX[stage][1], (stage, before, weights, curves)
        ended, states, again, weights, curves = found[f"{stage}-killed"]
        assert ended[1] == -9 and ended[0] == 1 and again == [0, 0]
        assert states == ["step-00000002.safetensors", "step-00000003.safetensors"]
        assert weights == 0 and curves == 0  # exactly what an unbroken run has
    ended, states, again, weights, curves = found["rlvr-left"]  # one was interrupted while it sampled
    assert ended == [130, 130] and again == [0, 0] and weights == curves == 0
    assert states == ["step-00000001.safetensors"]
    for name in ("minutes", "minutes-ahead"):  # by rank 0's clock; with the thread that reads ahead from then on
        measured, given, weights, curves = found[name]
        assert measured == [0, 0] and given == [0] and weights < 1e-2 and curves < 1e-1
