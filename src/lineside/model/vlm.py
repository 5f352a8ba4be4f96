"""A vision-language model as a module with one entry: packed trees and features to log-probabilities.

All code that trains or samples uses `VLM` only. In memory the model is one of transformers' (for LLaVA: encoder ->
two-layer GELU projector -> decoder LM), on disk too. What differs between checkpoint families lies in families/, what
differs between devices in backends/.

Shapes: P tokens of a picture, D_e width of its features, N packed tokens, M targets, D width of the LM.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image as PILImage
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lineside import backends
from lineside.backends.fused_ops import restore
from lineside.backends.lm import NAME, LanguageModel, Plan, skip_in_last_layer
from lineside.backends.shapes import rounded
from lineside.errors import LinesideError
from lineside.families import PROVEN_LMS, family_named
from lineside.model.render import Renderer
from lineside.model.tree import Node, Pack, pack
from lineside.progress import say
from lineside.runtime import upload
from lineside.settings import Lora
from lineside.types import Thinking

LAYERS = {"conv": "convolution", "sliding_attention": "sliding-window"}  # kinds of layers, in words
Features = Sequence[Tensor] | Tensor | None  # (R, D_e) of each picture


class Output(NamedTuple):
    """What a forward gives."""

    hidden: Tensor  # (R, D) hidden states after the final norm, of the tokens asked for or of those that predict
    logprobs: Tensor  # (M,) float32
    entropy: Tensor  # (M,) float32, in nats; it has no gradient


class Adapter(NamedTuple):
    """The adapter of a model (adapter.py): its shape, and the checkpoint whose weights lie frozen below it."""

    lora: Lora
    base: Path


class VLM(nn.Module):
    """The model with its tokenizer, picture preprocessing and renderer, and the backend that computes it."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, image_processor: object) -> None:
        super().__init__()
        self.model: Any = model
        self.tokenizer = tokenizer
        self.family = family_named(model.config.model_type)(model.config, tokenizer, image_processor)
        check_language_model(model.config.get_text_config(), self.family.lms)
        self.render = Renderer.of(self.family)
        self.adapter: Adapter | None = None
        self.checkpointing = False  # gradient checkpointing: backward computes each layer again
        self.language_model.config._attn_implementation = NAME
        skip_in_last_layer(self.language_model)
        self.use(backends.choose(self.device))

    def use(self, backend: backends.Reference) -> None:
        """Compute with this backend from now on."""
        restore(self.language_model)
        backend.prepare(self.language_model)
        self.backend = backend

    def to(self, *args: Any, **kwargs: Any) -> VLM:
        """As of a module; the backend is that of the new device."""
        before = self.device
        super().to(*args, **kwargs)
        if self.device != before:
            self.use(backends.choose(self.device))
        return self

    @property
    def language_model(self) -> PreTrainedModel:
        """The decoder without its head."""
        return self.model.get_submodule(self.family.language_model)

    @property
    def lm(self) -> LanguageModel:
        """The decoder with embeddings and head, as backends take it."""
        embed: Any = self.model.get_input_embeddings()
        return LanguageModel(self.language_model, embed, self.model.lm_head, self.render.image_id)

    @property
    def projector(self) -> nn.Module:
        """What maps encoder width to LM width; stage 1 trains only this."""
        parts = [self.model.get_submodule(path) for path in self.family.projector]
        return parts[0] if len(parts) == 1 else nn.ModuleList(parts)

    @property
    def tower(self) -> PreTrainedModel:
        """The frozen encoder; in some families the projector is a part of it."""
        return self.model.get_submodule(self.family.tower)

    @property
    def encoder_state(self) -> dict[str, Tensor]:
        """The encoder's weights by name, without those of the projector."""
        trained = {id(weight) for weight in self.projector.parameters()}
        state = self.tower.state_dict(keep_vars=True)
        return {name: weight for name, weight in state.items() if id(weight) not in trained}

    @property
    def image_processor(self) -> Any:
        """The settings of the picture preprocessing."""
        return self.family.image_processor

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the projector's weights; the LM's weights have the same."""
        return next(self.projector.parameters()).dtype

    @property
    def form(self) -> str:
        """How answers are computed: the number format; and engine and weights, unless decoding is the model's own in
        that format. What holds for one form, such as a calibration, need not hold for another."""
        engine, weights = self.backend.engine, self.backend.weights
        other = () if (engine, weights) == ("local", "full") else (engine, weights)
        return " ".join((str(self.dtype).removeprefix("torch."), *other))

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.projector.parameters()).device

    @property
    def thinking(self) -> Thinking:
        """Which tasks think. It is stored in the model's configuration, so every saved checkpoint keeps it. A model
        that never learnt the think switch is never asked to think."""
        if not self.render.switches:
            return Thinking(knows=False)
        return Thinking(getattr(self.model.config, "thinking_tasks", None) or {})

    @thinking.setter
    def thinking(self, thinking: Thinking) -> None:
        self.model.config.thinking_tasks = dict(sorted(thinking.tasks.items()))

    @property
    def roi(self) -> dict[str, Any] | None:
        """How pictures were cut before training (`roi` of a task file); None: not at all. Kept like `thinking`."""
        return getattr(self.model.config, "roi", None)

    @roi.setter
    def roi(self, roi: dict[str, Any] | None) -> None:
        if roi != self.roi:
            self.model.config.roi = roi

    @property
    def references(self) -> bool:
        """Whether it was trained with reference pictures beside the frame. Kept like `thinking`."""
        return bool(getattr(self.model.config, "references", False))

    @references.setter
    def references(self, references: bool) -> None:
        if references != self.references:
            self.model.config.references = references

    @property
    def views(self) -> tuple[str, ...]:
        """The names of the further pictures of a frame that it was trained with, in their order. Kept like
        `thinking`."""
        return tuple(getattr(self.model.config, "views", ()))

    @views.setter
    def views(self, views: Sequence[str]) -> None:
        if tuple(views) != self.views:
            self.model.config.views = list(views)

    @property
    def context(self) -> int:
        """Longest root-to-leaf path the LM can take, in tokens."""
        return int(self.model.config.get_text_config().max_position_embeddings)

    def pixels(self, pictures: Sequence[PILImage.Image]) -> Any:
        """RGB pictures as `features` takes them."""
        return self.family.pixels(pictures)

    @torch.no_grad()
    def features(self, pixels: Any) -> list[Tensor]:
        """(R, D_e) of each picture, by the frozen encoder."""
        return self.family.features(self.model, pixels)

    def forward(
        self,
        packed: Pack,
        features: Features = None,
        *,
        embedded: Tensor | None = None,
        temperature: float = 1.0,
        rows: Tensor | None = None,
        capture: Callable[[Plan], Plan] = lambda plan: plan,
    ) -> Output:
        """One forward of packed trees: log-probability and entropy of every target of the pack, at `temperature`.

        `features` (R, D_e) of each picture of `packed.images`, in the same order. `embedded` (..., D), if given,
        replaces the projected features. With `rows` (R,), there are only the hidden states of these tokens:
        prefill. `capture` wraps the plan of the attention. Raises ValueError if the number of embeddings is not the
        number of image tokens.
        """
        lm, plan = self.lm, capture(self.backend.plan(packed.end, packed.size, self.device, self.family.windows))
        packed = packed.to(self.device)
        embeds, added = self.embed(packed, features, embedded=embedded)
        run = partial(
            lm.hidden, embeds, packed.positions, plan,
            added=[(packed.image_slots, values) for values in added], recompute=self.checkpointing,
        )  # fmt: skip
        if rows is not None:
            hidden = run(upload(rows, self.device))
            return Output(hidden, hidden.new_zeros(0), hidden.new_zeros(0))
        # The last layer computes a token that predicts once (`rows`); the head computes its logits once for each branch
        # (`place`). All are padded, so that compilers see few lengths.
        indices = packed.rows, packed.place, packed.target
        sources, place, target = (_padded(index, rounded(len(index), 64)) for index in indices)
        hidden = run(sources)
        scored = self.backend.logprobs(lm.head, hidden[place], target, lm.banned, temperature)
        return Output(hidden, *(values[: len(packed.target)] for values in scored))

    def embed(
        self, packed: Pack, features: Features = None, *, embedded: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """(N, D) what the first layer reads of a pack on the model's device; and, for each of the first layers,
        what is added to its output where pictures stand. Arguments and errors as in `forward`."""
        embeds = self.lm.embed(packed.tokens)
        given = [] if embedded is None else [embedded.flatten(0, -2)]
        if embedded is None and features is not None and len(packed.image_slots):
            together = upload(torch.cat(tuple(features)), self.device).to(self.dtype)
            given = self.family.embed(self.model, together.split([len(one) for one in features]), packed.shapes)
        if given and len(given[0]) != len(packed.image_slots):
            raise ValueError(f"{len(packed.image_slots)} image tokens in the pack, {len(given[0])} embeddings for them")
        if given:
            embeds = embeds.index_copy(0, packed.image_slots, given[0].to(embeds.dtype))
        return embeds, given[1:]

    def prove_backend(self, packed: Pack, features: Features) -> None:
        """Compare the gradients of a pack with the reference, unless tests do so on this device. If they differ by more
        than rounding, or the backend fails, its `fallback` is compared in its place, and computes from now on, in this
        process for every model. A warning says so. Raises torch.OutOfMemoryError."""
        weights = [weight for weight in self.parameters() if weight.requires_grad]

        def gradient() -> Tensor:
            loss = self(packed, features).logprobs.mean()
            return torch.cat([g.float().flatten() for g in torch.autograd.grad(loss, weights)])

        while not self.backend.is_proven:
            chosen, got, failed = self.backend, None, ""
            try:
                got = gradient()
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:  # a kernel that cannot be built for this card, width or version
                failed = f"the backend {chosen.name!r} fails: {' '.join(str(error).split())[:300]}"
            if got is not None:
                self.use(backends.Reference())
                want = gradient()
                gap = float((got - want).norm() / want.norm().clamp_min(1e-12))
                if gap <= (0.05 if self.dtype == torch.bfloat16 else 1e-3):
                    self.use(chosen)
                    return
                failed = f"gradients of the backend {chosen.name!r} are {gap:.2g} of their norm off the reference's"
            backends.FAILED.add(chosen.name)
            self.use(chosen.fallback())
            say(f"warning: {failed}; {self.backend.name!r} computes instead, which is slower")

    def logprobs(self, packed: Pack, features: Features, *, embedded: Tensor | None = None) -> Tensor:
        """(M,) float32 log-probability of every target of the pack."""
        return self(packed, features, embedded=embedded).logprobs

    def logprobs_and_entropy(
        self, packed: Pack, features: Features, *, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Log-probability of every target of the pack at `temperature`, (M,) float32, and entropy in nats of the
        distribution that predicts it, (M,). The entropy has no gradient."""
        out = self(packed, features, temperature=temperature)
        return out.logprobs, out.entropy

    def pack(self, trees: Sequence[Node]) -> Pack:
        """Lay trees out flat for this model."""
        return pack(trees, image_token=self.render.image_id, positions=self.family.positions)


