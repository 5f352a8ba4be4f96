"""The published schema is the model's, files round-trip, and bad files are refused by file, line and field."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from lineside.errors import LinesideError
from lineside.judgement.captions import CaptionMatching
from lineside.judgement.latency import LatencyModel
from lineside.judgement.schema import (
    Decoding,
    Judged,
    answer_schema,
    json_schema,
    read_evaluation,
    read_rows,
    rows_path,
    write_evaluation,
)
from lineside.judgement.summary import summarise
from tests.judgement.conftest import row, wrong

NAMED_BY_THE_ISSUE = {
    *("stage", "split", "mode", "n", "exact", "interval", "families", "tasks", "blind", "classifier"),
    *("valid_trace_rate", "empty", "truncated", "missing", "answer_tokens", "latency_ms", "within_budget"),
}


def published() -> dict[str, Any]:
    return json.loads(resources.files("lineside").joinpath("evaluation.schema.json").read_text())


@pytest.fixture
def written(tmp_path: Path, summary_arguments: dict[str, Any]) -> Path:
    rows = [row("a"), wrong("b", task="count"), row("c", answer="\u2028<b>\n")]
    captions = CaptionMatching(n=3, share=2 / 3, interval=(0.2, 0.9), attributes={"colour": 1.0})
    measured = LatencyModel(base_ms=10.0, per_token_ms=9.0, measured=4, p50_ms=130.0)
    evaluation = summarise(rows, **{**summary_arguments, "captions": captions, "latency": measured})
    return write_evaluation(tmp_path, evaluation, rows)


def test_published_schema_is_the_models() -> None:
    # After a change: json.dumps(json_schema(), indent=2) and a newline go into src/lineside/evaluation.schema.json,
    # and the same of answer_schema() into answer.schema.json.
    assert published() == json_schema()
    assert json.loads(resources.files("lineside").joinpath("answer.schema.json").read_text()) == answer_schema()


def test_what_is_written_is_valid_and_holds_the_named_fields(written: Path) -> None:
    data = json.loads(written.read_text())
    jsonschema.validate(data, published(), cls=jsonschema.Draft202012Validator)
    assert data.keys() >= NAMED_BY_THE_ISSUE
    assert written.name == "sft-heldout-think.json"


def test_the_schema_refuses_percentages_missing_and_unknown_fields(written: Path) -> None:
    data = json.loads(written.read_text())
    for broken in ({**data, "exact": 67.0}, {**data, "more": 1}, {k: v for k, v in data.items() if k != "blind"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, published(), cls=jsonschema.Draft202012Validator)


def test_round_trip(written: Path) -> None:
    assert read_evaluation(written).model_dump(mode="json") == json.loads(written.read_text())
    rows = list(read_rows(rows_path(written)))
    assert [r.id for r in rows] == ["a", "b", "c"]
    assert rows[2].answer == "\u2028<b>\n"
    assert not list(written.parent.glob(".*"))  # no temporary file stays


def test_an_evaluation_tells_what_wrote_its_answers(written: Path) -> None:
    found = read_evaluation(written)
    assert found.judged == Judged(engine="local", weights="full", dtype=None, thinking=True)
    narrow = Decoding(temperature=0.0, max_new_tokens=96, dtype="bfloat16", engine="openvino", weights="int8")
    other = found.model_copy(update={"decoding": narrow, "mode": "fast"})
    assert found.name == "sft-heldout-think" and other.name == "sft-heldout-fast-openvino-int8"  # it replaces no other
    assert other.judged == Judged(engine="openvino", weights="int8", dtype="bfloat16", thinking=False)


def test_bad_files_are_named(written: Path, tmp_path: Path) -> None:
    with pytest.raises(LinesideError, match=r"nothing\.json: no such file"):
        read_evaluation(tmp_path / "nothing.json")
    data = json.loads(written.read_text())
    written.write_text(json.dumps({**data, "exact": 67.0}))
    with pytest.raises(LinesideError, match=r"think\.json: not an evaluation .* exact: .*less than or equal to 1"):
        read_evaluation(written)
    written.write_text("{")
    with pytest.raises(LinesideError, match=r"think\.json: not an evaluation"):
        read_evaluation(written)
    rows = rows_path(written)
    rows.write_text(rows.read_text() + '{"id": 3}\n')
    with pytest.raises(LinesideError, match=r"rows\.jsonl, line 4: .*"):
        list(read_rows(rows))


def test_a_name_cannot_leave_the_folder(summary_arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="stage"):
        summarise([row("a")], **{**summary_arguments, "stage": "../sft"})


def test_an_evaluation_of_version_1_is_read_without_its_table_of_false_alarms(written: Path) -> None:
    data = json.loads(written.read_text())
    old = {"n": 3, "exact": 0.5, "normal": "no", "normal_share": 0.9, "false_alarms_per_thousand": 262.0}
    written.write_text(json.dumps({**data, "schema_version": 1, "prevalence": {"kitting/kit_complete": old}}))
    found = read_evaluation(written)
    assert found.prevalence == {} and found.exact == data["exact"]
    assert found.latency is found.latency_ms is found.within_budget is None
    assert "not measured" in found.latency_note
