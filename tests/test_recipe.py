"""Recipes: what is right loads, what is wrong says where it is and what was meant."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from lineside import cli
from lineside.data.store import write_samples
from lineside.errors import LinesideError
from lineside.recipe import RENAMED, Recipe, Rlvr, differences, dump_recipe, load_recipe, load_run_recipe
from lineside.train import train
from tests.fuzz.guard import CANARY, watched
from tests.test_train import recipe, rows, save_parts

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))
SMALL = """\
name: small
data:
  simulate:
    frames: {train: 20, dev: 2, heldout: 5}
sft:
  epochs: 2
  learning_rate:
    lm: 1e-4
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "r.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_recipes_of_this_repository_load_and_are_named_after_their_files(path):
    assert load_recipe(path).name == path.stem


def test_the_help_names_the_recipes_of_the_package():
    assert ", ".join(path.stem for path in RECIPES) in cli.training.RECIPE


def test_there_are_recipes():
    assert {"quickstart", "nano", "smollm2", "siglip", "grocery"} <= {path.stem for path in RECIPES}


def test_values_defaults_and_overrides(write):
    recipe = load_recipe(write(SMALL), ["seed=3", "sft.learning_rate.projector=2.5e-3", "rlvr.advantage=center"])
    assert recipe.data.simulate is not None and recipe.data.simulate.frames.train == 20
    assert recipe.sft.learning_rate.lm == 1e-4  # PyYAML alone takes 1e-4 for text
    assert recipe.sft.learning_rate.projector == 2.5e-3
    assert (recipe.seed, recipe.rlvr.advantage, recipe.sft.trace_weight) == (3, "center", 0.3)
    assert recipe.folder == Path("runs/small")


def test_an_override_wins_over_the_file_and_may_open_a_section(write):
    recipe = load_recipe(write(SMALL), ["sft.epochs=5", "evaluate.splits=[dev, shifted]", "align.max_minutes=1"])
    assert recipe.sft.epochs == 5
    assert recipe.evaluate.splits == ("dev", "shifted")
    assert recipe.align.max_minutes == 1


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_dumped_recipe_loads_as_the_same_recipe(path, write):
    recipe = load_recipe(path)
    assert load_recipe(write(dump_recipe(recipe))) == recipe


def test_a_run_of_before_may_say_that_it_had_no_curriculum(write):
    assert load_recipe(write("name: old\ndata:\n  samples: here\nrlvr: {curriculum: null}\n")).rlvr == Rlvr()


def test_a_recipe_does_not_change(write):
    with pytest.raises(ValidationError, match="frozen"):
        load_recipe(write(SMALL)).seed = 1  # pyright: ignore[reportAttributeAccessIssue]


