"""The check itself: it finds a wrong weight, a wrong prompt and a wrong picture, and explains a right one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lineside.exporting import check as checking
from lineside.exporting.engines import Ours, PromptRefused, Response, masked
from tests.exporting.conftest import lively


def response(tokens: list[int], rows: list[list[float]]) -> Response:
    return Response(tuple(tokens), np.log(np.array(rows)))


def test_steps_are_compared_up_to_the_first_other_token() -> None:
    ours = response([0, 1, 0], [[0.5, 0.25, 0.25], [0.2, 0.6, 0.2], [0.9, 0.05, 0.05]])
    theirs = response([0, 2, 1], [[0.5, 0.25, 0.25], [0.2, 0.3, 0.5], [0.05, 0.9, 0.05]])
    found = checking.agreement([ours, ours], [theirs, ours])
    assert (found.questions, found.steps, found.greedy_same) == (
        2,
        5,
        1,
    )  # the third step of the first has another past
    assert found.max_difference == pytest.approx(np.log(0.5 / 0.2))


def test_unlikely_tokens_are_not_compared_and_untold_ones_count() -> None:
    ours = response([0], [[0.9, 0.1, 1e-7]])
    assert checking.agreement([ours], [response([0], [[0.9, 0.1, 1e-3]])]).max_difference == 0
    untold = Response((0,), np.array([[np.log(0.02), -np.inf, np.log(0.001)]]))  # at most 0.001
    found = checking.agreement([response([0], [[0.02, 0.1, 0.001]])], [untold])
    assert found.max_difference == pytest.approx(np.log(0.1 / 0.001))


def test_an_end_that_the_engine_does_not_tell_of_is_the_same_answer() -> None:
    ours = response([1, 0], [[0.5, 0.5], [0.9, 0.1]])
    found = checking.agreement([ours], [ours._replace(logprobs=ours.logprobs[:1])])
    assert (found.steps, found.greedy_same) == (1, 1)


def test_the_image_token_is_never_an_answer() -> None:
    found = masked(np.log(np.array([[0.5, 0.25, 0.25]])), image=0)
    np.testing.assert_allclose(np.exp(found), [[0, 0.5, 0.5]])


class Wrong(Ours):
    """Our own engine with a fault."""

    def __init__(self, vlm, fault: str) -> None:
        super().__init__(vlm)
        self.fault = fault

    def respond(self, pictures, question, *, thinking, max_new_tokens):
        if self.fault == "line end":  # as OpenVINO GenAI does behind a picture
            question = "\n" + question
        return super().respond(pictures, question, thinking=thinking, max_new_tokens=max_new_tokens)

    def prompt(self, pictures, question, *, thinking):
        if self.fault == "refuses" and question != question.strip():
            raise PromptRefused("white space")
        ids = super().prompt(pictures, question, thinking=thinking)
        return [*ids[:1], ids[0], *ids[1:]] if self.fault == "two bos" else ids


@pytest.mark.parametrize(
    "fault, wrong",
    [
        ("", ""),
        ("refuses", ""),
        ("line end", "log-probabilities differ"),
        ("two bos", "prompts have other tokens"),
    ],
)
def test_a_fault_is_found(fault: str, wrong: str) -> None:
    vlm = lively()
    asked = checking.questions(vlm)[:2]
    ours = checking.answers(Ours(vlm), asked, "ours")
    found = checking.compare(vlm, ours, Wrong(vlm, fault), asked, weights="fp32", prepare=False)
    assert (wrong in found.wrong) if wrong else not found.wrong
    assert found.prompts == 32 - 8 * (fault == "refuses")  # two of eight texts begin or end with white space


def test_prepared_pictures_are_what_the_encoder_sees() -> None:
    vlm = lively()
    for asked in checking.questions(vlm):
        ready = checking.prepared(vlm, asked.picture)
        assert ready.size == (32, 32)
        torch.testing.assert_close(vlm.pixels([ready]), vlm.pixels([asked.picture]), atol=1e-6, rtol=0)


def test_the_reference_is_right_behind_a_padded_pack() -> None:
    vlm = lively()
    found = Ours(vlm).respond([], "is there a blue box? " * 4, thinking=True, max_new_tokens=12)
    ids = torch.tensor([[*Ours(vlm).prompt(0, "is there a blue box? " * 4, thinking=True), *found.tokens[:-1]]])
    embeds = vlm.model.get_input_embeddings()(ids)
    with torch.no_grad():
        dense = vlm.lm.logits(vlm.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state[0])
    expected = dense.double().log_softmax(-1)[-len(found.tokens) :].numpy()
    finite = np.isfinite(expected)
    np.testing.assert_allclose(found.logprobs[finite], expected[finite], atol=1e-5)
