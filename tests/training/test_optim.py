"""AdamW on masters: by hand, against torch, and what bf16 would lose without them."""

import math

import pytest
import torch

from lineside.errors import LinesideError
from lineside.training import muon
from lineside.training.optim import Optimizer, ParameterGroup, learning_rate_scale


def one(parameter: torch.nn.Parameter, rate: float = 0.1, **options) -> Optimizer:
    return Optimizer([ParameterGroup("lm", [("w", parameter)], rate)], **options)


def test_schedule_by_hand():
    at = [learning_rate_scale(p, warmup=0.2, min_lr_ratio=0.1) for p in (0.0, 0.1, 0.2, 0.6, 1.0)]
    assert at == pytest.approx([0.0, 0.5, 1.0, 0.55, 0.1])  # half way down the cosine: (1 + 0.1) / 2
    assert learning_rate_scale(0.4, schedule="linear", warmup=0.2, min_lr_ratio=0.0) == pytest.approx(0.75)
    assert [learning_rate_scale(p, schedule="constant", warmup=0.5) for p in (0.25, 0.5, 1.0)] == [0.5, 1.0, 1.0]
    assert learning_rate_scale(0.0, warmup=0.0) == 1.0
    assert learning_rate_scale(7.0, warmup=0.1, min_lr_ratio=0.25) == pytest.approx(
        0.25
    )  # a run past its time stays at the floor
    assert learning_rate_scale(0.5, warmup=1.0) == 0.5


def test_first_step_by_hand():
    """Adam's first step is lr * sign(g), whatever the size of g; the rate is the peak's times the scale."""
    w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimiser = one(w, max_grad_norm=0.0)
    w.grad = torch.tensor([3.0, -4.0])
    report = optimiser.step(scale=0.5)
    assert w.tolist() == pytest.approx([0.95, -1.95])
    assert report == pytest.approx({"gradient_norm": 5.0, "lr/lm": 0.05})
    assert w.grad is None


def test_clipping_is_by_the_norm_over_all_groups():
    """Two gradients of 3 and 4 have the norm 5: clipped to 1 they are 0.6 and 0.8, seen in Adam's first moment."""
    a, b = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    optimiser = Optimizer(
        [ParameterGroup("projector", [("a", a)], 0.1), ParameterGroup("lm", [("b", b)], 0.01)],
        betas=(0.0, 0.9),
        max_grad_norm=1.0,
    )
    a.grad, b.grad = torch.tensor([3.0]), torch.tensor([4.0])
    report = optimiser.step()
    state = optimiser.state_dict()
    assert report == pytest.approx({"gradient_norm": 5.0, "lr/projector": 0.1, "lr/lm": 0.01})
    assert state["a/exp_avg"].item() == pytest.approx(0.6, rel=1e-5)
    assert state["b/exp_avg"].item() == pytest.approx(0.8, rel=1e-5)


def test_equals_torch_in_float32():
    torch.manual_seed(0)
    ours = torch.nn.Parameter(torch.randn(3, 4))
    theirs = torch.nn.Parameter(ours.detach().clone())
    a = one(ours, 0.01, weight_decay=0.1, max_grad_norm=0.0)
    b = torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)
    for _ in range(5):
        gradient = torch.randn(3, 4)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        a.step()
        b.step()
    torch.testing.assert_close(ours, theirs)


def test_weight_decay_spares_vectors():
    matrix, vector = torch.nn.Parameter(torch.ones(1, 1)), torch.nn.Parameter(torch.ones(1))
    optimiser = Optimizer([ParameterGroup("lm", [("m", matrix), ("v", vector)], 0.1)], weight_decay=0.5)
    matrix.grad, vector.grad = torch.zeros(1, 1), torch.zeros(1)
    optimiser.step()
    assert (matrix.item(), vector.item()) == pytest.approx((0.95, 1.0))


def test_small_steps_add_up_in_bfloat16():
    """256 steps of 2^-12 from 1.0 make 0.0625 on the master; a bf16 weight of 1.0 alone would not move at all."""
    w = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimiser = one(w, 2.0**-12)
    for _ in range(256):
        w.grad = torch.ones_like(w)
        optimiser.step()
    assert w.dtype == torch.bfloat16
    assert w.tolist() == pytest.approx([1 - 0.0625] * 4)
    assert float(torch.ones((), dtype=torch.bfloat16) - 2.0**-12) == 1.0


