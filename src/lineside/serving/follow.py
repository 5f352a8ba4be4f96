"""The champions of a registry as what a server serves: it follows every promotion, rollback and trial."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from lineside.errors import LinesideError
from lineside.registry.store import ALL_CELLS, DATABASE, Lease, Registry, Version
from lineside.serving.models import Release, Route, Trial

LOOK_SECONDS = 30.0  # after which the registry is read in any case
SETTLED_SECONDS = 10.0  # a change that is written becomes visible a little later, when it is flushed to disk

_Stamp = tuple[tuple[int, int, int], ...]


class Champions:
    """What `Models` serves of a registry. Without names it is every name that has a champion now."""

    def __init__(self, folder: Path, names: Sequence[str] = ()) -> None:
        """Raises LinesideError for a name that is not known or has no champion, and where there is none at all."""
        self._folder = folder.resolve()
        with Registry(folder) as registry:
            for name in names:
                registry.versions(name)
            self._names = tuple(names) or tuple(dict.fromkeys(found.version.name for found in registry.champions()))
            if not self._names:
                raise LinesideError(
                    f"{folder}: no champion to serve; `lineside promote NAME@VERSION` makes one (`lineside models` "
                    "lists the versions)"
                )
        self._seen: _Stamp | None = None
        self._known: Mapping[Route, Release] = {}
        self._trials: Mapping[Route, Trial] = {}
        self._until = 0.0

    def wanted(self) -> Mapping[Route, Release]:
        """The champions by name and cell. The registry is read only if its files have changed, or after a while."""
        stamp = self._stamp()
        recent = any(abs(time.time() - changed / 1e9) < SETTLED_SECONDS for *_, changed in stamp)
        if stamp != self._seen or recent or time.monotonic() > self._until:
            (self._known, self._trials), self._seen = self._read(), stamp
            self._until = time.monotonic() + LOOK_SECONDS
        return self._known

    def trials(self) -> Mapping[Route, Trial]:
        """The trials by name and cell, as of the last look."""
        return self._trials

    def hold(self, release: Release) -> Lease:
        """A lease on the files of a release, each of which was read and compared with its hash.

        Raises LinesideError if they are not whole.
        """
        with Registry(self._folder) as registry:
            lease = registry.lease(release.version)
            try:
                registry.check(registry.item(release.version), release.label)
            except BaseException:
                lease.close()
                raise
            return lease

    def _read(self) -> tuple[dict[Route, Release], dict[Route, Trial]]:
        """The champions and the trials."""
        found: dict[Route, Release] = {}
        with Registry(self._folder) as registry:
            for name in self._names:
                if registry.champion(name, ALL_CELLS) is None:
                    raise LinesideError(
                        f"{name} has no champion: `lineside promote {registry.versions(name)[-1].label}` makes one"
                    )
                found |= {
                    (name, champion.cell): _release(registry, champion.version) for champion in registry.champions(name)
                }
            trials = {
                (one.version.name, one.cell): Trial(
                    _release(registry, one.version, spare=one.kind == "shadow"), one.share, one.kind
                )
                for one in registry.trials()
                if one.version.name in self._names
            }
        return found, trials

    def _stamp(self) -> _Stamp:
        """What changes whenever the registry does."""
        stamps = []
        for name in (DATABASE, f"{DATABASE}-wal"):
            with suppress(OSError):
                now = (self._folder / name).stat()
                stamps.append((now.st_ino, now.st_size, now.st_mtime_ns))
        return tuple(stamps)


def _release(registry: Registry, version: Version, *, spare: bool = False) -> Release:
    item = registry.item(version.model)
    judged = tuple(registry.files(one) / f"{one.about['name']}.json" for one in registry.made_from(item.hash, "model"))
    return Release(version.name, version.label, registry.files(item), item.hash, judged, spare)
