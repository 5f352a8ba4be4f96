"""Chooses the OpenGL backend for MuJoCo: EGL or OSMesa. A subprocess tries to make a context with each."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from lineside.errors import LinesideError
from lineside.machine import lacking

BACKENDS = ("egl", "osmesa")
INSTALL = "apt-get install -y libegl1 libgl1-mesa-dri   (or: apt-get install -y libosmesa6)"
# A missing library or driver can abort the interpreter, so the trial runs in another process.
_TRIAL = (
    "import mujoco; c = mujoco.GLContext(16, 16); c.make_current(); "
    "m = mujoco.MjModel.from_xml_string('<mujoco/>'); "
    "r = mujoco.MjrContext(m, mujoco.mjtFontScale.mjFONTSCALE_50.value); r.free(); c.free()"
)


def mujoco() -> Any:
    """The module `mujoco`. Raises LinesideError if it is not installed."""
    if find_spec("mujoco") is None:
        raise lacking("mujoco", "the simulator")
    return import_module("mujoco")


def trial(backend: str, timeout: float = 60.0) -> str:
    """Try to make a rendering context. Returns "" if it works, else the last line of the error."""
    env = {**os.environ, "MUJOCO_GL": backend, "PYOPENGL_PLATFORM": backend}
    try:
        done = subprocess.run([sys.executable, "-c", _TRIAL], env=env, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return f"no context within {timeout:.0f} s"
    if done.returncode == 0:
        return ""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"exit status {done.returncode}"


def choose_backend() -> str:
    """The backend to use. It is also written into MUJOCO_GL, for MuJoCo and for child processes.

    The user's own MUJOCO_GL is kept if it works. Raises LinesideError with the packages to install if no backend
    works, or if MuJoCo is missing.
    """
    mujoco()
    if os.environ.get("LINESIDE_GL_CHECKED") and os.environ.get("MUJOCO_GL"):
        return os.environ["MUJOCO_GL"]
    wanted = os.environ.get("MUJOCO_GL", "").lower()
    reasons = []
    for backend in (wanted,) if wanted else BACKENDS:
        reason = trial(backend)
        if not reason:
            # One process renders on one core: Mesa's own threads would take time from the other workers.
            os.environ.setdefault("LP_NUM_THREADS", "0")
            os.environ.update(MUJOCO_GL=backend, PYOPENGL_PLATFORM=backend, LINESIDE_GL_CHECKED="1")
            return backend
        reasons.append(f"{backend}: {reason}")
    raise LinesideError(
        "MuJoCo cannot render without a screen ("
        + "; ".join(reasons)
        + f"). Install one: {INSTALL}"
        + (f"; or unset MUJOCO_GL={wanted}" if wanted else "")
    )
