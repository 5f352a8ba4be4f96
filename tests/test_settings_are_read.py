"""Every setting that a user can write into a recipe or a task file is read by some code: none is only decoration."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

import lineside
from lineside.data.taskfile import TaskFile
from lineside.recipe import Recipe
from lineside.strict import Strict

PACKAGE = Path(lineside.__file__).parent
DEFINED = {"recipe.py", "taskfile.py"}  # a validator that looks at its own setting does nothing with it


class Reads(ast.NodeVisitor):
    """Names that are read as attributes of something else than `self`, and sections that are read as a whole."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.whole: set[str] = set()

    def visit_Attribute(self, node: ast.Attribute) -> None:
        own = isinstance(node.value, ast.Name) and node.value.id == "self"
        if isinstance(node.ctx, ast.Load) and not own:
            self.names.add(node.attr)
            if node.attr in ("model_dump", "model_dump_json") and isinstance(node.value, ast.Attribute):
                self.whole.add(node.value.attr)
        self.generic_visit(node)


def reads_of(*sources: str) -> Reads:
    reads = Reads()
    for source in sources:
        reads.visit(ast.parse(source))
    return reads


def code() -> list[str]:
    return [path.read_text() for path in sorted(PACKAGE.rglob("*.py")) if path.name not in DEFINED]


def sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from sections_in(inner)


def unread(model: type[BaseModel], reads: Reads, path: str = "") -> Iterator[str]:
    """Dotted names of settings that no code reads. What a section's own properties read is counted with it."""
    own = {name for name, value in vars(model).items() if isinstance(value, property) and name in reads.names}
    for name, field in model.model_fields.items():
        if name not in reads.names and not own:
            yield f"{path}{name}"
        for section in sections_in(field.annotation):
            if name not in reads.whole:
                yield from unread(section, reads, f"{path}{name}.")


@pytest.mark.parametrize("model", [Recipe, TaskFile])
def test_every_setting_is_read(model: type[BaseModel]) -> None:
    assert sorted(unread(model, reads_of(*code()))) == [], "no code reads these settings: use them or remove them"


def test_a_setting_that_nothing_reads_is_found() -> None:
    class Inner(Strict):
        used: int = 0
        forgotten: int = 0

    class Outer(Strict):
        inner: Inner = Inner()
        many: tuple[Inner, ...] = ()
        dumped: Inner = Inner()

    source = "settings.inner.used; settings.many; self.forgotten; settings.dumped.model_dump()"
    assert list(unread(Outer, reads_of(source))) == ["inner.forgotten", "many.forgotten"]
    assert list(unread(Outer, reads_of(source + "; x.forgotten"))) == []
    assert "forgotten" in "".join(unread(Outer, reads_of(source + "\nsettings.inner.forgotten = 1")))
