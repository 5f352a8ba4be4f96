"""What is installed is what was locked, by version and hash; known faults are asked for, or it is said that not."""

from __future__ import annotations

import http.server
import json
import re
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.conftest import answered_by

ROOT = Path(__file__).parents[1]
LOCKS = {"demo": ["demo"], "dev": ["demo", "dev"]}
ELSEWHERE = {"torch", "lineside"}  # torch goes in first and alone


def locked(name: str) -> dict[str, tuple[str, list[str]]]:
    """Name -> (version, hashes) of a lock."""
    text = (ROOT / f"requirements-{name}.lock").read_text().replace("\\\n", " ")
    found: dict[str, tuple[str, list[str]]] = {}
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            pinned = re.match(r"([A-Za-z0-9._-]+)==([^\s;]+)", line)
            assert pinned, line
            hashes = re.findall(r"--hash=sha256:([0-9a-f]{64})\b", line)
            found.setdefault(canonicalize_name(pinned[1]), (pinned[2], hashes))
    return found


def wanted(extra: str) -> Iterator[Requirement]:
    """The requirements of the package with an extra, those of the extras that it names too."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in (*project["dependencies"], *project["optional-dependencies"][extra]):
        requirement = Requirement(text)
        if requirement.name == "lineside":
            for inner in requirement.extras:
                yield from wanted(inner)
        else:
            yield requirement


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_has_every_package_with_its_hashes(name: str) -> None:
    found = locked(name)
    assert all(hashes for _, hashes in found.values()) and not ELSEWHERE & found.keys()
    assert not any("nvidia" in package or package == "triton" for package in found)
    for extra in LOCKS[name]:
        for requirement in wanted(extra):
            if (package := canonicalize_name(requirement.name)) not in ELSEWHERE:
                assert package in found, f"{package} is not locked: run `make lock`"
                assert requirement.specifier.contains(found[package][0]), f"{requirement}: run `make lock`"
    assert (ROOT / f"requirements-{name}.lock").stat().st_size < 1 << 20


def test_make_installs_nothing_else() -> None:
    lines = [line for line in (ROOT / "Makefile").read_text().splitlines() if "$(PIP)" in line]
    sound = [line for line in lines if "--no-deps" in line or "$(TORCH)" in line or "constraints.txt uv" in line]
    assert lines == sound


def test_the_bill_of_materials_names_what_is_installed(tmp_path: Path) -> None:
    out = tmp_path / "sbom.json"
    command = [sys.executable, "-m", "cyclonedx_py", "environment", "--no-validate", "--output-file", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    found = json.loads(out.read_text())
    assert found["bomFormat"] == "CycloneDX" and found["specVersion"] >= "1.5"
    named = {part["name"]: part["version"] for part in found["components"]}
    for name in ("torch", "transformers", "numpy"):
        assert Version(named[name]) == Version(version(name))


# --- make audit

SMALL = "alpha==1.0 --hash=sha256:{0}\nbeta==2.0 --hash=sha256:{0}\n".format("0" * 64)
FAULT = {
    "id": "GHSA-1", "modified": "2026-01-01T00:00:00Z", "details": "a hole", "aliases": [],
    "affected": [{"package": {"name": "beta", "ecosystem": "PyPI"},
                  "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "2.1"}]}]}],
}  # fmt: skip


@pytest.fixture
def database() -> Iterator[tuple[str, dict[str, object]]]:
    """A database of faults in OSV's form, and what it answers by package."""
    faults: dict[str, object] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body = json.dumps(faults.get(asked["package"]["name"], {})).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with answered_by(Handler) as address:
        yield f"{address}/", faults


def audit(tmp_path: Path, address: str, *, pinned: str = "") -> tuple[int, str]:
    """`pinned`: packages without a hash, as in constraints.txt."""
    (tmp_path / "small.lock").write_text(SMALL)
    (tmp_path / "pinned.txt").write_text(pinned)
    files = [str(tmp_path / "small.lock"), *([str(tmp_path / "pinned.txt")] if pinned else [])]
    command = [sys.executable, str(ROOT / "scripts" / "audit.py"), *files, "--osv-url", address]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    return done.returncode, done.stdout + done.stderr


def test_known_faults_are_told_with_the_version_that_mends_them(
    tmp_path: Path, database: tuple[str, dict[str, object]]
) -> None:
    address, faults = database
    assert audit(tmp_path, address) == (0, "audit: no fault is known of 2 packages\n")
    faults["beta"] = {"vulns": [FAULT]}
    status, told = audit(tmp_path, address)
    assert status == 1 and "beta 2.0: GHSA-1; mended in 2.1" in told and "1 of 2 packages" in told
    faults["gamma"] = {"vulns": [json.loads(json.dumps(FAULT).replace("beta", "gamma"))]}
    status, told = audit(tmp_path, address, pinned="# by version\ngamma==2.0\n")
    assert status == 1 and "gamma 2.0: GHSA-1; mended in 2.1" in told and "2 of 3 packages" in told


def test_the_database_is_asked_about_what_no_lock_holds() -> None:
    asked = runpy.run_path(str(ROOT / "scripts" / "audit.py"))["LOCKS"]
    text = "".join(path.read_text() for path in asked)
    for name in ("torch", "uv", "atheris", "pip-audit"):
        assert re.search(rf"^{name}==[0-9]", text, re.M), name


def test_a_database_that_cannot_be_reached_is_no_clean_bill(tmp_path: Path) -> None:
    status, told = audit(tmp_path, "http://127.0.0.1:9/")
    assert status == 2 and "nothing was checked" in told and "did not answer" in told
