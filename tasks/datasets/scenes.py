"""Procedural scenes: textured solids on a ground plane, with exact class, segmentation and depth. No download."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from harness.errors import UserError, unknown
from harness.seeds import content_hash, derive
from harness.sources import Sample, Source
from tasks.datasets import raycast
from tasks.datasets.raycast import KINDS, Camera, Scene, Solid
from tasks.datasets.textures import PATTERNS, ground_texture, object_texture, sky_colours, turned

VERSION = 1  # raised whenever any pixel, mask or depth changes: it is part of identity()
COUNTS = {"train": 4000, "test": 1000, "novel": 600}
CACHE_BYTES = 160 * 2**20  # of rendered samples, for each source object in each process

FAMILIES = tuple(PATTERNS)
# Every kind and every family is in three base and two novel classes: a Latin square.
_COMBINATIONS = [(k, f) for k in range(len(KINDS)) for f in range(len(FAMILIES))]
NOVEL = tuple((KINDS[k], FAMILIES[f]) for k, f in _COMBINATIONS if (f - k) % 5 in (1, 3))
BASE = tuple((KINDS[k], FAMILIES[f]) for k, f in _COMBINATIONS if (f - k) % 5 not in (1, 3))


class Scenes(Source):
    """One to four textured solids on a textured ground under a sky, ray-cast from (split, index, options) alone.

    The class is the kind and texture of the dominant solid, which is both the nearest and the largest; ground,
    colours, light, camera and the other solids are drawn apart from it. Splits "train" and "test" are
    independent streams of the 15 base classes; "novel" shows 10 combinations that the others never contain.
    Sample i has class i modulo their number, and does not depend on `count`.

    Masks hold the numbers of `segmentation_classes`; depth is metres along the optical axis at the pixel's
    centre within `depth_range_m`, and 0 in the sky. What is drawn uses only operations that IEEE 754 rounds
    exactly and numpy's `default_rng`, so the same bits come out wherever that stream is the same (its policy
    allows a change with a new numpy version; a test would tell).

    Rendered samples are kept in memory up to CACHE_BYTES (4000 samples of 64 px take 131 MB); nothing is
    written to disk.

    Args:
        root: not used. split: "train", "test" or "novel".
        size: pixels, square. count: samples, None for the split's default. seed: another one, another data set.

    Raises:
        UserError: unknown split, or a size or count that is not positive.
    """

    name: ClassVar[str] = "scenes"
    needs_root: ClassVar[bool] = False
    segmentation_classes = ("sky", "ground", *KINDS)
    depth_range_m = (0.3, raycast.FAR_M)

    def __init__(
        self,
        root: str | Path | None = None,
        split: str = "train",
        *,
        size: int = 64,
        count: int | None = None,
        seed: int = 0,
    ) -> None:
        if split not in COUNTS:
            raise UserError(unknown("split of scenes", split, COUNTS))
        count = COUNTS[split] if count is None else count
        for option, value, least in (("size", size, 8), ("count", count, 1)):
            if value < least:
                raise UserError(f"scenes: {option} {value} is too small; give {least} or more")
        self.split, self.size, self.count, self.seed = split, size, count, seed
        self.combinations = NOVEL if split == "novel" else BASE
        self.classes = tuple(f"{family} {kind}" for kind, family in self.combinations)
        self._cache: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def __len__(self) -> int:
        return self.count

    def scene(self, index: int) -> Scene:
        """What sample `index` shows, before it is rendered; the first solid is the dominant one."""
        if not 0 <= index < self.count:
            raise IndexError(f"scenes has samples 0 .. {self.count - 1}, not {index}")
        draw = np.random.default_rng(derive("scenes", VERSION, self.split, self.seed, int(index)))
        return draw_scene(draw, *self.combinations[index % len(self.combinations)])

    def read(self, index: int) -> Sample:
        rendered = self._cache.get(index)
        if rendered is None:
            rendered = raycast.render(self.scene(index), self.size)
            if (len(self._cache) + 1) * sum(part.nbytes for part in rendered) <= CACHE_BYTES:
                self._cache[index] = rendered
        image, mask, depth_m = rendered
        return Sample(Image.fromarray(image), int(index % len(self.classes)), mask.copy(), depth_m.copy())

    def prepare(self, indices: Iterable[int] | None = None) -> None:
        for index in range(len(self)) if indices is None else indices:
            if index not in self._cache:
                self.read(index)

    def labels(self) -> np.ndarray:
        return np.arange(self.count, dtype=np.int64) % len(self.classes)

    def sample_name(self, index: int) -> str:
        return f"{self.split}/{index:06d} ({self.classes[index % len(self.classes)]})"

    def identity(self) -> str:
        options = {"size": self.size, "count": self.count, "seed": self.seed}
        return content_hash([self.name, VERSION, self.split, options], length=64)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_cache": {}}  # a worker process fills its own


def draw_scene(draw: np.random.Generator, kind: str, family: str) -> Scene:
    """A scene whose dominant solid is of `kind` and `family`; everything else is random."""
    tan_half = draw.uniform(0.35, 0.7)  # field of view of 39 to 70 degrees
    radius = draw.uniform(0.4, 0.8)
    distance = radius / (draw.uniform(0.5, 0.66) * tan_half)  # so much of the image's half-width
    height = distance * draw.uniform(0.3, 0.75)
    heading = turned(draw.uniform(-1, 1))
    ahead = math.sqrt(distance * distance - (height - radius) * (height - radius))
    place = (heading[0] * ahead, heading[1] * ahead)
    # Aim beside the solid, so that it is not always in the middle of the image.
    straight = Camera.looking(height, (place[0], place[1], radius - height), tan_half)
    reach = 0.15 * distance * tan_half
    shift, rise = draw.uniform(-reach, reach), draw.uniform(-reach, reach)
    target = [
        distance * f + shift * r + rise * u
        for f, r, u in zip(straight.forward, straight.right, straight.up, strict=True)
    ]
    camera = Camera.looking(height, (target[0], target[1], target[2]), tan_half)
    solids = [_solid(draw, kind, family, place[0], place[1], radius)]
    for _ in range(int(draw.integers(4))):
        solids += _neighbour(draw, camera, solids, radius / distance)
    turn, slope = turned(draw.uniform(-1, 1)), draw.uniform(0.6, 1.6)
    side = 1.0 if draw.uniform() < 0.5 else -1.0
    norm = math.sqrt(1 + slope * slope)
    sun = (turn[0] * side / norm, turn[1] * side / norm, slope / norm)  # 31 to 58 degrees high
    return Scene(camera, tuple(solids), ground_texture(draw), sky_colours(draw), sun, int(draw.integers(2**31)))


def _neighbour(draw: np.random.Generator, camera: Camera, solids: list[Solid], apparent: float) -> list[Solid]:
    """One more solid of a base class behind the first, apart from all and clearly smaller in the image.

    `apparent`: the first solid's radius over its distance. An empty list where ten tries find no room.
    """
    first = solids[0]
    flat = math.sqrt(camera.forward[0] * camera.forward[0] + camera.forward[1] * camera.forward[1])
    forward = (camera.forward[0] / flat, camera.forward[1] / flat)
    start = first.x * forward[0] + first.y * forward[1]
    for _ in range(10):
        kind, family = BASE[int(draw.integers(len(BASE)))]
        radius, ahead = draw.uniform(0.3, 0.7), start + draw.uniform(0.5, 6.0)
        across = draw.uniform(-0.9, 0.9) * ahead * camera.tan_half
        x = forward[0] * ahead + camera.right[0] * across
        y = forward[1] * ahead + camera.right[1] * across
        gaps = [math.sqrt((x - s.x) * (x - s.x) + (y - s.y) * (y - s.y)) - s.radius_m for s in solids]
        if min(gaps) > 1.2 * radius + 0.1 and radius / ahead < 0.4 * apparent:
            return [_solid(draw, kind, family, x, y, radius)]
    return []


def _solid(draw: np.random.Generator, kind: str, family: str, x: float, y: float, radius: float) -> Solid:
    """A solid of about `radius` in every direction."""
    texture = object_texture(draw, family, 2 * radius)
    if kind == "sphere":
        return raycast.sphere(x, y, radius, texture)
    if kind == "box":
        half = (radius * draw.uniform(0.58, 0.8), radius * draw.uniform(0.58, 0.8))
        return raycast.box(x, y, half, radius * draw.uniform(1.2, 1.8), texture, turned(draw.uniform(-1, 1)))
    wide, height = radius * draw.uniform(0.62, 0.8), radius * draw.uniform(1.6, 2.0)
    if kind == "cylinder":
        return raycast.cylinder(x, y, wide, height, texture)
    if kind == "cone":
        return raycast.cone(x, y, 1.15 * wide, height, texture)
    return raycast.hourglass(x, y, wide, wide * draw.uniform(0.2, 0.35), height, texture)
