"""The page of a run: whatever stage it got to, whatever the models wrote."""

from __future__ import annotations

import errno
import io
import json
import re
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lineside.data.store import write_samples
from lineside.errors import LinesideError
from lineside.images import jpeg_uri
from lineside.judgement.audit import Audit
from lineside.judgement.heatmap import ABOVE, BELOW
from lineside.judgement.latency import LatencyModel
from lineside.judgement.rundata import read_run
from lineside.judgement.schema import Decoding, Row, write_evaluation
from lineside.judgement.summary import summarise
from lineside.report import report
from lineside.training.cost import Cost, write_cost
from lineside.types import Costs, Meta, Sample, Source, Target
from lineside.types import Image as Picture
from tests.judgement.conftest import row, summary_arguments, wrong  # noqa: F401
from tests.reviewing.chromium import Browser, needs_chromium

HOSTILE = "</p><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }}<!--$\\frac{1}{0}$ \u202e"
VOID = {"meta", "img", "br", "use", "path", "link"}


class Page(HTMLParser):
    """Every element with its attributes, all text, and whether each element that opens is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    @property
    def said(self) -> str:
        return " ".join(" ".join(self.text).split())


def stage(
    run: Path, arguments: dict[str, Any], name: str, rows: list[Row], mode: str = "think", split: str = "heldout"
) -> None:
    """One stage's evaluation, its pictures and its training log."""
    measured = LatencyModel(base_ms=50.0, per_token_ms=4.0, measured=90, p50_ms=80.0, p95_ms=110.0)
    evaluation = summarise(rows, **{**arguments, "stage": name, "split": split, "mode": mode, "latency": measured})
    write_evaluation(run / "evaluation", evaluation, rows)
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), "grey").save(buffer, "JPEG")
    (run / "evaluation" / "pictures").mkdir(exist_ok=True)
    for key in {key for r in rows for key in r.images}:
        (run / "evaluation" / "pictures" / f"{key}.jpg").write_bytes(buffer.getvalue())
    (run / name).mkdir(exist_ok=True)
    log = [{"step": i, "time": float(i), "loss": 1.0 / i, "reward": None, "lr/lm": 1e-3} for i in range(1, 30)]
    (run / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))


def rows(right: int, **changes: Any) -> list[Row]:
    found: list[Row] = []
    for family, task in (("picking", "empty"), ("kitting", "complete"), ("returns", "label_readable")):
        for i in range(8):
            made = row if i < right else wrong
            found.append(made(f"{family}{i}", family=family, task=task, **changes))
    return found


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "quickstart").mkdir()
    return tmp_path / "quickstart"


def test_a_whole_run(run: Path, summary_arguments: dict[str, Any]) -> None:  # noqa: F811
    for name, right in (("align", 0), ("sft", 3), ("rlvr", 6), ("traced", 4)):
        stage(run, summary_arguments, name, rows(right))
    for name, right in (("rlvr", 4), ("traced", 5)):
        stage(run, summary_arguments, name, rows(right), mode="fast")
    for name, right in (("sft", 2), ("rlvr", 4), ("traced", 1)):
        stage(run, summary_arguments, name, rows(right), split="shifted")
    (run / "recipe.yaml").write_text("name: quickstart\nseed: 5\n")
    account = {"prompts": 3_000, "samples": 2_880, "left_out": {"the teacher gave no answer": 120}}
    (run / "traced" / "samples.json").write_text(json.dumps(account))
    write_cost(run / "traced", Cost(tokens=54_321, seconds={"decode": 60.0, "update": 90.0, "evaluate": 99.0}))
    write_cost(run / "sft", Cost(tokens=12_345, dense_tokens=67_890, seconds={"update": 71.0}))
    path = report(run)
    assert path == run / "report.html"
    page = Page(path.read_text())
    assert page.open == []
    for words in (
        "After rlvr , 75.0% of the answers on heldout are exact (simulated)",
        "rlvr less sft heldout on +37.5",
        "rlvr less traced heldout on +25.0",
        "rlvr less sft shifted on +25.0",
        "rlvr less traced shifted on +37.5",
        "Stage 3 and what could stand in its place",
        "traced: 2,880 samples from 3,000 prompts of stage 3 (left out 120: the teacher gave no answer)",
        "Latency beside accuracy",
        "By task",
        "Accuracy with refusal",
        "On the floor",
        "seed: 5",
        "What it took",
        "12,345 67,890",
        "a machine",
    ):
        assert words in page.said, words
    # thinking on, off, tokens, minutes with sampling, prompts left out; rlvr less it with thinking on, off, and rlvr on
    # less traced off, which are their better modes
    between = r"[-+0-9.%]+ to [-+0-9.%]+"
    arm = (
        rf"traced 50\.0% {between} 62\.5% {between} 54,321 2\.5 120 of 3,000 \+25\.0 {between} -12\.5 {between} \+12\.5"
    )
    assert re.search(arm, page.said), page.said
    assert page.said.count("\N{MIDDLE DOT} target no") == 18  # six cards for each of three families
    assert sum(tag == "svg" for tag, _ in page.elements) == 3 + 3 + 4  # overview, a family each, a stage's loss each


