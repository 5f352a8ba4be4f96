"""Decoding by OpenVINO: the answers of the local engine, for trees that join, wait and leave between steps."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from lineside.backends.openvino import FACTS, OpenVino
from lineside.backends.reference import Reference
from lineside.errors import LinesideError
from lineside.exporting import openvino_files
from lineside.model.features import FeatureStore
from lineside.model.generate import Prompt, generate
from lineside.model.vlm import VLM
from lineside.types import Image, Rollout
from tests.conftest import picture
from tests.exporting.conftest import lively

pytest.importorskip("openvino")
QUESTIONS = ["how many red cans are in the bin?", "is there a blue box?", "which slots still need filling?", "empty?"]
NEW = 12


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The decoder of one model as fp32 and int8."""
    found = {}
    for weights in ("fp32", "int8"):
        found[weights] = tmp_path_factory.mktemp("openvino")
        openvino_files.write_decoder(lively(), found[weights], weights)
        facts = {"files": openvino_files.FILES, "settings": openvino_files.settings_of(weights)}
        (found[weights] / FACTS).write_text(json.dumps(facts))
    return found


def model(folder: Path | None) -> VLM:
    vlm = lively()
    vlm.model.requires_grad_(False)
    vlm.use(Reference() if folder is None else OpenVino(Reference(), folder))
    return vlm


def prompts() -> list[Prompt]:
    """Questions of different lengths about three pictures, with thinking on and off."""
    images = [Image(picture(i)) for i in range(3)]
    return [Prompt((images[i % 3],), QUESTIONS[i % 4], thinking=i % 2 == 0) for i in range(9)]


def answers(vlm: VLM, **more: float) -> list[Rollout]:
    groups = generate(vlm, FeatureStore(None, vlm), prompts(), max_new_tokens=NEW, **more)  # type: ignore[arg-type]
    return [rollout for group in groups for rollout in group]


def test_it_tells_nobody(exports: dict[str, Path]) -> None:
    """OpenVINO's own telemetry starts a process for each message to its makers."""
    from openvino.tools.ovc import telemetry_utils

    assert telemetry_utils.tm.__name__ == "openvino.tools.ovc.telemetry_stub"


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "samples": 2, "seed": 5}])
def test_it_answers_as_the_local_engine_does(exports: dict[str, Path], sampling: dict[str, float]) -> None:
    ours, theirs = answers(model(None), **sampling), answers(model(exports["fp32"]), **sampling)
    assert [one.tokens for one in theirs] == [one.tokens for one in ours]
    assert len({one.tokens for one in ours}) >= 4  # they do not all say the same
    for a, b in zip(ours, theirs, strict=True):
        assert a.sampler_logprobs == pytest.approx(b.sampler_logprobs, abs=1e-4)


def test_int8_differs_by_rounding_only(exports: dict[str, Path]) -> None:
    pairs = list(zip(answers(model(None)), answers(model(exports["int8"])), strict=True))
    gaps = []
    for a, b in pairs:
        same = next((i for i, (x, y) in enumerate(zip(a.tokens, b.tokens)) if x != y), len(a.tokens))
        gaps += [abs(x - y) for x, y in zip(a.sampler_logprobs[:same], b.sampler_logprobs[:same])]
    assert 1e-5 < max(gaps) < 2.0  # the bound of an int8 export (exporting/check.py); 0 would be other weights
    assert np.mean(gaps) < 0.1


def test_a_folder_that_is_no_export_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LinesideError, match=r"cannot load this export.*export it anew"):
        OpenVino(Reference(), tmp_path)
    (tmp_path / FACTS).write_text(json.dumps({"files": {"decoder": "no.xml"}, "settings": {}}))
    with pytest.raises(LinesideError, match="cannot load this export"):
        OpenVino(Reference(), tmp_path)


