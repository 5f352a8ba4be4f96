"""One GPU, unattended, in at most eight minutes: is it right, how fast is it, the demo's line on ten times its tokens.

    python benchmarks/gpu.py [--minutes 8]
    python benchmarks/gpu.py --only trl demo      what there was no time for; a run that was stopped goes on
    python benchmarks/gpu.py --device cpu --tiny  a rehearsal in seconds: its numbers say nothing about a GPU

1. right: the tests marked gpu; every stage at tiny size against the CPU and against itself (metrics and weights). If
   a stage differs from the CPU's, nothing else is run.
2. speed: sft and rlvr, by their own verbs, at the shapes of a language model of 1.7 billion parameters (Qwen3's), of
   SmolLM2-360M and of SmolLM2-135M with random weights: tokens a second, share of the card's own bf16 matrix rate
   (measured, not taken from a data sheet), peak memory, whether a stage left FlexAttention, and how far the
   log-probabilities of decoding are from those of training. Operations are the necessary ones: padding and repeats do
   not count.
3. trl: GRPO and sft steps against TRL, if it is installed.
4. demo: `lineside train quickstart` with ten times the tokens of `make demo`, if there is time left.

Each measurement is a process of its own with a deadline: one that hangs, or breaks the card's context, takes nothing
else with it. What was not measured is printed as "not measured", with the reason, and again at the end, however the
script ends. The claims go into benchmarks/out/gpu.json. The exit status is 0 if all was measured and all claims hold, 1
if not, 2 without the device. It needs no installation: with PYTHONPATH=src any Python will do that has the packages of
pyproject.toml.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

import lineside.training.rollout
import lineside.training.stage
from common import OUT, WORDS, Alternating, Lengths, _tower, random_llama, samples
from lineside.data.store import write_samples
from lineside.errors import LinesideError
from lineside.model.features import FeatureStore
from lineside.model.nano import train_tokenizer
from lineside.model.parts import assemble
from lineside.model.vlm import VLM
from lineside.recipe import Rates, Rlvr, Sft
from lineside.rlvr import MAX_GAP, rlvr
from lineside.runtime import ON_CPU, Runtime
from lineside.sft import sft
from lineside.training.cost import read_cost
from lineside.training.metrics import read_metrics
from lineside.training.operations import matrix_rate

ROOT = Path(__file__).parents[1]

# hidden size, feed-forward size, layers, heads, key heads, head width, vocabulary
SHAPES = {  # the one that a goal is about comes first
    "2B": (2048, 6144, 28, 16, 8, 128, 151936),
    "SmolLM2-360M": (960, 2560, 32, 15, 5, 64, 49152),
    "SmolLM2-135M": (576, 1536, 30, 9, 3, 64, 49152),
}
TINY = {"tiny": (48, 96, 2, 6, 3, 8, 640)}
GOAL_SHARE, GOAL_TRL = 0.40, 4.0  # of the bf16 matrix rate in sft at the 2B shape; a GRPO step against TRL's
# Ten times those of `make demo` of 72bdfbe, 2026-11-30 (docs/results.md); of align, which it does not tell, ten times
# the 0.61M of 2026-11-29 (docs/models.md).
DEMO = {"align.max_tokens": 6_100_000, "sft.max_tokens": 45_200_000, "rlvr.max_tokens": 15_300_000}
WARM = 2  # steps that do not count: kernels are compiled
TESTS = ("tests/backends/test_backends.py", "tests/test_devices.py")  # all that have tests marked gpu
PARTS = ("right", "speed", "trl", "demo")
GRACE = 30.0  # seconds in which what is told to stop may save its state
PATIENCE = 3.0  # times the usual seconds after which a measurement is stopped, so that the others get their turn


@dataclass(frozen=True)
class Speed:
    """What a stage did after its first steps."""

    tokens: float  # a second
    share: float  # of the matrix rate
    rate: float  # operations a second of bf16 matrix products, measured in the same process
    memory: int  # bytes at most
    backend: str
    gap: float = 0.0  # of rlvr: how far the log-probabilities of decoding are from those of training, nats a token

    def line(self) -> str:
        """For the table."""
        memory = f"{self.memory / 2**30:.1f} GiB" if self.memory else "not counted on a CPU"
        share = f"{100 * self.share:.1f}% of the matrix rate ({self.rate / 1e12:.3g} TFLOP/s)"
        return f"{self.tokens:,.0f} tokens/s, {share}, peak memory {memory}, backend {self.backend}"


@dataclass(frozen=True)
class Measurement:
    """One that can be left out, or fail, alone."""

    part: str
    what: str
    needed: float  # seconds that it takes about
    run: Callable[[float], str]  # given the seconds that it may take; what to print
    to_the_end: bool = False  # whether it may take all the time that is left


class Claims:
    """The list that goes into gpu.json, what is not measured yet, and the clock."""

    def __init__(self, minutes: float, tiny: bool) -> None:
        self.ends = time.monotonic() + 60 * minutes - GRACE
        self.name = "gpu-rehearsal.json" if tiny else "gpu.json"
        self.rows: list[dict[str, Any]] = []
        self.missing: dict[str, str] = {}  # measurement -> why
        self.wrong = ""  # why nothing more is to be measured
        self.speeds: list[Speed] = []

    @property
    def left(self) -> float:
        """Seconds left, without those of the last one's end."""
        return self.ends - time.monotonic()

    @property
    def hold(self) -> bool:
        """Whether all claims hold so far."""
        return all(row["holds"] for row in self.rows)

    def claim(self, claim: str, value: float, *, n: int = 1, **limit: float) -> bool:
        """Add a claim with `at_least` or `at_most`, and write the file anew. Whether it holds; a number that is none
        does not."""
        holds = n > 0 and value >= limit.get("at_least", value) and value <= limit.get("at_most", value)
        self.rows.append({"claim": claim, "value": value, **limit, "holds": holds, "n": n, "command": command()})
        print(f"{claim}: {value:.3g} ({limit}, n {n}): {'holds' if holds else 'DOES NOT HOLD'}", flush=True)
        OUT.mkdir(exist_ok=True)
        (OUT / self.name).write_text(json.dumps(self.rows, indent=1) + "\n")
        return holds

    def measure(self, one: Measurement) -> None:
        """Print what it finds, or why it was not measured. Whatever goes wrong, the next one is measured: a card is
        lent for minutes."""
        most = math.inf if one.to_the_end or not one.needed else PATIENCE * one.needed
        try:
            if self.wrong:
                raise RuntimeError(self.wrong)
            if self.left < one.needed:
                raise TimeoutError(f"{max(0, self.left):.0f} s were left, it takes about {one.needed:.0f}")
            print(f"{one.what}: {one.run(min(most, self.left))}", flush=True)
            del self.missing[one.what]
        except Exception as error:
            self.missing[one.what] = why(error)
            print(f"{one.what}: NOT MEASURED: {why(error)}", flush=True)


