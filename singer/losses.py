"""SiNGER's two losses on refined tokens, as functions of tensors alone (arXiv 2509.20986)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from harness.norms import norm_quantile, token_norms


def outlier_loss(patches: Tensor, quantile: float, power: int) -> Tensor:
    """L_outlier: the mean over all outliers of the batch of (n - q)^power.

    n is a patch's norm, q its image's quantile of norms (detached), and the outliers are the patches with
    n > q. Without any (all norms of each image equal) it is 0, with a gradient of 0.

    Args:
        patches: refined patch tokens, [B, P, D]. power: 2 as the published code has it, 1 as the paper.
    """
    norms = token_norms(patches)  # [B, P]
    excess = F.relu(norms - norm_quantile(norms, quantile))  # [B, P], 0 wherever n <= q
    outliers = (excess > 0).sum().clamp(min=1)
    return excess.pow(power).sum() / outliers


def gram(patches: Tensor) -> Tensor:
    """Cosine between every two patches of an image, in fp32: [B, P, D] -> [B, P, P]."""
    with torch.autocast(patches.device.type, enabled=False):  # bf16 products would drown small differences
        rows = F.normalize(patches.float(), dim=-1)
        return rows @ rows.transpose(1, 2)


def gram_loss(patches: Tensor, other: Tensor) -> Tensor:
    """Mean squared difference of two Gram matrices: [B, P, D], [B, P, D'] -> scalar."""
    return F.mse_loss(gram(patches), gram(other))


def feature_loss(tokens: Tensor, other: Tensor) -> Tensor:
    """Mean squared difference of tokens, in fp32: [B, N, D] twice -> scalar."""
    return F.mse_loss(tokens.float(), other.float())


@torch.no_grad()
def norms_seen(raw: Tensor, refined: Tensor, layer: int) -> dict[str, Tensor]:
    """Largest and median patch norm of a batch, raw and refined, by the name they have in a log.

    Args:
        raw, refined: patch tokens after `layer`, [B, P, D].
    """
    found = {}
    for name, patches in (("raw", raw), ("refined", refined)):
        norms = token_norms(patches)  # [B, P]
        found[f"{name}_max/{layer}"] = norms.amax()
        found[f"{name}_median/{layer}"] = norms.median()
    return found
