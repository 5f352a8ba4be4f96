"""What all stages share around their algorithms: optimiser, schedule, budget, resumable state, metrics, checkpoint.

A stage is a context manager. On entry it resumes from its newest state; on exit, and on an interrupt, it saves its
state. An interrupt (Ctrl-C, SIGTERM) stops it between two optimiser steps, so no state is saved in the middle of a
step. Progress is the largest used share of its epochs, steps and tokens, never of its time, so recipe and seed
determine the model. Minutes are converted to tokens or steps before the first step (budget.py).

With several ranks a step has the same trees as with one, and each rank computes its share of them. What depends on a
clock or a signal (the budget, when to save, when to stop) is agreed between the steps, and whether to leave a step out
before its end; rank 0 alone writes."""

from __future__ import annotations

import itertools
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from lineside import ranks
from lineside.errors import CheckFailed, LinesideError
from lineside.model.adapter import dropping, parameters
from lineside.model.checkpoint import save
from lineside.model.features import FeatureStore, features_of
from lineside.model.tree import Pack
from lineside.model.vlm import VLM, Features
from lineside.progress import say, track
from lineside.recipe import StageSettings
from lineside.runtime import ON_CPU, Runtime
from lineside.stages import LINE, STAGES
from lineside.training.budget import Budget, Speed, Unit, by_clock, read_budget, write_budget
from lineside.training.cost import Cost, write_cost
from lineside.training.finite import FOLDER as NOT_FINITE
from lineside.training.finite import Found, Loss, NotFinite, examine, keep, responses, told
from lineside.training.gradient_checkpointing import price
from lineside.training.metrics import METRICS, WARNINGS, MetricsLog, read_metrics, write_table
from lineside.training.operations import matrix_rate, update_operations
from lineside.training.optim import Optimizer, ParameterGroup, learning_rate_scale
from lineside.training.packing import (
    Counts,
    ImageTree,
    blank_pack,
    deal,
    image_tree,
    numbered,
    packs_of,
    split,
    steps_of,
)
from lineside.training.prefetch import ahead
from lineside.training.shared_steps import shared_steps
from lineside.training.state import State, drop_states, load_state, random_states, restore_rng, save_state
from lineside.training.watch import Alarm, Watch
from lineside.types import Image, Sample

INTERRUPTS = (signal.SIGINT, signal.SIGTERM)
GRACE = 5.0  # seconds that a step may still take after an interrupt: schedulers soon kill what has not ended
AGAIN = 0.5  # seconds after which a rank that could not leave the step tries again
NAMED = 8  # samples that a warning names
P = TypeVar("P")
Packs = list[tuple[Pack, tuple[P, ...]]]  # the packs of a step, each with its pictures


def trainable(vlm: VLM, parts: Iterable[str]) -> list[tuple[str, list[tuple[str, torch.nn.Parameter]]]]:
    """Freeze all parameters except those of the named parts ("projector", "lm", "lora"). Returns the trainable
    parameters of each part with their names; tied parameters are listed once.

    Raises ValueError for "lm" of a model with an adapter, whose weights must stay as they are, and for "lora" of one
    without."""
    parts = list(parts)
    if vlm.adapter is not None and "lm" in parts:
        raise ValueError("the weights below an adapter do not train: train lora, or merge it first")
    if vlm.adapter is None and "lora" in parts:
        raise ValueError("there is no adapter to train: attach one first")
    vlm.model.requires_grad_(False)
    modules = {"projector": vlm.projector, "lm": vlm.language_model}
    out, seen = [], set()
    for part in parts:
        if part == "lora":
            out.append((part, [(f"lora.{name}", p.requires_grad_(True)) for name, p in parameters(vlm)]))
            continue
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
    """Compile the fused kernels before the stage's clock starts: with and without gradients, on two small trees. A
    backend that is not proven on this device is first compared with the reference, on a small made-up pack."""
    if vlm.backend.is_proven and not vlm.backend.compiles:
        return
    start = time.monotonic()
    pack, features = blank_pack(vlm, 4, 70)
    noise = torch.Generator().manual_seed(0)
    vlm.prove_backend(pack, [torch.randn(one.shape, generator=noise) for one in features])
    for length in (5, 11) if vlm.backend.compiles else ():  # at a second length torch.compile compiles for any length
        pack, features = blank_pack(vlm, 1, length)
        vlm.logprobs(pack, features).sum().backward()
        with torch.no_grad():
            vlm.logprobs(pack, features)
    vlm.model.zero_grad(set_to_none=True)
    if time.monotonic() - start > 2:
        say(f"compiled the fused kernels in {time.monotonic() - start:.0f} s")