MISTAKES = [
    ("sft:\n  epoch: 2\n", "line 6: unknown key 'sft.epoch'; did you mean 'epochs'?"),
    ("Seed: 1\n", "line 5: unknown key 'Seed'; did you mean 'seed'?"),
    (
        "sft:\n  learning_rate: {encoder: 1e-3}\n",
        "unknown key 'sft.learning_rate.encoder' (keys here: projector, lm",
    ),
    ("seed: one\n", "line 5: seed: expected a whole number, got 'one'"),
    ("seed: 1.5\n", "seed: expected a whole number"),
    ("seed: '1'\n", "seed: expected a whole number, got '1'"),
    ("controls: [answers, traced]\n", "controls: each once, in the order traced, answers, rejection"),
    ("controls: [tracd]\n", "controls.0: expected 'traced'"),
    ("controls: true\n", "controls: expected a list"),
    ("sft: 3\n", "line 5: sft: expected keys and values below it, got 3"),
    ("sft:\n  trace_weight: 1.0\n", "sft.trace_weight: expected less than 1.0, got 1.0"),
    ("sft: {untraced: skip, no_think_share: 0.5}\n", "untraced: skip trains every question with thinking on"),
    ("sft:\n  max_grad_norm: .nan\n", "sft.max_grad_norm: expected a number"),
    ("dtype: fp16\n", "dtype: expected 'auto', 'fp32' or 'bf16', got 'fp16'"),
    ("seed: 1\nseed: 2\n", "line 6: not valid YAML (the key 'seed' occurs twice here)"),
    ("sft: [\n", "not valid YAML"),
    ("rlvr: {overlong_cache: 64, max_new_tokens: 32}\n", "rlvr: overlong_cache (64) exceeds max_new_tokens (32)"),
    ("rlvr: {curriculum: {rollouts: 4}}\n", "rlvr: curriculum is removed: prompt_choice"),
    ("rlvr: {prompt_choice: lively}\n", "rlvr.prompt_choice: expected 'live' or 'uniform', got 'lively'"),
    ("sft: {epochs: null}\n", "sft.epochs: expected a number, got null"),
    ("evaluate: {splits: [train]}\n", "evaluate: splits must not name train"),
    ("evaluate: {splits: [heldout, test]}\n", "evaluate.splits.1: expected 'train', 'dev', 'heldout'"),
    ("stages: [sft, align]\n", "stages: each once, in the order align, sft, rlvr"),
    ("stages: []\n", "stages: [] trains controls alone: give rlvr.from"),
    ("stages: []\nrlvr: {from: x}\n", "and their max_tokens"),
    ("sft: {form: x}\n", "unknown key 'sft.form'; did you mean 'from'?"),
    ("parts: {preset: siglip}\n", "needs both parts.encoder and parts.lm"),
    ("parts: {encoder: x}\n", "preset nano has its own encoder"),
    ("parts: {scales: [224, 448]}\n", "each side once, the largest first"),
    ("parts: {scales: [300]}\n", "448 or 224"),
    ("parts: {preset: siglip, encoder: x, lm: y, scales: [224]}\n", "scales belong to EfficientNet"),
    ("parts: {nano: {hidden: 100, heads: 3}}\n", "hidden (100) must be an even multiple of heads (3)"),
]


@pytest.mark.parametrize("addition, message", MISTAKES, ids=[text.strip() for text, _ in MISTAKES])
def test_mistakes_are_named_with_file_and_line(write, addition, message):
    path = write("name: small\ndata:\n  samples: here\n\n" + addition)
    with pytest.raises(LinesideError) as error:
        load_recipe(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "data, message",
    [
        (
            "{samples: a, frames: b}",
            "exactly one of simulate, table, frames, samples must be given, got frames and samples",
        ),
        ("{}", "got none"),
        ("{table: x}", "set data.tasks"),
        ("{frames: a, label: {acuity: 1.5}}", "1.5 is not an acuity: expected 0 to 1, or one of strong, typical, weak"),
        ("{frames: a, label: {acuity: week}}", "did you mean 'weak'?"),
        ("{frames: a, label: {acuity: true}}", "acuity: expected a number"),
        ("{table: a, tasks: [b], label: {acuity: typical}}", "acuity is a setting of the teacher 'sim'"),
        ("{samples: a, augment: {variants: 4}}", "variants would all be equal"),
        ("{frames: a, augment: {variants: 4, mirror: true, light: 0.1}}", "ask where things are"),
        ("{frames: a, label: {captions_per_frame: 2, questions_per_frame: 8}}", "Set captions_per_frame to 4 or more"),
        ("{frames: a, label: {question_share: 0.8}}", "captions_per_frame is 4, .* questions_per_frame to 5 or fewer"),
    ],
)
def test_data_from_one_source(write, data, message):
    with pytest.raises(LinesideError, match=message.replace("{", r"\{")):
        load_recipe(write(f"name: x\ndata: {data}\n"))


@pytest.mark.parametrize("given, acuity", [("typical", 0.5), ("'strong'", 0.75), ("0.3", 0.3), ("1", 1.0), ("0", 0.0)])
def test_a_teachers_acuity_has_names(write, given, acuity):
    recipe = load_recipe(write(f"name: x\ndata: {{frames: a, label: {{acuity: {given}}}}}\n"))
    assert recipe.data.label.acuity == acuity
    assert load_recipe(write(dump_recipe(recipe))) == recipe


