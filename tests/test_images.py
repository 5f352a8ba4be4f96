"""Pictures from outside: every usual kind becomes upright RGB, every broken one is refused with a reason."""

from __future__ import annotations

import io
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pil
from PIL.PngImagePlugin import PngImageFile

from lineside.errors import LinesideError
from lineside.images import MAX_BYTES, decode, grey_bits, image_key, picture_size, stored


def encoded(picture: Pil.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


RED_LEFT = Pil.new("RGB", (40, 20), (0, 0, 255))
RED_LEFT.paste((255, 0, 0), (0, 0, 20, 20))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_the_listed_formats(kind: str) -> None:
    picture = decode(encoded(RED_LEFT, kind))
    assert (picture.mode, picture.size) == ("RGB", (40, 20))
    red, blue = picture.getpixel((5, 10)), picture.getpixel((35, 10))
    assert red[0] > 200 > 60 > red[2]
    assert blue[2] > 200 > 60 > blue[0]


def test_exif_orientation_turns_the_picture_upright() -> None:
    exif = Pil.Exif()
    exif[0x0112] = 6  # the camera lay on its side: turn by 90 degrees clockwise to view
    picture = decode(encoded(RED_LEFT, "JPEG", exif=exif, quality=95))
    assert picture.size == (20, 40)
    assert picture.getpixel((10, 5))[0] > 200  # what was left is now on top


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_size_is_that_of_the_upright_picture(kind: str) -> None:
    for orientation in (None, *range(1, 9)):
        exif = Pil.Exif()
        if orientation:
            exif[0x0112] = orientation
        data = encoded(RED_LEFT, kind, **({"exif": exif} if orientation else {}))
        assert picture_size(data) == decode(data).size[::-1] == ((40, 20) if (orientation or 1) > 4 else (20, 40))


def test_the_size_of_a_png_is_known_without_decoding_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rank asks for the sizes of all pictures."""
    decoded: list[int] = []
    monkeypatch.setattr(PngImageFile, "load", lambda self: decoded.append(1))
    assert picture_size(encoded(Pil.new("RGB", (40, 20)), "PNG")) == (20, 40) and not decoded


def test_a_broken_exif_block_is_ignored() -> None:
    data = encoded(RED_LEFT, "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff" + b"\xff" * 40)
    assert decode(data).size == (40, 20)


def test_sixteen_bit_grey_keeps_its_high_byte() -> None:
    values = np.array([[0, 256, 0x7FFF, 0xFFFF]], np.uint16)
    for kind in ("PNG", "TIFF"):
        picture = decode(encoded(Pil.fromarray(values), kind))
        assert [picture.getpixel((x, 0)) for x in range(4)] == [(0, 0, 0), (1, 1, 1), (127, 127, 127), (255, 255, 255)]


def test_grey_palette_and_cmyk() -> None:
    assert decode(encoded(Pil.new("L", (4, 4), 90), "PNG")).getpixel((0, 0)) == (90, 90, 90)
    palette = RED_LEFT.convert("P", palette=Pil.Palette.ADAPTIVE)
    assert decode(encoded(palette, "PNG")).getpixel((0, 0)) == (255, 0, 0)
    r, g, b = decode(encoded(RED_LEFT.convert("CMYK"), "JPEG", quality=95)).getpixel((5, 10))
    assert r > 200
    assert max(g, b) < 60


def test_what_is_transparent_shows_white() -> None:
    clear = Pil.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert decode(encoded(clear, "PNG")).getpixel((0, 0)) == (255, 255, 255)
    palette = Pil.new("P", (4, 4), 0)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    assert decode(encoded(palette, "PNG", transparency=0)).getpixel((0, 0)) == (255, 255, 255)


def test_floating_point_pixels_are_refused() -> None:
    with pytest.raises(LinesideError, match="floating-point"):
        decode(encoded(Pil.new("F", (4, 4), 0.5), "TIFF"))


def png_header(width: int, height: int) -> bytes:
    def chunk(body: bytes) -> bytes:
        return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))

    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(header) + chunk(b"IDAT" + zlib.compress(bytes(100)))


@pytest.mark.parametrize("size", [(9000, 9000), (60_000, 60_000), (1, 40_000), (2**31 - 1, 2**31 - 1)])
def test_a_huge_picture_is_refused_by_its_header(size: tuple[int, int]) -> None:
    with pytest.raises(LinesideError, match="too large"):
        decode(png_header(*size))


def test_the_cap_on_pixels_can_be_lowered() -> None:
    data = encoded(RED_LEFT, "PNG")
    assert decode(data, max_pixels=800).size == (40, 20)
    with pytest.raises(LinesideError, match="40x20"):
        decode(data, max_pixels=799)


NOISE = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_a_truncated_picture_is_refused(kind: str, share: float) -> None:
    data = encoded(Pil.fromarray(NOISE), kind)
    with pytest.raises(LinesideError):
        decode(data[: int(len(data) * share)])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no bytes"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "known format"),
        (b"GIF89a" + b"\x00" * 40, "known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "known format"),  # would start Ghostscript
        (b"\x00" * (MAX_BYTES + 1), "bytes: at most"),
    ],
)
def test_what_is_no_picture_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(LinesideError, match=reason):
        decode(data)


@settings(max_examples=150)
@given(
    st.sampled_from(["JPEG", "PNG", "WEBP", "TIFF", "BMP"]), st.integers(0, 10_000), st.binary(min_size=1, max_size=8)
)
def test_damage_anywhere_raises_nothing_else(kind: str, where: int, noise: bytes) -> None:
    data = bytearray(encoded(Pil.fromarray(NOISE[:16, :16]), kind))
    where %= len(data)
    data[where : where + len(noise)] = noise
    with suppress(LinesideError):
        assert decode(bytes(data), max_pixels=1 << 20).mode == "RGB"


def test_shards_hold_what_browsers_show() -> None:
    jpeg = encoded(RED_LEFT, "JPEG")
    assert stored(jpeg)[0] is jpeg
    tiff, _ = stored(encoded(RED_LEFT, "TIFF"))
    assert tiff[:4] == b"\x89PNG"
    assert decode(tiff).tobytes() == RED_LEFT.tobytes()


def test_equal_pictures_are_stored_as_equal_bytes() -> None:
    """A Lab picture gets a colour profile when it is converted, and that profile holds the time of its making."""
    lab = Pil.fromarray(np.full((8, 8, 3), 120, np.uint8), "LAB")
    assert b"iCCP" not in stored(encoded(lab, "TIFF"))[0]


def test_the_key_is_of_the_content() -> None:
    assert image_key(b"a") == "27c35e6e9373877f29e562464e46497e"  # b2sum --length=128


@pytest.mark.parametrize(("top", "bits"), [(200, 8), (1023, 10), (4095, 12), (9000, 14), (65535, 16)])
def test_greys_of_any_depth_in_sixteen_bits_are_seen(top: int, bits: int) -> None:
    values = np.array([[0, top // 2, top]], np.uint16)
    for data in (encoded(Pil.fromarray(values), "PNG"), encoded(Pil.fromarray(values.astype(np.int32)), "TIFF")):
        web, notes = stored(data, bits=grey_bits(data))
        assert [decode(web).getpixel((x, 0))[0] for x in range(3)] == [int(v) >> (bits - 8) for v in values[0]]
        assert grey_bits(data) == bits and notes == ()
        assert decode(data).tobytes() == decode(web).tobytes()  # asked about as it is stored


def test_the_bits_that_the_user_says_hold_for_dark_frames_too() -> None:
    dark = encoded(Pil.fromarray(np.full((2, 2), 160, np.uint16)), "PNG")
    assert decode(stored(dark, bits=12)[0]).getpixel((0, 0)) == (10, 10, 10)
    assert stored(dark, bits=12)[1] == ()
    with pytest.raises(LinesideError, match="a pixel of 160: more than the 7"):
        decode(dark, bits=7)


def test_only_deep_greys_have_a_depth_to_state() -> None:
    for data in (encoded(RED_LEFT, "PNG"), encoded(RED_LEFT, "TIFF"), encoded(Pil.new("L", (4, 4)), "PNG"), b"", b"x"):
        assert grey_bits(data) is None
    wide = encoded(Pil.fromarray(np.full((2, 2), 1 << 20, np.int32)), "TIFF")
    assert grey_bits(wide) is None  # `decode` refuses it: nobody knows how its values are meant


def sixteen_bit_rgb(value: int) -> bytes:
    """A PNG of two by two pixels, 16 bits a channel."""

    def chunk(body: bytes) -> bytes:
        return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))

    header = b"IHDR" + struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    line = b"\0" + struct.pack(">H", value) * 6
    return b"\x89PNG\r\n\x1a\n" + chunk(header) + chunk(b"IDAT" + zlib.compress(line * 2)) + chunk(b"IEND")


def test_colour_of_twelve_bits_in_sixteen_is_refused_and_not_black() -> None:
    assert decode(sixteen_bit_rgb(0x8000)).getpixel((0, 0)) == (128, 128, 128)
    with pytest.raises(LinesideError, match="uses 12 of them: it would be nearly black"):
        decode(sixteen_bit_rgb(0x0FFF))


def test_a_photograph_with_another_behind_it_keeps_its_bytes() -> None:
    data = encoded(RED_LEFT, "MPO", save_all=True, append_images=[RED_LEFT])
    assert stored(data) == (data, ())
    assert decode(data).size == (40, 20)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_of_several_pages_the_first_is_stored_and_the_others_are_told(kind: str) -> None:
    blue = Pil.new("RGB", (40, 20), (0, 0, 255))
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(RED_LEFT, kind, save_all=True, append_images=[blue], **options)
    web, notes = stored(data)
    assert web[:4] == b"\x89PNG" and decode(web).tobytes() == RED_LEFT.tobytes()
    assert notes == (f"{kind} pictures have further pages or frames: the first is read",)
    assert stored(web) == (web, ())


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"GIF89a" + b"\0" * 40, "GIF"),
        (b"%PDF-1.4\n", "PDF"),
        (b"\0\0\0\x18ftypheic" + b"\0" * 20, "HEIC"),
        (b"\0\0\0\x20ftypavif" + b"\0" * 20, "AVIF"),
        (b"PK\x03\x04" + b"\0" * 40, "a zip archive"),
    ],
)
def test_what_is_not_read_is_called_by_its_name(data: bytes, name: str) -> None:
    with pytest.raises(LinesideError, match=f"known format .*: {name}, which is not read"):
        decode(data)
