"""Verbs about labels and samples: label, task, review, validate, convert."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lineside.cli.command import app, guarded, verb
from lineside.cli.options import AsJson, Bits, Device, Features, Frames, Seed, Split, Where
from lineside.errors import LinesideError
from lineside.flags import with_flags
from lineside.machine import launched
from lineside.recipe import Label, Requests


class Teacher(StrEnum):
    """Where labels come from."""

    sim = "sim"
    table = "table"
    api = "api"


@verb
@with_flags(Label)
def label(
    frames: Frames,
    out: Annotated[Path, typer.Argument(help="Folder for the samples.", show_default=False)],
    tasks: Annotated[
        list[Path] | None, typer.Option("--tasks", "-t", help="Task file; repeat for several. None: the simulator's.")
    ] = None,
    seed: Seed = 0,
    *,
    settings: Label,
    shard: Annotated[
        str,
        typer.Option(
            rich_help_panel=Requests.panel, help="i/n: do only this share. None: torchrun's rank, if there is one."
        ),
    ] = "",
) -> None:
    """Frames, a task file, a teacher -> samples for the three stages, with every input accounted for."""
    from lineside.data.job import rank_of
    from lineside.label import label as run

    share = rank_of(shard, os.environ) if shard or settings.teacher == "api" else None
    if share is None and launched().rank:
        return  # rank 0 does it
    run(frames, out, tasks=tasks or (), settings=settings, seed=seed, shard=share)


task = typer.Typer(
    help="Task files: what a cell is asked. `lineside task keys` lists every key of one, with an example.",
    no_args_is_help=True,
)
app.add_typer(task, name="task")


def _check(
    file: Annotated[
        list[Path], typer.Argument(metavar="FILE... FRAMES", help="Task file, then the frames.", show_default=False)
    ],
    teacher: Annotated[
        Teacher | None,
        typer.Option(
            help="sim: a simulator's frames and its own tasks. table: records. None: decided by the frames.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Check at most this many inputs, drawn by hash from all.")] = 1000,
    questions: Annotated[int, typer.Option("--show", min=0, help="Print this many questions.")] = 10,
    as_json: AsJson = False,
) -> None:
    """A task file and its frames -> errors in the file, ten questions with their answers, and how the answers
    balance."""
    if len(file) < 2 or (file[0].is_dir() and file[-1].suffix in (".yaml", ".yml")):
        raise LinesideError("expected the task file first, then the frames: lineside task check FILE FRAMES")
    from lineside.data.job import task_file
    from lineside.task import check as run

    run(
        [task_file(path) for path in file[:-1]],
        file[-1],
        teacher=None if teacher is None else "sim" if teacher is Teacher.sim else "table",
        limit=limit,
        show=questions,
        as_json=as_json,
    )


guarded(_check, task, "task check")


def _keys(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY]...", help="A key, or a section such as answer. None: all.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Nothing, or names of keys -> every key of a task file: what it does, its default, an example."""
    from lineside.task import list_keys

    list_keys(words or (), as_json=as_json)


guarded(_keys, task, "task keys")


