"""What README, CONTRIBUTING and docs/ show exists: links, commands and flags, recipe keys, task files, make targets."""

import inspect
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
import yaml
from PIL import Image
from pydantic import BaseModel
from scripts.pages import pages

from lineside import cli
from lineside.data import taskfile
from lineside.label import label
from lineside.recipe import Label, Recipe, load_recipe
from lineside.strict import Loader
from lineside.training.preflight import data_problems
from tests.test_imports import MODEL, PARTS

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "lineside"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
README = PAGES[0].read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
COMMAND: Any = typer.main.get_command(cli.app)
EVERY = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)


# --- reading Markdown


def fenced(path: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(), re.M | re.S)


def without_blocks(path: Path) -> str:
    return re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.M | re.S)


def inline_code(path: Path) -> list[str]:
    """What stands between backticks, line ends in it as spaces."""
    return [re.sub(r"\s+", " ", code) for code in re.findall(r"`([^`]+)`", without_blocks(path))]


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", without_blocks(path), re.M):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower().replace(" ", "-")
        anchor = "".join(c for c in plain if c.isalnum() or c in "-_")
        assert anchor not in found, f"{path.name}: two headings {heading!r}: a link cannot tell them apart"
        found.add(anchor)
    return found


def commands(path: Path) -> Iterator[list[str]]:
    """The command lines of the sh blocks as words: comments cut, continued lines joined, && taken apart."""
    for block in fenced(path, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while "&&" in words:
                yield words[: words.index("&&")]
                words = words[words.index("&&") + 1 :]
            if words:
                yield words


# --- links


@EVERY
def test_links_lead_somewhere(path: Path):
    for link in re.findall(r"(?:\]\(|src=\")([^)\"\s]+)", without_blocks(path)):
        if link.startswith("https://"):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), f"{path.name}: {link}: no such file"
        assert target.is_relative_to(ROOT), f"{path.name}: {link} leads out of the repository"
        assert not anchor or anchor in anchors(target), f"{path.name}: {link}: no such heading"


def test_every_page_is_reached_from_the_readme():
    linked = {link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", README)}
    assert {str(path.relative_to(ROOT)) for path in PAGES[1:]} <= linked


# --- commands


def verbs() -> dict[str, Any]:
    """Every verb's command, by the words that call it: "label", "task check"."""
    found: dict[str, Any] = {}
    for name, command in COMMAND.commands.items():
        inner = getattr(command, "commands", {})
        found |= {f"{name} {below}": c for below, c in inner.items()} or {name: command}
    return found


def verb_of(words: list[str]) -> str:
    """The verb that a command line without `lineside` begins with."""
    inner = " ".join(words[:2])
    return inner if inner in verbs() else words[0]


def parse(words: list[str]) -> dict[str, Any]:
    """The values of a `lineside` command line, taken apart as the command would, without running it."""
    verb = verb_of(words)
    assert verb in verbs(), f"no verb {' '.join(words[:2])!r}"
    return verbs()[verb].make_context(verb, words[len(verb.split()) :]).params


@EVERY
def test_commands_parse(path: Path):
    for words in commands(path):
        name = words[0].rpartition("/")[2]
        if name == "lineside":
            try:
                values = parse(words[1:])
            except Exception as error:
                raise AssertionError(f"{path.name}: {' '.join(words)}: {error}") from error
            if "recipe" in values:
                named = Path(values["recipe"])
                load_recipe(ROOT / named if named.parent.name else named, values["overrides"] or ())
        elif name == "make":
            for target in (word for word in words[1:] if "=" not in word):
                assert re.search(rf"^{target}:", MAKEFILE, re.M), f"{path.name}: make {target}"
        elif name == "torchrun":
            parse(words[words.index("-m") + 2 :])
        elif name == "python" and words[1] != "-m":
            assert (ROOT / words[1]).exists(), f"{path.name}: {words[1]}"
        else:
            assert name in ("pip", "python", "git"), f"{path.name}: what is {name}?"


@EVERY
def test_verbs_flags_and_targets_in_sentences_exist(path: Path):
    flags = {flag for command in verbs().values() for p in command.params for flag in (*p.opts, *p.secondary_opts)}
    for code in inline_code(path):
        words = code.split()
        if words[0] == "lineside" and len(words) > 1 and words[1] not in ("VERB", "--help"):
            name = verb_of(words[1:])
            assert name in verbs(), f"{path.name}: `{code}`: no verb {name!r}"
            known = {flag for p in verbs()[name].params for flag in p.opts} | {"--help"}
            assert {w for w in words if w.startswith("--")} <= known, f"{path.name}: `{code}`"
        elif words[0] == "make" and len(words) > 1:
            assert re.search(rf"^{words[1]}:", MAKEFILE, re.M), f"{path.name}: `{code}`"
        elif words[0].startswith("--") and path.name in ("label.md", "data.md"):
            assert words[0] in flags, f"{path.name}: `{code}`: no verb has this flag"


def test_the_readme_and_the_page_of_the_registry_list_the_verbs_in_their_order_with_the_help_of_each():
    pages = README, (ROOT / "docs" / "registry.md").read_text()
    section = "\n".join(page[page.index("## The verbs") :].split("\n## ")[0] for page in pages)
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in re.findall(r"^\| `.*\|$", section, re.M)]
    shown = {verb.strip("`"): f"{takes} -> {gives}".replace("`", "") for verb, takes, gives in rows}
    assert [verb for verb in shown if " " not in verb] == [str(c.name) for c in cli.app.registered_commands]
    assert set(shown) == set(verbs())
    for verb, text in shown.items():
        first = inspect.cleandoc(verbs()[verb].help or "").split("\n\n")[0].replace("\n", " ")
        assert first.lower().startswith(text.lower()), f"{verb}: in the table: {text!r}, --help: {first!r}"


