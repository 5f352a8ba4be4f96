"""The audit of a teacher: shares, confusions and recommendations worked by hand, and its page."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pil

from lineside.judgement.audit import (
    HELD,
    PICTURES,
    Audit,
    advice,
    confusion,
    lines,
    render,
    told_advice,
    with_pictures,
)
from lineside.judgement.stats import Interval
from lineside.types import Image, Mask, Target

NUMBER = Target("number", "record", value=4.0, tolerance=2.0)
YES = Target("choice", "record", accepted=("yes",), options=("yes", "no"))
POINT = Target("point", "record", x=0.5, y=0.5, mask=Mask(2, 2, (0, 4)))


def picture(number: int = 0) -> Image:
    out = io.BytesIO()
    Pil.new("RGB", (40, 30), (number % 256, 7, 80)).save(out, "PNG")
    return Image(out.getvalue())


def add(
    audit: Audit, number: int, said: str | None, *, target: Target = NUMBER, task: str = "a/count", **more: Any
) -> None:
    words = {"frame": f"f{number}", "scene": f"s{number}", "question": "How many?", "truth": "4", **more}
    audit.add(task=task, target=target, said=said, **words)


def test_shares_by_task_and_the_mean_over_tasks() -> None:
    audit = Audit()
    for scene in range(40):
        for _ in range(3):  # questions of one scene are right and wrong together
            add(audit, scene, "4" if scene % 4 else "5")
        add(audit, scene, "Yes.", target=YES, task="b/state", truth="yes")
    account = audit.to_json()
    assert audit.n == account["n"] == 160 and (account["scenes"], account["frames"]) == (40, 40)
    count, state = account["tasks"]["a/count"], account["tasks"]["b/state"]
    assert (count["exact"], count["n"]) == (0.75, 120) and (state["exact"], state["n"]) == (1.0, 40)
    assert account["exact"] == pytest.approx(0.875)
    # 40 scenes, not 120 questions: 1.96 * sqrt(0.75 * 0.25 / 40) = 0.134
    low, high = count["interval"]
    assert low == pytest.approx(0.75 - 0.134, abs=0.02) and high == pytest.approx(0.75 + 0.134, abs=0.02)
    assert state["interval"] == [pytest.approx(0.025 ** (1 / 40), abs=1e-4), 1.0]  # Clopper and Pearson
    assert count["confusions"] == [{"truth": "4", "said": "5", "n": 30, "question": "How many?"}]
    assert state["confusions"] == []
    told = lines({**account, "cost": {"answers": 40, "prompt_tokens": 52_000, "completion_tokens": 3_100, "usd": 0.18}})
    assert told[0].startswith("audit: the teacher is exact in 87.5% (")
    assert told[0].endswith(
        "n 160, the mean over 2 tasks, on 40 frames whose records it did not see; it cost 40 answers, 52,000 tokens "
        "in, 3,100 out, 0.18 $"
    )
    assert [line.split()[0] for line in told[1:]] == ["a/count", "b/state"]  # the worst first
    assert "needs stage 3; most often '5' for '4' (30)" in told[1]


@pytest.mark.parametrize(
    ("exact", "low", "high", "scenes", "told"),
    [
        (0.99, 0.96, 1.0, 100, "trust the teacher"),
        (0.95, 0.95, 0.98, 100, "trust the teacher"),
        (0.97, 0.94, 1.0, 100, "probably trust the teacher (some 125 scenes more would tell)"),  # (0.03 / 0.02)^2 - 1
        (0.951, 0.93, 0.97, 100, "probably trust the teacher"),  # too near: no number of scenes is worth it
        (0.75, 0.60, 0.90, 50, "needs stage 3"),
        (0.80, 0.45, 0.96, 3, "probably needs stage 3 (some 6 scenes more would tell)"),  # 3 * ((0.255 / 0.15)^2 - 1)
        (0.52, 0.46, 0.58, 100, "probably needs stage 3 (some 800 scenes more would tell)"),  # (0.06 / 0.02)^2 - 1
        (0.40, 0.33, 0.47, 100, "needs records"),
        (0.0, 0.0, 0.5, 4, "probably needs records (some 1 scene more would tell)"),
        (1.0, 0.0, 1.0, 1, "probably trust the teacher"),  # of one scene nothing can be said
    ],
)
def test_what_is_recommended(exact: float, low: float, high: float, scenes: int, told: str) -> None:
    assert told_advice(advice(exact, Interval(low, high), scenes=scenes)) == told


@pytest.mark.parametrize(
    ("truth", "said", "target", "counted"),
    [
        ("Yes", " NO. ", YES, ("yes", "no")),
        ("4", None, NUMBER, ("4", "nothing")),
        ("4", "  ", NUMBER, ("4", "nothing")),
        ("0.50, 0.50", "0.1, 0.2", POINT, ("on it", "beside it")),
        ("0.50, 0.50", None, POINT, ("on it", "nothing")),
        ("4", "x" * 300, NUMBER, ("4", "x" * 80)),
    ],
)
def test_wrong_answers_are_counted_by_what_was_said_for_what(
    truth: str, said: str | None, target: Target, counted: tuple[str, str]
) -> None:
    assert confusion(truth, said, target) == counted


def test_the_commonest_confusions_come_with_a_picture(tmp_path: Path) -> None:
    audit = Audit()
    for number in range(3 * HELD):  # a hundred that occur once before one that occurs often
        add(audit, number, f"{number + 5}", image=picture(number))
    for number in range(4):
        add(audit, 200 + number, "3", image=picture(200 + number))
    account = audit.to_json(tmp_path)
    confusions = account["tasks"]["a/count"]["confusions"]
    assert (confusions[0]["said"], confusions[0]["n"]) == ("3", 4) and len(confusions) == 5
    shown = {c["picture"] for c in confusions if "picture" in c}
    assert len(shown) == 4  # the pictures of the first were held; the fifth confusion came too late for one
    assert {path.stem for path in (tmp_path / PICTURES).iterdir()} == shown
    inside = with_pictures(account, tmp_path)["tasks"]["a/count"]["confusions"]
    assert sum(c.get("picture", "").startswith("data:image/jpeg;base64,") for c in inside) == 4
    for path in (tmp_path / PICTURES).iterdir():
        path.unlink()
    assert not any("picture" in c for c in with_pictures(account, tmp_path)["tasks"]["a/count"]["confusions"])


def test_a_hostile_reply_is_text_on_the_page(tmp_path: Path) -> None:
    audit = Audit()
    hostile = "</td><script>alert(1)</script>{{ 7*7 }}"
    for number in range(3):
        add(audit, number, hostile, question=hostile, image=picture())
    page = render(with_pictures(audit.to_json(tmp_path), tmp_path), name=hostile)
    assert "<script" not in page and "alert(1)" in page and "{{ 7*7 }}" in page
    assert "needs records" in page and "3 times" in page and "data:image/jpeg" in page
