"""A vision-language model as three functions: pictures to features, features to embeddings, embeddings to hidden
states.

All code that trains or samples uses `VLM` only, so a new checkpoint family needs one adapter. In memory the model is a
`transformers` LlavaForConditionalGeneration (encoder -> two-layer GELU projector -> decoder LM). On disk it is the
same.

Shapes: B pictures, P tokens a picture, D_e encoder width, N packed tokens, D width of the LM, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lineside import backends
from lineside.backends.lm import NAME, LanguageModel, Plan, skip_in_last_layer
from lineside.backends.shapes import rounded
from lineside.errors import LinesideError
from lineside.model.render import Renderer
from lineside.model.tree import Node, Pack, pack
from lineside.progress import say
from lineside.types import Thinking

PROVEN_LMS = ("llama", "qwen2", "qwen3")  # the packed path is tested against the dense one for these


class Output(NamedTuple):
    """What a forward gives."""

    hidden: Tensor  # (R, D) hidden states after the final norm, of the tokens asked for or of those that predict
    logprobs: Tensor  # (M,) float32
    entropy: Tensor  # (M,) float32, in nats; it has no gradient


class VLM(nn.Module):
    """The model with its tokenizer, picture preprocessing and renderer, and the backend that computes it."""

    def __init__(
        self, model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, image_processor: object
    ) -> None:
        super().__init__()
        check_language_model(model.config.get_text_config())
        self.model = model
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.render = Renderer(tokenizer, image_tokens_of(model.config))
        self.checkpointing = False  # gradient checkpointing: backward computes each layer again
        self.language_model.config._attn_implementation = NAME
        skip_in_last_layer(self.language_model)
        self.backend = backends.choose(self.device)
        self.backend.prepare(self.language_model)

    def to(self, *args: Any, **kwargs: Any) -> VLM:
        """As of a module; the backend is that of the new device."""
        before = self.device
        super().to(*args, **kwargs)
        if self.device != before:
            self.backend = backends.choose(self.device)
            self.backend.prepare(self.language_model)
        return self

    @property
    def language_model(self) -> PreTrainedModel:
        """The decoder without its head."""
        return self.model.model.language_model

    @property
    def lm(self) -> LanguageModel:
        """The decoder with embeddings and head, as backends take it."""
        embed: Any = self.model.get_input_embeddings()
        return LanguageModel(self.language_model, embed, self.model.lm_head, self.render.image_id)

    @property
    def projector(self) -> nn.Module:
        """The two-layer MLP from encoder width to LM width; stage 1 trains only this."""
        return self.model.model.multi_modal_projector

    @property
    def tower(self) -> PreTrainedModel:
        """The frozen encoder."""
        return self.model.model.vision_tower

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the projector's weights; the LM's weights have the same."""
        return next(self.projector.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.projector.parameters()).device

    @property
    def thinking(self) -> Thinking:
        """Which tasks think. It is stored in the model's configuration, so every saved checkpoint keeps it."""
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
    def context(self) -> int:
        """Longest root-to-leaf path the LM can take, in tokens."""
        return int(self.model.config.get_text_config().max_position_embeddings)

    def pixels(self, pictures: Sequence[PILImage.Image]) -> Tensor:
        """RGB pictures -> (B, 3, S, S) float32, resized and normalised as the encoder expects. The memory format is
        channels last, like that of the pictures."""
        processor = self.image_processor
        mean, std = (torch.tensor(getattr(processor, key)).view(3, 1, 1) for key in ("image_mean", "image_std"))
        pixels = torch.from_numpy(np.stack([_resized(picture, processor) for picture in pictures]))
        return pixels.permute(0, 3, 1, 2).to(torch.float32).mul_(1 / (255 * std)).sub_(mean / std)

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, P, D_e): hidden states of the frozen encoder at its feature layer, without post-norm."""
        config = self.model.config
        weight = next(self.tower.parameters())
        out = self.tower(pixels.to(weight.device, weight.dtype), output_hidden_states=True)
        hidden = out.hidden_states[config.vision_feature_layer]
        return hidden[:, 1:] if config.vision_feature_select_strategy == "default" else hidden

    def embed(self, features: Tensor) -> Tensor:
        """(..., D_e) -> (..., D): the projector."""
        return self.projector(features.to(self.device, self.dtype))

    def forward(
        self,
        packed: Pack,
        features: Tensor | None = None,
        *,
        embedded: Tensor | None = None,
        temperature: float = 1.0,
        rows: Tensor | None = None,
        capture: Callable[[Plan], Plan] = lambda plan: plan,
    ) -> Output:
        """One forward of packed trees: log-probability and entropy of every target of the pack, at `temperature`.

        `features` (..., D_e) are those of the tokens of `packed.images`, in the same order. `embedded` (..., D), if
        given, replaces the projected features. With `rows` (R,), there are only the hidden states of these tokens:
        prefill. `capture` wraps the plan of the attention. Raises ValueError if the number of embeddings is not the
        number of image tokens.
        """
        packed = packed.to(self.device)
        lm, plan = self.lm, capture(self.backend.plan(packed.end, packed.size))
        embeds = lm.embed(packed.tokens)
        if embedded is None and features is not None and len(packed.image_slots):
            embedded = self.embed(features)
        if embedded is not None:
            image = embedded.flatten(0, -2)
            if len(image) != len(packed.image_slots):
                raise ValueError(
                    f"{len(packed.image_slots)} image tokens in the pack, {len(image)} embeddings for them"
                )
            embeds = embeds.index_copy(0, packed.image_slots, image.to(embeds.dtype))
        if rows is not None:
            hidden = lm.hidden(embeds, packed.positions, plan, rows, recompute=self.checkpointing)
            return Output(hidden, hidden.new_zeros(0), hidden.new_zeros(0))
        # Sibling branches are predicted from the same token. The last layer computes this token once (`rows`); the head
        # computes its logits once for each branch (`place`). All are padded, so that compilers see few lengths.
        rows, place = packed.source.unique(return_inverse=True)
        rows, place, target = (_padded(index, rounded(len(index), 64)) for index in (rows, place, packed.target))
        hidden = lm.hidden(embeds, packed.positions, plan, rows, recompute=self.checkpointing)
        scored = self.backend.logprobs(lm.head, hidden[place], target, lm.banned, temperature)
        return Output(hidden, *(values[: len(packed.target)] for values in scored))

    def prove_backend(self, packed: Pack, features: Tensor) -> None:
        """Compare the gradients of a pack with the reference, unless tests do so on this device. If they differ by more
        than rounding, the reference computes from now on, and a warning says so."""
        if self.backend.is_proven:
            return
        weights = [weight for weight in self.parameters() if weight.requires_grad]
        chosen, found = self.backend, []
        for self.backend in (chosen, backends.Reference()):
            loss = self(packed, features).logprobs.mean()
            found.append(torch.cat([g.float().flatten() for g in torch.autograd.grad(loss, weights)]))
        got, want = found
        gap = float((got - want).norm() / want.norm().clamp_min(1e-12))
        if gap <= (0.05 if self.dtype == torch.bfloat16 else 1e-3):
            self.backend = chosen
        else:
            say(
                f"warning: gradients of the {chosen.name} backend differ from the reference's by {gap:.2g} of their "
                "norm; the reference computes instead, which is slower"
            )

    def logprobs(self, packed: Pack, features: Tensor | None, *, embedded: Tensor | None = None) -> Tensor:
        """(M,) float32 log-probability of every target of the pack."""
        return self(packed, features, embedded=embedded).logprobs

    def logprobs_and_entropy(
        self, packed: Pack, features: Tensor | None, *, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Log-probability of every target of the pack at `temperature`, (M,) float32, and entropy in nats of the
        distribution that predicts it, (M,). The entropy has no gradient."""
        out = self(packed, features, temperature=temperature)
        return out.logprobs, out.entropy

    def pack(self, trees: Sequence[Node]) -> Pack:
        """Lay trees out flat for this model."""
        return pack(trees, image_token=self.render.image_id)


