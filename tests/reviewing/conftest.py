"""A folder of photographs with a table and a task file that has every kind of answer, and real processes."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent
from typing import Any
from urllib.parse import quote

import pytest

from lineside.reviewing.log import FOLDER, Entry, Log
from lineside.reviewing.server import Server
from lineside.reviewing.session import Session
from lineside.reviewing.sources import Review, open_review
from tests.conftest import picture

TASKS = """
    table:
      file: frames.csv
      family: bins
      image: photo
      split: {column: side, values: {a: train, b: heldout}}
      columns:
        count: {column: parts, type: number}
        state: {column: state, values: {A: intact, B: dented}}
        item: {column: item, words: true}
        inside: {column: inside, type: list}
        empty: {column: empty, type: bool}
        weight: {column: weight, type: number}
      distractors:
        - {name: is_it, column: item}
    captions:
      - family: bins
        templates: ["{item}, {state}.", "A bin with {item}.", "{count} of {item}.", "It is {state}.", "This: {item}.",
                    "One sees {item}.", "{item}; {state}.", "Here: {item}."]
    tasks:
      - {family: bins, name: count, phrasings: ["How many parts?"], answer: {kind: number, column: count}}
      - {family: bins, name: state, phrasings: ["In what state?"],
         answer: {kind: choice, column: state, options: [intact, dented, torn]}}
      - {family: bins, name: item, phrasings: ["What is it?"], answer: {kind: exact, column: item}}
      - {family: bins, name: inside, phrasings: ["What lies inside?"],
         answer: {kind: set, column: inside, counted: true, options: [carton, red can]}}
      - {family: bins, name: empty, phrasings: ["Is it empty?"],
         answer: {kind: choice, column: empty, options: [yes, no]}}
      - {family: bins, name: weight, phrasings: ["How heavy is it?"],
         answer: {kind: number, column: weight, unit: g, resolution: 10}}
      - {family: bins, name: is_it, each: is_it, per_frame: 2, phrasings: ["Is it {item}?"],
         answer: {kind: choice, column: same, options: [yes, no]}}
"""
ROWS = [
    "0.png,b,4,A,red_can,red can|carton,no,118",
    "1.png,b,2,B,carton,,yes,60",
    "2.png,b,0,A,blue-box,carton|carton,no,",
    "3.png,b,7,,red_can,red can,no,300",
]


@pytest.fixture
def bins(tmp_path: Path) -> Path:
    """Four photographs of bins with a table; the task file bins.yaml is beside the folder."""
    folder = tmp_path / "bins"
    folder.mkdir()
    (folder / "frames.csv").write_text("\n".join(["photo,side,parts,state,item,inside,empty,weight", *ROWS]) + "\n")
    for number in range(len(ROWS)):
        (folder / f"{number}.png").write_bytes(picture(number, 64))
    (tmp_path / "bins.yaml").write_text(dedent(TASKS))
    return folder


def opened(bins: Path, **options: Any) -> Review:
    """The review of the fixture `bins`."""
    return open_review(bins, tasks=[bins.parent / "bins.yaml"], **options)


def answer(review: Review, answers: Mapping[str, str | None], person: str = "anna") -> None:
    """Log answers as the page does; None: cannot tell."""
    log = Log(review.folder / FOLDER / f"{person}.jsonl")
    questions = {q.id: q for q in review.questions}
    for number, (name, text) in enumerate(answers.items()):
        told = questions[name].form.read(text)[0] if text is not None else ""
        action = "answer" if text is not None else "cannot tell"
        at, asked = f"2026-01-0{number % 9 + 1}", questions[name].subject
        log.add(Entry(at=at, question=name, action=action, answer=told, key=f"k{number}", asked=asked))
    log.close()


class Client:
    """What the page does, without a browser."""

    def __init__(self, address: str) -> None:
        self.address = address

    def send(self, path: str, body: dict[str, Any] | None = None, **headers: str) -> tuple[int, dict[str, Any]]:
        """(status, JSON) of a request."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json", **headers})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def state(self, at: str | None = None) -> dict[str, Any]:
        """What the page shows."""
        return self.send("state" if at is None else f"state?at={quote(at, safe='')}")[1]

    def act(self, answer: str | None, action: str = "answer", **changed: Any) -> tuple[int, dict[str, Any]]:
        """Answer the next open question (or the one in `changed`)."""
        shown = self.state(changed.get("question"))["question"]
        body = {"question": shown["id"], "revision": shown["revision"], "action": action, "answer": answer or ""}
        return self.send("answer", {**body, "key": secrets.token_hex(8), **changed})


@contextmanager
def serving(review: Review, *, person: str = "anna", blind: bool = False) -> Iterator[Client]:
    """The page of a review, served by a thread of this process."""
    log = Log(review.folder / FOLDER / f"{person}.jsonl")
    server = Server(Session(review, log, person, blind=blind))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield Client(server.address)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        log.close()


@contextmanager
def process(bins: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], Client]]:
    """`lineside review` as a real process, and a client of its page."""
    tasks = bins.parent / "bins.yaml"
    command = [sys.executable, "-c", "from lineside.cli import main; main()", "review", str(bins), *words]
    started = subprocess.Popen(
        [*command, "--tasks", str(tasks)] if tasks.exists() else command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert started.stdout is not None and started.stderr is not None
        address = started.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:"), started.stderr.read()
        yield started, Client(address)
    finally:
        started.kill()
        started.communicate()
