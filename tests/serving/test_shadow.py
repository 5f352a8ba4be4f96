"""Shadow and canary: who answers, and that a shadow gives way to every request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lineside.registry.promotion import promote, roll_back
from lineside.registry.store import Registry
from lineside.registry.trials import start, stop
from lineside.serving import replies, requests, shadow
from lineside.serving.api import Questions
from lineside.serving.metrics import Metrics
from lineside.serving.models import Model, Models, Release
from lineside.serving.requests import Again, Reader
from lineside.serving.shadow import Shadow
from tests.serving.conftest import Engine, play, to, until

# --- who answers


def pairs(models: Models, draw: float, cell: str | None = None) -> tuple[str, str | None]:
    """Who answers a request, and who does so in shadow."""
    reader = Reader(models, None, None, draw=lambda: draw)
    model, other = reader._pair("bins", cell)
    return model.label, other.label if other else None


def test_a_shadow_has_its_share_of_requests_and_the_champion_answers(registry: Registry, engines: list[Engine]) -> None:
    async def scene(models: Models) -> None:
        assert pairs(models, 0.0) == ("bins@1", None)
        start(registry, registry.version("bins@2"), kind="shadow", share=0.25)
        await until(lambda: models.trial("bins") is not None)
        assert pairs(models, 0.2499) == ("bins@1", "bins@2") and pairs(models, 0.25) == ("bins@1", None)
        assert models.at("bins@2") is None and [m.label for m in models.all] == ["bins@1"]  # it is for nobody else
        told = models.facts(models.all[0])["trials"]
        assert told == {"": {"model": "bins@2", "kind": "shadow", "share": 0.25}}
        promote(registry, registry.version("bins@2"), cell="cell-7", force="x")  # it has a champion of its own
        await until(lambda: pairs(models, 0.0, "cell-7") == ("bins@2", None))
        assert pairs(models, 0.0, "cell-8") == ("bins@1", "bins@2")
        stop(registry, "bins")
        await until(lambda: models.trial("bins") is None)
        await until(lambda: engines[1].ended == "finished")
        assert pairs(models, 0.0) == ("bins@1", None)

    play(registry, scene)


def test_a_canary_answers_its_share_and_the_champion_is_its_shadow(registry: Registry, engines: list[Engine]) -> None:
    start(registry, registry.version("bins@2"), kind="canary", share=0.1, cell="cell-7", force="x")

    async def scene(models: Models) -> None:
        await until(lambda: models.trial("bins", "cell-7") is not None)
        assert pairs(models, 0.0999, "cell-7") == ("bins@2", "bins@1")
        assert pairs(models, 0.1, "cell-7") == ("bins@1", None) and pairs(models, 0.0) == ("bins@1", None)

    play(registry, scene, shadows=False)  # without a log a canary still answers


def test_without_a_log_nothing_runs_in_shadow(registry: Registry, engines: list[Engine]) -> None:
    start(registry, registry.version("bins@2"), kind="shadow", share=1.0, cell="cell-7")
    start(registry, registry.version("bins@2"), kind="canary", share=1.0, force="x")

    async def scene(models: Models) -> None:
        await until(lambda: models.trial("bins") is not None)
        assert pairs(models, 0.0, "cell-7") == ("bins@1", None)  # the canary of all cells is not for this one
        assert pairs(models, 0.0, "cell-8") == ("bins@2", "bins@1") and len(engines) == 2

    play(registry, scene, shadows=False)


def test_a_challenger_that_cannot_run_or_ends_hurts_nobody(registry: Registry, engines: list[Engine]) -> None:
    start(registry, registry.version("bins@4"), kind="shadow", share=1.0)

    async def scene(models: Models) -> None:
        await until(lambda: models.facts(models.all[0])["problems"])
        assert models.ready and pairs(models, 0.0) == ("bins@1", None)
        assert "bins@4 is not served, bins@1 answers on" in models.facts(models.all[0])["problems"][0]
        start(registry, registry.version("bins@2"), kind="shadow", share=1.0)
        await until(lambda: pairs(models, 0.0) == ("bins@1", "bins@2"))
        one = engines[-1]
        one.alive = False
        assert models.ready and pairs(models, 0.0) == ("bins@1", None)
        one.on_end()
        await until(lambda: pairs(models, 0.0) == ("bins@1", "bins@2"))

    play(registry, scene)


def test_a_shadow_that_is_promoted_gets_an_engine_that_is_not_spare(registry: Registry, engines: list[Engine]) -> None:
    start(registry, registry.version("bins@2"), kind="shadow", share=1.0)

    async def scene(models: Models) -> None:
        await until(lambda: models.trial("bins") is not None)
        spare = engines[1]
        to(registry, 2)
        await until(lambda: models.by_name["bins"].label == "bins@2")
        assert len(engines) == 3 and not models.by_name["bins"].release.spare
        await until(lambda: spare.ended == "finished")
        roll_back(registry, "bins")
        await until(lambda: pairs(models, 0.0) == ("bins@1", None))  # it has ended

    play(registry, scene)


def test_a_canary_that_is_promoted_answers_on_with_the_engine_that_it_has(
    registry: Registry, engines: list[Engine]
) -> None:
    start(registry, registry.version("bins@2"), kind="canary", share=0.1, force="x")

    async def asked(models: Models) -> tuple[str, str | None]:  # in a task of its own: its engine stays until that ends
        return pairs(models, 0.0)

    async def scene(models: Models) -> None:
        await until(lambda: models.trial("bins") is not None)
        to(registry, 2)
        await until(lambda: models.by_name["bins"].label == "bins@2")
        assert models.by_name["bins"].engine is engines[1]
        assert await asyncio.create_task(asked(models)) == ("bins@2", None)
        await until(lambda: engines[0].ended == "finished")
        await models.reload()  # nothing of the trial keeps the old engine
        await until(lambda: engines[1].ended == "finished")
        assert len(engines) == 3 and models.by_name["bins"].engine is engines[2]

    play(registry, scene)


def test_a_challenger_that_never_gets_ready_holds_up_no_champion(registry: Registry, engines: list[Engine]) -> None:
    to(registry, 2)

    async def scene(models: Models) -> None:
        Engine.may_start.clear()
        start(registry, registry.version("bins@1"), kind="shadow", share=1.0)
        await until(lambda: len(engines) == 2)
        waits = Engine.may_start
        Engine.may_start = asyncio.Event()
        Engine.may_start.set()
        to(registry, 1, "cell-7")
        await until(lambda: pairs(models, 0.0, "cell-7") == ("bins@1", None))
        assert not engines[1].alive and not waits.is_set()
        stop(registry, "bins")
        waits.set()
        await until(lambda: engines[1].ended == "finished")

    play(registry, scene)


# --- what it is asked


class Camera:
    """A camera that has another picture each time."""

    def __init__(self) -> None:
        self.taken = 0

    async def get(self, url: str) -> bytes:
        self.taken += 1
        return f"{url} {self.taken}".encode()


def test_the_shadow_sees_the_pictures_that_the_champion_has_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    class Decoder:
        async def show(self, data: bytes, **_: object) -> Any:
            return ((data, "frame"),), None

    models = {name: SimpleNamespace(label=name, roi=None, engine=SimpleNamespace(facts={"views": []})) for name in "ab"}
    named = SimpleNamespace(form=None, task=None)
    monkeypatch.setattr(requests, "_question", lambda *_: requests.Question("?", named, False, None))
    monkeypatch.setattr(requests, "arranged", lambda views, _: views)
    reader = Reader(None, Decoder(), camera := Camera())
    monkeypatch.setattr(reader, "_pair", lambda *_: (models["a"], models["b"]))
    body = {"model": "bins", "image": "http://cell-7/now.jpg", "questions": [{"question": "?"}]}

    async def scene() -> None:
        first = await reader.questions(Questions.model_validate(body), 0.0)
        assert first.again is not None and first.again.bytes == len(body["image"]) + len(first.frames[0])
        second = await first.again.read()
        assert camera.taken == 1 and second.frames == first.frames and second.pictures == first.pictures
        assert (first.model.label, second.model.label, second.again) == ("a", "b", None)

    asyncio.run(scene())


# --- giving way


class Log:
    def __init__(self) -> None:
        self.kept: list[str] = []

    def keep_shadow(self, name: str, typed: Any, *, version: str) -> None:
        self.kept.append(f"{name} {version}")


class Slow:
    """An engine of a challenger. `steps`: that an answer takes."""

    def __init__(self) -> None:
        self.steps, self.begun, self.broken, self.fails, self.alive = 1, 0, 0, False, True
        self.facts = {"think_close": 0}

    async def ask(self, header: dict[str, Any], blobs: object) -> AsyncGenerator[dict[str, Any], None]:
        assert header == "no deadline"
        self.begun += 1
        try:
            for _ in range(self.steps):
                await asyncio.sleep(0)
            done = {"kind": "done", "rows": [{"prompt": 0}], "ms": {"queue": 1.0, "decode": 2.0}}
            yield {"kind": "failed"} if self.fails else done
        except (asyncio.CancelledError, GeneratorExit):
            self.broken += 1
            raise


class Bench:
    """A shadow, and a request that is offered to it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(replies, "answered", lambda *_, ms, **__: SimpleNamespace(typed=ms))
        self.engine, self.log, self.metrics = Slow(), Log(), Metrics()
        self.model = Model(Release("bins", "bins@2", Path()), self.engine, None, "v2")
        self.shadow = Shadow(self.metrics, self.log)

    def offer(self, name: str, size: int = 10) -> None:
        async def read() -> Any:
            one = SimpleNamespace(prompts=[SimpleNamespace(question=None)], pictures=[], options={}, deadline_ms=5.0)
            one.header = lambda _: "no deadline" if one.deadline_ms is None else "a deadline"
            return one

        self.shadow.offer(SimpleNamespace(again=Again(self.model, read, size)), [name])

    def count(self, result: str) -> float:
        return self.metrics.shadow.labels("bins", result)._value.get()


