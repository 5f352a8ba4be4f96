"""`lineside gate`: suites of the registry, answers that are missing, verdicts that `promote` reads, and the page."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import lineside.evaluate
import lineside.gate
from lineside import cli
from lineside.data.store import write_samples
from lineside.data.suite import suite, suite_digest
from lineside.evaluate import forgetting
from lineside.judgement.schema import Decoding, Evaluation, write_evaluation
from lineside.judgement.summary import summarise
from lineside.model.checkpoint import save
from lineside.recipe import dump_recipe, load_recipe
from lineside.registry.store import Registry
from lineside.types import Image
from tests.conftest import make_tiny_vlm, picture
from tests.judgement.conftest import row, summary_arguments, wrong  # noqa: F401
from tests.registry.test_intake import MakeRun, call, questions, run  # noqa: F401


class Evaluator:
    """In place of a model: version N of the model is wrong in the first `losses[N]` scenes. `asked`: (N, questions)."""

    def __init__(self, summary_arguments: dict[str, Any]) -> None:  # noqa: F811
        self.arguments, self.losses, self.asked = summary_arguments, dict[int, int](), list[tuple[int, int]]()
        self.deadlines = False

    def __call__(self, checkpoint: Path, data: Path, *, limit: int, out: Path, **_: Any) -> Evaluation:
        version = json.loads((checkpoint / "config.json").read_text())["text"]["layers"]
        self.asked.append((version, limit))
        rows = [(wrong if n < self.losses.get(version, 0) else row)(str(n), scene=f"s{n}") for n in range(limit)]
        digest = suite_digest(suite(questions(limit), split="heldout").questions)
        told = self.arguments["provenance"].model_copy(update={"data": digest})
        how = Decoding(temperature=0.0, max_new_tokens=96, dtype="float32", deadlines=self.deadlines)
        found = summarise(rows, **{**self.arguments, "provenance": told, "decoding": how})
        write_evaluation(out, found, rows)
        return found


@pytest.fixture
def evaluator(
    run: MakeRun,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    summary_arguments: dict[str, Any],  # noqa: F811
) -> Evaluator:
    """A registry with a champion and a challenger, and suites of 400 and 30 questions."""
    monkeypatch.setenv("LINESIDE_REGISTRY", str(tmp_path / "reg"))
    for number, count in enumerate((400, 30)):
        call("register", run(f"week{number}", number + 1, right=0, count=count), "--name", "bins")
    call("promote", "bins@1")
    found = Evaluator(summary_arguments)
    monkeypatch.setattr(lineside.gate, "evaluate_checkpoint", found)
    return found


def gate(*words: str, status: int) -> tuple[Any, str]:
    """The verdict as JSON, and what was said."""
    done = CliRunner().invoke(cli.app, ["gate", *words, "--json"])
    assert done.exit_code == status, done.output
    return json.loads(done.stdout) if done.stdout else None, done.stderr


def test_a_passed_gate_lets_promote_through(
    evaluator: Evaluator, run: MakeRun, tmp_path: Path  # noqa: F811
) -> None:  # fmt: skip
    found, said = gate("bins@2", "--out", str(tmp_path / "out"), status=0)
    assert found["outcome"] == "passed" and found["exact"]["overall"]["n"] == 430
    assert list(found["exact"]["suites"]) == ["week0/heldout", "week1/heldout"]
    assert evaluator.asked == [(1, 400), (2, 400), (1, 30), (2, 30)]  # nothing was answered as it is served
    assert "`lineside promote bins@2`" in said
    assert json.loads((tmp_path / "out" / "gate.json").read_text()) == found
    gate("bins@2", status=0)
    assert len(evaluator.asked) == 4  # all answers are kept
    call("register", run("week2", 3, right=0, count=20), "--name", "bins")
    changed = call("promote", "bins@2")
    assert changed["before"] == "bins@1" and changed["unasked"] == ["week2/heldout"]  # kept since the verdict
    assert call("history", "bins")["events"][-1]["verdict"]


def test_answers_that_were_cut_for_a_deadline_are_not_those_of_the_gate(evaluator: Evaluator) -> None:
    evaluator.deadlines = True
    gate("bins@2", status=0)
    evaluator.deadlines = False
    gate("bins@2", status=0)
    assert len(evaluator.asked) == 8  # all anew
    gate("bins@2", status=0)
    assert len(evaluator.asked) == 8


@pytest.mark.parametrize(("lost", "outcome", "status"), [(40, "refused", 1), (3, "too little data", 3)])
def test_a_verdict_that_is_not_passed_stops_promote(
    evaluator: Evaluator, tmp_path: Path, lost: int, outcome: str, status: int
) -> None:
    evaluator.losses[2] = lost
    found, said = gate("bins@2", "--out", str(tmp_path / "out"), "--margin", "0.01", status=status)
    assert found["outcome"] == outcome and found["because"] and f"bins@2 against bins@1: {outcome}" in said
    page = (tmp_path / "out" / "gate.html").read_text()
    assert page.count("<article") == min(60, lost + min(30, lost))
    assert f"{outcome}" in call("promote", "bins@2", status=status)
    with Registry(tmp_path / "reg") as registry:
        (kept,) = registry.items("verdict")
        assert (registry.check(kept, "the verdict") / "gate.html").read_text() == page


def test_a_suite_that_is_left_out_is_not_asked_and_every_verdict_says_so(evaluator: Evaluator, tmp_path: Path) -> None:
    why = "the scanner <slipped> by a line"
    done = CliRunner().invoke(cli.app, ["registry", "leave-out", "week1/heldout", why])
    assert done.exit_code == 0 and "bins@2: trained in the run that brought it" in " ".join(done.stderr.split())
    found, said = gate("bins@2", "--out", str(tmp_path / "out"), status=0)
    assert found["left_out"] == {"week1/heldout": why} and list(found["suites"]) == ["week0/heldout"]
    assert evaluator.asked == [(1, 400), (2, 400)]
    assert f"week1/heldout is left out: {why}" in said
    assert "is left out: the scanner &lt;slipped&gt; by a line" in (tmp_path / "out" / "gate.html").read_text()
    shown = CliRunner().invoke(cli.app, ["gate", "bins@2"]).output
    assert "suite week1/heldout" in shown and "left out: the scanner <slipped>" in shown
    assert "--better-on week1/heldout: it is left out" in gate("bins@2", "--better-on", "week1/heldout", status=2)[1]
    *_, event = call("history")["events"]
    assert (event["what"], event["reason"]) == ("leave out", f"week1/heldout: {why}") and event["who"] and event["time"]
    assert "leave out" in CliRunner().invoke(cli.app, ["history"]).output  # an event of no model

    assert [one["left_out"] for one in call("registry", "take-back", "week1/heldout")["suites"]] == [None, None]
    found, said = gate("bins@2", status=0)
    assert found["left_out"] == {} and len(found["suites"]) == 2 and "left out" not in said
    assert [event["what"] for event in call("history")["events"]][-2:] == ["leave out", "take back"]


def test_a_suite_that_cannot_be_left_out_is_named_and_nothing_changes(evaluator: Evaluator) -> None:
    before = call("registry", "suites"), call("history")

    def refused(*words: str) -> str:
        done = CliRunner().invoke(cli.app, ["registry", *words])
        assert done.exit_code == 2 and (call("registry", "suites"), call("history")) == before
        return " ".join(done.stderr.split())

    assert "no suite named 'week1/heldou'" in (said := refused("leave-out", "week1/heldou", "why"))
    assert "did you mean 'week1/heldout'? (suites here: week0/heldout, week1/heldout)" in said
    assert "shows the reason: write one" in refused("leave-out", "week1/heldout", " ")
    assert "week1/heldout is not left out: gates ask it" in refused("take-back", "week1/heldout")
    for name in ("week0/heldout", "week1/heldout"):
        call("registry", "leave-out", name, "wrong")
    assert "every suite is left out (week0/heldout, week1/heldout)" in gate("bins@2", status=2)[1]
    assert not evaluator.asked
    call("registry", "leave-out", "week0/heldout", "wrong in cell 7")  # a better reason
    assert call("registry", "suites")["suites"][0]["left_out"] == "wrong in cell 7"


def test_what_a_gate_cannot_use_is_named(evaluator: Evaluator, tmp_path: Path) -> None:
    assert "bins@1 and bins@1 are the same model" in gate("bins@1", status=2)[1]
    assert "no suite named week7 in" in gate("bins@2", "--better-on", "week7", status=2)[1]
    assert "bins has no version '9'" in gate("bins@2", "--against", "bins@9", status=2)[1]
    assert gate("bins@2", "--better-on", "week1/heldout", status=1)[0]["because"] == [
        "not shown to be better on week1/heldout"
    ]
    with Registry(tmp_path / "reg") as registry:
        for kept in registry.items("suite"):
            shard = next(registry.files(kept).glob("*.parquet"))
            shard.chmod(0o644)
            shard.write_bytes(b"")
    gate("bins@2", status=1 - 1)  # all answers are kept, and only a page of lost questions reads the suites
    evaluator.losses[2] = 40
    said = gate("bins@2", "--max-new-tokens", "32", status=2)[1]
    assert "suite week0/heldout: its files are not whole" in said and "Register it again to repair it, with the" in said
    assert "if that is gone, `lineside registry leave-out week0/heldout REASON`" in said
    for week in ("week0", "week1"):
        call("register", tmp_path / "runs" / week, "--name", "bins")
    gate("bins@2", "--max-new-tokens", "32", status=1)  # they are asked again


def test_a_registry_without_suites_or_champions_says_what_to_do(run: MakeRun, tmp_path: Path) -> None:  # noqa: F811
    place = ["--registry", str(tmp_path / "reg")]
    first = run("week0", 1, right=3)
    call("register", first / "sft" / "checkpoint", "--name", "bins", *place)
    assert "bins has no champion: `lineside promote bins@1`" in gate("bins@1", *place, status=2)[1]


def test_the_page_shows_the_picture_of_the_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs that give the same id to different pictures."""
    (one,) = questions(1)
    for number in range(2):
        write_samples(tmp_path / str(number), [replace(one, images=(Image(picture(number)),))])
    asked = row(one.id, scene="s")
    monkeypatch.setattr(lineside.gate, "fill_template", lambda _, *, gate, cards: [card["picture"] for card in cards])
    suites = {str(number): tmp_path / str(number) for number in range(2)}
    first, second = lineside.gate._page(Any, [(name, asked, asked) for name in suites], suites)  # type: ignore
    assert first and second and first != second


