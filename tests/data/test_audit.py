"""How often a teacher is right: shares and intervals worked by hand."""

from __future__ import annotations

import pytest

from lineside.data.audit import Exactness, lines


def test_shares_by_task_and_the_mean_over_tasks() -> None:
    found = Exactness()
    for scene in range(40):
        for _ in range(3):  # questions of one scene are right and wrong together
            found.add(f"s{scene}", "a/count", scene % 4 > 0)
        found.add(f"s{scene}", "b/state", True)
    account = found.to_json()
    assert found.n == account["n"] == 160 and account["scenes"] == 40
    count, state = account["tasks"]["a/count"], account["tasks"]["b/state"]
    assert (count["exact"], count["n"]) == (0.75, 120) and (state["exact"], state["n"]) == (1.0, 40)
    assert account["exact"] == pytest.approx(0.875)
    # 40 scenes, not 120 questions: 1.96 * sqrt(0.75 * 0.25 / 40) = 0.134
    low, high = count["interval"]
    assert low == pytest.approx(0.75 - 0.134, abs=0.02) and high == pytest.approx(0.75 + 0.134, abs=0.02)
    assert state["interval"] == [pytest.approx(0.025 ** (1 / 40), abs=1e-4), 1.0]  # Clopper and Pearson
    told = lines(account)
    assert told[0].startswith("the teacher's answers against the records: exact in 87.5% (")
    assert told[0].endswith("n 160, macro over 2 tasks")
    assert [line.split()[0] for line in told[1:]] == ["a/count", "b/state"]  # the worst first
