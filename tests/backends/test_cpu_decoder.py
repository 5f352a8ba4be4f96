"""Decoding by our own C++: one call a step, buffers that grow and fill up, threads, trees, int8, laid-out weights."""

from __future__ import annotations

import ctypes
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lineside.backends import cpu_decoder, cpu_ops
from lineside.backends.cpu import Cpu
from lineside.backends.packed_linear import quantise_linears
from lineside.backends.reference import Reference
from lineside.errors import LinesideError
from lineside.training.optim import Optimizer, ParameterGroup
from tests.backends.test_backends import NEW, PREFIX, decoders, steps
from tests.conftest import make_tiny_vlm

pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler here")


def step(by: Any, cache: Any, rows: int, number: int = 0) -> Any:
    """The same tokens for each, greedy."""
    tokens, greedy = np.arange(300, 300 + rows), np.zeros(rows, np.float32)
    return by.next(tokens, np.arange(rows) + PREFIX + number, [cache], greedy, greedy)


class Operators(TorchDispatchMode):
    """Counts the operators of PyTorch that Python calls."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.called.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("weights", ["full", "int8"])
@torch.no_grad()
def test_a_step_is_one_call_of_native_code(weights: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call gives the interpreter's lock away, and has to wait for it beside a busy thread."""
    vlm, called = make_tiny_vlm(), []
    by = cpu_decoder.CpuSteps(vlm.lm, weights)
    found = decoders(vlm, 2, 3)[1][1], decoders(vlm, 1, 5)[1][1]
    tokens, zeros, heat = np.arange(300, 311), np.zeros(11, np.float32), np.linspace(0, 1, 11, dtype=np.float32)
    by.next(tokens, np.full(11, PREFIX), found, zeros, heat)  # lays out the rotations and makes the buffers
    native = cpu_ops._function
    monkeypatch.setattr(
        cpu_ops, "_function", lambda *name: lambda *given: called.append(name[0]) or native(*name)(*given)
    )
    with Operators() as operators:
        by.next(tokens, np.full(11, PREFIX + 1), found, zeros, heat)
    assert called == ["step"]
    assert not operators.called


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_a_row_gets_the_same_numbers_beside_any_others(dtype: torch.dtype, tied: bool) -> None:
    """1, 3, 8 and 40 rows, in one tree or in several: logits as the reference's."""
    torch.manual_seed(3)
    vlm = make_tiny_vlm()
    if not tied:
        vlm.model.lm_head = nn.Linear(32, vlm.model.lm_head.out_features, bias=False)
    vlm.requires_grad_(False).to(dtype)
    by, reference = Cpu().steps(vlm.lm), Reference().steps(vlm.lm)
    alone: dict[int, Tensor] = {}
    for rows in (1, 3, 8, 40):
        (_, want), (_, ours), _ = decoders(vlm, 1, rows, tail=0, dtype=dtype)
        for number in range(2):
            written, said = step(by, ours, rows, number), step(reference, want, rows, number)
            atol, rtol = (2e-5, 1e-4) if dtype == torch.float32 else (0.03, 0.03)
            torch.testing.assert_close(written.logits, said.logits, atol=atol, rtol=rtol)
            assert torch.equal(written.logits[0], alone.setdefault(number, written.logits[0].clone()))
    trees = [decoders(vlm, 1, rows, tail=0, dtype=dtype)[1][1] for rows in (3, 1, 8)]
    tokens, greedy = np.concatenate([np.arange(300, 300 + rows) for rows in (3, 1, 8)]), np.zeros(12, np.float32)
    at = np.concatenate([np.arange(rows) + PREFIX for rows in (3, 1, 8)])
    together = by.next(tokens, at, trees, greedy, greedy).logits
    assert all(torch.equal(together[row], alone[0]) for row in (0, 3, 4))


def quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows as integers from -127 to 127, half away from zero, and the scale of each: the definition of int8.h."""
    top = x.abs().amax(-1, keepdim=True)
    by = torch.where(top > 0, 127 / top, 0.0) * x
    return (by + by.sign() / 2).trunc(), top / 127


@pytest.mark.parametrize(("inputs", "outputs"), [(3, 1), (32, 64), (66, 130), (576, 200), (1000, 65)])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_int8_products_are_exact_in_integers(inputs: int, outputs: int, bias: bool) -> None:
    torch.manual_seed(inputs)
    layer, x = nn.Linear(inputs, outputs, bias=bias), torch.randn(15, inputs)
    x[3] = 0
    x[4] *= 1e6
    laid_out = quantise_linears([layer])
    (w, w_scale), (q, scale) = quantised(layer.weight), quantised(x)
    want = (q.double() @ w.double().T).float() * (scale * w_scale.T) + (layer.bias if bias else 0)
    for rows in (15, 1, 2, 7):
        got = cpu_ops.int8_product(x[:rows], *laid_out[:4], outputs)
        torch.testing.assert_close(got, want[:rows], atol=1e-7, rtol=1e-6)
        assert torch.equal(got, cpu_ops.int8_product(x, *laid_out[:4], outputs)[:rows])


EXPORTED = """
extern "C" void through(const float* w, const float* x, int64_t N, int64_t in, int64_t out, int8_t* room, float* scale,
                        int32_t* sums, float* y) {
    laid_out(w, out, in, room, scale, sums, 1);
    product(x, N, in, out, Int8{room, scale, sums}, nullptr, y, 1);
}
"""
PATHS = {"native": ["-march=native"], "avx2": ["-mavx2", "-mfma"], "portable": ["-march=native", "-DPORTABLE"]}


def test_int8_products_are_the_same_on_every_processor(tmp_path: Path) -> None:
    torch.manual_seed(8)
    rows, inputs, outputs = 9, 130, 70
    w, x, results = torch.randn(outputs, inputs), torch.randn(rows, inputs), []
    w[5] *= 127 / w[5].abs().max()  # sums that would not fit into 16 bits
    (tmp_path / "int8.cpp").write_text(cpu_ops.text_of("products.h") + EXPORTED)
    for name, flags in PATHS.items():
        if name == "avx2" and platform.machine() != "x86_64":
            continue
        library = tmp_path / f"{name}.so"
        command = [
            "g++",
            "-std=c++17",
            "-shared",
            "-fPIC",
            "-w",
            *flags,
            str(tmp_path / "int8.cpp"),
            "-o",
            str(library),
        ]
        subprocess.run(command, check=True)
        room, scale, sums = torch.empty(128 * 132, dtype=torch.int8), torch.empty(outputs), torch.empty(outputs).int()
        y = torch.empty(rows, outputs)
        through = ctypes.CDLL(str(library)).through
        sizes, rest = map(ctypes.c_int64, (rows, inputs, outputs)), (room, scale, sums, y)
        pointer = lambda t: ctypes.c_void_p(t.data_ptr())  # noqa: E731
        through(pointer(w), pointer(x), *sizes, *map(pointer, rest))
        results.append(y)
    (a, a_scale), (b, b_scale) = quantised(x), quantised(w)
    torch.testing.assert_close(results[0], (a @ b.T) * (a_scale * b_scale.T), atol=1e-6, rtol=1e-6)
    assert all(torch.equal(results[0], other) for other in results[1:])


class Fake(nn.Linear):
    """A linear map with the rounding of int8 in plain PyTorch."""

    def forward(self, input: Tensor) -> Tensor:
        (w, w_scale), (q, scale) = quantised(self.weight.float()), quantised(input.float())
        out = (q @ w.T) * (scale * w_scale.T)
        return out if self.bias is None else out + self.bias.float()


@pytest.mark.parametrize("lm", ["llama", "qwen2", "qwen3"])
@torch.no_grad()
def test_a_step_with_int8_weights(lm: str) -> None:
    torch.manual_seed(5)
    vlm, plain = make_tiny_vlm(lm=lm), make_tiny_vlm(lm=lm)
    by, exact = cpu_decoder.CpuSteps(vlm.lm, "int8"), Reference().steps(plain.lm)
    for module in [*vlm.language_model.modules(), vlm.model]:
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                fake = Fake(child.in_features, child.out_features, bias=child.bias is not None)
                fake.load_state_dict(child.state_dict())
                setattr(module, name, fake)
    fake = Reference().steps(vlm.lm)
    (_, want), *_ = decoders(vlm, 2, 4)
    (_, full), (_, ours), _ = decoders(plain, 2, 4)
    for number in range(3):
        pairs = (by, ours), (fake, want), (exact, full)
        one, other, free = (step(steps, cache, 8, number).logits[:, vlm.lm.banned + 1 :] for steps, cache in pairs)
        # A rounding that falls the other way changes a number by a step of its scale.
        assert (one - other).abs().max() < 0.02 * other.std()
        assert 0 < (one - free).abs().max() < 0.2 * free.std()


def test_int8_weights_are_refused_where_they_cannot_be_decoded() -> None:
    vlm = make_tiny_vlm()
    for backend in (Reference(), Cpu()):
        backend.weights = "int8"
        vlm.language_model.config.hidden_act = "gelu"
        with pytest.raises(LinesideError, match=r"int8 weights: .*Use --weights full"):
            backend.steps(vlm.lm)


@torch.no_grad()
def test_room_that_grows_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_decoder, "ROOM", 7)
    vlm = make_tiny_vlm()
    compared = decoders(vlm, 4, 3, new=40)[:2]
    (_, reference), (by, ours) = compared
    buffers, _, tiles, *_ = ours.own[0][0].shape
    steps(vlm, compared, range(18), 12)  # grown twice, the second time by a tile
    assert ours.own[0][0].shape[2] > tiles
    for cache in (reference, ours):
        cache.keep(np.array([0, 2, 4, 9, 10, 11]))
    steps(vlm, compared, range(18, 40), 6)
    assert ours.own[0][0].shape[0] == 6 < buffers  # where it grows, buffers of rows that ended are let go
    with pytest.raises(ValueError, match="no room is left"):
        step(by, ours, 6)


@torch.no_grad()
def test_no_token_is_written_behind_the_buffers() -> None:
    vlm = make_tiny_vlm()
    compared = decoders(vlm, 1, 2)[:2]
    steps(vlm, compared, range(NEW), 2)
    by, ours = compared[1]
    with pytest.raises(ValueError, match="no room is left"):
        step(by, ours, 2)


@torch.no_grad()
def test_what_would_read_beyond_memory_is_refused() -> None:
    vlm = make_tiny_vlm()
    by, cache = decoders(vlm, 1, 2)[1]
    zeros = np.zeros(2, np.float32)
    for tokens, at, heat in (
        ([1, 10**6], [9, 9], zeros),
        ([1, -1], [9, 9], zeros),
        ([1, 2], [9, -1], zeros),
        ([1], [9], zeros),
        ([1, 2], [9, 9], zeros[:1]),
    ):
        with pytest.raises(ValueError, match=r"rows|vocabulary"):
            by.next(np.array(tokens), np.array(at), [cache], zeros, heat)


@torch.no_grad()
def test_rotations_are_laid_out_as_far_as_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_decoder, "POSITIONS", PREFIX + 2)
    vlm = make_tiny_vlm()
    steps(vlm, decoders(vlm, 2, 2)[:2], range(NEW), 4)


@pytest.mark.parametrize("weights", ["full", "int8"])
@torch.no_grad()
def test_the_number_of_threads_changes_no_bit(weights: Any) -> None:
    vlm, results, before = make_tiny_vlm(), [], torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            by = cpu_decoder.CpuSteps(vlm.lm, weights)
            results.append(step(by, decoders(vlm, 3, 9)[1][1], 27).logits.clone())
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


@torch.no_grad()
def test_laid_out_weights_are_kept_until_a_weight_changes() -> None:
    vlm, backend = make_tiny_vlm(), Cpu()
    first = backend.steps(vlm.lm)
    assert backend.steps(vlm.lm) is first
    vlm.language_model.get_parameter("layers.1.mlp.up_proj.weight").add_(0.01)
    second = backend.steps(vlm.lm)
    assert second is not first and backend.steps(vlm.lm) is second
    vlm.to(torch.bfloat16)
    assert (third := backend.steps(vlm.lm)) is not second
    backend.weights = "int8"
    assert backend.steps(vlm.lm) is not third


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_optimisers_step_is_a_change_of_the_weights(dtype: torch.dtype) -> None:
    """In float32 PyTorch's fused step writes into the weights themselves."""
    vlm, backend = make_tiny_vlm().to(dtype), Cpu()
    vlm.language_model.requires_grad_(True)
    named = list(vlm.language_model.named_parameters())
    optimiser = Optimizer([ParameterGroup("lm", named, 1e-3)])
    first = backend.steps(vlm.lm)
    assert backend.steps(vlm.lm) is first
    for _, parameter in named:
        parameter.grad = torch.ones_like(parameter)
    optimiser.step()
    assert backend.steps(vlm.lm) is not first


@torch.no_grad()
def test_other_activations_go_to_the_reference() -> None:
    vlm = make_tiny_vlm()
    vlm.language_model.config.hidden_act = "gelu"
    _, (_, ours), _ = decoders(vlm, 1, 2)
    assert type(ours).__module__ == "lineside.backends.reference"
