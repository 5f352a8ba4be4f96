"""The benchmarks rehearsed on a tiny model: every script ends well and both sides compute the same. Never how fast."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch

from lineside.recipe import load_recipe
from lineside.runtime import Runtime

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def rehearse(script: str, file: str, *arguments: str) -> list[dict[str, Any]]:
    """The rows that a rehearsal writes; anything but exit status 0 fails."""
    pytest.importorskip("trl")
    command = [sys.executable, str(BENCHMARKS / script), "--tiny", "--repeats", "1", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = json.loads((BENCHMARKS / "out" / file).read_text())
    assert all({"work", "peer", "ratio", "at_least", "equal", "ours_s", "peer_s"} <= set(row) for row in rows)
    return rows


@pytest.mark.slow
def test_every_comparison_runs_and_both_sides_are_equal() -> None:
    rows = rehearse("run_all.py", "results-tiny.json")
    compared = [row["equal"] for row in rows if row["equal"] is not None]
    assert len(compared) >= 8 and all(compared)


@pytest.mark.gpu
def test_the_same_on_a_gpu() -> None:
    rows = rehearse("run_all.py", "results-tiny-cuda.json", "--device", "cuda")
    compared = [row["equal"] for row in rows if row["equal"] is not None]
    assert len(compared) >= 8 and all(compared)


def gpu_benchmark(*arguments: str) -> tuple[int, str]:
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr[-3000:]


@pytest.mark.slow
def test_the_gpu_benchmark_is_rehearsed_on_the_cpu_and_says_so() -> None:
    status, told = gpu_benchmark("--device", "cpu", "--tiny")
    assert status == 0, told
    assert "a REHEARSAL, not a measurement" in told
    assert "sft, tiny: " in told and "rlvr, tiny: " in told and told.count("not measured") >= 3
    claims = json.loads((BENCHMARKS / "out" / "gpu-rehearsal.json").read_text())
    assert len(claims) == 2 and all(claim["holds"] and claim["value"] == 0 for claim in claims)
    status, told = gpu_benchmark("--device", "cpu", "--tiny", "--alone", "sft", "no such shape")
    assert status == 1 and '{"failed": "KeyError: \'no such shape\'"}' in told.splitlines()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """benchmarks/gpu.py as a module whose device is a sham: nothing is computed, and what it starts runs here."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    gpu = importlib.import_module("gpu")
    monkeypatch.setattr(gpu, "OUT", tmp_path)
    monkeypatch.setattr(gpu.Runtime, "of", lambda device: Runtime(torch.device("cuda", 0)))
    monkeypatch.setattr(gpu.Runtime, "line", lambda runtime: "a card")
    monkeypatch.setattr(gpu, "gaps", lambda runtime: (1e-4, 0.0))
    for name in ("marked_tests", "against_trl", "demo"):
        monkeypatch.setattr(gpu, name, lambda *_: "done")
    monkeypatch.setattr(gpu, "speed_of", lambda *_, **__: gpu.Speed(1e5, 0.5, 1e14, 1 << 30, "cuda"))

    def here(arguments: list[str], seconds: float, **options: Any) -> None:
        with monkeypatch.context() as patch, redirect_stdout(options["stdout"]):
            patch.setattr(sys, "argv", arguments[1:])
            if status := gpu.main():
                raise subprocess.CalledProcessError(status, arguments)

    monkeypatch.setattr(gpu, "bounded", here)
    return gpu


NOT_MEASURED = re.compile(r"^not measured: (.*?): (.*)$", re.MULTILINE)
SPEEDS = {f"{stage}, {shape}" for stage in ("sft", "rlvr") for shape in ("2B", "SmolLM2-360M", "SmolLM2-135M")}


