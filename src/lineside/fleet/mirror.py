"""What a machine keeps of its home: a registry of its own with the models of its cell, which its server follows.

A new state counts only if its signature holds, its serial is not older than the last one, and every file has its size
and hash; then all changes in one transaction. In every other case the last good models stay. They also stay while home
is offline. The folder takes at most the bytes that its owner allows: the models in use, the one before each, and what
is being fetched.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from lineside.errors import LinesideError, disk_is_full
from lineside.fleet.client import Home
from lineside.fleet.state import Kept, Served, State, Tried, check_kinds
from lineside.registry.manifest import FILES, Entry, problems, seal
from lineside.registry.policy import Policy, clean
from lineside.registry.store import ALL_CELLS, Item, Registry, Staged, Trial, Version, now

BLOBS = "fetched"  # folder of files on their way
FRESH = timedelta(days=1)  # a state that home vouched for longer ago is not taken
SPARE = 64 << 20  # bytes of the disk that are left to others
Beside = Mapping[str, tuple[Tried, Served]]
_SEEN = "home"  # key of the settings


@dataclass(frozen=True, slots=True)
class Seen:
    """The last state that a machine took. `content`: the hash of what it said."""

    serial: int = 0
    content: str = ""
    time: str = ""


class Mirror:
    """A machine's registry. Used by one thread."""

    def __init__(self, folder: Path, *, cell: str, names: Collection[str] = (), max_bytes: int) -> None:
        """`names`: of the models that are wanted; without any all that answer in the cell. Raises LinesideError if the
        folder cannot be used."""
        self.folder, self._cell, self._names, self._max_bytes = folder, cell, tuple(names), max_bytes
        self._read: set[str] = set()  # items whose files were all read and compared with their hashes since the start
        with Registry(folder, create=True):
            (folder / BLOBS).mkdir(exist_ok=True)

    @property
    def seen(self) -> Seen:
        """The last state that was taken."""
        with Registry(self.folder) as registry:
            return _seen(registry)

    @property
    def labels(self) -> list[str]:
        """The champions here."""
        with Registry(self.folder) as registry:
            return [champion.version.label for champion in registry.champions()]

    def take(self, state: State, home: Home) -> bool:
        """Make this the state of the machine, with all files that its champions lack; returns whether anything has
        changed. Of the trials those run whose files are here: they hold up no champion.

        Raises LinesideError, and Offline if a file does not arrive. Nothing is changed then.
        """
        with self._opened() as registry:
            wanted, beside = self._wanted(state)
            here = {name: one for name, one in beside.items() if not list(self._lacking(registry, [one[1]]))}
            return self._settle(registry, state, wanted, here, home)

    def take_trials(self, state: State, home: Home) -> None:
        """Fetch what the trials of a state that was taken lack, and let them run. Raises as `take`."""
        with self._opened() as registry:
            self._settle(registry, state, *self._wanted(state), home)

    @contextmanager
    def _opened(self) -> Iterator[Registry]:
        try:
            with Registry(self.folder) as registry:
                yield registry
        except OSError as error:
            reason = "the disk is full: make room" if disk_is_full(error) else error.strerror or str(error)
            raise LinesideError(f"{error.filename or self.folder}: {reason}; the models stay as they are") from None

    def _settle(
        self, registry: Registry, state: State, wanted: Mapping[str, Served], beside: Beside, home: Home
    ) -> bool:
        self._refuse_old(state, seen := _seen(registry))
        every = [*wanted.values(), *(served for _, served in beside.values())]
        lacking = list(self._lacking(registry, every))
        if not lacking and seen.serial == state.serial and _as_wanted(registry, wanted, beside):
            return False
        blobs = self._fetch(registry, [item for _, item in lacking], home)
        self._commit(registry, state, wanted, beside, lacking, blobs)
        self._read |= {item.hash for _, item in lacking}
        self._drop(set())
        _forget(registry)
        clean(registry, Policy(keep=0))
        return True

    def _fetch(self, registry: Registry, items: Iterable[Kept], home: Home) -> dict[str, Path]:
        """The files of the items by their hash, and nothing else in the folder of fetched files."""
        entries = {entry.sha256: entry for item in items for entry in item.files}
        self._drop(set(entries))
        self._make_room(registry, entries.values())
        return {entry.sha256: self._fetched(entry, home) for entry in entries.values()}

    def _refuse_old(self, state: State, seen: Seen) -> None:
        if state.serial < seen.serial:
            raise LinesideError(
                f"home sends the old state {state.serial} of {state.time}: this machine has seen {seen.serial} of "
                f"{seen.time}, and an older state is never taken"
            )
        if state.serial == seen.serial and state.content != seen.content:
            raise LinesideError(f"home signed two different states with the serial {state.serial}")
        try:
            age = datetime.now(UTC) - datetime.fromisoformat(state.time)
        except (ValueError, TypeError):
            raise LinesideError(f"the time of home's state is {state.time[:40]!r}; expected ISO 8601 in UTC") from None
        if age > FRESH:
            raise LinesideError(
                f"home vouched for this state last on {state.time}, and the clock here says {now()}: it is too old, or "
                "this clock is wrong"
            )

    def _wanted(self, state: State) -> tuple[dict[str, Served], Beside]:
        """The champions of the cell, and what runs beside them, by name."""
        found, beside = state.of_cell(self._cell), state.trials_of(self._cell)
        if lacking := [name for name in self._names if name not in found]:
            raise LinesideError(f"home has no champion of {', '.join(lacking)} (it has {', '.join(found) or 'none'})")
        found = {name: one for name, one in found.items() if not self._names or name in self._names}
        beside = {name: one for name, one in beside.items() if name in found}
        for one in (*found.values(), *(served for _, served in beside.values())):
            check_kinds(one)
        return found, beside

    def _lacking(self, registry: Registry, wanted: Sequence[Served]) -> Iterator[tuple[str, Kept]]:
        """Items that are not here, or not whole. Their files are read the first time, later only their sizes."""
        known: set[str] = set()
        for kind, item in (pair for one in wanted for pair in one.items):
            if item.hash not in known and not self._has(registry, kind, item):
                yield kind, item
            known.add(item.hash)

    def _has(self, registry: Registry, kind: str, wanted: Kept) -> bool:
        try:
            item = registry.item(wanted.hash)
        except KeyError:
            return False
        if not item.kept or item.kind != kind:
            return False
        if item.hash not in self._read:
            if problems(registry.path(item), item.hash):
                return False
            self._read.add(item.hash)
            return True
        files = registry.files(item)
        try:
            return all((files / entry.name).stat().st_size == entry.bytes for entry in wanted.files)
        except OSError:
            return False

    def _make_room(self, registry: Registry, entries: Collection[Entry]) -> None:
        """Delete models that are not needed. Raises LinesideError if the rest does not fit into the bound, or the new
        files not on the disk."""
        new = sum(entry.bytes for entry in entries)
        if not new:
            return
        left = clean(registry, Policy(keep=1, bytes=max(0, self._max_bytes - new))).left
        if left + new > self._max_bytes:
            raise LinesideError(
                f"{self.folder}: {new:,} bytes are to be fetched beside {left:,} in use, and --cache-gb allows "
                f"{self._max_bytes:,}"
            )
        there = sum(path.stat().st_size for path in (self.folder / BLOBS).iterdir())
        free = shutil.disk_usage(self.folder).free
        if free + there < new + SPARE:
            raise LinesideError(f"{self.folder}: the disk has {free:,} bytes free, and {new:,} are to be fetched")

    def _fetched(self, entry: Entry, home: Home) -> Path:
        place = self.folder / BLOBS / entry.sha256
        if not place.exists():
            home.fetch(entry, place)
        return place

    def _drop(self, wanted: set[str]) -> None:
        """Delete fetched files that are not wanted."""
        for path in (self.folder / BLOBS).iterdir():
            if path.name.removesuffix(".part") not in wanted:
                path.unlink()

    def _commit(
        self,
        registry: Registry,
        state: State,
        wanted: Mapping[str, Served],
        beside: Beside,
        lacking: Sequence[tuple[str, Kept]],
        blobs: Mapping[str, Path],
    ) -> None:
        with registry.staging() as place:
            staged = [_staged(registry, place, kind, item, blobs) for kind, item in lacking]
            with registry.transaction():
                self._refuse_old(state, _seen(registry))  # another process may use the folder too
                for one in staged:
                    registry.put(one)
                for one in wanted.values():
                    _promote(registry, one, state)
                for champion in registry.champions():
                    if champion.version.name not in wanted:
                        registry.event("follow", champion.version, reason=f"state {state.serial} of home")
                        registry.execute("DELETE FROM champions WHERE name = ?", champion.version.name)
                registry.set_trials(
                    Trial(_known(registry, served)[0], ALL_CELLS, tried.kind, tried.share, tried.since)
                    for tried, served in beside.values()
                )
                registry.set_setting(_SEEN, asdict(Seen(state.serial, state.content, state.time)))


