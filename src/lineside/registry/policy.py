"""What is deleted to bound the disk. A deleted model stays as a record: its version, history and evaluations.

Never deleted: champions, the champion before each (a rollback needs it), versions on trial, what a running server uses,
and everything that is not a model (suites are what later models are judged on; the rest is small).
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from lineside.errors import LinesideError
from lineside.files import rename
from lineside.registry.promotion import line_of
from lineside.registry.store import FOLDERS, TEMPORARY, Item, Registry, Version, remove, seize

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_POLICY = "policy"  # key of the settings


@dataclass(frozen=True, slots=True)
class Policy:
    """`keep`: newest versions of each name that stay, beside those in use. `bytes`: as much as all files may take
    (None: no bound); the oldest versions go until they take less, also those that `keep` would leave."""

    keep: int = 3
    bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What was deleted (`bytes` of it), and what is left."""

    deleted: tuple[Version, ...]
    bytes: int
    left: int
    """Bytes of all files that stay."""
    busy: tuple[Version, ...]
    """Versions that would be deleted, but a server uses them."""
    leftovers: int
    """Folders that killed processes had left."""


def size_of(text: str) -> int:
    """Bytes of `500MB`, `20 GB` or a number. Raises LinesideError."""
    found = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,3})?) ?([KMGT]?)B?", text.strip().upper())
    if found is None:
        raise LinesideError(f"{text!r}: expected a size such as 500MB or 20GB")
    return int(float(found[1]) * _UNITS[found[2]])


def set_policy(registry: Registry, policy: Policy) -> None:
    """Let every `register` apply this policy."""
    with registry.transaction():
        registry.set_setting(_POLICY, asdict(policy))


def policy_of(registry: Registry) -> Policy | None:
    """The policy that every `register` applies, if there is one."""
    found = registry.setting(_POLICY)
    return None if found is None else Policy(**found)


def removable(models: Sequence[tuple[str, Item]], safe: set[str], policy: Policy, total: int) -> list[Item]:
    """The models to delete, the oldest first.

    `models`: (name, model), by age; one may have several names. `safe`: hashes that stay. `total`: bytes of all files.
    """
    by_name: dict[str, list[str]] = {}
    for name, model in models:
        by_name.setdefault(name, []).append(model.hash)
    recent = {hash for hashes in by_name.values() for hash in hashes[max(0, len(hashes) - policy.keep) :]}
    free = {model.hash: model for _, model in models if model.hash not in safe}
    chosen = {hash: model for hash, model in free.items() if hash not in recent}
    rest = total - sum(model.bytes for model in chosen.values())
    for hash, model in free.items():
        if policy.bytes is not None and rest > policy.bytes and hash not in chosen:
            chosen[hash] = model
            rest -= model.bytes
    return list(chosen.values())


def clean(registry: Registry, policy: Policy, *, spare: str = "") -> Cleaned:
    """Delete models by the policy, and what killed processes have left. `spare`: the hash of a model that stays.

    First go the files of killed processes, which needs no room: they may have filled the disk. Then the models count as
    deleted, and last their folders go: whoever registers one again meanwhile keeps it. Raises LinesideError as
    `Registry.transaction` does.
    """
    with ExitStack() as stack:
        old = [path for path in (registry.folder / TEMPORARY).glob("*") if seize(path, stack)]
        for path in old:
            remove(path)
        if old:
            registry.reopen()
        seized: dict[str, bool] = {}
        with registry.transaction():
            versions = sorted(registry.versions(), key=lambda version: (version.registered, version.number))
            items = {version.model: registry.item(version.model) for version in versions}
            models = [(version.name, items[version.model]) for version in versions if items[version.model].kept]
            safe, total = {spare, *_safe(registry)}, _bytes(registry)
            while True:
                chosen = removable(models, safe, policy, total)
                for item in chosen:
                    if item.hash not in seized:
                        seized[item.hash] = seize(registry.path(item), stack)
                busy = {item.hash for item in chosen if not seized[item.hash]}
                if not busy:
                    break
                safe |= busy
            gone = {item.hash for item in chosen}
            deleted = tuple(version for version in versions if version.model in gone)
            for version in deleted:
                registry.execute("UPDATE items SET kept = 0 WHERE hash = ?", version.model)
                registry.event("delete", version)
            left = _bytes(registry)
        with registry.transaction():
            leftovers = [path for path in _unknown(registry) if path.name in gone or seize(path, stack)]
            trash = registry.folder / TEMPORARY / f"{os.getpid()}-{secrets.token_hex(4)}"
            for path in leftovers:
                trash.mkdir(parents=True, exist_ok=True)
                rename(path, trash / path.name)
        remove(trash)
    busy_versions = tuple(version for version in versions if seized.get(version.model) is False)
    killed = len([path for path in (*leftovers, *old) if path.name not in gone])
    return Cleaned(deleted, total - left, left, busy_versions, killed)


def _safe(registry: Registry) -> set[str]:
    """Champions, the one before each, and versions on trial."""
    champions = {
        version.model
        for champion in registry.champions()
        for version in line_of(registry, champion.version.name, champion.cell)[:2]
    }
    return champions | {trial.version.model for trial in registry.trials()}


def _bytes(registry: Registry) -> int:
    return registry.rows("SELECT coalesce(sum(bytes), 0) AS bytes FROM items WHERE kept")[0]["bytes"]


def _unknown(registry: Registry) -> Iterator[Path]:
    """Folders of items that are deleted, or that a killed process never registered."""
    kept = {row["hash"] for row in registry.rows("SELECT hash FROM items WHERE kept")}
    for name in FOLDERS.values():
        yield from (path for path in (registry.folder / name).glob("*") if path.name not in kept)
