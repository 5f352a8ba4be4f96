"""Ask a public database of known faults about every locked package: `make audit`. It needs the network.

    python scripts/audit.py [LOCK ...] [--osv-url URL] [--timeout 15]

By default it asks about requirements-dev.lock, and about constraints.txt, which alone names torch and the tools of
`make lock` and `make fuzz`. pip-audit asks. It passes a package by that the database could not be asked about, and
still ends with 0; here such a package counts as not checked. Exit status 0: no fault is known. 1: some are, by package.
2: not all could be checked.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LOCKS = [ROOT / "requirements-dev.lock", ROOT / "constraints.txt"]
SHOWN = 5


def ask_all(locks: Sequence[Path], osv_url: str | None, timeout: int) -> tuple[list[dict[str, Any]], str]:
    """(what pip-audit says of each package, its first error). A file that is no .lock has versions without hashes."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    problem = ""
    for hashed in (True, False):
        if some := [lock for lock in locks if (lock.suffix == ".lock") is hashed]:
            told, error = ask(some, osv_url, timeout, hashed=hashed)
            found |= {(one["name"], one.get("version", "")): one for one in told}
            problem = problem or error
    return list(found.values()), problem


def ask(locks: Sequence[Path], osv_url: str | None, timeout: int, *, hashed: bool) -> tuple[list[dict[str, Any]], str]:
    """(what pip-audit says of each package, its error)."""
    command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--format", "json"]
    command += ["--require-hashes" if hashed else "--no-deps"]
    command += ["--progress-spinner", "off", "--timeout", str(timeout)]
    command += ["--vulnerability-service", "osv", "--osv-url", osv_url] if osv_url else []
    for lock in locks:
        command += ["--requirement", str(lock)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return json.loads(done.stdout)["dependencies"], ""
    except (ValueError, KeyError, TypeError):
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["pip-audit says nothing"]
        return [], re.sub(r"^\w+:\S+:", "", lines[-1])[:300]


def main() -> int:
    """Ask, print the faults, say what could not be checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("locks", nargs="*", type=Path, default=LOCKS, metavar="LOCK")
    parser.add_argument("--osv-url", help="the address of an OSV database; by default PyPI's own is asked")
    parser.add_argument("--timeout", type=int, default=15, help="seconds for an answer")
    chosen = parser.parse_args()
    found, problem = ask_all(chosen.locks, chosen.osv_url, chosen.timeout)
    skipped = [one for one in found if "skip_reason" in one]
    faulty = [one for one in found if one.get("vulns")]
    for one in faulty:
        for fault in one["vulns"]:
            fixed = f"; mended in {', '.join(fault['fix_versions'])}" if fault.get("fix_versions") else ""
            print(f"{one['name']} {one['version']}: {fault['id']}{fixed}")
    if problem or skipped or not found:
        names = ", ".join(one["name"] for one in skipped[:SHOWN]) + (" ..." if len(skipped) > SHOWN else "")
        what = f"{len(skipped)} of {len(found)} packages ({names})" if found else "nothing"
        told = f"audit: {what} could not be checked" if found else "audit: nothing was checked"
        why = problem or (skipped[0]["skip_reason"][:200] if skipped else "the lock names no package")
        print(f"{told}: the database of known faults did not answer for them ({why}); run it where it can be reached")
        return 2
    if faulty:
        print(f"audit: {len(faulty)} of {len(found)} packages have known faults: `make lock` takes newer versions")
        return 1
    print(f"audit: no fault is known of {len(found)} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
