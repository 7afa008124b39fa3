"""Data sets by timm's names (timm.data.create_dataset): torchvision's, Hugging Face's, webdatasets."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from timm.data.dataset_factory import create_dataset

from harness.errors import UserError, unknown
from harness.sources import Sample, Source
from tasks.datasets.images import decode, to_rgb

LIBRARY = {"torch": "torchvision", "hfds": "datasets", "wds": "webdataset"}  # timm's prefix -> pip package
STREAMS = {"hfids": "use 'hfds/...', which has random access", "tfds": "write it out as class folders or a tar"}
# Of these timm gives the test set for any split that is not called train: a typing error would go unnoticed.
TWO_SPLITS = ("cifar10", "cifar100", "mnist", "kmnist", "fashion_mnist", "qmnist")
SPLITS = ("train", "training", "val", "valid", "validation", "eval", "evaluation", "test")


class TimmSource(Source):
    """A data set by timm's name: "torch/cifar10", "hfds/owner/name" or "wds/" with a root of shards.

    Nothing is downloaded unless `download` is true (torch), or the hub's library has to (hfds). A webdataset is
    a stream: its decoded images are all kept in memory, so that it may have `limit` samples at most, and every
    sample must decode. The other streams (hfids, tfds) are refused. For class folders and tars there are the
    sources "folder" and "tar".

    The identity holds split, classes and labels, and the pixels where they are in memory anyway (cifar, mnist,
    webdatasets); for the others it trusts the name.

    Args:
        root: where the data lie; for hfds the cache folder, or None for the library's own.
        split: as timm reads it; for wds also "shard-{000..009}.tar".
        dataset: timm's name. download: fetch a torchvision set that is not there.
        input_key, target_key: names of image and label where they are not timm's defaults (hfds, wds).
        limit: the most samples that a webdataset may have.

    Raises:
        UserError: unknown name or split, missing library or data, labels that are not one number a sample,
            a webdataset with more than `limit` samples or a broken one.
    """

    name: ClassVar[str] = "timm"
    needs_root: ClassVar[bool] = False

    def __init__(
        self,
        root: str | Path | None,
        split: str,
        *,
        dataset: str = "torch/cifar10",
        download: bool = False,
        input_key: str = "",
        target_key: str = "",
        limit: int = 20_000,
    ) -> None:
        self.dataset, self.split = dataset, split
        kind = _kind(dataset, split, root)
        keys = {"input_key": input_key, "target_key": target_key}
        options = {"download": download} if kind == "torch" else {key: value for key, value in keys.items() if value}
        made = _create(kind, dataset, root, split, options)
        what = f"{dataset}, split {split!r}"
        if kind == "torch":
            self._held: _Torchvision | _HuggingFace | _Collected = _Torchvision(made, what)
        elif kind == "hfds":
            self._held = _HuggingFace(made, what)
        else:
            self._held = _Collected(made, what, limit)
        self._labels, self.classes = self._held.labels, self._held.classes
        if len(self._labels) == 0:
            raise UserError(f"{what} holds no samples")

    def __len__(self) -> int:
        return len(self._labels)

    def read(self, index: int) -> Sample:
        return Sample(self._held.read(index), int(self._labels[index]))

    def labels(self) -> np.ndarray:
        return self._labels.copy()

    def sample_name(self, index: int) -> str:
        return self._held.name(index) or f"{self.dataset} {self.split}[{index}]"

    def identity(self) -> str:
        name = self.dataset.partition("/")[2]
        name = Path(name).name if Path(name).is_absolute() else name  # a folder's place is not part of what it holds
        digest = hashlib.sha256("\0".join([name, self.split, *self.classes]).encode())
        digest.update(self._labels.tobytes())
        for pixels in self._held.pixels:
            digest.update(str(pixels.shape).encode())
            digest.update(np.ascontiguousarray(pixels).data)
        return digest.hexdigest()


class _Torchvision:
    """A torchvision data set with `targets`."""

    def __init__(self, made: Any, what: str) -> None:
        targets = getattr(made, "targets", None)
        if targets is None:
            raise UserError(f"{what} gives no list of labels; if its images lie in class folders, use source 'folder'")
        labels = np.asarray(targets)
        self.labels = _label_numbers(labels[:, 0] if labels.ndim == 2 else labels, what)  # qmnist: class first
        names = getattr(made, "classes", None) or _numbered(self.labels)
        self.classes = tuple(str(name if isinstance(name, str) else name[0]) for name in names)  # imagenet: synonyms
        self.made = made
        data = getattr(made, "data", None)
        self.pixels = () if data is None else (np.asarray(data),)

    def read(self, index: int) -> Image.Image:
        return to_rgb(self.made[index][0])

    def name(self, index: int) -> str:
        files = getattr(self.made, "samples", None)  # the sets of single files know their names
        return "" if files is None else str(files[index][0])


class _HuggingFace:
    """timm's reader of a Hugging Face data set; not timm's data set, which reads the next image for a broken one."""

    pixels: tuple[np.ndarray, ...] = ()

    def __init__(self, made: Any, what: str) -> None:
        self.reader = made.reader
        table, image, label = self.reader.dataset, self.reader.image_key, self.reader.label_key
        if len(table) and table[0][image] is None:  # the reader adds an empty column for a name that is not there
            raise UserError(f"{what}: " + unknown("input_key", image, set(table.column_names) - {image}))
        if label not in table.column_names:
            raise UserError(f"{what}: " + unknown("target_key", label, table.column_names))
        self.labels = _label_numbers(np.array(list(table[label])), what)
        named = {number: name for name, number in self.reader.class_to_idx.items()}
        self.classes = tuple(named[i] for i in range(len(named))) or _numbered(self.labels)

    def read(self, index: int) -> Image.Image:
        with self.reader[index][0] as stream:
            return decode(stream)

    def name(self, index: int) -> str:
        return self.reader.filename(index) or ""


class _Collected:
    """A webdataset, read once in the order of its shards."""

    def __init__(self, made: Any, what: str, limit: int) -> None:
        skipped = _Warnings()
        logger = logging.getLogger("timm.data.readers.reader_wds")
        logger.addHandler(skipped)  # timm goes on after a broken sample and only logs it
        labels: list[int] = []
        self.pixels: list[np.ndarray] = []
        try:
            for image, target in made:
                if len(labels) == limit:
                    raise UserError(f"{what} has more than {limit} samples; raise `limit`, or unpack it for 'folder'")
                self.pixels.append(np.asarray(image))
                labels.append(target)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{what} cannot be read: {type(error).__name__}: {error}") from error
        finally:
            logger.removeHandler(skipped)
        if skipped.messages:
            raise UserError(f"{what} has {len(skipped.messages)} broken samples, the first: {skipped.messages[0]}")
        self.labels = _label_numbers(np.array(labels, ndmin=1), what)
        self.classes = _numbered(self.labels)

    def read(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])

    def name(self, index: int) -> str:
        return ""


class _Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def _kind(dataset: str, split: str, root: str | Path | None) -> str:
    """timm's prefix, after checking what timm itself would take silently."""
    prefix, slash, rest = dataset.partition("/")
    prefix = prefix.lower()
    if prefix in STREAMS:
        raise UserError(f"{dataset} is a stream without random access; {STREAMS[prefix]}")
    if not slash or prefix not in LIBRARY:
        raise UserError(unknown("kind of timm data set", prefix, LIBRARY) + " (as in 'torch/cifar10')")
    if prefix != "hfds" and (root is None or not Path(root).is_dir()):
        raise UserError(f"{dataset} needs data.root, an existing folder; given: {root}")
    if rest.lower() in TWO_SPLITS and prefix == "torch" and split not in SPLITS:
        raise UserError(unknown(f"split of {dataset}", split, SPLITS))
    return prefix


