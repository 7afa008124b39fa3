"""True depth as training and measuring read it: checked, in metres, and a wrong scale told before training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.dense import nearest
from harness.errors import UserError
from harness.sources import Source

KEPT_BYTES = 1 << 30  # of training maps; what is beyond is read again whenever a batch asks for it
LOOKED_AT = 200  # training images whose depths give the median
WITH_DEPTH = ("scenes", "array", "depth_folder")
# What a unit may have been, the commonest first, and what brings it to metres.
UNITS = {"millimetres": 0.001, "1/256 m, KITTI's": 1 / 256, "centimetres": 0.01, "0.2 mm, TUM's": 0.0002}
UNITS |= {"metres divided by 1000": 1000.0, "metres divided by 256": 256.0}


def depth_range(source: Source, name: str, min_m: float | None, max_m: float | None) -> tuple[float, float]:
    """The depths that count, metres: the source's own where an option is None.

    Raises:
        UserError: a source without depth, a range that is none.
    """
    if source.depth_range_m is None:
        raise UserError(
            f"data {name!r} (source {source.name!r}) have no depth; the sources {', '.join(WITH_DEPTH)} have it: give "
            "one as the task's data"
        )
    low = source.depth_range_m[0] if min_m is None else min_m
    high = source.depth_range_m[1] if max_m is None else max_m
    if not 0 <= low < high:
        raise UserError(f"depths from {low:g} to {high:g} m are no range; give min_m and max_m of the depth task")
    return float(low), float(high)


def read_depth_m(source: Source, index: int) -> np.ndarray:
    """The sample's depth [H, W] float32 metres, 0 where unknown.

    Raises:
        UserError: no depth, one that cannot be read, of another shape than the image, negative or not finite.
    """
    name = source.sample_name(index)
    try:
        sample = source.read(index)
    except (OSError, ValueError, SyntaxError) as error:  # what PIL raises for damaged files
        raise UserError(
            f"the depth of {name!r} cannot be read: {error}. Mend it, or remove it from the data"
        ) from error
    depth_m = sample.depth_m
    if depth_m is None:
        raise UserError(f"image {name!r} has no depth map; every image of a depth task needs one")
    if depth_m.shape != (sample.image.height, sample.image.width):
        raise UserError(
            f"the depth map of {name!r} is {list(depth_m.shape)} and its image "
            f"{[sample.image.height, sample.image.width]}, rows by columns; give both in one size"
        )
    if not np.isfinite(depth_m).all() or depth_m.min() < 0:
        raise UserError(
            f"the depth map of {name!r} has values that are negative or not finite; give metres, 0 where unknown"
        )
    return depth_m.astype(np.float32, copy=False)


class TrainingDepths:
    """Depth maps of a source at the size that the encoder sees, [S, S] each, 0 where unknown or out of range.

    Numbers from len(source) on are the mirrored images.
    """

    def __init__(self, source: Source, size: int, low: float, high: float) -> None:
        self.source, self.size, self.low, self.high = source, size, low, high
        self._kept: dict[int, np.ndarray] = {}

    def known(self, index: int) -> np.ndarray:
        """[S, S] metres, whatever their range."""
        found = self._kept.get(index)
        if found is None:
            found = nearest(read_depth_m(self.source, index), self.size)
            if (len(self._kept) + 1) * found.nbytes <= KEPT_BYTES:
                self._kept[index] = found
        return found

    def __call__(self, numbers: np.ndarray) -> Tensor:
        """[B, S, S] by number [B], on the CPU."""
        every = np.broadcast_to(np.arange(self.size), (len(numbers), self.size))
        return self.at(numbers, every, every)

    def at(self, numbers: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> Tensor:
        """[B, h, w] by number [B]: each map at its rows [B, h] and columns [B, w]; 0 too outside of it."""
        out = np.zeros((len(numbers), rows.shape[1], columns.shape[1]), dtype=np.float32)
        inside = lambda places: (places >= 0) & (places < self.size)  # noqa: E731
        for i, number in enumerate(numbers):
            mirrored, index = divmod(int(number), len(self.source))
            depth_m = self.known(index)[:, ::-1] if mirrored else self.known(index)
            down, across = inside(rows[i]), inside(columns[i])
            out[i][np.ix_(down, across)] = depth_m[np.ix_(rows[i][down], columns[i][across])]
        return torch.from_numpy(np.where((out >= self.low) & (out <= self.high), out, np.float32(0)))

    def median_m(self) -> float:
        """The median of all known pixels of up to LOOKED_AT images, evenly over the split.

        Raises:
            UserError: not one pixel is known.
        """
        count = min(LOOKED_AT, len(self.source))
        numbers = np.linspace(0, len(self.source) - 1, count).round().astype(int).tolist()
        found = np.concatenate([depth_m[depth_m > 0] for depth_m in map(self.known, numbers)])
        if not found.size:
            raise UserError(
                f"not one depth of the training split is known (its {len(self.source)} images hold 0 only); a depth "
                "map needs metres where they are known"
            )
        return float(np.median(found))


def check_scale(median_m: float, low: float, high: float, options: Mapping[str, Any]) -> None:
    """Raises UserError where the median depth is outside low .. high: names the factor that brings it in."""
    if low <= median_m <= high:
        return
    fitting = {unit: factor for unit, factor in UNITS.items() if low <= median_m * factor <= high}
    head = f"the median depth of the training split is {median_m:.6g} m, outside {low:g} .. {high:g} m"
    if not fitting:
        raise UserError(f"{head}; give depths in metres, or min_m and max_m that fit these data")
    now = options.get("scale")
    if now is None:
        likely = " or ".join(f"{unit} (multiply by {factor:.6g})" for unit, factor in fitting.items())
        remedy = "bring them to metres; the source depth_folder has the option `scale` for it"
    else:
        likely = " or ".join(f"{unit} (scale {now * factor:.6g})" for unit, factor in fitting.items())
        remedy = f"change data.options.scale, which is {now:.6g}"
    raise UserError(f"{head}: the values look like {likely}. So {remedy}; or give min_m and max_m that fit these data")
