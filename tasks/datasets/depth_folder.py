"""Images with depth maps beside them: NYU-format folders, KITTI-style sparse maps, any RGB-D recording as PNG."""

from __future__ import annotations

import difflib
import hashlib
import math
import os
from collections.abc import Container
from pathlib import Path, PurePosixPath
from typing import ClassVar

import numpy as np
from PIL import Image
from timm.data.readers.img_extensions import get_img_extensions

from harness.errors import UserError
from harness.sources import Sample, Source
from tasks.datasets.images import SIZED_UP_TO, decode, located

KNOWN_SCALES = "0.001 for millimetres (NYU), 0.00390625 for KITTI (1/256)"
LAYOUT = "Folders must be root/images/split/NAME.jpg and root/annotations/split/NAME.png, or say which they are."


class DepthFolder(Source):
    """Images and 16-bit PNG depth maps of the same name: root/images/split/a.jpg, root/annotations/split/a.png.

    A depth map has the size of its image; a pixel is an integer times `scale` metres, and 0 where nothing is known, so
    that sparse maps (KITTI's lidar) need no other form. No image has a label. The identity holds names, the files'
    sizes (up to SIZED_UP_TO files), scale and range; no path.

    Args:
        root: the data set's folder. split: a name put for "{split}" into the options.
        images, annotations: folders below root; images are found at any depth in them.
        pairs: a list file below root, such as "{split}_files.txt" (NYU's and KITTI's splits come as such): a line is
            "IMAGE DEPTH", each below its folder, and what follows (KITTI's focal length) is not read. Lines whose depth
            is "None", as KITTI's lists have where no depth was recorded, are left out. None: pairs by name.
        scale: metres a unit; 0.001 for millimetres, 0.00390625 for KITTI. Must be given.
        min_m, max_m: the depths that count, metres: 10 for NYU, 80 for KITTI. max_m must be given.

    Raises:
        UserError: no scale or range, missing or empty folders, an image without depth map or the other way round, two
            files of one name, a list file that cannot be read.
    """

    name: ClassVar[str] = "depth_folder"
    classes = ()

    def __init__(
        self,
        root: str | Path,
        split: str,
        *,
        images: str = "images/{split}",
        annotations: str = "annotations/{split}",
        pairs: str | None = None,
        scale: float | None = None,
        min_m: float = 0.001,
        max_m: float | None = None,
    ) -> None:
        self.scale, self.depth_range_m = _checked_units(scale, min_m, max_m)
        if pairs is None:
            folders = [located(root, _filled(pattern, split), self.name, LAYOUT) for pattern in (images, annotations)]
            self.image_folder, self.depth_folder = folders
            self.pairs = _by_name(self.image_folder, self.depth_folder)
        else:
            lists = located(root, _filled(pairs, split), self.name, "Give data.options.pairs, a list file below root.")
            self.image_folder, self.depth_folder = (Path(root) / _filled(p, split) for p in (images, annotations))
            self.pairs = _listed(lists, self.image_folder, self.depth_folder)
        self._identity = ""

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, index: int) -> Sample:
        image_name, depth_name = self.pairs[index]
        with open(self.image_folder / image_name, "rb") as stream:
            image = decode(stream)
        depth_m = read_depth(self.depth_folder / depth_name, self.scale)
        if depth_m.shape != (image.height, image.width):
            raise ValueError(
                f"its depth map {depth_name!r} is {depth_m.shape[1]} x {depth_m.shape[0]} pixels and the image "
                f"{image.width} x {image.height}; give both in one size"
            )
        return Sample(image, depth_m=depth_m)

    def labels(self) -> np.ndarray:
        return np.full(len(self.pairs), -1, dtype=np.int64)

    def sample_name(self, index: int) -> str:
        return self.pairs[index][0]

    def identity(self) -> str:
        if not self._identity:
            digest = hashlib.sha256(repr((self.scale, self.depth_range_m)).encode())
            digest.update("\0".join(name for pair in self.pairs for name in pair).encode("utf-8", "surrogateescape"))
            if len(self) <= SIZED_UP_TO:
                folders = self.image_folder, self.depth_folder
                sizes = [[os.path.getsize(f / n) for f, n in zip(folders, pair, strict=True)] for pair in self.pairs]
                digest.update(np.array(sizes, dtype=np.int64).tobytes())
            self._identity = digest.hexdigest()
        return self._identity