def test_teacher_student_and_record_stand_side_by_side(run: Path, summary_arguments: dict[str, Any]) -> None:  # noqa: F811
    for name, right in (("sft", 3), ("rlvr", 6)):
        stage(run, summary_arguments, name, rows(right))
    card = audited()
    (run / "data.json").write_text(json.dumps(card))
    page = Page(report(run).read_text())
    assert page.open == [] and not any(tag == "script" for tag, _ in page.elements)
    assert "exact in 50.0%" in page.said and "about 40 training frames" in page.said
    # teacher, interval, n, the two stages (3 and 6 of 8 right), what to do, the commonest confusion
    row_of = page.said[page.said.index("picking/empty 50.0%") :]
    assert " 40 37.5% 75.0% probably needs stage 3 " in row_of
    assert "teacher 50.0%" in page.said and "on 40 training frames, n 40" in page.said
    assert "rlvr less it, on" in page.said  # sft stands there too
    del card["account"]["audit"]
    (run / "data.json").write_text(json.dumps(card))
    assert "Teacher, student, record" not in report(run).read_text()


def test_the_first_page_says_what_to_do_with_each_task(run: Path, summary_arguments: dict[str, Any]) -> None:  # noqa: F811
    costs = Costs(wrong=1.0, false_pass=5.0, false_stop=1.0, refusal=0.5)
    given: dict[str, Any] = {"normal": "yes", "stakes": costs, "weight": 1.0}
    good = [row(f"g{i}", calibrated=0.95, **given) for i in range(60)]
    below = [(row if i < 20 else wrong)(f"b{i}", task="shut", **given) for i in range(60)]
    notes = {"picking/shut": "not calibrated, n = 40 (40 of the 60 scenes that it takes on dev)"}
    stage(run, {**summary_arguments, "notes": notes}, "sft", [*good, *below])
    page = Page(report(run).read_text())
    for words in (
        "What to do with each task",
        "picking · empty use 100.0% 100.0% 100.0% all",
        "picking · shut do not use 33.3%",
        "Below a guess that sees no picture: 33.3% exact against 100.0%.",
        "Not calibrated, n = 40 (40 of the 60 scenes that it takes on dev).",
        "What slips through: 0 false passes, 0 false stops.",
        "Below a guess that sees no picture: picking · shut.",
        "Calibration of its confidence",
    ):
        assert words in page.said, (words, page.said[:3000])
    assert page.said.index("What to do with each task") < page.said.index("Results")


def test_a_task_to_use_that_is_not_calibrated_says_that_a_cell_waits(
    run: Path,
    summary_arguments: dict[str, Any],  # noqa: F811
) -> None:
    given: dict[str, Any] = {"normal": "yes", "stakes": Costs.of(1.0, refusal=0.5), "weight": 1.0}
    notes = {"picking/empty": "not calibrated, n = 40 (40 of the 60 scenes that it takes on dev)"}
    stage(run, {**summary_arguments, "notes": notes}, "sft", [row(f"g{i}", **given) for i in range(60)])
    said = Page(report(run).read_text()).said
    assert ": one task, 60 questions about" in said
    assert "picking · empty use " in said
    assert "scenes that it takes on dev): until then a cell acts on no answer." in said


