"""A finished model of each family: its packed path, prompts and pixels are its own, and so is what is saved."""

from __future__ import annotations

import gc
import io
import json
import shutil
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image as PILImage
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForImageTextToText

from lineside.ask import ask
from lineside.backends.cpu import Cpu
from lineside.backends.reference import Reference
from lineside.data.store import write_samples
from lineside.errors import LinesideError
from lineside.images import decode
from lineside.model.branches import branches, frame_tree
from lineside.model.checkpoint import INDEX, KEPT, load, save
from lineside.model.features import FeatureStore
from lineside.model.generate import Prompt, generate
from lineside.model.render import BLANK
from lineside.model.tree import ANSWER, Node
from lineside.model.vlm import VLM
from lineside.recipe import Rates, Rlvr, Sft, load_recipe
from lineside.rlvr import rlvr
from lineside.serving.engine import LocalEngine, Request
from lineside.sft import sft
from lineside.train import train
from lineside.types import Image
from tests.families.finished import KINDS, Kind
from tests.families.test_ragged import sample, tree_of
from tests.serving.test_engine import check, going

SIZES = ((40, 60), (90, 50), (30, 33), (64, 64))  # height and width


def image(number: int, **role: Any) -> Image:
    height, width = SIZES[number % len(SIZES)]
    file, noise = io.BytesIO(), np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8)
    PILImage.fromarray(noise).save(file, "PNG")
    return Image(file.getvalue(), **role)


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.fixture(scope="module")
def folder(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint as it was published."""
    return kind.build(tmp_path_factory.mktemp("hub") / "model")


@pytest.fixture(scope="module")
def saved(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, loaded and saved."""
    out = tmp_path_factory.mktemp("ours") / "checkpoint"
    save(load(folder), out)
    return out


def test_a_model_that_is_let_go_is_freed(folder: Path) -> None:
    """A process that trains, judges and retrains loads many models; none may stay, nor its tokenizer."""
    vlm = load(folder)
    vlm.render.placeholder(image(0))
    parts = {name: weakref.ref(getattr(vlm, name)) for name in ("model", "family", "tokenizer", "render")}
    del vlm
    gc.collect()
    assert [name for name, part in parts.items() if part() is not None] == []


@pytest.mark.parametrize("name", ["smolvlm", "internvl", "qwen2_5_vl", "qwen3_vl", "llava_onevision"])
def test_the_form_in_which_it_was_published_is_the_same_model(name: str, tmp_path: Path) -> None:
    built = KINDS[name].build(tmp_path / "built", tied=name != "internvl")
    hub = KINDS[name].publish(Path(shutil.copytree(built, tmp_path / "hub")))
    save(load(hub), tmp_path / "ours")
    for file in KEPT:
        assert not (hub / file).exists() or (tmp_path / "ours" / file).read_bytes() == (hub / file).read_bytes()
    found: list[Any] = []
    for place in (built, hub, tmp_path / "ours"):
        vlm = load(place)
        vlm.render.switches = False
        tree, shown = tree_of(vlm, [image(0), image(1)], 2)
        features = FeatureStore(None, vlm, dtype=torch.float32).get(shown)
        counts = [vlm.render.image_tokens(stored(blank(*size))) for size in ((20, 200), (97, 96), (250, 250))]
        found.append((vlm.logprobs(vlm.pack([tree]), features), tree, counts))
    (want, *shape), *others = found
    assert all(torch.equal(logprobs, want) and rest == shape for logprobs, *rest in others)


def own_logprobs(theirs: Any, kind: Kind, vlm: VLM, path: Sequence[Node], shown: Sequence[Image]) -> Tensor:
    """Log-probabilities of a path's targets, by the model's own forward on its own processor's pixels."""
    tokens = torch.tensor([t for node in path for t in node.tokens])
    roles = torch.tensor([r for node in path for r in (node.roles or (0,) * len(node.tokens))])
    pictures = [decode(shown[i].bytes) for node in path for i in node.images]
    made = kind.inputs(kind.call(vlm.image_processor, pictures), tokens) if pictures else {}
    hidden = theirs.model(input_ids=tokens[None], use_cache=False, **made).last_hidden_state[0]
    targets = roles.nonzero().flatten()
    logits = theirs.lm_head(hidden[targets - 1]).float()
    logits[:, vlm.render.image_id] = float("-inf")
    return -F.cross_entropy(logits, tokens[targets], reduction="none")


def test_packed_equals_its_own_forward(kind: Kind, saved: Path) -> None:
    vlm, theirs = load(saved), AutoModelForImageTextToText.from_pretrained(saved, dtype=torch.float32).eval()
    frames = [[image(0)], [image(1), image(2), image(3, role="reference", name="can")], []]
    trees, shown, want = [], [], []
    for answers, images in enumerate(frames):
        tree, pictures = tree_of(vlm, images, answers + 1)
        want += [own_logprobs(theirs, kind, vlm, path, pictures) for path in tree.paths()]
        trees.append(tree)
        shown += pictures
    features = FeatureStore(None, vlm, dtype=torch.float32).get(shown)
    trained = {id(p) for part in (vlm.projector, vlm.language_model, vlm.model.lm_head) for p in part.parameters()}
    names = [name for name, p in vlm.model.named_parameters() if id(p) in trained]
    results = []
    for model, logprobs in ((vlm.model, lambda: vlm.logprobs(vlm.pack(trees), features)), (theirs, lambda: None)):
        weights = [model.get_parameter(name).requires_grad_(True) for name in names]
        values = logprobs() if model is vlm.model else torch.cat(want)
        results.append((values, *torch.autograd.grad(-values.mean(), weights)))
    for got, wanted in zip(*results):
        torch.testing.assert_close(got, wanted, atol=2e-5, rtol=1e-3)
    assert all(grad.abs().max() > 0 for grad in results[1][1:])
    other = vlm.logprobs(vlm.pack(trees), [f.flip(-1) for f in features])
    assert (other - results[0][0]).abs().max() > 1e-3  # the pictures are seen


def test_features_need_no_weight_that_trains(saved: Path) -> None:
    """With several ranks each has a part of those weights only, also where the projector lies in the tower."""
    vlm = load(saved)
    pixels = vlm.pixels([decode(image(number).bytes) for number in range(2)])
    want = vlm.features(pixels)
    vlm.projector.to("meta")  # what is computed with it has no numbers, or raises
    for got, wanted in zip(vlm.features(pixels), want, strict=True):
        torch.testing.assert_close(got, wanted, atol=0, rtol=0)


def blank(height: int, width: int) -> PILImage.Image:
    return PILImage.fromarray(np.full((height, width, 3), 90, dtype=np.uint8))


def stored(drawn: PILImage.Image) -> Image:
    file = io.BytesIO()
    drawn.save(file, "PNG")
    return Image(file.getvalue())


def test_prompts_and_pixels_are_its_own(kind: Kind, folder: Path) -> None:
    vlm = load(folder)
    processor, question = vlm.image_processor, "how many red cans are in the bin?"
    for images in ([image(0)], [image(1), image(0)]):
        pictures = [decode(i.bytes) for i in images]
        asked = vlm.render.head(images) + vlm.render.question(question, thinking=False)
        assert list(asked) == kind.prompt(processor, pictures, question)
        want = kind.call(processor, pictures)["pixel_values"]
        assert torch.equal(kind.flat(vlm.pixels(pictures)).flatten(), want.flatten())
    trained = load(folder)
    trained.render.switches = True  # as in training: the same prompt with a switch behind it
    assert trained.render.question(question, thinking=True) == vlm.render.question(question, thinking=True)
    tags = (trained.render.think_open, trained.render.think_close)
    assert trained.render.question(question, thinking=False) == vlm.render.question(question, thinking=True) + tags


def test_a_picture_takes_as_many_tokens_as_its_own_processor_says(kind: Kind, folder: Path) -> None:
    vlm, draw = load(folder), np.random.default_rng(0)
    sizes = [(1, 1), (33, 32), (97, 96), (20, 200), (200, 20), (64, 64), *draw.integers(8, 250, (20, 2)).tolist()]
    most = vlm.render.image_tokens(BLANK)
    for height, width in sizes:
        drawn = blank(height, width)
        made = kind.call(vlm.image_processor, [drawn])
        text = kind.placeholder(vlm.image_processor, made, 0)
        assert vlm.render.placeholder(stored(drawn)) == tuple(vlm.tokenizer.encode(text, add_special_tokens=False))
        assert vlm.render.image_tokens(stored(drawn)) <= most
    turned = io.BytesIO()
    exif = PILImage.Exif()
    exif[0x0112] = 6  # it lies on its side
    blank(30, 90).save(turned, "JPEG", exif=exif)
    assert vlm.render.placeholder(Image(turned.getvalue())) == vlm.render.placeholder(stored(blank(90, 30)))


@pytest.mark.parametrize(
    ("name", "tied", "spare"),
    [*((name, name != "internvl", 0) for name in KINDS), ("smolvlm", False, 0), ("qwen3_vl", False, 40)],
)
def test_think_tags_get_rows_and_all_else_stays(name: str, tied: bool, spare: int, tmp_path: Path) -> None:
    kind = KINDS[name]
    base = kind.build(tmp_path / "base", tied=tied, spare=spare, shards=3)
    save(load(base), tmp_path / "ours")
    before, after = (AutoModelForImageTextToText.from_pretrained(p) for p in (base, tmp_path / "ours"))
    tokens = len(kind.tokenizer())
    rows = [m.get_input_embeddings().weight.shape[0] for m in (before, after)]
    assert rows == [tokens + spare, tokens + (spare or 2)]
    assert after.config.get_text_config().vocab_size == rows[1]
    assert (after.lm_head.weight is after.get_input_embeddings().weight) == tied
    for name, weight in before.state_dict().items():
        now = after.state_dict()[name]
        shared = slice(tokens) if len(weight) == rows[0] else slice(None)
        assert torch.equal(now[shared], weight[shared]), name
    assert after.get_input_embeddings().weight[tokens : tokens + 2].std() > 0
    names = {path.name for path in base.iterdir()} - {"chat_template.jinja", "generation_config.json"}
    assert names <= {path.name for path in (tmp_path / "ours").iterdir()}
    assert len([name for name in names if name.endswith(".safetensors")]) > 1
    for name in names & set(KEPT):
        assert (tmp_path / "ours" / name).read_bytes() == (base / name).read_bytes()
    maps = [json.loads((p / INDEX).read_text())["weight_map"] for p in (base, tmp_path / "ours")]
    assert maps[0] == maps[1]


def test_an_index_that_names_a_file_outside_the_folder_is_refused(tmp_path: Path) -> None:
    base = KINDS["smolvlm"].build(tmp_path / "base", shards=2)
    index = json.loads((base / INDEX).read_text())
    name, file = next(iter(index["weight_map"].items()))
    shutil.copyfile(base / file, tmp_path / "outside.safetensors")
    index["weight_map"][name] = "../outside.safetensors"
    (base / INDEX).write_text(json.dumps(index))
    with pytest.raises(LinesideError, match=r"names '../outside.safetensors': expected files of the folder itself"):
        load(base)


def test_it_is_asked_trained_and_loaded_by_transformers(kind: Kind, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "frame.png").write_bytes(image(0).bytes)
    asked = ask(folder, tmp_path / "frame.png", "how many red cans?", max_new_tokens=3)
    assert asked.tokens == 3 and not asked.thinking
    vlm = load(folder)
    vlm.render.switches = True
    rows = [
        sample(name, frame, number, answer=answer)
        for frame in range(3)
        for number, (name, answer) in enumerate((("qa", "3"), ("qa", "5"), ("prompt", None)))
    ]
    write_samples(tmp_path / "samples", rows)
    store = FeatureStore(tmp_path / "features", vlm, dtype=torch.float32)
    fast = Rates(projector=1e-2, lm=1e-2)
    encoder = {name: weight.clone() for name, weight in vlm.encoder_state.items()}
    sft(vlm, store, tmp_path / "samples", tmp_path / "sft", Sft(max_steps=2, step_tokens=200, learning_rate=fast))
    settings = Rlvr(max_steps=1, prompts=2, group_size=4, max_new_tokens=8, overlong_cache=2, learning_rate=fast)
    rlvr(vlm, store, tmp_path / "samples", tmp_path / "rlvr", settings)
    assert all(torch.equal(weight, encoder[name]) for name, weight in vlm.encoder_state.items())
    trained, again = load(tmp_path / "rlvr" / "checkpoint"), load(folder)
    assert trained.render.switches
    changed = {name.rpartition(".")[0] for name, p in trained.model.named_parameters()
               if not torch.equal(p, again.model.get_parameter(name))}  # fmt: skip
    assert any(name.startswith(vlm.family.language_model) for name in changed)
    assert any(name.startswith(vlm.family.projector[0]) for name in changed)
    theirs = AutoModelForImageTextToText.from_pretrained(tmp_path / "rlvr" / "checkpoint", dtype=torch.float32).eval()
    (tree, shown) = tree_of(trained, [image(0), image(1)], 1)
    (want,) = (own_logprobs(theirs, kind, trained, path, shown) for path in tree.paths())
    got = trained.logprobs(trained.pack([tree]), FeatureStore(None, trained, dtype=torch.float32).get(shown))
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-3)
    prompts = [Prompt(s.images, s.question, thinking=False) for s in rows if s.kind == "prompt"]
    rolled = generate(trained, store, prompts, samples=2, temperature=1.0, max_new_tokens=5, seed=3)
    for prompt, group in zip(prompts, rolled):
        for rollout in group:
            leaf = Node(rollout.tokens, roles=(ANSWER,) * len(rollout.tokens), leaf=0)
            words = trained.render.question(prompt.question, thinking=False)
            ((branch),) = branches(trained.render, [(0, prompt.images)])
            tree, images = frame_tree(trained.render, prompt.images[:1], [(branch, [Node(words, children=(leaf,))])])
            (path,) = tree.paths()
            want = own_logprobs(theirs, kind, trained, path, images)
            torch.testing.assert_close(torch.tensor(rollout.sampler_logprobs), want, atol=1e-4, rtol=1e-4)


