"""Reference pictures of SKUs beside the frame: from a folder or a table; none is a frame of a suite."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from textwrap import dedent

import pyarrow.parquet as pq
import pytest

from lineside.data.checks import inspect, references_in
from lineside.data.references import named_by
from lineside.data.store import read_columns, read_samples, stream_frame_samples, write_samples
from lineside.data.taskcheck import Check
from lineside.data.taskfile import Task
from lineside.errors import LinesideError
from lineside.images import image_key
from lineside.label import label
from lineside.recipe import Label
from lineside.task import check
from lineside.types import Frame, Image, Meta, Sample, Source, Target
from tests.conftest import picture
from tests.fuzz.guard import CANARY, watched

TASKS = """
    table:
      file: frames.csv
      family: shop
      split: {column: split, values: {train: train, val: dev, test: heldout}}
      references: REFERENCES
      distractors: [{name: is_it, column: product}]
    captions:
      - {family: shop, templates: ["A picture of {product}.", "This is {product}.", "One sees {product}."]}
    tasks:
      - family: shop
        name: is_it
        each: is_it
        phrasings: ["Is this {item}?"]
        answer: {kind: choice, column: same, options: [yes, no]}
        references: item
        per_frame: 2
      - family: shop
        name: colour
        phrasings: ["Which colour?"]
        answer: {kind: exact, column: colour}
