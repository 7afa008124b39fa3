"""Semantic segmentation with a frozen encoder: linear heads on its patches, mIoU over a whole split."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.api import Metric, Task, Tiny
from harness.crops import crop_batches, crop_protocol, short_side_to, slid_logits, window_maps
from harness.data import Data
from harness.dense import (
    HELD_OUT,
    DenseHead,
    TokenMaps,
    fit_heads,
    heads_for,
    hold_out_images,
    make_heads,
    spread,
    token_batches,
    whole_view,
)
from harness.errors import UserError, unknown
from harness.features import Encoder
from harness.items import Items, Scores
from harness.models import TimmVit, at_size
from harness.seeds import derive
from harness.segmenting import (
    PixelDraws,
    areas,
    batches_at_pixels,
    checked_classes,
    linear_head,
    loss_everywhere,
    loss_of_pixels,
    pixel_batches,
    predicted,
    read_masks,
    read_sample,
    scores,
)
from harness.sources import Source, Subset
from harness.toys import Patchwork, PixelVit

RATES = (1e-3, 3e-3, 1e-2, 3e-2)  # from DINOv2's 1e-3 up: few steps want more
DECAYS = (1e-4, 1e-1)  # DINOv2's, and one that is felt in 2,000 steps
BLOCKS = (1, 4)
PIXELS = 16  # of each image of a batch, drawn anew at every step: 256 in a batch of 16
LEAST_STEPS, EPOCHS = 2_000, 16  # of linear heads: whichever is longer; small sets are at rest by then
FULL_STEPS = 40_000  # mmsegmentation's schedule_40k, which DINOv2 uses
BATCHES = {"linear": 16, "published": 64, "full": 16}
CROP, STRIDE = 512, 341
AT_ONCE = 8  # images whose logits are held in memory while heads are compared
# SiNGER's evaluation code.
PUBLISHED_RATE, PUBLISHED_DECAY, PUBLISHED_FINAL_RATE, PUBLISHED_EPOCHS = 0.5, 1e-6, 1e-8, 200
_Found = tuple[Tensor, dict[str, float]]  # areas of each test image [n, 4, C], and details


class Segmentation(Task):
    """mIoU, mAcc and aAcc of a linear head on frozen patches, from one confusion matrix over the whole test split.

    `protocol="linear"`: images squashed to `data.image_size`, patches after the final norm, kept as float16. Heads of
    BN + 1x1 convolution on {last block, last four blocks} x 4 rates x 2 decays (AdamW), trained at once on nine tenths
    of the training images; the best mIoU on the other tenth, at the squashed size, is measured on test once. The loss
    is the mean over 16 pixels of each image, drawn anew at every step, at which features are read bilinearly: the whole
    map's loss in expectation, since a linear head and interpolation commute.

    `protocol="published"`, what the SiNGER authors run: patches before the final norm, one 1x1 convolution, SGD
    without momentum, lr .5 at batch 64, decay 1e-6, cosine to 1e-8, 200 epochs, all pixels of the squashed map.
    Repaired: they report the best epoch on the test set, this the last step.

    `protocol="full"`, after DINOv2 and mmsegmentation: the linear heads on random crops, tokens computed at every step;
    test and held-out images with the short side at `crop`, logits the mean of sliding windows. Needs a plain timm ViT.

    Under all of them logits are brought bilinearly to each test label map's own size before the class is taken. A
    class that is in no label map counts in no mean unless it is predicted, when its IoU is 0 (mmsegmentation's way).

    Details: iou/CLASS and acc/CLASS; held_out/HEAD, the mIoU that each head was judged by, and which was chosen.

    Args:
        data: with segmentation masks, the same classes in train and test.
        steps: of the heads; None: 16 epochs but at least 2,000 steps (linear), 200 epochs (published), 40,000 (full).
        batch: None: 16 (linear, full) or 64 (published).
        images: at most so many training images, evenly spread over the split; None: all.
        views: 2: linear heads train on mirrored images too.
        crop, stride: of full, in pixels; None: 512 and 341.
    """

    name = "segmentation"
    metrics: ClassVar[Mapping[str, Metric]] = {name: Metric("fraction", "up") for name in ("mIoU", "mAcc", "aAcc")}

    def __init__(
        self,
        *,
        data: Data,
        protocol: Literal["linear", "published", "full"] = "linear",
        steps: int | None = None,
        batch: int | None = None,
        images: int | None = None,
        views: Literal[1, 2] = 1,
        crop: int | None = None,
        stride: int | None = None,
    ) -> None:
        self.data, self.images, self.views = data, images, views
        if protocol not in BATCHES:
            raise UserError(unknown("segmentation protocol", protocol, BATCHES))
        self.kind = protocol
        numbers = {"steps": steps, "batch": batch, "images": images, "crop": crop, "stride": stride}
        for what, value in numbers.items():
            if value is not None and value < 1:
                raise UserError(f"{what} of the segmentation task is {value}; give 1 or more, or leave it out")
        if self.kind != "full" and (crop is not None or stride is not None):
            raise UserError(f"crop and stride are of protocol 'full', not {self.kind!r}; leave them out")
        if views not in (1, 2) or (views == 2 and self.kind != "linear"):
            raise UserError(f"views is {views} under protocol {self.kind!r}; give 1, or 2 under 'linear'")
        self.steps = FULL_STEPS if steps is None and self.kind == "full" else steps
        self.batch = BATCHES[self.kind] if batch is None else batch
        self.crop = CROP if crop is None else crop
        self.stride = min(STRIDE, self.crop) if stride is None else stride
        if self.stride > self.crop:
            raise UserError(f"stride {self.stride} is larger than crop {self.crop}, so that pixels would be left out")

    def protocol(self) -> dict[str, Any]:
        common = {"data": self.data.identity(), "kind": self.kind, "steps": self.steps, "batch": self.batch}
        common |= {"images": self.images, "metric": "one confusion matrix, labels at full size", "version": 1}
        measured = "mIoU over the whole test split at full label size"
        if self.kind == "published":
            head = {"rate": PUBLISHED_RATE, "final_rate": PUBLISHED_FINAL_RATE, "weight_decay": PUBLISHED_DECAY}
            head |= {"epochs": PUBLISHED_EPOCHS} if self.steps is None else {}
            length = f"{PUBLISHED_EPOCHS} epochs" if self.steps is None else f"{self.steps} steps"
            summary = f"as SiNGER's authors run it: one head before the final norm, {length}, the last step; {measured}"
            return {"summary": summary, **common, "head": head, "final_norm": False, "choice": "last step"}
        heads = {"blocks": list(BLOCKS), "rates": list(RATES), "weight_decays": list(DECAYS), "pixels": PIXELS}
        length = f"{EPOCHS} epochs, at least {LEAST_STEPS} steps," if self.steps is None else f"{self.steps} steps"
        heads |= {"epochs": EPOCHS, "least_steps": LEAST_STEPS} if self.steps is None else {}
        what = f"{self.crop} px crops and windows of stride {self.stride}" if self.kind == "full" else "squashed images"
        summary = (
            f"best of {len(RATES)} rates x {len(DECAYS)} decays x (last block, last four), BN + 1x1 convolution, on "
            f"{what}, {length} at batch {self.batch}, chosen on a held-out tenth of {self.images or 'all'} "
            f"training images; {measured}"
        )
        own = {"views": self.views} if self.kind == "linear" else {}
        own |= {"crop": self.crop, "stride": self.stride, **crop_protocol()} if self.kind == "full" else {}
        choice = f"mIoU on one of every {HELD_OUT} training images"
        return {"summary": summary, **common, "heads": heads, "final_norm": True, "choice": choice, **own}

    def evaluate(self, encoder: Encoder, *, seed: int) -> dict[str, float]:
        """Metric -> value, and details.

        Raises:
            UserError: no masks, other classes in test than in train, a broken image or label map, too few images,
                only ignored pixels, a ViT that cannot be brought to the crop's size.
        """
        train, test = self.data.open("train"), self.data.open("test")
        names = checked_classes(train, test)
        train = spread(train, self.images)
        run = {"linear": self._linear, "published": self._published, "full": self._full}[self.kind]
        images, details = run(encoder, train, test, len(names), seed)
        return Scores({**scores(images.sum(dim=0), names), **details}, items_of(images))

    def _linear(self, encoder: Encoder, train: Source, test: Source, classes: int, seed: int) -> _Found:
        size, features = self.data.image_size, feature_blocks(encoder.depth)
        kept, held = hold_out_images(len(train))
        layers = sorted({i for blocks in features.values() for i in blocks})
        tokens = [encoder.tokens(train, whole_view(size, mirror=m), layers) for m in (False, True)[: self.views]]
        maps = {name: TokenMaps(tokens, blocks) for name, blocks in features.items()}
        masks = read_masks(train, size)
        heads = make_heads(_head_of(classes), maps, RATES, DECAYS, seed, encoder.device)
        index = np.concatenate([kept + view * len(train) for view in range(self.views)])
        draws = PixelDraws(masks, PIXELS, seed)
        steps = self.steps or max(LEAST_STEPS, EPOCHS * math.ceil(len(index) / self.batch))
        stream = pixel_batches(
            heads, maps, draws, index=index, steps=steps, batch=self.batch, seed=seed, device=encoder.device
        )
        fit_heads(heads, stream, loss_of_pixels, steps=steps)
        best, details = choose(heads, squashed_mious(heads, maps, masks, held, classes, encoder.device))
        # The test split is looked at from here on, when everything has been chosen.
        return self._measured(encoder, test, best.module, features[best.features], classes, norm=True), details

    def _published(self, encoder: Encoder, train: Source, test: Source, classes: int, seed: int) -> _Found:
        size, last, device = self.data.image_size, encoder.depth - 1, encoder.device
        maps = {"last block": TokenMaps([encoder.tokens(train, whole_view(size), [last], norm=False)], [last])}
        masks, index, batch = read_masks(train, size), np.arange(len(train)), min(self.batch, len(train))
        rate = PUBLISHED_RATE * batch / BATCHES["published"]
        heads = make_heads(lambda width: nn.Conv2d(width, classes, 1), maps, [rate], [PUBLISHED_DECAY], seed, device)
        steps = self.steps or PUBLISHED_EPOCHS * math.ceil(len(train) / batch)
        truth = lambda picked: torch.from_numpy(masks[picked].astype(np.int64))  # noqa: E731
        stream = token_batches(heads, maps, truth, index=index, steps=steps, batch=batch, seed=seed, device=device)
        sgd = lambda h: torch.optim.SGD(h.module.parameters(), lr=h.rate, weight_decay=h.weight_decay)  # noqa: E731
        fit_heads(
            heads, stream, loss_everywhere, steps=steps, warmup_share=0, final_rate=PUBLISHED_FINAL_RATE, optimiser=sgd
        )
        if heads[0].failed:
            raise UserError(f"the head of protocol 'published' diverged at lr {rate:g}; use protocol 'linear'")
        return self._measured(encoder, test, heads[0].module, [last], classes, norm=False), {}

    def _measured(
        self, encoder: Encoder, test: Source, head: nn.Module, blocks: Sequence[int], classes: int, norm: bool
    ) -> Tensor:
        """Areas of the head on each image of the test split, [n, 4, C]."""
        tokens = encoder.tokens(test, whole_view(self.data.image_size), blocks, norm=norm)
        maps, images = TokenMaps([tokens], blocks), []
        for i in range(len(test)):
            _, mask = read_sample(test, i)
            with torch.no_grad():
                logits = head(maps.take(np.array([i]), encoder.device))[0]
            images.append(areas(predicted(logits, mask.shape), torch.from_numpy(mask).long(), classes))
        return torch.stack(images)

    def _full(self, encoder: Encoder, train: Source, test: Source, classes: int, seed: int) -> _Found:
        vit = at_size(encoder.vit, self.crop)
        large, features = encoder.beside(vit), feature_blocks(encoder.depth)
        kept, held = hold_out_images(len(train))
        widths = {name: len(blocks) * encoder.dim for name, blocks in features.items()}
        heads = heads_for(_head_of(classes), widths, RATES, DECAYS, seed, encoder.device)
        stream = self._crops(large, vit, train, kept, seed, encoder.num_workers)
        fit_heads(heads, batches_at_pixels(stream, self.crop), loss_of_pixels, steps=self.steps or 0)
        judged = windowed_areas(large, features, [h for h in heads if not h.failed], Subset(train, held), self.stride)
        best, details = choose(heads, {name: miou(total) for name, total in judged.items()})
        images = [found for _, found in each_windowed(large, features, [best], test, self.stride)]
        return torch.stack(images), details

    def _crops(
        self, large: Encoder, vit: TimmVit, train: Source, index: np.ndarray, seed: int, workers: int
    ) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        features, steps = feature_blocks(large.depth), self.steps or 0
        stream = crop_batches(train, index, vit, steps=steps, batch=self.batch, seed=seed, num_workers=workers)
        for step, (images, labels) in enumerate(stream):
            truth = PixelDraws(labels, PIXELS, derive(seed, step))(np.arange(len(labels)))
            yield window_maps(large, features, images), truth.to(large.device)

    @classmethod
    def tiny(cls) -> Tiny:
        sources: dict[str, Source] = {"train": Patchwork(20), "test": Patchwork(10, split="test")}
        task = cls(data=Data.of_sources(sources, image_size=32, name="patchwork"), steps=20, batch=4)
        return Tiny(task, PixelVit(), PixelVit(blind=True))


def _head_of(classes: int) -> Callable[[int], nn.Module]:
    return functools.partial(linear_head, classes=classes)


def feature_blocks(depth: int) -> dict[str, list[int]]:
    """Name -> blocks whose patches are concatenated: the last, and the last four (all, of a model with fewer)."""
    counts = sorted({min(count, depth) for count in BLOCKS})
    names = {count: "last block" if count == 1 else f"last {count} blocks" for count in counts}
    return {names[count]: list(range(depth - count, depth)) for count in counts}


def miou(total: Tensor) -> float:
    """mIoU of areas [4, C]; 0 where no pixel is labelled, so that such a tenth prefers no head."""
    return scores(total, [str(i) for i in range(total.shape[1])])["mIoU"] if total[3].sum() > 0 else 0.0


def choose(heads: Sequence[DenseHead], judged: Mapping[str, float]) -> tuple[DenseHead, dict[str, float]]:
    """The head of the best held-out mIoU, of equals the first, and what a record keeps of the choice.

    Raises:
        UserError: every head diverged.
    """
    left = [head for head in heads if not head.failed]
    if not left:
        raise UserError("every segmentation head diverged: the features are too large for the grid's learning rates")
    best = max(left, key=lambda head: judged[head.name])
    details = {f"held_out/{head.name}": judged[head.name] for head in left}
    details |= {"held_out_mIoU": judged[best.name], "chosen_lr": best.rate, "chosen_decay": best.weight_decay}
    details |= {"chosen_lr_at_edge": float(best.rate in (RATES[0], RATES[-1]))}
    details |= {f"chosen/{name}": float(name == best.features) for name in dict.fromkeys(h.features for h in heads)}
    return best, {**details, "diverged_heads": float(len(heads) - len(left))}


@torch.no_grad()
def squashed_mious(
    heads: Sequence[DenseHead],
    maps: Mapping[str, TokenMaps],
    masks: np.ndarray,
    index: np.ndarray,
    classes: int,
    device: str,
) -> dict[str, float]:
    """mIoU of every head that did not diverge on the images `index`, at the masks' squashed size [n, S, S]."""
    left = [head for head in heads if not head.failed]
    totals = {head.name: torch.zeros(4, classes, dtype=torch.float64) for head in left}
    for start in range(0, len(index), AT_ONCE):
        picked = index[start : start + AT_ONCE]
        taken = {name: maps[name].take(picked, device) for name in {head.features for head in left}}
        truth = torch.from_numpy(masks[picked]).long()  # [B, S, S]
        for head in left:
            logits = F.interpolate(head.module(taken[head.features]), size=truth.shape[1:], mode="bilinear")
            totals[head.name] += areas(logits.argmax(dim=1), truth, classes)
    return {name: miou(total) for name, total in totals.items()}


def windowed_areas(
    encoder: Encoder, features: Mapping[str, Sequence[int]], heads: Sequence[DenseHead], source: Source, stride: int
) -> dict[str, Tensor]:
    """Head -> areas [4, C] over a source, as of `each_windowed`."""
    totals = {head.name: torch.zeros(4, len(source.segmentation_classes), dtype=torch.float64) for head in heads}
    for name, found in each_windowed(encoder, features, heads, source, stride):
        totals[name] += found
    return totals


def each_windowed(
    encoder: Encoder, features: Mapping[str, Sequence[int]], heads: Sequence[DenseHead], source: Source, stride: int
) -> Iterator[tuple[str, Tensor]]:
    """Head and areas [4, C], image by image, at full label size, by windows that slide over images at crop size."""
    classes = len(source.segmentation_classes)
    modules = {head.name: (head.features, head.module) for head in heads}
    for i in range(len(source)):
        sample, mask = read_sample(source, i)
        image = short_side_to(np.array(sample.image), encoder.image_size[0])
        for name, logits in slid_logits(encoder, features, modules, image, stride):
            yield name, areas(predicted(logits, mask.shape), torch.from_numpy(mask).long(), classes)


def items_of(images: Tensor) -> Items:
    """Pixels of intersection, union and label of every class on each image, from areas [n, 4, C]."""
    counts = images.numpy().astype(np.uint32)
    columns = {"intersection": counts[:, 0], "union": counts[:, 1], "label": counts[:, 3]}
    metrics = {"mIoU": ("class_mean", "intersection", "union"), "mAcc": ("class_mean", "intersection", "label")}
    return Items(columns, {**metrics, "aAcc": ("pooled", "intersection", "label")})
