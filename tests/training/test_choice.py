"""Which prompts stage 3 asks: the posterior's numbers by hand, what it learns, and a draw that is fair to tasks."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from lineside.training import choice
from lineside.training.choice import PassRates, answer_key, choose, cost_of, live_chance, prior_weight, prompt_key
from lineside.types import Costs, Group, Image, Judgement, Meta, Response, Sample, Source, Target, Verdict


def prompt(task: str, number: int, answer: str = "yes", **meta: object) -> Sample:
    return Sample(
        id=f"{task}-{number}",
        kind="prompt",
        images=(Image(f"{number}".encode()),),
        family="picking",
        task=task,
        question=f"{task}?",
        trace=None,
        answer=None,
        target=Target(kind="exact", provenance="sim", accepted=(answer,)),
        split="train",
        meta=Meta(scene=f"s{number}", extra=meta),
        source=Source("sim"),
    )


def group(sample: Sample, exact: int, answers: int = 8) -> Group:
    response = Response(None, "yes", "valid", "")
    verdicts = [Verdict(float(i < exact), i < exact, "") for i in range(answers)]
    return Group(sample, (), tuple(Judgement(response, verdict, verdict.reward) for verdict in verdicts))


def test_the_chance_of_a_live_group_by_hand() -> None:
    assert live_chance(1, 1, 2) == pytest.approx(1 / 3)  # uniform p: 1 - 2 / (G + 1)
    assert live_chance(1, 1, 8) == pytest.approx(7 / 9)
    assert live_chance(2, 1, 2) == pytest.approx(1 / 3)  # E[p^2] = 1/2, E[(1 - p)^2] = 1/6
    assert live_chance(5e5, 5e5, 8) == pytest.approx(1 - 2 / 2**8, abs=1e-4)  # p = 1/2 for certain
    assert live_chance(1e6, 1e-9, 8) == pytest.approx(0.0, abs=1e-6)
    assert live_chance(3, 7, 8) == pytest.approx(live_chance(7, 3, 8))


def test_a_prompt_that_was_never_met_is_judged_by_its_like() -> None:
    rates = PassRates()
    assert rates.prior(prompt("count", 0)) == (0.5, 0.5)
    rates.learn([group(prompt("count", 1), 8), group(prompt("count", 2), 8)])
    # all: two groups, the first faded by 1 / 200, none live; (1.995 + 2 * 0.5) / (1.995 + 2) and 2 * 0.5 / (1.995 + 2)
    wide = (1.995 + 1) / 3.995, 1 / 3.995
    task = (1.995 + 2 * wide[0]) / 3.995, 2 * wide[1] / 3.995
    assert rates.prior(prompt("count", 3, answer="no")) == pytest.approx(task)
    assert rates.prior(prompt("count", 3)) == pytest.approx(((1.995 + 2 * task[0]) / 3.995, 2 * task[1] / 3.995))
    assert rates.prior(prompt("other", 3)) == pytest.approx(wide)
    assert rates.chance(prompt("other", 3), 8) == pytest.approx(wide[1])


def test_the_prior_has_the_pools_mean_and_its_live_share() -> None:
    for mean, live in ((0.5, 7 / 9), (0.3, 0.4), (0.9, 0.2)):
        weight = prior_weight(mean, live, 8)
        assert live_chance(weight * mean, weight * (1 - mean), 8) == pytest.approx(live, abs=0.005)
    assert prior_weight(0.5, 7 / 9, 8) == pytest.approx(2.0, rel=0.02)  # Beta(1, 1)
    assert prior_weight(0.99, 1.0, 8) > 60 and prior_weight(0.5, 0.0, 8) < 0.02  # none has that: the nearest


def test_what_a_prompt_gave_itself_counts_most() -> None:
    rates = PassRates()
    always, never, mixed = (prompt("count", number) for number in range(3))
    rates.learn([group(always, 8), group(never, 0), group(mixed, 4)])
    unseen = prompt("count", 3)
    chances = [rates.chance(one, 8) for one in (always, never, unseen, mixed)]
    assert max(chances[:2]) < chances[2] < 0.5 < chances[3]
    rates.learn([group(mixed, 8)] * 3)  # it has been learnt since
    assert rates.chance(mixed, 8) < chances[3]


def test_memory_is_bounded_and_the_longest_unmet_is_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "KEPT", 5)
    rates = PassRates()
    rates.learn([group(prompt("count", number, answer=str(number)), 3) for number in range(4)])
    rates.learn([group(prompt("count", 0, answer="0"), 3)])
    rates.learn([group(prompt("count", number, answer=str(number)), 3) for number in range(4, 7)])
    assert len(rates.pools) == len(rates.prompts) == 5
    assert {prompt_key(prompt("count", n)) for n in (0, 3, 4, 5, 6)} == set(rates.prompts)
    assert {"", "picking/count"} < set(rates.pools)


def test_the_state_survives_json_and_is_a_copy() -> None:
    rates = PassRates()
    rates.learn([group(prompt("count", number), number) for number in range(8)])
    choose([prompt("count", 9)], 1, rates, answers=8, floor=0.3, stakes=False, seed=0)
    state = json.loads(json.dumps(vars(rates)))
    again = PassRates.of(state)
    assert vars(again) == vars(rates)
    again.learn([group(prompt("count", 1), 8)])
    again.owed["picking/count"] = 7.0
    assert state == vars(rates)


def test_the_draw_prefers_what_is_likely_to_be_live() -> None:
    rates = PassRates()
    for _ in range(20):
        rates.learn([group(prompt("solved", 1), 8), group(prompt("hopeless", 1), 0), group(prompt("even", 1), 4)])
    candidates = [prompt(task, number) for number in range(100, 200) for task in ("solved", "hopeless", "even")]
    settings = {"answers": 8, "stakes": False}
    taken = choose(candidates, 75, rates, floor=0.0, seed=1, **settings)  # pyright: ignore[reportArgumentType]
    tasks = [one.task for one in taken]
    assert len(taken) == 75 and tasks.count("even") > 45
    assert taken == choose(candidates, 75, rates, floor=0.0, seed=1, **settings)  # pyright: ignore
    assert taken != choose(candidates, 75, rates, floor=0.0, seed=2, **settings)  # pyright: ignore
    assert [candidates.index(one) for one in taken] == sorted(candidates.index(one) for one in taken)


def test_the_answers_of_a_task_are_asked_as_they_come() -> None:
    """A policy that tends to "yes" is live where the truth is "no". Asked that alone, it would learn to say "no"."""
    rates = PassRates()
    for _ in range(50):
        rates.learn([group(prompt("is_it", 1, answer="yes"), 8), group(prompt("is_it", 2, answer="no"), 4)])
    seen = [prompt("is_it", number, answer="yes") for number in range(100, 110)]
    rates.learn([group(one, 5) for one in seen])  # of all with this answer, these ten are live
    candidates = [*seen, *(prompt("is_it", number, answer="yes") for number in range(200, 250))]
    candidates += [prompt("is_it", number, answer="no") for number in range(300, 320)]
    for floor in (0.0, 0.5, 1.0):
        taken = choose(candidates, 20, rates, answers=8, floor=floor, stakes=False, seed=1)
        assert len(taken) == 20
        assert sum(answer_key(one.target) == "yes" for one in taken) in (14, 15, 16)  # three in four
        assert sum(one in seen for one in taken) >= 8
    single = [prompt("what", number, answer=f"{number}") for number in range(40)]
    rates.learn([group(one, 4 if number < 10 else 8) for number, one in enumerate(single)])
    taken = choose(single, 10, rates, answers=8, floor=0.0, stakes=False, seed=1)  # where each has its own
    assert sum(one in single[:10] for one in taken) >= 8


def test_prompts_asked_without_thinking_have_pools_of_their_own_and_are_asked_as_they_come() -> None:
    rates = PassRates()
    for _ in range(50):
        rates.learn([group(prompt("is_it", 1), 4), replace(group(prompt("is_it", 2), 8), thinking=False)])
    assert rates.prior(prompt("is_it", 3)) == pytest.approx((0.5, 1.0), abs=0.03)
    assert rates.prior(prompt("is_it", 3), thinking=False) == pytest.approx((1.0, 0.0), abs=0.03)
    candidates = [prompt("is_it", number) for number in range(100, 140)]
    quick = {one.id for one in candidates[:10]}
    for floor in (0.0, 0.5, 1.0):
        taken = choose(
            candidates, 20, rates, answers=8, floor=floor, stakes=False, seed=1, thinks=lambda one: one.id not in quick
        )
        assert len(taken) == 20 and sum(one.id in quick for one in taken) in (4, 5, 6)  # one in four, though never live


def test_no_task_starves() -> None:
    rates = PassRates()
    for _ in range(50):
        rates.learn([group(prompt("solved", 1), 8), group(prompt("even", 1), 4)])
    met = 0
    for seed in range(40):  # of 40 candidates one is of the rare task: uniform drawing would ask it once in 4 rounds
        candidates = [prompt("even", 1000 * seed + number) for number in range(39)] + [prompt("solved", 1000 * seed)]
        met += sum(
            one.task == "solved" for one in choose(candidates, 10, rates, answers=8, floor=0.8, stakes=False, seed=seed)
        )
    assert met == 40  # half of 0.8 times 10 is due to it each time, and it has one


def test_the_floor_is_the_same_for_every_task() -> None:
    rates = PassRates()
    for _ in range(50):
        rates.learn([group(prompt("solved", 1), 8), group(prompt("hopeless", 1), 0), group(prompt("even", 1), 4)])
    asked: list[str] = []
    for seed in range(30):
        few = {"solved": 5, "hopeless": 15, "even": 20}
        candidates = [prompt(task, 1000 * seed + number) for task, many in few.items() for number in range(many)]
        asked += [p.task for p in choose(candidates, 10, rates, answers=8, floor=0.4, stakes=False, seed=seed)]
    assert len(asked) == 300
    for task in ("solved", "hopeless"):  # 0.4 x 10 / 3 a round; what is left nearly always goes to the live task
        assert 39 <= asked.count(task) <= 46


def test_a_prompt_is_asked_once_a_round_and_all_are_where_they_are_few() -> None:
    few = [prompt("count", number) for number in (0, 1, 1, 0, 2)]
    taken = choose(few, 5, PassRates(), answers=8, floor=0.5, stakes=False, seed=0)
    assert [one.id for one in taken] == ["count-0", "count-1", "count-2"]
    assert choose([], 5, PassRates(), answers=8, floor=0.5, stakes=False, seed=0) == []


def test_stakes_weigh_only_where_they_are_asked_for() -> None:
    dear = asdict(Costs.of(1.0, false_pass=50.0))
    assert cost_of(prompt("a", 0, stakes=dear)) == 50.0 and cost_of(prompt("a", 0)) == 1.0
    candidates = [prompt("dear", n, stakes=dear) for n in range(100)] + [prompt("cheap", n) for n in range(100)]

    def share(stakes: bool) -> float:
        taken = choose(candidates, 50, PassRates(), answers=8, floor=0.0, stakes=stakes, seed=3)
        return sum(one.task == "dear" for one in taken) / 50

    assert 0.3 < share(False) < 0.7 and share(True) > 0.9


def test_prompts_of_a_task_are_pooled_by_their_answer() -> None:
    exact = Target(kind="exact", provenance="sim", accepted=("no",))
    assert answer_key(exact) == "no"
    assert answer_key(replace(exact, kind="set", accepted=("red can", "blue box"))) == "2"
    assert answer_key(Target(kind="number", provenance="sim", value=12.0)) == "12"
    assert answer_key(Target(kind="point", provenance="sim")) == answer_key(None) == ""


def failed(number: int, repeated: int, answers: int = 8) -> Group:
    """A group about an answer that an outcome said to be wrong, of which some rollouts repeat it."""
    wrong = Target("not", "outcome", wrong=(Target("exact", "outcome", accepted=("yes",)),))
    sample = replace(prompt("count", number), target=wrong)
    judged = [
        Judgement(Response(None, "", "valid", ""), Verdict(0, False, ""), 0, i < repeated) for i in range(answers)
    ]
    return Group(sample, (), tuple(judged))


def test_failed_answers_have_pools_of_their_own_and_a_group_that_only_repeats_is_live() -> None:
    rates = PassRates()
    rates.learn([failed(0, 8), failed(1, 0), failed(2, 1)])
    assert rates.prior(prompt("count", 9)) == (0.5, 0.5)
    fade = 1 - 1 / choice.MEMORY
    groups, live = fade**2 + fade + 1, fade**2 + 1  # the first and the last are live
    assert rates.pools["not"] == pytest.approx([groups, fade + 7 / 8, live])
    again, never = (rates.chance(failed(number, 0).sample, 8) for number in (0, 1))
    assert never < rates.chance(failed(9, 0).sample, 8) < again
    assert live_chance(1, 1, 2, all_fail=True) == pytest.approx(2 / 3)  # 1 - E[p^2]


def test_the_baseline_of_a_failed_answer_is_the_running_pass_rate_of_its_task() -> None:
    rates = PassRates()
    rates.learn([group(prompt("count", 1), 8), failed(2, 8), failed(3, 0)])
    fade = 1 - 1 / choice.MEMORY  # of the first of the two failed ones, which pass as little as the policy repeats them
    wide = (1 + 2 * 0.5) / (1 + fade + 1 + 2)
    assert rates.pass_rate(failed(2, 0).sample) == pytest.approx((1 + 2 * wide) / (1 + fade + 1 + 2))
    assert rates.pass_rate(prompt("other", 1)) == pytest.approx(wide)


def test_failed_answers_are_asked_as_often_as_they_come() -> None:
    """Nearly every group about a failed answer is live, few about one that succeeded. A policy that was asked the
    failed ones alone would learn to avoid its own answers."""
    rates = PassRates()
    for number in range(50):
        rates.learn([failed(number, 8), group(prompt("count", number), 8)])
    candidates = [failed(number, 0).sample for number in range(100, 110)]
    candidates += [prompt("count", number) for number in range(200, 230)]
    assert rates.chance(candidates[0], 8) > 0.95 > 0.05 > rates.chance(candidates[-1], 8)
    for floor in (0.0, 0.5, 1.0):
        taken = choose(candidates, 20, rates, answers=8, floor=floor, stakes=False, seed=1)
        assert len(taken) == 20 and sum(one.target == candidates[0].target for one in taken) in (4, 5, 6)
