"""Variants of pictures: the same wherever they are made, other for each number and setting, and always a picture."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pil

from lineside.images import decode
from lineside.model.augment import altered, variant_key
from lineside.model.features import FeatureStore
from lineside.settings import UNALTERED, Augment
from lineside.types import Image
from tests.conftest import make_tiny_vlm, picture

ALL = Augment(variants=8, mirror=True, crop=0.5, light=0.3)


def ramp(width: int, height: int) -> bytes:
    """A picture whose red says where a column stands and whose green says where a row does."""
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    pixels = np.stack([across, down, np.zeros_like(across)], -1).round().astype(np.uint8)
    buffer = io.BytesIO()
    Pil.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def shown(data: bytes, settings: Augment, variant: int) -> np.ndarray:
    return np.asarray(altered(Image(data, variant=variant), settings)).astype(int)


def test_variant_0_is_the_picture_and_the_others_are_the_same_every_time_and_not_each_other() -> None:
    data = picture(3)
    assert np.array_equal(shown(data, ALL, 0), np.asarray(decode(data)))
    made = [shown(data, ALL, n) for n in range(8)]
    for n, once in enumerate(made):
        assert np.array_equal(once, shown(data, ALL, n))
    assert len({once.tobytes() for once in made}) == 8
    assert shown(picture(4), ALL, 1).tobytes() != made[1].tobytes()


def test_mirror_alone_gives_the_picture_or_its_mirror_image_each_about_half_the_time() -> None:
    settings = Augment(variants=41, mirror=True)
    plain, data = np.asarray(decode(ramp(12, 8))), ramp(12, 8)
    mirrored = [np.array_equal(shown(data, settings, n), plain[:, ::-1]) for n in range(1, 41)]
    for n, flipped in enumerate(mirrored, start=1):
        assert flipped or np.array_equal(shown(data, settings, n), plain)
    assert 10 <= sum(mirrored) <= 30


def test_a_crop_keeps_at_least_the_share_asked_and_reaches_every_side() -> None:
    width, height = 200, 150
    settings, data = Augment(variants=200, crop=0.6), ramp(width, height)
    areas, lefts, tops, rights, bottoms = [], [], [], [], []
    for n in range(1, 200):
        seen = shown(data, settings, n)
        areas.append(seen.shape[0] * seen.shape[1] / (width * height))
        assert 1 / 1.27 < seen.shape[1] / width / (seen.shape[0] / height) < 1.27
        lefts.append(seen[..., 0].min()), rights.append(seen[..., 0].max())
        tops.append(seen[..., 1].min()), bottoms.append(seen[..., 1].max())
    assert 0.38 < min(areas) < 0.45 and 0.9 < max(areas) <= 1 and 0.65 < np.mean(areas) < 0.75
    assert min(lefts) < 10 and max(rights) > 245 and min(tops) < 10 and max(bottoms) > 245
    assert max(lefts) > 40 and min(rights) < 215


def test_light_changes_light_within_bounds_and_moves_nothing() -> None:
    grey = io.BytesIO()
    Pil.new("RGB", (6, 4), (100, 100, 100)).save(grey, "PNG")
    settings = Augment(variants=60, light=0.25)
    values = [shown(grey.getvalue(), settings, n) for n in range(1, 60)]
    assert all(value.shape == (4, 6, 3) and np.ptp(value) == 0 for value in values)
    levels = [value.flat[0] for value in values]
    assert 74 <= min(levels) < 85 and 115 < max(levels) <= 126


def test_a_picture_of_one_pixel_has_variants() -> None:
    for n in range(1, 30):
        assert shown(ramp(1, 1), Augment(variants=30, mirror=True, crop=0.9, light=0.9), n).shape == (1, 1, 3)


def test_a_key_follows_from_picture_number_and_what_alters_it_not_from_how_many_there_are() -> None:
    image = Image(picture(0), variant=2)
    assert variant_key(image, ALL) == variant_key(image, ALL.model_copy(update={"variants": 3}))
    others = [
        variant_key(image, ALL.model_copy(update={"crop": 0.4})),
        variant_key(Image(picture(0), variant=3), ALL),
        variant_key(Image(picture(1), variant=2), ALL),
        variant_key(Image(picture(0)), ALL),
    ]
    assert len({variant_key(image, ALL), *others}) == 5
    assert variant_key(Image(picture(0)), ALL) == variant_key(Image(picture(0)), UNALTERED)


def test_the_store_holds_the_features_of_each_variant_once(tmp_path: Path) -> None:
    vlm, images = make_tiny_vlm(), [Image(picture(1), variant=n) for n in (0, 1, 2, 1)]
    store = FeatureStore(tmp_path, vlm, dtype=torch.float32, augment=ALL)
    want = vlm.features(vlm.pixels([altered(image, ALL) for image in images]))
    torch.testing.assert_close(store.get(images), want, atol=1e-5, rtol=1e-5)
    again = FeatureStore(tmp_path, vlm, dtype=torch.float32, augment=ALL)
    again.get(images)
    assert (store.encoder_calls, again.encoder_calls) == (3, 0)
    FeatureStore(tmp_path, vlm, dtype=torch.float32).get(images[:1])  # a run without variants finds the picture there
    assert not torch.equal(want[1], want[2]) and torch.equal(want[1], want[3])


@pytest.mark.parametrize("settings", [{"variants": 0}, {"variants": 2}, {"crop": 1.0}, {"light": -0.1}])
def test_settings_that_make_no_sense_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        Augment.model_validate(settings)