def audited() -> dict[str, Any]:
    """A data card with an audit of a teacher that says `HOSTILE` for half of 40 questions."""
    audit = Audit()
    for number in range(40):
        said = "no" if number % 2 else HOSTILE
        audit.add(
            frame=f"f{number}", scene=f"s{number}", task="picking/empty", question="Is it?", truth="no", said=said,
            target=Target("choice", "record", accepted=("no",), options=("yes", "no")),
        )  # fmt: skip
    account = {"frames": dict.fromkeys(("read", "labelled", "rejected", "failed", "silent"), 40), "teacher": "hat"}
    account |= {"dropped": {}, "rejected": {}, "audit": audit.to_json()}
    return {"account": account, "rejected": [], "dropped": [], "rows": {}, "traces": {}, "checks": {}, "tasks": {}}


@pytest.fixture
def full(run: Path, summary_arguments: dict[str, Any]) -> Path:  # noqa: F811
    """The page of a run with everything that a page can show."""
    given: dict[str, Any] = {"normal": "yes", "stakes": Costs.of(1.0, refusal=0.5), "weight": 1.0, "facts": 0.5}
    for name in ("sft", "rlvr", "traced"):
        asked = [
            (row if i % 9 else wrong)(f"{where}{i}", calibrated=0.95, columns={"material": [where]}, **given)
            for where, n in (("a material with a long name", 51), ("b", 9))
            for i in range(n)
        ]
        stage(run, {**summary_arguments, "route_below": 1.0}, name, asked)
        write_cost(run / name, Cost(tokens=12_345, dense_tokens=67_890, seconds={"update": 71.0}))
    tasks = {"picking/empty": {"samples": {}, "answers": 2, "commonest": []}}
    card = {**audited(), "rows": {"qa-train": 60}, "tasks": tasks}
    (run / "data.json").write_text(json.dumps(card))
    return report(run)


def test_each_number_is_defined_where_it_stands(full: Path) -> None:
    """Each head of each table is a term above it, but for what names its lines, and advice and verdict, whose values
    are terms."""
    html = full.read_text()
    named = {"", "task", "stage", "split", "thinking", "comparison", "advice", "verdict"}
    tables = [match.start() for match in re.finditer("<table", html)]
    for at in tables:
        section = html[html.rindex("<h2>", 0, at) : at]
        head = html[at : html.index("</thead>", at)]
        heads = [re.sub("<[^>]+>", "", one) for one in re.findall(r"<th[ >].*?</th>", head)]
        if 'class="heat"' in head:
            heads = heads[1:2]  # the others are the family and its tasks
        terms = "; ".join(re.findall("<dt>([^<]+)</dt>", section)).split("; ")
        assert heads and {one.removesuffix(", simulated") for one in heads} - named <= {*terms}, (section[:99], heads)
    heat = sum(html.startswith('<table class="heat"', at) for at in tables)
    template = resources.files("lineside").joinpath("templates/report.html.j2").read_text()
    assert heat and len(tables) - heat + 1 == template.count("<table")  # none of them is missing here
    part = html[html.index('<table class="decisions">') :]
    heads = re.findall(r"<th>([^<]+)</th>", part[: part.index("</thead>")])
    assert re.findall(r'data-of="([^"]+)"', part[: part.index("</table>")]) == heads


@needs_chromium
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_its_window(full: Path, tmp_path: Path, width: int) -> None:
    with Browser(tmp_path / "profile") as browser:
        page = browser.open(full.resolve().as_uri(), width=width)
        page.wait("document.readyState == 'complete'")
        assert page.js("document.documentElement.scrollWidth") == width
        right = page.js(
            "Math.max(...[...document.querySelectorAll('.decisions *')].map(e => e.getBoundingClientRect().right))"
        )
        assert 0 < right <= width  # the numbers of the decision stand on the page, not beyond its edge


