"""A server follows its registry: engines that are no processes, and once a real server under load."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from lineside.errors import LinesideError
from lineside.registry.policy import Policy, clean
from lineside.registry.promotion import promote, roll_back
from lineside.registry.store import Registry
from lineside.serving import models as serving_models
from lineside.serving.follow import Champions
from lineside.serving.models import Checkpoints, Models
from tests.registry.conftest import add
from tests.serving.conftest import Engine, Load, play, registry_of_two, serving, to, until


def label(models: Models, cell: str = "") -> str:
    found = models.at("bins", cell)
    assert found is not None and found.engine.alive
    return found.label


def test_promotions_and_rollbacks_are_followed_by_cell(registry: Registry, engines: list[Engine]) -> None:
    async def scene(models: Models) -> None:
        assert label(models) == label(models, "cell-7") == "bins@1"
        to(registry, 2, "cell-7")
        await until(lambda: label(models, "cell-7") == "bins@2")
        assert label(models) == label(models, "cell-8") == "bins@1" and len(engines) == 2
        assert {m.label: models.facts(m)["cells"] for m in models.all} == {"bins@1": [], "bins@2": ["cell-7"]}
        assert [models.id_of(m) for m in models.all] == ["bins", "bins@2"]
        assert models.at("bins@2") is models.at("bins", "cell-7") and models.at("kits") is None
        to(registry, 2)
        await until(lambda: label(models) == "bins@2")
        assert len(engines) == 2  # it runs already
        await until(lambda: engines[0].ended == "finished")
        roll_back(registry, "bins", cell="cell-7")
        roll_back(registry, "bins")
        await until(lambda: label(models, "cell-7") == label(models) == "bins@1")
        await until(lambda: engines[1].ended == "finished")

    play(registry, scene)
    assert len(engines) == 3


def test_the_old_model_answers_until_the_new_one_is_warm_and_then_what_it_has(
    registry: Registry, engines: list[Engine]
) -> None:
    async def scene(models: Models) -> None:
        old, asked = models.at("bins"), asyncio.Event()

        async def request() -> None:
            assert models.find("bins") is old
            await asked.wait()  # receives its picture

        running = asyncio.create_task(request())
        await asyncio.sleep(0)
        Engine.may_start.clear()
        to(registry, 2)
        await until(lambda: len(engines) == 2)
        assert label(models) == "bins@1" and models.ready
        Engine.may_start.set()
        await until(lambda: label(models) == "bins@2")
        await asyncio.sleep(0.01)
        assert engines[0].alive  # a request is about to be sent to it
        asked.set()
        await running
        await until(lambda: engines[0].ended == "finished")

    play(registry, scene)


def test_what_is_not_wanted_any_more_when_it_is_warm_never_serves(registry: Registry, engines: list[Engine]) -> None:
    async def scene(models: Models) -> None:
        Engine.may_start.clear()
        to(registry, 2)
        await until(lambda: len(engines) == 2)
        roll_back(registry, "bins")
        Engine.may_start.set()
        await until(lambda: engines[1].ended == "finished")
        assert label(models) == "bins@1" and engines[0].alive and len(engines) == 2

    play(registry, scene)


@pytest.mark.parametrize("kind", ["gone", "damaged", "bad"])
def test_a_promotion_that_cannot_be_served_leaves_the_old_one_and_says_so(
    registry: Registry, engines: list[Engine], capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    version = registry.version("bins@4" if kind == "bad" else "bins@2")
    file = registry.files(registry.item(version.model)) / "model.safetensors"

    async def scene(models: Models) -> None:
        nonlocal file
        to(registry, version.number)
        if kind != "bad":
            file.chmod(0o644)
            file.unlink() if kind == "gone" else file.write_text("B")
        await until(lambda: bool(models.problems))
        assert label(models) == "bins@1" and models.ready
        (told,) = models.facts(models.by_name["bins"])["problems"]
        reason = {"gone": "is gone", "damaged": "has changed", "bad": "cannot be loaded"}[kind]
        assert told.startswith(f"{version.label} is not served, bins@1 answers on: ") and reason in told
        before = len(engines)
        await asyncio.sleep(0.02)
        assert len(engines) == before  # not at every look
        to(registry, 3)
        await until(lambda: label(models) == "bins@3")
        assert not models.problems

    play(registry, scene)
    assert capfd.readouterr().err.count(f"{version.label} is not served") == 1


def test_a_registry_that_cannot_be_read_changes_nothing(registry: Registry, engines: list[Engine]) -> None:
    async def scene(models: Models) -> None:
        place = registry.folder / "registry.sqlite"
        place.rename(registry.folder / "away")
        await asyncio.sleep(0.02)
        assert label(models) == "bins@1"
        (registry.folder / "away").rename(place)
        to(registry, 2)
        await until(lambda: label(models) == "bins@2")

    play(registry, scene)


def test_an_engine_that_ends_by_itself_is_started_again(registry: Registry, engines: list[Engine]) -> None:
    async def scene(models: Models) -> None:
        engines[0].alive = False
        engines[0].on_end()
        await until(lambda: len(engines) == 2 and models.all[0].engine.alive)
        assert label(models) == "bins@1"
        await until(lambda: engines[0].ended == "finished")

    play(registry, scene)


def test_what_a_server_uses_is_not_deleted(registry: Registry, engines: list[Engine]) -> None:
    async def scene(models: Models) -> None:
        old = models.all[0]
        busy = asyncio.create_task(asyncio.sleep(60))
        old.users.add(busy)
        for number in (2, 3):  # the first one is neither the champion nor the one before it
            to(registry, number)
            await until(lambda number=number: models.by_name["bins"].label == f"bins@{number}")
        assert [version.label for version in clean(registry, Policy(keep=0)).busy] == ["bins@1"]
        busy.cancel()
        await until(lambda: engines[0].ended == "finished")
        await until(lambda: [v.label for v in clean(registry, Policy(keep=0)).deleted] == ["bins@1"])

    play(registry, scene)


def test_the_registry_is_read_again_only_after_a_change_and_for_a_while_after_it(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit is in the log before it can be seen: a look in between must not be the last one."""
    reads: list[int] = []
    read = Champions._read
    monkeypatch.setattr(Champions, "_read", lambda self: reads.append(1) or read(self))
    champions = Champions(registry.folder)
    for _ in range(3):
        champions.wanted()
    assert len(reads) == 3  # the last change is a moment ago
    for path in registry.folder.glob("registry.sqlite*"):
        os.utime(path, (0, 0))
    for _ in range(3):
        champions.wanted()
    assert len(reads) == 4
    to(registry, 2)
    assert champions.wanted()["bins", ""].label == "bins@2"


