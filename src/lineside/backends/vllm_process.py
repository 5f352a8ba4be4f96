"""vLLM in a process of its own, by the Python of its own environment (vllm_engine.py), and the weights that it gets.

Stage 3 samples with it (training/vllm_sampler.py), and the server decodes with it (vllm.py). vLLM gets the language
model alone. A prompt is sent as embeddings, with the projected features where a picture stands: so encoder and
projector stay here, and vLLM needs to know neither.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from lineside.backends.adapters import bias_of, is_map, table_of, weight_of
from lineside.errors import EngineEnded, LinesideError, disk_is_full
from lineside.machine import INSTALL_VLLM
from lineside.model.vlm import VLM
from lineside.runtime import only_visible

ENGINE = Path(__file__).with_name("vllm_engine.py")
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
OLDEST = (0, 32)  # an older vLLM mixes up prompts of embeddings, or lacks a setting
CONTEXT = 4096  # tokens of a prompt with its response, unless the settings say more: vLLM reserves memory for them
# What torchrun tells its processes: vLLM would take it for itself. And what makes a Python find other packages.
OURS = re.compile(r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE|NAME)|MASTER_(ADDR|PORT)|TORCHELASTIC_.*|PYTHON(PATH|HOME)")


def model_problem(vlm: VLM) -> str:
    """Why vLLM cannot take a model as it is asked here; "" if it can."""
    kind = vlm.language_model.config.model_type
    if kind in ARCHITECTURES:
        return ""
    return (
        f"vllm takes a language model of type {', '.join(ARCHITECTURES)}, with a position a token; this one has the "
        f"type {kind!r}"
    )


@dataclass(frozen=True, slots=True)
class Advice:
    """What to do, in the words of the verb that uses the process. `python`: the setting that names its Python. The
    others follow an error, each with its punctuation: where memory may lack, where it has ended, where it is slow."""

    python: str
    memory: str = ""
    ended: str = ""
    slow: str = ""


class Process:
    """The process, and one question and answer a time."""

    def __init__(
        self, python: Path, folder: Path, device: torch.device, log: Path, *, patience: float, advice: Advice
    ) -> None:
        """`folder`: vLLM's side removes it when this process has gone. `patience`: seconds to wait for an answer.
        Raises LinesideError if the program cannot be started."""
        self._python, self._log, self.patience, self._advice = python, log, patience, advice
        self.version, self.reloads = "", False
        self._unread = b""
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [str(python), str(ENGINE), str(os.getpid()), str(folder)]
        try:
            with log.open("ab") as out:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=out,
                    env=environment(device), start_new_session=True,  # an interrupt is for its parent to handle
                )  # fmt: skip
        except OSError as error:
            raise LinesideError(f"{advice.python}: {python} cannot be started ({error}); {INSTALL_VLLM}") from None

    def start(self, settings: dict[str, Any]) -> None:
        """Wait until vLLM is imported, see that its version is right, and let it load the model. If that fails, the
        process is ended."""
        try:
            self.version = str(self._answer(f"{self._python} cannot import vLLM", f"; {INSTALL_VLLM}").get("vllm"))
            numbers = tuple(int(number) for number in re.findall(r"\d+", self.version)[:2])
            if numbers < OLDEST:
                raise LinesideError(
                    f"{self._python} has vLLM {self.version}, and lineside needs {'.'.join(map(str, OLDEST))} or newer "
                    f"(tried: 0.32.0): {self._python} -m pip install --upgrade vllm"
                )
            self.reloads = bool(self._asked(settings, "vLLM did not start", self._advice.memory)["reloads"])
        except BaseException:
            self.stop()
            raise

    def ask(self, job: dict[str, Any]) -> dict[str, Any]:
        """The answer to a job. Raises EngineEnded if there is none, with what to do."""
        return self._asked(job, "vLLM ended", self._advice.ended)

    def check(self) -> None:
        """Raises EngineEnded if it has ended."""
        if self._process.poll() is not None:
            raise EngineEnded(self._ended("vLLM ended", self._advice.ended))

    def _asked(self, job: dict[str, Any], what: str, advice: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended: reading tells how
            self._process.stdin.write(json.dumps(job).encode() + b"\n")
            self._process.stdin.flush()
        return self._answer(what, advice)

    def _answer(self, what: str, advice: str) -> dict[str, Any]:
        """The next line of the process. Raises EngineEnded if it is an error, if there is none, or if none comes."""
        line = self._line(what)
        if line is None:
            raise EngineEnded(self._ended(what, advice))
        try:
            answer = json.loads(line)
            assert isinstance(answer, dict)
        except (ValueError, AssertionError):
            raise EngineEnded(f"{what}: it answered {line[:200]!r}, which is not its protocol{advice}") from None
        if "error" in answer:
            raise EngineEnded(f"{what}: {answer['error']}. Its own output is in {self._log}{advice}")
        return answer

    def _line(self, what: str) -> bytes | None:
        """The next line; None if the process has ended."""
        assert self._process.stdout is not None
        until = time.monotonic() + self.patience
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                left = until - time.monotonic()
                if left <= 0:
                    self.stop()
                    raise EngineEnded(
                        f"{what}: no answer within {self.patience:g} seconds. Its own output is in {self._log}"
                        f"{self._advice.slow}"
                    )
                if selector.select(left):
                    some = os.read(self._process.stdout.fileno(), 1 << 20)
                    if not some:
                        return None
                    self._unread += some
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _ended(self, what: str, advice: str) -> str:
        return f"{what}: {self._how()}. Its last output, in {self._log}: {self._tail()}{advice}"

    def _how(self) -> str:
        code = self._process.wait()
        if code == -signal.SIGKILL:
            return "it was killed, as the system does where memory runs out"
        return f"it ended by signal {-code}" if code < 0 else f"it ended with status {code}"

    def _tail(self) -> str:
        lines = self._log.read_bytes()[-2000:].decode(errors="replace").splitlines()
        return " | ".join(line.strip() for line in lines[-3:] if line.strip()) or "(nothing)"

    def stop(self) -> bool:
        """End the process. Returns whether it still ran."""
        process = self._process
        ran = process.poll() is None
        if ran:
            process.kill()  # it holds nothing that a slower end would keep
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
        return ran


def environment(device: torch.device) -> dict[str, str]:
    """The environment of the engine: without what torchrun or a Python path say, and with one GPU to see."""
    env = {name: value for name, value in os.environ.items() if not OURS.fullmatch(name)}
    return env | only_visible(device)


def new_folder(vlm: VLM) -> Path:
    """A new folder for weights and prompts that only this user can read: in memory if it holds two sets of weights."""
    needed = 3 * sum(weight.numel() * weight.element_size() for weight in vlm.language_model.parameters())
    memory = Path("/dev/shm")
    fits = os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > needed
    return Path(tempfile.mkdtemp(prefix="lineside-vllm-", dir=memory if fits else None))


def write_prompts(path: Path, rows: Tensor, places: Sequence[Sequence[int]]) -> None:
    """Prompts as a file that vLLM's side reads: (N, D) embeddings, and the rows of them that each prompt has."""
    tensors = {
        "rows": rows.cpu().contiguous(),
        "index": torch.tensor([row for place in places for row in place]),
        "lengths": torch.tensor([len(place) for place in places]),
    }
    write(tensors, path)


