"""Alarms over curves: each is raised by a planted case, told once, and neither by noise nor by the golden curves."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import lineside.rlvr
from lineside.data.store import write_samples
from lineside.errors import CheckFailed
from lineside.judgement.rundata import read_run
from lineside.model.features import FeatureStore
from lineside.model.vlm import VLM
from lineside.recipe import AlarmKind, Rates, Rlvr, Sft
from lineside.rlvr import rlvr
from lineside.sft import sft
from lineside.training import watch
from lineside.training.metrics import METRICS, WARNINGS, read_metrics
from lineside.training.state import load_state
from lineside.training.watch import CURVES, Alarm, Watch, loss_spike, reward_hacking, shift, spike
from lineside.types import Rollout, Thinking
from tests.conftest import make_tiny_vlm
from tests.small_run import frame_samples, logged, weights

Row = dict[str, Any]
GOLDEN = Path(__file__).parents[1] / "golden_curves.json"


def told(rows: Iterable[Row]) -> list[Alarm]:
    seen = Watch()
    return [alarm for row in rows for alarm in seen.see(row)]


def sft_rows(count: int, seed: int = 0) -> list[Row]:
    """A loss that falls, with a tenth of noise; norms with a long tail."""
    draw = random.Random(seed)
    return [
        {"step": t, "loss": 1 + 1.5 * math.exp(-t / 60) + 0.1 * draw.gauss(0, 1),
         "gradient_norm": math.exp(0.4 * draw.gauss(0, 1))}
        for t in range(1, count + 1)
    ]  # fmt: skip


def rlvr_rows(count: int, seed: int = 0, alike: float = 0.2) -> list[Row]:
    """A stage 3 in which nothing happens: noise whose neighbours are alike, as in real runs."""
    draw = random.Random(seed)
    noise, rows = [0.0] * 4, []
    for t in range(1, count + 1):
        noise = [alike * old + math.sqrt(1 - alike**2) * draw.gauss(0, 1) for old in noise]
        a, b, c, d = noise
        rows.append({
            "step": t, "loss": 0.01 * draw.gauss(0, 1), "gradient_norm": math.exp(0.4 * draw.gauss(0, 1)),
            "entropy": 0.3 + 0.03 * b, "length": 30 + 3 * c, "dead": 0.3 + 0.08 * d, "stock": 0.1 + 0.03 * a,
            "reward": 0.6 + 0.04 * a,
            "exact": 0.55 + 0.04 * (0.8 * a + 0.6 * b), "valid": min(1.0, 0.97 + 0.02 * c),
        })  # fmt: skip
    return rows


def planted(name: str, change: Callable[[int], float], *, start: int, count: int = 300) -> list[Row]:
    rows = rlvr_rows(count)
    for row in rows[start:]:
        row[name] += change(row["step"] - start)
    return rows


PLANTED: dict[str, tuple[list[Row], int, int]] = {  # rows, and the steps between which the alarm must come
    "loss_spike": (
        [row | {"loss": row["loss"] * (3.5 if row["step"] == 150 else 1)} for row in sft_rows(300)], 150, 150),
    "gradient_spike": (
        [row | {"gradient_norm": row["gradient_norm"] * (40 if row["step"] in (150, 151) else 1)} for row in
         sft_rows(300)], 151, 151),
    "entropy_collapse": (planted("entropy", lambda t: -0.28 * (1 - math.exp(-t / 20)), start=100), 120, 200),
    "length_drift": (planted("length", lambda t: t / 2, start=100), 150, 190),
    "dead_groups": (planted("dead", lambda t: min(0.5, t / 100), start=100), 120, 170),
    "stock_traces": (planted("stock", lambda t: min(0.8, t / 100), start=100), 120, 170),
    "reward_hacking": (
        [row | {"reward": row["reward"] + 0.001 * row["step"], "exact": row["exact"] - 0.0007 * row["step"]} for row in
         rlvr_rows(300)], 40, 250),
}  # fmt: skip


def test_every_alarm_is_planted() -> None:
    assert set(PLANTED) == set(CURVES)


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_case_raises_its_alarm_alone_and_in_time(kind: str) -> None:
    rows, first, last = PLANTED[kind]
    alarms = told(rows)
    assert alarms and {alarm.kind for alarm in alarms} == {kind}
    assert first <= alarms[0].step <= last
    if kind not in ("loss_spike", "gradient_spike"):
        assert len(alarms) <= 2  # not at every step, however long it holds


def test_valid_traces_that_fall_are_hacking_too() -> None:
    rows = [row | {"reward": row["reward"] + 0.002 * row["step"], "valid": row["valid"] - 0.001 * row["step"]}
            for row in rlvr_rows(300)]  # fmt: skip
    (alarm, *_) = told(rows)
    assert alarm.kind == "reward_hacking" and "valid" in alarm.numbers and "exact" not in alarm.numbers


def test_noise_raises_nothing() -> None:
    """3,000 steps of each kind here; docs/experiments.md has longer measurements."""
    assert [alarm for seed in range(10) for alarm in told(sft_rows(300, seed))] == []
    assert [alarm for seed in range(10) for alarm in told(rlvr_rows(300, seed))] == []


def test_the_golden_curves_raise_nothing() -> None:
    for lines in json.loads(GOLDEN.read_text()).values():
        steps = len(next(iter(lines.values())))
        assert told({"step": t + 1, **{name: line[t] for name, line in lines.items()}} for t in range(steps)) == []


def test_a_spike_by_hand() -> None:
    # The median of 1..25 is 13, the median distance from it 6, the spread 8.8956: 10 of them above is 101.956.
    values = [float(n) for n in range(1, 26)]
    assert spike([*values, 101.9], least=1.5) is None
    assert spike([*values, 102.0], least=1.5) == {"value": 102.0, "median": 13.0, "spread": pytest.approx(8.8956)}
    assert spike([*values, 102.0], least=8.0) is None  # 104 would be 8 medians
    assert spike([*values[:22], 102.0], least=1.5) is None  # too few to compare with
    assert spike([*values, 102.0, 1.0, 1.0], least=1.5, burst=2) is None
    assert spike([*values, 102.0, 1.0, 103.0], least=1.5, burst=2) == {
        "value": 102.0, "median": 13.0, "spread": pytest.approx(8.8956),
    }  # fmt: skip
    assert loss_spike({"loss": [0.001] * 30 + [0.09]}) is None  # less than a tenth of a nat
    assert loss_spike({"loss": [0.0] * 30 + [9.0], "reward": [1.0]}) is None


def test_a_shift_by_hand() -> None:
    """16 values 0, 1, 0, 1 ...: mean 1/2, squares 4; then the same 3 higher. Neighbours are not alike."""
    values = [float(n % 2) for n in range(16)] + [3.0 + n % 2 for n in range(16)]
    was, now, errors = shift(values, 1)
    assert (was, now) == (0.5, 3.5) and errors == pytest.approx(3 / math.sqrt(8 / 15 / 16))
    # 8 zeros, then 8 ones: the products of neighbours sum to 3 1/4 a block (13 of 1/4, and one of -1/4), of 4.
    alike = [float(n // 8 % 2) for n in range(16)]
    r = 3.25 / 4
    assert 14 * 0.25 - 0.25 == 3.25
    _, _, errors = shift(alike + [3 + value for value in alike], 1)
    assert errors == pytest.approx(3 / math.sqrt(8 / 15 / 16 * (1 + r) / (1 - r)))


def test_it_is_told_again_only_after_it_has_been_quiet() -> None:
    def rows(*spikes: int) -> list[Row]:
        return [{"step": t, "loss": 3.0 if t in spikes else 1.0 + t % 2 / 10} for t in range(1, 300)]

    assert [alarm.step for alarm in told(rows(100, 140, 180, 231, 290))] == [100, 231, 290]


def test_rows_of_a_second_update_on_the_same_rollouts_do_not_count_twice() -> None:
    rows = PLANTED["reward_hacking"][0]
    once, seen = told(rows), Watch()
    twice = [alarm for row in rows for _ in range(2) for alarm in seen.see(row)]
    assert [a.step for a in once if a.kind == "reward_hacking"] == [a.step for a in twice if a.kind == "reward_hacking"]
    assert len(seen.history["reward"]) == len(rows) and len(seen.history["loss"]) == 2 * len(rows)


def test_a_number_that_is_not_finite_counts_as_the_null_that_is_logged_for_it() -> None:
    for unknown in (math.nan, math.inf):
        live, resumed = Watch(), Watch()
        for row in rlvr_rows(60):
            odd = row["step"] % 7 == 0
            told_live = live.see(row | ({"entropy": unknown} if odd else {}))
            assert told_live == resumed.see(row | ({"entropy": None} if odd else {}))
        assert live == resumed


def test_the_work_of_a_step_does_not_grow_with_the_steps_before() -> None:
    class Counted(list):
        taken = 0

        def __getitem__(self, key: Any) -> Any:
            found = super().__getitem__(key)
            Counted.taken += len(found) if isinstance(key, slice) else 1
            return found

    rows = rlvr_rows(400)
    history = {name: Counted(row[name] for row in rows) for name in ("loss", "gradient_norm", "reward", "exact")}
    seen = Watch(dict(history))
    for length in (1, 10):
        for values in history.values():
            values.extend(list(values) * (length - 1))
        Counted.taken = 0
        seen.see(rows[0])
        assert 0 < Counted.taken < 700


# --- in a stage


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    write_samples(tmp_path / "samples", [s for frame in range(8) for s in frame_samples(frame)])
    return tmp_path / "samples"


def odd_at(step: int) -> Callable[[Watch, Row], list[Alarm]]:
    plain = Watch.see

    def see(self: Watch, row: Row) -> list[Alarm]:
        plain(self, row)
        return [Alarm("loss_spike", step, {"value": 3.0})] if row["step"] == step else []

    return see


SFT = Sft(epochs=2, step_tokens=400, pack_tokens=200, learning_rate=Rates(projector=1e-2, lm=1e-2))


def test_a_stage_tells_and_keeps_a_warning_and_stops_if_asked_to(
    samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watch.Watch, "see", odd_at(2))
    run = tmp_path / "run"
    vlm, other = make_tiny_vlm(), make_tiny_vlm()
    sft(vlm, FeatureStore(None, vlm), samples, run / "sft", SFT)
    (row,) = read_metrics(run / "sft" / WARNINGS)
    assert row["step"] == 2 and row["kind"] == "loss_spike" and row["numbers"] == {"value": 3.0}
    assert len(row["samples"]) == 8 and all("-qa-" in name for name in row["samples"])
    assert "sft: warning: loss_spike at step 2: value 3" in capsys.readouterr().err
    assert read_run(run).warnings == {"sft": [row["line"]]}

    halting = SFT.model_copy(update={"halt_on": ("loss_spike",)})
    with pytest.raises(CheckFailed, match=r"sft: halt_on: loss_spike at step 2.*the same command goes on"):
        sft(other, FeatureStore(None, other), samples, tmp_path / "halted" / "sft", halting)
    again = make_tiny_vlm()
    sft(again, FeatureStore(None, again), samples, tmp_path / "halted" / "sft", halting)
    assert all((weights(vlm)[name] == weight).all() for name, weight in weights(again).items())
    assert logged(tmp_path / "halted" / "sft") == logged(run / "sft")
    assert (tmp_path / "halted" / "sft" / WARNINGS).read_text() == (run / "sft" / WARNINGS).read_text()


Says = Callable[[int, int], tuple[Sequence[str], float]]  # (step, prompt) -> its rollouts


class Planted:
    """A policy whose answers the test gives: `says(step)` of each prompt, and the log-probability of each token."""

    thinking = Thinking(knows=False)

    def __init__(self, vlm: VLM, says: Says, version: int) -> None:
        self.encode, self.says, self.version = vlm.tokenizer.encode, says, version

    def sample(self, prompts: Sequence[Any], *, samples: int, **_: Any) -> list[tuple[Rollout, ...]]:
        self.version += 1  # one call a step
        rolled = []
        for number in range(len(prompts)):
            words, logprob = self.says(self.version, number)
            tokens = [(*self.encode(word), 2) for word in words]
            rolled.append(tuple(Rollout(t, (logprob,) * len(t), w, True) for t, w in zip(tokens, words, strict=True)))
        return rolled

    def refresh(self, version: int) -> None:
        assert version == self.version


SOUND = (("3", "3", "9", "9"), -1.0)  # the truth is 3, with a tolerance of 2: half are exact, half earn nothing
PLANTED_RUNS: dict[str, tuple[Says, int]] = {  # and the step at which it is told
    # From step 13 on it says one thing only, and is sure of it: no group is live, so no step makes an update.
    "entropy_collapse": (lambda step, _: SOUND if step < 13 else (("3",) * 4, -0.01), 24),
    "length_drift": (lambda step, _: SOUND if step < 13 else (("3", "3", "9 or 9 or 9", "9 or 9 or 9"), -1.0), 24),
    "dead_groups": (lambda step, prompt: SOUND if step < 13 or prompt == 0 else (("3",) * 4, -1.0), 24),
    # It earns 0.5 by half of the answers; then 0.625 by a quarter, since "4" is nearly right.
    "reward_hacking": (lambda step, _: SOUND if step < 17 else (("3", "4", "4", "4"), -1.0), 32),
}


@pytest.mark.parametrize("kind", PLANTED_RUNS)
def test_stage_three_warns_of_a_planted_fault_and_stops_if_asked_to(
    samples: Path, tmp_path: Path, kind: AlarmKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The alarms see what a real stage logs, with and without an update."""
    says, step = PLANTED_RUNS[kind]

    @contextmanager
    def sampler(vlm: VLM, store: Any, settings: Any, folder: Path, version: int) -> Iterator[Planted]:
        yield Planted(vlm, says, version)

    monkeypatch.setattr(lineside.rlvr, "sampler_of", sampler)
    vlm = make_tiny_vlm()
    settings = Rlvr(
        epochs=99, max_steps=step + 2, prompts=4, group_size=4, max_new_tokens=16, overlong_cache=0,
        max_sampling_rounds=1, prompt_choice="uniform", learning_rate=Rates(projector=1e-4, lm=1e-4), halt_on=(kind,),
    )  # fmt: skip
    with pytest.raises(CheckFailed, match=f"rlvr: halt_on: {kind} at step {step}"):
        rlvr(vlm, FeatureStore(None, vlm), samples, tmp_path / "rlvr", settings)
    rows = {row["kind"]: row for row in read_metrics(tmp_path / "rlvr" / WARNINGS)}
    assert rows[kind]["step"] == step and all("-prompt-" in name for name in rows[kind]["samples"])
    assert set(rows) - {kind} <= ({"dead_groups"} if kind == "entropy_collapse" else set())
    assert [row["step"] for row in read_metrics(tmp_path / "rlvr" / METRICS)] == list(range(1, step + 1))
    state = load_state(tmp_path / "rlvr" / "state")
    assert state is not None and state.step == step


