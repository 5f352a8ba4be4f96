"""The engine process: takes requests from the front, keeps their deadlines, and sends answers back.

    python -m lineside.serving.worker FD CHECKPOINT OPTIONS

FD is its end of a socket pair (wire.py). It ends when the front has gone, or when it is told to finish and has
answered all that it accepted. One thread does all: between two steps it looks for messages.
"""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import starmap
from pathlib import Path
from typing import Any

from lineside.errors import EngineEnded, LinesideError
from lineside.machine import prepare
from lineside.progress import say
from lineside.serving.grammar import Form, FormError
from lineside.serving.scheduler import BLOCK, Costs, Job, Read, Refused, Scheduler, Step, p95
from lineside.serving.wire import Channel, Message
from lineside.types import NO_VLLM, VllmAt

FIRST_ANSWER = 8  # tokens that an answer of an unknown task is predicted to take
FIRST_FORMED = 40  # and one of a stated form, such as JSON
KINDS = 1024  # tasks and forms whose lengths are remembered
LENGTHS = 200  # answers of a task from which their length is predicted
MAX_ROWS = 64
MEMORY = ("feature_bytes", "prefix_bytes")  # options of the engine: bytes that it may keep


def milliseconds() -> float:
    """The clock of front and engine: the system's monotonic one, which is the same in every process."""
    return time.monotonic() * 1000


class AnswerLengths:
    """The predicted number of an answer's tokens, by task and form: the 95th percentile of the last ones."""

    def __init__(self, first: int = FIRST_ANSWER) -> None:
        self._first = first
        self._seen: dict[str, deque[int]] = {}

    def predict(self, task: str, formed: bool = False) -> int:
        """Tokens of an answer, its end token included. `formed`: its form is stated, so the first may be long."""
        seen = self._seen.get(task, ())
        return p95(seen) if len(seen) >= 5 else max([FIRST_FORMED if formed else self._first, *seen])

    def add(self, task: str, tokens: int) -> None:
        """Count an answer. What has not been asked for longest is forgotten."""
        self._seen[task] = seen = self._seen.pop(task, None) or deque(maxlen=LENGTHS)
        seen.append(tokens)
        if len(self._seen) > KINDS:
            del self._seen[next(iter(self._seen))]


@dataclass(slots=True, eq=False)
class Live:
    """A request between its acceptance and its answer."""

    job: Job
    request: Any  # engine.Request
    tasks: list[str]
    stream: bool
    at: float
    prompt_tokens: int
    tree: Any = None  # engine.Tree
    thinking: list[bool] = field(default_factory=list)
    at_once: list[int] = field(default_factory=list)
    """Tokens that came with the reading, by row."""
    began: float = 0.0
    sent: list[list[int]] = field(default_factory=list)