class Failed(RuntimeError):
    """What went wrong in a process of its own, as `why` tells it."""


def why(error: Exception) -> str:
    """An error as one line."""
    told = " ".join(str(error).split())[:300]
    return told if isinstance(error, Failed) else f"{type(error).__name__}: {told}"


def command() -> str:
    """The command line, for a claim."""
    return " ".join(["python", "benchmarks/gpu.py", *sys.argv[1:]])


def bounded(arguments: list[str], seconds: float, **options: Any) -> None:
    """Run a command. Past its time, or when this script is stopped, it is told to stop, as by a scheduler: a run saves
    its state. Raises subprocess.SubprocessError if it was stopped or failed."""
    with subprocess.Popen(arguments, **options) as process:
        try:
            process.wait(max(1.0, seconds))
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
            process.kill()
            raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, arguments)


def apart(words: Sequence[str], runtime: Runtime, tiny: bool, seconds: float) -> Any:
    """What `alone` finds, in a process of its own. Raises Failed if it failed, and subprocess.TimeoutExpired past its
    time."""
    options = ["--device", runtime.device.type, *["--tiny"] * tiny, "--alone", *words]
    status = 0
    with tempfile.TemporaryFile("w+") as file:
        try:
            bounded([sys.executable, str(Path(__file__)), *options], seconds, stdout=file)
        except subprocess.CalledProcessError as error:
            status = error.returncode
        file.seek(0)
        *_, last = ["", *file.read().splitlines()]
    told = json.loads(last) if last.startswith("{") else {}
    if "found" not in told:
        raise Failed(told.get("failed", f"it ended with status {status} and said nothing"))
    return told["found"]


