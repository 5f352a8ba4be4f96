"""validate: each kind of bad row is found by file and number, each leak by name; the mask shown is the one trained."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as Pil

from lineside.data import store
from lineside.data.checks import CHECKS, Report, inspect
from lineside.data.splits import side_of
from lineside.errors import CheckFailed, LinesideError
from lineside.types import Frame, Image, Meta, Role, Sample, SampleKind, Source, Split, Target
from lineside.validate import of_texts, preview, validate
from tests.data.test_duplicates import COPIES, SCENES


def png(number: int, size: int = 8) -> bytes:
    out = io.BytesIO()
    Pil.new("RGB", (size, size), (number % 256, number // 256 % 256, 7)).save(out, "PNG")
    return out.getvalue()


def sample(number: int, kind: SampleKind = "qa", split: Split = "train", **changes) -> Sample:
    offset = {"train": 0, "dev": 100, "heldout": 200, "shifted": 300}[split]
    place = offset + number
    made = Sample(
        id=f"{split}{number}/{kind}",
        kind=kind,
        images=(Image(png(place)),),
        family="picking",
        task="count",
        question="" if kind == "caption" else "How many cans are there?",
        trace="two cans left; one can right; so 3 in all" if kind == "qa" else None,
        answer={"caption": "Three cans.", "qa": "3", "prompt": None}[kind],
        target=None if kind == "caption" else Target("number", "sim", value=3.0, tolerance=2.0),
        split=split,
        meta=Meta(
            f"scene{place}", "c9" if split == "shifted" else "c1", skus=("s9",) if split == "shifted" else ("s1",)
        ),
        source=Source("sim"),
    )
    return replace(made, **changes)


GOOD = [
    *(sample(n, "caption") for n in range(6)),
    *(sample(n) for n in range(3)),
    *(sample(n, "prompt") for n in range(4, 6)),
    *(sample(n, split=split) for n in range(2) for split in ("dev", "heldout", "shifted")),
]  # fmt: skip


def write(folder: Path, samples: list[Sample]) -> Path:
    store.write_samples(folder, samples)
    return folder


def failed(report: Report) -> dict[str, int]:
    return {name: count for name, count in report.counts.items() if count}


def test_a_sound_data_set_passes(tmp_path: Path) -> None:
    report = inspect(write(tmp_path, GOOD))
    assert report.ok
    assert failed(report) == {}
    assert report.rows == {
        "caption-train": 6, "qa-train": 3, "prompt-train": 2, "qa-dev": 2, "qa-heldout": 2, "qa-shifted": 2
    }  # fmt: skip
    assert report.traces == {"valid": 3}
    assert "no checkpoint" in report.notes["context"]


BAD_ROWS = {
    "no answer": ({"answer": " "}, "texts", "no supervised tokens"),
    "no question": ({"question": ""}, "texts", "without a question"),
    "no target": ({"target": None}, "texts", "without a target"),
    "wrong answer": ({"answer": "4"}, "targets", "'4' is not right by its own target"),
    "unsound target": ({"target": Target("exact", "sim")}, "targets", "accepted is empty"),
    "not a picture": ({"images": (Image(b"<html>"),)}, "pictures", "not an image"),
    "cut off": ({"images": (Image(png(1, 64)[:-30]),)}, "pictures", "cut off"),
    "huge": ({"images": (Image(png(1, 64), "view"),)}, "pictures", "too large"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_told_with_file_row_and_reason(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changes, check, reason = BAD_ROWS[case]
    if case == "huge":
        monkeypatch.setattr("lineside.images.MAX_SIDE", 32)
    report = inspect(write(tmp_path, [*GOOD, sample(3, **changes)]))
    assert failed(report) == {check: 1}
    (problem,) = report.problems[check]
    assert (problem.file, problem.row, problem.id) == ("qa-train-00000.parquet", 3, "train3/qa")
    assert reason in problem.reason


def test_a_row_that_cannot_be_read_does_not_stop_the_rest(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD) / "qa-train-00000.parquet"
    table = pq.read_table(path)
    targets = table.column("target").to_pylist()
    targets[1] = "{broken"
    pq.write_table(table.set_column(table.column_names.index("target"), "target", pa.array(targets)), path)
    report = inspect(tmp_path)
    assert failed(report) == {"rows": 1}
    assert report.problems["rows"][0].row == 1
    assert "not JSON" in report.problems["rows"][0].reason
    assert report.rows["qa-train"] == 2


@pytest.mark.parametrize("split", ["dev", "heldout", "shifted"])
def test_a_picture_in_two_splits_is_found_by_its_content(tmp_path: Path, split: Split) -> None:
    shared = sample(1, split=split).images
    report = inspect(write(tmp_path, [*GOOD, sample(7, "caption", images=(replace(shared[0], path="other name"),))]))
    assert failed(report) == {"picture leak": 1}
    assert report.problems["picture leak"][0].id == "train7/caption"
    other = f"{split}1/"
    assert report.problems["picture leak"][0].reason.startswith(
        f"the picture of train7/caption of train is also in {split}: it is the picture of {other}"
    )


def shown(number: int, data: bytes, split: Split = "train", **changes) -> Sample:
    camera = Meta(f"scene{number}", "c1", "k1")
    return sample(number, split=split, images=(Image(data),), meta=camera, **changes)


def test_a_near_duplicate_in_two_splits_is_found_and_different_scenes_of_a_fixed_camera_are_not(tmp_path: Path) -> None:
    """A heldout picture, exported again at another quality under another scene's name, is trained on."""
    train = [shown(n, SCENES[n].image.bytes) for n in range(60)]
    suite = [shown(n, SCENES[n].image.bytes, "heldout", id=f"heldout{n}/qa") for n in range(60, 90)]
    assert failed(inspect(write(tmp_path / "clean", [*train, *suite]))) == {}
    leaks = [shown(500 + n, COPIES["re-encoded"](60 + n), id=f"leak{n}/qa") for n in range(3)]
    report = inspect(write(tmp_path / "leaky", [*train, *suite, *leaks]))
    assert failed(report) == {"near leak": 3}
    assert [p.id for p in report.problems["near leak"]] == ["leak0/qa", "leak1/qa", "leak2/qa"]
    assert report.problems["near leak"][0].reason == (
        "the picture of train looks the same as that of heldout60/qa in heldout"
    )
    dev = [shown(600, COPIES["darker"](61), "dev", id="dev/qa")]
    report = inspect(write(tmp_path / "suites", [*train, *suite, *dev]))
    assert failed(report) == {"near leak": 1}  # two suites must not share a picture either


