"""Labelling through a real endpoint in a real process: killed and resumed, in shares, within a budget, by trust."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from datetime import date as Date
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lineside import cli
from lineside.data.dispatch import BudgetReached
from lineside.data.prompts import load_prompts
from lineside.data.store import read_frames, read_samples
from lineside.errors import LinesideError
from lineside.label import label
from lineside.recipe import Label, load_recipe
from lineside.train import _Run
from lineside.verify.traces import trace_problem
from tests.torture.harness import KEY, Job, serving, torture, write_frames

FIELDS = Label.model_fields


def test_killed_and_resumed_it_writes_the_same_bytes(tmp_path: Path) -> None:
    # No request times out: label.json counts the tokens of all attempts, and a busy machine would add some.
    words = ["--timeout", "120", "--backoff", "0.02"]
    result = torture(tmp_path, frames=60, kills=3, seed=1, in_flight=16, stall=0.0, words=words)
    assert result["frames"] == {"labelled": 57, "rejected": 2, "failed": 1}


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("TORTURE_KEY", KEY)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    write_frames(tmp_path, 40)
    yield tmp_path


def api(url: str, **words) -> dict:
    """Settings of a teacher at this address."""
    asked = {"teacher": "api", "model": "hat", "base_url": url, "key_env": "TORTURE_KEY", "questions_per_frame": 4}
    return {**asked, "attempts": 3, "in_flight": 8, "timeout": 120.0, "backoff": 0.02, **words}


def run(folder: Path, url: str, out: str = "out", **words) -> dict:
    settings = Label(**api(url, **{name: words.pop(name) for name in list(words) if name in FIELDS}))
    keys = {"tasks": [folder / "tasks.yaml"], "date": "2026-01-02", "settings": settings, **words}
    return label(folder / "frames", folder / out, **keys)


def test_the_record_gives_targets_and_the_teacher_captions_and_traces(shop: Path) -> None:
    with serving(faults=0.0, latency=0.0) as (url, _):
        account = run(shop, url)
    prompts = load_prompts()
    samples = list(read_samples(shop / "out"))
    for s in samples:
        if s.kind == "caption":
            assert s.split == "train"
            assert (s.source.teacher, s.source.prompt_hash) == ("hat", prompts["captions"].hash)
        elif s.task == "upright":
            assert (s.kind, s.split) == ("qa", "train")  # neither suites nor stage 3 take the teacher's word
            assert s.target and s.target.provenance == "teacher"
            assert s.meta.extra["agreement"] == {"samples": 3, "agree": 3}
            assert s.source.prompt_hash == prompts["answers"].hash
        else:
            assert s.target and s.target.provenance == "record"
            assert "agreement" not in s.meta.extra
            if s.split == "heldout":
                assert (s.source.teacher, s.trace) == ("table", None)
            elif s.kind == "qa":
                assert s.source.prompt_hash == prompts["traces"].hash
                assert s.trace and trace_problem(s.trace, question=s.question, answer=s.answer) == ""
    twins = list(read_samples(shop / "out" / "control"))
    assert twins and all(s.trace and s.target and s.target.provenance == "record" for s in twins)
    assert {s.task for s in samples if s.kind == "prompt"} == {"count", "state"}
    assert account["dropped"]["only the teacher would vouch for it"] > 0
    assert sum(account["api"]["agreement"].values()) == sum(s.task == "upright" for s in samples) > 0
    lines = [json.loads(line) for line in (shop / "out" / "dropped.jsonl").read_text().splitlines()]
    assert Counter(f"{line['what']}: {line['reason']}" for line in lines) == account["api"]["unused"]


def test_trust_in_the_teacher_must_be_said_aloud(shop: Path) -> None:
    with serving(faults=0.0, latency=0.0) as (url, _):
        run(shop, url, trust_teacher=True, agree=2, prompt_share=0.5)
    prompts = [s for s in read_samples(shop / "out", kind="prompt") if s.task == "upright"]
    assert prompts and all(s.target and s.target.provenance == "teacher" for s in prompts)
    assert not [s for s in read_samples(shop / "out", split="heldout") if s.target and s.target.provenance == "teacher"]


def test_without_tasks_the_questions_are_its_own(shop: Path) -> None:
    with serving(faults=0.0, latency=0.0) as (url, _):
        account = run(shop, url, tasks=[])
    asked = [s for s in read_samples(shop / "out") if s.kind != "caption"]
    assert asked and {(s.kind, s.split, s.task) for s in asked} == {("qa", "train", "own")}
    assert {s.source.prompt_hash for s in asked} == {load_prompts()["questions"].hash}
    assert account["frames"]["silent"] == 2  # those of the suite: nobody but the teacher could speak of them


def test_a_folder_of_pictures_and_nothing_else(shop: Path) -> None:
    """No records, no task file, one picture cut off: captions and questions of the model's own."""
    folder = shop / "pictures" / "aisle"
    folder.mkdir(parents=True)
    for frame in read_frames(shop / "frames"):
        (folder / f"{frame.id}.png").write_bytes(frame.image.bytes)
    with serving(faults=0.0, latency=0.0) as (url, _):
        account = label(shop / "pictures", shop / "out", settings=Label(**api(url, questions_per_frame=2)))
    assert account["frames"]["rejected"] == 1 and account["frames"]["labelled"] + account["frames"]["silent"] == 39
    found = list(read_samples(shop / "out"))
    assert {(s.kind, s.family) for s in found if s.split == "train"} == {("caption", "frames"), ("qa", "frames")}
    assert not [s for s in found if s.split != "train"]  # nothing vouches for a suite


