"""Images as arrays: an .npz file for each split, or arrays in memory."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from harness.errors import UserError, unknown
from harness.sources import Sample, Source
from tasks.datasets.images import located

IGNORED = 255  # in masks
KEYS = ("images", "labels", "masks", "depth_m", "class_names", "segmentation_classes", "depth_range_m")
REMEDY = "Write root/split.npz with numpy.savez(images=[N, H, W, 3] uint8, labels=[N] int, ...)."


class Array(Source):
    """root/split.npz, held in memory.

    Keys: images [N, H, W, 3] or [N, H, W] (grey) uint8; labels [N] integers, -1 for none; optionally
    masks [N, H, W] integers in 0 .. 255 (255 = ignore), depth_m [N, H, W] floats in metres (0 = unknown),
    class_names [C] strings, segmentation_classes [S] strings, depth_range_m [2] floats, the depths that count. Without
    names the classes are "0" .. the largest one; without a range all known depths count. Pickled objects are refused.

    Args:
        root: the folder of the .npz files. split: the file's name without ".npz".

    Raises:
        UserError: missing file, unknown or missing key, wrong shape, type or range.
    """

    name: ClassVar[str] = "array"

    def __init__(self, root: str | Path, split: str) -> None:
        path = located(root, f"{split}.npz", self.name, REMEDY)
        self._take(_load(path), str(path), split)

    @classmethod
    def of(
        cls,
        images: np.ndarray,
        labels: Sequence[int] | np.ndarray,
        *,
        masks: np.ndarray | None = None,
        depth_m: np.ndarray | None = None,
        class_names: Sequence[str] | None = None,
        segmentation_classes: Sequence[str] | None = None,
        depth_range_m: tuple[float, float] | None = None,
    ) -> Array:
        """A source of arrays in memory, checked like a file's: images, labels, ... as in the class."""
        source = cls.__new__(cls)
        given = {"images": images, "labels": labels, "masks": masks, "depth_m": depth_m, "class_names": class_names}
        given |= {"segmentation_classes": segmentation_classes, "depth_range_m": depth_range_m}
        source._take({key: np.asarray(value) for key, value in given.items() if value is not None}, "array", "memory")
        return source

    def _take(self, arrays: dict[str, np.ndarray], where: str, split: str) -> None:
        mistakes = _mistakes(arrays)
        if mistakes:
            raise UserError(f"{where}: " + "; ".join(mistakes))
        images, labels = arrays["images"], arrays["labels"].astype(np.int64)
        self.split = split
        self.images = images if images.ndim == 4 else np.repeat(images[..., None], 3, axis=-1)  # [N, H, W, 3]
        self._labels = labels
        self.masks = arrays["masks"].astype(np.uint8) if "masks" in arrays else None
        self.depth_m = arrays["depth_m"].astype(np.float32) if "depth_m" in arrays else None
        names = arrays["class_names"] if "class_names" in arrays else np.arange(labels.max() + 1)
        self.classes = tuple(str(name) for name in names)
        if self.masks is not None:
            seen = self.masks[self.masks != IGNORED]
            numbers = np.arange(seen.max() + 1 if seen.size else 0)
            self.segmentation_classes = tuple(str(n) for n in arrays.get("segmentation_classes", numbers))
        if self.depth_m is not None:
            known = self.depth_m[self.depth_m > 0]
            low, high = arrays.get("depth_range_m", (known.min(), known.max()) if known.size else (0.0, 0.0))
            self.depth_range_m = float(low), float(high)

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> Sample:
        return Sample(
            Image.fromarray(self.images[index]),
            int(self._labels[index]),
            None if self.masks is None else self.masks[index].copy(),
            None if self.depth_m is None else self.depth_m[index].copy(),
        )

    def labels(self) -> np.ndarray:
        return self._labels.copy()

    def sample_name(self, index: int) -> str:
        return f"{self.split}[{index}]"

    def identity(self) -> str:
        digest = hashlib.sha256("\0".join(self.classes).encode())
        for part in (self.images, self._labels, self.masks, self.depth_m):
            if part is not None:
                digest.update(f"{part.shape}{part.dtype}".encode())
                digest.update(np.ascontiguousarray(part).data)
        if self.segmentation_classes or self.depth_range_m:
            digest.update(repr((self.segmentation_classes, self.depth_range_m)).encode())
        return digest.hexdigest()


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read as an .npz of plain arrays: {error}. {REMEDY}") from error


def _mistakes(arrays: dict[str, Any]) -> list[str]:
    """Everything that is wrong, one sentence each."""
    mistakes = [unknown("key", key, KEYS) for key in arrays if key not in KEYS]
    mistakes += [f"no {key!r}; {REMEDY}" for key in ("images", "labels") if key not in arrays]
    if mistakes:
        return mistakes
    images, labels = arrays["images"], arrays["labels"]
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[-1] != 3):
        return [f"images are {_described(images)}; give uint8 [N, H, W, 3], or [N, H, W] for grey"]
    if images.size == 0:
        return [f"images are {_described(images)}: there is nothing in them"]
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        return [f"labels are {_described(labels)}; give integers [{len(images)}], one for each image, -1 for none"]
    names = arrays.get("class_names")
    if names is not None and (names.ndim != 1 or names.dtype.kind not in "US"):
        mistakes.append(f"class_names are {_described(names)}; give strings [C]")
    elif labels.min() < -1 or (names is not None and labels.max() >= len(names)):
        most = "" if names is None else f" .. {len(names) - 1}"
        mistakes.append(f"labels lie in {labels.min()} .. {labels.max()}; give 0{most}, or -1 for none")
    for key, kind in (("masks", np.integer), ("depth_m", np.floating)):
        part = arrays.get(key)
        if part is None:
            continue
        if part.shape != images.shape[:3] or not np.issubdtype(part.dtype, kind):
            wanted = "integers" if kind is np.integer else "floats"
            mistakes.append(f"{key} are {_described(part)}; give {wanted} {list(images.shape[:3])}, as the images")
        elif key == "masks" and (part.min() < 0 or part.max() > 255):
            mistakes.append(f"masks lie in {part.min()} .. {part.max()}; give 0 .. 254, 255 for pixels to ignore")
        elif key == "depth_m" and not (np.isfinite(part).all() and part.min() >= 0):
            mistakes.append("depth_m has negative or non-finite values; give metres, 0 where unknown")
    return mistakes + _mistakes_of_names(arrays)


def _mistakes_of_names(arrays: dict[str, Any]) -> list[str]:
    """What is wrong with segmentation_classes and depth_range_m, the masks and depths themselves being right."""
    mistakes = []
    names, limits = arrays.get("segmentation_classes"), arrays.get("depth_range_m")
    if names is not None:
        if "masks" not in arrays or names.ndim != 1 or names.dtype.kind not in "US":
            mistakes.append(f"segmentation_classes are {_described(names)}; give strings [S], and masks that use them")
        else:
            largest = max((int(m) for m in np.unique(arrays["masks"]) if m != IGNORED), default=-1)
            if largest >= len(names):
                mistakes.append(f"masks hold class {largest}, but segmentation_classes names 0 .. {len(names) - 1}")
    if limits is not None and (
        "depth_m" not in arrays
        or limits.shape != (2,)
        or limits.dtype.kind not in "iuf"
        or not 0 <= limits[0] < limits[1]
    ):
        mistakes.append(f"depth_range_m is {limits.tolist()}; give the smallest and the largest depth in metres")
    return mistakes


def _described(array: np.ndarray) -> str:
    return f"{array.dtype} {list(array.shape)}"
