"""The registry's folder: one SQLite file that says what is there, and a folder for the files of each item.

    registry/registry.sqlite               items, what came from what, versions, champions, events
    registry/models/HASH/manifest.json     the files of an item: names, sizes, SHA-256
    registry/models/HASH/files/            the files; of suites, evaluations, recipes and verdicts likewise
    registry/tmp/                          what is being written, or deleted; what a gate has answered so far

An item is known by the hash of its content: registered twice it is kept once. Its folder appears by one rename, and
whatever counts changes in one transaction, so a process that is killed leaves the old state or the new one. Many
processes may read and write at once; a writer waits for the other. What was killed halfway lies in tmp/, where nothing
looks, until `registry gc` removes it.

SQLite's write-ahead log needs shared memory, so all processes that use a registry run on one machine.
"""

from __future__ import annotations

import fcntl
import getpass
import json
import os
import re
import secrets
import shutil
import socket
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from lineside.errors import LinesideError
from lineside.files import make_folder, rename
from lineside.registry.manifest import FILES, copy, problems
from lineside.strict import nearest

DATABASE, TEMPORARY = "registry.sqlite", "tmp"
SCHEMA = 1
BUSY_SECONDS = 30.0  # that a writer waits for another one
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
FOLDERS = {kind: f"{kind}s" for kind in ("model", "suite", "evaluation", "recipe", "verdict")}  # kinds with files
SHOWN = 12  # digits of a hash that people are shown; at least LEAST are asked for
LEAST = 6
LEAST_FREE = 1 << 16  # bytes, below which a disk counts as full: SQLite makes files of 32 KiB
ALL_CELLS = ""  # the cell of a champion that answers wherever a cell has none of its own
TrialKind = Literal["shadow", "canary"]
_TRIALS = "trials"  # key of the settings

_HASH = re.compile(r"[0-9a-f]{64}")

_TABLES = """
CREATE TABLE items (hash TEXT PRIMARY KEY, kind TEXT NOT NULL, about TEXT NOT NULL, bytes INTEGER NOT NULL,
    kept INTEGER NOT NULL, made TEXT NOT NULL);
CREATE TABLE sources (item TEXT NOT NULL REFERENCES items, role TEXT NOT NULL, source TEXT NOT NULL,
    PRIMARY KEY (item, role, source));
CREATE TABLE versions (name TEXT NOT NULL, number INTEGER NOT NULL, model TEXT NOT NULL REFERENCES items,
    registered TEXT NOT NULL, PRIMARY KEY (name, number), UNIQUE (name, model));
CREATE TABLE events (id INTEGER PRIMARY KEY AUTOINCREMENT, time TEXT NOT NULL, what TEXT NOT NULL, who TEXT NOT NULL,
    name TEXT, number INTEGER, cell TEXT, before INTEGER REFERENCES events, verdict TEXT, reason TEXT);
CREATE TABLE champions (name TEXT NOT NULL, cell TEXT NOT NULL, promotion INTEGER NOT NULL REFERENCES events,
    PRIMARY KEY (name, cell));
CREATE TABLE verdicts (challenger TEXT NOT NULL REFERENCES items, champion TEXT NOT NULL REFERENCES items,
    outcome TEXT NOT NULL, item TEXT NOT NULL REFERENCES items, time TEXT NOT NULL,
    id INTEGER PRIMARY KEY AUTOINCREMENT);
CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class Item:
    """Something that is known by its content. `kept`: its files are here; a deleted item stays as a record."""

    hash: str
    kind: str
    about: Mapping[str, Any]
    bytes: int
    kept: bool
    made: str


@dataclass(frozen=True, slots=True)
class Version:
    """A model under a name. Versions of a name count from 1."""

    name: str
    number: int
    model: str
    registered: str

    @property
    def label(self) -> str:
        """`NAME@VERSION`."""
        return f"{self.name}@{self.number}"


@dataclass(frozen=True, slots=True)
class Champion:
    """The version that answers for a cell. `promotion`: the event that made it the champion."""

    version: Version
    cell: str
    promotion: int
    since: str


@dataclass(frozen=True, slots=True)
class Trial:
    """A version that runs beside the champion of a cell. shadow: it answers after the champion has, and only the
    champion's answer is used. canary: it really answers. `share`: of the requests, above 0 and at most 1."""

    version: Version
    cell: str
    kind: TrialKind
    share: float
    since: str


