"""What every stage repeats around its algorithm: optimiser, schedule, budget, resumable state, metrics, checkpoint.

A stage is a context: entered, it continues from its newest state; left, it writes its state, on an interrupt too. An
interrupt (Ctrl-C, SIGTERM) ends it between two optimiser steps, so that no state is saved in the middle of one. Its
progress is the largest share used of its epochs, steps and tokens, never of its time: recipe and seed give the model.
Minutes are turned into tokens or steps before the first step (budget.py)."""

from __future__ import annotations

import itertools
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lineside.model.checkpoint import save
from lineside.model.features import FeatureStore
from lineside.model.fused_ops import can_fuse, fuse
from lineside.model.operations import matrix_rate, update_operations
from lineside.model.tree import Pack
from lineside.model.vlm import VLM
from lineside.progress import say, track
from lineside.recipe import Stage as Settings
from lineside.training.budget import Speed, Unit, by_clock, read_budget, write_budget
from lineside.training.cost import Cost, write_cost
from lineside.training.gradient_checkpointing import price
from lineside.training.metrics import MetricsLog
from lineside.training.optim import Optimizer, ParameterGroup, learning_rate_scale
from lineside.training.packing import ImageTree, blank_pack, features_of, image_tree
from lineside.training.state import State, drop_states, load_state, restore_rng, save_state
from lineside.types import Image, Sample

INTERRUPTS = (signal.SIGINT, signal.SIGTERM)


def trainable(vlm: VLM, parts: Iterable[str]) -> list[tuple[str, list[tuple[str, torch.nn.Parameter]]]]:
    """Freeze everything, then free the named parts ("projector", "lm"). Returns their named parameters, tied ones
    once."""
    vlm.model.requires_grad_(False)
    modules = {"projector": vlm.projector, "lm": vlm.language_model}
    out, seen = [], set()
    for part in parts:
        named = []
        for name, parameter in modules[part].named_parameters():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                named.append((f"{part}.{name}", parameter.requires_grad_(True)))
        if part == "lm" and id(vlm.model.lm_head.weight) not in seen:
            named.append(("lm.lm_head.weight", vlm.model.lm_head.weight.requires_grad_(True)))
        out.append((part, named))
    return out


def warm_up(vlm: VLM) -> None:
    """Compile the fused kernels off the stage's clock, on two small trees with gradients and without."""
    if not can_fuse(vlm.device):
        return
    start = time.monotonic()
    for length in (5, 11):  # two lengths: the second compiles for any
        pack, features = blank_pack(vlm, 1, length)
        vlm.logprobs(pack, features).sum().backward()
        with torch.no_grad():
            vlm.logprobs(pack, features)
    vlm.model.zero_grad(set_to_none=True)
    if time.monotonic() - start > 2:
        say(f"compiled the fused kernels in {time.monotonic() - start:.0f} s")


class Stopped(KeyboardInterrupt):
    """An interrupt that was held back until no optimiser step was under way."""


