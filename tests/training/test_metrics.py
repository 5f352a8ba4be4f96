"""The log survives a kill, and a resumed run has each step once."""

import errno
import json
import math
import threading

import pytest
import torch

from lineside.training.metrics import MetricsLog, read_metrics, write_table


def test_rows_events_and_console(tmp_path, capsys):
    with MetricsLog(tmp_path, label="sft", show=("loss", "lr")) as log:
        log.log(1, {"loss": torch.tensor(1.5), "lr": 3e-4, "tokens": 7}, of=2)
        log.log(2, {"loss": math.nan, "lr": 1}, of=2)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [(r["step"], r["loss"]) for r in rows] == [(1, 1.5), (2, None)]
    assert rows[0]["tokens"] == 7 and rows[0]["time"] > 1.6e9
    assert capsys.readouterr().err.splitlines() == [
        "sft step 1 of 2: loss 1.5  lr 0.0003",
        "sft step 2 of 2: loss nan  lr 1",
    ]

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("tokens")] == [(1, 7.0)]


def test_resuming_cuts_a_torn_line_and_steps_that_were_lost(tmp_path):
    with MetricsLog(tmp_path, label="sft") as log:
        for step in (1, 2, 3, 4):
            log.log(step, {"loss": step})
    path = tmp_path / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"step": 5, "lo')  # killed here; the state was last saved at step 2
    assert [r["step"] for r in read_metrics(path)] == [1, 2, 3, 4]
    with MetricsLog(tmp_path, label="sft", step=2) as log:
        log.log(3, {"loss": 30})
    lines = path.read_text().splitlines()
    assert [(json.loads(x)["step"], json.loads(x)["loss"]) for x in lines] == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_resuming_cuts_the_table_and_the_events_as_well(tmp_path):
    with MetricsLog(tmp_path, label="rlvr") as log:
        for step in (1, 2, 3):
            log.log(step, {"reward": step})
            write_table(tmp_path, step, [{"id": f"a{step}"}, {"id": f"b{step}"}])
    for saved, value in ((2, 30), (0, 10)):  # the second time before anything was saved
        with MetricsLog(tmp_path, label="rlvr", step=saved) as log:
            log.log(saved + 1, {"reward": value})
            write_table(tmp_path, saved + 1, [{"id": f"{value}"}])
        rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
        kept = [name for step in range(1, saved + 1) for name in (f"a{step}", f"b{step}")]
        assert [row["id"] for row in rows] == [*kept, str(value)]

        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(tmp_path / "tensorboard"))
        events.Reload()
        found = [(e.step, e.value) for e in events.Scalars("reward")]
        assert found == [*((step, float(step)) for step in range(1, saved + 1)), (saved + 1, float(value))]


def test_a_line_is_on_disk_as_soon_as_it_is_logged(tmp_path):
    log = MetricsLog(tmp_path, label="sft")
    log.log(1, {"loss": 2.0})
    assert read_metrics(tmp_path / "metrics.jsonl")[0]["loss"] == pytest.approx(2.0)
    log.close()


def test_a_full_disk_is_told_to_the_stage_and_no_thread_writes_events(tmp_path, monkeypatch):
    from tensorboard.summary.writer.record_writer import RecordWriter

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    threads = threading.active_count()
    log = MetricsLog(tmp_path, label="rlvr")
    assert threading.active_count() == threads  # a thread would print a stack trace of its own
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(RecordWriter, "flush", full)
        log.log(1, {"loss": 2.0})
    log.close()
