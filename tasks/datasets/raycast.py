"""A small ray caster in numpy: solids on a ground plane under a sky -> colours, class of each pixel, depth.

World: x, y on the ground, z up, metres. A ray is origin + t * direction with the direction's component along
the optical axis equal to 1, so that t is the depth in metres. Arrays meet only + - * / and square roots, which
IEEE 754 rounds exactly: the same bits on every machine. (No matrix products, no sines, no float reductions.)
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from tasks.datasets.textures import PATTERNS, Colour, Texture, mix, value_noise

FAR_M = 25.0  # the ground ends here: what is beyond counts as sky
SKY, GROUND = 0, 1  # mask classes; solid kind k is 2 + k
KINDS = ("sphere", "box", "cylinder", "cone", "hourglass")
# Samples of a pixel: its centre, which alone decides mask and depth, and four more for smooth edges.
OFFSETS = ((0.0, 0.0), (-0.125, -0.375), (0.375, -0.125), (0.125, 0.375), (-0.375, 0.125))

Vector = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Camera:
    """A pinhole at (0, 0, height_m) without roll.

    Attributes:
        height_m: above the ground. right, up, forward: orthonormal axes; `right` is horizontal.
        tan_half: tangent of half the field of view (square images).
    """

    height_m: float
    right: Vector
    up: Vector
    forward: Vector
    tan_half: float

    @classmethod
    def looking(cls, height_m: float, direction: Vector, tan_half: float) -> Camera:
        """The camera that looks along `direction` (any length, not vertical)."""
        x, y, z = direction
        flat = math.sqrt(x * x + y * y)
        norm = math.sqrt(x * x + y * y + z * z)
        forward = (x / norm, y / norm, z / norm)
        right = (y / flat, -x / flat, 0.0)
        up = (right[1] * forward[2], -right[0] * forward[2], right[0] * forward[1] - right[1] * forward[0])
        return cls(height_m, right, up, forward, tan_half)

    def rays(self, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x, y, z of the directions, each [samples, size, size]; row 0 is the top of the image."""
        centre = (np.arange(size) + 0.5) * (2.0 / size) - 1.0
        across = np.stack([centre + dx * (2.0 / size) for dx, _ in OFFSETS])[:, None, :] * self.tan_half
        along = np.stack([-(centre + dy * (2.0 / size)) for _, dy in OFFSETS])[:, :, None] * self.tan_half
        x, y, z = (f + across * r + along * u for f, r, u in zip(self.forward, self.right, self.up, strict=True))
        return x, y, z


@dataclasses.dataclass(frozen=True)
class Solid:
    """A solid that stands on the ground at (x, y), turned about the vertical.

    Attributes:
        kind: one of KINDS. x, y: its middle. turn: cosine and sine. height_m: of its top.
        profile: for solids of revolution, radius^2 at height z is p0 + p1 z + p2 z^2.
        half_m: for a box, half its two widths.
        radius_m: of the circle on the ground that holds it.
    """

    kind: str
    x: float
    y: float
    height_m: float
    radius_m: float
    texture: Texture
    profile: Vector = (0.0, 0.0, 0.0)
    half_m: tuple[float, float] = (0.0, 0.0)
    turn: tuple[float, float] = (1.0, 0.0)

    def local(self, x, y):
        """World directions (or differences of places) in the solid's own axes."""
        cosine, sine = self.turn
        return x * cosine + y * sine, y * cosine - x * sine


def sphere(x: float, y: float, radius: float, texture: Texture) -> Solid:
    return Solid("sphere", x, y, 2 * radius, radius, texture, profile=(0.0, 2 * radius, -1.0))


def cylinder(x: float, y: float, radius: float, height: float, texture: Texture) -> Solid:
    return Solid("cylinder", x, y, height, radius, texture, profile=(radius * radius, 0.0, 0.0))


def cone(x: float, y: float, radius: float, height: float, texture: Texture) -> Solid:
    slope = radius / height
    square = slope * slope
    return Solid("cone", x, y, height, radius, texture, profile=(radius * radius, -2 * square * height, square))


def hourglass(x: float, y: float, radius: float, waist: float, height: float, texture: Texture) -> Solid:
    """A one-sheeted hyperboloid: `radius` at the ground and the top, `waist` half-way."""
    square = (radius * radius - waist * waist) * 4 / (height * height)
    profile = (radius * radius, -square * height, square)
    return Solid("hourglass", x, y, height, radius, texture, profile=profile)


def box(x: float, y: float, half: tuple[float, float], height: float, texture: Texture, turn=(1.0, 0.0)) -> Solid:
    radius = math.sqrt(half[0] * half[0] + half[1] * half[1])
    return Solid("box", x, y, height, radius, texture, half_m=half, turn=turn)


