"""How depth heads are trained: the grid of linear heads and the choice among them, and the published one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.dense import DenseHead, TokenMaps, fit_heads, make_heads, token_batches
from harness.errors import UserError
from harness.probes import minibatches
from harness.seeds import derive
from tasks.depth_heads import (
    APART,
    GRADIENT_WEIGHT,
    TEMPERATURE,
    UPSAMPLING,
    between_centres,
    bin_cross_entropy,
    bin_head,
    depth_of,
    gradient_loss,
    sig_loss,
    upsampled,
)
from tasks.depth_truth import TrainingDepths

RATES = (5e-3, 2e-2, 8e-2)  # DINOv2's 5e-3 and more, for fewer steps
DECAY = 0.01
WINDOW = 3  # tokens on a side of what a step sees of an image
WARMUP_SHARE = 1 / 3  # DINOv2: 12,800 of 38,400 steps
SIG_WARMUP_STEPS = 100  # steps that fit the scale alone, DINOv2's; at most a tenth of all
# SiNGER's evaluation code.
PUBLISHED_RATE, PUBLISHED_DECAY, PUBLISHED_FINAL_RATE = 0.5, 1e-6, 1e-8
PUBLISHED_BATCH, PUBLISHED_EPOCHS = 64, 200


def linear_protocol() -> dict[str, Any]:
    """What `fit_linear` does, as part of a task's protocol."""
    loss = {"sig": 1.0, "gradient": GRADIENT_WEIGHT, "cells_apart": list(APART), "sig_warmup_steps": SIG_WARMUP_STEPS}
    found = {"rates": list(RATES), "weight_decay": DECAY, "warmup": WARMUP_SHARE, "loss": loss}
    return {**found, "window": f"{WINDOW} x {WINDOW} tokens of each image of a batch, at a new place in every step"}


def published_protocol() -> dict[str, Any]:
    """What `fit_published` does, as part of a task's protocol."""
    found = {"rate": PUBLISHED_RATE, "at_batch": PUBLISHED_BATCH, "final_rate": PUBLISHED_FINAL_RATE}
    return {**found, "weight_decay": PUBLISHED_DECAY, "temperature": TEMPERATURE, "loss": "cross-entropy"}


def fit_linear(
    features: Mapping[str, TokenMaps],
    truth: TrainingDepths,
    index: np.ndarray,
    *,
    steps: int,
    batch: int,
    seed: int,
    device: str = "cpu",
    rates: Sequence[float] = RATES,
) -> list[DenseHead]:
    """A head for every feature set and rate, by SigLoss + 0.5 gradient loss on the images `index`.

    A step sees a window of each image, as DINOv2's sees a crop, on tokens that were computed with the whole image
    around them. The loss is taken on the head's own grid, with the depth at each cell's centre.
    """
    heads = make_heads(bin_head, features, rates, (DECAY,), seed, device)
    lesson = _Lesson(features, truth, steps, device)
    draws = minibatches(index, min(batch, len(index)), steps, seed)
    fit_heads(heads, lesson.windows(heads, draws, seed), lesson.loss, steps=steps, warmup_share=WARMUP_SHARE)
    return heads


