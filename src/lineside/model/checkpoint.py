"""Checkpoints: a standard folder of their family in safetensors that transformers and vLLM load without our code.

A finished model from elsewhere is a checkpoint too. Tokens that it lacks are added when it is loaded; what is saved has
its own files, and its weights by the same names in the same shards."""

from __future__ import annotations

import functools
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from lineside.errors import LinesideError, disk_is_full
from lineside.families import Family, family_named
from lineside.files import leads_out, make_folder, rename, replace_folder, settle
from lineside.model import adapter
from lineside.model import efficientnet as _efficientnet  # noqa: F401 # registers the tower
from lineside.model.config import STATED, base_of, is_adapter, read_config, read_json, saved_dtype, stated_dtype
from lineside.model.hub import OWN_CODE
from lineside.model.render import TAGS, is_ours
from lineside.model.sizes import MOST_LAYERS, check_layers, check_sizes
from lineside.model.vlm import VLM, check_language_model, special_layers
from lineside.model.vocabulary import add_rows, add_tokens
from lineside.progress import say
from lineside.settings import Lora

ADAPTER = "adapter"  # folder of a stage's adapter, beside its checkpoint
INDEX = "model.safetensors.index.json"  # which file holds which weight
# Files of the picture and video preprocessing: a checkpoint repeats those of the model that it came from, since the
# video processors of transformers need torchvision to be loaded and written.
KEPT = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")

logging.disable_progress_bar()  # the one that transformers shows while it loads


def save(vlm: VLM, folder: Path) -> None:
    """Write the checkpoint to a temporary folder, then rename it to `folder`. A killed run leaves the whole old
    checkpoint or the whole new one. Raises LinesideError if it cannot be written; the old one is then kept.

    An adapter of `vlm` is written in the same way to `adapter` beside `folder`, then merged: `folder` holds the whole
    model, and `vlm` is that.
    """
    temporary = folder.with_name(folder.name + ".tmp")
    adapted = temporary.with_name(f"{ADAPTER}.tmp")
    for path in (temporary, adapted):
        shutil.rmtree(path, ignore_errors=True)
    _add_nothing(vlm.tokenizer)
    labels = vlm.references or bool(vlm.views)
    template = vlm.render.chat_template(thinking=vlm.thinking.default, labels=labels)
    vlm.tokenizer.chat_template = template
    stored = adapter.stored(vlm) if vlm.adapter else None
    adapter.merge(vlm)
    try:
        make_folder(temporary)
        vlm.family.save(vlm.model, temporary, template)
        _in_shards(temporary, vlm.family.shards)
        _let_read(temporary)
        if stored is not None:
            adapted.mkdir()
            adapter.write(adapted, stored, temporary)
            _let_read(adapted)
            replace_folder(adapted, folder.with_name(ADAPTER))
        replace_folder(temporary, folder)
    except (OSError, SafetensorError) as error:
        for path in (temporary, adapted):
            shutil.rmtree(path, ignore_errors=True)  # an unfinished checkpoint only fills the disk
        reason = "the disk is full" if disk_is_full(error) else str(error)
        raise LinesideError(
            f"cannot write the checkpoint {folder}: {reason}. The previous one, if any, is kept; "
            "make room and run the same command again."
        ) from error


def _let_read(folder: Path) -> None:
    """Give the weights the mode of the other files: safetensors writes them for their owner alone, and a server may be
    another user."""
    plain = next(folder.glob("*.json"))
    for path in folder.glob("*.safetensors"):
        shutil.copymode(plain, path)


def _in_shards(folder: Path, file_of: dict[str, str]) -> None:
    """Distribute the weights of a folder over files as in `file_of` (name of a weight -> file)."""
    files = set(file_of.values())
    if len(files) < 2:
        return
    weights, written, by_file = weights_of(folder), sorted(folder.glob("*.safetensors")), {file: [] for file in files}
    for name in weights:
        by_file[file_of.get(name, max(files))].append(name)
    for file, names in by_file.items():
        save_file({name: weights[name]() for name in names}, folder / f"{file}.part", metadata={"format": "pt"})
    for path in written:
        path.unlink()
    for file in files:
        settle(folder / f"{file}.part", folder / file)
    total = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    index = {"metadata": {"total_size": total}, "weight_map": {n: f for f, names in by_file.items() for n in names}}
    (folder / INDEX).write_text(json.dumps(index, indent=1))


