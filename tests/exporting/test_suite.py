"""Exact match lost: the checkpoint against itself, and against an engine that always or never answers right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lineside.data.store import write_samples
from lineside.errors import LinesideError
from lineside.exporting.engines import Ours, Response
from lineside.exporting.suite import judge_checkpoint, lost
from lineside.types import Image, Target
from tests.conftest import picture
from tests.exporting.conftest import lively
from tests.judgement.conftest import question


class _Says(Ours):
    """Always the same answer."""

    def __init__(self, vlm, answer: str) -> None:
        super().__init__(vlm)
        self.answer = answer

    def respond(self, pictures, question, *, thinking, max_new_tokens):
        assert [picture.size for picture in pictures] == [(48, 48)]
        tokens = self.vlm.render.response("two red can; so 2" if thinking else None, self.answer).tokens
        return Response(tokens, np.zeros((len(tokens), 1000)))


def test_what_is_lost_is_paired_by_question(tmp_path: Path) -> None:
    samples = [
        question(
            f"q{i}",
            Target("number", "sim", value=2, tolerance=1),
            question="How many red cans are in the bin?",
            task="count",
            answer="2",
            images=(Image(picture(i)),),
        )
        for i in range(4)
    ]
    write_samples(tmp_path / "data", samples)
    vlm = lively()
    judged = judge_checkpoint(vlm, tmp_path / "data", split="heldout", limit=3)
    assert [len(rows) for rows in judged.rows.values()] == [3, 3]
    same = lost(vlm, Ours(vlm), judged, split="heldout", prepare=None)
    assert [(one.mode, one.n, one.lost, one.same_answers) for one in same] == [("think", 3, 0, 1), ("fast", 3, 0, 1)]
    # A random model is never right here: an engine that always is gains everything, one that never is loses nothing.
    right = lost(vlm, _Says(vlm, "2"), judged, split="heldout", prepare=None)
    assert [(one.checkpoint, one.export, one.lost) for one in right] == [(0, 1, -1), (0, 1, -1)]
    wrong = lost(vlm, _Says(vlm, "7"), judged, split="heldout", prepare=None)
    assert [(one.export, one.lost) for one in wrong] == [(0, 0), (0, 0)]
    with pytest.raises(LinesideError, match="no question of split shifted can be judged"):
        judge_checkpoint(vlm, tmp_path / "data", split="shifted", limit=None)