@pytest.mark.parametrize(
    "override, message",
    [
        ("sft.epoch=3", "override 'sft.epoch=3': unknown key 'sft.epoch'; did you mean 'epochs'?"),
        ("seed", "expected key=value"),
        ("=3", "expected key=value"),
        ("seed.x=3", "seed is a value"),
        ("seed=[", "not valid YAML"),
        ("seed=x", "override 'seed=x': seed: expected a whole number"),
    ],
)
def test_mistakes_in_overrides(write, override, message):
    with pytest.raises(LinesideError) as error:
        load_recipe(write("seed: 7\n" + SMALL), [override])
    assert message in str(error.value)


OLD_NAMES = "align: {floor: 0.2}\nsft:\n  clip: 2.0\n  fast: 0.5\n  captions: 3\nrlvr: {refills: 4}\ncontrol: false\n"


def test_an_old_name_of_a_key_is_refused_with_the_new_one(write):
    path = write("name: small\ndata: {samples: here}\n" + OLD_NAMES)
    with pytest.raises(LinesideError) as error:
        load_recipe(path)
    assert sorted(str(error.value).splitlines()) == [
        f"{path}, line 3: key 'align.floor' is now called 'align.min_lr_ratio'",
        f"{path}, line 5: key 'sft.clip' is now called 'sft.max_grad_norm'",
        f"{path}, line 6: key 'sft.fast' is now called 'sft.no_think_share'",
        f"{path}, line 7: key 'sft.captions' is now called 'sft.caption_replay'",
        f"{path}, line 8: key 'rlvr.refills' is now called 'rlvr.max_sampling_rounds'",
        f"{path}, line 9: key 'control' is now called 'controls', and false is now []",
    ]
    with pytest.raises(
        LinesideError, match=r"override 'sft.fast=1': key 'sft.fast' is now called 'sft.no_think_share'"
    ):
        load_recipe(write(SMALL), ["sft.fast=1"])
    with pytest.raises(LinesideError, match=r"key 'control' is now called 'controls', and true is now \[\"traced\"\]"):
        load_recipe(write(SMALL), ["control=true"])


def test_a_runs_own_recipe_is_read_by_old_names_too(write):
    old = load_run_recipe(write("name: small\ndata: {samples: here}\n" + OLD_NAMES))
    assert (old.align.min_lr_ratio, old.sft.max_grad_norm, old.sft.no_think_share) == (0.2, 2.0, 0.5)
    assert (old.sft.caption_replay, old.rlvr.max_sampling_rounds, old.rlvr.max_grad_norm) == (3, 4, 1.0)
    assert old.controls == () and load_run_recipe(write(SMALL + "control: true\n")).controls == ("traced",)
    assert load_recipe(write(dump_recipe(old))) == old == load_run_recipe(write(dump_recipe(old)))
    with pytest.raises(LinesideError, match=r"unknown key 'sft\.fasts'"):
        load_run_recipe(write(SMALL + "  fasts: 1\n"))


def test_tasks_left_out_are_a_list_of_names(write):
    recipe = load_recipe(write(SMALL), ["rlvr.leave_out=[picking/top_free, kitting/missing]"])
    assert recipe.rlvr.leave_out == ("picking/top_free", "kitting/missing")
    with pytest.raises(LinesideError, match=r"rlvr\.leave_out"):
        load_recipe(write(SMALL), ["rlvr.leave_out=[1]"])
    with pytest.raises(LinesideError, match=r"rlvr\.leave_out"):
        load_recipe(write(SMALL), ["rlvr.leave_out=picking/top_free"])


def test_every_new_name_is_a_setting():
    plain = load_recipe(Path("nano")).model_dump()
    for old, new in RENAMED.items():
        *stage, key = old.split(".")
        section = plain[stage[0]] if stage else plain
        assert new in section and key not in section


