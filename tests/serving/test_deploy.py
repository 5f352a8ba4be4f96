"""What docs/serve.md says of services: the unit is one that systemd takes; the container file fits the source."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.main import get_command

from lineside.cli import app

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze on this machine")
def test_the_systemd_unit_is_valid(tmp_path: Path) -> None:
    (unit,) = re.findall(r"```ini\n(.*?)```", PAGE, re.DOTALL)
    unit = unit.replace("/opt/lineside/bin/lineside", sys.executable).replace("User=lineside", "User=root")
    (tmp_path / "lineside.service").write_text(unit)
    done = subprocess.run(
        ["systemd-analyze", "verify", str(tmp_path / "lineside.service")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "lineside.service" not in done.stderr, done.stderr


def test_the_container_file_fits_the_source() -> None:
    """No Docker here: what it copies and pins is in the source, and its command and its check are the server's."""
    (file,) = re.findall(r"```dockerfile\n(.*?)```", PAGE, re.DOTALL)
    lines = [line.split(maxsplit=1) for line in file.splitlines()]
    copied = [word for name, rest in lines if name == "COPY" for word in rest.split()[:-1]]
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert "src" in copied and all((ROOT / name).exists() and name not in ignored for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {project["readme"], *project["license-files"]} <= set(copied)  # what the build reads
    (lock,) = re.findall(r"--requirement /src/(\S+)", file)
    assert lock in copied and "uvicorn==" in (ROOT / lock).read_text()
    order = [name for name, _ in lines]
    assert order.index("USER") < order.index("ENTRYPOINT") and "useradd --create-home lineside" in file
    told = {name: json.loads(rest) for name, rest in lines if name in ("ENTRYPOINT", "CMD")}
    program, verb, *options = told["ENTRYPOINT"]
    known = {option for parameter in get_command(app).commands[verb].params for option in parameter.opts}  # type: ignore[attr-defined]
    assert program == "lineside" and {word for word in options if word.startswith("-")} <= known
    assert re.fullmatch(r"model=/model/\w+/checkpoint", *told["CMD"])
    (health,) = (rest for name, rest in lines if name == "HEALTHCHECK")
    port, path = re.findall(r"http://127\.0\.0\.1:(\d+)(/\w+)", health)[0]
    assert ["EXPOSE", port] in lines and path == "/readyz"
    compile(json.loads(health.partition("CMD ")[2])[-1], "HEALTHCHECK", "exec")


def test_every_page_pins_the_torch_of_the_constraints() -> None:
    (pin,) = re.findall(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    pinned = [found for page in pages for found in re.findall(r"torch==([\d.]+\d)", page.read_text(encoding="utf-8"))]
    assert len(pinned) >= 2 and set(pinned) == {pin}