class Stage:
    """One stage's training state. Use as a context manager; `data` gives the samples, `step` takes an update.

    `rates` maps the parts that train to their peak learning rates. `frame_count` is the number of frames in a pass.
    `unit` is what the minutes of `settings` are converted to.
    """

    def __init__(
        self,
        vlm: VLM,
        folder: Path,
        settings: Settings,
        rates: Mapping[str, float],
        *,
        label: str,
        frame_count: int,
        seed: int,
        show: Sequence[str] = ("loss",),
        unit: Unit = "tokens",
    ) -> None:
        self.vlm, self.folder, self.settings, self.label, self.frame_count, self.seed = (
            vlm,
            folder,
            settings,
            label,
            frame_count,
            seed,
        )
        self._parts, self._rates = trainable(vlm, rates), rates
        self._unit: Unit = unit
        fuse(vlm.language_model)  # here and not in every load: compiling takes longer than one answer
        warm_up(vlm)
        vlm.checkpointing = settings.checkpointing
        if settings.checkpointing:
            say(f"{label}: {price(vlm).line()}")
        self.cost = Cost()
        self.measuring: Speed | None = None  # while steps are taken only to see how long they take
        self.budget = read_budget(folder, by_clock(settings))
        self._done = 0  # tokens or steps measured since the last look at the clock
        self._show = show
        self._stop = False  # an interrupt has come: stop before the next step
        self._handlers: dict[int, Any] = {}  # of signals, as they were before this stage

    def __enter__(self) -> Stage:
        self._restore()
        if by_clock(self.settings) is not None and self.budget is None:
            self.measuring = Speed()
        self.log = MetricsLog(self.folder, step=self.steps, label=self.label, show=self._show)
        if threading.current_thread() is threading.main_thread():  # Python hands signals to no other
            self._handlers = {number: signal.signal(number, self._interrupted) for number in INTERRUPTS}
        return self

    def _restore(self) -> None:
        """Be where the newest state is, or at the beginning."""
        self.optimizer = Optimizer(
            [ParameterGroup(part, named, self._rates[part]) for part, named in self._parts],
            weight_decay=self.settings.weight_decay,
            max_grad_norm=self.settings.max_grad_norm,
            muon=self.settings.optimizer == "muon",
        )
        self.steps = 0
        self.cursor: dict[str, int] = {"epoch": 0, "groups": 0}
        self.extra: dict[str, Any] = {}
        vars(self.cost).update(vars(Cost()))
        self._metrics: Counter[str] = Counter()
        state = load_state(self.folder / "state")
        if state is not None:
            self.optimizer.load_state_dict(state.tensors)
            restore_rng(state, self.vlm.device)
            self.steps, self.cursor = state.step, dict(state.cursor)
            self.extra = dict(state.extra)
            vars(self.cost).update(self.extra.get("cost", {}))
        else:
            torch.manual_seed(self.seed)
        self._before = float(self.extra.get("seconds", 0.0))  # trained before this process
        self._started = self._saved = time.monotonic()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Save at the end and where the stage was stopped between steps; after any other exception the state may be
        that of half a step, and the one saved before it stands."""
        try:
            if self.measuring is None and (kind is None or issubclass(kind, Stopped)):
                self.save_state()
        finally:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
            self.log.close()

    def _interrupted(self, number: int, frame: object) -> None:
        """The first signal asks the stage to stop; the second ends it at once."""
        if self._stop:
            raise KeyboardInterrupt
        self._stop = True
        say(f"{self.label}: stopping after this step; interrupt again to stop at once and lose what is not saved yet")

    @property
    def seconds(self) -> float:
        """Training time of this stage over all processes that worked on it."""
        return self._before + time.monotonic() - self._started

    @property
    def epochs(self) -> float:
        """Passes over the data so far."""
        return self.cursor["epoch"] + self.cursor["groups"] / self.frame_count

    @property
    def progress(self) -> float:
        """Share of the budget used, in [0, 1]."""
        limits = [
            (self.epochs, self.settings.epochs),
            (self.steps, self.settings.max_steps),
            (self.tokens, self.settings.max_tokens),
        ]
        if self.budget is not None:
            limits.append((self.steps if self.budget.unit == "steps" else self.tokens, self.budget.number))
        return min(1.0, max(used / limit for used, limit in limits if limit is not None))

    def data(
        self, stream: Callable[[int, int], Iterable[tuple[Sample, ...]]]
    ) -> Iterator[tuple[tuple[Sample, ...], dict[str, int]]]:
        """The samples of each training frame from the trained frontier on, with the cursor after it, until the budget
        is used.

        `stream(epoch, skip)` gives the frames of an epoch from the `skip`-th on.
        """

        def passes() -> Iterator[tuple[tuple[Sample, ...], dict[str, int]]]:
            epoch, skip = self.cursor["epoch"], self.cursor["groups"]
            while epoch * self.frame_count + skip < total:
                for done, group in enumerate(self.cost.timed("read", stream(epoch, skip)), start=skip + 1):
                    yield group, {"epoch": epoch, "groups": done}
                    if epoch * self.frame_count + done >= total:
                        return
                epoch, skip = epoch + 1, 0

        if self.measuring is not None:
            yield from self._measured(stream, self.measuring)
        total = round(self.settings.epochs * self.frame_count)
        ends_elsewhere = self.budget or self.settings.max_steps or self.settings.max_tokens
        left = None if ends_elsewhere else total - round(self.epochs * self.frame_count)
        for item in track(passes(), total=left, unit="frames", label=self.label):
            if self._stop:
                raise Stopped
            if self.progress >= 1.0:
                return
            yield item

    def _measured(
        self, stream: Callable[[int, int], Iterable[tuple[Sample, ...]]], speed: Speed
    ) -> Iterator[tuple[tuple[Sample, ...], dict[str, int]]]:
        """Samples for a few steps at a learning rate of 0, until the speed is known. It ends between two steps, and
        leaves weights, optimiser and random numbers as they were."""
        minutes, clock = by_clock(self.settings), self._clock()
        assert minutes is not None
        for epoch in itertools.count():
            for group in stream(epoch, 0):
                if self._stop:
                    raise Stopped
                if self._done:  # the first sample after a step
                    speed.add(self._done, self._clock() - clock)
                    clock, self._done = self._clock(), 0
                    if speed.enough(minutes):
                        self.budget, self.measuring = speed.budget(minutes, self._unit), None
                        write_budget(self.folder, self.budget)
                        say(f"{self.label}: {self.budget.line()}")
                        self._restore()
                        return
                yield group, dict(self.cursor)

    def _clock(self) -> float:
        """Seconds but for those of the encoder, which sees each picture once and not at every pass."""
        return time.monotonic() - self.cost.seconds.get("encode", 0.0)

    def trees(
        self, stream: Callable[[int, int], Iterable[tuple[Sample, ...]]]
    ) -> Iterator[tuple[ImageTree[Image], dict[str, int]]]:
        """`data`, as trees; a frame of which the stage takes no sample is passed over."""
        for group, cursor in self.data(stream):
            if not group:
                continue
            with self.cost.clock("read"):
                tree = image_tree(self.vlm, group)
            yield tree, cursor

    def features(self, store: FeatureStore, images: Sequence[Image]) -> Tensor | None:
        """(I, P, D_e) of a pack's pictures, None without pictures."""
        with self.cost.clock("encode"):
            return features_of(store, images)

    def add(self, metrics: Mapping[str, Tensor | float]) -> None:
        """Metrics of a part of the step; parts add up."""
        for name, value in metrics.items():
            self._metrics[name] += float(value)  # type: ignore[assignment] # a Counter of floats

    @property
    def tokens(self) -> int:
        """Tokens that went forward and backward through the LM."""
        return self.cost.tokens

    def step(self, cursor: Mapping[str, int], packs: Iterable[Pack], *, may_save: bool = True, **extra: float) -> None:
        """One update at the schedule's rate, logged; the cursor moves to what is now trained; saved now and then.

        `packs` are what the step trained on: their tokens are counted, beside those of padded rows without the tree.
        """
        packs = list(packs)
        tokens, dense_tokens = sum(map(len, packs)), sum(pack.dense_tokens for pack in packs)
        if self.measuring is not None:
            self.optimizer.step(0.0)
            self._metrics.clear()
            self._done += tokens if self._unit == "tokens" else 1
            return
        self.cost.add(
            tokens=tokens,
            dense_tokens=dense_tokens,
            samples=sum(pack.responses for pack in packs),
            operations=sum(update_operations(self.vlm, pack) for pack in packs),
        )
        extra |= {"tokens": tokens, "dense_tokens": dense_tokens}
        scale = learning_rate_scale(
            self.progress,
            schedule=self.settings.schedule,
            warmup=self.settings.warmup,
            min_lr_ratio=self.settings.min_lr_ratio,
        )
        updates = self.optimizer.step(scale if self.steps else max(scale, 1e-3))
        self.steps += 1
        self.cursor = dict(cursor)
        self.log.log(
            self.steps, {**self._metrics, **updates, **extra, "seconds": self.seconds, "progress": self.progress}
        )
        self._metrics.clear()
        if may_save and time.monotonic() - self._saved > self.settings.save_seconds:
            self.save_state()

    def pass_over(self, cursor: Mapping[str, int]) -> None:
        """A step that found nothing to learn from. It counts, since what it looked at has been paid for."""
        if self.measuring is not None:
            self._done += self._unit == "steps"
            return
        self.steps += 1
        self.cursor = dict(cursor)

    def save_state(self) -> None:
        """Write the resumable state of the trained frontier."""
        extra = {**self.extra, "seconds": self.seconds, "cost": asdict(self.cost)}
        save_state(
            self.folder / "state",
            State(step=self.steps, tensors=self.optimizer.state_dict(), cursor=self.cursor, extra=extra),
            device=self.vlm.device,
        )
        self._saved = time.monotonic()

    def finish(self) -> None:
        """The stage is done: tell what it cost, and write its checkpoint, which is what marks it as done."""
        self.vlm.model.eval()
        self.vlm.checkpointing = False
        self.cost.spend("update", max(0.0, self.seconds - self.cost.trained))
        self.cost.matrix_rate = matrix_rate(self.vlm.device, self.vlm.dtype)
        write_cost(self.folder, self.cost)
        say(f"{self.label}: {self.cost.line()}")
        save(self.vlm, self.folder / "checkpoint")
        drop_states(self.folder / "state")