@dataclasses.dataclass(frozen=True)
class Scene:
    """All that is seen. `sun`: unit vector to the light. The first solid is the dominant one."""

    camera: Camera
    solids: tuple[Solid, ...]
    ground: Texture
    sky: tuple[Colour, Colour]
    sun: Vector
    cloud_seed: int = 0


def intersect(solid: Solid, ox, oy, oz, dx, dy, dz) -> np.ndarray:
    """Nearest t > 0 at which rays enter a solid, inf where they miss; origins and directions broadcast.

    The base is left out: whatever looks at a solid here does so from above the ground.
    """
    ox, oy = solid.local(ox - solid.x, oy - solid.y)
    dx, dy = solid.local(dx, dy)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return (_enter_box if solid.kind == "box" else _enter_revolved)(solid, ox, oy, oz, dx, dy, dz)


def _enter_box(solid: Solid, ox, oy, oz, dx, dy, dz) -> np.ndarray:
    enter, leave = 0.0, np.inf
    for o, d, low, high in (
        (ox, dx, -solid.half_m[0], solid.half_m[0]),
        (oy, dy, -solid.half_m[1], solid.half_m[1]),
        (oz, dz, 0.0, solid.height_m),
    ):
        first, second = (low - o) / d, (high - o) / d
        enter = np.fmax(enter, np.fmin(first, second))
        leave = np.fmin(leave, np.fmax(first, second))
    return np.where((enter <= leave) & (leave > 0), enter, np.inf)


def _enter_revolved(solid: Solid, ox, oy, oz, dx, dy, dz) -> np.ndarray:
    p0, p1, p2 = solid.profile
    a = dx * dx + dy * dy - p2 * (dz * dz)
    b = ox * dx + oy * dy - (0.5 * p1 + p2 * oz) * dz
    c = ox * ox + oy * oy - (p0 + (p1 + p2 * oz) * oz)
    root = np.sqrt(b * b - a * c)  # nan where the ray misses
    stable = -(b + np.copysign(root, b))  # no cancellation: the sum of two numbers of one sign
    nearest = np.asarray(np.inf)
    for t in (stable / a, c / stable):
        z = oz + t * dz
        nearest = np.where((t > 0) & (z >= 0) & (z <= solid.height_m) & (t < nearest), t, nearest)
    t = (solid.height_m - oz) / dz  # the flat top
    x, y = ox + t * dx, oy + t * dy
    top_square = p0 + (p1 + p2 * solid.height_m) * solid.height_m
    return np.where((t > 0) & (x * x + y * y <= top_square) & (t < nearest), t, nearest)


def normals(solid: Solid, x, y, z) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit outward normals at local points of the surface, [n] each."""
    if solid.kind == "box":
        gaps = np.stack([np.abs(x) - solid.half_m[0], np.abs(y) - solid.half_m[1], z - solid.height_m])
        face = gaps.argmax(axis=0)  # the face on which the point lies has the gap nearest to zero
        return np.sign(x) * (face == 0), np.sign(y) * (face == 1), 1.0 * (face == 2)
    _, p1, p2 = solid.profile
    nz = -(0.5 * p1 + p2 * z)
    norm = np.sqrt(x * x + y * y + nz * nz) + 1e-12  # zero at a cone's tip
    top = (z >= solid.height_m - 1e-9) & (solid.kind != "sphere")
    return np.where(top, 0.0, x / norm), np.where(top, 0.0, y / norm), np.where(top, 1.0, nz / norm)


def render(scene: Scene, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image [size, size, 3] uint8, mask [size, size] uint8, depth_m [size, size] float32 (sky 0)."""
    camera = scene.camera
    x, y, z = camera.rays(size)
    with np.errstate(divide="ignore"):
        depth = np.where(z < 0, camera.height_m / -z, np.inf)  # [samples, size, size]
    seen = np.where(depth <= FAR_M, GROUND, SKY).astype(np.int8)  # 2 + position in `solids` where one is hit
    depth[seen == SKY] = np.inf
    for number, solid in enumerate(scene.solids):
        window = _window(camera, solid, size)
        t = intersect(solid, 0.0, 0.0, camera.height_m, x[window], y[window], z[window])
        nearer = t < depth[window]
        depth[window][nearer] = t[nearer]
        seen[window][nearer] = 2 + number
    colours = _colours(scene, size, seen.reshape(-1), depth.reshape(-1), x.reshape(-1), y.reshape(-1), z.reshape(-1))
    samples = colours.reshape(len(OFFSETS), size, size, 3)
    image = samples[0]
    for sample in samples[1:]:
        image = image + sample
    image = np.clip(image * np.float32(255 / len(OFFSETS)) + np.float32(0.5), 0, 255).astype(np.uint8)
    classes = np.array([SKY, GROUND, *(2 + KINDS.index(s.kind) for s in scene.solids)], np.uint8)
    return image, classes[seen[0]], np.where(seen[0] == SKY, 0.0, depth[0]).astype(np.float32)


