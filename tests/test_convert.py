"""convert: a round trip changes nothing, foreign rows are read as they are meant, bad ones are refused by number."""

from __future__ import annotations

import base64
import errno
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as Pil

from lineside.convert import convert
from lineside.data.conversations import FORMATS
from lineside.data.rowfiles import json_rows
from lineside.data.store import read_samples, write_samples
from lineside.errors import LinesideError
from lineside.files import hold
from lineside.types import Image, Mask, Meta, Sample, Source, Target


def png(number: int) -> bytes:
    out = io.BytesIO()
    Pil.new("RGB", (8, 8), (number, 7, 7)).save(out, "PNG")
    return out.getvalue()


def sample(number: int, kind: str = "qa", **changes: Any) -> Sample:
    made = Sample(
        id=f"f{number}/{kind}",
        kind=kind,  # type: ignore[arg-type]
        images=(Image(png(number), "frame", f"cam/{number}.png"),),
        family="picking",
        task="count",
        question="" if kind == "caption" else "How many cans?\nCount \u00e5ll.",
        trace="one can left; so 1" if kind == "qa" else None,
        answer=None if kind == "prompt" else "1",
        target=None if kind == "caption" else Target("number", "sim", value=1.0, tolerance=2.0, unit="mm"),
        split="train",
        meta=Meta(f"s{number}", "c1", "top", "2026-01-01", 3, ("a", "b"), {"facts": ["x"], "weight": 1.5, "n": None}),
        source=Source("sim", "abc", "2026-01-02"),
    )
    return replace(made, **changes)


OURS = [
    sample(0, "caption"),
    sample(1, "caption", split="heldout", answer='Two "cans", <image> and </think> in words.'),
    sample(2),
    sample(2, id="f2/again", trace=None, question="Is it full?"),
    sample(3, trace=""),
    sample(4, images=(Image(png(4)), Image(png(5), "reference", "r.png")), question="<image> or <think>?"),
    sample(8, answer="<think>"),
    sample(5, target=Target("point", "record", x=0.5, y=0.25, mask=Mask(2, 2, (1, 2, 1))), answer="0.50, 0.25"),
    sample(6, "prompt"),
    sample(7, "qa", split="shifted"),
]  # fmt: skip


def in_order(folder: Path) -> list[Sample]:
    return list(read_samples(folder))


def data_file(folder: Path) -> Path:
    (found,) = folder.glob("data.*")
    return found


@pytest.mark.parametrize("form", FORMATS)
def test_ours_there_and_back_is_the_same(tmp_path: Path, form: str) -> None:
    write_samples(tmp_path / "ours", OURS)
    there = convert(tmp_path / "ours", tmp_path / "there", to=form)
    assert (there.written, there.refused) == (len(OURS), 0)
    back = convert(data_file(tmp_path / "there"), tmp_path / "back", from_=form)
    assert (back.rows, back.written, back.refused) == (len(OURS), len(OURS), 0)
    assert in_order(tmp_path / "back") == in_order(tmp_path / "ours")
    again = convert(tmp_path / "back", tmp_path / "again", to=form)
    assert again.written == len(OURS)
    if form != "parquet":
        assert data_file(tmp_path / "again").read_bytes() == data_file(tmp_path / "there").read_bytes()


def say(*texts: str, who: tuple[str, str] = ("human", "gpt"), keys: tuple[str, str] = ("from", "value")) -> list[dict]:
    return [{keys[0]: who[n % 2], keys[1]: text} for n, text in enumerate(texts)]


def parts(*pieces: str) -> list[dict]:
    return [{"type": "image"} if piece == "<image>" else {"type": "text", "text": piece} for piece in pieces]


