"""Several pictures of one scene: the columns of a table, their order and names, what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from lineside.data import table
from lineside.data.checks import inspect
from lineside.data.regions import check_same_roi, shown_to_model
from lineside.data.store import read_samples, write_samples
from lineside.data.views import arranged, check_same_views, missing_views, views_in
from lineside.errors import LinesideError
from lineside.images import decode, undecodable
from lineside.label import label
from lineside.types import Image
from tests.conftest import picture

TASKS = """
    table:
      file: frames.csv
      family: shop
      split: {column: split, values: {train: train, val: dev, test: heldout}}
      views: {side: from_side, top: from_top}
    captions:
      - {family: shop, templates: ["A {colour} thing.", "This is {colour}."]}
    tasks:
      - family: shop
        name: colour
        phrasings: ["Which colour?"]
        answer: {kind: exact, column: colour}
"""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Twelve frames, each with a picture from the front, the side and the top; the last has none from the top."""
    folder = tmp_path / "shop"
    folder.mkdir()
    lines = ["from_top,image,from_side,split,colour"]
    for n in range(12):
        for place, kind in enumerate(("front", "side", "top")):
            if (kind, n) != ("top", 11):
                (folder / f"{kind}{n}.png").write_bytes(picture(100 * place + n))
        top = f"top{n}.png" if n < 11 else ""
        split = "train" if n < 8 else "val" if n < 10 else "test"
        lines.append(f"{top},front{n}.png,side{n}.png,{split},{('red', 'blue')[n % 2]}")
    (folder / "frames.csv").write_text("\n".join(lines))
    return folder


def run(shop: Path, tasks: str = TASKS, out: str = "out") -> dict[str, Any]:
    file = shop.parent / "tasks.yaml"
    file.write_text(dedent(tasks))
    return label(shop, shop.parent / out, tasks=[file], date="2026-01-02")


def test_each_sample_shows_the_frame_then_its_views_in_the_order_of_the_task_file(shop: Path) -> None:
    account = run(shop)
    samples = list(read_samples(shop.parent / "out"))
    assert {s.kind for s in samples} == {"caption", "qa", "prompt"}
    for sample in samples:
        n = sample.images[0].path.removeprefix("front").removesuffix(".png")
        want = [("frame", "", f"front{n}.png"), ("view", "side", f"side{n}.png"), ("view", "top", f"top{n}.png")]
        assert [(i.role, i.name, i.path) for i in sample.images] == want[: 2 if n == "11" else 3]
        assert sample.images[1].bytes == (shop / f"side{n}.png").read_bytes()
        assert sample.frame_images == sample.images and not sample.references
    assert account["views"] == ["side", "top"] and account["remarks"] == {
        "rows lack the view top": {"count": 1, "examples": ["front11.png"]}
    }
    assert views_in([shop.parent / "out"]) == ("side", "top")
    report = inspect(shop.parent / "out")
    assert report.ok, report.counts
    assert not any("no row names" in line for line in account["remarks"])
    again = shop.parent / "again"  # without the account, as a converted set
    write_samples(again, samples)
    assert list(read_samples(again)) == samples and views_in([again]) == ("side", "top")


def test_a_view_that_cannot_be_read_rejects_its_row(shop: Path) -> None:
    (shop / "side3.png").unlink()
    (shop / "top4.png").write_bytes(b"not a picture")
    account = run(shop)
    assert account["rejected"] == {"a view cannot be read": 2}
    assert list(account["remarks"]) == ["rows lack the view top"]  # rows that are rejected name their pictures too
    told = (shop.parent / "out" / "rejected.jsonl").read_text()
    assert "a view cannot be read: side, side3.png" in told and "a view cannot be read: top, top4.png" in told


