"""A vision-language model as three functions: features of pictures, features to embeddings, embeddings to hidden
states.

Everything that trains or samples talks to `VLM` only, so that another checkpoint family is one adapter. In memory it
is a `transformers` LlavaForConditionalGeneration (encoder -> two-layer GELU projector -> decoder LM), on disk exactly
that.

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

from lineside.errors import LinesideError
from lineside.model import attention, cpu_ops
from lineside.model.attention import Plan, plan_of, use_cpu_ops
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
        self.held_decoder: Any = None  # laid-out weights for decoding (cpu_decoder.py)
        self.checkpointing = False  # whether layers are computed again in backward instead of being kept
        self.language_model.config._attn_implementation = attention.NAME

    @property
    def language_model(self) -> PreTrainedModel:
        """The decoder without its head."""
        return self.model.model.language_model

    @property
    def projector(self) -> nn.Module:
        """The part that stage 1 trains."""
        return self.model.model.multi_modal_projector

    @property
    def tower(self) -> PreTrainedModel:
        """The frozen encoder."""
        return self.model.model.vision_tower

    @property
    def dtype(self) -> torch.dtype:
        """Of the projector's weights, which is that of the LM."""
        return next(self.projector.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.projector.parameters()).device

    @property
    def thinking(self) -> Thinking:
        """Which tasks think. It stands in the model's configuration, so that it goes wherever the weights go."""
        return Thinking(getattr(self.model.config, "thinking_tasks", None) or {})

    @thinking.setter
    def thinking(self, thinking: Thinking) -> None:
        self.model.config.thinking_tasks = dict(sorted(thinking.tasks.items()))

    @property
    def context(self) -> int:
        """Longest root-to-leaf path the LM can take, in tokens."""
        return int(self.model.config.get_text_config().max_position_embeddings)

    def pixels(self, pictures: Sequence[PILImage.Image]) -> Tensor:
        """RGB pictures -> (B, 3, S, S) float32, resized and normalised as the encoder expects; channels last in memory,
        as pictures lie."""
        processor = self.image_processor
        mean, std = (torch.tensor(getattr(processor, key)).view(3, 1, 1) for key in ("image_mean", "image_std"))
        pixels = torch.from_numpy(np.stack([_resized(picture, processor) for picture in pictures]))
        return pixels.permute(0, 3, 1, 2).to(torch.float32).mul_(1 / (255 * std)).sub_(mean / std)

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, P, D_e): the encoder at its feature layer, no post-norm, always frozen."""
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

        `features` (I, P, D_e) belong to `packed.images`, in order. `embedded` (I, P, D) stands in the pictures' place
        instead of projected features.
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

        With `rows` (R,), those of these tokens alone, (R, D): of the last layer, whatever follows attention is
        computed for them and no others, since nothing else reads it.
        """
        lm: Any = self.language_model
        x, rotary = embeds[None], lm.rotary_emb(embeds[None], position_ids=positions[None])
        layers = list(lm.layers)
        again = partial(checkpoint, use_reentrant=False) if self.checkpointing and torch.is_grad_enabled() else None
        for layer in layers if rows is None else layers[:-1]:
            layer = partial(again, layer) if again else layer
            x = layer(x, position_embeddings=rotary, position_ids=positions[None], tree=plan)
        if rows is not None:
            x = _last_layer(layers[-1], x, rotary, plan, rows.to(x.device))
        return lm.norm(x)[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """(M, D) -> (M, V) float32."""
        return self._banned(self.model.lm_head(hidden))

    @torch.no_grad()
    def narrow_logits(self, hidden: Tensor) -> Tensor:
        """`logits` in the format of the LM: a decoding step would else write all of them once more to widen them."""
        logits = self.model.lm_head(hidden)
        logits[:, self.render.image_id] = float("-inf")  # in place, for the same reason
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
        """(M,) float32 log-probability of every target of the pack at `temperature`, and (M,) the entropy in nats of
        the distribution it comes from, which passes no gradient back."""
        packed = packed.to(self.device)
        logits, target = self._targets(packed, features, None)
        if use_cpu_ops(packed):
            logprobs, entropy = cpu_ops.logprobs(logits, target, self.render.image_id, temperature)
        else:
            logits = self._banned(logits) / temperature
            logprobs, entropy = -nn.functional.cross_entropy(logits, target, reduction="none"), token_entropy(logits)
        return logprobs[: len(packed.target)], entropy[: len(packed.target)]

    def _targets(self, packed: Pack, features: Tensor | None, embedded: Tensor | None) -> tuple[Tensor, Tensor]:
        """(M, V) logits in the LM's format where a target is predicted, and nowhere else, and (M,) the targets; padded
        behind, so that a compiler meets few lengths."""
        # Siblings are predicted from one token: it stands once in the last layer, and for each of them in the head.
        rows, place = packed.source.unique(return_inverse=True)
        rows, place, target = (_padded(index, rounded(len(index), 64)) for index in (rows, place, packed.target))
        hidden = self.hidden(packed, features, embedded=embedded, rows=rows)
        return self.model.lm_head(hidden[place]), target

    def _banned(self, logits: Tensor) -> Tensor:
        """In float32, image tokens banned: in sampling and in the trainer's softmax alike."""
        ban = torch.zeros(logits.shape[-1], device=logits.device)
        ban[self.render.image_id] = float("-inf")
        return logits.float() + ban

    def pack(self, trees: Sequence[Node]) -> Pack:
        """Lay trees out flat for this model."""
        return pack(trees, image_token=self.render.image_id)


def _last_layer(layer: Any, x: Tensor, rotary: tuple[Tensor, Tensor], plan: Plan, rows: Tensor) -> Tensor:
    """The decoder's last layer, (1, N, D) -> (1, R, D): attention of all tokens, what follows it for `rows` alone."""
    attention = layer.self_attn
    with attention.o_proj.register_forward_pre_hook(lambda _, heads: (heads[0][:, rows],)):
        mixed, _ = attention(layer.input_layernorm(x), position_embeddings=rotary, attention_mask=None, tree=plan)
    x = x[:, rows] + mixed
    return x + layer.mlp(layer.post_attention_layernorm(x))


@torch.no_grad()
def token_entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of each row of (M, V) logits, (M,), in float32. Banned tokens (logit -inf) add nothing."""
    return torch.special.entr(torch.softmax(logits.float(), dim=-1)).sum(-1)


def _padded(index: Tensor, length: int) -> Tensor:
    """An index with zeros up to `length`."""
    return nn.functional.pad(index, (0, length - len(index)))


def dense_logprobs(vlm: VLM, trees: Sequence[Node], features: Tensor | None) -> list[Tensor]:
    """The reference: every root-to-leaf path alone, plain causal attention, no tree. One (targets,) tensor a path.

    `features` (I, P, D_e) holds one entry for every picture of `trees` in the order the packed path would use.
    """
    cursor = 0
    where: dict[int, range] = {}  # id of node -> its pictures' places in `features`
    for tree in trees:
        for node in _walk(tree):
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


def _walk(node: Node) -> list[Node]:
    return [node, *(below for child in node.children for below in _walk(child))]


def image_tokens_of(config: PretrainedConfig) -> int:
    """Tokens one picture takes: patches, plus the class token where the strategy keeps it."""
    vision = config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    has_class = vision.model_type == "clip_vision_model"
    return patches + (1 if has_class and config.vision_feature_select_strategy == "full" else 0)


def check_language_model(config: PretrainedConfig) -> None:
    """Full causal attention and 1-D positions only. Raises LinesideError by name otherwise."""
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
            f"language model of type {name!r} is refused: {wrong}. "
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
