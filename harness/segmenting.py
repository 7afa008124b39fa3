"""What segmentation needs beside features: label maps, losses at pixels, predictions at full size, mIoU.

Intersections and unions are those of mmsegmentation's IoUMetric, added up over a whole split in float64: sums of
its float32 counts would round from 16.8 million pixels on. Everything is a pure function of tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.dense import DenseHead, TokenMaps, nearest
from harness.errors import UserError
from harness.mmseg_guard import mmseg
from harness.probes import minibatches
from harness.seeds import derive
from harness.sources import Sample, Source, Unread

IGNORED = 255
EXACT = 2**24  # counts up to here are exact in float32
STRIP = 2**24  # logits that are held at once while a prediction is brought to full size


def linear_head(width: int, classes: int) -> nn.Module:
    """BN + 1x1 convolution, [B, F, rows, columns] -> [B, C, rows, columns]: DINOv2's BNHead (arXiv 2304.07193)."""
    conv = nn.Conv2d(width, classes, 1)
    nn.init.normal_(conv.weight, std=0.01)  # as mmsegmentation's conv_seg
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return nn.Sequential(nn.BatchNorm2d(width), conv)


def checked_classes(train: Source, test: Source) -> tuple[str, ...]:
    """The names of what masks hold, the same in both splits.

    Raises:
        UserError: a source without masks, an empty split, other classes in test than in train, or one name twice.
    """
    for split, source in (("train", train), ("test", test)):
        if not source.segmentation_classes:
            raise UserError(
                f"the {split} split of source {source.name!r} has no segmentation masks; scenes, array (with masks) "
                "and mmseg have them: give the task data of its own"
            )
        if not len(source):
            raise UserError(f"the {split} split of the data is empty")
    ours, theirs = train.segmentation_classes, test.segmentation_classes
    if ours != theirs:
        only = sorted(set(ours) ^ set(theirs))
        raise UserError(
            f"train and test do not have the same segmentation classes, or not in the same order: {len(ours)} against "
            f"{len(theirs)}; in one alone: {', '.join(only[:5]) or '(none)'}. Give splits with one list of classes"
        )
    if len(set(ours)) < len(ours):
        twice = next(name for i, name in enumerate(ours) if name in ours[:i])
        raise UserError(f"two segmentation classes are called {twice!r}; give each a name of its own")
    return tuple(ours)


def read_sample(source: Source, index: int) -> tuple[Sample, np.ndarray]:
    """A sample and its mask [H, W], checked: of the image's size, with the source's classes and IGNORED alone.

    Raises:
        UserError: names the sample.
    """
    name, classes = source.sample_name(index), len(source.segmentation_classes)
    try:
        sample = source.read(index)
    except (OSError, ValueError, SyntaxError) as error:  # what PIL raises for damaged files
        remedy = "Mend it, or remove it from the data: an evaluation leaves no image out"
        raise UserError(Unread.of(source, index, error).sentence(remedy)) from error
    mask = sample.mask
    if mask is None:
        raise UserError(f"image {name!r} has no segmentation mask, although its source {source.name!r} has classes")
    if mask.shape != (sample.image.height, sample.image.width):
        raise UserError(
            f"the mask of image {name!r} has {mask.shape[1]} x {mask.shape[0]} pixels, the image "
            f"{sample.image.width} x {sample.image.height}; make them alike"
        )
    known = mask[mask != IGNORED]
    if known.size and known.max() >= classes:
        raise UserError(
            f"the mask of image {name!r} holds class {known.max()}, but there are {classes} classes, 0 .. "
            f"{classes - 1}, and {IGNORED} for pixels to ignore"
        )
    return sample, mask


def read_masks(source: Source, size: int) -> np.ndarray:
    """All masks, squashed to [n, size, size] uint8 by nearest neighbours. In memory: 50 kB an image at 224 px."""
    masks = np.empty((len(source), size, size), dtype=np.uint8)
    for i in range(len(source)):
        masks[i] = nearest(read_sample(source, i)[1], size)
    return masks


