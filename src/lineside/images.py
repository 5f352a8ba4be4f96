"""Safe decoding of pictures from outside: each becomes upright 8-bit RGB or is refused with a reason.

Cameras and phones on a floor write grey, 16-bit, palette and CMYK files and files with an EXIF orientation. Some files
are cut off, and some are not pictures. The size in the header is checked before any pixel is decoded, and only the
listed formats are tried.
"""

from __future__ import annotations

import base64
import hashlib
import io
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import PIL.Image
import PIL.ImageOps

from lineside.errors import LinesideError
from lineside.files import write_atomic
from lineside.types import Image

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")  # suffixes of the files that are read
OTHER_PICTURES = (".gif", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".jfif", ".ppm", ".pgm", ".dng", ".psd", ".svg")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
WEB_FORMATS = ("JPEG", "MPO", "PNG", "WEBP")  # stored as they are, since browsers show them; an MPO begins with a JPEG
MAX_BYTES = 64 << 20
MAX_PIXELS = 64 << 20  # a decoded picture of 64 megapixels takes 192 MiB
MAX_SIDE = 32_768
DEPTHS = (8, 10, 12, 14, 16)  # possible bits of a grey pixel
THUMBNAIL_SIDE = 320  # pixels; about the width of a card on a laptop
DARK = 16  # of 255; if all pixels of a 16-bit colour picture are darker, it really has 12 bits or fewer
_ORIENTATION = 0x0112  # EXIF tag; 5 to 8: the picture lies on its side
_TOLD = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")  # what a PNG holds that tells how it lies
_MAGIC = {
    b"GIF8": "GIF", b"%PDF": "PDF", b"\x00\x00\x00\x0cjP  ": "JPEG 2000", b"8BPS": "Photoshop",
    b"PK": "a zip archive", b"\xff\x0a": "JPEG XL", b"PAR1": "Parquet", b"II\xbc": "JPEG XR",
}  # fmt: skip


def decode(
    data: bytes, *, max_pixels: int = MAX_PIXELS, least_side: int | None = None, bits: int | None = None
) -> PIL.Image.Image:
    """The picture, upright, as RGB with 8 bits a channel. Transparent pixels become white; only the first page is read.

    Cameras with 10 or 12 bits store grey pixels as 16 bits. So a 16- or 32-bit grey picture is read as one with `bits`
    bits, by default the fewest of DEPTHS that its brightest pixel needs. The 8 highest of these bits are kept. With
    `least_side`, a large JPEG may be decoded at a half, a quarter or an eighth of its size, but with no side shorter
    than that. This is several times faster and enough for a thumbnail. Raises LinesideError with the reason (the caller
    names file or row) for data that is empty, truncated, too large, in another format or no picture at all.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the size is checked below, and unknown tags of a readable picture do no harm
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
        except Exception as error:  # for truncated and damaged files the decoders raise many types of error
            raise LinesideError(f"image cannot be decoded ({_short(error)}): damaged or cut off") from error
    if deep and (brightest := int(np.asarray(upright).max())) < DARK:
        raise LinesideError(
            f"colour image of 16 bits a channel that uses {8 + brightest.bit_length()} of them: it would be nearly "
            "black; store it with 8 bits"
        )
    return upright


def picture_size(data: bytes) -> tuple[int, int]:
    """(height, width) in pixels of the picture as `decode` gives it. Only the header is read. Raises its errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        picture = _header(data)
        try:
            # Pillow turns the size of a TIFF itself. To look for a tag in a PNG it would decode all of it.
            told = picture.format != "TIFF" and (picture.format != "PNG" or any(mark in data for mark in _TOLD))
            turned = told and picture.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
        except Exception:  # as in `_upright`
            turned = False
    return (picture.width, picture.height) if turned else (picture.height, picture.width)


def undecodable(data: bytes) -> str:
    """Why `decode` refuses a picture; "" for one that it reads."""
    try:
        decode(data)
    except LinesideError as error:
        return str(error)
    return ""


def grey_bits(data: bytes) -> int | None:
    """The fewest bits of DEPTHS that the brightest pixel of a 16- or 32-bit grey picture needs; None for any other
    picture, and for one that cannot be decoded. One picture does not show the depth of its camera: it may be dark."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            picture = _header(data)
            if not picture.mode.startswith("I"):
                return None
            values = np.asarray(picture)
        except Exception:  # as in `decode`, which tells the reason
            return None
    return _depth(values) if values.min() >= 0 and values.max() <= 0xFFFF else None


def stored(data: bytes, *, bits: int | None = None) -> tuple[bytes, tuple[str, ...]]:
    """(picture, notes for the user): the picture as shards store it. These are the same bytes if browsers show them as
    `decode` does, else the decoded picture as PNG. `bits` and errors are those of `decode`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        picture = _header(data)
        try:
            pages = getattr(picture, "n_frames", 1)
        except Exception as error:  # a damaged file, as in `decode`
            raise LinesideError(f"image cannot be decoded ({_short(error)}): damaged or cut off") from error
    several = pages > 1 and picture.format != "MPO"  # the other images in an MPO (previews, depth) are no pages
    if picture.format in WEB_FORMATS and not several and not picture.mode.startswith("I"):
        return data, ()
    notes = [f"{picture.format} pictures have further pages or frames: the first is read"] if several else []
    out = io.BytesIO()
    decode(data, bits=bits).save(out, "PNG")
    return out.getvalue(), tuple(notes)


_EXIF, _OFFSETS = 0x8769, {0x9003: (0x9011, 0x9291), 0x9004: (0x9012, 0x9292)}  # time -> its zone, parts of a second