def test_a_reference_picture_may_be_shown_everywhere_a_frame_may_not(tmp_path: Path) -> None:
    part, again = SCENES[0].image.bytes, COPIES["re-encoded"](0)
    rest = [shown(n, SCENES[n].image.bytes) for n in range(3, 40)]
    cases: list[tuple[Role, dict[str, int]]] = [("reference", {}), ("frame", {"near leak": 1})]
    for role, leaks in cases:
        first, second = shown(1, SCENES[1].image.bytes), shown(2, SCENES[2].image.bytes, "heldout")
        first = replace(first, images=(*first.images, Image(part, role)))
        second = replace(second, images=(*second.images, Image(again, role)))
        assert failed(inspect(write(tmp_path / role, [first, second, *rest]))) == leaks


def test_a_prompt_of_stage_three_that_a_suite_asks_is_found(tmp_path: Path) -> None:
    suite = sample(0, split="heldout")
    same = sample(4, "prompt", id="same/prompt", images=suite.images, question="how many  cans are THERE?")
    report = inspect(write(tmp_path / "a", [*GOOD, same]))
    assert failed(report) == {"picture leak": 1, "prompt leak": 1}
    assert (
        report.problems["prompt leak"][0].reason == "the prompt and question of same/prompt of train is also in heldout"
    )
    other = replace(same, question="Is it empty?")
    assert failed(inspect(write(tmp_path / "b", [*GOOD, other]))) == {"picture leak": 1}