class Host:
    """Runs an engine by a scheduler, and speaks with the front."""

    def __init__(
        self, channel: Channel, engine: Any, scheduler: Scheduler, clock: Callable[[], float] = milliseconds
    ) -> None:
        self.channel, self.engine, self.scheduler, self.clock = channel, engine, scheduler, clock
        self.live: dict[str, Live] = {}
        self.lengths = AnswerLengths()
        self.steps = AnswerLengths()  # of answers that are read as drafts, those that come with the reading as one
        self.finishing = False

    def run(self) -> None:
        """Serve until the front has gone, or all is answered after "finish". Raises EngineEnded if what decodes has
        ended."""
        while not (self.channel.closed or (self.finishing and not self.live)):
            for header, blobs in self.channel.messages(wait=0.0 if self.live else self.engine.look_seconds):
                self.take(header, blobs)
            self.act()
            self.engine.check()

    def take(self, header: dict[str, Any], blobs: list[bytes]) -> None:
        """One message of the front."""
        if header["kind"] == "ask":
            try:
                self._ask(header, blobs)
            except LinesideError as error:
                self.channel.send(failed(header["id"], error))
        elif header["kind"] == "cancel":
            if (live := self.live.pop(header["id"], None)) is not None:
                self.scheduler.end(live.job)
            self.channel.send({"kind": "state", "id": header["id"], **self._state()})
        elif header["kind"] == "finish":
            self.finishing = True

    def _ask(self, header: dict[str, Any], blobs: list[bytes]) -> None:
        request, tasks = self._request(header, blobs), header["tasks"]
        work = self.engine.cost(_fast(request))
        deadline = math.inf if header["deadline"] is None else header["deadline"]
        rows = len(request.prompts) * request.samples
        if rows > self.scheduler.max_rows:
            raise LinesideError(f"{rows} answers at once: at most {self.scheduler.max_rows} (questions times n)")
        formed = [one["grammar"] is not None for one in header["prompts"]]
        answer = min(max(map(self.lengths.predict, tasks, formed)), request.max_tokens)
        fast = min(max(map(self._steps, tasks, request.choices or [()] * len(tasks), formed)), request.max_tokens)
        thinks = any(prompt.thinking for prompt in request.prompts)
        job = Job(
            header["id"], deadline, work.pictures, work.shared + work.own, rows, answer, thinks,
            head=work.head, shared=work.shared, fast=fast,
        )  # fmt: skip
        refused = self.scheduler.offer(job, self.clock())
        if refused is not None:
            self._refuse(header["id"], refused)
            return
        self.live[job.name] = Live(job, request, tasks, header["stream"], header["at"], prompt_tokens=work.prompt)
        self.channel.send({"kind": "accepted", "id": job.name, **self._state()})

    def _steps(self, task: str, choices: tuple[str, ...], formed: bool) -> int:
        """After how many tokens an answer without thinking is predicted to end."""
        return self.steps.predict(task) if choices and not formed else self.lengths.predict(task, formed)

    def _request(self, header: dict[str, Any], blobs: list[bytes]) -> Any:
        from lineside.model.generate import Prompt
        from lineside.serving.engine import Request
        from lineside.types import Image

        images = tuple(Image(blob, **told) for blob, told in zip(blobs, header["pictures"], strict=True))
        grammars = tuple(one["grammar"] for one in header["prompts"])
        prompts = tuple(Prompt(images, one["question"], one["thinking"]) for one in header["prompts"])
        choices = tuple(tuple(one["choices"]) for one in header["prompts"])
        most = header["max_tokens"]
        if header["clamp"]:
            most = max(1, min(most, self.engine.room(prompts)))
        return Request(
            prompts,
            max_tokens=most,
            samples=header["samples"],
            temperature=header["temperature"],
            seed=header["seed"],
            stop=tuple(header["stop"]),
            grammars=grammars if any(grammars) else (),
            choices=choices if any(choices) else (),
            top=header["top"],
        )

    def _refuse(self, name: str, refused: Refused) -> None:
        self.channel.send(
            {"kind": "refused", "id": name, "needs": refused.needs, "retry": refused.retry, **self._state()}
        )

    # --- what runs

    def act(self) -> None:
        """One action of the scheduler, if there is one."""
        action = self.scheduler.next(self.clock())
        if isinstance(action, Read):
            lives = [self.live[job.name] for job in action.jobs]
            with self._guarded(lives):
                self._read_together(lives, action.thinking)
        elif isinstance(action, Step):
            for job in action.late:
                self._late(self.live[job.name])
            lives = [self.live[job.name] for job in action.jobs]
            with self._guarded(lives):
                self._step(lives, {job.name for job in action.cut})

    def _read_together(self, lives: list[Live], thinking: Collection[Job]) -> None:
        """Read requests. If one of them is bad, each is read alone, so that it fails alone."""
        try:
            self._read(lives, thinking)
        except LinesideError:
            if len(lives) == 1:
                raise
            for live in lives:
                with self._guarded([live]):
                    self._read([live], thinking)

    def _read(self, lives: list[Live], thinking: Collection[Job]) -> None:
        for live in lives:
            if live.job not in thinking:
                live.request = _fast(live.request)
            live.thinking = [prompt.thinking for prompt in live.request.prompts]
            self._look_at(live.job, live.request)
        cost, start = self.scheduler.reading([live.job for live in lives]), self.clock()
        trees = self.engine.read([live.request for live in lives])
        self.scheduler.reads.add(cost, self.clock() - start)
        for live, tree in zip(lives, trees, strict=True):
            live.began, live.tree = start, tree
            live.at_once = [len(row.tokens) for row in tree.rows]
            live.sent = [[0, 0] for _ in tree.rows]
            self.scheduler.begin(live.job, live.job in thinking)
        for live in [one for one in self.live.values() if one.tree is not None]:  # vLLM writes for all of them
            self._update(live)
        for job in self.scheduler.waiting:  # what was read may be a part of theirs
            self._look_at(job, _fast(self.live[job.name].request))

    def _look_at(self, job: Job, request: Any) -> None:
        """What a job takes to read changes with what is in memory."""
        work = self.engine.cost(request)
        job.pictures, job.tokens, job.shared = work.pictures, work.shared + work.own, work.shared

    def _step(self, lives: list[Live], cut: set[str]) -> None:
        if not lives:
            return
        for live in lives:
            if live.job.name in cut:
                self.engine.cut(live.tree)
        start = self.clock()
        self.engine.step([live.tree for live in lives])
        cost = self.scheduler.costs.stepping(sum(live.job.rows for live in lives))
        self.scheduler.steps.add(cost, self.clock() - start, BLOCK)
        for live in lives:
            self._update(live)

    def _late(self, live: Live) -> None:
        """Over time: what is written goes out as it is; what was never read is refused."""
        if live.tree is None:
            self.scheduler.end(live.job)
            self.live.pop(live.job.name)
            self._refuse(live.job.name, Refused(self.scheduler.needs(live.job), None))
            return
        for row in live.tree.rows:
            row.reason = row.reason or "deadline"
        self._update(live)

    def _update(self, live: Live) -> None:
        """After a token: tell the scheduler what is left, and the front what is written."""
        if live.tree.problem:
            self.scheduler.end(live.job)
            self.live.pop(live.job.name)
            self.channel.send(failed(live.job.name, FormError(live.tree.problem)))
            return
        going = [row for row in live.tree.rows if row.reason is None]
        if live.stream:
            self._stream(live)
        if going:
            live.job.rows = len(going)
            live.job.left = max(row.left(live.job.answer) for row in going)
            live.job.thinks = any(row.part != "answer" and not row.forced for row in going)
            return
        self.scheduler.end(live.job)
        self.live.pop(live.job.name)
        for row, at_once in zip(live.tree.rows, live.at_once):
            task = live.tasks[row.prompt]
            if row.part == "answer":  # one that was cut off is at least so long
                self.lengths.add(task, len(row.tokens) - row.answer_from)
            if live.request.choices and live.request.choices[row.prompt] and not live.thinking[row.prompt]:
                self.steps.add(task, len(row.tokens) - at_once + 1)
        self._done(live)

    def _stream(self, live: Live) -> None:
        longest = max((len(stop) for stop in live.request.stop), default=1) - 1
        for number, row in enumerate(live.tree.rows):
            texts = self.engine.reasoning(row), self._content(live, row)
            for kind, (text, sent) in enumerate(zip(texts, live.sent[number])):
                if row.reason is None and (kind == 1 or row.part == "trace"):
                    text = text.rstrip("\ufffd")  # the first bytes of a character whose others are still to come
                    text = text[: len(text) - longest] if kind == 1 and longest else text
                if len(text) > sent:
                    live.sent[number][kind] = len(text)
                    part = "content" if kind else "reasoning"
                    self.channel.send({"kind": "delta", "id": live.job.name, "row": number, part: text[sent:]})

    def _content(self, live: Live, row: Any) -> str:
        """The text of an answer, up to the first stop string; JSON that was cut is closed, where that can be done."""
        if row.part != "answer":
            return ""
        text = self.engine.content(row)
        if row.matcher is not None:
            return text if row.reason is None else text + row.matcher.closed(text)[1]
        found = [at for stop in live.request.stop if (at := text.find(stop)) >= 0]
        return text[: min(found)] if found else text

    def _form(self, row: Any) -> Form | None:
        """Whether the answer of an ended row has the form that was asked for; None: any will do."""
        if row.matcher is None:
            return None
        return row.matcher.closed(self.engine.content(row) if row.part == "answer" else "")[0]

    def _done(self, live: Live) -> None:
        render, timing = self.engine.render, live.tree.timing
        rows = [
            {
                "prompt": row.prompt,
                "tokens": row.tokens,
                "logprobs": row.logprobs,
                "tops": row.tops,
                "text": render.decode(row.tokens),
                "content": self._content(live, row),
                "form": self._form(row),
                "bent": row.bent,
                "reasoning": self.engine.reasoning(row),
                "answer_from": row.answer_from,
                "reason": row.reason,
                "cut": row.cut,
                "finished": row.tokens[-1] == render.eos_id,
                "thinking": live.thinking[row.prompt],
            }
            for row in live.tree.rows
        ]
        named = {token for row in live.tree.rows if live.request.top is not None for token in _named(row)}
        ms = {
            "queue": max(0.0, live.began - live.at),
            "features": 1000 * timing.features,
            "prefill": 1000 * timing.prefill,
            "decode": 1000 * timing.decode,
        }
        self.channel.send(
            {
                "kind": "done",
                "id": live.job.name,
                "rows": rows,
                "ms": ms,
                "prompt_tokens": live.prompt_tokens,
                "cached_tokens": live.tree.known,
                "ended": self.clock(),
                "texts": {str(token): render.decode([token]) for token in named},
                **self._state(),
            }
        )

    def _state(self) -> dict[str, Any]:
        scheduler = self.scheduler
        return {
            "running": sum(job.rows for job in scheduler.running),
            "waiting": len(scheduler.waiting),
            "steps": self.engine.steps,
            "prefix_cache_bytes": self.engine.heads.bytes,
        }

    def _guarded(self, lives: list[Live]) -> _Guard:
        return _Guard(self, lives)


