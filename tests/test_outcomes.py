"""outcomes: what is read, what it is joined to, the targets it gives, and that every outcome is accounted for."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lineside import cli
from lineside.data.checks import inspect
from lineside.data.store import read_samples, write_frames, write_samples
from lineside.data.tabular import Form as Tables
from lineside.errors import CheckFailed, LinesideError, TooLittleData
from lineside.files import hold
from lineside.images import image_key
from lineside.judgement.outcomes import Noise, seconds_of
from lineside.judgement.schema import write_evaluation
from lineside.judgement.summary import summarise
from lineside.judgement.typed import Form, Forms
from lineside.outcomes import FILE, LEFT_OUT, import_outcomes
from lineside.outcomes_report import report
from lineside.serving.outcome_sources import Sources
from lineside.serving.outcomes import About, Outcomes
from lineside.types import Frame, Image, Meta, Sample, Source, Target
from lineside.verify.verifiers import verify
from tests.conftest import picture
from tests.judgement.conftest import row as asked_row
from tests.judgement.conftest import summary_arguments, wrong  # noqa: F401
from tests.serving.test_outcomes import typed

COUNT = Form(kind="number", resolution=1.0, tolerance=2.0, phrasings=("how many?",))
WEIGHT = Form(kind="number", unit="g", resolution=10.0, tolerance=20.0, phrasings=("how heavy?",))
STATE = Form(kind="choice", options=("intact", "torn"), phrasings=("in what state?",))
PICK = Form(kind="point", phrasings=("where to pick?",))
FORMS = {"bins/count": COUNT, "bins/weight": WEIGHT, "bins/state": STATE, "bins/pick": PICK}
QUESTIONS = {name.split("/")[1]: form.phrasings[0] for name, form in FORMS.items()}


@pytest.fixture
def floor(tmp_path: Path) -> Path:
    """A folder with a checkpoint's forms and nine photographs."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "tasks.json").write_text(Forms(tasks=FORMS).model_dump_json())
    (tmp_path / "photos").mkdir()
    for number in range(9):
        (tmp_path / "photos" / f"f{number}.png").write_bytes(picture(number))
    return tmp_path


def row(frame: int, asked: str, answer: str, /, **more: Any) -> dict[str, Any]:
    return {"frame": f"photos/f{frame}.png", "question": QUESTIONS[asked], "answer": answer, **more}


def table(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(one) + "\n" for one in rows))
        return path
    names = list(dict.fromkeys(name for one in rows for name in one))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    return path


def imported(floor: Path, rows: Sequence[dict[str, Any]], **more: Any) -> tuple[dict[str, Any], list[Sample]]:
    """The account and the prompts of a table of outcomes."""
    options = {name: more.pop(name) for name in ("noise", "within") if name in more}
    sources = Sources((table(floor / "told.csv", rows),), like=more.pop("like", floor / "model"), **more)
    account = import_outcomes(sources, floor / "out", **options)
    return account, list(read_samples(floor / "out"))


def test_truth_success_and_failure_become_targets(floor: Path) -> None:
    rows = [
        row(0, "count", "3", truth="4", cell="c1", sku="4711;4712", time="2026-03-02T10:00:00"),
        row(1, "count", "3", verdict="succeeded"),
        row(2, "count", "3", verdict="failed"),
        row(3, "weight", "120 g", truth="0.1229 kg"),
        row(4, "state", "torn", verdict="failed"),
    ]
    account, prompts = imported(floor, rows)
    assert (account["outcomes"], account["prompts"], account["left_out"]) == (5, 5, {})
    assert account["used"] == {"truth": 2, "success": 1, "failure": 2}
    found = {prompt.images[0].bytes: prompt for prompt in prompts}
    first, second, third, fourth, fifth = (found[picture(n)] for n in range(5))
    assert first.target == Target("number", "outcome", value=4.0, tolerance=2.0)
    assert (first.family, first.task, first.question) == ("bins", "count", "how many?")
    assert (first.meta.cell, first.meta.skus) == ("c1", ("4711", "4712"))
    assert first.meta.time == "2026-03-02T10:00:00+00:00"
    assert second.target == Target("number", "outcome", value=3.0, tolerance=2.0)
    assert third.target == Target("not", "outcome", wrong=(replace(second.target, value=3.0),), doubt=0.1)
    assert fourth.target == Target("number", "outcome", value=122.9, unit="g", resolution=10.0, tolerance=20.0)
    assert fifth.target is not None and fifth.target.wrong[0].options == ("intact", "torn")
    assert all(p.kind == "prompt" and p.split == "train" and p.answer is None and p.trace is None for p in prompts)
    checked = inspect(floor / "out")  # as any other samples
    assert checked.ok and "serve stage 3" in checked.notes["tokens"]