FOREIGN: dict[str, list[dict]] = {
    "llava": [
        {"id": "a", "image": "x/0.png",
         "conversations": say("<image>\nWhat is it?", "A can.", "And its colour?", "Red."),
         "licence": {"by": "someone", "year": 2023}},
        {"id": 7, "image": ["1.png", "2.png"], "conversations": say("Here <image> and <image>: same?", "No.")},
        {"id": "c", "image": "x/0.png", "conversations": say("<image>", "A red can on a table.")},
    ],
    "sharegpt": [
        {"conversations": say("<image>Look.", "Yes.", "Now <image> too?", "<think>two cans lie there</think>Both."),
         "images": ["1.png", "2.png"], "system": "Be brief."},
        {"conversations": say("What is it?", "A can.", who=("user", "assistant")), "images": ["1.png"], "n": 1.5},
    ],
    "messages": [
        {"images": ["1.png"], "messages": [
            {"role": "user", "content": parts("<image>", "What?")}, {"role": "assistant", "content": "A can."}]},
        {"images": ["2.png"],
         "messages": say("<image>What?", "A can.", who=("user", "assistant"), keys=("role", "content"))},
    ],
    "jsonl": [
        {"image": "1.png", "question": "What?", "answer": "A can.", "score": 7.0},
        {"images": ["1.png", "2.png"], "question": "Same?", "trace": "one is red; one is blue", "answer": "No."},
    ],
    "messages of others": [
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x/0.png"}}, "Count."]},
                      {"role": "assistant", "reasoning_content": "one left, one right", "content": "2", "weight": 1}]},
        {"images": ["1.png"], "texts": [{"user": "What?", "assistant": "<think>red</think><answer>A can.</answer>"}]},
        {"images": ["1.png"], "messages": say("<|image_pad|>What?", "Nine.", "Again.", "2", who=("user", "assistant"),
                                              keys=("role", "content"))},
    ],
    "rows of others": [
        {"images": ["1.png"], "problem": "<image>How many?", "answer": 0, "id": 3},
        {"Image": ".\\x\\0.png", "instruction": "Count.", "input": "", "output": "2"},
        {"image": {"path": "2.png", "bytes": None}, "prompt": [{"role": "user", "content": "<image_1>How many?"}],
         "reward_model": {"ground_truth": 2.5}, "data_source": "x"},
        {"image": "2.png", "caption": "A can."},
    ],
}  # fmt: skip


def foreign(tmp_path: Path, form: str, rows: list[Any] | None = None) -> Path:
    rows = FOREIGN[form] if rows is None else rows
    folder = tmp_path / "foreign"
    (folder / "x").mkdir(parents=True)
    for number, name in enumerate(("x/0.png", "1.png", "2.png")):
        (folder / name).write_bytes(png(number))
    path = folder / ("rows.json" if form in ("llava", "sharegpt") else "rows.jsonl")
    text = json.dumps(rows, indent=1) if path.suffix == ".json" else "\n".join(map(json.dumps, rows))
    path.write_text(text)
    return path


@pytest.mark.parametrize("form", FOREIGN)
def test_foreign_there_and_back_is_the_same(tmp_path: Path, form: str) -> None:
    path = foreign(tmp_path, form)
    convert(path, tmp_path / "ours")  # each row tells its format
    to = {"messages of others": "messages", "rows of others": "jsonl"}.get(form, form)
    account = convert(tmp_path / "ours", tmp_path / "back", to=to)
    assert account.written == len(FOREIGN[form])
    again = [row for _, row in json_rows(data_file(tmp_path / "back"))]
    assert json.dumps(again) == json.dumps(FOREIGN[form])  # to the byte: 7.0 stays 7.0
    for name in ("x/0.png", "1.png", "2.png"):
        if name in json.dumps(FOREIGN[form]):
            assert (tmp_path / "back" / name).read_bytes() == (path.parent / name).read_bytes()


def test_every_assistant_turn_is_a_sample_that_knows_what_came_before(tmp_path: Path) -> None:
    convert(foreign(tmp_path, "llava"), tmp_path / "ours")
    found = in_order(tmp_path / "ours")
    assert [(s.kind, s.question, s.answer, len(s.images)) for s in found] == [
        ("caption", "", "A red can on a table.", 1),
        ("qa", "What is it?", "A can.", 1),
        ("qa", "What is it?\nA can.\nAnd its colour?", "Red.", 1),
        ("qa", "Here picture 1 and picture 2: same?", "No.", 2),
    ]
    assert found[1].target == Target("exact", "teacher", accepted=("A can.",))
    assert {s.split for s in found} == {"train"}
    assert found[1].images[0] == Image(png(0), "frame", "x/0.png")


