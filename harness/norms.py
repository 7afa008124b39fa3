"""Numbers about token norms that methods and measurements share. Imports torch only.

All of them work in fp32 whatever the precision of the tokens, and none waits for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

OUTLIER_Z = 5.5  # robust z over which a patch counts as an artifact


def token_norms(tokens: Tensor) -> Tensor:
    """Euclidean norm of each token: [..., N, D] -> fp32 [..., N]."""
    return torch.linalg.vector_norm(tokens.float(), dim=-1)


def norm_quantile(norms: Tensor, quantile: float) -> Tensor:
    """The quantile of each image's norms, without gradient: [B, P] -> [B, 1]."""
    return torch.quantile(norms.detach(), quantile, dim=-1, keepdim=True)


def robust_z(norms: Tensor) -> Tensor:
    """Robust z of each norm within its image: .6745 (n - median) / MAD, [B, P] -> [B, P].

    The median of an even number of norms is the mean of the middle two. Where more than half of an image's
    norms are equal the MAD is 0: equal norms have z = 0, others z = +-inf.
    """
    norms = norms.detach()
    deviation = norms - torch.quantile(norms, 0.5, dim=-1, keepdim=True)
    mad = torch.quantile(deviation.abs(), 0.5, dim=-1, keepdim=True)
    return torch.where(deviation == 0, deviation, 0.6745 * deviation / mad)


def clip_norms(tokens: Tensor, quantile: float) -> Tensor:
    """Each token scaled by min(1, q / norm), q its image's quantile of norms: [B, P, D] -> [B, P, D]."""
    norms = token_norms(tokens)  # [B, P]
    limit = norm_quantile(norms, quantile)  # [B, 1]
    scale = torch.where(norms > limit, limit / norms, 1.0)  # a zero token is never over the limit
    return tokens * scale.unsqueeze(-1)


def over_median(norms: Tensor, quantile: float) -> Tensor:
    """The quantile of each image's norms over their median, [B, P] -> [B]; quantile 1 is the largest norm.

    Where the median is 0 or negligible it counts as fp32's resolution of the largest norm, so that the ratio
    stays finite (at most about 8e6); where all norms are 0 it is 1, as of any equal norms.
    """
    norms = norms.detach()
    top, median = torch.quantile(norms, quantile, dim=-1), torch.quantile(norms, 0.5, dim=-1)
    least = torch.finfo(norms.dtype).eps * norms.amax(dim=-1)
    return torch.where(norms.amax(dim=-1) == 0, 1.0, top / torch.maximum(median, least))


def outliers(norms: Tensor) -> Tensor:
    """Which of each image's norms have a robust z over `OUTLIER_Z`: [B, P] -> bool [B, P], at most half of them.

    Where more than half of an image's norms are equal, every larger one counts.
    """
    return robust_z(norms) > OUTLIER_Z


def outlier_share(norms: Tensor) -> Tensor:
    """Share of each image's norms that are `outliers`: [B, P] -> [B], in [0, 1]."""
    return outliers(norms).float().mean(dim=-1)


def outlier_energy(norms: Tensor) -> Tensor:
    """Share of each image's sum of squared norms that falls on `outliers`: [B, P] -> [B], in [0, 1]."""
    squared = norms.detach().square()
    total = squared.sum(dim=-1)
    return torch.where(total > 0, (squared * outliers(norms)).sum(dim=-1) / total, 0.0)
