"""The server against others: one machine, one checkpoint, the same frames and questions, thinking on and off.

    python benchmarks/serve.py [--tiny] [--peers NAME ...] [--again] [--seed 0]

The checkpoint has SigLIP's and SmolLM2-135M's shape, so that every peer loads it, and random weights, but its answers
are forced by them: a token's embedding decides the next token, whatever an engine rounds. With thinking on it writes
<think>, 20 words, </think>, 3 words and the end token; with thinking off the last four. So lengths are known and the
same for all, and a trace can be cut. A peer whose replies have another number of tokens is not compared. For all
parties, checkpoint and full weights are in bf16 where this machine multiplies matrices faster in it, else in float32:
the first line says it.

- one: a fresh frame with one question, one after another: p50, p95, p99.
- eight: a fresh frame with eight questions, one frame after another. Ours and transformers take them together, the
  others as eight requests at once: answers a second.
- clients: eight clients that each ask one question after another about fresh frames: answers a second.
- open: single questions at random times, 1.5 times as many as our first engine answers eight clients, with a deadline
  of three times its p50 alone. Ours gets the deadline with the request. A peer has no deadlines: it gets a queue cap in
  front (requests beyond so many in flight are refused), and so does our first engine without deadlines. The best cap
  counts.

Each measurement is kept in benchmarks/out/serve-results.json as soon as it is made; the same command goes on. What was
measured while other processes had the processor says so, counts for no claim, and is measured again. A peer that is not
installed is printed as "not run". Claims go into benchmarks/out/serve.json; the exit status says whether all hold.
--tiny is a rehearsal with a language model of nano's shape and few requests: it claims nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import torch
from torch import nn

from common import OUT, WORDS, model_folder, picture, sentence
from lineside.files import write_atomic
from lineside.judgement.latency import busy_with_others, processor_time
from lineside.model.checkpoint import load, save
from lineside.runtime import CPU, compute_dtype, dtype_name
from serve_peers import MODEL, PEERS, Peer, Running

TRACE, ANSWER = 20, 3  # words
TOKENS = {True: TRACE + ANSWER + 3, False: ANSWER + 1}
MOST = 64  # max_tokens of every request
CAPS = (1, 2, 4, 8)
QUESTIONS = 8
CLOSED = ("one", "eight", "clients")  # loops: who asks waits for the answer
LOAD, DEADLINE = 1.5, 3.0  # times what our first engine answers, times its p50
Row = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """How much is measured: requests alone, frames of eight, requests a client, seconds of the open loop."""

    one: int = 100
    frames: int = 20
    each: int = 10
    seconds: float = 60.0


def checkpoint(name: str, form: str, *, tiny: bool) -> Path:
    """The checkpoint that all load, made at first use, in the number format `form`. Even if tiny, its heads are as wide
    as vLLM needs them."""
    folder = OUT / "models" / f"{name}-{form}" / "checkpoint"
    if not (folder / "config.json").exists():
        source, _ = model_folder(49, tiny=False, nano=tiny)
        vlm = load(source, dtype=compute_dtype(form, CPU))
        force(vlm)
        folder.parent.mkdir(parents=True, exist_ok=True)
        save(vlm, folder)
    return folder


@torch.no_grad()
def force(vlm: Any) -> None:
    """Let the last token alone decide the next one. The layers keep their random weights, but add little."""
    render, generator = vlm.render, torch.Generator().manual_seed(0)
    words = [vlm.tokenizer.encode(f" {word}", add_special_tokens=False)[-1] for word in WORDS]
    words = list(dict.fromkeys(words))[: TRACE + ANSWER]
    end = render.question("how many?", thinking=True)[-1]  # of a prompt with thinking on
    trace, answer = words[:TRACE], words[TRACE:]
    path = [end, render.think_open, *trace, render.think_close, *answer, render.eos_id]
    assert len(set(path)) == len(path) == TOKENS[True] + 1
    for layer in vlm.language_model.layers:
        for matrix in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
            matrix.mul_(0.02)
    embed = vlm.model.get_input_embeddings().weight
    embed.copy_(torch.randn(embed.shape, generator=generator).to(embed.dtype))
    head = 0.02 * torch.randn(embed.shape, generator=generator)
    for token, after in pairwise(path):
        head[after] = embed[token].float()
    vlm.model.lm_head.weight = nn.Parameter(head.to(embed.dtype), requires_grad=False)
    for config in (vlm.model.config, vlm.model.config.get_text_config()):
        config.tie_word_embeddings = False


# --- asking


class Client:
    """Asks a server, with fresh frames."""

    def __init__(self, server: Running, http: httpx2.AsyncClient, seed: int) -> None:
        self.server, self.http, self.random = server, http, random.Random(seed)
        self.frame, self.other = seed * 100_000, 0

    def _url(self) -> str:
        self.frame += 1
        return "data:image/jpeg;base64," + base64.b64encode(picture(self.frame)).decode()

    async def _post(self, path: str, body: Row, thinking: bool, answers: int = 1) -> tuple[float, int]:
        start = time.perf_counter()
        reply = await self.http.post(self.server.address + path, json=body)
        spent = 1000 * (time.perf_counter() - start)
        if reply.status_code == 200:
            more = reply.json()["usage"]["completion_tokens"] - answers * TOKENS[thinking]
            self.other += not -answers <= more <= 0  # the end token may be counted or not
        return spent, reply.status_code

    async def one(self, thinking: bool, *, url: str = "", deadline: float | None = None) -> tuple[float, int]:
        """A question about a fresh frame: milliseconds, status."""
        content = [
            {"type": "image_url", "image_url": {"url": url or self._url()}},
            {"type": "text", "text": sentence(12, self.random)},
        ]
        body: Row = {
            "model": MODEL,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": MOST,
            "temperature": 0,
            "chat_template_kwargs": {"enable_thinking": thinking},
        }
        if deadline is None:
            return await self._post("/v1/chat/completions", body, thinking)
        body["lineside"] = {"deadline_ms": deadline}
        before = self.other
        found = await self._post("/v1/chat/completions", body, thinking)
        self.other = before  # a trace may be cut
        return found

    async def eight(self, thinking: bool) -> tuple[float, int]:
        """Eight questions about a fresh frame: milliseconds until all are answered, status."""
        url, start = self._url(), time.perf_counter()
        if self.server.together:
            asked = [{"question": sentence(12, self.random), "thinking": thinking} for _ in range(QUESTIONS)]
            body = {"model": MODEL, "image": url, "questions": asked, "max_tokens": MOST}
            return await self._post(self.server.together, body, thinking, QUESTIONS)
        found = await asyncio.gather(*(self.one(thinking, url=url) for _ in range(QUESTIONS)))
        return 1000 * (time.perf_counter() - start), max(status for _, status in found)


async def one_by_one(ask: Callable[[], Awaitable[tuple[float, int]]], count: int) -> list[float]:
    """Milliseconds of each of `count` requests, after two that do not count."""
    found = [await ask() for _ in range(count + 2)]
    if any(status != 200 for _, status in found):
        raise RuntimeError(f"status {max(status for _, status in found)}")
    return sorted(spent for spent, _ in found[2:])


def share(ordered: list[float], part: float) -> float:
    """A percentile of sorted numbers."""
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


async def measure(client: Client, work: str, thinking: bool, sizes: Sizes) -> Row:
    """A closed loop."""
    if work == "one":
        spent = await one_by_one(lambda: client.one(thinking), sizes.one)
        found: Row = {f"p{n}_ms": share(spent, n / 100) for n in (50, 95, 99)}
        return {**found, "n": len(spent), "answers_s": 1000 / statistics.mean(spent)}
    if work == "eight":
        spent = await one_by_one(lambda: client.eight(thinking), sizes.frames)
        count = QUESTIONS * len(spent)
        return {"n": count, "p50_ms": share(spent, 0.5), "answers_s": 1000 * count / sum(spent)}
    await one_by_one(lambda: client.one(thinking), 1)
    start = time.perf_counter()
    loops = (one_by_one(lambda: client.one(thinking), sizes.each - 2) for _ in range(QUESTIONS))
    await asyncio.gather(*loops)
    count = QUESTIONS * sizes.each
    return {"n": count, "answers_s": count / (time.perf_counter() - start)}


async def open_loop(client: Client, plan: Row, seconds: float, *, cap: int | None) -> Row:
    """Requests at random times, the same for all. `cap`: most in flight; None: each has its deadline."""
    chance, deadline = random.Random(1), plan["deadline_ms"]
    arrivals, at = [], 0.0
    while (at := at + chance.expovariate(plan["rate"])) < seconds:
        arrivals.append(at)
    flying, refused, spent = 0, 0, []

    async def ask() -> None:
        nonlocal flying, refused
        if cap is not None and flying >= cap:
            refused += 1
            return
        flying += 1
        ms, status = await client.one(True, deadline=deadline if cap is None else None)
        flying -= 1
        if status == 200:
            spent.append(ms)
        else:
            refused += 1

    tasks, start = [], time.perf_counter()
    for due in arrivals:
        await asyncio.sleep(max(0.0, start + due - time.perf_counter()))
        tasks.append(asyncio.create_task(ask()))
    await asyncio.gather(*tasks)
    in_time = sum(ms <= deadline for ms in spent)
    return {
        "n": len(arrivals), "refused": refused, "answered": len(spent), "in_time_s": in_time / seconds,
        "late_over_10": sum(ms > 1.1 * deadline for ms in spent) / max(1, len(spent)), **plan,
    }  # fmt: skip


async def watched(measuring: Awaitable[Row]) -> Row:
    """A measurement, and why the machine was too busy for it, or ""."""
    before = processor_time()
    return {**await measuring, "busy": busy_with_others(before, processor_time())}


# --- the results


class Results:
    """What was measured, in a file. What was measured on a busy machine counts in a rehearsal only, and what was
    measured in another number format not at all."""

    def __init__(self, path: Path, again: bool, tiny: bool, form: str) -> None:
        self.path, self.tiny, self.form = path, tiny, form
        self.rows: list[Row] = [] if again or not path.exists() else json.loads(path.read_text())

    def find(self, **wanted: Any) -> list[Row]:
        """The rows that count and have these values."""
        counted = [row for row in self.rows if row.get("form") == self.form and (self.tiny or not row.get("busy"))]
        return [row for row in counted if all(row.get(key) == value for key, value in wanted.items())]

    def lacks(self, peer: Peer) -> bool:
        """Whether something is still to be measured of a peer."""
        closed = [self.find(peer=peer.name, work=work, thinking=on) for work in CLOSED for on in (False, True)]
        plan = self.plan()
        opened = (
            [self.find(peer=peer.name, work="open", cap=cap, **plan) for cap in caps_of(peer, plan)] if plan else [[]]
        )
        return not all(closed + opened)

    def add(self, row: Row) -> None:
        """Keep and print a row."""
        row["form"] = self.form
        self.rows.append(row)
        write_atomic(self.path, json.dumps(self.rows, indent=1) + "\n")
        told = ", ".join(f"{key} {value:.4g}" for key, value in row.items() if isinstance(value, float))
        how = "" if row.get("thinking") is None else f", thinking {'on' if row['thinking'] else 'off'}"
        cap = f", cap {row['cap']}" if row.get("cap") else ""
        busy = f" | {row['busy']}" if row.get("busy") else ""
        print(f"{row['peer']} | {row['work']}{how}{cap} | {told} | n {row['n']}{busy}", flush=True)

    def plan(self) -> Row | None:
        """The load of the open loop, by the first of our engines that was measured."""
        for peer in PEERS:
            alone = self.find(peer=peer.name, work="one", thinking=True)
            many = self.find(peer=peer.name, work="clients", thinking=True)
            if peer.name.startswith("ours") and alone and many:
                return {
                    "by": peer.name,
                    "rate": LOAD * many[0]["answers_s"],
                    "deadline_ms": DEADLINE * alone[0]["p50_ms"],
                }
        return None


async def run(peer: Peer, server: Running, results: Results, sizes: Sizes, seed: int) -> None:
    """All that is still to be measured of a peer."""
    async with httpx2.AsyncClient(timeout=600) as http:
        client = Client(server, http, seed + 1)
        for work in CLOSED:
            for thinking in (False, True):
                if not results.find(peer=peer.name, work=work, thinking=thinking):
                    found = await watched(measure(client, work, thinking, sizes))
                    kept = {"peer": peer.name, "work": work, "thinking": thinking, "other_lengths": client.other}
                    results.add({**kept, "memory_mb": server.memory_mb(), **found})
        if (plan := results.plan()) is None:
            return
        for cap in caps_of(peer, plan):
            if not results.find(peer=peer.name, work="open", cap=cap, **plan):
                found = await watched(open_loop(client, plan, sizes.seconds, cap=cap))
                results.add({"peer": peer.name, "work": "open", "cap": cap, **found})


def caps_of(peer: Peer, plan: Row) -> tuple[int | None, ...]:
    """The queue caps that a peer is tried with; None: with deadlines."""
    if not peer.name.startswith("ours"):
        return CAPS
    return (None, *CAPS) if peer.name == plan["by"] else (None,)


def claims(results: Results, command: str) -> Iterator[Row]:
    """The goals. A peer whose answers had other lengths is left out."""
    wrong = {row["peer"] for row in results.rows if row.get("other_lengths") and row.get("form") == results.form}
    for name in sorted(wrong):
        print(f"{name}: answers of other lengths; it is not compared")
    rows = [row for row in results.find() if row["peer"] not in wrong]
    narrow = {peer.name for peer in PEERS if peer.int8}

    def of(work: str, ours: bool, **more: Any) -> list[Row]:
        found = [row for row in rows if row["work"] == work and row["peer"].startswith("ours") == ours]
        return [row for row in found if all(row.get(key) == value for key, value in more.items())]

    def claim(text: str, mine: list[Row], others: list[Row], key: str, **bound: float) -> Iterator[Row]:
        if not mine or not others:
            print(f"{text}: not measured")
            return
        best = min if key == "p50_ms" else max
        one, other = (best(some, key=lambda row: row[key]) for some in (mine, others))
        value = one[key] / max(other[key], 1e-9)
        holds = value >= bound["at_least"] if "at_least" in bound else value <= bound["at_most"]
        told = f"{one['peer']} {one[key]:.4g}, {other['peer']} {other[key]:.4g}"
        print(f"{text}: {value:.3g} ({told}){'' if results.tiny else ': holds' if holds else ': DOES NOT HOLD'}")
        kept = {"claim": text, "value": value, **bound, "holds": holds, "n": one["n"]}
        yield {**kept, "command": command, "form": results.form, "details": told}

    for thinking in (False, True):
        how = f"thinking {'on' if thinking else 'off'}"
        alone = of("one", True, thinking=thinking), of("one", False, thinking=thinking)
        yield from claim(f"one question: our p50 to the best peer's, {how}", *alone, "p50_ms", at_most=1.0)
        mine, others = ([row for row in some if row["peer"] in narrow] for some in alone)
        yield from claim(f"one question, int8: our p50 to the best peer's, {how}", mine, others, "p50_ms", at_most=1.3)
        many = of("eight", True, thinking=thinking), of("eight", False, thinking=thinking)
        yield from claim(f"eight questions: our answers/s to the best peer's, {how}", *many, "answers_s", at_least=3)
    opened = [row for row in results.find(work="open", **(results.plan() or {})) if row["peer"] not in wrong]
    mine, capped = ([row for row in opened if (row["cap"] is None) == deadlines] for deadlines in (True, False))
    text = "1.5 times the load: our answers in time to those of the best queue cap"
    yield from claim(text, mine, capped, "in_time_s", at_least=3)


def main() -> int:
    """Measure what is missing, and print and write the claims."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a small model, few requests: a rehearsal, without claims")
    parser.add_argument("--peers", nargs="+", help="only these (words of their names)")
    parser.add_argument("--again", action="store_true", help="forget what was measured")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    sizes = Sizes(one=4, frames=2, each=3, seconds=10.0) if chosen.tiny else Sizes()
    name = "serve-tiny" if chosen.tiny else "serve"
    form = dtype_name(compute_dtype("auto", CPU))
    print(f"number format of the checkpoint and of full weights, for all: {form}", flush=True)
    results = Results(OUT / f"{name}-results.json", chosen.again, chosen.tiny, form)
    model = checkpoint(name, form, tiny=chosen.tiny)
    for peer in PEERS:
        if chosen.peers and not any(word.lower() in peer.name.lower() for word in chosen.peers):
            continue
        if lacks := peer.lacks():
            print(f"{peer.name} | not run: {lacks}")
            continue
        if not results.lacks(peer):
            continue
        try:
            with peer.running(model) as server:
                asyncio.run(run(peer, server, results, sizes, chosen.seed))
        except (RuntimeError, OSError, subprocess.SubprocessError, httpx2.HTTPError) as error:
            print(f"{peer.name} | not run: {error}", flush=True)
    found = list(claims(results, " ".join(["python benchmarks/serve.py", *sys.argv[1:]])))
    if chosen.tiny:
        return 0
    write_atomic(OUT / "serve.json", json.dumps(found, indent=2) + "\n")
    return 0 if found and all(row["holds"] for row in found) else 1


if __name__ == "__main__":
    sys.exit(main())
