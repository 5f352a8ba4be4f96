"""Every backend computes what the reference does: logits, gradients, decoding. Its modules' hooks fire, and an adapter
is never passed over. `Cuda` runs uncompiled on the CPU here; tests marked gpu run it on a card."""

from __future__ import annotations

import random
import shutil
import sys
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.attention.flex_attention import create_block_mask

from lineside import backends
from lineside.backends import cpu_decoder, cuda
from lineside.backends.cpu import Cpu, why_not_laid_out
from lineside.backends.cuda import BLOCK, Cuda, CudaSteps, PlainCuda, padded_length, tree_block_mask
from lineside.backends.fused_ops import fuse, restore
from lineside.backends.lm import Plan
from lineside.backends.reference import Reference
from lineside.model.generate import generate
from lineside.model.tree import Node, Pack, pack
from lineside.model.vlm import VLM
from lineside.runtime import CPU
from tests.conftest import make_tiny_vlm
from tests.dense import dense_logprobs
from tests.model.test_generate import prompts, ready
from tests.model.test_tree import cases, features_for

PREFIX, NEW = 37, 5
pytestmark = [
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
    pytest.mark.filterwarnings("ignore:FSDP2-wrapped module"),
]


@pytest.fixture(params=[Cpu, Cuda])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Reference:
    if request.param is Cpu and not shutil.which("g++"):
        pytest.skip("no C++ compiler here")
    flex = sys.modules["torch.nn.attention.flex_attention"]
    monkeypatch.setattr(flex, "_validate_device", lambda *_: None)  # it only refuses gradients on a CPU
    return request.param()


def forest(seed: int, count: int = 6) -> Pack:
    """Trees of all sorts: chains, single tokens, nodes without tokens, runs longer than a register is wide."""
    rng = random.Random(seed)

    def node(depth: int) -> Node:
        length = rng.choice([0, 1, 2, 7, 8, 9, 16, 33, 70]) if depth else rng.choice([1, 3, 49])
        below = rng.randint(0, 3) if depth < 4 else 0
        return Node((1,) * length, children=tuple(node(depth + 1) for _ in range(below)))

    return pack([node(0) for _ in range(count)], image_token=0)


def heads(pack: Pack, count: int, width: int, dtype: torch.dtype) -> Tensor:
    """(1, count, N, width) with a token's heads side by side, as projections leave them."""
    return torch.randn(1, len(pack.tokens), count, width).to(dtype).transpose(1, 2).requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("count", "keys", "width"), [(4, 4, 64), (9, 3, 64), (4, 2, 24), (3, 1, 128), (4, 2, 8)])
def test_attention(backend: Reference, count: int, keys: int, width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(width)
    trees = forest(count, 6 if isinstance(backend, Cpu) else 3)  # uncompiled, FlexAttention computes every pair
    read = [heads(trees, n, width, dtype) for n in (count, keys, keys)]
    given = torch.randn(len(trees.tokens), count, width).to(dtype)
    given[len(trees) :] = 0
    results = []
    for chosen in (Reference(), backend):
        out = chosen.plan(trees.end, trees.size, CPU).attend(0, *read, width**-0.5)
        results.append((out.detach()[: len(trees)], *torch.autograd.grad(out, read, given)))
        assert out.isfinite().all()  # padding too
    exact = dtype == torch.float32
    for want, got in zip(*results):
        torch.testing.assert_close(got, want, atol=2e-5 if exact else 0.06, rtol=1e-4 if exact else 0.05)


def test_the_reference_by_hand() -> None:
    """Two trees: tokens 0 and 1 above the branches 2 and 3 4, and a chain 5 6. Equal scores: a mean."""
    trees = pack([Node((1, 1), children=(Node((1,)), Node((1, 1)))), Node((1, 1))], image_token=0)
    value = torch.arange(len(trees.tokens), dtype=torch.float32).view(1, 1, -1, 1)
    zero = torch.zeros_like(value)
    want = [0, 1 / 2, 3 / 3, 4 / 3, 8 / 4, 5, 11 / 2]
    assert Reference().plan(trees.end, trees.size, CPU).attend(0, zero, zero, value, 1.0)[:7].flatten().tolist() == (
        pytest.approx(want)
    )
    window = Reference().plan(trees.end, trees.size, CPU, [2, None])  # layer 0 sees a token and the one above it
    narrow = [0, 1 / 2, 3 / 2, 4 / 2, 7 / 2, 5, 11 / 2]
    assert window.attend(0, zero, zero, value, 1.0)[:7].flatten().tolist() == pytest.approx(narrow)
    assert window.attend(1, zero, zero, value, 1.0)[:7].flatten().tolist() == pytest.approx(want)


@pytest.mark.parametrize("seed", range(4))
def test_the_block_mask_is_that_of_torch(seed: int) -> None:
    large = Node((1,) * (90 * seed), children=(Node((1,) * 70), Node((1,) * 300)))
    trees = pack([large, *[Node((1,) * 50)] * 5], image_token=0)
    length = padded_length(len(trees.tokens))
    end = torch.cat([trees.end, torch.arange(len(trees.end), length)])
    ours = tree_block_mask(end, end.device)
    theirs = create_block_mask(lambda b, h, q, k: (k <= q) & (q <= end[k]), None, None, length, length, device="cpu")
    assert length % BLOCK == 0 and torch.equal(ours.to_dense(), theirs.to_dense())
    for kind in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        assert torch.equal(getattr(ours, kind), getattr(theirs, kind))


def test_flex_attention_never_sees_a_head_that_its_kernel_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Size] = []
    monkeypatch.setattr(cuda, "flex_attention", lambda q, k, v, **_: seen.extend(t.shape for t in (q, k, v)) or q)
    trees = forest(0)
    out = (
        Cuda().plan(trees.end, trees.size, CPU).attend(0, *(heads(trees, n, 8, torch.float32) for n in (4, 2, 2)), 1.0)
    )
    assert out.shape == (len(trees.tokens), 4, 8)
    assert all(shape[-1] == cuda.WIDTH == 16 and shape[-2] % BLOCK == 0 for shape in seen) and len(seen) == 3