class PixelDraws:
    """Pixels drawn at random from label maps [n, S, S]: numbers [B] -> [B, K, 2] int64, place and label.

    A place is row * S + column. Numbers from n on are the mirrored images. The draws of the i-th call depend on the
    seed and i alone.
    """

    def __init__(self, masks: np.ndarray, pixels: int, seed: int) -> None:
        self.masks, self.pixels = masks, pixels
        self.rng = np.random.default_rng(derive("segmentation pixels", seed))

    def __call__(self, index: np.ndarray) -> Tensor:
        size = self.masks.shape[-1]
        place = self.rng.integers(0, size * size, (len(index), self.pixels))
        rows, columns = np.divmod(place, size)
        mirrored = (index >= len(self.masks))[:, None]
        seen = np.where(mirrored, size - 1 - columns, columns)
        labels = self.masks[(index % len(self.masks))[:, None], rows, seen].astype(np.int64)
        return torch.from_numpy(np.stack([place, labels], axis=-1))


def at_pixels(maps: Tensor, place: Tensor, size: int) -> Tensor:
    """Maps [B, F, rows, columns] read bilinearly at pixels [B, K] of the [size, size] square: [B, F, 1, K].

    A linear head and bilinear interpolation commute, so features are read at the pixels first, once for all heads, and
    heads run on these alone.
    """
    rows, columns = place // size, place % size  # [B, K]
    at = torch.stack([columns, rows], dim=-1).to(maps.dtype)  # grid_sample: x, then y, in -1 .. 1
    grid = (2 * at + 1) / size - 1
    # At the border as F.interpolate has it, which repeats the outermost value.
    return F.grid_sample(maps, grid[:, None], padding_mode="border", align_corners=False)


def pixels_of_tokens(maps: TokenMaps, index: np.ndarray, place: np.ndarray, size: int, device: str = "cpu") -> Tensor:
    """`at_pixels` of the maps of images [B] at pixels [B, K], [B, F, 1, K]; reads the four tokens around each alone."""
    corners, shares = _around(place, size, maps.grid)  # [B, K, 4]
    tokens = maps.take_places(index, corners.reshape(len(index), -1), device)  # [B, 4 K, F]
    weights = torch.from_numpy(shares).to(device)
    return torch.einsum("bkcf,bkc->bfk", tokens.unflatten(1, corners.shape[1:]), weights)[:, :, None]


