"""Decoding by OpenVINO: the decoder of an export writes the tokens, one native call a step.

The model itself reads prompts, in its own number format: pictures, trees, prefixes that are already known. The keys and
values that it leaves become the state of OpenVINO's decoder. So everything but the step is the same for both engines.

All rows that are decoded are one batch of the decoder, whatever tree they are of: a step of eight rows takes 1.6 times
as long as one of a single row (docs/experiments.md). Rows leave and are reordered by `beam_idx`, which copies nothing.
When a tree joins, the state is copied once.

Left out: prompts that OpenVINO reads, because its decoder knows no trees.

Shapes: A rows, L tokens of the longest row, K key heads, E head width, D width of the LM, V vocabulary.
"""

from __future__ import annotations

import json
import re
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lineside.backends.lm import LanguageModel
from lineside.backends.reference import Elsewhere, Reference, Steps, Written
from lineside.errors import LinesideError
from lineside.machine import without_telemetry
from lineside.types import Weights

without_telemetry()
Floats = NDArray[np.float32]
FACTS = "pipeline.json"  # beside an export: the names of its files, and the settings in which it was checked
_STATE = re.compile(r"past_key_values\.(\d+)\.(key|value)")


class OpenVino(Elsewhere):
    """The backend `reading`, but the decoder of the export in `folder` decodes. Raises LinesideError for a folder that
    OpenVINO cannot load."""

    name = "openvino"
    engine = "openvino"
    rows = 64  # the state holds all tokens of each row

    def __init__(self, reading: Reference, folder: Path, weights: Weights = "full") -> None:
        """`weights`: those of the export."""
        super().__init__(reading, weights)
        self._batch = Batch(_compiled(folder))

    def steps(self, lm: LanguageModel) -> Steps:
        """Steps of OpenVINO's decoder."""
        return OpenVinoSteps(lm, self._batch)


def _compiled(folder: Path) -> Any:
    try:
        import openvino  # pyright: ignore[reportMissingImports]

        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        how = facts["settings"] | {"INFERENCE_NUM_THREADS": str(torch.get_num_threads())}
        how |= {"ENABLE_MMAP": "NO"}  # whoever writes over the file of a model that runs must not change it
        return openvino.Core().compile_model(folder / facts["files"]["decoder"], "CPU", how)
    except ModuleNotFoundError:
        raise LinesideError("the engine openvino needs its package: pip install 'lineside[export]'") from None
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise LinesideError(f"{folder}: OpenVINO cannot load this export: {reason}; export it anew") from None


class OpenVinoSteps(Steps):
    """Decoding steps of OpenVINO's decoder. The prompt's last token is still the model's own."""

    def __init__(self, lm: LanguageModel, batch: Batch) -> None:
        super().__init__(lm)
        self._batch = batch

    def cache(
        self, kept: list[tuple[Tensor, Tensor]], shared: list[list[int]], tails: list[list[list[int]]], new: int
    ) -> OpenVinoCache:
        """See Steps. A row's tokens lie at the end of its state, behind padding that it does not see."""
        paths = [prefix + tail for prefix, rows in zip(shared, tails) for tail in rows]
        length = max(map(len, paths))
        padded = torch.tensor([[0] * (length - len(path)) + path for path in paths], device=kept[0][0].device)
        sees = np.array([[0] * (length - len(path)) + [1] * len(path) for path in paths])
        return OpenVinoCache([_floats(part[padded].transpose(1, 2)) for layer in kept for part in layer], sees)

    def next(
        self,
        tokens: NDArray[np.int64],
        positions: NDArray[np.int64],
        caches: Sequence[Any],
        uniform: Floats,
        temperature: Floats,
    ) -> Written:
        """See Steps."""
        embeds = self.lm.embed(torch.from_numpy(tokens).to(next(self.lm.embed.parameters()).device))
        logits = torch.from_numpy(self._batch.step(caches, _floats(embeds), positions))
        logits[:, self.lm.banned] = float("-inf")
        return Written(self.choose(logits, uniform, temperature), logits)