def test_packs_have_few_padded_lengths() -> None:
    assert len({padded_length(n) for n in range(4000, 33000)}) < 16
    assert all(n <= padded_length(n) < n + max(BLOCK, n / 2) for n in range(1, 5000))


def scored(vlm: VLM, chosen: Reference, trees: list[Node], features: Tensor, temperature: float) -> list[Tensor]:
    vlm.backend = chosen
    out = vlm(vlm.pack(trees), features, temperature=temperature)
    weights = [p for p in vlm.parameters() if p.requires_grad]
    return [out.logprobs.detach(), out.entropy, *torch.autograd.grad(-out.logprobs.mean(), weights)]


@pytest.mark.parametrize("lm", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_entropies_and_gradients(backend: Reference, lm: str, temperature: float, monkeypatch: Any) -> None:
    monkeypatch.setattr("lineside.backends.cuda.CHUNK", 13)
    vlm = make_tiny_vlm(lm=lm)
    features = features_for(cases(vlm))
    vlm.language_model.requires_grad_(True)
    want, got = (scored(vlm, chosen, cases(vlm), features, temperature) for chosen in (Reference(), backend))
    for one, other in zip(got, want):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-3)
    if temperature == 1.0:
        dense = torch.cat(dense_logprobs(vlm, cases(vlm), features))
        torch.testing.assert_close(got[0], dense, atol=2e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("lm", ["llama", "qwen3"])
def test_fused_operations(lm: str) -> None:
    plain, fused = make_tiny_vlm(lm=lm), make_tiny_vlm(lm=lm)
    features = features_for(cases(plain))
    fuse(fused.language_model)
    for vlm in (plain, fused):
        vlm.language_model.requires_grad_(True)
    want, got = (scored(vlm, Reference(), cases(vlm), features, 1.0) for vlm in (plain, fused))
    for one, other in zip(got, want):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-3)
    assert seen_by_hooks(fused) == expected(fused)


def test_fusing_a_model_leaves_others_as_they_are() -> None:
    import transformers.models.llama.modeling_llama as family

    before = family.apply_rotary_pos_emb, family.LlamaRMSNorm.forward, family.LlamaAttention.forward
    plain, fused = make_tiny_vlm(), make_tiny_vlm()
    fuse(fused.language_model)
    assert before == (family.apply_rotary_pos_emb, family.LlamaRMSNorm.forward, family.LlamaAttention.forward)
    layers = [vlm.lm.decoder.layers[0] for vlm in (plain, fused)]
    replaced = [sum("forward" in vars(module) for module in layer.modules()) for layer in layers]
    assert replaced == [0, 4]  # two norms, attention and MLP
    restore(fused.language_model)
    assert not any("forward" in vars(module) for module in layers[1].modules())
    assert "forward" in vars(fused.lm.decoder.layers[-1])  # the one that leaves out tokens is not of `fuse`


