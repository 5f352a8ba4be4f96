"""vLLM's side (vllm_process.py is ours): a script that the Python of vLLM's own environment runs.

    python vllm_engine.py PID FOLDER

It imports nothing of lineside. When the process PID has gone it ends, and takes along FOLDER, where weights and prompts
lie. It reads one JSON object a line and answers each with one:

    (nothing, once vLLM is imported)                        {"vllm": "0.32.0"}
    {"model": FOLDER, and vLLM's settings}                  {"reloads": true or false}

Stage 3 then samples whole rollouts:

    {"weights": FOLDER}                                     {}
    {"prompts": FILE, "samples": G, and how to sample}      {"rollouts": [[[[tokens], [log-probabilities]], ...], ...]}

The server, with "steps" among the settings, writes one token a step for each row (`Rows`):

    {"rows": [how to choose its next token], "prompts": FILE or null}   {"rows": [[row, token, ...], ...]}
    {"forget": true}                                                    {}

An answer {"error": TEXT} is the last one. Weights and prompts are safetensors, so nothing is unpickled. A prompt is a
sequence of embeddings: `rows` (N, D), of which each prompt has those that `index` names, in order.
"""

from __future__ import annotations

import base64
import json
import os
import runpy
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
HERE = os.path.dirname(os.path.abspath(__file__))


def hide_what_does_not_load() -> None:
    """Packages for pictures and sound that came for CUDA, beside a torch for the CPU: transformers would import them,
    and a language model needs none of them."""
    for name in ("torchvision", "torchaudio", "torchcodec"):
        try:
            __import__(name)
        except Exception:  # whatever a broken package raises; not there at all is fine too
            sys.modules[name] = None  # pyright: ignore[reportArgumentType]


def on_cpu() -> bool:
    """Whether vLLM computes on a CPU."""
    from vllm.platforms import current_platform  # pyright: ignore[reportMissingImports]

    return bool(current_platform.is_cpu())


def loaded(vllm: Any, model: str, *, dtype: str, max_model_len: int, memory: float, **more: Any) -> Any:
    """vLLM with the language model of a folder."""
    cpu = on_cpu()
    # A CPU cannot draw with a seed where the reading of a prompt is cut in two ("CPU Generator does not use offset").
    only = {"enable_chunked_prefill": False, "max_num_batched_tokens": max(8192, max_model_len)} if cpu else {}
    return vllm.LLM(
        model,
        dtype=dtype,
        skip_tokenizer_init=True,
        enable_prompt_embeds=True,
        max_model_len=max_model_len,
        gpu_memory_utilization=memory,
        generation_config="vllm",
        enforce_eager=cpu,
        disable_log_stats=True,
        **only,
        **more,
    )


def prompts_of(path: str) -> list[Any]:
    """(P, D) embeddings of each prompt of a file."""
    from safetensors.torch import load_file

    held = load_file(path)
    return [held["rows"][part] for part in held["index"].split(held["lengths"].tolist())]


class Sampling:
    """Whole rollouts."""

    def __init__(self, vllm: Any, *, eos: int, banned: int, **settings: Any) -> None:
        self.params, self.eos, self.banned = vllm.SamplingParams, eos, banned
        # vLLM packs weights for a CPU when it loads them, and what it loads later changes nothing, without an error.
        self.reloads = not on_cpu()
        self.llm = loaded(vllm, **settings, logprobs_mode="processed_logprobs")

    def answer(self, job: dict[str, Any]) -> dict[str, Any]:
        """The answer to a job."""
        if "weights" in job:
            self.llm.collective_rpc("reload_weights", kwargs={"weights_path": job["weights"]})
            self.llm.reset_prefix_cache()
            return {}
        return {"rollouts": self.sample(**job)}

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
        requests = [{"prompt_embeds": part} for part in prompts_of(prompts)]
        outs = self.llm.generate(requests, asked, use_tqdm=False)
        rolled = [[_rollout(one) for one in sorted(out.outputs, key=lambda one: one.index)] for out in outs]
        return rolled if temperature else [group * samples for group in rolled]


def _rollout(one: Any) -> tuple[list[int], list[float]]:
    tokens = [int(token) for token in one.token_ids]
    return tokens, [float(at[token].logprob) for token, at in zip(tokens, one.logprobs)]


