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
APART = (1, 2, 3)  # cells of the head's grid between which gradients are taken: 4 to 12 px at 16 px patches
Normalisation = Literal["linear", "softmax"]


def bin_head(width: int) -> nn.Module:
    """One linear map of features to bins of depth, [B, F, rows, columns] -> [B, BINS, rows, columns].

    It stands for one on upsampled features: a 1 x 1 convolution and bilinear interpolation commute, since the
    interpolation's weights sum to one; so it is the logits that are upsampled (`upsampled`, `between_centres`), which
    is the same and cheaper wherever there are more features than bins.
    """
    return nn.Conv2d(width, BINS, kernel_size=1)


def upsampled(logits: Tensor) -> Tensor:
    """[B, K, rows, columns] -> [B, K, UPSAMPLING rows, UPSAMPLING columns], bilinearly."""
    down, across = (_upsampling(side, logits) for side in logits.shape[2:])
    return down.T @ (logits @ across)


def between_centres(logits: Tensor) -> Tensor:
    """A window of a map, [B, K, h, w], upsampled as the map would be where the window alone tells that: between the
    centres of its outer places, [B, K, UPSAMPLING (h - 1), UPSAMPLING (w - 1)].
    """
    edge = UPSAMPLING // 2
    down, across = (_upsampling(side, logits)[:, edge:-edge] for side in logits.shape[2:])
    both = torch.kron(down, across)  # [h w, cells]: one product of small windows is quicker than two
    return (logits.flatten(2) @ both).unflatten(2, (down.shape[1], across.shape[1]))


def _upsampling(side: int, like: Tensor) -> Tensor:
    """Linear interpolation as a matrix [side, UPSAMPLING side]: products take a third of F.interpolate's time."""
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
    """Differences of neighbours' log errors over [B, H, W], at several distances (MegaDepth, arXiv 1804.00607).

    Between cells some cells apart in a row or column, both known, summed and divided by the known cells. DINOv2 takes
    pixels 2, 4, 8 and 12 apart; its slices run over the first two axes of [B, 1, H, W], here over rows and columns, as
    is meant.
    """
    known = truth > 0
    if not known.any():
        return predicted.sum() * 0
    error = ((predicted + EPS_M).log() - (truth + EPS_M).log()) * known
    total = predicted.sum() * 0
    for n in APART:
        down = (error[:, n:] - error[:, :-n]).abs() * (known[:, n:] & known[:, :-n])
        across = (error[:, :, n:] - error[:, :, :-n]).abs() * (known[:, :, n:] & known[:, :, :-n])
        total = total + down.sum() + across.sum()
    return total / known.sum()


def bin_cross_entropy(logits: Tensor, truth: Tensor, low: float, high: float) -> Tensor:
    """Cross-entropy of logits [B, K, H, W] with the bin nearest to each known depth of truth [B, H, W], metres."""
    known = truth > 0
    if not known.any():
        return logits.sum() * 0
    place = (truth.clamp(low, high) - low) / (high - low) * (logits.shape[1] - 1)
    return F.cross_entropy(logits.movedim(1, -1)[known], place[known].round().long())