def test_a_heat_map_shows_where_it_fails(run: Path, summary_arguments: dict[str, Any]) -> None:  # noqa: F811
    """36 of 44 questions are exact (81.8%). Cell c2 has 12 of 20: surely below that. c3 has too few to tell."""
    asked = [(row if i < right else wrong)(f"{cell}{i}", columns={"cell": [cell], "sku": [f"s{i % 3}"]})
             for cell, right, n in (("c1", 20, 20), ("c2", 12, 20), ("c3", 4, 4)) for i in range(n)]  # fmt: skip
    stage(run, summary_arguments, "sft", asked)
    page = Page(report(run).read_text())
    assert page.open == []
    heat = page.said[page.said.index("Where it fails") : page.said.index("Results")]
    assert "By cell picking all its questions empty all 81.8% n 44" in heat
    interval = r"\S+% to \S+%"
    assert re.search(rf"c2 60.0% {interval} expected 81.8% n 20 {BELOW} 60.0% n 20 c3", heat)
    assert re.search(rf"c3 100.0% {interval} expected 81.8% n 4 n 4 c1", heat)
    assert re.search(rf"c1 100.0% {interval} expected 81.8% n 20 {ABOVE} 100.0% n 20", heat)
    assert "By sku: 3 values" in heat
    costs = {"stakes": Costs.of(1.0, refusal=0.5), "weight": 1.0}
    stage(run, summary_arguments, "sft", [one.model_copy(update=costs) for one in asked])
    assert "Lowest for cell c2: 60.0% of 20. Judged on 44 scenes" in Page(report(run).read_text()).said


def test_false_facts_stand_beside_valid_traces(run: Path, summary_arguments: dict[str, Any]) -> None:  # noqa: F811
    stage(run, summary_arguments, "sft", [*rows(8, facts=1.0), wrong("f", facts=0.5)])
    said = Page(report(run).read_text()).said
    assert "100.0% valid traces 4.0% of 25 state a false fact" in said  # the tile
    assert "100.0% 4.0% of 25 " in said[said.index("Results") :]  # the table
    assert "100.0% valid, 4.0% of 25 with a false fact" in said  # the bars
    stage(run, summary_arguments, "sft", rows(8))
    assert "100.0% valid traces in form; their facts were not checked" in Page(report(run).read_text()).said


def test_the_most_confident_wrong_answers_are_shown_with_their_pictures(
    run: Path,
    summary_arguments: dict[str, Any],  # noqa: F811
) -> None:
    costs = Costs(wrong=1.0, false_pass=5.0, false_stop=1.0, refusal=0.5)
    asked = [row(f"r{i}") for i in range(9)]
    asked.append(wrong("w", calibrated=0.93, decision="act", normal="yes", stakes=costs, columns={"cell": ["c7"]}))
    stage(run, summary_arguments, "sft", asked)
    (run / "evaluation" / "full").mkdir()
    picture = run / "evaluation" / "pictures" / "w-picture.jpg"
    (run / "evaluation" / "full" / picture.name).write_bytes(picture.read_bytes() + b"full")
    html = report(run).read_text()
    said = Page(html).said
    shown = said[said.index("The most confident wrong answers") : said.index("Results")]
    for words in (
        "Is the bin empty? answer \N{BALLOT X} yes target no trace two parts lie in it",
        "confidence 93.0%, calibrated on dev; a cell acts on it mistake false pass, costs 5",
        "task picking \N{MIDDLE DOT} empty where cell c7 id w",
    ):
        assert words in shown, (words, shown)
    assert jpeg_uri(picture.read_bytes() + b"full") in html
    (run / "evaluation" / "full" / picture.name).unlink()
    assert "The picture was not kept." in report(run).read_text()


