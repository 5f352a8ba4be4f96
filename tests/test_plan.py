"""A plan is counted from configurations alone, agrees with what a run took, and says what it needs."""

from __future__ import annotations

import json
import math
import re
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

import lineside.plan
from lineside.errors import CheckFailed, LinesideError
from lineside.plan import DEVICES, GPU_SHARE, plan
from lineside.recipe import OWN_RECIPES, Recipe, load_recipe
from lineside.training.cost import Cost, write_cost
from lineside.training.forecast import (
    Machine,
    Step,
    forecast,
    frame_tokens,
    held_bytes,
    operations,
    pack_bytes,
    reading_seconds,
)
from lineside.training.operations import update_operations
from lineside.training.skeleton import PUBLISHED, config_of, skeleton
from lineside.training.stage import trainable
from tests.conftest import make_tiny_vlm
from tests.model.test_tree import cases
from tests.test_train import recipe as tiny_recipe
from tests.test_train import save_parts

OWN = sorted(path.stem for path in OWN_RECIPES.glob("*.yaml"))
FOR_GPUS = ("qwen3-vl-2b", "siglip", "siglip2-qwen3", "smolvlm2")
HERE = Machine("two cores", rate=420e9, memory=25e9, cores=2)


@pytest.fixture(autouse=True)
def offline_and_calm(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a plan asks nobody")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(lineside.plan, "measure_matrix_rate", lambda *_, **__: 420e9)


def steps(recipe: Recipe, machine: Machine = HERE, frames: int | None = 3150) -> dict[str, Step]:
    return {step.name: step for step in forecast(recipe, skeleton(recipe.parts), machine, frames=frames)}


def test_of_more_features_than_the_store_may_hold_it_says_how_many_are_kept() -> None:
    recipe = load_recipe(Path("quickstart"), ["features_gb=0.01"])
    assert "0.01 GB are kept (features_gb), the others are encoded again" in steps(recipe)["encode"].note
    assert "features_gb" not in steps(load_recipe(Path("quickstart")))["encode"].note


def comment(name: str) -> str:
    """What stands before the settings of a recipe of the package."""
    return (OWN_RECIPES / f"{name}.yaml").read_text().partition("\nname:")[0]


@pytest.mark.parametrize("name", OWN)
def test_every_recipe_of_the_package_is_planned_without_a_download(name: str, capsys: pytest.CaptureFixture) -> None:
    found = plan(load_recipe(Path(name)), device="h200", devices=8, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["model"]["picture"] > 0 and told["machine"]["source"] == "arithmetic, not measured"
    assert {step.name for step in found} >= set(load_recipe(Path(name)).stages)
    assert ("GPU" in comment(name)) == (name in FOR_GPUS)  # planned on these, below
    assert all(math.isnan(step.seconds) or step.seconds > 0 for step in found)


@pytest.mark.parametrize("name", FOR_GPUS)
def test_a_recipe_fits_the_gpus_that_its_comment_names(name: str) -> None:
    """By the very command of the comment, which must name the GPUs of the sentence before it."""
    head = comment(name)
    ((count, size),) = re.findall(r"(one|eight) GPUs? of (\d+) GB", head)
    (command,) = re.findall(r"lineside plan (.*)", head)
    named, *words = command.split()
    options = dict(zip(words[::2], words[1::2], strict=True))
    device, devices = options["--device"], int(options.get("--devices", 1))
    assert (named, devices, DEVICES[device][0]) == (name, {"one": 1, "eight": 8}[count], int(size))
    plan(load_recipe(Path(name)), device=device, devices=devices)  # raises CheckFailed if it does not fit
    with pytest.raises(CheckFailed, match="needs some"):
        plan(load_recipe(Path(name)), device=device, devices=devices, memory=0.1 * int(size))


# What the quick start took on two cores (2026-11-29, 420 GFLOP/s of plain matrix products), seconds and tokens.
TOOK = {"align": (53.7, 607_548), "sft": (539.5, 4_020_256), "rlvr": (259.3, 1_136_504), "traced": (163.8, 1_139_039)}


def test_the_quick_start_takes_what_its_plan_says() -> None:
    found = steps(load_recipe(Path("quickstart")))
    for name, (seconds, tokens) in TOOK.items():
        assert found[name].seconds == pytest.approx(seconds, rel=0.25), name
        assert found[name].tokens == pytest.approx(tokens, rel=0.25), name
        assert found[name].memory == pytest.approx(3.6e9, rel=0.25)  # its own, without mapped features
    whole = sum(step.seconds for step in found.values())
    assert whole == pytest.approx(1470, rel=0.25)


def test_parameters_are_those_of_the_model_that_is_made(tmp_path: Path) -> None:
    save_parts(tmp_path, "siglip")
    recipe = tiny_recipe(tmp_path, **{"sft.train": "[projector, lora]", "lora.rank": 4})
    shape, vlm = skeleton(recipe.parts), make_tiny_vlm()
    size = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    assert shape.encoder_parameters == size(vlm.tower)
    assert shape.projector_parameters == size(vlm.projector) and shape.picture == 16
    layer = 4 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64))  # q and o; k and v; gate, up and down
    assert shape.adapter(4, recipe.lora.targets) == 2 * layer + 2 * 2 * 32  # and two rows, in embeddings and head
    trained = steps(recipe)["sft"].trained
    assert trained == shape.adapter(4, recipe.lora.targets) + shape.projector_parameters
    with pytest.raises(LinesideError, match=r"no linear layer q_pro; did you mean 'q_proj'\?"):
        shape.adapter(4, ("q_pro",))