def test_pictures_that_come_later_and_traces_and_a_system_prompt(tmp_path: Path) -> None:
    convert(foreign(tmp_path, "sharegpt"), tmp_path / "ours")
    first, second, third = in_order(tmp_path / "ours")
    assert (first.question, [i.path for i in first.images]) == ("Be brief.\nLook.", ["1.png"])
    assert second.question == "Be brief.\nLook.\nYes.\nNow picture 2 too?"
    assert [i.path for i in second.images] == ["1.png", "2.png"]
    assert (second.trace, second.answer) == ("two cans lie there", "Both.")
    assert third.question == "What is it?"


def test_rows_of_one_turn_can_be_captions(tmp_path: Path) -> None:
    rows = [{"id": "a", "image": "1.png", "conversations": say("<image>\nDescribe it.", "A can.")}]
    convert(foreign(tmp_path, "llava", rows), tmp_path / "ours", captions=True, family="shop")
    (caption,) = in_order(tmp_path / "ours")
    assert (caption.kind, caption.question, caption.answer, caption.family) == ("caption", "", "A can.", "shop")
    convert(tmp_path / "ours", tmp_path / "back", to="llava")
    assert [row for _, row in json_rows(data_file(tmp_path / "back"))] == rows


def test_from_one_foreign_format_to_another_all_turns_stay_together(tmp_path: Path) -> None:
    convert(foreign(tmp_path, "sharegpt"), tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "there", to="messages")
    first, _ = [row for _, row in json_rows(data_file(tmp_path / "there"))]
    assert [m["role"] for m in first["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    assert first["messages"][3]["content"] == parts("Now ", "<image>", " too?")
    assert first["images"] == ["1.png", "2.png"]
    convert(tmp_path / "ours", tmp_path / "plain", to="jsonl")
    assert [row["question"] for _, row in json_rows(data_file(tmp_path / "plain"))][1].endswith("Now picture 2 too?")


BAD = {
    "no object": (3, "not a JSON object"),
    "no picture": ({"conversations": say("What?", "A can.")}, "no picture"),
    "no answer": ({"image": "1.png", "conversations": say("<image>What?")}, "a question without an answer"),
    "assistant first": ({"image": "1.png", "conversations": say("a", "b", who=("gpt", "human"))}, "must alternate"),
    "a tool": ({"image": "1.png", "conversations": say("a", "b", who=("human", "tool"))}, "a turn of 'tool'"),
    "not text": (
        {"image": "1.png", "conversations": [{"from": "human", "value": 3}]},
        "the content is a number: expected text",
    ),
    "places": (
        {"image": "1.png", "conversations": say("<image><image>?", "b")},
        "<image> occurs 2 times, for 1 pictures",
    ),
    "too early": (
        {"image": "1.png", "conversations": say("a?", "b", "<image>c?", "d")},
        "an answer before any picture",
    ),
    "outside": ({"image": "../secret.png", "conversations": say("a?", "b")}, "must lie inside"),
    "absolute": ({"image": "/etc/passwd", "conversations": say("a?", "b")}, "must lie inside"),
    "on the net": ({"image": "https://x.org/a.png", "conversations": say("a?", "b")}, "download it first"),
    "gone": ({"image": "9.png", "conversations": say("a?", "b")}, "no picture '9.png' in"),
    "no image": ({"image": "rows.json", "conversations": say("a?", "b")}, "not an image"),
    "empty answer": ({"image": "1.png", "conversations": say("a?", " ")}, "no supervised tokens"),
    "endless answer": ({"image": "1.png", "conversations": say("a?", "b" * 5000)}, "turn 1: "),
    "broken key": ({"image": "1.png", "conversations": say("a?", "b"), "lineside": "{"}, "the key 'lineside'"),
    "surrogate": ({"image": "1.png", "conversations": say("a?", "\ud800")}, "not Unicode"),
}


def test_bad_rows_are_refused_by_number_and_the_rest_goes_on(tmp_path: Path) -> None:
    good = FOREIGN["llava"][2]
    rows = [row for bad, _ in BAD.values() for row in (bad, good)]
    account = convert(foreign(tmp_path, "llava", rows), tmp_path / "ours", from_="llava")
    assert (account.rows, account.written, account.refused) == (2 * len(BAD), len(BAD), len(BAD))
    told = [json.loads(line) for line in (tmp_path / "ours" / "refused.jsonl").read_text().splitlines()]
    assert [t["row"] for t in told] == [2 * n + 1 for n in range(len(BAD))]
    for (name, (_, reason)), line in zip(BAD.items(), told, strict=True):
        assert reason in line["reason"], name


def test_a_row_in_another_format_is_what_was_understood(tmp_path: Path) -> None:
    """Marks, tags, flags and fields of other tools are written as ours: read again, they give the same samples."""
    rows = FOREIGN["messages of others"] + FOREIGN["rows of others"][:3]
    rows[2]["messages"][1]["loss"] = False
    convert(foreign(tmp_path, "jsonl", rows), tmp_path / "ours")
    for form in ("llava", "sharegpt", "messages", "parquet"):
        convert(tmp_path / "ours", tmp_path / form, to=form)
        convert(data_file(tmp_path / form), tmp_path / f"{form}-again")

    def texts(folder: str) -> list[tuple]:
        return [(s.question, s.trace, s.answer, len(s.images)) for s in in_order(tmp_path / folder)]

    assert texts("ours")[2] == ("What?\nNine.\nAgain.", None, "2", 1)
    for form in ("llava", "sharegpt", "messages", "parquet"):
        assert texts(f"{form}-again") == texts("ours"), form
    turns = json.loads(data_file(tmp_path / "llava").read_text())[2]["conversations"]
    assert [turn["value"] for turn in turns] == ["<image>What?", "Nine.", "Again.", "2"]
    assert turns[1]["loss"] is False


def test_pictures_within_rows_come_out_as_files(tmp_path: Path) -> None:
    url = "data:image/png;base64," + base64.b64encode(png(3)).decode()
    part = {"type": "image_url", "image_url": {"url": url}}
    user = {"role": "user", "content": [part, {"type": "text", "text": "What?"}]}
    rows = [{"messages": [user, {"role": "assistant", "content": "A can."}]}]
    convert(foreign(tmp_path, "messages", rows), tmp_path / "ours")
    (sample,) = in_order(tmp_path / "ours")
    assert sample.images[0].bytes == png(3) and sample.meta.scene == sample.images[0].path
    convert(tmp_path / "ours", tmp_path / "same", to="messages")
    assert [row for _, row in json_rows(data_file(tmp_path / "same"))] == rows
    convert(tmp_path / "ours", tmp_path / "llava", to="llava")
    ((_, row),) = json_rows(data_file(tmp_path / "llava"))
    assert (tmp_path / "llava" / row["image"]).read_bytes() == png(3)


def test_parquet_of_plain_rows(tmp_path: Path) -> None:
    """As EasyR1 and verl write it: bytes without a path, and a path that all rows share."""
    rows = [
        {"images": [{"bytes": png(n), "path": path}], "problem": "<image>How many?", "answer": str(n)}
        for n, path in enumerate((None, "image.png", "image.png"))
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    assert convert(tmp_path / "x.parquet", tmp_path / "ours").written == 3
    found = in_order(tmp_path / "ours")
    assert [(s.question, s.answer) for s in found] == [("How many?", str(n)) for n in range(3)]
    assert len({s.meta.scene for s in found}) == 3
    convert(tmp_path / "ours", tmp_path / "plain", to="jsonl")
    again = [row for _, row in json_rows(data_file(tmp_path / "plain"))]
    assert [(tmp_path / "plain" / row["images"][0]).read_bytes() for row in again] == [png(n) for n in range(3)]


def test_parquet_of_classes_gives_their_names(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "question": datasets.Value("string"),
            "answer": datasets.ClassLabel(names=["can", "box"]),
        }
    )
    columns = {"image": [{"bytes": png(n), "path": None} for n in range(3)], "question": ["What?"] * 3}
    made = datasets.Dataset.from_dict({**columns, "answer": [1, 0, -1]}, features=features)
    made.to_parquet(tmp_path / "x.parquet")
    account = convert(tmp_path / "x.parquet", tmp_path / "ours")
    assert (account.written, account.refused) == (2, 1)  # the third has no answer
    assert [s.answer for s in in_order(tmp_path / "ours")] == ["box", "can"]


def test_a_float_column_with_a_gap_is_read_as_it_was_meant(tmp_path: Path) -> None:
    """As pandas writes integers of which one is missing."""
    rows = pa.table({"image": ["1.png"] * 3, "question": ["How many?"] * 3, "answer": [2.0, float("nan"), 2.5]})
    pq.write_table(rows, foreign(tmp_path, "jsonl").parent / "x.parquet")
    account = convert(tmp_path / "foreign" / "x.parquet", tmp_path / "ours")
    assert (account.written, account.refused) == (2, 1)
    assert [s.answer for s in in_order(tmp_path / "ours")] == ["2", "2.5"]


def test_what_was_read_and_what_is_lacking_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"image": "1.png", "question": "What?" * 9, "answer": "A can.", "score": 1},
        {"image": "1.png", "answer": "A"},
    ]
    account = convert(foreign(tmp_path, "jsonl", rows), tmp_path / "ours")
    assert (account.rows, account.written, account.refused, account.unread) == (2, 1, 1, {"score": 1})
    told = " ".join(capsys.readouterr().err.split())
    for words in (
        "2 rows, 1 qa -> 1 written to",
        "1 refused",
        "row 2: an answer without a question; its keys are image, answer. If its rows are captions, give --captions",
        "these keys (rows) are not used: score (1)",
        "the longest sample, jsonl-0000001/0, has 51 characters",
        "this data has no captions for align, no prompts for rlvr, no suite for evaluate",
        "mix: [{samples: ",
    ):
        assert words in told, words
    write_samples(tmp_path / "own", OURS)
    convert(tmp_path / "own", tmp_path / "there", to="llava")
    convert(data_file(tmp_path / "there"), tmp_path / "back")
    assert "evaluate" not in capsys.readouterr().err  # these have all that is needed


