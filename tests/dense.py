"""The slow way, by which the packed one is proven: every root-to-leaf path alone, without a tree."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from lineside.model.tree import Node
from lineside.model.vlm import VLM, Features


def dense_logprobs(vlm: VLM, trees: Sequence[Node], features: Features) -> list[Tensor]:
    """(targets,) of each path, by the LM's own forward with plain causal attention. `features` has one entry (P, D_e)
    for each picture of `trees`, in the order that the packed path uses."""
    cursor, where = 0, {}  # id of node -> its pictures' places in `features`
    for node in (node for tree in trees for node in tree.nodes()):
        where[id(node)] = range(cursor, cursor + len(node.images))
        cursor += len(node.images)
    return [_of_path(vlm, path, [i for node in path for i in where[id(node)]], features)
            for tree in trees for path in tree.paths()]  # fmt: skip


def _of_path(vlm: VLM, path: Sequence[Node], pictures: Sequence[int], features: Features) -> Tensor:
    tokens = torch.tensor([t for node in path for t in node.tokens], device=vlm.device)
    roles = torch.tensor([r for node in path for r in (node.roles or (0,) * len(node.tokens))], device=vlm.device)
    embeds, given = vlm.lm.embed(tokens), []
    slots = (tokens == vlm.render.image_id).nonzero().flatten()
    if pictures and features is not None:
        shown = [features[i].to(vlm.device, vlm.dtype) for i in pictures]
        given = vlm.family.embed(vlm.model, shown, [shape for node in path for shape in node.shapes])
        embeds = embeds.index_copy(0, slots, given[0].to(embeds.dtype))
    positions, after = [], 0
    for node in path:
        here, after = vlm.family.positions(node.tokens, after, node.shapes)
        positions += here
    places = torch.tensor(positions, device=vlm.device)[None]
    hooks = [
        layer.register_forward_hook(partial(_add, slots, more)) for layer, more in zip(vlm.lm.decoder.layers, given[1:])
    ]
    hidden = vlm.language_model(inputs_embeds=embeds[None], position_ids=places, use_cache=False).last_hidden_state[0]
    for hook in hooks:
        hook.remove()
    targets = roles.nonzero().flatten()
    logits = vlm.lm.logits(hidden[targets - 1]).float()
    return -nn.functional.cross_entropy(logits, tokens[targets], reduction="none")


def _add(slots: Tensor, more: Tensor, module: nn.Module, args: object, out: Tensor) -> Tensor:
    return out.index_add(1, slots, more[None])