def _padded(index: Tensor, length: int) -> Tensor:
    """An index with zeros up to `length`."""
    return nn.functional.pad(index, (0, length - len(index)))


def dense_logprobs(vlm: VLM, trees: Sequence[Node], features: Tensor | None) -> list[Tensor]:
    """The reference: each root-to-leaf path by itself, with plain causal attention and no tree.

    Returns one (targets,) tensor for each path. `features` (I, P, D_e) has one entry for each picture of `trees`, in
    the order that the packed path uses.
    """
    cursor = 0
    where: dict[int, range] = {}  # id of node -> its pictures' places in `features`
    for tree in trees:
        for node in tree.nodes():
            where[id(node)] = range(cursor, cursor + len(node.images))
            cursor += len(node.images)
    out = []
    for tree in trees:
        for path in tree.paths():
            tokens = torch.tensor([t for node in path for t in node.tokens], device=vlm.device)
            roles = torch.tensor(
                [r for node in path for r in (node.roles or (0,) * len(node.tokens))], device=vlm.device
            )
            embeds = vlm.model.get_input_embeddings()(tokens)
            pictures = [i for node in path for i in where[id(node)]]
            if pictures and features is not None:
                slots = (tokens == vlm.render.image_id).nonzero().flatten()
                embeds = embeds.index_copy(0, slots, vlm.embed(features[pictures]).flatten(0, 1).to(embeds.dtype))
            hidden = vlm.language_model(inputs_embeds=embeds[None], use_cache=False).last_hidden_state[0]
            places = roles.nonzero().flatten()
            logits = vlm.lm.logits(hidden[places - 1]).float()
            out.append(-nn.functional.cross_entropy(logits, tokens[places], reduction="none"))
    return out


