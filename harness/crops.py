"""Segmentation at full scale, without kept tokens: random crops to train on, windows that slide over test images.

Crops are made by mmsegmentation's own transforms with the values of its ADE20K configurations (schedule_40k, which
DINOv2's linear segmentation uses too, arXiv 2304.07193): short side to the crop's size times .5 to 2, a crop in which
no class has more than three quarters of the pixels if ten tries find one, a flip, photometric distortion.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from harness.errors import UserError
from harness.features import Encoder
from harness.interrupts import left_to_the_parent
from harness.mmseg_guard import mmseg
from harness.models import TimmVit
from harness.probes import minibatches
from harness.seeds import derive
from harness.segmenting import IGNORED, read_sample
from harness.sources import Source
from harness.workers import loaded

RATIOS = (0.5, 2.0)  # of the short side to the crop's
MOST_OF_ONE_CLASS = 0.75
LONGEST = 4  # an image's long side is at most so many times the crop's: 2048 of 512


def crop_protocol() -> dict[str, object]:
    """The transforms, as part of a task's protocol."""
    return {"ratios": list(RATIOS), "cat_max_ratio": MOST_OF_ONE_CLASS, "flip": 0.5, "photometric_distortion": True}


class _Crops(Dataset):
    """(step, place in the batch, index) -> crop and its labels, or a sentence about what is broken."""

    def __init__(self, source: Source, size: int, seed: int, fill: Sequence[float]) -> None:
        self.source, self.size, self.seed, self.fill = source, size, seed, fill
        own, common = mmseg("mmseg.datasets.transforms"), mmseg("mmcv.transforms")
        self.transforms = [
            common.RandomResize(scale=(LONGEST * size, size), ratio_range=RATIOS, keep_ratio=True),
            own.RandomCrop(crop_size=(size, size), cat_max_ratio=MOST_OF_ONE_CLASS),
            common.RandomFlip(prob=0.5),
            own.PhotoMetricDistortion(),
        ]

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[Tensor, Tensor] | str:
        step, place, index = key
        try:
            sample, mask = read_sample(self.source, index)
        except UserError as error:  # not raised: a worker's exception would reach the user as a traceback
            return str(error)
        # mmsegmentation's images are BGR, which photometric distortion relies on.
        results = {"img": np.array(sample.image)[:, :, ::-1].copy(), "gt_seg_map": mask, "seg_fields": ["gt_seg_map"]}
        results["img_shape"] = mask.shape
        with own_streams(derive("crop", self.seed, step, place, index)):
            for transform in self.transforms:
                results = transform(results)
        image = torch.from_numpy(results["img"][:, :, ::-1].copy()).permute(2, 0, 1).float() / 255
        return padded(image, self.size, self.fill), _padded_labels(results["gt_seg_map"], self.size)


@contextlib.contextmanager
def own_streams(seed: int) -> Iterator[None]:
    """The global streams of numpy and random, which mmsegmentation draws from, seeded; afterwards as they were."""
    before = np.random.get_state(), random.getstate()
    np.random.seed(seed % 2**32)
    random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before[0])
        random.setstate(before[1])


def padded(image: Tensor, size: int, fill: Sequence[float]) -> Tensor:
    """[3, H, W] -> [3, max(H, size), max(W, size)], filled at the right and below with the model's mean colour."""
    height, width = image.shape[1:]
    if height >= size and width >= size:
        return image
    canvas = torch.tensor(fill).view(3, 1, 1).repeat(1, max(height, size), max(width, size))
    canvas[:, :height, :width] = image
    return canvas


def _padded_labels(labels: np.ndarray, size: int) -> Tensor:
    canvas = np.full((size, size), IGNORED, dtype=np.uint8)
    canvas[: labels.shape[0], : labels.shape[1]] = labels
    return torch.from_numpy(canvas)