class _Guard:
    """An error of the engine ends the requests that it was about, and nothing else."""

    def __init__(self, host: Host, lives: list[Live]) -> None:
        self._host, self._lives = host, lives

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if not isinstance(error, Exception) or isinstance(error, EngineEnded):
            return False  # it ends this process
        bad = isinstance(error, LinesideError)
        if not bad:
            say(f"engine: a bug in lineside, {type(error).__name__}: a request failed")
        for live in self._lives:
            self._host.scheduler.end(live.job)
            if self._host.live.pop(live.job.name, None) is not None:
                self._host.channel.send(failed(live.job.name, error))
        return True


def _fast(request: Any) -> Any:
    """The request with thinking off."""
    return replace(request, prompts=tuple(replace(prompt, thinking=False) for prompt in request.prompts))


def failed(name: str, error: Exception) -> dict[str, Any]:
    """The message that a request has no answer. Only what who asked can mend is told."""
    bad = isinstance(error, LinesideError)
    told = str(error) if bad else "the engine failed on this request"
    return {"kind": "failed", "id": name, "message": told, "bad": bad, "form": isinstance(error, FormError)}


def _named(row: Any) -> Iterator[int]:
    """Tokens whose text is asked for."""
    yield from row.tokens
    for top in row.tops:
        yield from (token for token, _ in top)


