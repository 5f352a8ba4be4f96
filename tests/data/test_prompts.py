"""Prompts: the package's own are sound, a user's replace them one by one, mistakes are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from lineside.data.prompts import OWN_PROMPTS, SLOTS, load_prompts
from lineside.errors import LinesideError


def test_the_packages_own() -> None:
    prompts = load_prompts()
    assert set(prompts) == set(SLOTS) == {path.stem for path in OWN_PROMPTS.glob("*.md")}
    assert "Write 3 different captions" in prompts["captions"].fill(count=3)
    filled = prompts["traces"].fill(questions="1. How many {braces} and $signs?", record="")
    assert "1. How many {braces} and $signs?" in filled


def test_a_users_prompt_replaces_its_own_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "captions.md").write_text("$count captions at 5 $$ each")
    prompts, own = load_prompts(tmp_path), load_prompts()
    assert prompts["captions"].fill(count=2) == "2 captions at 5 $ each"
    assert prompts["captions"].hash != own["captions"].hash
    assert prompts["traces"] == own["traces"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("captions", "$cuont captions", r"unknown slot \$cuont; this prompt has \$count, \$family, \$record"),
        ("captions", "at 5 $ each", "starts no slot"),
        ("traces", "explain", r"the slot \$questions is missing"),
        ("captions", "  \n", "empty"),
        ("other", "text", "no prompts in it; expected some of captions.md"),
    ],
)
def test_mistakes(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / f"{name}.md").write_text(text)
    with pytest.raises(LinesideError, match=message):
        load_prompts(tmp_path)
