"""One linear head out of a grid, chosen on held-out training images: DINOv2's linear evaluation, arXiv 2304.07193.

Tasks that end in a linear classifier share it, so that they differ in their data and not in how a head was found.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from harness.errors import UserError
from harness.features import Pooled
from harness.probes import LinearHeads, Rows, score_heads, train_linear_heads
from harness.sources import Source

# DINOv2's grid, dinov2/eval/linear.py: rates at batch 256, blocks, mean patch or not.
RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)
BLOCKS = (1, 4)
STEPS, BATCH = 12_500, 1024  # DINOv2: 10 epochs of 1250 steps, 128 on each of 8 GPUs
HELD_OUT = 0.1
MOMENTUM = 0.9


@dataclasses.dataclass(frozen=True)
class ChosenHead:
    """The best head. features: the name of its feature set. head: H = 1. details: what a record keeps of the choice."""

    features: str
    head: LinearHeads
    details: dict[str, float]


def grid_protocol() -> dict[str, object]:
    """The grid, as part of a task's protocol."""
    return {"blocks": list(BLOCKS), "rates_at_batch_256": list(RATES), "momentum": MOMENTUM, "weight_decay": 0.0}


def wanted_layers(depth: int) -> range:
    """The blocks whose features the grid reads, of a model with so many: the last four, or all of them."""
    return range(depth - min(BLOCKS[-1], depth), depth)


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


def choose_head(
    sets: Mapping[str, Rows],
    labels: np.ndarray,
    *,
    train: np.ndarray,
    held_out: np.ndarray,
    num_classes: int,
    steps: int,
    batch: int,
    seed: int,
    device: str = "cpu",
) -> ChosenHead:
    """Train every head of the grid on the rows `train`; the best top-1 on `held_out`, then the smaller loss, is it.

    Args:
        sets: name -> n rows, as of `feature_sets`. labels: [n] int64. train, held_out: row numbers, disjoint.
        batch: rates scale with it; at most all rows of `train`.

    Raises:
        UserError: every head overflowed.
    """
    batch = min(batch, len(train))
    rates = [rate * batch / 256 for rate in RATES]
    heads = train_linear_heads(
        sets,
        labels,
        num_classes=num_classes,
        learning_rates=rates,
        steps=steps,
        batch=batch,
        momentum=MOMENTUM,
        seed=seed,
        index=train,
        device=device,
    )
    ranking: list[tuple[float, float, str, int]] = []
    details: dict[str, float] = {}
    for name, found in heads.items():
        top1, loss = score_heads(found, sets[name], labels, held_out, device)
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
    return ChosenHead(name, heads[name].only(i), details)


def checked_labels(train: Source, test: Source) -> tuple[np.ndarray, np.ndarray]:
    """The labels of both splits, [n] and [m] int64.

    Raises:
        UserError: other classes in test than in train, an empty split, an image without a label.
    """
    if tuple(train.classes) != tuple(test.classes):
        only_train = sorted(set(train.classes) - set(test.classes))
        only_test = sorted(set(test.classes) - set(train.classes))
        raise UserError(
            f"train and test do not have the same classes: {len(train.classes)} {_few(train.classes)} against "
            f"{len(test.classes)} {_few(test.classes)}; only in train: {_few(only_train)}, only in test: "
            f"{_few(only_test)}. Give splits with one list of classes, in one order"
        )
    return labels_of(train, "train"), labels_of(test, "test")


def labels_of(source: Source, split: str) -> np.ndarray:
    """The labels of a split, [n] int64. Raises UserError for an empty split and for an image without a label."""
    labels = source.labels()
    if not len(labels):
        raise UserError(f"the {split} split of the data is empty")
    if labels.min() < 0:
        sample = source.sample_name(int(labels.argmin()))
        raise UserError(f"a linear head needs a label for every image; {sample!r} of the {split} split has none")
    return labels


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(repr(n) for n in names[:3])
    return f"({shown}{', ...' if len(names) > 3 else ''})"