def test_all_mistakes_are_told_at_once(write):
    with pytest.raises(LinesideError) as error:
        load_recipe(write("name: a/b\nsed: 1\ndata: {samples: x}\n"))
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize("content", [b"", b"- a\n", b"just text\n", b"\xff\xfe\x00", b"name: [\n"])
def test_files_that_are_no_recipe(tmp_path, content):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(LinesideError, match=r"bad\.yaml"):
        load_recipe(path)


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(LinesideError, match=r"not-there.yaml: no such recipe; expected a YAML file, or one of .*nano"):
        load_recipe(tmp_path / "not-there.yaml")
    with pytest.raises(LinesideError, match="a folder; expected a YAML file"):
        load_recipe(tmp_path)


@pytest.mark.parametrize("name", ["nano", "nano.yaml", "recipes/nano.yaml"])
def test_the_packages_own_recipes_are_found_by_name_where_there_is_no_such_file(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_recipe(Path(name)).name == "nano"
    with pytest.raises(LinesideError, match="did you mean 'nano'"):
        load_recipe(Path("nanoo.yaml"))
    (tmp_path / "nano").mkdir()  # a folder of that name is no recipe, but a file of one's own wins
    (tmp_path / "nano.yaml").write_text("name: mine\ndata: {samples: s}\n")
    assert load_recipe(Path("nano.yaml")).name == "mine"


def test_a_stage_may_begin_with_a_checkpoint(write):
    recipe = load_recipe(write(SMALL), ["stages=[rlvr]", "rlvr.from=runs/a/sft"])
    assert recipe.rlvr.from_ == Path("runs/a/sft") and recipe.sft.from_ is None
    again = load_recipe(write(dump_recipe(recipe)))
    assert again == recipe and differences(again, load_recipe(write(SMALL), ["stages=[rlvr]"])) == [
        "rlvr.from: runs/a/sft -> None"
    ]


def test_what_changes_no_number_is_no_difference(write):
    before = load_recipe(write("name: a\ndata: {samples: here, mix: [{samples: x, weight: 2}]}\n"))
    free = ["name=b", "runs=r", "workers=2", "controls=[]", "evaluate.splits=[dev]", "rlvr.save_seconds=1"]
    moved = ["data.samples=there", "data.mix=[{samples: y, weight: 2}]"]
    assert differences(before, load_recipe(write(dump_recipe(before)), free + moved)) == []
    weighed = load_recipe(write(dump_recipe(before)), ["data.mix=[{samples: x, weight: 3}]"])
    assert [line.split(":")[0] for line in differences(before, weighed)] == ["data.mix"]
    assert differences(before, load_recipe(write("name: a\ndata: {frames: here}\n")))


def test_differences_name_the_setting(write):
    before, after = load_recipe(write(SMALL)), load_recipe(write(SMALL), ["sft.learning_rate.lm=2e-4"])
    assert differences(before, after) == ["sft.learning_rate.lm: 0.0001 -> 0.0002"]
    assert differences(before, before) == []
    assert isinstance(before, Recipe)


def test_a_run_writes_into_the_folder_of_runs_alone_and_its_name_leads_nowhere_else(tmp_path: Path) -> None:
    place = tmp_path / "here"
    place.mkdir()
    (tmp_path / CANARY).write_text("nobody names it")
    save_parts(place, "siglip")
    write_samples(place / "samples", rows("train", range(6)) + rows("heldout", range(30, 33)))
    for name in ("..", "../x", "/x", "a/b", "a\\\\b", ".x", ""):
        with pytest.raises(LinesideError, match=r"name: "):
            recipe(place, name=f"'{name}'")
    chosen = recipe(place, controls="[]", **{"align.epochs": 1, "evaluate.splits": "[]"})
    with watched(chosen.runs) as broken:  # its own folder, and the feature store that runs share
        train(chosen, last="align")
    assert [line for line in broken if str(tmp_path) in line] == []  # elsewhere libraries keep what they compile
    assert {path.name for path in place.iterdir()} == {"recipe.yaml", "samples", "encoder", "lm", "runs"}