def test_the_page_fetches_nothing_and_runs_nothing(run: Path, summary_arguments: dict[str, Any]) -> None:  # noqa: F811
    stage(run, summary_arguments, "sft", rows(3))
    html = report(run).read_text()
    page = Page(html)
    for tag, attributes in page.elements:
        assert tag not in ("script", "iframe", "link", "object", "embed", "base", "form")
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href", "data"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/jpeg;base64,"))
    assert "url(http" not in html and "@import" not in html
    policies = [a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = re.findall(r'(?:href="#|url\(#)([^")]+)', html)
    assert used and set(used) <= set(ids)


def test_hostile_text_stays_text(run: Path, summary_arguments: dict[str, Any]) -> None:  # noqa: F811
    bad: dict[str, Any] = {"columns": {"cell": [HOSTILE[:80]], HOSTILE: ["a"]}}
    bad |= {"question": HOSTILE, "answer": HOSTILE, "trace": HOSTILE, "reference": HOSTILE, "blind": HOSTILE}
    hostile = [
        wrong(f"q{i}", family=f"fam{HOSTILE}", task=f"task{HOSTILE}", text=HOSTILE, reason=HOSTILE, **bad)
        for i in range(4)
    ]
    hostile += [row(f"r{i}", columns={"cell": ["c1"], HOSTILE: ["b"]}) for i in range(4)]
    stage(run, summary_arguments, "sft", hostile)
    (run / "recipe.yaml").write_text(HOSTILE)
    html = report(run).read_text()
    page = Page(html)
    assert page.open == []
    assert all(tag != "script" and "onerror" not in attributes for tag, attributes in page.elements)
    assert "<script" not in html
    assert page.said.count("{{ 7*7 }}") > 10  # shown as it was written


def test_verdicts_are_shown_and_coloured_as_what_they_are(run: Path, summary_arguments: dict[str, Any]) -> None:  # noqa: F811
    def judged(right: int, count: int) -> list[Row]:
        return [(row if i < right else wrong)(f"{i:03}") for i in range(count)]

    stage(run, summary_arguments, "sft", judged(100, 150))
    stage(run, summary_arguments, "rlvr", judged(100, 150))
    stage(run, summary_arguments, "traced", judged(140, 150))
    for name in ("sft", "rlvr"):
        stage(run, summary_arguments, name, judged(10, 20), split="shifted")
    html = report(run).read_text()
    said = Page(html).said
    assert re.search(r"rlvr less sft heldout on \+0\.0 -2\.\d to \+2\.\d not worse \+0\.0 150", said)
    assert re.search(
        r"rlvr less traced heldout on -26\.7 -\S+ to -\S+ worse all tasks, picking, picking/empty -26\.7 150", said
    )
    assert re.search(r"rlvr less sft shifted on \S+ \S+ to \S+ too little data scenes needed: all tasks \+\d+", said)
    assert "at or above -3.0 points" in said
    assert 'class="not-worse">not worse<' in html and 'class="worse">worse<' in html  # not worse is not red
    (run / "recipe.yaml").write_text("name: quickstart\ndata: {samples: s}\nevaluate: {margin: 0.01}\n")
    said = Page(report(run).read_text()).said
    assert "at or above -1.0 points" in said and re.search(
        r"rlvr less sft heldout on \+0\.0 .{1,20} too little data", said
    )


def test_an_early_run_shows_what_there_is(run: Path, summary_arguments: dict[str, Any]) -> None:  # noqa: F811
    (run / "recipe.yaml").write_text("name: quickstart\n")
    assert "Nothing has been evaluated yet" in Page(report(run).read_text()).said
    stage(run, summary_arguments, "align", rows(0))
    said = Page(report(run).read_text()).said
    assert "After align , 0.0%" in said and "What each stage added" not in said
    assert "Answers" in said


def test_answers_by_other_weights_are_not_the_stages_own(run: Path, summary_arguments: dict[str, Any]) -> None:  # noqa: F811
    stage(run, summary_arguments, "sft", rows(3))
    before = read_run(run)
    narrow = Decoding(temperature=0.0, max_new_tokens=96, weights="int8")
    stage(run, {**summary_arguments, "decoding": narrow}, "sft", rows(8))
    assert len(list((run / "evaluation").glob("*.json"))) == 2
    assert read_run(run).evaluations == before.evaluations and read_run(run).rows == before.rows


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path):
        with pytest.raises(LinesideError, match="neither a run"):
            report(folder)
        assert not (folder / "report.html").exists()
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "recipe.yaml").write_text("name: first\n")
    with pytest.raises(LinesideError, match="it holds the runs first: name one of them"):
        report(tmp_path)
    with pytest.raises(LinesideError, match="a file; expected the folder of a run"):
        report(tmp_path / "first" / "recipe.yaml")
    with pytest.raises(LinesideError, match="no such folder; expected the folder of a run"):
        report(tmp_path / "second")


