"""The pages that `make docs` writes from the code: docs/recipe.md from the settings of a recipe, docs/task-file.md from
the keys of a task file. A test compares pages and code.

A section is a heading, a setting or key is a row of its table. What the three stages share stands once.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args

from lineside.data.taskfile import Section as FileSection
from lineside.data.taskkeys import SECTIONS, about, keys
from lineside.recipe import Recipe, StageSettings
from lineside.settings import Settings

DOCS = Path(__file__).parents[1] / "docs"
EVERY_STAGE = "align, sft, rlvr"  # the heading of what they share
RECIPE_HEAD = """# Recipes and their settings

A recipe is a YAML file that holds every setting of a run. This page lists all settings with their types and defaults.
It is generated from `src/lineside/recipe.py` by `make docs`; do not edit it by hand.

A section left out of the file takes its defaults. An unknown key, a wrong type or a key written twice is an error that
names the file, the line and the nearest known key. A key that had another name in an earlier version is refused with
its new name. Any setting can be given on the command line and wins over the file:

```sh
lineside train recipes/nano.yaml name=nano-1 seed=1 sft.learning_rate.lm=2e-4
```

The package brings the recipes in `recipes/`; each can be named without its path, also where lineside was installed from
a wheel: `lineside train nano`. [Models](models.md#recipes) says what each is for.

`null` leaves a section or a value out (`data.simulate=null`). A run writes the recipe with every setting into
`runs/<name>/recipe.yaml` and goes on only with that recipe; the settings of a stage that has not begun may change.

"""


TASK_HEAD = """# Every key of a task file

A task file holds a cell's questions; [labels](label.md#a-task-file) says how it is used. This page lists every key
with its type, its default and an example. It is generated from `src/lineside/data/taskfile.py` by `make docs`; do not
edit it by hand. `lineside task keys` prints the same, `lineside task keys tolerance` one key or section.

An unknown key, a wrong type or a key written twice is an error that names the file, the task and the nearest known key.

"""


class Section(NamedTuple):
    """One heading and its table. `defaults` holds the values where the section above sets them, else None."""

    path: str  # as in the file: "sft.learning_rate"; "" for the top
    kind: type[Settings]
    defaults: Settings | None = None

    @property
    def is_stage(self) -> bool:
        """One of the three stages, not what they share."""
        return issubclass(self.kind, StageSettings) and self.path != EVERY_STAGE


def pages() -> dict[Path, str]:
    """The text of each generated page."""
    recipe = RECIPE_HEAD + "\n".join(map(_text, _sections()))
    tasks = TASK_HEAD + "\n".join(_keys(section, place) for section, place in SECTIONS.items())
    return {DOCS / "recipe.md": recipe, DOCS / "task-file.md": tasks}


def _keys(section: type[FileSection], place: str) -> str:
    """A section of a task file as a heading and a table."""
    rows = [
        f"| `{key.name}` | {_cell(key.type)} | {_cell(key.default)} | {_cell(key.text)} | `{key.example}` |"
        for key in keys()
        if key.model is section
    ]
    title = f"`{place}`" if place else "The top of the file"
    head = ["| key | type | default | what it is | example |", "| --- | --- | --- | --- | --- |"]
    return "\n".join([f"## {title}", "", about(section), "", *head, *rows, ""])


def _cell(text: str) -> str:
    """Text that does not break a table."""
    return text.replace("|", "\\|")


def _sections() -> Iterator[Section]:
    """Every section, each before those within it."""
    yield Section("", Recipe)
    for section in _below(Section("", Recipe)):
        if section.path == "align":
            yield Section(EVERY_STAGE, StageSettings)
        yield section


def _below(section: Section) -> Iterator[Section]:
    for name, field in section.kind.model_fields.items():
        if (kind := _settings_in(field.annotation)) is not None:
            path = f"{section.path}.{name}" if section.path else name
            below = Section(path, kind, field.default if isinstance(field.default, Settings) else None)
            yield below
            yield from _below(below)


def _settings_in(annotation: Any) -> type[Settings] | None:
    """The section that a field holds, also where it may be null or stands in a list."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return annotation
    return next(filter(None, map(_settings_in, get_args(annotation))), None)


def _text(section: Section) -> str:
    shown = section.path if section.path in ("", EVERY_STAGE) else f"`{section.path}`"
    lines = [
        f"## {shown or 'The top of the file'}",
        "",
        " ".join(inspect.cleandoc(section.kind.__doc__ or "").split()),
        "",
    ]
    names = list(section.kind.model_fields)
    if section.is_stage:
        lines += [f"Beside these, everything under [{EVERY_STAGE}](#{_anchor(EVERY_STAGE)}).", ""]
        names = [name for name in names if not _shared(section.kind, name)]
    schema = section.kind.model_json_schema()["properties"]
    lines += ["| setting | type | default | what it is |", "| --- | --- | --- | --- |"]
    return "\n".join([*lines, *(_row(section, name, schema) for name in names), ""])


def _shared(kind: type[Settings], name: str) -> bool:
    """Whether a setting of a stage is the one that every stage has."""
    shared = StageSettings.model_fields.get(name)
    return shared is not None and shared.default == kind.model_fields[name].default


def _row(section: Section, name: str, properties: dict[str, Any]) -> str:
    field = section.kind.model_fields[name]
    written = field.alias or name  # as in the file
    schema = properties[written]
    if _settings_in(field.annotation) is not None:
        path = f"{section.path}.{name}" if section.path else name
        link = f"[{path}](#{_anchor(path)})"
        type_ = f"list of {link}" if schema.get("type") == "array" else link
    else:
        type_ = _type(schema)
    if section.defaults is None and field.is_required():
        default = "required"
    else:
        value = getattr(section.defaults, name) if section.defaults else field.default
        default = "see there" if isinstance(value, Settings) else f"`{_yaml(value)}`"
    about = " ".join((field.description or "").split())
    return f"| `{written}` | {type_} | {default} | {about} |"


def _type(schema: dict[str, Any]) -> str:
    """A JSON schema in words."""
    if "anyOf" in schema:
        return " or ".join("`null`" if s.get("type") == "null" else _type(s) for s in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    words = {"integer": "whole number", "number": "number", "boolean": "`true` or `false`", "string": "text"}
    kind = "path" if schema.get("format") == "path" else words.get(schema.get("type", ""), "value")
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    bounds = [f"from {low:g}" if low is not None else "", f"above {above:g}" if above is not None else ""]
    bounds += [f"to {high:g}" if high is not None else "", f"below {below:g}" if below is not None else ""]
    return " ".join([kind, *filter(None, bounds)])


def _yaml(value: Any) -> str:
    """A default as YAML writes it."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    return json.dumps(value)


def _anchor(heading: str) -> str:
    """As GitHub makes it of a heading."""
    return "".join(c for c in heading.lower().replace(" ", "-") if c.isalnum() or c in "-_")


if __name__ == "__main__":
    for file, text in pages().items():
        file.write_text(text)
        print(file)
