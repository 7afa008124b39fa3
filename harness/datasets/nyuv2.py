"""NYU Depth v2's labelled file (Silberman et al., ECCV 2012) as folders of images and 16-bit depth maps.

The file is MATLAB's nyu_depth_v2_labeled.mat, an HDF5 file: 1449 images of 640 x 480 with two depth maps each, the
sensor's own with holes (`rawDepths`) and one whose holes are filled in (`depths`), in metres. What comes out is
root/{images,annotations}/{train,test}/00001.png, numbered as MATLAB does, depth in millimetres and 0 where unknown:
the layout of the source `depth_folder`. Everything is written beside `root` and renamed when complete, so that a folder
of the name `root` is whole, and a conversion that was killed goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import scipy.io
from PIL import Image

from harness.errors import UserError, no_file

DONE = "nyuv2.json"  # in the finished folder: what it was made from
OFFICIAL = {"train": 795, "test": 654}  # of 1449: splits.mat, which the data set's page has beside the file
UNIT_M = 0.001
LARGEST_M = 65535 * UNIT_M
Depths = Literal["rawDepths", "depths"]


@dataclasses.dataclass(frozen=True)
class _Pair:
    """One image of the file. split: where it goes. number: its name there, from 1. place: its index in the arrays."""

    split: str
    number: int
    place: int
    images: h5py.Dataset
    depths: h5py.Dataset
    matlab: bool  # arrays are [3, W, H] and [W, H], as MATLAB writes them; else [H, W, 3] and [H, W]

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Image [H, W, 3] uint8 and depth [H, W] metres."""
        image, depth_m = self.images[self.place], self.depths[self.place]
        return (image.T, depth_m.T) if self.matlab else (image, depth_m)