class Rows:
    """One token a step for each row. vLLM reads prompts and computes logits; the token is chosen as the order of its
    row says, by the code that chooses for every other engine (choosing.py). So a row can be told what it must write."""

    reloads = False

    def __init__(self, vllm: Any, *, eos: int, banned: int, max_model_len: int, **settings: Any) -> None:
        os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"  # the newer one takes other logits processors
        self.params, self.banned, self.context = vllm.SamplingParams, banned, max_model_len
        self.choosing = runpy.run_path(os.path.join(HERE, "choosing.py"))
        self.orders: dict[int, dict[str, Any]] = {}  # by row, of this step
        self.written: dict[int, list[Any]] = {}
        self.there: set[int] = set()  # the rows that vLLM has
        self.llm = loaded(
            vllm, max_model_len=max_model_len, **settings, logits_processors=[self.processor()], async_scheduling=False
        )

    def processor(self) -> type:
        """What vLLM calls with the logits of each step."""
        from vllm.v1.sample.logits_processor import (  # pyright: ignore[reportMissingImports]
            LogitsProcessor,
            process_dict_updates,
        )

        rows = self

        class Choosing(LogitsProcessor):
            def __init__(self, config: Any, device: Any, pinned: bool) -> None:
                self.batch: dict[int, int] = {}  # the row at each place of the batch

            def is_argmax_invariant(self) -> bool:
                return False

            def update_state(self, batch_update: Any) -> None:
                process_dict_updates(self.batch, batch_update, lambda params, *_: params.extra_args["row"])

            def apply(self, logits: Any) -> Any:
                return rows.choose([self.batch[place] for place in range(len(logits))], logits)

        return Choosing

    def choose(self, batch: list[int], logits: Any) -> Any:
        """Choose a token for each row of the batch, note it, and leave it alone in the (A, V) logits."""
        import numpy as np
        import torch

        orders, own = [self.orders[row] for row in batch], logits.float()
        own[:, self.banned] = -torch.inf
        held = own
        if any(order["allowed"] for order in orders):
            held = own.clone()
            for order, part in zip(orders, held):
                if order["allowed"]:
                    bits = np.unpackbits(np.frombuffer(base64.b64decode(order["allowed"]), np.uint8))[: len(part)]
                    part.masked_fill_(~torch.from_numpy(bits.astype(bool)).to(part.device), -torch.inf)
        how = np.array([[order["temperature"], order["uniform"]] for order in orders], np.float32).T
        heat, draw = torch.from_numpy(how).to(held.device)[..., None]
        chosen = self.choosing["chosen"](held, heat, draw, how[0]).tolist()
        for row, order, part, (token, logprob) in zip(batch, orders, own, chosen):
            token = int(token) if order["forced"] is None else order["forced"]
            more = self.choosing["of_the_model"](part, token, order["top"]) if order["own"] else ()
            self.written[row] = [token, logprob, *more]
        alone = torch.full_like(logits, -torch.inf)
        alone[range(len(batch)), [self.written[row][0] for row in batch]] = 0.0
        return alone

    def answer(self, job: dict[str, Any]) -> dict[str, Any]:
        """The answer to a job."""
        if "forget" in job:
            self.leave(set())
            self.llm.reset_prefix_cache()
            return {}
        return {"rows": self.step(job["rows"], prompts_of(job["prompts"]) if job["prompts"] else [])}

    def leave(self, stay: set[int]) -> None:
        """All rows leave vLLM but these."""
        self.llm.llm_engine.abort_request([str(row) for row in sorted(self.there - stay)])
        self.there &= stay

    def step(self, orders: list[dict[str, Any]], prompts: list[Any]) -> list[list[Any]]:
        """A step of vLLM. `orders`: of all rows that it shall hold; a row that it does not hold yet has a prompt, in
        the same order. Returns for each row that has written: its number, the tokens of its prompt that were known,
        the token, its log-probability, and what the order asked besides (`of_the_model`). A row whose prompt is not
        read to its end has written nothing."""
        engine = self.llm.llm_engine
        self.orders, self.written = {order["row"]: order for order in orders}, {}
        self.leave(set(self.orders))
        for row, part in zip([row for row in self.orders if row not in self.there], prompts, strict=True):
            params = self.params(
                temperature=0.0,
                max_tokens=self.context - len(part),
                ignore_eos=True,  # lineside says when a row ends
                detokenize=False,
                extra_args={"row": row},
            )
            (prompt,) = engine.renderer.render_cmpl([{"prompt_embeds": part}])
            engine.add_request(str(row), prompt, params)
            self.there.add(row)
        found = []
        for out in engine.step():
            row, tokens = int(out.request_id), out.outputs[0].token_ids
            if tokens:
                if tokens[-1] != self.written[row][0]:
                    raise RuntimeError("this vLLM writes other tokens than lineside chooses")
                found.append([row, out.num_cached_tokens or 0, *self.written[row]])
            if out.finished:
                self.there.discard(row)
        return found


def end_with(parent: int, folder: str) -> None:
    """End when the parent has gone, however it ended, and take the folder with the weights along."""
    while os.getppid() == parent:
        time.sleep(1)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def main(parent: int, folder: str) -> None:
    """Answer the jobs on standard input until the parent has gone. `folder`: of weights and prompts."""
    answers = os.fdopen(os.dup(1), "w")  # vLLM prints to standard output: keep our own copy for answers
    os.dup2(2, 1)

    def tell(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    threading.Thread(target=end_with, args=(parent, folder), daemon=True).start()
    try:
        hide_what_does_not_load()
        import vllm  # pyright: ignore[reportMissingImports]

        tell({"vllm": vllm.__version__})  # pyright: ignore[reportAttributeAccessIssue]
        if begin := sys.stdin.readline():  # else the parent has gone
            settings = json.loads(begin)
            engine = (Rows if settings.pop("steps", False) else Sampling)(vllm, **settings)
            tell({"reloads": engine.reloads})
        for line in sys.stdin:
            tell(engine.answer(json.loads(line)))
        shutil.rmtree(folder, ignore_errors=True)  # the parent has gone
    except Exception as error:  # whatever vLLM raises, the parent tells it
        import traceback

        traceback.print_exc()
        tell({"error": " ".join(f"{type(error).__name__}: {error}".split())[:600]})
        sys.exit(1)


if __name__ == "__main__":
    sys.path[:] = [path for path in sys.path if os.path.abspath(path) != HERE]  # its neighbours are no modules of vLLM
    main(int(sys.argv[1]), sys.argv[2])