def _padded(index: Tensor, length: int) -> Tensor:
    """An index with zeros up to `length`."""
    return nn.functional.pad(index, (0, length - len(index)))


def special_layers(config: Mapping[str, Any], layers: Sequence[object] | None) -> str:
    """What an LM has beside layers of full attention, in words, by its configuration and the kinds of its layers; "" if
    nothing. transformers counts state-space layers as linear attention, so their sizes tell them."""
    if any(key.endswith(("state_size", "d_state")) for key in config):
        return "state-space layers"
    others = sorted({str(layer) for layer in layers or ()} - {"full_attention"})
    words = [LAYERS.get(name, name.replace("_", "-")) for name in others]
    return f"{' and '.join(words)} layers" if words else ""


def check_language_model(config: PretrainedConfig, proven: Sequence[str] = PROVEN_LMS) -> None:
    """Raises LinesideError, with the reason, for an LM whose packed path is not proven: `proven` are the types for
    which it is. Those of PROVEN_LMS have full causal attention and 1-D positions."""
    name = config.model_type
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    wrong = ""
    if special := special_layers(config.to_dict(), getattr(config, "layer_types", None)):
        wrong = f"it has {special}"
    elif getattr(config, "use_sliding_window", False) or (
        getattr(config, "sliding_window", None) and name not in ("qwen2", "qwen3")
    ):
        wrong = "it has a sliding window"
    elif "mrope_section" in rope and (name in PROVEN_LMS or name not in proven):
        wrong = "it has multi-dimensional positions (mRoPE)"
    elif name not in proven:
        wrong = "its packed path is not proven equal to the dense one"
    if wrong:
        raise LinesideError(
            f"cannot use a language model of type {name!r}: {wrong}. "
            f"Expected one of {', '.join(proven)} with full causal attention."
        )