def _add_nothing(tokenizer: PreTrainedTokenizerBase) -> None:
    """Stop the tokenizer from adding bos or eos tokens to a text: the chat template already writes all tokens."""
    if tokenizer.encode("a") == tokenizer.encode("a", add_special_tokens=False):
        return
    for key in ("add_bos_token", "add_eos_token"):
        tokenizer.init_kwargs[key] = False
        if hasattr(tokenizer, key):
            setattr(tokenizer, key, False)
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:
        backend.post_processor = TemplateProcessing(single="$A", pair="$A $B")


def load(path: str | Path, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> VLM:
    """Load a checkpoint folder as a VLM with all weights frozen, in the number format that it was judged in.

    That is the format stated in its config.json, in which it was saved; `dtype` overrides it. Of an adapter's folder
    it is the checkpoint below it with the adapter merged. Raises LinesideError if there is no checkpoint, if a part of
    it is missing or damaged, or if its family or LM is not supported.
    """
    folder = Path(path)
    if not folder.exists() and folder.with_name(folder.name + ".old").exists():
        rename(folder.with_name(folder.name + ".old"), folder)  # a process was killed within `replace_folder`
    base, config = _base_of(folder), read_config(folder)
    family = family_of_config(config, base)
    stated = stated_dtype(config)
    dtype = dtype or (getattr(torch, stated) if stated else None)
    if dtype is None:
        say(f"warning: {folder} does not state its number format as {' or '.join(STATED)}; computing in float32")
    with loading(f"the checkpoint {folder}"):
        _check(base, family)
        model, missing = family.load(base, dtype or torch.float32)
        if missing:
            raise LinesideError(
                f"the checkpoint {folder} lacks {len(missing)} of its weights, such as {missing[0]}: copy the whole "
                "folder"
            )
        if base != folder:
            adapter.apply(model, folder)
            _told(model, config)
        tokenizer, before = _tokenizer_of(folder if (folder / "tokenizer_config.json").is_file() else base)
        image_processor = load_image_processor(base)
        add_rows(model, tokenizer, before, torch.Generator().manual_seed(0))
        vlm = VLM(model.requires_grad_(False).eval(), tokenizer, image_processor)
    vlm.to(device)
    vlm.render.switches = is_ours(tokenizer.chat_template) or "thinking_tasks" in config
    vlm.family.files = {name: (base / name).read_bytes() for name in KEPT if (base / name).is_file()}
    vlm.family.shards = {n: f for n, f in _index(base).items() if re.fullmatch(r"[\w-][\w.-]*\.safetensors", f)}
    return vlm


def _base_of(folder: Path) -> Path:
    """The folder with the weights: the checkpoint itself, or that below an adapter."""
    return base_of(folder) if is_adapter(folder) else folder


def _index(folder: Path) -> dict[str, str]:
    """The file of each weight by the folder's index; nothing where there is none."""
    named = read_json(folder / INDEX).get("weight_map") if (folder / INDEX).is_file() else None
    return {name: str(file) for name, file in named.items()} if isinstance(named, dict) else {}


def check_files(folder: Path) -> None:
    """Raises LinesideError for a file of a checkpoint that is a link out of its folder, and for an index that names one
    outside: what is loaded is saved again, and passed on."""
    for path in folder.iterdir():
        if leads_out(path, folder):
            raise LinesideError(f"{path}: a link out of the folder: copy the file itself there")
    for name in set(_index(folder).values()):
        if Path(name).name != name:
            raise LinesideError(f"{folder / INDEX} names {name[:80]!r}: expected files of the folder itself")


def _check(folder: Path, family: type[Family]) -> None:
    check_files(folder)
    if any(folder.glob("*.safetensors")):  # else the family says what is missing
        check_sizes(folder, read_config(folder), lambda: family.build(folder))


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Turn all errors of the libraries that read a checkpoint into LinesideError: they raise many types for damaged,
    missing and hostile files. A device that is full is no fault of the files: its error goes on."""
    try:
        yield
    except (LinesideError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise LinesideError(f"cannot load {what}: {OWN_CODE}") from error
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise LinesideError(
            f"cannot load {what}: {reason}. Expected a whole folder as lineside writes it: config.json, "
            "*.safetensors, tokenizer.json, processor_config.json"
        ) from error


def _tokenizer_of(folder: Path) -> tuple[PreTrainedTokenizerBase, int | None]:
    """The tokenizer of a checkpoint with its chat template and the think tags, and how many tokens it had before; None
    if it had the tags."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    jinja, old = folder / "chat_template.jinja", folder / "chat_template.json"
    if jinja.is_file():
        tokenizer.chat_template = jinja.read_text(encoding="utf-8")
    elif old.is_file():
        tokenizer.chat_template = read_json(old).get("chat_template")
    return tokenizer, add_tokens(tokenizer, TAGS)


def load_trainable(
    path: str | Path, lora: Lora, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu", seed: int = 0
) -> VLM:
    """A checkpoint with an adapter to train: a new one, or, of an adapter's folder, the one that is there.

    Raises LinesideError as `load` does, and for an adapter of another shape than `lora`.
    """
    folder = Path(path)
    if not is_adapter(folder):
        vlm = load(folder, dtype=dtype, device=device)
        adapter.attach(vlm, lora, folder, seed=seed)
        return vlm
    if problem := adapter.shape_problem(folder, lora):
        raise LinesideError(f"{folder}: {problem}")
    base = base_of(folder)
    vlm = load(base, dtype=dtype or dtype_of(folder), device=device)
    _told(vlm.model, read_config(folder))
    adapter.attach(vlm, lora, base, seed=seed)
    adapter.read_into(vlm, folder)
    return vlm


def _told(model: Any, config: dict[str, Any]) -> None:
    """Give a model what the configuration of its adapter says of its training (see VLM)."""
    for key in ("thinking_tasks", "roi", "references", "views"):
        if key in config:
            setattr(model.config, key, config[key])


def weights_of(folder: Path) -> dict[str, Callable[[], torch.Tensor]]:
    """The weights of a checkpoint by name, each read when it is called. Raises LinesideError if there are none, if a
    file is damaged, or if they are an adapter's."""
    if is_adapter(folder):
        raise LinesideError(
            f"{folder} holds an adapter, and not all weights of a model: give the merged checkpoint, such as "
            f"{folder.with_name('checkpoint')}"
        )
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise LinesideError(f"{folder} holds no weights (*.safetensors): expected a checkpoint")
    found: dict[str, Callable[[], torch.Tensor]] = {}
    for path in files:
        try:
            opened = safe_open(path, framework="pt")
            found |= {name: functools.partial(opened.get_tensor, name) for name in opened.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise LinesideError(f"{path}: not readable as weights ({error})") from None
    return found


def family_of_config(config: dict[str, Any], folder: Path) -> type[Family]:
    """The family of a checkpoint by its config.json. Raises LinesideError, with what is special about its language
    model, for one that is not supported."""
    text = config.get("text_config") or config
    special = special_layers(text, text.get("layer_types")) if isinstance(text, dict) else ""
    found = family_named(config.get("model_type"), folder, f" with {special}" if special else "")
    check_layers(config, MOST_LAYERS, str(folder / "config.json"))  # transformers lists a kind for each layer
    try:
        lm = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
    except Exception:  # a damaged file, which loading tells better
        return found
    check_language_model(lm, found.lms)
    return found


def dtype_of(folder: Path) -> torch.dtype:
    """The number format in which a checkpoint was saved. Raises LinesideError as `read_config` does."""
    return getattr(torch, saved_dtype(folder))


def family_of(folder: Path) -> Family:
    """The family of a checkpoint, from its configuration, tokenizer and preprocessing, without its weights. Raises
    LinesideError if it is no checkpoint of a known family."""
    kind = family_of_config(read_config(folder), folder)
    with loading(f"the tokenizer and configuration of {folder}"):
        _check(_base_of(folder), kind)
        tokenizer, _ = _tokenizer_of(folder)
        return kind(
            AutoConfig.from_pretrained(folder, trust_remote_code=False), tokenizer, load_image_processor(folder)
        )


def load_image_processor(folder: str | Path, *, only_local: bool = True) -> object:
    """The settings of the picture preprocessing, with the PIL backend, which needs no torchvision. `folder` may be a
    hub id unless `only_local`."""
    return AutoImageProcessor.from_pretrained(
        folder, backend="pil", local_files_only=only_local, trust_remote_code=False
    )
