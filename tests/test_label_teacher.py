"""label with a simulated teacher that errs: what comes from its eyes and what from the record."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image as Pil

from lineside.data import store
from lineside.data.checks import inspect
from lineside.data.store import read_samples
from lineside.data.taskfile import Task
from lineside.data.tasks import Candidate
from lineside.data.teacher import SimTeacher
from lineside.errors import LinesideError
from lineside.judgement.data_card import data_card
from lineside.label import label
from lineside.recipe import Flaws, Label
from lineside.sim.teacher import captions, trace, wrong_caption
from lineside.types import Frame, Image, Sample
from lineside.verify.traces import fact_share, trace_problem
from lineside.verify.verifiers import verify
from tests.sim.records import random_frame


def jpeg(number: int) -> bytes:
    out = io.BytesIO()
    Pil.new("RGB", (16, 16), (number % 256, number // 256, 80)).save(out, "JPEG")
    return out.getvalue()


@pytest.fixture
def floor(tmp_path: Path) -> Path:
    """90 frames of bins, kits and returns with records by dice: 75 to train on, 15 of a suite."""
    found = (random_frame(("picking", "kitting", "returns")[n % 3], n) for n in range(90))
    frames = [
        replace(frame, image=Image(jpeg(n)), split="train" if n < 75 else "heldout") for n, frame in enumerate(found)
    ]
    store.write_frames(tmp_path / "floor", frames)
    return tmp_path / "floor"


def right(sample: Sample, by: Sample | None = None) -> bool:
    """Whether the answer is right by the target, its own or another's."""
    target = (by or sample).target
    assert sample.answer is not None and target is not None
    return verify(sample.answer, target).exact


def vouched(samples: Iterable[Sample]) -> set[str]:
    """Who vouches for the targets."""
    return {sample.target.provenance if sample.target else "" for sample in samples}


class Plain(SimTeacher):
    """The simulator's teacher as it was before it had eyes."""

    def captions(self, frame: Frame, count: int) -> list[str]:
        return captions(frame, count)

    def wrong_caption(self, frame: Frame, caption: str) -> tuple[str, str] | None:
        return wrong_caption(frame, caption)

    def answered(self, frame: Frame, task: Task, candidate: Candidate) -> Candidate:
        return candidate

    def trace(self, frame: Frame, task: Task, candidate: Candidate) -> tuple[str | None, tuple[str, ...]]:
        return trace(frame, task.name, candidate)


