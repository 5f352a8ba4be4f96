"""label with a simulated teacher that errs: what comes from its eyes and what from the record."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image as Pil

from lineside.data import store
from lineside.data.card import data_card
from lineside.data.checks import inspect
from lineside.data.store import read_samples
from lineside.errors import LinesideError
from lineside.label import label
from lineside.recipe import Flaws, Label
from lineside.types import Image, Sample
from lineside.verify.traces import fact_share, trace_problem
from lineside.verify.verifiers import verify
from tests.sim.records import random_frame


def jpeg(number: int) -> bytes:
    out = io.BytesIO()
    Pil.new("RGB", (16, 16), (number % 256, number // 256, 80)).save(out, "JPEG")
    return out.getvalue()


# Of the samples that the floor below gave before a teacher could err.
FINGERPRINT = "fe2f78efa0251c3af561e4e7db05351c585b35e32b01ce90e7d408b2f8018400"


@pytest.fixture
def floor(tmp_path: Path) -> Path:
    """90 frames of bins, kits and returns with records by dice: 75 to train on, 15 of a suite."""
    found = (random_frame(("picking", "kitting", "returns")[n % 3], n) for n in range(90))
    frames = [
        replace(frame, image=Image(jpeg(n)), split="train" if n < 75 else "heldout") for n, frame in enumerate(found)
    ]
    store.write_frames(tmp_path / "floor", frames)
    return tmp_path / "floor"


def words_of(folder: Path) -> list[str]:
    """Everything that samples teach and are judged by, one line each."""
    said = []
    for s in read_samples(folder):
        target = s.target.to_json() if s.target else None
        extra = [s.meta.extra.get(name) for name in ("facts", "wrong", "weight")]
        said.append(json.dumps([s.id, s.kind, s.split, s.task, s.question, s.trace, s.answer, target, extra]))
    return said


def test_perfect_eyes_say_what_they_always_said(floor: Path) -> None:
    flaws = Flaws(missing=0.1, wrong=0.1, trivial=0.1)
    account = label(floor, floor.parent / "out", settings=Label(acuity=1.0, flaws=flaws))
    said = "\n".join(words_of(floor.parent / "out") + words_of(floor.parent / "out" / "control"))
    assert hashlib.sha256(said.encode()).hexdigest() == FINGERPRINT
    assert "audit" not in account and "acuity" not in account["settings"]


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
    assert taught and {s.target.provenance for s in taught.values()} == {"teacher"}
    assert all(verify(s.answer, s.target).exact for s in taught.values())  # right by what the teacher saw
    assert inspect(seen).ok
    answers, targets = samples(true, "qa"), samples(seen, "prompt")
    both = taught.keys() & answers.keys()
    assert {taught[name].question for name in both} == {answers[name].question for name in both}
    wrong = sum(not verify(taught[name].answer, answers[name].target).exact for name in both)
    assert 0.1 < wrong / len(both) < 0.6
    captions = samples(seen, "caption")
    assert captions.keys() == samples(true, "caption").keys()
    assert sum(captions[n].answer != s.answer for n, s in samples(true, "caption").items()) > len(captions) / 4
    twins = {s.id: s for s in read_samples(seen / "control")}
    assert twins.keys() <= targets.keys() and len(twins) > 0.9 * len(targets)
    assert all((t.question, t.target) == (targets[name].question, targets[name].target) for name, t in twins.items())
    assert all(t.target.provenance == "sim" and t.trace for t in twins.values())
    right = [verify(t.answer, t.target).exact for t in twins.values()]
    assert 0.4 < sum(right) / len(right) < 0.9
    for s in (*taught.values(), *twins.values()):  # the trace leads to the answer; what may be stated is what is true
        assert s.trace and not trace_problem(s.trace, question=s.question, answer=s.answer)
    assert all(answers[name].meta.extra["facts"] == taught[name].meta.extra["facts"] for name in both)
    false = [fact_share(taught[name].trace, taught[name].meta.extra["facts"]) not in (None, 1.0) for name in both]
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
    later = label(floor, floor.parent / "out", audit=30)
    assert {k: v for k, v in later.items() if k != "audit"} == first
    assert (later["audit"]["frames"], later["audit"]["limit"]) == (30, 30)
    assert later["audit"]["exact"] == 1.0  # perfect eyes
    assert {rate["advice"] for rate in later["audit"]["tasks"].values()} == {"trust the teacher"}
    assert json.loads((floor.parent / "out" / "label.json").read_text()) == later
    assert all(path.read_bytes() == data for path, data in files.items())
    assert label(floor, floor.parent / "out", audit=20) == later  # known from more frames already
    assert label(floor, floor.parent / "out", audit=40)["audit"]["frames"] == 40


def test_a_table_is_the_record(tmp_path: Path) -> None:
    (tmp_path / "frames.csv").write_text("image,state\na.jpg,full\n")
    (tmp_path / "a.jpg").write_bytes(jpeg(0))
    (tmp_path / "tasks.yaml").write_text(
        "table: {file: frames.csv, family: bin}\n"
        "tasks: [{family: bin, name: state, phrasings: ['Which?'], answer: {kind: exact, column: state}}]\n"
    )
    with pytest.raises(LinesideError, match="the teacher 'table' is the record"):
        label(tmp_path, tmp_path / "out", tasks=[tmp_path / "tasks.yaml"], audit=5)


def test_what_is_not_seen_is_not_answered(floor: Path) -> None:
    account = label(floor, floor.parent / "seen", settings=Label(acuity=0.0))
    assert account["dropped"]["the teacher sees nothing to answer by"] > 0
    assert account["samples"]["prompt-train"] > len(list(read_samples(floor.parent / "seen" / "control")))


def test_acuity_is_of_the_simulators_teacher(tmp_path: Path) -> None:
    with pytest.raises(LinesideError, match="acuity is of the teacher 'sim'; the teacher 'table' errs as it does"):
        label(tmp_path, tmp_path / "out", tasks=[Path("grocery.yaml")], teacher="table", settings=Label(acuity=0.5))
