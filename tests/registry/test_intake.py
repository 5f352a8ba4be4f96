"""From runs to versions, and how two versions differ: with the verbs of the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from lineside import cli
from lineside.data.store import write_samples
from lineside.data.suite import suite, suite_digest
from lineside.errors import LinesideError
from lineside.judgement.schema import write_evaluation
from lineside.judgement.summary import summarise
from lineside.recipe import dump_recipe, load_recipe
from lineside.registry.difference import diff
from lineside.registry.listing import lines
from lineside.registry.store import Registry
from lineside.serving.follow import Champions
from lineside.training.lineage import LINEAGE, note_inputs, note_parent, write_lineage
from tests.judgement.conftest import choice, question, row, summary_arguments, wrong  # noqa: F401

MakeRun = Callable[..., Path]


def questions(count: int, answer: str = "no") -> list[Any]:
    return [question(str(n), choice(answer), scene=f"s{n}") for n in range(count)]


def checkpoint(folder: Path, value: float) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"w": np.full(3, value, np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llava", "text": {"layers": int(value)}}))
    return folder


@pytest.fixture
def run(tmp_path: Path, summary_arguments: dict[str, Any]) -> MakeRun:  # noqa: F811
    """A run with one trained stage, its samples and its evaluation."""

    def make(name: str, value: float, right: int, *, parent: Path | None = None, count: int = 40, **settings: Any):
        folder = tmp_path / "runs" / name
        samples = folder / "samples"
        write_samples(samples, questions(count, settings.pop("truth", "no")))
        (tmp_path / "r.yaml").write_text(f"name: {name}\nruns: {tmp_path / 'runs'}\ndata: {{samples: {samples}}}\n")
        recipe = load_recipe(tmp_path / "r.yaml", [f"{key}={value}" for key, value in settings.items()])
        (folder / "recipe.yaml").write_text(dump_recipe(recipe))
        note_inputs(folder, recipe, samples)
        before = parent or checkpoint(folder / "align" / "checkpoint", 0.5)
        (folder / "sft").mkdir()
        note_parent(folder / "sft", before)
        checkpoint(folder / "sft" / "checkpoint", value)
        write_lineage(folder, "sft", recipe)
        rows = [(row if n < right else wrong)(str(n), scene=f"s{n}") for n in range(count)]
        told = summary_arguments["provenance"]
        digest = suite_digest(suite(questions(count, rows and "no"), split="heldout").questions)
        evaluation = summarise(rows, **{**summary_arguments, "provenance": told.model_copy(update={"data": digest})})
        write_evaluation(folder / "evaluation", evaluation, rows)
        return folder

    return make


def call(*words: object, status: int = 0) -> Any:
    """A verb's JSON, or its message if it ends with another status."""
    done = CliRunner().invoke(cli.app, [str(word) for word in words] + ["--json"])
    assert done.exit_code == status, done.output
    return json.loads(done.stdout) if status == 0 else done.stderr