def test_rows_of_one_kind_with_one_id_are_found(tmp_path: Path) -> None:
    """Two jobs that wrote into one folder double the rows; a question and the prompt of one id are two things."""
    folder = write(tmp_path, [*GOOD, replace(GOOD[6], kind="prompt", trace=None, answer=None)])
    assert not inspect(folder, decoded=False).counts["ids"]
    write(tmp_path, [GOOD[0], GOOD[6], replace(GOOD[7], split="dev", meta=Meta("other"))])
    report = inspect(folder, decoded=False)
    assert report.counts["ids"] == 3
    assert {problem.id for problem in report.problems["ids"]} == {GOOD[0].id, GOOD[6].id, GOOD[7].id}
    assert "a caption of this id is also in caption-train-00000.parquet row 0" in {
        problem.reason for problem in report.problems["ids"]
    }


def test_a_scene_in_two_splits_is_told_once(tmp_path: Path) -> None:
    meta = Meta("scene200", "c1")
    leaks = [sample(n, "caption", meta=meta) for n in range(7, 10)]
    report = inspect(write(tmp_path, [*GOOD, *leaks]))
    assert failed(report) == {"scene leak": 1}
    assert report.problems["scene leak"][0].reason == "the scene scene200 of train is also in heldout"


@pytest.mark.parametrize(("split", "found"), [("train", True), ("dev", True), ("heldout", False)])
def test_skus_and_cells_of_shifted_are_new(tmp_path: Path, split: Split, found: bool) -> None:
    report = inspect(write(tmp_path, [*GOOD, sample(8, split=split, meta=Meta("sceneX", "c9", skus=("s9", "s1")))]))
    told = failed(report)
    told.pop("captions", None)
    assert told == ({"sku leak": 1, "cell leak": 1} if found else {})


def test_a_teachers_word_alone_stays_out_of_suites_and_of_stage_three(tmp_path: Path) -> None:
    target = Target("number", "teacher", value=3.0, tolerance=2.0)
    samples = [sample(3, target=target), sample(8, "prompt", target=target), sample(8, split="heldout", target=target)]
    report = inspect(write(tmp_path, [*GOOD, *samples]))
    assert failed(report) == {"provenance": 2}  # stage 2 may learn from it
    assert {p.id for p in report.problems["provenance"]} == {"train8/prompt", "heldout8/qa"}


def test_outcomes_are_no_answers_of_stage_two(tmp_path: Path) -> None:
    told = Target("number", "outcome", value=3.0, tolerance=2.0)
    failed_answer = Target("not", "outcome", wrong=(told,))
    prompts = [sample(3, "prompt", target=told), sample(2, "prompt", target=failed_answer)]
    assert not failed(inspect(write(tmp_path / "prompts", [*GOOD, *prompts])))
    answered = [sample(5, target=told), sample(6, target=failed_answer)]
    report = inspect(write(tmp_path / "answered", [*GOOD, *answered]))
    assert failed(report) == {"provenance": 2, "targets": 2}
    assert "stage 3, and never become answers of stage 2" in report.problems["provenance"][0].reason


def test_fewer_captions_than_questions(tmp_path: Path) -> None:
    report = inspect(write(tmp_path / "few", [sample(0, "caption"), *(sample(n) for n in range(2))]))
    assert failed(report) == {"captions": 1}
    assert report.problems["captions"][0].reason == "1 captions for 2 questions"
    report = inspect(write(tmp_path / "none", [sample(n) for n in range(2)]))
    assert report.ok
    assert "no captions" in report.notes["captions"]


def test_nothing_to_learn_from(tmp_path: Path) -> None:
    report = inspect(write(tmp_path, [sample(n, "prompt") for n in range(2)]))
    assert failed(report) == {"tokens": 1}
    assert "zero supervised tokens" in report.problems["tokens"][0].reason


