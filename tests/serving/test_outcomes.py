"""Outcomes: what is kept, for how long, how the truth is judged, and that it can be deleted."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.requests import Request

from lineside.errors import LinesideError
from lineside.images import image_key
from lineside.judgement.schema import TypedAnswer
from lineside.judgement.typed import Form
from lineside.serving.front import Front, FrontSettings
from lineside.serving.outcomes import About, Outcomes, judge_truth
from lineside.types import Image
from tests.conftest import picture
from tests.serving.conftest import EMPTY, Served, turn, url

COUNT, WEIGHT = Form(kind="number", resolution=1.0), Form(kind="number", unit="g", resolution=10.0)


def typed(text: str = "3") -> TypedAnswer:
    return TypedAnswer(
        value=3, unit=None, confidence=0.9, decision="act", trace=None, ms=1.0, kind="number", task="a/b", text=text,
        because="x",
    )  # fmt: skip


def kept(path: Path, **changes: Any) -> tuple[Outcomes, list[float]]:
    now = [1_000_000.0]
    options: dict[str, Any] = {"days": 30.0, "max_bytes": 1 << 30, "frames": True, **changes}
    return Outcomes(path, clock=lambda: now[0], **options), now


def keep(outcomes: Outcomes, name: str, *frames: bytes) -> bool:
    return outcomes.keep(name, frames or (b"frame",), "how many?", typed(), model="m", version="v")


@pytest.mark.parametrize(
    ("answer", "truth", "form", "verdict"),
    [
        ("3", "3", COUNT, "right"),
        ("3", "4", COUNT, "wrong"),
        (None, "4", COUNT, "wrong"),
        ("3", "three", COUNT, None),
        ("0.12 kg", "120 g", WEIGHT, "right"),
        ("120", "130", WEIGHT, "wrong"),
        ("120", "0.1249 kg", WEIGHT, "right"),  # a scale does not round to the resolution of the question
        ("120", "120", Form(kind="number", unit="g"), "unknown"),  # of a checkpoint before resolutions were kept
        ("350", "-10", Form(kind="number", unit="degrees", resolution=10.0, period=360.0), "right"),
        ("Yes.", "yes", Form(kind="choice", options=("yes", "no")), "right"),
        ("yes", "perhaps", Form(kind="choice", options=("yes", "no")), None),
        ("dented", "Dented", Form(kind="choice"), "right"),  # options that differ by frame
        ("2, 1", "1, 2", Form(kind="set", options=("1", "2", "3")), "right"),
        ("red can", "red  can", None, "right"),
        ("0.52, 0.5", "0.5, 0.5", Form(kind="point"), "right"),  # within the disc of a person's point
        ("0.6, 0.5", "0.5, 0.5", Form(kind="point"), "wrong"),
        ("0.5, 0.5", "here", Form(kind="point"), None),
    ],
)
def test_the_verifier_judges(answer: str | None, truth: str, form: Form | None, verdict: str | None) -> None:
    assert judge_truth(answer, truth, form) == verdict


def test_answers_are_kept_told_and_deleted(tmp_path: Path) -> None:
    outcomes, _ = kept(tmp_path / "deep" / "outcomes.sqlite")
    keep(outcomes, "a-0", b"one", b"two")
    keep(outcomes, "b-0", b"two")
    found = outcomes.find("a-0")
    assert found is not None and found["answer"]["text"] == "3" and found["truth"] is None
    assert found["frame"] == f"{image_key(b'one')},{image_key(b'two')}"
    outcomes.tell("a-0", "4", "wrong")
    assert {row["id"]: row["verdict"] for row in outcomes.last(9)} == {"a-0": "wrong", "b-0": None}
    assert outcomes.delete("a-0") and not outcomes.delete("a-0") and outcomes.find("a-0") is None
    outcomes.close()
    with sqlite3.connect(tmp_path / "deep" / "outcomes.sqlite") as other:
        assert other.execute("SELECT data FROM frames").fetchall() == [(b"two",)]  # another answer is about it
    again, _ = kept(tmp_path / "deep" / "outcomes.sqlite")
    assert again.find("b-0") is not None


def test_a_file_of_before_gets_the_column_that_came_later(tmp_path: Path) -> None:
    outcomes, _ = kept(tmp_path / "o")
    keep(outcomes, "a", b"one")
    outcomes.close()
    with sqlite3.connect(tmp_path / "o") as old:  # as an earlier version made it
        old.execute("DROP INDEX answers_beside")
        old.execute("ALTER TABLE answers DROP COLUMN about")
    again, _ = kept(tmp_path / "o")
    found = again.find("a")
    assert found is not None and found["answer"]["text"] == "3" and not found["about"]
    keep(again, "b", b"two")
    assert {row["id"] for row in again.last(9)} == {"a", "b"}


def test_what_an_answer_is_about_is_kept_and_its_references_with_it(tmp_path: Path) -> None:
    outcomes, _ = kept(tmp_path / "o")
    about = About("c1", "top", ("4711",), None, None, (Image(b"ref", "reference", name="red can"),), COUNT)
    outcomes.keep("a", [b"frame"], "how many?", typed(), model="m", version="v", about=about)
    outcomes.keep("b", [b"other"], "how many?", typed(), model="m", version="v")
    found = outcomes.find("a")
    assert found is not None and found["about"] == about.to_json()
    assert found["about"]["beside"] == [{"key": image_key(b"ref"), "role": "reference", "name": "red can", "text": ""}]
    assert Form.model_validate(found["about"]["form"], strict=False) == COUNT
    outcomes.delete("b")
    with sqlite3.connect(tmp_path / "o") as other:
        assert {data for (data,) in other.execute("SELECT data FROM frames")} == {b"frame", b"ref"}


def test_a_file_of_before_is_carried_on(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "o") as old:
        old.execute(
            "CREATE TABLE answers (id TEXT PRIMARY KEY, time REAL, model TEXT, version TEXT, frame TEXT, "
            "question TEXT, answer TEXT, truth TEXT, verdict TEXT, told REAL)"
        )
        row = ("a", 999_999.0, "m", "v", "", "how many?", typed().model_dump_json())
        old.execute("INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, NULL, NULL, NULL)", row)
    outcomes, _ = kept(tmp_path / "o")
    keep(outcomes, "b")
    outcomes.tell("a", None, "failed")
    assert {row["id"]: (row["verdict"], row["truth"]) for row in outcomes.last(9)} == {
        "a": ("failed", None), "b": (None, None),
    }  # fmt: skip


def test_old_answers_go(tmp_path: Path) -> None:
    outcomes, now = kept(tmp_path / "o", days=2.0)
    keep(outcomes, "old")
    now[0] += 2 * 86_400 + 1
    keep(outcomes, "new", b"new")
    outcomes.prune()
    assert [row["id"] for row in outcomes.last(9)] == ["new"]


def test_the_file_stays_small_and_the_newest_stay(tmp_path: Path) -> None:
    outcomes, now = kept(tmp_path / "o", max_bytes=300_000)
    for number in range(200):
        now[0] += 1
        keep(outcomes, f"{number}", bytes([number]) * 5_000)
    outcomes.prune()
    found = [int(row["id"]) for row in outcomes.last(500)]
    assert (tmp_path / "o").stat().st_size <= 300_000 + (1 << 16)
    assert found == list(range(199, 199 - len(found), -1)) and 20 < len(found) < 60


async def asked(
    front: Front, handler: Any, method: str, body: dict[str, Any] | None = None
) -> tuple[int, dict[str, Any]]:
    """The status and the reply of a handler to a request about the answer "a"."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": json.dumps(body).encode()}

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": method, "path": "/", "headers": headers, "path_params": {"name": "a"}}
    told = await front.guard(handler)(Request(scope | {"client": None}, receive))
    return told.status_code, json.loads(bytes(told.body))