@pytest.mark.parametrize("weights", ["fp32", "int8"])
def test_a_row_gets_the_same_numbers_beside_any_others(exports: dict[str, Path], weights: str) -> None:
    vlm = model(exports[weights])
    steps, chance = vlm.backend.steps(vlm.lm), torch.Generator().manual_seed(0)
    kept = [(torch.randn(40, 2, 8, generator=chance), torch.randn(40, 2, 8, generator=chance)) for _ in range(2)]
    paths = [list(range(a, b)) for a, b in pairwise([1, 7, 19, 22, 40])]

    def logits(rows: list[int]) -> list[torch.Tensor]:
        cache, greedy = steps.cache(kept, [[0]], [[paths[i] for i in rows]], 8), np.zeros(len(rows), np.float32)
        found = []
        for number in range(3):
            last, at = np.array([20 + i + number for i in rows]), np.array([len(paths[i]) + 1 + number for i in rows])
            found.append(steps.next(last, at, [cache], greedy, greedy).logits)
        return found

    # The products are OpenVINO's. With AVX2 alone it takes another one for another number of rows.
    bound = 0.0 if "AVX512" in torch.backends.cpu.get_cpu_capability() else 2e-6
    alone = [logits([i]) for i in range(4)]
    for rows in ([0, 1, 2, 3], [3, 1], [2] * 8):
        for number, together in enumerate(logits(rows)):
            for place, i in enumerate(rows):
                torch.testing.assert_close(together[place], alone[i][number][0], atol=bound, rtol=0)


def test_rows_that_join_wait_and_leave_keep_their_tokens(exports: dict[str, Path]) -> None:
    """Four trees: one waits while others write, one loses a row, one joins late, one ends early."""
    vlm = model(exports["fp32"])
    steps = vlm.backend.steps(vlm.lm)
    layers, heads, width = 2, 2, 8
    chance = torch.Generator().manual_seed(0)
    lengths = [[5, 7], [9], [4, 4, 6], [12]]

    def new_tree(number: int) -> tuple[object, list[tuple[torch.Tensor, torch.Tensor]], list[list[int]]]:
        total = sum(lengths[number])
        kept = [
            (torch.randn(total, heads, width, generator=chance), torch.randn(total, heads, width, generator=chance))
            for _ in range(layers)
        ]
        ends = np.cumsum([0, *lengths[number]])
        paths = [list(range(a, b)) for a, b in pairwise(ends.tolist())]
        return steps.cache(kept, [[0]], [paths], 8), kept, paths

    made = [new_tree(number) for number in range(4)]
    caches = [cache for cache, _, _ in made]
    alone = Reference().steps(vlm.lm)
    checks = [alone.cache(kept, [[0]], [paths], 8) for _, kept, paths in made]
    at = [np.array(one) + 1 for one in lengths]

    def step(numbers: list[int]) -> None:
        rows = sum(len(checks[i]) for i in numbers)
        tokens, positions = np.arange(rows) + 20, np.concatenate([at[i] for i in numbers])
        greedy = np.zeros(rows, np.float32)
        found = steps.next(tokens, positions, [caches[i] for i in numbers], greedy, greedy)
        wanted = alone.next(tokens, positions, [checks[i] for i in numbers], greedy, greedy)
        torch.testing.assert_close(found.logits, wanted.logits, atol=1e-4, rtol=1e-4)
        for i in numbers:
            at[i] = at[i] + 1

    step([0, 1])
    step([1, 0])  # in another order
    step([0, 2])  # 1 waits, 2 joins
    for cache in (caches[2], checks[2]):
        cache.keep(np.array([0, 2]))
    at[2] = at[2][[0, 2]]
    step([2, 0])
    step([1, 2])
    caches[0] = checks[0] = None  # it has ended
    copies = vlm.backend._batch.copies  # type: ignore[attr-defined]
    step([2])  # 1 waits again
    step([2])
    step([2, 1, 3])
    step([3, 2, 1])
    assert vlm.backend._batch.copies == copies + 2  # type: ignore[attr-defined] # others only reorder rows