def _create(kind: str, dataset: str, root: str | Path | None, split: str, options: dict[str, Any]) -> Any:
    """timm's data set; whatever goes wrong in the many libraries below is the user's to mend."""
    root = None if root is None else str(root)
    try:
        return create_dataset(dataset, root=root, split=split, search_split=kind == "torch", **options)
    except ImportError as error:
        raise UserError(f"{dataset} needs the package {LIBRARY[kind]!r}: pip install {LIBRARY[kind]}") from error
    except Exception as error:
        if "Please install" in str(error):  # how timm's webdataset reader says it
            raise UserError(f"{dataset} needs the package {LIBRARY[kind]!r}: pip install {LIBRARY[kind]}") from error
        remedy = " Set `download: true`, or mend data.root." if kind == "torch" else " Mend name, split or data.root."
        raise UserError(f"{dataset}, split {split!r}, root {root}: {type(error).__name__}: {error}.{remedy}") from error


def _label_numbers(labels: np.ndarray, what: str) -> np.ndarray:
    """Labels as int64 [len], None as -1."""
    if labels.dtype == object and labels.ndim == 1:
        labels = np.array([-1 if label is None else label for label in labels])
    if labels.size and (labels.ndim != 1 or labels.dtype.kind not in "iub"):
        raise UserError(f"{what}: labels are {labels.dtype} {list(labels.shape)}, not one class number a sample")
    return labels.astype(np.int64)


def _numbered(labels: Sequence[int] | np.ndarray) -> tuple[str, ...]:
    return tuple(str(i) for i in range(int(max(labels, default=-1)) + 1))
