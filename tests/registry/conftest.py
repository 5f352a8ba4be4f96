"""Registries with models of a few bytes. What is tested here does not look into a model's files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from lineside.registry.promotion import Outcome, add_verdict
from lineside.registry.store import Registry, Version

ABOUT = {
    "run": "week0", "stage": "rlvr", "stages": ["sft", "rlvr"], "weights": "", "ancestors": [], "data": {},
    "trained": None,
}  # fmt: skip


def add(registry: Registry, name: str, content: str, **about: object) -> Version:
    """Register a model of two files."""
    source = registry.folder.parent / "sources" / f"{content}-{len(about)}-{os.getpid()}"
    source.mkdir(parents=True, exist_ok=True)
    (source / "model.safetensors").write_text(content)
    (source / "config.json").write_text("{}")
    files = {path.name: path for path in source.iterdir()}
    return add_files(registry, name, files, {**ABOUT, "weights": f"w-{content}", **about})


def add_files(registry: Registry, name: str, files: Mapping[str, Path], about: Mapping[str, object] = ABOUT) -> Version:
    """Register a model of any files."""
    with registry.staging() as place:
        staged = registry.stage(place, "model", files, about)
        with registry.transaction():
            return registry.add_version(name, registry.put(staged).hash)[0]


def judged(registry: Registry, challenger: Version, champion: Version, outcome: Outcome) -> str:
    """A gate's verdict; returns the hash of its item."""
    page = registry.folder.parent / "page.html"
    page.write_text(f"{challenger.label} {champion.label} {outcome}")
    return add_verdict(registry, challenger.model, champion.model, outcome, {"page.html": page}, {}).item.hash


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with Registry(tmp_path / "registry", create=True) as registry:
        yield registry
