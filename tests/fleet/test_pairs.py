"""What a trial shows: pairs of a log, judged by the truth that was told, as the gate's paired comparison."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from lineside.data.tabular import Form as Tables
from lineside.errors import CheckFailed, LinesideError, TooLittleData
from lineside.fleet.pairs import read_pairs
from lineside.judgement.outcomes import NO_TRUTH, TRUTHS
from lineside.judgement.schema import TypedAnswer
from lineside.judgement.typed import Form, keep_forms
from lineside.registry.promotion import promote
from lineside.registry.store import Registry
from lineside.serving.outcomes import Outcomes
from lineside.trial import judge
from tests.registry.conftest import add_files

COUNT = Form(kind="number", resolution=1.0)


def typed(text: str, task: str | None = "bins/count") -> TypedAnswer:
    return TypedAnswer(
        value=text, unit=None, confidence=None, decision="refuse", trace=None, ms=1.0, kind="text", task=task,
        text=text, because="",
    )  # fmt: skip


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    """Two versions that know how their task is judged; the first is the champion."""
    with Registry(tmp_path / "registry", create=True) as registry:
        for number in (1, 2):
            source = tmp_path / f"source-{number}"
            source.mkdir()
            (source / "model.safetensors").write_text(str(number))
            keep_forms(source, {"bins/count": COUNT})
            add_files(registry, "bins", {path.name: path for path in source.iterdir()})
        promote(registry, registry.version("bins@1"))
    return tmp_path / "registry"


class Writer:
    """A log, in which the champion or, as a canary, the challenger answers."""

    def __init__(self, path: Path, registry: Path) -> None:
        self.path, self.count = path, 0
        self.log = Outcomes(path, days=30.0, max_bytes=1 << 30, frames=False)
        with Registry(registry) as opened:
            self.hashes = [opened.version(f"bins@{number}").model[:16] for number in (1, 2)]

    def pair(self, champion: str, challenger: str, truth: str | None, *, canary: bool = False, frame: str = "") -> None:
        name, self.count = f"a-{self.count:04}", self.count + 1
        answers = [(typed(champion), self.hashes[0]), (typed(challenger), self.hashes[1])]
        (first, version), (second, other) = answers[::-1] if canary else answers
        self.log.keep(name, ((frame or name).encode(),), "how many?", first, model="bins", version=version)
        self.log.keep_shadow(name, second, version=other)
        if truth is not None:
            self.log.tell(name, truth, "right" if first.text == truth else "wrong")


@pytest.fixture
def writer(tmp_path: Path, registry: Path) -> Writer:
    return Writer(tmp_path / "log", registry)


def test_pairs_are_those_of_the_two_versions_whoever_answered(writer: Writer, registry: Path) -> None:
    writer.pair("3", "4", "4")
    writer.pair("3", "4", "3", canary=True)
    writer.pair("3", "3", None)
    writer.pair("3", "5", None)
    writer.pair("3", "3", "three")  # no answer to the question
    writer.pair("3", "4", "3", frame="twice")
    writer.pair("3", "4", "4", frame="twice")  # the same question of the same frame has another truth
    writer.log.keep("alone", (b"x",), "how many?", typed("3"), model="bins", version=writer.hashes[0])
    writer.log.keep("other", (b"x",), "how many?", typed("3"), model="bins", version="another")
    writer.log.keep_shadow("other", typed("3"), version=writer.hashes[1])
    with Registry(registry) as opened:
        versions = opened.version("bins@1"), opened.version("bins@2")
    found = read_pairs(writer.path, *versions, {"bins/count": COUNT})
    assert (found.count, found.agree, found.told) == (7, 2, 5)
    assert found.account.left_out == {NO_TRUTH: 1, TRUTHS: 2}
    shown = {name: (found.first[name].answer, found.second[name].answer) for name in found.first}
    assert shown == {"a-0000": ("3", "4"), "a-0001": ("3", "4")}
    exact = {name: (found.first[name].exact, found.second[name].exact) for name in found.first}
    assert exact == {"a-0000": (False, True), "a-0001": (True, False)}
    assert [(one["id"], one["first"], one["second"]) for one in found.open] == [("a-0003", "3", "5")]


def test_a_trial_says_what_it_still_needs_then_that_it_is_not_worse(
    writer: Writer, registry: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(TooLittleData, match=r"no pair of bins@1 and bins@2 has a truth that can be used"):
        judge(registry, "bins@2", log=writer.path, margin=0.03)
    for number in range(20):
        writer.pair("3", "4" if number % 10 == 0 else "3", "3" if number % 20 else "4")
    writer.pair("3", "7", None)
    with pytest.raises(TooLittleData, match=r"too little data: frames needed: all tasks \+"):
        judge(registry, "bins@2", log=writer.path, margin=0.03, out=tmp_path / "out")
    (row,) = csv.DictReader((tmp_path / "out" / "label_first.csv").open())
    assert (row["first"], row["second"], row["question"]) == ("3", "7", "how many?")
    for _ in range(300):
        writer.pair("3", "3", "3")
    capsys.readouterr()
    found = judge(registry, "bins@2", log=writer.path, margin=0.03, as_json=True)
    told = capsys.readouterr()
    assert found.verdict == "not worse" and found.overall.n == 320 and json.loads(told.out)["verdict"] == "not worse"
    assert "favours the challenger" in told.err


def test_a_table_of_truths_may_have_a_decimal_comma(writer: Writer, registry: Path, tmp_path: Path) -> None:
    for _ in range(300):
        writer.pair("3", "3", "3")
    writer.pair("1322", "1322", None)
    path = tmp_path / "truths.csv"
    path.write_text('id,truth\na-0300,"1,322"\n')
    with pytest.raises(LinesideError, match="could be with thousands or with decimals: say `--decimal ,` or"):
        judge(registry, "bins@2", log=writer.path, truths=[path], margin=0.03)
    for sign, count in (",", 300), (".", 301):  # no count is 1.322
        found = judge(registry, "bins@2", log=writer.path, truths=[path], margin=0.03, written=Tables(decimal=sign))
        assert found.overall.n == count


def test_the_list_of_open_pairs_filled_in_is_taken(
    writer: Writer, registry: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(300):
        writer.pair("3", "3", "3")
    writer.pair("3", "4", None)
    writer.pair("3", "4", None)
    judge(registry, "bins@2", log=writer.path, margin=0.03, out=tmp_path)
    path = tmp_path / "label_first.csv"
    lines = list(csv.DictReader(path.open()))
    lines[0]["truth"] = "4"  # the other stays open
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, lines[0])
        table.writeheader()
        table.writerows([*lines, {**lines[0], "id": "unknown"}])
    capsys.readouterr()
    found = judge(registry, "bins@2", log=writer.path, truths=[path], margin=0.03, out=tmp_path)
    assert (found.overall.n, found.overall.difference) == (301, pytest.approx(1 / 301))
    assert "1 no answer of this id is in the log" in capsys.readouterr().err
    assert [row["id"] for row in csv.DictReader(path.open())] == [lines[1]["id"]]


def test_a_challenger_that_is_worse_on_the_line_is_refused(writer: Writer, registry: Path) -> None:
    for number in range(60):
        writer.pair("3", "4" if number % 3 == 0 else "3", "3")
    with pytest.raises(CheckFailed, match="bins@2 against bins@1, live: worse"):
        judge(registry, "bins@2", log=writer.path, margin=0.03)


def test_what_is_no_log_or_no_pair_of_versions_is_named(writer: Writer, registry: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("this is no database, but a text of some length")
    for name, told in (("none", "no such file"), ("text", "no answers of a server can be read")):
        path = tmp_path / name
        with pytest.raises(LinesideError, match=told):
            judge(registry, "bins@2", log=path, margin=0.03)
    assert not (tmp_path / "none").exists()
    with pytest.raises(LinesideError, match="bins@1 has no other champion beside it"):
        judge(registry, "bins@1", log=writer.path, margin=0.03)