def _around(place: np.ndarray, size: int, grid: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The four places of a grid around each pixel of the [size, size] square, and their bilinear shares."""
    sides = []
    for pixel, side in zip(np.divmod(place, size), grid, strict=True):
        at = ((pixel + 0.5) * side / size - 0.5).clip(0, side - 1)
        before = np.floor(at).astype(np.int64)
        share = (at - before).astype(np.float32)
        sides.append((np.stack([before, (before + 1).clip(max=side - 1)], -1), np.stack([1 - share, share], -1)))
    (rows, down), (columns, across) = sides  # [B, K, 2] each
    places = rows[..., :, None] * grid[1] + columns[..., None, :]
    return places.reshape(*place.shape, 4), (down[..., :, None] * across[..., None, :]).reshape(*place.shape, 4)


def pixel_batches(
    heads: Sequence[DenseHead],
    features: Mapping[str, TokenMaps],
    draws: PixelDraws,
    *,
    index: np.ndarray,
    steps: int,
    batch: int,
    seed: int,
    device: str = "cpu",
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Batches for `fit_heads` from kept tokens at drawn pixels: features [B, F, 1, K] and labels [B, 1, K]."""
    size = draws.masks.shape[-1]
    for picked in minibatches(index, min(batch, len(index)), steps, seed):
        places, labels = draws(picked).unbind(-1)
        wanted = {head.features for head in heads if not head.failed}
        at = places.numpy()
        maps = {name: pixels_of_tokens(features[name], picked, at, size, device) for name in wanted}
        yield maps, labels[:, None].to(device)


def batches_at_pixels(
    batches: Iterable[tuple[Mapping[str, Tensor], Tensor]], size: int
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Batches of maps with the truth of `PixelDraws` -> the same at the drawn pixels: features [B, F, 1, K] and labels
    [B, 1, K].
    """
    for maps, truth in batches:
        places, labels = truth[..., 0], truth[..., 1]
        yield {name: at_pixels(part, places, size) for name, part in maps.items()}, labels[:, None]


def loss_of_pixels(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of logits [B, C, 1, K] with labels [B, 1, K]. Over pixels that are drawn at random, the whole
    map's loss in expectation.
    """
    return _mean_loss(logits, labels)


def loss_everywhere(logits: Tensor, truth: Tensor) -> Tensor:
    """Mean cross-entropy of bilinear logits at every pixel: [B, C, rows, columns], [B, S, S] -> scalar."""
    return _mean_loss(F.interpolate(logits, size=truth.shape[1:], mode="bilinear"), truth)


def _mean_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """0 where every pixel is ignored, which must not count as a head that diverged."""
    total = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    return total / (labels != IGNORED).sum().clamp(min=1)


def predicted(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Class of each pixel, [H, W] int64, from logits [C, rows, columns] brought to `size` bilinearly.

    Columns first, then rows, a strip at a time: 150 classes at full size would take gigabytes.
    """
    height, width = size
    wide = F.interpolate(logits[None], size=(logits.shape[1], width), mode="bilinear")[0]  # [C, rows, W]
    at = (torch.arange(height, device=logits.device) + 0.5) * logits.shape[1] / height - 0.5
    at = at.clamp(0, logits.shape[1] - 1)
    above = at.floor().long()  # [H]
    below = (above + 1).clamp(max=logits.shape[1] - 1)
    share = (at - above)[:, None].to(logits.dtype)  # [H, 1]
    strip = max(1, STRIP // (len(logits) * width))
    parts = []
    for start in range(0, height, strip):
        rows = slice(start, start + strip)
        parts.append(torch.lerp(wide[:, above[rows]], wide[:, below[rows]], share[rows]).argmax(dim=0))
    return torch.cat(parts)


def areas(found: Tensor, truth: Tensor, classes: int) -> Tensor:
    """[4, C] float64: pixels of intersection, union, prediction and truth, by IoUMetric; add them up over a split.

    Args:
        found, truth: [...] integers, class of each pixel; IGNORED in truth counts nowhere.
    """
    count = mmseg("mmseg.evaluation").IoUMetric.intersect_and_union
    total = torch.zeros(4, classes, dtype=torch.float64)
    parts = zip(found.flatten().split(EXACT), truth.to(found.device).flatten().split(EXACT), strict=True)
    for prediction, label in parts:
        total += torch.stack([part.double() for part in count(prediction, label, classes, IGNORED)])
    return total


def scores(total: Tensor, names: Sequence[str]) -> dict[str, float]:
    """mIoU, mAcc, aAcc, and "iou/NAME" and "acc/NAME" of each class, all fractions, from the split's `areas` [4, C].

    A class that is in no label map has no accuracy; one that is not predicted either has no IoU. Those are left out,
    and means are over the others, as IoUMetric has it.

    Raises:
        UserError: every pixel is ignored.
    """
    if not total[3].sum() > 0:
        raise UserError("every pixel of the test split is ignored, so nothing can be measured; give label maps")
    found = mmseg("mmseg.evaluation").IoUMetric.total_area_to_metrics(*total)
    scored = {"mIoU": float(np.nanmean(found["IoU"])), "mAcc": float(np.nanmean(found["Acc"]))}
    scored["aAcc"] = float(found["aAcc"])
    for kind in ("IoU", "Acc"):
        for name, value in zip(names, found[kind], strict=True):
            if not np.isnan(value):
                scored[f"{kind.lower()}/{name}"] = float(value)
    return scored
