"""CPU time of a decoding step, one thread: ours in fp32, bf16 and int8, OpenVINO in int8, llama.cpp in Q8_0.

    python benchmarks/decode_speed.py [--tiny] [--model smollm2|nano] [--steps 60]

A step writes a token for 1 row, or for each of 8 rows that share a prefix of 70 tokens. What counts is processor time
and not the clock, so that other work on the machine changes little; the median of the steps. Ours and OpenVINO run in
this process, in turns of ten steps. llama.cpp is its server, a process of its own with as many requests as rows: its
time to write 65 tokens, less that to write one, by 64. Before that, the tokens of int8 are compared with those of fp32.
Peers whose packages are not installed are left out. Writes benchmarks/out/decode_speed-MODEL.json.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from common import OUT, model_folder
from lineside.backends.cpu import Cpu
from lineside.backends.reference import Reference
from lineside.exporting import gguf_files, openvino_files
from lineside.files import write_atomic
from lineside.model.checkpoint import load
from lineside.model.vlm import VLM
from lineside.origin import machine
from lineside.runtime import ON_CPU

PREFIX, TURN = 70, 10
AT_MOST = {"smollm2": 1.3, "nano": 1.0}  # int8 of ours, as a multiple of the fastest peer (of llama.cpp for nano)
Step = Callable[..., np.ndarray]  # writes a token for each row, (rows,), after the last ones or those that are given


def ours(vlm: VLM, weights: Any, rows: int, steps: int) -> Step:
    """A step of our own decoding on random keys and values: each call continues from the tokens of the last one."""
    backend, config = Cpu(), vlm.language_model.config
    backend.weights = weights
    by = backend.steps(vlm.lm)
    shape = PREFIX, config.num_key_value_heads, config.head_dim
    seeded = torch.Generator().manual_seed(0)
    keys = [torch.randn(2, *shape, generator=seeded).to(vlm.dtype) for _ in range(config.num_hidden_layers)]
    kept = [(key, value) for key, value in keys]
    cache = by.cache(kept, [list(range(PREFIX))], [[[] for _ in range(rows)]], steps)
    tokens, greedy, done = np.arange(300, 300 + rows), np.zeros(rows, np.float32), 0

    def step(given: np.ndarray | None = None) -> np.ndarray:
        nonlocal tokens, done
        last = tokens if given is None else given
        tokens = by.next(last, np.full(rows, PREFIX + done), [cache], greedy, greedy).chosen[0]
        done += 1
        return tokens

    return step


def openvino(vlm: VLM, folder: Path, rows: int) -> Step:
    """A step of OpenVINO's int8 decoder, with the settings of our export and one thread; it chooses the likeliest
    token. The prefix is read once, and `beam_idx` gives it to all rows."""
    import openvino as ov  # pyright: ignore[reportMissingImports]

    if not (folder / openvino_files.FILES["decoder"]).exists():
        folder.mkdir(parents=True, exist_ok=True)
        openvino_files.write_decoder(vlm, folder, "int8")
    settings = openvino_files.settings_of("int8") | {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
    model = ov.Core().compile_model(folder / openvino_files.FILES["decoder"], "CPU", settings)
    request, table = model.create_infer_request(), vlm.model.get_input_embeddings().weight.detach().numpy()
    length = PREFIX

    def run(embeds: np.ndarray, first: int, beam: np.ndarray) -> np.ndarray:
        count, new = embeds.shape[:2]
        place = np.tile(np.arange(first, first + new), (count, 1))
        given = {"attention_mask": np.ones((count, first + new), np.int64), "position_ids": place, "beam_idx": beam}
        request.infer({"inputs_embeds": embeds, **given})
        return request.get_output_tensor(0).data[:, -1].argmax(-1)

    run(
        np.random.default_rng(0).standard_normal((1, PREFIX, table.shape[1])).astype(np.float32),
        0,
        np.zeros(1, np.int32),
    )
    tokens, beam = np.arange(300, 300 + rows), np.zeros(rows, np.int32)

    def step() -> np.ndarray:
        nonlocal tokens, beam, length
        tokens = run(table[tokens][:, None], length, beam)
        length, beam = length + 1, np.arange(rows, dtype=np.int32)
        return tokens

    return step


def milliseconds(step: Step, count: int) -> list[float]:
    """Processor time of each step."""
    found = []
    for _ in range(count):
        start = time.process_time()
        step()
        found.append(1000 * (time.process_time() - start))
    return found


def in_turns(sides: dict[str, Step], steps: int) -> dict[str, float]:
    """The median step of each side, ten at a time; the first two of a turn find cold caches and do not count."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(steps // TURN):
        for name, step in sides.items():
            times[name] += milliseconds(step, TURN + 2)[2:]
    return {name: median(found) for name, found in times.items()}


