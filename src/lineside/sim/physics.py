"""Physics: drops bodies between walls with MuJoCo. The result is where they lie, and which body lies on which.

A small model is compiled for each drop (1 or 2 ms), so masses, inertias and bounds always fit the bodies. The floor
plane belongs to the world body, because on a static child body some MuJoCo releases overflow their broad phase.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lineside.errors import LinesideError
from lineside.sim.backend import mujoco
from lineside.sim.shapes import Primitive

TIMESTEP = 0.005
CHUNK = 20  # steps between two tests whether everything lies still
STILL = 0.03  # m/s
# For forty bodies, conjugate gradients take about half of Newton's time, and the bodies overlap as little.
_OPTION = (
    f'<option timestep="{TIMESTEP}" solver="CG" iterations="10" viscosity="0.08"><flag midphase="disable"/></option>'
)


@dataclass(frozen=True, slots=True)
class Body:
    """A body that falls. Position (3,) in m and rotation quaternion (w, x, y, z) at the start."""

    primitives: tuple[Primitive, ...]
    position: np.ndarray
    quaternion: np.ndarray
    density: float = 350.0
    rolling: bool = False  # round: it needs rolling friction to stop


@dataclass(frozen=True, slots=True)
class Wall:
    """A fixed box: centre and half sizes in m."""

    centre: tuple[float, float, float]
    half: tuple[float, float, float]


@dataclass(slots=True)
class Rest:
    """Where the n bodies lie: positions (n, 3), quaternions (n, 4), and pairs (lower, upper) of which one lies on the
    other."""

    positions: np.ndarray
    quaternions: np.ndarray
    supports: frozenset[tuple[int, int]]
    _model: Any
    _data: Any

    def heights(self, points: np.ndarray, top: float = 1.0) -> np.ndarray:
        """Height of the highest body over each floor point, (n, 2) -> (n,) in m; 0 where there is none."""
        mj = mujoco()

        if not len(self.positions):
            return np.zeros(len(points))
        group = np.array([0, 1, 0, 0, 0, 0], np.uint8)  # bodies are in group 1, walls and floor in group 0
        hit, down, start = np.zeros(1, np.int32), np.array([0.0, 0.0, -1.0]), np.array([0.0, 0.0, top])
        result = np.zeros(len(points))
        for k, (x, y) in enumerate(points):
            start[:2] = x, y
            far = mj.mj_ray(self._model, self._data, start, down, group, 1, -1, hit)
            result[k] = top - far if far >= 0 else 0.0
        return result


def drop(bodies: Sequence[Body], walls: Sequence[Wall], *, seconds: float) -> Rest:
    """Let the bodies fall until they lie still, at most for `seconds` of simulated time."""
    mj = mujoco()

    model = mj.MjModel.from_xml_string(_mjcf(bodies, walls))
    data = mj.MjData(model)
    for _ in range(max(1, round(seconds / TIMESTEP / CHUNK))):
        mj.mj_step(model, data, CHUNK)
        if not bodies or np.abs(data.qvel.reshape(-1, 6)[:, :3]).max() < STILL:
            break
    if not np.isfinite(data.qpos).all():
        raise LinesideError("the physics of a simulated scene diverged; report the seed, week and scene number")
    pose = data.qpos.reshape(-1, 7)
    return Rest(pose[:, :3].copy(), pose[:, 3:].copy(), _supports(model, data), model, data)


def _mjcf(bodies: Sequence[Body], walls: Sequence[Wall]) -> str:
    lines = [f'<mujoco>{_OPTION}<size memory="24M"/><worldbody><geom type="plane" size="4 4 .1"/>']
    lines += [f'<geom type="box" pos="{_text(w.centre)}" size="{_text(w.half)}"/>' for w in walls]
    for body in bodies:
        lines.append(f'<body pos="{_text(body.position)}" quat="{_text(body.quaternion)}"><freejoint/>')
        extra = ' condim="6" friction="0.8 0.01 0.004"' if body.rolling else ' friction="0.7"'
        for p in body.primitives:
            lines.append(
                f'<geom group="1" type="{p.type}" size="{_text(p.size)}" pos="{_text(p.centre)}"'
                f' density="{body.density}"{extra}/>'
            )
        lines.append("</body>")
    return "".join([*lines, "</worldbody></mujoco>"])


def _text(numbers: Sequence[float] | np.ndarray) -> str:
    return " ".join(f"{float(n):.6g}" for n in numbers)


def _supports(model: Any, data: Any) -> frozenset[tuple[int, int]]:
    pairs = set()
    for contact in data.contact[: data.ncon]:
        first, second = (int(model.geom_bodyid[g]) for g in contact.geom)
        upward = float(contact.frame[2])  # of the normal, which points from the first geom to the second
        if first and second and abs(upward) > 0.3:
            pairs.add((first - 1, second - 1) if upward > 0 else (second - 1, first - 1))
    return frozenset(pairs)