def image_tokens_of(config: PretrainedConfig) -> int:
    """Number of tokens of one picture: its patches, and the class token if the strategy keeps it."""
    vision = config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    has_class = vision.model_type == "clip_vision_model"
    return patches + (1 if has_class and config.vision_feature_select_strategy == "full" else 0)


def check_language_model(config: PretrainedConfig) -> None:
    """Raises LinesideError, with the reason, for an LM without full causal attention and 1-D positions."""
    name = config.model_type
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    wrong = ""
    if layers != {"full_attention"}:
        wrong = f"it has {', '.join(sorted(layers - {'full_attention'}))} layers"
    elif getattr(config, "use_sliding_window", False) or (
        getattr(config, "sliding_window", None) and name not in ("qwen2", "qwen3")
    ):
        wrong = "it has a sliding window"
    elif "mrope_section" in rope:
        wrong = "it has multi-dimensional positions (mRoPE)"
    elif name not in PROVEN_LMS:
        wrong = "its packed path is not proven equal to the dense one"
    if wrong:
        raise LinesideError(
            f"cannot use a language model of type {name!r}: {wrong}. "
            f"Expected one of {', '.join(PROVEN_LMS)} with full causal attention."
        )


def _resized(picture: PILImage.Image, processor: object) -> np.ndarray:
    """RGB picture -> (S, S, 3) bytes by the settings of a transformers image processor (resize, crop)."""
    size = dict(getattr(processor, "size"))  # noqa: B009 # the processor is duck-typed
    resample = PILImage.Resampling(int(getattr(processor, "resample", 3)))
    if "shortest_edge" in size:
        scale = size["shortest_edge"] / min(picture.size)
        target = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    else:
        target = (int(size["width"]), int(size["height"]))
    if picture.size != target:
        picture = picture.resize(target, resample)
    if getattr(processor, "do_center_crop", False):
        crop = dict(getattr(processor, "crop_size"))  # noqa: B009
        left, top = (picture.width - crop["width"]) // 2, (picture.height - crop["height"]) // 2
        picture = picture.crop((left, top, left + crop["width"], top + crop["height"]))
    return np.asarray(picture)