def test_the_cpu_backend_answers_as_the_reference(kind: Kind, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vlm, answered = load(folder), []
    store = FeatureStore(None, vlm, dtype=torch.float32)
    prompts = [Prompt((image(0),), "how many?", False), Prompt((image(1), image(2)), "is there a red can?", True)]
    for backend in (Reference(), Cpu()):
        vlm.use(backend)
        answered.append(generate(vlm, store, prompts, samples=2, temperature=1.0, max_new_tokens=6, seed=1))
    for slow, fast in zip(*answered):
        assert [one.tokens for one in slow] == [one.tokens for one in fast]
        for one, other in zip(slow, fast):
            torch.testing.assert_close(torch.tensor(one.sampler_logprobs), torch.tensor(other.sampler_logprobs))
    assert "slower" not in capsys.readouterr().err


def test_the_server_answers_as_generate_does(kind: Kind, folder: Path) -> None:
    engine, trees = LocalEngine(load(folder)), []
    for images in ((image(0),), (image(1), image(2, role="reference", name="red can"))):
        prompts = tuple(Prompt(images, question, thinking=False) for question in ("how many?", "is there a red can?"))
        trees += engine.read([Request(prompts, max_tokens=6)])
        engine.step(trees)  # the second joins while the first writes
    while going(trees):
        engine.step(going(trees))
    check(engine, trees)


def test_a_recipe_trains_a_finished_model(tmp_path: Path) -> None:
    folder = KINDS["qwen3_vl"].build(tmp_path / "base")
    kinds = (("qa", "3"), ("prompt", None))
    rows = [sample(kind, frame, 1, answer=answer) for frame in range(3) for kind, answer in kinds]
    write_samples(tmp_path / "samples", rows)
    settings = {
        "name": "more", "runs": str(tmp_path / "runs"), "data": {"samples": str(tmp_path / "samples"), "check": False},
        "parts": {"vlm": str(folder)}, "controls": [], "evaluate": {"splits": []}, "dtype": "fp32",
        "sft": {"max_steps": 1},
        "rlvr": {"max_steps": 1, "prompts": 2, "group_size": 2, "max_new_tokens": 4, "overlong_cache": 1},
    }  # fmt: skip
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings))
    run = train(load_recipe(path))
    assert [stage for stage in ("align", "sft", "rlvr") if (run / stage).exists()] == ["sft", "rlvr"]
    assert load(run / "parts" / "checkpoint").render.switches and load(run / "rlvr" / "checkpoint").thinking.knows
    with pytest.raises(LinesideError, match="align trains the projector of parts that have never met"):
        load_recipe(path, ["stages=[align, sft]"])
    with pytest.raises(LinesideError, match="vlm is a whole model"):
        load_recipe(path, ["parts.preset=siglip"])
    with pytest.raises(LinesideError, match=r"leaves nothing to train up to align"):
        train(load_recipe(path, ["name=other"]), last="align")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            {"model_type": "qwen3_5", "text_config": {"layer_types": ["linear_attention", "full_attention"]}},
            "with linear-attention layers: this family is not supported",
        ),
        (
            {"model_type": "lfm2_vl", "text_config": {"layer_types": ["conv", "full_attention"]}},
            "with convolution layers",
        ),
        ({"model_type": "smolvlm", "text_config": {"model_type": "mistral", "sliding_window": 64}}, "a sliding window"),
        ({"model_type": "gemma3"}, r"'gemma3': .* not supported \(the tokens of its pictures see each other"),
        ({"model_type": "pixtral"}, "this family is not supported; supported: llava, smolvlm"),
    ],
)
def test_what_is_not_proven_is_refused_by_name(text: dict[str, Any], why: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(text))
    with pytest.raises(LinesideError, match=why):
        load(tmp_path)