def test_a_run_that_failed_leaves_nothing_and_can_be_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = foreign(tmp_path, "llava"), tmp_path / "out"
    convert(path, tmp_path / "ours")

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("lineside.data.shards._create", full)
        with pytest.raises(LinesideError, match="disk is full"):
            convert(path, out)
        assert not out.exists()
        patch.setattr("lineside.data.rowfiles.json.dumps", full)
        with pytest.raises(LinesideError, match="disk is full"):
            convert(tmp_path / "ours", out, to="llava")
        assert not out.exists()
    with pytest.raises(LinesideError, match="3 of 3 rows refused"):
        convert(path, out, images=tmp_path)
    assert [p.name for p in out.iterdir()] == ["refused.jsonl"]
    (out / ".unfinished").mkdir()
    (out / ".unfinished" / "half").write_text("of a process that was killed")
    assert convert(path, out).written == 4
    assert sorted(p.name for p in out.iterdir()) == [
        "caption-train-00000.parquet", "qa-train-00000.parquet", "refused.jsonl"]  # fmt: skip
    with pytest.raises(LinesideError, match="exists: give a new folder"):
        convert(path, out)


def test_one_process_at_a_time_converts_into_a_folder(tmp_path: Path) -> None:
    path, out = foreign(tmp_path, "llava"), tmp_path / "out"
    with hold(out):
        (out / ".unfinished").mkdir()
        with pytest.raises(LinesideError, match="is in use by another process"):
            convert(path, out)
        assert (out / ".unfinished").is_dir()  # it is the other's
    assert convert(path, out).written == 4


