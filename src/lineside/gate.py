"""gate: may a challenger take the champion's place? Both answer every suite that the registry keeps.

What either model has not answered yet is evaluated now, with the engine and the number format that serve. Beside it
both are given the suites' captions, to see what the challenger has forgotten. The verdict goes into the registry, where
`lineside promote` asks for it, with a page: what decided, and the questions that are lost, with their pictures. The
rules stand in judgement/gate.py.

Left out: training (a challenger comes from anywhere), and timing on a busy machine (latency is then not measured).
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from lineside.data.store import read_samples, sample_shards
from lineside.errors import CheckFailed, LinesideError, TooLittleData
from lineside.evaluate import MAX_NEW_TOKENS, caption_likelihoods, evaluate_checkpoint
from lineside.files import write_atomic
from lineside.images import jpeg_uri, thumbnail
from lineside.judgement import gate as rules
from lineside.judgement.console import comparison_table, gate_table, show
from lineside.judgement.contradicted import compare_pictures
from lineside.judgement.forgetting import Likelihood
from lineside.judgement.gate import Answered, Gate
from lineside.judgement.html import fill_template
from lineside.judgement.paired import rows_by_id
from lineside.judgement.schema import Evaluation, Mode, Row, read_evaluation
from lineside.model.checkpoint import dtype_of
from lineside.origin import name_of
from lineside.progress import say
from lineside.recipe import MARGIN
from lineside.registry.intake import add_evaluation
from lineside.registry.promotion import add_verdict, of_cell
from lineside.registry.store import ALL_CELLS, Item, Registry, Version, short
from lineside.registry.suites import left_out_of, suites_of
from lineside.runtime import ON_CPU, Runtime
from lineside.serving.pairs import PLAIN, EnginePair
from lineside.types import NO_VLLM, Image, VllmAt

VERDICT, PAGE = "gate.json", "gate.html"
PICTURE = 320  # pixels


def gate(
    folder: Path,
    challenger: str,
    *,
    against: str | None = None,
    cell: str = ALL_CELLS,
    margin: float = MARGIN,
    longer: float = rules.LONGER,
    forgets: float = rules.FORGETS,
    better_on: Sequence[str] = (),
    mode: Mode = "think",
    max_new_tokens: int | None = None,
    pair: EnginePair = PLAIN,
    vllm: VllmAt = NO_VLLM,
    runtime: Runtime = ON_CPU,
    out: Path | None = None,
    as_json: bool = False,
) -> Gate:
    """Compare two versions of the registry on all its suites, print the verdict, and keep it there.

    `against`: None: the champion of `cell`. `max_new_tokens`: None: as in the champion's newest evaluation. `pair`,
    `vllm`: as of `evaluate_checkpoint`. `out`: a folder for a copy of the verdict and its page. Evaluations that were
    made stay in the registry in any case.

    Raises CheckFailed if the challenger is refused, TooLittleData if nothing can be said, and LinesideError for
    versions, suites or evaluations that cannot be used.
    """
    with Registry(folder) as registry:
        second = registry.version(challenger)
        first = registry.version(against) if against else _champion(registry, second, cell)
        if first.model == second.model:
            raise LinesideError(f"{second.label} and {first.label} are the same model: there is nothing to decide")
        suites, left_out = suites_of(registry), left_out_of(registry)
        for name, why in left_out.items():
            say(f"{name} is left out: {why}")
        if absent := [name for name in better_on if name in left_out]:
            raise LinesideError(f"--better-on {absent[0]}: it is left out; `lineside registry take-back {absent[0]}`")
        if unknown := [name for name in better_on if name not in suites]:
            raise LinesideError(f"no suite named {', '.join(unknown)} in {folder}; the suites are: {', '.join(suites)}")
        most = max_new_tokens or _longest(registry, first)
        with registry.staging(), registry.transaction():
            pass  # a registry that cannot be written is told now, not after hours of answers
        models = [_Model(registry, version, mode, most, pair, vllm, runtime) for version in (first, second)]
        answers = {name: [model.answers(name, suite) for model in models] for name, suite in suites.items()}
        captions = _captions(registry, first, second, suites, runtime)
        answered = [Answered(name, a, b, captions.get(name, ())) for name, (a, b) in answers.items()]
        found = rules.gate(
            answered,
            names=(first.label, second.label),
            margin=margin,
            longer=longer,
            forgets=forgets,
            better_on=better_on,
            left_out=left_out,
            changed=compare_pictures(
                {name: registry.files(suite) for name, suite in suites.items()},
                registry.files(registry.item(first.model)),
                None,
                runtime,
            ),
            seed=runtime.seed,
        )
        page = _page(found, rules.lost(answered, found), {n: registry.files(s) for n, s in suites.items()})
        files = {VERDICT: found.model_dump_json(indent=1) + "\n", PAGE: page}
        with tempfile.TemporaryDirectory() as place:
            for at in (Path(place), *([out] if out is not None else [])):
                for name, text in files.items():
                    write_atomic(at / name, text)
            about = {"challenger": second.label, "champion": first.label, "because": found.because}
            about["suites"] = sorted(found.suites.values())
            paths = {name: Path(place) / name for name in files}
            kept = add_verdict(registry, second.model, first.model, found.outcome, paths, about)
        page_at = registry.files(kept.item) / PAGE
    if as_json:
        print(found.model_dump_json(indent=2))
    else:
        show(comparison_table(found.exact))
        show(gate_table(found))
    say(f"page: {(out / PAGE) if out is not None else page_at}")
    _decide(found, second.label, cell)
    return found


def _champion(registry: Registry, version: Version, cell: str) -> Version:
    found = registry.answering(version.name, cell)
    if found is None:
        raise LinesideError(
            f"{version.name} has no champion: `lineside promote {version.label}` makes this version the first; or say "
            "with --against which version to compare with"
        )
    return found.version


def _longest(registry: Registry, version: Version) -> int:
    """The limit of a response in a version's newest evaluation."""
    for item in reversed(registry.made_from(version.model, "model")):
        if item.kept:
            path = registry.files(item) / f"{item.about['name']}.json"
            return read_evaluation(path).decoding.max_new_tokens
    return MAX_NEW_TOKENS


