"""LoRA: a small adapter beside the frozen weights of the language model (arXiv 2106.09685).

    y = W x + alpha / rank * B (A dropout(x))        A and B train, W does not; B starts at 0

The parts have never seen the think tags, so the tags' rows of the embeddings, and of the head, train too
(backends/adapters.py). Low-rank layers are those of peft. On disk an adapter is peft's own folder, with the projector
in it: `PeftModel.from_pretrained` loads it on the checkpoint that it was trained on.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from lineside.backends.adapters import Rows
from lineside.errors import LinesideError
from lineside.files import fingerprint
from lineside.machine import lacking
from lineside.model.config import BASE, WEIGHTS, header, read_adapter_config
from lineside.model.vlm import VLM, Adapter
from lineside.settings import Lora

_ROOT = "base_model.model."  # what peft puts before the names of weights


def needs_peft(what: str) -> None:
    """Raises LinesideError if peft is not installed."""
    if importlib.util.find_spec("peft") is None:
        raise lacking("peft", what)


def attach(vlm: VLM, lora: Lora, base: Path, *, seed: int = 0) -> None:
    """Put a new adapter beside the weights of `base`, which `vlm` has. It changes nothing until it is trained.

    Raises LinesideError if a target is no linear layer of the language model, or peft is not installed.
    """
    needs_peft("a LoRA adapter")
    import peft

    layers = {name.rpartition(".")[2] for name, m in vlm.language_model.named_modules() if type(m) is nn.Linear}
    if unknown := [target for target in lora.targets if target not in layers]:
        raise LinesideError(
            f"lora.targets: the language model has no linear layer {', '.join(unknown)}; it has "
            f"{', '.join(sorted(layers))}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # A is drawn on the CPU: the same on every device
        peft.inject_adapter_in_model(_config(vlm, lora), vlm.model)
    tokens = (vlm.render.think_open, vlm.render.think_close)
    model: Any = vlm.model
    embed, head = model.get_input_embeddings(), model.lm_head
    rows = [nn.Parameter(table.weight.detach()[list(tokens)].clone()) for table in (embed, head)]
    tied = embed.weight is head.weight
    model.set_input_embeddings(Rows(embed, tokens, rows[0]))
    model.lm_head = Rows(head, tokens, rows[0] if tied else rows[1])
    vlm.adapter = Adapter(lora, base)
    for _, parameter in parameters(vlm):
        parameter.data = parameter.data.to(vlm.dtype)
    model.eval()


def _config(vlm: VLM, lora: Lora, **more: Any) -> Any:
    """peft's configuration. The targets are named with their place: encoders have layers of the same names."""
    import peft

    place, names = re.escape(vlm.family.language_model), "|".join(map(re.escape, lora.targets))
    return peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType] # any number is right
        lora_dropout=lora.dropout,
        target_modules=rf"{place}\..*\.({names})",
        **more,
    )


def parameters(vlm: VLM) -> list[tuple[str, nn.Parameter]]:
    """The parameters of the adapter with their names in the model; none without one."""
    return [(name, p) for name, p in vlm.model.named_parameters() if ".lora_" in name or name.endswith(".rows")]


@contextmanager
def dropping(vlm: VLM) -> Iterator[None]:
    """Let the adapter's dropout act, for a forward and backward pass."""
    drops = [m for name, m in vlm.model.named_modules() if ".lora_dropout." in name] if vlm.adapter else []
    for module in drops:
        module.train()
    try:
        yield
    finally:
        for module in drops:
            module.eval()


@torch.no_grad()
def merge(vlm: VLM) -> None:
    """Add the adapter to the weights and take it off; nothing without one."""
    if vlm.adapter is None:
        return
    model: Any = vlm.model
    for name, module in [*model.named_modules()]:
        if isinstance(module, Rows):
            table: Any = module.base_layer
            table.weight[module.tokens] = module.rows
            model.set_submodule(name, table)
        elif hasattr(module, "lora_A"):  # as peft's `merge`, which would not count the change for the backend
            module.base_layer.weight.add_(module.get_delta_weight("default"))
            model.set_submodule(name, module.base_layer)
    del model.peft_config
    vlm.adapter = None


# --- files


class Stored(NamedTuple):
    """An adapter as its folder holds it."""

    config: Any  # peft's
    tensors: dict[str, Tensor]  # by peft's names: the adapter's, and those of the whole projector
    base: Path


def stored(vlm: VLM) -> Stored:
    """The adapter of `vlm`, in copies on the CPU."""
    assert vlm.adapter is not None
    lora, base = vlm.adapter.lora, vlm.adapter.base.resolve()
    rows = {name: m.tokens.tolist() for name, m in vlm.model.named_modules() if type(m) is Rows}
    trained = {name.removesuffix(".rows") for name, _ in parameters(vlm) if name.endswith(".rows")}  # tied: once
    config = _config(
        vlm,
        lora,
        modules_to_save=list(_projectors(vlm)),
        trainable_token_indices={name.rpartition(".")[2]: rows[name] for name in sorted(trained)},
        base_model_name_or_path=str(base),
        inference_mode=True,
    )
    copies = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in _named(vlm).items()}
    return Stored(config, copies, base)