def test_a_row_of_ours_that_was_changed_is_refused(tmp_path: Path) -> None:
    write_samples(tmp_path / "ours", OURS[2:4])
    convert(tmp_path / "ours", tmp_path / "there", to="llava")
    path = data_file(tmp_path / "there")
    path.write_text(path.read_text().replace("Is it full?", "Is it empty?", 1))
    account = convert(path, tmp_path / "back")
    assert (account.written, account.refused) == (1, 1)
    assert "changed since it was written" in (tmp_path / "back" / "refused.jsonl").read_text()


def test_what_cannot_be_converted_at_all(tmp_path: Path) -> None:
    path = foreign(tmp_path, "llava", [{"what": 1}])
    with pytest.raises(LinesideError, match=r"1 of 1 rows refused.*row 1: no turns, question.*\(what\)"):
        convert(path, tmp_path / "a")
    with pytest.raises(LinesideError, match="exists: give a new folder"):
        convert(path, path.parent, from_="llava")
    with pytest.raises(LinesideError, match="no such file"):
        convert(tmp_path / "none", tmp_path / "b")
    with pytest.raises(LinesideError, match="no such folder of pictures"):
        convert(path, tmp_path / "b", images=tmp_path / "none")


def test_two_pictures_of_one_path_are_not_mixed(tmp_path: Path) -> None:
    convert(foreign(tmp_path / "one", "jsonl", [FOREIGN["jsonl"][0]]), tmp_path / "ours")
    (one,) = in_order(tmp_path / "ours")
    other = replace(one, id="other", images=(Image(png(99), "frame", "1.png"),))
    extra = {"foreign": {**one.meta.extra["foreign"], "row": 2}}
    write_samples(tmp_path / "both", [one, replace(other, meta=replace(one.meta, extra=extra))])
    with pytest.raises(LinesideError, match=r"the path 1\.png names two different pictures"):
        convert(tmp_path / "both", tmp_path / "back", to="jsonl")
    assert not list((tmp_path / "back").glob("data*"))


