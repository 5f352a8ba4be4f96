"""The feature store: the same from memory, disk and another process; other weights, another folder; torn writes."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
import torch

from lineside.errors import LinesideError
from lineside.images import decode
from lineside.model import features
from lineside.model.features import FeatureStore
from lineside.types import Image
from tests.conftest import make_tiny_vlm, picture

IMAGES = [Image(picture(i)) for i in range(9)]


def test_memory_disk_and_encoder_agree_in_any_order(tmp_path: Path) -> None:
    vlm = make_tiny_vlm()
    want = vlm.features(vlm.pixels([decode(i.bytes) for i in IMAGES]))
    memory = FeatureStore(None, vlm, dtype=torch.float32)
    disk = FeatureStore(tmp_path, vlm, dtype=torch.float32)
    order = [3, 3, 0, 8, 1, 2, 4, 5, 6, 7]
    for store in (memory, disk, FeatureStore(tmp_path, vlm, dtype=torch.float32)):
        got = store.get([IMAGES[i] for i in order])
        torch.testing.assert_close(got, [want[i] for i in order], atol=1e-5, rtol=1e-5)
    assert disk.encoder_calls == memory.encoder_calls == 9


def test_each_picture_is_encoded_once(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, make_tiny_vlm())
    assert [i.bytes for i in store.warm(iter(IMAGES))] == [i.bytes for i in IMAGES]
    store.get(IMAGES)
    again = FeatureStore(tmp_path, make_tiny_vlm())
    again.get(IMAGES)
    assert (store.encoder_calls, again.encoder_calls, len(again)) == (9, 0, 9)


def test_other_weights_never_share_a_folder(tmp_path: Path) -> None:
    first, second = FeatureStore(tmp_path, make_tiny_vlm(0)), FeatureStore(tmp_path, make_tiny_vlm(1))
    first.get(IMAGES[:2])
    second.get(IMAGES[:2])
    assert first.folder != second.folder and second.encoder_calls == 2
    assert FeatureStore(tmp_path, make_tiny_vlm(0), dtype=torch.float32).folder != first.folder


def test_a_torn_write_is_overwritten(tmp_path: Path) -> None:
    vlm = make_tiny_vlm()
    store = FeatureStore(tmp_path, vlm, dtype=torch.float32)
    want = [row.clone() for row in store.get(IMAGES[:4])]
    assert store.folder is not None
    with open(store.folder / "shard-00000.bin", "ab") as f:
        f.write(b"x" * 100)  # killed while appending rows
    with open(store.folder / "index.jsonl", "a") as f:
        f.write('{"k": ["half')  # killed while appending the line
    again = FeatureStore(tmp_path, vlm, dtype=torch.float32)
    torch.testing.assert_close(again.get(IMAGES[:4]), want, atol=0, rtol=0)
    rest = again.get(IMAGES[4:])
    torch.testing.assert_close(FeatureStore(tmp_path, vlm, dtype=torch.float32).get(IMAGES[4:]), rest, atol=0, rtol=0)


def test_what_a_killed_process_left_of_its_first_file_is_removed(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, make_tiny_vlm())
    with subprocess.Popen(["true"]) as killed:
        pass
    assert store.folder is not None
    (left := store.folder / f".meta.json.{killed.pid}.tmp").write_text("{")
    store.get(IMAGES[:1])
    assert (store.folder / "meta.json").exists() and not left.exists()


@pytest.mark.parametrize("left", [None, 0.0, 0.5])
def test_a_shard_that_was_copied_in_part_is_named(tmp_path: Path, left: float | None) -> None:
    """Read, its pictures would have no features; written to, features of zeros."""
    vlm = make_tiny_vlm()
    FeatureStore(tmp_path, vlm).get([Image(picture(n)) for n in range(2)])
    (path,) = tmp_path.rglob("shard-*.bin")
    data = path.read_bytes()
    path.unlink() if left is None else path.write_bytes(data[: int(left * len(data))])
    for number in (1, 2):  # one that it holds, one that is new
        with pytest.raises(LinesideError, match=r"shard-00000.bin: shorter than index.jsonl says"):
            FeatureStore(tmp_path, vlm).get([Image(picture(number))])
    path.write_bytes(data)
    assert len(FeatureStore(tmp_path, vlm).get([Image(picture(n)) for n in range(3)])) == 3


def test_a_store_of_before_is_read(tmp_path: Path) -> None:
    """Its index counts pictures, and a picture's shape stands in meta.json."""
    vlm = make_tiny_vlm()
    store = FeatureStore(tmp_path, vlm, dtype=torch.float32)
    want = [row.clone() for row in store.get(IMAGES[:4])]
    assert store.folder is not None
    index = store.folder / "index.jsonl"
    keys = json.loads(index.read_text())["k"]
    index.write_text("".join(json.dumps({"k": keys[i : i + 2], "s": 0, "r": i}) + "\n" for i in (0, 2)))
    (store.folder / "meta.json").write_text(json.dumps({"shape": [16, 16], "dtype": "float32"}))
    again = FeatureStore(tmp_path, vlm, dtype=torch.float32)
    torch.testing.assert_close(again.get(IMAGES[:4]), want, atol=0, rtol=0)
    again.get(IMAGES[4:])  # new pictures join it
    assert (again.encoder_calls, len(FeatureStore(tmp_path, vlm, dtype=torch.float32))) == (5, 9)
    (store.folder / "meta.json").write_text("{")
    with pytest.raises(LinesideError, match=r"meta.json cannot be read .*and the features are computed again"):
        FeatureStore(tmp_path, vlm, dtype=torch.float32)


