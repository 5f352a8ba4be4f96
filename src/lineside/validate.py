"""validate: find what is wrong with a data set, row by row, and show which tokens the model learns (DESIGN 1, 8).

Every row is read. Checks: the row can be read, its picture decodes, its target is sound, its own answer is exact,
the target's provenance is allowed, the sample fits the context. Then the splits are compared: pictures,
near-duplicates, prompts, scenes, SKUs and cells. `show` prints the loss mask of a few samples in colour, tokenised by
the checkpoint's renderer.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lineside.data import store
from lineside.data.checks import CHECKS, Report, inspect, thinking_tasks
from lineside.errors import CheckFailed
from lineside.types import Sample, Thinking

if TYPE_CHECKING:
    from lineside.model.render import Renderer

TOLD = 5  # most problems of a check that are printed; the JSON has more
PREVIEW_VOCABULARY = 2048
PREVIEW_TEXTS = 5000
PREVIEW_IMAGE_TOKENS = 49
STYLES = {"answer": "bold green", "structure": "cyan", "trace": "yellow", "none": "dim"}


@dataclass(frozen=True)
class Rendering:
    """A renderer, the context of its model (None where there is no model), and which tasks think."""

    render: Renderer
    context: int | None
    thinking: Thinking = field(default_factory=Thinking)

    def measure(self, sample: Sample) -> tuple[int, int]:
        """(tokens, supervised tokens) of a sample as it is trained on; for a prompt its own tokens and 0."""
        from lineside.model.tree import NONE

        segments = self.segments(sample)
        return len(segments), sum(role != NONE for _, role in segments)

    def segments(self, sample: Sample) -> list[tuple[int, int]]:
        """(token, role) of a sample as it is trained on."""
        from lineside.model.tree import NONE
        from lineside.training.packing import prompt_and_response

        head = self.render.head(sample.images)
        if sample.answer is None:  # a stage-3 prompt: the model writes the answer
            thinking = self.thinking.of(sample.family, sample.task)
            return [(t, NONE) for t in head + self.render.question(sample.question, thinking=thinking)]
        prompt, response = prompt_and_response(self.render, sample)
        return [(token, NONE) for token in head + prompt] + list(zip(response.tokens, response.roles))


def validate(data: Path, *, checkpoint: Path | None = None, show: int = 0, as_json: bool = False) -> Report:
    """Check a folder of samples or frames, print what was found, and raise CheckFailed if a check failed.

    `checkpoint`: a model folder; lengths are measured in its tokens. `show`: print the loss mask of this many samples
    of each kind; without a checkpoint with a tokenizer like the nano preset's. Raises LinesideError when there is
    nothing to check or a whole shard cannot be read.
    """
    rendering = of_checkpoint(checkpoint) if checkpoint else None
    measure, context = (rendering.measure, rendering.context) if rendering else (None, None)
    report = inspect(data, measure=measure, context=context)
    console = Console(soft_wrap=True)
    if as_json:
        print(json.dumps({"data": str(data), **report.to_json()}, indent=2, ensure_ascii=False))
    else:
        for line in report_lines(report):
            console.print(line)
        if show and store.sample_shards(data):
            for text in preview(data, rendering or of_texts(data), show):
                console.print(text)
    if not report.ok:
        failed = ", ".join(f"{name} ({report.counts[name]})" for name in CHECKS if report.counts[name])
        raise CheckFailed(f"{data}: failed: {failed}")
    return report


def of_checkpoint(folder: Path) -> Rendering:
    """The renderer of a checkpoint and its context, without its weights. Raises LinesideError if it is not one."""
    from lineside.model.checkpoint import family_of, loading
    from lineside.model.render import Renderer

    family = family_of(folder)
    with loading(f"the tokenizer and configuration of {folder}"):
        context = int(family.config.get_text_config().max_position_embeddings)
        thinking = Thinking(getattr(family.config, "thinking_tasks", None) or {})
        return Rendering(Renderer.of(family), context, thinking)


def of_texts(data: Path) -> Rendering:
    """A renderer for previews; its tokenizer is trained on the data set's own text, as in the nano preset."""
    from lineside.model.nano import train_tokenizer
    from lineside.model.render import IMAGE, Renderer

    samples = itertools.islice(store.read_samples(data), PREVIEW_TEXTS)
    texts = [text for s in samples for text in (s.question, s.trace, s.answer) if text]
    tokenizer = train_tokenizer(texts, PREVIEW_VOCABULARY)
    shown = (tokenizer.get_vocab()[IMAGE],) * PREVIEW_IMAGE_TOKENS
    return Rendering(Renderer(tokenizer, lambda image: shown), None, thinking_tasks([data]))


def preview(data: Path, rendering: Rendering, count: int) -> Iterator[Text]:
    """The loss mask of the first `count` training samples of each kind: one line of tokens each, coloured by role."""
    yield Text.assemble("what is learnt: ", *(part for name, style in STYLES.items() for part in ((name, style), "  ")))
    for kind in ("caption", "qa", "prompt"):
        samples = store.read_samples(data, kind=kind, split="train")
        previous = None
        for sample in itertools.islice((s for s in samples if s.meta.scene != previous or not previous), count):
            previous = sample.meta.scene
            yield Text(f"{sample.id} ({sample.kind})", style="underline")
            yield masked(rendering, sample)


def masked(rendering: Rendering, sample: Sample) -> Text:
    """A sample's tokens, coloured by their role as targets; consecutive image tokens are shown as one."""
    from lineside.model.tree import ANSWER, TRACE

    render, line = rendering.render, Text()
    structure = {render.think_open, render.think_close, render.eos_id}
    for token, run in itertools.groupby(rendering.segments(sample)):
        number = len(list(run))
        (identity, role) = token
        name = "answer" if role == ANSWER else "trace" if role == TRACE else "none"
        if name == "answer" and identity in structure:
            name = "structure"
        text = str(render.tokenizer.decode([identity]))
        if identity == render.image_id:
            line.append(f"{text}x{number}|", style=STYLES[name])
        else:
            line.append((text.replace("\n", "\\n") + "|") * number, style=STYLES[name])
    return line


def report_lines(report: Report) -> Iterator[Text | Table]:
    """The report as lines for a terminal."""
    yield Text("rows: " + (", ".join(f"{count:,} {name}" for name, count in report.rows.items()) or "none"))
    if report.traces:
        yield Text("traces of stage 2: " + ", ".join(f"{n:,} {what}" for what, n in report.traces.most_common()))
    if report.longest:
        yield Text(f"longest sample: {report.longest:,} tokens")
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, meaning in CHECKS.items():
        count, note = report.counts[name], report.notes.get(name, "")
        passed = "in part" if note.startswith("in part") else "not checked" if note else "ok"
        verdict = Text(f"failed {count:,}", "bold red") if count else Text(passed, "green")
        table.add_row(verdict, Text(name), Text(note or meaning, style="dim"))
    yield table
    if report.counts["picture leak"]:
        yield Text("picture leak: `lineside label --drop-leaks` (data.label.drop_leaks) leaves out the training frames")
    for name, problems in report.problems.items():
        for problem in problems[:TOLD]:
            where = f"{problem.file} row {problem.row} ({problem.id}): " if problem.row >= 0 else ""
            yield Text(f"{name}: {where}{problem.reason}")
        if report.counts[name] > TOLD:
            yield Text(f"{name}: ... and {report.counts[name] - min(TOLD, len(problems)):,} more (--json lists them)")
