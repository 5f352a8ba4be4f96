"""Mixtures keep their weights at every moment, and go on where they stopped."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
from PIL import Image as Pil

from lineside.data import store
from lineside.data.mixture import Mixture, Part, turns
from lineside.errors import LinesideError
from lineside.settings import Augment
from lineside.types import Image, Mask, Meta, Sample, Source, Target


def samples(name: str, frames: int) -> list[Sample]:
    out = []
    for number in range(frames):
        data = io.BytesIO()
        Pil.new("RGB", (8, 8), (number, len(name), ord(name[0]))).save(data, "PNG")
        image, meta = Image(data.getvalue()), Meta(f"{name}{number}")
        for row in range(2):
            texts = ("f", "caption", "", None, "A can.", None)
            out.append(Sample(f"{name}{number}/{row}", "caption", (image,), *texts, "train", meta, Source()))
    return out


@pytest.fixture
def parts(tmp_path: Path) -> list[Part]:
    """Three folders of 5, 12 and 3 frames."""
    for name, frames in (("a", 5), ("b", 12), ("c", 3)):
        store.write_samples(tmp_path / name, samples(name, frames))
    return [Part(tmp_path / "a", 2.0), Part(tmp_path / "b", 1.0), Part(tmp_path / "c", 0.5)]


def take(parts: list[Part], count: int, **keys: int) -> list[str]:
    stream = Mixture(tuple(parts)).endless("caption", "train", seed=keys.pop("seed", 0), **keys)
    return [group[0].meta.scene for group in islice(stream, count)]


@pytest.mark.parametrize("weights", [[1.0], [3.0, 1.0], [0.1, 10.0, 2.5, 1.0], [1 / 3, 1 / 3, 1 / 3]])
def test_shares_hold_at_every_moment(weights: list[float]) -> None:
    given = Counter[int]()
    for number, place in enumerate(islice(turns(weights, seed=3), 2000), start=1):
        given[place] += 1
        for part, weight in enumerate(weights):
            assert abs(given[part] - number * weight / sum(weights)) <= len(weights) / 2 + 1e-6


def test_weights_are_shares_of_groups_and_every_group_comes_before_one_comes_again(parts: list[Part]) -> None:
    seen = take(parts, 70)
    assert Counter(scene[0] for scene in seen) == {"a": 40, "b": 20, "c": 10}
    for name, size in (("a", 5), ("b", 12), ("c", 3)):
        own = [scene for scene in seen if scene[0] == name]
        epochs = [own[start : start + size] for start in range(0, len(own) - size + 1, size)]
        assert all(len(set(epoch)) == size for epoch in epochs)
        assert len(epochs) == 1 or epochs[0] != epochs[1]  # shuffled anew


@pytest.mark.parametrize("skip", [0, 1, 7, 33, 69])
def test_it_goes_on_where_it_stopped(parts: list[Part], skip: int) -> None:
    assert take(parts, 70 - skip, skip=skip) == take(parts, 70)[skip:]


def test_the_seed_decides(parts: list[Part]) -> None:
    assert take(parts, 30) == take(parts, 30)
    assert take(parts, 30) != take(parts, 30, seed=1)


def test_what_is_passed_over_is_not_read(parts: list[Part], monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    real = store._Part.samples
    monkeypatch.setattr(store._Part, "samples", lambda self, *place: read.append(place) or real(self, *place))
    take(parts, 2, skip=50)
    assert len(read) == 2


def test_groups_are_whole(parts: list[Part]) -> None:
    for group in islice(Mixture(tuple(parts)).endless("caption", "train", seed=0), 20):
        assert len(group) == 2 and group[0].images[0].bytes is group[1].images[0].bytes


def test_a_mixture_that_cannot_be_made(parts: list[Part]) -> None:
    cases = {
        "without folders": [],
        "weight 0": [Part(parts[0].folder, 0.0)],
        "weight nan": [Part(parts[0].folder, float("nan"))],
        "no such folder": [Part(parts[0].folder / "x")],
    }
    for message, mixture in cases.items():
        with pytest.raises(LinesideError, match=message):
            take(mixture, 1)
    with pytest.raises(LinesideError, match="no qa samples of split train"):
        Mixture(tuple(parts)).frame_count("qa")


def scenes(groups: Iterable[tuple[Sample, ...]]) -> list[str]:
    return [group[0].meta.scene for group in groups]


def test_a_pass_meets_the_first_folder_once_and_passes_make_one_stream(parts: list[Part]) -> None:
    mixture = Mixture(tuple(parts))
    size = mixture.frame_count("caption")
    assert size == 9  # 5 groups at weight 2; 2.5 and 1.25 of the others beside them
    passes = [scenes(mixture.stream("caption", seed=4, epoch=epoch)) for epoch in range(3)]
    assert [len(one) for one in passes] == [9, 9, 9]
    assert [scene for one in passes for scene in one] == scenes(islice(mixture.endless("caption", "train", seed=4), 27))
    for skip in (0, 1, 8, 9, 12):
        assert scenes(mixture.stream("caption", seed=4, epoch=1, skip=skip)) == passes[1][skip:]


def test_one_folder_is_read_as_if_there_were_no_mixture(parts: list[Part]) -> None:
    mixture, folder = Mixture.of(parts[1].folder), parts[1].folder
    assert Mixture.of(mixture) is mixture and mixture.frame_count("caption") == 12
    for epoch, skip in ((0, 0), (2, 5)):
        alone = store.stream_frame_samples(folder, kind="caption", split="train", seed=7, epoch=epoch, skip=skip)
        assert scenes(mixture.stream("caption", seed=7, epoch=epoch, skip=skip)) == scenes(alone)


def test_a_folder_without_samples_of_the_kind_takes_no_part(parts: list[Part], tmp_path: Path) -> None:
    store.write_samples(tmp_path / "q", [replace(s, kind="qa", question="What?") for s in samples("q", 4)])
    mixed = Mixture((Part(tmp_path / "q"), parts[0]))
    assert mixed.frame_count("qa") == 4 and mixed.frame_count("caption") == 5
    assert {scene[0] for scene in scenes(mixed.stream("qa", seed=0, epoch=0))} == {"q"}


def test_passes_take_turns_with_the_variants_and_a_stream_that_goes_on_shows_the_same(parts: list[Part]) -> None:
    mixture = Mixture((parts[1],), Augment(variants=3, mirror=True))

    def variants(epoch: int, skip: int = 0) -> list[tuple[str, int]]:
        groups = list(mixture.stream("caption", seed=1, epoch=epoch, skip=skip))
        assert all(len({image.variant for sample in group for image in sample.images}) == 1 for group in groups)
        return [(group[0].meta.scene, group[0].images[0].variant) for group in groups]

    passes = [variants(epoch) for epoch in range(4)]
    for frame in dict(passes[0]):
        assert {dict(one)[frame] for one in passes[:3]} == {0, 1, 2}
        assert dict(passes[3])[frame] == dict(passes[0])[frame]
    assert {variant for _, variant in passes[0]} == {0, 1, 2}
    assert variants(2, skip=5) == passes[2][5:]
    plain = Mixture((parts[1],)).stream("caption", seed=1, epoch=2)
    assert [(group[0].meta.scene, group[0].images[0].variant) for group in plain] == [(s, 0) for s, _ in passes[2]]


def test_a_point_may_not_be_asked_of_a_picture_that_is_moved(tmp_path: Path) -> None:
    target = Target("point", "record", x=0.5, y=0.5, mask=Mask(2, 2, (0, 4)))
    asked = [replace(s, kind="qa", question="Where?", answer="0.5, 0.5", target=target) for s in samples("p", 2)]
    store.write_samples(tmp_path, asked)
    with pytest.raises(LinesideError, match=r"p[01]/0 asks for a point.*light alone"):
        list(Mixture((Part(tmp_path),), Augment(variants=2, crop=0.2)).stream("qa", seed=0, epoch=0))
    assert len(list(Mixture((Part(tmp_path),), Augment(variants=2, light=0.2)).stream("qa", seed=0, epoch=0))) == 2


def test_tasks_can_be_left_out(tmp_path: Path) -> None:
    """Of frames with two tasks one is left; of frames with the other alone none, and they still count as frames."""
    rows = [replace(row, task="a" if row.id.endswith("/0") else "b") for row in samples("x", 4)]
    store.write_samples(tmp_path / "two", [row for row in rows if row.meta.scene != "x3" or row.task == "b"])
    mixture = Mixture((Part(tmp_path / "two"),), leave_out=("f/b",))
    groups = list(mixture.stream("caption", seed=0, epoch=0))
    assert len(groups) == mixture.frame_count("caption") == 4
    assert sorted(row.id for group in groups for row in group) == ["x0/0", "x1/0", "x2/0"]
