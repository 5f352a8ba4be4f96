"""Reference pictures of the simulator's articles, and which questions they stand beside."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lineside.data.checks import inspect
from lineside.data.store import read_samples, write_frames
from lineside.errors import LinesideError
from lineside.images import decode
from lineside.label import label
from lineside.recipe import Label
from lineside.sim.catalogue import catalogue
from lineside.sim.references import reference_picture, references_of, sku_called
from lineside.sim.render import renderer
from lineside.types import Image
from lineside.verify.members import plural
from tests.sim.conftest import tasks_of
from tests.sim.records import SKUS, frame, part, picking


@pytest.fixture(autouse=True)
def _renders() -> None:
    try:
        renderer()
    except LinesideError as error:
        pytest.skip(f"no renderer: {error}")


def test_a_name_means_one_sku_or_none() -> None:
    assert all(sku_called(sku.description) == sku for sku in catalogue())
    assert [sku_called(name) for name in ("red part", "can", "", "striped white can")] == [None] * 4


def test_the_article_lies_alone_in_the_middle_and_keeps_its_size() -> None:
    def seen(name: str, number: int) -> np.ndarray:
        pixels = np.asarray(decode(reference_picture(SKUS[name], 0, number, 112))).astype(int)
        assert pixels.shape == (112, 112, 3)
        return np.ptp(pixels, axis=2) > 60  # neither grey background nor its shadow

    for number in range(3):
        large, small = seen("red can", number), seen("small red can", number)
        assert 0.02 < small.mean() < large.mean() < 0.5
        assert not (large[:4].any() or large[-4:].any() or large[:, :4].any() or large[:, -4:].any())
    assert reference_picture(SKUS["red can"], 0, 0, 112) != reference_picture(SKUS["red can"], 0, 1, 112)


def test_pictures_show_the_packaging_of_week_and_split() -> None:
    held = next(sku for sku in catalogue() if sku.held_out)
    shifted = references_of(frame("picking", {}, split="shifted"), [held.description, "red part"], 2)
    assert [(i.role, i.name) for i in shifted] == [("reference", held.description)] * 2
    style = held.style(0, shifted=True)
    assert [i.path for i in shifted] == [f"{held.id}-{style}-{k}.jpg" for k in range(2)]
    assert shifted[0].bytes == reference_picture(held, style, 0)


def test_every_task_that_names_an_article_says_so() -> None:
    named = {task.name for family in ("picking", "kitting", "returns") for task in tasks_of(family) if task.references}
    assert named == {
        "count_described", "is_present", "pick_point", "kit_complete", "wrong_item", "missing", "matches_order"
    }  # fmt: skip


def test_labelling_with_and_without(tmp_path: Path) -> None:
    looks = ("small dotted yellow can", "striped blue carton", "green bottle", "black rod")
    frames = [
        picking([part(name, 0.2 + 0.2 * k, 0.3) for k, name in enumerate(looks[: 1 + n % 4])], id=f"f{n}", split=split)
        for n, split in enumerate(["train"] * 8 + ["heldout"] * 4)
    ]
    pictures = [reference_picture(SKUS["red can"], 1, 90 + n, 56) for n in range(len(frames))]  # any that differ
    write_frames(tmp_path / "frames", [replace(f, image=Image(data)) for f, data in zip(frames, pictures)])
    made = {}
    for count in (0, 2):
        out = tmp_path / f"out{count}"
        label(tmp_path / "frames", out, settings=Label(references=count), date="2026-01-02")
        made[count] = list(read_samples(out))
        assert inspect(out).ok
    assert not any(s.references for s in made[0])
    without = [replace(s, images=s.frame_images, source=made[0][0].source) for s in made[2]]
    assert without == [replace(s, source=made[0][0].source) for s in made[0]]  # nothing else differs
    beside = [s for s in made[2] if s.references]
    assert {s.task for s in beside} <= {"count_described", "is_present", "pick_point"} and beside
    for sample in beside:
        (name,) = {image.name for image in sample.references}
        assert len(sample.references) == 2 and sku_called(name) is not None
        assert (plural(name) if sample.task == "count_described" else name) in sample.question


def test_references_that_no_task_uses_are_refused(tmp_path: Path) -> None:
    write_frames(tmp_path / "frames", [replace(picking([]), image=Image(reference_picture(SKUS["red can"], 0, 0, 56)))])
    tasks = tmp_path / "tasks.yaml"
    tasks.write_text(
        'tasks: [{family: picking, name: bins, phrasings: ["How many bins?"], answer: {kind: number, column: bins}}]'
    )
    with pytest.raises(LinesideError, match="no task says which SKUs its question names"):
        label(tmp_path / "frames", tmp_path / "out", tasks=[tasks], settings=Label(references=1))