def test_frames_are_checked_as_well(tmp_path: Path) -> None:
    def frame(number: int, split: Split, scene: str, image: bytes) -> Frame:
        return Frame(f"f{number}", Image(image), "picking", {}, Meta(scene, skus=("s1",)), split)

    frames = [frame(0, "train", "a", png(0)), frame(1, "heldout", "b", png(1)), frame(2, "train", "b", png(1))]
    store.write_frames(tmp_path, [*frames, frame(3, "dev", "c", b"no")])
    report = inspect(tmp_path)
    assert failed(report) == {"picture leak": 1, "scene leak": 1, "pictures": 1}
    assert report.problems["scene leak"][0].row == 2
    assert report.rows == {"frames-train": 2, "frames-heldout": 1, "frames-dev": 1}


def test_memory_does_not_grow_with_what_is_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lineside.data import checks

    kept = []
    real = checks._Leaks
    monkeypatch.setattr(checks, "_Leaks", lambda *args: kept.append(real(*args)) or kept[-1])
    suite = [sample(n, split="heldout") for n in range(5)]
    sizes = []
    for count in (10, 90):
        inspect(write(tmp_path / str(count), [*suite, *(sample(n, "caption") for n in range(count))]))
        sizes.append(sum(len(names) for names in kept[-1]._seen.values()))
    assert sizes[0] == sizes[1] == 15  # five pictures, five scenes and five questions of the suite


def test_many_problems_are_counted_and_some_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lineside.data.checks.LISTED", 3)
    report = inspect(
        write(tmp_path, [*(sample(n, "caption") for n in range(20)), *(sample(n, answer="9") for n in range(9))])
    )
    assert report.counts["targets"] == 9
    assert len(report.problems["targets"]) == 3


def test_the_verb_prints_json_and_fails_with_status_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, [*GOOD, sample(3, answer="9")])
    with pytest.raises(CheckFailed, match=r"failed: targets \(1\)") as error:
        validate(tmp_path, as_json=True)
    assert error.value.exit_status == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["ok"] is False
    assert list(printed["checks"]) == list(CHECKS)
    (problem,) = printed["checks"]["targets"]["problems"]
    assert (problem["file"], problem["row"], problem["id"]) == ("qa-train-00000.parquet", 3, "train3/qa")
    assert problem["reason"] == "the answer '9' is not right by its own target: wrong"
    assert printed["checks"]["rows"]["ok"] is True


def test_the_verb_tells_the_rows_and_shows_the_mask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    validate(write(tmp_path, GOOD), show=1)
    out = capsys.readouterr().out
    assert "6 caption-train, 3 qa-train" in out
    assert "what is learnt" in out
    assert "train0/qa (qa)" in out


