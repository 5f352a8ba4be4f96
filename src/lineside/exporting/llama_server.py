"""A llama.cpp server, alone in its process: python -m lineside.exporting.llama_server MODEL MMPROJ CONTEXT.

It imports nothing else of lineside: torch would take longer to import than llama.cpp takes to load a small model.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any


def main() -> None:
    """Load the files, print the server's address, and run until standard input closes."""
    xllamacpp: Any = importlib.import_module("xllamacpp")  # it has no types
    model, mmproj, context = sys.argv[1:]
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.mmproj.path = model, mmproj
    settings.n_ctx, settings.n_parallel, settings.warmup, settings.verbosity = int(context), 1, False, 0
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    # Its threads wait for one another without sleep: as many as there are cores are slow where other work runs.
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(settings)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
