"""How well a model answers while a stage trains: a few questions of dev, asked at every tenth of the stage.

Greedy answers with thinking on (off for tasks that do not think), judged as everywhere. The shares go into the stage's
metrics: `probe/exact`, and `probe/valid` over the questions asked with thinking on. No random state is touched, so a
stage with a probe trains the same model as one without.
"""

from __future__ import annotations

from pathlib import Path

from lineside.data.store import count_frames_with, read_samples
from lineside.data.suite import suite
from lineside.progress import say
from lineside.training.sampler import Sampler, prompts_for
from lineside.training.stage import Stage
from lineside.types import Sample
from lineside.verify.judge import judge

PARTS = 10  # of a stage
MAX_NEW_TOKENS = 192


class Probe:
    """`count` questions of a folder's dev split, spread evenly over tasks; with a count of 0 none is asked."""

    def __init__(self, sampler: Sampler, folder: Path, count: int) -> None:
        self._sampler = sampler
        self._questions: tuple[Sample, ...] = ()
        if count and count_frames_with(folder, kind="qa", split="dev"):
            self._questions = suite(read_samples(folder, kind="qa", split="dev"), split="dev", limit=count).questions
        elif count:
            say(f"sft.probe={count}: {folder} has no questions of dev: none is asked during the stage")

    def at(self, stage: Stage) -> dict[str, float]:
        """The metrics, if the stage has reached its next tenth; else none."""
        tenth = int(stage.progress * PARTS)
        if not self._questions or stage.measuring is not None or tenth <= stage.extra.get("probed", -1):
            return {}
        stage.extra["probed"] = tenth
        return self.ask()

    def ask(self) -> dict[str, float]:
        """The shares now."""
        prompts = prompts_for(self._questions, self._sampler.thinking)
        answers = self._sampler.sample(prompts, max_new_tokens=MAX_NEW_TOKENS)
        judged = [
            judge(r.text, s.target, thinking=p.thinking, finished=r.finished, question=s.question)
            for s, p, (r,) in zip(self._questions, prompts, answers) if s.target is not None
        ]  # fmt: skip
        traced = [j.response.trace_class == "valid" for j, prompt in zip(judged, prompts) if prompt.thinking]
        valid = {"probe/valid": sum(traced) / len(traced)} if traced else {}
        return {"probe/exact": sum(j.verdict.exact for j in judged) / len(judged), **valid}