def test_numbers_of_json_mean_what_they_mean_in_a_table(floor: Path) -> None:
    told = [
        row(0, "count", "3", truth=4, time=1772445600123, cell=7.0, sku="4711|4712"),  # thousandths of a second
        row(1, "count", "3", truth=4, time=1e300),
        row(2, "count", "3", truth=4, time=-5),
        row(3, "count", "3", truth=4, time=1772445600.5, cell="7.0", sku=[4711.0]),
    ]
    account = import_outcomes(Sources((table(floor / "told.jsonl", told),), like=floor / "model"), floor / "out")
    assert account["left_out"] == {"the row cannot be read": 2}
    found = {p.images[0].bytes: p.meta for p in read_samples(floor / "out")}
    assert {meta.time for meta in found.values()} == {"2026-03-02T10:00:00+00:00"}
    assert {meta.cell for meta in found.values()} == {"7"}
    assert (found[picture(0)].skus, found[picture(3)].skus) == (("4711", "4712"), ("4711",))


def test_a_scale_that_writes_a_decimal_comma_is_read_as_it_means(floor: Path) -> None:
    def told(*truths: str, decimal: str | None = None) -> tuple[dict[str, Any], list[float]]:
        rows = "".join(f"photos/f{n}.png;how heavy?;120;{truth}\n" for n, truth in enumerate(truths))
        (floor / "scale.csv").write_text(f"frame;question;answer;truth\n{rows}")
        shutil.rmtree(floor / "out", ignore_errors=True)
        account = import_outcomes(
            Sources((floor / "scale.csv",), like=floor / "model", written=Tables(decimal=decimal)), floor / "out"
        )  # fmt: skip
        found = sorted(p.target.value for p in read_samples(floor / "out") if p.target and p.task == "weight")
        return account, found

    account, weights = told("131,2", "0,122 kg", "1.322,5 g", "99")  # and not 122 kg
    assert weights == [99.0, 122.0, 131.2, 1322.5]
    assert account["remarks"] == ["the truths of scale.csv have a decimal comma"]
    assert told("131,2", "1.322")[0]["left_out"] == {"the truth is no answer to the question": 1}  # which of the two?
    assert told("1,322 kg", decimal=",")[1] == [1322.0] and told("1,322 g", decimal=".")[1] == [1322.0]
    with pytest.raises(LinesideError, match="'1,322', which could be with thousands or with decimals: say `--decimal"):
        told("1,322 kg")
    with pytest.raises(LinesideError, match=r"has both '99\.5' and '131,2'"):
        told("131,2", "99.5")


def test_members_with_commas_are_no_decimals(floor: Path) -> None:
    forms = {"kits/open": Form(kind="set", options=tuple("123456"), phrasings=("which are open?",))}
    (floor / "model" / "tasks.json").write_text(Forms(tasks=forms).model_dump_json())
    rows = [{"frame": "photos/f0.png", "question": "which are open?", "answer": "2", "truth": "1,3"}]
    _, (prompt,) = imported(floor, rows)
    assert prompt.target is not None and verify("3, 1", prompt.target).exact


def test_pictures_of_one_name_in_two_folders_are_two(floor: Path) -> None:
    paths = []
    for week in (1, 2):
        (folder := floor / f"w{week}").mkdir()
        (folder / "f0.png").write_bytes(picture(20 + week))
        paths.append(table(folder / "told.csv", [{**row(0, "count", "3", truth=str(week)), "frame": "f0.png"}]))
    account = import_outcomes(Sources(tuple(paths), like=floor / "model"), floor / "out")
    prompts = list(read_samples(floor / "out"))
    assert {p.images[0].bytes: p.target and p.target.value for p in prompts} == {picture(21): 1.0, picture(22): 2.0}
    assert len({p.id for p in prompts}) == 2 and account["left_out"] == {}
    (floor / "w1").rename(floor / "frames")  # given by --frames, the name means one picture
    with pytest.raises(LinesideError, match="no outcome can be used: 2 contradicting truths"):
        moved = (floor / "frames" / "told.csv", paths[1])
        import_outcomes(Sources(moved, like=floor / "model", frames=floor / "frames"), floor / "other")


