"""What the file sources share: decoding to RGB, checked listings, and errors that name the nearest thing on disk."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
from PIL import Image
from timm.data.readers.img_extensions import get_img_extensions
from timm.utils.misc import natural_key

from harness.errors import UserError

SIZED_UP_TO = 200_000  # files; beyond it, asking for every size would take minutes on a network disk


def decode(stream: BinaryIO) -> Image.Image:
    """The whole image in a stream, as RGB. Raises OSError or ValueError where it is broken or cut off."""
    try:
        return to_rgb(Image.open(stream))
    except (OSError, ValueError, MemoryError):
        raise
    except Exception as error:  # format plugins raise anything from SyntaxError to struct.error on broken bytes
        raise ValueError(f"cannot be decoded: {type(error).__name__}: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any image -> RGB with 8 bits a channel. Transparency is left out, as timm and torchvision do.

    Sixteen-bit grey is scaled by 1/257 (Pillow's own conversion would clip it at 255).

    Raises:
        ValueError: 32-bit integers beyond 65535, or floats: their range is not known.
    """
    image.load()
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"32-bit grey values up to {values.max()}; convert the image to 8 or 16 bits")
        return Image.fromarray(np.round(values / 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("grey values are floats of unknown range; convert the image to 8 or 16 bits")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns about the direct way
    return image.convert("RGB")


def located(root: str | Path | None, split: str, source: str, remedy: str) -> Path:
    """root / split, which exists. Raises UserError naming the nearest existing name and the remedy."""
    if root is None or not str(root):
        raise UserError(f"source {source!r} needs data.root: {remedy}")
    path = Path(root) / split
    try:
        path.stat()
        return path
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}. {remedy}") from error
    missing = path
    while not missing.parent.exists():
        missing = missing.parent
    raise UserError(f"{path} does not exist: {_nearest(missing)} {remedy}")


def _nearest(missing: Path) -> str:
    """What `missing`, the first absent part of a path, could have been."""
    if not missing.parent.is_dir():
        return f"{missing.parent} is a file."
    names = sorted(os.listdir(missing.parent))
    near = difflib.get_close_matches(missing.name, names, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    return f"no {missing.name!r} in {missing.parent}{hint} There: {shown or '(nothing)'}."


@dataclasses.dataclass(frozen=True)
class Listing:
    """The samples of a split in the order of their names: plain arrays, cheap to share with worker processes.

    Attributes:
        order: where each sample stood in what was given. names: UTF-8 bytes [len]. labels: int64 [len].
        classes: names in natural order ("class2" before "class10").
    """

    order: np.ndarray
    names: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]

    @classmethod
    def of(cls, names: Sequence[str], labels: Iterable[int], class_to_idx: Mapping[str, int], where: Path) -> Listing:
        """Sorted and checked. Names have "/" between folders and end in .../class/file.

        Raises:
            UserError: images outside class folders, or two folders that would silently become one class.
        """
        folders: dict[str, str] = {}
        for folder in sorted({name.rpartition("/")[0] for name in names}):
            leaf = PurePosixPath(folder).name
            if not leaf:
                raise UserError(f"{where} has images outside any class folder; give it class folders that hold images")
            if leaf in folders:
                raise UserError(
                    f"{where}: folders {folders[leaf]!r} and {folder!r} would become one class, {leaf!r}; "
                    "images must lie directly in their class folder, and class names must differ"
                )
            folders[leaf] = folder
        # The reader breaks ties of natural order ("a1", "a01") by chance; settle them by the name itself.
        classes = sorted(class_to_idx, key=lambda name: (natural_key(name), name))
        settled = np.zeros(len(classes), np.int64)
        settled[[class_to_idx[name] for name in classes]] = np.arange(len(classes))
        encoded = np.array([os.fsencode(name) for name in names])
        order = np.argsort(encoded, kind="stable")
        return cls(order, encoded[order], settled[np.asarray(list(labels), np.int64)[order]], tuple(classes))

    def name(self, index: int) -> str:
        return os.fsdecode(bytes(self.names[index]))

    def digest(self, sizes: np.ndarray | None) -> str:
        """Hash of names, labels, classes and, where given, sizes in bytes [len]."""
        digest = hashlib.sha256("\0".join(self.classes).encode("utf-8", "surrogateescape"))
        digest.update(b"\0".join(self.names.tolist()))
        digest.update(self.labels.tobytes())
        digest.update(b"" if sizes is None else np.asarray(sizes, np.int64).tobytes())
        return digest.hexdigest()


def no_images(path: Path, found: Iterable[str]) -> UserError:
    """The error for a place without images that timm reads; `found`: names of what is there instead."""
    kinds = sorted({Path(name).suffix.lower() for name in found} - {""})
    there = f" Found files ending in {', '.join(kinds[:8])}." if kinds else ""
    return UserError(f"{path} holds no images ({', '.join(get_img_extensions())}) in class folders.{there}")