def test_a_full_disk_says_what_to_do_and_keeps_the_page(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "recipe.yaml").write_text("name: quickstart\n")
    page = report(run).read_bytes()

    def full(*names: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lineside.files.os.replace", full)
    with pytest.raises(LinesideError, match=r"report\.html: .*the disk is full: make room and run the same command"):
        report(run)
    assert (run / "report.html").read_bytes() == page and {p.name for p in run.iterdir()} == {
        "recipe.yaml",
        "report.html",
    }


def test_missing_parts_are_left_out(run: Path, summary_arguments: dict[str, Any]) -> None:  # noqa: F811
    none = {"blind": None, "blind_exact": None, "classifier": None, "classifier_exact": None, "latency_ms": None}
    evaluation = summarise(rows(3, **none), **{**summary_arguments, "mode": "fast"})
    write_evaluation(run / "evaluation", evaluation, rows(3, **none))
    (run / "evaluation" / "sft-heldout-fast.rows.jsonl").unlink()
    said = Page(report(run).read_text()).said
    assert "After sft , 37.5%" in said and "thinking off" in said
    for words in ("points over blind", "Latency beside accuracy", "Traces", "Training", "Answers"):
        assert words not in said, words


def test_real_results_are_not_called_simulated(run: Path, summary_arguments: dict[str, Any]) -> None:  # noqa: F811
    target = {"kind": "choice", "provenance": "record", "accepted": ["no"], "options": ["yes", "no"]}
    stage(run, summary_arguments, "sft", rows(3, target=target))
    assert "simulated" not in Page(report(run).read_text()).said


def test_tasks_asked_with_thinking_off_are_named(run: Path, summary_arguments: dict[str, Any]) -> None:  # noqa: F811
    asked = [row("a", task="silicon", thinking=False), row("b", task="count", thinking=True)]
    stage(run, summary_arguments, "sft", asked)
    assert (
        "Thinking off for picking/silicon: their training samples have no trace" in Page(report(run).read_text()).said
    )


def test_it_is_small(run: Path, summary_arguments: dict[str, Any]) -> None:  # noqa: F811
    for name in ("align", "sft", "rlvr"):
        stage(run, summary_arguments, name, rows(3, trace="red can " * 2000))
    assert report(run).stat().st_size < 1_000_000


def test_bad_runs_are_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(LinesideError, match="nowhere: no such folder"):
        report(tmp_path / "nowhere")
    (run / "evaluation").mkdir()
    (run / "evaluation" / "sft-heldout-think.json").write_text("{}")
    with pytest.raises(LinesideError, match=r"sft-heldout-think\.json: not an evaluation"):
        report(run)


def test_any_slice_of_a_data_set_can_be_looked_at(tmp_path: Path) -> None:
    colours = {"heldout": (200, 0, 0), "train": (0, 0, 200)}
    rows = []
    for number in range(40):
        split = "heldout" if number % 4 == 0 else "train"
        image = io.BytesIO()
        Image.new("RGB", (12, 12), (*colours[split][:2], number)).save(image, "PNG")
        rows.append(
            Sample(
                f"<b>{number}</b>",
                "qa",
                (Picture(image.getvalue()),),
                "bin",
                ("count", "state")[number % 2],
                "How many?",
                None if number % 3 else "2 red; so 2",
                str(number % 5),
                Target("number", "record", value=float(number % 5), tolerance=1.0),
                split,
                Meta(f"s{number}"),
                Source("me"),
            )
        )
    write_samples(tmp_path, rows)
    page = report(tmp_path, where=["task=count", "split=train"], limit=7).read_text()
    assert page.count('<article class="card">') == 7 and page.count("data:image/jpeg") == 7
    assert "10 samples, 7 of them on this page" in page and "bin/state" not in page and "<b>1</b>" not in page
    assert page == report(tmp_path, where=["task=count", "split=train"], limit=7).read_text()
    with pytest.raises(LinesideError, match="no sample has task=shape"):
        report(tmp_path, where=["task=shape"])
    with pytest.raises(LinesideError, match="no column 'tusk'; did you mean 'task'"):
        report(tmp_path, where=["tusk=count"])
    with pytest.raises(LinesideError, match="expected column=value"):
        report(tmp_path, where=["count"])