def test_a_failed_pick_is_a_disc_around_its_point(floor: Path) -> None:
    _, (prompt,) = imported(floor, [row(0, "pick", "0.5, 0.25", verdict="failed")])
    assert prompt.target is not None and prompt.target.wrong[0].kind == "point"


def test_answers_that_failed_at_one_frame_are_one_prompt(floor: Path) -> None:
    rows = [row(0, "count", answer, verdict="failed", id=answer) for answer in ("3", "4", "3.0")]
    account, (prompt,) = imported(floor, rows, noise=Noise(0.2, 0.5))
    assert prompt.target is not None and [wrong.value for wrong in prompt.target.wrong] == [3.0, 4.0]
    assert prompt.target.doubt == pytest.approx(0.2 / 0.5) and account["used"] == {"failure": 3}


BAD = {
    "contradicting truths": [row(0, "count", "3", truth="4"), row(0, "count", "3", truth="5")],
    "contradicting verdicts": [row(0, "count", "3", verdict="failed"), row(0, "count", "3.0", verdict="ok")],
    "contradicting verdicts ": [row(0, "count", "3", verdict="ok"), row(0, "count", "4", verdict="ok")],
    "the truth is no answer to the question": [row(0, "count", "3", truth="many")],
    "the truth lies near a rounding boundary": [row(0, "weight", "120", truth="125.5")],
    "there is no answer of the task's kind that could be right or wrong": [row(0, "weight", "123", verdict="failed")],
    "the verdict cannot be read (expected succeeded or failed)": [row(0, "count", "3", verdict="perhaps")],
    "the task of the question is not known": [{**row(0, "count", "3", truth="4"), "question": "why?"}],
    "it is not known how answers of its task are compared": [row(0, "count", "3", truth="4", task="bins/new")],
    "unknown frame: there is no such picture": [{**row(0, "count", "3", truth="4"), "frame": "photos/none.png"}],
    "unknown frame: there is no such picture ": [{**row(0, "count", "3", truth="4"), "frame": "../secret.png"}],
    "the picture cannot be shown to the model": [{**row(0, "count", "3", truth="4"), "frame": "told.csv"}],
    "the row cannot be read": [row(0, "count", "3", truth="4", time="tomorrow")],
    "no answer of this id is in the log": [{"id": "gone", "truth": "3", "answer": ""}],
    "neither a truth nor a verdict": [{"id": "gone", "truth": "", "answer": ""}],
}


@pytest.mark.parametrize("reason", BAD)
def test_what_cannot_be_used_is_named_counted_and_listed(floor: Path, reason: str) -> None:
    with pytest.raises(LinesideError, match=r"no outcome can be used: .*told\.csv row "):
        imported(floor, BAD[reason])
    assert not (floor / "out").exists() and not list(floor.glob(".out*"))  # nothing half-written
    bad = [{"time": "", **one} for one in BAD[reason]]
    account, prompts = imported(floor, [*bad, row(1, "count", "3", truth="4")])
    assert len(prompts) == 1 and account["left_out"] == {reason.strip(): len(bad)}
    assert account["outcomes"] == len(bad) + 1 == sum(account["used"].values()) + sum(account["left_out"].values())
    lost = [json.loads(line) for line in (floor / "out" / LEFT_OUT).read_text().splitlines()]
    assert sorted(one["where"] for one in lost) == [f"told.csv row {n + 1}" for n in range(len(bad))]


def test_a_truth_outdoes_a_verdict_and_equal_outcomes_count_once(floor: Path) -> None:
    rows = [
        row(0, "count", "3", id="a", verdict="failed"), row(0, "count", "3", id="a", truth="4"),
        row(0, "count", "3", id="a", truth="4"),
    ]  # fmt: skip
    account, (prompt,) = imported(floor, rows)
    assert prompt.target is not None and prompt.target.value == 4.0
    assert account["left_out"] == {"told before": 1, "a truth says more than this verdict": 1}


