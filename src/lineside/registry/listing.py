"""What the registry knows of its versions, as rows to show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lineside.registry.store import ALL_CELLS, Item, Registry, TrialKind, Version

RECIPE = "recipe.yaml"  # the file of a run's recipe
EVERYWHERE = "all cells"
OWN = "local full"  # the model's own decoding
State = Literal["champion", "challenger", "retired"]
_SPLITS, _MODES = ("heldout", "shifted", "dev", "train"), ("think", "fast")


class Exact(BaseModel):
    """Exact match of a version on one suite."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    exact: float
    interval: tuple[float, float]
    split: str
    mode: str
    n: int
    simulated: bool
    run: str | None = Field(description="run whose suite it is; null: its questions are not kept")


class Evaluated(Exact):
    """An evaluation of a version."""

    by: str = Field(description="what decoded, such as 'local full'")
    item: str = Field(description="hash of the evaluation's files")
    suite: str | None = Field(description="hash of the kept questions; null: not kept")


class Against(BaseModel):
    """A gate's verdict about a version."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    champion: str = Field(description="the version that it was compared with")
    outcome: str
    item: str = Field(description="hash of the verdict's files")
    time: str


class OnTrial(BaseModel):
    """A trial of a version."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cell: str = Field(description="'all cells': those without a champion of their own")
    kind: TrialKind
    share: float = Field(description="of the requests")
    since: str


class Line(BaseModel):
    """One version in the output of `models --json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: int
    model: str = Field(description="SHA-256 over the names, sizes and hashes of its files")
    state: State = Field(description="challenger: newer than every champion so far. retired: all others")
    champion_of: list[str] = Field(description="cells; 'all cells': those without a champion of their own")
    trials: list[OnTrial] = Field(description="where it runs beside the champion")
    parent: str | None = Field(description="NAME@VERSION that it was trained from; null: none that is registered")
    stages: list[str] = Field(description="that it has been through since its parts, as far as its lineage says")
    exact: Exact | None = Field(description="on heldout with thinking, else on what it was evaluated on; null: on none")
    registered: str
    bytes: int
    kept: bool = Field(description="false: its files were deleted, and the record stays")
    path: str | None = Field(description="its checkpoint")


class Origin(Line):
    """The output of `models NAME@VERSION --json`: what a version came from, and what came from it."""

    children: list[str] = Field(description="versions that were trained from it")
    data: dict[str, str] = Field(description="fingerprints of the samples and task files that it was trained on")
    recipe: str | None = Field(description="hash of its run's recipe; null: registered without its run")
    trained: str | None = Field(description="when; null: no lineage")
    evaluations: list[Evaluated]
    verdicts: list[Against]


def origin(registry: Registry, version: Version) -> Origin:
    """What is known of one version."""
    (line,) = (line for line in lines(registry, version.name) if line.version == version.number)
    item = registry.item(version.model)
    others = [(other, parent_of(registry, registry.item(other.model))) for other in registry.versions()]
    recipes = [hash for role, hash in registry.sources(item.hash) if role == "recipe"]
    return Origin(
        **line.model_dump(),
        children=[other.label for other, parent in others if parent is not None and parent.model == item.hash],
        data=item.about["data"],
        recipe=recipes[-1] if recipes else None,
        trained=item.about["trained"],
        evaluations=[_evaluated(registry, one) for one in newest_evaluations(registry, item.hash).values()],
        verdicts=_verdicts(registry, item.hash),
    )


def _evaluated(registry: Registry, item: Item) -> Evaluated:
    suites = [hash for role, hash in registry.sources(item.hash) if role == "suite"]
    run = runs_of_suites(registry).get(item.about["digest"])
    shown = {**_shown(item.about), "run": run, "by": item.about["by"]}
    return Evaluated(**shown, item=item.hash, suite=suites[-1] if suites else None)


def _verdicts(registry: Registry, model: str) -> list[Against]:
    labels = {version.model: version.label for version in registry.versions()}
    rows = registry.rows("SELECT * FROM verdicts WHERE challenger = ? ORDER BY id", model)
    return [
        Against(champion=labels[row["champion"]], outcome=row["outcome"], item=row["item"], time=row["time"])
        for row in rows
    ]


def lines(registry: Registry, name: str | None = None) -> list[Line]:
    """All versions, or those of a name. Raises LinesideError for a name that is not known."""
    champions, trials = registry.champions(), registry.trials()
    promoted: dict[str, set[int]] = {}
    for event in registry.events():
        if event["what"] == "promote":
            promoted.setdefault(event["name"], set()).add(event["number"])
    return [
        _line(
            registry,
            version,
            [cell_name(found.cell) for found in champions if found.version == version],
            [
                OnTrial(cell=cell_name(found.cell), kind=found.kind, share=found.share, since=found.since)
                for found in trials
                if found.version == version
            ],
            max(promoted.get(version.name, {0})),
        )
        for version in registry.versions(name)
    ]


Way = tuple[str, str, str, str]  # split, mode, what decoded (such as "local full"), and the digest of the questions


def newest_evaluations(registry: Registry, model: str) -> dict[Way, Item]:
    """The newest evaluation of a model in each way."""
    found = registry.made_from(model, "model")
    return {tuple(item.about[key] for key in ("split", "mode", "by", "digest")): item for item in found}


def parent_of(registry: Registry, model: Item) -> Version | None:
    """The nearest registered version that a model was trained from."""
    versions = registry.versions()
    for weights in model.about["ancestors"]:
        for version in reversed(versions):
            if version.model != model.hash and registry.item(version.model).about["weights"] == weights:
                return version
    return None


def _line(
    registry: Registry, version: Version, champion_of: list[str], trials: list[OnTrial], last_promoted: int
) -> Line:
    item = registry.item(version.model)
    parent = parent_of(registry, item)
    newer: State = "challenger" if version.number > last_promoted else "retired"
    return Line(
        name=version.name,
        version=version.number,
        model=item.hash,
        state="champion" if champion_of else newer,
        champion_of=champion_of,
        trials=trials,
        parent=parent.label if parent else None,
        stages=item.about["stages"],
        exact=_exact(registry, item),
        registered=version.registered,
        bytes=item.bytes,
        kept=item.kept,
        path=str(registry.files(item)) if item.kept else None,
    )


def _exact(registry: Registry, item: Item) -> Exact | None:
    found = newest_evaluations(registry, item.hash)
    if not found:
        return None

    suites = runs_of_suites(registry)

    def preference(way: Way) -> tuple[int, int, bool, int]:
        split, mode, by, digest = way
        age = list(suites).index(digest) if digest in suites else -1  # of two suites the newer one
        return (*_SPLITS, split).index(split), (*_MODES, mode).index(mode), by != OWN, -age

    about = found[min(found, key=preference)].about
    return Exact(**_shown(about), run=suites.get(about["digest"]))


def runs_of_suites(registry: Registry) -> dict[str, str]:
    """The run that each kept suite comes from, by the digest of its questions, the oldest first."""
    return {item.about["digest"]: item.about["run"] for item in registry.items("suite") if item.kept}


def _shown(about: Mapping[str, Any]) -> dict[str, Any]:
    return {key: about[key] for key in Exact.model_fields if key != "run"}


def cell_name(cell: str) -> str:
    """A cell for people."""
    return cell if cell != ALL_CELLS else EVERYWHERE