def alone(words: Sequence[str], runtime: Runtime, tiny: bool) -> int:
    """The other side of `apart`: one measurement, printed as JSON. The exit status."""
    try:
        if words[0] == "gaps":
            found: Any = gaps(runtime)
        else:
            stage, name = words
            found = asdict(speed_of(stage, (TINY if tiny else SHAPES)[name], runtime, tiny=tiny))
    except Exception as error:
        traceback.print_exc()
        print(json.dumps({"failed": why(error)}))
        return 1
    print(json.dumps({"found": found}))
    return 0


def marked_tests(claims: Claims, seconds: float) -> str:
    """The tests marked gpu, without those of benchmarks: each must run and pass. What pytest says of them."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu and not slow", "-rsfE", "-p", "no:cacheprovider", *TESTS]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=seconds, check=False)
    count = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout)}
    run = sum(count.values())
    claims.claim("tests marked gpu that do not pass", run - count.get("passed", 0), n=run, at_most=0)
    return done.stdout[-4000:].strip()


def gaps(runtime: Runtime) -> tuple[float, float]:
    """The largest relative difference of a metric or weight after the three stages on the device: to the CPU's, by the
    reference backend, and to those of a second run there."""
    sys.path.insert(0, str(ROOT))
    from tests.small_run import run_stages, weights

    def run(there: Runtime) -> tuple[dict[str, torch.Tensor], dict[str, list[dict[str, float]]]]:
        plain = {"LINESIDE_BACKEND": "reference"} if there == ON_CPU else {}
        with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, plain):
            vlm, logged = run_stages(Path(folder), there)
        return weights(vlm), logged

    (ours, expected), *others = run(runtime), run(ON_CPU), run(runtime)
    gaps = []
    for theirs, found in others:
        metrics = [
            abs(row[name] - other[name]) / max(1.0, abs(row[name]))
            for stage, rows in expected.items()
            for row, other in zip(rows, found[stage], strict=True)
            for name in row
        ]
        gaps.append(max(*metrics, *(float((ours[name] - theirs[name]).abs().max()) for name in ours)))
    return gaps[0], gaps[1]


def vlm_of(shape: tuple[int, ...], runtime: Runtime, *, tiny: bool) -> VLM:
    """A VLM with random weights in bf16: a language model of this shape behind a SigLIP-shaped tower."""
    *sizes, head_width, vocabulary = shape
    tokenizer = train_tokenizer([" ".join(WORDS), " ".join(reversed(WORDS))] * 50, 600)
    language_model = random_llama(tokenizer, sizes, vocabulary, 4096, head_dim=head_width)
    vlm = assemble(*_tower(9 if tiny else 196, tiny), language_model, tokenizer)
    return vlm.to(runtime.device, torch.bfloat16)


def speed_of(stage: str, shape: tuple[int, ...], runtime: Runtime, *, tiny: bool) -> Speed:
    """A few steps of a stage by its own verb."""
    frames, steps = (16, WARM + 2) if tiny else (400, WARM + 4)
    vlm = vlm_of(shape, runtime, tiny=tiny)
    runtime.free_memory()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        kind, each = ("qa", 8) if stage == "sft" else ("prompt", 1)
        write_samples(folder / "samples", samples(kind, frames, each, Lengths().shorter(tiny)))
        for writes in ("save", "save_state"):  # at 2B some 25 GB, which no step waits for
            stack.enter_context(patch.object(lineside.training.stage, writes, lambda *_, **__: None))
        store = FeatureStore(None, vlm, runtime=runtime)
        rates: dict[str, Any] = {"learning_rate": Rates(projector=1e-6, lm=1e-6), "epochs": 1e6, "save_seconds": 1e9}
        if stage == "sft":
            step, pack = (400, 200) if tiny else (32768, 8192)
            sft(
                vlm, store, folder / "samples", folder / "sft",
                Sft(step_tokens=step, pack_tokens=pack, max_steps=steps, **rates), runtime=runtime,
            )  # fmt: skip
        else:
            prompts, group, new = (2, 4, 6) if tiny else (16, 16, 128)
            stack.enter_context(patch.object(lineside.training.rollout, "judge", Alternating()))
            vlm.render.eos_id = -1  # no token ends a response: all have the same length
            rlvr(
                vlm, store, folder / "samples", folder / "rlvr",
                Rlvr(
                    prompts=prompts, prompts_per_frame=1, group_size=group, max_new_tokens=new, overlong_cache=0,
                    max_sampling_rounds=1, prompt_choice="uniform", max_steps=steps, **rates,
                ),
                runtime=runtime,
            )  # fmt: skip
        rows, cost = read_metrics(folder / stage / "metrics.jsonl"), read_cost(folder / stage)
    assert cost is not None
    seconds = rows[-1]["seconds"] - rows[WARM - 1]["seconds"]
    tokens = sum(row["tokens"] for row in rows[WARM:])
    rate = cost.operations / cost.tokens * tokens / seconds
    most = matrix_rate(runtime.device, torch.bfloat16)
    gap = max(row.get("sampler_gap", 0.0) for row in rows)
    return Speed(tokens / seconds, rate / most, most, runtime.peak_memory(), vlm.backend.name, gap)


def against_trl(script: str, claims: Claims, seconds: float) -> str:
    """A comparison of `make bench` on a GPU: its rows."""
    if importlib.util.find_spec("trl") is None:
        raise ImportError("trl is not installed (pip install 'lineside[bench]')")
    file = OUT / "results-cuda.json"
    file.unlink(missing_ok=True)
    arguments = [sys.executable, "-W", "ignore", str(ROOT / "benchmarks" / script)]
    bounded([*arguments, "--device", "cuda", "--repeats", "2"], seconds, stdout=subprocess.DEVNULL)
    rows = json.loads(file.read_text())
    if script == "grpo_step.py":
        claims.claim(
            "a GRPO step against TRL, least of all cases", min(r["ratio"] for r in rows), at_least=GOAL_TRL, n=2
        )
    return "; ".join(f"{row['work']}: {row['ratio']:.2f}x" for row in rows)


def demo(runtime: Runtime, seconds: float) -> str:
    """The demo's line with ten times its tokens; the exact answers after each stage."""
    folder = OUT / "runs" / "gpu-demo"
    settings = [f"{key}={value}" for key, value in DEMO.items()]
    arguments = ["train", "quickstart", "name=gpu-demo", f"runs={folder.parent}", *settings]
    arguments += ["--device", runtime.device.type]
    main = [sys.executable, "-c", "from lineside.cli import main; main()"]
    bounded([*main, *arguments], seconds)
    found = sorted((folder / "evaluation").glob("*-heldout-think.json"))
    results = [(path.name.split("-")[0], json.loads(path.read_text())) for path in found]
    return "simulated, heldout: " + ", ".join(
        f"{stage} {100 * r['exact']:.1f}% ({100 * r['interval'][0]:.1f} to {100 * r['interval'][1]:.1f}, n {r['n']})"
        for stage, r in results
    )


