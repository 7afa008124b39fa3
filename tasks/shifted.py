"""A linear head of one data set, measured on another test set of the same classes or some of them."""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from harness.api import Metric, Task, Tiny
from harness.class_maps import HOWS, class_map
from harness.data import Data
from harness.errors import UserError, unknown
from harness.features import Encoder
from harness.head_choice import (
    HELD_OUT,
    RATES,
    ChosenHead,
    choose_head,
    feature_sets,
    grid_protocol,
    labels_of,
    wanted_layers,
)
from harness.items import Scores, classified, right_of
from harness.probes import classification_scores, predict, stratified_hold_out
from harness.sources import Source, balanced_subset
from harness.toys import Colours, PixelVit

# An encoder's heads: several shifted test sets of one training set need one head. Gone when the encoder is.
_HEADS: weakref.WeakKeyDictionary[Encoder, dict[str, ChosenHead]] = weakref.WeakKeyDictionary()


class Shifted(Task):
    """Top-1 of a linear head on a test set that was collected differently: ImageNet-V2, ImageNet-R.

    The head is trained and chosen on the data's train split exactly as the `linear` protocol of `classification`
    does (DINOv2's grid, arXiv 2304.07193, chosen on the held-out tenth), and then measured on the test split, whose
    classes are found among train's as `test_classes` says. top1 is over all training classes: a prediction of a
    class that the test set does not have is wrong. top1_masked is over the test set's classes alone, as ImageNet-R's
    own paper has it (arXiv 2006.16241); the two are equal where the test set has all classes.

    Details: the head that was chosen, as of `classification`; classes, how many the test set has.

    Args:
        data: with labels; the root holds both the train split and the shifted test split.
        test_classes: "same"; "index", class folders are numbers in train's order (ImageNet-V2); "subset", by name.
        steps: of the heads, by default as many as `classification` takes. batch: at most all of the images trained
            on; learning rates scale with it.
        images: at most so many training images, every class keeping its share; None: all.
    """

    name = "shifted"
    metrics: ClassVar[Mapping[str, Metric]] = {
        "top1": Metric("fraction", "up"),
        "top1_masked": Metric("fraction", "up", shown=True),
        "top5": Metric("fraction", "up"),
    }

    def __init__(
        self,
        *,
        data: Data,
        test_classes: Literal["same", "index", "subset"] = "same",
        steps: int = 12_500,
        batch: int = 1024,
        images: int | None = None,
    ) -> None:
        self.data, self.steps, self.batch, self.images = data, steps, batch, images
        self.test_classes = test_classes
        if test_classes not in HOWS:
            raise UserError(unknown("test_classes of the shifted task", test_classes, HOWS))
        for what, value in (("steps", steps), ("batch", batch), ("images", images)):
            if value is not None and value < 1:
                raise UserError(f"{what} of the shifted task is {value}; give 1 or more, or leave it out")

    def protocol(self) -> dict[str, Any]:
        return {
            "summary": (
                f"a linear head of split {self.data.train!r}, best of {len(RATES)} learning rates x (CLS, CLS + mean "
                f"patch) x (last block, last four blocks), {self.steps} steps at batch {self.batch}, chosen on a "
                f"held-out tenth of {self.images or 'all'} training images; measured on split {self.data.test!r} once"
            ),
            "data": self.data.identity(),
            "test_classes": self.test_classes,
            **self._training(),
            "version": 1,
        }

    def _training(self) -> dict[str, Any]:
        """What decides the head beside the data, the encoder and the seed."""
        return {
            "steps": self.steps,
            "batch": self.batch,
            "images": self.images,
            "held_out": HELD_OUT,
            "heads": grid_protocol(),
            "choice": "held-out top-1",
            "final_norm": True,
        }

    def evaluate(self, encoder: Encoder, *, seed: int) -> dict[str, float]:
        """Metric -> value.

        Raises:
            UserError: test classes that train does not have, images without a label, no class with two training
                images, an image that cannot be read.
        """
        train, test = self.data.open("train"), self.data.open("test")
        if self.images is not None:
            train = balanced_subset(train, self.images)
        numbers = class_map(train.classes, test.classes, self.test_classes)  # [test classes]
        labels, test_labels = labels_of(train, "train"), labels_of(test, "test")
        found = self._head(encoder, train, labels, seed)
        # Test labels are looked at from here on, when everything has been chosen.
        pooled = encoder.pooled(test, self.data.view(), wanted_layers(encoder.depth))
        logits = predict(found.head, feature_sets(pooled)[found.features], encoder.device)[:, 0]  # [n, C]
        truth = torch.from_numpy(numbers[test_labels])  # [n]
        scores = classification_scores(logits, truth)
        masked = among(logits, torch.from_numpy(numbers)) == truth  # [n]
        right = right_of(logits.topk(min(5, logits.shape[1])).indices.numpy(), truth.numpy())
        values = {
            "top1": scores["top1"],
            "top1_masked": masked.double().mean().item(),
            "top5": scores["top5"],
            "classes": float(len(numbers)),
            **found.details,
        }
        return Scores(values, classified({**right, "top1_masked": masked.numpy()}, truth.numpy()))

    def _head(self, encoder: Encoder, train: Source, labels: np.ndarray, seed: int) -> ChosenHead:
        """The best of the grid on the held-out tenth of train; the same one again for the same encoder and data."""
        view = self.data.view()
        key = json.dumps([train.identity(), str(view), self._training(), seed])
        heads = _HEADS.setdefault(encoder, {})
        if key not in heads:
            kept, held_out = stratified_hold_out(labels, HELD_OUT, seed)
            heads[key] = choose_head(
                feature_sets(encoder.pooled(train, view, wanted_layers(encoder.depth))),
                labels,
                train=kept,
                held_out=held_out,
                num_classes=len(train.classes),
                steps=self.steps,
                batch=self.batch,
                seed=seed,
                device=encoder.device,
            )
        return heads[key]

    @classmethod
    def tiny(cls) -> Tiny:
        sources: dict[str, Source] = {"train": Colours(160, classes=8), "test": Colours(40, split="shifted", cast=0.05)}
        data = Data.of_sources(sources, image_size=32, name="colours")
        return Tiny(cls(data=data, test_classes="subset", steps=50, batch=32), PixelVit(), PixelVit(blind=True))


def among(logits: Tensor, classes: Tensor) -> Tensor:
    """The predicted class [n] of logits [n, C] where only `classes` [c] can be predicted."""
    return classes[logits[:, classes].argmax(dim=1)]
