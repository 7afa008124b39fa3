"""The linear head on depth bins, and what it is trained by: SigLoss with a gradient loss, or cross-entropy on bins."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BINS = 256
UPSAMPLING = 4  # of the features, before the head
FLOOR = 0.1  # added to every bin by the linear normalisation, DINOv2's
TEMPERATURE = 0.03  # of the softmax, SiNGER's evaluation code
EPS_M = 0.001  # metres added before a logarithm, DINOv2's
SIG_LAMBDA = 0.15  # weight of the squared mean in SigLoss, AdaBins' (arXiv 2011.14141)
GRADIENT_WEIGHT = 0.5
STRIDES = (1, 2, 4, 6)  # of the gradient loss, DINOv2's
Normalisation = Literal["linear", "softmax"]


class BinHead(nn.Module):
    """One linear map to bins of depth, on upsampled features.

    A 1 x 1 convolution and bilinear interpolation commute, since the interpolation's weights sum to one; so it is the
    logits that are upsampled, which is the same and cheaper wherever there are more features than bins.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Conv2d(width, BINS, kernel_size=1)

    def forward(self, features: Tensor) -> Tensor:
        """[B, F, rows, columns] -> logits [B, BINS, UPSAMPLING rows, UPSAMPLING columns]."""
        logits = self.linear(features)  # [B, K, rows, columns]
        down, across = (_upsampling(side, logits) for side in logits.shape[2:])
        return down.T @ (logits @ across)


def _upsampling(side: int, like: Tensor) -> Tensor:
    """Linear interpolation as a matrix [side, UPSAMPLING side]: two products take a third of F.interpolate's time."""
    eye = torch.eye(side, device=like.device, dtype=like.dtype)
    return F.interpolate(eye[None], scale_factor=UPSAMPLING, mode="linear", align_corners=False)[0]


def depth_of(logits: Tensor, low: float, high: float, how: Normalisation) -> Tensor:
    """Expected depth [B, H, W] in metres of logits [B, K, H, W] over K values evenly spaced from low to high.

    "linear": a bin's share is relu(logit) + 0.1, divided by the sum (AdaBins, as DINOv2 has it). "softmax": at
    temperature 0.03.
    """
    bins = torch.linspace(low, high, logits.shape[1], device=logits.device, dtype=logits.dtype)
    shares = F.relu(logits) if how == "linear" else (logits / TEMPERATURE).softmax(dim=1)
    floor = FLOOR if how == "linear" else 0.0
    # Both sums in one product; what the floor adds to them is known without writing it down for every pixel.
    sums = torch.stack([bins, torch.ones_like(bins)]) @ shares.flatten(2)  # [B, 2, H W]
    depth = (sums[:, 0] + floor * bins.sum()) / (sums[:, 1] + floor * len(bins))
    return depth.unflatten(1, logits.shape[2:])


def resized(depth_m: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, H, W] -> [B, *size], bilinearly."""
    return F.interpolate(depth_m[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def sig_loss(predicted: Tensor, truth: Tensor, warming_up: bool = False) -> Tensor:
    """Scale-invariant loss over all known pixels of a batch [B, H, W], metres; truth is 0 where unknown.

    sqrt(var(g) + 0.15 mean(g)^2), g = ln predicted - ln truth (Eigen et al., arXiv 1406.2283; AdaBins). While warming
    up the mean alone, so that the scale is found first. A batch without a known pixel gives 0.
    """
    known = truth > 0
    if not known.any():
        return predicted.sum() * 0
    g = (predicted[known] + EPS_M).log() - (truth[known] + EPS_M).log()  # [n]
    squared = SIG_LAMBDA * g.mean().square()
    if not warming_up:
        squared = squared + g.var(correction=0)
    return (squared + 1e-12).sqrt()  # the root has no gradient at 0


def gradient_loss(predicted: Tensor, truth: Tensor) -> Tensor:
    """Differences of neighbours' log errors over [B, H, W], at several strides (MegaDepth, arXiv 1804.00607).

    Between pixels two apart in a row or column, both known, summed and divided by the known pixels, as DINOv2 has it;
    there the slices run over the first two axes of [B, 1, H, W], here over rows and columns, as is meant.
    """
    total = predicted.sum() * 0
    for stride in STRIDES:
        p, t = predicted[:, ::stride, ::stride], truth[:, ::stride, ::stride]
        known = t > 0
        if not known.any():
            continue
        error = ((p + EPS_M).log() - (t + EPS_M).log()) * known
        down = (error[:, 2:] - error[:, :-2]).abs() * (known[:, 2:] & known[:, :-2])
        across = (error[:, :, 2:] - error[:, :, :-2]).abs() * (known[:, :, 2:] & known[:, :, :-2])
        total = total + (down.sum() + across.sum()) / known.sum()
    return total


def bin_cross_entropy(logits: Tensor, truth: Tensor, low: float, high: float) -> Tensor:
    """Cross-entropy of logits [B, K, H, W] with the bin nearest to each known depth of truth [B, H, W], metres."""
    known = truth > 0
    if not known.any():
        return logits.sum() * 0
    place = (truth.clamp(low, high) - low) / (high - low) * (logits.shape[1] - 1)
    return F.cross_entropy(logits.movedim(1, -1)[known], place[known].round().long())
