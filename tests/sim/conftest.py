"""Frames of the simulator where something can render, and where the task files lie."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

import lineside
from lineside.data.taskfile import Task, load_task_file
from lineside.errors import LinesideError
from lineside.types import Frame


@cache
def tasks_of(family: str) -> tuple[Task, ...]:
    """The tasks that the package has for a family."""
    return load_task_file(Path(lineside.__file__).parent / "tasks" / f"{family}.yaml").tasks


@pytest.fixture(scope="session")
def real_frames() -> Callable[[str, int], list[Frame]]:
    """`real_frames(family, count)`: rendered once a session; skips where there is no renderer."""

    @cache
    def frames(family: str, count: int) -> list[Frame]:
        from lineside.sim.world import generate_frames

        try:
            return list(generate_frames(family=family, count=count, seed=11))
        except LinesideError as error:
            pytest.skip(f"no renderer: {error}")

    return frames