def test_a_run_becomes_a_version_with_all_that_belongs_to_it(
    run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "reg"
    monkeypatch.setenv("LINESIDE_REGISTRY", str(folder))
    first = run("week0", 1, right=20)
    told = call("register", first, "--name", "bins")
    assert (told["version"], told["state"], told["new"]) == (1, "challenger", True)
    assert told["exact"]["exact"] == pytest.approx(0.5) and told["exact"]["n"] == 40
    assert told["stages"] == ["sft"] and told["parent"] is None
    assert call("register", first / "sft", "--name", "bins")["new"] is False
    second = run("week1", 2, right=30, parent=first / "sft" / "checkpoint", **{"sft.epochs": 7})
    told = call("register", second / "sft" / "checkpoint", "--name", "bins")
    assert (told["version"], told["parent"], told["stages"]) == (2, "bins@1", ["sft", "sft"])

    assert call("promote", "bins@1")["before"] is None
    (release,) = Champions(folder).wanted().values()  # a server finds what it was judged with
    assert [path.name for path in release.evaluations if path.is_file()] == ["sft-heldout-think.json"]
    assert "no gate verdict for bins@2 against bins@1" in call("promote", "bins@2", status=2)
    assert call("promote", "bins@2", "--force", "shown to the shift lead")["before"] == "bins@1"
    assert call("rollback", "bins", "--cell", "cell-7", status=2)
    assert call("rollback", "bins")["after"] == "bins@1"
    assert [e["what"] for e in call("history", "bins")["events"]] == ["register"] * 2 + ["promote"] * 2 + ["rollback"]
    states = {line["version"]: line["state"] for line in call("models")["models"]}
    assert states == {1: "champion", 2: "retired"}

    found = call("diff", "bins", "bins@2")
    assert found["recipe"] == ["sft.epochs: 3.0 -> 7.0"] and found["data"] == []
    assert "model.text.layers: 1 -> 2" in found["parts"]
    compared = found["compared"]["heldout think"]
    assert compared["overall"]["difference"] == pytest.approx(0.25) and compared["overall"]["differing_scenes"] == 10
    assert found["unpaired"] == []
    with Registry(folder) as registry:
        (kept,) = registry.items("suite")  # both were asked the same questions
        asked = {path.name for path in registry.check(kept, "the suite").iterdir()}
        assert asked == {"qa-heldout-00000.parquet"} and kept.about["split"] == "heldout"
        assert len(registry.items("recipe")) == 2 and len(registry.items("evaluation")) == 2
    told = call("models", "bins@1")
    assert told["children"] == ["bins@2"] and list(told["data"]) == ["samples"] and len(told["recipe"]) == 64
    (judged,) = told["evaluations"]
    assert judged["by"] == "local full" and judged["suite"] == kept.hash
    for words in (["models"], ["models", "bins@1"], ["history"], ["diff", "bins@1", "bins@2"]):  # for people
        done = CliRunner().invoke(cli.app, words)
        assert done.exit_code == 0 and "bins@1" in done.output
    assert "did you mean 'bins'" in call("models", "bin", status=2)
    deleted = call("registry", "gc", "--keep", 0)["deleted"]
    assert [version["number"] for version in deleted] == [2]  # after the rollback nothing needs it


def test_other_suites_are_shown_side_by_side(run: MakeRun, tmp_path: Path) -> None:
    from lineside.registry import intake

    with Registry(tmp_path / "reg", create=True) as registry:
        one, two = run("week0", 1, right=20), run("week1", 2, right=20, count=30)
        versions = [intake.register(registry, intake.find(path), "bins").version for path in (one, two)]
        bare = intake.register(registry, intake.find(checkpoint(tmp_path / "bare", 3)), "bins").version
        found = diff(registry, *versions)
        assert found.compared == {} and [u.why for u in found.unpaired] == [
            "the suite has changed: other questions, pictures or truths"
        ]
        assert (found.unpaired[0].first, found.unpaired[0].second) == (pytest.approx(0.5), pytest.approx(2 / 3))
        assert len(registry.items("suite")) == 2 and len(found.data) == 1
        again = one / "evaluation" / "sft-heldout-think.json"  # the second is asked the first one's questions too
        intake.add_evaluation(registry, versions[1].model, again)
        found = diff(registry, *versions)
        assert found.unpaired == [] and found.compared["heldout think"].overall.differing_scenes == 0
        shown = [line.exact for line in lines(registry)[:2]]
        assert [exact and exact.run for exact in shown] == ["week0", "week1"]  # of two suites the newer one
        intake.add_evaluation(registry, versions[0].model, two / "evaluation" / "sft-heldout-think.json")
        names = sorted(diff(registry, *versions).compared)
        assert len(names) == 2 and names[0].startswith("heldout think of week0 ")
        assert [line.exact.run for line in lines(registry)[:2] if line.exact] == ["week1", "week1"]
        found = diff(registry, versions[0], bare)
        assert found.recipe is None and found.data is None and found.files
        assert found.unpaired[0].why == "bins@3 was not evaluated so"


def test_a_suite_that_changed_since_its_evaluation_is_refused(run: MakeRun, tmp_path: Path) -> None:
    from lineside.registry import intake

    folder = run("week0", 1, right=20, truth="yes")  # the samples say yes, and the evaluation was of no
    with Registry(tmp_path / "reg", create=True) as registry:
        with pytest.raises(LinesideError, match="the suite heldout has changed since sft-heldout-think"):
            intake.register(registry, intake.find(folder), "bins")
        assert registry.versions() == [] and registry.items("model") == []
        shutil.rmtree(folder / "samples")  # nothing is known of them any more
        assert intake.register(registry, intake.find(folder), "bins").suites == 0


def judged_elsewhere(path: Path) -> None:
    """An evaluation that says it was made with other weights."""
    told = json.loads(path.read_text())
    told["provenance"]["checkpoint"] = "0" * 64
    path.write_text(json.dumps(told))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda run: (run / "sft/checkpoint/model.safetensors").write_bytes(b"x"), "not readable as weights"),
        (lambda run: (run / "sft/checkpoint/model.safetensors").unlink(), "holds no weights"),
        (lambda run: (run / "sft/checkpoint" / LINEAGE).write_text('{"version": 1}'), "lineage.json: not what"),
        (lambda run: next((run / "evaluation").glob("*.rows.jsonl")).unlink(), "rows.jsonl: no such file"),
        (lambda run: next((run / "evaluation").glob("*think.json")).write_text("{}"), "not an evaluation"),
        (lambda run: judged_elsewhere(next((run / "evaluation").glob("*think.json"))), "evaluation of other weights"),
        (lambda run: (run / "recipe.yaml").write_text("nam: x"), "unknown key"),
        (lambda run: [shutil.rmtree(run / stage) for stage in ("align", "sft")], "a run without a trained stage"),
        (lambda run: shutil.rmtree(run), "no checkpoint"),
    ],
)
def test_what_cannot_be_registered_is_refused_by_name(run: MakeRun, tmp_path: Path, damage: Any, said: str) -> None:
    folder = run("week0", 1, right=20)
    damage(folder)
    assert said in call("register", folder, "--name", "bins", "--registry", tmp_path / "reg", status=2)
    if (tmp_path / "reg").exists():
        with Registry(tmp_path / "reg") as registry:
            assert registry.versions() == [] and not list((tmp_path / "reg").glob("tmp/*"))
