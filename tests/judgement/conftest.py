"""Samples and rows that the judgement tests share. Pictures are named by their bytes; none is ever decoded here."""

from __future__ import annotations

from typing import Any

import pytest

from lineside.judgement.schema import Row
from lineside.types import Image, Meta, Sample, Source, Target


def choice(*accepted: str, options: tuple[str, ...] = ("yes", "no"), provenance: Any = "sim") -> Target:
    return Target("choice", provenance, accepted=accepted, options=options)


def question(id: str, target: Target | None, **changes: Any) -> Sample:
    """A qa sample of one made-up picture; `changes` replace its fields, `scene` and `extra` those of its meta."""
    meta = Meta(scene=changes.pop("scene", f"scene-{id}"), cell=changes.pop("cell", ""), extra=changes.pop("extra", {}))
    fields: dict[str, Any] = {
        "kind": "qa",
        "images": (Image(id.encode()),),
        "family": "picking",
        "task": "empty",
        "question": "Is the bin empty?",
        "trace": None,
        "answer": target.accepted[0] if target and target.accepted else None,
        "target": target,
        "split": "heldout",
        "source": Source(),
    }
    return Sample(id=id, meta=meta, **{**fields, **changes})


def row(id: str, **changes: Any) -> Row:
    """A right answer to a yes/no question with a valid trace."""
    fields: dict[str, Any] = {
        "id": id,
        "scene": f"scene-{id}",
        "family": "picking",
        "task": "empty",
        "question": "Is the bin empty?",
        "target": choice("no").to_json(),
        "reference": "no",
        "images": [f"{id}-picture"],
        "text": "<think>two parts lie in it</think>no",
        "trace": "two parts lie in it",
        "answer": "no",
        "exact": True,
        "reward": 1.0,
        "reason": "",
        "trace_class": "valid",
        "trace_problem": "",
        "facts": None,
        "tokens": 9,
        "answer_tokens": 2,
        "finished": True,
        "confidence": 0.9,
        "latency_ms": 100.0,
        "budget_ms": None,
        "within_budget": True,
        "weight": None,
        "blind": "no",
        "blind_exact": True,
        "classifier": "no",
        "classifier_exact": True,
    }
    return Row(**{**fields, **changes})


def wrong(id: str, **changes: Any) -> Row:
    """The same question answered wrongly."""
    fields = {"answer": "yes", "exact": False, "reward": 0.0, "reason": "wrong", "within_budget": False}
    return row(id, **{**fields, **changes})


def beside_rows() -> dict[str, Any]:
    """What `summarise` takes beside the rows."""
    from lineside.judgement.schema import Decoding, Provenance

    return {
        "stage": "sft",
        "split": "heldout",
        "mode": "think",
        "seed": 0,
        "latency": None,
        "captions": None,
        "decoding": Decoding(temperature=0.0, max_new_tokens=96),
        "provenance": Provenance(
            date="2026-01-01T00:00:00+00:00",
            seed=0,
            git=None,
            version="0",
            machine="a machine",
            data="0" * 64,
            scenes=1,
            left_out=0,
        ),
    }


@pytest.fixture
def summary_arguments() -> dict[str, Any]:
    return beside_rows()
