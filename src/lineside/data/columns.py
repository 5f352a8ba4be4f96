"""The columns of a frame and of a sample: cell, camera, SKU, week, time, and what a task file lists in `table.by`."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from lineside.data.values import texts_of
from lineside.types import COLUMNS, Frame, Meta, Sample

NEW_SKU = "new_sku"  # "yes" if the frame shows a SKU that the training frames do not
# Keys of `Meta.extra` that lineside writes for itself.
_OWN = {"facts", "weight", "budget_ms", "stakes", "normal", "task_version", "agreement", "foreign", "renderer"}
_OWN |= {"wrong", "wrong_attribute", COLUMNS}
_ISO = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2})(?:[T ]([0-9]{2}):)?")


def columns_of(sample: Sample, trained: Collection[str] = ()) -> dict[str, list[str]]:
    """The values of each column that a question carries; a frame with several SKUs has several. `trained`: the SKUs of
    the training frames, where they are known."""
    target = sample.target
    found = columns_in(sample.meta, simulated=target is not None and target.provenance == "sim")
    if trained and sample.meta.skus:
        found[NEW_SKU] = ["no" if set(sample.meta.skus).issubset(trained) else "yes"]
    return found


def columns_in(meta: Meta, *, simulated: bool = False) -> dict[str, list[str]]:
    """The values of each column that a frame's meta holds. Week 0 is a week of the simulator alone."""
    date = _ISO.match(meta.time)
    carried = meta.extra.get(COLUMNS)
    found: dict[str, object] = {
        "cell": meta.cell,
        "camera": meta.camera,
        "sku": meta.skus,
        "week": meta.week if meta.week or simulated else "",
        "day": date[1] if date else "",
        "hour": date[2] if date else "",
        **{name: value for name, value in meta.extra.items() if name not in _OWN},
        **(carried if isinstance(carried, Mapping) else {}),
    }
    return {name: values for name, value in found.items() if (values := texts_of(value))}


def columns_of_frame(frame: Frame) -> dict[str, list[str]]:
    """The values of each known column of a frame: those of its meta, and plain values of its record."""
    columns = {name: texts_of(value) for name, value in frame.record.items()}
    return {**columns, **columns_in(frame.meta), "split": [frame.split]}


def columns_of_sample(sample: Sample) -> dict[str, list[str]]:
    """The values of each known column of a sample."""
    return {**columns_of(sample), "split": [sample.split]}