# --- what others read


def test_the_datasets_library_reads_our_json_and_shows_our_parquet(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    write_samples(tmp_path / "ours", OURS[:4])
    for form in ("llava", "sharegpt", "messages", "jsonl"):
        convert(tmp_path / "ours", tmp_path / form, to=form)
        path = data_file(tmp_path / form)
        rows = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
        assert sorted(rows["id"]) == sorted(s.id for s in OURS[:4])
        assert (tmp_path / form / (rows[0].get("image") or rows[0]["images"][0])).exists()
    convert(tmp_path / "ours", tmp_path / "parquet", to="parquet")
    path = data_file(tmp_path / "parquet")
    rows = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    rows = {row["id"]: row for row in rows}
    assert rows["f2/qa"]["images"][0].getpixel((0, 0)) == (2, 7, 7)
    user, assistant = rows["f2/qa"]["messages"]
    assert [part["type"] for part in user["content"]] == ["image", "text"]
    assert user["content"][1]["text"] == "How many cans?\nCount \u00e5ll."
    assert assistant["content"][0]["text"] == "<think>one can left; so 1</think>1"


def test_foreign_parquet_of_messages(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    user = {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]}
    rows = {
        "messages": [[user, {"role": "assistant", "content": [{"type": "text", "text": "A can."}]}]],
        "images": [[Pil.open(io.BytesIO(png(3)))]],
    }
    made = datasets.Dataset.from_dict(rows).cast_column("images", datasets.Sequence(datasets.Image()))
    made.to_parquet(tmp_path / "x.parquet")
    assert convert(tmp_path / "x.parquet", tmp_path / "ours").written == 1
    (found,) = in_order(tmp_path / "ours")
    assert (found.question, found.answer) == ("What?", "A can.")
    assert Pil.open(io.BytesIO(found.images[0].bytes)).getpixel((0, 0)) == (3, 7, 7)
