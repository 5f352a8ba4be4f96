"""Which records are wrong: the mixture worked by hand, planted wrong records found, and right ones left alone."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

from lineside.data.recorded import Record
from lineside.judgement.crossfit import Opinion, cross_fit
from lineside.judgement.suspects import estimate, expected_wrong, find_suspects, opinions_of_model
from lineside.judgement.suspects_page import account, review_question, table
from lineside.types import Target

COLOURS = ("red", "blue", "green", "white")


def record(
    number: int, answer: str, *, said: str | None = None, question: str = "Which colour?", **sources: str
) -> Record:
    target = Target("exact", "record", accepted=(answer,))
    name = f"{number:04}"
    return Record(
        name, name, name, name, "bin", "colour", "", question, answer, target, said, {"column": "c", **sources}
    )


def scene(count: int, *, noise: float = 0.3) -> tuple[list[Record], dict[str, Tensor]]:
    """Records that are all right, and features from which the answer can be told."""
    draw = torch.Generator().manual_seed(0)
    records = [record(i, COLOURS[i % 4]) for i in range(count)]
    seen = {r.picture: noise * torch.randn(8, generator=draw) for r in records}
    for i, r in enumerate(records):
        seen[r.picture][i % 4] += 2.0
    return records, seen


def corrupted(records: Sequence[Record], share: float, seed: int = 0) -> tuple[list[Record], set[str]]:
    draw = random.Random(seed)
    wrong = set(draw.sample([r.id for r in records], round(share * len(records))))
    made = []
    for r in records:
        answer = draw.choice([c for c in COLOURS if c != r.answer]) if r.id in wrong else r.answer
        made.append(replace(r, answer=answer, target=Target("exact", "record", accepted=(answer,))))
    return made, wrong


def opinions(records: Sequence[Record], truths: Sequence[str], sure: float = 0.9) -> list[Opinion | None]:
    return [Opinion(t, sure, t == r.answer, 0.0 if t == r.answer else 1 / 3) for r, t in zip(records, truths)]


def test_the_share_of_wrong_records_worked_by_hand() -> None:
    """Ratios of 0 are surely right and of infinity surely wrong: 3 of 30 is the share. A ratio of 1 says nothing."""
    scenes = [str(i) for i in range(30)]
    found = estimate([1e12] * 3 + [0.0] * 27, scenes)
    assert found.share == pytest.approx(0.1, abs=1e-4)
    assert found.interval.low < 0.1 < found.interval.high
    # sum log(1 - e) over 27 + log(e) over 3: the interval's ends lose 1.92
    for end in found.interval:
        lost = 27 * math.log(0.9 / (1 - end)) + 3 * math.log(0.1 / end)
        assert lost == pytest.approx(1.92, abs=0.01)
    nothing = estimate([1.0] * 30, scenes)
    assert nothing.interval == (0.0, pytest.approx(1.0))
    assert estimate([0.0] * 30, scenes).share == 0.0
    assert estimate([0.0] * 30, scenes).interval.high == pytest.approx(1 - math.exp(-1.92 / 30), abs=1e-4)


def test_records_of_one_scene_count_once() -> None:
    ratios = [100.0] * 4 + [0.01] * 56
    apart = estimate(ratios, [str(i) for i in range(60)])
    together = estimate(ratios, [str(i // 4) for i in range(60)])
    assert together.share == apart.share
    assert together.interval.high - together.interval.low > apart.interval.high - apart.interval.low


def test_planted_wrong_records_are_found_by_heads_that_did_not_learn_them() -> None:
    records, seen = scene(400)
    made, wrong = corrupted(records, 0.08)
    found = find_suspects(made, cross_fit(made, seen, seed=0))
    flagged = {suspect.record.id for suspect in found.above(0.3)}
    assert len(flagged & wrong) >= 0.9 * len(wrong)
    assert len(flagged & wrong) >= 0.9 * len(flagged)
    assert 0.6 * len(flagged) < expected_wrong(found.above(0.3)) <= len(flagged)
    n, estimated = found.by_source["column"]["c"]
    assert n == 400 and estimated.interval.low <= len(wrong) / 400 <= estimated.interval.high


def test_right_records_are_left_alone_by_good_and_by_useless_features() -> None:
    records, seen = scene(160)
    assert not find_suspects(records, cross_fit(records, seen, seed=0)).above(0.3)
    noise = {key: torch.randn(8, generator=torch.Generator().manual_seed(int(key))) for key in seen}
    assert not find_suspects(records, cross_fit(records, noise, seed=0)).above(0.3)


def test_a_head_has_not_seen_the_records_of_its_own_scene() -> None:
    """Every picture is alike but for its scene's mark, and scenes have one answer each: only memory could know it."""
    records = [replace(record(i, COLOURS[(i // 5) % 4]), scene=str(i // 5)) for i in range(200)]
    seen = {r.picture: torch.eye(40)[i // 5] * 5 for i, r in enumerate(records)}
    said = [opinion for opinion in cross_fit(records, seen, seed=0) if opinion is not None]
    assert sum(opinion.agrees for opinion in said) / len(said) < 0.45  # a head with memory: 1.0


def test_an_answer_that_no_other_scene_has_has_no_opinion() -> None:
    records, seen = scene(40, noise=2.0)  # heads that learn little stop early
    odd = replace(records[7], answer="aples", target=Target("exact", "record", accepted=("aples",)))
    said = cross_fit([*records[:7], odd, *records[8:]], seen, seed=0)
    assert [number for number, opinion in enumerate(said) if opinion is None] == [7]


def test_what_cannot_be_judged_is_counted_by_reason() -> None:
    truths = [COLOURS[i % 4] for i in range(100)]
    records = [record(i, t) for i, t in enumerate(truths)]
    one_lacks = [None, *opinions(records, truths)[1:]]
    assert find_suspects(records, one_lacks).left_out == {"bin/colour: no other scenes have the same answer": 1}
    few = find_suspects(records[:40], opinions(records[:40], truths))
    assert not few.suspects and few.left_out == {"bin/colour: 40 scenes, 60 are needed": 40}
    poor = find_suspects(records, opinions(records, truths[1:] + truths[:1]))
    assert not poor.suspects and "no judge is good enough" in next(iter(poor.left_out))


def test_the_source_of_the_wrong_records_stands_out() -> None:
    records, seen = scene(360)
    records = [
        replace(r, sources={"column": "c", "person": "bea" if i % 6 == 0 else "al"}) for i, r in enumerate(records)
    ]
    made, wrong = corrupted(records, 0.4)
    made = [m if m.sources["person"] == "bea" else r for m, r in zip(made, records)]
    wrong = {r.id for r in made if r.id in wrong and r.sources["person"] == "bea"}
    found = find_suspects(made, cross_fit(made, seen, seed=0))
    bea, al = (found.by_source["person"][name] for name in ("bea", "al"))
    assert bea[1].interval.low <= len(wrong) / 60 <= bea[1].interval.high
    assert al[1].interval.high < 0.05 < bea[1].interval.low
    told = account(found, cut=0.5, judges="", left_out={})
    assert [row["value"] for row in told["by_source"]["person"]] == ["bea", "al"]
    assert told["by_source"]["person"][0]["flagged"] == pytest.approx(len(wrong), abs=4)


def test_names_of_sources_are_text_and_not_markup() -> None:
    row = {"value": "[/b]", "n": 9, "wrong": 2.0, "interval": [1.0, 3.0], "share": 0.2, "flagged": 2}
    told = {"flagged": 2, "records": 9, "cut": 0.5, "by_source": {"[/i]": [row]}}
    console = Console(width=160, file=StringIO())
    console.print(table(told))
    assert isinstance(console.file, StringIO) and "[/i]    [/b]" in console.file.getvalue()


def test_a_teacher_that_contradicts_the_record_makes_it_more_suspect_and_one_that_agrees_less() -> None:
    truths = [COLOURS[i % 4] for i in range(200)]
    records = [record(i, truths[i], said=truths[i]) for i in range(200)]
    records[3] = record(3, "red", said="white")
    records[7] = record(7, "red", said="red")
    records[11] = record(11, "red")
    found = {s.record.id: s.wrong for s in find_suspects(records, opinions(records, truths)).suspects}
    assert found["0003"] > found["0011"] > found["0007"]


def test_a_model_in_place_of_heads_and_the_order_of_records_changes_nothing() -> None:
    truths = [COLOURS[i % 4] for i in range(240)]
    made, wrong = corrupted([record(i, t) for i, t in enumerate(truths)], 0.1)
    answers = {r.id: (t, 0.97) for r, t in zip(made, truths)}
    found = find_suspects(made, [None] * 240, opinions_of_model(made, answers))
    assert {suspect.record.id for suspect in found.above(0.5)} == wrong
    order = np.random.default_rng(0).permutation(240)
    again = find_suspects([made[i] for i in order], [None] * 240, opinions_of_model([made[i] for i in order], answers))
    assert [s.record.id for s in again.suspects] == [s.record.id for s in found.suspects]
    assert again.suspects[0].wrong == pytest.approx(found.suspects[0].wrong, abs=1e-6)


def test_an_unsure_judge_makes_no_suspects() -> None:
    """It is right in half of all records, whatever its confidence says."""
    draw = random.Random(0)
    records = [record(i, draw.choice(COLOURS)) for i in range(300)]
    said = [r.answer if draw.random() < 0.5 else draw.choice(COLOURS) for r in records]
    assert not find_suspects(records, opinions(records, said, sure=0.999)).above(0.5)


def test_a_suspect_as_a_question_for_a_person() -> None:
    truths = [COLOURS[i % 4] for i in range(120)]
    records = [record(i, t) for i, t in enumerate(truths)]
    records[0] = record(0, "white", said="red")
    suspect = find_suspects(records, opinions(records, truths)).suspects[0]
    question = review_question(suspect, "rlvr think")
    assert (question.id, question.task_name, question.form.kind) == ("0000", "bin/colour", "exact")
    assert [(said.by, said.answer) for said in question.said] == [
        ("record", "white"), ("teacher", "red"), ("model", "red"),
    ]  # fmt: skip
    assert question.said[2].name == "classifier heads" and 0.5 < (question.said[2].confidence or 0) <= 1
