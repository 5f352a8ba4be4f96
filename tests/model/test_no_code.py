"""No checkpoint runs code: Python files that it brings, and the keys that name them, are refused or not looked at."""

from __future__ import annotations

import ast
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lineside.errors import LinesideError
from lineside.model.checkpoint import load, save
from lineside.model.parts import load_language_model, load_tower
from tests.conftest import make_tiny_vlm

SOURCE = Path(__file__).parents[2] / "src" / "lineside"
CLASSES = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer", "AutoImageProcessor", "AutoProcessor")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "good"
    save(make_tiny_vlm(), folder)
    return folder


def spoilt(good: Path, folder: Path, file: str, mark: Path, **changed: Any) -> Path:
    """A copy whose `file` names a class in a module of the folder; the module writes `mark` when it runs."""
    shutil.copytree(good, folder)
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w').write('x')\nclass Evil:\n    pass\n")
    path = folder / file
    config = json.loads(path.read_text()) if path.exists() else {}
    named = {"auto_map": dict.fromkeys(CLASSES, "evil.Evil") | {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    image = {"image_processor": {**config.get("image_processor", {}), "image_processor_type": "Evil", **named}}
    config |= named | changed | (image if file == "processor_config.json" else {})
    path.write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("file", "changed", "read"),
    [
        ("config.json", {}, load),
        ("config.json", {"model_type": "evil"}, load),
        ("config.json", {"model_type": "evil"}, load_language_model),
        ("config.json", {"model_type": "evil"}, load_tower),
        ("tokenizer_config.json", {"tokenizer_class": "Evil"}, load),
        ("processor_config.json", {}, load),
        ("processor_config.json", {"processor_class": "Evil"}, load_tower),
        ("preprocessor_config.json", {"image_processor_type": "Evil"}, load),
    ],
)
def test_a_checkpoint_that_brings_code_does_not_run_it(
    good: Path,
    tmp_path: Path,
    file: str,
    changed: dict[str, Any],
    read: Callable[[Any], object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mark = tmp_path / "mark"
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 50))  # transformers asks: "run the custom code? [y/N]"
    folder = spoilt(good, tmp_path / "spoilt", file, mark, **changed)
    said = ""
    try:
        read(str(folder))
    except LinesideError as error:
        said = str(error)
    assert not mark.exists()
    assert "trust_remote_code" not in said  # nobody is told to switch it on


def test_the_refusal_says_that_it_is_for_the_code(good: Path, tmp_path: Path) -> None:
    folder = spoilt(good, tmp_path / "spoilt", "processor_config.json", tmp_path / "mark")
    with pytest.raises(LinesideError, match="code of its own"):
        load(folder)


def test_every_loader_that_could_run_code_is_told_not_to() -> None:
    calls = [
        (path.name, call)
        for path in SOURCE.rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "from_pretrained"
        if isinstance(call.func.value, ast.Name) and call.func.value.id.startswith("Auto")
    ]
    assert len(calls) >= 8
    for name, call in calls:
        given = {word.arg: ast.unparse(word.value) for word in call.keywords}
        assert given.get("trust_remote_code") == "False", f"{name}, line {call.lineno}"
