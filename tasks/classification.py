"""Image classification with a frozen encoder: linear heads, nearest neighbours, and the encoder's own head."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from harness.api import Metric, Task, Tiny
from harness.data import Data
from harness.errors import UserError
from harness.features import Encoder, Pooled
from harness.matching import chosen
from harness.probes import (
    LinearHeads,
    Rows,
    classification_scores,
    knn_predict,
    predict,
    score_heads,
    stratified_hold_out,
    train_linear_heads,
)
from harness.sources import Source, balanced_subset
from harness.toys import Colours, PixelVit

# DINOv2's grid, dinov2/eval/linear.py (arXiv 2304.07193): rates at batch 256, blocks, mean patch or not.
RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)
BLOCKS = (1, 4)
HELD_OUT = 0.1
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
    ) -> None:
        self.data, self.images = data, images
        self.linear = chosen("classification protocol", protocol, ("linear", "published")) == "linear"
        for what, value in (("steps", steps), ("batch", batch), ("images", images)):
            if value is not None and value < 1:
                raise UserError(f"{what} of the classification task is {value}; give 1 or more, or leave it out")
        self.steps = steps if steps is not None or not self.linear else 12_500  # DINOv2: 10 epochs of 1250 steps
        default_batch = 1024 if self.linear else PUBLISHED_BATCH  # DINOv2: 128 on each of 8 GPUs
        self.batch = default_batch if batch is None else batch

    def protocol(self) -> dict[str, Any]:
        common = {"data": self.data.identity(), "steps": self.steps, "batch": self.batch, "version": 1}
        common |= {"images": self.images}
        common |= {"held_out": HELD_OUT, "knn": {"k": list(KS), "temperature": 0.07}}
        if self.linear:
            heads = {"blocks": list(BLOCKS), "rates_at_batch_256": list(RATES), "momentum": 0.9, "weight_decay": 0.0}
            summary = (
                f"best of {len(RATES)} learning rates x (CLS, CLS + mean patch) x (last block, last four blocks), "
                f"{self.steps} steps at batch {self.batch}, chosen on a held-out tenth of {self.images or 'all'} "
                "training images, measured on test once"
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
        labels, test_labels = _checked_labels(train_source, test_source)
        classes = len(train_source.classes)
        own_head = encoder.head_classes == tuple(train_source.classes)
        layers = range(encoder.depth - min(BLOCKS[-1] if self.linear else 1, encoder.depth), encoder.depth)
        view = self.data.view()
        train = encoder.pooled(train_source, view, layers, norm=self.linear)
        test = encoder.pooled(test_source, view, layers, norm=self.linear, logits=own_head)

        kept, held_out = stratified_hold_out(labels, HELD_OUT, seed)
        make_sets = feature_sets if self.linear else _published_set
        splits = _Splits(make_sets(train), make_sets(test), labels, kept, held_out)
        train_head = self._chosen_head if self.linear else self._published_head
        name, head, details = train_head(splits, classes, seed, encoder.device)

        # Test labels are looked at from here on, when everything has been chosen.
        truth = torch.from_numpy(test_labels)
        logits = predict(head, splits.test_rows[name], encoder.device)[:, 0]  # [n, C]
        votes, knn_details = _nearest_neighbours(train, test, splits, classes, encoder)
        found = classification_scores(logits, truth)
        found["knn_top1"] = (votes == truth).double().mean().item()
        if test.logits is not None:
            details["own_head_top1"] = classification_scores(torch.from_numpy(test.logits.copy()), truth)["top1"]
        return {**found, **knn_details, **details}

    def _chosen_head(
        self, splits: _Splits, classes: int, seed: int, device: str
    ) -> tuple[str, LinearHeads, dict[str, float]]:
        """Feature set, head and details of the best on the held-out tenth."""
        batch = min(self.batch, len(splits.train))
        heads = train_linear_heads(
            splits.rows,
            splits.labels,
            num_classes=classes,
            learning_rates=[rate * batch / 256 for rate in RATES],
            steps=self.steps or 0,
            batch=batch,
            seed=seed,
            index=splits.train,
            device=device,
        )
        ranking: list[tuple[float, float, str, int]] = []
        details: dict[str, float] = {}
        for name, found in heads.items():
            top1, loss = score_heads(found, splits.rows[name], splits.labels, splits.held_out, device)
            finite = [(right, -cost, name, i) for i, (right, cost) in enumerate(zip(top1, loss, strict=True))]
            finite = [entry for entry in finite if math.isfinite(entry[1])]  # a head that diverged cannot win
            if finite:
                best = max(finite, key=lambda entry: entry[:2])
                ranking.append(best)
                details[f"held_out_top1/{name}"], details[f"lr/{name}"] = best[0], RATES[best[3]]
        if not ranking:
            raise UserError("every linear head overflowed: the features are too large for the grid's learning rates")
        right, _, name, i = max(ranking, key=lambda entry: entry[:2])
        details |= {"held_out_top1": right, "chosen_lr": RATES[i]}
        details |= {"chosen_lr_at_edge": float(i in (0, len(RATES) - 1))}
        details |= {f"chosen/{other}": float(other == name) for other in heads}
        return name, heads[name].only(i), details

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


def _checked_labels(train: Source, test: Source) -> tuple[np.ndarray, np.ndarray]:
    if tuple(train.classes) != tuple(test.classes):
        only_train = sorted(set(train.classes) - set(test.classes))
        only_test = sorted(set(test.classes) - set(train.classes))
        raise UserError(
            f"train and test do not have the same classes: {len(train.classes)} {_few(train.classes)} against "
            f"{len(test.classes)} {_few(test.classes)}; only in train: {_few(only_train)}, only in test: "
            f"{_few(only_test)}. Give splits with one list of classes, in one order"
        )
    found = train.labels(), test.labels()
    for split, source, labels in zip(("train", "test"), (train, test), found, strict=True):
        if not len(labels):
            raise UserError(f"the {split} split of the classification data is empty")
        if labels.min() < 0:
            sample = source.sample_name(int(labels.argmin()))
            raise UserError(f"classification needs a label for every image; {sample!r} of the {split} split has none")
    return found


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(repr(n) for n in names[:3])
    return f"({shown}{', ...' if len(names) > 3 else ''})"


def feature_sets(pooled: Pooled) -> dict[str, Rows]:
    """Name -> rows. As in DINOv2 several blocks give their CLS each, and the mean patch is the last block's alone."""
    layers = sorted(pooled.tokens)
    sets: dict[str, Rows] = {}
    for count in sorted({min(n, len(layers)) for n in BLOCKS}):
        taken = layers[-count:]
        if not pooled.has_cls:
            sets[f"mean_patch/{count}"] = Rows(*(pooled.mean_patch(i) for i in taken))
            continue
        cls = [pooled.cls(i) for i in taken]
        sets[f"cls/{count}"] = Rows(*cls)
        sets[f"cls+mean_patch/{count}"] = Rows(*cls, pooled.mean_patch(layers[-1]))
    return sets


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