def test_make_help_names_every_target():
    targets = set(re.findall(r"^([a-z][\w-]*):", MAKEFILE, re.M)) - {"help", "test: export"}
    assert targets == set(re.findall(r"^# make ([\w-]+) ", MAKEFILE, re.M))


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150


# --- the source


def test_the_hour_of_reading_is_an_hour() -> None:
    """Minutes add up, files exist, and nobody has to read more than 4,000 lines in it."""
    section = (ROOT / "CONTRIBUTING.md").read_text().split("## Reading the source in an hour\n")[1]
    rows = re.findall(r"^\| (\d+) \| (.*?) \|", section, re.M)
    assert sum(int(minutes) for minutes, _ in rows) == 60
    files = [SOURCE / name for _, cell in rows for name in re.findall(r"`(.*?)`", cell)]
    assert len(set(files)) == len(files) >= len(rows)
    assert sum(len(file.read_text().splitlines()) for file in files) <= 4000
    for name in re.findall(r"`(\w+/\w+\.py|\w+\.py)`", section):
        assert (SOURCE / name).exists() or (ROOT / name).exists() or (SOURCE / "backends" / name).exists(), name


def test_the_parts_of_the_source_are_named_from_the_bottom_up() -> None:
    """CONTRIBUTING has them in an order in which each part stands behind all that it may import; the README has all."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    listed = re.findall(r"`(\w+)/`", text.split("From the bottom up the parts are")[1].split(". None imports")[0])
    assert sorted(listed) == sorted(PARTS)
    for part in listed:
        behind = set(listed[listed.index(part) + 1 :]) - MODEL
        assert not behind & PARTS[part], f"{part}/ may import {', '.join(behind & PARTS[part])}, which stands behind it"
    mapped = README[README.index("`src/lineside/`") :]
    assert {*PARTS, "cli"} <= set(re.findall(r"`(\w+)/`", mapped))
    assert all((SOURCE / name).exists() for name in re.findall(r"`(\w+\.py)`", mapped))


# --- recipes


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.name)
def test_generated_pages_are_as_the_code(path: Path):
    assert path.read_text() == pages()[path], f"{path.name} is out of date: `make docs`, or `python scripts/pages.py`"


@EVERY
def test_recipes_exist(path: Path):
    for name in set(re.findall(r"recipes/(\w+)\.yaml", path.read_text())):
        assert (ROOT / "recipes" / f"{name}.yaml").exists(), f"{path.name}: recipes/{name}.yaml"


def setting(key: str) -> bool:
    """Whether a dotted key leads to a setting of a recipe."""
    here: Any = Recipe
    for part in key.split("."):
        fields = {field.alias or name: field for name, field in here.model_fields.items()} if here else {}
        if part not in fields:
            return False
        here = model_in(fields[part].annotation)
    return True


def model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(model_in, get_args(annotation))), None)


@EVERY
def test_recipe_keys_in_sentences_exist(path: Path):
    sections = "|".join(name for name, field in Recipe.model_fields.items() if model_in(field.annotation))
    for code in inline_code(path):
        match = re.fullmatch(rf"((?:{sections})(?:\.[a-z_]+)+)(?:=.*)?", code)
        if match and not code.endswith(".py"):
            assert setting(match[1]), f"{path.name}: `{code}`: no such setting"


@EVERY
def test_recipes_and_task_files_load(path: Path, tmp_path: Path):
    for block in fenced(path, "yaml"):
        data = yaml.load(block, Loader)
        file = tmp_path / "shown.yaml"
        if set(data) <= set(taskfile.TaskFile.model_fields):
            a_task = "tasks:\n  - {family: a, name: b, phrasings: [c], answer: {kind: exact, column: d}}\n"
            file.write_text(block + ("" if "tasks" in data else a_task))
            taskfile.load_task_file(file)
        else:
            file.write_text(block + ("" if "data" in data else "data: {samples: samples}\n"))
            load_recipe(file, ["name=shown"])


# --- task files


def test_the_task_file_for_own_frames_labels_a_folder(tmp_path: Path):
    page = ROOT / "docs" / "label.md"
    (tmp_path / "bins.yaml").write_text(next(b for b in fenced(page, "yaml") if b.startswith("# bins.yaml")))
    header = fenced(page, "csv")[0].splitlines()[0]
    (tmp_path / "bins").mkdir()
    rows = [header]
    for number in range(40):
        Image.new("RGB", (48, 48), (number * 5, 90, 200)).save(tmp_path / "bins" / f"{number}.jpg")
        rows.append(
            f"{number}.jpg,{('red cans', 'blue cartons')[number % 2]},{number % 10},{('ok', 'tilted')[number % 3 % 2]}"
        )
    (tmp_path / "bins" / "frames.csv").write_text("\n".join(rows))
    account = label(
        tmp_path / "bins", tmp_path / "samples", tasks=[tmp_path / "bins.yaml"], settings=Label(teacher="table")
    )
    assert account["frames"] == {"read": 40, "labelled": 40, "rejected": 0, "failed": 0, "silent": 0}
    assert account["samples"]["qa-train"] > 0 and account["samples"]["caption-train"] > account["samples"]["qa-train"]
    for text in (ROOT / "README.md", page):  # the command that then trains finds all that it needs
        (command,) = {line for block in fenced(text, "sh") for line in block.splitlines() if " name=bins " in line}
        _, verb, recipe, *settings = shlex.split(command)
        found = load_recipe(Path(recipe), [*settings, f"data.samples={tmp_path / 'samples'}"])
        assert verb == "train" and "data.samples=samples" in settings
        assert not list(data_problems(found, tmp_path / "samples", (*found.stages, *found.trained_controls)))


def test_the_files_for_clusters_are_well_formed_and_start_a_run():
    from torch.distributed.run import get_args_parser

    page = ROOT / "docs" / "scale.md"
    (job,), (pods,) = fenced(page, "bash"), fenced(page, "yml")
    assert subprocess.run(["bash", "-n"], input=job, text=True, capture_output=True).returncode == 0
    found = list(yaml.safe_load_all(pods))
    assert [one["kind"] for one in found] == ["Service", "Job"]
    (container,) = found[1]["spec"]["template"]["spec"]["containers"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in found[1]["spec"]["template"]["spec"]["volumes"]}
    started = [*container["command"], *container["args"]], shlex.split(job[job.index("torchrun") :])
    for words in started:
        assert words[0] == "torchrun"
        flags = words[1 : words.index("-m")]
        get_args_parser().parse_args([*flags, "-m", "lineside"])
        parse(words[words.index("-m") + 2 :])


# --- tests that pages name


@pytest.mark.parametrize("page, least", [("SECURITY.md", 20), ("docs/models.md", 13)])
def test_every_test_that_a_page_names_is_there(page: str, least: int):
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / page).read_text())
    assert len(named) >= least
    for path, name in named:
        assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(), re.M), f"{path}: no test {name}"


def test_every_cell_of_what_an_attacker_reaches_names_its_test():
    text = (ROOT / "SECURITY.md").read_text()
    listed = {number for number, body in re.findall(r"^(\d+)\. ((?:.|\n )*)", text, re.M) if "`tests/" in body}
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")][2:]
    assert len(rows) >= 15 and {len(row) for row in rows} == {6} and "1" in listed
    named = {number for row in rows for number in re.findall(r"\[(\d+)\]", " ".join(row))}
    assert named == listed
    # What is said of an attacker has a test, sentence by sentence; "yes" alone says that nothing holds.
    for row in rows:
        for cell in row[1:5]:
            for said in re.split(r"(?<=[^ .])[;.] ", cell):
                assert re.search(r"\[\d+\]", said) or cell == "yes", f"{row[0]}: {said!r} names no test"
