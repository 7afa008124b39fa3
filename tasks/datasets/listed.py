"""Images that a list names, with the labels that the list gives: what sources of published file lists share."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path

import numpy as np

from harness.errors import UserError
from harness.sources import Sample
from tasks.datasets.images import SIZED_UP_TO, decode


@dataclasses.dataclass(frozen=True)
class Listed:
    """The samples of a split, in the order of its list.

    Attributes:
        folder: what the names are relative to. names: files, with "/" between folders.
        labels: [len] int64. classes: names; a label indexes them.
    """

    folder: Path
    names: tuple[str, ...]
    labels: np.ndarray
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.names:
            raise UserError(f"the list in {self.folder} names no images; give a split that has some")
        if len(self.names) != len(self.labels):
            raise UserError(f"the list in {self.folder} has {len(self.names)} images and {len(self.labels)} labels")
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= len(self.classes):
            raise UserError(f"the list in {self.folder} has labels {low} .. {high}, but {len(self.classes)} classes")

    def read(self, index: int) -> Sample:
        with open(self.folder / self.names[index], "rb") as stream:
            return Sample(decode(stream), int(self.labels[index]))

    def identity(self) -> str:
        """Hash of names, labels and classes, and of sizes in bytes up to SIZED_UP_TO files.

        Raises:
            UserError: files that the list names and the folder lacks.
        """
        digest = hashlib.sha256("\0".join(self.classes).encode())
        digest.update("\0".join(self.names).encode("utf-8", "surrogateescape"))
        digest.update(self.labels.tobytes())
        if len(self.names) <= SIZED_UP_TO:
            digest.update(self._sizes().tobytes())
        return digest.hexdigest()

    def _sizes(self) -> np.ndarray:
        """Bytes of each file [len]."""
        sizes, absent = np.zeros(len(self.names), np.int64), []
        for i, name in enumerate(self.names):
            try:
                sizes[i] = os.path.getsize(self.folder / name)
            except OSError:
                absent.append(name)
        if absent:
            raise UserError(
                f"{len(absent)} of {len(self.names)} listed images are not in {self.folder}, the first: {absent[0]!r}; "
                "unpack the archive of images again"
            )
        return sizes
