"""Ground truth by hand: runs, points, shares seen, and physics that can be worked out on paper."""

from __future__ import annotations

import os

import numpy as np
import pytest

from lineside.errors import LinesideError
from lineside.sim import backend
from lineside.sim.physics import Body, Wall, drop
from lineside.sim.poses import about, matrices, quaternion
from lineside.sim.shapes import Primitive, all_meshes
from lineside.sim.truth import MASK_SIDE, look, runs

UPRIGHT = np.array([1.0, 0.0, 0.0, 0.0])


@pytest.fixture(scope="module")
def renderer():
    from lineside.sim.render import renderer

    try:
        return renderer()
    except LinesideError as error:
        pytest.skip(f"no renderer: {error}")


def decode(mask: dict) -> np.ndarray:
    values = np.zeros(len(mask["runs"]), bool)
    values[1::2] = True
    return np.repeat(values, mask["runs"]).reshape(mask["height"], mask["width"])


def test_runs_alternate_off_and_on() -> None:
    assert runs(np.array([[False, True, True], [True, False, False]])) == [1, 3, 2]
    assert runs(np.array([[True, False]])) == [0, 1, 1]
    assert runs(np.zeros((2, 2), bool)) == [4]


def test_look_of_a_square() -> None:
    mask = np.zeros((224, 224), bool)
    mask[40:80, 100:140] = True  # rows 40..79, columns 100..139
    sight = look(mask, 0.5)
    assert sight.pixels == 1600 and sight.visible == 0.5
    assert sight.box == (round(100 / 224, 3), round(40 / 224, 3), round(140 / 224, 3), round(80 / 224, 3))
    assert sight.x == pytest.approx(120 / 224, abs=0.005) and sight.y == pytest.approx(60 / 224, abs=0.005)
    assert decode(sight.mask).sum() == 100  # 10 x 10 cells of 4 pixels
    assert decode(sight.mask)[10:20, 25:35].all()


def test_the_point_of_a_ring_lies_on_the_ring() -> None:
    y, x = np.mgrid[0:224, 0:224]
    radius = np.hypot(x - 112, y - 112)
    sight = look((radius > 40) & (radius < 60), 1.0)
    assert 40 < np.hypot(sight.x * 224 - 112, sight.y * 224 - 112) < 60
    assert decode(sight.mask)[int(sight.y * MASK_SIDE), int(sight.x * MASK_SIDE)]


def test_a_single_pixel_still_has_a_mask() -> None:
    mask = np.zeros((224, 224), bool)
    mask[223, 0] = True
    assert decode(look(mask, 0.1).mask)[55, 0]


def flat(x: float, z: float, half: float, thing_id: int):
    from lineside.sim.render import Thing

    return Thing("box", np.array([x, 0.0, z]), np.eye(3), (half, half, 0.001), id=thing_id, reach=2 * half)


def test_share_seen_is_the_uncovered_share(renderer) -> None:
    from lineside.sim.render import look_at
    from lineside.sim.truth import sights

    # Far above, so that perspective hardly matters: the upper square covers half, then all, of the lower one.
    corners = np.array([(x, y, 0.0) for x in (-0.2, 0.2) for y in (-0.2, 0.2)])
    camera = look_at(corners, tilt=0, azimuth=0, roll=0, fovy=10, margin=1.0)
    half = sights(renderer, [flat(0.0, 0.0, 0.08, 1), flat(0.08, 0.01, 0.08, 2)], camera, 224)
    assert half[1].visible == pytest.approx(0.5, abs=0.03) and half[2].visible == 1.0
    buried = sights(renderer, [flat(0.0, 0.0, 0.08, 1), flat(0.0, 0.01, 0.1, 2)], camera, 224)
    assert set(buried) == {2}
    # Scenery hides as well, and is never counted.
    hidden = sights(renderer, [flat(0.0, 0.0, 0.08, 1), flat(0.08, 0.01, 0.08, 0)], camera, 224)
    assert set(hidden) == {1} and hidden[1].visible == pytest.approx(0.5, abs=0.03)


