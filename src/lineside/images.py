"""Encoded pictures from outside, decoded safely: every one becomes upright 8-bit RGB or is refused with a reason.

A floor's cameras and phones write grey, 16-bit, palette and CMYK files, turn them by EXIF, cut them off, and send
things that are no pictures. The size in the header is checked before a pixel is decoded; only listed formats are tried.
"""

from __future__ import annotations

import hashlib
import io
import warnings

import numpy as np
import numpy.typing as npt
import PIL.Image
import PIL.ImageOps

from lineside.errors import LinesideError
from lineside.types import Image

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")  # suffixes of what is read
OTHER_PICTURES = (".gif", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".jfif", ".ppm", ".pgm", ".dng", ".psd", ".svg")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
WEB_FORMATS = (
    "JPEG",
    "MPO",
    "PNG",
    "WEBP",
)  # (an MPO is a JPEG with more behind it) what shards hold and browsers show
MAX_BYTES = 64 << 20
MAX_PIXELS = 64 << 20  # a 64-megapixel picture is 192 MiB once decoded
MAX_SIDE = 32_768
DEPTHS = (8, 10, 12, 14, 16)  # bits of grey
DARK = 16  # of 255: a colour picture of 16 bits that stays below holds 12 bits or fewer
_MAGIC = {
    b"GIF8": "GIF", b"%PDF": "PDF", b"\x00\x00\x00\x0cjP  ": "JPEG 2000", b"8BPS": "Photoshop",
    b"PK": "a zip archive", b"\xff\x0a": "JPEG XL", b"PAR1": "Parquet", b"II\xbc": "JPEG XR",
}  # fmt: skip


def decode(
    data: bytes, *, max_pixels: int = MAX_PIXELS, least_side: int | None = None, bits: int | None = None
) -> PIL.Image.Image:
    """The picture upright, in RGB, 8 bits a channel; transparency lies on white, of several pages it is the first.

    Grey of 16 or 32 bits is taken for one of `bits`, by default of the fewest of DEPTHS that hold its brightest pixel:
    cameras of 10 and 12 bits store 16. Its 8 highest bits are kept.
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
            deep = _deep(picture, data)
            upright = _rgb(_upright(picture), bits)
        except LinesideError:
            raise
        except Exception as error:  # truncated and damaged files make the decoders fail in ways of their own
            raise LinesideError(f"image cannot be decoded ({_short(error)}): damaged or cut off") from error
    if deep and (brightest := int(np.asarray(upright).max())) < DARK:
        raise LinesideError(
            f"colour image of 16 bits a channel that uses {8 + brightest.bit_length()} of them: it would be nearly "
            "black; store it with 8 bits"
        )
    return upright


def for_the_web(data: bytes) -> bytes:
    """`stored` without its notes."""
    return stored(data)[0]


def stored(data: bytes, *, bits: int | None = None) -> tuple[bytes, tuple[str, ...]]:
    """(a picture as shards hold it, what its user should know): the same bytes if browsers show them as `decode` does,
    else the decoded picture as PNG. `bits` and errors as `decode`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        picture = _header(data)
        try:
            pages = getattr(picture, "n_frames", 1)
        except Exception as error:  # damaged, as when decoding
            raise LinesideError(f"image cannot be decoded ({_short(error)}): damaged or cut off") from error
    several = pages > 1 and picture.format != "MPO"  # what an MPO holds beside its photograph is no page
    if picture.format in WEB_FORMATS and not several and not picture.mode.startswith("I"):
        return data, ()
    notes = [f"{picture.format} pictures have further pages or frames: the first is read"] if several else []
    if picture.mode.startswith("I") and bits is None:
        picture.load()
        notes.append(f"grey pictures of 16 bits or more are read as {_depth(np.asarray(picture))} bits (`bits` tells)")
    out = io.BytesIO()
    decode(data, bits=bits).save(out, "PNG")
    return out.getvalue(), tuple(notes)


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
        raise LinesideError(
            f"not an image of a known format ({', '.join(FORMATS)}): {_stranger(data)}starts {data[:8]!r}"
        ) from None
    except PIL.Image.DecompressionBombError as error:
        raise LinesideError(f"image too large: {error}") from None
    except Exception as error:  # hostile headers, likewise
        raise LinesideError(f"image header cannot be read ({_short(error)})") from error


def _stranger(data: bytes) -> str:
    """What a file is that is none of FORMATS, with advice, where its first bytes tell."""
    name = next((name for start, name in _MAGIC.items() if data.startswith(start)), "")
    if data[4:8] == b"ftyp":
        name = (
            "AVIF" if data[8:12] in (b"avif", b"avis") else "HEIC" if data[8:10] in (b"he", b"mi", b"ms") else "a video"
        )
    return f"{name}, which is not read (save pictures as JPEG or PNG); " if name else ""


def _upright(picture: PIL.Image.Image) -> PIL.Image.Image:
    try:
        return PIL.ImageOps.exif_transpose(picture)
    except Exception:  # a broken EXIF block says nothing about the pixels
        return picture


def _rgb(picture: PIL.Image.Image, bits: int | None = None) -> PIL.Image.Image:
    if picture.mode == "RGB":
        return picture
    if picture.mode == "F":
        raise LinesideError("image of floating-point pixels: their range is unknown; store it with 8 or 16 bits")
    if picture.mode.startswith("I"):  # 16-bit grey, also when held in 32 bits
        values = np.asarray(picture).astype(np.int64)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise LinesideError("image of 32-bit pixels: store it with 8 or 16 bits")
        if bits is not None and values.max() >> bits:
            raise LinesideError(f"image with a pixel of {values.max()}: more than the {bits} bits that it should have")
        return PIL.Image.fromarray((values >> ((bits or _depth(values)) - 8)).astype(np.uint8)).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        ground = PIL.Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return PIL.Image.alpha_composite(ground, layer).convert("RGB")
    return picture.convert("RGB")


def _depth(values: npt.NDArray[np.integer]) -> int:
    """The fewest bits of DEPTHS that hold the brightest pixel."""
    return next((bits for bits in DEPTHS if int(values.max()) < 1 << bits), DEPTHS[-1])


def _deep(picture: PIL.Image.Image, data: bytes) -> bool:
    """Whether a colour picture has 16 bits a channel in its file, of which the decoder keeps the high byte."""
    if picture.format == "PNG":
        return picture.mode in ("RGB", "RGBA", "LA") and data[24:25] == b"\x10"
    sizes = getattr(picture, "tag_v2", {}).get(258, ())
    return picture.mode in ("RGB", "RGBA") and 16 in (sizes if isinstance(sizes, tuple) else (sizes,))


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:120]}"
