"""Depth from single images with a frozen encoder: linear heads on bins of depth, errors pooled over all pixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from harness.api import Metric, Task, Tiny
from harness.data import Data
from harness.dense import HELD_OUT, DenseHead, TokenMaps, hold_out_images, spread, whole_view
from harness.errors import UserError
from harness.features import Encoder
from harness.items import Items, Scores
from harness.matching import chosen
from harness.sources import Source
from harness.toys import PixelVit, Slopes
from tasks.depth_fitting import (
    PUBLISHED_BATCH,
    PUBLISHED_EPOCHS,
    RATES,
    best_head,
    fit_linear,
    fit_published,
    linear_protocol,
    published_protocol,
)
from tasks.depth_heads import BINS, UPSAMPLING, Normalisation, depth_of, resized, upsampled
from tasks.depth_scores import CROPS, MeanOfImages, PooledErrors, counted, items_of
from tasks.depth_truth import TrainingDepths, check_scale, depth_range, read_depth_m

BLOCKS = (1, 4)
STEPS, BATCH = 4_000, 16
LEAST_M = 1e-3  # a prediction is at least this, so that it has a logarithm


class Depth(Task):
    """RMSE and relative errors of metric depth by a linear head on frozen patches, over all known pixels of test.

    Images are squashed to `data.image_size`; CLS, where there is one, is given to every patch. A linear map to 256
    bins, evenly spaced over the range, on features upsampled four times; depth is the bins' mean, brought bilinearly
    to each label map's own size and clamped to the range. A pixel counts where its true depth is known, in the range
    and in the crop; no prediction takes one out.

    `protocol="linear"`, after DINOv2 (arXiv 2304.07193): tokens after the final norm, kept as float16; heads on {last
    block, last four blocks} x 3 rates (AdamW, decay .01), trained at once on nine tenths of the training images by
    SigLoss + 0.5 gradient loss; the smallest RMSE on the other tenth is measured on test, once. A step sees a window of
    3 x 3 tokens of each image, at a new place every time, on the head's own grid of cells, four to a token's side.
    Different from theirs: 4,000 steps for 38,400, since features are of whole images without augmentation; windows for
    crops, and a loss on cells for one on pixels, which cost a twentieth; of four blocks only the last gives its CLS.

    `protocol="published"`, what the SiNGER authors run: tokens before the final norm, one head on all training images,
    cross-entropy on the bins, depth at softmax temperature .03, SGD without momentum, lr .5 at batch 64, decay 1e-6,
    cosine to 1e-8, 200 epochs. Repaired: they train unknown pixels as the nearest bin, spread the bins differently in
    training and testing, average each batch's RMSE, and report the best epoch on test; here unknown pixels train
    nothing, the bins are one range, and the last step is measured. No random crop and colour: the features are kept.

    Details: the same errors averaged over images as mmsegmentation's DepthMetric does (rmse_mean_of_images),
    silog_full, rmse_of_constant (predicting the training median everywhere), held_out_rmse/HEAD, which head was
    chosen, and how many pixels and images count.

    Args:
        data: with depth. steps: of the heads; None: 4,000 or 200 epochs. batch: None: 16 or 64, at most all images.
        images: at most so many training images, spread over the split; None: all.
        views: 2: heads train on mirrored images too, encoded as images.
        min_m, max_m: the depths that count; None: what the source says.
        crop: which part of a label map is measured: "eigen" as of NYU, "garg" as of KITTI; training sees all of it.
    """

    name = "depth"
    metrics: ClassVar[Mapping[str, Metric]] = {
        "rmse": Metric("m", "down"),
        "abs_rel": Metric("ratio", "down"),
        "delta1": Metric("fraction", "up"),
        "delta2": Metric("fraction", "up"),
        "delta3": Metric("fraction", "up"),
        "log10": Metric("ratio", "down"),
        "silog": Metric("ratio", "down"),
    }

    def __init__(
        self,
        *,
        data: Data,
        protocol: Literal["linear", "published"] = "linear",
        steps: int | None = None,
        batch: int | None = None,
        images: int | None = None,
        views: Literal[1, 2] = 1,
        min_m: float | None = None,
        max_m: float | None = None,
        crop: Literal["none", "eigen", "garg"] = "none",
    ) -> None:
        self.data, self.images, self.views = data, images, views
        self.linear = chosen("depth protocol", protocol, ("linear", "published")) == "linear"
        self.crop = chosen("crop of the depth task", crop, CROPS)
        for what, value in {"steps": steps, "batch": batch, "images": images}.items():
            if value is not None and value < 1:
                raise UserError(f"{what} of the depth task is {value}; give 1 or more, or leave it out")
        if views not in (1, 2):
            raise UserError(f"views of the depth task is {views}; give 1, or 2 for mirrored images too")
        if (min_m is not None and min_m < 0) or (max_m is not None and max_m <= (min_m or 0)):
            raise UserError(f"min_m {min_m} and max_m {max_m} of the depth task are no range in metres")
        self.min_m, self.max_m = min_m, max_m
        self.steps = steps if steps is not None or not self.linear else STEPS
        self.batch = (BATCH if self.linear else PUBLISHED_BATCH) if batch is None else batch
        self.how: Normalisation = "linear" if self.linear else "softmax"

    def protocol(self) -> dict[str, Any]:
        common = {"data": self.data.identity(), "steps": self.steps, "batch": self.batch, "images": self.images}
        common |= {"views": self.views, "min_m": self.min_m, "max_m": self.max_m, "crop": self.crop}
        common |= {"bins": BINS, "upsampling": UPSAMPLING, "cls": True, "normalisation": self.how, "version": 1}
        common |= {"metric": "pooled over pixels whose true depth counts, at the label map's own size"}
        where = "over all known pixels of test" + ("" if self.crop == "none" else f" in the {self.crop} crop")
        if self.linear:
            summary = (
                f"best of {len(RATES)} rates x (last block, last four) with CLS, {BINS} bins, {self.steps} steps at "
                f"batch {self.batch}, chosen by RMSE on a held-out tenth of {self.images or 'all'} training images; "
                f"errors {where}"
            )
            own = {"blocks": list(BLOCKS), **linear_protocol(), "final_norm": True}
            own |= {"choice": f"RMSE on one of every {HELD_OUT} training images"}
            return {"summary": summary, "kind": "linear", **common, **own}
        length = f"{PUBLISHED_EPOCHS} epochs" if self.steps is None else f"{self.steps} steps"
        summary = (
            f"as SiNGER's authors run it: one head on patches and CLS before the final norm, {BINS} bins, "
            f"cross-entropy, {length}, the last step; errors {where}"
        )
        own = {**published_protocol(), "choice": "last step", "final_norm": False}
        own |= {"epochs": PUBLISHED_EPOCHS} if self.steps is None else {}
        return {"summary": summary, "kind": "published", **common, **own}

    def evaluate(self, encoder: Encoder, *, seed: int) -> dict[str, float]:
        """Metric -> value, and details.

        Raises:
            UserError: data without depth, a scale that cannot be right, too few images, a test split without a known
                depth, an image or depth map that cannot be read.
        """
        train, test = self.data.open("train"), self.data.open("test")
        train = spread(train, self.images)
        low, high = depth_range(train, self.data.name, self.min_m, self.max_m)
        depth_range(test, self.data.name, low, high)
        truth = TrainingDepths(train, self.data.image_size, low, high)
        median_m = truth.median_m()
        check_scale(median_m, low, high, self.data.options)

        features = self._features(encoder, train, self.views)
        kept, held_out = hold_out_images(len(train)) if self.linear else (np.arange(len(train)), np.empty(0, int))
        numbers = np.concatenate([kept + view * len(train) for view in range(self.views)])
        heads = self._fitted(features, truth, numbers, seed, encoder.device)
        head, details = heads[0], {}
        if self.linear:
            errors = self._errors(heads, features, train, held_out, (low, high), encoder.device)
            head, details = best_head(heads, [pooled.rmse for pooled in errors])

        # Test depths are looked at from here on, when everything has been chosen.
        found, items = self._scores(head, encoder, test, (low, high), median_m)
        return Scores(found | details, items)

    def _features(self, encoder: Encoder, source: Source, views: int) -> dict[str, TokenMaps]:
        """Name -> token maps; the images of each view after the other's."""
        counts = sorted({min(n, encoder.depth) for n in (BLOCKS if self.linear else (1,))})
        layers = range(encoder.depth - counts[-1], encoder.depth)
        seen = [whole_view(self.data.image_size, mirror=bool(i)) for i in range(views)]
        tokens = [encoder.tokens(source, view, layers, norm=self.linear) for view in seen]
        names = {count: "last block" if count == 1 else f"last {count} blocks" for count in counts}
        return {names[count]: TokenMaps(tokens, layers[-count:], cls=True) for count in counts}

    def _fitted(
        self, features: Mapping[str, TokenMaps], truth: TrainingDepths, index: np.ndarray, seed: int, device: str
    ) -> list[DenseHead]:
        """The grid's heads, or the published one, trained on the images `index`."""
        batch = min(self.batch, len(index))
        if self.linear:
            return fit_linear(features, truth, index, steps=self.steps or 0, batch=batch, seed=seed, device=device)
        steps = self.steps or PUBLISHED_EPOCHS * math.ceil(len(index) / batch)
        return [fit_published(features, truth, index, steps=steps, batch=batch, seed=seed, device=device)]

    @torch.no_grad()
    def _each(
        self,
        heads: Sequence[DenseHead],
        features: Mapping[str, TokenMaps],
        source: Source,
        index: np.ndarray,
        limits: tuple[float, float],
        device: str,
        see: Callable[[int, np.ndarray, np.ndarray], None],
    ) -> None:
        """see(head's number, predicted [n], true [n]) for every image and head: the pixels that count, metres."""
        low, high = limits
        for picked in np.array_split(index, math.ceil(len(index) / BATCH)):
            maps = {name: features[name].take(picked, device) for name in {head.features for head in heads}}
            depths = [
                depth_of(upsampled(h.module(maps[h.features])), low, high, self.how) for h in heads
            ]  # each [B, h, w]
            for row, i in enumerate(picked):
                truth = read_depth_m(source, int(i))
                where = counted(truth, low, high, self.crop)
                for number, depth in enumerate(depths):
                    full = resized(depth[row : row + 1], truth.shape)[0].clamp(max(low, LEAST_M), high)
                    see(number, full.cpu().numpy()[where], truth[where])

    def _errors(
        self,
        heads: Sequence[DenseHead],
        features: Mapping[str, TokenMaps],
        source: Source,
        index: np.ndarray,
        limits: tuple[float, float],
        device: str,
    ) -> list[PooledErrors]:
        """Of every head, on the images `index`; of one that failed none, so that its error is infinite."""
        errors = [PooledErrors() for _ in heads]
        whole = [i for i, head in enumerate(heads) if not head.failed]
        if whole:
            self._each(
                [heads[i] for i in whole],
                features,
                source,
                index,
                limits,
                device,
                lambda number, predicted, truth: errors[whole[number]].add(predicted, truth),
            )
        return errors

    def _scores(
        self, head: DenseHead, encoder: Encoder, test: Source, limits: tuple[float, float], median_m: float
    ) -> tuple[dict[str, float], Items]:
        """Everything that is measured on test, in one pass over its depth maps."""
        pooled, constant, averaged = PooledErrors(), PooledErrors(), MeanOfImages()
        images: list[PooledErrors] = []

        def see(_: int, predicted: np.ndarray, truth: np.ndarray) -> None:
            pooled.add(predicted, truth)
            constant.add(np.full_like(truth, median_m), truth)
            averaged.add(predicted, truth)
            images.append(PooledErrors())
            images[-1].add(predicted, truth)

        features = self._features(encoder, test, views=1)
        self._each([head], features, test, np.arange(len(test)), limits, encoder.device, see)
        if not pooled.pixels:
            raise UserError(
                f"not one depth of the test split counts: none of its {len(test)} images has a pixel of {limits[0]:g} "
                f".. {limits[1]:g} m in crop {self.crop!r}. Look at the scale, at min_m and max_m, or at the split"
            )
        found = pooled.metrics() | averaged.metrics()
        found |= {"rmse_of_constant": constant.rmse, "constant_m": median_m}
        found |= {"pixels": float(pooled.pixels), "images_without_depth": float(len(test) - averaged.images)}
        return found, items_of(images)

    @classmethod
    def tiny(cls) -> Tiny:
        sources: dict[str, Source] = {"train": Slopes(30), "test": Slopes(12, split="test")}
        task = cls(data=Data.of_sources(sources, image_size=32, name="slopes"), steps=60, batch=8)
        return Tiny(task, PixelVit(), PixelVit(blind=True))