def compared(runtime: Runtime, claims: Claims, tiny: bool, seconds: float) -> str:
    """Whether the device computes what the CPU does, and the same each time."""
    other, own = apart(["gaps"], runtime, tiny, seconds)
    claims.claim("largest difference of two runs with the same seed", own, at_most=0.0)
    if not claims.claim("largest difference of a stage from the CPU's", other, at_most=1e-3):
        claims.wrong = "the device does not compute what the CPU does"
        print(f"{claims.wrong}: nothing else was run")
    return f"{other:.3g} from the CPU's, {own:.3g} of two runs"


def speed(stage: str, name: str, runtime: Runtime, claims: Claims, tiny: bool, seconds: float) -> str:
    """sft or rlvr at a shape."""
    found = Speed(**apart([stage, name], runtime, tiny, seconds))
    if (stage, name) == ("sft", "2B"):
        claims.claim("share of the bf16 matrix rate, sft at the 2B shape", found.share, at_least=GOAL_SHARE)
    claims.speeds.append(found)
    return found.line()


def claims_of_speeds(runtime: Runtime, claims: Claims) -> None:
    """What all measured stages must have in common."""
    n = len(claims.speeds)
    fallen = sum(speed.backend != runtime.device.type for speed in claims.speeds)
    claims.claim("stages that left FlexAttention", fallen, n=n, at_most=0)
    gap, bound = max((speed.gap for speed in claims.speeds), default=math.nan), MAX_GAP[torch.bfloat16]
    claims.claim("largest distance of decoding from training, nats a token", gap, n=n, at_most=bound)


