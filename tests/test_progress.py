"""What the user sees of a long loop, off a terminal."""

import itertools

import pytest

from lineside import progress


@pytest.fixture
def clock(monkeypatch):
    """Every look at the clock finds it four seconds on."""
    ticks = itertools.count(0.0, 4.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(ticks))


def test_the_items_come_through_and_one_line_ends_the_loop(capsys):
    assert list(progress.track(iter("abc"), total=3, unit="frames", label="drop")) == ["a", "b", "c"]
    out, err = capsys.readouterr()
    assert out == ""  # stdout is for results
    assert len(err.splitlines()) == 1 and err.startswith("drop: 3 frames in ")


def test_a_line_every_ten_seconds_with_rate_and_time_left(capsys, clock):
    list(progress.track(range(6), total=6, unit="frames", label="drop"))
    lines = capsys.readouterr().err.splitlines()
    # looks: 0 in track, 4 as the loop starts, 8 to 28 before the items, 32 at the end
    assert lines[0] == "drop: 2 of 6 frames (0.17/s, 24.0 s left)"
    assert lines[-1] == "drop: 6 frames in 32.0 s (0.19/s)"
    assert len(lines) == 3


def test_leaving_early_still_says_how_far_it_came(capsys):
    loop = progress.track(range(100), total=100, unit="rows", label="read")
    next(loop), next(loop)
    loop.close()
    assert capsys.readouterr().err.startswith("read: 1 rows in ")


def test_say_prints_text_as_it_is(capsys):
    text = "shard [red]00001[/] " + "x" * 300
    progress.say(text)
    assert capsys.readouterr().err == text + "\n"
