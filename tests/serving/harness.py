"""A server under load. For hostile requests see tests/torture/hostile.py.

    python tests/serving/harness.py [--checkpoint FOLDER] [--rate 1.5] [--seconds 60] [--deadline 300]

Frames come at random times, `--rate` times as many as the server answers one after another, each with a deadline. Of
the accepted answers fewer than 0.1% may come over 10% late, by the server's clock. What the client saw stands beside
it, and how late the client's own clock woke up. Writes benchmarks/out/serve-harness.json; the exit status says whether
the claim holds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import httpx2  # noqa: E402

from tests.serving.conftest import KEY, Served, make_checkpoint, serving, turn, url  # noqa: E402
from tests.torture.hostile import CHAT  # noqa: E402


async def load(server: Served, *, rate: float, seconds: float, deadline: float, seed: int = 0) -> dict[str, Any]:
    """An open loop of requests; what became of them."""
    chance = random.Random(seed)
    headers = {"Authorization": f"Bearer {KEY}"}
    times: list[float] = []  # as the server measured them
    seen: list[float] = []  # as the client did
    stalls: list[float] = []
    counts = {"sent": 0, "refused": 0, "other": 0, "cut": 0, "off": 0}
    async with httpx2.AsyncClient(base_url=server.address, headers=headers, timeout=60) as client:

        async def ask(number: int, given: float | None) -> float:
            own = {"task": "cells/count"} if given is None else {"task": "cells/count", "deadline_ms": given}
            body = {
                "model": "tiny",
                "messages": turn("How many parts?", url(number)),
                "max_tokens": 40,
                "lineside": own,
            }
            start = time.monotonic()
            answer = await client.post(CHAT, json=body)
            spent = 1000 * (time.monotonic() - start)
            if given is None:
                return spent
            if answer.status_code == 200:
                own = answer.json()["lineside"]
                seen.append(spent)
                times.append(own["ms"]["total"])
                thinking = own["thinking"]
                counts[thinking] = counts.get(thinking, 0) + 1
            else:
                counts["refused" if answer.status_code == 503 else "other"] += 1
            return spent

        alone = statistics.median([await ask(number, None) for number in range(8)])
        tasks, end = [], time.monotonic() + seconds
        while time.monotonic() < end:
            wait = chance.expovariate(rate * 1000 / alone)
            due = time.monotonic() + wait
            await asyncio.sleep(wait)
            stalls.append(1000 * (time.monotonic() - due))
            counts["sent"] += 1
            tasks.append(asyncio.create_task(ask(1000 + counts["sent"], deadline)))
        await asyncio.gather(*tasks)
    over = sum(spent > 1.1 * deadline for spent in times)
    return {
        **counts,
        "answered": len(times),
        "alone_ms": alone,
        "p50_ms": statistics.median(times) if times else None,
        "late": sum(spent > deadline for spent in times) / max(1, len(times)),
        "late_over_10": over / max(1, len(times)),
        "client_p50_ms": statistics.median(seen) if seen else None,
        "client_late_over_10": sum(spent > 1.1 * deadline for spent in seen) / max(1, len(seen)),
        "in_time_per_s": sum(spent <= deadline for spent in times) / seconds,
        "client_stall_p99_ms": sorted(stalls)[int(0.99 * len(stalls))] if stalls else None,
    }


def main() -> int:
    """Load a server and write the claim."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--rate", type=float, default=1.5)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--deadline", type=float, default=300.0)
    chosen = parser.parse_args()
    command = " ".join(["python", "tests/serving/harness.py", *sys.argv[1:]])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = chosen.checkpoint or make_checkpoint(folder / "checkpoint")
        (folder / "keys").write_text(KEY + "\n")
        with serving(checkpoint, folder / "keys") as server:
            found = asyncio.run(load(server, rate=chosen.rate, seconds=chosen.seconds, deadline=chosen.deadline))
    print(json.dumps(found, indent=2))
    share = found["late_over_10"]
    one = {"claim": "accepted answers over 10% late", "value": share, "at_most": 0.001}
    claims = [{**one, "holds": share < 0.001, "n": found["answered"], "command": command, **found}]
    out = ROOT / "benchmarks" / "out" / "serve-harness.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(claims, indent=2) + "\n")
    for claim in claims:
        print(f"{claim['claim']}: {claim['value']} (n {claim['n']}): {'holds' if claim['holds'] else 'DOES NOT HOLD'}")
    return 0 if all(claim["holds"] for claim in claims) else 1


if __name__ == "__main__":
    sys.exit(main())