def test_parts_of_a_step_add_up_in_float32():
    """1 + 256 gradients of 2^-9: in bf16 the sum would stay at 1."""
    w = torch.nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    optimiser = one(w, max_grad_norm=0.0)
    for gradient in [1.0] + [2.0**-9] * 256:
        w.grad = torch.full_like(w, gradient)
        optimiser.accumulate()
    assert optimiser.step()["gradient_norm"] == 1.5


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(bad):
    w = torch.nn.Parameter(torch.ones(2))
    optimiser = one(w)
    w.grad = torch.tensor([1.0, bad])
    with pytest.raises(LinesideError, match="diverged"):
        optimiser.step()
    assert w.tolist() == [1.0, 1.0]


def test_the_state_of_another_model_is_refused_before_anything_changes():
    w = torch.nn.Parameter(torch.ones(2))
    optimiser = one(w)
    other = {"v/master": torch.zeros(3), "w/master": torch.zeros(2)}
    with pytest.raises(LinesideError, match=r"first is v .*not trained"):
        optimiser.load_state_dict(other)
    with pytest.raises(LinesideError, match=r"first is w .*\(3,\)"):
        optimiser.load_state_dict({"w/master": torch.zeros(3)})
    assert w.tolist() == [1.0, 1.0]


def test_mistakes_of_the_caller():
    w = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="nothing to train"):
        Optimizer([])
    with pytest.raises(ValueError, match="twice"):
        Optimizer([ParameterGroup("lm", [("w", w), ("w", w)], 0.1)])


def test_muon_steps_matrices_orthogonally_and_tables_by_adamw():
    torch.manual_seed(0)
    matrix, table = torch.nn.Parameter(torch.randn(8, 8)), torch.nn.Parameter(torch.randn(8, 8))
    before = matrix.detach().clone(), table.detach().clone()
    optimizer = Optimizer(
        [ParameterGroup("lm", [("q_proj.weight", matrix), ("embed_tokens.weight", table)], 0.1)],
        muon=True,
        max_grad_norm=0.0,
    )
    gradient = torch.randn(8, 8)
    matrix.grad, table.grad = gradient.clone(), gradient.clone()
    optimizer.step()
    singular = torch.linalg.svdvals(matrix.detach() - before[0])
    assert singular.max() / singular.min() < 2.0  # every direction moves about alike, whatever the gradient's spectrum
    torch.testing.assert_close(
        table.detach(), before[1] - 0.1 * gradient.sign(), atol=1e-4, rtol=1e-4
    )  # Adam's first step


@pytest.mark.parametrize("shape", [(8, 8), (12, 5), (5, 12)])
@pytest.mark.parametrize("has_bf16", [True, False])
def test_muon_is_torchs_and_in_float32_where_a_processor_has_no_bf16(monkeypatch, shape, has_bf16):
    monkeypatch.setattr(muon, "has_bf16", lambda device: has_bf16)
    start = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    settings = {"weight_decay": 0.1, "lr": 0.05}
    own = muon.Muon([{"params": [ours], **settings}])
    reference = torch.optim.Muon([theirs], adjust_lr_fn=muon.SCALE, **settings)
    for step in range(3):
        ours.grad = torch.randn(shape, generator=torch.Generator().manual_seed(step + 1))
        theirs.grad = ours.grad.clone()
        own.step()
        reference.step()
    moved, wanted = ours.detach() - start, theirs.detach() - start
    if has_bf16:
        assert torch.equal(moved, wanted)
    else:
        assert 0 < (moved - wanted).norm() < 0.02 * wanted.norm()  # bf16 has 8 bits


def test_muon_resumes_bit_for_bit():
    def run(breaks: bool) -> torch.Tensor:
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(6, 4))
        build = lambda p: Optimizer([ParameterGroup("lm", [("w", p)], 0.05)], muon=True)  # noqa: E731
        optimizer = build(weight)
        for step in range(4):
            if breaks and step == 2:
                saved = {k: v.clone() for k, v in optimizer.state_dict().items()}
                weight = torch.nn.Parameter(torch.zeros(6, 4))
                optimizer = build(weight)
                optimizer.load_state_dict(saved)
            weight.grad = torch.randn(6, 4, generator=torch.Generator().manual_seed(step))
            optimizer.step()
        return weight.detach()

    assert torch.equal(run(False), run(True))
