"""Shared by the pages: templates with every value escaped."""

from __future__ import annotations

import functools
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined, Template

from lineside.judgement.console import (
    acts_from,
    certainty,
    false_facts,
    latency_text,
    milliseconds,
    per_thousand,
    percent,
    points,
    task_name,
)


def fill_template(template: str, **values: Any) -> str:
    """A template of the package, filled, as HTML. A missing value is an error."""
    return _compiled(template).render(**values)


@functools.cache  # compiling takes longer than filling, and a run writes its report after each stage
def _compiled(template: str) -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "percent": percent,
        "points": points,
        "milliseconds": milliseconds,
        "per_thousand": per_thousand,
        "latency": latency_text,
        "certainty": certainty,
        "acts_from": acts_from,
        "false_facts": false_facts,
        "task_name": task_name,
    }
    source = resources.files("lineside").joinpath("templates", template).read_text(encoding="utf-8")
    return environment.from_string(source)
