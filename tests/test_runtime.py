"""A run follows the device it computes on: that a machine has a GPU as well changes nothing for a run on its CPU."""

from __future__ import annotations

import ast
import threading
from pathlib import Path

import pytest
import torch
from torch.distributed import HashStore, ProcessGroupGloo

from lineside import runtime
from lineside.cli import app
from lineside.errors import LinesideError
from lineside.model.features import FeatureStore
from lineside.recipe import Sft
from lineside.runtime import CPU, ON_CPU, Runtime, compute_dtype, find_device, upload
from lineside.training.stage import Stage
from lineside.training.state import State, load_state, restore_rng, save_state
from tests.conftest import make_tiny_vlm

PACKAGE = Path(__file__).parents[1] / "src" / "lineside"
# files that name a kind of device: what a user may write, and the device of a backend
NAMES_A_KIND = {"recipe.py", "cli/options.py", "backends/__init__.py", "backends/cuda.py"}


def uses_of_cuda(source: str) -> set[str]:
    """Of code: "asks", if it asks torch or the environment about CUDA; "names", if "cuda" is a string in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in ("cuda", "is_cuda"):
            found.add("asks")
        word = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
        if word.startswith(("CUDA_", "NVIDIA_", "PYTORCH_CUDA")):
            found.add("asks")
        if word.split(":")[0] == "cuda":
            found.add("names")
    return found


def test_one_place_asks_for_cuda() -> None:
    uses = {p.relative_to(PACKAGE).as_posix(): uses_of_cuda(p.read_text()) for p in PACKAGE.rglob("*.py")}
    assert {name for name, found in uses.items() if "asks" in found} == {"runtime.py"}
    assert {name for name, found in uses.items() if "names" in found} == {"runtime.py"} | NAMES_A_KIND
    for line in ("torch.cuda.is_available()", "x.is_cuda", "os.environ['CUDA_VISIBLE_DEVICES']"):
        assert uses_of_cuda(line) == {"asks"}
    assert uses_of_cuda("x.to('cuda:1')") == {"names"} and not uses_of_cuda("x.to(device)")


@pytest.fixture
def beside_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU that nobody may touch."""

    def touched(*_: object) -> None:
        raise AssertionError("the GPU is not this run's")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("is_bf16_supported", "get_rng_state", "get_rng_state_all", "set_rng_state_all", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, touched)


@pytest.mark.usefixtures("beside_a_gpu")
def test_a_cpu_run_is_that_of_a_machine_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_seconds", lambda formats: [1.0, 1.1])  # bf16 hardly faster here
    runtime._faster.cache_clear()
    assert Runtime.of("cpu", "auto").dtype == torch.float32
    runtime._faster.cache_clear()
    assert ON_CPU.random_state() is None and ON_CPU.device_name is None and ON_CPU.peak_memory() == 0
    ON_CPU.synchronise()
    ON_CPU.free_memory()
    kept = torch.ones(3)
    assert upload(kept, CPU) is kept
    save_state(tmp_path, State(1, {"w": torch.zeros(1)}))
    state = load_state(tmp_path)
    assert state is not None and state.rng["device"] is None
    torch.manual_seed(5)
    restore_rng(state)


@pytest.mark.usefixtures("beside_a_gpu")
def test_auto_takes_the_gpu_and_cpu_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert find_device("cpu") == CPU and torch.backends.cudnn.allow_tf32
    assert find_device("auto") == find_device("cuda") == torch.device("cuda", 0)
    assert not torch.backends.cudnn.allow_tf32


def test_a_device_that_is_not_there_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device("auto") == CPU
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(LinesideError, match=r"device cuda: .*built without CUDA.*device cpu"):
        find_device("cuda")
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    with pytest.raises(LinesideError, match=r"CUDA_VISIBLE_DEVICES"):
        find_device("cuda")


@pytest.mark.parametrize(
    "words", [["ask", "c", "p", "q"], ["evaluate", "c", "s"], ["select", "f", "o", "--budget", "1"],
              ["task", "audit", "d"], *([v, "quickstart"] for v in ("train", "align", "sft", "rlvr", "encode"))]
)  # fmt: skip
def test_every_verb_that_computes_takes_a_device(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        app([*words, "--device", "cuda"])
    assert stopped.value.code == 2 and "device cuda: there is no CUDA device here" in capsys.readouterr().err
    assert not any(tmp_path.rglob("recipe.yaml"))


def test_number_formats_by_name() -> None:
    assert compute_dtype(None, CPU) is None and Runtime.of("cpu").dtype is None
    assert compute_dtype("bf16", CPU) == torch.bfloat16 and compute_dtype("fp32", CPU) == torch.float32


def test_a_model_elsewhere_than_its_run_is_an_error(tmp_path: Path) -> None:
    vlm = make_tiny_vlm()
    elsewhere = Runtime(torch.device("meta"))
    with pytest.raises(ValueError, match="the model is on cpu, and the run computes on meta"):
        FeatureStore(None, vlm, runtime=elsewhere)
    with pytest.raises(ValueError, match="sft: the model is on cpu"):
        Stage(vlm, tmp_path, Sft(), {"lm": 1e-3}, label="sft", frame_count=1, runtime=elsewhere)


def test_numbers_add_up_over_ranks_and_stay_as_they_are_alone() -> None:
    alone = torch.tensor([1.0, 2.0])
    assert ON_CPU.all_reduce(alone) is alone and (ON_CPU.rank, ON_CPU.world_size) == (0, 1)
    assert ON_CPU.exchange(alone) == [alone] and ON_CPU.said(alone) is alone
    store, got, told = HashStore(), {}, {}
    done: list[int] = []

    def process(rank: int) -> None:
        part = Runtime(group=ProcessGroupGloo(store, rank, 2))
        got[part.rank, part.world_size] = part.all_reduce(torch.tensor([1.0, 10.0 * rank])).tolist()
        told[rank] = part.exchange({"rank": rank, "text": "µ" * rank * 9}), part.said(f"by {rank}")
        part.first(lambda: done.append(rank))
        assert done == [0]  # the others have waited

    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {(0, 2): [2.0, 10.0], (1, 2): [2.0, 10.0]}
    everyone = [{"rank": 0, "text": ""}, {"rank": 1, "text": "µ" * 9}]
    assert told == {0: (everyone, "by 0"), 1: (everyone, "by 0")}


def test_the_random_state_of_another_device_is_not_required(tmp_path: Path) -> None:
    torch.manual_seed(3)
    save_state(tmp_path, State(1, {"w": torch.zeros(1)}))
    want = torch.rand(3)
    state = load_state(tmp_path)
    assert state is not None
    for saved in ({"device": "00ff"}, {"cuda": ["00ff", "00ff"]}):  # by a GPU; by a version that kept those of all GPUs
        restore_rng(State(1, {}, rng={**state.rng, **saved}))
        assert torch.equal(torch.rand(3), want)
    ON_CPU.set_random_state(torch.zeros(4, dtype=torch.uint8))
