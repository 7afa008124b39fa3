"""A linear surrogate of a block's MLP by least squares on real tokens, for MLPs that are no product of two matrices.

A gated MLP (GluMlp of DINOv2 giant, SwiGLU of DINOv3 plus) computes act(z A) * (z B) C, for which the published
surrogate fc2 fc1 is not defined (arXiv 2509.20986 knows plain MLPs only). Instead the map that fits best is taken:

    W = argmin sum |a - mean(a) - (z - mean(z)) W|^2 + ridge |W|^2

z: a patch as the block's MLP is given it, behind the norm. a: what the MLP branch adds to the token, gamma mlp(z).
So W stands where (diag(gamma) fc2 fc1)^T stands, in the same units, and is equal to it, up to the ridge, where the
MLP is linear. Means are taken out, as biases are left out of the product.

ridge = RIDGE times the mean variance of a coordinate of z. It is there because a LayerNorm takes one direction out
of z, so that the covariance is singular to rounding, and is far too small to bend anything that the tokens vary in.
In that one direction, which no MLP behind a LayerNorm ever sees, W is 0.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from harness.api import Calibration, Vit
from harness.errors import UserError
from singer.null_space import is_plain_mlp, mlp_layer_scale

RIDGE = 1e-8  # tokens are fp32: rounding leaves about 1e-14 of a variance where the norm leaves none


def surrogate_kind(block: nn.Module, wanted: str) -> Literal["product", "least_squares"]:
    """How the surrogate of `block` is found: as wanted, or for "auto" the product wherever it is defined."""
    if wanted == "product" or (wanted == "auto" and is_plain_mlp(block)):
        return "product"
    if not isinstance(getattr(block, "mlp", None), nn.Module):
        raise ValueError(
            f"{type(block).__name__} has no part `mlp`, so SiNGER has no surrogate for it; use basis='random', or "
            "a teacher whose blocks have one"
        )
    return "least_squares"


class Regression:
    """Sums of a linear regression with an intercept, in float64 on the CPU, so that all rows need not be kept.

    Args:
        dim: D, of what predicts and of what is predicted.
    """

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.x, self.y = (torch.zeros(dim, dtype=torch.float64) for _ in range(2))  # sums, [D]
        self.xx, self.xy = (torch.zeros(dim, dim, dtype=torch.float64) for _ in range(2))  # sums of products, [D, D]

    def add(self, x: Tensor, y: Tensor) -> None:
        """Rows that predict and rows that are to be predicted: [..., D] twice."""
        x, y = (rows.detach().cpu().double().flatten(0, -2) for rows in (x, y))  # [n, D]
        self.count += len(x)
        self.x += x.sum(dim=0)
        self.y += y.sum(dim=0)
        self.xx += x.T @ x
        self.xy += x.T @ y

    def solve(self) -> Tensor:
        """W, [D, D] float64, with y ~ x W but for a constant.

        Raises:
            ValueError: no more rows than columns, so that W is not determined.
        """
        dim = len(self.x)
        if self.count <= dim:
            raise ValueError(f"{self.count} patches do not determine a linear map of {dim} x {dim}")
        variance = self.xx - torch.outer(self.x, self.x) / self.count  # [D, D]
        covariance = self.xy - torch.outer(self.x, self.y) / self.count  # [D, D]
        ridge = RIDGE * variance.diagonal().mean() * torch.eye(dim, dtype=torch.float64)
        return torch.linalg.solve(variance + ridge, covariance)


def least_squares_surrogates(
    teacher: Vit, blocks: Sequence[int], calibration: Calibration, images: int, layer_scale: bool = True
) -> dict[int, Tensor]:
    """W of each of `blocks`, [D, D] float64 on the CPU, from the teacher's patches on `images` training images.

    Raises:
        UserError: block 0, whose input is no block's output; or too few images for the teacher's width.
    """
    if 0 in blocks:
        raise UserError(
            "the least-squares surrogate of block 0 needs its input, and only what comes out of blocks can be read; "
            "use a teacher of two or more blocks, or basis='random'"
        )
    found = {block: Regression(teacher.dim) for block in blocks}
    with torch.no_grad():
        for outputs in calibration.outputs(images, sorted({block - 1 for block in blocks})):
            prefix = outputs.num_prefix_tokens
            for block, regression in found.items():
                seen, added, _ = through_mlp(teacher, block, outputs.tokens[block - 1], layer_scale)
                regression.add(seen[:, prefix:], added[:, prefix:])
    try:
        return {block: regression.solve() for block, regression in found.items()}
    except ValueError as error:
        patches = math.prod(teacher.grid)
        least = math.ceil((teacher.dim + 1) / patches)
        raise UserError(
            f"images={images} is too few for the least-squares surrogate: {error}; give images={least} or more "
            f"({patches} patches each)"
        ) from error


def through_mlp(teacher: Vit, layer: int, tokens: Tensor, layer_scale: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens [B, N, D] through a block: what its MLP is given, what its MLP branch adds, what the block gives.

    Returns [B, N, D] three times. Without `layer_scale` the branch is taken before LayerScale.
    """
    block = teacher.block(layer)
    with _caught(block.mlp) as caught:  # type: ignore[arg-type]
        after = teacher.through(layer, tokens)
    seen, added = caught[-1]
    gamma = mlp_layer_scale(block) if layer_scale else None
    return seen, added if gamma is None else added * gamma, after


@contextlib.contextmanager
def _caught(module: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Input and output of every call of a module meanwhile; the module is as before afterwards."""
    calls: list[tuple[Tensor, Tensor]] = []

    def note(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        calls.append((args[0], output))

    hook = module.register_forward_hook(note)
    try:
        yield calls
    finally:
        hook.remove()
