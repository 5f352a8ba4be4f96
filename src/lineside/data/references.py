"""Reference pictures of SKUs, from a folder or a table (`references` in a task file's `table`).

A question names its SKUs by a column of the record or of its list element (`references` of a task). Their pictures and
master-data text then stand beside the frame in that question. A SKU without pictures is asked about without any, and
counted.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lineside.data.folders import PictureFolder, Rejected, is_picture, read_file, walk
from lineside.data.sources import FrameSource
from lineside.data.splits import SuitePictures
from lineside.data.table import Remarks
from lineside.data.tabular import Form
from lineside.data.taskfile import References, Table, Task
from lineside.data.template import column
from lineside.data.timelog import need, progress, text_of
from lineside.data.values import skus_of
from lineside.errors import LinesideError
from lineside.images import stored, undecodable
from lineside.types import Frame, Image

KEPT = 512  # pictures in memory
SHOWN = 4  # names in a message
WITHOUT = "times a question names a SKU without reference pictures"


def named_by(task: Task, frame: Frame, element: Mapping[str, Any]) -> tuple[str, ...]:
    """The SKUs that a question is about. Raises LinesideError if there is no such column."""
    if task.references is None:
        return ()
    where = f"task {task.family}/{task.name}, frame {frame.id}: references"
    value = column({**frame.record, **element}, task.references, where)
    if isinstance(value, list | tuple) and not all(isinstance(one, str | int) for one in value):
        raise LinesideError(f"{where}: column {task.references!r} holds {value!r:.60}: expected names of SKUs")
    return tuple(sku.strip() for sku in skus_of(value) if sku.strip())


class ReferencePictures:
    """SKU -> its reference pictures, read when they are asked for."""

    def __init__(self, folder: Path, settings: References, form: Form, remarks: Remarks) -> None:
        """`folder`: of the frames. Raises LinesideError for a folder, table, column or picture that is missing."""
        self.settings, self._remarks = settings, remarks
        self._asked: set[str] = set()  # SKUs that questions name
        self._checked = False
        self._files: defaultdict[str, list[Path]] = defaultdict(list)
        self._texts: dict[str, str] = {}
        self._pictures = PictureFolder(folder / (settings.folder or ""))
        if settings.file is not None:
            self._read_table(folder / settings.file, settings, form)
        if settings.image is None:
            self._read_folder(self._pictures.folder)
        if not self._files:
            raise LinesideError(
                f"{self._pictures.folder}: no reference pictures: expected a folder for each SKU, or a picture "
                "called by it"
            )
        self._read = functools.lru_cache(KEPT)(_picture)

    def _read_folder(self, folder: Path) -> None:
        """Pictures in a folder named by the SKU; or one picture named by it."""
        for name in walk(folder):
            if isinstance(name, Rejected) or not is_picture(name):
                continue
            above, _, file = name.rpartition("/")
            self._files[above or file.rpartition(".")[0]].append(folder / name)

    def _read_table(self, path: Path, settings: References, form: Form) -> None:
        wanted = [name for name in (settings.sku, settings.image, settings.text) if name]
        for number, row in progress(path, form):
            if isinstance(row, str):
                raise LinesideError(f"{path}, row {number}: {row}")
            need(path, wanted, row)
            if not (sku := text_of(row[settings.sku]).strip()):
                raise LinesideError(f"{path}, row {number}: the column {settings.sku!r} is empty: expected a SKU")
            if settings.image is not None:
                for file in filter(None, map(str.strip, text_of(row[settings.image]).split("|"))):
                    try:
                        self._files[sku].append(self._pictures.folder / self._pictures.find(file))
                    except LinesideError as error:
                        raise LinesideError(f"{path}, row {number}: the reference {file!r} of {sku}: {error}") from None
            text = " ".join(text_of(row[settings.text]).split()) if settings.text else ""
            if text and self._texts.setdefault(sku, text) != text:
                raise LinesideError(f"{path}, row {number}: {sku} has another text than in an earlier row: give one")

    def of(self, skus: Iterable[str]) -> tuple[Image, ...]:
        """The pictures of these SKUs, at most `most` of each, in the order of their names or of the table.

        Raises LinesideError naming a picture that cannot be read.
        """
        found: list[Image] = []
        for sku in skus:
            if not self._checked:
                self._asked.add(sku)
                if sku not in self._files:
                    self._remarks.add(WITHOUT, sku)
            found += self._pictures_of(sku)
        return tuple(found)

    def _pictures_of(self, sku: str) -> list[Image]:
        files = self._files.get(sku, [])[: self.settings.most]
        return [self._read(file, sku, self._texts.get(sku, "")) for file in files]

    def check(self, suites: SuitePictures) -> None:
        """After all questions were planned.

        Raises LinesideError if a picture is that of a frame in a suite, or if none of the SKUs has one.
        """
        self._checked = True
        if self._asked.isdisjoint(self._files):
            named = f"name {_some(self._asked)}" if self._asked else "name no SKU"
            raise LinesideError(
                f"{self._pictures.folder}: no question has a reference picture: the questions {named}; the pictures "
                f"are of {_some(self._files)}"
            )
        for image in (image for sku in self._files for image in self._pictures_of(sku)):
            if frame := suites.of(image):
                raise LinesideError(
                    f"leak: the reference picture {image.path} of {image.name} is the picture of {frame[0]}, a frame "
                    f"of {frame[1]}: take another picture of that SKU"
                )


def open_references(source: FrameSource, table: Table | None) -> ReferencePictures | None:
    """The reference pictures beside the frames of a source; None if its table states none. Errors as the class."""
    if table is None or table.references is None:
        return None
    return ReferencePictures(source.folder, table.references, table.form, source.remarks)


def _picture(file: Path, sku: str, text: str) -> Image:
    try:
        data, _ = stored(read_file(file))
        if why := undecodable(data):
            raise LinesideError(why)
    except LinesideError as error:
        raise LinesideError(f"the reference {file} of {sku}: {error}") from None
    return Image(data, "reference", file.name, name=sku, text=text)


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(map(repr, listed[:SHOWN])) + (f" and {len(listed) - SHOWN:,} more" if len(listed) > SHOWN else "")
