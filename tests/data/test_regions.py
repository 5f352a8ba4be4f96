"""Regions and tiles: the pixels that are shown, points there and back, and what has no region is refused by name."""

from __future__ import annotations

import io
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pil
from pydantic import ValidationError

from lineside.align import align
from lineside.data.regions import check_same_roi, cut, inside, region_of, roi_of_samples, tiles_of
from lineside.data.store import read_samples
from lineside.data.table import TableFrames
from lineside.data.taskfile import Roi, Table, TaskFile
from lineside.errors import LinesideError
from lineside.evaluate import evaluate_checkpoint
from lineside.images import decode
from lineside.label import label
from lineside.model.checkpoint import load, save
from lineside.model.features import FeatureStore
from lineside.recipe import Align, Label, Rates, Sft
from lineside.reviewing.log import read_people
from lineside.reviewing.records import write_records
from lineside.reviewing.sources import open_review
from lineside.sft import sft
from lineside.types import Frame, Mask, Region, Target
from lineside.verify.verifiers import target_problem, verify
from tests.conftest import make_tiny_vlm
from tests.reviewing.conftest import answer

SIZE = (100, 80)


def roi(**keys: Any) -> Roi:
    return Roi.model_validate(keys)


def chequered(size: tuple[int, int] = SIZE, kind: str = "PNG") -> bytes:
    """A picture whose every pixel says where it is."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    out = io.BytesIO()
    Pil.fromarray(np.stack([x % 256, y % 256, (x // 256) * 16 + y // 256], 2).astype(np.uint8)).save(out, kind)
    return out.getvalue()


@pytest.mark.parametrize(
    ("keys", "corners", "box"),
    [
        ({"box": [10, 20, 60, 70]}, None, (10, 20, 60, 70)),
        ({"box": [0.1, 0.25, 0.6, 1]}, None, (10, 20, 60, 80)),
        ({"cameras": {"c": [10, 20, 60, 70], "d": [0, 0, 9, 9]}}, None, (10, 20, 60, 70)),
        ({"cameras": {"d": [0, 0, 9, 9]}, "box": [0, 0, 0.5, 0.5]}, None, (0, 0, 50, 40)),
        ({"box": [10, 20, 60, 70], "margin": 0.2}, None, (0, 10, 70, 80)),  # ends at the edge of the picture
        ({"corners": "t"}, [[12.4, 20], [60, 22], [58, 70], [10, 68]], (10, 20, 60, 70)),
        ({"corners": "t", "margin": 0.1}, "[[0.1, 0.25], [0.6, 0.25], [0.6, 0.75], [0.1, 0.75]]", (5, 16, 65, 64)),
        ({"corners": "t"}, "10,20 60,20 60,70 10,70", (10, 20, 60, 70)),
        ({"tiles": [2, 2]}, None, (0, 0, 100, 80)),
    ],
)
def test_the_region_in_pixels(keys: dict[str, Any], corners: Any, box: Any) -> None:
    assert region_of(roi(**keys), SIZE, camera="c", corners=corners) == Region(SIZE, box)


@pytest.mark.parametrize(
    ("keys", "corners", "problem"),
    [
        ({"cameras": {"cam1": [0, 0, 9, 9]}}, None, "camera 'c' has no roi: add it to `cameras`, which has cam1"),
        ({"box": [10, 20, 160, 70]}, None, r"outside the picture: \[10.0, 20.0, 160.0, 70.0\] in 100x80 pixels"),
        ({"corners": "t"}, [[-5, 0], [50, 0], [50, 50]], "outside the picture"),
        ({"corners": "t"}, [[5, 5], [6, 5], [6, 60]], "smaller than 8 pixels"),
        ({"corners": "t"}, None, "no corners: None"),
        ({"corners": "t"}, "", "no corners"),
        ({"corners": "t"}, "tote 4", "no corners"),
        ({"corners": "t"}, [[1, 2], [3, 4]], "no corners"),
        ({"corners": "t"}, [[1, 2], [3, float("nan")], [4, 5]], "no corners"),
        ({"corners": "t"}, "[" * 5000, "no corners"),
    ],
)
def test_what_has_no_region_is_refused_by_name(keys: dict[str, Any], corners: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        region_of(roi(**keys), SIZE, camera="c", corners=corners)


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({}, "give cameras, box or corners"),
        ({"corners": "t", "box": [0, 0, 1, 1]}, "not both"),
        ({"box": [0.5, 0, 0.2, 1]}, "expected .left, top, right, bottom"),
        ({"box": [-1, 0, 2, 1]}, "expected .left, top"),
        ({"box": [0, 0, 1]}, "expected .left, top"),
        ({"box": [0, 0, 1, 1], "tiles": [1, 1]}, "2 to 16 tiles"),
        ({"box": [0, 0, 1, 1], "tiles": [9, 9]}, "2 to 16 tiles"),
    ],
)
def test_a_roi_that_makes_no_sense(keys: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        roi(**keys)


def test_pictures_are_cut_at_full_resolution() -> None:
    data = chequered((300, 200))
    pieces, region = cut(data, roi(box=[33, 20, 233, 170], tiles=[2, 3]), camera="")
    whole = np.asarray(decode(data))
    shown = [np.asarray(decode(piece)) for piece in pieces]
    assert region.box == (33, 20, 233, 170) and len(shown) == 7
    assert (shown[0] == whole[20:170, 33:233]).all()
    rows = [np.concatenate(shown[1 + 2 * row : 3 + 2 * row], axis=1) for row in range(3)]
    assert (np.concatenate(rows) == shown[0]).all()  # the tiles are the region


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(40, 200), st.integers(40, 200))
def test_tiles_cover_the_region_once(columns: int, rows: int, width: int, height: int) -> None:
    if columns * rows == 1:
        return
    region = Region((400, 400), (7, 11, 7 + width, 11 + height))
    seen = np.zeros((400, 400), int)
    for left, top, right, bottom in tiles_of(region, roi(tiles=[columns, rows])):
        seen[top:bottom, left:right] += 1
    assert (seen[11 : 11 + height, 7 : 7 + width] == 1).all() and seen.sum() == width * height


def test_a_jpeg_stays_a_jpeg_and_a_turned_photo_is_cut_upright() -> None:
    assert cut(chequered(kind="JPEG"), roi(box=[0, 0, 50, 50]), camera="")[0][0][:2] == b"\xff\xd8"
    picture, exif, out = Pil.new("RGB", (40, 60), (0, 0, 255)), Pil.Exif(), io.BytesIO()
    picture.paste((255, 0, 0), (0, 0, 40, 10))  # red on top, which lies on the right once it is turned
    exif[0x0112] = 6
    picture.save(out, "JPEG", exif=exif, quality=95)
    (piece,), region = cut(out.getvalue(), roi(box=[40, 0, 60, 40]), camera="")
    assert region.size == (60, 40)
    assert np.asarray(decode(piece))[5:-5, 12:-2].mean((0, 1))[0] > 200


def test_all_of_the_picture_is_left_as_it_is() -> None:
    data = chequered(kind="JPEG")
    assert cut(data, roi(box=[0, 0, 1, 1]), camera="")[0] == [data]


def disc(width: int, height: int, at: tuple[int, int], radius: int) -> Mask:
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    flat = ((x - at[0]) ** 2 + (y - at[1]) ** 2 <= radius**2).ravel()
    edges = np.flatnonzero(np.diff(flat, prepend=False))
    return Mask(height, width, tuple(np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()))


def point(x: float, y: float, mask: Mask) -> Target:
    return Target("point", "record", x=x, y=y, mask=mask)


def test_a_point_goes_into_the_region_and_back() -> None:
    target = point(0.405, 0.50625, disc(100, 80, (40, 40), 6))
    region = Region(SIZE, (20, 20, 70, 60))
    found = inside(target, region)
    assert found is not None and not target_problem(found)
    assert (found.x, found.y) == pytest.approx(((40.5 - 20) / 50, (40.5 - 20) / 40))
    assert region.outside(found.x, found.y) == pytest.approx((target.x, target.y))
    assert found.mask == disc(50, 40, (20, 20), 6)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 99), st.integers(0, 79), st.integers(0, 40), st.integers(0, 40))
def test_an_answer_in_the_region_is_as_right_as_in_the_picture(x: int, y: int, left: int, top: int) -> None:
    mask, region = disc(100, 80, (45, 45), 12), Region(SIZE, (left, top, left + 50, top + 40))
    target = inside(point(0.455, 0.56875, mask), region)
    here = region.within((x + 0.5) / 100, (y + 0.5) / 80)
    if target is not None and all(0 <= v <= 1 for v in here):
        told = verify(f"{here[0]:.6f}, {here[1]:.6f}", target).exact
        assert told == verify(f"{(x + 0.5) / 100:.6f}, {(y + 0.5) / 80:.6f}", point(0.455, 0.56875, mask)).exact


def test_a_point_outside_the_region_is_not_asked() -> None:
    assert inside(point(0.105, 0.10625, disc(100, 80, (10, 8), 4)), Region(SIZE, (50, 0, 100, 80))) is None
    assert inside(point(0.5, 0.5, Mask(80, 100, (3, 4))), Region(SIZE, (0, 0, 50, 50))) is None


def folder(tmp_path: Path, sizes: dict[str, tuple[int, int]] | None = None) -> Path:
    """Six frames of two cameras with a point and its mask."""
    path = tmp_path / "bins"
    path.mkdir()
    with open(path / "frames.jsonl", "w") as file:
        for n in range(6):
            size = (sizes or {}).get(f"{n}.png", SIZE)
            (path / f"{n}.png").write_bytes(chequered(size)[:-12] + chequered(size)[-12:])
            mask = disc(*SIZE, (10 + 12 * n, 40), 5)
            row = {
                "image": f"{n}.png", "cam": f"cam{n % 2}", "point": [(10.5 + 12 * n) / 100, 40.5 / 80], "item": "can",
                "mask": {"height": mask.height, "width": mask.width, "runs": mask.runs},
                "tote": [[20, 20], [80, 20], [80, 60], [20, 60]],
            }  # fmt: skip
            Pil.fromarray(np.asarray(decode(chequered(size))) ^ np.uint8(n)).save(path / f"{n}.png")
            file.write(json.dumps(row) + "\n")
    return path


TASKS = """
table: {file: frames.jsonl, family: picking, camera: cam, roi: %s}
captions: [{family: picking, templates: ["A {item}.", "There is a {item}."]}]
tasks:
  - {family: picking, name: pick, phrasings: ["Where is a {item}?"],
     answer: {kind: point, column: point, mask_column: mask}}
