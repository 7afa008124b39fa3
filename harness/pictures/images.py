"""Images to look at: a folder of picture files as a source, and an even choice of any source's images."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from harness.errors import UserError
from harness.sources import Sample, Source, View

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")


class Pictures(Source):
    """Every image file of a folder and of the folders in it, in the order of their names; no labels.

    Unlike the registered sources it asks for no splits and no classes: the files may lie flat or in class folders.

    Raises:
        UserError: no such folder, or no image in it.
    """

    name = "pictures"
    classes = ()

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            what = "is a file" if folder.exists() else "does not exist"
            raise UserError(f"{str(folder)!r} {what}; --images names a folder of {', '.join(SUFFIXES)} files")
        self.folder = folder
        inside = [p for p in folder.rglob("*") if not any(part.startswith(".") for part in p.relative_to(folder).parts)]
        self.files = sorted(
            p.relative_to(folder).as_posix() for p in inside if p.suffix.lower() in SUFFIXES and p.is_file()
        )
        if not self.files:
            raise UserError(
                f"{str(folder)!r} holds no image ({_others(inside)}); "
                f"images are {', '.join(SUFFIXES)} files, in the folder itself or in folders in it"
            )

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> Sample:
        path = self.folder / self.files[index]
        try:
            with Image.open(path) as image:
                return Sample(image.convert("RGBA" if "transparency" in image.info else "RGB").convert("RGB"))
        except (OSError, ValueError):
            raise
        except Exception as error:  # format plugins raise anything from SyntaxError to struct.error on broken bytes
            raise ValueError(f"cannot be decoded: {type(error).__name__}: {error}") from error

    def labels(self) -> np.ndarray:
        return np.full(len(self.files), -1, dtype=np.int64)

    def sample_name(self, index: int) -> str:
        return self.files[index]

    def identity(self) -> str:
        sizes = (os.path.getsize(self.folder / name) for name in self.files)
        listed = "\n".join(f"{size} {name}" for size, name in zip(sizes, self.files, strict=True))
        return hashlib.sha256(listed.encode()).hexdigest()


def _others(inside: Sequence[Path]) -> str:
    """What a folder without images holds, in words."""
    kinds = sorted({p.suffix or p.name for p in inside if p.is_file()})
    return f"only {', '.join(kinds[:8])}" if kinds else "it is empty"


def evenly(total: int, count: int) -> list[int]:
    """`count` numbers below `total` at equal distances, from the middle of the first part to that of the last."""
    count = min(total, count)
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def read_images(source: Source, view: View, indices: Sequence[int]) -> tuple[Tensor, list[str]]:
    """Images [len(indices), 3, S, S] in [0, 1] and their names. Raises UserError naming one that is broken."""
    images = []
    for i in indices:
        try:
            images.append(view(source.read(i).image))
        except (OSError, ValueError, SyntaxError) as error:  # what PIL raises for damaged files
            reason = "it is damaged or no image" if isinstance(error, Image.UnidentifiedImageError) else error
            raise UserError(f"image {source.sample_name(i)!r} cannot be read: {reason}. Mend or remove it") from error
    return torch.stack(images), [source.sample_name(i) for i in indices]
