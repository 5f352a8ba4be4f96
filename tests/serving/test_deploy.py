"""What docs/serve.md says of services: the unit is one that systemd takes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "serve.md").read_text(encoding="utf-8")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze on this machine")
def test_the_systemd_unit_is_valid(tmp_path: Path) -> None:
    (unit,) = re.findall(r"```ini\n(.*?)```", PAGE, re.DOTALL)
    unit = unit.replace("/opt/lineside/bin/lineside", sys.executable).replace("User=lineside", "User=root")
    (tmp_path / "lineside.service").write_text(unit)
    done = subprocess.run(
        ["systemd-analyze", "verify", str(tmp_path / "lineside.service")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "lineside.service" not in done.stderr, done.stderr
