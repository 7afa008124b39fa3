"""Classification with classes that are rare in training: a linear head on an imbalanced set, by how rare a class is."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch

from harness.api import Metric, Task, Tiny
from harness.data import Data
from harness.errors import UserError
from harness.features import Encoder
from harness.head_choice import (
    HELD_OUT,
    checked_labels,
    choose_head,
    feature_sets,
    grid_protocol,
    wanted_layers,
)
from harness.items import Scores, classified
from harness.probes import balanced_accuracy, predict, stratified_hold_out
from harness.seeds import derive
from harness.sources import Source, Subset
from harness.toys import Colours, PixelVit


class LongTail(Task):
    """Accuracy of a linear head trained on an imbalanced set: over all, and over classes of many, medium, few images.

    The head is found as in the classification task's `linear` protocol: DINOv2's grid on {CLS, CLS + mean patch} x
    {last block, last four blocks} x 13 rates, chosen by top-1 on a stratified tenth of the *imbalanced* training
    images, measured on test once. No reweighting: what is measured is the features.

    The imbalanced set: with `imbalance` r, class number i of C (in an order that is drawn once, the same everywhere)
    keeps n r^(-i / (C - 1)) of its images, n those of the largest class, rounded, at least 1 and at most what it has:
    the exponential profile of CIFAR-LT (arXiv 1901.05555). None: the training split as it is, for data that is
    long-tailed by itself (iNaturalist). Bins are by the number of training images: more than `many`, from `few` to
    `many`, fewer than `few` (arXiv 1904.05160: 100 and 20).

    Details: how many classes each bin has, the largest and smallest class, and the head that was chosen.

    Args:
        data: with labels, the same classes in train and test.
        imbalance: the largest class over the smallest; None: as it is.
        many, few: the bins' thresholds, images a class.
        steps, batch: of the heads.
    """

    name = "long_tail"
    metrics: ClassVar[dict[str, Metric]] = {
        "balanced_accuracy": Metric("fraction", "up"),
        "top1": Metric("fraction", "up"),
        "many_top1": Metric("fraction", "up"),
        "medium_top1": Metric("fraction", "up"),
        "few_top1": Metric("fraction", "up", shown=True),
    }

    def __init__(
        self,
        *,
        data: Data,
        imbalance: float | None = 100.0,
        many: int = 100,
        few: int = 20,
        steps: int = 12_500,  # DINOv2, as in classification
        batch: int = 1024,
    ) -> None:
        self.data, self.imbalance, self.many, self.few = data, imbalance, many, few
        self.steps, self.batch = steps, batch
        if imbalance is not None and imbalance < 1:
            raise UserError(f"imbalance of the long_tail task is {imbalance:g}; give 1 or more, or null: as it is")
        if not 1 <= few <= many:
            raise UserError(f"long_tail: few is {few} and many is {many}; give 1 <= few <= many, images a class")
        for what, value in (("steps", steps), ("batch", batch)):
            if value < 1:
                raise UserError(f"{what} of the long_tail task is {value}; give 1 or more, or leave it out")

    def protocol(self) -> dict[str, Any]:
        drawn = "as it is" if self.imbalance is None else f"drawn with imbalance {self.imbalance:g}"
        return {
            "summary": (
                f"a linear head on train {drawn}, {self.steps} steps at batch {self.batch}, chosen on a held-out "
                f"tenth; bins: more than {self.many}, {self.few} to {self.many}, fewer than {self.few} images a class"
            ),
            "data": self.data.identity(),
            "imbalance": self.imbalance,
            "many": self.many,
            "few": self.few,
            "steps": self.steps,
            "batch": self.batch,
            "held_out": HELD_OUT,
            "heads": grid_protocol(),
            "version": 1,
        }

    def evaluate(self, encoder: Encoder, *, seed: int) -> dict[str, float]:
        """Metric -> value; a bin without classes is left out.

        Raises:
            UserError: classes that differ between train and test, images without a label, an image that cannot be
                read.
        """
        whole, test = self.data.open("train"), self.data.open("test")
        all_labels, test_labels = checked_labels(whole, test)
        classes = len(whole.classes)
        source = whole
        if self.imbalance is not None:
            source = Subset(whole, imbalanced(all_labels, classes, self.imbalance))
        labels = source.labels()
        view, layers = self.data.view(), wanted_layers(encoder.depth)
        train = feature_sets(encoder.pooled(source, view, layers))
        kept, held_out = stratified_hold_out(labels, HELD_OUT, seed)
        head = choose_head(
            train,
            labels,
            train=kept,
            held_out=held_out,
            num_classes=classes,
            steps=self.steps,
            batch=self.batch,
            seed=seed,
            device=encoder.device,
        )
        # Test labels are looked at from here on, when everything has been chosen.
        rows = feature_sets(encoder.pooled(test, view, layers))[head.features]
        predicted = predict(head.head, rows, encoder.device)[:, 0].argmax(dim=-1)  # [n]
        truth = torch.from_numpy(test_labels)
        counts = np.bincount(labels, minlength=classes)
        found = {
            "balanced_accuracy": balanced_accuracy(predicted, truth),
            "top1": (predicted == truth).double().mean().item(),
        }
        details = {"largest_class": float(counts.max()), "smallest_class": float(counts.min()), **head.details}
        parts = {}
        for name, in_bin in self._bins(counts).items():
            details[f"{name}_classes"] = float(in_bin.sum())
            shown = torch.from_numpy(in_bin[test_labels])  # [n], the test images of these classes
            if shown.any():
                found[f"{name}_top1"] = (predicted == truth)[shown].double().mean().item()
                parts[f"{name}_top1"] = shown.numpy()
        items = classified({"top1": (predicted == truth).numpy()}, test_labels, balanced="top1", parts=parts)
        return Scores({**found, **details}, items)

    def _bins(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        """Name -> which classes [C] are in it, by their training images [C]."""
        many, few = counts > self.many, counts < self.few
        return {"many": many, "medium": ~many & ~few, "few": few}

    @classmethod
    def tiny(cls) -> Tiny:
        sources: dict[str, Source] = {"train": Colours(120), "test": Colours(60, split="test")}
        data = Data.of_sources(sources, image_size=32, name="colours")
        task = cls(data=data, imbalance=15.0, many=16, few=6, steps=50, batch=32)
        return Tiny(task, PixelVit(), PixelVit(blind=True))


def imbalanced(labels: np.ndarray, classes: int, imbalance: float) -> np.ndarray:
    """Sample numbers, ascending, of a draw with an exponential profile; labels and numbers alone decide it."""
    have = np.bincount(labels, minlength=classes)
    order = np.random.default_rng(derive("long-tail order")).permutation(classes)
    kept = []
    for rank, c in enumerate(order):
        share = imbalance ** (-rank / max(1, classes - 1))
        count = min(have[c], max(1, round(have.max() * share)))
        draw = np.random.default_rng(derive("long-tail", int(c)))
        kept.append(draw.permutation(np.flatnonzero(labels == c))[:count])
    return np.sort(np.concatenate(kept))