@dataclass(frozen=True, slots=True)
class Staged:
    """An item whose files are written, and which is not in the registry yet. `repairs`: the registry has it, and its
    files there are gone or damaged."""

    item: Item
    folder: Path
    repairs: bool


class Registry:
    """An open registry. Use it in a `with` block."""

    def __init__(self, folder: Path, *, create: bool = False) -> None:
        """`create`: make it if there is none. Raises LinesideError if there is none, or it cannot be opened."""
        self.folder = folder
        self._unwritable: sqlite3.Error | None = None
        path = folder / DATABASE
        if not create and not path.is_file():
            raise LinesideError(
                f"{folder}: no registry here ({DATABASE}); `lineside register RUN --name NAME` makes one, and "
                "--registry or LINESIDE_REGISTRY says where it lies"
            )
        with self._named():
            if create:
                make_folder(folder)
                with _alone(folder):  # two processes that make it at once
                    self._db = _connect(path, "mode=rwc")
                    self._make()
            else:
                self._db, self._unwritable = _connect_to_read(path)
            self._check_schema()

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def reopen(self) -> None:
        """Open the file anew: on a disk that was full it could only be read. Raises LinesideError."""
        with self._named():
            self._db.close()
            self._db, self._unwritable = _connect_to_read(self.folder / DATABASE)

    # --- the file

    def _make(self) -> None:
        if self._schema() == 0:
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.executescript(f"BEGIN; {_TABLES} PRAGMA user_version = {SCHEMA}; COMMIT")

    def _schema(self) -> int:
        return self._db.execute("PRAGMA user_version").fetchone()[0]

    def _check_schema(self) -> None:
        if (found := self._schema()) != SCHEMA:
            raise LinesideError(
                f"{self.folder / DATABASE}: version {found}, and this lineside knows {SCHEMA}"
                f"{'; install a newer one' if found > SCHEMA else ': not a registry'}"
            )

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Errors of the file system and of SQLite become a LinesideError that says what to do."""
        path = self.folder / DATABASE
        try:
            yield
        except sqlite3.Error as error:
            raise LinesideError(f"{path}: {_told(error, self.folder)}; nothing was changed") from error
        except FileExistsError:
            raise LinesideError(f"{self.folder}: a file; expected the folder of a registry") from None
        except OSError as error:
            raise LinesideError(f"{error.filename or self.folder}: {error.strerror or error}") from error

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is changed in the `with` block is changed at once, or nothing if it raises. One writer at a time;
        another one waits."""
        with self._named():
            if self._unwritable is not None:
                raise self._unwritable
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # after some errors SQLite has already rolled back
                    self._db.execute("ROLLBACK")
                raise

    def rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        """All rows of a query."""
        with self._named():
            return self._db.execute(query, values).fetchall()

    def execute(self, statement: str, *values: Any) -> int:
        """Change something inside a transaction; returns the number of the row."""
        return self._db.execute(statement, values).lastrowid or 0

    def setting(self, name: str) -> Any:
        """What was kept last under this name; None if nothing was."""
        found = self.rows("SELECT value FROM settings WHERE key = ?", name)
        return json.loads(found[0]["value"]) if found else None

    def set_setting(self, name: str, value: Any) -> None:
        """Inside a transaction: keep plain data under a name."""
        self.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", name, json.dumps(value))

    # --- items

    def path(self, item: Item) -> Path:
        """The folder of an item's manifest and files."""
        return self.folder / FOLDERS[item.kind] / item.hash

    def files(self, item: Item) -> Path:
        """The folder of an item's files; of a model it is the checkpoint."""
        return self.path(item) / FILES

    def item(self, hash: str) -> Item:
        """Raises KeyError for a hash that is not known."""
        found = self.rows("SELECT * FROM items WHERE hash = ?", hash)
        if not found:
            raise KeyError(hash)
        return _item(found[0])

    def items(self, kind: str) -> list[Item]:
        """The items of a kind, the oldest first."""
        return [_item(row) for row in self.rows("SELECT * FROM items WHERE kind = ? ORDER BY made, rowid", kind)]

    def sources(self, hash: str) -> list[tuple[str, str]]:
        """What an item came from: (role, hash). The hash of something that was never registered stays a hash."""
        rows = self.rows("SELECT role, source FROM sources WHERE item = ? ORDER BY role, source", hash)
        return [(row["role"], row["source"]) for row in rows]

    def made_from(self, hash: str, role: str) -> list[Item]:
        """The items that came from this one in this role, the oldest first."""
        query = "SELECT items.* FROM items JOIN sources ON item = hash WHERE source = ? AND role = ?"
        return [_item(row) for row in self.rows(f"{query} ORDER BY made, items.rowid", hash, role)]

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """A new folder in tmp/ for what is being written. It is gone after the `with` block, and locked during it."""
        with self._named():
            make_folder(self.folder / TEMPORARY)
            folder = self.folder / TEMPORARY / f"{os.getpid()}-{secrets.token_hex(4)}"
            folder.mkdir()
            lock = _flock(folder, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            remove(folder)
            os.close(lock)

    @contextmanager
    def unfinished(self, name: str) -> Iterator[Path]:
        """A folder in tmp/ for work that goes on after a kill or an error: it is then there again by its name. It is
        gone after the `with` block, and `registry gc` leaves it alone during it."""
        folder = self.folder / TEMPORARY / name
        with self._named():
            make_folder(folder)
            lock = _flock(folder, fcntl.LOCK_SH)
        try:
            yield folder
            remove(folder)
        finally:
            os.close(lock)

    def stage(self, staging: Path, kind: str, files: Mapping[str, Path], about: Mapping[str, Any]) -> Staged:
        """Copy the files of an item to `staging`. Raises LinesideError as `manifest.copy` does."""
        folder = staging / f"{kind}-{secrets.token_hex(4)}"
        found = copy(files, folder, f"copying the {kind}")
        item = Item(found.hash, kind, about, found.bytes, True, now())
        place = self.path(item)
        return Staged(item, folder, place.exists() and bool(problems(place, item.hash)))

    def put(self, staged: Staged, sources: Sequence[tuple[str, str]] = ()) -> Item:
        """Inside a transaction: an item becomes part of the registry. One that is there already stays as it is, unless
        its files are gone or damaged: then they are replaced."""
        item, place = staged.item, self.path(staged.item)
        if staged.repairs and place.exists():
            rename(place, staged.folder.with_name(f"damaged-{secrets.token_hex(4)}"))
        if not place.exists():
            make_folder(place.parent)
            rename(staged.folder, place)
        self.note(item, sources)
        return item

    def note(self, item: Item, sources: Sequence[tuple[str, str]] = ()) -> None:
        """Inside a transaction: an item becomes known, or is kept again."""
        self.execute(
            "INSERT INTO items VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (hash) DO UPDATE SET kept = excluded.kept",
            item.hash, item.kind, json.dumps(item.about), item.bytes, item.kept, item.made,
        )  # fmt: skip
        for role, source in sources:
            self.execute("INSERT OR IGNORE INTO sources VALUES (?, ?, ?)", item.hash, role, source)

    def check(self, item: Item, what: str) -> Path:
        """The files of an item, all read and compared with their hashes. `what`: its name in a message.

        Raises LinesideError if they were deleted, are gone or are damaged.
        """
        if not item.kept:
            raise LinesideError(
                f"{what}: its files were deleted by `registry gc`; register it again to bring them back"
            )
        if found := problems(self.path(item), item.hash):
            more = f", and {len(found) - 1} more" if len(found) > 1 else ""
            raise LinesideError(f"{what}: its files are not whole: {found[0]}{more}. Register it again to repair it")
        return self.files(item)

    def lease(self, hash: str) -> Lease:
        """Keep a model's files while they are in use, by any process: `registry gc` leaves them alone.

        Raises LinesideError if they are gone, or are being deleted.
        """
        path = self.path(self.item(hash))
        try:
            return Lease(_flock(path, fcntl.LOCK_SH | fcntl.LOCK_NB))
        except OSError as error:
            raise LinesideError(f"{path}: {error.strerror or 'is being deleted'}") from None

    # --- versions and champions

    def names(self) -> list[str]:
        """The names of models."""
        return [row["name"] for row in self.rows("SELECT DISTINCT name FROM versions ORDER BY name")]

    def versions(self, name: str | None = None) -> list[Version]:
        """All versions, or those of a name. Raises LinesideError for a name that is not known."""
        if name is not None and name not in (known := self.names()):
            raise LinesideError(
                f"no model named {name!r} in {self.folder}{nearest(name, known)} (names here: "
                f"{', '.join(known) or 'none'})"
            )
        rows = self.rows("SELECT * FROM versions WHERE ? IS NULL OR name = ? ORDER BY name, number", name, name)
        return [Version(*row) for row in rows]

    def version(self, text: str) -> Version:
        """The version that `NAME@VERSION` means, `NAME` (its champion of all cells), or the first digits of a hash.

        Raises LinesideError that names the nearest.
        """
        name, at, number = text.partition("@")
        if not at and name not in self.names() and re.fullmatch(f"[0-9a-f]{{{LEAST},64}}", name):
            found = [version for version in self.versions() if version.model.startswith(name)]
            if len(found) > 1:
                raise LinesideError(f"{text} may be {' or '.join(version.label for version in found)}: say which")
            if found:
                return found[0]
        if name not in self.names() and Path(text).exists():
            raise LinesideError(
                f"{text}: a folder; expected a version, such as bins@2: `lineside register {text} --name NAME` makes "
                "one of it"
            )
        known = self.versions(name)
        if not at:
            if (champion := self.champion(name)) is None:
                raise LinesideError(
                    f"{name} has no champion: say which version is meant, such as {known[-1].label}; `lineside promote "
                    f"{known[-1].label}` makes it the champion"
                )
            return champion.version
        for version in known:
            if str(version.number) == number:
                return version
        have = f"version {known[0].number}" if len(known) == 1 else f"versions {known[0].number} to {known[-1].number}"
        raise LinesideError(f"{name} has no version {number!r}: it has {have}")

    def add_version(self, name: str, model: str) -> tuple[Version, bool]:
        """Inside a transaction: the version of a model under a name, and whether it is new."""
        check_name(name)
        for row in self.rows("SELECT * FROM versions WHERE name = ? AND model = ?", name, model):
            return Version(*row), False
        last = self.rows("SELECT coalesce(max(number), 0) AS number FROM versions WHERE name = ?", name)[0]["number"]
        version = Version(name, last + 1, model, now())
        self.execute("INSERT INTO versions VALUES (?, ?, ?, ?)", name, version.number, model, version.registered)
        self.event("register", version)
        return version, True

    def champions(self, name: str | None = None) -> list[Champion]:
        """The champions of all names, or of one; that of all cells comes first."""
        rows = self.rows(
            "SELECT versions.*, champions.cell AS cell, promotion, events.time AS since FROM champions JOIN events ON "
            "events.id = promotion JOIN versions ON versions.name = champions.name AND versions.number = events.number "
            "WHERE ? IS NULL OR champions.name = ? ORDER BY champions.name, champions.cell", name, name,
        )  # fmt: skip
        return [Champion(Version(*row[:4]), row["cell"], row["promotion"], row["since"]) for row in rows]

    def champion(self, name: str, cell: str = ALL_CELLS) -> Champion | None:
        """The champion of a cell that has one of its own; without a cell that of all others."""
        return next((found for found in self.champions(name) if found.cell == cell), None)

    def answering(self, name: str, cell: str = ALL_CELLS) -> Champion | None:
        """The champion that answers in a cell: its own, else that of all cells."""
        return self.champion(name, cell) or self.champion(name)

    def trials(self) -> list[Trial]:
        """What runs beside the champions of all names; that of all cells comes first."""
        return [Trial(**{**one, "version": Version(**one["version"])}) for one in self.setting(_TRIALS) or ()]

    def set_trials(self, trials: Iterable[Trial]) -> None:
        """Inside a transaction: these run, and no others."""
        by_place = sorted(trials, key=lambda one: (one.version.name, one.cell))
        self.set_setting(_TRIALS, [asdict(one) for one in by_place])

    def event(self, what: str, version: Version | None = None, **fields: Any) -> int:
        """Inside a transaction: write into the history; returns the event's number."""
        row = {"time": now(), "what": what, "who": _who(), **fields}
        if version is not None:
            row |= {"name": version.name, "number": version.number}
        marks = ", ".join("?" * len(row))
        return self.execute(f"INSERT INTO events ({', '.join(row)}) VALUES ({marks})", *row.values())

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        """The history of all names, or of one, the oldest first."""
        query = "SELECT * FROM events WHERE ? IS NULL OR name = ? ORDER BY id"
        return [dict(row) for row in self.rows(query, name, name)]


class Lease:
    """Files that are in use until it is closed, or its process ends."""

    def __init__(self, handle: int) -> None:
        self._handle: int | None = handle

    def close(self) -> None:
        """The files may be deleted."""
        if self._handle is not None:
            with suppress(OSError):
                fcntl.flock(self._handle, fcntl.LOCK_UN)  # a child process that inherited the handle holds nothing
            os.close(self._handle)
            self._handle = None


def check_name(name: str) -> None:
    """Raises LinesideError for what is no name of a model."""
    if not NAME.fullmatch(name):
        raise LinesideError(f"name {name!r}: expected up to 64 letters, digits, _, . and -, such as bins")


def now() -> str:
    """The time in UTC, ISO 8601, whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def short(hash: str) -> str:
    """The first digits of a hash, for people."""
    return hash[:SHOWN]


def remove(folder: Path) -> None:
    """Delete a folder, its read-only folders too."""
    for path in (folder, *folder.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            with suppress(OSError):
                path.chmod(0o755)
    shutil.rmtree(folder, ignore_errors=True)


def seize(folder: Path, stack: ExitStack) -> bool:
    """Whether no process holds a lease on a folder; none can get one until `stack` ends. A folder that is gone is free;
    one that cannot be locked counts as used."""
    try:
        stack.callback(os.close, _flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB))
        return True
    except FileNotFoundError:
        return True
    except OSError:
        return False


_TOLD = {  # by the start of SQLite's name of an error
    "SQLITE_BUSY": f"another process has been writing for more than {BUSY_SECONDS:.0f} seconds: run it again",
    "SQLITE_NOTADB": "not a registry's file",
    "SQLITE_CORRUPT": "damaged: put a copy of it back",
    "SQLITE_FULL": "the disk is full: make room and run the same command again",
}
_STORAGE = ("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_IOERR")


def _told(error: sqlite3.Error, folder: Path) -> str:
    """What an error of SQLite means. Its own names do not tell a full disk from one that is read-only."""
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith(_STORAGE):
        if not os.access(folder, os.W_OK):
            return "read-only: nothing can be registered or promoted here"
        with suppress(OSError):
            free = os.statvfs(folder)
            if free.f_bavail * free.f_frsize < LEAST_FREE:
                return _TOLD["SQLITE_FULL"]
    return next((told for start, told in _TOLD.items() if name.startswith(start)), f"SQLite says: {error}")


def _connect(path: Path, how: str) -> sqlite3.Connection:
    """`how`: parameters of SQLite's URI, so that a file which has just gone is not made anew."""
    place = f"{path.resolve().as_uri()}?{how}"
    found = sqlite3.connect(place, timeout=BUSY_SECONDS, isolation_level=None, uri=True)
    found.row_factory = sqlite3.Row
    found.execute("PRAGMA foreign_keys = ON")
    found.execute("PRAGMA synchronous = FULL")  # a promotion that was told holds after a power cut
    found.execute("PRAGMA user_version").fetchone()
    return found


def _connect_to_read(path: Path) -> tuple[sqlite3.Connection, sqlite3.Error | None]:
    """A connection to a file that is there, and the error that makes it one to read only. On read-only storage, or a
    full disk, SQLite cannot make the shared memory of its log; the file can still be read if there is no log, so that
    nobody is writing."""
    try:
        return _connect(path, "mode=rw"), None
    except sqlite3.OperationalError as error:
        log = path.with_name(f"{path.name}-wal")
        if not error.sqlite_errorname.startswith(_STORAGE) or (log.exists() and log.stat().st_size):
            raise
        return _connect(path, "mode=ro&immutable=1"), error


def _flock(folder: Path, how: int) -> int:
    """A lock on a folder itself, which works on read-only storage too; returns its handle."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, how)
        return handle
    except OSError:
        os.close(handle)
        raise


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    handle = _flock(folder, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(handle)


def _item(row: sqlite3.Row) -> Item:
    """The hash is the name of a folder, so it is checked, whoever wrote the file."""
    try:
        about = json.loads(row["about"])
        if not isinstance(about, dict) or (row["kind"] in FOLDERS and not _HASH.fullmatch(row["hash"])):
            raise ValueError
    except (ValueError, TypeError, RecursionError):
        raise LinesideError(
            f"{DATABASE}: the entry of {str(row['hash'])[:SHOWN]!r} is damaged: put a copy of the file back"
        ) from None
    return Item(row["hash"], row["kind"], about, row["bytes"], bool(row["kept"]), row["made"])


def _who() -> str:
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in a container
        name = str(os.getuid())
    return f"{name}@{socket.gethostname()}"