def test_without_frames_no_picture_is_kept(tmp_path: Path) -> None:
    outcomes, _ = kept(tmp_path / "o", frames=False)
    keep(outcomes, "a")
    outcomes.close()
    with sqlite3.connect(tmp_path / "o") as other:
        assert other.execute("SELECT count(*) FROM frames").fetchone() == (0,)


def test_a_full_disk_loses_answers_and_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    models: Any = SimpleNamespace(by_name={})
    front = Front(models, FrontSettings(outcomes=tmp_path / "o", outcome_frames=True))
    outcomes = front.outcomes
    assert outcomes is not None and keep(outcomes, "a", b"a")
    (pages,) = outcomes._db.execute("PRAGMA page_count").fetchone()
    outcomes._db.execute(f"PRAGMA max_page_count = {pages}")
    assert not keep(outcomes, "b", b"b" * 50_000) and not keep(outcomes, "c", b"c" * 50_000)
    assert capfd.readouterr().err.count("answers are not kept (database or disk is full)") == 1
    assert [row["id"] for row in outcomes.last(9)] == ["a"]  # not without its picture

    async def status(handler: Any, method: str, body: dict[str, Any] | None = None) -> tuple[int, str]:
        code, reply = await asked(front, handler, method, body)
        return code, reply.get("error", {}).get("code", "")

    long = {"id": "a", "truth": "x" * 1000}
    outcomes._db.execute("PRAGMA query_only = ON")  # as on a disk that is full to the last page
    assert asyncio.run(status(front.tell_outcome, "POST", long)) == (503, "outcomes_unavailable")
    assert asyncio.run(status(front.delete_outcome, "DELETE")) == (503, "outcomes_unavailable")
    assert asyncio.run(status(front.last_outcomes, "GET")) == (200, "")
    outcomes._db.execute("PRAGMA query_only = OFF")
    outcomes._db.execute("PRAGMA max_page_count = 1000000")
    assert keep(outcomes, "d") and asyncio.run(status(front.delete_outcome, "DELETE")) == (200, "")


