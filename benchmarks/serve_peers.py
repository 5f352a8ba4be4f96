"""The servers that serve.py compares: ours, and others with the same checkpoint. Each runs in a process of its own.

As a module it is such a process: python serve_peers.py transformers|llama.cpp FOLDER [MMPROJ].
"""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lineside.model.checkpoint import dtype_of
from lineside.model.config import saved_dtype
from lineside.runtime import dtype_name

HERE = Path(__file__).parent
VLLM = Path(os.environ.get("LINESIDE_VLLM", HERE / "out" / "vllm" / "bin" / "python"))
GENAI = Path(os.environ.get("LINESIDE_GENAI", HERE / "out" / "genai" / "bin" / "python"))
LLAMA_SERVER = os.environ.get("LINESIDE_LLAMA_SERVER", "llama-server")  # of a build with this machine's own kernels
SLOTS = 8  # of llama.cpp, and tokens of each
CONTEXT = 1024
MODEL = "served"
WAIT = 900  # seconds until a server must answer


@dataclass(frozen=True)
class Running:
    """A server that answers. `together`: it takes all questions about a frame in one request."""

    name: str
    address: str
    process: subprocess.Popen[str]
    together: str = ""  # the path for that; "": it has none

    def memory_mb(self) -> float:
        """Memory of its processes; pages that several share count once (PSS)."""
        return sum(map(_pss_kb, _tree(self.process.pid))) / 1024


@dataclass(frozen=True)
class Peer:
    """A server that can be started. `lacks`: why it cannot, or ""."""

    name: str
    command: Callable[[Path], list[str]]
    int8: bool
    lacks: Callable[[], str] = lambda: ""
    together: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    prints: bool = True  # it prints its address; else it listens on `port`
    port: int = 0

    @contextmanager
    def running(self, model: Path) -> Iterator[Running]:
        """The server of a checkpoint, ended at the end. Raises RuntimeError if it does not start."""
        log = HERE / "out" / f"serve-{self.name.replace(' ', '-')}.log"
        with log.open("w") as errors:
            process = subprocess.Popen(
                self.command(model),
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, **self.environment},
                start_new_session=True,
            )
            try:
                address = _printed(process) if self.prints else _answering(process, self.port)
                if not address:
                    said = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
                    late = not self.prints and process.poll() is None
                    why = f"no answer in {WAIT} seconds" if late else said[-1]
                    raise RuntimeError(f"it did not start: {why} ({log})")
                if process.stdout is not None:
                    threading.Thread(target=process.stdout.read, daemon=True).start()
                yield Running(self.name, address.rstrip("/"), process, self.together)
            finally:
                _end(process)


