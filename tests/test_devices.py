"""What computes on a device equals the CPU, and how often the CPU waits for it stays at a written number.

The sham device (tests/sham.py) needs no GPU. With a GPU, `-m gpu` runs the same comparisons on it.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import lineside.backends.reference
import lineside.rlvr
import lineside.runtime
import lineside.training.stage
from lineside.backends.cuda import StaticDecoding
from lineside.data.store import write_samples
from lineside.evaluate import evaluate
from lineside.model.generate import Prompt, Timing, generate
from lineside.model.score import score
from lineside.recipe import Rates, Sft
from lineside.runtime import ON_CPU, Runtime
from lineside.serving.engine import LocalEngine, Request
from lineside.sft import sft
from lineside.training.budget import read_budget
from lineside.training.stage import Stage
from lineside.types import Image
from tests.conftest import picture, sharp
from tests.sham import Bus, Mismatch, Sham, sham_device
from tests.small_run import frame_samples, run_stages, tiny, weights

Run = tuple[dict[str, torch.Tensor], dict[str, list[dict[str, float]]]]
APART = ("training/state.py", "model/features.py")
WAITS_A_STEP = {"training/optim.py": 1, "training/stage.py": 1}  # the norm of the gradient; the metrics, in one copy
COPIES_A_PACK = 5  # pack, plan, features; of sft the places of answers and traces, of rlvr two numbers a token
WAITS_A_TOKEN = 1  # the chosen token and its log-probability, in one copy
COPIES_A_TOKEN = 2  # tokens and their positions; temperatures and random numbers
WAITS_A_BATCH = 1  # after prefill, so that its time is not counted as that of decoding
COPIES_A_DROP = 1  # the slots that go on, where rows have ended
COPIES_A_MOVE = 2  # more, where the others fit into half as many slots: which groups and rows move there


@pytest.fixture(scope="module")
def on_the_cpu(tmp_path_factory: pytest.TempPathFactory) -> Run:
    vlm, logged = run_stages(tmp_path_factory.mktemp("cpu"), ON_CPU)
    return weights(vlm), logged


@pytest.fixture
def bus(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bus]:
    with sham_device(monkeypatch) as bus:
        yield bus


def test_two_devices_in_one_operation_are_refused(bus: Bus) -> None:
    on, off = torch.ones(3, device=bus.device), torch.ones(3)
    assert isinstance(on, Sham) and (on * 2 + torch.tensor(1.0)).tolist() == [3.0] * 3
    for mixed in (
        lambda: on + off,
        lambda: torch.cat([on, off]),
        lambda: off.index_select(0, on.long()),
        lambda: torch.nn.functional.linear(on, off[None]),
        lambda: torch.where(on > 0, on, off),
        lambda: on.numpy(),
        lambda: on.data_ptr(),
    ):
        with pytest.raises(Mismatch):
            mixed()


def test_waits_and_copies_are_counted(bus: Bus) -> None:
    on = torch.arange(4.0).to(bus.device)
    for wait in (
        lambda: float(on[0]),
        lambda: on.tolist(),
        lambda: on.nonzero(),
        lambda: on.unique(),
        lambda: on[on > 1],
        lambda: on.cpu(),
        lambda: on[[0, 1]],
        lambda: on[torch.tensor([0, 1])],
        lambda: torch.ones(2).to(bus.device),
        lambda: torch.tensor([1, 2], device=bus.device),
    ):
        before = bus.waits.total()
        wait()
        assert bus.waits.total() == before + 1
    bus.clear()
    torch.ones(2).pin_memory().to(bus.device, non_blocking=True)
    assert on.add(1).exp().sum().dim() == 0
    assert bus.copies == {("?", "pinned"): 1} and not bus.waits


def rounding(runtime: Runtime, exact: float) -> float:
    """The sham has the CPU's own numbers. A card rounds in another order, and the store may then round a feature to the
    next bfloat16. AdamW enlarges that: noise of 1e-6 in each linear map moves a weight by 2e-4 here, of 5e-4 in the
    features by 5e-4. A wrong mask would move it by its rate, 1e-2."""
    return 1e-3 if runtime.device.type == "cuda" else exact


def test_the_stages_equal_those_of_the_cpu(runtime: Runtime, on_the_cpu: Run, tmp_path: Path) -> None:
    exact = rounding(runtime, 1e-5)
    vlm, logged = run_stages(tmp_path, runtime)
    there, expected = weights(vlm), on_the_cpu
    for name, weight in expected[0].items():
        torch.testing.assert_close(there[name], weight, atol=exact, rtol=1e-4)
    for stage, rows in expected[1].items():
        assert len(logged[stage]) == len(rows)
        for found, row in zip(logged[stage], rows):
            assert found == pytest.approx(row, rel=10 * exact, abs=exact)


def test_answers_scores_and_evaluations_equal_those_of_the_cpu(runtime: Runtime) -> None:
    asked = [Prompt((Image(picture(i // 2)),), f"how many red cans are in bin {i}?", i % 2 == 0) for i in range(6)]
    asked.append(Prompt((), "is there a blue box?", False))
    held = [
        replace(s, split="heldout", meta=replace(s.meta, scene=f"h{frame}"))
        for frame in range(3)
        for s in frame_samples(frame)
    ]
    found = []
    for where in (ON_CPU, runtime):
        vlm, store = tiny(where)
        greedy = generate(vlm, store, asked, max_new_tokens=20)
        sampled = generate(vlm, store, asked, samples=3, temperature=1.0, max_new_tokens=20, seed=3)
        said = score(vlm, store, asked, ["red can", "<think>2 red can</think>2", *["yes"] * 5])
        judged = evaluate(
            vlm, store, [s for s in held if s.kind == "qa"], stage="sft", split="heldout", time_questions=False,
            captions=[s for s in held if s.kind == "caption"], max_new_tokens=8,
        )  # fmt: skip
        found.append((greedy, sampled, said, judged))
    (greedy, sampled, said, judged), there = found
    exact = rounding(runtime, 1e-4)
    for ours, theirs in ((greedy, there[0]), (sampled, there[1])):
        for one, other in zip(sum(ours, ()), sum(theirs, ()), strict=True):
            assert one.tokens == other.tokens and one.finished == other.finished
            assert one.sampler_logprobs == pytest.approx(other.sampler_logprobs, abs=exact)
    for one, other in zip(said, there[2], strict=True):
        torch.testing.assert_close(one, other, atol=exact, rtol=exact)
    assert (judged.exact, judged.interval) == (there[3].exact, there[3].interval)


def test_the_engine_that_serves_answers_as_on_the_cpu(runtime: Runtime) -> None:
    """Alone and beside others, with a frame that is known, several samples, and choices that are read."""
    frames = [Image(picture(i)) for i in range(2)]

    def request(number: int, **how: Any) -> Request:
        prompt = Prompt((frames[number % 2],), f"how many red cans are in bin {number}?", thinking=number == 2)
        return Request((prompt,), **{"max_tokens": 10, "top": 2, **how})

    asked = [request(0), request(1, samples=3, temperature=0.8), request(2), request(3, choices=(("yes", "no"),))]
    found = []
    for where in (ON_CPU, runtime):
        vlm = sharp()
        engine, trees = LocalEngine(vlm.to(where.device)), []
        for one in asked:
            trees += engine.read([one])
            engine.step(trees)
        while going := [tree for tree in trees if any(row.reason is None for row in tree.rows)]:
            engine.step(going)
        assert engine.warm().read > 0
        found.append(trees)
    for tree, other in zip(*found, strict=True):
        assert tree.known == other.known and (tree.known > 0) == (tree.request in asked[2:])
        for row, theirs in zip(tree.rows, other.rows, strict=True):
            assert row.tokens == theirs.tokens and row.reason == theirs.reason
            assert row.logprobs == pytest.approx(theirs.logprobs, abs=rounding(runtime, 1e-4))


def by_file(bus: Bus) -> Counter[str]:
    """Waits by file of lineside. Those of saving, and of features that are encoded for the first time, are left out."""
    waits: Counter[str] = Counter()
    for (line, _), number in bus.waits.items():
        if not line.startswith(APART):
            waits[line.split(":")[0]] += number
    return waits


def test_a_step_waits_twice_however_many_packs_it_has(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: Counter[str] = Counter()
    for name in ("learn", "step"):
        plain = getattr(Stage, name)

        def counted(*args: object, name: str = name, plain=plain, **options: object) -> None:
            calls[name] += 1
            plain(*args, **options)

        monkeypatch.setattr(Stage, name, counted)
    monkeypatch.setattr(Stage, "finish", lambda stage: None)  # not part of a step
    monkeypatch.setattr("lineside.rlvr.sample_groups", without_counting(bus, lineside.rlvr.sample_groups))
    vlm, store = tiny(Runtime(bus.device))
    store.get([s.images[0] for frame in range(8) for s in frame_samples(frame)])
    bus.clear()
    run_stages(tmp_path, Runtime(bus.device), vlm=vlm, store=store)
    assert calls["step"] == 12 and calls["learn"] >= 20
    assert by_file(bus) == {file: each * calls["step"] for file, each in WAITS_A_STEP.items()}
    pageable = [line for (line, how) in bus.copies if how == "pageable" and not line.startswith(APART)]
    assert not pageable
    assert bus.copies.total() <= COPIES_A_PACK * calls["learn"]


def without_counting(bus: Bus, function: Callable[..., Any]) -> Callable[..., Any]:
    """Sampling has a test of its own."""

    def run(*args: Any, **options: Any) -> Any:
        waits, copies = bus.waits.copy(), bus.copies.copy()
        try:
            return function(*args, **options)
        finally:
            bus.waits, bus.copies = waits, copies

    return run


def test_a_decoding_step_waits_once(bus: Bus) -> None:
    vlm, store = tiny(Runtime(bus.device))
    vlm.render.eos_id = -1  # no token ends a response: all have the same length
    asked = [Prompt((Image(picture(i // 2)),), f"how many red cans are in bin {i}?", i % 2 == 0) for i in range(6)]
    store.get([prompt.images[0] for prompt in asked])
    found = []
    for new in (4, 24):
        bus.clear()
        generate(vlm, store, asked, samples=2, temperature=1.0, max_new_tokens=new)
        found.append((by_file(bus), bus.copies.copy()))
    (few, copies), (many, copies_of_many) = found
    assert few == {"backends/reference.py": 4 * WAITS_A_TOKEN, "model/generate.py": WAITS_A_BATCH}
    assert many - few == {"backends/reference.py": 20 * WAITS_A_TOKEN}
    assert (copies_of_many - copies).total() == 20 * COPIES_A_TOKEN
    assert not any(how == "pageable" for _, how in copies_of_many)


def test_rows_that_end_add_no_wait_and_few_graphs(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sixth of the rows ends with each token, by their own random numbers."""
    plain, capture, keep = lineside.backends.reference.chosen, lineside.runtime.graphed, StaticDecoding.keep
    eos, graphs = tiny(ON_CPU)[0].render.eos_id, 0
    kept: list[tuple[bool, int]] = []  # each time that rows end: whether the others move, and copies

    def chosen(logits: Tensor, heat: Tensor, draw: Tensor, temperature: Any) -> Tensor:
        written = plain(logits, heat, draw, temperature)
        return torch.where((draw < 1 / 6) & (torch.arange(2, device=draw.device) == 0), float(eos), written)

    def graphed(*given: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return capture(*given)

    def counted(cache: StaticDecoding, rows: Any) -> None:
        slots, copies = len(cache.own_bias), bus.copies.total()
        keep(cache, rows)
        kept.append((len(cache.own_bias) < slots, bus.copies.total() - copies))

    monkeypatch.setattr(lineside.backends.reference, "chosen", chosen)
    monkeypatch.setattr(lineside.runtime, "graphed", graphed)
    monkeypatch.setattr(StaticDecoding, "keep", counted)
    asked = [Prompt((Image(picture(i // 2)),), f"how many red cans are in bin {i}?", i % 2 == 0) for i in range(8)]
    found, timing = [], Timing()
    for where in (ON_CPU, Runtime(bus.device)):
        vlm, store = tiny(where)
        store.get([prompt.images[0] for prompt in asked])
        bus.clear()
        timing = Timing()
        groups = generate(vlm, store, asked, samples=2, temperature=1.0, max_new_tokens=60, timing=timing)
        found.append([rollout for group in groups for rollout in group])
    assert [rollout.tokens for rollout in found[0]] == [rollout.tokens for rollout in found[1]]
    assert all(rollout.finished for rollout in found[0]) and len({len(rollout.tokens) for rollout in found[0]}) > 4
    tokens = timing.decode_steps + 1  # the first comes from prefill
    assert by_file(bus) == {"backends/reference.py": tokens * WAITS_A_TOKEN, "model/generate.py": WAITS_A_BATCH}
    assert not any(how == "pageable" for _, how in bus.copies)
    assert len(kept) > 4 and all(copies == COPIES_A_DROP + moved * COPIES_A_MOVE for moved, copies in kept)
    assert 1 < graphs == 1 + sum(moved for moved, _ in kept) <= 1 + math.log2(len(found[0]))


def test_minutes_are_read_ahead_once_their_speed_is_known(
    runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the speed is measured, and on a CPU, nothing is; and what is read ahead changes no weight."""
    plain, ticks = lineside.training.stage.packs_of, itertools.count()
    here: list[bool] = []  # of each step, whether the main thread has read it

    def packs_of(*given: Any) -> Any:
        here.append(threading.current_thread() is threading.main_thread())
        return plain(*given)

    monkeypatch.setattr(lineside.training.stage, "packs_of", packs_of)
    monkeypatch.setattr(lineside.training.stage, "matrix_rate", lambda *_: 1e9)
    write_samples(tmp_path / "samples", [s for frame in range(8) for s in frame_samples(frame)])

    def run(where: Runtime, name: str, **limit: Any) -> dict[str, Tensor]:
        vlm, store = tiny(where)
        settings = Sft(epochs=20, step_tokens=200, learning_rate=Rates(projector=1e-3, lm=1e-3), **limit)
        sft(vlm, store, tmp_path / "samples", tmp_path / name, settings, runtime=where)
        return weights(vlm)

    with monkeypatch.context() as clock:  # a second each time that a stage looks at it
        clock.setattr(lineside.training.stage, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
        found = run(runtime, "measured", max_minutes=0.2)
    budget = read_budget(tmp_path / "measured", 0.2)
    assert budget is not None
    unread = 1 + budget.measured + 1  # the first one measured does not count; then the first that does
    assert len(here) > unread + 4 and all(here[:unread])
    assert not any(here[unread:]) if runtime.device.type != "cpu" else all(here)
    expected = run(ON_CPU, "fixed", max_tokens=budget.number)
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, atol=rounding(runtime, 1e-5), rtol=1e-4)