def _projectors(vlm: VLM) -> dict[str, nn.Module]:
    """The modules of the projector by their paths; those of a list one by one, since peft wraps no list."""
    found: dict[str, nn.Module] = {}
    for path in vlm.family.projector:
        module = vlm.model.get_submodule(path)
        found |= (
            {f"{path}.{n}": m for n, m in enumerate(module)} if isinstance(module, nn.ModuleList) else {path: module}
        )
    return found


def _named(vlm: VLM) -> dict[str, Tensor]:
    """The tensors of an adapter's file by peft's names."""
    parts = _projectors(vlm).items()
    found: dict[str, Tensor] = {f"{path}.{name}": p for path, module in parts for name, p in module.named_parameters()}
    for name, parameter in parameters(vlm):
        name = name.replace(".default.", ".")
        found[re.sub(r"\.rows$", ".token_adapter.trainable_tokens_delta", name)] = parameter
    return {_ROOT + name: tensor for name, tensor in found.items()}


def write(folder: Path, found: Stored, beside: Path) -> None:
    """Write an adapter's folder: peft's two files, and copies of all files of the checkpoint `beside` but its weights,
    so that it can be asked like one."""
    for path in beside.iterdir():
        if path.is_file() and ".safetensors" not in path.name:
            shutil.copyfile(path, folder / path.name)
    found.config.save_pretrained(folder)
    data = safetensors_bytes(found.tensors)
    (folder / WEIGHTS).write_bytes(_with_texts(data, {"format": "pt", BASE: fingerprint(found.base)}))


def _with_texts(data: bytes, texts: dict[str, str]) -> bytes:
    """A safetensors file with texts in its header. safetensors itself writes several in a random order, and the same
    weights would have another hash each time."""
    end = 8 + int.from_bytes(data[:8], "little")
    head = json.dumps({"__metadata__": texts, **json.loads(data[8:end])}, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)  # as the format asks
    return len(head).to_bytes(8, "little") + head + data[end:]


def apply(model: Any, folder: Path) -> None:
    """Add a stored adapter to the weights of `model`, which are those of its base. Any that peft can merge will do.

    Raises LinesideError if the file lacks tensors or has others, or peft is not installed.
    """
    needs_peft(f"the adapter {folder}")
    import peft

    header(folder / WEIGHTS)  # without the file peft would read a pickle
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # missing tensors are found below
            found = peft.PeftModel.from_pretrained(model, str(folder), autocast_adapter_dtype=False)
    except (KeyError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise LinesideError(f"{folder / WEIGHTS} does not fit its base: {reason}") from error
    wanted = set(peft.get_peft_model_state_dict(found, save_embedding_layers=False))
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        differ = sorted(wanted ^ set(file.keys()))
    if differ:
        raise LinesideError(f"{folder / WEIGHTS} does not fit its base: {len(differ)} tensors differ, as {differ[0]}")
    found.merge_and_unload()


@torch.no_grad()
def read_into(vlm: VLM, folder: Path) -> None:
    """Give the adapter of `vlm`, which has the shape of the stored one, its numbers. Raises LinesideError if the shape
    is another."""
    wanted = _named(vlm)
    header(folder / WEIGHTS)
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        if shapes != {name: tuple(tensor.shape) for name, tensor in wanted.items()}:
            raise LinesideError(f"the adapter {folder} has other layers than the recipe's lora: {shape_of(folder)}")
        for name, tensor in wanted.items():
            tensor.copy_(file.get_tensor(name))


def shape_of(folder: Path) -> str:
    """The settings of a stored adapter, as a recipe would have them."""
    config = read_adapter_config(folder)
    names = re.fullmatch(r".*\(([^()]*)\)", str(config.get("target_modules")))
    targets = names[1].split("|") if names else [str(config.get("target_modules"))]
    return _line(config.get("r"), config.get("lora_alpha"), targets)


def shape_problem(folder: Path, lora: Lora) -> str:
    """Why a stored adapter cannot go on with these settings; "" if it can."""
    ours, found = _line(lora.rank, lora.alpha, lora.targets), shape_of(folder)
    return "" if found == ours else f"the adapter there has {found}, and the recipe {ours}"


def _line(rank: Any, alpha: Any, targets: Sequence[str]) -> str:
    alpha = f"{alpha:g}" if isinstance(alpha, int | float) else alpha
    return f"lora: {{rank: {rank}, alpha: {alpha}, targets: [{', '.join(targets)}]}}"