def test_the_gpu_benchmark_never_passes_over_what_it_could_not_measure(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def status(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["gpu.py", *arguments])
        return gpu.main()

    assert status() == 0
    told = capsys.readouterr().out
    assert "sft, 2B: 100,000 tokens/s, 50.0% of the matrix rate (100 TFLOP/s)" in told and not NOT_MEASURED.findall(
        told
    )
    claims = json.loads((tmp_path / "gpu.json").read_text())
    assert len(claims) == 5 and all(claim["holds"] for claim in claims)

    def broken(stage: str, shape: tuple[int, ...], *_: Any, **__: Any) -> Any:
        if stage == "rlvr":
            raise RuntimeError("no kernel\nfor this card")
        return gpu.Speed(1e5, 0.5, 1e14, 1 << 30, "reference", gap=0.5)

    monkeypatch.setattr(gpu, "speed_of", broken)
    assert status("--only", "speed") == 1
    told = capsys.readouterr().out
    missing = dict(NOT_MEASURED.findall(told))
    assert set(missing) == {what for what in SPEEDS if what.startswith("rlvr")}
    assert set(missing.values()) == {"RuntimeError: no kernel for this card"}
    assert "stages that left FlexAttention: 3 ({'at_most': 0}, n 3): DOES NOT HOLD" in told
    assert "nats a token: 0.5 ({'at_most': 0.1}, n 3): DOES NOT HOLD" in told
    assert status("--only", "demo", "--minutes", "1") == 1
    assert "not measured: the demo's line on ten times its tokens: TimeoutError: " in capsys.readouterr().out

    def raising(runtime: Runtime) -> tuple[float, float]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(
        gpu, "gaps", raising
    )  # whether it is right is not known then; the rest is measured all the same
    assert status("--only", "right", "demo") == 1
    told = capsys.readouterr().out
    assert [what for what, _ in NOT_MEASURED.findall(told)] == ["every stage against the CPU"]
    assert "an illegal memory access" in told and "ten times its tokens: done" in told
    monkeypatch.setattr(gpu, "gaps", lambda runtime: (float("nan"), 0.0))
    assert status() == 1
    told = capsys.readouterr().out
    assert "the device does not compute what the CPU does: nothing else was run" in told
    rest = {"GRPO steps against TRL", "sft steps against TRL", "the demo's line on ten times its tokens"}
    assert {what for what, _ in NOT_MEASURED.findall(told)} == SPEEDS | rest and "tokens/s" not in told


def test_a_measurement_of_the_gpu_benchmark_that_takes_too_long_takes_no_other_with_it(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor does an interrupt pass over what was not reached."""
    here = gpu.bounded
    given: dict[str, float] = {}  # to each process, its seconds
    for name in ("demo", "against_trl"):
        monkeypatch.setattr(gpu, name, lambda *arguments, name=name: given.setdefault(name, arguments[-1]) and "done")

    def slow(arguments: list[str], seconds: float, **options: Any) -> None:
        words = " ".join(arguments[arguments.index("--alone") + 1 :])
        given[words] = seconds
        if words == "sft 2B":
            raise subprocess.TimeoutExpired(arguments, seconds)
        here(arguments, seconds, **options)

    monkeypatch.setattr(gpu, "bounded", slow)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    assert gpu.main() == 1
    told = capsys.readouterr().out
    ((what, why),) = NOT_MEASURED.findall(told)
    assert what == "sft, 2B" and why.startswith("TimeoutExpired: ") and "rlvr, 2B: 100,000 tokens/s" in told
    assert len(given) == 9  # each process has a limit; only the last one may take all that is left of 8 minutes
    assert all(seconds <= gpu.PATIENCE * 60 for name, seconds in given.items() if name != "demo")
    assert gpu.PATIENCE * 60 < given["demo"] <= 8 * 60 - gpu.GRACE

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu, "bounded", interrupted)
    assert gpu.main() == 1
    missing = dict(NOT_MEASURED.findall(capsys.readouterr().out))
    assert len(missing) == 10 and set(missing.values()) == {"the script was stopped before"}


def test_the_demo_of_the_gpu_benchmark_has_ten_times_the_tokens_of_the_run_that_it_names(gpu: Any) -> None:
    commit = re.search(r"`make demo` of (\w{7}), \d{4}", Path(gpu.__file__).read_text())
    results = (BENCHMARKS.parent / "docs" / "results.md").read_text()
    assert commit is not None
    run = results.split(f", commit {commit[1]}, seed 0")[1].split("###")[0]
    for stage in ("sft", "rlvr"):
        (tokens,) = re.findall(rf"^\| {stage} .*\| ([\d,]+) \| [\d.]+ \|$", run, re.MULTILINE)
        assert gpu.DEMO[f"{stage}.max_tokens"] == pytest.approx(10 * int(tokens.replace(",", "")), rel=0.01)
    recipe = load_recipe(Path("quickstart"), [f"{key}={value}" for key, value in gpu.DEMO.items()])
    assert [getattr(recipe, name).max_tokens for name in ("align", "sft", "rlvr")] == list(gpu.DEMO.values())


def test_the_gpu_benchmark_counts_a_skipped_test_as_one_that_did_not_pass(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    gpu = importlib.import_module("gpu")
    monkeypatch.setattr(gpu, "OUT", tmp_path)
    claims = gpu.Claims(1.0, tiny=True)
    for printed, value, holds in (
        ("4 passed in 3.1s", 0, True),
        ("3 passed, 1 skipped in 3.1s", 1, False),
        ("1 failed, 2 passed, 1 error in 3s", 2, False),
        ("no tests ran in 0.1s", 0, False),
    ):
        done = subprocess.CompletedProcess([], 0, stdout=printed)
        monkeypatch.setattr(gpu.subprocess, "run", lambda *_, done=done, **__: done)
        gpu.marked_tests(claims, 60.0)
        assert (claims.rows[-1]["value"], claims.rows[-1]["holds"]) == (value, holds)


def test_a_command_of_the_gpu_benchmark_is_told_to_stop_before_it_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    gpu = importlib.import_module("gpu")
    with pytest.raises(subprocess.CalledProcessError):
        gpu.bounded([sys.executable, "-S", "-c", "raise SystemExit(2)"], 600.0)
    done: list[Any] = []

    class Endless:
        """A process that ends by being killed only."""

        def __init__(self, arguments: list[str]) -> None: ...

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None: ...

        def wait(self, seconds: float) -> None:
            done.append(seconds)
            raise subprocess.TimeoutExpired([], seconds)

        def terminate(self) -> None:
            done.append("terminate")

        def kill(self) -> None:
            done.append("kill")

    monkeypatch.setattr(gpu.subprocess, "Popen", Endless)
    with pytest.raises(subprocess.TimeoutExpired):
        gpu.bounded(["endless"], 7.0)
    assert done == [7.0, "terminate", 30, "kill"]


def test_the_gpu_benchmark_runs_every_file_with_tests_marked_gpu(gpu: Any) -> None:
    tests = Path(__file__).parent
    marked = re.compile(r"@pytest\.mark\.gpu|def test_\w+\([^)]*\bruntime: Runtime")
    found = {path.relative_to(tests.parent).as_posix() for path in tests.rglob("test_*.py")
             if marked.search(path.read_text())}  # fmt: skip
    assert found - {"tests/test_benchmarks.py"} == set(gpu.TESTS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_run() -> None:
    status, told = gpu_benchmark()
    assert status == 2 and "there is no CUDA device here" in told and "nothing was run" in told


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_the_gpu_benchmark_on_a_gpu() -> None:
    status, told = gpu_benchmark()
    assert status in (0, 1) and "largest difference of a stage from the CPU's" in told, told


@pytest.mark.slow
def test_a_step_with_and_without_a_critic_trains_on_the_same_rollouts() -> None:
    command = [sys.executable, str(BENCHMARKS / "no_critic.py"), "--tiny", "--repeats", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = json.loads((BENCHMARKS / "out" / "results-tiny.json").read_text())
    rows = [row for row in rows if row["peer"].startswith("PPO")]
    assert {row["peer"] for row in rows} == {"PPO, critic", "PPO, critic and reward model"}
    assert all(row["equal"] and row["at_least"] is None and row["memory_ratio"] > 0 for row in rows)
    assert all("192 tokens trained on in each step" in row["details"] for row in rows)  # 4 prompts x 8 x 6


def test_advantages_of_ppo_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from no_critic import gae

    # The last token: 1 - 0.25 = 0.75. The first: 0.25 - 0.5 + 0.95 * 0.75 = 0.4625. Returns add the values.
    advantages, returns = gae(torch.tensor([[0.5, 0.25], [0.0, 0.0]]), torch.tensor([1.0, 0.0]))
    assert torch.allclose(advantages, torch.tensor([[0.4625, 0.75], [0.0, 0.0]]))
    assert torch.allclose(returns, torch.tensor([[0.9625, 1.0], [0.0, 0.0]]))


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one() -> None:
    command = [sys.executable, str(BENCHMARKS / "two_processes.py"), "--tiny", "--steps", "2", "--repeats", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (claim,) = json.loads((BENCHMARKS / "out" / "two_processes-tiny.json").read_text())
    assert claim["holds"] and claim["n"] == 1 and "the rank that waits most" in done.stdout


@pytest.mark.slow
def test_what_reading_takes_is_printed() -> None:
    script = str(BENCHMARKS / "two_processes.py")
    command = [sys.executable, script, "--tiny", "--reading", "--frames", "5", "--repeats", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    frames, tokens = map(int, re.findall(r"(\d+) frames of (\d+) tokens", done.stdout)[0])
    assert frames == 5 and tokens > 49 + 8 * 15  # a picture, and eight questions with their traces
    rows, tree = (float(ms) for ms in re.findall(r": ([\d.]+) \(median", done.stdout))
    assert rows > 0 and tree > 0


@pytest.mark.slow
def test_live_prompts_against_uniform_ones() -> None:
    command = [sys.executable, str(BENCHMARKS / "live_prompts.py"), "--tiny", "--steps", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "live on exactness, of groups sampled: 0." in done.stdout
    assert "steps a minute, live to uniform" in done.stdout


def test_the_server_benchmark_compares_what_is_comparable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Claims of rows made by hand: the best of ours against the best of the others, in the right direction."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    serve = importlib.import_module("serve")
    results = serve.Results(tmp_path / "rows.json", again=False, tiny=False, form="fp32")

    def one(peer: str, p50: float, **more: Any) -> None:
        results.add({"peer": peer, "work": "one", "thinking": False, "p50_ms": p50, "n": 5, "other_lengths": 0, **more})

    one("ours, local full", 30.0)
    one("ours, local int8", 20.0)
    one("llama.cpp Q8_0", 25.0)
    one("llama.cpp full", 22.0)
    one("transformers", 1.0, other_lengths=1)  # it answered something else
    one("vLLM", 1.0, busy="busy machine: other processes had 40% of its processor time")
    other = serve.Results(tmp_path / "rows.json", again=False, tiny=False, form="bf16")
    other.add({"peer": "ours, local int8", "work": "one", "thinking": False, "p50_ms": 1.0, "n": 5})
    results.rows = other.rows
    for peer, cap, rate in (("ours, local full", None, 9.0), ("ours, local full", 2, 3.0), ("llama.cpp Q8_0", 4, 2.5)):
        results.add({"peer": peer, "work": "open", "cap": cap, "in_time_s": rate, "n": 50})
    found = {
        row["claim"]: row for row in serve.claims(serve.Results(tmp_path / "rows.json", False, False, "fp32"), "now")
    }
    alone = found["one question: our p50 to the best peer's, thinking off"]
    assert alone["value"] == pytest.approx(20 / 22) and alone["at_most"] == 1.0 and alone["holds"]
    assert alone["details"] == "ours, local int8 20, llama.cpp full 22" and alone["form"] == "fp32"
    int8 = found["one question, int8: our p50 to the best peer's, thinking off"]
    assert int8["value"] == pytest.approx(20 / 25) and int8["at_most"] == 1.3
    in_time = found["1.5 times the load: our answers in time to those of the best queue cap"]
    assert in_time["value"] == 3.0 and in_time["holds"]
    assert len(found) == 3  # the others were not measured
    assert results.lacks(next(peer for peer in serve.PEERS if peer.name == "vLLM"))


def test_a_server_that_does_not_start_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    peers = importlib.import_module("serve_peers")
    monkeypatch.setattr(peers, "HERE", tmp_path)
    (tmp_path / "out").mkdir()
    fails = "import sys; sys.exit('loading ...\\nno kernel for heads of 8 numbers\\n')"
    peer = peers.Peer("some peer", lambda _: [sys.executable, "-c", fails], int8=True)
    with (
        pytest.raises(RuntimeError, match="it did not start: no kernel for heads of 8 numbers"),
        peer.running(tmp_path),
    ):
        pass


@pytest.mark.slow
def test_the_server_benchmark_is_rehearsed() -> None:
    command = [sys.executable, str(BENCHMARKS / "serve.py"), "--tiny", "--again", "--peers", "local full", "GenAI"]
    nowhere = {**os.environ, "LINESIDE_GENAI": "/nowhere"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=nowhere)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "OpenVINO GenAI | not run: there is no environment at /nowhere" in done.stdout
    rows = json.loads((BENCHMARKS / "out" / "serve-tiny-results.json").read_text())
    assert {row["work"] for row in rows} == {"one", "eight", "clients", "open"}
    assert not any(row.get("other_lengths") for row in rows)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler here")
def test_a_decoding_step_is_rehearsed_beside_the_engines_that_are_there() -> None:
    command = [sys.executable, str(BENCHMARKS / "decode_speed.py"), "--tiny", "--steps", "10"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads((BENCHMARKS / "out" / "decode_speed-tiny.json").read_text())
    sides = {(row["side"], row["rows"]) for row in found["rows"]}
    assert {("ours int8", 1), ("ours int8", 8), ("ours bf16", 8)} <= sides and not found["claims"]
    assert float(done.stdout.split("): ")[1].split("%")[0]) > 80  # of the tokens of int8 are those of fp32


def test_the_slope_of_memory_is_that_of_what_is_left_when_buffers_are_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    slope = importlib.import_module("stream").slope
    points = [(row, 300 + 2 * row // 10_000 / 10 + row // 100 % 7) for row in range(0, 100_000, 100)]
    assert slope(points, 10_000) == pytest.approx((2.0, 2.0, 2.0), abs=0.1)
    steep = [(row, mb + (row - 50_000) / 1000 * (row > 50_000)) for row, mb in points]  # from the middle on 100 MB more
    assert slope(steep, 50_000)[0] == pytest.approx(102.0, abs=1.0)


@pytest.mark.slow
def test_rows_stream_through_the_verbs() -> None:
    command = [sys.executable, str(BENCHMARKS / "stream.py"), "--rows", "1500"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    claims = json.loads((BENCHMARKS / "out" / "stream-1500.json").read_text())
    assert {claim["verb"] for claim in claims} == {"label", "validate", "align"}
    assert not any("holds" in claim for claim in claims)  # so few rows show nothing
    assert not (BENCHMARKS / "out" / "stream-1500").exists()
