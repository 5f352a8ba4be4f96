"""What is deleted to bound the disk, and what never is."""

from __future__ import annotations

import pytest

from lineside.errors import LinesideError
from lineside.registry.policy import Policy, clean, policy_of, removable, set_policy, size_of
from lineside.registry.promotion import promote
from lineside.registry.store import Item, Registry
from tests.registry.conftest import add, judged


def models(*names: str) -> list[tuple[str, Item]]:
    """Models of 10 bytes: ("bins", a), of "bins:a"."""
    split = [name.split(":") for name in names]
    return [(name, Item(hash, "model", {}, 10, True, "")) for name, hash in split]


@pytest.mark.parametrize(
    ("keep", "most", "safe", "gone"),
    [
        (2, None, "", "ab"),
        (2, None, "a", "b"),
        (9, None, "", ""),
        (0, None, "", "abcd"),
        (9, 25, "", "ab"),  # 40 bytes: the oldest go until 25 are enough
        (9, 25, "a", "bc"),
        (9, 0, "abcd", ""),
        (3, 30, "", "a"),
        (3, 20, "", "ab"),
    ],
)
def test_the_oldest_go_first(keep: int, most: int | None, safe: str, gone: str) -> None:
    found = models("bins:a", "bins:b", "bins:c", "bins:d")
    assert "".join(m.hash for m in removable(found, set(safe), Policy(keep, most), 40)) == gone


def test_each_name_keeps_its_newest_and_a_model_of_two_names_stays_for_either() -> None:
    found = models("bins:a", "kits:b", "bins:c", "kits:c", "bins:d", "bins:a")
    assert [m.hash for m in removable(found, set(), Policy(1), 40)] == ["b", "d"]


def test_champions_those_before_them_and_what_is_in_use_stay(registry: Registry) -> None:
    versions = [add(registry, "bins", content) for content in "abcdefg"]
    for version in versions[:3]:
        promote(registry, version, force="x")
    promote(registry, versions[3], cell="cell-7", force="x")
    lease = registry.lease(versions[4].model)
    hash = judged(registry, versions[5], versions[2], "refused")
    done = clean(registry, Policy(keep=0))
    assert [v.label for v in done.deleted] == ["bins@1", "bins@6", "bins@7"]
    assert [v.label for v in done.busy] == ["bins@5"]
    assert registry.item(hash).kept and not registry.item(versions[0].model).kept
    kept = {path.name for path in (registry.folder / "models").iterdir()}
    assert kept == {version.model for version in versions[1:5]}
    assert done.left == sum(registry.item(hash).bytes for hash in kept) + registry.item(hash).bytes
    lease.close()
    assert [v.label for v in clean(registry, Policy(keep=0)).deleted] == ["bins@5"]
    with pytest.raises(LinesideError, match="bins@1: its files were deleted"):
        promote(registry, versions[0], force="x")
    assert [version.label for version in registry.versions("bins")] == [f"bins@{n}" for n in range(1, 8)]
    assert add(registry, "bins", "a") == versions[0] and promote(registry, versions[0], force="x")


def test_what_killed_processes_leave_is_deleted_and_what_others_write_is_not(registry: Registry) -> None:
    add(registry, "bins", "a")
    for folder in ("models/0123", "tmp/1-dead/model-1/files"):
        (registry.folder / folder).mkdir(parents=True)
    with registry.staging() as busy:
        assert clean(registry, Policy()).leftovers == 2
        assert busy.is_dir()
    assert not list((registry.folder / "tmp").iterdir())
    assert [path.name for path in (registry.folder / "models").iterdir()] == [registry.versions()[0].model]
    assert clean(registry, Policy()).leftovers == 0


def test_a_policy_can_be_kept(registry: Registry) -> None:
    assert policy_of(registry) is None
    set_policy(registry, Policy(2, 100))
    assert policy_of(registry) == Policy(2, 100)
    version = add(registry, "bins", "a")
    assert clean(registry, Policy(0, 0), spare=version.model).deleted == ()


@pytest.mark.parametrize(("text", "bytes"), [("500MB", 5e8), ("1.5 gb", 1.5e9), ("7", 7), ("2T", 2e12)])
def test_sizes(text: str, bytes: int) -> None:
    assert size_of(text) == bytes


@pytest.mark.parametrize("text", ["", "GB", "-1", "1e9", "1GiB", "9" * 20, "1.2345G"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(LinesideError, match="expected a size such as"):
        size_of(text)