def prepare_nyuv2(
    root: Path,
    file: Path,
    splits: Path | None = None,
    *,
    depths: Depths = "rawDepths",
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write `root` for the source `depth_folder` (scale 0.001, max_m 10); returns how many pairs it holds.

    Args:
        root: the new folder. A finished one of the same file is left as it is.
        file: nyu_depth_v2_labeled.mat; or an HDF5 file with groups train and test that hold images [N, H, W, 3] uint8
            and depth maps [N, H, W] in metres, which needs no splits.
        splits: MATLAB's splits.mat (trainNdxs, testNdxs), or a text file with the numbers of the training images,
            counted from 1; all others are test images then.
        depths: "rawDepths", the sensor's, which is what NYU depth is commonly measured on; "depths", filled in.
        progress: called with (pairs written, all pairs).

    Raises:
        UserError: files that are not what they should be, a folder in the way, a depth that is no depth.
    """
    if not file.is_file():
        raise UserError(no_file("NYU file", file))
    if not h5py.is_hdf5(file):
        raise UserError(f"{file} is no HDF5 file: it is another file than nyu_depth_v2_labeled.mat, or was cut off")
    made_from = {"file": file.name, "bytes": file.stat().st_size, "depths": depths}
    with h5py.File(file, "r") as opened:
        pairs = _grouped(opened, depths, file) if "train" in opened else _labelled(opened, depths, file, splits)
        made_from |= {split: [p.number for p in pairs if p.split == split] for split in OFFICIAL}
        if _finished(root, made_from):
            return len(pairs)
        unfinished = root.absolute().with_name(f".{root.absolute().name}.unfinished")
        _begin(unfinished, made_from)
        for i, pair in enumerate(pairs):
            _write_pair(unfinished, pair)
            if progress is not None:
                progress(i + 1, len(pairs))
    os.replace(unfinished, root)
    return len(pairs)


def _labelled(opened: h5py.File, depths: str, file: Path, splits: Path | None) -> list[_Pair]:
    """All images of MATLAB's labelled file, in its order."""
    images, maps = _arrays(opened, depths, file)
    if images.shape[1] != 3 or images.shape[2:] != maps.shape[1:]:
        raise UserError(
            f"{file}: images {list(images.shape)} and {depths} {list(maps.shape)} do not belong together; MATLAB's "
            "file has [N, 3, W, H] and [N, W, H]"
        )
    if splits is None:
        raise UserError(f"{file} does not say which images are for testing; give the data set's splits.mat")
    count = len(images)
    training = read_splits(splits, count)
    return [_Pair("train" if i + 1 in training else "test", i + 1, i, images, maps, matlab=True) for i in range(count)]


def _grouped(opened: h5py.File, depths: str, file: Path) -> list[_Pair]:
    """The images of a file with a group for each split."""
    pairs = []
    for split in OFFICIAL:
        if split not in opened:
            raise UserError(f"{file} has no group {split!r} beside {', '.join(sorted(opened))}; give a file with both")
        group = opened[split]
        images, maps = _arrays(group, depths, file)
        if images.shape[-1] != 3 or images.shape[:3] != maps.shape:
            raise UserError(
                f"{file}, group {split!r}: images {list(images.shape)} and {depths} {list(maps.shape)} do not belong "
                "together; give [N, H, W, 3] and [N, H, W]"
            )
        pairs += [_Pair(split, i + 1, i, images, maps, matlab=False) for i in range(len(images))]
    return pairs


def _arrays(group: Any, depths: str, file: Path) -> tuple[h5py.Dataset, h5py.Dataset]:
    for key, dimensions in (("images", 4), (depths, 3)):
        if key not in group:
            raise UserError(
                f"{file} has no {key!r} in {group.name!r}, only {', '.join(sorted(group))}. NYU's file has images, "
                "depths and rawDepths; say with `depths` which map is meant"
            )
        if not isinstance(group[key], h5py.Dataset) or group[key].ndim != dimensions:
            raise UserError(f"{file}: {key!r} in {group.name!r} is not an array of {dimensions} dimensions")
    if group["images"].dtype != np.uint8:
        raise UserError(f"{file}: images are {group['images'].dtype}; give uint8")
    return group["images"], group[depths]


def read_splits(path: Path, count: int) -> set[int]:
    """Numbers of the training images, from 1, out of `count`.

    Raises:
        UserError: a file that cannot be read, numbers outside 1 .. count, an image in both splits or in none, other
            numbers of images than NYU's 795 and 654 where there are 1449.
    """
    if not path.is_file():
        raise UserError(no_file("file of splits", path))
    try:
        if path.suffix == ".mat":
            mat = scipy.io.loadmat(str(path), variable_names=["trainNdxs", "testNdxs"])
            training, testing = (_whole(mat[key].ravel()) for key in ("trainNdxs", "testNdxs"))
        else:
            training = _whole(path.read_text(encoding="utf-8").split())
            testing = sorted(set(range(1, count + 1)) - set(training))
    except (OSError, KeyError, ValueError, TypeError, NotImplementedError) as error:
        raise UserError(
            f"{path} holds no splits: {error}. Give splits.mat with trainNdxs and testNdxs, or a text file with the "
            "numbers of the training images"
        ) from error
    _check_splits(path, training, testing, count)
    return set(training)


def _whole(values: Sequence[Any] | np.ndarray) -> list[int]:
    numbers = [int(v) for v in values]
    if any(float(v) != n for v, n in zip(values, numbers, strict=True)):
        raise ValueError("not all of it are whole numbers")
    return numbers


def _check_splits(path: Path, training: list[int], testing: list[int], count: int) -> None:
    numbers = [*training, *testing]
    outside = [n for n in numbers if not 1 <= n <= count]
    if outside:
        raise UserError(f"{path} names image {outside[0]}; the file has images 1 .. {count}")
    if len(set(numbers)) != len(numbers):
        raise UserError(f"{path} names an image twice, or for training and testing")
    if not training or not testing or len(numbers) != count:
        raise UserError(
            f"{path} names {len(training)} training and {len(testing)} test images of {count}; give each image one"
        )
    found = {"train": len(training), "test": len(testing)}
    if count == sum(OFFICIAL.values()) and found != OFFICIAL:
        raise UserError(
            f"{path} has {found['train']} training and {found['test']} test images; NYU's official split has 795 and "
            "654. A split of one's own is a folder of another name: write it as a list file for depth_folder"
        )


def _finished(root: Path, made_from: dict[str, Any]) -> bool:
    """Whether root is there, whole, and of the same file; anything else under that name is an error."""
    if not root.exists():
        return False
    mark = root / DONE
    if mark.is_file() and json.loads(mark.read_text(encoding="utf-8")) == made_from:
        return True
    if root.is_dir() and not any(root.iterdir()):
        root.rmdir()
        return False
    what = "was made from another file, or with other splits or depths" if mark.is_file() else "holds something else"
    raise UserError(f"{root} {what}; remove it, or give another folder")


def _begin(unfinished: Path, made_from: dict[str, Any]) -> None:
    """A folder to write into: new, or left by a conversion of the same file that was killed."""
    unfinished.mkdir(parents=True, exist_ok=True)
    mark = unfinished / DONE
    if mark.is_file() and json.loads(mark.read_text(encoding="utf-8")) != made_from:
        raise UserError(f"{unfinished} is left of a conversion of another file; remove it")
    _write(mark, lambda path: path.write_text(json.dumps(made_from), encoding="utf-8"))
    for split in OFFICIAL:
        for kind in ("images", "annotations"):
            (unfinished / kind / split).mkdir(parents=True, exist_ok=True)


def _write_pair(folder: Path, pair: _Pair) -> None:
    """Image and depth map under their names, if they are not there yet; the depth map last, so that it stands for both.

    Raises:
        UserError: negative, infinite or too large depths.
    """
    name = f"{pair.split}/{pair.number:05d}.png"
    if (folder / "annotations" / name).is_file():
        return
    image, depth_m = pair.read()
    if not np.isfinite(depth_m).all() or depth_m.min() < 0 or depth_m.max() > LARGEST_M:
        raise UserError(
            f"depth map {pair.number} of {pair.split} holds {np.min(depth_m):g} .. {np.max(depth_m):g} m; depths are "
            f"0 .. {LARGEST_M:g} m, 0 where unknown"
        )
    units = np.round(depth_m.astype(np.float64) / UNIT_M).astype(np.uint16)
    for kind, array in (("images", np.ascontiguousarray(image)), ("annotations", units)):
        picture = Image.fromarray(array)
        _write(folder / kind / name, lambda path, picture=picture: picture.save(path, format="PNG"))


def _write(path: Path, how: Callable[[Path], Any]) -> None:
    """The file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        how(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