def expected(vlm: VLM) -> set[str]:
    """Modules of the LM that compute: all that have weights, and all that hold them."""
    names = {name for name, module in vlm.language_model.named_modules() if list(module.parameters())}
    return names - {"", "layers"} | {"head"}  # the LM's layers are called one by one


def seen_by_hooks(vlm: VLM) -> set[str]:
    fired: set[str] = set()
    named = [*vlm.language_model.named_modules(), ("head", vlm.model.lm_head)]
    hooks = [m.register_forward_hook(lambda *_, name=name: fired.add(name)) for name, m in named]
    vlm(vlm.pack(cases(vlm)), features_for(cases(vlm))).logprobs.sum().backward()
    for hook in hooks:
        hook.remove()
    return fired - {"rotary_emb"} - {name for name in fired if name.endswith("act_fn")}


@pytest.mark.parametrize("lm", ["llama", "qwen3"])
def test_hooks_fire_on_every_module_that_computes(backend: Reference, lm: str) -> None:
    vlm = make_tiny_vlm(lm=lm)
    vlm.language_model.requires_grad_(True)
    vlm.backend = backend
    assert seen_by_hooks(vlm) == expected(vlm)


def test_fsdp2_shards_the_module_as_it_is() -> None:
    """Its hooks gather a layer's weights when the layer is called: all numbers are those of the whole model."""
    results = []
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        for shard in (False, True):
            vlm = make_tiny_vlm()
            vlm.language_model.requires_grad_(True)
            if shard:
                mesh = init_device_mesh("cpu", (1,))
                for layer in vlm.lm.decoder.layers:
                    fully_shard(layer, mesh=mesh)
                fully_shard(vlm, mesh=mesh)
            out = vlm(vlm.pack(cases(vlm)), features_for(cases(vlm)))
            out.logprobs.mean().backward()
            gradients: list[Any] = [p.grad for p in vlm.parameters() if p.grad is not None]
            results.append([out.logprobs.detach(), *(g.full_tensor() if shard else g for g in gradients)])
    finally:
        dist.destroy_process_group()
    for whole, sharded in zip(*results, strict=True):
        torch.testing.assert_close(sharded, whole, atol=1e-6, rtol=1e-5)


def decoders(
    vlm: VLM, groups: int, rows: int, tail: int = 3, new: int = NEW, dtype: torch.dtype = torch.float32
) -> list[Any]:
    """Of each backend, for the same prefilled tokens: prefixes and tails of unequal length, random keys and values."""
    config = vlm.language_model.config
    seeded = torch.Generator().manual_seed(0)
    shape = groups * PREFIX + groups * rows * tail, config.num_key_value_heads, config.head_dim
    kept = [tuple(torch.randn(2, *shape, generator=seeded).to(dtype)) for _ in range(2)]
    shared = [list(range(g * PREFIX, (g + 1) * PREFIX - g % 3)) for g in range(groups)]
    first = groups * PREFIX
    tails = [
        [[first + (g * rows + r) * tail + t for t in range(max(0, tail - r % 2))] for r in range(rows)]
        for g in range(groups)
    ]
    by = [kind().steps(vlm.lm) for kind in (Reference, Cpu, Cuda)]
    return [(steps, steps.cache(kept, shared, tails, new)) for steps in by]


def steps(vlm: VLM, compared: list[Any], numbers: range, rows: int) -> None:
    """All take the same tokens, and their logits agree."""
    for number in numbers:
        tokens, positions = np.random.randint(300, 380, rows), np.arange(rows) + PREFIX + number
        greedy = np.zeros(rows, np.float32)
        want, *got = (by.next(tokens, positions, [cache], greedy, greedy) for by, cache in compared)
        for written in got:
            torch.testing.assert_close(written.logits, want.logits, atol=2e-5, rtol=1e-5)
            assert np.array_equal(written.chosen[0], written.logits.argmax(-1).numpy())


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler here")
@pytest.mark.parametrize("lm", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize(("groups", "rows", "tail"), [(4, 2, 3), (4, 2, 0), (1, 11, 20), (3, 1, 1), (1, 1, 15)])
@torch.no_grad()
def test_a_decoding_step(lm: str, groups: int, rows: int, tail: int) -> None:
    vlm = make_tiny_vlm(lm=lm)
    steps(vlm, decoders(vlm, groups, rows, tail), range(NEW), groups * rows)


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler here")
@torch.no_grad()
def test_rows_that_end_change_nothing_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_decoder, "ROOM", 4)
    vlm = make_tiny_vlm()
    compared = decoders(vlm, 4, 3, new=20)
    steps(vlm, compared, range(2), 12)
    for rows in ([0, 2, 4, 9, 10, 11], [1, 2, 4, 5], [3]):  # with and without smaller buffers; whole groups; the last
        for _, cache in compared:
            cache.keep(np.array(rows))
        steps(vlm, compared, range(2, 7), len(rows))


