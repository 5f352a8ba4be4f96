"""What the owner signs: which model answers in which cell, and every file of it by its SHA-256.

The serial grows with every change, a rollback too, so a machine refuses an older state that somebody sends again. A
server of the registry takes a new serial when it starts, at least the time in seconds: it also grows if the registry
was restored from an older copy. The time says when home vouched for the state last.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from lineside.errors import LinesideError
from lineside.registry.manifest import Entry, Manifest, Sha256, read_manifest
from lineside.registry.store import ALL_CELLS, NAME, Item, Registry, TrialKind, Version, now
from lineside.strict import Strict, Tuple

SUFFIXES = (".safetensors", ".json", ".jsonl", ".txt", ".jinja", ".md", ".model")
PLAIN = ("LICENSE", "NOTICE")  # files without an ending that may belong to a model
MAX_STATE = 16 << 20  # bytes of a signed state
_SERIAL = "serial"  # key of the settings

Text = Annotated[str, Field(pattern=f"^{NAME.pattern}$")]


class Kept(Strict):
    """An item of the registry: its hash, what is known of it, and its files."""

    hash: Sha256
    about: dict[str, Any]
    files: Tuple[Entry]

    @model_validator(mode="after")
    def _whole(self) -> Kept:
        if self.manifest.hash != self.hash:
            raise ValueError("the hash of an item is not that of its files")
        return self

    @property
    def manifest(self) -> Manifest:
        """Its list of files."""
        return Manifest(files=self.files)


class Served(Strict):
    """A version that answers somewhere, and the evaluations that say what it was judged with."""

    name: Text
    number: Annotated[int, Field(ge=1)]
    registered: str
    model: Kept
    evaluations: Tuple[Kept]

    @property
    def label(self) -> str:
        """`NAME@VERSION`."""
        return f"{self.name}@{self.number}"

    @property
    def items(self) -> list[tuple[str, Kept]]:
        """Its kinds and items."""
        return [("model", self.model), *(("evaluation", one) for one in self.evaluations)]


class Post(Strict):
    """Which version of a name is the champion of a cell; "": of all cells without one of their own."""

    name: Text
    cell: Literal[""] | Text
    number: int


class Tried(Post):
    """A version that runs beside the champion of a cell."""

    kind: TrialKind
    share: Annotated[float, Field(gt=0, le=1)]
    since: str


class State(Strict):
    """What is signed."""

    version: Literal[1] = 1
    serial: Annotated[int, Field(ge=1)]
    time: str
    served: Tuple[Served]
    champions: Tuple[Post]
    trials: Tuple[Tried]

    @model_validator(mode="after")
    def _listed(self) -> State:
        known = {(one.name, one.number) for one in self.served}
        if lacking := {(one.name, one.number) for one in (*self.champions, *self.trials)} - known:
            raise ValueError(f"versions without their files: {sorted(lacking)}")
        return self

    @property
    def content(self) -> str:
        """SHA-256 of what it says, whenever it says it."""
        return _digest(self.served, self.champions, self.trials)

    def of_cell(self, cell: str) -> dict[str, Served]:
        """The versions that answer in a cell, by name."""
        chosen = {post.name: post for wanted in (ALL_CELLS, cell) for post in self.champions if post.cell == wanted}
        return {name: self._version(post) for name, post in chosen.items()}

    def trials_of(self, cell: str) -> dict[str, tuple[Tried, Served]]:
        """What runs beside them in a cell, by name. A cell with a champion of its own has no part in the trial of all
        cells."""
        apart = {post.name for post in self.champions if cell and post.cell == cell}
        chosen = {one.name: one for one in self.trials if one.cell == ALL_CELLS and one.name not in apart}
        chosen |= {one.name: one for one in self.trials if one.cell == cell}
        return {name: (one, self._version(one)) for name, one in chosen.items()}

    def _version(self, post: Post) -> Served:
        return next(one for one in self.served if (one.name, one.number) == (post.name, post.number))


def read_state(payload: bytes) -> State:
    """The state in a payload whose signature holds. Raises LinesideError."""
    try:
        return State.model_validate_json(payload)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise LinesideError(
            f"what home signed cannot be read ({where}: {first['msg']}): install the lineside of home here"
        ) from None


def state_of(registry: Registry, *, anew: bool = False, trials: bool = True) -> State:
    """The state of a registry. `anew`: with a new serial in any case. `trials`: with what runs beside the champions.

    Raises LinesideError for a model that may not be sent (its weights are no safetensors), and if a new serial cannot
    be written.
    """
    champions, running = registry.champions(), registry.trials() if trials else []
    versions = {one.version.label: one.version for one in (*champions, *running)}
    served = tuple(_served(registry, version) for version in versions.values())
    posts = tuple(Post(name=c.version.name, cell=c.cell, number=c.version.number) for c in champions)
    tried = tuple(
        Tried(name=t.version.name, cell=t.cell, number=t.version.number, kind=t.kind, share=t.share, since=t.since)
        for t in running
    )
    content = _digest(served, posts, tried)
    serial = None if anew else _serial(registry, content)
    if serial is None:
        with registry.transaction():
            last = registry.setting(_SERIAL)
            serial = max(1 + (last["serial"] if last else 0), int(time.time()))
            registry.set_setting(_SERIAL, {"serial": serial, "content": content})
    return State(serial=serial, time=now(), served=served, champions=posts, trials=tried)


def check_kinds(served: Served) -> None:
    """Raises LinesideError for a file that is not of the kinds that a model has."""
    for _, item in served.items:
        for entry in item.files:
            if not entry.name.endswith(SUFFIXES) and entry.name.rpartition("/")[2] not in PLAIN:
                raise LinesideError(
                    f"{served.label}: {entry.name} is not sent: weights are safetensors, and other files end in "
                    f"{', '.join(SUFFIXES[1:])}"
                )


def _serial(registry: Registry, content: str) -> int | None:
    """The serial of this content, if it is the last one."""
    last = registry.setting(_SERIAL)
    return last["serial"] if last is not None and last["content"] == content else None


def _served(registry: Registry, version: Version) -> Served:
    judged = [one for one in registry.made_from(version.model, "model") if one.kept and one.kind == "evaluation"]
    found = Served(
        name=version.name,
        number=version.number,
        registered=version.registered,
        model=_kept(registry, registry.item(version.model)),
        evaluations=tuple(_kept(registry, one) for one in judged if one.about["split"] != "train"),
    )
    check_kinds(found)
    return found


def _kept(registry: Registry, item: Item) -> Kept:
    return Kept(hash=item.hash, about=dict(item.about), files=read_manifest(registry.path(item)).files)


def _digest(*parts: Iterable[Strict]) -> str:
    lines = (one.model_dump_json() for part in parts for one in part)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
