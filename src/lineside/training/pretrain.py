"""Make the parts of the nano preset: its tokenizer and its LM, from the text of the training split only.

A document is a tree. A sketch of the frame's captions (sketch.py) takes the place of the picture. Below it are
captions, questions with traces and answers, and recitals: the lists of the questions, repeated in other orders. So the
LM learns to read, count, look up and answer before it has seen a picture. Align then only has to teach the projector to
write in the same place."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from lineside.data.store import read_samples
from lineside.errors import LinesideError
from lineside.images import image_key
from lineside.model.nano import new_llama, train_tokenizer
from lineside.model.parts import assemble, load_tower
from lineside.model.tree import ANSWER, Node, Pack
from lineside.model.vlm import VLM, Features
from lineside.recipe import NanoLM, Parts, Sft
from lineside.runtime import Runtime
from lineside.training.losses import Metrics, caption_loss
from lineside.training.packing import ImageTree, image_tree
from lineside.training.sketch import Slots, embed_sketches, sketch
from lineside.training.stage import Stage
from lineside.types import Sample

_SENTENCE = re.compile(r"[.?:](?:\s+|$)")
UNSEEN = 0.15  # share of the documents without a picture
DOCUMENTS = 20_000  # frames whose text is read: enough for a few million parameters, and memory stays limited


def nano_parts(documents: Sequence[tuple[Sample, ...]], settings: Parts, *, seed: int) -> VLM:
    """A VLM from a tokenizer trained on these documents, a new LM and EfficientNet. The LM is not trained yet."""
    nano = settings.nano
    texts = (text for group in documents for s in group for text in (s.question, s.trace, s.answer) if text)
    tokenizer = train_tokenizer(texts, nano.vocabulary)
    size = {"hidden": nano.hidden, "layers": nano.layers, "heads": nano.heads, "context": nano.context}
    tower, processor = load_tower("efficientnet-lite0", settings.scales)
    return assemble(tower, processor, new_llama(tokenizer, **size, seed=seed), tokenizer, seed=seed)


def pretrain(
    vlm: VLM, documents: Sequence[tuple[Sample, ...]], folder: Path, settings: NanoLM, runtime: Runtime
) -> None:
    """Train the LM on text only: L = -(1/N) sum log p of the responses' tokens. It resumes from its state in
    `folder`."""
    budget = Sft(
        epochs=settings.epochs,
        max_minutes=settings.max_minutes,
        max_tokens=settings.max_tokens,
        step_tokens=settings.step_tokens,
        optimizer="muon",
    )
    rates, seed, frames = {"lm": settings.learning_rate}, runtime.seed, len(documents)
    with Stage(vlm, folder, budget, rates, label="pretrain on text", frame_count=frames, runtime=runtime) as stage:

        def trees() -> Iterator[tuple[ImageTree[Slots], dict[str, int]]]:
            for group, cursor in stage.data(lambda epoch, skip: shuffled(documents, seed, epoch)[skip:]):
                yield document_tree(vlm, group, random.Random(f"{seed}/{cursor['epoch']}/{group[0].id}")), cursor

        for packs, cursor in stage.packed(trees(), settings.step_tokens):
            counts = stage.count(packs)
            for pack, sketches in stage.each(packs):
                loss = partial(_loss, vlm, counts.answer + counts.trace, sketches)
                stage.learn(pack, torch.arange(len(sketches)), loss)
            stage.step(cursor, (pack for pack, _ in packs))


def _loss(
    vlm: VLM, count: int, sketches: Sequence[Slots], pack: Pack, pictures: Features, _: slice
) -> tuple[Tensor, Metrics]:
    """`pictures`: the numbers of the pack's sketches."""
    embedded = embed_sketches(vlm, [sketches[int(i)] for i in pictures]) if pictures is not None else None
    return caption_loss(vlm.logprobs(pack, None, embedded=embedded), count)


def document_tree(vlm: VLM, group: Sequence[Sample], rng: random.Random) -> ImageTree[Slots]:
    """All captions and questions of a frame below its sketch. With probability UNSEEN, only its captions and no
    picture, so that the LM learns how likely a caption is by itself. References have no sketch and are left out."""
    if rng.random() < UNSEEN:
        captions = [replace(sample, images=()) for sample in group if sample.kind == "caption"]
        return ImageTree(image_tree(vlm, captions).tree, ())
    tree = image_tree(vlm, [replace(sample, images=sample.frame_images) for sample in group]).tree
    below = tree.children + recitals(vlm, group, rng)
    tree = replace(tree, tokens=vlm.render.prefix(group[0].frame_images[:1]), images=(0,), children=below)
    return ImageTree(tree, (sketch(vlm, group, rng),))


def lists_in(question: str) -> list[list[str]]:
    """The comma-separated lists of three or more items in a question, such as a bill of materials or a policy."""
    pieces = ([item.strip(" .?") for item in part.split(",")] for part in _SENTENCE.split(question))
    return [items for items in pieces if len(items) >= 3 and all(items)]


def recitals(vlm: VLM, group: Sequence[Sample], rng: random.Random) -> tuple[Node, ...]:
    """The lists of a frame's questions, each repeated in two other orders, as nodes below the picture.

    In a repeated list, the model can only complete an item by looking it up in the first list. A trace needs such a
    look-up once, a recital for every item. So the LM learns to read its prompt in minutes (docs/experiments.md)."""
    lists = dict.fromkeys(tuple(items) for s in group if s.kind == "qa" for items in lists_in(s.question))
    nodes = []
    for items in lists:
        head, *again = (
            vlm.render.encode_untrusted(f" {', '.join(order)}.")
            for order in (items, rng.sample(items, len(items)), rng.sample(items, len(items)))
        )
        repeated = tuple(token for tokens in again for token in tokens)
        leaf = Node(repeated, roles=(ANSWER,) * len(repeated), leaf=0, name=group[0].id)
        nodes.append(Node(tuple(head), children=(leaf,)))
    return tuple(nodes)


def read_documents(folders: Sequence[Path]) -> list[tuple[Sample, ...]]:
    """The captions and questions of each training frame that has a caption. At most DOCUMENTS frames are read, in equal
    numbers from the folders of samples. Raises LinesideError if no frame has a caption."""
    documents: list[tuple[Sample, ...]] = []
    for folder in folders:
        by_frame: dict[str, list[Sample]] = defaultdict(list)
        for kind in ("caption", "qa"):
            shown, key = b"", ""
            for sample in read_samples(folder, kind=kind, split="train"):
                if sample.images[0].bytes is not shown:  # samples of a frame share the same object
                    shown = sample.images[0].bytes
                    key = image_key(shown)  # not the scene: the frames of a video have the same one
                if key in by_frame or (kind == "caption" and len(by_frame) < DOCUMENTS // len(folders)):
                    by_frame[key].append(sample)
        documents += map(tuple, by_frame.values())
    if not documents:
        raise LinesideError(
            f"{', '.join(map(str, folders))}: no captions of the training split: "
            "the nano preset makes its language model from their text"
        )
    return documents


def shuffled(documents: Sequence[tuple[Sample, ...]], seed: int, epoch: int) -> list[tuple[Sample, ...]]:
    """The documents in an order that depends on seed and epoch."""
    order = list(documents)
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order
