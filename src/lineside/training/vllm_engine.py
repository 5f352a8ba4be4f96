"""vLLM's side of the sampler `vllm` (vllm_sampler.py): a script that the Python of vLLM's own environment runs.

It imports nothing of lineside. It reads one JSON object a line and answers each with one:

    (nothing, once vLLM is imported)                        {"vllm": "0.32.0"}
    {"model": FOLDER, "parent": PID, and vLLM's settings}   {"reloads": true or false}
    {"weights": FOLDER}                                     {}
    {"prompts": FILE, "samples": G, and how to sample}      {"rollouts": [[[[tokens], [log-probabilities]], ...], ...]}

An answer {"error": TEXT} is the last one. Weights and prompts lie in safetensors files, so nothing is unpickled. A
prompt is a sequence of embeddings: `rows` (N, D), of which each prompt has those that `index` names, in order.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from typing import Any

# One process, so that it ends as a whole, and the order in which requests are computed does not depend on a clock.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # else two engines on a machine take the same cores
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")


class Engine:
    """vLLM with the language model of a folder."""

    def __init__(
        self, vllm: Any, model: str, dtype: str, max_model_len: int, memory: float, eos: int, banned: int
    ) -> None:
        from vllm.platforms import current_platform  # pyright: ignore[reportMissingImports]

        cpu = bool(current_platform.is_cpu())
        self.params, self.eos, self.banned = vllm.SamplingParams, eos, banned
        # vLLM packs weights for a CPU when it loads them, and what it loads later changes nothing, without an error.
        self.reloads = not cpu
        # Nor can it draw with a seed where the reading of a prompt is cut in two ("CPU Generator does not use offset").
        only = {"enable_chunked_prefill": False, "max_num_batched_tokens": max(8192, max_model_len)} if cpu else {}
        self.llm = vllm.LLM(
            model,
            dtype=dtype,
            skip_tokenizer_init=True,
            enable_prompt_embeds=True,
            max_model_len=max_model_len,
            gpu_memory_utilization=memory,
            logprobs_mode="processed_logprobs",
            generation_config="vllm",
            enforce_eager=cpu,
            disable_log_stats=True,
            **only,
        )

    def reload(self, folder: str) -> None:
        """Take the weights of another folder."""
        self.llm.collective_rpc("reload_weights", kwargs={"weights_path": folder})
        self.llm.reset_prefix_cache()

    def sample(
        self, prompts: str, samples: int, temperature: float, max_new_tokens: int, seeds: list[int]
    ) -> list[list[tuple[list[int], list[float]]]]:
        """`samples` rollouts of each prompt, each as tokens and their log-probabilities."""
        asked = [
            self.params(
                n=samples if temperature else 1,  # greedy, all are the same, and vLLM refuses to give several
                temperature=temperature,
                max_tokens=max_new_tokens,
                seed=seed,
                logprobs=0,  # of the sampled token alone
                logit_bias={self.banned: -100.0},
                stop_token_ids=[self.eos],
                ignore_eos=True,  # the end is the token above, whatever the configuration says
                detokenize=False,
            )
            for seed in seeds
        ]
        from safetensors.torch import load_file

        held = load_file(prompts)
        parts = held["index"].split(held["lengths"].tolist())
        requests = [{"prompt_embeds": held["rows"][part]} for part in parts]
        outs = self.llm.generate(requests, asked, use_tqdm=False)
        rolled = [[_rollout(one) for one in sorted(out.outputs, key=lambda one: one.index)] for out in outs]
        return rolled if temperature else [group * samples for group in rolled]


def _rollout(one: Any) -> tuple[list[int], list[float]]:
    tokens = [int(token) for token in one.token_ids]
    return tokens, [float(at[token].logprob) for token, at in zip(tokens, one.logprobs)]


def end_with(parent: int, folder: str) -> None:
    """End when the trainer has gone, however it ended, and take the folder with the weights along."""
    while os.getppid() == parent:
        time.sleep(1)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")  # vLLM prints to standard output: keep our own copy for answers
    os.dup2(2, 1)

    def tell(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    try:
        import vllm  # pyright: ignore[reportMissingImports]

        tell({"vllm": vllm.__version__})
        settings = json.loads(sys.stdin.readline() or "null")
        if settings is None:  # the trainer does not want this version
            return
        watch = settings.pop("parent"), settings.pop("folder")
        threading.Thread(target=end_with, args=watch, daemon=True).start()
        engine = Engine(vllm, **settings)
        tell({"reloads": engine.reloads})
        for line in sys.stdin:
            job = json.loads(line)
            if "weights" in job:
                engine.reload(job["weights"])
                tell({})
            else:
                tell({"rollouts": engine.sample(**job)})
        shutil.rmtree(watch[1], ignore_errors=True)  # the trainer has gone
    except Exception as error:  # whatever vLLM raises, the trainer tells it
        import traceback

        traceback.print_exc()
        tell({"error": " ".join(f"{type(error).__name__}: {error}".split())[:600]})
        sys.exit(1)


if __name__ == "__main__":
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.abspath(path) != here]  # its neighbours are not modules of vLLM
    main()