def _write(folder: Path, which: list[int], ready: Barrier) -> None:
    torch.set_num_threads(1)
    features.flush = lambda _: time.sleep(0.005)  # a disk takes its time: the other process comes in between
    store = FeatureStore(folder, make_tiny_vlm(), dtype=torch.float32)
    ready.wait()
    for i in which:
        store.get([IMAGES[i]])


def test_parallel_writers_lose_and_double_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")  # with one thread: see _write
    ready = context.Barrier(2)
    workers = [
        context.Process(target=_write, args=(tmp_path, order, ready))
        for order in ([0, 1, 2, 3, 4, 5], [5, 4, 3, 6, 7, 8])
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    vlm = make_tiny_vlm()
    store = FeatureStore(tmp_path, vlm, dtype=torch.float32)
    assert len(store) == 9
    want = vlm.features(vlm.pixels([decode(i.bytes) for i in IMAGES]))
    torch.testing.assert_close(store.get(IMAGES), want, atol=1e-5, rtol=1e-5)
    assert store.encoder_calls == 0


def test_beyond_its_bound_the_first_pictures_are_kept_and_the_others_encoded_each_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vlm, picture_bytes = make_tiny_vlm(), 16 * 16 * 4
    want = FeatureStore(None, vlm, dtype=torch.float32).get(IMAGES)
    bounded = {"dtype": torch.float32, "max_bytes": 4 * picture_bytes + 100}
    store = FeatureStore(tmp_path, vlm, **bounded)
    for kept in (4, 4):
        torch.testing.assert_close(store.get(IMAGES), want, atol=1e-5, rtol=1e-5)
        assert len(store) == kept
    assert store.encoder_calls == 9 + 5
    again = FeatureStore(tmp_path, vlm, **bounded)
    torch.testing.assert_close(again.get(IMAGES[::-1]), want[::-1], atol=1e-5, rtol=1e-5)
    assert again.folder is not None and again.encoder_calls == 5
    assert sum(path.stat().st_size for path in again.folder.glob("*.bin")) == 4 * picture_bytes
    assert len(list(again.warm(iter(IMAGES)))) == 9
    assert again.encoder_calls == 5  # nothing is encoded ahead that would not be kept
    assert capsys.readouterr().err.count("is full (4.2e-06 GB): further pictures are encoded each time") == 2
    assert len(FeatureStore(tmp_path, vlm, dtype=torch.float32).get(IMAGES)) == 9  # with more room it goes on


def test_refused_where_the_encoder_trains(tmp_path: Path) -> None:
    vlm = make_tiny_vlm()
    vlm.tower.requires_grad_(True)
    with pytest.raises(LinesideError, match="needs a frozen encoder"):
        FeatureStore(tmp_path, vlm)