def _files(registry: Registry, name: str, suite: Item) -> Path:
    """The samples of a suite. Raises LinesideError if they are not whole."""
    try:
        return registry.check(suite, f"suite {name}")
    except LinesideError as error:
        run = suite.about["run"]
        raise LinesideError(
            f"{error}, with the run {run}; if that is gone, `lineside registry leave-out {name} REASON`"
        ) from None


def _captions(
    registry: Registry, first: Version, second: Version, suites: Mapping[str, Item], runtime: Runtime
) -> dict[str, list[Likelihood]]:
    """How likely the captions of the suites that have some are to champion and challenger."""
    held = {
        name: (_files(registry, name, suite), suite.about["split"])
        for name, suite in suites.items()
        if sample_shards(registry.files(suite), kind="caption")
    }
    if not held:
        return {}  # no weights are read for nothing
    before, after = (registry.check(registry.item(version.model), version.label) for version in (first, second))
    return caption_likelihoods(before, after, held, runtime=runtime)


class _Model:
    """A version and its answers to suites: those of the registry, and those that are made now."""

    def __init__(
        self, registry: Registry, version: Version, mode: Mode, tokens: int, pair: EnginePair, vllm: VllmAt,
        runtime: Runtime,
    ) -> None:  # fmt: skip
        self._registry, self._version, self._tokens = registry, version, tokens
        self._model = registry.item(version.model)
        self._mode: Mode = mode
        self._pair, self._vllm, self._runtime = pair, vllm, runtime

    def answers(self, name: str, suite: Item) -> tuple[Evaluation, Mapping[str, Row]]:
        """The evaluation on a suite, and its rows by id. Raises LinesideError if it cannot be made."""
        evaluation, path = self._kept(suite) or self._made(name, suite)
        return evaluation, rows_by_id(path)

    def _kept(self, suite: Item) -> tuple[Evaluation, Path] | None:
        """The newest kept evaluation on a suite that was answered as it would be now, and its file."""
        for item in reversed(self._registry.made_from(self._version.model, "model")):
            if not item.kept or (item.about["digest"], item.about["mode"]) != (suite.about["digest"], self._mode):
                continue
            path = self._registry.check(item, f"evaluation {item.about['name']}") / f"{item.about['name']}.json"
            if self._as_served(evaluation := read_evaluation(path)):
                return evaluation, path
        return None

    def _as_served(self, found: Evaluation) -> bool:
        """Whether the answers were written as they would be now."""
        how = found.decoding
        dtype = self._runtime.dtype or dtype_of(self._registry.files(self._model))
        here = (self._pair.engine, self._pair.weights, name_of(dtype), self._tokens, False)
        return (how.engine, how.weights, how.dtype, how.max_new_tokens, how.deadlines) == here

    def _made(self, name: str, suite: Item) -> tuple[Evaluation, Path]:
        checkpoint = self._registry.check(self._model, self._version.label)
        data = _files(self._registry, name, suite)
        say(f"{self._version.label} has not answered {name} yet: {suite.about['n']:,} questions")
        with self._registry.unfinished(f"answers-{short(self._model.hash)}-{short(suite.hash)}-{self._mode}") as out:
            evaluated = evaluate_checkpoint(
                checkpoint,
                data,
                split=suite.about["split"],
                mode=self._mode,
                stage=self._model.about["stage"] or "model",
                limit=suite.about["n"],
                max_new_tokens=self._tokens,
                with_baselines=False,
                out=out,
                pair=self._pair,
                vllm=self._vllm,
                runtime=self._runtime,
            )
            if evaluated.provenance.data != suite.about["digest"]:
                raise LinesideError(
                    f"suite {name}: its questions are not those that it was kept for. Register its run again"
                )
            item = add_evaluation(self._registry, self._version.model, out / f"{evaluated.name}.json")
        return evaluated, self._registry.files(item) / f"{evaluated.name}.json"


