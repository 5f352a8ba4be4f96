"""Variants of training pictures: what the frozen encoder would have seen, had the picture been taken otherwise.

After the random resized crop of Inception (arXiv 1409.4842) and the mirror image, with which most encoders were
trained. A variant follows from the picture's bytes, its number and the settings alone: the feature store encodes it
once.
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
from lineside.recipe import Augment
from lineside.types import Image

STRETCH = math.log(1.25)  # a crop's sides are up to a quarter longer or shorter beside each other than the picture's


def altered(image: Image, settings: Augment) -> PIL.Image.Image:
    """The picture, decoded, as the variant that `image` names. Errors as `decode`."""
    picture = decode(image.bytes)
    if image.variant == 0:
        return picture
    draw = np.random.default_rng(int(variant_key(image, settings), 16))
    if settings.mirror and draw.random() < 0.5:
        picture = PIL.ImageOps.mirror(picture)
    if settings.crop:
        picture = _crop(picture, 1 - settings.crop * draw.random(), math.exp(STRETCH * draw.uniform(-1, 1)), draw)
    if settings.light:
        for enhance in (PIL.ImageEnhance.Brightness, PIL.ImageEnhance.Contrast, PIL.ImageEnhance.Color):
            picture = enhance(picture).enhance(1 + settings.light * draw.uniform(-1, 1))
    return picture


def variant_key(image: Image, settings: Augment) -> str:
    """Name of a picture or a variant of it, the settings that alter it included; how many there are changes none."""
    if image.variant == 0:
        return image_key(image.bytes)
    alters = json.dumps(settings.model_dump(exclude={"variants"}), sort_keys=True)
    return hashlib.blake2b(f"{seen_key(image)} {alters}".encode(), digest_size=16).hexdigest()


def _crop(picture: PIL.Image.Image, area: float, stretch: float, draw: np.random.Generator) -> PIL.Image.Image:
    """A part of `area` times the picture's, `stretch` times as wide as it would be beside its height, somewhere."""
    width = min(1.0, math.sqrt(area * stretch)) * picture.width
    height = min(1.0, math.sqrt(area / stretch)) * picture.height
    left, top = round(draw.uniform(0, picture.width - width)), round(draw.uniform(0, picture.height - height))
    return picture.crop((left, top, left + max(1, math.floor(width)), top + max(1, math.floor(height))))