def test_camera_projects_as_the_renderer_draws(renderer) -> None:
    from lineside.sim.render import look_at

    corners = np.array([(x, y, 0.0) for x in (-0.2, 0.2) for y in (-0.2, 0.2)])
    camera = look_at(corners, tilt=25, azimuth=15, roll=5, fovy=40, margin=1.1)
    image = renderer.ids([flat(0.1, 0.0, 0.01, 7)], camera, 224)
    y, x = np.nonzero(image == 7)
    assert (x.mean() + 0.5) / 224 == pytest.approx(camera.project(np.array([[0.1, 0.0, 0.0]]))[0, 0], abs=0.004)
    assert (y.mean() + 0.5) / 224 == pytest.approx(camera.project(np.array([[0.1, 0.0, 0.0]]))[0, 1], abs=0.004)
    inside = camera.project(corners)
    assert (inside >= 0).all() and (inside <= 1).all()


def test_bodies_come_to_rest_on_the_floor_and_on_each_other() -> None:
    box = (Primitive("box", (0.05, 0.05, 0.02)),)
    rest = drop(
        [Body(box, np.array([0, 0, 0.03]), UPRIGHT), Body(box, np.array([0.01, 0, 0.075]), UPRIGHT)], [], seconds=1.0
    )
    assert rest.positions[:, 2] == pytest.approx([0.02, 0.06], abs=0.002)
    assert rest.supports == {(0, 1)}  # the first lies under the second
    heights = rest.heights(np.array([[0.0, 0.0], [0.3, 0.3]]))
    assert heights == pytest.approx([0.08, 0.0], abs=0.003)


def test_walls_hold_a_rolling_body() -> None:
    walls = [Wall((0.1 * s, 0, 0.1), (0.01, 0.2, 0.1)) for s in (-1, 1)]
    ball = Body((Primitive("sphere", (0.03,)),), np.array([0.05, 0, 0.2]), UPRIGHT, rolling=True)
    assert abs(drop([ball], walls, seconds=1.5).positions[0, 0]) <= 0.061


def test_a_drop_of_nothing_is_empty() -> None:
    rest = drop([], [], seconds=0.1)
    assert rest.positions.shape == (0, 3) and rest.heights(np.zeros((3, 2))).tolist() == [0, 0, 0]


@pytest.mark.parametrize("axis", ["x", "y", "z"])
@pytest.mark.parametrize("angle", [0, 37, 90, 180, 271])
def test_rotations_and_quaternions_agree(axis: str, angle: float) -> None:
    matrix = about(axis, angle)
    assert np.linalg.det(matrix) == pytest.approx(1)
    assert matrices(quaternion(matrix))[0] == pytest.approx(matrix, abs=1e-12)


def test_a_quarter_turn_about_z_takes_x_to_y() -> None:
    assert about("z", 90) @ [1, 0, 0] == pytest.approx([0, 1, 0], abs=1e-12)


def test_meshes_are_closed_outward_and_textured_within_the_atlas() -> None:
    for name, mesh in all_meshes().items():
        a, b, c = (mesh.vertices[mesh.faces[:, k]] for k in range(3))
        volume = float((a * np.cross(b, c)).sum() / 6)  # positive when every face turns outward
        bounds = np.prod(mesh.vertices.max(0) - mesh.vertices.min(0))
        assert 0.2 * bounds < volume <= bounds * 1.0001, name
        assert (mesh.uv >= 0).all() and (mesh.uv <= 1).all(), name
        assert np.linalg.norm(mesh.normals, axis=1) == pytest.approx(1, abs=1e-6), name


def test_no_backend_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.delenv("LINESIDE_GL_CHECKED", raising=False)
    monkeypatch.setattr(backend, "trial", lambda name: f"no {name} here")
    with pytest.raises(LinesideError, match=r"no egl here.*no osmesa here.*apt-get install"):
        backend.choose_backend()


def test_the_second_backend_is_taken_when_the_first_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MUJOCO_GL", "PYOPENGL_PLATFORM", "LINESIDE_GL_CHECKED"):
        monkeypatch.setenv(name, "")  # so that monkeypatch restores what choose_backend sets
    monkeypatch.setattr(backend, "trial", lambda name: "" if name == "osmesa" else "broken")
    assert backend.choose_backend() == "osmesa" == os.environ["MUJOCO_GL"]


def test_a_wish_that_cannot_be_met_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    monkeypatch.setenv("LINESIDE_GL_CHECKED", "")
    with pytest.raises(LinesideError, match="unset MUJOCO_GL=glfw"):
        backend.choose_backend()


def test_trial_of_a_backend_that_is_not_one() -> None:
    assert backend.trial("nonsense") != ""
