"""A checkpoint cannot claim more than its files hold, and brings nothing from outside its folder."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest

from lineside.errors import LinesideError
from lineside.model.checkpoint import family_of, family_of_config, load, save, weights_of
from lineside.model.parts import load_language_model
from lineside.model.sizes import MOST_LAYERS, stored_shapes
from lineside.registry.manifest import files_below
from tests.conftest import make_tiny_vlm
from tests.fuzz.guard import find


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "good"
    save(make_tiny_vlm(), folder)
    return folder


def copied(good: Path, tmp_path: Path, **changed: Any) -> Path:
    """A copy whose config.json has other values; `a__b` is b in a."""
    folder = tmp_path / "copy"
    shutil.copytree(good, folder)
    config = json.loads((folder / "config.json").read_text())
    for name, value in changed.items():
        place = config
        *sections, last = name.split("__")
        for section in sections:
            place = place[section]
        place[last] = value
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"text_config__num_hidden_layers": 10**9}, "num_hidden_layers is 1,000,000,000: expected at most"),
        ({"vision_config__num_hidden_layers": 10**12}, "num_hidden_layers is"),
        ({"text_config__vocab_size": 10**11}, "a model of .* parameters, and the files hold"),
        ({"text_config__hidden_size": 2**20, "text_config__intermediate_size": 2**20}, "a model of .* parameters"),
        ({"vision_config__image_size": 2**20}, "a model of .* parameters"),
        ({"vision_config__patch_size": 10**7}, "a model of .* parameters"),
        ({"text_config__num_hidden_layers": -1}, "num_hidden_layers is -1: expected at most"),
        ({"text_config__layer_types": ["full_attention"] * 10**6}, "cannot load|lacks|not supported"),
        ({"vision_config__patch_size": 0}, "cannot load"),
    ],
)
def test_a_configuration_bomb_is_refused_before_it_goes_off(
    good: Path, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    folder = copied(good, tmp_path, **changed)
    with pytest.raises(LinesideError, match=message):
        load(folder)
    with pytest.raises(LinesideError, match=message):
        family_of(folder)
    found = find(lambda: load(folder), tmp_path, 0, (LinesideError,), slack=5)  # neither long nor elsewhere
    assert found is None, found.told


def test_layers_are_counted_before_transformers_lists_them(good: Path, tmp_path: Path) -> None:
    layers = {"model_type": "qwen2", "num_hidden_layers": MOST_LAYERS + 1}  # of Qwen2 each has a kind, in a list
    folder = copied(good, tmp_path, text_config=layers)
    config = json.loads((folder / "config.json").read_text())
    with pytest.raises(LinesideError, match=r"config.json: num_hidden_layers is 10,001: expected at most 10,000"):
        family_of_config(config, folder)


def test_a_language_model_that_claims_too_much_is_refused(tmp_path: Path) -> None:
    vlm = make_tiny_vlm()
    vlm.model.model.language_model.config.architectures = ["LlamaForCausalLM"]
    from transformers import LlamaForCausalLM

    config = vlm.model.model.language_model.config
    LlamaForCausalLM(config).save_pretrained(tmp_path / "lm")
    vlm.tokenizer.save_pretrained(tmp_path / "lm")
    assert load_language_model(str(tmp_path / "lm"))[0].config.num_hidden_layers == 2
    plain = json.loads((tmp_path / "lm" / "config.json").read_text())
    (tmp_path / "lm" / "config.json").write_text(json.dumps({**plain, "num_hidden_layers": 10**9}))
    with pytest.raises(LinesideError, match="num_hidden_layers is 1,000,000,000"):
        load_language_model(str(tmp_path / "lm"))


def header(path: Path, change: Any) -> None:
    """Change the header of a file of weights; its length stays right."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    told = change(json.loads(data[8 : 8 + size]))
    made = told if isinstance(told, bytes) else json.dumps(told).encode()
    path.write_bytes(struct.pack("<Q", len(made)) + made + data[8 + size :])


@pytest.mark.parametrize(
    "change",
    [
        lambda h: {n: {**w, "data_offsets": [0, 2**60]} if "dtype" in w else w for n, w in h.items()},
        lambda h: {n: {**w, "shape": [2**31, 2**31]} if "dtype" in w else w for n, w in h.items()},
        lambda h: {n: {**w, "dtype": "PICKLE"} if "dtype" in w else w for n, w in h.items()},
        lambda h: {n: {**w, "data_offsets": [0, 64]} if "dtype" in w else w for n, w in h.items()},  # all in one place
        lambda h: {**h, "x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
        lambda h: {**h, "__metadata__": {"format": "pt" * 10**6, "x": 5}},
        lambda h: b"[" * 100_000,
        lambda h: {},
    ],
)  # fmt: skip
def test_a_tampered_header_is_refused(good: Path, tmp_path: Path, change: Any) -> None:
    folder = copied(good, tmp_path)
    header(folder / "model.safetensors", change)
    with pytest.raises(LinesideError, match=r"not readable as weights|lacks|the files hold"):
        load(folder)
    with pytest.raises(LinesideError):
        weights_of(folder)["lm_head.weight"]() if weights_of(folder) else load(folder)


def test_a_header_longer_than_its_file_is_refused(good: Path, tmp_path: Path) -> None:
    folder = copied(good, tmp_path)
    for length in (2**63, 2**40, 10**8):
        data = (good / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", length) + data[8:])
        with pytest.raises(LinesideError, match="not readable as weights"):
            stored_shapes(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "processor_config.json", "notes.txt", "chat_template.jinja"])
def test_links_out_of_the_folder_are_refused(good: Path, tmp_path: Path, name: str) -> None:
    folder, secret = copied(good, tmp_path), tmp_path / "secret"
    secret.write_bytes((good / name).read_bytes() if (good / name).exists() else b"secret")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(secret)
    for read in (load, files_below):
        with pytest.raises(LinesideError, match=f"{name}: a link out of the folder"):
            read(folder)


def test_a_snapshot_of_the_model_hub_is_links_into_its_blobs(good: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--a" / "blobs", tmp_path / "models--a" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for path in good.iterdir():
        shutil.copy(path, blobs / path.name)
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    assert load(snapshot).context == 512 and files_below(snapshot).keys() == files_below(good).keys()


def test_an_index_names_no_file_outside(good: Path, tmp_path: Path) -> None:
    folder = copied(good, tmp_path)
    (tmp_path / "outside.safetensors").write_bytes((good / "model.safetensors").read_bytes())
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "../outside.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(LinesideError, match="expected files of the folder itself"):
        load(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": ["lm_head.weight"]}))
    assert load(folder).family.shards == {}  # all weights lie in one file: nobody reads this one
