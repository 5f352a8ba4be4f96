"""Contact sheets: many frames in one picture, sorted by family, cell and week, each with its ground truth."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from lineside.errors import LinesideError
from lineside.files import write_atomic
from lineside.types import Frame

COLUMNS, THUMB, LINE, LINES, GAP = 6, 224, 13, 4, 6
_PAPER, _INK, _FAINT = (250, 250, 248), (24, 24, 28), (120, 120, 124)


def contact_sheet(frames: Iterable[Frame], path: Path) -> None:
    """Write a PNG of the frames, sorted by family, cell and week, with a heading for each family and week.

    Raises LinesideError if there is no frame, or the file cannot be written.
    """
    ordered = sorted(frames, key=lambda f: (f.family, f.meta.week, f.split == "shifted", f.meta.cell, f.id))
    if not ordered:
        raise LinesideError("a contact sheet needs at least one frame")
    rows = _rows(ordered)
    tall = THUMB + LINE * LINES + GAP
    height = GAP + sum(2 * LINE if isinstance(row, str) else tall for row in rows)
    sheet = Image.new("RGB", (GAP + COLUMNS * (THUMB + GAP), height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    y = GAP
    for row in rows:
        if isinstance(row, str):
            draw.text((GAP, y + LINE // 2), row, fill=_INK, font=ImageFont.load_default(size=13))
            y += 2 * LINE
            continue
        for column, frame in enumerate(row):
            x = GAP + column * (THUMB + GAP)
            sheet.paste(Image.open(io.BytesIO(frame.image.bytes)).convert("RGB").resize((THUMB, THUMB)), (x, y))
            for k, line in enumerate(_lines(frame)):
                draw.text((x, y + THUMB + 1 + k * LINE), line, fill=_INK if k else _FAINT, font=_small())
        y += tall
    _save(sheet, path)


def _rows(frames: Sequence[Frame]) -> list[str | list[Frame]]:
    rows: list[str | list[Frame]] = []
    heading = ""
    for frame in frames:
        title = f"{frame.family}, week {frame.meta.week}" + (" (shifted)" if frame.split == "shifted" else "")
        last = rows[-1] if rows else ""
        if title != heading:
            rows += [title, [frame]]
            heading = title
        elif isinstance(last, list) and len(last) < COLUMNS:
            last.append(frame)
        else:
            rows.append([frame])
    return rows


def _small() -> Any:
    return ImageFont.load_default(size=10)


def _lines(frame: Frame) -> list[str]:
    """At most LINES short lines: cell, split and scene, then the main ground truth."""
    text = {"picking": _picking, "kitting": _kitting, "returns": _returns}.get(frame.family, lambda record: "")
    words, lines = text(frame.record).split(" "), [f"{frame.meta.cell} {frame.split} {frame.meta.scene}"]
    line = ""
    for word in words:
        if line and len(line) + len(word) > 40:
            lines.append(line)
            line = ""
        line = f"{line} {word}".strip()
    lines.append(line)
    if len(lines) > LINES:
        lines = [*lines[: LINES - 1], lines[LINES - 1][:37] + "..."]
    return lines


def _picking(record: Any) -> str:
    counts = Counter(part["description"] for part in record["parts"])
    parts = ", ".join(f"{n} {name}" for name, n in counts.most_common())
    dunnage = ", dunnage" if record["dunnage"] else ""
    bins = "1 bin" if record["bins"] == 1 else f"{record['bins']} bins"
    return f"{bins}, {record['fill_percent']:.0f}% full{dunnage}: {parts or 'empty'}"


def _kitting(record: Any) -> str:
    faults = [
        f"{slot['slot']} {slot['status']}" + (f" ({slot['found']})" if slot["status"] in ("wrong", "duplicate") else "")
        for slot in record["slots"]
        if slot["status"] != "ok"
    ]
    beside = f"; beside: {', '.join(item['description'] for item in record['beside'])}" if record["beside"] else ""
    return f"{record['rows']}x{record['columns']} " + (", ".join(faults) or "complete") + beside


def _returns(record: Any) -> str:
    label = record["label"]
    state = "no label" if not label["present"] else f"label {'readable' if label['readable'] else label['fault']}"
    looks = f" with {', '.join(record['confusers'])}" if record["confusers"] else ""
    return f"{record['item']}: {record['condition']} {record['severity']:.2f}{looks}; {state}"


def _save(sheet: Image.Image, path: Path) -> None:
    out = io.BytesIO()
    sheet.save(out, "PNG")
    write_atomic(path, out.getvalue())