def test_outcomes_find_their_answers(floor: Path) -> None:
    answers = [
        row(n, task, "3" if task == "count" else "120", id=f"{task}{n}", task=f"bins/{task}", cell=f"c{n % 2}",
            time=10 * n)
        for n in range(4) for task in ("count", "weight")
    ]  # fmt: skip
    log = table(floor / "log.jsonl", answers)
    told = [
        {"id": "count0", "truth": 4},
        {"frame": "photos/f1.png", "task": "bins/weight", "truth": "0.1 kg"},
        {"time": 23, "cell": "c0", "task": "bins/count", "verdict": False},  # 3 s after frame 2
        {"time": 33, "cell": "c1", "truth": 3},  # of two questions
        {"time": 39, "cell": "c1", "task": "bins/count", "truth": 3},  # too late
        {"time": 31, "cell": "c0", "task": "bins/count", "truth": 3},  # in another cell
        {"truth": 3},
    ]
    sources = Sources((table(floor / "told.jsonl", told),), answers=(log,), like=floor / "model")
    account = import_outcomes(sources, floor / "out", within=5.0)
    prompts = {(p.images[0].bytes, p.task): p.target for p in read_samples(floor / "out")}
    assert {key: target.kind for key, target in prompts.items() if target} == {
        (picture(0), "count"): "number", (picture(1), "weight"): "number", (picture(2), "count"): "not",
    }  # fmt: skip
    assert account["answers"] == 8 and account["untold"] == 5
    assert sorted(account["left_out"].values()) == [1, 1, 2]
    assert {one["where"] for one in map(json.loads, (floor / "out" / LEFT_OUT).read_text().splitlines())} == {
        f"told.jsonl row {n}" for n in (4, 5, 6, 7)
    }


def test_clocks_that_differ_are_told(floor: Path) -> None:
    rows = [row(0, "count", "3", truth="4", time="2026-03-02 10:00:00", told="2026-03-02 09:00:30")]
    account, _ = imported(floor, rows)
    assert account["remarks"] == [
        "1 outcomes are told before their answer was given, by up to 3,570 s: the clocks differ (a time without a zone "
        "is taken as UTC)"
    ]


def test_the_servers_own_file_needs_nothing_else(floor: Path) -> None:
    log = Outcomes(floor / "log.sqlite", days=30, max_bytes=1 << 30, frames=True)
    beside = Image(picture(8), "reference", name="red can")
    about = About("c1", "top", ("4711",), {"box": [0.0, 0.0, 0.5, 1.0]}, None, (beside,), COUNT)
    for number in range(3):
        log.keep(f"a{number}", [picture(number)], "how many?", typed(), model="m", version="v7", about=about)
    log.tell("a0", "4", "wrong")
    log.tell("a1", None, "failed")
    log.close()
    account = import_outcomes(Sources((floor / "log.sqlite",)), floor / "out")
    assert account["used"] == {"truth": 1, "failure": 1} and account["untold"] == 1
    first, _ = read_samples(floor / "out")
    assert [image.role for image in first.images] == ["crop", "reference"] and first.images[1].name == "red can"
    assert first.images[0].bytes != picture(0)  # cut as the model was shown it
    assert (first.meta.cell, first.meta.camera, first.meta.skus) == ("c1", "top", ("4711",))
    assert (first.source.teacher, first.source.prompt_hash) == ("outcome of m", "v7")


def test_frames_give_picture_and_metadata_and_a_suite_is_never_trained_on(floor: Path) -> None:
    frames = [
        Frame(f"w1/{n}", Image(picture(n)), "bins", {}, Meta(f"s{n}", "c9", week=3), "heldout" if n == 1 else "train")
        for n in range(3)
    ]
    write_frames(floor / "frames", frames)
    rows = [
        {**row(0, "count", "3", truth="4"), "frame": "w1/0"},
        {**row(1, "count", "3", truth="4"), "frame": "w1/1"},
        {**row(2, "count", "3", truth="4"), "frame": image_key(picture(2))},
    ]
    account, prompts = imported(floor, rows, frames=floor / "frames")
    assert [(p.meta.scene, p.meta.cell, p.meta.week) for p in prompts] == [("s0", "c9", 3), ("s2", "c9", 3)]
    assert account["left_out"] == {"the frame is one of a suite, which is never trained on": 1}


