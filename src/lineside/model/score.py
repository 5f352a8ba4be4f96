"""Log-probabilities of given responses, computed in packs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lineside.model.branches import branches, by_frame, frame_tree
from lineside.model.features import FeatureStore
from lineside.model.generate import Prompt
from lineside.model.render import Segment
from lineside.model.tree import Node, Pack, fill
from lineside.model.vlm import VLM
from lineside.types import THINK_CLOSE, THINK_OPEN, Image, frame_images

PACK_TOKENS = 8192


@torch.no_grad()
def score(vlm: VLM, store: FeatureStore, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Tensor]:
    """Log-probability of each token of each response, eos included: one 1-D float32 tensor for each prompt, in order.

    With thinking on, a response is "<think>trace</think>answer". Prompts with the same pictures share one tree.
    """

    def node(number: int) -> Node:
        response = _segment(vlm, responses[number], prompts[number].thinking)
        leaf = Node(response.tokens, roles=response.roles, leaf=number)
        question = vlm.render.question(prompts[number].question, thinking=prompts[number].thinking)
        return Node(question, children=(leaf,))

    trees: list[Node] = []
    shown: dict[int, tuple[Image, ...]] = {}  # id of a tree -> its pictures
    for numbers in by_frame([prompt.images for prompt in prompts]):
        found = branches(vlm.render, ((number, prompts[number].images) for number in numbers))
        below = [(branch, [*map(node, branch.numbers)]) for branch in found]
        tree, images = frame_tree(vlm.render, frame_images(prompts[numbers[0]].images), below)
        trees.append(tree)
        shown[id(tree)] = images
    packs: list[Pack] = []
    scores: list[Tensor] = []  # on the device: it is waited for once
    for together in fill(trees, PACK_TOKENS):
        packed = vlm.pack(together)
        images = [image for tree in together for image in shown[id(tree)]]
        packs.append(packed)
        scores.append(vlm.logprobs(packed, store.get(images) if images else None))
    out: list[Tensor] = [torch.zeros(0)] * len(prompts)
    for packed, logprobs in zip(packs, torch.cat(scores).cpu().split(list(map(len, scores))) if scores else ()):
        for number in packed.leaf.unique().tolist():
            out[number] = logprobs[packed.leaf == number]
    return out


def _segment(vlm: VLM, response: str, thinking: bool) -> Segment:
    if not thinking:
        return vlm.render.response(None, response)
    trace, _, answer = response.removeprefix(THINK_OPEN).partition(THINK_CLOSE)
    return vlm.render.response(trace, answer)
