"""The same table on a CUDA GPU, and the share of its bf16 peak. Nobody has to watch it.

    python benchmarks/gpu.py [--tiny] [--growth]

Runs every script of run_all.py with --device cuda, prints the table and writes benchmarks/out/results-cuda.json. The
matrix rate is measured, not taken from a data sheet. The claims were made for a CPU and are shown for information only.
The row of vLLM is left out. Without a GPU the exit status is 2.
"""

from __future__ import annotations

import sys

import torch

import run_all
from common import Options


def main() -> int:
    if {"-h", "--help"} & set(sys.argv):
        print(__doc__)
        return 0
    if not torch.cuda.is_available():
        print("no CUDA device: nothing was run")
        return 2
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    run_all.SCRIPTS = tuple(script for script in run_all.SCRIPTS if script != "vllm_speed.py")
    file = Options(tiny="--tiny" in sys.argv, device="cuda").file
    return run_all.run([*sys.argv[1:], "--device", "cuda"], file)


if __name__ == "__main__":
    sys.exit(main())
