"""Every comparison, one after another, and the table: `make bench` runs this.

    python benchmarks/run_all.py [--tiny] [--growth] [--device cuda]

Each script runs in its own process and puts its rows into benchmarks/out/results.json, which starts empty. A script
that fails is named at the end, and the exit status is 1. It is also 1 when a claim does not hold or two sides are not
equal. `--growth` runs the growth scripts too, which make no claim and take longer than all others together. The claims
are those of a CPU that multiplies bf16 faster than float32. On another CPU both sides compute in float32, and nothing
is claimed. On a GPU the row of vLLM is left out.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

from common import OUT, Options, table

HERE = Path(__file__).parent
SCRIPTS = (
    "matrix_share.py",
    "loss_memory.py",
    "sft_speed.py",
    "align_speed.py",
    "rollout_speed.py",
    "vllm_speed.py",
    "evaluate_speed.py",
    "grpo_step.py",
    "no_critic.py",
)
GROWTH = ("growth_compute.py", "growth_data.py")


def run(arguments: list[str], file: str) -> int:
    """All scripts with these arguments; prints the table of `file`."""
    growth, scripts = "--growth" in arguments, SCRIPTS
    if "cuda" in arguments:
        scripts = tuple(script for script in scripts if script != "vllm_speed.py")
    arguments = [word for word in arguments if word != "--growth"]
    (OUT / file).unlink(missing_ok=True)
    failed = []
    for script in scripts + (GROWTH if growth else ()):
        print(f"== {script}", flush=True)
        if subprocess.run([sys.executable, "-W", "ignore", str(HERE / script), *arguments], check=False).returncode:
            failed.append(script)
    rows = json.loads((OUT / file).read_text()) if (OUT / file).exists() else []
    print(f"\n{table(rows)}\n\n{len(rows)} rows in {OUT / file}")
    missed = [r["work"] for r in rows if r["at_least"] is not None and r["ratio"] < r["at_least"]]
    unequal = [r["work"] for r in rows if r["equal"] is False]
    for words, names in (("failed", failed), ("below the claim", missed), ("not equal", unequal)):
        if names:
            print(f"{words}: {'; '.join(names)}")
    return 1 if failed or missed or unequal else 0


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv):
        print(__doc__)
        sys.exit(0)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # subprocess then ends the script that runs
    sys.exit(run(sys.argv[1:], Options(tiny="--tiny" in sys.argv, device="cuda" if "cuda" in sys.argv else "cpu").file))
