"""Images and labels from a source, in an order and with an augmentation that (seed, epoch, index) decide.

`Data` names a source (scenes, folders, tars, ...; the files of tasks/datasets/), with
its splits and its image size. `batches` is the endless, resumable stream that training reads.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import v2

from harness.api import Batch
from harness.errors import UserError, unknown
from harness.interrupts import left_to_the_parent
from harness.prefetch import on_device
from harness.seeds import derive
from harness.sources import Source, Unread, View, balanced_subset, hold_out
from harness.workers import loaded

_OPEN: dict[str, Source] = {}  # listing a large folder takes minutes: once a process is enough


@dataclasses.dataclass(frozen=True)
class Data:
    """A data set by name: where it is, its splits, its image size.

    Attributes:
        source: registered source. name: what it is called in records (not a path).
        root: folder; None where the source needs none. train, test: split names of the source.
        image_size: pixels, square. limit: at most so many training images, every class keeping its share.
        held_out: this share of the training split stands in for the test split, which then is never opened;
        "train" is the rest, and `limit` holds for that rest: what is held out does not depend on it.
        options: further keyword arguments of the source. on_bad_image: "raise" or "skip" in training.
        resize, crop_share: the evaluation view, see `View`.
    """

    source: str
    name: str
    root: str | None = None
    train: str = "train"
    test: str = "test"
    image_size: int = 64
    limit: int | None = None
    held_out: float | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    on_bad_image: Literal["raise", "skip"] = "raise"
    resize: Literal["crop", "squash"] = "crop"
    crop_share: float = 1.0
    opened: Mapping[str, Source] | None = dataclasses.field(default=None, compare=False, repr=False)

    def open(self, split: str) -> Source:
        """The source behind "train", "test" or another split name of it. `limit` holds for "train" only.

        Raises:
            UserError: a split that does not exist; any but "train" and "test" where images are held out.
        """
        if self.held_out is None:
            found = self._split(split)
        elif split in ("train", "test"):
            found = hold_out(self._split("train"), self.held_out)[split == "test"]
        else:
            raise UserError(
                f"split {split!r} stays closed while data.held_out is set: only the training split is read then"
            )
        return balanced_subset(found, self.limit) if split == "train" and self.limit is not None else found

    def _split(self, split: str) -> Source:
        """A whole split, opened once a process."""
        place = {"train": self.train, "test": self.test}.get(split, split)
        if self.opened is not None:
            if split not in self.opened:
                raise UserError(unknown("split", split, self.opened))
            return self.opened[split]
        from harness.registry import source_class

        key = json.dumps([self.source, self.root, place, dict(self.options)], sort_keys=True)
        if key not in _OPEN:
            cls = source_class(self.source)
            if cls.needs_root and self.root is None:
                raise UserError(f"data source {self.source!r} needs data.root, the folder that holds {place!r}")
            _OPEN[key] = cls(self.root, place, **self.options)  # type: ignore[call-arg]
        return _OPEN[key]

    def view(self) -> View:
        """How images are brought to size when nothing may be left to chance."""
        return View(self.image_size, self.resize, self.crop_share)

    def identity(self) -> dict[str, Any]:
        """All that decides what is read, as plain values; no path of a machine."""
        held_out = {} if self.held_out is None else {"held_out": self.held_out}  # results without it keep their ids
        return {
            **held_out,
            "source": self.source,
            "name": self.name,
            "train": self.train,
            "test": self.test,
            "image_size": self.image_size,
            "limit": self.limit,
            "options": dict(self.options),
            "resize": self.resize,
            "crop_share": self.crop_share,
        }

    @classmethod
    def of_sources(cls, sources: Mapping[str, Source], image_size: int, name: str = "in-memory") -> Data:
        """Data that is already open, for tests and programs."""
        return cls(source="in-memory", name=name, image_size=image_size, opened=dict(sources))


@dataclasses.dataclass(frozen=True)
class Augment:
    """Random resized crop (area share and aspect ratio ranges) and horizontal flip, as SiNGER's training has."""

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5

    def __call__(self, image: Image.Image, size: int) -> Image.Image:
        """RGB image -> RGB image of size x size; chance comes from torch's global stream."""
        crop = v2.RandomResizedCrop(
            size, self.scale, self.ratio, interpolation=v2.InterpolationMode.BICUBIC, antialias=True
        )
        return v2.RandomHorizontalFlip(self.flip)(crop(image))


