"""Omniglot: handwritten characters of many alphabets, read from the archives as they were published."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path, PurePosixPath
from typing import ClassVar

import numpy as np

from harness.errors import UserError
from harness.sources import Sample, Source
from tasks.datasets.images import decode, located

REMEDY = "Give the archives of https://github.com/brendenlake/omniglot, such as split 'images_background_small1'."


class Omniglot(Source):
    """Every character of every alphabet is a class of twenty drawings (Lake et al., Science 350, 2015).

    root/split.zip with split/ALPHABET/characterNN/*.png in it, read without unpacking; no file stays open, so any
    number of worker processes and threads may read.

    Args:
        root: the folder of the archives. split: an archive's name without ".zip".

    Raises:
        UserError: a missing or damaged archive, or one that holds something else.
    """

    name: ClassVar[str] = "omniglot"

    def __init__(self, root: str | Path, split: str) -> None:
        self.path = located(root, f"{split}.zip", self.name, REMEDY)
        try:
            with zipfile.ZipFile(self.path) as archive:
                members = [m for m in archive.infolist() if m.filename.endswith(".png")]
        except (zipfile.BadZipFile, OSError, EOFError) as error:
            raise UserError(f"{self.path} cannot be read as a zip: {error}. {REMEDY}") from error
        members.sort(key=lambda m: m.filename)
        folders = [PurePosixPath(m.filename).parts[1:-1] for m in members]
        wrong = [m.filename for m, parts in zip(members, folders, strict=True) if len(parts) != 2]
        if wrong or not members:
            what = f"holds {wrong[0]!r}" if wrong else "holds no .png"
            raise UserError(f"{self.path} {what}, and not split/ALPHABET/CHARACTER/*.png. {REMEDY}")
        characters = ["/".join(parts) for parts in folders]
        self.classes = tuple(sorted(set(characters)))
        number = {c: i for i, c in enumerate(self.classes)}
        self.names = [m.filename for m in members]
        self._labels = np.array([number[c] for c in characters], dtype=np.int64)
        self._checksums = np.array([m.CRC for m in members], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> Sample:
        try:
            with zipfile.ZipFile(self.path) as archive:
                data = archive.read(self.names[index])
        except zipfile.BadZipFile as error:  # a member whose checksum is wrong
            raise ValueError(str(error)) from error
        return Sample(decode(io.BytesIO(data)), int(self._labels[index]))

    def labels(self) -> np.ndarray:
        return self._labels.copy()

    def sample_name(self, index: int) -> str:
        return self.names[index]

    def identity(self) -> str:
        digest = hashlib.sha256("\0".join(self.names).encode())
        digest.update(self._checksums.tobytes())
        return digest.hexdigest()
