"""Nothing outside families/ knows how many tokens a picture takes: a family whose pictures take different numbers, with
separators between rows, positions of its own and an injection into a layer goes through every stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as PILImage
from torch import Tensor
from transformers import MistralConfig, MistralModel

from lineside.align import align
from lineside.backends.cpu import Cpu
from lineside.backends.lm import NAME, LanguageModel
from lineside.backends.reference import Reference
from lineside.data.store import write_samples
from lineside.families import FAMILIES
from lineside.families.llava import Llava
from lineside.images import decode
from lineside.model.branches import branches, frame_tree
from lineside.model.checkpoint import family_of, load, save
from lineside.model.features import FeatureStore
from lineside.model.generate import Prompt, generate
from lineside.model.render import BLANK
from lineside.model.score import score
from lineside.model.tree import ANSWER, Node, pack
from lineside.model.vlm import VLM
from lineside.recipe import Align, Augment, Rates, Rlvr, Sft
from lineside.rlvr import rlvr
from lineside.runtime import CPU
from lineside.sft import sft
from lineside.types import Image, Meta, Sample, Source, Target
from lineside.validate import of_checkpoint
from tests.conftest import make_tiny_vlm, picture
from tests.dense import dense_logprobs
from tests.model.test_generate import QUESTIONS

SEPARATOR = 301  # an ordinary token
SIZES = (20, 35, 50, 64)  # sides of square pictures: 1, 2, 3 and 4 rows and columns of tokens


class Grid(Llava):
    """A picture takes a row of tokens for each 16 pixels of its height, and a separator after each row."""

    resizes = True

    def shape(self, image: Image) -> tuple[int, int]:
        width, height = decode(image.bytes).size if image.bytes else (64, 64)
        return min(4, height // 16), min(4, width // 16)

    def placeholder(self, image: Image) -> tuple[int, ...]:
        rows, columns = self.shape(image)
        return ((self.config.image_token_index,) * columns + (SEPARATOR,)) * rows

    def positions(self, tokens: Sequence[int], start: int, shapes: Sequence[tuple[int, int]]) -> tuple[list[Any], int]:
        """The tokens of a row share the position of the separator behind them."""
        out: list[int] = []
        for token in tokens:
            out.append(start)
            start += token != self.config.image_token_index
        return out, start

    def pixels(self, pictures: Sequence[PILImage.Image]) -> Any:
        sides = [(min(4, p.height // 16), min(4, p.width // 16)) for p in pictures]
        return super().pixels(pictures), sides

    def features(self, model: Any, pixels: Any) -> list[Tensor]:
        whole = super().features(model, pixels[0])
        return [f.view(4, 4, -1)[:rows, :columns].flatten(0, 1) for f, (rows, columns) in zip(whole, pixels[1])]

    def embed(self, model: Any, features: Any, shapes: Any) -> list[Tensor]:
        (embedded,) = super().embed(model, features, shapes)
        return [embedded, embedded.flip(-1)]  # the second is injected after layer 0


@pytest.fixture
def vlm(monkeypatch: pytest.MonkeyPatch) -> VLM:
    monkeypatch.setitem(FAMILIES, "llava", Grid)
    return make_tiny_vlm()


def image(number: int, **role: Any) -> Image:
    return Image(picture(number, size=SIZES[number % 4]), **role)


def tree_of(vlm: VLM, images: Sequence[Image], answers: int) -> tuple[Node, tuple[Image, ...]]:
    """A frame with two questions, the second beside the references among `images`."""
    frame = [i for i in images if i.role != "reference"]
    below = []
    for branch in branches(vlm.render, enumerate((frame, images))):
        leaves = tuple(Node((310 + a, 320, 330), roles=(ANSWER,) * 3, leaf=a) for a in range(answers))
        below.append((branch, [Node((305, 306), children=leaves)]))
    return frame_tree(vlm.render, frame, below)


def cases(vlm: VLM) -> tuple[list[Node], tuple[Image, ...]]:
    frames = [[image(0)], [image(1), image(2), image(3, role="reference", name="can")], [image(3)], []]
    trees, shown = zip(*(tree_of(vlm, images, answers + 1) for answers, images in enumerate(frames)))
    return list(trees), tuple(i for images in shown for i in images)


@pytest.mark.parametrize("backend", [Reference, Cpu])
def test_packed_equals_dense_in_logprobs_and_gradients(vlm: VLM, backend: type[Reference]) -> None:
    vlm.backend = backend()
    vlm.language_model.requires_grad_(True)
    trees, shown = cases(vlm)
    features = FeatureStore(None, vlm, dtype=torch.float32).get(shown)
    assert [len(f) for f in features] == [1, 4, 9, 16, 16]
    trained = [p for p in vlm.parameters() if p.requires_grad]
    results = []
    for logprobs in (vlm.logprobs(vlm.pack(trees), features), torch.cat(dense_logprobs(vlm, trees, features))):
        results.append((logprobs, *torch.autograd.grad(-logprobs.mean(), trained)))
    for got, want in zip(*results):
        torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-3)
    other = vlm.logprobs(vlm.pack(trees), [f + 1 for f in features])
    assert (other - results[0][0]).abs().max() > 1e-3  # the pictures are seen
    with pytest.raises(ValueError, match="46 image tokens in the pack, 45 embeddings"):
        vlm(vlm.pack(trees), [*features[:-1], features[-1][1:]])


def test_positions_by_hand(vlm: VLM) -> None:
    """A picture of two rows and columns: a row's tokens and its separator share a position."""
    i = vlm.render.image_id
    tree = Node((5, i, i, SEPARATOR, i, i, SEPARATOR), images=(0,), children=(Node((7, 8)), Node((9,))))
    assert vlm.pack([tree]).positions[:10].tolist() == [0, 1, 1, 1, 2, 2, 2, 3, 4, 3]


