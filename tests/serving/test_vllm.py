"""The engine vLLM, over the real protocol and a real process, in which tests/fake_vllm stands for vLLM."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lineside import evaluate
from lineside.backends.vllm import Vllm
from lineside.errors import EngineEnded, LinesideError
from lineside.model.generate import Prompt
from lineside.serving.engine import LocalEngine, Request, Tree
from lineside.serving.engines import load_engine
from lineside.serving.grammar import json_grammar, regex_grammar
from lineside.serving.pairs import EnginePair, allowed, why_not
from lineside.serving.vllm import VllmEngine
from lineside.types import Image, Meta, Sample, Source, Target, VllmAt
from tests.conftest import fake_vllm, make_tiny_vlm, picture, wait_until
from tests.serving.conftest import EMPTY, serving, sharp, turn, url
from tests.serving.test_engine import QUESTIONS, asked, check, going
from tests.serving.test_formats import SMALL
from tests.serving.test_host import ask, host

SHOWN = (Image(picture(0)),)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmEngine]:
    vlm = sharp()
    vlm.use(Vllm(vlm, fake_vllm(tmp_path_factory.mktemp("vllm")), memory=0.3))
    engine = VllmEngine(vlm)
    yield engine
    engine.close()


@pytest.fixture
def engine(started: VllmEngine) -> VllmEngine:
    started.forget()
    return started


@pytest.fixture(scope="module")
def local() -> LocalEngine:
    return LocalEngine(sharp())


def answered(engine: LocalEngine, request: Request, cut_after: int = 0) -> Tree:
    (tree,) = engine.read([request])
    while going([tree]):
        if cut_after and len(tree.rows[0].tokens) == cut_after:
            engine.cut(tree)
        engine.step([tree])
    return tree


def test_trees_that_join_wait_and_leave_answer_as_generate_does(engine: VllmEngine, local: LocalEngine) -> None:
    """Greedy and sampled, of one and several questions; also those that wait, and are read again."""
    trees: list[Tree] = []
    for request in asked():
        trees += engine.read([request])
        engine.step(going(trees)[::2])
        engine.step(going(trees))
    while going(trees):
        engine.step(going(trees))
    check(local, trees)
    engine.step([])
    assert all(not tree.alive for tree in engine._going)


REQUESTS: dict[str, dict[str, Any]] = {
    "form": {"grammars": (json_grammar(SMALL), None, regex_grammar("yes|no"))},
    "sampled form": {"grammars": (json_grammar(SMALL), None, None), "temperature": 1.5, "samples": 2, "seed": 4},
    "top": {"top": 3},
    "sampled top": {"top": 2, "temperature": 0.8, "seed": 9},
    "choices": {"choices": (("yes", "no"), (), ("1", "2", "3"))},
    "stop": {"stop": ("e", "a")},
}


@pytest.mark.parametrize("options", REQUESTS.values(), ids=REQUESTS)
@pytest.mark.parametrize("thinking", [True, False])
def test_all_that_a_request_asks_is_as_of_our_own_decoding(
    engine: VllmEngine, local: LocalEngine, options: dict[str, Any], thinking: bool
) -> None:
    prompts = tuple(Prompt(SHOWN, question, thinking) for question in QUESTIONS[:3])
    request = Request(prompts, **{"max_tokens": 14, **options})
    cut_after = 3 if thinking else 0
    tree, want = (answered(one, request, cut_after) for one in (engine, local))
    for row, other in zip(tree.rows, want.rows, strict=True):
        assert (row.tokens, row.reason, row.part, row.cut, row.bent, row.answer_from) == (
            other.tokens, other.reason, other.part, other.cut, other.bent, other.answer_from,
        )  # fmt: skip
        assert row.logprobs == pytest.approx(other.logprobs, abs=1e-4)
        for told, expected in zip(row.tops, other.tops, strict=True):
            assert [said for _, said in told] == pytest.approx([said for _, said in expected], abs=1e-4)


def test_a_request_whose_client_has_gone_leaves_with_the_next_step(engine: VllmEngine) -> None:
    stays, goes = engine.read([Request((Prompt(SHOWN, one, False),), max_tokens=30) for one in QUESTIONS[:2]])
    engine.step([stays, goes])
    assert len(engine._vllm.there) == 2
    written = list(goes.rows[0].tokens)
    engine.step([stays])
    assert len(engine._vllm.there) == 1 and goes.rows[0].tokens == written


def test_while_a_request_is_read_the_others_write_on(engine: VllmEngine) -> None:
    """The host hears of it: a stream goes on, and what has ended meanwhile is told."""
    served, sent = host(engine)  # pyright: ignore[reportArgumentType]
    served.take(ask("first", None, stream=True, max_tokens=2), [picture(0)])
    served.act()
    served.take(ask("second", None), [picture(1)])
    served.act()
    assert [message["kind"] for message in sent.of("first")][-1] == "done"
    assert [message["kind"] for message in sent.of("second")] == ["accepted"] and served.live.keys() == {"second"}
    served.take({"kind": "cancel", "id": "second"}, [])


def test_it_measures_itself_and_what_does_not_fit_is_refused(engine: VllmEngine) -> None:
    costs = engine.warm()
    assert min(costs.read, costs.step) > 0 and min(costs.picture, costs.token, costs.row) >= 0
    engine._vllm.context = 100
    try:
        with pytest.raises(LinesideError, match="the model's context is 100"):
            engine.cost(Request((Prompt(SHOWN, QUESTIONS[0], False),), max_tokens=80))
    finally:
        engine._vllm.context = 512


def test_an_evaluation_is_answered_and_timed_by_it(
    engine: VllmEngine, local: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each question is timed with nothing known, alone, also up to its first token."""
    monkeypatch.setattr(evaluate, "measure_if_idle", lambda answer, questions, **more: (answer, questions, more))
    target, meta = Target("exact", "sim", accepted=("3",)), Meta(scene="s")
    samples = [
        Sample(f"q{n}", "qa", SHOWN, "cells", "count", question, None, None, target, "dev", meta, Source())
        for n, question in enumerate(QUESTIONS)
    ]
    found: Any = evaluate._time(engine.vlm, engine.store, samples, lambda _: False, max_new_tokens=8)
    (answer, questions, _), forgotten = found, []
    monkeypatch.setattr(engine._vllm, "forget", lambda: forgotten.append(set(engine._vllm.there)))
    assert [answer(one, 1) for one in questions] == [1] * 4 and len(forgotten) == 4
    by_it, by_local = (
        evaluate._Asking(one.vlm, one.store, None, lambda _: False, 8, 0).answerer(None)(samples)
        for one in (engine, local)
    )
    assert [one.tokens for one in by_it] == [one.tokens for one in by_local]