def crop_batches(
    source: Source, index: np.ndarray, vit: TimmVit, *, steps: int, batch: int, seed: int, num_workers: int = 0
) -> Iterator[tuple[Tensor, np.ndarray]]:
    """`steps` batches of crops of the model's size: images [B, 3, S, S] in [0, 1], labels [B, S, S] uint8.

    What a crop shows depends on (seed, step, place, image) alone, whatever the number of workers.

    Raises:
        UserError: an image or a label map that is broken; names it.
    """
    keys = [
        [(step, place, int(i)) for place, i in enumerate(picked)]
        for step, picked in enumerate(minibatches(index, min(batch, len(index)), steps, seed))
    ]

    def loader_from(number: int) -> DataLoader:
        return DataLoader(
            _Crops(source, vit.image_size[0], seed, vit.mean),
            batch_sampler=keys[number:],
            num_workers=num_workers,
            worker_init_fn=left_to_the_parent,
            collate_fn=list,
            generator=torch.Generator().manual_seed(0),  # leaves the global stream alone
        )

    for crops in loaded(loader_from):
        broken = [crop for crop in crops if isinstance(crop, str)]
        if broken:
            raise UserError(broken[0])
        images, labels = zip(*crops, strict=True)
        yield torch.stack(images), torch.stack(labels).numpy()


def short_side_to(image: np.ndarray, size: int) -> Tensor:
    """RGB [H, W, 3] uint8 -> [3, H', W'] in [0, 1], its short side `size`, by mmcv's Resize as its test pipelines have
    it; the long side is at most LONGEST times that, so an image that is narrower still gets a shorter short side.
    """
    resize = mmseg("mmcv.transforms").Resize(scale=(LONGEST * size, size), keep_ratio=True)
    resized = resize({"img": image, "img_shape": image.shape[:2]})["img"]
    return torch.from_numpy(np.ascontiguousarray(resized)).permute(2, 0, 1).float() / 255


def windows(length: int, size: int, stride: int) -> list[int]:
    """Where windows begin along one side, as mmsegmentation slides them: the last is moved back to end with it."""
    count = max(length - size + stride - 1, 0) // stride + 1
    return [max(0, min(i * stride, length - size)) for i in range(count)]


@torch.no_grad()
def slid_logits(
    encoder: Encoder,
    features: Mapping[str, Sequence[int]],
    heads: Mapping[str, tuple[str, nn.Module]],
    image: Tensor,
    stride: int,
) -> Iterator[tuple[str, Tensor]]:
    """(head, [C, H, W]): logits of an image, the mean over the windows that see a pixel. One head at a time in memory.

    Args:
        encoder: works at the windows' size. features: name -> blocks. heads: name -> (features, module).
        image: [3, H, W] in [0, 1]; smaller than a window, it is padded with the model's mean colour.
    """
    size, (height, width) = encoder.image_size[0], image.shape[1:]
    vit = encoder.vit
    whole = padded(image, size, vit.mean if isinstance(vit, TimmVit) else (0.5,) * 3)
    places = [(y, x) for y in windows(whole.shape[1], size, stride) for x in windows(whole.shape[2], size, stride)]
    crops = torch.stack([whole[:, y : y + size, x : x + size] for y, x in places])
    maps = window_maps(encoder, features, crops)
    count = torch.zeros(whole.shape[1:], device=encoder.device)
    for y, x in places:
        count[y : y + size, x : x + size] += 1
    for name, (of, module) in heads.items():
        logits = module(maps[of])  # [windows, C, rows, columns]
        total = torch.zeros(logits.shape[1], *whole.shape[1:], device=encoder.device)
        for (y, x), part in zip(places, logits, strict=True):
            full = F.interpolate(part[None], size=(size, size), mode="bilinear")[0]
            total[:, y : y + size, x : x + size] += full
        yield name, (total / count)[:, :height, :width]


@torch.no_grad()
def window_maps(encoder: Encoder, features: Mapping[str, Sequence[int]], images: Tensor) -> dict[str, Tensor]:
    """Name of features -> [B, F, rows, columns] float32: patches after the final norm, rounded as kept ones are."""
    layers = sorted({i for blocks in features.values() for i in blocks})
    outputs = encoder(images, layers)
    prefix = encoder.num_prefix_tokens
    patches = {i: outputs.normed(i)[:, prefix:].half().float().transpose(1, 2) for i in layers}  # [B, D, P]
    if not all(torch.isfinite(p).all() for p in patches.values()):
        raise UserError(
            f"features of a window are not finite. The model has diverged, or precision {encoder.precision!r} is too "
            "narrow for it: use fp32"
        )
    return {
        name: torch.cat([patches[i] for i in blocks], dim=1).unflatten(2, encoder.grid)
        for name, blocks in features.items()
    }
