"""Image classification with a frozen encoder: linear heads, nearest neighbours, and the encoder's own head."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from harness.api import Metric, Task, Tiny
from harness.data import Data
from harness.errors import UserError
from harness.features import Encoder, Pooled
from harness.head_choice import (
    BATCH,
    HELD_OUT,
    RATES,
    STEPS,
    checked_labels,
    choose_head,
    feature_sets,
    grid_protocol,
    wanted_layers,
)
from harness.items import Scores, classified, right_of
from harness.matching import chosen
from harness.probes import (
    LinearHeads,
    Rows,
    Stacked,
    classification_scores,
    knn_predict,
    predict,
    stratified_hold_out,
    train_linear_heads,
)
from harness.sources import Source, balanced_subset
from harness.toys import Colours, PixelVit

KS = (10, 20, 100, 200)  # DINO's, arXiv 2104.14294
# SiNGER's evaluation code; its 150 epochs are those of ImageNet.
PUBLISHED_RATE, PUBLISHED_BATCH, PUBLISHED_EPOCHS = 0.5, 64, 150
PUBLISHED_DECAY, PUBLISHED_FINAL_RATE = 1e-6, 1e-8


@dataclasses.dataclass(frozen=True)
class _Splits:
    """Everything that is read of the data. train, held_out: row numbers of `labels`, disjoint."""

    rows: dict[str, Rows]  # feature set -> all of train
    test_rows: dict[str, Rows]
    labels: np.ndarray
    train: np.ndarray
    held_out: np.ndarray


class Classification(Task):
    """Top-1, top-5 and balanced accuracy of a linear head on frozen features, and of nearest neighbours.

    `protocol="linear"`, after DINOv2: features after the final norm; heads on {CLS, CLS + mean patch of the last
    block} x {last block, last four blocks' CLS} x 13 learning rates, SGD with momentum .9, all trained at once on
    nine tenths of train. The head with the best top-1 on the stratified other tenth (then the smaller loss) is
    measured on test, once. A model without CLS gives mean patches only; one with fewer than four blocks all of them.

    `protocol="published"`, what the SiNGER authors run: CLS after the last block, before the final norm, one Linear
    with torch's initial values on all of train, SGD without momentum, lr .5 at batch 64, weight decay 1e-6, cosine to
    1e-8. Repaired: they report the best epoch on the test set, this the last one. The features are of one view
    without augmentation, and the cosine moves with each step instead of each epoch.

    kNN under both: the L2-normalised CLS (mean patch without one) of the protocol's last block, k chosen on the held-
    out tenth among 10, 20, 100, 200 (as many as there are neighbours), all of train as neighbours for test.

    Details: own_head_top1 where the encoder's own head was trained on these very classes (no metric, since most
    methods train none and a missing cell would say that something failed); the head that was chosen, with
    held_out_top1, chosen_lr (at batch 256), chosen_lr_at_edge (1: the grid may be too small), and the best of each
    feature set.

    Args:
        data: with labels, the same classes in train and test.
        steps: of the heads; None: 12,500 (linear) or 150 epochs (published). batch: None: 1024 or 64; at most all
            of the images trained on. Learning rates scale with it.
        images: at most so many training images, every class keeping its share; None: all.
        views: 2: linear heads train on mirrored images too, encoded as images; the held-out tenth and neighbours are
            never mirrored.
    """

    name = "classification"
    metrics: ClassVar[Mapping[str, Metric]] = {
        "top1": Metric("fraction", "up"),
        "top5": Metric("fraction", "up"),
        "balanced_accuracy": Metric("fraction", "up"),
        "knn_top1": Metric("fraction", "up"),
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
    ) -> None:
        self.data, self.images, self.views = data, images, views
        self.linear = chosen("classification protocol", protocol, ("linear", "published")) == "linear"
        for what, value in (("steps", steps), ("batch", batch), ("images", images)):
            if value is not None and value < 1:
                raise UserError(f"{what} of the classification task is {value}; give 1 or more, or leave it out")
        if views not in (1, 2) or (views == 2 and not self.linear):
            raise UserError(f"views is {views} under protocol {protocol!r}; give 1, or 2 under 'linear'")
        self.steps = steps if steps is not None or not self.linear else STEPS
        default_batch = BATCH if self.linear else PUBLISHED_BATCH
        self.batch = default_batch if batch is None else batch

    def protocol(self) -> dict[str, Any]:
        common = {"data": self.data.identity(), "steps": self.steps, "batch": self.batch, "version": 1}
        common |= {"images": self.images, **({"views": self.views} if self.views > 1 else {})}
        common |= {"held_out": HELD_OUT, "knn": {"k": list(KS), "temperature": 0.07}}
        if self.linear:
            heads = grid_protocol()
            summary = (
                f"best of {len(RATES)} learning rates x (CLS, CLS + mean patch) x (last block, last four blocks), "
                f"{self.steps} steps at batch {self.batch}, chosen on a held-out tenth of {self.images or 'all'} "
                f"training images{', mirrored ones too' if self.views == 2 else ''}, measured on test once"
            )
            return {
                "summary": summary,
                "kind": "linear",
                **common,
                "heads": heads,
                "choice": "held-out top-1",
                "final_norm": True,
            }
        heads = {"rate": PUBLISHED_RATE, "at_batch": PUBLISHED_BATCH, "final_rate": PUBLISHED_FINAL_RATE}
        heads |= {"momentum": 0.0, "weight_decay": PUBLISHED_DECAY}
        heads |= {"epochs": PUBLISHED_EPOCHS} if self.steps is None else {}
        length = f"{PUBLISHED_EPOCHS} epochs" if self.steps is None else f"{self.steps} steps"
        summary = f"as SiNGER's authors run it: one head on CLS before the final norm, {length}, the last step"
        return {
            "summary": summary,
            "kind": "published",
            **common,
            "heads": heads,
            "choice": "last step",
            "final_norm": False,
        }

    def evaluate(self, encoder: Encoder, *, seed: int) -> dict[str, float]:
        """Metric -> value.

        Raises:
            UserError: classes that differ between train and test, images without a label, no class with two
                training images, an image that cannot be read.
        """
        train_source, test_source = self.data.open("train"), self.data.open("test")
        if self.images is not None:
            train_source = balanced_subset(train_source, self.images)
        labels, test_labels = checked_labels(train_source, test_source)
        classes = len(train_source.classes)
        own_head = encoder.head_classes == tuple(train_source.classes)
        layers = wanted_layers(encoder.depth) if self.linear else [encoder.depth - 1]
        view = self.data.view()
        train = encoder.pooled(train_source, view, layers, norm=self.linear)
        test = encoder.pooled(test_source, view, layers, norm=self.linear, logits=own_head)

        kept, held_out = stratified_hold_out(labels, HELD_OUT, seed)
        make_sets = feature_sets if self.linear else _published_set
        splits = _Splits(make_sets(train), make_sets(test), labels, kept, held_out)
        if self.views == 2:
            mirrored = make_sets(encoder.pooled(train_source, dataclasses.replace(view, mirror=True), layers))
            rows: dict[str, Rows] = {name: Stacked(own, mirrored[name]) for name, own in splits.rows.items()}
            seen = np.concatenate([kept, kept + len(labels)])
            both = _Splits(rows, splits.test_rows, np.tile(labels, 2), seen, held_out)
        else:
            both = splits
        train_head = self._chosen_head if self.linear else self._published_head
        name, head, details = train_head(both, classes, seed, encoder.device)

        # Test labels are looked at from here on, when everything has been chosen.
        truth = torch.from_numpy(test_labels)
        logits = predict(head, splits.test_rows[name], encoder.device)[:, 0]  # [n, C]
        votes, knn_details = _nearest_neighbours(train, test, splits, classes, encoder)
        found = classification_scores(logits, truth)
        neighbours = votes == truth  # [n]
        found["knn_top1"] = neighbours.double().mean().item()
        if test.logits is not None:
            details["own_head_top1"] = classification_scores(torch.from_numpy(test.logits.copy()), truth)["top1"]
        right = {**right_of(logits.topk(min(5, classes)).indices.numpy(), test_labels), "knn_top1": neighbours.numpy()}
        return Scores({**found, **knn_details, **details}, classified(right, test_labels, balanced="top1"))

    def _chosen_head(
        self, splits: _Splits, classes: int, seed: int, device: str
    ) -> tuple[str, LinearHeads, dict[str, float]]:
        """Feature set, head and details of the best on the held-out tenth."""
        found = choose_head(
            splits.rows,
            splits.labels,
            train=splits.train,
            held_out=splits.held_out,
            num_classes=classes,
            steps=self.steps or 0,
            batch=self.batch,
            seed=seed,
            device=device,
        )
        return found.features, found.head, found.details

    def _published_head(
        self, splits: _Splits, classes: int, seed: int, device: str
    ) -> tuple[str, LinearHeads, dict[str, float]]:
        """The one head, after its last step on all of train."""
        count = len(splits.labels)
        batch = min(self.batch, count)
        rate = PUBLISHED_RATE * batch / PUBLISHED_BATCH
        ((name, heads),) = train_linear_heads(
            splits.rows,
            splits.labels,
            num_classes=classes,
            learning_rates=[rate],
            steps=self.steps or PUBLISHED_EPOCHS * math.ceil(count / batch),
            batch=batch,
            momentum=0.0,
            weight_decay=PUBLISHED_DECAY,
            final_rate=PUBLISHED_FINAL_RATE,
            init="uniform",
            seed=seed,
            device=device,
        ).items()
        return name, heads, {}

    @classmethod
    def tiny(cls) -> Tiny:
        sources: dict[str, Source] = {"train": Colours(80), "test": Colours(40, split="test")}
        task = cls(data=Data.of_sources(sources, image_size=32, name="colours"), steps=50, batch=32)
        return Tiny(task, PixelVit(), PixelVit(blind=True))


def _published_set(pooled: Pooled) -> dict[str, Rows]:
    return {"last block": Rows(pooled.vector(max(pooled.tokens)))}


def _nearest_neighbours(
    train: Pooled, test: Pooled, splits: _Splits, classes: int, encoder: Encoder
) -> tuple[Tensor, dict[str, float]]:
    """The class of each test image by its neighbours in train, [n], and the k that the held-out tenth chose."""
    last = max(train.tokens)
    bank, queries = (torch.from_numpy(np.array(p.vector(last))).to(encoder.device) for p in (train, test))
    labels = torch.from_numpy(splits.labels).to(encoder.device)
    ks = sorted({min(k, len(splits.train)) for k in KS})
    kept, held_out = splits.train, splits.held_out
    votes = knn_predict(bank[kept], labels[kept], bank[held_out], ks, num_classes=classes)
    right = {k: (found == labels[held_out]).double().mean().item() for k, found in votes.items()}
    k = max(ks, key=lambda k: right[k])  # of equals the smallest
    found = knn_predict(bank, labels, queries, [k], num_classes=classes)[k].cpu()
    return found, {"knn_k": float(k), "knn_held_out_top1": right[k]}