def test_ids_of_several_answers_and_a_log_that_is_given_twice(floor: Path) -> None:
    answers = [row(0, "count", "3", id="x"), row(1, "weight", "120", id="x"), row(2, "count", "3", id="y")]
    log, told = table(floor / "log.csv", answers), table(floor / "told.jsonl", [{"id": i, "truth": "4"} for i in "xyy"])
    sources = Sources((told, told), answers=(log, floor / "photos" / ".." / "log.csv"), like=floor / "model")
    account = import_outcomes(sources, floor / "out")
    assert account["left_out"] == {"answers that differ have the same id": 1, "told before": 1}
    assert (account["answers"], account["outcomes"], account["prompts"]) == (3, 3, 1)
    table(floor / "log.csv", [answers[2], answers[2]])  # the same answer twice is one
    assert import_outcomes(replace(sources, files=(told,)), floor / "again")["prompts"] == 1


def test_outcomes_since_a_time(floor: Path) -> None:
    rows = [
        row(0, "count", "3", truth="4", time="2026-03-01T23:59:59Z"),
        row(1, "count", "3", truth="4", time="2026-03-02"),
        row(2, "count", "3", truth="4", time="2026-02-01", told="2026-03-05"),  # told later of an answer of before
        row(3, "count", "3", truth="4"),
    ]
    since = seconds_of("2026-03-02")
    assert since == seconds_of("2026-03-02T01:00:00+01:00") == 1772409600.0
    account, prompts = imported(floor, [{"time": "", "told": "", **one} for one in rows], since=since)
    assert {p.images[0].bytes for p in prompts} == {picture(1), picture(2)}
    why = ("it was told before --since", "nothing says when it was told, as --since needs")
    assert account["left_out"] == dict.fromkeys(why, 1)
    with pytest.raises(LinesideError, match="--since 'Monday' cannot be read"):
        seconds_of("Monday")


def test_tables_of_any_encoding_and_what_the_options_say(floor: Path) -> None:
    text = "frame,question,answer,truth,who\nphotos/f0.png,how many?,3,4,Müller\n"
    (path := floor / "told.csv").write_bytes(text.encode("cp1252"))

    def run(*words: object) -> tuple[int, str]:
        done = CliRunner().invoke(
            cli.app, ["outcomes", "import", str(path), "-o", str(floor / "out"), *map(str, words)]
        )
        return done.exit_code, done.stderr

    like = ("--like", floor / "model")
    assert "set `--encoding cp1252`; else set its own encoding, or save it as UTF-8" in run(*like)[1]
    for words, said in {
        ("--encoding", "latin-99"): "--encoding latin-99: expected a name such as utf-8 or cp1252",
        ("--delimiter", ";;"): "--delimiter ;;: expected one character",
        ("--decimal", "'"): "--decimal ': expected a comma or a point",
        ("--column", "truth"): "--column truth: expected our name and the table's",
        ("--column", "truht=who"): "did you mean 'truth'?; ours: id, time",
    }.items():
        assert said in run(*like, "--encoding", "cp1252", *words)[1]
    status, said = run("--encoding", "cp1252")
    assert status == 2 and "name the checkpoint that answered with --like" in said
    assert run(*like, "--encoding", "cp1252")[0] == 0


def test_a_folder_is_imported_once_and_never_mixed(floor: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row(0, "count", "3", truth="4")]
    account, _ = imported(floor, rows)
    before = {path: path.stat().st_mtime_ns for path in (floor / "out").iterdir()}
    assert imported(floor, rows)[0] == account and "already" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in (floor / "out").iterdir()} == before
    with pytest.raises(LinesideError, match="holds other samples"):
        imported(floor, [row(0, "count", "3", truth="5")])
    with hold(floor, name=".out.lock"), pytest.raises(LinesideError, match="out is in use by another process"):
        imported(floor, rows)
    assert json.loads((floor / "out" / FILE).read_text()) == account


