"""OpenVINO GenAI behind HTTP, for serve.py: python genai_side.py CHECKPOINT EXPORT

The Python of GenAI's own environment runs it; it imports nothing of lineside. The environment is made once:

    python3 -m venv benchmarks/out/genai
    benchmarks/out/genai/bin/pip install openvino-genai==2026.4.1 transformers jinja2 pillow

(LINESIDE_GENAI names another Python.) EXPORT is what `lineside export --to openvino` wrote of the checkpoint. GenAI
wants the tokenizer as a graph beside it, and the picture's size as CLIP states it: it does not read SigLIP's height and
width. It cannot apply our chat template, so prompts are made of what the template writes around a question. Behind the
picture it puts a line end, so its prompt is longer than training's. Requests are batched by its own
ContinuousBatchingPipeline, in its own number formats of keys and values. It has a process of its own, since it holds
the interpreter's lock during a step.
"""

from __future__ import annotations

import base64
import io
import json
import multiprocessing
import os
import sys
import threading
from concurrent.futures import Future
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from serve_peers import listen

CACHE_GB = 1
PROMPTS, QUESTION = "prompts.json", "QUESTION"


def genai_folder(checkpoint: Path, export: Path) -> Path:
    """The folder that GenAI loads, made at first use: links to the graphs, and what else it wants."""
    import openvino  # pyright: ignore[reportMissingImports]
    from openvino_tokenizers import convert_tokenizer  # pyright: ignore[reportMissingImports]
    from transformers import AutoTokenizer

    folder = export.with_name(f"genai-{export.name}")
    if (folder / PROMPTS).exists():
        return folder
    folder.mkdir(exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    graphs = [path for path in export.iterdir() if path.suffix in (".xml", ".bin")]
    for path in (*graphs, checkpoint / "config.json", checkpoint / "generation_config.json"):
        (folder / path.name).unlink(missing_ok=True)
        (folder / path.name).symlink_to(path.absolute())
    names = "openvino_tokenizer.xml", "openvino_detokenizer.xml"
    for graph, name in zip(convert_tokenizer(tokenizer, with_detokenizer=True), names):
        openvino.save_model(graph, folder / name)
    picture = json.loads((checkpoint / "processor_config.json").read_text())["image_processor"]
    size = picture["size"]
    clip = {"size": {"shortest_edge": size["height"]}, "crop_size": size, "image_processor_type": "CLIPImageProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps({**picture, **clip}))
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    prompts = [
        tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False, enable_thinking=thinking)
        for thinking in (False, True)
    ]
    (folder / PROMPTS).write_text(json.dumps(prompts))
    return folder


def answer_all(folder: Path, pipe: Connection) -> None:
    """Answer what comes through the pipe: (number, prompt, pixels, most tokens) in, (number, tokens) out."""
    import openvino  # pyright: ignore[reportMissingImports]
    import openvino_genai as genai  # pyright: ignore[reportMissingImports]

    scheduling = genai.SchedulerConfig()
    scheduling.cache_size = CACHE_GB
    pipeline, running = genai.ContinuousBatchingPipeline(folder, scheduling, "CPU"), dict[int, Any]()
    pipe.send("ready")
    while True:
        while pipe.poll(0 if running else None):
            number, prompt, pixels, most = pipe.recv()
            settings = pipeline.get_config()
            settings.max_new_tokens, settings.do_sample, settings.apply_chat_template = most, False, False
            running[number] = pipeline.add_request(number, prompt, [openvino.Tensor(pixels)], settings)
        pipeline.step()
        for number, handle in list(running.items()):
            if handle.get_status() != genai.GenerationStatus.RUNNING:
                pipe.send((number, running.pop(number).read_all()[0].generated_ids))


class Asking:
    """Sends requests of many threads through the pipe."""

    def __init__(self, pipe: Connection, prompts: list[str]) -> None:
        self.pipe, self.prompts = pipe, prompts  # with thinking off and on
        self.numbers, self.waiting, self.alone = count(), dict[int, Future[list[int]]](), threading.Lock()
        threading.Thread(target=self._receive, daemon=True).start()

    def _receive(self) -> None:
        try:
            while True:
                number, tokens = self.pipe.recv()
                self.waiting.pop(number).set_result(tokens)
        except EOFError:  # the pipeline has died, and has said why
            os._exit(1)

    def answer(self, body: dict[str, Any]) -> int:
        """The number of tokens of a chat completion."""
        picture, question = body["messages"][0]["content"]
        image = Image.open(io.BytesIO(base64.b64decode(picture["image_url"]["url"].partition(",")[2]))).convert("RGB")
        prompt = self.prompts[body["chat_template_kwargs"]["enable_thinking"]].replace(QUESTION, question["text"])
        number, answered = next(self.numbers), Future[list[int]]()
        self.waiting[number] = answered
        with self.alone:
            self.pipe.send((number, prompt, np.asarray(image)[None], body["max_tokens"]))
        return len(answered.result())


def main() -> None:
    folder, processes = genai_folder(Path(sys.argv[1]), Path(sys.argv[2])), multiprocessing.get_context("spawn")
    pipe, theirs = processes.Pipe()
    processes.Process(target=answer_all, args=(folder, theirs), daemon=True).start()
    theirs.close()
    try:
        pipe.recv()
    except EOFError:  # it has said why
        sys.exit(1)
    asking = Asking(pipe, json.loads((folder / PROMPTS).read_text()))
    listen(lambda _, body: asking.answer(body))


if __name__ == "__main__":
    main()
