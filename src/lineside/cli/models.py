"""Verbs of the versions of a model: retrain, models, register, gate, promote, rollback, history, diff."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lineside.cli.command import verb
from lineside.cli.options import (
    REGISTRY,
    AsJson,
    Cell,
    Decoded,
    DecodedBy,
    DecodedFrom,
    Device,
    Dtype,
    Engine,
    Margin,
    Mode,
    NameAtVersion,
    RegistryFolder,
    Seed,
    VllmMemory,
    VllmPython,
    Where,
)
from lineside.errors import LinesideError
from lineside.recipe import MARGIN
from lineside.types import NO_VLLM, VllmAt


@verb
def retrain(
    model: Annotated[
        str,
        typer.Argument(
            metavar="CHAMPION",
            help="A name in the registry (its champion), NAME@VERSION, or the folder of a run or checkpoint.",
            show_default=False,
        ),
    ],
    samples: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[SAMPLES]...", help="New folders of samples, as `lineside label` writes them.", show_default=False
        ),
    ] = None,
    minutes: Annotated[
        float, typer.Option(min=0.1, max=100_000, help="Time for all: loading, training, evaluation.")
    ] = 10.0,
    outcomes: Annotated[
        list[Path] | None,
        typer.Option(help="Samples made of outcomes, for stage 3; repeat for several.", show_default=False),
    ] = None,
    old: Annotated[
        list[Path] | None,
        typer.Option(
            help="Old samples to replay; repeat for several. None: all that the champion was trained on.",
            show_default=False,
        ),
    ] = None,
    replay: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=0.95,
            help="Share of old frames among those that are read. None: half, or more if the new ones are used up. 0: "
            "none; the model then forgets.",
            show_default=False,
        ),
    ] = None,
    stages: Annotated[
        str | None,
        typer.Option(help="Train sft, rlvr, or sft,rlvr. None: those for which there is new data.", show_default=False),
    ] = None,
    lora: Annotated[
        bool | None,
        typer.Option(
            "--lora/--full",
            help="Train an adapter, or the whole language model. None: as the champion was trained; an adapter where "
            "memory is not enough.",
            show_default=False,
        ),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="A setting of the recipe, as for `train`; repeat.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the run. None: CHAMPION-SAMPLES beside the champion's run.", show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    gate: Annotated[bool, typer.Option("--gate", help="At the end run `lineside gate` on the challenger.")] = False,
    name: Annotated[
        str | None,
        typer.Option(
            help="Register the challenger under this name. None: the champion's name; not at all if that is a folder.",
            show_default=False,
        ),
    ] = None,
    cell: Cell = "",
    registry: RegistryFolder = REGISTRY,
    device: Annotated[Device | None, typer.Option(help="auto, cpu or cuda.", show_default=False)] = None,
) -> None:
    """The champion, new samples and outcomes -> a challenger, within minutes, with old samples beside the new ones.

    It says first what it will do, why, and how long that takes. The recipe lies in the run as retrain.yaml. Stopped or
    killed, the same command continues. At the end the challenger is evaluated and registered.

    Exit status 0: trained (with --gate: passed). 1, 3: with --gate: refused, too little data. 2: bad input, a budget
    that is too small for one step, a full disk.
    """
    from lineside.retrain import Request
    from lineside.retrain import retrain as run

    request = Request(
        model=model,
        new=tuple(samples or ()),
        outcomes=tuple(outcomes or ()),
        old=tuple(old) if old else None,
        minutes=minutes,
        replay=replay,
        stages=stages_of(stages),
        lora=lora,
        changes=(*(setting or ()), *([f"device={device.value}"] if device else ())),
    )
    run(request, out=out, registry=registry, cell=cell, name=name, dry_run=dry_run, gate=gate)


def stages_of(text: str | None) -> tuple[str, ...] | None:
    """The stages in a list with commas. Raises LinesideError for a name that is none."""
    names = tuple(part.strip() for part in text.split(",")) if text is not None else None
    if names is not None and (set(names) - {"sft", "rlvr"} or len(set(names)) < len(names)):
        raise LinesideError(f"--stages {text}: expected sft, rlvr, or sft,rlvr")
    return names


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
    registry: RegistryFolder = REGISTRY,
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
    registry: RegistryFolder = REGISTRY,
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
    forgets: Annotated[
        float, typer.Option(min=0, help="Perplexity of the suites' captions may grow by so much: 0.1 is a tenth.")
    ] = 0.1,
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
    vllm_python: VllmPython = None,
    vllm_memory: VllmMemory = NO_VLLM.memory,
    out: Annotated[Path | None, typer.Option(help="Folder for a copy of the verdict and its page.")] = None,
    registry: RegistryFolder = REGISTRY,
    device: Where = Device.auto,
    dtype: Dtype = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """A version -> whether it may take the champion's place: a verdict on every suite kept so far, and a page.

    Both models answer all suites; what is missing is evaluated now. The challenger passes if it is not worse overall
    and in every family, harms no task and no suite, keeps valid traces, calibration and length, has not forgotten the
    suites' captions, and is better where --better-on asks for it. `promote` reads the verdict from the registry.

    Exit status 0: passed. 1: refused; the page shows the questions that it loses. 2: bad input. 3: too little data.
    """
    from lineside.gate import gate as run
    from lineside.runtime import Runtime
    from lineside.serving.pairs import EnginePair

    run(
        registry,
        challenger,
        against=against,
        cell=cell,
        margin=margin,
        longer=longer,
        forgets=forgets,
        better_on=better_on or (),
        mode=mode.value,
        max_new_tokens=max_new_tokens,
        pair=EnginePair(engine.value, weights.value),
        vllm=VllmAt(vllm_python, vllm_memory),
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
    registry: RegistryFolder = REGISTRY,
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
    registry: RegistryFolder = REGISTRY,
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
    registry: RegistryFolder = REGISTRY,
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
    registry: RegistryFolder = REGISTRY,
    as_json: AsJson = False,
) -> None:
    """Two versions -> how they differ: recipe, data, parts, files, and answers to the questions that both were asked.

    Evaluations of the same suite are compared in pairs, as `lineside compare` does; others are shown side by side.
    """
    from lineside.models import diff as run

    run(registry, first, second, margin=margin, seed=seed, as_json=as_json)
