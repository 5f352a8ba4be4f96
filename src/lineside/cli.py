"""The table of verbs, in the order of the pipeline. Imports no torch: a verb is imported when it is called.

This file only reads the command line and calls the verb. An error becomes one message and an exit status: 2 for bad
input or a full disk, 1 for a check that failed, 3 for too little data to check, 130 when interrupted, 70 for a bug in
lineside. LINESIDE_DEBUG=1 shows the stack trace.
"""

from __future__ import annotations

import functools
import json
import os
import signal
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from lineside import __version__, progress
from lineside.errors import LinesideError, disk_is_full
from lineside.flags import with_flags
from lineside.machine import extra_of, lacking, launched, prepare
from lineside.recipe import MARGIN, ROUTE_BELOW, Label, Recipe, Requests, load_recipe
from lineside.stages import STAGES, TABLE, StageEntry

F = TypeVar("F", bound=Callable[..., Any])
FAULT = 70  # as in sysexits.h
INTERRUPTED, PIPE = 130, 141  # as a shell reports SIGINT and SIGPIPE
SHARDED = ("label", "encode")  # verbs of which each process that torchrun starts does its share, without the others
SHARED = (*SHARDED, *(entry.name for entry in TABLE if not entry.control_of), "train")  # all others do them together

app = typer.Typer(
    name="lineside",
    help="Turns a vision encoder and a text model that have never met into a verified, compact VLM for robot cells.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def verb(function: F) -> F:
    """Add a function to the table of verbs. An exception in it becomes a message and an exit status."""
    return _guarded(function, app, function.__name__)


def _guarded(function: F, table: typer.Typer, name: str) -> F:
    @functools.wraps(function)
    def guarded(*args: Any, **options: Any) -> None:
        me = launched()
        if me.rank and name not in SHARED:
            return  # rank 0 does it
        progress.be_quiet(me.rank > 0 and name not in SHARDED)
        try:
            function(*args, **options)
        except typer.Exit:
            raise
        except (Exception, KeyboardInterrupt) as error:
            if os.environ.get("LINESIDE_DEBUG") == "1":
                raise
            progress.clear()
            message, status = explain(error)
            if me.count > 1 and name not in SHARDED:
                message, status = _explain_rank(error, message, status)
            if message:
                progress.say(f"lineside {name}: {message}")
            raise typer.Exit(status) from None

    table.command(name=name.split()[-1])(guarded)
    return function


def _explain_rank(error: BaseException, message: str, status: int) -> tuple[str, int]:
    """As `explain`, for one of several processes of a run: the first that fails says why, the others are silent."""
    from lineside.ranks import has_lost_a_rank, is_first_to_fail

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # it ends anyway; torchrun tells all others to
    if not is_first_to_fail():
        return "", status
    progress.be_quiet(False)
    if has_lost_a_rank(error):
        lost = (
            "a process of this run has ended without a word (killed, or out of memory?); finished work is kept: run "
            f"the same command again to continue from the last saved state [{' '.join(str(error).split())[:200]}]"
        )
        return lost, 1
    return message, status


def explain(error: BaseException) -> tuple[str, int]:
    """The message for an error, and its exit status."""
    if isinstance(error, LinesideError):
        return str(error), error.exit_status
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; finished work is kept: run the same command again to continue", INTERRUPTED
    if disk_is_full(error):
        where = f" ({name})" if (name := getattr(error, "filename", None)) else ""
        return f"the disk is full{where}; finished work is kept: make room and run the same command again", 2
    if isinstance(error, BrokenPipeError):
        return "the program that read the output has ended", PIPE
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}", 2
    if isinstance(error, ModuleNotFoundError) and error.name and extra_of(error.name):
        return str(lacking(error.name, "this")), 2
    kind = type(error).__name__
    return f"a bug in lineside, {kind}: {error}\nRun it again with LINESIDE_DEBUG=1 to see where, and report it.", FAULT


def main() -> None:
    """Entry point of the command `lineside`."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler stops the job: save, as after Ctrl-C
    prepare()
    app()


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Options of the command itself."""
    if show:
        typer.echo(f"lineside {__version__}")
        raise typer.Exit


# --- arguments and options that several verbs take


class Mode(StrEnum):
    """How a question is asked."""

    think = "think"
    fast = "fast"


