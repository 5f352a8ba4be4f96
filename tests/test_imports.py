"""The import rule of the house, read from the source: what may know what."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "lineside"
VERBS = {
    "simulate", "label", "task", "task_audit", "select", "review", "validate", "convert", "align", "sft", "rlvr",
    "train", "ask", "evaluate", "compare", "report", "export", "serve", "retrain",
}  # fmt: skip
RUN_VERBS = {"train", "retrain"}  # these two are made of other verbs
NEVER = {
    "model": {"data", "training", "sim"},
    "backends": {"data", "training", "sim"},
    "verify": {"data", "training", "sim", "model", "server", "judgement"},
}


def imports_of(path: Path) -> set[str]:
    """Names under `lineside.` that a file imports, wherever in it: "verify", "model.parts", "compare" ..."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write lineside.{base}"
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return {name.removeprefix("lineside.") for name in found if name.startswith("lineside.")}


def parts_of(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports_of(path)}


FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(path.relative_to(PACKAGE)) for path in FILES]


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_import_rule(path):
    place = path.relative_to(PACKAGE).parts
    part = place[0].removesuffix(".py")
    imported = parts_of(path)
    if len(place) > 1 or part not in VERBS | {"cli"}:
        assert not imported & VERBS, f"a part must not import a verb: {sorted(imported & VERBS)}"
    elif part in VERBS - RUN_VERBS:
        assert not imported & VERBS, f"a verb must not import another: {sorted(imported & VERBS)}"
    assert not imported & NEVER.get(part, set()), f"{part}/ must not know {sorted(imported & NEVER.get(part, set()))}"


def test_types_imports_nothing_of_ours():
    assert imports_of(PACKAGE / "types.py") == set()


def test_the_rule_has_something_to_read():
    assert {"types.py", "cli.py", "model/tree.py", "training/losses.py", "verify/judge.py"} <= set(NAMES)


def test_the_reader_sees_imports_inside_functions(tmp_path):
    path = tmp_path / "x.py"
    path.write_text("import os\ndef f():\n    from lineside.model.tree import Node\n    import lineside.sft\n")
    assert parts_of(path) == {"model", "sft"}


@pytest.mark.parametrize(
    "code",
    ["import lineside", "import lineside.cli", "import lineside.compare", "import lineside.recipe, lineside.types"],
)
def test_no_torch_where_it_is_not_needed(code):
    heavy = "{'torch', 'transformers', 'mujoco', 'matplotlib', 'pyarrow'}"
    check = f"import sys; {code}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