def test_perfect_eyes_say_what_was_said_without_eyes(floor: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Label(acuity=1.0, flaws=Flaws(missing=0.1, wrong=0.1, trivial=0.1))
    account = label(floor, floor.parent / "out", settings=settings, date="2026-01-02")
    assert "audit" not in account and "acuity" not in account["settings"]

    def plain(frames: Path, acuity: object, own_kit: bool, references: int) -> Plain:
        return Plain(frames, own_kit=own_kit)

    monkeypatch.setattr("lineside.label.SimTeacher", plain)
    assert label(floor, floor.parent / "plain", settings=settings, date="2026-01-02") == account
    files = {path.relative_to(floor.parent / "out") for path in (floor.parent / "out").rglob("*.parquet")}
    assert len(files) > 5
    for name in files:
        assert (floor.parent / "out" / name).read_bytes() == (floor.parent / "plain" / name).read_bytes()
    samples = [*read_samples(floor.parent / "out"), *read_samples(floor.parent / "out" / "control")]
    assert vouched(s for s in samples if s.kind != "caption") == {"sim"}
    assert all(right(s) for s in samples if s.kind == "qa")


def test_stage_3_asks_about_the_kit_that_a_tray_was_packed_for(floor: Path) -> None:
    label(floor, floor.parent / "out", date="2026-01-02")
    own = {
        frame.id: ", ".join(f"{slot['slot']} {slot['expected']}" for slot in frame.record["slots"])
        for frame in store.read_frames(floor)
        if frame.family == "kitting"
    }
    told = {"prompt": 0, "qa": 0}
    others = 0
    for sample in read_samples(floor.parent / "out", split="train"):
        frame = sample.id.split("/")[0]
        if sample.task == "missing" and sample.kind in told:
            told[sample.kind] += 1
            assert sample.kind == "qa" or own[frame] in sample.question
            others += own[frame] not in sample.question
    assert told["prompt"] and 0 < others < told["qa"]


def test_a_teacher_that_errs_writes_stage_2_and_the_record_writes_stage_3_and_the_suites(floor: Path) -> None:
    true, seen = floor.parent / "true", floor.parent / "seen"
    label(floor, true, date="2026-01-02")
    account = label(floor, seen, settings=Label(acuity=0.3), date="2026-01-02")

    def samples(folder: Path, kind: str, split: str = "train") -> dict[str, Sample]:
        return {s.id: s for s in read_samples(folder, kind=kind, split=split)}

    for kind, split in (("prompt", "train"), ("qa", "heldout"), ("caption", "heldout")):
        one, other = samples(true, kind, split), samples(seen, kind, split)
        assert one and {name: replace(s, source=one[name].source) for name, s in other.items()} == one
    taught = samples(seen, "qa")
    assert vouched(taught.values()) == {"teacher"}
    assert all(map(right, taught.values()))  # by what the teacher saw
    assert inspect(seen).ok
    answers, targets = samples(true, "qa"), samples(seen, "prompt")
    both = taught.keys() & answers.keys()
    assert {taught[name].question for name in both} == {answers[name].question for name in both}
    wrong = sum(not right(taught[name], answers[name]) for name in both)
    assert 0.1 < wrong / len(both) < 0.6
    sentences = samples(seen, "caption")
    assert sentences.keys() == samples(true, "caption").keys()
    assert sum(sentences[n].answer != s.answer for n, s in samples(true, "caption").items()) > len(sentences) / 4
    twins = {s.id: s for s in read_samples(seen / "control")}
    assert twins.keys() <= targets.keys() and len(twins) > 0.9 * len(targets)
    assert all((t.question, t.target) == (targets[name].question, targets[name].target) for name, t in twins.items())
    assert vouched(twins.values()) == {"sim"}
    assert 0.4 < sum(map(right, twins.values())) / len(twins) < 0.9
    for s in (*taught.values(), *twins.values()):  # the trace leads to the answer; what may be stated is what is true
        assert s.trace and not trace_problem(s.trace, question=s.question, answer=s.answer)
    assert all(answers[name].meta.extra["facts"] == taught[name].meta.extra["facts"] for name in both)
    false = [fact_share(taught[name].trace or "", taught[name].meta.extra["facts"]) not in (None, 1.0) for name in both]
    assert sum(false) > len(both) / 4
    assert account["settings"]["acuity"] == 0.3 and account["identity"] != label(floor, true)["identity"]


def test_label_tells_how_often_the_teacher_is_right(floor: Path, capsys: pytest.CaptureFixture[str]) -> None:
    account = label(floor, floor.parent / "seen", settings=Label(acuity=0.3))
    found = account["audit"]
    assert (found["limit"], found["scenes"], found["frames"]) == (None, 75, 75)
    assert found["n"] == sum(task["n"] for task in found["tasks"].values()) > 300
    mean = sum(task["exact"] for task in found["tasks"].values()) / len(found["tasks"])
    assert found["exact"] == pytest.approx(mean, abs=1e-3)
    for rate in (found, *found["tasks"].values()):
        low, high = rate["interval"]
        assert 0 <= low <= rate["exact"] <= high <= 1 and low < high
    assert found["tasks"]["picking/bins"]["exact"] == 1.0  # nobody takes two bins for three
    assert found["tasks"]["picking/count_all"]["exact"] < 0.6
    said = "".join(capsys.readouterr())
    worst = min(found["tasks"], key=lambda name: found["tasks"][name]["exact"])
    assert f"audit: the teacher is exact in {found['exact']:.1%}" in said and worst in said
    page = (floor.parent / "seen" / "audit.html").read_text()
    assert worst in page and "needs records" in page and "data:image/jpeg" in page
    card = data_card(floor.parent / "seen", inspect(floor.parent / "seen"))
    confusions = [c for rate in card["account"]["audit"]["tasks"].values() for c in rate["confusions"]]
    assert any(c.get("picture", "").startswith("data:image/jpeg") for c in confusions)
    weaker = label(floor, floor.parent / "weaker", settings=Label(acuity=0.0))["audit"]
    assert weaker["n"] == found["n"] and weaker["exact"] < found["exact"]  # of the same questions


def test_an_audit_may_come_later_and_leaves_the_samples_alone(floor: Path) -> None:
    first = label(floor, floor.parent / "out")
    assert "audit" not in first
    files = {path: path.read_bytes() for path in (floor.parent / "out").rglob("*.*") if path.name != "label.json"}
    assert label(floor, floor.parent / "out") == first
    later = label(floor, floor.parent / "out", settings=Label(audit=30))
    assert {k: v for k, v in later.items() if k != "audit"} == first
    assert (later["audit"]["frames"], later["audit"]["limit"]) == (30, 30)
    assert later["audit"]["exact"] == 1.0  # perfect eyes
    assert {rate["advice"] for rate in later["audit"]["tasks"].values()} == {"trust the teacher"}
    assert json.loads((floor.parent / "out" / "label.json").read_text()) == later
    assert all(path.read_bytes() == data for path, data in files.items())
    assert label(floor, floor.parent / "out", settings=Label(audit=20)) == later  # known from more frames already
    assert label(floor, floor.parent / "out", settings=Label(audit=40))["audit"]["frames"] == 40


def test_a_table_is_the_record(tmp_path: Path) -> None:
    (tmp_path / "frames.csv").write_text("image,state\na.jpg,full\n")
    (tmp_path / "a.jpg").write_bytes(jpeg(0))
    (tmp_path / "tasks.yaml").write_text(
        "table: {file: frames.csv, family: bin}\n"
        "tasks: [{family: bin, name: state, phrasings: ['Which?'], answer: {kind: exact, column: state}}]\n"
    )
    with pytest.raises(LinesideError, match="the teacher 'table' is the record"):
        label(tmp_path, tmp_path / "out", tasks=[tmp_path / "tasks.yaml"], settings=Label(audit=5))


def test_what_is_not_seen_is_not_answered(floor: Path) -> None:
    account = label(floor, floor.parent / "seen", settings=Label(acuity=0.0))
    assert account["dropped"]["the teacher sees nothing to answer by"] > 0
    assert account["samples"]["prompt-train"] > len(list(read_samples(floor.parent / "seen" / "control")))


def test_acuity_is_of_the_simulators_teacher(tmp_path: Path) -> None:
    with pytest.raises(
        LinesideError, match="acuity is a setting of the teacher 'sim'; the teacher 'table' does not have it"
    ):
        label(tmp_path, tmp_path / "out", tasks=[Path("grocery.yaml")], settings=Label(acuity=0.5))


# A table with what a teacher said beside what a record knows.

SHOP = """
table:
  file: frames.csv
  family: shop
  split: {column: split, values: {train: train, test: heldout}}
  distractors: [{name: is_it, column: product, teacher_column: said}]
captions:
  - {family: shop, templates: ["A picture of {said}.", "One sees {said} here."]}
tasks:
  - family: shop
    name: product
    phrasings: ["Which product is this?"]
    answer: {kind: exact, column: product, teacher_column: said}
    trace: "it looks like {said}; it is round"
  - {family: shop, name: is_it, each: is_it, per_frame: 2, phrasings: ["Is this {item}?"],
     answer: {kind: choice, column: same, options: ["yes", "no"], teacher_column: said}}
"""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """60 pictures to train on, of which a quarter has a record, and 20 of a suite. A teacher takes every fifth apple
    for a pear, and says nothing of every tenth picture."""
    folder = tmp_path / "shop"
    folder.mkdir()
    lines = ["image,split,product,said"]
    for number in range(80):
        product = ("apple", "pear", "plum")[number % 3]
        said = "" if number % 10 == 9 else "pear" if product == "apple" and number % 5 == 0 else product
        known = product if number % 4 == 0 or number >= 60 else ""
        lines.append(f"{number}.jpg,{'train' if number < 60 else 'test'},{known},{said}")
        (folder / f"{number}.jpg").write_bytes(jpeg(3 * number))
    (folder / "frames.csv").write_text("\n".join(lines))
    (tmp_path / "shop.yaml").write_text(SHOP)
    return folder


def test_what_a_teacher_said_of_a_table_is_learnt_and_held_against_the_records(shop: Path) -> None:
    out = shop.parent / "out"
    account = label(shop, out, tasks=[shop.parent / "shop.yaml"])
    taught = [s for s in read_samples(out, kind="qa", split="train") if s.task == "product"]
    assert len(taught) == 54 and vouched(taught) == {"teacher"}  # 60 less those of which it said nothing
    said = {s.meta.scene: s.answer for s in taught}
    assert said["0.jpg"] == "pear" and said["3.jpg"] == "apple"  # both show an apple
    prompts = [s for s in read_samples(out, kind="prompt") if s.task == "product"]
    assert len(prompts) == 15 and vouched(prompts) == {"record"}  # a quarter has a record
    assert all(right(replace(s, answer="apple")) == (int(s.meta.scene[:-4]) % 3 == 0) for s in prompts)
    twins = {s.id: s for s in read_samples(out / "control") if s.task == "product"}
    assert [right(twins[f"{n}.jpg/product"]) for n in (0, 12, 24)] == [False, True, True]
    suite = [s for s in read_samples(out, kind="qa", split="heldout") if s.task == "product"]
    assert len(suite) == 20 and vouched(suite) == {"record"} and all(map(right, suite))
    audit = account["audit"]
    # Of the 15 with a record, which are multiples of 4, the teacher says something of each, and calls number 0 a pear.
    assert (audit["frames"], audit["tasks"]["shop/product"]["n"]) == (15, 15)
    assert audit["tasks"]["shop/product"]["exact"] == pytest.approx(14 / 15, abs=1e-4)
    assert audit["tasks"]["shop/product"]["confusions"][0] | {"picture": ""} == {
        "truth": "apple", "said": "pear", "n": 1, "question": "Which product is this?", "picture": "",
    }  # fmt: skip
    few = label(shop, shop.parent / "few", tasks=[shop.parent / "shop.yaml"], settings=Label(audit=6))["audit"]
    assert (few["frames"], few["limit"]) == (6, 6)
    # Is it an apple? No, says who took it for a pear; whether it is a pear or a plum, yes or no as it said.
    asked = {(s.meta.scene, s.question): s for s in read_samples(out, kind="qa", split="train") if s.task == "is_it"}
    assert asked["0.jpg", "Is this apple?"].answer == "no" and asked["12.jpg", "Is this apple?"].answer == "yes"
    assert all((str(said[scene]) in question) == (s.answer == "yes") for (scene, question), s in asked.items())
    assert len({scene for scene, _ in asked}) == 54
    assert audit["tasks"]["shop/is_it"]["n"] == 30


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("{said}; it is round", "{product}; it is round"), r"trace holds \{product\}, the truth"),
        (("column: product, teacher_column: said}\n    trace", "column: product, teacher_column: product}\n    trace"),
         "teacher_column equals column"),
        (("column: product, teacher_column: said}\n    trace", "column: product, teacher_column: sad}\n    trace"),
         "no column 'sad'; did you mean 'said'"),
    ],
)  # fmt: skip
def test_mistakes_about_a_teachers_column(shop: Path, change: tuple[str, str], message: str) -> None:
    file = shop.parent / "shop.yaml"
    file.write_text(file.read_text().replace(*change))
    with pytest.raises(LinesideError, match=message):
        label(shop, shop.parent / "out", tasks=[file])