@dataclass(frozen=True, slots=True)
class Begun:
    """An engine that is warm. `why`: the reason why it is this one."""

    engine: Any
    costs: Costs
    pair: str
    why: str


def begin(checkpoint: Path, options: dict[str, Any]) -> Begun:
    """Load and measure the engines that may serve, and keep the fastest. Raises LinesideError if none can be loaded."""
    from lineside.serving.pairs import EnginePair

    best: Begun | None = None
    told, problem = [], LinesideError(f"{checkpoint}: no engine is left to serve it")
    for pair in starmap(EnginePair, options["pairs"]):
        try:
            engine, costs = _warmed(checkpoint, pair, options)
        except LinesideError as error:
            problem = error
            told.append(f"{pair} cannot be loaded ({error})")
            continue
        told.append(
            f"{pair} takes {costs.stepping(1):.2f} ms for a token of one answer, {costs.stepping(8):.2f} of eight"
        )
        if best is None:
            best = Begun(engine, costs, str(pair), "")
        elif typical(costs) < typical(best.costs):
            best.engine.close()
            best = Begun(engine, costs, str(pair), "")
        else:
            engine.close()
        del engine  # only one other model is in memory while the next is loaded
    if best is None:
        raise problem
    only = "it is the only one to choose from" if len(told) == 1 else f"the fastest ({'; '.join(told)})"
    return replace(best, why=only)