"""


def opened(path: Path, **keys: Any) -> TableFrames:
    return TableFrames(
        path, Table.model_validate({"file": "frames.jsonl", "family": "picking", "camera": "cam", "roi": keys})
    )


def test_frames_of_a_camera_without_a_roi_are_refused(tmp_path: Path) -> None:
    found = list(opened(folder(tmp_path), cameras={"cam0": [20, 20, 80, 60]}).frames())
    assert [isinstance(item, Frame) for item in found] == [True, False] * 3
    assert "camera 'cam1' has no roi" in found[1].reason  # type: ignore[union-attr]
    first = found[0]
    assert isinstance(first, Frame) and decode(first.image.bytes).size == (60, 40)
    assert first.meta.extra["region"] == {"size": [100, 80], "box": [20, 20, 80, 60]}
    assert json.loads(json.dumps(first.meta.extra)) == first.meta.extra


def test_a_roi_by_camera_needs_the_column_of_the_camera() -> None:
    keys = {"file": "frames.csv", "family": "p", "roi": {"cameras": {"cam0": [20, 20, 80, 60]}, "box": [0, 0, 1, 1]}}
    with pytest.raises(ValidationError, match="roi: `cameras` needs `camera`, the column that says which camera"):
        Table.model_validate(keys)
    assert Table.model_validate({**keys, "camera": "cam"}).roi is not None


def test_pixels_fit_pictures_of_one_size_only(tmp_path: Path) -> None:
    path = folder(tmp_path, {"2.png": (200, 160)})
    found = list(opened(path, box=[20, 20, 80, 60]).frames())
    refused = [item.reason for item in found if not isinstance(item, Frame)]
    assert len(refused) == 1 and "another size than the first of its camera" in refused[0]
    assert all(isinstance(item, Frame) for item in opened(path, box=[0.2, 0.2, 0.8, 0.8]).frames())


def test_samples_hold_regions_tiles_and_points_within(tmp_path: Path) -> None:
    path = folder(tmp_path)
    (tmp_path / "t.yaml").write_text(TASKS % "{corners: tote, tiles: [2, 1]}")
    out = tmp_path / "samples"
    account = label(path, out, tasks=[tmp_path / "t.yaml"], settings=Label(question_share=1.0, prompt_share=0.0))
    asked = [sample for split in ("train", "dev", "heldout") for sample in read_samples(out, kind="qa", split=split)]
    # The point of frame 0 lies left of the tote, those of the others in it; the disc of frame 1 crosses its edge.
    assert {sample.id.split("/")[0] for sample in asked} <= {"1.png", "2.png", "3.png", "4.png", "5.png"}
    assert account["dropped"]["the point lies outside the roi"] >= 1
    for sample in asked:
        assert [decode(image.bytes).size for image in sample.images] == [(60, 40), (30, 40), (30, 40)]
        assert [image.role for image in sample.images] == ["crop"] * 3
        assert sample.target is not None and sample.target.mask is not None
        assert (sample.target.mask.width, sample.target.mask.height) == (60, 40)
        number = int(sample.id[0])
        assert sample.answer == f"{(10.5 + 12 * number - 20) / 60:.2f}, {20.5 / 40:.2f}"
    stated = roi_of_samples(out)
    assert stated == account["roi"] == {"corners": "tote", "tiles": [2, 1]}
    assert any("cut to their roi" in remark for remark in account["remarks"])


def test_a_text_with_a_point_of_the_whole_picture_is_refused() -> None:
    task = {"family": "p", "name": "pick", "phrasings": ["Where?"], "trace": "it lies at {point}",
            "answer": {"kind": "point", "column": "point", "mask_column": "mask"}}  # fmt: skip
    with pytest.raises(ValidationError, match="holds point, a point in the whole picture"):
        TaskFile.model_validate({"tasks": [task], "table": {"family": "p", "roi": {"box": [0, 0, 0.5, 1]}}})


def test_a_model_is_judged_on_pictures_cut_as_in_its_training(tmp_path: Path) -> None:
    check_same_roi(None, None, tmp_path)
    check_same_roi({"box": [0, 0, 1, 0.5]}, {"cameras": {"a": [0, 0, 9, 9]}}, tmp_path)
    for one, other in ((None, {"box": [0, 0, 9, 9]}), ({"box": [0, 0, 9, 9], "tiles": [2, 2]}, {"box": [0, 0, 9, 9]})):
        with pytest.raises(LinesideError, match="label them with the `roi` of the checkpoint"):
            check_same_roi(one, other, tmp_path)
    assert roi_of_samples(tmp_path) is None


def test_tiles_are_trained_on_and_judged(tmp_path: Path) -> None:
    """Several pictures of one sample pass through align, sft and evaluate; other cuts are refused."""
    path, out = folder(tmp_path), tmp_path / "samples"
    table = TASKS.replace("camera: cam,", "camera: cam, split: {column: part, values: {a: train, b: heldout}},")
    rows = [json.loads(line) for line in (path / "frames.jsonl").read_text().splitlines()]
    (path / "frames.jsonl").write_text("\n".join(json.dumps(row | {"part": "ab"[n % 2]}) for n, row in enumerate(rows)))
    (tmp_path / "t.yaml").write_text(table % "{corners: tote, tiles: [2, 1]}")
    label(path, out, tasks=[tmp_path / "t.yaml"], settings=Label(question_share=1.0, prompt_share=0.0))
    vlm = make_tiny_vlm()
    store = FeatureStore(None, vlm)
    rates = Rates(projector=1e-2, lm=1e-2)
    align(vlm, store, out, tmp_path / "align", Align(epochs=1, step_tokens=200))
    sft(vlm, store, out, tmp_path / "sft", Sft(epochs=1, step_tokens=300, learning_rate=rates))
    losses = [json.loads(line)["loss"] for line in (tmp_path / "sft" / "metrics.jsonl").read_text().splitlines()]
    assert losses and all(np.isfinite(losses))
    assert store.encoder_calls == 9  # three frames of train, each with its region and two tiles
    vlm.roi = roi_of_samples(out)
    save(vlm, tmp_path / "model")
    assert load(tmp_path / "model").roi == {"corners": "tote", "tiles": [2, 1]}
    judged = partial(evaluate_checkpoint, data=out, mode="fast", with_baselines=False, max_new_tokens=4)
    assert judged(tmp_path / "model").n == 3
    vlm.roi = None
    save(vlm, tmp_path / "other")
    with pytest.raises(LinesideError, match="was trained on whole pictures, and these samples show roi"):
        judged(tmp_path / "other")


def test_people_see_whole_pictures_and_their_points_are_of_whole_pictures(tmp_path: Path) -> None:
    path, tasks = folder(tmp_path), tmp_path / "t.yaml"
    tasks.write_text(TASKS % "{corners: tote}")
    review = open_review(path, tasks=[tasks])
    said = {question.id: question.said[0].answer for question in review.questions}
    assert said["3.png/pick"] == f"{46.5 / 100:.2f}, {40.5 / 80:.2f}"
    answer(review, {"3.png/pick": said["3.png/pick"], "4.png/pick": "0.50, 0.40"})
    records, account = write_records(review, read_people(review.folder, review.every))
    assert (account.confirmed, account.corrected) == (1, 1)
    label(records, tmp_path / "after", tasks=[tasks], settings=Label(question_share=1.0, prompt_share=0.0))
    asked = {sample.id: sample.answer for sample in read_samples(tmp_path / "after", kind="qa")}
    assert asked["3.png/pick"] == f"{26.5 / 60:.2f}, {20.5 / 40:.2f}"
    assert asked["4.png/pick"] == f"{(50 - 20) / 60:.2f}, {(32 - 20) / 40:.2f}"
    of_samples = open_review(tmp_path / "after", tasks=[tasks], frames=path, out=tmp_path / "other")
    answer(of_samples, {of_samples.questions[0].id: "0.50, 0.50"})
    with pytest.raises(LinesideError, match="picking/pick: these points were given in pictures cut to their roi"):
        write_records(of_samples, read_people(tmp_path / "other", of_samples.every))
