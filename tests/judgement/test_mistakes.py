"""The most confident wrong answers: which are chosen, how they are shown, and their pictures."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pil

from lineside.images import image_key
from lineside.judgement import mistakes as module
from lineside.judgement.mistakes import keep_full_size, mistakes, most_confident
from lineside.types import Costs, Image
from tests.judgement.conftest import row, wrong

COSTS = Costs.of(1.0, false_pass=5.0)


def test_acted_on_first_then_calibrated_then_by_confidence() -> None:
    rows = [
        row("right", confidence=1.0, calibrated=1.0, decision="act"),
        wrong("silent", answer=None, confidence=0.0),
        wrong("blank", answer="", confidence=1.0),
        wrong("raw", task="a", confidence=0.999),
        wrong("refused", task="b", calibrated=0.8, confidence=0.9, decision="refuse"),
        wrong("acted", task="c", calibrated=0.6, confidence=0.7, decision="act"),
    ]
    assert [r.id for r in most_confident(rows)] == ["acted", "refused", "raw"]


def test_one_task_does_not_fill_the_page_while_there_are_others() -> None:
    common = [wrong(f"a{i}", task="a", calibrated=0.99 - i / 100) for i in range(20)]
    others = [wrong(f"{task}", task=task, calibrated=0.1) for task in "bcd"]
    assert [r.id for r in most_confident([*common, *others])] == ["a0", "a1", "a2", "a3", "a4", "b", "c", "d"]
    assert [r.id for r in most_confident(common)] == [f"a{i}" for i in range(8)]
    same = [wrong(f"p{i}", images=["one"]) for i in range(5)]
    assert len(most_confident(same)) == 1  # of a picture one


def photo(width: int, height: int) -> Image:
    """A picture of noise with the place where it was taken in its metadata."""
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    exif = Pil.Exif()
    exif[0x010E] = "in hall 7"
    buffer = io.BytesIO()
    Pil.fromarray(pixels).save(buffer, "JPEG", exif=exif)
    return Image(buffer.getvalue(), path="photo.jpg")


def test_pictures_are_kept_at_full_size_within_a_limit(tmp_path: Path) -> None:
    small, large, unused = photo(320, 200), photo(2400, 1200), photo(32, 32)
    asked = [wrong("s", images=[image_key(small.bytes)]), wrong("l", images=[image_key(large.bytes)])]
    keep_full_size(tmp_path, [*asked, row("r", images=[image_key(unused.bytes)])], [small, large, unused, small])
    kept = {path.stem: path for path in (tmp_path / "full").iterdir()}
    assert kept.keys() == {image_key(small.bytes), image_key(large.bytes)}
    with Pil.open(kept[image_key(small.bytes)]) as picture:
        assert picture.size == (320, 200) and not picture.getexif()
    with Pil.open(kept[image_key(large.bytes)]) as picture:  # noise of that size does not fit into the limit
        assert picture.size[0] == 2 * picture.size[1] and 600 < picture.size[0] < 1920
    assert all(path.stat().st_size <= module.BYTES for path in kept.values())
    shown = mistakes(asked, tmp_path)
    assert [len(one.pictures) for one in shown] == [1, 1]
    assert all(one.pictures[0].startswith("data:image/jpeg;base64,") for one in shown)
    assert mistakes(asked, tmp_path / "nowhere")[0].pictures == ()  # an older evaluation kept none


def test_what_is_said_about_a_mistake() -> None:
    given: dict[str, Any] = {"normal": "yes", "stakes": COSTS, "columns": {"cell": ["c1"], "sku": ["a", "b", "c", "d"]}}
    (acted,) = mistakes([wrong("a", calibrated=0.912, decision="act", **given)], Path())
    assert (acted.outcome, acted.confidence) == ("false pass, costs 5", "91.2%, calibrated on dev")
    assert acted.acted == "a cell acts on it" and acted.places == "cell c1, sku a and b and c"
    (raw,) = mistakes([wrong("b", confidence=0.99996)], Path())
    assert (raw.outcome, raw.confidence) == ("wrong", "not calibrated; the model itself gives 99.996%")
    point = {
        "kind": "point",
        "provenance": "sim",
        "x": 0.2,
        "y": 0.4,
        "mask": {"height": 1, "width": 1, "runs": [0, 1]},
    }
    (aimed,) = mistakes([wrong("c", target=point, answer="(0.9, 0.1)")], Path())
    assert (aimed.aim, aimed.said) == ((0.2, 0.4), (0.9, 0.1))
    (astray,) = mistakes([wrong("d", target=point, answer="7, 9")], Path())
    assert astray.said is None