def _warmed(checkpoint: Path, pair: Any, options: dict[str, Any]) -> tuple[Any, Costs]:
    """An engine that is loaded and warm, and what it takes. Of one that fails nothing goes on. Raises LinesideError."""
    from lineside.runtime import Runtime
    from lineside.serving.engines import engine_of, load_engine

    python, memory = options.get("vllm", (None, 0.0))
    vllm = VllmAt(Path(python), memory) if python else NO_VLLM
    vlm = load_engine(checkpoint, pair, device=Runtime.of(options["device"]).device, vllm=vllm)
    engine = engine_of(vlm, **{key: options[key] for key in MEMORY})
    try:
        with suppress(FormError):  # a tokenizer that cannot be read: requests with a form are refused
            _ = engine.grammars  # reading a vocabulary takes a second: not while somebody waits
        return engine, engine.warm()
    except BaseException:
        engine.close()
        raise


def typical(costs: Costs) -> float:
    """Milliseconds that engines are compared by: an answer of twenty tokens alone, and each of eight about a frame."""
    return sum(costs.read + 15 * rows * costs.token + 20 * costs.stepping(rows) for rows in (1, 8)) / 2


def facts(begun: Begun) -> Message:
    """What the front must know of a model."""
    vlm, costs = begun.engine.vlm, begun.costs
    return (
        {
            "kind": "ready",
            "thinking": dict(vlm.thinking.tasks),
            "thinks": vlm.thinking.knows,
            "roi": vlm.roi,
            "references": vlm.references,
            "views": list(vlm.views),
            "form": vlm.form,
            "pair": begun.pair,
            "why": begun.why,
            "context": begun.engine.context,
            "think_close": vlm.render.think_close,
            "costs": {name: getattr(costs, name) for name in ("read", "picture", "token", "step", "row")},
        },
        [],
    )


def main(arguments: list[str]) -> int:
    """The process: load, warm, say that it is ready, serve."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the front says when to end
        signal.signal(number, signal.SIG_IGN)
    channel = Channel(socket.socket(fileno=int(arguments[0])))
    prepare()
    options = json.loads(arguments[2])
    os.nice(options.get("nice", 0))
    try:
        begun = begin(Path(arguments[1]), options)
    except LinesideError as error:
        channel.send({"kind": "broken", "message": str(error)})
        return 2
    channel.send(*facts(begun))
    scheduler = Scheduler(begun.costs, max_rows=options.get("max_rows", MAX_ROWS), margin=options["margin"])
    try:
        Host(channel, begun.engine, scheduler).run()
    except EngineEnded as error:
        say(f"engine: {error}")
        return 2
    finally:
        begun.engine.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
