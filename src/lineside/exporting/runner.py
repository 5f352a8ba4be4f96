"""Asks an exported model: python run.py PICTURE QUESTION [--fast]

This file lies beside an OpenVINO or ONNX export as run.py. It needs numpy, pillow, tokenizers, and openvino or
onnxruntime; no torch and no lineside. `lineside export` checks the export with this very file. Import `Pipeline` to use
it in a program of your own.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

FILE = "pipeline.json"


class Answer(NamedTuple):
    """Token ids (the end token included, if it was reached), and for each the log-probabilities (V,) it was chosen
    from."""

    tokens: tuple[int, ...]
    logprobs: np.ndarray
    finished: bool


class Pipeline:
    """An exported model: pictures and a question in, greedy tokens out."""

    def __init__(self, folder: Path, threads: int = 0) -> None:
        self.facts: dict[str, Any] = json.loads((folder / FILE).read_text(encoding="utf-8"))
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        kind = OpenVino if self.facts["runtime"] == "openvino" else Onnx
        self.runtime: OpenVino | Onnx = kind(folder, self.facts, threads)
        self._seen: tuple[list[bytes], np.ndarray] | None = None  # pictures of the last question, and their embeddings

    def prompt(self, question: str, pictures: int, thinking: bool) -> list[int]:
        """Token ids as in training, segment by segment. Raises ValueError for an empty question, or for one with a
        control token in its text."""
        facts = self.facts["prompt"]
        ids = self.tokenizer.encode(question, add_special_tokens=False).ids
        if not question.strip() or not set(facts["control"]).isdisjoint(ids):
            raise ValueError("the question is empty, or holds a control token of the tokenizer such as <image>")
        images = [facts["image"]] * (facts["image_tokens"] * pictures)
        return [*facts["open"], *images, *ids, *facts["close"], *([] if thinking else facts["think"])]

    def pixels(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """Pictures -> (B, 3, S, S) float32, resized, cropped and normalised as in training."""
        facts = self.facts["picture"]
        mean, std = (np.array(facts[key], np.float32) for key in ("mean", "std"))
        stacked = np.stack([np.asarray(resized(picture.convert("RGB"), facts)) for picture in pictures])
        return ((stacked.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)

    def answer(
        self, pictures: Sequence[Image.Image], question: str, *, thinking: bool = True, max_new_tokens: int = 96
    ) -> Answer:
        """The model's greedy answer. Raises ValueError as `prompt` does, and for a question that is too long."""
        facts = self.facts["prompt"]
        ids = self.prompt(question, len(pictures), thinking)
        if len(ids) + max_new_tokens > facts["context"]:
            raise ValueError(f"{len(ids)} tokens and {max_new_tokens} new ones do not fit in {facts['context']}")
        embeds = self.runtime.embed(np.array([ids], np.int64)).copy()
        if pictures:
            slots = np.flatnonzero(np.array(ids) == facts["image"])
            embeds[0, slots] = self._embedded(pictures)
        self.runtime.reset()
        tokens: list[int] = []
        rows: list[np.ndarray] = []
        done = 0
        while len(tokens) < max_new_tokens and (not tokens or tokens[-1] != facts["eos"]):
            if tokens:
                embeds = self.runtime.embed(np.array([tokens[-1:]], np.int64))
            new = embeds.shape[1]
            logits = self.runtime.step(embeds, np.arange(done, done + new)[None])
            done += new
            rows.append(log_softmax(logits, facts["image"]))
            tokens.append(int(rows[-1].argmax()))
        return Answer(tuple(tokens), np.stack(rows), tokens[-1] == facts["eos"])

    def _embedded(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """(tokens, D). Questions that follow about the same pictures do not encode them again."""
        key = [picture.tobytes() for picture in pictures]
        if self._seen is None or self._seen[0] != key:
            embedded = self.runtime.see(self.pixels(pictures))
            self._seen = key, embedded.reshape(-1, embedded.shape[-1]).copy()
        return self._seen[1]

    def text(self, tokens: Sequence[int]) -> str:
        """Text of an answer: `<think>trace</think>answer` with thinking on."""
        return self.tokenizer.decode([t for t in tokens if t != self.facts["prompt"]["eos"]])


def resized(picture: Image.Image, facts: dict[str, Any]) -> Image.Image:
    """RGB picture -> RGB picture of (S, S)."""
    if facts["shortest_edge"]:
        scale = facts["shortest_edge"] / min(picture.size)
        target = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    else:
        target = facts["width"], facts["height"]
    if picture.size != target:
        picture = picture.resize(target, Image.Resampling(facts["resample"]))
    if picture.size == (facts["width"], facts["height"]):
        return picture
    left, top = (picture.width - facts["width"]) // 2, (picture.height - facts["height"]) // 2
    return picture.crop((left, top, left + facts["width"], top + facts["height"]))


def log_softmax(logits: np.ndarray, banned: int) -> np.ndarray:
    """Logits (V,) -> log-probabilities (V,), without the image token, which is never an answer."""
    logits = logits.astype(np.float64)
    logits[banned] = -np.inf
    top = logits.max()
    return logits - top - np.log(np.exp(logits - top).sum())


class OpenVino:
    """The three graphs in OpenVINO. The keys and values are the decoder's state."""

    def __init__(self, folder: Path, facts: dict[str, Any], threads: int) -> None:
        sys.modules.setdefault("openvino_telemetry", None)  # pyright: ignore[reportArgumentType] # it tells nobody
        import openvino  # pyright: ignore[reportMissingImports]

        core, more = openvino.Core(), {"INFERENCE_NUM_THREADS": threads} if threads else {}
        models = [
            core.compile_model(folder / name, "CPU", facts["settings"] | more)
            for name in (facts["files"][part] for part in ("vision", "embedding", "decoder"))
        ]
        self.vision, self.table, self.decoder = (model.create_infer_request() for model in models)
        self.length = 0

    def see(self, pixels: np.ndarray) -> np.ndarray:
        return self.vision.infer([pixels])[0]

    def embed(self, ids: np.ndarray) -> np.ndarray:
        return self.table.infer([ids])[0]

    def reset(self) -> None:
        self.decoder.reset_state()
        self.length = 0

    def step(self, embeds: np.ndarray, positions: np.ndarray) -> np.ndarray:
        self.length += embeds.shape[1]
        out = self.decoder.infer(
            {
                "inputs_embeds": embeds,
                "attention_mask": np.ones((1, self.length), np.int64),
                "position_ids": positions.astype(np.int64),
                "beam_idx": np.zeros(1, np.int32),
            }
        )
        return out[0][0, -1].copy()


class Onnx:
    """The three graphs in ONNX Runtime. Keys and values go in and come out of each step."""

    def __init__(self, folder: Path, facts: dict[str, Any], threads: int) -> None:
        import onnxruntime  # pyright: ignore[reportMissingImports]

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        self.vision, self.table, self.decoder = (
            onnxruntime.InferenceSession(folder / facts["files"][part], options, ["CPUExecutionProvider"])
            for part in ("vision", "embedding", "decoder")
        )
        past = [i for i in self.decoder.get_inputs() if i.name.startswith("past_key_values.")]
        self.empty = {i.name: np.zeros((1, i.shape[1], 0, i.shape[3]), np.float32) for i in past}
        self.past = self.empty

    def see(self, pixels: np.ndarray) -> np.ndarray:
        return np.asarray(self.vision.run(None, {"pixel_values": pixels})[0])

    def embed(self, ids: np.ndarray) -> np.ndarray:
        return np.asarray(self.table.run(None, {"input_ids": ids})[0])

    def reset(self) -> None:
        self.past = self.empty

    def step(self, embeds: np.ndarray, positions: np.ndarray) -> np.ndarray:
        length = next(iter(self.past.values())).shape[2] + embeds.shape[1]
        logits, *present = self.decoder.run(
            None,
            {
                "inputs_embeds": embeds,
                "attention_mask": np.ones((1, length), np.int64),
                "position_ids": positions.astype(np.int64),
                **self.past,
            },
        )
        self.past = dict(zip(self.past, map(np.asarray, present)))
        return np.asarray(logits)[0, -1]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("picture", type=Path)
    parser.add_argument("question")
    parser.add_argument("--fast", action="store_true", help="answer at once, without a trace")
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--threads", type=int, default=0, help="0: as many as the machine has")
    arguments = parser.parse_args()
    try:
        with Image.open(arguments.picture) as picture:
            picture.load()
        pipeline = Pipeline(Path(__file__).parent, arguments.threads)
        answer = pipeline.answer(
            [picture], arguments.question, thinking=not arguments.fast, max_new_tokens=arguments.max_new_tokens
        )
    except (OSError, ValueError) as error:
        sys.exit(f"{arguments.picture}: {error}")
    print(pipeline.text(answer.tokens) + ("" if answer.finished else "\n(cut off)"))


if __name__ == "__main__":
    main()
