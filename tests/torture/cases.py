"""The verbs that are tortured, each with a folder to begin from and the command that is killed and run again."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from tests.torture.child import verb
from tests.torture.harness import KEY, serving, write_frames

RECIPE = """
name: tiny
runs: {folder}/runs
data: {{samples: {folder}/samples}}
parts: {{preset: siglip, encoder: {folder}/encoder, lm: {folder}/lm}}
dtype: fp32
controls: []
align: {{epochs: 2, step_tokens: 400, save_seconds: 1e-9}}
sft: {{epochs: 4, step_tokens: 300, learning_rate: {{projector: 1e-2, lm: 1e-2}}, feature_dropout: 0.1,
  caption_replay: 1, save_seconds: 1e-9}}
rlvr: {{epochs: 2, prompts: 3, group_size: 4, max_new_tokens: 12, overlong_cache: 0, updates: 2, save_seconds: 1e-9}}
evaluate: {{max_new_tokens: 12, modes: [think], calibration: 10}}
"""
BIN = """
captions: [{family: bin, templates: ["A bin that holds {count} parts.", "{count} parts lie in the bin."]}]
tasks:
  - {family: bin, name: count, phrasings: ["How many parts?"], trace: "left: {count} part; so {count}",
     answer: {kind: number, column: count, tolerance: 2}}
"""


@dataclass(frozen=True)
class Case:
    """A verb to torture. All take a folder to work in, always by the same path, which results hold."""

    name: str
    begin: Callable[[Path], object]  # fills the folder with what the verb needs
    do: Callable[[Path], object]  # runs the verb
    after: str = ""  # another case, whose result it begins from


def _samples(folder: Path) -> None:
    from lineside.data.store import write_samples
    from tests.test_train import rows, save_parts

    save_parts(folder, "siglip")
    write_samples(
        folder / "samples", rows("train", range(8)) + rows("dev", range(20, 23)) + rows("heldout", range(30, 34))
    )
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder))


def _stage(name: str, *changes: str) -> Callable[[Path], object]:
    def do(folder: Path) -> None:
        import lineside.training.rollout
        from tests.small_run import by_length

        with patch.object(lineside.training.rollout, "judge", by_length):  # groups of an untrained model are live
            verb(name, folder / "recipe.yaml", *changes)()

    return do


def _nothing(folder: Path) -> None:
    pass


def _evaluate(folder: Path) -> None:
    import lineside.evaluate

    with patch.object(lineside.evaluate, "AT_ONCE", 2):  # else one file holds the answers to all questions
        _evaluated(folder)


def _evaluated(folder: Path) -> None:
    verb("evaluate", folder / "runs/tiny/rlvr/checkpoint", folder / "samples", "--out", folder / "evaluation",
         "--max-new-tokens", "12", "--features", folder / "features")()  # fmt: skip


def _frames(folder: Path) -> None:
    write_frames(folder, 12)
    (folder / "bin.yaml").write_text(BIN)


def _label(folder: Path) -> None:
    verb("label", folder / "frames", folder / "samples", "--tasks", folder / "bin.yaml", "--teacher", "table")()


def _label_api(folder: Path) -> None:
    os.environ |= {"TORTURE_KEY": KEY, "no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}
    with serving(seed=1, latency=0.0, stall=0.0) as (url, _):
        verb("label", folder / "frames", folder / "samples", "--teacher", "api", "--tasks", folder / "tasks.yaml",
             "--model", "hat", "--base-url", url, "--key-env", "TORTURE_KEY", "--in-flight", "4", "--backoff", "0.02",
             "--captions-per-frame", "2", "--questions-per-frame", "2")()  # fmt: skip


def _registered(folder: Path) -> None:
    from lineside.registry.promotion import promote
    from lineside.registry.store import Registry
    from tests.registry.conftest import add

    with Registry(folder / "registry", create=True) as registry:
        one, _ = add(registry, "bins", "a"), add(registry, "bins", "b")
        promote(registry, one)


def _promote(folder: Path) -> None:
    verb("promote", "bins@2", "--force", "torture", "--registry", folder / "registry")()


def _simulate(folder: Path) -> None:
    verb("simulate", folder / "frames", "--family", "returns", "--train", "3", "--dev", "1", "--heldout", "1",
         "--shifted", "0", "--size", "56", "--workers", "1")()  # fmt: skip


def _week(folder: Path) -> None:
    from lineside.data.store import write_samples
    from tests.test_train import rows

    write_samples(folder / "week1", rows("train", range(40, 46)) + rows("heldout", range(50, 53)))


def _retrain(folder: Path) -> None:
    import lineside.plan

    with patch.object(lineside.plan, "measure_matrix_rate", lambda *_, **__: 420e9):
        verb("retrain", folder / "runs/tiny", folder / "week1", "--out", folder / "runs/week1", "--minutes", "5",
             "--set", "sft.max_steps=4", "--set", "sft.save_seconds=1e-9")()  # fmt: skip


CASES = {
    case.name: case
    for case in (
        Case("simulate", _nothing, _simulate),
        Case("label", _frames, _label_api),
        Case("label-table", _frames, _label),
        Case("encode", _samples, lambda folder: verb("encode", folder / "recipe.yaml")()),
        Case("align", _samples, _stage("align")),
        Case("sft", _nothing, _stage("sft"), after="align"),
        Case("sft-lora", _nothing, _stage("sft", "sft.train=[projector,lora]"), after="align"),
        Case("rlvr", _nothing, _stage("rlvr"), after="sft"),
        Case("controls", _nothing, _stage("train", "controls=[answers]"), after="rlvr"),
        Case("evaluate", _nothing, _evaluate, after="rlvr"),
        Case("retrain", _week, _retrain, after="rlvr"),
        Case("promote", _registered, _promote),
    )
}
