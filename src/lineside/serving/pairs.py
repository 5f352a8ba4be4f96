"""Pairs: what may decode a checkpoint, and what it was judged with. Read from files alone, without torch.

A *pair* is an engine and the weights that it reads. `local` is our own decoding, `openvino` the decoder of an OpenVINO
export (backends/openvino.py), and `vllm` is vLLM, which also reads prompts (backends/vllm.py). A pair is *judged* if
`lineside evaluate` answered questions with it, from these very weights. Only judged pairs are served, unless the user
says otherwise. engines.py loads them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

from lineside.errors import LinesideError
from lineside.files import fingerprint
from lineside.judgement.schema import Evaluation, read_evaluation
from lineside.machine import vllm_problem
from lineside.model.config import saved_dtype
from lineside.strict import read_record
from lineside.types import NO_VLLM, EngineName, VllmAt, Weights

EXPORTED: dict[Weights, str] = {"full": "fp32", "int8": "int8"}  # the number format of an export with these weights
LOST = 0.005  # share of exact answers that a pair may lose against our own decoding before it must be named


class EnginePair(NamedTuple):
    """An engine and its weights."""

    engine: EngineName
    weights: Weights

    def __str__(self) -> str:
        return " ".join(self)

    @property
    def options(self) -> str:
        """As options of a command."""
        return f"--engine {self.engine} --weights {self.weights}"


PLAIN = EnginePair("local", "full")
PAIRS = tuple(EnginePair(engine, weights) for engine in get_args(EngineName) for weights in get_args(Weights))


def export_folder(checkpoint: Path, weights: Weights) -> Path:
    """Where `lineside export --to openvino` writes by default."""
    return checkpoint.absolute().parent / "export" / f"openvino-{EXPORTED[weights]}"


def why_not(checkpoint: Path, pair: EnginePair, vllm: VllmAt = NO_VLLM) -> str:
    """What a pair lacks, and what to do; "" if nothing is known to be missing."""
    if pair.engine == "vllm":
        if pair.weights != "full":
            return "vLLM reads the weights of the model: --weights full"
        return vllm_problem(vllm.python, "--vllm-python")
    if pair.engine != "openvino":
        return ""
    if importlib.util.find_spec("openvino") is None:
        return "the package openvino is not installed: pip install 'lineside[export]'"
    folder, write = export_folder(checkpoint, pair.weights), f"lineside export {checkpoint} --to openvino --weights "
    write += EXPORTED[pair.weights]
    try:
        record = read_record(dict[str, Any], folder / "export.json", write)
    except FileNotFoundError:
        return f"there is no export at {folder}: {write}"
    except (OSError, LinesideError) as error:
        return str(error)
    if record.get("fingerprint") != fingerprint(checkpoint):
        return f"the export at {folder} is of other weights: {write}"
    return ""


def judged(checkpoint: Path, files: Sequence[Path] = ()) -> dict[EnginePair, list[Evaluation]]:
    """The evaluations of these weights in the number format in which they are served, by pair. `files`: evaluations to
    look at besides those in the run's folder. Raises LinesideError if one of `files` is none."""
    dtype, mark = saved_dtype(checkpoint), fingerprint(checkpoint)
    found: dict[EnginePair, list[Evaluation]] = {}
    for path in (*files, *_beside(checkpoint)):
        try:
            evaluation = read_evaluation(path)
        except LinesideError:
            if path in files:
                raise
            continue
        how = evaluation.judged
        if evaluation.provenance.checkpoint == mark and evaluation.split != "train" and how.dtype == dtype:
            found.setdefault(EnginePair(how.engine, how.weights), []).append(evaluation)
    return found


def worse(known: Mapping[EnginePair, Sequence[Evaluation]]) -> dict[EnginePair, str]:
    """The pairs that give fewer exact answers than our own decoding on a suite that both were asked, by more than
    `LOST`; and by how much."""

    def suite(one: Evaluation) -> tuple[object, ...]:
        return one.provenance.data, one.split, one.mode, one.decoding.max_new_tokens, one.decoding.deadlines

    plain = {suite(one): one.exact for one in known.get(PLAIN, ())}
    lost = {
        pair: max((plain[suite(one)] - one.exact for one in found if suite(one) in plain), default=0.0)
        for pair, found in known.items()
    }
    return {
        pair: f"it gives {100 * points:.1f} points fewer exact answers than {PLAIN}; {pair.options} takes it anyway"
        for pair, points in lost.items()
        if points > LOST
    }


def _beside(checkpoint: Path) -> list[Path]:
    """Evaluations in the folder of the checkpoint's run, or in the one above the checkpoint."""
    folders = [folder / "evaluation" for folder in list(checkpoint.absolute().parents)[:2]]
    return [path for folder in folders for pattern in ("*.json", "*/*.json") for path in sorted(folder.glob(pattern))]


def allowed(
    checkpoint: Path,
    *,
    engine: EngineName | None = None,
    weights: Weights | None = None,
    files: Sequence[Path] = (),
    unjudged: bool = False,
    vllm: VllmAt = NO_VLLM,
) -> list[EnginePair]:
    """The pairs to choose from: those of this engine and these weights (None: any) that were judged and can be loaded.
    One that is worse than our own decoding is chosen only if both are named.

    `unjudged`: without looking at evaluations; then our own decoding, where no other is named. Raises LinesideError,
    with the command that judges, if no pair is left.
    """
    wanted = [p for p in PAIRS if engine in (None, p.engine) and weights in (None, p.weights)]
    if unjudged:
        return [EnginePair(engine or "local", weights or "full")]
    known = judged(checkpoint, files)
    bad = {} if engine and weights else worse(known)
    lacking = {pair: bad.get(pair) or why_not(checkpoint, pair, vllm) for pair in wanted if pair in known}
    if ready := [pair for pair, why in lacking.items() if not why]:
        return ready
    for pair, why in lacking.items():
        raise LinesideError(f"{checkpoint} is not served by {pair}: {why}")
    pair = EnginePair(engine or "local", weights or "full")
    asked = f" by {pair}" if engine or weights else ""
    asked += f" in {saved_dtype(checkpoint)}"
    others = f"; it was by {', '.join(map(str, known))}" if known else ": no evaluation of these weights is known"
    raise LinesideError(
        f"{checkpoint} was not judged{asked}{others}. Judge it:\n"
        f"  lineside evaluate {checkpoint} {_samples(checkpoint)} {pair.options} "
        f"--out {checkpoint.absolute().parent / 'evaluation' / '-'.join(pair)}\n"
        "or name a file with --evaluation, or serve it as it is with --unjudged"
    )


def _samples(checkpoint: Path) -> str:
    """The samples of the checkpoint's run, or a word for them."""
    run = checkpoint.absolute().parent.parent
    return str(run / "samples") if (run / "samples").is_dir() else "SAMPLES"
