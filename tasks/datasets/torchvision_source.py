"""Food-101, FGVC-Aircraft, Flowers-102 and Oxford-IIIT Pet as torchvision reads their official splits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from torchvision import datasets

from harness.errors import UserError, unknown
from harness.sources import Sample, Source
from tasks.datasets.images import located
from tasks.datasets.listed import Listed


class _Kind(NamedTuple):
    """make: torchvision's class. files: its attribute with the paths. layout: what must lie in the root."""

    make: Callable[..., Any]
    files: str
    layout: str


KINDS = {
    "food101": _Kind(datasets.Food101, "_image_files", "food-101/images, food-101/meta"),
    "fgvc_aircraft": _Kind(datasets.FGVCAircraft, "_image_files", "fgvc-aircraft-2013b/data"),
    "flowers102": _Kind(
        datasets.Flowers102, "_image_files", "flowers-102/jpg, flowers-102/imagelabels.mat, flowers-102/setid.mat"
    ),
    "oxford_pets": _Kind(datasets.OxfordIIITPet, "_images", "oxford-iiit-pet/images, oxford-iiit-pet/annotations"),
}


class TorchvisionSource(Source):
    """Data sets whose official splits torchvision knows and timm does not, in the layout of their own archives.

    Nothing is downloaded unless `download` is true. The identity holds names, labels and file sizes.

    Args:
        root: the folder that holds the unpacked archive's folder. split: as torchvision calls it, or several with
            "+" between them, such as train+val.
        dataset: food101, fgvc_aircraft (variants), flowers102 or oxford_pets. download: fetch what is not there.

    Raises:
        UserError: an unknown split, files that are missing or not as published.
    """

    name: ClassVar[str] = "torchvision"

    def __init__(
        self,
        root: str | Path,
        split: str,
        *,
        dataset: Literal["food101", "fgvc_aircraft", "flowers102", "oxford_pets"] = "food101",
        download: bool = False,
    ) -> None:
        if dataset not in KINDS:
            raise UserError(unknown("torchvision data set", dataset, KINDS))
        kind = KINDS[dataset]
        folder = located(root, ".", self.name, f"It must hold {kind.layout}.")
        parts = [_made(kind, dataset, folder, one.strip(), download) for one in split.split("+")]
        classes = {tuple(part.classes) for part in parts}
        if len(classes) > 1:
            raise UserError(f"the splits {split!r} of {dataset} do not have the same classes")
        paths = [Path(path) for part in parts for path in getattr(part, kind.files)]
        names = tuple(path.relative_to(folder).as_posix() for path in paths)
        twice = len(names) - len(set(names))
        if twice:
            raise UserError(f"{twice} images of {dataset} stand in {split!r} twice; name every split once")
        labels = np.array([label for part in parts for label in part._labels], dtype=np.int64)
        self.listed = Listed(folder, names, labels, classes.pop())
        self.classes = self.listed.classes

    def __len__(self) -> int:
        return len(self.listed.names)

    def read(self, index: int) -> Sample:
        return self.listed.read(index)

    def labels(self) -> np.ndarray:
        return self.listed.labels.copy()

    def sample_name(self, index: int) -> str:
        return self.listed.names[index]

    def identity(self) -> str:
        return self.listed.identity()


def _made(kind: _Kind, dataset: str, folder: Path, split: str, download: bool) -> Any:
    """torchvision's data set; whatever is wrong below is the user's data or split."""
    try:
        return kind.make(str(folder), split=split, download=download)
    except Exception as error:  # each set raises what its own format does: RuntimeError, ValueError, OSError, KeyError
        said = " ".join(str(error).split()).partition(" You can use download=True")[0].rstrip(".")
        raise UserError(
            f"{dataset}, split {split!r}, cannot be read from {folder}: {said or type(error).__name__}. The folder "
            f"must hold {kind.layout} as published; or set `download: true`"
        ) from error