def _page(found: Gate, lost: Sequence[tuple[str, Row, Row]], suites: Mapping[str, Path]) -> str:
    """The page: what decided, all numbers, and the questions that only the champion answers exactly."""
    wanted = {(suite, row.id) for suite, row, _ in lost}  # runs may give the same id to different pictures
    pictures: dict[tuple[str, str], str] = {}
    for suite in {suite for suite, _ in wanted}:
        for sample in read_samples(suites[suite], kind="qa"):
            if (suite, sample.id) in wanted and sample.frame_images:
                pictures[suite, sample.id] = _shown(sample.frame_images[0])
    cards = [
        {"suite": suite, "first": a, "second": b, "picture": pictures.get((suite, a.id), "")} for suite, a, b in lost
    ]
    return fill_template("gate.html.j2", gate=found, cards=cards)


def _shown(image: Image) -> str:
    """A picture as a data URI; "" for one that cannot be decoded, which is no reason to have no page."""
    try:
        return jpeg_uri(thumbnail(image.bytes, name="frame", side=PICTURE))
    except LinesideError:
        return ""


def _decide(found: Gate, label: str, cell: str) -> None:
    """Raises for a challenger that does not pass."""
    told = f"{found.challenger} against {found.champion}: {found.outcome}\n  " + "\n  ".join(found.because)
    for suite in dict.fromkeys(one.suite for one in found.contradicted):
        told += f"\n  if its records are wrong: `lineside registry leave-out {suite} REASON`: later gates do not ask it"
    if found.checks["forgetting"].verdict == "refused":
        told += "\n  captions are kept by training some: samples that have them, and `--set sft.caption_replay=1`"
    if found.outcome == "refused":
        raise CheckFailed(told)
    if found.outcome == "too little data":
        raise TooLittleData(told)
    say(f"{label} passes: `lineside promote {label}{of_cell(cell)}` makes it the champion")