def _audit(
    file: Annotated[
        list[Path],
        typer.Argument(metavar="[FILE]... DATA", help="Task file, then frames; or samples alone.", show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the list, its pictures and the page.")] = Path("audit"),
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(help="Evaluation of a model on these data; repeat for several splits.", show_default=False),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Use the encoder of this checkpoint. None: EfficientNet-Lite0.")
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN",
            help="Also estimate by this column of the frames (operator, day, week, split ...); repeat for several.",
            show_default=False,
        ),
    ] = None,
    cut: Annotated[
        float, typer.Option(min=0.01, max=0.99, help="List records that are wrong with at least this probability.")
    ] = 0.3,
    features: Features = None,
    device: Where = Device.auto,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """A task file and its frames, or samples -> records that are probably wrong, by source, as a list to review.

    Each record is compared with classifier heads that learnt from other scenes, with a teacher's answers where the
    table has them, and with a model's answers in --evaluation. Where they disagree with it and are sure, the record is
    listed. OUT holds suspects.html, suspects.json, and the list for `lineside review`.
    """
    from lineside.runtime import Runtime
    from lineside.task_audit import audit as run

    run(
        file[:-1],
        file[-1],
        out,
        checkpoint=checkpoint,
        evaluations=evaluation or (),
        by=by or (),
        features=features,
        cut=cut,
        runtime=Runtime.of(device, seed=seed),
        as_json=as_json,
    )


guarded(_audit, task, "task audit")


class Tool(StrEnum):
    """Other tools for labelling."""

    label_studio = "label-studio"
    cvat = "cvat"


@verb
def review(
    folder: Annotated[
        Path,
        typer.Argument(
            help="Photographs (with --tasks), samples, a run or an evaluation (its wrong answers), or a list of "
            "questions (review.jsonl).",
            show_default=False,
        ),
    ],
    tasks: Annotated[
        list[Path] | None, typer.Option("--tasks", "-t", help="Task file; repeat for several.", show_default=False)
    ] = None,
    person: Annotated[
        str | None,
        typer.Option(help="Who answers; each person has a log of their own. None: $USER, or whom a file names."),
    ] = None,
    blind: Annotated[
        bool, typer.Option("--blind", help="Show what record, teacher and model said only after the answer.")
    ] = False,
    only: Annotated[
        list[str] | None, typer.Option("--task", help="Only this task, as family/task; repeat for several.")
    ] = None,
    split: Annotated[Split | None, typer.Option(help="Only this split of photographs or samples.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many questions, drawn by hash.")] = None,
    frames: Annotated[
        Path | None, typer.Option(help="The photographs that samples or a list come from, to write records.")
    ] = None,
    samples: Annotated[Path | None, typer.Option(help="The samples of an evaluation, for its whole pictures.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the review. None: review in the folder.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the page; 0: any that is free.")] = 0,
    records: Annotated[bool, typer.Option("--records", help="Only write the records for `lineside label`.")] = False,
    agreement: Annotated[
        bool, typer.Option("--agreement", help="Only print how far people agree, by task: share and Cohen's kappa.")
    ] = False,
    export: Annotated[
        tuple[Tool, Path] | None,
        typer.Option(
            metavar="TOOL FILE", help="Only write a file for label-studio (.json) or cvat (.xml).", show_default=False
        ),
    ] = None,
    import_: Annotated[
        Path | None,
        typer.Option("--import", help="Only read a file of Label Studio (JSON) or CVAT (for images 1.1, XML)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the agreement as one JSON object.")] = False,
) -> None:
    """Photographs, samples, an evaluation, or a list of questions -> a local page on which a person answers by
    keyboard, and records."""
    from lineside import review as verbs
    from lineside.reviewing.sources import Choice, open_review

    if sum(map(bool, (records, agreement, export, import_))) > 1:
        raise LinesideError("give one of --records, --agreement, --export and --import at a time")
    choice = Choice(tuple(only or ()), split.value if split else None, limit)
    found = open_review(folder, tasks=tasks or (), frames=frames, samples=samples, out=out, choice=choice)
    if records:
        verbs.records(found)
    elif agreement:
        verbs.agreement(found, as_json=as_json)
    elif export:
        verbs.export(found, export[0].value, export[1])
    elif import_:
        verbs.read_file(found, import_, person=person)
    else:
        verbs.serve(found, person=person or os.environ.get("USER") or "reviewer", blind=blind, port=port)


@verb
def validate(
    data: Annotated[Path, typer.Argument(help="Folder of samples or of frames.", show_default=False)],
    checkpoint: Annotated[Path | None, typer.Option(help="Measure lengths in the tokens of this checkpoint.")] = None,
    preview: Annotated[int, typer.Option("--show", min=0, help="Show the loss mask of this many samples a kind.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Any data set -> its errors, row by row, and a preview of the loss mask."""
    from lineside.validate import validate as run

    run(data, checkpoint=checkpoint, show=preview, as_json=as_json)


class Format(StrEnum):
    """Formats of samples: other trainers' and our own."""

    lineside = "lineside"
    llava = "llava"
    sharegpt = "sharegpt"
    messages = "messages"
    jsonl = "jsonl"
    parquet = "parquet"


@verb
def convert(
    source: Annotated[
        Path, typer.Argument(help="File of rows (JSON, Parquet, gz), or folder of samples.", show_default=False)
    ],
    out: Annotated[Path, typer.Argument(help="New folder.", show_default=False)],
    to: Annotated[Format, typer.Option(help="parquet: messages with the pictures inside.")] = Format.lineside,
    from_: Annotated[
        Format | None, typer.Option("--from", help="Accept rows of this format only.", show_default=False)
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of the pictures, if not beside the file.")] = None,
    captions: Annotated[
        bool, typer.Option("--captions", help="Rows with one turn, or with only an answer, are captions.")
    ] = False,
    family: Annotated[str, typer.Option(help="Family of foreign samples.")] = "foreign",
    bits: Bits = None,
) -> None:
    """Rows of other trainers (LLaVA, ShareGPT, messages, question and answer) -> samples, and back, unchanged."""
    from lineside.convert import convert as run

    form = from_.value if from_ else None
    run(source, out, from_=form, to=to.value, images=images, captions=captions, family=family, bits=bits)