def test_a_view_is_decoded_once_however_often_the_table_is_read(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    met: list[bytes] = []
    monkeypatch.setattr(table, "undecodable", lambda data: met.append(data) or undecodable(data))
    run(shop)
    assert len(met) == len(set(met)) == len([*shop.glob("side*.png"), *shop.glob("top*.png")])


def test_a_training_view_that_a_suite_shows_is_a_leak(shop: Path) -> None:
    text = (shop / "frames.csv").read_text().replace("side2.png", "front10.png")
    (shop / "frames.csv").write_text(text)
    told = "front2.png of train is the same picture, the view side, as front10.png of heldout"
    assert run(shop)["leaks"] == [told]


@pytest.mark.parametrize(
    ("views", "told"),
    [
        ("{side: no_such}", "no column 'no_such'"),
        ("{'far side': from_side}", "views"),
        ("{" + ", ".join(f"v{n}: from_side" for n in range(9)) + "}", "views: 9 of them; expected at most 8"),
    ],
)
def test_a_mapping_that_cannot_be_is_refused(shop: Path, views: str, told: str) -> None:
    with pytest.raises(LinesideError, match=told):
        run(shop, TASKS.replace("{side: from_side, top: from_top}", views))


def test_a_crop_stands_beside_the_whole_with_its_views(shop: Path) -> None:
    roi = "roi: {box: [0.25, 0.25, 0.75, 0.75], tiles: [2, 1], whole: true}\n"
    run(shop, TASKS.replace("      views:", f"      {roi}      views:"))
    sample = next(read_samples(shop.parent / "out"))
    assert [(i.role, i.name) for i in sample.images] == [("crop", "")] * 4 + [("view", "side"), ("view", "top")]
    sizes = [decode(image.bytes).size for image in sample.images]
    assert sizes == [(24, 24), (12, 24), (12, 24), (48, 48), (48, 48), (48, 48)]
    stated = {"box": [0.25, 0.25, 0.75, 0.75], "tiles": [2, 1], "whole": True}
    shown, region = shown_to_model(Image(picture(0)), stated)
    assert [decode(image.bytes).size for image in shown] == sizes[:4] and region is not None
    assert region.box == (12, 12, 36, 36)
    assert len(shown_to_model(Image(picture(0)), stated, box="whole")[0]) == 3  # it is whole already
    with pytest.raises(LinesideError, match="whole"):
        check_same_roi(stated, {"box": [0, 0, 1, 1], "tiles": [2, 1]}, Path("samples"))
    check_same_roi(stated, {"box": [0.0, 0.0, 0.5, 1.0], "tiles": [2, 1], "whole": True}, Path("samples"))


def views(*names: str) -> list[Image]:
    return [Image(picture(n), "view", name=name) for n, name in enumerate(names)]


def test_views_are_shown_in_the_order_of_training_and_unknown_ones_refused() -> None:
    def names(given: Sequence[Image]) -> list[str]:
        return [image.name for image in given]

    stated = ("side", "top", "back")
    for order in (("top", "side"), ("side", "top")):
        assert names(arranged(views(*order), stated)) == ["side", "top"]
    with pytest.raises(LinesideError, match=r"no view 'tpo'.*'top'.*expected side, top, back"):
        arranged(views("tpo"), stated)
    with pytest.raises(LinesideError, match="the view 'top' is given twice"):
        arranged(views("top", "top"), stated)
    with pytest.raises(LinesideError, match="no view 'top'; it was trained without any"):
        arranged(views("top"), ())
    assert missing_views(views("side"), stated).startswith("the checkpoint was trained with the view top and back")
    assert missing_views([], ()) == ""
    check_same_views(("side", "top"), ("top", "side"), Path("x"))
    with pytest.raises(LinesideError, match="x: the checkpoint was trained with no further views of a frame, and this"):
        check_same_views((), ("top",), Path("x"))


def test_a_view_without_a_name_is_one_more_picture_of_the_frame() -> None:
    plain = Image(picture(0), "view")
    assert plain.label == "" and replace(plain, name="side").label == "side:"
    assert replace(plain, role="reference", name="4711", text="can").label == "4711 (can):"
