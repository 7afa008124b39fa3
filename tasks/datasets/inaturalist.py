"""iNaturalist's competition sets with their official split: COCO-style lists beside the folder of images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from harness.errors import UserError
from harness.sources import Sample, Source
from tasks.datasets.images import located
from tasks.datasets.listed import Listed

REMEDY = "Unpack the list and the images into one folder: root/train2019.json beside root/train_val2019/."


class INaturalist(Source):
    """root/SPLIT.json with `images`, `categories` and `annotations`, and the images that it names below root.

    torchvision's own class reads the folders and so cannot tell training from validation images, which lie
    together. Classes are the categories' numbers, since their published names exist obfuscated and plain.

    Args:
        root: the folder of lists and images. split: a list's name without .json, such as "train2019".

    Raises:
        UserError: a list that is missing or is none, an image with no label or several.
    """

    name: ClassVar[str] = "inaturalist"

    def __init__(self, root: str | Path, split: str) -> None:
        path = located(root, f"{split}.json", self.name, REMEDY)
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            names, labels, classes = _parts(raw)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path} is no list of images, categories and annotations: {type(error).__name__}: {error}. {REMEDY}"
            ) from error
        self.listed = Listed(Path(root), names, labels, classes)
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


def _parts(raw: dict[str, Any]) -> tuple[tuple[str, ...], np.ndarray, tuple[str, ...]]:
    """Names in the list's order, their labels [len], and the classes: the category numbers in ascending order."""
    numbers = sorted({int(category["id"]) for category in raw["categories"]})
    label_of = {number: label for label, number in enumerate(numbers)}
    of_image: dict[Any, int] = {}
    for annotation in raw["annotations"]:
        image = annotation["image_id"]
        if image in of_image:
            raise ValueError(f"image {image} has several labels")
        of_image[image] = label_of[annotation["category_id"]]
    names = tuple(str(image["file_name"]) for image in raw["images"])
    labels = np.array([of_image[image["id"]] for image in raw["images"]], dtype=np.int64)
    outside = [name for name in names if name.startswith("/") or ".." in name.split("/")]
    if outside:
        raise ValueError(f"{outside[0]!r} leads out of the data's folder")
    return names, labels, tuple(map(str, numbers))
