"""What further training made a model forget: perplexity by hand, drift by part by hand, and two real checkpoints."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from lineside import cli
from lineside.data.store import write_samples
from lineside.errors import LinesideError
from lineside.judgement.forgetting import (
    LM,
    Change,
    Scorer,
    Text,
    caption_texts,
    change,
    choose_captions,
    drift,
    file_texts,
    likelihoods,
    part_of,
    shared_weights,
)
from lineside.model.checkpoint import save, weights_of
from tests.conftest import make_tiny_vlm
from tests.test_stages import sample


def scorer(loss: Callable[[int], float], tokens: Sequence[int]) -> Callable[[Sequence[Text]], list[torch.Tensor]]:
    """Each token of the n-th text has the log-probability -loss(n)."""
    return lambda texts: [torch.full((tokens[n],), -loss(n)) for n in range(len(texts))]


def told(texts: Sequence[Text], before: Scorer, after: Scorer) -> Change | None:
    return change(likelihoods(texts, before, after))


def texts(count: int, each: int = 1) -> list[Text]:
    return [Text(f"s{n // each}", "words", None) for n in range(count)]


def test_perplexity_is_over_tokens_not_over_texts() -> None:
    """Losses 1 over 1 token and 2 over 3 tokens: (1 + 6) / 4 = 1.75 nats; later all lose half a nat more."""
    tokens = (1, 3)
    found = told(texts(2), scorer(lambda n: 1.0 + n, tokens), scorer(lambda n: 1.5 + n, tokens))
    assert found is not None and (found.n, found.tokens) == (2, 4)
    assert found.before == pytest.approx(math.exp(1.75)) and found.after == pytest.approx(math.exp(2.25))
    assert found.ratio == pytest.approx(math.exp(0.5))
    assert found.interval == pytest.approx((math.exp(0.5),) * 2)  # every text loses the same: nothing is left to chance


def test_the_interval_is_by_scene() -> None:
    """Half of the scenes gain a nat and half lose one. Ten texts of each scene say no more than one does."""
    few = told(texts(20), scorer(lambda n: 2.0, (1,) * 20), scorer(lambda n: 1.0 + 2 * (n % 2), (1,) * 20))
    many = told(
        texts(200, each=10),
        scorer(lambda n: 2.0, (1,) * 200),
        scorer(lambda n: 1.0 + 2 * (n // 10 % 2), (1,) * 200),
    )
    assert few is not None and many is not None
    assert few.ratio == pytest.approx(1.0) and few.interval[0] < 0.8 and few.interval[1] > 1.25
    assert few.interval == pytest.approx(many.interval)


def test_without_texts_nothing_is_told() -> None:
    assert told([], scorer(lambda n: 0.0, ()), scorer(lambda n: 0.0, ())) is None


def test_another_tokenizer_is_compared_by_the_tokens_of_the_earlier_model() -> None:
    """A text of 4 tokens, 1 nat each, is 2 tokens of 3 nats to the later model: 6 nats over 4 tokens are 1.5 each."""
    found = told(texts(1), scorer(lambda n: 1.0, (4,)), scorer(lambda n: 3.0, (2,)))
    assert found is not None and found.tokens == 4
    assert (found.before, found.after) == (pytest.approx(math.e), pytest.approx(math.exp(1.5)))


@pytest.mark.parametrize("loss", [math.nan, math.inf, 1e4])
def test_a_model_to_which_a_text_is_impossible_is_named(loss: float) -> None:
    sound, broken = scorer(lambda n: 1.0, (3, 3)), scorer(lambda n: loss if n else 1.0, (3, 3))
    with pytest.raises(LinesideError, match="the later checkpoint gives a text a likelihood of 0, or none"):
        likelihoods(texts(2), sound, broken)
    with pytest.raises(LinesideError, match="the earlier checkpoint"):
        likelihoods(texts(2), broken, sound)


def test_drift_by_part_by_hand() -> None:
    """Projector: (3, 4) moves by (0, 1): 1/5. LM: 3 and 4 move by 0 and 1: 1/5 in all, 1/4 within attention."""
    one = lambda *numbers: torch.tensor(numbers)  # noqa: E731
    found = drift(
        [
            ("model.vision_tower.a.weight", one(1.0, 2.0), one(1.0, 2.0)),
            ("model.multi_modal_projector.linear_1.weight", one(3.0, 4.0), one(3.0, 5.0)),
            ("model.language_model.embed_tokens.weight", one(3.0), one(3.0)),
            ("model.language_model.layers.0.self_attn.q_proj.weight", one(4.0), one(5.0)),
        ]
    )
    assert found == pytest.approx({"encoder": 0, "projector": 0.2, LM: 0.2, "embeddings": 0, "attention": 0.25})


def test_two_models_are_no_before_and_after() -> None:
    with pytest.raises(LinesideError, match="was not trained from the other"):
        drift([("lm_head.weight", torch.zeros(2), torch.zeros(3))])
    with pytest.raises(LinesideError, match="only one of the two checkpoints has b"):
        list(shared_weights({"a": lambda: torch.zeros(1)}, {"a": lambda: torch.zeros(1), "b": lambda: torch.zeros(1)}))


def test_every_weight_of_a_checkpoint_has_a_part(tmp_path: Path) -> None:
    save(make_tiny_vlm(), tmp_path / "checkpoint")
    parts: dict[str, list[str]] = {}
    for name in weights_of(tmp_path / "checkpoint"):
        parts.setdefault(part_of(name), []).append(name)
    assert set(parts) == {"encoder", "projector", "embeddings", "attention", "feed-forward", "norms"}
    assert all("norm" in name for name in parts["norms"])
    with pytest.raises(LinesideError, match="holds no weights"):
        weights_of(tmp_path)


def test_texts_of_a_file_are_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("one\n\ntwo words\n")
    assert [text.words for text in file_texts(path)] == ["one", "two words"]
    path.write_text("\n")
    with pytest.raises(LinesideError, match="no line of text"):
        file_texts(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(LinesideError, match="expected a file of UTF-8 lines"):
        file_texts(path)
    with pytest.raises(LinesideError, match="cannot be read"):
        file_texts(tmp_path / "none")


def test_captions_are_chosen_by_id_and_only_of_the_split() -> None:
    captions = [sample("caption", n, 0, answer=f"{n} cans") for n in range(6)]
    chosen = choose_captions(captions, split="train", limit=3)
    assert len(chosen) == 3 and chosen == choose_captions(captions[::-1], split="train", limit=3)
    assert chosen == choose_captions(chosen, split="train", limit=3)
    seen, alone = (caption_texts(chosen, seen=s) for s in (True, False))
    assert all(t.sample is not None for t in seen) and all(t.sample is None for t in alone)
    assert [t.words for t in alone] == [t.words for t in seen]
    assert not choose_captions(captions, split="heldout", limit=3)


def test_evaluate_tells_what_was_forgotten_since_an_earlier_checkpoint(tmp_path: Path) -> None:
    """A copy forgot nothing and moved nowhere; a model whose LM was changed moved there and nowhere else."""
    vlm = make_tiny_vlm()
    save(vlm, tmp_path / "sft" / "checkpoint")
    with torch.no_grad():
        for parameter in vlm.language_model.parameters():
            parameter.mul_(1.1)
    save(vlm, tmp_path / "rlvr" / "checkpoint")
    held = [
        *(sample("qa", n, 0, question="how many red cans?", answer="3") for n in range(4)),
        *(sample("caption", n, 0, answer="the bin holds 3 red cans") for n in range(4)),
    ]
    write_samples(tmp_path / "samples", [replace(s, split="heldout") for s in held])
    (tmp_path / "words.txt").write_text("how many red cans\n")

    def told(after: str, *more: str) -> dict:
        command = ["evaluate", str(tmp_path / after / "checkpoint"), str(tmp_path / "samples"), "--json",
                   "--no-baselines", "--max-new-tokens", "4", *more]  # fmt: skip
        done = CliRunner().invoke(cli.app, command)
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    before = ("--before", str(tmp_path / "sft" / "checkpoint"))
    same = told("sft", *before)["forgetting"]
    assert same["captions"]["ratio"] == same["text"]["ratio"] == 1.0
    assert set(same["drift"].values()) == {0.0}
    moved = told("rlvr", *before, "--text", str(tmp_path / "words.txt"))
    assert moved["evaluation"]["n"] == 4
    assert moved["forgetting"]["captions"]["n"] == 4 and moved["forgetting"]["captions"]["ratio"] != 1.0
    assert moved["forgetting"]["text"]["n"] == 1
    drifted = moved["forgetting"]["drift"]
    assert drifted["encoder"] == drifted["projector"] == 0.0
    assert drifted[LM] == pytest.approx(0.1, rel=1e-3) and drifted["attention"] == pytest.approx(0.1, rel=1e-3)
    assert "evaluation" not in told("sft")  # without --before the output is the evaluation alone, as before
    command = ["evaluate", str(tmp_path / "sft" / "checkpoint"), str(tmp_path / "samples"), "--text", "words.txt"]
    refused = CliRunner().invoke(cli.app, command)
    assert refused.exit_code == 2