class NumberFormat(StrEnum):
    """Number formats."""

    fp32 = "fp32"
    bf16 = "bf16"


class Device(StrEnum):
    """Where to compute."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Engine(StrEnum):
    """What decodes."""

    local = "local"
    openvino = "openvino"


class Decoded(StrEnum):
    """Weights as decoding reads them."""

    full = "full"
    int8 = "int8"


class AnyEngine(StrEnum):
    """What decodes, or the fastest of all."""

    auto = "auto"
    local = "local"
    openvino = "openvino"


class AnyWeights(StrEnum):
    """Weights as decoding reads them, or the fastest of all."""

    auto = "auto"
    full = "full"
    int8 = "int8"


class Split(StrEnum):
    """Splits of the data. They are never mixed."""

    train = "train"
    dev = "dev"
    heldout = "heldout"
    shifted = "shifted"


Checkpoint = Annotated[Path, typer.Argument(help="Folder of a checkpoint.", show_default=False)]
Samples = Annotated[Path, typer.Argument(help="Folder of samples.", show_default=False)]
Bits = Annotated[
    int | None,
    typer.Option(min=8, max=16, help="Bits that the camera uses in grey pictures of 16 bits.", show_default=False),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of all random choices.")]
Dtype = Annotated[
    NumberFormat | None,
    typer.Option(help="Number format to compute in. By default the checkpoint's own, in which it was evaluated."),
]
Where = Annotated[Device, typer.Option(help="auto: a CUDA device if there is one, else the CPU.")]
DecodedBy = Annotated[
    Engine,
    typer.Option(
        help="What decodes. openvino: the export that `lineside export --to openvino` wrote; --weights full takes the "
        "one in fp32."
    ),
]
DecodedFrom = Annotated[
    Decoded, typer.Option(help="full: in the number format of the computation. int8: quantised for decoding.")
]
Margin = Annotated[float, typer.Option(min=0, max=1, help="A loss up to this share is accepted: 0.03 is three points.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]


# --- the verbs, in the order of the pipeline


class Family(StrEnum):
    """Kinds of cell."""

    picking = "picking"
    kitting = "kitting"
    returns = "returns"


@verb
def simulate(
    out: Annotated[
        Path, typer.Argument(help="Folder for the frames. An existing one gets the missing frames.", show_default=False)
    ],
    family: Annotated[list[Family] | None, typer.Option(help="Repeat for several. None: all three.")] = None,
    train: Annotated[int, typer.Option(min=0, help="Training frames of each family.")] = 100,
    dev: Annotated[int, typer.Option(min=0, help="Frames of each family to tune on.")] = 10,
    heldout: Annotated[int, typer.Option(min=0, help="Frames of each family from unseen scenes.")] = 20,
    shifted: Annotated[int, typer.Option(min=0, help="Frames of each family: unseen SKUs in unseen cells.")] = 10,
    week: Annotated[int, typer.Option(min=0, help="Week of the fleet: SKUs, packaging and light change by week.")] = 0,
    size: Annotated[int, typer.Option(min=32, help="Side of the picture in pixels.")] = 224,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: one for each core.")] = 0,
    seed: Seed = 0,
) -> None:
    """A seed, a week, families of cells -> frames with ground truth from a simulated fleet, and a contact sheet."""
    from lineside.simulate import simulate as run

    families = [str(f) for f in family or Family]
    counts = {"train": train, "dev": dev, "heldout": heldout, "shifted": shifted}
    frames = {split: dict.fromkeys(families, number) for split, number in counts.items() if number}
    run(out, frames=frames, seed=seed, week=week, workers=workers or None, size=size)


@verb
def select(
    frames: Annotated[Path, typer.Argument(help="Frames, or a folder or archive of pictures.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="Folder for the list.", show_default=False)],
    budget: Annotated[int | None, typer.Option(help="Number of frames to choose.", show_default=False)] = None,
    usd: Annotated[
        float | None, typer.Option(help="US dollars to spend, in place of --budget.", show_default=False)
    ] = None,
    usd_per_answer: Annotated[
        float | None, typer.Option(help="Price of one answer. A frame costs one for each open question.")
    ] = None,
    tasks: Annotated[
        list[Path] | None,
        typer.Option("--tasks", "-t", help="Task file: frames with a question that their record leaves open are new."),
    ] = None,
    labelled: Annotated[
        list[Path] | None, typer.Option(help="Folder of samples: their frames are not new; repeat for several.")
    ] = None,
    balance: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN",
            help="Column whose values get equal numbers of labelled frames, such as cell, sku or light; repeat for "
            "several.",
            show_default=False,
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="Its encoder compares the frames; it answers the open questions, and doubtful ones weigh more."
        ),
    ] = None,
    features: Annotated[Path | None, typer.Option(help="Feature store to reuse.")] = None,
    device: Where = Device.auto,
    seed: Seed = 0,
) -> None:
    """Frames, a budget -> the frames to label next, with the reason for each, as a table and a list to review.

    Chosen are frames that stand for many others, are unlike what is labelled, balance the columns of --balance, and on
    which the model is unsure. Frames of dev, heldout and shifted are left out: suites are drawn at random.
    """
    from lineside.runtime import Runtime
    from lineside.select import select as run

    run(
        frames,
        out,
        budget=budget,
        usd=usd,
        usd_per_answer=usd_per_answer,
        tasks=tasks or (),
        labelled=labelled or (),
        balance=balance or (),
        checkpoint=checkpoint,
        features=features,
        runtime=Runtime.of(device, seed=seed),
    )


@verb
def drift(
    before: Annotated[Path, typer.Argument(help="Frames of before, such as last week's.", show_default=False)],
    after: Annotated[Path, typer.Argument(help="Frames of now.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Folder for the account and the list of frames.")] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Column to test value by value; repeat it. None: cell, camera and sku."),
    ] = None,
    level: Annotated[float, typer.Option(help="Probability of any false alarm.")] = 0.05,
    tasks: Annotated[
        list[Path] | None, typer.Option("--tasks", "-t", help="Task file that says how to read the tables.")
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Its encoder compares the frames.")] = None,
    features: Annotated[Path | None, typer.Option(help="Feature store to reuse.")] = None,
    device: Where = Device.auto,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Frames of before and of now -> whether they have changed, and in which cell, camera or SKU.

    A kernel two-sample test of the encoder's features, by scene. Exit status 0: no change is shown. 1: an alarm. 2: bad
    input, or too few scenes.
    """
    from lineside.drift import COLUMNS
    from lineside.drift import drift as run
    from lineside.runtime import Runtime

    run(
        before,
        after,
        out=out,
        by=by or COLUMNS,
        level=level,
        tasks=tasks or (),
        checkpoint=checkpoint,
        features=features,
        runtime=Runtime.of(device, seed=seed),
        as_json=as_json,
    )


