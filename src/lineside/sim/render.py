"""The camera: draws a list of things in colour and as an image of ids. The OpenGL context is made once and reused.

The MuJoCo model here has assets only (meshes, textures, materials). The things of a scene are written into the
`MjvScene`. So for each frame only the textures and meshes that have changed are uploaded, and nothing is compiled.
"""

from __future__ import annotations

import atexit
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

from lineside.errors import LinesideError
from lineside.sim import shapes, textures
from lineside.sim.backend import choose_backend, mujoco
from lineside.sim.catalogue import Sku, catalogue
from lineside.sim.cells import Light

SUPERSAMPLE = 2
MAX_SIZE = 448  # of a picture, before supersampling
MAX_THINGS = 600
HERO_SIDE = 384
HERO_CELLS = 20
PAPERS = 3
SHADOW_MAP = 768
NEAR, FAR = 0.05, 8.0
Colour = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Thing:
    """One shape to draw. `shape` is a mesh name or a primitive ("box", "cylinder", "sphere", "ellipsoid", "plane").

    The id image shows `id` where the thing is visible. Scenery has id 0; it hides what lies behind it.
    """

    shape: str
    position: np.ndarray
    rotation: np.ndarray  # (3, 3)
    size: tuple[float, float, float] = (1.0, 1.0, 1.0)
    colour: Colour = (1.0, 1.0, 1.0, 1.0)
    material: str = ""
    id: int = 0
    specular: float = 0.2
    shininess: float = 0.3
    emission: float = 0.0
    reach: float = 0.0  # radius of a sphere around `position` that holds the shape; needed if id is set


@dataclass(frozen=True, slots=True)
class Camera:
    """A pinhole camera. `right`, `up`, `forward` are unit vectors; fovy in degrees; pictures are square.

    The things to see lie within `extent` m of `target`; the shadow map covers this part of the scene.
    """

    position: np.ndarray
    right: np.ndarray
    up: np.ndarray
    forward: np.ndarray
    fovy: float
    target: np.ndarray
    extent: float

    def project(self, points: np.ndarray) -> np.ndarray:
        """World points (n, 3) to picture coordinates (n, 2) in [0, 1], origin top left."""
        relative = np.atleast_2d(points) - self.position
        depth = np.maximum(relative @ self.forward, 1e-6)
        reach = depth * np.tan(np.radians(self.fovy) / 2)
        return np.stack([0.5 + 0.5 * (relative @ self.right) / reach, 0.5 - 0.5 * (relative @ self.up) / reach], 1)

    def view_radius(self) -> float:
        """Half size (m) of the area around the target that the shadow map must cover. It reaches well beyond the
        picture, because the edge of a shadow map is visible."""
        reach = np.tan(np.radians(self.fovy) / 2)
        rays = np.array([self.forward + reach * (a * self.right + b * self.up) for a in (-1, 1) for b in (-1, 1)])
        down = np.minimum(
            rays[:, 2], -0.15 * np.linalg.norm(rays, axis=1)
        )  # a ray above the horizon never meets the floor
        corners = self.position + rays * (-self.position[2] / down)[:, None]
        radius = np.linalg.norm(corners[:, :2] - self.target[:2], axis=1).max()
        return float(np.clip(1.6 * radius, self.extent, 4 * self.extent))


def look_at(corners: np.ndarray, *, tilt: float, azimuth: float, roll: float, fovy: float, margin: float) -> Camera:
    """A camera that looks at the middle of `corners` (n, 3) from the given side, just far enough away to see them all.

    tilt is the angle from straight down; azimuth 0 looks from the near edge (-y), with +x to the right.
    """
    target = (corners.min(0) + corners.max(0)) / 2
    t, a, r = np.radians(tilt), np.radians(azimuth), np.radians(roll)
    away = np.array([np.sin(t) * np.sin(a), -np.sin(t) * np.cos(a), np.cos(t)])
    forward = -away
    side = np.array([np.cos(a), np.sin(a), 0.0])
    upward = np.cross(side, forward)
    right = np.cos(r) * side + np.sin(r) * upward
    up = np.cross(right, forward)
    relative = corners - target
    reach = np.maximum(np.abs(relative @ right), np.abs(relative @ up)) * margin
    distance = float((reach / np.tan(np.radians(fovy) / 2) - relative @ forward).max())
    extent = float(np.linalg.norm(relative, axis=1).max())
    return Camera(target + away * distance, right, up, forward, fovy, target, extent)


def hero_mesh(kind: str) -> shapes.Mesh:
    """A finer mesh of the kind. Damage moves its vertices (returns)."""
    if kind == "carton":
        return shapes.box(shapes.HALF_EXTENTS["carton"], cells=HERO_CELLS)
    return shapes.lathe(shapes.profile_of(kind), segments=48, rings=10)


HERO_KINDS = ("carton", "can", "bottle", "tub")


