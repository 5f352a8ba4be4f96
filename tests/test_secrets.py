"""Keys are used and never told: not in what a verb prints, writes or raises, whatever an endpoint answers."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import yaml
from typer.testing import CliRunner

from lineside import cli
from lineside.errors import LinesideError
from lineside.fleet.client import Home
from lineside.recipe import load_recipe
from lineside.serving.keys import read_keys
from tests.conftest import answered_by, picture

SECRET = "q7Zp0Lw4&xVb9TgYc2RkMd8s"
KEY = f"sk-{SECRET}"
TOKENS = {"HF_TOKEN": f"hf_{SECRET}", "WANDB_API_KEY": SECRET[::-1] + "w", "MLFLOW_TRACKING_PASSWORD": f"m{SECRET}"}
PARTS = [text[start : start + 10] for text in (SECRET, SECRET[::-1]) for start in range(len(text) - 10)]
TASKS = """
table: {family: bins, file: frames.csv, columns: {parts: {column: parts, type: number}}}
captions: [{family: bins, templates: [a bin]}]
tasks: [{family: bins, name: n, phrasings: ["How many?"], answer: {kind: number, column: parts}}]
"""
RECIPE = "name: r\ndata: {table: %s, tasks: [%s], label: {teacher: api, model: m, key_env: THE_KEY, base_url: %s, attempts: 1, backoff: 0, patience: 0}}\nparts: {preset: nano}\n"  # noqa: E501


def told(key: str, words: str = "wrong key") -> bytes:
    return json.dumps({"error": {"message": f"{words} {key}", "code": f"bad_{key}"}}).encode()


REPLIES = {  # name -> (status, body); every one repeats the key
    "unauthorized": (401, told(KEY)),
    "as-text": (401, f"Bearer {KEY} is wrong".encode()),
    "at-the-cut": (403, b" " * 790 + KEY.encode()),
    "at-a-later-cut": (403, b"\n" * 65_530 + KEY.encode()),
    "as-html": (404, f"<p>{KEY.replace('&', '&amp;')}</p>".encode()),
    "as-address": (404, f"see /login?key={quote(KEY)}".encode()),
    "spent": (429, told(KEY, "insufficient_quota")),
    "moved": (307, told(KEY)),
    "broken": (500, told(KEY)),
    "refused": (400, told(KEY)),
    "answered": (200, json.dumps({"choices": [{"message": {"content": f"not JSON, but your key {KEY}"}}]}).encode()),
    "declined": (200, json.dumps({"choices": [{"message": {"content": None, "refusal": f"no, {KEY}"}}]}).encode()),
    "labelled": (
        200,
        json.dumps({"choices": [{"message": {"content": json.dumps({
            "captions": [f"a bin and {KEY} in it"], "questions": [], "answers": [], "prompts": [], "traces": [],
        })}}]}).encode(),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def endpoint() -> Iterator[tuple[str, list[str]]]:
    """An endpoint that repeats the key in every way, and the paths at which it was asked with the key."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if KEY in str(self.headers.get("Authorization")):
                asked.append(self.path)
            status, body = REPLIES.get(self.path.split("/")[1], (404, b""))
            self.send_response(status)
            self.send_header("Location", f"/elsewhere/{quote(KEY)}")
            self.send_header("X-Key", KEY)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST

    with answered_by(Handler) as address:
        yield address, asked


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with frames and a task file; the key, and tokens of other services, are in the environment."""
    (tmp_path / "bins").mkdir()
    for number in range(2):
        (tmp_path / "bins" / f"{number}.png").write_bytes(picture(number))
    (tmp_path / "bins" / "frames.csv").write_text("image,parts\n0.png,3\n1.png,\n")
    (tmp_path / "bins.yaml").write_text(TASKS)
    for name, value in {"THE_KEY": KEY, **TOKENS}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str, debug: bool = False) -> str:
    """All that a command shows; with `debug` its stack trace too, as LINESIDE_DEBUG=1 prints it."""
    result = CliRunner(env={"LINESIDE_DEBUG": "1" if debug else ""}).invoke(cli.app, list(words))
    assert result.exit_code not in (70,), result.output
    shown = "".join(traceback.format_exception(result.exception)) if result.exception else ""
    return result.output + shown


def assert_silent(shown: str, folder: Path, *, but: tuple[Path, ...] = ()) -> None:
    """No ten characters of a key stand in what was shown, or in any file."""
    written = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path not in but}
    for part in PARTS:
        assert part not in shown, shown
        assert [path for path, data in written.items() if part.encode() in data] == []


@pytest.mark.parametrize("reply", sorted(REPLIES))
def test_a_labelling_job_tells_no_key(place: Path, endpoint: tuple[str, list[str]], reply: str) -> None:
    address, asked = endpoint
    asked.clear()
    words = ["label", "bins", "samples", "--tasks", "bins.yaml", "--teacher", "api", "--model", "m"]
    words += ["--key-env", "THE_KEY"]
    words += ["--base-url", f"{address}/{reply}/v1", "--attempts", "1", "--backoff", "0", "--patience", "0"]
    shown = run(*words, debug=len(reply) % 2 == 0)  # the message, or the message with its stack trace
    assert asked, shown
    assert set(asked) == {f"/{reply}/v1/chat/completions"}  # the key went there, and followed no redirect
    assert_silent(shown, place)


def test_a_run_and_its_recipe_tell_no_key(place: Path, endpoint: tuple[str, list[str]]) -> None:
    address = f"{endpoint[0]}/unauthorized/v1"
    (place / "r.yaml").write_text(RECIPE % (place / "bins", place / "bins.yaml", address))
    shown = run("train", "r.yaml", debug=True) + run("plan", "r.yaml")
    assert "401" in shown
    assert_silent(shown, place)


@pytest.mark.parametrize(
    "override",
    [
        "data.label.key_env=KEY", "data.label.api_key=KEY", "data.label.base_url=https://me:KEY@host/v1",
        "data.label.key_env=[KEY",
        "data.label.base_url=https://host/v1?key=KEY", "data.label.base_url=KEY", "data.label.key_env=[KEY]",
        'data.label.body={"api_key": "KEY"}', 'data.label.body={"extra_headers": {"Authorization": "Bearer KEY"}}',
        "data.label.body=KEY", "data.label.key_env.x=KEY", "data.label.token=KEY",
    ],
)  # fmt: skip
def test_a_key_in_a_wrong_place_is_refused_and_not_told(place: Path, override: str) -> None:
    changes = ["data.label.teacher=api", "data.label.model=m", override.replace("KEY", KEY)]
    shown = run("plan", "nano", *changes, debug=True)
    assert "data.label" in shown
    assert_silent(shown, place)
    flag = override.split("=")[0].split(".")[2].replace("_", "-")
    shown = run("label", "bins", "samples", "--teacher", "api", f"--{flag}", changes[-1].partition("=")[2])
    assert_silent(shown, place)
    name, _, value = changes[-1].partition("=")
    nested: object = yaml.safe_load(value) if not value.startswith("[sk") else value
    for part in reversed(name.split(".")):
        nested = {part: nested}
    (place / "keyed.yaml").write_text(yaml.safe_dump({"name": "x", **nested}))  # pyright: ignore[reportGeneralTypeIssues]
    with pytest.raises(LinesideError) as refused:
        load_recipe(place / "keyed.yaml")
    assert_silent(str(refused.value), place, but=(place / "keyed.yaml",))


def test_a_file_of_keys_is_told_by_its_lines(place: Path) -> None:
    for text in (f"{KEY} {KEY}\n", f"{KEY[:9]}é{SECRET}\n"):
        (place / "keys").write_text(text)
        with pytest.raises(LinesideError, match=r"keys:1: a key has") as refused:
            read_keys(place / "keys")
        assert_silent("".join(traceback.format_exception(refused.value)), place, but=(place / "keys",))


def test_the_hub_alone_gets_its_token_and_it_is_not_told(place: Path) -> None:
    """A hub that sends on to another host, which answers with damage; in a process of its own, as the hub's address is
    read once."""
    asked: dict[str, list[str]] = {"hub": [], "other": []}

    def handler(name: str, onward: str) -> type[http.server.BaseHTTPRequestHandler]:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked[name].append(str(self.headers))
                sent_on = onward and self.path.endswith(".json")
                body = b"" if sent_on else told(str(self.headers.get("Authorization")))
                self.send_response(307 if sent_on else 200)
                self.send_header("Location", f"{onward}{self.path}")
                self.send_header("ETag", '"x"')
                self.send_header("X-Repo-Commit", "0" * 40)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(b"" if self.command == "HEAD" else body)

            do_HEAD = do_POST = do_GET

        return Handler

    with answered_by(handler("other", "")) as other, answered_by(handler("hub", other)) as hub:
        code = "from lineside.model.parts import load_tower; load_tower('owner/name')"
        environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(place / "hub"), "HF_HUB_OFFLINE": "0"}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )
    assert done.returncode == 1 and "LinesideError: cannot load the vision tower 'owner/name'" in done.stderr, (
        done.stderr
    )
    assert any(f"Bearer {TOKENS['HF_TOKEN']}" in headers for headers in asked["hub"])
    assert asked["other"]
    for headers in asked["other"]:
        assert not [part for part in PARTS if part in headers]
    for headers in asked["hub"]:
        assert not [part for part in PARTS if part in headers.replace(TOKENS["HF_TOKEN"], "")]
    assert_silent(done.stdout + done.stderr, place)


@pytest.mark.parametrize(
    ("address", "key"), [("http://me:KEY@home:1", ""), ("http://home:1", "KEY\nX: y"), ("http://home:1", "KEY KEY")]
)
def test_the_address_and_the_key_of_home_are_not_told(place: Path, address: str, key: str) -> None:
    with pytest.raises(LinesideError, match=r"address|holds no key") as refused:
        Home(address.replace("KEY", KEY), key.replace("KEY", KEY))
    assert_silent("".join(traceback.format_exception(refused.value)), place)


def test_what_home_answers_tells_no_key(place: Path, endpoint: tuple[str, list[str]]) -> None:
    home = Home(f"{endpoint[0]}/unauthorized", KEY)
    with pytest.raises(LinesideError, match="status 401") as refused:
        home.state()
    home.close()
    assert_silent("".join(traceback.format_exception(refused.value)), place)
