"""Further pictures of a frame's scene, each with a name (`views` of a task file's table), such as the side or the top.

They stand behind the frame's own picture, under their names, in an order that the checkpoint keeps. So all that judges
or asks a model shows it the views of its training, in that order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from lineside.data import store
from lineside.errors import LinesideError
from lineside.strict import nearest
from lineside.types import Sample


class Named(Protocol):
    """A picture with a name."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...


V = TypeVar("V", bound=Named)


def views_in(folders: Iterable[Path]) -> tuple[str, ...]:
    """The names of the views in the training questions: in the order that `label` states, then in that of the rows.
    Reads no picture. Raises LinesideError for a missing folder or a shard that cannot be read."""
    found: dict[str, None] = {}
    for folder in folders:
        found |= dict.fromkeys(_stated(folder))
        for path in store.sample_shards(folder, kind="qa", split="train"):
            found |= dict.fromkeys(name for row in store.read_columns(path, ["roles", "names"]) for name in _names(row))
    return tuple(found)


def _names(row: Mapping[str, Any]) -> list[str]:
    return [name for role, name in zip(row["roles"] or (), row["names"] or ()) if role == "view" and name]


def _stated(folder: Path) -> list[str]:
    return list((store.account_of(folder) or {}).get("views", ()))


def views_of(questions: Iterable[Sample], folder: Path) -> tuple[str, ...]:
    """The names of the views that questions of a folder of samples show."""
    seen = (image.name for sample in questions for image in sample.images if image.role == "view" and image.name)
    return tuple(dict.fromkeys([*_stated(folder), *seen]))


def check_same_views(checkpoint: Sequence[str], samples: Sequence[str], where: Path) -> None:
    """Raises LinesideError if a model would be judged on other views of a scene than it was trained with."""
    if set(checkpoint) != set(samples):
        told = [f"the views {', '.join(views)}" if views else "no further views" for views in (checkpoint, samples)]
        raise LinesideError(
            f"{where}: the checkpoint was trained with {told[0]} of a frame, and this data shows {told[1]}: label it "
            "with the `views` of the checkpoint"
        )


def arranged(views: Sequence[V], stated: Sequence[str]) -> tuple[V, ...]:
    """Views in the order of the checkpoint's training. `stated`: the names of its views.

    Raises LinesideError for a view that it was not trained with, or that is given twice.
    """
    found: dict[str, V] = {}
    for view in views:
        if view.name not in stated:
            has = f"expected {', '.join(stated)}" if stated else "it was trained without any: leave it out"
            raise LinesideError(f"the checkpoint knows no view {view.name!r}{nearest(view.name, stated)}; {has}")
        if view.name in found:
            raise LinesideError(f"the view {view.name!r} is given twice: expected one picture of each")
        found[view.name] = view
    return tuple(found[name] for name in stated if name in found)


def missing_views(views: Sequence[Named], stated: Sequence[str]) -> str:
    """A note on views that a checkpoint was trained with and that are not given; "" if there are none."""
    left = [name for name in stated if name not in {view.name for view in views}]
    return f"the checkpoint was trained with the view {' and '.join(left)}, which is not given" if left else ""
