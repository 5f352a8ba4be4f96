"""vLLM's side of vllm_speed.py. The Python of vLLM's own environment runs it; it imports nothing of lineside.

Reads one JSON object a line and answers with one: {"rows": [[prompt, base64 picture, response ids], ...]} is scored,
{"step": [[prompt, base64 picture], ...]} is sampled and timed.
"""

from __future__ import annotations

import base64
import io
import json
import os
import sys
import time
from typing import Any

os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

from PIL import Image
from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]


def asked(prompt: Any, picture: str) -> dict[str, Any]:
    """A request: text or token ids, and the picture decoded here, within the step."""
    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    key = "prompt" if isinstance(prompt, str) else "prompt_token_ids"
    return {key: prompt, "multi_modal_data": {"image": image}}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")  # vLLM prints to standard output: keep our own copy for answers
    os.dup2(2, 1)
    settings = json.loads(sys.stdin.readline())
    llm = LLM(  # on a CPU the memory share is of the whole machine; the default is more than another process leaves
        settings["model"],
        dtype=settings["dtype"],
        max_model_len=2048,
        limit_mm_per_prompt={"image": 1},
        gpu_memory_utilization=0.3,
    )
    tokenizer = llm.get_tokenizer()
    sampling = SamplingParams(
        n=settings["group"], temperature=1.0, max_tokens=settings["new_tokens"], ignore_eos=True, detokenize=True
    )
    scoring = SamplingParams(max_tokens=1, prompt_logprobs=0)
    for line in sys.stdin:
        job = json.loads(line)
        start = time.perf_counter()
        if "step" in job:
            llm.generate([asked(*row) for row in job["step"]], sampling, use_tqdm=False)  # pyright: ignore
            answer: Any = time.perf_counter() - start
        else:
            requests = [
                asked(tokenizer.encode(prompt, add_special_tokens=False) + ids, picture)
                for prompt, picture, ids in job["rows"]
            ]
            outs = llm.generate(requests, scoring, use_tqdm=False)  # pyright: ignore
            answer = [
                [at[token].logprob for token, at in zip(ids, out.prompt_logprobs[-len(ids) :])]
                for (_, _, ids), out in zip(job["rows"], outs)
            ]
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