def test_what_cannot_be_followed_is_refused_by_name(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(LinesideError, match=r"no model named 'bin'.*did you mean 'bins'"):
        Champions(registry.folder, ["bin"])
    add(registry, "kits", "a")
    with pytest.raises(LinesideError, match="kits has no champion: `lineside promote kits@1` makes one"):
        Champions(registry.folder, ["kits"]).wanted()
    with Registry(tmp_path / "empty", create=True), pytest.raises(LinesideError, match="no champion to serve"):
        Champions(tmp_path / "empty")
    with pytest.raises(LinesideError, match="no registry here"):
        Champions(tmp_path / "none")


@pytest.mark.slow
def test_a_promotion_and_a_rollback_under_load(tmp_path: Path, keys: Path) -> None:
    """A real server, real clients without a pause: no request fails, and each answer says which version gave it."""
    folder = registry_of_two(tmp_path)
    with serving(None, keys, "--registry", str(folder)) as served, Registry(folder) as registry:
        with Load(served, ["cell-0", "cell-1"]) as load:
            load.until("bins@1", 0)
            promote(registry, registry.version("bins@2"), cell="cell-1", force="canary")
            load.until("bins@2", 1)
            promote(registry, registry.version("bins@2"), force="x")
            load.until("bins@2", 0)
            roll_back(registry, "bins")
            load.until("bins@1", 0)
        with served.http() as client:
            listed = client.get("v1/models").json()["data"]
    assert not load.failed
    assert load.shown == [["bins@1", "bins@2", "bins@1"], ["bins@1", "bins@2"]]
    with Registry(folder) as registry:
        hashes = {version.label: version.model[:16] for version in registry.versions()}
    assert {(label, version) for seen in load.answers for label, version, _ in seen} == set(hashes.items())
    assert len({text for seen in load.answers for *_, text in seen}) == 1
    assert [(model["id"], model["lineside"]["serves"], model["lineside"]["cells"]) for model in listed] == [
        ("bins", "bins@1", []),
        ("bins@2", "bins@2", ["cell-1"]),
    ]


@pytest.mark.parametrize("by", ["itself", "reload"])
def test_an_engine_that_could_not_be_started_again_is_tried_again(
    engines: list[Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """Also for checkpoints that are named, whose folder somebody copies anew just then."""
    weights = tmp_path / "model.safetensors"
    weights.write_text("good")
    monkeypatch.setattr(serving_models, "RETRY_SECONDS", 1000.0 if by == "reload" else 0.01)

    async def scene() -> None:
        Engine.may_start = asyncio.Event()
        Engine.may_start.set()
        models = Models(Checkpoints({"tiny": tmp_path}), {}, lambda _: [])
        await models.start()
        assert models.ready and models.state("tiny") == "ready"
        weights.write_text("bad")
        engines[0].kill()
        engines[0].on_end()
        await until(lambda: models.state("tiny") == "failed")
        assert not models.ready and "tiny is not served, nothing answers on" in next(iter(models.problems.values()))
        if by == "reload":
            await asyncio.sleep(0.05)
            assert len(engines) == 2  # one attempt, not one at each look
        weights.write_text("good")
        if by == "reload":
            await models.reload()
        await until(lambda: models.ready)
        assert models.state("tiny") == "ready" and not models.problems
        await models.close()

    asyncio.run(scene())
