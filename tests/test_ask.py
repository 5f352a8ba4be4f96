"""ask on a two-layer VLM."""

from __future__ import annotations

import json
import math
from functools import partial
from importlib import resources
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from PIL import Image as Pil

from lineside.ask import AskResult, Milliseconds, _shown, ask
from lineside.errors import LinesideError
from lineside.judgement.calibration import Curve, write_calibration
from lineside.judgement.schema import TypedAnswer
from lineside.judgement.typed import Form, keep_forms
from lineside.model.checkpoint import save
from lineside.serving.pairs import EnginePair
from lineside.types import Costs, Rollout, Thinking
from tests.conftest import make_tiny_vlm, picture


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "checkpoint"
    save(make_tiny_vlm(), folder)
    return folder


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    path.write_bytes(picture(1))
    return path


def test_json_is_what_is_returned(checkpoint: Path, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = ask(checkpoint, photo, "is there a blue box?", as_json=True, max_new_tokens=5)
    printed = json.loads(capsys.readouterr().out)
    assert printed == found.typed.model_dump(mode="json")
    schema = json.loads(resources.files("lineside").joinpath("answer.schema.json").read_text())
    jsonschema.validate(printed, schema, cls=jsonschema.Draft202012Validator)
    assert (printed["kind"], printed["task"], printed["decision"]) == ("text", None, "refuse")
    assert printed["ms"] == pytest.approx(found.milliseconds.total)
    assert 0 <= found.confidence <= 1 and 1 <= found.tokens <= 5
    time = found.milliseconds
    assert time.features > 0 and time.prefill > 0
    assert time.total == pytest.approx(time.features + time.prefill + time.decode)


def test_thinking_off_gives_an_answer_without_a_trace(
    checkpoint: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = ask(checkpoint, photo, "is there a blue box?", thinking=False, max_new_tokens=5)
    assert found.typed.trace is None and found.problem == ""
    printed = capsys.readouterr().out
    assert "answer" in printed and "trace" not in printed and "ms (encode" in printed


def test_by_default_it_thinks_as_the_task_was_trained(
    tmp_path: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vlm = make_tiny_vlm()
    vlm.thinking = Thinking({"cells/silicon": False, "cells/count": True})
    save(vlm, tmp_path / "both")
    asked = partial(ask, tmp_path / "both", photo, "which silicon?", max_new_tokens=3)
    assert not asked(task="cells/silicon").thinking
    assert asked(task="cells/count").thinking
    assert asked(thinking=False, task="cells/count").thinking is False
    capsys.readouterr()
    assert asked().thinking
    assert "for a question of cells/silicon give --task, or --mode fast" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(LinesideError, match=r"this checkpoint has no task .* did you mean cells/silicon\?"):
        asked(task="cells/silicone")
    vlm.thinking = Thinking({"cells/silicon": False})
    save(vlm, tmp_path / "fast")
    assert not ask(tmp_path / "fast", photo, "which silicon?", max_new_tokens=3).thinking


def test_bad_input_is_named(checkpoint: Path, photo: Path, tmp_path: Path) -> None:
    with pytest.raises(LinesideError, match=r"none\.jpg: cannot be read \(No such file"):
        ask(checkpoint, tmp_path / "none.jpg", "what?")
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    with pytest.raises(LinesideError, match=r"device\.jpg: cannot be read \(not a file\)"):
        ask(checkpoint, tmp_path / "device.jpg", "what?")
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(photo.read_bytes()[:200])
    with pytest.raises(LinesideError, match=r"broken\.jpg: image"):
        ask(checkpoint, broken, "what?")
    (tmp_path / "page.html").write_text("<html>")
    with pytest.raises(LinesideError, match=r"page\.html: not an image"):
        ask(checkpoint, tmp_path / "page.html", "what?")
    with pytest.raises(LinesideError, match="the question is empty"):
        ask(checkpoint, photo, "  ")
    with pytest.raises(LinesideError, match="no checkpoint at"):
        ask(tmp_path / "nowhere", photo, "what?")


def test_weights_that_cannot_be_decoded_here_are_refused(checkpoint: Path, photo: Path) -> None:
    with pytest.raises(LinesideError, match=r"int8 weights: .*Use --weights full"):  # tests run the reference
        ask(checkpoint, photo, "how many?", pair=EnginePair("local", "int8"))


def test_a_grey_picture_of_16_bits_says_how_it_was_read(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Pil.fromarray(np.full((4, 4), 500, np.uint16)).save(tmp_path / "deep.png")
    ask(checkpoint, tmp_path / "deep.png", "what?", max_new_tokens=2)
    assert "read as 10 bits" in " ".join(capsys.readouterr().out.split())
    ask(checkpoint, tmp_path / "deep.png", "what?", max_new_tokens=2, bits=12)
    assert "bits" not in capsys.readouterr().out


def test_what_the_model_wrote_is_text_not_markup() -> None:
    time = Milliseconds(features=1, prefill=2, decode=3, total=6)
    typed = TypedAnswer(
        value=None, unit=None, confidence=None, decision="refuse", trace="[bold]x[/bold]", ms=6.0, kind="number",
        task="a/b", text="[red]3", because="[blue]because",
    )  # fmt: skip
    asked = AskResult(
        typed=typed, thinking=True, trace_class="empty", problem="trivial", confidence=0.5, tokens=9, finished=False,
        milliseconds=time,
    )  # fmt: skip
    shown = _shown(asked).plain
    assert "[bold]x[/bold]" in shown and "[red]3" in shown and "refuse: [blue]because" in shown
    assert "not valid: trivial" in shown and "cut off after 9 tokens" in shown and "50.0%" in shown


def test_a_calibrated_answer_says_whether_to_act(
    tmp_path: Path, photo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    save(make_tiny_vlm(), model)
    said = Rollout(tokens=(5, 6), sampler_logprobs=(math.log(0.5), 0.0), text="Yes", finished=True)
    time = Milliseconds(features=1, prefill=2, decode=3, total=6)
    monkeypatch.setattr("lineside.ask._rollout", lambda *given: (said, time))
    asked = partial(ask, model, photo, "is it empty?", thinking=False)
    plain = asked(task="cells/empty").typed
    assert (plain.value, plain.kind, plain.confidence, plain.decision) == ("Yes", "text", None, "refuse")
    assert "does not say what the task's answers are" in plain.because
    yes_no = Form(kind="choice", options=("yes", "no"), phrasings=("Is it empty?",))
    keep_forms(model, {"cells/empty": yes_no, "cells/count": Form(kind="exact")})
    assert "no dev questions" in asked(task="cells/empty").typed.because
    costs = Costs.of(1.0, refusal=0.5)
    curve = Curve(n=70, scenes=70, slope=0.0, offset=2.0, normal="yes", stakes=costs, binary=True, thinking=False)
    few = curve.model_copy(update={"slope": None, "offset": None})
    write_calibration(model, "float32", "think", {"cells/empty": curve, "cells/count": few})
    sure = asked()  # the task is found by its phrasing
    assert (sure.typed.task, sure.typed.value, sure.typed.decision) == ("cells/empty", True, "act")
    assert sure.typed.confidence == pytest.approx(1 / (1 + math.exp(-2.0)))
    assert sure.confidence == pytest.approx(0.5) and sure.typed.ms == 6
    unsure = asked(task="cells/count").typed
    assert (unsure.confidence, unsure.decision) == (None, "refuse")
    assert unsure.because == "not calibrated, n = 70 (no answer on dev counts)"
    with pytest.raises(LinesideError, match=r"no task 'cells/cont': .* did you mean cells/count\?"):
        asked(task="cells/cont")
    printed = capsys.readouterr().out
    assert "88.1%, calibrated on dev" in printed and "act: confidence 88.1% reaches 50.0%" in printed
    assert "cells/empty: yes/no" in printed and "model's own probability: not calibrated" in printed


def test_a_checkpoint_of_regions_is_shown_the_region(tmp_path: Path) -> None:
    vlm = make_tiny_vlm()
    vlm.roi = {"cameras": {"cam1": [8.0, 8.0, 40.0, 32.0]}, "tiles": [2, 1]}
    save(vlm, tmp_path / "cut")
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    Pil.fromarray(pixels).save(tmp_path / "photo.png")
    Pil.fromarray(pixels[8:32, 8:40]).save(tmp_path / "region.png")
    asked = partial(ask, tmp_path / "cut", question="is there a blue box?", max_new_tokens=6)
    by_camera = asked(tmp_path / "photo.png", camera="cam1")
    assert by_camera.region == (8, 8, 40, 32)
    # The same pixels, cut by hand, by numbers or before, give the same answer with the same probability.
    for other in (asked(tmp_path / "photo.png", roi="8,8,40,32"), asked(tmp_path / "region.png", roi="whole")):
        assert (other.typed.trace, other.typed.text, other.confidence) == (
            by_camera.typed.trace,
            by_camera.typed.text,
            by_camera.confidence,
        )
    refused: tuple[tuple[dict[str, str], str], ...] = (
        ({}, "a region of each camera: give --camera, one of cam1"),
        ({"camera": "cam2"}, "photo.png: camera 'cam2' has no roi"),
        ({"roi": "0,0,400,300"}, "photo.png: the roi lies outside the picture"),
        ({"roi": "left"}, "--roi left: .*expected .left, top, right, bottom"),
    )
    for options, message in refused:
        with pytest.raises(LinesideError, match=message):
            asked(tmp_path / "photo.png", **options)
    vlm.roi = {"corners": "tote"}
    save(vlm, tmp_path / "corners")
    with pytest.raises(LinesideError, match="regions around tote: give their bounding box with --roi"):
        ask(tmp_path / "corners", tmp_path / "photo.png", "what?")


def test_a_checkpoint_of_whole_pictures_has_no_region(checkpoint: Path, photo: Path) -> None:
    for options in ({"camera": "cam1"}, {"roi": "0,0,9,9"}):
        with pytest.raises(LinesideError, match="trained on whole pictures"):
            ask(checkpoint, photo, "what?", camera=options.get("camera"), roi=options.get("roi"))


def test_reference_pictures_stand_beside_the_frame(
    tmp_path: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vlm = make_tiny_vlm()
    vlm.references = True
    save(vlm, tmp_path / "model")
    can, box = tmp_path / "red can.png", tmp_path / "a=b.png"
    can.write_bytes(picture(2))
    box.write_bytes(picture(3))
    asked = partial(ask, tmp_path / "model", photo, "is there a red can?", thinking=False, max_new_tokens=4)
    plain, named = asked(), asked(references=[str(can)])
    assert named.confidence != plain.confidence
    assert asked(references=[f"{can}=red can"]).confidence == named.confidence  # its own name, given
    assert asked(references=[f"{can}=blue box"]).confidence != named.confidence
    two = asked(references=[f"{box}=blue box", f"{can}=red can", f"{can}=blue box"])
    assert two.confidence == asked(references=[f"{box}=blue box", f"{can}=blue box", str(can)]).confidence
    assert asked(references=[str(box)]).tokens  # a file with "=" in its name
    assert "trained without reference" not in capsys.readouterr().out
    for wrong, message in (
        (f"{tmp_path}/no.png=x", r"--reference: .*no\.png: cannot be read"),
        (f"{can}=", "the name is empty; expected PICTURE=NAME"),
    ):
        with pytest.raises(LinesideError, match=message):
            asked(references=[wrong])
    with pytest.raises(LinesideError, match="give fewer reference pictures"):
        asked(references=[str(can)] * 32)


def test_views_are_shown_by_name_in_the_order_of_training(
    tmp_path: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vlm = make_tiny_vlm()
    vlm.views = ("side", "top")
    save(vlm, tmp_path / "model")
    side, top = tmp_path / "side.png", tmp_path / "from above.png"
    side.write_bytes(picture(2))
    top.write_bytes(picture(3))
    asked = partial(ask, tmp_path / "model", photo, "is it empty?", thinking=False, max_new_tokens=4)
    both = asked(views=[f"{side}", f"{top}=top"])
    assert "trained with the view" not in capsys.readouterr().out
    assert asked(views=[f"{top}=top", f"{side}=side"]).confidence == both.confidence
    assert asked(views=[f"{top}=side", f"{side}=top"]).confidence != both.confidence
    assert asked(views=[f"{side}"]).confidence != both.confidence
    assert "trained with the view top, which is not given" in capsys.readouterr().out.replace("\n", " ")
    for wrong, message in ((f"{side}=sied", "no view 'sied'.*'side'"), (f"{tmp_path}/no.png=top", "--view: .*cannot")):
        with pytest.raises(LinesideError, match=message):
            asked(views=[wrong])


def test_a_checkpoint_without_views_takes_none(checkpoint: Path, photo: Path) -> None:
    with pytest.raises(LinesideError, match="no view 'photo'; it was trained without any"):
        ask(checkpoint, photo, "is it empty?", views=[str(photo)])


def test_a_checkpoint_that_never_saw_references_says_so(
    checkpoint: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask(checkpoint, photo, "is there a blue box?", references=[f"{photo}=blue box"], max_new_tokens=2)
    assert "trained without reference pictures" in capsys.readouterr().out.replace("\n", " ")
