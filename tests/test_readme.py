"""What the README tells a newcomer to type exists."""

import re
from pathlib import Path

import pytest
from PIL import Image

from lineside import cli
from lineside.label import label

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def block(start: str) -> str:
    """The indented block that begins with a line, without its indent."""
    lines = README[README.index(start) :].splitlines()
    end = next(i for i, line in enumerate(lines) if not line.strip())
    return "\n".join(line.removeprefix("    ") for line in lines[:end])


def test_the_table_of_verbs_is_that_of_the_command():
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", README[README.index("## The verbs") :].split("\n## ")[0], re.M)
    assert [name for row in rows for name in re.findall(r"\w+", row)] == [c.name for c in cli.app.registered_commands]


@pytest.mark.parametrize("target", sorted(set(re.findall(r"make ([\w-]+)\b(?! for)", README))))
def test_make_targets_exist(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)


def test_recipes_exist():
    named = set(re.findall(r"recipes/(\w+)\.yaml", README))
    assert named and all((ROOT / "recipes" / f"{name}.yaml").exists() for name in named)


def test_the_task_file_for_own_frames_labels_a_folder(tmp_path):
    (tmp_path / "bins.yaml").write_text(block("    # bins.yaml"))
    header = re.search(r"bins/frames\.csv +(\S+)\n", README)
    assert header is not None
    (tmp_path / "bins").mkdir()
    rows = [header[1]]
    for number in range(40):
        Image.new("RGB", (48, 48), (number * 5, 90, 200)).save(tmp_path / "bins" / f"{number}.jpg")
        rows.append(
            f"{number}.jpg,{('red cans', 'blue cartons')[number % 2]},{number % 10},{('ok', 'tilted')[number % 3 % 2]}"
        )
    (tmp_path / "bins" / "frames.csv").write_text("\n".join(rows))
    account = label(tmp_path / "bins", tmp_path / "samples", tasks=[tmp_path / "bins.yaml"], teacher="table")
    assert account["frames"] == {"read": 40, "labelled": 40, "rejected": 0, "failed": 0, "silent": 0}
    assert account["samples"]["qa-train"] > 0 and account["samples"]["caption-train"] > account["samples"]["qa-train"]