def _seen(registry: Registry) -> Seen:
    return Seen(**registry.setting(_SEEN) or {})


def _staged(registry: Registry, place: Path, kind: str, wanted: Kept, blobs: Mapping[str, Path]) -> Staged:
    """An item made of fetched files. Each is linked: it needs no room twice, and is still there if this is killed."""
    folder = place / f"{kind}-{secrets.token_hex(4)}"
    for entry in wanted.files:
        target = folder / FILES / entry.name
        target.parent.mkdir(parents=True, exist_ok=True)
        os.chmod(blobs[entry.sha256], 0o444)
        os.link(blobs[entry.sha256], target)
    (folder / FILES).mkdir(parents=True, exist_ok=True)
    seal(folder, wanted.manifest)
    item = Item(wanted.hash, kind, wanted.about, wanted.manifest.bytes, True, now())
    there = registry.path(item)
    return Staged(item, folder, there.exists())


def _promote(registry: Registry, wanted: Served, state: State) -> None:
    """Inside a transaction: a version is the champion here."""
    own = registry.champion(wanted.name)
    version, anew = _known(registry, wanted)
    if own is not None and _label(own.version) == _label(version):
        return
    before = own.promotion if own is not None and not anew else None
    event = registry.event("promote", version, cell="", before=before, reason=f"state {state.serial} of home")
    registry.execute("INSERT OR REPLACE INTO champions VALUES (?, '', ?)", wanted.name, event)


