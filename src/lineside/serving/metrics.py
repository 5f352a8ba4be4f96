"""`/metrics` in Prometheus' text format. Names are those of vLLM with `lineside:` in place of `vllm:`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from lineside.serving.timeline import Timeline

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.2, 2.0, 5.0, 10.0, 30.0)


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self.registry, self.timeline = CollectorRegistry(), Timeline()
        of: dict[str, Any] = {"registry": self.registry}
        label = ["model_name"]
        self.running = Gauge("lineside:num_requests_running", "Rows that are written now.", label, **of)
        self.waiting = Gauge("lineside:num_requests_waiting", "Accepted requests not yet read.", label, **of)
        self.success = Counter(
            "lineside:request_success", "Answered choices, by why they ended.", [*label, "finished_reason"], **of
        )
        self.refused = Counter(
            "lineside:admission_rejections", "Requests refused before they were read.", [*label, "reason"], **of
        )
        self.prompt = Counter("lineside:prompt_tokens", "Tokens of prompts.", label, **of)
        self.prefix_queries = Counter(
            "lineside:prefix_cache_queries", "Tokens of prompts that were looked for in memory.", label, **of
        )
        self.prefix_hits = Counter(
            "lineside:prefix_cache_hits", "Tokens of prompts whose keys and values were in memory.", label, **of
        )
        self.prefix_bytes = Gauge(
            "lineside:prefix_cache_bytes", "Memory of the keys and values of recent frames.", label, **of
        )
        self.written = Counter("lineside:generation_tokens", "Tokens written.", label, **of)
        self.latency = Histogram(
            "lineside:e2e_request_latency_seconds", "From the request's first byte to its answer.", label,
            buckets=SECONDS, **of,
        )  # fmt: skip
        self.queue = Histogram(
            "lineside:request_queue_time_seconds", "From the request's first byte to its reading.", label,
            buckets=SECONDS, **of,
        )  # fmt: skip
        self.first = Histogram(
            "lineside:time_to_first_token_seconds", "From the request's first byte to its first token.", label,
            buckets=SECONDS, **of,
        )  # fmt: skip
        self.prefill = Histogram(
            "lineside:request_prefill_time_seconds", "Encoding the pictures and reading the prompt.", label,
            buckets=SECONDS, **of,
        )  # fmt: skip
        self.decode = Histogram(
            "lineside:request_decode_time_seconds", "Writing the tokens.", label, buckets=SECONDS, **of
        )  # fmt: skip
        self.steps = Gauge("lineside:engine_steps", "Steps of the engine since it was started.", label, **of)
        self.thinking = Counter("lineside:thinking", "Choices, by how far they thought.", [*label, "thinking"], **of)
        self.deadline = Counter(
            "lineside:deadline", "Answers to requests with a deadline: met, missed.", [*label, "result"], **of
        )
        self.decision = Counter(
            "lineside:decision", "Typed answers, by what a cell should do.", [*label, "task", "decision"], **of
        )
        self.cancelled = Counter("lineside:request_cancelled", "Clients that hung up.", label, **of)
        self.http = Counter("lineside:http_responses", "Responses, by status.", ["status"], **of)
        self.verdicts = Counter(
            "lineside:verdict",
            "Answers whose truth was told, by the verifier: right, wrong, unknown.",
            [*label, "task", "verdict"],
            **of,
        )
        self.lost = Counter("lineside:outcomes_lost", "Answers that could not be kept as outcomes.", label, **of)
        self.shadow = Counter(
            "lineside:shadow",
            "Questions asked again of another version: answered, shed (no time to spare), failed.",
            [*label, "result"],
            **of,
        )
        self.home = {
            "serial": Gauge("lineside:home_serial", "Serial of the state of home that is served.", **of),
            "problem": Gauge("lineside:home_problem", "1: the last look at home changed nothing that it should.", **of),
            "answers_waiting": Gauge("lineside:home_answers_waiting", "Answers not yet sent home.", **of),
            "answers_sent": Gauge("lineside:home_answers_sent", "Answers sent home since the start.", **of),
        }

    def count(self, model: str, usage: Mapping[str, Any], ms: Mapping[str, float], *, met: bool | None) -> None:
        """Count an answered request: its tokens, its milliseconds by phase, and whether it met its deadline, if any."""
        self.timeline.answer(model, ms["total"], late=met is False)
        if met is not None:
            self.deadline.labels(model, "met" if met else "missed").inc()
        self.prompt.labels(model).inc(usage["prompt_tokens"])
        self.prefix_queries.labels(model).inc(usage["prompt_tokens"])
        self.prefix_hits.labels(model).inc(usage["prompt_tokens_details"]["cached_tokens"])
        self.written.labels(model).inc(usage["completion_tokens"])
        self.latency.labels(model).observe(ms["total"] / 1000)
        self.queue.labels(model).observe(ms["queue"] / 1000)
        self.prefill.labels(model).observe((ms["features"] + ms["prefill"]) / 1000)
        self.decode.labels(model).observe(ms["decode"] / 1000)
        self.first.labels(model).observe((ms["total"] - ms["decode"]) / 1000)

    def refuse(self, model: str, reason: str) -> None:
        """Count a request that is refused before it is read."""
        self.timeline.refuse(model)
        self.refused.labels(model, reason).inc()

    def judge(self, model: str, task: str, verdict: str) -> None:
        """Count an answer whose truth is told."""
        self.timeline.judge(model, verdict)
        self.verdicts.labels(model, task, verdict).inc()

    def text(self, states: Mapping[str, Mapping[str, Any]], home: Mapping[str, Any] | None = None) -> bytes:
        """The page, with what each engine said of itself last, and how the machine stands with its home."""
        for name, gauge in self.home.items():
            gauge.set(0 if home is None else float(bool(home[name]) if name == "problem" else home[name]))
        for name, state in states.items():
            self.running.labels(name).set(state["running"])
            self.waiting.labels(name).set(state["waiting"])
            self.prefix_bytes.labels(name).set(state["prefix_cache_bytes"])
            self.steps.labels(name).set(state["steps"])
        return generate_latest(self.registry)
