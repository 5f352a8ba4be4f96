"""A built wheel holds all that the package needs, and works where there is no clone: recipes, task files, prompts.

The hooks of a clone run what `make check` runs.
"""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
CODE = """
from pathlib import Path
import lineside
from lineside.data.job import task_file
from lineside.data.taskfile import load_task_file
from lineside.recipe import load_recipe
assert Path(lineside.__file__).is_relative_to(Path({where!r})), lineside.__file__
for path in Path("nano"), Path("nano.yaml"), Path("recipes/nano.yaml"):
    assert load_recipe(path).name == "nano", path
assert load_task_file(task_file(Path("grocery.yaml"))).table.family == "grocery"
"""


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a wheel built from a copy of the source (building leaves its own files in the source)."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    code = f"from setuptools.build_meta import build_wheel; build_wheel({str(out)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(out / "files")
    return out / "files"


def test_a_wheel_holds_every_file_of_the_package(unpacked: Path):
    def files(folder: Path) -> set[Path]:
        return {p.relative_to(folder) for p in folder.rglob("*") if p.is_file() and p.suffix != ".pyc"}

    assert files(unpacked / "lineside") == files(ROOT / "src" / "lineside")


def test_it_names_its_command_its_licence_and_that_it_is_typed(unpacked: Path):
    (about,) = unpacked.glob("lineside-*.dist-info")
    assert "lineside = lineside.cli:main" in (about / "entry_points.txt").read_text()
    assert "License-Expression: Apache-2.0" in (about / "METADATA").read_text()
    assert (about / "licenses" / "LICENSE").is_file() and (unpacked / "lineside" / "py.typed").is_file()


def test_the_hooks_are_the_lines_of_make_check():
    recipe = re.search(r"^check:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)
    assert recipe is not None
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"  # nothing is fetched
    hooks = [" ".join([hook["entry"], *hook.get("args", ())]) for hook in repository["hooks"]]
    assert hooks == [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe[1].splitlines()]
    assert all(hook["language"] == "system" and not hook["pass_filenames"] for hook in repository["hooks"])


def test_recipes_and_task_files_are_found_outside_the_clone(unpacked: Path, tmp_path: Path):
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    code = CODE.format(where=str(unpacked))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
