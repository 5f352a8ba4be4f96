"""Where memory runs out, a pack is cut in two: the step keeps its tokens, its loss and its gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lineside.errors import LinesideError
from lineside.families.llava import Llava
from lineside.model.render import BLANK
from lineside.model.tree import ANSWER, Node, Pack
from lineside.model.vlm import VLM, Features
from lineside.recipe import Sft
from lineside.runtime import ON_CPU
from lineside.training import optim
from lineside.training.packing import image_tree, packs_of, split
from lineside.training.stage import Stage
from tests.conftest import make_tiny_vlm
from tests.small_run import frame_samples, run_stages, tiny, weights


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A device that runs out of memory in the middle of backward at packs of more than 120 tokens, with gradients of
    the LM already there. Gives the sizes of the packs that did not fit."""
    failed: list[int] = []
    plain = Llava.embed

    def embed(family: Llava, model: Any, features: Any, shapes: Any) -> list[torch.Tensor]:
        out = plain(family, model, features, shapes)
        if out[0].requires_grad and len(out[0]) > LIMIT:
            out[0].register_hook(lambda gradient: full(len(out[0])))
        return out

    def full(tokens: int) -> None:
        failed.append(tokens)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(Llava, "embed", embed)
    return failed


LIMIT = 48  # image tokens of a pack that fit


def test_a_step_keeps_its_tokens_loss_and_gradient(
    little_memory: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tight, found = run_stages(tmp_path / "tight", ON_CPU)
    assert little_memory and max(little_memory) > LIMIT
    assert "align: out of memory at a pack of " in capsys.readouterr().err
    monkeypatch.undo()
    wide, expected = run_stages(tmp_path / "wide", ON_CPU)
    for stage, rows in expected.items():
        for row, other in zip(rows, found[stage], strict=True):
            assert other == pytest.approx(row, rel=1e-4, abs=1e-5)  # `tokens` too
    ours, theirs = weights(tight), weights(wide)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=2e-5, rtol=1e-4)


def test_a_frame_that_did_not_fit_is_cut_at_once_from_then_on(tmp_path: Path) -> None:
    vlm, store = tiny(ON_CPU)
    samples = frame_samples(0)[2:6]
    tried: list[int] = []

    def loss_of(pack: Pack, features: Features, place: slice) -> tuple[torch.Tensor, dict]:
        tried.append(len(pack))
        assert place == slice(sum(done), sum(done) + len(pack.target))
        if len(pack) > size * 0.9:
            raise torch.OutOfMemoryError
        done.append(len(pack.target))
        return -vlm.logprobs(pack, features).sum(), {}

    with Stage(vlm, tmp_path, Sft(), {"lm": 1e-3}, label="sft", frame_count=1) as stage:
        ((pack, images),) = packs_of(vlm, [image_tree(vlm, samples)], 4096)
        size = len(pack)
        for whole in (1, 0):
            done: list[int] = []
            tried.clear()
            for given, shown in stage.each([(pack, images)]):
                stage.learn(given, stage.features(store, shown), loss_of)
            assert sum(done) == len(pack.target) and tried.count(size) == whole


def test_a_single_response_that_does_not_fit_is_refused_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(VLM, "logprobs", full)
    with pytest.raises(
        LinesideError, match=r"align: a response .* tokens and does not fit .*align\.checkpointing=true"
    ):
        run_stages(tmp_path, ON_CPU)


def test_halves_hold_the_responses_in_order_with_their_own_pictures() -> None:
    vlm = make_tiny_vlm()
    leaf = lambda number: Node((5, 6 + number), roles=(ANSWER, ANSWER), leaf=number)  # noqa: E731
    prefix = vlm.render.prefix([BLANK])
    one = Node(prefix, images=(0,), children=(Node((7,), children=(leaf(0), leaf(1), leaf(2))),))
    two = Node(prefix, images=(0,), children=(leaf(3),))
    pack, features = vlm.pack([one, two]), torch.stack([torch.full((16, 16), float(i)) for i in range(2)])
    (first, seen), (second, also) = split(vlm, pack, features)
    assert first.leaf.tolist() == [0, 0, 1, 1, 2, 2] and second.leaf.tolist() == [3, 3]
    assert torch.equal(seen[0], features[0]) and torch.equal(also[0], features[1]) and len(seen) == len(also) == 1
    (left, seen), (right, also) = split(vlm, first, seen)
    assert left.leaf.tolist() == [0, 0] and right.leaf.tolist() == [1, 1, 2, 2]
    assert torch.equal(seen[0], features[0]) and torch.equal(also[0], features[0]) and len(seen) == len(also) == 1
    assert split(vlm, left, seen) == []
    whole = vlm.logprobs(pack, features)
    parts = [vlm.logprobs(part, features[list(of)]) for part, of in ((left, [0]), (right, [0]), (second, [1]))]
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-5, rtol=1e-5)


def test_gradients_of_a_broken_backward_are_forgotten_and_those_before_kept() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    optimiser = optim.Optimizer([optim.ParameterGroup("lm", [("w", weight)], 1.0)], max_grad_norm=0.0)
    (weight * torch.tensor([1.0, 2.0])).sum().backward()
    optimiser.accumulate()
    (weight * 100).sum().backward()
    optimiser.forget()
    (weight * torch.tensor([2.0, 2.0])).sum().backward()
    assert optimiser.step(0.0)["gradient_norm"] == pytest.approx(5.0)
