"""Items and versions by their content, names that are found or refused, and folders that cannot be used."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from lineside.errors import LinesideError
from lineside.registry.manifest import FILES, MANIFEST, Manifest, copy, problems, read_manifest
from lineside.registry.store import DATABASE, Registry
from tests.registry.conftest import add


def test_versions_count_by_name_and_equal_content_is_one_model(registry: Registry) -> None:
    first, second = add(registry, "bins", "a"), add(registry, "bins", "b")
    again, other = add(registry, "bins", "a"), add(registry, "kits", "a")
    assert [v.label for v in (first, second, again, other)] == ["bins@1", "bins@2", "bins@1", "kits@1"]
    assert first.model == other.model != second.model
    assert len(registry.items("model")) == 2 and len(list((registry.folder / "models").iterdir())) == 2
    assert [event["what"] for event in registry.events()] == ["register"] * 3
    assert not list((registry.folder / "tmp").iterdir())


def test_the_hash_is_that_of_the_content_alone(registry: Registry, tmp_path: Path) -> None:
    version = add(registry, "bins", "a")
    (tmp_path / "elsewhere").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "elsewhere" / name).write_bytes((registry.files(registry.item(version.model)) / name).read_bytes())
    files = {name: tmp_path / "elsewhere" / name for name in ("model.safetensors", "config.json")}
    assert copy(files, tmp_path / "copy", "copying").hash == version.model
    assert copy({"x": files["config.json"], **files}, tmp_path / "more", "copying").hash != version.model
    moved = {"a/model.safetensors": files["model.safetensors"], "config.json": files["config.json"]}
    assert copy(moved, tmp_path / "moved", "copying").hash != version.model
    assert problems(tmp_path / "moved", read_manifest(tmp_path / "moved").hash) == []


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda files: (files / "model.safetensors").unlink(), "model.safetensors is gone"),
        (lambda files: (files / "model.safetensors").write_text("b"), "model.safetensors has changed"),
        (lambda files: (files / "model.safetensors").write_text("ab"), "has 2 bytes instead of 1"),
        (lambda files: (files / "calibration.json").write_text("{}"), "calibration.json is new"),
        (lambda files: (files.parent / MANIFEST).unlink(), "manifest.json: No such file"),
        (lambda files: (files.parent / MANIFEST).write_text("{}"), "not a list of files"),
        (lambda files: (files.parent / MANIFEST).write_text(Manifest(files=()).model_dump_json()), "other files"),
    ],
)
def test_damage_of_every_kind_is_named_and_registering_again_repairs_it(registry: Registry, damage, said: str) -> None:
    version = add(registry, "bins", "a")
    item = registry.item(version.model)
    assert registry.check(item, "bins@1") == registry.files(item)
    for path in (registry.files(item), *registry.files(item).iterdir()):
        path.chmod(0o755)
    damage(registry.files(item))
    with pytest.raises(LinesideError, match=f"bins@1: its files are not whole: .*{said}.*[Rr]egister it again"):
        registry.check(item, "bins@1")
    assert add(registry, "bins", "a") == version
    registry.check(item, "bins@1")


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../b", "a//b", ".", "", "a\\b", "a\nb"])
def test_a_list_of_files_names_nothing_outside_its_folder(name: str) -> None:
    entry = {"name": name, "bytes": 1, "sha256": "0" * 64}
    with pytest.raises(ValueError, match="name"):
        Manifest.model_validate_json(json.dumps({"version": 1, "files": [entry]}))


@pytest.mark.parametrize("change", ["hash = '../../' || hash", "about = '[1]'", "about = '{'", "hash = x'00ff'"])
def test_an_entry_that_is_no_hash_names_no_folder(registry: Registry, change: str) -> None:
    add(registry, "bins", "a")
    registry.execute("PRAGMA foreign_keys = OFF")
    registry.execute(f"UPDATE items SET {change}")
    with pytest.raises(LinesideError, match=r"the entry of .* is damaged"):
        registry.items("model")


def test_a_list_of_files_has_no_file_twice() -> None:
    entry = {"name": "a", "bytes": 1, "sha256": "0" * 64}
    with pytest.raises(ValueError, match="listed twice"):
        Manifest.model_validate_json(json.dumps({"version": 1, "files": [entry, entry]}))


def test_what_is_meant_is_found_or_refused_with_the_nearest(registry: Registry) -> None:
    first, second = add(registry, "bins", "a"), add(registry, "bins", "b")
    assert registry.version("bins@2") == second and registry.version(first.model[:8]) == first
    add(registry, "kits", "b")
    for text, said in {
        second.model[:8]: "may be bins@2 or kits@1: say which",
        "bin@1": "no model named 'bin'.*did you mean 'bins'",
        "bins@3": "no version '3': it has versions 1 to 2",
        "bins@": "no version ''",
        "bins@01": "no version '01'",
        "bins": "bins has no champion: say which version is meant, such as bins@2",
        "0" * 64: "no model named '0",
    }.items():
        with pytest.raises(LinesideError, match=said):
            registry.version(text)
    with pytest.raises(LinesideError, match=r"a folder; expected a version, .*: `lineside register .*sources --name"):
        registry.version(str(registry.folder.parent / "sources"))
    for name in ("", "a@b", "a/b", "-a", "a b", "x" * 65, "../x"):
        with pytest.raises(LinesideError, match="name"):
            add(registry, name, "c")
    assert registry.versions("bins") == [first, second]


def test_a_failed_transaction_changes_nothing(registry: Registry) -> None:
    add(registry, "bins", "a")
    before = list(registry._db.iterdump())
    with pytest.raises(ZeroDivisionError), registry.transaction():
        registry.add_version("kits", registry.items("model")[0].hash)
        raise ZeroDivisionError
    assert list(registry._db.iterdump()) == before


def test_folders_that_are_no_registry_are_named(tmp_path: Path) -> None:
    with pytest.raises(LinesideError, match=r"no registry here .*lineside register RUN --name NAME.*LINESIDE_REGISTRY"):
        Registry(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    (tmp_path / "file").touch()
    with pytest.raises(LinesideError, match="a file; expected the folder"):
        Registry(tmp_path / "file", create=True)
    for name, content, said in (
        ("text", b"no database at all, but long enough to be one" * 20, "not a registry's file"),
        ("empty", b"", "version 0, and this lineside knows 1: not a registry"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / DATABASE).write_bytes(content)
        with pytest.raises(LinesideError, match=said):
            Registry(tmp_path / name)
    Registry(tmp_path / "newer", create=True).close()
    db = sqlite3.connect(tmp_path / "newer" / DATABASE)
    db.execute("PRAGMA user_version = 9")
    db.close()
    with pytest.raises(LinesideError, match=r"version 9.*install a newer one"):
        Registry(tmp_path / "newer")


def test_files_that_change_while_they_are_copied_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "a"
    source.write_text("a")
    fsync = __import__("os").fsync

    def train_on(handle: int) -> None:
        source.write_text("longer")
        fsync(handle)

    monkeypatch.setattr("lineside.registry.manifest.os.fsync", train_on)
    with pytest.raises(LinesideError, match="changed while it was copied"):
        copy({"a": source}, tmp_path / "copy", "copying")
    assert (tmp_path / "copy" / FILES / "a").read_text() == "a"
