"""Patterns and colours of the procedural scenes: each pattern a function of surface coordinates.

Only + - * / and integer operations on arrays, so that every machine gets the same bits.
"""

from __future__ import annotations

import colorsys
import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Colour = tuple[float, float, float]  # RGB in [0, 1]


@dataclasses.dataclass(frozen=True)
class Texture:
    """How a surface is painted.

    Attributes:
        family: one of PATTERNS. light, dark: its two colours ("plain" shows `light` alone).
        cells_per_m: cells of the pattern a metre. axis: unit direction across the stripes. seed: of the noise.
    """

    family: str
    light: Colour
    dark: Colour
    cells_per_m: float = 4.0
    axis: tuple[float, float] = (1.0, 0.0)
    seed: int = 0

    def paint(self, u: np.ndarray, v: np.ndarray, contrast: np.ndarray | float = 1.0) -> np.ndarray:
        """Surface coordinates [n] in metres -> RGB [n, 3] float32; `contrast` 0 gives the pattern's mean."""
        pattern, mean, _ = PATTERNS[self.family]
        u, v = (u * self.cells_per_m).astype(np.float32), (v * self.cells_per_m).astype(np.float32)
        share = mean + (pattern(u, v, self) - np.float32(mean)) * np.asarray(contrast, np.float32)
        return mix(self.light, self.dark, share)


def mix(first: Colour, second: Colour, share: np.ndarray) -> np.ndarray:
    """Colours [n, 3] float32: `first` where share [n] is 0, `second` where it is 1."""
    a, b = np.asarray(first, np.float32), np.asarray(second, np.float32)
    return a + (b - a) * share[:, None].astype(np.float32)


def value_noise(u: np.ndarray, v: np.ndarray, seed: int) -> np.ndarray:
    """Smooth noise [n] float32 in [0, 1) with one random value a lattice point (unit spacing)."""
    column, row = np.floor(u), np.floor(v)
    fu, fv = u - column, v - row
    fu, fv = fu * fu * (3 - 2 * fu), fv * fv * (3 - 2 * fv)
    column, row = column.astype(np.int64).astype(np.uint32), row.astype(np.int64).astype(np.uint32)
    corners = [_lattice(column + np.uint32(i), row + np.uint32(j), seed) for j in (0, 1) for i in (0, 1)]
    below = corners[0] + (corners[1] - corners[0]) * fu
    above = corners[2] + (corners[3] - corners[2]) * fu
    return below + (above - below) * fv


def _lattice(column: np.ndarray, row: np.ndarray, seed: int) -> np.ndarray:
    """One number in [0, 1) for each lattice point: an integer mix, uint32 wrapping on purpose."""
    h = column * np.uint32(0x9E3779B1) ^ row * np.uint32(0x85EBCA77) ^ np.uint32(seed & 0xFFFFFFFF)
    h = (h ^ (h >> np.uint32(15))) * np.uint32(0x2C1B3C6D)
    h = (h ^ (h >> np.uint32(12))) * np.uint32(0x297A2D39)
    h ^= h >> np.uint32(15)
    return (h >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def _plain(u: np.ndarray, v: np.ndarray, texture: Texture) -> np.ndarray:
    return np.zeros_like(u)


def _checker(u: np.ndarray, v: np.ndarray, texture: Texture) -> np.ndarray:
    return ((np.floor(u) + np.floor(v)).astype(np.int64) & 1).astype(np.float32)


def _stripes(u: np.ndarray, v: np.ndarray, texture: Texture) -> np.ndarray:
    across = (u * np.float32(texture.axis[0]) + v * np.float32(texture.axis[1])) * np.float32(1.4)
    return (np.floor(across).astype(np.int64) & 1).astype(np.float32)


def _dots(u: np.ndarray, v: np.ndarray, texture: Texture) -> np.ndarray:
    u, v = u * np.float32(0.75), v * np.float32(0.75)  # a dot needs some space around it to be seen as one
    u, v = u - np.floor(u) - np.float32(0.5), v - np.floor(v) - np.float32(0.5)
    return (u * u + v * v < np.float32(0.11)).astype(np.float32)


def _noise(u: np.ndarray, v: np.ndarray, texture: Texture) -> np.ndarray:
    coarse = value_noise(u, v, texture.seed)
    fine = value_noise(u * np.float32(2.5), v * np.float32(2.5), texture.seed + 1)
    return np.clip((coarse * np.float32(0.6) + fine * np.float32(0.4) - np.float32(0.5)) * 3 + np.float32(0.5), 0, 1)


class Pattern(NamedTuple):
    """share(u, v, texture) -> [n] of the dark colour in [0, 1]; mean: its mean.

    through: it runs through the solid as planes do, instead of lying on each of its sides.
    """

    share: Callable[[np.ndarray, np.ndarray, Texture], np.ndarray]
    mean: float
    through: bool = False


PATTERNS = {
    "plain": Pattern(_plain, 0.0),
    "checker": Pattern(_checker, 0.5),
    "stripes": Pattern(_stripes, 0.5, through=True),
    "dots": Pattern(_dots, 0.35),
    "noise": Pattern(_noise, 0.5),
}


def turned(t: float) -> tuple[float, float]:
    """Cosine and sine of a turn, from t in [-1, 1]: half a circle without a trigonometric function."""
    return (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)


def object_texture(draw: np.random.Generator, family: str, extent_m: float) -> Texture:
    """A texture of `family`, warm and light with a dark second colour, about six cells across the object.

    Warm solids on a cool ground: a small ViT then learns shapes and patterns within minutes. No class has a colour.
    """
    light = colorsys.hsv_to_rgb(draw.uniform(0.9, 1.17) % 1.0, draw.uniform(0.3, 0.8), draw.uniform(0.9, 1.0))
    dark = colorsys.hsv_to_rgb(draw.uniform(0.85, 1.1) % 1.0, draw.uniform(0.6, 0.9), draw.uniform(0.25, 0.4))
    cells = draw.uniform(5.0, 6.5) / extent_m
    axis = turned(draw.uniform(0.35, 0.65))  # stripes rise by 33 to 52 degrees: seen on the sides and on a flat top
    if draw.uniform() < 0.5:
        axis = (-axis[0], axis[1])
    return Texture(family, light, dark, cells, axis, int(draw.integers(2**31)))


def ground_texture(draw: np.random.Generator) -> Texture:
    """A muted, cool texture of any family, drawn apart from the objects: the ground says nothing about the class."""
    family = tuple(PATTERNS)[int(draw.integers(len(PATTERNS)))]
    light = colorsys.hsv_to_rgb(draw.uniform(0.2, 0.6), draw.uniform(0.15, 0.5), draw.uniform(0.35, 0.6))
    shade = draw.uniform(0.8, 0.92)
    dark = (light[0] * shade, light[1] * shade, light[2] * shade)
    return Texture(family, light, dark, draw.uniform(1.2, 3.0), turned(draw.uniform(-1, 1)), int(draw.integers(2**31)))


def sky_colours(draw: np.random.Generator) -> tuple[Colour, Colour]:
    """Horizon and zenith."""
    horizon = colorsys.hsv_to_rgb(draw.uniform(0.5, 0.62), draw.uniform(0.05, 0.25), draw.uniform(0.85, 1.0))
    zenith = colorsys.hsv_to_rgb(draw.uniform(0.53, 0.66), draw.uniform(0.3, 0.7), draw.uniform(0.6, 0.95))
    return horizon, zenith