class _Order(Sampler):
    """Lists of (epoch, index), a batch each, from `start` to `steps`; a permutation an epoch, the tail dropped."""

    def __init__(
        self, count: int, batch_size: int, steps: int, seed: int, start: int, part: slice = slice(None)
    ) -> None:
        self.count, self.batch_size, self.steps, self.seed, self.start = count, batch_size, steps, seed, start
        self.part = part

    def __len__(self) -> int:
        return max(0, self.steps - self.start)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        a_epoch = self.count // self.batch_size
        order, of = np.empty(0, dtype=np.int64), -1
        for step in range(self.start, self.steps):
            epoch, place = divmod(step, a_epoch)
            if epoch != of:
                order, of = np.random.default_rng(derive("order", self.seed, epoch)).permutation(self.count), epoch
            chosen = order[place * self.batch_size : (place + 1) * self.batch_size]
            yield [(epoch, int(i)) for i in chosen[self.part]]


def batch_indices(count: int, batch_size: int, seed: int, step: int) -> list[int]:
    """Which samples batch number `step` holds, without reading them."""
    return [index for _, index in next(iter(_Order(count, batch_size, step + 1, seed, step)))]


class _Augmented(Dataset):
    """(epoch, index) -> (image uint8 [3, S, S], label, index), or why the image cannot be read."""

    def __init__(self, source: Source, size: int, augment: Augment | None, view: View, seed: int) -> None:
        self.source, self.size, self.augment, self.view, self.seed = source, size, augment, view, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int, int] | Unread:
        epoch, index = key
        try:
            sample = self.source.read(index)
        except (OSError, ValueError, SyntaxError) as error:  # what PIL raises for damaged files
            # Not raised: a worker's exception would reach the user as a traceback.
            return Unread.of(self.source, index, error)
        if self.augment is None:
            return self.view(sample.image).mul(255).round().byte(), sample.label, index
        with torch.random.fork_rng(devices=[]):
            # The same draws whatever worker makes them, whoever shares the group, wherever it was resumed.
            torch.manual_seed(derive("augment", self.seed, epoch, index))
            image = self.augment(sample.image, self.size)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1), sample.label, index


def _collate(samples: list[tuple[Tensor, int, int] | Unread]) -> tuple[tuple[Tensor, ...] | None, list[Unread]]:
    broken = [s for s in samples if isinstance(s, Unread)]
    kept = [s for s in samples if not isinstance(s, Unread)]
    if not kept:
        return None, broken
    images, labels, index = zip(*kept, strict=True)
    return (torch.stack(images), torch.tensor(labels), torch.tensor(index)), broken


def steps_an_epoch(count: int, batch_size: int) -> int:
    """Whole batches in `count` images. Raises UserError where there is not even one."""
    if count < batch_size:
        raise UserError(f"training.batch_size is {batch_size}, but there are only {count} training images")
    return count // batch_size


def batches(
    source: Source,
    data: Data,
    augment: Augment | None,
    *,
    batch_size: int,
    steps: int,
    seed: int,
    start: int = 0,
    part: slice = slice(None),
    num_workers: int = 0,
    device: str = "cpu",
) -> Iterator[tuple[Batch, int]]:
    """Batches number start .. steps - 1 and, with each, how many broken images were skipped.

    What a batch holds depends on (source, augment, batch_size, seed, its number) alone: not on the number of
    workers, on who shares the group, or on where the training was resumed.

    Args:
        part: of every batch, what is read: a rank's images among several ranks.
    """
    steps_an_epoch(len(source), batch_size)
    if num_workers:
        source.prepare()
    dataset = _Augmented(source, data.image_size, augment, data.view(), seed)

    def loader_from(number: int) -> DataLoader:
        return DataLoader(
            dataset,
            batch_sampler=_Order(len(source), batch_size, steps, seed, start + number, part),
            num_workers=num_workers,
            worker_init_fn=left_to_the_parent,
            collate_fn=_collate,
            pin_memory=device.startswith("cuda"),
            prefetch_factor=4 if num_workers else None,
            generator=torch.Generator().manual_seed(0),  # leaves the global stream alone
        )

    def read() -> Iterator[tuple[Batch, int]]:
        for number, (tensors, broken) in enumerate(loaded(loader_from), start=start):
            refused = next((one for one in broken if one.gone or data.on_bad_image == "raise"), None)
            if refused is not None:
                raise UserError(refused.sentence("Mend or remove it, or set data.on_bad_image: skip"))
            if tensors is None:
                raise UserError(f"not one image of a batch can be read; {broken[0].sentence('Mend them')}")
            images, labels, index = tensors
            yield Batch(images, None if (labels < 0).any() else labels, index, progress=number / steps), len(broken)

    yield from on_device(read(), device)
