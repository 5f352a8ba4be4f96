"""The import rule of the house, read from the source: what may know what, directly and through others."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

from lineside.stages import TABLE

PACKAGE = Path(__file__).parents[1] / "src" / "lineside"
# What lies at the top and is no verb: all may import it. Every other file there is a verb.
SHARED = {
    "types", "errors", "files", "flags", "hashing", "hashmap", "images", "machine", "origin", "progress", "ranks",
    "recipe", "runtime", "settings", "stages", "strict",
}  # fmt: skip
VERBS = {path.stem for path in PACKAGE.glob("*.py")} - SHARED - {"__init__", "__main__"}
RUN_VERBS = {"train", "retrain", "gate"}  # these are made of other verbs
# Folders that form one part: their modules use each other, but form no circle.
MODEL = {"model", "families", "backends"}
# What a part may import, of the other parts. Modules at the top that are no verbs (types, errors, recipe ...) are free
# for all, as far as no circle arises.
PARTS: dict[str, set[str]] = {
    "verify": set(),
    "sim": {"verify"},
    **dict.fromkeys(MODEL, MODEL),
    "data": {"verify", "sim"},
    "training": {"verify", "data", *MODEL},
    "judgement": {"verify", "data", "training", *MODEL},
    "reviewing": {"verify", "data", "judgement"},
    "registry": {"verify", "data", "training", "judgement", *MODEL},
    "serving": {"verify", "data", "training", "judgement", "registry", *MODEL},
    "fleet": {"registry", "serving", "judgement", "verify", "data"},
    "exporting": {"verify", "data", "training", "judgement", *MODEL},
}
# Not even through others: a model is loaded and computes without data, training and judgement.
NEVER = {**{part: {"data", "training", "judgement", "sim"} for part in MODEL}, "verify": set(PARTS) - {"verify"}}

Graph = Mapping[str, set[str]]


def module_of(path: Path, root: Path = PACKAGE) -> str:
    """ "model.tree" for model/tree.py, "model" for model/__init__.py."""
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path, modules: Iterable[str]) -> set[str]:
    """Those of `modules` that a file imports, wherever in it: inside functions and for type checking too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write lineside.{base}"
            inside = {f"{base}.{alias.name}" for alias in node.names}
            of_package = inside - {f"lineside.{module}" for module in modules}  # functions and classes, no modules
            names |= inside | ({base} if of_package else set())
    return {name.removeprefix("lineside.") for name in names if name.startswith("lineside.")} & set(modules)


def graph_of(root: Path) -> Graph:
    """What each module imports."""
    files = {module_of(path, root): path for path in root.rglob("*.py")}
    return {name: imports_of(path, files) for name, path in files.items()}


def reached(graph: Graph, start: str) -> dict[str, tuple[str, ...]]:
    """All modules that a module imports, directly and through others, each with the way to it."""
    ways: dict[str, tuple[str, ...]] = {start: (start,)}
    new = [start]
    for name in new:  # grows
        for other in sorted(graph[name]):
            if other not in ways:
                ways[other] = (*ways[name], other)
                new.append(other)
    return ways


def circles(graph: Graph) -> list[str]:
    """A way from a module back to itself, for each module on a circle."""
    found = []
    for name in graph:
        for other in graph[name]:
            if other != name and name in (ways := reached(graph, other)):
                found.append(" -> ".join((name, *ways[name])))
    return sorted(found)


def parts_of(graph: Graph) -> dict[str, set[str]]:
    """What the parts import; model/, families/ and backends/ as one, a module at the top as a part of its own."""
    found: dict[str, set[str]] = {}
    for name, others in graph.items():
        part = found.setdefault(_part(name), set())
        part |= {_part(other) for other in others} - {_part(name)}
    return found


def _part(module: str) -> str:
    top = module.split(".")[0]
    return "model" if top in MODEL else top


GRAPH = graph_of(PACKAGE)


