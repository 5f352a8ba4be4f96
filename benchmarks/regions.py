"""What a region and its tiles are worth: tokens and milliseconds against accuracy, on small things in wide pictures.

    python benchmarks/regions.py ../shared/data/sorting [--train 480] [--test 240]

Each photograph of waste (TrashNet, MIT licence) is shrunk to 96 pixels and laid at a random place into a grey tote of
1024x768 pixels, in the middle of a picture of 2048x1536: the photographs are real, the totes are drawn. The question is
the material, one of six, asked in equal shares. Each way of showing the picture gives EfficientNet-Lite0 other pictures
of 448x448; a linear classifier on mean and maximum over all tokens of a frame answers. It stands for what the
features hold; no language model is trained. Milliseconds are processor time for cutting, resizing and encoding a frame
on one thread. The 95% interval of an accuracy is a bootstrap over the test photographs; each is one scene.

The script makes no claim. It writes benchmarks/out/regions.json.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image as Pil

from lineside.data.regions import cut
from lineside.data.taskfile import Roi
from lineside.files import write_atomic
from lineside.images import decode
from lineside.judgement import stats
from lineside.model.parts import load_tower
from lineside.progress import track

OUT = Path(__file__).parent / "out"
PICTURE, TOTE, THING = (2048, 1536), (512, 384, 1536, 1152), 96  # pixels
WAYS: dict[str, Roi | None] = {
    "whole picture": None,
    "region": Roi(box=TOTE),
    "region and 2x2 tiles": Roi(box=TOTE, tiles=(2, 2)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=480)
    parser.add_argument("--test", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    drawn = [*chosen(options.folder, "train", options.train), *chosen(options.folder, "test", options.test)]
    materials = np.array([material for _, material in drawn])
    fits = np.arange(len(drawn)) < options.train
    tower, processor = load_tower("efficientnet-lite0")
    features: dict[str, list[np.ndarray]] = defaultdict(list)
    spent: dict[str, list[float]] = defaultdict(list)
    tokens: dict[str, int] = {}
    for number, (photo, _) in enumerate(track(drawn, total=len(drawn), unit="photographs", label="regions")):
        picture = scene(options.folder / photo, np.random.default_rng((options.seed, number)))
        for way, roi in WAYS.items():
            start = time.process_time()
            pieces = [picture] if roi is None else cut(picture, roi, camera="")[0]
            shown = [decode(piece) for piece in pieces]
            pixels = processor(shown, return_tensors="pt")["pixel_values"]  # pyright: ignore[reportCallIssue]
            with torch.inference_mode():
                seen = tower(pixels).last_hidden_state.flatten(0, 1).numpy()  # (pieces x tokens, D)
            spent[way].append(1000 * (time.process_time() - start))
            tokens[way] = len(seen)
            features[way].append(np.concatenate([seen.mean(0), seen.max(0)]))
    rows = []
    for way in WAYS:
        right = answered(np.stack(features[way]), materials, fits)
        judged = stats.tabulate([str(place) for place in range(len(right))], ["all"] * len(right), right.tolist())
        low, high = stats.bootstrap(judged, seed=0).macro()
        row = {"way": way, "tokens": tokens[way], "ms": round(statistics.median(spent[way]), 1), "n": len(right)}
        rows.append(row | {"accuracy": round(float(right.mean()), 4), "interval": [round(low, 4), round(high, 4)]})
        print(
            f"{way:22} {tokens[way]:4} tokens {row['ms']:7.1f} ms  {right.mean():6.1%} ({low:.1%} to {high:.1%}) "
            f"of {len(right)}; blind {1 / len(set(materials)):.1%}"
        )
    found = {"seed": options.seed, "train": options.train, "rows": rows}
    write_atomic(OUT / "regions.json", json.dumps(found, indent=1))


def chosen(folder: Path, part: str, count: int) -> Iterator[tuple[str, str]]:
    """(photograph, material) of a part, the materials by turns."""
    by_material: dict[str, list[str]] = defaultdict(list)
    with open(folder / "pieces.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["part"] == part:
                by_material[row["material"]].append(row["photo"])
    each = count // len(by_material)
    for material, photos in sorted(by_material.items()):
        order = np.random.default_rng(0).permutation(len(photos))
        yield from ((photos[place], material) for place in order[:each])


def scene(photo: Path, rng: np.random.Generator) -> bytes:
    """A wide picture as JPEG: a tote with one small photograph somewhere in it."""
    noise = rng.normal(96, 6, (PICTURE[1] // 4, PICTURE[0] // 4)).clip(0, 255).astype(np.uint8)
    picture = Pil.fromarray(noise).resize(PICTURE).convert("RGB")
    picture.paste((150, 150, 150), TOTE)
    thing = Pil.open(photo).convert("RGB")
    thing.thumbnail((THING, THING))
    left, top, right, bottom = TOTE
    place = int(rng.integers(left, right - thing.width)), int(rng.integers(top, bottom - thing.height))
    picture.paste(thing, place)
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=92)
    return out.getvalue()


def answered(features: np.ndarray, materials: np.ndarray, fits: np.ndarray) -> np.ndarray:
    """For each test photograph whether the classifier is right; its decay is chosen on a fifth of the training."""
    names, classes = np.unique(materials, return_inverse=True)
    scaled = torch.tensor((features - features[fits].mean(0)) / (features[fits].std(0) + 1e-6), dtype=torch.float32)
    truth, tried = torch.tensor(classes), np.flatnonzero(fits)
    held = tried[::5]
    rest = np.setdiff1d(tried, held)

    def told(places: np.ndarray, decay: float) -> torch.Tensor:
        """The class of every photograph, by a multinomial logistic regression fitted at these places."""
        linear = torch.nn.Linear(scaled.shape[1], len(names))
        torch.nn.init.zeros_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
        optimizer = torch.optim.LBFGS(linear.parameters(), max_iter=200, line_search_fn="strong_wolfe")

        def loss() -> torch.Tensor:
            optimizer.zero_grad()
            found = torch.nn.functional.cross_entropy(linear(scaled[places]), truth[places])
            found = found + decay * linear.weight.square().sum()
            found.backward()
            return found

        optimizer.step(loss)  # pyright: ignore[reportArgumentType]
        return linear(scaled).argmax(1)

    decays = (1e-3, 1e-2, 1e-1, 1.0)
    best = max(decays, key=lambda decay: float((told(rest, decay)[held] == truth[held]).float().mean()))
    return (told(tried, best) == truth).numpy()[~fits]


if __name__ == "__main__":
    main()