def test_ranks_share_the_asking_and_whoever_merges_writes_what_one_process_would(shop: Path) -> None:
    with serving(faults=0.1, latency=0.0, seed=3, stall=0.0) as (url, _):
        one = run(shop, url, "one")
    with serving(faults=0.1, latency=0.0, seed=3, stall=0.0) as (url, served):
        for rank in (2, 0, 1):
            run(shop, url, "many", shard=(rank, 3), date=f"2026-02-0{rank + 1}")
            assert not list((shop / "many").glob("*.parquet"))
        (shop / "many" / "label.started").write_text(
            (shop / "many" / "label.started").read_text().replace("2026-02-03", "2026-01-02")
        )
        asked = served.total()
        assert run(shop, url, "many") == one
        assert served.total() == asked
    for path in (shop / "one").rglob("*.parquet"):
        assert path.read_bytes() == (shop / "many" / path.relative_to(shop / "one")).read_bytes()


def test_a_reply_that_never_comes_is_asked_for_again(shop: Path) -> None:
    """However often requests time out, the samples are those of an endpoint that answers."""
    for out, stall in (("stalled", 900.0), ("answered", 0.0)):
        with serving(faults=0.2, latency=0.0, seed=3, stall=stall) as (url, served):
            run(shop, url, out, attempts=9, in_flight=40, timeout=3.0, backoff=0.005)
        assert served["stall"] > 2
    written = sorted((shop / "answered").rglob("*.parquet"))
    assert written
    for path in written:
        assert path.read_bytes() == (shop / "stalled" / path.relative_to(shop / "answered")).read_bytes()


def test_an_api_is_audited_where_records_are(shop: Path) -> None:
    """Its words come from a hat: digits for counts, one of three states."""
    with serving(faults=0.0, latency=0.0) as (url, _):
        account = run(shop, url, usd_in=2.0, usd_out=8.0, audit=20)
    found = account["audit"]
    assert (found["frames"], found["limit"], found["unread"]) == (20, 20, 0)
    assert found["tasks"].keys() == {"bin/count", "bin/state"}  # of "upright" no record knows
    assert found["tasks"]["bin/count"]["exact"] < 0.5 and found["tasks"]["bin/state"]["exact"] < 0.8
    assert found["tasks"]["bin/count"]["advice"] == "needs records"
    cost = found["cost"]
    assert cost["answers"] == 20  # one request a frame
    assert cost["usd"] == pytest.approx((2.0 * cost["prompt_tokens"] + 8.0 * cost["completion_tokens"]) / 1e6, abs=1e-4)
    assert account["api"]["answers"] == len((shop / "out" / "teacher-000.ledger").read_text().splitlines()) - 20
    assert (shop / "out" / "audit.html").is_file()


def test_an_audit_keeps_to_the_budget_and_is_gone_on_with(shop: Path) -> None:
    def within(requests: int | None) -> dict:
        return run(shop, url, in_flight=4, budget_requests=requests, audit=20)

    ledger = shop / "out" / "teacher-000.ledger"
    with serving(faults=0.0, latency=0.0) as (url, _):
        with pytest.raises(BudgetReached, match="12 of 20 frames are finished and kept"):
            within(12)
        assert len(ledger.read_text().splitlines()) == 12 and not (shop / "out" / "label.json").exists()
        with pytest.raises(BudgetReached):
            within(25)
        assert (shop / "out" / "audit.html").is_file()  # told before the rest is paid for
        account = within(None)
        asked = len(ledger.read_text().splitlines())
        assert within(None) == account
        assert run(shop, url, "other", audit=20)["audit"]["tasks"] == account["audit"]["tasks"]
    assert len(ledger.read_text().splitlines()) == asked
    assert account["audit"]["frames"] == 20


