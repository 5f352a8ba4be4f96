"""Verbs that ask and judge: ask, evaluate, compare, report."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lineside.cli.command import verb
from lineside.cli.options import (
    AsJson,
    Bits,
    Checkpoint,
    Decoded,
    DecodedBy,
    DecodedFrom,
    Device,
    Dtype,
    Engine,
    Features,
    Margin,
    Mode,
    Samples,
    Seed,
    Split,
    VllmMemory,
    VllmPython,
    Where,
)
from lineside.errors import LinesideError
from lineside.recipe import MARGIN, ROUTE_BELOW
from lineside.types import NO_VLLM, VllmAt


@verb
def ask(
    checkpoint: Checkpoint,
    picture: Annotated[Path, typer.Argument(help="Picture file.", show_default=False)],
    question: Annotated[str, typer.Argument(help="In quotes.", show_default=False)],
    mode: Annotated[
        Mode | None, typer.Option(help="think: trace, then answer. fast: answer at once. Default: as in training.")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="Task of the question, as family/task. Default: the checkpoint's task that asks so."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest response.")] = 128,
    camera: Annotated[
        str | None, typer.Option(help="Camera of the picture, if the model was trained on a region of each camera.")
    ] = None,
    roi: Annotated[
        str | None,
        typer.Option(help="left,top,right,bottom of the region, in pixels or shares; whole: it is cut already."),
    ] = None,
    view: Annotated[
        list[str] | None,
        typer.Option(
            help="A further picture of the same scene, as PICTURE=NAME, for a model trained with views; repeat it.",
            show_default=False,
        ),
    ] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(
            help="A picture of what the question names, as PICTURE=NAME (PICTURE alone: the file's name); repeat it.",
            show_default=False,
        ),
    ] = None,
    bits: Bits = None,
    engine: DecodedBy = Engine.local,
    weights: DecodedFrom = Decoded.full,
    device: Where = Device.auto,
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """A checkpoint, a picture, a question -> trace, answer, confidence, act or refuse, time.

    The task decides what kind of value the answer is, whether the model thinks, and when a cell may act. Without a task
    the answer is text and the decision is to refuse. --json prints the typed answer, by answer.schema.json.
    """
    from lineside.ask import ask as run
    from lineside.runtime import Runtime
    from lineside.serving.pairs import EnginePair

    thinking = None if mode is None else mode == Mode.think
    run(
        checkpoint,
        picture,
        question,
        thinking=thinking,
        task=task,
        as_json=as_json,
        max_new_tokens=max_new_tokens,
        camera=camera,
        roi=roi,
        views=view or (),
        references=reference or (),
        bits=bits,
        pair=EnginePair(engine.value, weights.value),
        runtime=Runtime.of(device, dtype),
    )


@verb
def evaluate(
    checkpoint: Checkpoint,
    data: Samples,
    split: Annotated[Split, typer.Option(help="Which part of the data.")] = Split.heldout,
    mode: Annotated[
        Mode,
        typer.Option(help="think: trace, then answer, for tasks trained with traces. fast: answer at once."),
    ] = Mode.think,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many questions.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest response.")] = 96,
    baselines: Annotated[bool, typer.Option(help="Also fit the blind guesser and the classifier heads.")] = True,
    calibration: Annotated[
        bool,
        typer.Option(help="Calibrate confidence on dev, once: saved as calibration.json in the checkpoint."),
    ] = True,
    by: Annotated[
        list[str] | None,
        typer.Option("--by", help="Also show exact match by a column: cell, camera, sku, week, day ...; repeat it."),
    ] = None,
    route_below: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Tasks with a smaller share of exact answers are listed as: route to a person."
        ),
    ] = ROUTE_BELOW,
    features: Features = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write the evaluation and its rows to.")] = None,
    before: Annotated[
        Path | None,
        typer.Option(
            help="An earlier checkpoint: also tell what was forgotten since, and how far the weights moved. "
            "With --json both are printed, as `evaluation` and `forgetting`."
        ),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(help="With --before: lines of text that the language model knew. Default: captions, no picture."),
    ] = None,
    engine: DecodedBy = Engine.local,
    weights: DecodedFrom = Decoded.full,
    vllm_python: VllmPython = None,
    vllm_memory: VllmMemory = NO_VLLM.memory,
    deadlines: Annotated[
        bool,
        typer.Option(
            "--deadlines",
            help="Cut traces as the server cuts them for the budget of the task; what it would refuse has no answer.",
        ),
    ] = False,
    device: Where = Device.auto,
    dtype: Dtype = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """A checkpoint, samples -> exact match by family and task with intervals, valid-trace rate, latency."""
    from lineside.evaluate import evaluate_checkpoint, forgetting
    from lineside.judgement.console import (
        by_table,
        decisions_table,
        floor_table,
        forgetting_table,
        results_table,
        routes_text,
        show,
        tasks_table,
    )
    from lineside.runtime import Runtime
    from lineside.serving.pairs import EnginePair

    if text is not None and before is None:
        raise LinesideError("--text is scored with two checkpoints: give the earlier one with --before")
    runtime = Runtime.of(device, dtype, seed=seed)
    found = evaluate_checkpoint(
        checkpoint,
        data,
        split=split.value,
        mode=mode.value,
        limit=limit,
        max_new_tokens=max_new_tokens,
        with_baselines=baselines,
        with_calibration=calibration,
        by=by or (),
        route_below=route_below,
        features=features,
        out=out,
        pair=EnginePair(engine.value, weights.value),
        vllm=VllmAt(vllm_python, vllm_memory),
        deadlines=deadlines,
        runtime=runtime,
    )
    forgotten = None
    if before is not None:
        forgotten = forgetting(
            checkpoint, before, data, split=split.value, text=text, features=features, runtime=runtime
        )
    if as_json and forgotten is not None:
        both = {"evaluation": found.model_dump(mode="json"), "forgetting": forgotten.model_dump(mode="json")}
        typer.echo(json.dumps(both, indent=2))
    elif as_json:
        typer.echo(found.model_dump_json(indent=2))
    else:
        show(results_table([found]))
        show(tasks_table(found))
        show(floor_table(found))
        show(decisions_table(found))
        show(routes_text([found]))
        for column in dict.fromkeys(by or ()):
            show(by_table(found, column))
        if forgotten is not None:
            show(forgetting_table(forgotten))


class Expectation(StrEnum):
    """What the second evaluation must be."""

    not_worse = "not worse"
    better = "better"


@verb
def compare(
    first: Annotated[Path, typer.Argument(help="Evaluation file.", show_default=False)],
    second: Annotated[Path, typer.Argument(help="Evaluation file to compare with it.", show_default=False)],
    margin: Margin = MARGIN,
    expect: Annotated[Expectation, typer.Option(help="What the second must be, else exit status 1.")] = (
        Expectation.not_worse
    ),
    common_only: Annotated[
        bool, typer.Option("--common-only", help="Compare the questions that both answered, if either lacks some.")
    ] = False,
    across_modes: Annotated[
        bool, typer.Option("--across-modes", help="Allow one side with thinking and the other without.")
    ] = False,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Two evaluations -> paired difference, per family, with a verdict and an exit status.

    Verdict overall, of each family and of each task, with 95% intervals bootstrapped by scene:

    better: the lower bound of the difference is above 0.

    not worse: the lower bound is at or above -margin.

    worse: neither of these, and the data show a loss: the upper bound is below 0; for a task, a one-sided test by
    scene has p <= 5% with Holm's correction over the tasks.

    too little data: none of these; the number of scenes still needed is printed.

    Exit status 0: overall and every family are better or not worse, and no task is worse. 1: a part is worse, or
    --expect better does not hold. 2: a file is not an evaluation, or the questions differ. 3: too little data.
    """
    from lineside.compare import compare as run

    run(
        first,
        second,
        margin=margin,
        expect=expect.value,
        common_only=common_only,
        across_modes=across_modes,
        seed=seed,
        as_json=as_json,
    )


@verb
def report(
    folder: Annotated[Path, typer.Argument(help="A run, such as runs/quickstart, or samples.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="The page; by default report.html in the folder.")] = None,
    where: Annotated[
        list[str] | None, typer.Option("--where", help="Show only samples with column=value; repeat for several.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Samples on the page.")] = 60,
    seed: Seed = 0,
) -> None:
    """A run, or samples -> one self-contained HTML page with pictures and plots."""
    from lineside.report import report as write

    typer.echo(write(folder, out=out, where=where or (), limit=limit, seed=seed))
