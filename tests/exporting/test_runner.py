"""run.py, the file that lies beside an OpenVINO or ONNX export, against training's own preprocessing and prompt."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image as Pil

from lineside.exporting import runner
from lineside.exporting.engines import shown_as
from lineside.exporting.targets import _write_pipeline
from lineside.model.checkpoint import load
from tests.conftest import picture


def test_it_imports_nothing_heavy_and_nothing_of_ours() -> None:
    names = set()
    for node in ast.walk(ast.parse(Path(runner.__file__).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module))
    roots = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
    assert roots == {"numpy", "PIL", "tokenizers", "openvino", "onnxruntime"}


class _Bare(runner.Pipeline):
    """The pipeline without a runtime."""

    def __init__(self, folder: Path) -> None:
        self.facts = json.loads((folder / runner.FILE).read_text())
        self.tokenizer = runner.Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("kind", ["siglip", "clip"])
def test_pixels_and_prompts_are_those_of_training(checkpoint: Path, tmp_path: Path, kind: str) -> None:
    vlm = load(checkpoint)
    if kind == "clip":  # the shorter side to a length, then the middle
        from transformers import CLIPImageProcessorPil

        vlm.family.image_processor = CLIPImageProcessorPil(
            size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}
        )
    _write_pipeline(vlm, checkpoint, tmp_path, "onnx", {}, {})
    pipeline = _Bare(tmp_path)
    pictures = [Pil.fromarray(np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)) for size in
                ((32, 32), (48, 48), (40, 70), (90, 33))]  # fmt: skip
    np.testing.assert_allclose(pipeline.pixels(pictures), vlm.pixels(pictures).numpy(), atol=1e-5)
    for thinking in (True, False):
        for text in ("How many?", "  12 cans\n", "é 数"):
            ours = [*vlm.render.prefix(shown_as(2)), *vlm.render.question(text, thinking=thinking)]
            assert pipeline.prompt(text, 2, thinking) == ours
    for text in ("", "what is <image>?", "</think>"):
        with pytest.raises(ValueError, match="empty, or holds a control token"):
            pipeline.prompt(text, 1, True)


def test_a_command_ends_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "run.py"
    file.write_text(Path(runner.__file__).read_text())
    (tmp_path / "photo.png").write_bytes(picture())
    for words, said in (
        ([str(tmp_path / "no.jpg"), "what?"], "No such file"),
        ([str(file), "what?"], "cannot identify"),
    ):
        done = subprocess.run([sys.executable, str(file), *words], capture_output=True, text=True, env=os.environ)
        assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr


def test_a_question_that_does_not_fit_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    _write_pipeline(load(checkpoint), checkpoint, tmp_path, "onnx", {}, {})
    pipeline = _Bare(tmp_path)
    pipeline.runtime = SimpleNamespace()  # type: ignore[assignment] # refused before it is asked
    with pytest.raises(ValueError, match="do not fit in 512"):
        pipeline.answer([], "how many? " * 300)
