"""What the server answers: from the rows of an engine to OpenAI's objects and to typed answers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from lineside.judgement.answers import CUT
from lineside.judgement.schema import TypedAnswer
from lineside.judgement.taskbook import Named, TaskBook
from lineside.types import Region, Rollout

FINISH = {"stop": "stop", "length": "length", "deadline": "length"}
LEAST = -9999.0  # the log-probability of a token that cannot be, as OpenAI writes it
SAMPLED = "sampled at a temperature: calibrated are greedy answers"

BENT = "the form of the answer (response_format) changed what was written: calibrated are free answers"

Thought = Literal["full", "cut", "off"]


class Question(NamedTuple):
    """A question as it was asked: its text, its task, whether to think, and the region that was shown."""

    text: str
    named: Named
    thinking: bool
    region: Region | None


class Answered(NamedTuple):
    """One row, read. `thought`: whether the model thought to the end, was cut, or did not think."""

    typed: TypedAnswer
    thought: Thought
    confidence: float
    """The model's own probability of its answer."""


def answered(
    row: Mapping[str, Any], question: Question, book: TaskBook, *, think_close: int, ms: float, temperature: float
) -> Answered:
    """A row of the engine as the typed answer that `lineside ask` gives for the same tokens."""
    tokens, logprobs, text = row["tokens"], row["logprobs"], row["text"]
    thinking, cut = row["thinking"], row["cut"]
    if cut and tokens[1:2] == [think_close]:  # the trace is empty: the model has not thought
        tokens, logprobs, text, thinking, cut = tokens[2:], logprobs[2:], row["content"], False, False
    rollout = Rollout(tuple(tokens), tuple(logprobs), text, row["finished"])
    uncalibrated = SAMPLED if temperature else CUT if cut else BENT if row["bent"] else ""
    found = book.answer(
        rollout,
        question.text,
        question.named,
        thinking=thinking,
        think_close=think_close,
        ms=ms,
        region=question.region,
        uncalibrated=uncalibrated,
    )
    return Answered(found.typed, "cut" if cut else "full" if thinking else "off", found.confidence)


def own_fields(row: Mapping[str, Any], one: Answered) -> dict[str, Any]:
    """What a choice holds beside OpenAI's fields."""
    return {
        "answer": one.typed.model_dump(mode="json"),
        "thinking": one.thought,
        "model_probability": one.confidence,
        "ended": row["reason"],
        **({} if row["form"] is None else {"form": row["form"]}),
    }


def message(row: Mapping[str, Any]) -> dict[str, Any]:
    """The assistant's turn. The trace has two names, since clients differ."""
    reasoning = row["reasoning"] or None
    return {
        "role": "assistant",
        "content": row["content"],
        "refusal": None,
        "reasoning": reasoning,
        "reasoning_content": reasoning,
    }


def logprobs(row: Mapping[str, Any], texts: Mapping[str, str]) -> dict[str, Any]:
    """Log-probabilities of the answer's tokens, its end token left out."""

    def named(token: int, logprob: float) -> dict[str, Any]:
        text = texts.get(str(token), "")
        return {"token": text, "logprob": max(logprob, LEAST), "bytes": list(text.encode("utf-8", "replace"))}

    content = []
    last = len(row["tokens"]) - row["finished"]
    for place in range(row["answer_from"], last):
        top = [named(token, logprob) for token, logprob in row["tops"][place]]
        content.append({**named(row["tokens"][place], row["logprobs"][place]), "top_logprobs": top})
    return {"content": content, "refusal": None}


def usage(done: Mapping[str, Any]) -> dict[str, Any]:
    """Tokens read and written."""
    written = sum(len(row["tokens"]) for row in done["rows"])
    return {
        "prompt_tokens": done["prompt_tokens"],
        "completion_tokens": written,
        "total_tokens": done["prompt_tokens"] + written,
        "prompt_tokens_details": {"cached_tokens": done["cached_tokens"]},
        "completion_tokens_details": {"reasoning_tokens": sum(row["answer_from"] for row in done["rows"])},
    }


def envelope(kind: str, name: str, model: str, version: str) -> dict[str, Any]:
    """The fields that every object of an answer begins with."""
    return {
        "id": name,
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": version,
    }