def test_wrong_names_and_files_are_named(floor: Path) -> None:
    rows = [{**row(0, "count", "3"), "net": "4"}]
    with pytest.raises(LinesideError, match="--column thruth: no such column; did you mean 'truth'"):
        imported(floor, rows, columns={"thruth": "net"})
    with pytest.raises(LinesideError, match="no column 'nett'; did you mean 'net'"):
        imported(floor, rows, columns={"truth": "nett"})
    with pytest.raises(LinesideError, match=r"no column answer, truth or verdict; it has .*--column truth=frame"):
        imported(floor, [{"frame": "a", "weight": "3"}])
    account, _ = imported(floor, rows, columns={"truth": "net"})
    assert account["used"] == {"truth": 1}
    for path, said in ((floor / "gone.csv", "no such file"), (floor, "a folder")):
        with pytest.raises(LinesideError, match=said):
            import_outcomes(Sources((path,)), floor / "other")
    (floor / "other.sqlite").write_bytes(b"SQLite format 3\0" + b"\0" * 100)
    with pytest.raises(LinesideError, match="no answers of a server"):
        import_outcomes(Sources((floor / "other.sqlite",)), floor / "other")
    with pytest.raises(LinesideError, match="neither a checkpoint, nor a run, nor a folder of samples"):
        import_outcomes(Sources((floor / "told.csv",), like=floor / "photos"), floor / "other")
    with pytest.raises(LinesideError, match="a sum below 1"):
        Noise(0.6, 0.5)


def test_a_run_says_how_answers_are_compared_by_its_last_model(floor: Path) -> None:
    (stage := floor / "run" / "sft").mkdir(parents=True)
    (floor / "run" / "recipe.yaml").write_text("name: run\n")
    with pytest.raises(LinesideError, match="run: a run without a trained stage"):
        imported(floor, [row(0, "count", "3", truth="4")], like=floor / "run")
    (floor / "model").rename(stage / "checkpoint")
    assert imported(floor, [row(0, "count", "3", truth="4")], like=floor / "run")[0]["prompts"] == 1


def test_samples_say_how_answers_are_compared_too(floor: Path) -> None:
    target = Target("number", "record", value=3.0, tolerance=2.0)
    asked = Sample(
        "q", "qa", (Image(picture(7)),), "bins", "count", "how many?", None, "3", target, "train", Meta("s"),
        Source("table"),
    )  # fmt: skip
    write_samples(floor / "samples", [asked])
    path = table(floor / "told.csv", [row(0, "count", "3", truth="4")])
    import_outcomes(Sources((path,), like=floor / "samples"), floor / "out")
    (prompt,) = read_samples(floor / "out")
    assert prompt.target == replace(target, provenance="outcome", value=4.0)


def test_the_report_names_the_cell_and_ends_with_status_one(
    floor: Path, summary_arguments: dict[str, Any], capsys: pytest.CaptureFixture[str]  # noqa: F811
) -> None:  # fmt: skip
    rows = [
        {**row(0, "count", "3", truth="3" if n % 10 or n % 2 else "4", cell=f"c{n % 2}"), "frame": f"f{n}"}
        for n in range(60)
    ]  # nine of ten are right
    bad = [{**row(0, "count", "3", truth="4", cell="c2"), "frame": f"g{n}"} for n in range(12)]
    asked = [(asked_row if n % 10 else wrong)(f"q{n}", family="bins", task="count") for n in range(200)]
    promised = write_evaluation(floor / "evaluation", summarise(asked, **summary_arguments), asked)
    good = Sources((table(floor / "good.csv", rows),), like=floor / "model")
    report(good, promised=[promised])
    assert "cell c0" in capsys.readouterr().out
    worse = replace(good, files=(table(floor / "worse.csv", rows + bad),))
    with pytest.raises(CheckFailed, match="cell c2: fewer answers are right than promised"):
        report(worse, promised=[promised])
    moved = [{**one, "answer": "5" if n % 2 else "3", "frame": f"h{n}"} for n, one in enumerate(rows)]
    now = replace(good, files=(table(floor / "now.csv", moved),))
    capsys.readouterr()
    with pytest.raises(CheckFailed, match="task bins/count: the answers have changed"):
        report(now, before=[floor / "good.csv"], as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert {one["name"] for one in found["accuracy"]} >= {"all answers", "cell c0"} and found["drift"][0]["alarm"]
    with pytest.raises(TooLittleData, match="of 1 answers no outcome can be used"):
        report(replace(good, files=(table(floor / "none.csv", [row(0, "count", "3")]),)))