def test_when_it_has_ended_the_process_that_asks_it_ends_and_no_request_is_blamed(tmp_path: Path) -> None:
    vlm = sharp()
    vlm.use(Vllm(vlm, fake_vllm(tmp_path), memory=0.3))
    engine = VllmEngine(vlm)
    served, sent = host(engine)  # pyright: ignore[reportArgumentType]
    assert isinstance(vlm.backend, Vllm)
    folder, process = vlm.backend._folder, vlm.backend._process._process
    served.take(ask("x", None), [picture(0)])
    served.act()
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(EngineEnded, match=r"vLLM ended: it was killed.*lineside-vllm-\w+.log"):
        served.act()
    assert [message["kind"] for message in sent.of("x")] == ["accepted"]
    with pytest.raises(EngineEnded, match="it was killed"):
        engine.check()  # also while nothing is asked
    engine.close()
    assert not folder.exists() and vlm.backend._log.exists()
    vlm.backend._log.unlink()


def test_what_it_needs_is_told_before_anything_is_loaded(tmp_path: Path) -> None:
    pair = EnginePair("vllm", "full")
    with pytest.raises(LinesideError, match="give vLLM's own Python as --vllm-python"):
        load_engine(tmp_path, pair)
    there = VllmAt(fake_vllm(tmp_path))
    assert "--vllm-python: " in why_not(tmp_path, pair, VllmAt(tmp_path / "none"))
    assert why_not(tmp_path, pair, there) == ""
    assert "--weights full" in why_not(tmp_path, EnginePair("vllm", "int8"), there)
    assert allowed(tmp_path, engine="vllm", unjudged=True) == [pair]
    vlm: Any = make_tiny_vlm()
    vlm.language_model.config.model_type = "mistral"
    with pytest.raises(LinesideError, match=r"the engine vllm takes .*'mistral': take --engine local"):
        Vllm(vlm, fake_vllm(tmp_path), memory=0.3)


@pytest.mark.slow
def test_a_server_whose_vllm_is_killed_says_so_and_starts_it_again(
    tmp_path: Path, checkpoint: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No request hangs, and none is answered by something else."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where the log of the killed one stays
    options = ("--engine", "vllm", "--vllm-python", str(fake_vllm(tmp_path)))
    body = {"model": "tiny", "messages": turn("Is the left bin empty?", url(3)), "lineside": {"task": EMPTY}}
    with serving(checkpoint, keys, *options) as served, served.http() as client:
        first = client.post("v1/chat/completions", json=body).json()["choices"][0]["message"]
        os.kill(vllm_of(served.process.pid), signal.SIGKILL)
        wait_until(lambda: client.post("v1/chat/completions", json=body).status_code == 500)
        wait_until(lambda: client.post("v1/chat/completions", json=body).status_code == 200)
        assert client.post("v1/chat/completions", json=body).json()["choices"][0]["message"] == first
    log = (keys.parent / "serve.log").read_text()
    assert "decoded by vllm full" in log and "vLLM ended: it was killed" in log and "it is started again" in log


def vllm_of(front: int) -> int:
    """The process of vLLM: the child of the engine, which is the child of the front."""

    def children(pid: int) -> list[int]:
        return [int(p) for t in Path(f"/proc/{pid}/task").iterdir() for p in (t / "children").read_text().split()]

    (found,) = [pid for engine in children(front) for pid in children(engine) if b"vllm_engine" in line_of(pid)]
    return found


def line_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()
