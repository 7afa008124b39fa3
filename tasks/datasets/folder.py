"""Images in class folders, root/split/class/image, through timm's folder reader."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

import numpy as np
from timm.data.readers.reader_image_folder import ReaderImageFolder

from harness.errors import UserError
from harness.sources import Sample, Source
from tasks.datasets.images import SIZED_UP_TO, Listing, decode, located, no_images


class Folder(Source):
    """Images in class folders: root/split/class/image.png, .jpg or .jpeg, at any depth above the class folder.

    Classes are the folders' names in natural order; two splits have the same labels only where their
    `classes` are equal. Nothing is written. The identity holds file sizes up to SIZED_UP_TO files, and names
    and labels alone beyond.

    Args:
        root: the data set's folder. split: a folder in it; "." where the class folders lie in root itself.

    Raises:
        UserError: missing, unreadable or empty folders, images outside class folders, ambiguous class names.
    """

    name: ClassVar[str] = "folder"

    def __init__(self, root: str | Path, split: str) -> None:
        self.folder = located(root, split, self.name, "Folders must be root/split/class/image.")
        if not self.folder.is_dir():
            raise UserError(f"{self.folder} is a file, not a folder; for a tar file use the source 'tar'")
        try:
            reader = ReaderImageFolder(str(self.folder))
        except RuntimeError as error:
            found = (name for _, _, files in os.walk(self.folder) for name in files)
            raise no_images(self.folder, found) from error
        names = [os.path.relpath(path, self.folder).replace(os.sep, "/") for path, _ in reader.samples]
        targets = (target for _, target in reader.samples)
        self.listing = Listing.of(names, targets, reader.class_to_idx, self.folder)
        self.classes = self.listing.classes
        self._identity = ""

    def __len__(self) -> int:
        return len(self.listing.labels)

    def read(self, index: int) -> Sample:
        with open(self.folder / self.listing.name(index), "rb") as stream:
            return Sample(decode(stream), int(self.listing.labels[index]))

    def labels(self) -> np.ndarray:
        return self.listing.labels.copy()

    def sample_name(self, index: int) -> str:
        return self.listing.name(index)

    def identity(self) -> str:
        if not self._identity:
            sizes = None
            if len(self) <= SIZED_UP_TO:
                sizes = np.array([os.path.getsize(self.folder / self.listing.name(i)) for i in range(len(self))])
            self._identity = self.listing.digest(sizes)
        return self._identity