class Renderer:
    """Owns the OpenGL context of this process and the assets in it. Get it with `renderer()`."""

    def __init__(self) -> None:
        self.backend = choose_backend()
        self._mj = mj = mujoco()
        meshes = shapes.all_meshes()
        meshes |= {f"paper/{k}": shapes.crumple(0.05, seed=k) for k in range(PAPERS)}
        meshes |= {f"hero/{kind}": hero_mesh(kind) for kind in HERO_KINDS}
        pictures = {f"sku/{sku.id}": np.zeros((textures.SIDE, textures.SIDE, 3), np.uint8) for sku in catalogue()}
        pictures |= {f"surface/{name}": textures.surface(name) for name in textures.SURFACES}
        pictures["hero"] = np.zeros((HERO_SIDE, HERO_SIDE, 3), np.uint8)
        self._model = self._assets(meshes, pictures)
        self._mesh = {name: k for k, name in enumerate(meshes)}
        self._material = {name: k for k, name in enumerate(pictures)}
        self._worn: dict[str, int] = {}
        edge = MAX_SIZE * SUPERSAMPLE
        # Not mujoco.GLContext: it is fixed when mujoco is first imported, which may be before the backend is chosen.
        self._gl = import_module(f"mujoco.{self.backend}").GLContext(edge, edge)
        self._gl.make_current()
        self._context = mj.MjrContext(self._model, mj.mjtFontScale.mjFONTSCALE_50.value)
        mj.mjr_setBuffer(mj.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        self._scene = mj.MjvScene(self._model, MAX_THINGS)
        self._scene.enabletransform = 0

    def _assets(self, meshes: dict[str, shapes.Mesh], pictures: dict[str, np.ndarray]) -> Any:
        mj = self._mj
        spec = mj.MjSpec()
        spec.visual.global_.offwidth = spec.visual.global_.offheight = MAX_SIZE * SUPERSAMPLE
        spec.visual.quality.offsamples = 0
        spec.visual.quality.shadowsize = SHADOW_MAP
        spec.visual.map.znear, spec.visual.map.zfar = NEAR, FAR
        for name, mesh in meshes.items():
            asset = spec.add_mesh(name=name)
            asset.uservert = mesh.vertices.ravel().tolist()
            asset.usernormal = mesh.normals.ravel().tolist()
            asset.usertexcoord = mesh.uv.ravel().tolist()
            asset.userface = mesh.faces.ravel().tolist()
            asset.inertia = mj.mjtMeshInertia.mjMESH_INERTIA_SHELL
        for name, picture in pictures.items():
            kind = mj.mjtTexture.mjTEXTURE_2D
            texture = spec.add_texture(
                name=name, type=kind, width=picture.shape[1], height=picture.shape[0], nchannel=3
            )
            texture.data = picture.tobytes()
            material = spec.add_material(name=name)
            material.textures[mj.mjtTextureRole.mjTEXROLE_RGB] = name
            if name.startswith("surface/"):
                material.texuniform = True
                material.texrepeat = [1.6, 1.6]
        model = spec.compile()
        # The compiler moves vertices to each mesh's inertial frame; the scene needs them in their own frame.
        for k, mesh in enumerate(meshes.values()):
            start, count = int(model.mesh_vertadr[k]), int(model.mesh_vertnum[k])
            assert count == len(mesh.vertices), (k, count, len(mesh.vertices))
            model.mesh_vert[start : start + count] = mesh.vertices
            start = int(model.mesh_normaladr[k])
            model.mesh_normal[start : start + count] = mesh.normals
        return model

    def close(self) -> None:
        """Free the OpenGL context. The renderer cannot be used afterwards."""
        self._context.free()
        del self._gl  # its destructor frees the context; at the interpreter's end OpenGL would be gone already

    def wear(self, sku: Sku, style: int) -> str:
        """Give the article this design and return its material. An article has one design in a picture."""
        name = f"sku/{sku.id}"
        if self._worn.get(name) != style:
            self._upload(name, textures.packaging(sku, style))
            self._worn[name] = style
        return name

    def set_hero(self, kind: str, vertices: np.ndarray, normals: np.ndarray, picture: np.ndarray) -> None:
        """Replace the shape of "hero/<kind>", (V, 3) each, and the hero texture, (HERO_SIDE, HERO_SIDE, 3)."""
        mesh = self._mesh[f"hero/{kind}"]
        start, count = int(self._model.mesh_vertadr[mesh]), int(self._model.mesh_vertnum[mesh])
        self._model.mesh_vert[start : start + count] = vertices
        start = int(self._model.mesh_normaladr[mesh])
        self._model.mesh_normal[start : start + count] = normals
        self._mj.mjr_uploadMesh(self._model, self._context, mesh)
        self._upload("hero", picture)

    def _upload(self, name: str, picture: np.ndarray) -> None:
        texture = self._material[name]
        start = int(self._model.tex_adr[texture])
        flat = picture.reshape(-1)
        self._model.tex_data[start : start + flat.size] = flat
        self._mj.mjr_uploadTexture(self._model, self._context, texture)

    def picture(self, things: Sequence[Thing], camera: Camera, light: Light, size: int) -> np.ndarray:
        """The scene in colour, uint8 (size, size, 3). It is drawn larger and scaled down by averaging."""
        self._fill(things, camera)
        self._lights(light, camera)
        pixels = self._draw(size * SUPERSAMPLE, ids=False)
        from PIL import Image

        return np.asarray(Image.fromarray(pixels).reduce(SUPERSAMPLE))[::-1]

    def ids(self, things: Sequence[Thing], camera: Camera, size: int) -> np.ndarray:
        """The id of the visible thing at each pixel, int32 (size, size); 0 for scenery or nothing."""
        self._fill(things, camera)
        pixels = self._draw(size, ids=True)[::-1]
        # Id k is drawn as the colour k + 1, red first; black means that nothing is drawn. Ids are below 65535.
        code = pixels[..., 0].astype(np.int32) + (pixels[..., 1].astype(np.int32) << 8)
        return np.maximum(code - 1, 0)

    def _draw(self, size: int, *, ids: bool) -> np.ndarray:
        mj, flags = self._mj, self._scene.flags
        flags[mj.mjtRndFlag.mjRND_SEGMENT] = flags[mj.mjtRndFlag.mjRND_IDCOLOR] = int(ids)
        flags[mj.mjtRndFlag.mjRND_SHADOW] = int(not ids)
        flags[mj.mjtRndFlag.mjRND_SKYBOX] = flags[mj.mjtRndFlag.mjRND_HAZE] = flags[mj.mjtRndFlag.mjRND_REFLECTION] = 0
        self._gl.make_current()
        pixels = np.empty((size, size, 3), np.uint8)
        viewport = mj.MjrRect(0, 0, size, size)
        mj.mjr_render(viewport, self._scene, self._context)
        mj.mjr_readPixels(pixels, None, viewport, self._context)
        return pixels  # rows from the bottom up, as in OpenGL

    def _fill(self, things: Sequence[Thing], camera: Camera) -> None:
        mj, scene = self._mj, self._scene
        if len(things) > MAX_THINGS:
            raise LinesideError(f"a scene of {len(things)} things is too large; the limit is {MAX_THINGS}")
        for k, thing in enumerate(things):
            geom = scene.geoms[k]
            mesh = self._mesh.get(thing.shape)
            kind = mj.mjtGeom.mjGEOM_MESH if mesh is not None else _PRIMITIVES[thing.shape]
            mj.mjv_initGeom(
                geom, kind, np.array(thing.size, float), np.asarray(thing.position, float),
                np.asarray(thing.rotation, float).ravel(), np.array(thing.colour, np.float32),
            )  # fmt: skip
            geom.dataid = -1 if mesh is None else 2 * mesh  # odd numbers are convex hulls
            geom.texcoord = int(mesh is not None)
            geom.matid = self._material.get(thing.material, -1)
            geom.category = mj.mjtCatBit.mjCAT_DYNAMIC
            geom.segid = thing.id
            geom.specular, geom.shininess, geom.emission = thing.specular, thing.shininess, thing.emission
            geom.camdist = float((np.asarray(thing.position) - camera.position) @ camera.forward)
        scene.ngeom = len(things)
        half = NEAR * np.tan(np.radians(camera.fovy) / 2)
        for view in scene.camera:
            view.pos, view.forward, view.up = camera.position, camera.forward, camera.up
            view.frustum_center, view.frustum_width = 0.0, half
            view.frustum_bottom, view.frustum_top = -half, half
            view.frustum_near, view.frustum_far = NEAR, FAR

    def _lights(self, light: Light, camera: Camera) -> None:
        azimuth, elevation = np.radians(light.azimuth), np.radians(light.elevation)
        toward = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
        tint = np.array(light.tint, float)
        self._scene.nlight = 2
        self._context.shadowClip = camera.view_radius()
        directional = self._mj.mjtLightType.mjLIGHT_DIRECTIONAL
        settings = (
            (camera.target + toward * 2.0, -toward, light.key, 1),
            (camera.position, camera.forward, light.fill, 0),
        )
        for lamp, (position, direction, power, shadow) in zip(self._scene.lights, settings):
            lamp.pos, lamp.dir, lamp.type = position, direction, directional
            lamp.diffuse, lamp.specular = tint * power, tint * power * 0.6
            # MuJoCo leaves out a lamp's ambient light in its shadow, so the fill lamp has the ambient light.
            lamp.ambient = tint * light.ambient * (1 - shadow)
            lamp.castshadow, lamp.headlight = shadow, 0
            lamp.attenuation, lamp.cutoff, lamp.exponent = (1, 0, 0), 80, 0


_PRIMITIVES = {"plane": 0, "sphere": 2, "capsule": 3, "ellipsoid": 4, "cylinder": 5, "box": 6}  # mjtGeom


@cache
def renderer() -> Renderer:
    """The renderer of this process, made on first use. Raises LinesideError if MuJoCo or a backend is missing."""
    try:
        made = Renderer()
    except mujoco().FatalError as error:  # what it says depends on the driver
        raise LinesideError(
            f"MuJoCo cannot begin to render ({error}), perhaps for lack of memory: end other programs, or take fewer "
            "workers, and run it again; finished shards are kept"
        ) from error
    atexit.register(made.close)  # before the interpreter unloads the OpenGL modules
    return made