def test_all_groups_dead_from_the_first_step_on_is_told() -> None:
    rows: list[Row] = [{"step": t, "reward": 0.0, "dead": 1.0, "length": 9.0, "entropy": 3.0, "seconds/rollout": t / 7}
                       for t in range(1, 60)]  # fmt: skip
    (alarm,) = told(rows)
    assert (alarm.kind, alarm.step, alarm.numbers) == ("dead_groups", 24, {"before": 1.0, "now": 1.0})
    assert told(row | {"dead": 0.9} for row in rows) == []  # as many from the first step on, and some are live
    assert told(row | {"seconds/rollout": 1.0} for row in rows) == []  # 59 updates on the same rollouts


def test_warnings_of_steps_that_are_trained_again_are_taken_back(tmp_path: Path) -> None:
    from lineside.training.metrics import MetricsLog

    for name in (METRICS, WARNINGS):
        (tmp_path / name).write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 3)))
    MetricsLog(tmp_path, step=2, label="sft").close()
    assert [row["step"] for row in read_metrics(tmp_path / WARNINGS)] == [1, 2]


def test_hacking_needs_both_to_be_sure() -> None:
    flat = [0.5 + 0.02 * (t % 2) for t in range(64)]
    rises = [value + t / 200 for t, value in enumerate(flat)]
    falls = [value - t / 200 for t, value in enumerate(flat)]
    assert reward_hacking({"reward": rises, "exact": falls}) is not None
    assert reward_hacking({"reward": rises, "exact": flat}) is None
    assert reward_hacking({"reward": flat, "exact": falls}) is None
    assert reward_hacking({"reward": rises[:20], "exact": falls[:20]}) is None  # too few steps
