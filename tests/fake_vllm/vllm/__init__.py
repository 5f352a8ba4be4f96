"""Stands for vLLM in tests: the calls of it that vllm_engine.py makes, answered by a dense Llama in plain torch.

FAKE_VLLM names what else it does: `cpu` (loads new weights without taking them, as vLLM on a CPU does), `stale` (the
same, but says that it is no CPU), `old`, `no-start`, `killed`, `mute`.
"""

import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

FAULT = os.environ.get("FAKE_VLLM", "")
__version__ = "0.9.1" if FAULT == "old" else "0.32.0"


class SamplingParams(SimpleNamespace):
    def __init__(self, **how):
        super().__init__(**how)
        if FAULT == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if FAULT == "mute":
            time.sleep(600)


class LLM:
    def __init__(
        self, model, *, dtype, enable_prompt_embeds, max_model_len, logprobs_mode=None, logits_processors=(), **_
    ):
        if FAULT == "no-start":
            raise ValueError("the KV cache needs 7.0 GiB, and 0.3 GiB are free")
        assert enable_prompt_embeds and max_model_len > 0
        assert logits_processors or logprobs_mode == "processed_logprobs"
        self.folder, self.loaded, self.dtype, self.context = model, None, dtype, max_model_len
        self.llm_engine = Engine(self, [kind(None, None, False) for kind in logits_processors])

    def load(self, folder):
        from safetensors.torch import load_file

        self.config = json.loads((Path(folder) / "config.json").read_text())
        assert self.config["architectures"] == ["LlamaForCausalLM"]
        self.loaded = folder
        self.weights = load_file(Path(folder) / "model.safetensors")
        assert {str(weight.dtype) for weight in self.weights.values()} == {f"torch.{self.dtype}"}

    def collective_rpc(self, method, *, kwargs):
        assert method == "reload_weights"
        if FAULT not in ("cpu", "stale"):
            self.folder = kwargs["weights_path"]

    def reset_prefix_cache(self):
        pass

    def ready(self):
        import torch

        self.torch = torch
        torch.set_num_threads(1)
        if self.loaded != self.folder:
            self.load(self.folder)
        return torch

    def generate(self, requests, params, *, use_tqdm):
        with self.ready().no_grad():
            return [self.answer(request["prompt_embeds"], how) for request, how in zip(requests, params, strict=True)]

    def answer(self, embeds, how):
        torch, table = self.torch, self.weights["model.embed_tokens.weight"]
        assert str(embeds.dtype) == f"torch.{self.dtype}"
        x = embeds.expand(how.n, -1, -1)
        draws = [torch.Generator().manual_seed(how.seed + row) for row in range(how.n)]
        outputs = [SimpleNamespace(index=row, token_ids=[], logprobs=[]) for row in range(how.n)]
        for _ in range(how.max_tokens):
            logits = self.hidden(x)[:, -1].float() @ self.weights.get("lm_head.weight", table).float().T
            for token, bias in how.logit_bias.items():
                logits[:, token] += bias
            logprobs = (logits / (how.temperature or 1.0)).log_softmax(-1)
            for row, draw, out in zip(logprobs, draws, outputs):
                greedy = not how.temperature
                token = int(row.argmax() if greedy else torch.multinomial(row.exp(), 1, generator=draw))
                if not out.token_ids or out.token_ids[-1] not in how.stop_token_ids:
                    out.token_ids.append(token)
                    out.logprobs.append({token: SimpleNamespace(logprob=float(row[token]))})
            if all(out.token_ids[-1] in how.stop_token_ids for out in outputs):
                break
            x = torch.cat([x, table[torch.tensor([[out.token_ids[-1]] for out in outputs])]], 1)
        return SimpleNamespace(outputs=outputs[::-1])  # in no order that may be relied on

    def hidden(self, x):
        torch, weights, config = self.torch, self.weights, self.config
        heads, groups, wide = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
        rope = config.get("rope_parameters") or config
        turn = 1 / rope["rope_theta"] ** (torch.arange(0, wide, 2) / wide)
        angle = torch.arange(x.shape[1])[:, None] * torch.cat([turn, turn])
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)

        def normed(x, name):
            scaled = x.float() * (x.float().pow(2).mean(-1, keepdim=True) + config["rms_norm_eps"]).rsqrt()
            return scaled.to(x.dtype) * weights[f"{name}.weight"]

        def split(x, name, count):
            return (x @ weights[f"{name}.weight"].T).unflatten(-1, (count, wide)).transpose(1, 2)

        def turned(x):
            half = torch.cat([-x[..., wide // 2 :], x[..., : wide // 2]], -1)
            return x * cos + half * sin

        for layer in range(config["num_hidden_layers"]):
            at = f"model.layers.{layer}"
            y = normed(x, f"{at}.input_layernorm")
            q = turned(split(y, f"{at}.self_attn.q_proj", heads))
            k = turned(split(y, f"{at}.self_attn.k_proj", groups)).repeat_interleave(heads // groups, 1)
            v = split(y, f"{at}.self_attn.v_proj", groups).repeat_interleave(heads // groups, 1)
            mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + mixed.transpose(1, 2).flatten(2) @ weights[f"{at}.self_attn.o_proj.weight"].T
            y = normed(x, f"{at}.post_attention_layernorm")
            gate, up = (y @ weights[f"{at}.mlp.{name}_proj.weight"].T for name in ("gate", "up"))
            x = x + (torch.nn.functional.silu(gate) * up) @ weights[f"{at}.mlp.down_proj.weight"].T
        return normed(x, "model.norm")


class Engine:
    """Requests that get a token a step. As in vLLM, one of a step begins to read at most `READS` prompts: the others
    write nothing yet, and the order of outputs may not be relied on."""

    READS = 3

    def __init__(self, llm, processors):
        self.llm, self.processors, self.held = llm, processors, {}
        self.renderer = SimpleNamespace(render_cmpl=lambda prompts: [{**one, "type": "embeds"} for one in prompts])

    def add_request(self, name, prompt, params):
        assert prompt["type"] == "embeds" and not params.temperature
        assert len(prompt["prompt_embeds"]) + params.max_tokens <= self.llm.context
        self.held[name] = SimpleNamespace(prompt=prompt["prompt_embeds"], params=params, tokens=[], last=None)

    def abort_request(self, names):
        for name in names:
            self.held.pop(name, None)

    def step(self):
        torch = self.llm.ready()
        reading = [name for name, one in self.held.items() if not one.tokens][: self.READS]
        batch = {name: one for name, one in self.held.items() if one.tokens or name in reading}
        table = self.llm.weights["model.embed_tokens.weight"]
        head = self.llm.weights.get("lm_head.weight", table).float()
        with torch.no_grad():
            logits = torch.stack(
                [self.llm.hidden(torch.cat([one.prompt, table[one.tokens]])[None])[0, -1].float() @ head.T
                 for one in batch.values()]
            )  # fmt: skip
        for processor in self.processors:
            processor.update_state([one.params for one in batch.values()])
            logits = processor.apply(logits)
        for one, token in zip(batch.values(), logits.argmax(-1).tolist()):
            one.tokens.append(token)
        out = [
            SimpleNamespace(
                request_id=name, outputs=[SimpleNamespace(token_ids=one.tokens)], num_cached_tokens=0,
                finished=len(one.tokens) >= one.params.max_tokens,
            )
            for name, one in batch.items()
        ]  # fmt: skip
        for one in out:
            if one.finished:
                del self.held[one.request_id]
        return out[::-1]