def test_a_registry_that_cannot_be_written_is_told_before_anything_is_asked(
    evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Registry.__init__

    def read_only(self: Registry, *given: Any, **named: Any) -> None:
        opened(self, *given, **named)
        self._unwritable = sqlite3.OperationalError("read-only")

    monkeypatch.setattr(Registry, "__init__", read_only)
    assert "read-only" in gate("bins@2", status=2)[1]
    assert not evaluator.asked


def test_a_passed_gate_names_the_cell(evaluator: Evaluator) -> None:
    assert "`lineside promote bins@2 --cell cell-7` makes" in gate("bins@2", "--cell", "cell-7", status=0)[1]


def test_models_are_asked_for_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model against another one, on a suite that neither has answered as it is served; and a third one that is
    sure of the wrong words, so that the suite's captions are far less likely to it."""
    monkeypatch.setenv("LINESIDE_REGISTRY", str(tmp_path / "reg"))
    run_folder = tmp_path / "runs" / "week0"
    asked = [replace(one, images=(Image(picture(n)),)) for n, one in enumerate(questions(6))]
    captions = [
        replace(one, id=f"caption {n}", kind="caption", question="", answer=f"{n} cans", target=None,
                meta=replace(one.meta, scene=f"c{n}"))
        for n in range(24) for one in asked[:1]
    ]  # fmt: skip
    write_samples(run_folder / "samples", [*asked, *captions])
    for seed, stage in ((0, "align"), (1, "sft")):
        save(make_tiny_vlm(seed), run_folder / stage / "checkpoint")
    worse = make_tiny_vlm(1)
    with torch.no_grad():
        worse.model.get_output_embeddings().weight.mul_(10)
    save(worse, tmp_path / "worse")
    (tmp_path / "r.yaml").write_text(
        f"name: week0\nruns: {tmp_path / 'runs'}\ndata: {{samples: {run_folder / 'samples'}}}\n"
    )
    (run_folder / "recipe.yaml").write_text(dump_recipe(load_recipe(tmp_path / "r.yaml", [])))
    done = CliRunner().invoke(
        cli.app,
        ["evaluate", str(run_folder / "sft/checkpoint"), str(run_folder / "samples"), "--no-baselines",
         "--max-new-tokens", "8", "--out", str(run_folder / "evaluation")],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    for stage in ("align", "sft"):
        call("register", run_folder / stage / "checkpoint", "--name", "bins")
    found, said = gate("bins@1", "--against", "bins@2", "--max-new-tokens", "8", status=3)
    assert found["outcome"] == "too little data" and found["exact"]["overall"]["n"] == 6
    assert "bins@1 has not answered week0/heldout yet" in said and "bins@2 has not" not in said
    alone = forgetting(run_folder / "align/checkpoint", run_folder / "sft/checkpoint", run_folder / "samples").captions
    check = found["checks"]["forgetting"]
    assert alone is not None and check["verdict"] == "passed" and check["n"] == alone.n == 24
    assert check["change"] == pytest.approx(alone.ratio) and check["interval"] == pytest.approx(alone.interval)

    call("register", tmp_path / "worse", "--name", "bins")
    found, said = gate("bins@3", "--against", "bins@2", "--max-new-tokens", "8", "--out", str(tmp_path), status=1)
    assert found["because"][0].startswith("forgetting is worse: perplexity of captions")
    assert "`--set sft.caption_replay=1`" in said and "forgetting is worse" in (tmp_path / "gate.html").read_text()
    assert "forgetting is worse" not in gate(
        "bins@3", "--against", "bins@2", "--max-new-tokens", "8", "--forgets", "inf", status=3
    )[1]  # fmt: skip
    monkeypatch.setattr(lineside.evaluate, "keeps_captions", lambda _: False)
    found, _ = gate("bins@3", "--against", "bins@2", "--max-new-tokens", "8", status=3)
    assert found["checks"]["forgetting"]["verdict"] == "not measured"


def test_a_gate_that_was_interrupted_finds_what_it_had_answered(
    evaluator: Evaluator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = list[Path]()

    def halfway(*_: Any, out: Path, **__: Any) -> Evaluation:
        places.append(out)
        (out / "half").write_text("answers")
        call("registry", "gc", "--keep", 9)
        assert (out / "half").exists()  # it is in use
        raise KeyboardInterrupt

    monkeypatch.setattr(lineside.gate, "evaluate_checkpoint", halfway)
    gate("bins@2", status=130)

    def further(checkpoint: Path, data: Path, *, out: Path, **given: Any) -> Evaluation:
        places.append(out)
        assert (out / "half").exists() == (len(places) == 2)
        return evaluator(checkpoint, data, out=out, **given)

    monkeypatch.setattr(lineside.gate, "evaluate_checkpoint", further)
    gate("bins@2", status=0)
    assert places[0] == places[1] and len(set(places)) == 4  # of each version and suite its own
    assert not list((tmp_path / "reg" / "tmp").iterdir())