def _printed(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return next((line.strip() for line in process.stdout if line.startswith("http")), "")


def _answering(process: subprocess.Popen[str], port: int) -> str:
    address, end = f"http://127.0.0.1:{port}", time.monotonic() + WAIT
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/v1/models", timeout=5):
                return address
        except OSError:
            time.sleep(1)
    return ""


def _end(process: subprocess.Popen[str]) -> None:
    """End a server and what it has started (a session of its own), by its id."""
    for number, seconds in ((signal.SIGTERM, 20), (signal.SIGKILL, 20)):
        try:
            os.killpg(process.pid, number)
            process.wait(seconds)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def _tree(pid: int) -> list[int]:
    """A process and those below it."""
    try:
        below = (Path("/proc") / str(pid) / "task" / str(pid) / "children").read_text().split()
    except OSError:
        return []
    return [pid, *(one for child in below for one in _tree(int(child)))]


def _pss_kb(pid: int) -> int:
    try:
        lines = (Path("/proc") / str(pid) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


# --- the servers


def ours(engine: str, weights: str) -> Callable[[Path], list[str]]:
    """`lineside serve`."""
    return lambda model: [
        sys.executable, "-c", "from lineside.cli import main; main()", "serve", f"{MODEL}={model}", "--port", "0",
        "--engine", engine, "--weights", weights, "--unjudged",
    ]  # fmt: skip


def export(model: Path, to: str, weights: str) -> Path:
    """An export of the checkpoint, written at first use."""
    folder = model.parent / "export" / f"{to}-{weights}"
    if not (folder / "export.json").exists():
        command = [sys.executable, "-c", "from lineside.cli import main; main()", "export", str(model), "--to", to]
        subprocess.run([*command, "--weights", weights], check=True, stdout=subprocess.DEVNULL)
    return folder


def _openvino(model: Path) -> list[str]:
    export(model, "openvino", "int8")
    return ours("openvino", "int8")(model)


def _here(kind: str, *rest: str) -> list[str]:
    return [sys.executable, str(Path(__file__)), kind, *rest]


def _llama_cpp(weights: str, model: Path) -> list[str]:
    folder = export(model, "gguf", weights if weights != "full" else dtype_name(dtype_of(model)))
    return _here("llama.cpp", str(folder / "model.gguf"), str(folder / "mmproj.gguf"))


def _llama_server(model: Path) -> list[str]:
    folder = export(model, "gguf", "q8_0")
    files = ["--model", str(folder / "model.gguf"), "--mmproj", str(folder / "mmproj.gguf"), "--jinja"]
    slots = ["--parallel", str(SLOTS), "--ctx-size", str(SLOTS * CONTEXT), "--threads", str(_cores())]
    return [LLAMA_SERVER, *files, *slots, "--host", "127.0.0.1", "--port", "8732"]


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _vllm(model: Path) -> list[str]:
    serve = [str(VLLM), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name", MODEL]
    serve += ["--port", "8731", "--max-model-len", str(CONTEXT), "--max-num-seqs", "16"]
    serve += ["--dtype", saved_dtype(model)]
    return [*serve, "--kv-cache-memory-bytes", str(1 << 30)]  # enough for them; by default most of the machine's memory


def _genai(model: Path) -> list[str]:
    return [str(GENAI), str(HERE / "genai_side.py"), str(model), str(export(model, "openvino", "int8"))]


def _missing(package: str) -> str:
    return "" if find_spec(package) else f"{package} is not installed"


PEERS = (
    Peer("ours, local full", ours("local", "full"), int8=False, together="/v1/frames/questions"),
    Peer("ours, local int8", ours("local", "int8"), int8=True, together="/v1/frames/questions"),
    Peer("ours, openvino int8", _openvino, int8=True, together="/v1/frames/questions",
         lacks=partial(_missing, "openvino")),
    Peer("transformers", lambda model: _here("transformers", str(model)), int8=False, together="/batch"),
    Peer("llama.cpp Q8_0", partial(_llama_cpp, "q8_0"), int8=True, lacks=partial(_missing, "xllamacpp")),
    Peer("llama.cpp full", partial(_llama_cpp, "full"), int8=False, lacks=partial(_missing, "xllamacpp")),
    Peer(
        "llama.cpp of its own build, Q8_0", _llama_server, int8=True, prints=False, port=8732,
        lacks=lambda: "" if shutil.which(LLAMA_SERVER) else f"there is no {LLAMA_SERVER}: build llama.cpp, and name its"
        " server in LINESIDE_LLAMA_SERVER",
    ),
    Peer(
        "vLLM", _vllm, int8=False, prints=False, port=8731,
        lacks=lambda: "" if VLLM.exists() else f"there is no environment at {VLLM}, see vllm_speed.py",
        environment={"PYTHONPATH": str(HERE / "vllm_site"), "VLLM_CPU_OMP_THREADS_BIND": "nobind"},
    ),
    Peer(
        "OpenVINO GenAI", _genai, int8=True,
        lacks=lambda: "" if GENAI.exists() else f"there is no environment at {GENAI}, see genai_side.py",
    ),
)  # fmt: skip


# --- transformers behind HTTP, and llama.cpp with its own server


class Transformers:
    """transformers' generate, in the checkpoint's number format: one request after another, or all questions about a
    frame as one batch."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoProcessor, LlavaForConditionalGeneration

        kind: Any = LlavaForConditionalGeneration
        self.model = kind.from_pretrained(folder, dtype="auto").eval()
        self.processor: Any = AutoProcessor.from_pretrained(folder)
        self.processor.tokenizer.padding_side = "left"

    def answer(self, urls: list[str], questions: list[str], thinking: bool, most: int) -> list[int]:
        """The number of tokens of each answer."""
        import torch
        from PIL import Image

        with torch.inference_mode():
            frames = [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB") for url in urls]
            texts = [
                self.processor.apply_chat_template(
                    [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}],
                    add_generation_prompt=True, enable_thinking=thinking,
                )
                for question in questions
            ]  # fmt: skip
            given = self.processor(
                images=frames, text=texts, padding=True, return_tensors="pt", add_special_tokens=False
            )
            given["pixel_values"] = given["pixel_values"].to(self.model.dtype)
            found = self.model.generate(**given, max_new_tokens=most, do_sample=False)
        eos = self.model.generation_config.eos_token_id or self.processor.tokenizer.eos_token_id
        rows = found[:, given["input_ids"].shape[1] :].tolist()
        ends = set(eos if isinstance(eos, list) else [eos])
        return [next((n for n, token in enumerate(row, 1) if token in ends), len(row)) for row in rows]


def serve_transformers(folder: Path) -> None:
    """Chat completions, and /batch: the questions of one frame."""
    model, alone = Transformers(folder), threading.Lock()

    def answer(path: str, body: dict[str, Any]) -> int:
        if path == "/batch":
            questions, url = [one["question"] for one in body["questions"]], body["image"]
            thinking = body["questions"][0]["thinking"]
        else:
            picture, text = body["messages"][0]["content"]
            questions, url = [text["text"]], picture["image_url"]["url"]
            thinking = body["chat_template_kwargs"]["enable_thinking"]
        with alone:
            return sum(model.answer([url] * len(questions), questions, thinking, body["max_tokens"]))

    listen(answer)


def listen(answer: Callable[[str, dict[str, Any]], int]) -> None:
    """Print an address, and reply to what is posted there: `answer` gives the tokens written for a path and a body."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            written = answer(self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            reply = json.dumps({"usage": {"completion_tokens": written}}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


def serve_llama_cpp(model: str, mmproj: str) -> None:
    """llama-server with eight slots, in its own number formats of keys and values."""
    import importlib

    xllamacpp: Any = importlib.import_module("xllamacpp")
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.mmproj.path = model, mmproj
    settings.n_ctx, settings.n_parallel, settings.use_jinja, settings.verbosity = SLOTS * CONTEXT, SLOTS, True, 0
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = _cores()
    server = xllamacpp.Server(settings)
    print(server.listening_address, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    if sys.argv[1] == "transformers":
        serve_transformers(Path(sys.argv[2]))
    else:
        serve_llama_cpp(*sys.argv[2:])