def read_depth(path: Path, scale: float) -> np.ndarray:
    """A 16-bit grey PNG as metres: [H, W] float32, 0 where unknown.

    Raises:
        OSError, ValueError: a file that is broken, cut off, or has other than 16-bit grey pixels; names the file.
    """
    try:
        with Image.open(path) as image:
            image.load()
            mode, values = image.mode, np.asarray(image)
    except Exception as error:  # format plugins raise anything from SyntaxError to struct.error on broken bytes
        raise ValueError(f"depth map {path.name!r} cannot be read: {error}") from error
    if mode not in ("I;16", "I;16B", "I;16L", "I"):  # "I": how some versions of Pillow give a 16-bit PNG
        raise ValueError(
            f"depth map {path.name!r} has pixels of mode {mode!r}: 8 bits cannot hold a depth in metres. Write it as a "
            "16-bit grey PNG, such as millimetres"
        )
    if values.min(initial=0) < 0:
        raise ValueError(f"depth map {path.name!r} has negative values; write 0 where the depth is not known")
    return (values.astype(np.float64) * scale).astype(np.float32)


def _checked_units(scale: float | None, min_m: float, max_m: float | None) -> tuple[float, tuple[float, float]]:
    if scale is None:
        raise UserError(f"source 'depth_folder' needs data.options.scale, metres a unit: {KNOWN_SCALES}")
    if not (math.isfinite(scale) and scale > 0):
        raise UserError(f"scale of source 'depth_folder' is {scale:g}; give metres a unit, {KNOWN_SCALES}")
    if max_m is None:
        raise UserError(
            "source 'depth_folder' needs data.options.max_m, the largest depth that counts in metres: 10 for NYU, 80 "
            "for KITTI"
        )
    if not (0 <= min_m < max_m and math.isfinite(max_m)):
        raise UserError(
            f"min_m {min_m:g} and max_m {max_m:g} of source 'depth_folder' are no range in metres; give such as 0.001 "
            "and 10"
        )
    return float(scale), (float(min_m), float(max_m))


def _filled(pattern: str, split: str) -> str:
    return pattern.replace("{split}", split)


def _by_name(images: Path, depths: Path) -> list[tuple[str, str]]:
    """(image, depth map) by their names without ending, sorted."""
    of_images, of_depths = _stems(images, get_img_extensions()), _stems(depths, (".png",))
    for found, folder, kind in ((of_images, images, "images"), (of_depths, depths, "depth maps (.png)")):
        if not found:
            raise UserError(f"{folder} holds no {kind}. {LAYOUT}")
    alone, unused = sorted(of_images.keys() - of_depths.keys()), sorted(of_depths.keys() - of_images.keys())
    if alone:
        near = [stem for stem in unused if alone[0] in stem] or difflib.get_close_matches(alone[0], unused, n=1)
        hint = f"; did you mean {of_depths[near[0]]!r}?" if near else "."
        raise UserError(
            f"{len(alone)} of {len(of_images)} images in {images} have no depth map in {depths}, the first "
            f"{of_images[alone[0]]!r}{hint} Give a PNG of the same name for each, or a list file (data.options.pairs)"
        )
    if unused:
        raise UserError(
            f"{len(unused)} of {len(of_depths)} depth maps in {depths} have no image in {images}, the first "
            f"{of_depths[unused[0]]!r}; remove them, or give a list file (data.options.pairs)"
        )
    return [(of_images[stem], of_depths[stem]) for stem in sorted(of_images)]


def _stems(folder: Path, endings: Container[str]) -> dict[str, str]:
    """Name below the folder without its ending -> with it."""
    found: dict[str, str] = {}
    for place, _, files in os.walk(folder):
        for file in files:
            stem, ending = os.path.splitext(file)
            if ending.lower() not in endings or file.startswith("."):
                continue
            below = os.path.relpath(place, folder)
            prefix = "" if below == "." else below.replace(os.sep, "/") + "/"
            if prefix + stem in found:
                raise UserError(f"{folder} has both {found[prefix + stem]!r} and {prefix + file!r}; keep one of them")
            found[prefix + stem] = prefix + file
    return found


def _listed(path: Path, images: Path, depths: Path) -> list[tuple[str, str]]:
    """(image, depth map) of a list file, in its order."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"list file {path} cannot be read: {error}") from error
    pairs = []
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words or words[0].startswith("#") or words[1:2] == ["None"]:
            continue
        if len(words) < 2:
            raise UserError(f"{path}, line {number}: {line.strip()!r} names one file; give IMAGE DEPTH")
        names = [word.lstrip("/") for word in words[:2]]  # NYU's lists write them with a leading slash
        for folder, name in zip((images, depths), names, strict=True):
            if ".." in PurePosixPath(name).parts:
                raise UserError(f"{path}, line {number}: {name!r} leads out of {folder}; give names below it")
            if not (folder / name).is_file():
                raise UserError(f"{path}, line {number}: no file {name!r} in {folder}; mend the line or remove it")
        pairs.append((names[0], names[1]))
    if not pairs:
        raise UserError(f"list file {path} names no pair of image and depth map; give lines IMAGE DEPTH")
    return pairs