def _known(registry: Registry, wanted: Served) -> tuple[Version, bool]:
    """Inside a transaction: a version and its evaluations are known here. Also whether home counts its versions anew,
    as a new registry does, so that the champions before are not of this line."""
    for evaluation in wanted.evaluations:
        row = (evaluation.hash, "model", wanted.model.hash)
        registry.execute("INSERT OR IGNORE INTO sources VALUES (?, ?, ?)", *row)
    version = Version(wanted.name, wanted.number, wanted.model.hash, wanted.registered)
    clash = "SELECT * FROM versions WHERE name = ? AND (number = ?) != (model = ?)"
    other = registry.rows(clash, version.name, version.number, version.model)
    row = (version.name, version.number, version.model, version.registered)
    registry.execute("INSERT OR REPLACE INTO versions VALUES (?, ?, ?, ?)", *row)
    return version, bool(other)


def _as_wanted(registry: Registry, wanted: Mapping[str, Served], beside: Beside) -> bool:
    """Whether all is as home wants it, so that nothing need be written."""
    there = {_label(champion.version) for champion in registry.champions()}
    tried = {(_label(one.version), one.kind, one.share) for one in registry.trials()}
    asked = {((s.name, s.number, s.model.hash), one.kind, one.share) for one, s in beside.values()}
    return there == {(one.name, one.number, one.model.hash) for one in wanted.values()} and tried == asked


def _label(version: Version) -> tuple[str, int, str]:
    return version.name, version.number, version.model


def _forget(registry: Registry) -> None:
    """Models that no version names any more count as deleted, and so do evaluations of deleted models."""
    named = "SELECT 1 FROM versions WHERE model = items.hash"
    kept = "SELECT 1 FROM sources JOIN items AS models ON models.hash = source WHERE item = items.hash AND models.kept"
    with registry.transaction():
        registry.execute(f"UPDATE items SET kept = 0 WHERE kind = 'model' AND NOT EXISTS ({named})")
        registry.execute(f"UPDATE items SET kept = 0 WHERE kind = 'evaluation' AND NOT EXISTS ({kept})")
