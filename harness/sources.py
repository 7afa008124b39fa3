"""What is read: a source is a fixed sequence of samples; a view brings an image to size without chance."""

from __future__ import annotations

import abc
import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as vf

from harness.errors import UserError


@dataclasses.dataclass
class Sample:
    """One image and what is known of it.

    Attributes:
        image: RGB.
        label: class number, or -1 where the source has none.
        mask: [H, W] uint8 class of each pixel, 255 = ignore; or None.
        depth_m: [H, W] float32 metres, 0 = unknown; or None.
    """

    image: Image.Image
    label: int = -1
    mask: np.ndarray | None = None
    depth_m: np.ndarray | None = None


class Source(abc.ABC):
    """One split of a data set: a fixed sequence of samples. One final class, one file.

    Constructed as Source(root, split, **options); options are keyword-only with literal defaults.

    Class attributes:
        name: the registered name. needs_root: whether `data.root` must be given.
    Instance attributes:
        classes: the class names; a label indexes them.
        segmentation_classes: the names of what a mask holds; empty where samples have no masks.
        depth_range_m: the smallest and the largest depth that counts, metres; None where samples have no depth.
    """

    name: ClassVar[str]
    needs_root: ClassVar[bool] = True
    classes: tuple[str, ...]
    segmentation_classes: tuple[str, ...] = ()
    depth_range_m: tuple[float, float] | None = None

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def read(self, index: int) -> Sample:
        """The sample, decoded. Raises OSError or ValueError where the file is broken."""

    @abc.abstractmethod
    def labels(self) -> np.ndarray:
        """[len] int64 labels without decoding an image; -1 where there is none."""

    @abc.abstractmethod
    def sample_name(self, index: int) -> str:
        """What a person would look for: the file's name inside the source."""

    def prepare(self, indices: Iterable[int] | None = None) -> None:  # noqa: B027 - most sources keep nothing
        """Called before data workers are forked: a source that keeps samples in memory fills it here, once for all
        workers. indices: those that will be read; None: all."""

    @abc.abstractmethod
    def identity(self) -> str:
        """Hash of what this split holds (names, labels, sizes; not the place on this machine)."""


@dataclasses.dataclass(frozen=True)
class Unread:
    """Why a sample could not be read; an error keeps its words across processes this way.

    Attributes:
        name: the sample's. reason: what was wrong.
        gone: the disk did not give it, which says nothing about the image. It is never left out: a folder that is not
        connected today would make other batches than tomorrow's.
    """

    name: str
    reason: str
    gone: bool

    @classmethod
    def of(cls, source: Source, index: int, error: Exception) -> Unread:
        gone = isinstance(error, OSError) and error.errno is not None  # PIL's own have no number
        return cls(source.sample_name(index), str(error) or type(error).__name__, gone)

    def sentence(self, remedy: str) -> str:
        """In words. remedy: for an image that is broken."""
        if self.gone:
            remedy = "Is the data still in its place, connected and allowed to be read? What is saved is kept"
        return f"image {self.name!r} cannot be read: {self.reason}. {remedy}"


class Subset(Source):
    """Some of a source's samples; index and names are the parent's."""

    name = "subset"

    def __init__(self, parent: Source, indices: Sequence[int] | np.ndarray) -> None:
        self.parent, self.indices = parent, np.asarray(indices, dtype=np.int64)
        self.classes = parent.classes
        self.segmentation_classes, self.depth_range_m = parent.segmentation_classes, parent.depth_range_m

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> Sample:
        return self.parent.read(int(self.indices[index]))

    def labels(self) -> np.ndarray:
        return self.parent.labels()[self.indices]

    def sample_name(self, index: int) -> str:
        return self.parent.sample_name(int(self.indices[index]))

    def prepare(self, indices: Iterable[int] | None = None) -> None:
        self.parent.prepare(self.indices.tolist() if indices is None else self.indices[list(indices)].tolist())

    def identity(self) -> str:
        return hashlib.sha256(self.parent.identity().encode() + self.indices.tobytes()).hexdigest()


def balanced_subset(source: Source, limit: int) -> Source:
    """The first `limit` samples taken class by class in turn, so that every class keeps its share.

    The same samples on every machine: it depends on the source alone. Returns the source itself where
    `limit` is not smaller.
    """
    if limit >= len(source):
        return source
    labels = source.labels()
    ranks, _ = _within_classes(labels)
    return Subset(source, np.sort(np.lexsort((labels, ranks))[:limit]))


def hold_out(source: Source, share: float) -> tuple[Source, Source]:
    """What is left of a source, and `share` of it that is held out, evenly spread over each class's samples.

    The same samples on every machine: it depends on the source and the share alone. Of every class with two
    samples or more, at least one is held out and at least one is left; a class of one is left.

    Raises:
        UserError: no class has two samples.
    """
    labels = source.labels()
    ranks, sizes = _within_classes(labels)
    count = np.clip(np.round(sizes * share).astype(np.int64), np.minimum(1, sizes - 1), sizes - 1)  # of its class
    held = (ranks + 1) * count // sizes > ranks * count // sizes  # [len]; of each class exactly `count`
    if not held.any():
        raise UserError(
            f"{share:g} of the training split cannot be held out: none of its classes has two images; "
            "give more images, or leave data.held_out out"
        )
    return Subset(source, np.flatnonzero(~held)), Subset(source, np.flatnonzero(held))


def _within_classes(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each sample's number within its class, in the source's order, and its class's size: [len], [len]."""
    order = np.argsort(labels, kind="stable")
    ranks = np.empty(len(labels), dtype=np.int64)
    starts = np.searchsorted(labels[order], labels[order])
    ranks[order] = np.arange(len(labels)) - starts
    _, of, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    return ranks, sizes[of]


@dataclasses.dataclass(frozen=True)
class View:
    """How an image is brought to size for an encoder, without chance.

    Attributes:
        size: pixels, square. resize: "crop" (short side to size / crop_share, then the centre) or
        "squash" (both sides to size). crop_share: 1.0 keeps as much as a square can; .875 is 256 -> 224.
        mirror: left and right are exchanged, before anything is encoded: features of a mirrored image are not the
        mirrored features. Labels of pixels are to be mirrored too.
    """

    size: int
    resize: Literal["crop", "squash"] = "crop"
    crop_share: float = 1.0
    mirror: bool = False

    def __call__(self, image: Image.Image) -> Tensor:
        """RGB image -> [3, size, size] in [0, 1]."""
        if self.mirror:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.resize == "squash":
            target = [self.size, self.size]
        else:
            short = round(self.size / self.crop_share)
            scale = short / min(image.size)
            target = [max(self.size, round(image.height * scale)), max(self.size, round(image.width * scale))]
        resized: Any = vf.resize(cast(Any, image), target, interpolation=vf.InterpolationMode.BICUBIC, antialias=True)
        return to_unit(cast(Any, vf.center_crop(resized, [self.size, self.size])))


def to_unit(image: Image.Image) -> Tensor:
    """RGB image -> float32 [3, H, W] in [0, 1]."""
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).float().div_(255)