@pytest.mark.parametrize("name", sorted(GRAPH))
def test_import_rule(name: str) -> None:
    top = name.split(".")[0]
    ways = {other: " -> ".join(way) for other, way in reached(GRAPH, name).items() if other != name}
    if top not in RUN_VERBS | {"cli", "__main__"}:
        for other, way in ways.items():
            assert other not in VERBS, f"only {', '.join(sorted(RUN_VERBS))} import verbs: {way}"
    for other, way in ways.items():
        assert other.split(".")[0] not in NEVER.get(top, ()), f"{top}/ must not reach {other}: {way}"
    if top in PARTS:
        foreign = {other.split(".")[0] for other in GRAPH[name]} & set(PARTS) - {top}
        assert foreign <= PARTS[top], f"{top}/ must not import {', '.join(sorted(foreign - PARTS[top]))}"


def test_no_circles() -> None:
    """Neither of modules nor of parts: one can be read, and replaced, without those above it."""
    assert circles(GRAPH) == []
    assert circles(parts_of(GRAPH)) == []


def test_every_folder_has_a_rule() -> None:
    folders = {path.parent.name for path in PACKAGE.glob("*/*.py")} - {"cli"}  # it calls every verb
    assert folders <= set(PARTS), f"say in PARTS what {', '.join(sorted(folders - set(PARTS)))} may import"
    assert {"types", "cli", "model.tree", "training.losses", "verify.judge"} <= set(GRAPH)


def test_every_file_at_the_top_is_a_verb_or_shared() -> None:
    """A new file there is a verb until it is named as shared; what is named is there, and not only verbs use it."""
    assert set(GRAPH) >= SHARED
    of_stages = {entry.function.partition(":")[0].removeprefix("lineside.") for entry in TABLE if entry.function}
    assert {"simulate", "label", "train", "mlflow"} | of_stages <= VERBS
    used = {other for name, others in GRAPH.items() if name not in VERBS for other in others}
    assert set() == SHARED - used, "only verbs use these: are they verbs, or parts of one?"


def test_types_imports_nothing_of_ours() -> None:
    assert GRAPH["types"] == set()


def test_functions_of_stages_are_there_and_loaded_by_runs_alone() -> None:
    """The table names verbs as text, which the rule above cannot see."""
    for path in (path for entry in TABLE for path in (entry.function, entry.makes) if path):
        module, _, name = path.partition(":")
        assert callable(getattr(importlib.import_module(module), name)), path
    users = {module_of(path) for path in PACKAGE.rglob("*.py") if "load_function" in path.read_text()}
    assert "train" in users and users <= {"stages"} | RUN_VERBS


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Path]:
    """A small package with a circle of two modules, a lazy import, and a climb through a third module."""
    for name, code in {
        "model/a.py": "def f():\n    from lineside.model.b import x\n",
        "model/b.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import lineside.model.a\n",
        "model/c.py": "from lineside import recipe\n",
        "recipe.py": "from lineside.data.strict import nearest\n",
        "data/strict.py": "import os\nfrom lineside.model import c\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(code)
    yield tmp_path


def test_the_reader_sees_lazy_imports_circles_and_climbs(house: Path) -> None:
    graph = graph_of(house)
    assert graph["model.a"] == {"model.b"} and graph["model.c"] == {"recipe"}
    assert reached(graph, "model.c")["data.strict"] == ("model.c", "recipe", "data.strict")
    assert "model.a -> model.b -> model.a" in circles(graph)
    assert "recipe -> data.strict -> model.c -> recipe" in circles(graph)
    assert "data -> model -> recipe -> data" in circles(parts_of(graph))
    (house / "model" / "d.py").write_text("from .a import f\n")
    with pytest.raises(AssertionError, match="relative import"):
        graph_of(house)


@pytest.mark.parametrize(
    "code",
    [
        "import lineside",
        "import lineside.cli",
        "import lineside.compare",
        "import lineside.recipe, lineside.types",
        "import lineside.models, lineside.fleet.machine, lineside.serving.worker",
    ],
)
def test_no_torch_where_it_is_not_needed(code):
    heavy = "{'torch', 'transformers', 'mujoco', 'matplotlib', 'pyarrow'}"
    check = f"import sys; {code}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
