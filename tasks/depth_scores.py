"""How depth is scored: which pixels count, errors pooled over all pixels of a split, and mmsegmentation's own averages.

mmsegmentation's DepthMetric computes each image's errors and averages them over the images. The square root makes that
another number than the error of all pixels (a split of one good and one bad image shows it), and an image with few
known pixels weighs as much as a full one. So errors are pooled here, by the formulas of DepthMetric, and its own
averages are kept beside them under their own names.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from harness.items import Items
from harness.mmseg_guard import mmseg

CROPS = ("none", "eigen", "garg")
DELTA = 1.25
DELTAS = (1, 2, 3)
# DepthMetric's names -> ours.
OF_MMSEG = {"rmse": "rmse", "abs_rel": "abs_rel", "d1": "delta1", "d2": "delta2", "d3": "delta3"}
OF_MMSEG |= {"log10": "log10", "silog": "silog"}
# A column of items -> the sum whose mean over an image's pixels it is.
OF_IMAGES = {"abs_rel": "relative", "log10": "log10", "log": "log", "log_squared": "log_squared"}


def crop_window(crop: str, height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns that are measured.

    "eigen": of NYU, rows 45 .. 470 and columns 41 .. 600 of 480 x 640 (Eigen et al., arXiv 1406.2283), in proportion
    for other sizes. "garg": of KITTI, by shares of the image's sides (Garg et al., arXiv 1603.04992).
    """
    if crop == "eigen":
        rows, columns = (45 / 480, 471 / 480), (41 / 640, 601 / 640)
        return slice(*(round(s * height) for s in rows)), slice(*(round(s * width) for s in columns))
    if crop == "garg":
        rows, columns = (0.40810811, 0.99189189), (0.03594771, 0.96405229)
        return slice(*(int(s * height) for s in rows)), slice(*(int(s * width) for s in columns))
    return slice(0, height), slice(0, width)


def counted(depth_m: np.ndarray, low: float, high: float, crop: str = "none") -> np.ndarray:
    """Which pixels of a true depth map [H, W] are measured: known, within low .. high metres, inside the crop.

    The truth alone decides: a prediction can take no pixel out.
    """
    inside = np.zeros(depth_m.shape, dtype=bool)
    inside[crop_window(crop, *depth_m.shape)] = True
    return inside & (depth_m > 0) & (depth_m >= low) & (depth_m <= high)


@dataclasses.dataclass
class PooledErrors:
    """Sums over pixels, of any number of images."""

    pixels: int = 0
    squared: float = 0.0  # m^2
    relative: float = 0.0
    log10: float = 0.0
    log: float = 0.0  # of ln(predicted / true)
    log_squared: float = 0.0
    within: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(len(DELTAS), dtype=np.int64))

    def add(self, predicted: np.ndarray, truth: np.ndarray) -> None:
        """Predicted and true depth of the pixels that count, [n] each, metres, all positive. None of them adds none."""
        p, t = predicted.astype(np.float64), truth.astype(np.float64)
        log = np.log(p) - np.log(t)
        self.pixels += len(t)
        self.squared += float(((p - t) ** 2).sum())
        self.relative += float((np.abs(p - t) / t).sum())
        self.log10 += float(np.abs(log).sum()) / math.log(10)
        self.log += float(log.sum())
        self.log_squared += float((log**2).sum())
        ratio = np.maximum(p / t, t / p)
        self.within += np.array([(ratio < DELTA**k).sum() for k in DELTAS])

    @property
    def rmse(self) -> float:
        """Metres; infinite where no pixel was seen."""
        return math.sqrt(self.squared / self.pixels) if self.pixels else math.inf

    def metrics(self) -> dict[str, float]:
        """All metrics. silog is DepthMetric's, sqrt(mean d^2 - mean(d)^2 / 2) with d = ln(predicted / true);
        silog_full subtracts all of mean(d)^2, which no factor on the prediction changes (Eigen's lambda = 1, KITTI's
        without its factor of 100).

        Raises:
            ValueError: no pixel was seen.
        """
        n = self.pixels
        if not n:
            raise ValueError("no pixel was seen")
        mean, mean_squared = self.log / n, self.log_squared / n
        found = {"rmse": self.rmse, "abs_rel": self.relative / n}
        found |= {f"delta{k}": float(count) / n for k, count in zip(DELTAS, self.within, strict=True)}
        found |= {"log10": self.log10 / n, "silog": math.sqrt(max(0.0, mean_squared - mean**2 / 2))}
        return found | {"silog_full": math.sqrt(max(0.0, mean_squared - mean**2))}


def items_of(images: Sequence[PooledErrors]) -> Items:
    """The errors of each image, weighed by its pixels that count; of one without any they are 0, and weigh nothing."""
    pixels = np.array([image.pixels for image in images])

    def mean(sums: Sequence[float]) -> np.ndarray:
        return (np.array(sums, dtype=np.float64) / np.maximum(pixels, 1)).astype(np.float32)

    columns = {"pixels": pixels.astype(np.uint32), "squared": mean([image.squared for image in images])}
    columns |= {name: mean([getattr(i, field) for i in images]) for name, field in OF_IMAGES.items()}
    columns |= {f"delta{k}": mean([image.within[k - 1] for image in images]) for k in DELTAS}
    averages = ("abs_rel", "log10", *(f"delta{k}" for k in DELTAS))
    metrics = {
        "rmse": ("root_weighted_mean", "squared", "pixels"),
        "silog": ("log_spread", "log", "log_squared", "pixels"),
    }
    return Items(columns, metrics | {name: ("weighted_mean", name, "pixels") for name in averages})


class MeanOfImages:
    """mmsegmentation's DepthMetric: each image's errors, averaged over the images that have a pixel that counts."""

    def __init__(self) -> None:
        self.metric = mmseg("mmseg.evaluation").DepthMetric(prefix="depth")  # without one it warns
        self.images = 0
        self.sums = dict.fromkeys(OF_MMSEG, 0.0)

    def add(self, predicted: np.ndarray, truth: np.ndarray) -> None:
        """One image: its pixels that count, [n] each. One without any is left out, since its errors are 0 / 0."""
        if not len(truth):
            return
        # What DepthMetric does with each image of a split, called without its keeping all pixels until the end.
        found: Mapping[str, float] = self.metric._calc_all_metrics(
            torch.from_numpy(truth.astype(np.float64)), torch.from_numpy(predicted.astype(np.float64))
        )
        self.images += 1
        for name in self.sums:
            self.sums[name] += found[name]

    def metrics(self) -> dict[str, float]:
        return {f"{ours}_mean_of_images": self.sums[name] / self.images for name, ours in OF_MMSEG.items()}
