"""The page in a real Chromium: a key, a frame, questions by keyboard, answers with their time; phone and dark."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import picture
from tests.reviewing.chromium import HOSTILE, Browser, Page, needs_chromium
from tests.serving.conftest import COUNT, EMPTY, KEY, Served

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    path.write_bytes(picture(3, 200))
    return path


def ready(browser: Browser, server: Served, photo: Path, **options) -> Page:
    """The page with its key typed and a frame chosen."""
    page = browser.open(server.address, **options)
    page.wait("!document.querySelector('#key-row').hidden")
    assert "no valid API key" in page.text("#problem")
    page.js("document.querySelector('#key').focus()")
    page.type(KEY)
    page.key("Enter")
    page.wait("document.body.getAttribute('aria-busy') === 'false'")
    field = page.call("Runtime.evaluate", expression="document.querySelector('#file')")["result"]["objectId"]
    page.call("DOM.setFileInputFiles", files=[str(photo)], objectId=field)
    page.wait("document.querySelector('#picture').naturalWidth === 200")
    return page


def ask(page: Page, *questions: str) -> None:
    """Type each question into a line of its own, and send them by keyboard."""
    for number, question in enumerate(questions):
        if number:
            page.js("document.querySelector('#add').click()")  # the new line has the focus
        else:
            page.js("document.querySelector('#questions .text').focus()")
        page.type(question)
    page.js("document.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', ctrlKey: true}))")
    page.wait(f"document.querySelectorAll('article').length === {len(questions)}")


def test_questions_by_keyboard_and_their_answers(browser: Browser, server: Served, photo: Path) -> None:
    page = ready(browser, server, photo)
    assert page.js("[...document.querySelector('.task').options].map((o) => o.value)") == ["", COUNT, EMPTY]
    ask(page, "Is the left bin empty?", f"How many parts? {HOSTILE}")
    shown = page.text("#answers")
    assert "Is the left bin empty?" in shown and HOSTILE in shown and page.js("document.title") == "lineside serve"
    assert EMPTY in shown and "refuse" in shown and "ms in all; no deadline" in shown
    assert len(page.js("[...document.querySelectorAll('.bar span')].map((part) => part.className)")) == 5
    assert page.js("document.querySelectorAll('#earlier li img').length") == 2
    page.js("document.querySelector('#deadline').value = '0.01'; ask()")
    page.wait("document.querySelector('#problem').innerText.includes('cannot be answered within')")
    assert page.js("document.querySelectorAll('article').length") == 2  # what was answered stays


def test_the_last_day_is_drawn(browser: Browser, server: Served, photo: Path) -> None:
    page = ready(browser, server, photo)
    ask(page, "Is the left bin empty?")
    page.wait("!document.querySelector('#day').hidden")
    assert "answered" in page.text("#latency + figcaption")
    page.js("document.querySelector('.truth .text').value = 'yes'; document.querySelector('.truth button').click()")
    page.wait("/^Right, of .* [0-9]+ of [0-9]+[.]$/.test(document.querySelector('#accuracy + figcaption').innerText)")
    assert page.js("document.querySelectorAll('#latency circle').length") >= 2


def test_a_task_gives_its_question(browser: Browser, server: Served, photo: Path) -> None:
    page = ready(browser, server, photo)
    choose = f"const s = document.querySelector('.task'); s.value = '{EMPTY}'; s.dispatchEvent(new Event('change'))"
    page.js(f"(() => {{ {choose} }})()")
    assert page.js("document.querySelector('.text').value") == "Is the {place} empty?"


@pytest.mark.parametrize("dark", [False, True])
def test_on_a_phone_nothing_is_wider_than_the_screen(
    browser: Browser, server: Served, photo: Path, tmp_path: Path, dark: bool
) -> None:
    page = ready(browser, server, photo, width=390, height=800, dark=dark)
    ask(page, "How many parts? " + "a-word-without-an-end" * 8)
    assert page.js("document.documentElement.scrollWidth") <= 390
    page.screenshot(tmp_path / "phone.png")
    assert (tmp_path / "phone.png").stat().st_size > 10_000
    errors = [event for event in browser.events if event.get("method") == "Runtime.exceptionThrown"]
    assert not errors