def write(tensors: dict[str, Tensor], path: Path) -> None:
    """Safetensors for vLLM. Raises LinesideError for a disk that takes no more."""
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except (OSError, SafetensorError) as error:
        reason = "the disk is full" if disk_is_full(error) else str(error)
        raise LinesideError(f"cannot write for vLLM to {path.parent}: {reason}; TMPDIR names another place") from error


def model_settings(vlm: VLM, weights: Path, *, context: int, memory: float) -> dict[str, Any]:
    """What vLLM's side is started with: the language model in `weights`. `context`: tokens of the longest prompt with
    its response. `memory`: share of the device's."""
    return {
        "model": str(weights),
        "dtype": str(vlm.dtype).removeprefix("torch."),
        "max_model_len": context,
        "memory": memory,
        "eos": vlm.render.eos_id,
        "banned": vlm.render.image_id,
    }


@torch.no_grad()
def write_language_model(vlm: VLM, folder: Path) -> None:
    """The language model alone, with its adapter added, as a folder of its own in safetensors."""
    config = type(vlm.language_model.config).from_dict(vlm.language_model.config.to_dict())
    weights = language_model_weights(vlm)
    config.architectures = [ARCHITECTURES[config.model_type]]
    config.vocab_size = len(weights["model.embed_tokens.weight"])
    config.tie_word_embeddings = "lm_head.weight" not in weights
    config.dtype = vlm.dtype
    config.eos_token_id = vlm.render.eos_id
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    write(weights, folder / "model.safetensors")


def language_model_weights(vlm: VLM) -> dict[str, Tensor]:
    """The weights of the language model by the names of a model of text alone, on the CPU, with an adapter added. A
    tied head is left out."""
    found: dict[str, Tensor] = {}
    inside: list[str] = []  # names within a map with an adapter, whose weights are counted with it
    for name, module in vlm.language_model.named_modules():
        if any(name.startswith(f"{outer}.") for outer in inside):
            continue
        if is_map(module):
            inside.append(name)
            found[f"{name}.weight"] = weight_of(module)
            bias = bias_of(module)
            if bias is not None:
                found[f"{name}.bias"] = bias
        elif module is vlm.lm.embed:
            inside.append(name)
            found[f"{name}.weight"] = table_of(module)
        else:
            found |= {f"{name}.{key}": value for key, value in module.named_parameters(recurse=False)}
    plain = {f"model.{name}": tensor for name, tensor in found.items()}
    head, embed = (_base(module).weight for module in (vlm.lm.head, vlm.lm.embed))
    if head is not embed:
        plain["lm_head.weight"] = weight_of(vlm.lm.head)
    return {name: tensor.detach().to("cpu", vlm.dtype).contiguous() for name, tensor in plain.items()}


def _base(module: nn.Module) -> Any:
    return getattr(module, "base_layer", module)