async def turns(count: int = 50) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_a_shadow_answers_when_nobody_else_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        bench = Bench(monkeypatch)
        with bench.shadow.giving_way():
            bench.offer("a-0")
            await turns()
            assert bench.engine.begun == 0 and not bench.log.kept
        await turns()
        assert bench.log.kept == ["a-0 v2"] and bench.count("answered") == 1 and not bench.model.users
        bench.offer("b-0")
        await turns()
        assert bench.log.kept == ["a-0 v2", "b-0 v2"]

    asyncio.run(scene())


def test_a_request_that_comes_before_it_wakes_is_given_way(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        bench = Bench(monkeypatch)
        with bench.shadow.giving_way():
            bench.offer("a-0")
            await turns()
        with bench.shadow.giving_way():
            await turns()
            assert bench.engine.begun == 0
        await turns()
        assert bench.log.kept == ["a-0 v2"]

    asyncio.run(scene())


def test_a_request_breaks_a_shadow_off_which_is_tried_again_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        bench = Bench(monkeypatch)
        bench.engine.steps = 10_000
        bench.offer("a-0")
        for number in range(1, shadow.TRIES + 1):
            await turns()
            assert bench.engine.begun == number and bench.engine.broken == number - 1
            with bench.shadow.giving_way(), bench.shadow.giving_way():
                await turns()
                assert bench.engine.broken == number  # at once, and for as long as a request is answered
        await turns()
        assert bench.engine.begun == shadow.TRIES and bench.count("shed") == 1 and not bench.log.kept
        bench.engine.steps = 1
        bench.offer("b-0")
        await turns()
        assert bench.log.kept == ["b-0 v2"]

    asyncio.run(scene())


def test_under_load_the_oldest_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        bench = Bench(monkeypatch)
        with bench.shadow.giving_way():
            for number in range(shadow.WAITING + 5):
                bench.offer(f"a-{number}")
            bench.offer("large", shadow.MOST_BYTES + 1)
            await turns()
        await turns(500)
        assert bench.log.kept == [f"a-{number} v2" for number in range(5, shadow.WAITING + 5)]
        assert bench.count("shed") == 6 and bench.count("answered") == shadow.WAITING

    asyncio.run(scene())


def test_a_shadow_that_fails_and_an_end_in_the_middle_hurt_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        bench = Bench(monkeypatch)
        bench.engine.fails = True
        bench.offer("a-0")
        await turns()
        assert bench.count("failed") == 1 and not bench.log.kept
        bench.engine.fails, bench.engine.steps, bench.engine.broken = False, 10_000, 0
        bench.offer("b-0")
        bench.engine.alive = False
        await turns()
        assert bench.count("shed") == 1 and bench.engine.begun == 1  # its trial was stopped
        bench.engine.alive = True
        bench.offer("b-0")
        bench.offer("c-0")
        await turns()
        await bench.shadow.close()
        assert bench.engine.broken == 1 and not bench.model.users

    asyncio.run(scene())
