"""Make the nano preset's parts: its tokenizer and its LM, from the training split's text alone.

A document is a tree: a caption stands where the picture will stand; questions with traces and answers, and the frame's
other captions, hang below it. So the LM learns to answer from what precedes before it has seen a picture, and align
can teach the projector to write there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from lineside.data.store import read_samples
from lineside.errors import LinesideError
from lineside.model.nano import new_llama, train_tokenizer
from lineside.model.parts import assemble, load_tower
from lineside.model.tree import Node
from lineside.model.vlm import VLM
from lineside.recipe import NanoLM, Sft
from lineside.training.losses import caption_loss
from lineside.training.stage import Stage
from lineside.training.trees import Counts, Frame, frame_tree, packs_of, steps_of
from lineside.types import Sample

DOCUMENTS = 20_000  # frames whose text is read: enough for a few million parameters, and a bound on memory


def nano_parts(documents: Sequence[tuple[Sample, ...]], settings: NanoLM, *, seed: int) -> VLM:
    """A tokenizer of these documents, a fresh LM, EfficientNet beside it; nothing is trained yet."""
    texts = (text for group in documents for s in group for text in (s.question, s.trace, s.answer) if text)
    tokenizer = train_tokenizer(texts, settings.vocabulary)
    size = {"hidden": settings.hidden, "layers": settings.layers, "heads": settings.heads, "context": settings.context}
    tower, processor = load_tower("efficientnet-lite0")
    return assemble(tower, processor, new_llama(tokenizer, **size, seed=seed), tokenizer, seed=seed)


def pretrain(vlm: VLM, documents: Sequence[tuple[Sample, ...]], folder: Path, settings: NanoLM, *, seed: int) -> None:
    """Train the LM on text alone: L = -(1/N) sum log p of the responses. Resumable by its state in `folder`."""
    budget = Sft(epochs=settings.epochs, max_minutes=settings.max_minutes, step_tokens=1024, optimizer="muon")
    rates = {"lm": settings.learning_rate}
    with Stage(vlm, folder, budget, rates, label="pretrain on text", groups=len(documents), seed=seed) as stage:

        def trees() -> Iterator[tuple[Frame, dict[str, int]]]:
            for group, cursor in stage.data(lambda epoch, skip: shuffled(documents, seed, epoch)[skip:]):
                yield Frame(text_tree(vlm, group, turn=cursor["epoch"]), ()), cursor

        for frames, cursor in steps_of(trees(), budget.step_tokens):
            packs = packs_of(vlm, frames, budget.pack_tokens)
            counts = Counts.of(pack for pack, _ in packs)
            for pack, _ in packs:
                loss, metrics = caption_loss(vlm.logprobs(pack, None), counts.answer + counts.trace)
                loss.backward()
                stage.optimizer.accumulate()
                stage.add(metrics)
            stage.step(cursor, (pack for pack, _ in packs))


def read_documents(samples: Path) -> list[tuple[Sample, ...]]:
    """All captions and questions of each training frame that has a caption, at most DOCUMENTS frames."""
    by_frame: dict[str, list[Sample]] = defaultdict(list)
    for kind in ("caption", "qa"):
        for sample in read_samples(samples, kind=kind, split="train"):
            key = sample.meta.scene or sample.id
            if key in by_frame or (kind == "caption" and len(by_frame) < DOCUMENTS):
                by_frame[key].append(sample)
    documents = [tuple(group) for group in by_frame.values()]
    if not documents:
        raise LinesideError(
            f"{samples} holds no captions of the training split: "
            "the nano preset makes its language model from their text"
        )
    return documents


def text_tree(vlm: VLM, group: tuple[Sample, ...], turn: int) -> Node:
    """One frame's text with one of its two fullest captions in the picture's place, by turns."""
    captions = sorted((s for s in group if s.kind == "caption"), key=lambda s: -len(s.answer or ""))
    shown = captions[turn % min(2, len(captions))]
    rest = [s for s in group if s is not shown] or [shown]
    tree = frame_tree(vlm, rest).tree
    return Node(vlm.render.prefix(0) + vlm.render.encode_untrusted(shown.answer or ""), children=tree.children)


def shuffled(documents: Sequence[tuple[Sample, ...]], seed: int, epoch: int) -> list[tuple[Sample, ...]]:
    """The same documents in an order of (seed, epoch)."""
    import random

    order = list(documents)
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order
