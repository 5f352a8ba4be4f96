"""Both baselines on made-up features in which it is known who can know what."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from lineside.errors import LinesideError
from lineside.judgement.baselines import Baselines, fit_baselines, score_baselines
from lineside.judgement.heads import Classes, Inputs, fit_head
from lineside.types import Image, Mask, Sample, Target
from tests.judgement.conftest import choice, question

COLOURS = ("red", "blue", "green", "white")
TOKENS, WIDTH = 4, 12


def seen(image: Image) -> Tensor:
    """(tokens, width) of noise; numbers 0 to 3 carry which colours a picture named like `7:0,2` shows."""
    name, _, colours = image.bytes.decode().partition(":")
    noise = torch.Generator().manual_seed(int(hashlib.sha256(name.encode()).hexdigest()[:8], 16))
    features = 0.1 * torch.randn(TOKENS, WIDTH, generator=noise)
    for colour in filter(None, colours.split(",")):
        features[int(colour) % TOKENS, int(colour)] += 2.0
    return features


def features(images: Sequence[Image]) -> Tensor:
    return torch.stack([seen(image) for image in images])


def is_there(count: int, split: Any, *, offset: int = 0) -> list[Sample]:
    """Is there a <colour> part? The answer is balanced for every colour, and shown by the picture."""
    samples = []
    for i in range(offset, offset + count):
        asked, present = i % 4, (i // 4) % 2 == 0
        shown = {(asked + 1 + i % 3) % 4} | ({asked} if present else set())
        image = Image(f"{i}:{','.join(map(str, sorted(shown)))}".encode())
        text = f"Is there a {COLOURS[asked]} part?"
        answer = choice("yes" if present else "no")
        samples.append(question(f"q{i}", answer, task="there", question=text, images=(image,), split=split))
    return samples


def test_the_classifier_reads_the_picture_and_the_question_and_the_blind_one_cannot() -> None:
    fitted = fit_baselines(is_there(600, "train"), features, dev=is_there(120, "dev", offset=600), seed=0)
    n, blind, classifier = score_baselines(fitted, is_there(200, "heldout", offset=800))["picking/there"]
    assert n == 200
    assert blind == pytest.approx(0.5, abs=0.1)
    assert classifier > 0.9


def test_the_blind_baseline_finds_what_the_question_gives_away() -> None:
    def leaking(count: int, offset: int = 0) -> list[Sample]:
        rows = []
        for i in range(offset, offset + count):
            colour = COLOURS[i % 4]
            answer = choice("yes" if colour in ("red", "blue") else "no")
            rows.append(
                question(f"q{i}", answer, question=f"Is there a {colour} part?", images=(Image(str(i).encode()),))
            )
        return rows

    fitted = fit_baselines(leaking(80), features, dev=leaking(40, 80), seed=0)
    assert score_baselines(fitted, leaking(40, 200))["picking/empty"][1] == 1.0


def test_sets_points_and_unknown_tasks() -> None:
    def slots(count: int, offset: int = 0) -> list[Sample]:
        rows = []
        for i in range(offset, offset + count):
            members = tuple(str(c + 1) for c in range(4) if (i >> c) & 1)
            shown = ",".join(str(int(m) - 1) for m in members)
            target = Target("set", "sim", accepted=members)
            answer = ", ".join(members) or "none"
            image = Image(f"{i}:{shown}".encode())
            rows.append(
                question(f"s{i}", target, task="slots", question="Which slots?", answer=answer, images=(image,))
            )
        return rows

    mask = Mask(2, 2, (0, 1, 3))  # the upper left quarter
    point = Target("point", "sim", x=0.2, y=0.3, mask=mask)
    points = [question(f"p{i}", point, task="pick", question="Where?", answer="0.20, 0.30") for i in range(20)]
    fitted = fit_baselines([*slots(320), *points], features, dev=[*slots(64, 320), *points[:5]], seed=0)
    scores = score_baselines(fitted, [*slots(64, 400), *points])
    assert scores["picking/slots"][2] > 0.9  # member by member; each of the 16 sets was seen too
    assert scores["picking/slots"][1] < 0.2
    assert scores["picking/pick"] == (20, 1.0, 1.0)  # all in one cell of the grid
    (guess,) = fitted.predict([question("u", choice("yes"), task="unheard of")])
    assert guess.blind == guess.classifier != ""


def test_same_seed_same_guesses_and_the_global_generator_is_left_alone() -> None:
    train, asked = is_there(120, "train"), is_there(40, "heldout", offset=200)
    torch.manual_seed(1)
    first = fit_baselines(train, features, seed=3).predict(asked)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.rand(1) == after
    assert fit_baselines(train, features, seed=3).predict(asked) == first


def test_each_picture_is_encoded_once() -> None:
    encoded: list[bytes] = []

    def counting(images: Sequence[Image]) -> Tensor:
        encoded.extend(image.bytes for image in images)
        return features(images)

    fitted: Baselines = fit_baselines(is_there(40, "train"), counting, dev=is_there(20, "dev", offset=40))
    fitted.predict(is_there(60, "heldout"))
    assert len(encoded) == len(set(encoded)) == 60


def test_no_targets_no_baseline() -> None:
    with pytest.raises(LinesideError, match="no training question has a target"):
        fit_baselines([question("a", None)], features)


def test_classes_decode_what_they_encode() -> None:
    answers = ["1, 3", "none", "2"]
    members = Classes.of(answers, members=True)
    assert members.names == ("1", "2", "3")
    assert members.decode(members.encode(answers) - 0.5) == answers
    whole = Classes.of([*answers, "2"], members=False)
    assert whole.names[0] == "2"
    assert whole.decode(whole.encode(answers)) == answers


def test_a_task_whose_only_answer_is_the_empty_set() -> None:
    inputs = Inputs(torch.zeros(4, 0), torch.zeros(4, 2))
    head, best = fit_head(
        "linear", inputs, ["none"] * 4, lambda h: float(h.predict(inputs) == ["none"] * 4), members=True, seed=0
    )
    assert best == 1.0 and head.predict(inputs) == ["none"] * 4