def test_a_finished_job_of_an_api_is_audited_later(shop: Path) -> None:
    ledger = shop / "out" / "teacher-000.ledger"
    with serving(faults=0.0, latency=0.0) as (url, _):
        first = run(shop, url)
        asked = len(ledger.read_text().splitlines())
        later = run(shop, url, audit=10)
    assert len(ledger.read_text().splitlines()) == asked + 10
    assert {name: value for name, value in later.items() if name != "audit"} == first
    assert later["audit"]["frames"] == 10


def test_what_a_teacher_in_the_table_said_is_not_an_apis(shop: Path) -> None:
    file = shop / "tasks.yaml"
    file.write_text(file.read_text().replace("column: count,", "column: count, teacher_column: said,"))
    with serving(faults=0.0, latency=0.0) as (url, _):
        run(shop, url)
    counts = [s for s in read_samples(shop / "out") if s.task == "count"]
    assert counts and all(s.target and s.target.provenance == "record" for s in counts)


def test_an_audit_without_records_is_refused_before_anything_is_asked(shop: Path) -> None:
    with (
        serving(faults=0.0, latency=0.0) as (url, _),
        pytest.raises(LinesideError, match="no training frame has a record"),
    ):
        run(shop, url, tasks=[], audit=10)
    assert not (shop / "out" / "teacher-000.ledger").read_text()


def test_a_date_stays_that_of_the_first_run(shop: Path) -> None:
    with serving(faults=0.0, latency=0.0) as (url, _):
        with pytest.raises(BudgetReached, match="run again with a larger budget"):
            run(shop, url, in_flight=4, budget_requests=20, date="2026-01-02")
        assert len((shop / "out" / "teacher-000.ledger").read_text().splitlines()) == 20
        account = run(shop, url, date="2026-09-09")
    assert account["date"] == "2026-01-02"
    assert {s.source.date for s in read_samples(shop / "out")} == {"2026-01-02"}


def test_failed_frames_can_be_asked_again(shop: Path) -> None:
    with serving(faults=0.8, latency=0.0, seed=1, stall=0.0) as (url, _):
        first = run(shop, url, in_flight=40)
    failed = [json.loads(line)["name"] for line in (shop / "out" / "failed.jsonl").read_text().splitlines()]
    assert len(failed) == first["frames"]["failed"] > 0
    with serving(faults=0.0, latency=0.0) as (url, _):
        assert run(shop, url) == first  # finished is finished, unless one asks
        second = run(shop, url, retry_failed=True)
    assert second["frames"]["failed"] == 0
    assert second["frames"]["labelled"] >= first["frames"]["labelled"] + len(failed)


def test_a_wrong_key_ends_the_job_and_is_not_told(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORTURE_KEY", "another-key-77")
    with serving() as (url, _), pytest.raises(LinesideError, match="HTTP 401") as told:
        run(shop, url)
    assert "another-key-77" not in str(told.value)
    with pytest.raises(LinesideError, match="cannot connect"):
        run(shop, url, patience=0.2, backoff=0.05)


def test_the_command_says_what_is_wrong(shop: Path) -> None:
    said = {}
    with serving(faults=0.0, latency=0.0) as (url, _):
        for name, words, status in (
            ("a", ["--budget-usd", "3"], 2), ("b", ["--budget-requests", "10"], 1), ("c", ["--shard", "3/3"], 2),
            ("d", ["--body", "{"], 2),
        ):  # fmt: skip
            done = CliRunner().invoke(cli.app, ["label", *Job(shop, name, url, words=words).words])
            assert done.exit_code == status, done.output
            said[name] = done.stderr
    assert "--usd-in and --usd-out" in said["a"]
    assert "the budget of 10 requests does not allow another request: " in said["b"]
    assert "run again with a larger budget to continue" in said["b"]
    assert "expected i/n with i from 0 to n - 1" in said["c"]
    assert "body: not JSON" in said["d"]
    assert not any("Traceback" in text for text in said.values())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"prompts": Path("absent")}, "no prompts in it"),
        ({"shard": (2, 2)}, "shard 2/2"),
    ],
)
def test_bad_settings_say_what_to_do(shop: Path, words: dict, message: str) -> None:
    with pytest.raises(LinesideError, match=message):
        run(shop, "http://127.0.0.1:9/v1", **words)