def test_the_truth_is_compared_as_when_it_was_answered(tmp_path: Path) -> None:
    """Also if the model has left since then, or compares in another way now."""
    front = Front(SimpleNamespace(by_name={}), FrontSettings(outcomes=tmp_path / "o"))  # pyright: ignore
    assert front.outcomes is not None
    front.outcomes.keep("a", [b"x"], "how heavy?", typed("120 g"), model="m", version="v", about=About(form=WEIGHT))
    front.outcomes.keep("b", [b"x"], "how heavy?", typed("120 g"), model="m", version="v")
    found = [front.outcomes.find(name) for name in "ab"]
    assert [one and front._form(one) for one in found] == [WEIGHT, None]
    assert judge_truth("120 g", "0.12 kg", WEIGHT) == "right" != judge_truth("120 g", "0.12 kg", None)


def test_a_decimal_comma_is_kept_as_a_point_and_a_number_with_two_meanings_is_refused(tmp_path: Path) -> None:
    front = Front(SimpleNamespace(by_name={}), FrontSettings(outcomes=tmp_path / "o"))  # pyright: ignore
    assert front.outcomes is not None
    front.outcomes.keep("a", [b"x"], "how heavy?", typed("120 g"), model="m", version="v", about=About(form=WEIGHT))

    def told(truth: str) -> tuple[int, dict[str, Any]]:
        return asyncio.run(asked(front, front.tell_outcome, "POST", {"id": "a", "truth": truth}))

    for truth, point in {"0,12 kg": "0.12 kg", "1.234,5 g": "1234.5 g", "1.322 kg": "1.322 kg"}.items():
        status, reply = told(truth)
        found = front.outcomes.find("a")
        assert status == 200 and found is not None and found["truth"] == reply["truth"] == point
        assert reply["verdict"] == ("right" if truth == "0,12 kg" else "wrong")
    status, reply = told("1,322 kg")
    assert status == 400 and "'1,322', which could be with thousands or with decimals" in reply["error"]["message"]
    assert (front.outcomes.find("a") or {})["truth"] == "1.322 kg"


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "o").write_text("this is no database, but a text of some length")
    with pytest.raises(LinesideError, match="cannot be used for outcomes"):
        kept(tmp_path / "o")


def test_the_truth_over_http(server: Served) -> None:
    asked = {"lineside": {"task": EMPTY, "cell": "c1", "skus": ["4711"]}}
    found = server.openai.chat.completions.create(
        model="tiny", messages=turn("Is the left bin empty?", url(6)), extra_body=asked
    )
    own = found.choices[0].model_extra["lineside"]
    assert own["outcome_id"] == f"{found.id}-0"
    told = {"id": own["outcome_id"], "truth": "yes"}
    with server.http() as client:

        def judged(verdict: str) -> float:
            begin = f'lineside:verdict_total{{model_name="tiny",task="{EMPTY}",verdict="{verdict}"}} '
            lines = client.get("metrics").text.splitlines()
            return sum(float(line.removeprefix(begin)) for line in lines if line.startswith(begin))

        def drawn() -> int:
            points = client.get("v1/timeline").json()["tiny"]["points"]
            return sum(point["right"] + point["wrong"] for point in points)

        before = judged("right"), judged("wrong"), drawn()
        answer = client.post("v1/outcomes", json=told)
        expected = "right" if own["answer"]["text"] == "yes" else "wrong"
        assert answer.status_code == 200 and answer.json()["verdict"] == expected
        listed = client.get("v1/outcomes").json()["data"][0]
        assert listed["truth"] == "yes" and listed["frame"] == image_key(picture(6))
        assert listed["about"]["cell"] == "c1" and listed["about"]["skus"] == ["4711"]
        right = expected == "right"
        assert (judged("right"), judged("wrong"), drawn()) == (
            before[0] + right,
            before[1] + (not right),
            before[2] + 1,
        )
        assert client.post("v1/outcomes", json={**told, "truth": "perhaps"}).status_code == 400
        assert client.post("v1/outcomes", json={**told, "verdict": "failed"}).status_code == 400  # one of the two
        told_verdict = client.post("v1/outcomes", json={"id": told["id"], "verdict": "failed"}).json()
        assert (told_verdict["verdict"], told_verdict["truth"]) == ("failed", None)
        assert client.delete(f"v1/outcomes/{own['outcome_id']}").json()["deleted"]
        for gone in (client.delete(f"v1/outcomes/{own['outcome_id']}"), client.post("v1/outcomes", json=told)):
            assert gone.status_code == 404 and gone.json()["error"]["code"] == "unknown_outcome"