@pytest.mark.parametrize("samples", [1, 4])
def test_generating(backend: Reference, samples: int) -> None:
    vlm, store = ready()
    results = []
    for vlm.backend in (Reference(), backend):
        groups = generate(
            vlm, store, prompts() * 3, samples=samples, temperature=float(samples > 1), max_new_tokens=12, seed=2
        )
        results.append([rollout for group in groups for rollout in group])
    for want, got in zip(*results):
        assert want.tokens == got.tokens
        assert got.sampler_logprobs == pytest.approx(want.sampler_logprobs, abs=1e-4)


class Adapter(nn.Module):
    """A linear map with a low-rank addition (LoRA, arXiv 2106.09685). As in peft, its `weight` is the one below it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + 3 * self.up(self.down(x))


class Subclass(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def adapt(vlm: VLM, how: str) -> None:
    layer: Any = vlm.language_model.layers[1]  # pyright: ignore[reportIndexIssue]
    up = layer.mlp.up_proj
    if how == "wrapped":
        layer.mlp.up_proj = Adapter(up)
    elif how == "subclass":
        layer.mlp.up_proj = Subclass(up.in_features, up.out_features, bias=False)
    elif how == "hook":
        up.register_forward_hook(lambda module, args, out: 2 * out)
    elif how == "forward":
        layer.mlp.forward = lambda x, plain=layer.mlp.forward: 2 * plain(x)
    elif how == "last layer":
        layer.forward = lambda *args, plain=layer.forward, **given: 2 * plain(*args, **given)
    elif how == "parametrised":
        nn.utils.parametrizations.weight_norm(up)
        up.parametrizations.weight.original0.data.mul_(2)
    elif how == "head":
        vlm.model.lm_head = Adapter(vlm.model.lm_head)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("how", ["wrapped", "subclass", "hook", "forward", "last layer", "parametrised", "head"])
def test_an_adapter_is_never_passed_over(backend: Reference, how: str) -> None:
    torch.manual_seed(1)
    vlm, store = ready()
    assert not why_not_laid_out(vlm.lm)
    alone = [group[0] for group in generate(vlm, store, prompts() * 4, max_new_tokens=8)]
    adapt(vlm, how)
    assert why_not_laid_out(vlm.lm)
    results = []
    for vlm.backend in (Reference(), backend):
        results.append([group[0] for group in generate(vlm, store, prompts() * 4, max_new_tokens=8)])
    for want, got in zip(*results):
        assert want.tokens == got.tokens
        assert got.sampler_logprobs == pytest.approx(want.sampler_logprobs, abs=1e-4)
    assert any(a.sampler_logprobs != b.sampler_logprobs for a, b in zip(alone, results[0]))  # it does something


def test_the_choice_is_made_once_by_device_and_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINESIDE_BACKEND", "")
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/c++" if name == "c++" else None)
    names = {device: backends.choose(torch.device(device)).name for device in ("cpu", "cuda", "meta")}
    assert names == {"cpu": "cpu", "cuda": "cuda", "meta": "reference"}
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert backends.choose(torch.device("cpu")).name == "reference"
    monkeypatch.setenv("LINESIDE_BACKEND", "reference")
    assert backends.choose(torch.device("cuda")).name == "reference"


class Wrong(Cuda):
    def logprobs(self, *args: Any) -> tuple[Tensor, Tensor]:
        logprobs, entropy = super().logprobs(*args)
        return logprobs * 1.1, entropy


class Lost(Wrong):
    def fallback(self) -> Reference:
        return WrongToo()


class WrongToo(Wrong, PlainCuda): ...


class Unbuilt(Cuda):
    def plan(self, *args: Any) -> Plan:
        raise RuntimeError("no kernel\nfor this card")  # as all errors of torch's compiler are


class Large(Cuda):
    def plan(self, *args: Any) -> Plan:
        raise torch.OutOfMemoryError("12 GiB")


OFF, PLAIN = "are 0.1 of their norm off the reference's", "; 'cuda without FlexAttention' computes instead"


@pytest.mark.parametrize(
    ("kind", "told", "left"),
    [
        (Cuda, [], "cuda"),
        (Wrong, [f"gradients of the backend 'cuda' {OFF}{PLAIN}"], PlainCuda.name),
        (Unbuilt, [f"the backend 'cuda' fails: no kernel for this card{PLAIN}"], PlainCuda.name),
        (Lost, [f"'cuda' {OFF}{PLAIN}", f"'{PlainCuda.name}' {OFF}; 'reference' computes instead"], "reference"),
        (Large, None, ""),
    ],
)
def test_a_backend_that_fails_or_has_other_gradients_is_left_for_the_next(
    kind: type[Cuda], told: list[str] | None, left: str, backend: Reference, capsys: Any, monkeypatch: Any
) -> None:
    vlm = make_tiny_vlm()
    vlm.backend = chosen = kind()
    prepared: list[Reference] = []  # compiling takes long
    monkeypatch.setattr(Cuda, "prepare", lambda self, decoder: prepared.append(self))
    monkeypatch.setattr(backends, "FAILED", set())
    vlm.projector.requires_grad_(True)
    given = vlm.pack(cases(vlm)), features_for(cases(vlm))
    if told is None:
        with pytest.raises(torch.OutOfMemoryError):
            vlm.prove_backend(*given)
        return
    vlm.prove_backend(*given)
    said = capsys.readouterr().err.splitlines()
    assert (vlm.backend is chosen) == (not told) and prepared == [chosen] * (not told)
    assert len(said) == len(told) and all(part in line for part, line in zip(told, said))
    # What judges the stage loads its checkpoint anew: what has failed is not taken again.
    monkeypatch.setenv("LINESIDE_BACKEND", "")
    assert vlm.backend.name == left == backends.choose(torch.device("cuda")).name


def test_without_flex_attention_the_rest_of_the_backend_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """(M, V) logits never come in one piece, and decoding has its static buffers."""
    vlm, logits = make_tiny_vlm(), []
    vlm.model.lm_head.register_forward_hook(lambda *given: logits.append(len(given[-1])))
    monkeypatch.setattr(cuda, "CHUNK", 13)
    vlm.use(PlainCuda())
    assert not any("forward" in vars(module) for module in vlm.lm.decoder.layers[0].modules())
    out = vlm(vlm.pack(cases(vlm)), features_for(cases(vlm)))
    assert len(out.logprobs) > 2 * 13 and len(logits) > 2 and max(logits) <= 13
    assert isinstance(vlm.backend.steps(vlm.lm), CudaSteps)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_card_computes_what_the_reference_does(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """Compiled, with gradients, and decoding by a graph."""
    monkeypatch.setenv("LINESIDE_BACKEND", "")
    vlm, store = ready()
    vlm.to(device="cuda", dtype=dtype)
    assert vlm.backend.name == "cuda"
    vlm.language_model.requires_grad_(True)
    features = features_for(cases(vlm))
    want, got = (scored(vlm, chosen, cases(vlm), features, 1.0) for chosen in (Reference(), Cuda()))
    close = {"atol": 1e-4, "rtol": 1e-3} if dtype == torch.float32 else {"atol": 0.1, "rtol": 0.1}
    for one, other in zip(got, want):
        torch.testing.assert_close(one, other, **close)
    rolled = []
    for vlm.backend in (Reference(), Cuda()):
        rolled.append(generate(vlm, store, prompts() * 3, samples=2, temperature=1.0, max_new_tokens=12, seed=2))
    if dtype == torch.float32:
        assert [[r.tokens for r in g] for g in rolled[0]] == [[r.tokens for r in g] for g in rolled[1]]


def test_a_stage_warms_up_with_the_kernels_that_users_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from lineside.training.stage import trainable, warm_up

    monkeypatch.setenv("LINESIDE_BACKEND", "")
    vlm = make_tiny_vlm()
    if not vlm.backend.compiles:
        pytest.skip("no C++ compiler on this machine")
    trainable(vlm, {"projector": 1.0, "lm": 1.0})
    compared = 0

    def prove(pack: object, features: list[Tensor]) -> None:
        nonlocal compared
        assert [one.shape for one in features] == [features[0].shape] * 4
        compared += 1

    monkeypatch.setattr(vlm, "prove_backend", prove)
    warm_up(vlm)
    assert compared == 1 and all(weight.grad is None for weight in vlm.parameters())
