"""How well the simulator's teacher sees: a number from 0 to 1, and three names for teachers that exist.

At 1 it sees what is there; below 1 it makes errors (`lineside.sim.perception`). A name stands for the accuracy that
published models reach on industrial pictures, here as the mean over the simulator's seventeen tasks:

    strong   about 85%   the best models on DS-MVTec, the easiest part of MMAD: GPT-4o 84.8%, Qwen2.5-VL-72B 86.8%
    typical  about 75%   the best models on all of MMAD: GPT-4o 74.9%, Qwen2.5-VL-72B 77.0%
    weak     about 65%   smaller models on all of MMAD: GPT-4o-mini 66.3%, InternVL2-8B 63.1%, LLaVA-1.5-7B 54.7%

MMAD has 39,672 questions about 8,366 pictures from industrial inspection (arXiv 2410.09453; the numbers of each model
and set are in the folder all_result of github.com/jam-cc/MMAD). Counting in cluttered pictures is harder: the best of
fifteen models counts exactly in 42.9% of them (CountQA).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from lineside.errors import LinesideError

PERFECT = 1.0
ACUITIES: Mapping[str, float] = {"strong": 0.75, "typical": 0.5, "weak": 0.2}


def acuity_of(given: str | float) -> float:
    """The acuity that a name or a number stands for. Raises LinesideError for anything else."""
    if isinstance(given, str) and given in ACUITIES:
        return ACUITIES[given]
    try:
        value = float(given)
    except ValueError:
        near = difflib.get_close_matches(str(given), ACUITIES, n=1)
        raise LinesideError(
            f"{given!r} is not an acuity: expected a number from 0 to 1 or one of {', '.join(ACUITIES)}"
            + (f"; did you mean {near[0]!r}?" if near else "")
        ) from None
    if not 0.0 <= value <= 1.0:
        raise LinesideError(f"{given} is not an acuity: expected 0 to 1, or one of {', '.join(ACUITIES)}")
    return value
