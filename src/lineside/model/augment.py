"""Variants of training pictures: mirrored, cropped, or with other light.

They are the augmentations with which most encoders were trained: the random resized crop of Inception (arXiv 1409.4842)
and the mirror image. A variant depends only on the picture's bytes, its number and the settings, so the feature store
encodes it once.
"""

from __future__ import annotations

import hashlib
import json
import math

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import PIL.ImageOps

from lineside.images import decode, image_key, seen_key
from lineside.settings import Augment
from lineside.types import Image

STRETCH = math.log(1.25)  # the aspect ratio of a crop differs from the picture's by a factor of 1.25 at most


def altered(image: Image, settings: Augment, *, resized: bool = False) -> PIL.Image.Image:
    """The decoded picture as the variant that `image` names; `resized` to the picture's own size, for encoders whose
    number of tokens depends on it. Raises the errors of `decode`."""
    picture = decode(image.bytes)
    if image.variant == 0:
        return picture
    size, draw = picture.size, np.random.default_rng(int(variant_key(image, settings), 16))
    if settings.mirror and draw.random() < 0.5:
        picture = PIL.ImageOps.mirror(picture)
    if settings.crop:
        picture = _crop(picture, 1 - settings.crop * draw.random(), math.exp(STRETCH * draw.uniform(-1, 1)), draw)
    if settings.light:
        for enhance in (PIL.ImageEnhance.Brightness, PIL.ImageEnhance.Contrast, PIL.ImageEnhance.Color):
            picture = enhance(picture).enhance(1 + settings.light * draw.uniform(-1, 1))
    return picture.resize(size) if resized and picture.size != size else picture


def variant_key(image: Image, settings: Augment) -> str:
    """Hash of a picture, or of a variant and the settings that alter it. It does not depend on how many variants there
    are."""
    if image.variant == 0:
        return image_key(image.bytes)
    alters = json.dumps(settings.model_dump(exclude={"variants"}), sort_keys=True)
    return hashlib.blake2b(f"{seen_key(image)} {alters}".encode(), digest_size=16).hexdigest()


def _crop(picture: PIL.Image.Image, area: float, stretch: float, draw: np.random.Generator) -> PIL.Image.Image:
    """A random crop with `area` times the picture's area and `stretch` times its aspect ratio."""
    width = min(1.0, math.sqrt(area * stretch)) * picture.width
    height = min(1.0, math.sqrt(area / stretch)) * picture.height
    left, top = round(draw.uniform(0, picture.width - width)), round(draw.uniform(0, picture.height - height))
    return picture.crop((left, top, left + max(1, math.floor(width)), top + max(1, math.floor(height))))