def test_triples_of_positions() -> None:
    """As in mRoPE (arXiv 2409.12191): time, row and column; text goes on after the largest."""

    def place(tokens: Sequence[int], start: int, shapes: Sequence[tuple[int, int]]) -> tuple[list[Any], int]:
        if not shapes:
            return [(start + k,) * 3 for k in range(len(tokens))], start + len(tokens)
        ((rows, columns),) = shapes
        return [(start, start + r, start + c) for r in range(rows) for c in range(columns)], start + max(rows, columns)

    tree = Node((9,) * 6, images=(0,), shapes=((2, 3),), children=(Node((5, 6)), Node((7,))))
    positions = pack([tree], image_token=9, positions=place).positions
    assert positions.shape == (3, len(pack([tree], image_token=9).tokens))
    assert positions[:, :9].T.tolist() == [
        [0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0], [0, 1, 1], [0, 1, 2], [3, 3, 3], [4, 4, 4], [3, 3, 3],
    ]  # fmt: skip


def test_windows_by_layer() -> None:
    """A decoder with a sliding window, packed as trees, equals its own forward of each path."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=4,
    )  # fmt: skip
    decoder = MistralModel(config).eval()
    tree = Node(tuple(range(1, 8)), children=(Node((20, 21, 22, 23)), Node((30,), children=(Node((40, 41)),))))
    paths = [[t for node in path for t in node.tokens] for path in tree.paths()]
    with torch.no_grad():
        want = [decoder(input_ids=torch.tensor([path])).last_hidden_state[0, -1] for path in paths]
        decoder.config._attn_implementation = NAME
        packed = pack([tree], image_token=0)
        lm = LanguageModel(decoder, decoder.embed_tokens, torch.nn.Identity(), 0)
        for windows, equal in (((4, 4, 4), True), ((), False)):
            plan = Cpu().plan(packed.end, packed.size, CPU, windows)
            got = lm.hidden(decoder.embed_tokens(packed.tokens), packed.positions, plan, torch.tensor([10, 13]))
            assert torch.allclose(got, torch.stack(want), atol=2e-5) == equal


NUMBER = Target(kind="number", provenance="sim", value=3.0, tolerance=2.0)


def sample(kind: Any, frame: int, number: int, *, answer: str | None = None) -> Sample:
    beside = (image(frame + 1, role="reference", name="red can"),) if number % 2 else ()
    return Sample(
        id=f"f{frame}-{kind}-{number}", kind=kind, images=(image(frame), *(beside if kind != "caption" else ())),
        family="picking", task="count_all", question="" if kind == "caption" else QUESTIONS[number % 2],
        trace="left: 2 red can; so 3" if kind == "qa" else None, answer=answer,
        target=None if kind == "caption" else NUMBER, split="train", meta=Meta(scene=f"s{frame}"), source=Source("sim"),
    )  # fmt: skip


def test_all_stages_and_a_checkpoint(vlm: VLM, tmp_path: Path) -> None:
    kinds = (("caption", "a red can"), ("qa", "3"), ("qa", "5"), ("prompt", None))
    rows = [
        sample(kind, frame, number, answer=answer) for frame in range(6) for number, (kind, answer) in enumerate(kinds)
    ]
    write_samples(tmp_path / "samples", rows)
    augment = Augment(variants=2, crop=0.4)
    store = FeatureStore(tmp_path / "features", vlm, dtype=torch.float32, augment=augment)
    fast = Rates(projector=1e-2, lm=1e-2)
    align(vlm, store, tmp_path / "samples", tmp_path / "align", Align(epochs=2, step_tokens=100))
    options = {"feature_dropout": 0.1, "step_tokens": 200, "learning_rate": fast}
    sft(vlm, store, tmp_path / "samples", tmp_path / "sft", Sft(epochs=4, **options))
    settings = Rlvr(
        epochs=2, max_steps=2, prompts=3, group_size=4, max_new_tokens=8, overlong_cache=2, learning_rate=fast
    )
    rlvr(vlm, store, tmp_path / "samples", tmp_path / "rlvr", settings)
    again = FeatureStore(tmp_path / "features", vlm, dtype=torch.float32, augment=augment)
    shown = [image(n) for n in range(6)]
    torch.testing.assert_close(again.get(shown), store.get(shown), atol=0, rtol=0)
    assert again.encoder_calls == 0
    varied = [replace(i, variant=1) for i in shown]
    assert [*map(len, again.get(varied))] == [vlm.render.image_tokens(i) for i in varied] == [1, 4, 9, 16, 1, 4]

    save(vlm, tmp_path / "checkpoint")
    loaded = load(tmp_path / "checkpoint")
    prompts = [Prompt(s.images, s.question, thinking=False) for s in rows if s.kind == "prompt"]
    rolled = generate(loaded, again, prompts, samples=2, temperature=1.0, max_new_tokens=6, seed=3)
    for prompt, group in zip(prompts, rolled):
        for rollout in group:
            leaf = Node(rollout.tokens, roles=(ANSWER,) * len(rollout.tokens), leaf=0)
            question = vlm.render.question(prompt.question, thinking=False)
            ((branch),) = branches(vlm.render, [(0, prompt.images)])
            below = [(branch, [Node(question, children=(leaf,))])]
            tree, images = frame_tree(vlm.render, prompt.images[:1], below)
            (want,) = dense_logprobs(loaded, [tree], again.get(images))
            torch.testing.assert_close(torch.tensor(rollout.sampler_logprobs), want, atol=1e-4, rtol=1e-4)
    said = score(loaded, again, prompts, ["3"] * len(prompts))
    assert all(row.isfinite().all() for row in said) and len(said) == len(prompts)
    measure = of_checkpoint(tmp_path / "checkpoint").measure
    for s in rows[:4]:
        asked = len(vlm.render.head(s.images))
        assert measure(s)[0] > asked >= sum(len(vlm.render.placeholder(i)) for i in s.images)
    assert len(family_of(tmp_path / "checkpoint").placeholder(BLANK)) == 20  # of unknown size: the most
