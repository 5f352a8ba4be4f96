"""llama.cpp, by the wheel `xllamacpp`: its server runs in a process of its own and is asked over HTTP on this machine.

A process of its own (llama_server.py), because llama.cpp ends the whole process on some bad files.
"""

from __future__ import annotations

import base64
import contextlib
import importlib.metadata
import io
import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage

from lineside.errors import LinesideError
from lineside.exporting import llama_server
from lineside.exporting.engines import PromptRefused, Response, shown_as
from lineside.exporting.gguf_files import PICTURES, TEXT
from lineside.model.vlm import VLM

WAIT = 600  # seconds for one reply
TOLD = 500  # log-probabilities told of each step; all of a large vocabulary are tens of megabytes an answer


class LlamaCpp:
    """A running server with an export's two files."""

    name = "llama.cpp"

    def __init__(self, address: str, vlm: VLM) -> None:
        self.address, self.image, self.eos = address, vlm.render.image_id, vlm.render.eos_id
        self.image_tokens = vlm.render.image_tokens(shown_as(1)[0])
        self.vocabulary = int(vlm.language_model.config.vocab_size)
        self.version = f"xllamacpp {importlib.metadata.version('xllamacpp')}"
        self.mark = str(self._get("/props").get("media_marker", "<__media__>"))

    def respond(
        self, pictures: Sequence[PILImage.Image], question: str, *, thinking: bool, max_new_tokens: int
    ) -> Response:
        """Greedy answer to the prompt that the export's own chat template writes. The pictures go in as they are."""
        text = self._text(len(pictures), question, thinking=thinking)
        body = {
            "prompt": {"prompt_string": text, "multimodal_data": [_png(picture) for picture in pictures]},
            "n_predict": max_new_tokens,
            "temperature": 0.0,
            "n_probs": min(self.vocabulary, TOLD),
            "logit_bias": [[self.image, False]],
            "cache_prompt": True,
            "return_tokens": True,
        }
        answer = self._post("/completion", body)
        steps = answer.get("completion_probabilities", [])
        rows = [self._row(step["top_logprobs"]) for step in steps]
        tokens = [step["id"] for step in steps]
        if answer.get("stop_type") == "eos" and self.eos not in tokens[-1:]:
            tokens.append(self.eos)  # llama.cpp does not list the end of an empty answer
        return Response(tuple(tokens), np.array(rows).reshape(len(rows), self.vocabulary))

    def _row(self, told: list[dict[str, Any]]) -> np.ndarray:
        """Log-probabilities (V,) without the image token, which is never an answer."""
        row = np.full(self.vocabulary, -np.inf)
        row[[one["id"] for one in told]] = [one["logprob"] for one in told]
        row -= np.log1p(-np.exp(row[self.image]))
        row[self.image] = -np.inf
        return row

    def prompt(self, pictures: int, question: str, *, thinking: bool) -> list[int]:
        """The tokens of the text that the export's own chat template writes."""
        pieces = self._text(pictures, question, thinking=thinking).split(self.mark)
        ids = [self._post("/tokenize", {"content": p, "parse_special": True})["tokens"] if p else [] for p in pieces]
        between = [self.image] * self.image_tokens
        return [token for number, piece in enumerate(ids) for token in [*(between if number else []), *piece]]

    def _text(self, pictures: int, question: str, *, thinking: bool) -> str:
        """The prompt's text, with a mark for each picture."""
        url = "data:image/png;base64," + _png(PILImage.new("RGB", (1, 1)))
        parts = [{"type": "image_url", "image_url": {"url": url}}] * pictures
        message = {"role": "user", "content": [*parts, {"type": "text", "text": question}]}
        body = {"messages": [message], "chat_template_kwargs": {"enable_thinking": thinking}}
        try:
            return str(self._post("/apply-template", body)["prompt"])
        except LinesideError as error:
            raise PromptRefused(str(error)) from None

    def _get(self, path: str) -> dict[str, Any]:
        return _reply(urllib.request.Request(self.address + path))

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        data, kind = json.dumps(body).encode(), {"content-type": "application/json"}
        return _reply(urllib.request.Request(self.address + path, data, kind))


def _reply(request: urllib.request.Request) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(request, timeout=WAIT) as reply:
            return json.load(reply)
    except urllib.error.HTTPError as error:
        raise LinesideError(
            f"llama.cpp refuses {request.selector}: {error.read().decode(errors='replace')[:300]}"
        ) from None
    except OSError as error:
        raise LinesideError(f"llama.cpp ended while it was asked ({error}): it cannot use the files") from None


def _png(picture: PILImage.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@contextlib.contextmanager
def running(vlm: VLM, folder: Path) -> Iterator[LlamaCpp]:
    """A server with the export in `folder`, ended at the end. Raises LinesideError if llama.cpp cannot load it."""
    files = map(str, (folder / TEXT, folder / PICTURES))
    command = [sys.executable, "-m", llama_server.__name__, *files, str(vlm.context)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None
            address = next((line for line in process.stdout if line.startswith("http")), "")
            if not address:
                raise LinesideError(f"llama.cpp cannot load the files in {folder} (exit status {process.wait()})")
            yield LlamaCpp(address.strip(), vlm)
        finally:
            process.kill()
