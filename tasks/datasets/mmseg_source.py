"""Segmentation data through mmsegmentation: its data sets, ADE20K and Cityscapes among them, or a folder."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from harness.errors import UserError, unknown
from harness.mmseg_guard import mmseg
from harness.sources import Sample, Source
from tasks.datasets.images import SIZED_UP_TO, decode, located

IGNORED = 255  # mmsegmentation's own; no class has this number


class _Layout(NamedTuple):
    """Where images, label maps and a list of names lie under the root; "{split}" stands for the split."""

    images: str = "images/{split}"
    annotations: str = "annotations/{split}"
    listing: str = ""


# Of mmsegmentation's own configurations (configs/_base_/datasets). All others have the layout's defaults.
_AERIAL = _Layout("img_dir/{split}", "ann_dir/{split}")
_CONTEXT = _Layout("JPEGImages", "SegmentationClassContext", "ImageSets/SegmentationContext/{split}.txt")
LAYOUTS = {
    "CityscapesDataset": _Layout("leftImg8bit/{split}", "gtFine/{split}"),
    "PascalContextDataset": _CONTEXT,
    "PascalContextDataset59": _CONTEXT,
    "PascalVOCDataset": _Layout("JPEGImages", "SegmentationClass", "ImageSets/Segmentation/{split}.txt"),
    "LoveDADataset": _AERIAL,
    "PotsdamDataset": _AERIAL,
    "ISPRSDataset": _AERIAL,
    "iSAIDDataset": _AERIAL,
}


class Mmseg(Source):
    """A segmentation data set of mmsegmentation, by the name of its class; label maps at their full resolution.

    The data set lists the pairs, with its own suffixes and classes; its `LoadAnnotations` reads a label map, with
    `reduce_zero_label` and, for a choice of its classes, the label map that goes with it. Every image must have its
    label map and, where no listing says what belongs to the split, every label map its image. Images are turned as
    their EXIF orientation says, as mmsegmentation does. Samples have no class of their own.

    Args:
        root: the data set's folder. split: stands for "{split}" in the next three.
        type: registered name of the class; "BaseSegDataset" for a folder of one's own, which needs `classes`.
        images, annotations: folders under root. listing: a text file under root with a name a line, without suffix;
            "" for all of the folder. None: as mmsegmentation's own configuration has it.
        classes: names; of a data set that has its own, a choice of them, the rest being ignored.
        image_suffix, label_suffix: None: the data set's own.
        reduce_zero_label: whether label 0 is ignored and 1 is the first class. None: the data set's own.

    Raises:
        UserError: unknown type, missing folders or files, no pairs, classes that the data set does not have.
    """

    name: ClassVar[str] = "mmseg"

    def __init__(
        self,
        root: str | Path,
        split: str,
        *,
        type: str = "BaseSegDataset",
        classes: tuple[str, ...] | None = None,
        images: str | None = None,
        annotations: str | None = None,
        listing: str | None = None,
        image_suffix: str | None = None,
        label_suffix: str | None = None,
        reduce_zero_label: bool | None = None,
    ) -> None:
        cls, layout = _dataset_class(type), LAYOUTS.get(type, _Layout())
        given = {"images": images, "annotations": annotations, "listing": listing}
        place = {k: (v if v is not None else getattr(layout, k)).replace("{split}", split) for k, v in given.items()}
        remedy = f"Give the options images, annotations and listing of data.options as {type} has its files."
        self.image_folder = located(root, place["images"], self.name, remedy)
        self.label_folder = located(root, place["annotations"], self.name, remedy)
        names = located(root, place["listing"], self.name, remedy) if place["listing"] else None
        options: dict[str, Any] = {"img_suffix": image_suffix, "seg_map_suffix": label_suffix}
        options["reduce_zero_label"] = reduce_zero_label
        if classes is not None:
            options["metainfo"] = {"classes": list(classes)}
        dataset = _built(cls, type, {k: v for k, v in options.items() if v is not None}, self, names)
        self.type, self.split, self.classes = type, split, ()
        self.segmentation_classes = tuple(str(c) for c in dataset.metainfo["classes"])
        self.reduce_zero_label = bool(dataset.reduce_zero_label)
        self.label_map: dict[int, int] | None = dataset.label_map
        self.pairs = [
            (os.path.relpath(d["img_path"], self.image_folder), os.path.relpath(d["seg_map_path"], self.label_folder))
            for d in dataset.data_list
        ]
        self._load = mmseg("mmseg.datasets.transforms").LoadAnnotations()
        self._identity = ""
        _check_pairs(self, str(dataset.img_suffix), str(dataset.seg_map_suffix), listed=names is not None)

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, index: int) -> Sample:
        """The sample. Raises OSError or ValueError, naming the label map where that is what is broken."""
        with open(self.image_folder / self.pairs[index][0], "rb") as stream:
            image = ImageOps.exif_transpose(decode(stream))
        name, mask = self.pairs[index][1], self._mask(index)
        if mask.shape != (image.height, image.width):
            raise ValueError(
                f"its label map {name!r} has {mask.shape[1]} x {mask.shape[0]} pixels, the image "
                f"{image.width} x {image.height}; make them alike"
            )
        return Sample(image, mask=mask)

    def _mask(self, index: int) -> np.ndarray:
        """[H, W] uint8, 255 = ignore."""
        name = self.pairs[index][1]
        path = self.label_folder / name
        try:
            with Image.open(path) as stored:
                _check_one_byte(stored)
            found = {"seg_map_path": str(path), "reduce_zero_label": self.reduce_zero_label, "seg_fields": []}
            mask = self._load.transform({**found, "label_map": self.label_map})["gt_seg_map"]
        except Exception as error:  # format plugins raise anything on broken bytes
            reason = str(error) or error.__class__.__name__
            raise ValueError(f"its label map {name!r} cannot be read: {reason}") from error
        known = mask[mask != IGNORED]
        if known.size and known.max() >= len(self.segmentation_classes):
            raise ValueError(
                f"its label map {name!r} holds class {known.max()}, but {self.type} has "
                f"{len(self.segmentation_classes)} classes, 0 .. {len(self.segmentation_classes) - 1}, and 255 for "
                "pixels to ignore; give all classes, set reduce_zero_label, or convert the label maps"
            )
        return mask

    def labels(self) -> np.ndarray:
        return np.full(len(self), -1, dtype=np.int64)

    def sample_name(self, index: int) -> str:
        return self.pairs[index][0].replace(os.sep, "/")

    def identity(self) -> str:
        if not self._identity:
            meaning = {"classes": self.segmentation_classes, "reduce_zero_label": self.reduce_zero_label}
            meaning["label_map"] = None if self.label_map is None else sorted(self.label_map.items())
            pairs: list[Any] = [[part.replace(os.sep, "/") for part in pair] for pair in self.pairs]
            if len(self) <= SIZED_UP_TO:
                pairs += [
                    [os.path.getsize(self.image_folder / image), os.path.getsize(self.label_folder / label)]
                    for image, label in self.pairs
                ]
            self._identity = hashlib.sha256(json.dumps([meaning, pairs], sort_keys=True).encode()).hexdigest()
        return self._identity


def _dataset_class(name: str) -> Any:
    """The class that mmsegmentation registers under `name`, of those that list images with label maps."""
    base = mmseg("mmseg.datasets").BaseSegDataset
    known = {k: v for k, v in mmseg("mmseg.registry").DATASETS.module_dict.items() if issubclass(v, base)}
    if name not in known:
        raise UserError(unknown("segmentation data set of mmsegmentation", name, known))
    return known[name]


def _built(cls: Any, name: str, options: dict[str, Any], source: Mmseg, listing: Path | None) -> Any:
    if cls.METAINFO.get("classes") is None and "metainfo" not in options:
        raise UserError(f"{name} knows no classes of its own; give data.options.classes, the names in order")
    place = {"img_path": str(source.image_folder), "seg_map_path": str(source.label_folder)}
    try:
        # Nothing is run on a sample (pipeline) and the list stays a list (serialize_data): only pairs are wanted.
        return cls(
            data_prefix=place,
            ann_file="" if listing is None else str(listing),
            pipeline=[],
            serialize_data=False,
            **options,
        )
    except (ValueError, AssertionError, TypeError, OSError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{name} cannot be made with {source.image_folder}: {reason}") from error


def _check_pairs(source: Mmseg, image_suffix: str, label_suffix: str, listed: bool) -> None:
    """Every image has its label map, and the other way round unless there is a list. Raises UserError."""
    remedy = "mend the data, or give image_suffix and label_suffix in data.options"
    if not source.pairs:
        kinds = sorted({Path(n).suffix for _, _, files in os.walk(source.image_folder) for n in files})
        raise UserError(
            f"{source.image_folder} holds no image ending in {image_suffix!r}, which {source.type} looks for; "
            f"there are files ending in {', '.join(kinds[:8]) or '(none)'}. Give image_suffix in data.options"
        )
    images = [image for image, _ in source.pairs]
    if len(set(images)) < len(images):
        twice = next(name for i, name in enumerate(images) if name in images[:i])
        raise UserError(f"image {twice!r} of {source.image_folder} is listed twice; remove one of the two lines")
    labels = [label for _, label in source.pairs]
    for what, folder, names in (("image", source.image_folder, images), ("label map", source.label_folder, labels)):
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise UserError(
                f"{len(missing)} of {len(names)} {what}s are missing in {folder}, the first {missing[0]!r}; {remedy}"
            )
    if not listed:
        there = (
            Path(at, n) for at, _, files in os.walk(source.label_folder) for n in files if n.endswith(label_suffix)
        )
        strays = sorted({os.path.relpath(path, source.label_folder) for path in there} - set(labels))
        if strays:
            raise UserError(
                f"{len(strays)} label maps in {source.label_folder} have no image ending in {image_suffix!r}, the "
                f"first {strays[0]!r}; {remedy}"
            )


def _check_one_byte(stored: Image.Image) -> None:
    """mmsegmentation takes label maps modulo 256: what does not fit a byte would become another class in silence."""
    if stored.mode in ("L", "P", "1"):
        return
    if not stored.mode.startswith("I"):
        raise ValueError(f"its pixels are {stored.mode}; a label map has one number a pixel")
    values = np.asarray(stored)
    if values.min() < 0 or values.max() > IGNORED:
        raise ValueError(f"it holds values up to {values.max()}; label maps are 0 .. 255, convert it to 8 bits")