def llama_cpp(file: Path, rows: int, new: int = 65) -> float:
    """Processor time of a step of llama.cpp's server with `rows` requests at once, in milliseconds."""
    command = [sys.executable, __file__, "--serve", str(file), "--rows", str(rows)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = next(line for line in process.stdout if line.startswith("http")).strip()

            def spent(count: int) -> float:
                def ask(row: int) -> None:
                    prompt = [300 + (row * 7 + i) % 90 for i in range(PREFIX)]
                    body = {"prompt": prompt, "n_predict": count, "ignore_eos": True, "temperature": 0.0}
                    body |= {"cache_prompt": True, "id_slot": row}
                    request = urllib.request.Request(f"{address}/completion", json.dumps(body).encode())
                    request.add_header("content-type", "application/json")
                    with urllib.request.urlopen(request, timeout=600) as reply:
                        assert json.load(reply)["tokens_predicted"] == count

                before = processor_time(process.pid)
                with ThreadPoolExecutor(rows) as pool:
                    list(pool.map(ask, range(rows)))
                return processor_time(process.pid) - before

            spent(new)  # fills the cache of the prompts
            return median((spent(new) - spent(1)) / (new - 1) * 1000 for _ in range(5))
        finally:
            process.kill()


def processor_time(process: int) -> float:
    """Seconds of a process and its threads, user and system."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def serve(file: Path, rows: int) -> None:
    """llama.cpp's server, until standard input closes."""
    xllamacpp: Any = importlib.import_module("xllamacpp")  # it has no types
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_ctx, settings.n_parallel = str(file), 256 * rows, rows
    settings.warmup, settings.verbosity = False, 0
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(settings)
    print(server.listening_address, flush=True)
    sys.stdin.read()


def alike(vlm: VLM, steps: int, rows: int = 8) -> float:
    """Share of the greedy tokens of int8 that are those of fp32, both after the tokens of fp32."""
    one, other = (ours(vlm, weights, rows, steps) for weights in ("full", "int8"))
    same, last = 0, np.arange(300, 300 + rows)
    for _ in range(steps):
        want, got = one(last), other(last)
        same, last = same + int((want == got).sum()), want
    return same / (steps * rows)


def measured(name: str, model: Path, steps: int) -> Iterator[dict[str, Any]]:
    """A row for each side and number of rows."""
    wide, narrow = (load(model, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    wide.use(Reference())  # a tracer cannot follow our kernels; `ours` has a backend of its own
    total = (steps // TURN + 1) * (TURN + 2)
    for rows in (1, 8):
        sides = {
            "ours fp32": ours(wide, "full", rows, total),
            "ours bf16": ours(narrow, "full", rows, total),
            "ours int8": ours(wide, "int8", rows, total),
            "ours int8 (bf16 cache)": ours(narrow, "int8", rows, total),
        }
        if importlib.util.find_spec("openvino"):
            sides["OpenVINO int8"] = openvino(wide, OUT / "exports" / f"{name}-openvino-int8", rows)
        found = in_turns(sides, steps)
        if importlib.util.find_spec("xllamacpp"):
            folder = OUT / "exports" / f"{name}-gguf-q8_0"
            if not (folder / gguf_files.TEXT).exists():
                folder.mkdir(parents=True, exist_ok=True)
                gguf_files.write(wide, folder, "q8_0", lambda part: None)
            found["llama.cpp Q8_0"] = llama_cpp(folder / gguf_files.TEXT, rows)
        for side, ms in found.items():
            print(f"{name}, {rows} row{'s' * (rows > 1)}: {side:24} {ms:8.3f} ms", flush=True)
            yield {"side": side, "rows": rows, "ms": ms, "steps": steps}


def main() -> int:
    """Measure, print, and write the claims."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a two-layer random model: a rehearsal without claims")
    parser.add_argument("--model", choices=AT_MOST, default="smollm2")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, default=1, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.serve, given.rows)
        return 0
    torch.set_num_threads(1)
    name = "tiny" if given.tiny else given.model
    model, source = model_folder(49, tiny=given.tiny, nano=given.model == "nano")
    same = alike(load(model, dtype=torch.float32), given.steps)
    print(f"{name} ({source}): {same:.1%} of {8 * given.steps} greedy tokens of int8 are those of fp32")
    rows = list(measured(name, model, given.steps))
    ms = {(row["side"], row["rows"]): row["ms"] for row in rows}
    peers = {key: value for key, value in ms.items() if not key[0].startswith("ours")}
    claims = []
    for count in (1, 8) if not given.tiny else ():
        against = [v for (side, n), v in peers.items() if n == count and (name == "smollm2" or "llama" in side)]
        if against:
            value = ms["ours int8", count] / min(against)
            claims.append(
                {
                    "claim": f"{name} int8, {count} rows: processor time of a step by that of the fastest peer",
                    "value": value, "at_most": AT_MOST[name], "holds": value <= AT_MOST[name], "n": given.steps,
                    "command": f"python benchmarks/decode_speed.py --model {name}",
                }
            )  # fmt: skip
            print(f"{claims[-1]['claim']}: {value:.2f}, at most {AT_MOST[name]}: holds {claims[-1]['holds']}")
    out = {"model": source, "machine": machine(ON_CPU, torch.float32), "rows": rows, "claims": claims}
    write_atomic(OUT / f"decode_speed-{name}.json", json.dumps(out, indent=2) + "\n")
    return 0 if all(one["holds"] for one in claims) else 1


if __name__ == "__main__":
    raise SystemExit(main())
