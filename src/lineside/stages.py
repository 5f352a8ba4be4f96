"""The stages of training as one table: what each starts from, the samples that it trains on, and its function.

Recipe, training, evaluation, report and the command line read the stages here. A control is trained in place of another
stage, to compare that stage with: it starts where the other one does, and its samples are made from the other's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

from lineside.types import SampleKind


@dataclass(frozen=True, slots=True)
class StageEntry:
    """A row of the table. Functions are written as "module:name", so that naming a stage imports no torch.

    `function` trains the stage: (vlm, store, samples, folder, settings, *, runtime, label). It writes state, metrics
    and checkpoint to `folder`. `makes` writes the samples of a control (`Make` in training/controls.py). The settings
    of a stage are the section of the recipe with its name.
    """

    name: str  # of the stage, of its folder in a run, and of its section in a recipe
    parent: str  # the step whose checkpoint it continues
    kind: SampleKind  # of the samples that it reads
    needs: str  # what these samples are and where they come from, for a message
    function: str
    about: str  # for the command line
    is_asked: bool = True  # whether it has learnt to answer questions; if not, it is judged by captions
    control_of: str = ""  # the stage that it is trained in place of
    makes: str = ""
    colours: tuple[str, str] = ("#5b6b73", "#9fb0b8")  # in the report, on light and on dark paper

    @property
    def slot(self) -> str:
        """The stage whose start and training data it has: itself, or for a control the stage in whose place it is."""
        return self.control_of or self.name

    @property
    def sections(self) -> tuple[str, ...]:
        """The sections of a recipe that shape it. A control continues its parent's stage with its parent's settings."""
        return (self.name, self.parent, self.control_of) if self.control_of else (self.name,)


def load_function(path: str) -> Any:
    """The function that "module:name" stands for. Only `train` calls it, since the functions of stages are verbs."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


_SFT = "lineside.sft:sft"
_PROMPTS = "stage 3's prompts with targets; `lineside label` makes some"

TABLE = (
    StageEntry(
        name="align",
        parent="parts",
        kind="caption",
        needs="captions; `lineside label` makes some, `lineside convert --captions` takes rows of one turn for some",
        function="lineside.align:align",
        about="A recipe -> a trained projector (stage 1), with encoder and language model frozen.",
        is_asked=False,
        colours=("#9aa3ab", "#7c868e"),
    ),
    StageEntry(
        name="sft",
        parent="align",
        kind="qa",
        needs="questions with answers",
        function=_SFT,
        about="A recipe -> projector and language model trained (stage 2). Earlier stages are done first.",
        colours=("#4a78b0", "#7fa9dd"),
    ),
    StageEntry(
        name="rlvr",
        parent="sft",
        kind="prompt",
        needs="prompts with targets; `lineside label` makes some",
        function="lineside.rlvr:rlvr",
        about="A recipe -> the language model made exact (stage 3). Earlier stages are done first.",
        colours=("#14836b", "#4fc0a2"),
    ),
    StageEntry(
        name="traced",
        parent="sft",
        kind="qa",
        needs="the teacher's answers to stage 3's prompts in {control}; `lineside label` writes them",
        function=_SFT,
        about="More of the teacher's answers with traces.",
        control_of="rlvr",
        makes="lineside.training.controls:traced",
        colours=("#c58a2a", "#dba94f"),
    ),
    StageEntry(
        name="answers",
        parent="sft",
        kind="prompt",
        needs=_PROMPTS,
        function=_SFT,
        about="The records' answers without traces.",
        control_of="rlvr",
        makes="lineside.training.controls:answers",
        colours=("#b5577a", "#d98aa5"),
    ),
    StageEntry(
        name="rejection",
        parent="sft",
        kind="prompt",
        needs=_PROMPTS,
        function=_SFT,
        about="The model's own answers that are right, with their traces.",
        control_of="rlvr",
        makes="lineside.training.rejection:sample_own",
        colours=("#7d6aa8", "#a998d4"),
    ),
)

PARTS = "parts"  # the step before all stages: the parts that have never met
OLD_CONTROL = "control"  # `traced` in runs of before 2026-11-29
LINE = tuple(entry.name for entry in TABLE if not entry.control_of)  # the stages in their order, without controls
CONTROLS = tuple(entry.name for entry in TABLE if entry.control_of)
STAGES = (*(entry.name for entry in TABLE), OLD_CONTROL)  # all that may lie in a run, in the order of showing
_BY_NAME = {entry.name: entry for entry in TABLE}
_BY_NAME[OLD_CONTROL] = replace(_BY_NAME["traced"], name=OLD_CONTROL)


def entry_of(stage: str) -> StageEntry:
    """The row of a stage. Raises KeyError for another name."""
    return _BY_NAME[stage]


def is_control(stage: str) -> bool:
    """Whether a stage is trained in place of another one, to compare that one with."""
    return stage in _BY_NAME and bool(_BY_NAME[stage].control_of)


def is_asked(stage: str) -> bool:
    """Whether a stage has learnt to answer questions; true for a model from elsewhere."""
    return stage not in _BY_NAME or _BY_NAME[stage].is_asked
