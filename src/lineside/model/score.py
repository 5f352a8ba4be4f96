"""Log-probabilities of given responses, computed in packs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lineside.images import seen_key
from lineside.model.features import FeatureStore
from lineside.model.generate import Prompt
from lineside.model.render import Segment
from lineside.model.tree import Node, fill
from lineside.model.vlm import VLM

PACK_TOKENS = 8192


@torch.no_grad()
def score(vlm: VLM, store: FeatureStore, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Tensor]:
    """Log-probability of each token of each response, eos included: one 1-D float32 tensor for each prompt, in order.

    With thinking on, a response is "<think>trace</think>answer". Prompts with the same pictures share one tree.
    """
    by_picture: dict[tuple[str, ...], list[int]] = {}
    for number, prompt in enumerate(prompts):
        by_picture.setdefault(tuple(map(seen_key, prompt.images)), []).append(number)
    trees = []
    for numbers in by_picture.values():
        count = len(prompts[numbers[0]].images)
        children = []
        for number in numbers:
            response = _segment(vlm, responses[number], prompts[number].thinking)
            leaf = Node(response.tokens, roles=response.roles, leaf=number)
            question = vlm.render.question(prompts[number].question, thinking=prompts[number].thinking)
            children.append(Node(question, children=(leaf,)))
        trees.append(Node(vlm.render.prefix(count), images=tuple(range(count)), children=tuple(children)))
    out: list[Tensor] = [torch.zeros(0)] * len(prompts)
    first = {id(tree): numbers[0] for tree, numbers in zip(trees, by_picture.values())}
    for together in fill(trees, PACK_TOKENS):
        packed = vlm.pack(together)
        images = [image for tree in together for image in prompts[first[id(tree)]].images]
        logprobs = vlm.logprobs(packed, store.get(images) if images else None).cpu()
        for number in packed.leaf.unique().tolist():
            out[number] = logprobs[packed.leaf == number]
    return out


def _segment(vlm: VLM, response: str, thinking: bool) -> Segment:
    if not thinking:
        return vlm.render.response(None, response)
    trace, _, answer = response.removeprefix("<think>").partition("</think>")
    return vlm.render.response(trace, answer)