@pytest.mark.parametrize("make", ["absent", "empty"])
def test_nothing_to_check_is_bad_input(tmp_path: Path, make: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(LinesideError, match=r"no such folder|no samples") as error:
        validate(tmp_path / make)
    assert error.value.exit_status == 2


def test_the_mask_colours_what_is_learnt(tmp_path: Path) -> None:
    untraced = sample(1, trace=None)
    write(tmp_path, [sample(0, "caption"), sample(0), untraced, sample(2, trace="ok."), sample(4, "prompt")])
    rendering = of_texts(tmp_path)
    by_id: dict[str, dict[str, str]] = {}
    lines = list(preview(tmp_path, rendering, 5))[1:]
    for title, line in zip(lines[::2], lines[1::2], strict=True):
        colours: dict[str, str] = {}
        for span in line.spans:
            colours[str(span.style)] = colours.get(str(span.style), "") + line.plain[span.start : span.end].replace(
                "|", ""
            )
        by_id[title.plain.split(" ")[0]] = colours
    answer, structure, trace, none = "bold green", "cyan", "yellow", "dim"
    assert by_id["train0/qa"][answer] == "3"
    assert by_id["train0/qa"][trace] == "two cans left; one can right; so 3 in all"
    assert by_id["train0/qa"][structure] == f"<think></think>{rendering.render.format.eos}".replace("|", "")
    for name in ("train1/qa", "train2/qa"):  # no trace, or one that says nothing: thinking is off, nothing teaches it
        assert trace not in by_id[name]
        assert by_id[name][structure] == rendering.render.format.eos.replace("|", "")
        assert by_id[name][none].endswith("<think></think>")
    assert by_id["train0/caption"][answer] == "Three cans."
    assert by_id["train4/prompt"].keys() == {none}
    assert "x49" in by_id["train0/qa"][none]


def test_a_sample_longer_than_the_context_is_found(tmp_path: Path) -> None:
    """With a checkpoint the context is its own; the tiny model of the tests takes 512 tokens and 16 a picture."""
    from lineside.model.checkpoint import save
    from tests.conftest import make_tiny_vlm

    save(make_tiny_vlm(), tmp_path / "checkpoint")
    long = sample(3, trace="; ".join(f"can {n} lies left of can {n + 1}" for n in range(90)) + "; so 3 in all")
    data = write(tmp_path / "data", [*GOOD, long])
    with pytest.raises(CheckFailed, match=r"context \(1\)"):
        validate(data, checkpoint=tmp_path / "checkpoint")
    report = validate(write(tmp_path / "short", GOOD), checkpoint=tmp_path / "checkpoint")
    assert 16 < report.longest < 512
    assert report.supervised["qa-train"] > 0
    assert "context" not in report.notes


def test_a_folder_that_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(LinesideError, match="no checkpoint at"):
        validate(write(tmp_path, GOOD), checkpoint=tmp_path)


def split_by(tmp_path: Path, by: str, metas: dict[str, Meta]) -> Report:
    """A data set whose account says that it was split by `by`, with one sample of each split."""
    samples = [sample(n, split=cast(Split, split), meta=meta) for n, (split, meta) in enumerate(metas.items())]
    samples.append(sample(len(samples) - 1, "caption", meta=metas["train"]))
    write(tmp_path, samples)
    account = {"split": {"by": by, "shares": {"train": 0.5, "heldout": 0.5}, "salt": ""}}
    (tmp_path / "label.json").write_text(json.dumps(account))
    return inspect(tmp_path)


@pytest.mark.parametrize(
    ("by", "one", "other"),
    [
        ("day", {"time": "2026-01-01T00:07:00"}, {"time": "2026-01-01T23:07:00+01:00"}),
        ("cell", {"cell": "c1"}, {"cell": "c1"}),
        ("camera", {"camera": "k1"}, {"camera": "k1"}),
    ],
)
def test_what_the_split_was_made_by_is_on_one_side(
    tmp_path: Path, by: str, one: dict[str, str], other: dict[str, str]
) -> None:
    bad = split_by(tmp_path / "bad", by, {"heldout": Meta(scene="a", **one), "train": Meta(scene="b", **other)})
    assert failed(bad) == {"split leak": 1}
    assert f"the {by} " in bad.problems["split leak"][0].reason
    moved = {"time": "2026-01-02T00:00:00", "cell": "c2", "camera": "k2"}
    apart = {key: moved[key] for key in other}
    good = split_by(tmp_path / "good", by, {"heldout": Meta(scene="a", **one), "train": Meta(scene="b", **apart)})
    assert failed(good) == {} and "split leak" not in good.notes


def test_a_time_that_is_no_date_proves_nothing_and_a_held_out_sku_is_not_trained_on(tmp_path: Path) -> None:
    metas = {"heldout": Meta(scene="a", time="260101-000700"), "train": Meta(scene="b", time="2026-01-01")}
    found = split_by(tmp_path / "day", "day", metas)
    assert "cannot be read: '260101-000700'" in found.problems["split leak"][0].reason
    shares = {"train": 0.5, "heldout": 0.5}
    sides = {sku: side_of(Meta(skus=(sku,)), by="sku", shares=shares) for sku in map(str, range(20))}
    kept, held = (next(s for s in sides if sides[s] == side) for side in ("train", "heldout"))
    good = {"heldout": Meta(scene="a", skus=(kept, held)), "train": Meta(scene="b", skus=(kept,))}
    assert failed(split_by(tmp_path / "good", "sku", good)) == {}
    bad = {"heldout": Meta(scene="a", skus=(held,)), "train": Meta(scene="b", skus=(kept, held))}
    assert failed(split_by(tmp_path / "bad", "sku", bad)) == {"split leak": 2}  # its question and its caption