def test_operations_are_counted_as_a_run_counts_them(tmp_path: Path) -> None:
    save_parts(tmp_path, "siglip")
    shape, vlm = skeleton(tiny_recipe(tmp_path).parts), make_tiny_vlm()
    for parts, share in ((("projector",), 0.0), (("projector", "lm"), 1.0)):
        trainable(vlm, parts)
        pack = vlm.pack(cases(vlm))
        counted = operations(shape, len(pack), len(pack.target) / len(pack), trained=share, context=20)
        assert counted == pytest.approx(update_operations(vlm, pack), rel=0.25)


def test_published_shapes_have_their_published_sizes() -> None:
    """In millions, as the models' names and cards have them."""
    sizes = {"SmolLM2-135M": 134.5, "SmolLM2-360M": 361.8, "Qwen3-1.7B": 1720, "Qwen3-4B": 4022,
             "siglip2-base": 92.9, "siglip2-so400m": 428.2}  # fmt: skip
    for name in PUBLISHED:
        if size := next((size for part, size in sizes.items() if part in name), None):
            config = config_of("parts.lm", name)
            with torch.device("meta"):
                kind: Any = AutoModel if "siglip" in name else AutoModelForCausalLM
                count = sum(p.numel() for p in kind.from_config(config).parameters())
            assert count / 1e6 == pytest.approx(size, rel=0.01), name
    for name, size, picture in (("smolvlm2", 507.5, 1088), ("qwen3-vl-2b", 2127.5, 196)):
        shape = skeleton(load_recipe(Path(name)).parts, side=448)
        assert shape.parameters / 1e6 == pytest.approx(size, rel=0.001) and shape.picture == picture


