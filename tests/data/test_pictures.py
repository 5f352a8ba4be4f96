"""Pictures as rows name them: read where they lie, refused by name where they lie elsewhere."""

from __future__ import annotations

import base64
import io
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pil

from lineside.data.pictures import Loader, picture_of, safe_name, without_bytes
from lineside.errors import LinesideError
from lineside.images import decode


def encoded(kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Pil.effect_noise((16, 16), 50).convert("RGB").save(out, kind)
    return out.getvalue()


PNG = encoded()
TEXT = base64.b64encode(PNG).decode()
URL = f"data:image/png;base64,{TEXT}"


@pytest.mark.parametrize(
    "value",
    [
        PNG,
        TEXT,
        "\n".join(TEXT[n : n + 76] for n in range(0, len(TEXT), 76)),
        URL,
        {"url": URL},
        {"image_url": {"url": URL, "detail": "high"}},
        {"bytes": PNG, "path": "p.png"},
        {"bytes": TEXT, "path": None},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": TEXT}},
        {"image": {"bytes": PNG, "path": "p.png"}},
    ],
)
def test_pictures_within_a_row_are_named_by_their_content(value: Any) -> None:
    found = picture_of(value)
    assert found.data == PNG
    assert found.path == picture_of(PNG).path
    assert found.path.startswith("images/") and found.path.endswith(".png")


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "BMP", "TIFF"])
def test_base64_of_other_formats(kind: str) -> None:
    data = encoded(kind)
    assert picture_of(base64.b64encode(data).decode()).data == data


@pytest.mark.parametrize("value", ["p.png", {"path": "p.png", "bytes": None}, {"bytes": b"", "path": "p.png"}])
def test_a_path_stays_a_path(value: Any) -> None:
    assert (picture_of(value).path, picture_of(value).data) == ("p.png", None)


@pytest.mark.parametrize(
    "value", ["", " ", None, 3, {}, {"bytes": None}, b"", ["p.png"], "data:image/png,xx", URL + "*"]
)
def test_what_names_no_picture(value: Any) -> None:
    with pytest.raises(LinesideError, match="picture"):
        picture_of(value)


def test_a_row_without_its_bytes() -> None:
    row = {"images": [{"bytes": PNG, "path": None}, PNG], "n": 1, "text": [{"image": {"bytes": None, "path": "p"}}]}
    name = picture_of(PNG).path
    assert without_bytes(row) == {"images": [name, name], "n": 1, "text": [{"image": {"bytes": None, "path": "p"}}]}


def test_paths_inside_the_folder(tmp_path: Path) -> None:
    inside = ["cam1\\p.png", "./cam1/p.png", str(tmp_path / "cam1/p.png"), f"file://{tmp_path}/cam1/p.png"]
    assert {str(safe_name(name, tmp_path)) for name in inside} == {"cam1/p.png"}
    assert str(safe_name(f"file://{tmp_path}/a%20b.png", tmp_path)) == "a b.png"


@pytest.mark.parametrize(
    "name",
    [
        "C:\\data\\p.png",
        "D:/p.png",
        "/etc/p.png",
        "file:///data/p.png",
        "../p.png",
        "..\\p.png",
        "\\\\host\\p.png",
        "a\0b",
    ],
)
def test_paths_outside_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(LinesideError, match=r"must lie inside the folder of pictures, .*--images"):
        safe_name(name, tmp_path)


@pytest.mark.parametrize("name", ["https://x.org/a.png", "s3://bucket/a.png", "hf://datasets/a.png"])
def test_pictures_elsewhere(tmp_path: Path, name: str) -> None:
    with pytest.raises(LinesideError, match="download it first"):
        safe_name(name, tmp_path)


def test_a_missing_picture_names_the_folder_that_has_it(tmp_path: Path) -> None:
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics" / "p.png").write_bytes(PNG)
    load = Loader(tmp_path)
    with pytest.raises(LinesideError, match=r"no picture 'p\.png' in .*; it is in .*pics: give .* --images"):
        load(picture_of("p.png"))
    (tmp_path / "frame_0001.png").write_bytes(PNG)
    with pytest.raises(LinesideError, match=r"no picture 'frame_0001' in .*; did you mean 'frame_0001\.png'"):
        Loader(tmp_path)(picture_of("frame_0001"))
    with pytest.raises(LinesideError, match=r"no picture 'q\.png' in [^;]*$"):
        load(picture_of("q.png"))
    with pytest.raises(LinesideError, match="no picture 'xxx"):
        load(picture_of("x" * 5000))
    assert Loader(tmp_path / "pics")(picture_of("p.png")).bytes == PNG


def test_a_missing_picture_says_what_to_take_off_its_path(tmp_path: Path) -> None:
    (tmp_path / "cam1").mkdir()
    (tmp_path / "cam1" / "p.png").write_bytes(PNG)
    (tmp_path / "p.png").mkdir()
    with pytest.raises(LinesideError, match=r"it holds 'cam1/p.png': .* or take 'data/' off"):
        Loader(tmp_path)(picture_of("data/cam1/p.png"))
    with pytest.raises(LinesideError, match=r"no picture 'p.png' in .*; it is in .*cam1"):
        Loader(tmp_path)(picture_of("p.png"))


def test_data_urls_and_base64_as_the_web_writes_them() -> None:
    data = b"\x89PNG\r\n\x1a\n\0" + bytes(range(251, 256)) * 40 + b"x"
    text = base64.urlsafe_b64encode(data).decode()
    assert set("-_") & set(text)
    for value in (text, text.rstrip("="), f"DATA:image/png;BASE64,{text}"):
        assert picture_of(value).data == data


def test_a_name_in_another_form_of_unicode(tmp_path: Path) -> None:
    (tmp_path / unicodedata.normalize("NFD", "größe.png")).write_bytes(PNG)
    assert Loader(tmp_path)(picture_of(unicodedata.normalize("NFC", "größe.png"))).bytes == PNG


def test_a_picture_in_a_row_is_decoded_too(tmp_path: Path) -> None:
    assert Loader(tmp_path)(picture_of(TEXT)).bytes == PNG
    with pytest.raises(LinesideError, match="cannot be decoded"):
        Loader(tmp_path)(picture_of(PNG[:-40]))


def test_the_depth_of_a_deep_grey_is_stated_not_guessed(tmp_path: Path) -> None:
    out = io.BytesIO()
    Pil.fromarray(np.full((4, 4), 500, np.uint16)).save(out, "PNG")
    with pytest.raises(LinesideError, match=r"grey picture of 16 bits.*--bits 12"):
        Loader(tmp_path)(picture_of(out.getvalue()))
    found = Loader(tmp_path, bits=12)(picture_of(out.getvalue()))
    assert decode(found.bytes).getpixel((0, 0)) == (31, 31, 31)
    assert Loader(tmp_path, bits=12)(picture_of(TEXT)).bytes == PNG  # of other pictures it changes nothing
