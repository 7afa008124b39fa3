"""Images in class folders inside a tar file, through timm's tar reader."""

from __future__ import annotations

import io
import posixpath
import tarfile
from pathlib import Path
from typing import ClassVar

import numpy as np
from timm.data.readers.reader_image_in_tar import extract_tarinfos

from harness.errors import UserError
from harness.sources import Sample, Source
from tasks.datasets.images import Listing, decode, located, no_images

REMEDY = "Give a tar of class folders, such as split 'train.tar', or a folder of tars, one for each class."


class Tar(Source):
    """Images in class folders inside an uncompressed tar: root/train.tar with class/image.jpg in it.

    `split` may also be a folder of tars, each named after its class or holding class folders. Classes are
    the folders' names in natural order. The tars are read through once, at construction; nothing is written
    beside them, and no file stays open: any number of worker processes and threads may read.

    Args:
        root: the folder of the tar. split: the tar's name in it, or a folder of tars.

    Raises:
        UserError: missing, unreadable, compressed or cut-off tars, images outside class folders, ambiguous names.
    """

    name: ClassVar[str] = "tar"

    def __init__(self, root: str | Path, split: str) -> None:
        path = located(root, split, self.name, REMEDY)
        self.tars = _tars(path)
        try:
            # Without timm's index file: the data may be read-only, and an old index would hide a changed tar.
            samples, targets, class_to_idx, _ = extract_tarinfos(str(path), cache_tarinfo=False)
        except (tarfile.TarError, OSError, EOFError) as error:
            raise UserError(f"{path} cannot be read as a tar: {error}. {REMEDY}") from error
        except ValueError as error:  # timm unpacks its empty list
            raise no_images(path, []) from error
        numbers = {tar.name: number for number, tar in enumerate(self.tars)}
        names, places = [], []
        for member, tar_name, child in samples:  # TarInfo, the tar in a folder of tars, TarInfo of a tar in the tar
            folders = [Path(inner).stem for inner in (tar_name, child and child.name) if inner]
            names.append(posixpath.normpath("/".join([*folders, member.path])))
            start = member.offset_data + (child.offset_data if child else 0)
            places.append((numbers[tar_name] if tar_name else 0, start, member.size))
        self.listing = Listing.of(names, targets, class_to_idx or {}, path)
        self.places = np.array(places, np.int64)[self.listing.order]  # [len, 3]: tar, first byte, bytes
        self.classes = self.listing.classes

    def __len__(self) -> int:
        return len(self.listing.labels)

    def read(self, index: int) -> Sample:
        number, start, size = (int(value) for value in self.places[index])
        with open(self.tars[number], "rb") as stream:
            stream.seek(start)
            return Sample(decode(io.BytesIO(stream.read(size))), int(self.listing.labels[index]))

    def labels(self) -> np.ndarray:
        return self.listing.labels.copy()

    def sample_name(self, index: int) -> str:
        return self.listing.name(index)

    def identity(self) -> str:
        return self.listing.digest(self.places[:, 2])


def _tars(path: Path) -> list[Path]:
    """The tar at `path`, or those in the folder, all of them looking like uncompressed tars."""
    tars = sorted(path.glob("*.tar")) if path.is_dir() else [path]
    if not tars:
        raise UserError(f"{path} is a folder without .tar files. {REMEDY}")
    for tar in tars:
        if tar.suffix.lower() != ".tar":
            raise UserError(f"{tar} does not end in .tar; a compressed tar must be uncompressed first. {REMEDY}")
    return tars