def test_what_is_not_at_hand_is_told_with_what_is_needed(tmp_path: Path) -> None:
    save_parts(tmp_path, "siglip")
    recipe = tiny_recipe(tmp_path)
    with pytest.raises(LinesideError, match=r"parts.lm: Qwen/Qwen3-4: its configuration is not at hand, .*hf download"):
        plan(tiny_recipe(tmp_path, **{"parts.lm": "Qwen/Qwen3-4"}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(LinesideError, match=r"parts.encoder: .*empty: no config.json"):
        plan(tiny_recipe(tmp_path, **{"parts.encoder": tmp_path / "empty"}))
    with pytest.raises(LinesideError, match="vision tower of type 'llama' is not supported"):
        plan(tiny_recipe(tmp_path, **{"parts.encoder": tmp_path / "lm"}))
    with pytest.raises(LinesideError, match=r"--device h10: not known; did you mean 'h100'\?"):
        plan(recipe, device="h10")
    with pytest.raises(CheckFailed, match=r"needs some .* GB, and h100 has 0.0"):
        plan(recipe, device="h100", memory=0.01)
    found = {step.name: step for step in plan(recipe)}  # its samples are not there
    assert math.isnan(found["sft"].seconds) and "not known" in found["sft"].note


def test_a_run_before_tells_the_speed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    save_parts(tmp_path, "siglip")
    recipe = tiny_recipe(tmp_path, **{"sft.max_tokens": 1_000_000})
    first = {step.name: step.seconds for step in plan(recipe)}["sft"]
    assert "in the quick start elsewhere" in capsys.readouterr().out.replace("\n", " ").replace("  ", " ")
    run = recipe.folder
    (run / "sft").mkdir(parents=True)
    (run / "recipe.yaml").write_text((tmp_path / "recipe.yaml").read_text())
    write_cost(run / "sft", Cost(tokens=10, operations=42e9, matrix_rate=1e9, seconds={"update": 1.0, "evaluate": 9.0}))
    again = {step.name: step.seconds for step in plan(recipe)}["sft"]
    assert again == pytest.approx(first * 0.37 * 420 / 42)
    assert "training at the 42 GFLOP/s of" in " ".join(capsys.readouterr().out.split())


def test_more_devices_and_smaller_packs_take_less() -> None:
    recipe = load_recipe(Path("siglip2-qwen3"))
    memory, rate = DEVICES["h100"]
    one, eight = (Machine("h100", rate, memory * 1e9, n, gpu=True) for n in (1, 8))
    alone, shared = (steps(recipe, machine, 60_000)["sft"] for machine in (one, eight))
    assert shared.seconds < alone.seconds / 7 and shared.memory < alone.memory - 0.8 * 12 * 4e9
    small = load_recipe(Path("siglip"), ["sft.pack_tokens=4096"])
    packs = [steps(each, one, 60_000)["sft"].memory for each in (small, load_recipe(Path("siglip")))]
    assert packs[0] < packs[1]
    assert steps(recipe, replace(eight, update=0.1), 60_000)["sft"].seconds > shared.seconds


SHAPES = {"0.5B": 0.5e9, "2B": 2e9, "8B": 8e9}  # weights
PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
STEP = 32_768  # tokens of a step for each GPU


def rows_of(title: str) -> dict[str, list[list[float]]]:
    """The numbers in the cells of a table of docs/scale.md, by the model in its first cell."""
    section = PAGE.read_text().partition(f"### {title}")[2].partition("\n##")[0]
    cells = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    found = {re.split(r"[ ,]", row[0])[0]: row for row in cells if row[0][0].isdigit()}
    assert found.keys() == SHAPES.keys()
    numbers = lambda cell: [float(number) for number in re.findall(r"\d+(?:\.\d+)?", cell)]  # noqa: E731
    return {name: [numbers(cell) for cell in row] for name, row in found.items()}


def h100(count: int) -> Machine:
    memory, rate = DEVICES["h100"]
    return Machine("h100", rate, memory * 1e9, count, gpu=True, update=GPU_SHARE)


def test_a_plan_takes_the_bytes_that_the_page_of_scale_says() -> None:
    some = skeleton(load_recipe(Path("siglip")).parts)
    for name, (shape, *told) in rows_of("Bytes on a GPU").items():
        weights, (_, layers, width, queries, keys, inner) = SHAPES[name], shape
        model = replace(some, layers=int(layers), width=int(width), attention=(int(queries), int(keys)),
                        inner=int(inner))  # fmt: skip
        bytes_of = lambda count, packs: held_bytes(h100(count), weights, weights, packs=packs)  # noqa: B023, E731
        assert bytes_of(64, 4) == bytes_of(8, 4) < bytes_of(2, 4)  # shared out within a machine
        found = [bytes_of(1, 4), bytes_of(8, 4), bytes_of(8, 1), bytes_of(64, 4)]
        found += [pack_bytes(model, 8192, checkpointing=checkpointing) for checkpointing in (False, True)]
        ones = [numbers[0] if numbers != [8.0] or i != 3 else told[1][0] for i, numbers in enumerate(told)]  # "as 8"
        assert [round(size / 1e9, 1) for size in found] == ones, name


def test_a_step_takes_the_seconds_that_the_page_of_scale_says() -> None:
    read = [2 * STEP / 904 * count * reading_seconds(h100(count)) for count in (1, 8, 64)]  # frames of 452 tokens
    for name, (_, computing, links, reading, step) in rows_of("Seconds a step").items():
        weights, passes = SHAPES[name], 8 if name == "8B" else 6
        seconds = passes * weights * STEP / (h100(1).rate * GPU_SHARE)
        within, between = 5.25 * weights / 315e9, 0.875 * weights / 40e9
        steps = [max(seconds, read[0]), max(seconds + within, read[1]), max(seconds + within + between, read[2])]
        for numbers, found in ((computing, [seconds]), (links, [within, between]), (reading or read, read),
                               (step, steps[-len(step) :])):  # fmt: skip
            assert numbers == pytest.approx(found, rel=0.05, abs=0.005), name


def test_what_rank_0_does_alone_is_not_divided_and_reading_limits() -> None:
    recipe = load_recipe(Path("siglip"), ["controls=[traced, rejection]"])
    one, many = (steps(recipe, h100(count), 60_000) for count in (1, 64))
    assert many["sft: evaluated"] == one["sft: evaluated"]
    assert many["encode"].seconds == pytest.approx(one["encode"].seconds / 64)  # each does a share
    frames = many["align"].tokens / frame_tokens(recipe, skeleton(recipe.parts), captions=True)
    assert many["align"].seconds == pytest.approx(frames * (0.74e-3 + 1.9e-3 / 64))
    assert "limited by reading" in many["align"].note
    alone, shared = ({name: step.seconds for name, step in found.items()} for found in (one, many))
    assert shared["rejection"] - shared["traced"] == pytest.approx(alone["rejection"] - alone["traced"])  # sampled
    large = [load_recipe(Path("siglip2-qwen3"), [f"sft.checkpointing={on}"]) for on in ("false", "true")]
    plain, twice = (steps(each, h100(1), 60_000)["sft"] for each in large)
    assert twice.seconds == pytest.approx(plain.seconds * 4 / 3) and "reading" not in twice.note  # forward twice


def test_several_packs_keep_a_whole_gradient() -> None:
    """Of eight GPUs, each has a pack of 16,384 tokens in a step of 131,072, and two in one of 262,144."""
    recipe = "siglip2-qwen3"
    large = steps(load_recipe(Path(recipe)), h100(8), 60_000)["sft"]
    small = steps(load_recipe(Path(recipe), ["sft.step_tokens=131072"]), h100(8), 60_000)["sft"]
    assert large.memory - small.memory == pytest.approx(4 * large.trained)


def test_a_plan_of_several_gpus_says_what_it_counts(capsys: pytest.CaptureFixture) -> None:
    plan(load_recipe(Path("siglip")), device="h100", devices=16)
    told = " ".join(capsys.readouterr().out.split())
    assert "shared out over 8 GPUs, those of a machine" in told and "Links between GPUs are not counted" in told
    plan(load_recipe(Path("siglip")), device="h100")
    assert "shared out" not in capsys.readouterr().out


def test_what_is_sampled_is_planned_too() -> None:
    """Rejection sampling rolls out every prompt before it trains. A rollout with thinking off is short."""
    settings = ["rlvr.max_steps=100", "controls=[traced, rejection]"]
    found = steps(load_recipe(Path("headline"), settings), frames=18_000)
    few = steps(load_recipe(Path("headline"), [*settings, "rejection.max_prompts=2970"]), frames=18_000)
    plain, all_prompts, some = (each.seconds for each in (found["traced"], found["rejection"], few["rejection"]))
    assert all_prompts - plain == pytest.approx(10 * (some - plain))  # 18,000 frames, 6.6 questions, a quarter
    assert "29,700 prompts" in found["rejection"].note and "2,970 prompts" in few["rejection"].note
    quick = steps(load_recipe(Path("headline"), [*settings, "rlvr.no_think_share=0.5"]), frames=18_000)
    assert quick["rlvr"].seconds < 0.8 * found["rlvr"].seconds