def _window(camera: Camera, solid: Solid, size: int) -> tuple[slice, slice, slice]:
    """The pixels that a solid can cover, from the sphere around it: the rest need no intersection."""
    place = (solid.x, solid.y, 0.5 * solid.height_m - camera.height_m)
    across, along, ahead = (
        a[0] * place[0] + a[1] * place[1] + a[2] * place[2] for a in (camera.right, camera.up, camera.forward)
    )
    reach = math.sqrt(solid.radius_m * solid.radius_m + 0.25 * solid.height_m * solid.height_m)
    if ahead <= reach:  # around the camera's plane: no bound
        return slice(None), slice(None), slice(None)

    def edge(value: float, sign: float) -> float:
        value += sign * reach
        return value / (ahead - sign * math.copysign(reach, value)) / camera.tan_half

    def pixels(low: float, high: float) -> slice:
        first = math.floor((low + 1) * 0.5 * size) - 1
        return slice(min(max(first, 0), size), min(max(math.ceil((high + 1) * 0.5 * size) + 1, 0), size))

    return slice(None), pixels(-edge(along, 1), -edge(along, -1)), pixels(edge(across, -1), edge(across, 1))


def _colours(scene: Scene, size: int, seen, depth, x, y, z) -> np.ndarray:
    """RGB [n, 3] float32 of every sample."""
    colours = np.empty((len(seen), 3), np.float32)
    at = np.flatnonzero(seen == SKY)
    colours[at] = _sky(scene, x[at], y[at], z[at])
    at = np.flatnonzero(seen == GROUND)
    colours[at] = _ground(scene, size, depth[at], x[at] * depth[at], y[at] * depth[at])
    for number, solid in enumerate(scene.solids):
        at = np.flatnonzero(seen == 2 + number)
        t = depth[at]
        colours[at] = _solid(scene, solid, x[at] * t, y[at] * t, scene.camera.height_m + z[at] * t)
    return colours


def _sky(scene: Scene, x, y, z) -> np.ndarray:
    height = np.clip(z, 0, None) + 0.15
    colour = mix(*scene.sky, np.clip(height * 1.4 - 0.2, 0, 1))
    u, v = (x / height).astype(np.float32), (y / height).astype(np.float32)
    cloud = np.clip(value_noise(u, v, scene.cloud_seed) * 2 - 1, 0, 1) * np.float32(0.7)
    return colour + (np.float32(1) - colour) * cloud[:, None]


def _ground(scene: Scene, size: int, depth, x, y) -> np.ndarray:
    camera = scene.camera
    pixel_m = depth * depth * (2 * camera.tan_half / size) / camera.height_m  # a pixel's length on the ground
    blur = pixel_m * scene.ground.cells_per_m
    colour = scene.ground.paint(x, y, 1 / (1 + blur * blur * 4))  # far cells are below a pixel: show their mean
    light = np.full(len(depth), 0.4 + 0.6 * scene.sun[2])
    for solid in scene.solids:
        light[_in_shadow(scene.sun, solid, x, y)] = 0.45
    haze = depth * (1 / FAR_M)
    colour = colour * light[:, None].astype(np.float32)
    return colour + (np.asarray(scene.sky[0], np.float32) - colour) * (haze * haze)[:, None].astype(np.float32)


def _in_shadow(sun: Vector, solid: Solid, x, y) -> np.ndarray:
    """Which ground points [n] the solid keeps the sun from: their numbers."""
    reach = solid.height_m / sun[2]
    tip_x, tip_y = solid.x - sun[0] * reach, solid.y - sun[1] * reach
    low_x, high_x = min(solid.x, tip_x) - solid.radius_m, max(solid.x, tip_x) + solid.radius_m
    low_y, high_y = min(solid.y, tip_y) - solid.radius_m, max(solid.y, tip_y) + solid.radius_m
    near = np.flatnonzero((x > low_x) & (x < high_x) & (y > low_y) & (y < high_y))
    return near[np.isfinite(intersect(solid, x[near], y[near], 0.0, *sun))]


def _solid(scene: Scene, solid: Solid, x, y, z) -> np.ndarray:
    x, y = solid.local(x - solid.x, y - solid.y)
    nx, ny, nz = normals(solid, x, y, z)
    if PATTERNS[solid.texture.family].through:
        u, v = (x + y) * math.sqrt(0.5), z
    else:  # painted from the side that the surface faces most, so that a pattern keeps its size on every part
        axis = np.stack([np.abs(nx), np.abs(ny), np.abs(nz)]).argmax(axis=0)
        u, v = np.where(axis == 0, y, x), np.where(axis == 2, y, z)
    colour = solid.texture.paint(u, v)
    sun_x, sun_y = solid.local(scene.sun[0], scene.sun[1])
    light = 0.38 + 0.12 * nz + 0.55 * np.clip(nx * sun_x + ny * sun_y + nz * scene.sun[2], 0, None)
    return colour * light[:, None].astype(np.float32)