class OpenVinoCache:
    """The rows of a tree (see reference.Cache). Between two steps they lie in the batch or, while others are decoded,
    in arrays of their own."""

    def __init__(self, state: list[Floats], sees: NDArray[np.int64]) -> None:
        """`state`: keys and values of each layer in turn, (A, K, L, E). `sees`: (A, L), 0 for padding."""
        self.state: list[Floats] | None = state
        self.sees = sees
        self.places = np.arange(len(sees))  # in the batch, or in `state`

    def __len__(self) -> int:
        return len(self.places)

    def keep(self, rows: NDArray[np.int64]) -> None:
        """See Cache."""
        self.places = self.places[rows]

    def advance(self) -> None:
        """A step counts its token itself."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Never called: attention is a part of OpenVINO's step."""
        raise NotImplementedError


class Batch:
    """The rows that the decoder holds as its state: those of the trees of the last step, one after another."""

    def __init__(self, compiled: Any) -> None:
        self._request = compiled.create_infer_request()
        self._states = sorted(self._request.query_state(), key=lambda state: _order(state.name))
        self._trees: list[weakref.ref[OpenVinoCache]] = []
        self._sees = np.zeros((0, 0), np.int64)
        self.copies = 0  # of the state, since the start

    def step(self, trees: Sequence[OpenVinoCache], embeds: Floats, positions: NDArray[np.int64]) -> Floats:
        """(A, D) embeddings of the last tokens at (A,) positions -> (A, V) logits. The rows are those of the trees."""
        if not self._holds(trees):
            self._fill(trees)
        beams = np.concatenate([tree.places for tree in trees])
        self._sees = np.concatenate([self._sees[beams], np.ones((len(beams), 1), np.int64)], axis=1)
        given = {
            "inputs_embeds": embeds[:, None],
            "attention_mask": self._sees,
            "position_ids": positions[:, None],
            "beam_idx": beams.astype(np.int32),
        }
        logits = self._request.infer(given)[0][:, -1]
        at = 0
        for tree in trees:
            tree.places = np.arange(at, at + len(tree))
            at += len(tree)
        self._trees = [weakref.ref(tree) for tree in trees]
        return logits

    def _holds(self, trees: Sequence[OpenVinoCache]) -> bool:
        """Whether the state has all rows of these trees, and no other row that is still used."""
        return all(tree.state is None for tree in trees) and {*map(id, self._used())} <= {*map(id, trees)}

    def _used(self) -> Iterator[OpenVinoCache]:
        return (tree for ref in self._trees if (tree := ref()) is not None)

    def _fill(self, trees: Sequence[OpenVinoCache]) -> None:
        """Put these trees into the batch, after all that is in it was taken out."""
        used = list(self._used())
        if used:
            held = [state.state.data for state in self._states]
            for tree in used:
                tree.state, tree.sees = [part[tree.places] for part in held], self._sees[tree.places]
                tree.places = np.arange(len(tree))
        parts = [_only_seen(tree) for tree in trees]
        length = max(sees.shape[1] for _, sees in parts)
        self._sees = np.concatenate([_behind_zeros(sees, length, axis=1) for _, sees in parts])
        for number, state in enumerate(self._states):
            state.state = _tensor(np.concatenate([_behind_zeros(own[number], length, axis=2) for own, _ in parts]))
        at = 0
        for tree in trees:
            tree.state, tree.places = None, np.arange(at, at + len(tree))
            at += len(tree)
        self.copies += 1


def _only_seen(tree: OpenVinoCache) -> tuple[list[Floats], NDArray[np.int64]]:
    """State and mask of the rows that go on, without tokens at the start that none of them sees."""
    sees = tree.sees[tree.places]
    first = int(sees.any(axis=0).argmax())
    assert tree.state is not None
    return [part[tree.places, :, first:] for part in tree.state], sees[:, first:]


def _behind_zeros(part: Any, length: int, *, axis: int) -> Any:
    """An array, `length` long on an axis, with zeros in front of it."""
    widths = [(0, 0)] * part.ndim
    widths[axis] = (length - part.shape[axis], 0)
    return np.pad(part, widths) if widths[axis][0] else part


def _floats(tensor: Tensor) -> Floats:
    return tensor.detach().float().cpu().contiguous().numpy()


def _tensor(array: Floats) -> Any:
    import openvino  # pyright: ignore[reportMissingImports]

    return openvino.Tensor(np.ascontiguousarray(array))


def _order(name: str) -> tuple[int, str]:
    """Layer, then "key" before "value"."""
    if (found := _STATE.search(name)) is None:
        raise LinesideError(f"the decoder has a state {name!r}, which lineside does not write: export it anew")
    return int(found[1]), found[2]