class _Lesson:
    """Windows of tokens with their depths, and the loss, which has to know how far the training is."""

    def __init__(self, features: Mapping[str, TokenMaps], truth: TrainingDepths, steps: int, device: str) -> None:
        self.features, self.truth, self.device = features, truth, device
        self.step, self.warmup = 0, min(SIG_WARMUP_STEPS, steps // 10)
        self.grid = next(iter(features.values())).grid
        self.sides = [min(WINDOW, side + 2) for side in self.grid]

    def windows(
        self, heads: Sequence[DenseHead], draws: Iterable[np.ndarray], seed: int
    ) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """Batches for `fit_heads`: {name: [B, F, w, w]}, depths [B, c, c] of the cells between the outer tokens'
        centres, where upsampling the window is upsampling the map: c = UPSAMPLING (w - 1).

        A window may reach one token over the edge, where the outermost is repeated, as interpolation has it; cells
        beyond the edge have no depth. The draws of a step depend on the seed and the step alone.
        """
        rng = np.random.default_rng(derive("depth windows", seed))
        for self.step, picked in enumerate(draws):  # `loss` reads how far it is
            tokens, pixels = [], []
            for side, window in zip(self.grid, self.sides, strict=True):
                first = rng.integers(-1, side + 2 - window, len(picked))[:, None]  # [B, 1]
                tokens.append((first + np.arange(window)).clip(0, side - 1))  # [B, w]
                cells = UPSAMPLING * first + UPSAMPLING // 2 + np.arange(UPSAMPLING * (window - 1))
                pixels.append((2 * cells + 1) * self.truth.size // (2 * UPSAMPLING * side))  # their centres
            places = (tokens[0][:, :, None] * self.grid[1] + tokens[1][:, None]).reshape(len(picked), -1)
            maps = {}
            for name in {head.features for head in heads if not head.failed}:
                flat = self.features[name].take_places(picked, places, self.device)  # [B, w w, F]
                maps[name] = flat.transpose(1, 2).unflatten(2, self.sides)
            yield maps, self.truth.at(picked, *pixels).to(self.device)

    def loss(self, logits: Tensor, depth_m: Tensor) -> Tensor:
        """Logits [B, K, h, w] of windows against depths of their cells, metres, 0 where none counts."""
        predicted = depth_of(between_centres(logits), self.truth.low, self.truth.high, "linear")
        sig = sig_loss(predicted, depth_m, warming_up=self.step < self.warmup)
        return sig + GRADIENT_WEIGHT * gradient_loss(predicted, depth_m)


def fit_published(
    features: Mapping[str, TokenMaps],
    truth: TrainingDepths,
    index: np.ndarray,
    *,
    steps: int,
    batch: int,
    seed: int,
    device: str = "cpu",
) -> DenseHead:
    """The one head, after its last step. Raises UserError where it diverged."""
    heads = make_heads(
        bin_head, features, (PUBLISHED_RATE * batch / PUBLISHED_BATCH,), (PUBLISHED_DECAY,), seed, device
    )
    fit_heads(
        heads,
        token_batches(heads, features, truth, index=index, steps=steps, batch=batch, seed=seed, device=device),
        partial(_published_loss, low=truth.low, high=truth.high),
        steps=steps,
        warmup_share=0.0,
        final_rate=PUBLISHED_FINAL_RATE,
        optimiser=_sgd,
    )
    if heads[0].failed:
        raise UserError(
            "the published depth head diverged: its learning rate of .5 is too large for these features, which are "
            "taken before the final norm. Use protocol: linear"
        )
    return heads[0]


def _sgd(head: DenseHead) -> torch.optim.Optimizer:
    return torch.optim.SGD(head.module.parameters(), lr=head.rate, weight_decay=head.weight_decay)


def _published_loss(logits: Tensor, depth_m: Tensor, *, low: float, high: float) -> Tensor:
    """Cross-entropy on the head's own grid, each place with the depth at its centre."""
    logits = upsampled(logits)
    down, across = (_centres(inner, outer) for inner, outer in zip(logits.shape[2:], depth_m.shape[1:], strict=True))
    return bin_cross_entropy(logits, depth_m[:, down][:, :, across], low, high)


def _centres(inner: int, outer: int) -> list[int]:
    """Where the centres of `inner` cells lie among `outer` pixels."""
    return [(2 * i + 1) * outer // (2 * inner) for i in range(inner)]


def best_head(heads: Sequence[DenseHead], rmse: Sequence[float]) -> tuple[DenseHead, dict[str, float]]:
    """The head of the smallest held-out RMSE, the first of equals, and what a record keeps of the choice.

    Args:
        rmse: of each head, metres; not finite for one that diverged.

    Raises:
        UserError: none is finite.
    """
    finite = [value if math.isfinite(value) else math.inf for value in rmse]
    best = int(np.argmin(finite))
    if not math.isfinite(finite[best]):
        raise UserError(
            "no depth head can be chosen: all diverged, or no held-out training image has a depth that counts. Look "
            "at the depth maps, or give more images"
        )
    details = {f"held_out_rmse/{h.name}": v for h, v in zip(heads, finite, strict=True) if math.isfinite(v)}
    head, rates = heads[best], [h.rate for h in heads]
    details |= {"held_out_rmse": finite[best], "chosen_lr": head.rate}
    details |= {"chosen_lr_at_edge": float(head.rate in (min(rates), max(rates)))}
    details |= {f"chosen/{name}": float(name == head.features) for name in dict.fromkeys(h.features for h in heads)}
    return head, details
