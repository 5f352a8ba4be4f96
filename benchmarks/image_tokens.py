"""What more or fewer tokens of a picture are worth, on real photographs: accuracy against the time to encode and read.

    python benchmarks/image_tokens.py runs/grocery [--tiled-train 0] [--tiled-test 0] [--seeds 1]

RUN is a run of the recipe grocery (Grocery Store Dataset, MIT licence; arXiv 1901.00711). The question is which product
a photograph shows. EfficientNet-Lite0 gives 7x7 tokens of it. Fewer tokens are means over parts of that grid. With
--tiled-train and --tiled-test the run is another one: the whole alone against the whole and 2x2 tiles of it, on so many
photographs of each product for training and for the test. A small reader, which attends to all tokens with four learned
queries, is trained on each way alike and answers: it stands for what the tokens hold, and no language model is trained.

Encoding is processor time from a photograph's bytes to its tokens, the median of 20. Reading is that of a language
model of the shape of SmolLM2-135M, with random weights, for the picture's tokens and a question of 20, in bf16 where
that is faster than float32, the median of five. Both are on one thread. 95% intervals are by test photograph, each with
its mean over the seeds.

Run it again to continue: features are those of the run's store, which also keeps the tiles. The script makes no claim.
It writes benchmarks/out/image_tokens.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from lineside.data.regions import cut
from lineside.data.store import read_samples
from lineside.data.taskfile import Roi
from lineside.files import write_atomic
from lineside.images import decode
from lineside.judgement import stats
from lineside.model.checkpoint import load
from lineside.model.efficientnet import GRID
from lineside.model.features import FeatureStore
from lineside.progress import track
from lineside.runtime import CPU, compute_dtype
from lineside.types import Image

OUT = Path(__file__).parent / "out"
TILES = Roi(tiles=(2, 2))
KEPT = 256  # numbers of a token that are kept, by a random projection
QUESTION = 20
SIDES = (1, 2, 4, GRID)  # of the grid of tokens
Photo = tuple[Image, str]  # with its product


class Reader(nn.Module):
    """Tokens (B, P, D) -> logits (B, C), by attention of learned queries over tokens with learned places."""

    def __init__(self, tokens: int, classes: int, inner: int = 96, queries: int = 4) -> None:
        super().__init__()
        self.into, self.place = nn.Linear(KEPT, inner), nn.Parameter(torch.zeros(tokens, inner))
        self.queries = nn.Parameter(torch.randn(queries, inner) / inner**0.5)
        self.keys, self.dropout = nn.Linear(inner, inner), nn.Dropout(0.5)
        self.out = nn.Linear(queries * inner, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.gelu(self.into(self.dropout(x)) + self.place)
        weight = (self.queries @ self.keys(x).transpose(1, 2)).softmax(-1)  # (B, Q, P)
        return self.out(self.dropout((weight @ x).flatten(1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--tiled-train", type=int, default=0, help="photographs of a product with tiles, for training")
    parser.add_argument("--tiled-test", type=int, default=0, help="photographs of a product with tiles, for the test")
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    vlm = load(options.run / "parts" / "checkpoint")
    store = FeatureStore(options.run.parent / "features", vlm)
    trained, asked = (photos(options.run / "samples", split) for split in ("train", "heldout"))
    products = sorted({product for _, product in trained})
    tiles = bool(options.tiled_train and options.tiled_test)
    if tiles:
        trained, asked = few_of(trained, options.tiled_train), few_of(asked, options.tiled_test)
    both = [photo for photo in (*trained, *asked) if photo[1] in products]
    fits = torch.arange(len(both)) < len(trained)
    truth = torch.tensor([products.index(product) for _, product in both])
    shown = [image for image, _ in both]
    whole = tokens_of(store, [[image] for image in shown], "whole")
    ways = {f"{side}x{side}": (pooled(whole, side), False) for side in ((GRID,) if tiles else SIDES)}
    if tiles:
        cuts = tokens_of(store, [tiles_of(image) for image in shown], "tiles")
        ways["7x7 and 2x2 tiles"] = torch.cat([whole, cuts], 1), True
    rows: list[dict[str, object]] = []
    right: list[np.ndarray] = []
    for way, (x, cut_too) in ways.items():
        right.append(np.mean([answered(x, truth, fits, seed) for seed in range(options.seeds)], axis=0))
        rows.append(told(way, right[-1], x.shape[1], int(fits.sum()), encoding(store, shown[-21:], cut_too)))
    found: dict[str, object] = {"products": len(products), "seeds": options.seeds, "rows": rows}
    if tiles:
        first, second = (one.tolist() for one in right)
        less = stats.paired([*map(str, range(len(first)))], ["all"] * len(first), first, second, seed=0).difference()
        low, high = less.interval
        print(f"tiles less 7x7: {100 * less.difference:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})")
        found["tiles_less_whole"] = [round(less.difference, 4), round(low, 4), round(high, 4)]
    write_atomic(OUT / "image_tokens.json", json.dumps(found, indent=1))


def photos(samples: Path, split: str) -> list[Photo]:
    """Each photograph of a split, with its product."""
    found = {sample.images[0].path: sample for sample in read_samples(samples, kind="caption", split=split)}
    return [(sample.images[0], sample.meta.skus[0]) for _, sample in sorted(found.items())]


def few_of(photos: Sequence[Photo], each: int) -> list[Photo]:
    """The first photographs of each product."""
    seen: Counter[str] = Counter()
    kept = []
    for image, product in photos:
        seen[product] += 1
        kept += [(image, product)] if seen[product] <= each else []
    return kept


def tiles_of(image: Image) -> list[Image]:
    """The four tiles of a photograph."""
    return [replace(image, bytes=data) for data in cut(image.bytes, TILES, camera="")[0][1:]]


def tokens_of(store: FeatureStore, shown: Sequence[Sequence[Image]], label: str) -> Tensor:
    """(N, pictures x 49, KEPT) the tokens of the pictures of each photograph."""
    mix = torch.randn(store.vlm.family.width, KEPT, generator=torch.Generator().manual_seed(0))
    mix /= store.vlm.family.width**0.5
    rows = track(shown, total=len(shown), unit="photographs", label=label)
    return torch.stack([(torch.cat(store.get(images)).float() @ mix).half() for images in rows])


def pooled(tokens_NPD: Tensor, side: int) -> Tensor:
    """Tokens of a 7x7 grid as means over `side` x `side` parts of it."""
    if side == GRID:
        return tokens_NPD
    grid = tokens_NPD.float().unflatten(1, (GRID, GRID)).permute(0, 3, 1, 2)
    return nn.functional.adaptive_avg_pool2d(grid, side).flatten(2).transpose(1, 2).half()


def told(way: str, right: np.ndarray, tokens: int, train: int, encode: float) -> dict[str, object]:
    """The row of one way. `right`: for each test photograph the share of readers that are right."""
    table = stats.tabulate([str(place) for place in range(len(right))], ["all"] * len(right), right.tolist())
    low, high = stats.bootstrap(table, seed=0).macro()
    read = reading(tokens)
    print(
        f"{way:24} {tokens:4} tokens, encode {encode:6.1f} ms, read {read:7.1f} ms  {right.mean():6.1%} "
        f"({low:.1%} to {high:.1%}) of {len(right)}, trained on {train}", flush=True
    )  # fmt: skip
    times = {"encode_ms": round(encode, 1), "read_ms": round(read, 1)}
    sure = {"accuracy": round(float(right.mean()), 4), "interval": [round(low, 4), round(high, 4)]}
    return {"way": way, "tokens": tokens, **times, "train": train, "n": len(right), **sure}


def answered(x: Tensor, truth: Tensor, fits: Tensor, seed: int, steps: int = 1000, batch: int = 64) -> np.ndarray:
    """For each test photograph whether the reader is right."""
    torch.manual_seed(seed)
    mean, std = x[fits].float().mean((0, 1)), x[fits].float().std((0, 1)) + 1e-6
    reader = Reader(x.shape[1], int(truth.max()) + 1)
    optimizer = torch.optim.AdamW(reader.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    places = fits.nonzero().flatten()
    for _ in range(steps):
        some = places[torch.randint(len(places), (batch,))]
        loss = nn.functional.cross_entropy(reader((x[some].float() - mean) / std), truth[some])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    reader.eval()
    with torch.inference_mode():
        said = torch.cat([reader((part.float() - mean) / std).argmax(1) for part in x[~fits].split(batch)])
    return (said == truth[~fits]).numpy()


def encoding(store: FeatureStore, shown: Sequence[Image], cut_too: bool) -> float:
    """Milliseconds of processor time to cut, resize and encode a photograph, the median of all but the first."""
    times = []
    for image in shown:
        start = time.process_time()
        pictures = [image, *tiles_of(image)] if cut_too else [image]
        store.vlm.features(store.vlm.pixels([decode(picture.bytes) for picture in pictures]))
        times.append(1000 * (time.process_time() - start))
    return statistics.median(times[1:])


def reading(tokens: int) -> float:
    """Milliseconds of processor time in which the language model reads a picture's tokens and a question, the median of
    five."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16, num_attention_heads=9, num_key_value_heads=3, hidden_size=576, intermediate_size=1536,
        num_hidden_layers=30,
    )  # fmt: skip
    dtype = compute_dtype("auto", CPU)
    model, times = LlamaModel(config).to(dtype).eval(), []  # pyright: ignore[reportArgumentType]
    given = torch.randn(1, tokens + QUESTION, 576, dtype=dtype)
    for _ in range(6):
        start = time.process_time()
        with torch.inference_mode():
            model(inputs_embeds=given)
        times.append(1000 * (time.process_time() - start))
    return statistics.median(times[1:])


if __name__ == "__main__":
    main()