def measurements(runtime: Runtime, claims: Claims, tiny: bool) -> list[Measurement]:
    """All that there is to measure, in order."""
    found: list[Measurement] = []
    if not tiny:
        found.append(Measurement("right", "tests marked gpu", 60, partial(marked_tests, claims)))
    run: Callable[[float], str] = partial(compared, runtime, claims, tiny)
    found.append(Measurement("right", "every stage against the CPU", 0 if tiny else 60, run))
    for name in TINY if tiny else SHAPES:
        for stage in ("sft", "rlvr"):
            run = partial(speed, stage, name, runtime, claims, tiny)
            found.append(Measurement("speed", f"{stage}, {name}", 0 if tiny else 45, run))
    for what, script in (("GRPO steps", "grpo_step.py"), ("sft steps", "sft_speed.py")):
        found.append(Measurement("trl", f"{what} against TRL", 60, partial(against_trl, script, claims)))
    what = "the demo's line on ten times its tokens"
    return [*found, Measurement("demo", what, 120, partial(demo, runtime), to_the_end=True)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--minutes", type=float, default=8.0, help="time for everything")
    parser.add_argument("--only", nargs="+", default=PARTS, choices=PARTS, help="these parts alone")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal in seconds")
    parser.add_argument("--alone", nargs="+", help=argparse.SUPPRESS)  # see `alone`
    given = parser.parse_args()
    if given.tiny:
        os.environ.setdefault("LINESIDE_BACKEND", "reference")  # compiling takes longer than the rehearsal
    try:
        runtime = Runtime.of(given.device)
        line = runtime.line()
    except (LinesideError, RuntimeError) as error:
        print(f"{error}\nnothing was run")
        return 2
    if given.alone:
        return alone(given.alone, runtime, given.tiny)
    claims = Claims(given.minutes, given.tiny)
    print(f"{line}, torch {torch.__version__}" + (": a REHEARSAL, not a measurement" if given.tiny else ""))
    rehearsed = "a rehearsal" if given.tiny else "only on a GPU" if runtime.device.type == "cpu" else ""
    planned = [one for one in measurements(runtime, claims, given.tiny) if one.part in given.only]
    todo = [one for one in planned if not rehearsed or one.part in ("right", "speed")]
    claims.missing = {one.what: "the script was stopped before" for one in todo}
    try:
        for one in planned:
            if one in todo:
                claims.measure(one)
            else:
                print(f"{one.what}: not measured: {rehearsed}")
    except KeyboardInterrupt:
        print("stopped")
    finally:
        if "speed" in given.only and not given.tiny and not claims.wrong:
            claims_of_speeds(runtime, claims)
        for what, reason in claims.missing.items():
            print(f"not measured: {what}: {reason}")
    return 0 if claims.hold and not claims.missing else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what is missing is told then too
    sys.exit(main())