class Teacher(StrEnum):
    """Where labels come from."""

    sim = "sim"
    table = "table"
    api = "api"


@verb
@with_flags(Label)
def label(
    frames: Annotated[Path, typer.Argument(help="Frames, or a folder or archive of pictures.", show_default=False)],
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


_guarded(_check, task, "task check")


def _keys(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY]...", help="A key, or a section such as answer. None: all.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Nothing, or names of keys -> every key of a task file: what it does, its default, an example."""
    from lineside.task import list_keys

    list_keys(words or (), as_json=as_json)


_guarded(_keys, task, "task keys")


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
    features: Annotated[Path | None, typer.Option(help="Feature store to reuse.")] = None,
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


_guarded(_audit, task, "task audit")


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


RECIPE = (
    "YAML file, or one of the package's own: grocery, headline, nano, quickstart, qwen3-vl-2b, siglip, siglip2-qwen3, "
    "smollm2, smolvlm2, sorting."
)
RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help=RECIPE, show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE", help="Settings that override the file: seed=1 sft.epochs=2", show_default=False
    ),
]


RecipeDevice = Annotated[
    Device | None, typer.Option(help="In place of the recipe's device: auto, cpu or cuda.", show_default=False)
]


def _recipe(file: Path, overrides: list[str] | None, device: Device | None) -> Recipe:
    return load_recipe(file, [*(overrides or ()), *([f"device={device}"] if device else ())])


def _run_to(last: str, recipe: Path, overrides: list[str] | None, device: Device | None) -> None:
    settings = _recipe(recipe, overrides, device)  # first: a mistake is reported before torch is loaded
    from lineside.train import train as run

    run(settings, last=last)


@verb
def encode(
    recipe: RecipeFile,
    overrides: Overrides = None,
    shard: Annotated[str, typer.Option(help="i/n: do only this share. None: torchrun's rank, if there is one.")] = "",
    device: RecipeDevice = None,
) -> None:
    """A recipe -> the features of its pictures, computed by one or several processes, before training."""
    from lineside.data.job import rank_of

    settings, share = _recipe(recipe, overrides, device), rank_of(shard, os.environ)
    from lineside.train import encode as run

    run(settings, shard=share)


def _stage_verb(entry: StageEntry) -> None:
    """Add the verb of a stage: a run up to and including it."""

    def run(recipe: RecipeFile, overrides: Overrides = None, device: RecipeDevice = None) -> None:
        _run_to(entry.name, recipe, overrides, device)

    run.__name__, run.__doc__ = entry.name, entry.about
    verb(run)


for _entry in TABLE:
    if not _entry.control_of:
        _stage_verb(_entry)


@verb
def train(recipe: RecipeFile, overrides: Overrides = None, device: RecipeDevice = None) -> None:
    """A recipe -> all stages in order, each judged, and a report; run again, it continues."""
    _run_to(STAGES[-1], recipe, overrides, device)


@verb
def plan(
    recipe: RecipeFile,
    overrides: Overrides = None,
    device: Annotated[
        str | None,
        typer.Option(help="Plan for this GPU (l4, a100, h100, h200 ...). Default: this machine.", show_default=False),
    ] = None,
    devices: Annotated[int, typer.Option(min=1, help="With --device: how many of them.")] = 1,
    device_memory: Annotated[
        float | None, typer.Option(min=0.1, help="Memory of one device in GB, in place of its own.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """A recipe -> parameters, tokens, memory and time of each step, before anything is loaded or downloaded.

    The speed of this machine is that of an earlier run with the same parts, or is measured in a second; for a named
    device it is arithmetic. Exit status 1: a stage needs more memory than there is.
    """
    if devices > 1 and device is None:
        raise LinesideError("--devices counts those of --device: name one")
    from lineside.plan import plan as run

    run(load_recipe(recipe, overrides or ()), device=device, devices=devices, memory=device_memory, as_json=as_json)


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
    from lineside.serving.engines import EnginePair

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
    features: Annotated[Path | None, typer.Option(help="Feature store to reuse.")] = None,
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
    from lineside.serving.engines import EnginePair

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


class ExportFormat(StrEnum):
    """Formats of other engines."""

    gguf = "gguf"
    openvino = "openvino"
    onnx = "onnx"
    merged = "merged"


class Weights(StrEnum):
    """Number formats of exported matrices."""

    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"
    int8 = "int8"
    q8_0 = "q8_0"


class Server(StrEnum):
    """Servers that must be able to load an export."""

    vllm = "vllm"


@verb
def export(
    checkpoint: Checkpoint,
    to: Annotated[
        ExportFormat,
        typer.Option(
            help="gguf: llama.cpp (text model and mmproj). openvino, onnx: graphs and run.py, which asks them without "
            "torch. merged: a folder of safetensors for transformers and vLLM.",
            show_default=False,
        ),
    ],
    weights: Annotated[
        Weights | None,
        typer.Option(
            help="gguf: bf16, fp32, q8_0. openvino: fp16, fp32, int8. onnx: fp32. merged: bf16, fp32. Default: the "
            "first.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write. Default: export/<format>-<weights> beside the checkpoint.")
    ] = None,
    serve: Annotated[
        Server | None, typer.Option("--for", help="With --to merged: refuse what this server cannot load.")
    ] = None,
    suite: Annotated[
        Path | None,
        typer.Option(metavar="SAMPLES", help="Also measure how much exact match the export loses on these samples."),
    ] = None,
    split: Annotated[Split, typer.Option(help="With --suite: which part of the samples.")] = Split.heldout,
    limit: Annotated[int | None, typer.Option(min=1, help="With --suite: at most this many questions.")] = None,
    as_json: AsJson = False,
) -> None:
    """A checkpoint -> GGUF, OpenVINO, ONNX or merged safetensors, each checked against the checkpoint's logits.

    What the format cannot carry is refused before any work. The engine that loads the files answers the same questions
    as the checkpoint, on square and other pictures, with thinking on and off. Printed, and written to export.json: the
    largest difference of log-probabilities, and how many greedy answers are the same. Exit status 1: the difference
    is larger than rounding; the files then lie in FOLDER.failed, and an earlier export is kept.
    """
    if serve is not None and to is not ExportFormat.merged:
        raise LinesideError("--for says who loads a merged folder: give --to merged")
    if limit is not None and suite is None:
        raise LinesideError("--limit is for the questions of a suite: give --suite SAMPLES")
    from lineside.export import export as run

    run(
        checkpoint,
        to=to.value,
        weights=weights.value if weights else None,
        out=out,
        serve=serve.value if serve else None,
        samples=suite,
        split=split.value,
        limit=limit,
        as_json=as_json,
    )


SAFETY, OUTCOMES = "Safety", "Outcomes"


@verb
def serve(
    checkpoints: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CHECKPOINT]...",
            help="Folder of a checkpoint, or NAME=FOLDER; several models are told apart by their names.",
            show_default=False,
        ),
    ] = None,
    registry: Annotated[
        Path | None,
        typer.Option(
            help="In place of checkpoints: follow the champions of a registry. None: LINESIDE_REGISTRY, if it is set "
            "and no checkpoint is given."
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="With --registry: serve this name; repeat for several. None: all that have a champion."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all networks.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: any that is free.")] = 8000,
    device: Where = Device.auto,
    keys: Annotated[
        Path | None,
        typer.Option(rich_help_panel=SAFETY, help="File with API keys, one a line. None: everyone may ask."),
    ] = None,
    per_minute: Annotated[
        float, typer.Option(min=0, rich_help_panel=SAFETY, help="Requests a minute for each key; 0: no limit.")
    ] = 0.0,
    image_host: Annotated[
        list[str] | None,
        typer.Option(
            rich_help_panel=SAFETY,
            help="Host from which pictures are fetched by URL; repeat for several. None: data URLs only.",
        ),
    ] = None,
    max_body_mb: Annotated[int, typer.Option(min=1, rich_help_panel=SAFETY, help="Largest body, in MB.")] = 32,
    max_megapixels: Annotated[int, typer.Option(min=1, rich_help_panel=SAFETY, help="Largest picture.")] = 32,
    engine: Annotated[
        AnyEngine,
        typer.Option(
            help="What decodes. auto: the fastest that was judged, as measured at start. openvino: an export, see "
            "`lineside export`."
        ),
    ] = AnyEngine.auto,
    weights: Annotated[
        AnyWeights, typer.Option(help="As of `evaluate`. auto: the fastest that was judged.")
    ] = AnyWeights.auto,
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(
            help="Evaluation of the checkpoint, if it does not lie in the run's folder; repeat it for several.",
            show_default=False,
        ),
    ] = None,
    unjudged: Annotated[bool, typer.Option("--unjudged", help="Serve also what no evaluation has judged.")] = False,
    feature_mb: Annotated[int, typer.Option(min=1, help="Memory for features of recent pictures, in MB.")] = 512,
    prefix_mb: Annotated[
        int, typer.Option(min=0, help="Memory for keys and values of recent frames, in MB; 0: none are kept.")
    ] = 256,
    margin: Annotated[
        float, typer.Option(min=1, help="Factor on predicted times: larger refuses more and is late less often.")
    ] = 1.25,
    outcomes: Annotated[
        Path | None,
        typer.Option(rich_help_panel=OUTCOMES, help="File in which answers are kept, so that their truth can be told."),
    ] = None,
    outcome_days: Annotated[
        float, typer.Option(min=0, rich_help_panel=OUTCOMES, help="Days for which an answer is kept.")
    ] = 30.0,
    outcome_mb: Annotated[
        int,
        typer.Option(min=1, rich_help_panel=OUTCOMES, help="Largest size of the file; the oldest answers go first."),
    ] = 512,
    outcome_frames: Annotated[
        bool, typer.Option("--outcome-frames", rich_help_panel=OUTCOMES, help="Keep the pictures too.")
    ] = False,
) -> None:
    """Checkpoints -> an OpenAI-compatible server that answers by a deadline or refuses at once.

    With --registry it serves the champions, and follows every promotion and rollback without dropping a request.

    A request with a deadline is accepted only if it can be answered in time; otherwise it is refused at once. A task's
    time budget is its default deadline. Only an engine and weights that `lineside evaluate` has judged are served, of
    several the fastest. Ctrl-C answers what was accepted and ends; SIGHUP loads the checkpoints anew. docs/serve.md has
    examples.
    """
    from lineside.serve import serve as run

    if not checkpoints and registry is None and (place := os.environ.get("LINESIDE_REGISTRY")):
        registry = Path(place)
    run(
        checkpoints or (),
        registry=registry,
        models=model or (),
        host=host,
        port=port,
        device=device,
        keys=keys,
        per_minute=per_minute,
        image_hosts=image_host or (),
        engine=None if engine == AnyEngine.auto else engine.value,
        weights=None if weights == AnyWeights.auto else weights.value,
        evaluations=evaluation or (),
        unjudged=unjudged,
        max_body_mb=max_body_mb,
        max_megapixels=max_megapixels,
        feature_mb=feature_mb,
        prefix_mb=prefix_mb,
        margin=margin,
        outcomes=outcomes,
        outcome_days=outcome_days,
        outcome_mb=outcome_mb,
        outcome_frames=outcome_frames,
    )


# --- the registry


Folder = Annotated[
    Path, typer.Option("--registry", envvar="LINESIDE_REGISTRY", help="Folder of the registry.", show_envvar=True)
]
Cell = Annotated[
    str, typer.Option(help="Only in this cell. None: in all cells without a champion of their own.", show_default=False)
]
NameAtVersion = Annotated[
    str, typer.Argument(metavar="NAME@VERSION", help="Or digits of its hash.", show_default=False)
]
REGISTRY = Path("registry")


@verb
def models(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME[@VERSION]]",
            help="Of one name, or all that is known of one version. None: all.",
            show_default=False,
        ),
    ] = None,
    registry: Folder = REGISTRY,
    as_json: AsJson = False,
) -> None:
    """The registry -> its models: version, state, exact match, what each came from, hash, size, date.

    champion: it answers. challenger: it is newer than every champion so far. retired: all others.
    """
    from lineside.models import list_models

    list_models(registry, name, as_json=as_json)


@verb
def register(
    model: Annotated[Path, typer.Argument(help="A run (its last stage), or a checkpoint.", show_default=False)],
    name: Annotated[str, typer.Option(help="Name of the model, such as bins.", show_default=False)],
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(
            help="Evaluation of this model that lies outside its run; repeat for several.", show_default=False
        ),
    ] = None,
    registry: Folder = REGISTRY,
    as_json: AsJson = False,
) -> None:
    """A run or a checkpoint -> the next version of a name, with its recipe, evaluations, suites and lineage.

    Files are copied and known by their content: the same model registered again is the same version.
    """
    from lineside.models import register as run

    run(registry, model, name, evaluations=evaluation or (), as_json=as_json)


@verb
def gate(
    challenger: NameAtVersion,
    against: Annotated[
        str | None, typer.Option(metavar="NAME@VERSION", help="None: the champion of its name.", show_default=False)
    ] = None,
    cell: Cell = "",
    margin: Margin = MARGIN,
    longer: Annotated[
        float, typer.Option(min=0, help="Responses may take so much more tokens and time: 0.2 is a fifth.")
    ] = 0.2,
    better_on: Annotated[
        list[str] | None,
        typer.Option(help="A suite (RUN/SPLIT) on which it must be better; repeat it.", show_default=False),
    ] = None,
    mode: Annotated[Mode, typer.Option(help="The mode in which both answer.")] = Mode.think,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Longest response. None: as in the champion's newest evaluation.", show_default=False),
    ] = None,
    engine: DecodedBy = Engine.local,
    weights: DecodedFrom = Decoded.full,
    out: Annotated[Path | None, typer.Option(help="Folder for a copy of the verdict and its page.")] = None,
    registry: Folder = REGISTRY,
    device: Where = Device.auto,
    dtype: Dtype = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """A version -> whether it may take the champion's place: a verdict on every suite kept so far, and a page.

    Both models answer all suites; what is missing is evaluated now. The challenger passes if it is not worse overall
    and in every family, harms no task and no suite, keeps valid traces, calibration and length, and is better where
    --better-on asks for it. `promote` reads the verdict from the registry.

    Exit status 0: passed. 1: refused; the page shows the questions that it loses. 2: bad input. 3: too little data.
    """
    from lineside.gate import gate as run
    from lineside.runtime import Runtime
    from lineside.serving.engines import EnginePair

    run(
        registry,
        challenger,
        against=against,
        cell=cell,
        margin=margin,
        longer=longer,
        better_on=better_on or (),
        mode=mode.value,
        max_new_tokens=max_new_tokens,
        pair=EnginePair(engine.value, weights.value),
        runtime=Runtime.of(device, dtype, seed=seed),
        out=out,
        as_json=as_json,
    )


@verb
def promote(
    version: NameAtVersion,
    cell: Cell = "",
    force: Annotated[
        str | None,
        typer.Option(metavar="REASON", help="Promote without a passed verdict; the reason is kept in the history."),
    ] = None,
    registry: Folder = REGISTRY,
    as_json: AsJson = False,
) -> None:
    """A version -> the champion, in one atomic step that running servers follow without dropping a request.

    The first champion of a name needs no verdict. Every other one needs a gate verdict for this version against the
    champion in whose place it comes, or --force with a reason. Exit status 1: the gate has refused it. 3: the gate had
    too little data. 2: there is no verdict, or its files are not whole. The champion then stays.
    """
    from lineside.models import promote as run

    run(registry, version, cell=cell, force=force, as_json=as_json)


@verb
def rollback(
    name: Annotated[str, typer.Argument(help="Name of the model.", show_default=False)],
    cell: Cell = "",
    to: Annotated[
        str | None, typer.Option(metavar="NAME@VERSION", help="An earlier champion. None: the one before this.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="With --cell: it has no champion of its own any more.")
    ] = False,
    registry: Folder = REGISTRY,
    as_json: AsJson = False,
) -> None:
    """A name -> the champion before this one, in one atomic step that running servers follow.

    The first champion of a cell rolled back, the cell follows the champion of all cells again.
    """
    from lineside.models import rollback as run

    run(registry, name, cell=cell, to=to, follow=follow, as_json=as_json)


@verb
def history(
    name: Annotated[str | None, typer.Argument(help="Of one name. None: all.", show_default=False)] = None,
    registry: Folder = REGISTRY,
    as_json: AsJson = False,
) -> None:
    """The registry -> what was registered, promoted, rolled back and deleted, when, why and by whom."""
    from lineside.models import history as run

    run(registry, name, as_json=as_json)


@verb
def diff(
    first: Annotated[
        str, typer.Argument(metavar="A", help="NAME@VERSION, or NAME for its champion.", show_default=False)
    ],
    second: Annotated[str, typer.Argument(metavar="B", help="The same.", show_default=False)],
    margin: Margin = MARGIN,
    seed: Seed = 0,
    registry: Folder = REGISTRY,
    as_json: AsJson = False,
) -> None:
    """Two versions -> how they differ: recipe, data, parts, files, and answers to the questions that both were asked.

    Evaluations of the same suite are compared in pairs, as `lineside compare` does; others are shown side by side.
    """
    from lineside.models import diff as run

    run(registry, first, second, margin=margin, seed=seed, as_json=as_json)


registry_table = typer.Typer(help="The registry's folder.", no_args_is_help=True)
app.add_typer(registry_table, name="registry")


def _gc(
    keep: Annotated[int, typer.Option(min=0, help="Newest versions of each name that stay.")] = 3,
    most: Annotated[
        str | None,
        typer.Option("--bytes", metavar="SIZE", help="Delete the oldest until all files take less, such as 20GB."),
    ] = None,
    always: Annotated[bool, typer.Option("--always", help="From now on also after every `register`.")] = False,
    registry: Folder = REGISTRY,
    as_json: AsJson = False,
) -> None:
    """Old models -> deleted by a policy; their records stay.

    Champions, the champion before each, models that a running server uses, suites and evaluations are never deleted.
    """
    from lineside.models import gc as run

    run(registry, keep=keep, most=most, always=always, as_json=as_json)


_guarded(_gc, registry_table, "registry gc")