class Stopped(KeyboardInterrupt):
    """An interrupt, raised between two optimiser steps."""


class Stage:
    """The training state of a stage, as a context manager. `data` yields the samples, `step` makes an update.

    `rates` maps the parts that train to their peak learning rates. `frame_count` is the number of frames in a pass.
    `unit` is what the minutes of `settings` are converted to. With several ranks the weights that train are shared out
    until `finish`. Raises ValueError if the model is not on the runtime's device.
    """

    def __init__(
        self,
        vlm: VLM,
        folder: Path,
        settings: StageSettings,
        rates: Mapping[str, float],
        *,
        label: str,
        frame_count: int,
        runtime: Runtime = ON_CPU,
        show: Sequence[str] = ("loss",),
        unit: Unit = "tokens",
    ) -> None:
        if vlm.device != runtime.device:
            raise ValueError(f"{label}: the model is on {vlm.device}, and the run computes on {runtime.device}")
        if runtime.world_size > 1 and vlm.adapter is not None and vlm.adapter.lora.dropout:
            raise LinesideError(
                f"{label}: the dropout of an adapter is drawn pack by pack, so it would depend on the number of "
                "processes: set lora.dropout=0"
            )
        self.vlm, self.folder, self.settings, self.label, self.frame_count, self.runtime = (
            vlm,
            folder,
            settings,
            label,
            frame_count,
            runtime,
        )
        self._parts, self._rates = trainable(vlm, rates), rates
        self.dtype = vlm.dtype  # in which it computes; shards of the weights are float32
        self._unit: Unit = unit
        warm_up(vlm)
        vlm.checkpointing = settings.checkpointing
        if settings.checkpointing:
            say(f"{label}: {price(vlm).line()}")
        if runtime.world_size > 1:
            ranks.shard(vlm, vlm.lm.decoder.layers)
            self._parts = trainable(vlm, rates)  # the same by name, now this rank's parts of them
        self.cost = Cost()
        self.pack_tokens = settings.pack_tokens
        self._too_large = math.inf  # tokens of the smallest pack that did not fit into memory
        self.measuring: Speed | None = None  # set while steps only measure the speed
        self.budget = read_budget(folder, by_clock(settings))
        self._done = 0  # tokens or steps since the clock was last read
        self._show = show
        self._asked = 0  # how often this process was told to stop
        self._agreed = False  # whether any rank was, by the end of the last step
        self._late = False  # whether this process is to leave the step out that it is in
        self._saving = False  # whether it is saving: no first or second signal ends that
        self._ends = False  # whether a pack is this rank's last one of the step
        self._begun = 0  # how often it has begun from its last state
        self._handlers: dict[int, Any] = {}  # signal handlers to restore at the end
        self._targets = 0  # of the packs of the step that `learn` has had
        self._found: list[Found] | None = None  # the responses of a step that is not finite, while it is examined
        self._shown: Sequence[Any] = ()  # the pictures of the pack that is examined
        self.watch = Watch()
        self._losses: list[float | int] = []  # of this rank's packs of the step
        self._halt = ""  # why the stage is to stop, once its state can be saved
        self._threaded = runtime.device.type != "cpu"  # whether a thread reads, as soon as it may (`_packs_of`)

    def __enter__(self) -> Stage:
        self._restore()
        if by_clock(self.settings) is not None and self.budget is None:
            self.measuring = Speed()
        self.log: MetricsLog | None = None
        if self.runtime.rank == 0:
            self.log = MetricsLog(self.folder, step=self.steps, label=self.label, show=self._show)
            for row in read_metrics(self.folder / METRICS):
                self.watch.see(row)
        if threading.current_thread() is threading.main_thread():  # only the main thread gets signals
            self._handlers = {number: signal.signal(number, self._interrupted) for number in INTERRUPTS}
            self._handlers[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._leave)
        return self

    def _restore(self) -> None:
        """Load the newest state, or start from the beginning if there is none."""
        self.optimizer = Optimizer(
            [ParameterGroup(part, named, self._rates[part]) for part, named in self._parts],
            weight_decay=self.settings.weight_decay,
            max_grad_norm=self.settings.max_grad_norm,
            muon=self.settings.optimizer == "muon",
        )
        self._begun += 1
        self._last: State | None = None
        self._saved_step = -1  # of the last state that this process has saved
        self.steps = 0
        self.cursor: dict[str, int] = {"epoch": 0, "groups": 0}
        self.extra: dict[str, Any] = {}
        vars(self.cost).update(vars(Cost()))
        self._metrics: dict[str, list[Tensor | float]] = {}
        self._sums: dict[str, float] = {}
        state = load_state(self.folder / "state")
        if state is not None:
            self.optimizer.load_state_dict(state.tensors)
            restore_rng(state, self.runtime)
            self.steps, self.cursor = state.step, dict(state.cursor)
            self.extra = dict(state.extra)
            vars(self.cost).update(self.extra.get("cost", {}))
        else:
            torch.manual_seed(self.runtime.seed)
        self._before = float(self.extra.get("seconds", 0.0))  # seconds trained by earlier processes
        self._started = self._saved = time.monotonic()
        self._last = self._state()
        if len(found := set(self.runtime.exchange(self.steps))) > 1:
            raise LinesideError(
                f"{self.label}: the processes of this run read different states (of steps {sorted(found)}): "
                f"{self.folder} must be the same folder on all machines"
            )

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Save the state at the end and after a stop between steps; after an interrupt within a step, and where numbers
        are not finite, the state before that step, unless the step has begun to change the weights. After an error
        nothing is saved, and the last saved state stays valid. Nor is anything after a third signal in a save.

        Raises Stopped if a signal came when there was no step left: the work after this stage must not begin."""
        if self._asked:
            signal.setitimer(signal.ITIMER_REAL, 0)
        try:
            if self.measuring is not None or self._saving:
                pass
            elif kind is None or issubclass(kind, Stopped):
                self.save_state()
            elif self._last is not None and (
                (issubclass(kind, NotFinite) and self._last.step > 0)
                or issubclass(kind, KeyboardInterrupt if self.runtime.world_size == 1 else ranks.LeftOut)
            ):
                self._save(self._last)
        finally:
            for number, handler in self._handlers.items():
                if number == signal.SIGALRM and self._asked:  # no signal sets it any more
                    signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(number, handler)
            if self.log is not None:
                self.log.close()
        if kind is None:
            self._agree()
            if self._stop:
                raise Stopped

    def _interrupted(self, number: int, frame: object) -> None:
        """The first signal asks the stage to stop after this step. The second, or a step that goes on for GRACE more
        seconds, ends the step, but no save that is under way. A third one ends the process wherever it is."""
        self._asked += 1
        if self._asked > 2:
            raise KeyboardInterrupt
        if self._asked == 2:
            self._leave()
            return
        signal.setitimer(signal.ITIMER_REAL, GRACE)
        say(f"{self.label}: stopping after this step; interrupt again to leave the step out")

    def _leave(self, *_: object) -> None:
        """Leave the step out. Ranks must do so together: one that the others wait for only notes it (`_go_on`). A save
        is of a whole step: it ends first, or it would be made all over again."""
        self._late = True
        if not self._saving and (self.runtime.world_size == 1 or ranks.is_alone()):
            raise KeyboardInterrupt
        signal.setitimer(signal.ITIMER_REAL, AGAIN)

    def _go_on(self) -> None:
        """Before a rank's last backward, which waits for the others. Raises LeftOut if one of them leaves the step."""
        if any(self.runtime.exchange(self._late)):
            raise ranks.LeftOut

    @property
    def _stop(self) -> bool:
        """Whether to stop before the next step. Ranks stop before the same one."""
        return self._asked > 0 if self.runtime.world_size == 1 else self._agreed

    @property
    def seconds(self) -> float:
        """Training time of this stage, summed over all processes that worked on it."""
        return self._before + time.monotonic() - self._started

    @property
    def epochs(self) -> float:
        """Passes over the data so far."""
        return self.cursor["epoch"] + self.cursor["groups"] / self.frame_count

    @property
    def progress(self) -> float:
        """Used share of the budget, in [0, 1]."""
        limits = [
            (self.epochs, self.settings.epochs),
            (self.steps, self.settings.max_steps),
            (self.tokens, self.settings.max_tokens),
        ]
        if self.budget is not None:
            limits.append((self.steps if self.budget.unit == "steps" else self.tokens, self.budget.number))
        return min(1.0, max(used / limit for used, limit in limits if limit is not None))

    def data(
        self, stream: Callable[[int, int], Iterable[tuple[Sample, ...]]], *, ends: bool = True
    ) -> Iterator[tuple[tuple[Sample, ...], dict[str, int]]]:
        """The samples of each training frame that is not yet trained, with the cursor after it, until the budget is
        used.

        `stream(epoch, skip)` yields the samples of each frame of an epoch, from frame `skip` on. Without `ends` it goes
        on to the last epoch, and the caller stops it: a thread must not, at a moment that other ranks do not know.
        """

        def passes() -> Iterator[tuple[tuple[Sample, ...], dict[str, int]]]:
            epoch, skip = self.cursor["epoch"], self.cursor["groups"]
            while epoch * self.frame_count + skip < total:
                for done, samples in enumerate(stream(epoch, skip), start=skip + 1):
                    yield samples, {"epoch": epoch, "groups": done}
                    if epoch * self.frame_count + done >= total:
                        return
                epoch, skip = epoch + 1, 0

        if self.measuring is not None:
            yield from self._measured(stream, self.measuring)
        total = round(self.settings.epochs * self.frame_count)
        ends_elsewhere = self.budget or self.settings.max_steps or self.settings.max_tokens
        left = None if ends_elsewhere else total - round(self.epochs * self.frame_count)
        for item in track(passes(), total=left, unit="frames", label=self.label):
            if ends and self._stop:
                raise Stopped
            if ends and self.progress >= 1.0:
                return
            yield item

    def _measured(
        self, stream: Callable[[int, int], Iterable[tuple[Sample, ...]]], speed: Speed
    ) -> Iterator[tuple[tuple[Sample, ...], dict[str, int]]]:
        """Samples for a few steps with a learning rate of 0, until the speed is known. It ends between two steps and
        restores weights, optimiser and random states."""
        minutes, clock = by_clock(self.settings), self._clock()
        assert minutes is not None
        for epoch in itertools.count():
            for samples in stream(epoch, 0):
                if self._stop:
                    raise Stopped
                if self._done:  # the first frame after a step
                    speed.add(self._done, self._clock() - clock)
                    clock, self._done = self._clock(), 0
                    if self.runtime.said(speed.enough(minutes)):
                        self.budget = Budget(**self.runtime.said(asdict(speed.budget(minutes, self._unit))))
                        self.measuring = None
                        self.runtime.first(partial(write_budget, self.folder, self.budget))
                        say(f"{self.label}: {self.budget.line()}")
                        self._restore()
                        return
                yield samples, dict(self.cursor)

    def _clock(self) -> float:
        """Seconds without those of the encoder, which sees each picture only once, not in every pass."""
        return time.monotonic() - self.cost.seconds.get("encode", 0.0)

    def steps_from(
        self, stream: Callable[[int, int], Iterable[tuple[Sample, ...]]], tokens: int, *, every_trace: bool = False
    ) -> Iterator[tuple[Packs[Image], dict[str, int]]]:
        """This rank's packs of each step, of `tokens` tokens over all ranks, with the cursor after it. A frame without
        samples is skipped. `every_trace`: as in `prompt_and_response`."""
        lay = partial(image_tree, self.vlm, every_trace=every_trace)
        if self.runtime.world_size == 1:
            frames = (item for item in self.data(stream) if item[0])
            return self.packed(((lay(samples), cursor) for samples, cursor in frames), tokens)
        frames = (item for item in self.data(stream, ends=not self._threaded) if item[0])
        runtime = self.runtime.beside if self._threaded else self.runtime
        shown = self.vlm.render.placeholder
        return self._packs_of(shared_steps(frames, lay, shown, tokens, runtime, begun=lambda: self._begun))

    def features(self, store: FeatureStore, images: Sequence[Image]) -> list[Tensor] | None:
        """Features (P, D_e) of each of a pack's pictures; None without pictures."""
        with self.cost.clock("encode"):
            return features_of(store, images)

    def packed(
        self, trees: Iterable[tuple[ImageTree[P], dict[str, int]]], step_tokens: int
    ) -> Iterator[tuple[Packs[P], dict[str, int]]]:
        """The packs of each step, of about `step_tokens`, with the cursor after it."""
        return self._packs_of((numbered(held), cursor) for held, cursor in steps_of(trees, step_tokens))

    def _packs_of(
        self, steps: Iterable[tuple[list[ImageTree[P]], dict[str, int]]]
    ) -> Iterator[tuple[Packs[P], dict[str, int]]]:
        """The packs of the steps. For a GPU a thread reads and packs a step while the one before is computed; not while
        the speed is measured, since that goes back to the beginning after a few steps."""
        made = ((packs_of(self.vlm, trees, self.pack_tokens), cursor) for trees, cursor in steps)
        first: list[tuple[Packs[P], dict[str, int]]] = []  # of those that count
        if not self._threaded or self.measuring is not None:
            for step in self.cost.timed("read", made):
                if self._threaded and self.measuring is None:
                    first = [step]
                    break
                yield step
            else:
                return
        for step in ahead(chain(first, made), self.cost):
            if self._stop:
                raise Stopped
            if self.progress >= 1.0:
                return
            yield step

    def dealt(self, trees: Sequence[ImageTree[P]]) -> list[ImageTree[P]]:
        """This rank's share of a step's trees, which are dealt by tokens. Pictures are numbered over the whole step."""
        trees = numbered(trees)
        own = deal([tree.tree.size() for tree in trees], self.runtime.world_size)[self.runtime.rank]
        return [trees[number] for number in own]

    def count(self, packs: Iterable[tuple[Pack, object]]) -> Counts:
        """Numbers of supervised tokens and pictures of the step, over all ranks."""
        own = Counts.of(pack for pack, _ in packs)
        return Counts(*self.runtime.all_reduce(torch.tensor([own.answer, own.trace, own.pictures])).tolist())

    def each(self, packs: Packs[P]) -> Iterator[tuple[Pack, tuple[P, ...]]]:
        """This rank's packs of a step, to `learn`. A rank without any takes part with a blank one, whose gradient is 0.

        If loss or gradient of the step are then not finite, the packs come once more: `learn` looks for the responses
        behind it, which are written down. Raises NotFinite, with weights and optimiser as before the step."""
        self._targets = 0
        for number, item in enumerate(packs):
            if number and self._late:  # the others have its part of the weights, which its first forward has sent
                self._go_on()
            self._ends = number == len(packs) - 1
            ranks.ends_step(self.vlm, self._ends)
            yield item
        if not packs:
            ranks.ends_step(self.vlm, True)
            pack, features = blank_pack(self.vlm, 1, 1)
            loss = self.vlm.logprobs(pack, features).sum() * 0.0
            self._go_on()
            loss.backward()
            self.optimizer.accumulate()
        self._sums, norm = self._summed(), self.optimizer.norm()
        loss = self._sums.get("loss", 0.0)
        if math.isfinite(loss) and math.isfinite(norm):
            return
        self.optimizer.drop()
        self._found, self._targets = [], 0
        with ranks.gathered(self.vlm):
            for pack, self._shown in packs:
                yield pack, tuple(self._shown)
        step, folder = self.steps + 1, self.folder
        rows = keep(folder / NOT_FINITE, step, self._found, self.runtime)
        lower = f"{self.label if self.label in STAGES else 'parts.nano'}.learning_rate"
        lower += f" or a longer {self.label}.warmup" if self.label in LINE else ""
        wrong = f"its loss is {loss:g}, the norm of its gradient {norm:g}"
        saved = self._last is not None
        raise NotFinite(told(self.label, lower, step, wrong, rows, folder, saved=saved))

    def learn(self, pack: Pack, features: Features, loss_of: Loss) -> None:
        """Forward and backward of the pack that `each` has given. `loss_of(pack, features, place)` gives the loss and
        its metrics; `place` says where the pack's targets lie among those of this rank's packs of the step.

        Where memory runs out, the pack is cut in two; packs are smaller from then on, and one of that size is cut at
        once. Loss and tokens of the step stay the same. Raises LinesideError if a single response does not fit.
        """
        start = self._targets
        self._targets += len(pack.target)
        if self._found is not None:
            self._found += examine(self.vlm, pack, features, self._shown, loss_of, start)
            return
        todo = [(pack, features)]
        while todo:
            pack, features = todo.pop()
            place = slice(start, start + len(pack.target))
            halves = split(self.vlm, pack, features) if len(pack) >= self._too_large else []
            if not halves:
                if self._fits(pack, features, loss_of, place):
                    start = place.stop
                    continue
                halves = self._out_of_memory(pack, features)
            todo += reversed(halves)

    def _fits(self, pack: Pack, features: Features, loss_of: Loss, place: slice) -> bool:
        """Whether memory was enough for forward and backward; if so, gradients and metrics are added to the step's."""
        try:
            with dropping(self.vlm):
                loss, metrics = loss_of(pack, features, place)
                if self._ends:
                    self._go_on()
                loss.backward()
        except torch.OutOfMemoryError:
            if self.runtime.world_size > 1:  # the gradients of the packs before are not apart from those of this one
                raise LinesideError(
                    f"{self.label}: rank {self.runtime.rank} is out of memory at a pack of {len(pack):,} tokens: set "
                    f"{self.label}.pack_tokens={len(pack) // 2} or {self.label}.checkpointing=true"
                ) from None
            return False
        self.optimizer.accumulate()
        self.add(metrics)
        return True

    def _out_of_memory(self, pack: Pack, features: Features) -> list[tuple[Pack, Features]]:
        """The halves of a pack that did not fit."""
        self.optimizer.forget()
        self.runtime.free_memory()
        halves = split(self.vlm, pack, features)
        if not halves:
            raise LinesideError(
                f"{self.label}: a response with what stands before it takes {len(pack):,} tokens and does not fit into "
                f"the memory of {self.runtime.device_name or 'this machine'}: set {self.label}.checkpointing=true, or "
                "take a smaller model or a device with more memory"
            )
        self.pack_tokens = min(self.pack_tokens, max(len(half) for half, _ in halves))
        self._too_large = min(self._too_large, len(pack))
        say(
            f"{self.label}: out of memory at a pack of {len(pack):,} tokens: it is cut in two, and packs have at most "
            f"{self.pack_tokens:,} tokens from now on; {self.label}.pack_tokens={self.pack_tokens} avoids it"
        )
        return halves

    def add(self, metrics: Mapping[str, Tensor | float]) -> None:
        """Add the metrics of a part of the step to those of the other parts. Those of a device stay there until the
        step ends."""
        for name, value in metrics.items():
            self._metrics.setdefault(name, []).append(value)

    @property
    def summed(self) -> Mapping[str, float]:
        """The metrics of the step whose packs `each` has given, over all its parts and ranks."""
        return self._sums

    def _summed(self) -> dict[str, float]:
        """The metrics of the step over its parts and all ranks, with one wait for the device."""
        there = [value for values in self._metrics.values() for value in values if isinstance(value, Tensor)]
        numbers = iter(torch.stack(there).tolist() if there else ())
        parts = {k: [next(numbers) if isinstance(v, Tensor) else v for v in vs] for k, vs in self._metrics.items()}
        self._losses = parts.get("loss", [])
        self._metrics.clear()
        return self._over_ranks({name: sum(values) for name, values in parts.items()})

    def _over_ranks(self, own: Mapping[str, float]) -> dict[str, float]:
        """The sums of these numbers over all ranks; one that a rank lacks is 0 there."""
        told = self.runtime.exchange(own)
        return {name: sum(numbers.get(name, 0) for numbers in told) for name in dict.fromkeys(chain(*told))}

    def _agree(self, due: bool = False, alarms: Sequence[Alarm] = ()) -> tuple[bool, list[Alarm]]:
        """Whether rank 0 finds that it is time to save, and its alarms. If a rank was told to stop, all stop before the
        next step."""
        told = self.runtime.exchange([self._asked, due, [asdict(alarm) for alarm in alarms]])
        self._agreed = any(asked for asked, *_ in told)
        return told[0][1], [Alarm(**alarm) for alarm in told[0][2]]

    def _warn(self, alarms: Sequence[Alarm], packs: Sequence[Pack], samples: Sequence[str]) -> None:
        """Tell alarms, each with its samples, or with those of the step: those of the packs with the largest loss a
        token come first, or `samples` where no pack was computed."""
        losses = self._losses if len(self._losses) == len(packs) else [0.0] * len(packs)
        own = [[loss / max(1, len(pack.target)), [node.name for node, _ in responses(pack, ())]]
               for pack, loss in zip(packs, losses)]  # fmt: skip
        ordered = sorted(chain(*self.runtime.exchange(own)), key=lambda one: -one[0])
        names = (list(dict.fromkeys(chain(*(names for _, names in ordered)))) or list(samples))[:NAMED]
        for alarm in alarms:
            about = list(alarm.samples[:NAMED]) or names
            say(f"{self.label}: warning: {alarm.line(about)}")
            if self.runtime.rank == 0:
                write_table(self.folder, alarm.step, [alarm.row(about)], WARNINGS)
            if alarm.kind in self.settings.halt_on:
                self._halt = (
                    f"{self.label}: halt_on: {alarm.line(about)}. The state is saved: the same command goes on all the "
                    f"same; to start the stage over with other settings, delete {self.folder}"
                )

    @property
    def tokens(self) -> int:
        """Number of tokens so far, forward and backward through the LM."""
        return self.cost.tokens

    def step(
        self,
        cursor: Mapping[str, int],
        packs: Iterable[Pack],
        *,
        may_save: bool = True,
        alarms: Sequence[Alarm] = (),
        extra: Mapping[str, float] | None = None,
    ) -> None:
        """One update with the learning rate of the schedule. It is logged, the cursor moves on, and the state is saved
        if `save_seconds` have passed since the last save.

        `packs` are this rank's packs of the step: their tokens are counted, and those that padded rows without trees
        would need. `alarms` are told beside those of the curves, and `extra` numbers are logged.
        """
        packs = list(packs)
        done: dict[str, Any] = self._over_ranks({
            "tokens": sum(map(len, packs)),
            "dense_tokens": sum(pack.dense_tokens for pack in packs),
            "samples": sum(pack.responses for pack in packs),
            "operations": sum(update_operations(self.vlm, pack) for pack in packs),
        })  # fmt: skip
        if self.measuring is not None:
            self.optimizer.step(0.0)
            self._done += done["tokens"] if self._unit == "tokens" else 1
            self._agree()
            return
        self.cost.add(**done)
        extra = {**(extra or {}), "tokens": done["tokens"], "dense_tokens": done["dense_tokens"]}
        scale = learning_rate_scale(
            self.progress,
            schedule=self.settings.schedule,
            warmup=self.settings.warmup,
            min_lr_ratio=self.settings.min_lr_ratio,
        )
        self._last = None  # from here on the weights are those of the next step
        updates = self.optimizer.step(scale if self.steps else max(scale, 1e-3))
        self.steps += 1
        self.cursor = dict(cursor)
        self._end({**self._sums, **updates, **extra}, alarms, packs, may_save=may_save)

    def pass_over(
        self,
        cursor: Mapping[str, int],
        *,
        alarms: Sequence[Alarm] = (),
        extra: Mapping[str, float] | None = None,
        samples: Iterable[str] = (),
    ) -> None:
        """A step without an update, for which nothing was found to learn from. It counts, is logged and watched, and is
        saved when that is due, as any other: its sampling took time too. `samples`: the ids of what was sampled."""
        if self.measuring is not None:
            self._agree()
            self._done += self._unit == "steps"
            return
        self.steps += 1
        self.cursor = dict(cursor)
        self._end({**(extra or {}), "tokens": 0, "dense_tokens": 0}, alarms, samples=list(dict.fromkeys(samples)))

    def _end(
        self,
        row: Mapping[str, float],
        alarms: Sequence[Alarm],
        packs: Sequence[Pack] = (),
        *,
        samples: Sequence[str] = (),
        may_save: bool = True,
    ) -> None:
        """End a step: log it, tell its alarms, save the state if that is due, and stop if an alarm asks for it."""
        row = {**row, "seconds": self.seconds, "progress": self.progress}
        if self.log is not None:
            self.log.log(self.steps, row)
            alarms = [*self.watch.see({"step": self.steps, **row}), *alarms]
        if may_save:
            self._last = self._state()
        due = may_save and time.monotonic() - self._saved > self.settings.save_seconds
        due, alarms = self._agree(due, alarms)
        if alarms:
            self._warn(alarms, packs, samples)
        if due or (self._halt and may_save):
            self.save_state()
        if self._halt and may_save:
            raise CheckFailed(self._halt)

    def _state(self) -> State:
        """All but the tensors of the state: these stay as they are until the next update."""
        extra = {**self.extra, "seconds": self.seconds, "cost": asdict(self.cost)}
        return State(self.steps, {}, dict(self.cursor), extra, random_states(self.runtime))

    def save_state(self) -> None:
        """Save the resumable state. It has every tensor in full, so a run may go on with another number of ranks."""
        self._save(self._state())

    def _save(self, state: State) -> None:
        """Save a state, unless it lies there already."""
        if state.step == self._saved_step:
            return
        self._saving = True
        tensors: dict[str, Tensor] = self.optimizer.state_dict()
        if self.runtime.world_size > 1:
            gathered = ((name, ranks.whole(tensor)) for name, tensor in tensors.items())
            tensors = {name: tensor.cpu() for name, tensor in gathered if self.runtime.rank == 0}
        whole = replace(state, tensors=tensors)
        if self.log is not None:
            self.log.flush()
        self.runtime.first(lambda: save_state(self.folder / "state", whole, keep=self.settings.keep_states))
        self._saved, self._saved_step, self._saving = time.monotonic(), state.step, False

    def finish(self) -> None:
        """End the stage: print its cost and write its checkpoint, which marks it as done. The model is whole again."""
        if self.runtime.world_size > 1:
            ranks.make_whole(self.vlm, self.dtype)
        self.vlm.model.eval()
        self.vlm.checkpointing = False
        self.runtime.first(self._write)

    def _write(self) -> None:
        self.cost.spend("update", max(0.0, self.seconds - self.cost.trained))
        self.cost.matrix_rate = matrix_rate(self.runtime.device, self.vlm.dtype) * self.runtime.world_size
        write_cost(self.folder, self.cost)
        say(f"{self.label}: {self.cost.line()}")
        self.vlm.to("cpu")
        save(self.vlm, self.folder / "checkpoint")
        self.vlm.to(self.runtime.device)
        drop_states(self.folder / "state")
