"""What runs a model, ours and others: pictures and a question in, greedy tokens and their distributions out."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from jinja2 import TemplateError
from PIL import Image as PILImage
from torch import Tensor

from lineside.errors import LinesideError
from lineside.exporting.runner import Pipeline
from lineside.model.tree import Node
from lineside.model.vlm import VLM
from lineside.types import Image


class PromptRefused(LinesideError):
    """The engine refuses a question rather than write other tokens than training."""


class Response(NamedTuple):
    """Token ids (the end token included, if it was reached), and the log-probabilities (T, V) that each was chosen
    from: -inf where the engine does not tell, and without the row of the end token where it does not tell that."""

    tokens: tuple[int, ...]
    logprobs: np.ndarray


class Engine(Protocol):
    """A model, loaded by the program that serves it."""

    name: str
    version: str

    def respond(
        self, pictures: Sequence[PILImage.Image], question: str, *, thinking: bool, max_new_tokens: int
    ) -> Response:
        """The greedy answer to a question about pictures."""
        ...

    def prompt(self, pictures: int, question: str, *, thinking: bool) -> list[int]:
        """The token ids that the engine makes of a question, the image tokens of its pictures among them. Raises
        PromptRefused."""
        ...


def shown_as(pictures: int) -> tuple[Image, ...]:
    """Pictures as the renderer takes them. In the family that is exported all take as many tokens."""
    return (Image(b""),) * pictures


def masked(logprobs: np.ndarray, image: int) -> np.ndarray:
    """Log-probabilities (T, V) without the image token, which is never an answer, normalised again."""
    logprobs[:, image] = -np.inf
    top = logprobs.max(axis=1, keepdims=True)
    return logprobs - top - np.log(np.exp(logprobs - top).sum(axis=1, keepdims=True))


class Ours:
    """The checkpoint in lineside itself, by the forward pass that trains and evaluates it."""

    name = "lineside"

    def __init__(self, vlm: VLM) -> None:
        self.vlm, self.version = vlm, importlib.metadata.version("lineside")

    @torch.no_grad()
    def respond(
        self, pictures: Sequence[PILImage.Image], question: str, *, thinking: bool, max_new_tokens: int
    ) -> Response:
        shown = shown_as(len(pictures))
        features = self.vlm.features(self.vlm.pixels(pictures)) if pictures else None
        prompt = self.prompt(len(pictures), question, thinking=thinking)
        tokens: list[int] = []
        rows: list[Tensor] = []
        while len(tokens) < max_new_tokens and (not tokens or tokens[-1] != self.vlm.render.eos_id):
            packed = self.vlm.pack([Node((*prompt, *tokens), images=tuple(range(len(shown))))])
            last = torch.tensor([len(prompt) + len(tokens) - 1])  # a pack may be padded behind it
            logits = self.vlm.lm.logits(self.vlm(packed, features, rows=last).hidden)
            rows.append(logits[0].double().log_softmax(-1))
            tokens.append(int(logits[0].argmax()))
        return Response(tuple(tokens), torch.stack(rows).numpy())

    def prompt(self, pictures: int, question: str, *, thinking: bool) -> list[int]:
        """Training's tokens."""
        return [*self.vlm.render.prefix(shown_as(pictures)), *self.vlm.render.question(question, thinking=thinking)]


class Exported:
    """An OpenVINO or ONNX export, run by the file that lies beside it."""

    def __init__(self, folder: Path, threads: int = 0) -> None:
        self.pipeline = Pipeline(folder, threads)
        self.name, package = {"openvino": ("OpenVINO", "openvino"), "onnx": ("ONNX Runtime", "onnxruntime")}[
            self.pipeline.facts["runtime"]
        ]
        self.version = importlib.metadata.version(package)

    def respond(
        self, pictures: Sequence[PILImage.Image], question: str, *, thinking: bool, max_new_tokens: int
    ) -> Response:
        answer = self.pipeline.answer(pictures, question, thinking=thinking, max_new_tokens=max_new_tokens)
        return Response(answer.tokens, answer.logprobs)

    def prompt(self, pictures: int, question: str, *, thinking: bool) -> list[int]:
        """The tokens that run.py makes."""
        try:
            return self.pipeline.prompt(question, pictures, thinking)
        except ValueError as error:
            raise PromptRefused(str(error)) from None


class Transformers:
    """A merged checkpoint in plain transformers: its own chat template, preprocessing and dense attention."""

    name = "transformers"

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer, LlavaForConditionalGeneration

        from lineside.model.checkpoint import load_image_processor

        kind: Any = LlavaForConditionalGeneration
        self.model = kind.from_pretrained(folder, dtype="auto", use_safetensors=True).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        self.processor: Any = load_image_processor(folder)
        self.version = importlib.metadata.version("transformers")

    @torch.no_grad()
    def respond(
        self, pictures: Sequence[PILImage.Image], question: str, *, thinking: bool, max_new_tokens: int
    ) -> Response:
        ids = self.prompt(len(pictures), question, thinking=thinking)
        given: dict[str, Any] = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids)).long()}
        if pictures:
            pixels = self.processor(images=list(pictures), return_tensors="pt")["pixel_values"]
            given["pixel_values"] = pixels.to(self.model.dtype)
        out = self.model.generate(
            **given,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            suppress_tokens=[self.model.config.image_token_index],
        )
        logits = torch.stack([row[0] for row in out.logits]).double().log_softmax(-1).numpy()
        tokens = out.sequences[0, len(ids) :].tolist()
        return Response(tuple(tokens), masked(logits, self.model.config.image_token_index))

    def prompt(self, pictures: int, question: str, *, thinking: bool) -> list[int]:
        """Token ids of the chat template's text, with as many image tokens as the model has for a picture."""
        parts = [{"type": "image"}] * pictures
        message = {"role": "user", "content": [*parts, {"type": "text", "text": question}]}
        try:
            text = self.tokenizer.apply_chat_template(
                [message], tokenize=False, add_generation_prompt=True, enable_thinking=thinking
            )
        except TemplateError as error:
            raise PromptRefused(str(error)) from None
        image = self.model.config.image_token_index
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        times = self.model.config.image_seq_length
        return [token for one in ids for token in ([one] * times if one == image else [one])]