def exif_time(source: bytes | Path) -> str:
    """When a picture was taken or digitised, by its EXIF block, as ISO 8601; with the zone where the block has it.

    Only the header is read. The time of the last change (DateTime) is not used: editors write it. Raises LinesideError
    where there is no such time.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            opened = PIL.Image.open(source, formats=FORMATS) if isinstance(source, Path) else _header(source)
            with opened as picture:
                block = dict(picture.getexif().get_ifd(_EXIF))
        except LinesideError:
            raise
        except Exception as error:  # a damaged header, or a block of another form
            raise LinesideError(f"EXIF cannot be read ({_short(error)})") from error
    for tag, (zone, part) in _OFFSETS.items():
        day, _, clock = str(block.get(tag, "")).strip("\0 ").partition(" ")
        if clock and day.strip("0:"):
            digits = str(block.get(part, "")).strip("\0 ")
            fraction = f".{digits}" if digits.isascii() and digits.isdigit() else ""
            return f"{day.replace(':', '-')}T{clock}{fraction}{str(block.get(zone, '')).strip(chr(0) + ' ')}"
    raise LinesideError("no time in the EXIF block (DateTimeOriginal)")


def image_type(data: bytes) -> str:
    """The media type of a web picture, from its first bytes: image/jpeg, image/png or image/webp."""
    if data.startswith(b"\x89PNG"):
        return "image/png"
    return "image/webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else "image/jpeg"


def image_suffix(data: bytes) -> str:
    """The suffix of a file with a web picture: .jpg, .png or .webp."""
    return {"image/jpeg": ".jpg", "image/png": ".png", "image/webp": ".webp"}[image_type(data)]


def image_key(data: bytes) -> str:
    """Key of a picture: the BLAKE2b hash of its encoded bytes, 32 hexadecimal digits."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def seen_key(image: Image) -> str:
    """Key of what an encoder sees: that of the picture, with the number of the variant if it is altered."""
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
    except Exception as error:  # a damaged or hostile header, likewise
        raise LinesideError(f"image header cannot be read ({_short(error)})") from error


def _stranger(data: bytes) -> str:
    """The format of a file that is none of FORMATS, with advice, if its first bytes show it; else ""."""
    name = next((name for start, name in _MAGIC.items() if data.startswith(start)), "")
    if data[4:8] == b"ftyp":
        name = (
            "AVIF" if data[8:12] in (b"avif", b"avis") else "HEIC" if data[8:10] in (b"he", b"mi", b"ms") else "a video"
        )
    return f"{name}, which is not read (save pictures as JPEG or PNG); " if name else ""


def _upright(picture: PIL.Image.Image) -> PIL.Image.Image:
    try:
        return PIL.ImageOps.exif_transpose(picture)
    except Exception:  # the EXIF block is broken, but the pixels may be fine
        return picture


def _rgb(picture: PIL.Image.Image, bits: int | None = None) -> PIL.Image.Image:
    if picture.mode == "RGB":
        return picture
    if picture.mode == "F":
        raise LinesideError("image of floating-point pixels: their range is unknown; store it with 8 or 16 bits")
    if picture.mode.startswith("I"):  # 16-bit grey, which Pillow may store in 32 bits
        values = np.asarray(picture).astype(np.int64)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise LinesideError("image of 32-bit pixels: store it with 8 or 16 bits")
        if bits is not None and values.max() >> bits:
            raise LinesideError(f"image with a pixel of {values.max()}: more than the {bits} bits that were stated")
        return PIL.Image.fromarray((values >> ((bits or _depth(values)) - 8)).astype(np.uint8)).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        ground = PIL.Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return PIL.Image.alpha_composite(ground, layer).convert("RGB")
    made = picture.convert("RGB")
    if picture.mode == "LAB":
        made.info.pop("icc_profile", None)  # made by the conversion: it holds the time, and equal pictures would differ
    return made


def _depth(values: npt.NDArray[np.integer]) -> int:
    """The fewest bits of DEPTHS that the brightest pixel needs."""
    return next((bits for bits in DEPTHS if int(values.max()) < 1 << bits), DEPTHS[-1])


def _deep(picture: PIL.Image.Image, data: bytes) -> bool:
    """Whether the file of a colour picture has 16 bits a channel. (The decoder keeps only the high byte.)"""
    if picture.format == "PNG":
        return picture.mode in ("RGB", "RGBA", "LA") and data[24:25] == b"\x10"
    sizes = getattr(picture, "tag_v2", {}).get(258, ())
    return picture.mode in ("RGB", "RGBA") and 16 in (sizes if isinstance(sizes, tuple) else (sizes,))


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:120]}"


def keep_pictures(folder: Path, images: Iterable[Image]) -> None:
    """Writes a thumbnail of each picture as `<key>.jpg`, unless it exists."""
    for image in images:
        key = image_key(image.bytes)
        path = folder / f"{key}.jpg"
        if not path.exists():
            write_atomic(path, thumbnail(image.bytes, name=image.path or key))


def thumbnail(data: bytes, *, name: str, side: int = THUMBNAIL_SIDE) -> bytes:
    """A JPEG at most `side` pixels wide and high, without metadata. Raises LinesideError as `decode`, with `name`."""
    try:
        picture = decode(data)
    except LinesideError as error:
        raise LinesideError(f"{name}: {error}") from error
    picture.thumbnail((side, side))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=82)
    return buffer.getvalue()


def jpeg_uri(data: bytes) -> str:
    """A JPEG's bytes as a data URI."""
    return "data:image/jpeg;base64," + base64.b64encode(data).decode("ascii")
