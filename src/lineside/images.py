"""Encoded pictures from outside, decoded safely: every one becomes upright 8-bit RGB or is refused with a reason.

A floor's cameras and phones write grey, 16-bit, palette and CMYK files, turn them by EXIF, cut them off, and send
things that are no pictures. The size in the header is checked before a pixel is decoded; only listed formats are tried.
"""

from __future__ import annotations

import hashlib
import io
import warnings

import numpy as np
import PIL.Image
import PIL.ImageOps

from lineside.errors import LinesideError
from lineside.types import Image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
WEB_FORMATS = ("JPEG", "PNG", "WEBP")  # what shards hold and browsers show
MAX_BYTES = 64 << 20
MAX_PIXELS = 64 << 20  # a 64-megapixel picture is 192 MiB once decoded
MAX_SIDE = 32_768


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS, least_side: int | None = None) -> PIL.Image.Image:
    """The picture upright, in RGB, 8 bits a channel; transparency lies on white, 16-bit grey keeps its high byte.

    With `least_side` a large JPEG may be decoded at a half, a quarter or an eighth, its sides not below that; several
    times faster where only a thumbnail is wanted.
    Raises LinesideError with the reason (the caller names file or row) for what is empty, truncated, too large, of
    another format or no picture at all.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the size is judged here, and odd tags of a readable picture do not matter
        picture = _header(data)
        width, height = picture.size
        if width < 1 or height < 1 or width * height > max_pixels or max(width, height) > MAX_SIDE:
            raise LinesideError(
                f"image too large: {width}x{height} pixels; at most {max_pixels} and {MAX_SIDE} a side are decoded"
            )
        try:
            if least_side is not None:
                picture.draft(None, (least_side, least_side))
            picture.load()
            return _rgb(_upright(picture))
        except LinesideError:
            raise
        except Exception as error:  # truncated and damaged files make the decoders fail in ways of their own
            raise LinesideError(f"image cannot be decoded ({_short(error)}): damaged or cut off") from error


def for_the_web(data: bytes) -> bytes:
    """The same bytes if their header says JPEG, PNG or WebP, else the picture as PNG. Errors as `decode`."""
    if _header(data).format in WEB_FORMATS:
        return data
    out = io.BytesIO()
    decode(data).save(out, "PNG")
    return out.getvalue()


def image_type(data: bytes) -> str:
    """The media type of a web picture, by its first bytes: image/jpeg, image/png or image/webp."""
    if data.startswith(b"\x89PNG"):
        return "image/png"
    return "image/webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else "image/jpeg"


def image_key(data: bytes) -> str:
    """Name of a picture by its encoded bytes: 32 hexadecimal digits of BLAKE2b."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def seen_key(image: Image) -> str:
    """Name of what an encoder sees: that of the picture, and which variant of it."""
    return image_key(image.bytes) + (f"-{image.variant}" if image.variant else "")


def _header(data: bytes) -> PIL.Image.Image:
    if not data:
        raise LinesideError("not an image: no bytes")
    if len(data) > MAX_BYTES:
        raise LinesideError(f"image of {len(data)} bytes: at most {MAX_BYTES} are read; store it smaller")
    try:
        return PIL.Image.open(io.BytesIO(data), formats=FORMATS)
    except PIL.UnidentifiedImageError:
        raise LinesideError(f"not an image of a known format ({', '.join(FORMATS)}): starts {data[:8]!r}") from None
    except PIL.Image.DecompressionBombError as error:
        raise LinesideError(f"image too large: {error}") from None
    except Exception as error:  # hostile headers, likewise
        raise LinesideError(f"image header cannot be read ({_short(error)})") from error


def _upright(picture: PIL.Image.Image) -> PIL.Image.Image:
    try:
        return PIL.ImageOps.exif_transpose(picture)
    except Exception:  # a broken EXIF block says nothing about the pixels
        return picture


def _rgb(picture: PIL.Image.Image) -> PIL.Image.Image:
    if picture.mode == "RGB":
        return picture
    if picture.mode == "F":
        raise LinesideError("image of floating-point pixels: their range is unknown; store it with 8 or 16 bits")
    if picture.mode.startswith("I"):  # 16-bit grey, also when held in 32 bits
        values = np.asarray(picture).astype(np.int64)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise LinesideError("image of 32-bit pixels: store it with 8 or 16 bits")
        return PIL.Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        ground = PIL.Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return PIL.Image.alpha_composite(ground, layer).convert("RGB")
    return picture.convert("RGB")


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:120]}"