@pytest.mark.parametrize("limit", ["max_completion_tokens", "max_tokens"])
def test_an_endpoint_is_sent_the_limit_that_it_takes(shop: Path, limit: str) -> None:
    """One that knows a single name for the length of a reply answers every frame; the switch costs no attempt."""
    with serving(faults=0.0, latency=0.0, limit=limit) as (url, served):
        account = run(shop, url, attempts=1, in_flight=1)
    assert account["frames"] == {"read": 40, "labelled": 39, "rejected": 1, "failed": 0, "silent": 0}
    assert served["400"] == (1 if limit == "max_completion_tokens" else 0)  # asked once, and remembered


def test_the_teachers_word_gives_no_reward_where_a_frame_serves_both_stages(shop: Path) -> None:
    with serving(faults=0.0, latency=0.0) as (url, _):
        run(shop, url, question_share=1.0, prompt_share=1.0)
    asked = [s for s in read_samples(shop / "out", split="train") if s.kind != "caption"]
    assert {s.id.split("/")[0] for s in asked if s.kind == "qa"} >= {
        s.id.split("/")[0] for s in asked if s.kind == "prompt"
    }
    assert {s.target.provenance for s in asked if s.kind == "prompt" and s.target} == {"record"}
    assert {s.target.provenance for s in asked if s.kind == "qa" and s.target} == {"record", "teacher"}


def test_a_recipe_names_a_teacher_behind_an_api(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run's samples are those of `lineside label` with the same settings; a larger budget continues the run."""
    recipe = {
        "name": "asked",
        "runs": str(shop),
        "data": {"frames": str(shop / "frames"), "tasks": [str(shop / "tasks.yaml")]},
    }

    def samples(url: str, **words) -> Path:
        recipe["data"]["label"] = {**api(url), **words}
        (shop / "recipe.yaml").write_text(json.dumps(recipe))
        found = load_recipe(shop / "recipe.yaml")
        run = _Run(found, found.folder)
        run.begin()
        run.samples()
        return run.data

    with serving(faults=0.0, latency=0.0) as (url, served):
        monkeypatch.delenv("TORTURE_KEY")
        with pytest.raises(LinesideError, match=r"data\.label: the environment variable TORTURE_KEY is not set"):
            samples(url)
        monkeypatch.setenv("TORTURE_KEY", KEY)
        with pytest.raises(BudgetReached, match="run again with a larger budget to continue"):
            samples(url, in_flight=4, budget_requests=20)
        found = samples(url, budget_requests=2000)
        with pytest.raises(LinesideError, match=r"began with another recipe: data\.label\.samples: 3 -> 5"):
            samples(url, samples=5)
        run(shop, url, date=Date.today().isoformat())
    assert served["attempts served again"] == len((found / "teacher-000.ledger").read_text().splitlines())
    told = [json.loads((folder / "label.json").read_text()) for folder in (found, shop / "out")]
    assert told[0] == told[1] and told[0]["teacher"] == "hat"
    for path in (shop / "out").rglob("*.parquet"):
        assert path.read_bytes() == (found / path.relative_to(shop / "out")).read_bytes()
    assert KEY not in (shop / "asked" / "recipe.yaml").read_text()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{table: a, label: {teacher: api}}", "no model: give the name of the teacher's model"),
        ("{table: a, label: {model: m}}", "model: of a teacher behind an API, and the teacher is not given"),
        ("{table: a, label: {teacher: sim}}", "label.teacher: sim labels the simulator's frames"),
        ("{frames: a, label: {teacher: api, model: m, key_env: sk-secret-1}}", "expected the name of an environment"),
        ("{frames: a, label: {teacher: api, model: m, base_url: 'http://u:secret@a'}}", "holds a name, password or"),
        ("{frames: a, label: {teacher: api, model: m, budget_usd: 1}}", "needs the prices per million tokens"),
        ("{frames: a, label: {teacher: api, model: m, modell: n}}", "did you mean 'model'"),
    ],
)
def test_a_recipes_teacher_is_checked_as_the_command_is(tmp_path: Path, data: str, message: str) -> None:
    (tmp_path / "r.yaml").write_text(f"name: x\ndata: {data}\n")
    with pytest.raises(LinesideError, match=message) as told:
        load_recipe(tmp_path / "r.yaml")
    assert "secret" not in str(told.value)


def test_an_api_needs_no_task_file_in_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("name: x\ndata: {table: a, label: {teacher: api, model: m}}\n")
    assert load_recipe(tmp_path / "r.yaml").data.teacher == "api"
