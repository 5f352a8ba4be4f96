"""A vision-language model as three functions: pictures to features, features to embeddings, embeddings to hidden
states.

All code that trains or samples uses `VLM` only, so a new checkpoint family needs one adapter. In memory the model is a
`transformers` LlavaForConditionalGeneration (encoder -> two-layer GELU projector -> decoder LM). On disk it is the
same.

Shapes: B pictures, P tokens a picture, D_e encoder width, N packed tokens, D width of the LM, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import LlavaForConditionalGeneration, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lineside.backends import attention, cpu_ops
from lineside.backends.attention import Plan, plan_of, use_cpu_ops
from lineside.errors import LinesideError
from lineside.model.render import Renderer
from lineside.model.tree import Node, Pack, pack, rounded
from lineside.types import Thinking

PROVEN_LMS = ("llama", "qwen2", "qwen3")  # the packed path is tested against the dense one for these


class VLM:
    """The model with its tokenizer, picture preprocessing and renderer."""

    def __init__(
        self, model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, image_processor: object
    ) -> None:
        check_language_model(model.config.get_text_config())
        self.model = model
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.render = Renderer(tokenizer, image_tokens_of(model.config))
        self.held_decoder: Any = None  # a copy of the weights in the layout that decoding needs (cpu_decoder.py)
        self.checkpointing = False  # gradient checkpointing: backward computes each layer again
        self.language_model.config._attn_implementation = attention.NAME

    @property
    def language_model(self) -> PreTrainedModel:
        """The decoder without its head."""
        return self.model.model.language_model

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
        """(B, P, D_e) -> (B, P, D): the projector."""
        return self.projector(features.to(self.device, self.dtype))

    def hidden(
        self,
        packed: Pack,
        features: Tensor | None,
        plan: Plan | None = None,
        *,
        embedded: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """One forward of packed trees -> (N, D), or (R, D) for the tokens `rows` (R,) alone.

        `features` (I, P, D_e) are those of `packed.images`, in the same order. `embedded` (I, P, D), if given, replaces
        the projected features. Raises ValueError if the number of embeddings is not the number of image tokens.
        """
        embeds = self.model.get_input_embeddings()(packed.tokens.to(self.device))
        if embedded is None and features is not None and len(packed.image_slots):
            embedded = self.embed(features)
        if embedded is not None:
            image = embedded.flatten(0, 1)
            if len(image) != len(packed.image_slots):
                raise ValueError(
                    f"{len(packed.image_slots)} image tokens in the pack, {len(image)} embeddings for them"
                )
            embeds = embeds.index_copy(0, packed.image_slots.to(self.device), image.to(embeds.dtype))
        return self.decode(embeds, packed.positions.to(self.device), plan or plan_of(packed.to(self.device)), rows)

    def decode(self, embeds: Tensor, positions: Tensor, plan: Plan, rows: Tensor | None = None) -> Tensor:
        """(N, D) embeddings at (N,) positions through the LM -> (N, D) hidden states after its final norm.

        With `rows` (R,), only the hidden states of these tokens, (R, D). The last layer then computes what follows its
        attention for these tokens only, because no other hidden state is read.
        """
        lm: Any = self.language_model
        x, rotary = embeds[None], lm.rotary_emb(embeds[None], position_ids=positions[None])
        layers = list(lm.layers)
        recompute = partial(checkpoint, use_reentrant=False) if self.checkpointing and torch.is_grad_enabled() else None
        for layer in layers if rows is None else layers[:-1]:
            layer = partial(recompute, layer) if recompute else layer
            x = layer(x, position_embeddings=rotary, position_ids=positions[None], tree=plan)
        if rows is not None:
            x = _last_layer(layers[-1], x, rotary, plan, rows.to(x.device))
        return lm.norm(x)[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """(M, D) -> (M, V) float32."""
        return self._banned(self.model.lm_head(hidden))

    @torch.no_grad()
    def narrow_logits(self, hidden: Tensor) -> Tensor:
        """The same as `logits`, but in the LM's number format. A decoding step then does not copy them to float32."""
        logits = self.model.lm_head(hidden)
        logits[:, self.render.image_id] = float("-inf")  # in place, so that there is no copy here either
        return logits

    def logprobs(self, packed: Pack, features: Tensor | None, *, embedded: Tensor | None = None) -> Tensor:
        """(M,) float32 log-probability of every target of the pack."""
        packed = packed.to(self.device)
        logits, target = self._targets(packed, features, embedded)
        if use_cpu_ops(packed):
            return cpu_ops.logprobs(logits, target, self.render.image_id, 1.0)[0][: len(packed.target)]
        return -nn.functional.cross_entropy(self._banned(logits), target, reduction="none")[: len(packed.target)]

    def logprobs_and_entropy(
        self, packed: Pack, features: Tensor | None, *, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Log-probability of every target of the pack at `temperature`, (M,) float32, and entropy in nats of the
        distribution that predicts it, (M,). The entropy has no gradient."""
        packed = packed.to(self.device)
        logits, target = self._targets(packed, features, None)
        if use_cpu_ops(packed):
            logprobs, entropy = cpu_ops.logprobs(logits, target, self.render.image_id, temperature)
        else:
            logits = self._banned(logits) / temperature
            logprobs, entropy = -nn.functional.cross_entropy(logits, target, reduction="none"), token_entropy(logits)
        return logprobs[: len(packed.target)], entropy[: len(packed.target)]

    def _targets(self, packed: Pack, features: Tensor | None, embedded: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits for the targets only, (M, V) in the LM's format, and the targets (M,). Both are padded at the end to
        a round length, so that the compiler sees few different lengths."""
        # Sibling branches are predicted from the same token. The last layer computes this token once (`rows`); the head
        # computes its logits once for each branch (`place`).
        rows, place = packed.source.unique(return_inverse=True)
        rows, place, target = (_padded(index, rounded(len(index), 64)) for index in (rows, place, packed.target))
        hidden = self.hidden(packed, features, embedded=embedded, rows=rows)
        return self.model.lm_head(hidden[place]), target

    def _banned(self, logits: Tensor) -> Tensor:
        """Logits in float32, with -inf for the image token. Sampling and training both use this."""
        ban = torch.zeros(logits.shape[-1], device=logits.device)
        ban[self.render.image_id] = float("-inf")
        return logits.float() + ban

    def pack(self, trees: Sequence[Node]) -> Pack:
        """Lay trees out flat for this model."""
        return pack(trees, image_token=self.render.image_id)


def _last_layer(layer: Any, x: Tensor, rotary: tuple[Tensor, Tensor], plan: Plan, rows: Tensor) -> Tensor:
    """The decoder's last layer, (1, N, D) -> (1, R, D): attention for all tokens, the rest for `rows` only."""
    attention = layer.self_attn
    with attention.o_proj.register_forward_pre_hook(lambda _, heads: (heads[0][:, rows],)):
        mixed, _ = attention(layer.input_layernorm(x), position_embeddings=rotary, attention_mask=None, tree=plan)
    x = x[:, rows] + mixed
    return x + layer.mlp(layer.post_attention_layernorm(x))


@torch.no_grad()
def token_entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of each row of (M, V) logits: (M,) float32. A banned token (logit -inf) adds 0."""
    return torch.special.entr(torch.softmax(logits.float(), dim=-1)).sum(-1)


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
            logits = vlm.logits(hidden[places - 1])
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