"""
PRODUCTS = ("4711", "0815", "pear")


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """30 pictures of three products, and a folder `catalogue` beside the table: two pictures of 4711, one of 0815."""
    folder = tmp_path / "shop"
    (folder / "catalogue" / "4711").mkdir(parents=True)
    lines = ["image,split,product,colour"]
    for n in range(30):
        (folder / f"{n}.png").write_bytes(picture(n))
        split = "train" if n < 18 else "val" if n < 24 else "test"
        lines.append(f"{n}.png,{split},{PRODUCTS[n % 3]},{('red', 'blue')[n % 2]}")
    (folder / "frames.csv").write_text("\n".join(lines))
    for number, name in enumerate(("4711/b.png", "4711/a.png", "0815.png"), start=100):
        (folder / "catalogue" / name).write_bytes(picture(number))
    return folder


def run(shop: Path, references: str, out: str = "out", tasks: str = TASKS) -> dict:
    file = shop.parent / "tasks.yaml"
    file.write_text(dedent(tasks).replace("REFERENCES", references))
    return label(shop, shop.parent / out, tasks=[file], date="2026-01-02")


def shown(shop: Path, out: str = "out") -> dict[str, set[tuple[tuple[str, str, str], ...]]]:
    """What stands beside the frame, by the question: (name, text, file) of each reference."""
    found: dict[str, set[tuple[tuple[str, str, str], ...]]] = {}
    for sample in read_samples(shop.parent / out):
        assert [image.role for image in sample.frame_images] == ["frame"]
        found.setdefault(sample.question, set()).add(tuple((i.name, i.text, i.path) for i in sample.references))
    return found


def test_a_folder_of_skus_gives_each_question_its_pictures(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    account = run(shop, "{folder: catalogue, most: 3}")
    said = shown(shop)
    assert said["Is this 4711?"] == {(("4711", "", "a.png"), ("4711", "", "b.png"))}
    assert said["Is this 0815?"] == {(("0815", "", "0815.png"),)}
    assert said["Is this pear?"] == said["Which colour?"] == said[""] == {()}
    asked = [s for s in read_samples(shop.parent / "out") if s.references]
    assert account["references"] == {"questions": len(asked), "pictures": sum(len(s.references) for s in asked)}
    (remark,) = (key for key in account["remarks"] if "without reference pictures" in key)
    assert account["remarks"][remark]["examples"] == ["pear"]
    assert "questions have reference pictures" in capsys.readouterr().err
    assert references_in([shop.parent / "out"])
    report = inspect(shop.parent / "out")
    assert report.ok, report.counts


def test_fewer_pictures_and_a_text_from_a_table(shop: Path) -> None:
    (shop / "products.csv").write_text("product,description\n4711,can of  330 ml\n0815,\n")
    run(shop, "{folder: catalogue, file: products.csv, sku: product, text: description, most: 1}")
    said = shown(shop)
    assert said["Is this 4711?"] == {(("4711", "can of 330 ml", "a.png"),)}
    assert said["Is this 0815?"] == {(("0815", "", "0815.png"),)}
    sample = next(s for s in read_samples(shop.parent / "out") if s.question == "Is this 4711?")
    assert sample.references[0].label == "4711 (can of 330 ml):"


def test_a_table_may_name_the_pictures(shop: Path) -> None:
    (shop / "products.csv").write_text("sku,photo\n4711,4711/b.png|4711/a.png\n0815,0815\n0815,4711/a.png\n")
    run(shop, "{folder: catalogue, file: products.csv, image: photo, most: 2}")
    said = shown(shop)
    assert said["Is this 4711?"] == {(("4711", "", "b.png"), ("4711", "", "a.png"))}
    assert said["Is this 0815?"] == {(("0815", "", "0815.png"), ("0815", "", "a.png"))}


def test_pictures_of_a_folder_of_references_are_no_frames(shop: Path) -> None:
    (shop / "frames.csv").unlink()
    tasks = TASKS.replace("file: frames.csv\n", "columns: {product: name}\n").replace(
        "split: {column: split, values: {train: train, val: dev, test: heldout}}\n", "skus: name\n"
    )
    tasks = tasks.replace("column: colour", "column: product").replace("name: colour", "name: name")
    for n, sku in enumerate(PRODUCTS):
        (shop / f"{n}.png").rename(shop / f"{sku}.png")
    assert run(shop, "{folder: catalogue}", tasks=tasks)["frames"]["read"] == 30


@pytest.mark.parametrize(
    ("references", "message"),
    [
        ("{folder: katalog}", "katalog: no such folder of pictures.*catalogue"),
        (
            "{folder: catalogue, file: p.csv, image: photo}",
            r"p.csv, row 1: the reference '4712/a.png' of 4711: .*No such",
        ),
        ("{folder: catalogue, file: p.csv, sku: id, image: photo}", "no column 'id'.*it has sku, photo"),
        ("{folder: catalogue, file: q.csv, text: text}", "q.csv, row 2: 4711 has another text"),
        ("{folder: empty}", "no reference pictures: expected a folder for each SKU"),
        (
            "{folder: other}",
            "no question has a reference picture: the questions name '0815', '4711', 'pear'; .*'apple'",
        ),
        ("{folder: damaged}", "the reference .*damaged/4711.png of 4711: .*"),
        ("{}", "give folder"),
        ("{folder: catalogue, text: description}", "columns of a table: give file"),
        ("{folder: catalogue, file: p.csv}", "say what it gives"),
        ("{folder: catalogue, most: 0}", "most"),
    ],
)
def test_what_is_missing_is_named(shop: Path, references: str, message: str) -> None:
    (shop / "p.csv").write_text("sku,photo\n4711,4712/a.png\n")
    (shop / "q.csv").write_text("sku,text\n4711,can\n4711,box\n")
    for name, file in (("empty", None), ("other", "apple.png"), ("damaged", "4711.png")):
        (shop / name).mkdir()
        if file:
            (shop / name / file).write_bytes(picture(200)[: -60 if name == "damaged" else None])
    with pytest.raises(LinesideError, match=message):
        run(shop, references)


def test_references_lie_where_the_task_file_says_and_a_cell_leads_nowhere_else(shop: Path) -> None:
    (shop / "catalogue").rename(shop.parent / "catalogue")
    assert run(shop, "{folder: ../catalogue}")["references"]["pictures"] > 0
    (shop.parent / f"{CANARY}.png").write_bytes(picture(7))
    for n, named in enumerate((f"../{CANARY}.png", str(shop.parent / f"{CANARY}.png"), f"x/../../{CANARY}.png")):
        (shop / "products.csv").write_text(f"sku,photo\n4711,{named}\n")
        with watched(shop.parent) as broken, pytest.raises(LinesideError, match="must lie inside the folder"):
            run(shop, "{file: products.csv, image: photo}", f"out{n}")
        assert broken == []


def test_a_reference_that_is_a_frame_of_a_suite_is_refused_by_name(shop: Path) -> None:
    (shop / "catalogue" / "0815.png").write_bytes((shop / "27.png").read_bytes())
    with pytest.raises(LinesideError, match=r"0815\.png of 0815 is the picture of 27\.png, a frame of heldout"):
        run(shop, "{folder: catalogue}")
    (shop / "catalogue" / "0815.png").write_bytes((shop / "1.png").read_bytes())
    run(shop, "{folder: catalogue}")  # a picture to train on gives nothing away


def test_the_answer_must_not_stand_beside_the_question(shop: Path) -> None:
    for wrong, message in (
        (TASKS.replace("references: item", "references: same"), "the column 'same' holds the answer"),
        (TASKS.replace("      references: REFERENCES\n", ""), "references: the table says nowhere"),
        (TASKS.replace("        references: item\n", ""), "no task says which SKUs"),
        (TASKS.replace("references: item", "references: itm"), "itm"),
    ):
        with pytest.raises(LinesideError, match=message):
            run(shop, "{folder: catalogue}", tasks=wrong)


def test_the_names_of_a_question() -> None:
    task = Task.model_validate(
        {"family": "f", "name": "n", "phrasings": ["?"], "answer": {"kind": "exact", "column": "x"}, "references": "a"}
    )
    for value, names in ((["a", "b", "a"], ("a", "b")), ("a| b", ("a", "b")), (4711, ("4711",)), (None, ()), ("", ())):
        assert named_by(task, Frame("1", Image(b""), "f", {"a": "z"}, Meta(), "train"), {"a": value}) == names
    with pytest.raises(LinesideError, match="expected names of SKUs"):
        named_by(task, Frame("1", Image(b""), "f", {"a": [{}]}, Meta(), "train"), {})


def asked(n: int, beside: tuple[Image, ...], *, frame: int = 0, split: str = "train") -> Sample:
    target = Target("exact", "sim", accepted=("1",))
    return Sample(
        f"s{n}", "qa", (Image(picture(frame)), *beside), "f", "t", f"how many {n}?", None, "1", target, split,  # type: ignore[arg-type]
        Meta(scene=f"scene {frame}"), Source(),
    )  # fmt: skip


def test_samples_of_a_frame_stay_together_whatever_stands_beside_it(tmp_path: Path) -> None:
    can = tuple(Image(picture(50 + k), "reference", f"{k}.png", name="can", text="of 330 ml") for k in range(2))
    rows = [asked(n, beside, frame=n // 3) for n, beside in enumerate([(), can, can[:1]] * 3)]
    write_samples(tmp_path, rows)
    assert list(read_samples(tmp_path)) == rows
    groups = stream_frame_samples(tmp_path, kind="qa", split="train", seed=0, epoch=0)
    assert Counter(map(len, groups)) == {3: 3}


def test_validate_finds_a_reference_that_a_suite_shows(tmp_path: Path) -> None:
    seen = Image(picture(7), "reference", name="can")
    write_samples(tmp_path, [asked(0, (seen,)), asked(1, (), frame=7, split="heldout")])
    report = inspect(tmp_path, decoded=False)
    assert report.counts == {"reference leak": 1}
    assert (
        "the reference of can is the picture of s1, a frame of heldout" in report.problems["reference leak"][0].reason
    )
    # A reference may stand in every split, and be a picture to train on.
    fine = tmp_path / "fine"
    write_samples(fine, [asked(0, (seen,)), asked(1, (seen,), frame=1, split="dev"), asked(2, (), frame=7)])
    assert inspect(fine, decoded=False).ok


def test_a_picture_of_a_reference_is_stored_once_for_all_frames_of_a_row_group(tmp_path: Path) -> None:
    can = Image(picture(50, size=200), "reference", name="can")
    write_samples(tmp_path, [asked(n, (can,), frame=n) for n in range(20)])
    (file,) = tmp_path.glob("*.parquet")
    assert file.stat().st_size < len(can.bytes) * 2 + 20 * len(picture(0)) + 20_000
    assert {image_key(s.references[0].bytes) for s in read_samples(tmp_path)} == {image_key(can.bytes)}


def test_samples_without_references_have_the_same_rows_as_before(tmp_path: Path) -> None:
    write_samples(tmp_path, [asked(0, ())])
    (file,) = tmp_path.glob("*.parquet")
    table = pq.read_table(file)
    assert table.column("names").to_pylist() == table.column("texts").to_pylist() == [None]
    pq.write_table(table.drop_columns(["names", "texts"]), file)  # as an earlier version wrote it
    assert list(read_samples(tmp_path)) == [asked(0, ())]
    assert list(read_columns(file, ("id", "names"))) == [{"id": asked(0, ()).id, "names": None}]


def test_task_check_reads_the_references_too(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = shop.parent / "tasks.yaml"

    def checked(references: str, tasks: str = TASKS) -> Check:
        file.write_text(dedent(tasks).replace("REFERENCES", references))
        return check([file], shop)

    (told,) = (line for line in checked("{folder: catalogue}").warnings if "reference" in line)
    assert "without reference pictures: pear" in told
    (shop / "catalogue" / "0815.png").write_bytes((shop / "27.png").read_bytes())
    with pytest.raises(LinesideError, match="leak: the reference picture"):
        checked("{folder: catalogue}")
    (shop / "catalogue" / "0815.png").write_bytes(picture(101))
    # A task whose references follow from its answer, by another column than that of the answer.
    given = TASKS.replace("answer: {kind: exact, column: colour}", "answer: {kind: exact, column: product}")
    given += "        references: sku\n"
    rows = (shop / "frames.csv").read_text().splitlines()
    (shop / "frames.csv").write_text(
        "\n".join(f"{row},{row.split(',')[2]}" for row in rows).replace("colour,product", "colour,sku")
    )
    assert any("gives it away" in line for line in checked("{folder: catalogue}", given).warnings)


def test_the_simulators_setting_is_refused_for_a_table(shop: Path) -> None:
    file = shop.parent / "tasks.yaml"
    file.write_text(dedent(TASKS).replace("REFERENCES", "{folder: catalogue}"))
    with pytest.raises(LinesideError, match=r"a table states its own with `table\.references`"):
        label(shop, shop.parent / "out", tasks=[file], settings=Label(references=2))
