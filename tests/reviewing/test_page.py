"""The page in a real Chromium: keys, clicks, two windows, and a program that is killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lineside.data.review_list import LIST, Form, ReviewQuestion, Said, write_list
from lineside.reviewing.log import FOLDER, read_answers
from lineside.reviewing.sources import Choice, open_review
from tests.conftest import picture
from tests.reviewing.chromium import HOSTILE, Browser, Page, needs_chromium
from tests.reviewing.conftest import process, serving

pytestmark = needs_chromium


def ready(browser: Browser, address: str, **options) -> Page:
    page = browser.open(address, **options)
    page.wait("document.querySelector('#person').innerText && document.querySelector('#picture').naturalWidth")
    page.wait("document.querySelector('#picture').style.visibility === 'visible'")  # before that no answer is taken
    return page


def at(page: Page, place: int) -> None:
    """Wait for the question of this number, from 1."""
    page.wait("document.body.getAttribute('aria-busy') === 'false' && !document.querySelector('#main').hidden")
    page.wait(f"document.querySelector('#task').innerText.includes('· {place} of ')")
    page.wait("document.querySelector('#picture').style.visibility === 'visible'")


def forms(folder: Path) -> Path:
    """A list with every kind of answer; each with a record, a teacher and a model."""
    asked = {
        "choice": (Form(kind="choice", options=("intact", "dented", "torn")), "dented"),
        "yes-no": (Form(kind="choice", options=("yes", "no")), "no"),
        "number": (Form(kind="number", unit="g", resolution=10.0), "120 g"),
        "text": (Form(kind="exact"), "red can"),
        "set": (Form(kind="set", options=("can", "box", "ball")), "Can, ball"),
        "counted": (Form(kind="set", options=("can", "box"), counted=True), "2 cans"),
        "point": (Form(kind="point"), "0.500, 0.500"),
        "many": (Form(kind="choice", options=tuple(f"product {n}" for n in range(30))), "product 7"),
    }
    questions = []
    for name, (form, record) in asked.items():
        model = Said(by="model", name="sft", answer=HOSTILE, confidence=0.9, trace="it looks so")
        said = (Said(by="record", answer=record), model)
        fields: dict[str, Any] = {"frame": f"{name}.png", "picture": "", "family": "bins", "task": name}
        question = ReviewQuestion(
            id=name, question=f"{name}? {HOSTILE}", form=form, said=said, why="they differ", **fields
        )
        questions.append((question, picture(len(questions), 64)))
    write_list(folder, questions)
    assert (folder / LIST).exists()
    return folder


def answers(folder: Path, person: str = "anna") -> dict[str, str]:
    found = read_answers(folder / "review" / FOLDER / f"{person}.jsonl")
    return {name: entry.answer or entry.action for name, entry in found.items()}


def test_every_kind_of_answer_by_keyboard(browser: Browser, tmp_path: Path) -> None:
    folder = forms(tmp_path / "list")
    with serving(open_review(folder)) as client:
        page = ready(browser, client.address)
        assert "they differ" in page.text("#why") and "it looks so" in page.text("#said")
        assert page.text("h1#question").startswith("choice? <img")  # text, not an element
        page.key("3")
        page.key("Enter")
        at(page, 2)
        page.key("y")
        page.key("Enter")
        at(page, 3)
        page.type("43")  # over the record's answer, which is selected
        page.key("Enter")
        page.wait("document.querySelector('#problem').innerText.includes('expected a number that is a multiple of 10')")
        page.js("document.querySelector('#text').select()")
        page.type("130")
        page.key("Enter")
        at(page, 4)
        page.key("Enter")  # accepts what the record says
        at(page, 5)
        pressed = "[...document.querySelectorAll('#options [aria-pressed=true]')].map(b => b.firstChild.data).join()"
        assert page.js(pressed) == "can,ball"  # spelt as the record or not
        page.key("0")
        assert page.js(pressed) == "none"
        page.key("0")
        page.key("2")
        page.key("Enter")
        at(page, 6)
        page.type("box, 2 cans")
        page.key("Enter")
        at(page, 7)
        page.key("ArrowRight", shift=True)
        page.key("ArrowDown")
        page.key("Enter")
        at(page, 8)
        page.type("product 2")
        page.wait("document.querySelectorAll('#options button').length === 11")  # 2, and 20 to 29
        page.js("document.querySelector('#text').select()")
        page.type("T 23")  # enough, where one option is left
        page.key("Enter")
        page.wait("!document.querySelector('#end').hidden")
        assert page.js("document.title") == "lineside review"
        assert answers(folder) == {
            "choice": "torn", "yes-no": "yes", "number": "130 g", "text": "red can", "set": "box",
            "counted": "box, 2 cans", "point": "0.550, 0.505", "many": "product 23",
        }  # fmt: skip
        page.key("u")
        page.wait("!document.querySelector('#main').hidden")
        at(page, 8)
        page.key("Escape")
        page.key("b")
        at(page, 7)
        page.key("c")
        at(page, 8)
        page.key("Escape")
        page.key("s")
        page.wait("document.querySelector('#progress').innerText === '7 of 8 · 1 cannot tell · 1 skipped'")
        assert answers(folder)["point"] == "cannot tell" and "many" not in answers(folder)
        errors = [e["params"] for e in browser.events if e["method"] in ("Log.entryAdded", "Runtime.exceptionThrown")]
        assert [e for e in errors if "favicon" not in json.dumps(e) and "422" not in json.dumps(e)] == []
        page.js("document.querySelector('#finish').click()")
        page.wait("document.querySelector('#banner').innerText.includes('Finished')")


def test_a_click_is_a_point_also_when_zoomed_and_on_a_phone(browser: Browser, tmp_path: Path) -> None:
    folder = forms(tmp_path / "list")
    with serving(open_review(folder, choice=Choice(tasks=("bins/point",)))) as client:
        for width, height in ((1280, 800), (390, 844)):
            page = ready(browser, client.address, width=width, height=height)
            if not page.js("document.querySelector('#end').hidden"):
                page.js("document.querySelector('#undo').click()")
            page.wait("document.querySelector('#picture').clientWidth > 50")
            page.key("z")
            box = page.box("#picture")
            stage = page.box("#stage")
            x, y = stage["x"] + stage["width"] / 2, stage["y"] + stage["height"] / 2
            page.click(x, y)
            wanted = [(x - box["x"]) / box["width"], (y - box["y"]) / box["height"]]
            page.key("Enter")
            page.wait("!document.querySelector('#end').hidden")
            told = [float(part) for part in answers(folder)["point"].split(",")]
            assert told == pytest.approx(wanted, abs=0.01)
            assert page.js("document.documentElement.scrollWidth <= innerWidth")
            page.key("u")
            page.wait("document.querySelector('#end').hidden")


def test_an_answer_that_nobody_named_is_not_accepted_unset(browser: Browser, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"frame": "a.png", "picture": "", "family": "bins", "question": "?"}
    forms = {"grip": Form(kind="point"), "inside": Form(kind="set", options=("can", "box")), "item": Form(kind="exact")}
    write_list(
        tmp_path,
        [(ReviewQuestion(id=n, task=n, form=f, **fields), picture(0, 64)) for n, f in forms.items()],
    )
    with serving(open_review(tmp_path)) as client:
        page = ready(browser, client.address)
        for number, keys in enumerate((["ArrowRight"], ["0"], ["x"]), 1):
            at(page, number)
            page.key("Enter")
            page.wait("document.querySelector('#problem').innerText.includes('an answer first')")
            for key in keys:
                page.key(key, shift=number == 1)
            page.key("Enter")
        page.wait("!document.querySelector('#end').hidden")
    assert answers(tmp_path) == {"grip": "0.550, 0.500", "inside": "none", "item": "x"}


def test_an_answer_needs_the_picture(browser: Browser, tmp_path: Path) -> None:
    """A key that is pressed before the picture is there, or where it is damaged, answers nothing."""
    folder = forms(tmp_path / "list")
    first = (folder / LIST).read_text().splitlines()[0]
    (folder / json.loads(first)["picture"]).write_bytes(b"no picture")
    with serving(open_review(folder)) as client:
        page = browser.open(client.address)
        page.wait("document.querySelector('#problem').innerText.includes('cannot be shown')")
        page.key("1")
        page.key("Enter")
        page.wait("document.querySelector('#problem').innerText.includes('An answer needs it')")
        page.key("c")
        at(page, 2)
    assert answers(folder) == {"choice": "cannot tell"}


def test_two_windows_show_what_the_other_saved(browser: Browser, tmp_path: Path) -> None:
    folder = forms(tmp_path / "list")
    with serving(open_review(folder)) as client:
        first, second = ready(browser, client.address), ready(browser, client.address)
        first.key("1")
        first.key("Enter")
        at(first, 2)
        second.key("3")
        second.key("Enter")
        second.wait("document.querySelector('#banner').innerText.includes('answered in another window')")
        assert second.text("#mine") == "You: intact" and answers(folder) == {"choice": "intact"}
        second.key("3")
        second.key("Enter")
        at(second, 2)
        assert answers(folder) == {"choice": "torn"}


def test_blind_shows_what_others_said_after_the_answer_only(browser: Browser, tmp_path: Path) -> None:
    folder = forms(tmp_path / "list")
    with serving(open_review(folder), blind=True) as client:
        page = ready(browser, client.address)
        assert page.text("#said") == "" and not page.js("document.querySelector('#hidden').hidden")
        page.key("Enter")
        page.wait("document.querySelector('#problem').innerText.includes('an answer first')")
        page.key("2")
        page.key("Enter")
        page.wait("document.querySelector('#said .same') !== null")
        assert "dented" in page.text("#said .same") and page.text("#said .other").startswith("<img")
        page.key("Enter")
        at(page, 2)


def test_a_program_that_is_killed_loses_no_answer_that_the_page_took_for_saved(
    browser: Browser, tmp_path: Path
) -> None:
    folder = forms(tmp_path / "list")
    with process(folder, "--person", "anna") as (running, client):
        page = ready(browser, client.address)
        page.key("3")
        page.key("Enter")
        at(page, 2)
        running.kill()
        running.wait()
        page.key("y")
        page.key("Enter")
        page.wait("document.querySelector('#banner').innerText.includes('Not saved')")
        assert page.text("#options [aria-pressed=true]").startswith("yes")  # what was chosen is still there
    assert answers(folder) == {"choice": "torn"}
    with serving(open_review(folder)) as client:
        page = ready(browser, client.address)
        at(page, 2)  # it goes on where it stopped
        assert page.text("#progress") == "1 of 8"
