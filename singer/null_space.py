"""Where a refiner may move a token without the next block noticing: a linear surrogate and its null space.

The surrogate keeps only the two linear maps of a block's MLP; the LayerNorm before it, biases, activation,
attention and the residual are left out, as in the method's published form (arXiv 2509.20986). What is defined for
gated MLPs is in `singer.least_squares`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclasses.dataclass(frozen=True)
class Basis:
    """A refiner's first directions and where they came from.

    Attributes:
        vectors: N, [r, D] float32, rows of unit norm.
        below_threshold: how many of the surrogate's D singular values lie under the threshold.
        from_null_space: how many rows of N are singular vectors under the threshold.
        random_padding: how many rows of N are random. The rest are singular vectors over the threshold.
        smallest, largest: of all D singular values.

    A random basis knows no surrogate: `below_threshold`, `smallest` and `largest` are None.
    """

    vectors: Tensor
    from_null_space: int
    random_padding: int
    below_threshold: int | None = None
    smallest: float | None = None
    largest: float | None = None

    def report(self) -> dict[str, Any]:
        """All but the vectors, as plain values."""
        return {
            "from_null_space": self.from_null_space,
            "random_padding": self.random_padding,
            "singular_values_below_threshold": self.below_threshold,
            "smallest_singular_value": self.smallest,
            "largest_singular_value": self.largest,
        }


def surrogate(block: nn.Module, layer_scale: bool = True) -> Tensor:
    """W with x W ~ what the block's MLP adds to a token x: (diag(gamma) fc2 fc1)^T, [D, D] float64 on the CPU.

    Args:
        block: a transformer block whose `mlp` is Linear, activation, Linear (`fc1`, `fc2`).
        layer_scale: whether to take the MLP's LayerScale gamma in, where the block has one. The published
            form leaves it out.

    Raises:
        ValueError: the MLP is gated (GluMlp, SwiGLU) or of another form, so fc2 fc1 is not defined.
    """
    mlp: Any = getattr(block, "mlp", None)
    if not is_plain_mlp(block):
        raise ValueError(
            f"the MLP of {type(block).__name__} is a {type(mlp).__name__}; the product fc2 fc1 is defined for a plain "
            "Mlp only. Use surrogate='least_squares' (or 'auto'), or basis='random'"
        )
    product = _exact(mlp.fc2.weight) @ _exact(mlp.fc1.weight)  # [D, D]
    gamma = mlp_layer_scale(block) if layer_scale else None
    if gamma is not None:
        product = _exact(gamma).unsqueeze(1) * product
    return product.T


def is_plain_mlp(block: nn.Module) -> bool:
    """Whether the block's `mlp` is Linear, activation, Linear, so that fc2 fc1 is defined."""
    mlp = getattr(block, "mlp", None)
    fc1, fc2 = getattr(mlp, "fc1", None), getattr(mlp, "fc2", None)
    return isinstance(fc1, nn.Linear) and isinstance(fc2, nn.Linear) and fc2.in_features == fc1.out_features


def mlp_layer_scale(block: nn.Module) -> Tensor | None:
    """The LayerScale gamma [D] of the block's MLP, or None: `ls2.gamma` in timm's ViT, `gamma_2` in its Eva."""
    of_eva = getattr(block, "gamma_2", None)
    return getattr(getattr(block, "ls2", None), "gamma", None) if of_eva is None else of_eva


def null_space_basis(weight: Tensor, rank: int, threshold: float) -> Basis:
    """The published code's choice: the first `rank` left singular vectors whose singular value is < threshold.

    Singular values descend, so these are the largest of those under the threshold. Where there are fewer,
    random unit rows fill up.

    Args:
        weight: W, [D, D]. rank: r. threshold: absolute, in the units of the singular values.
    """
    vectors, values = left_singular(weight)
    below = values < threshold
    found = vectors.T[below][:rank]  # [<= r, D]
    padding = rank - len(found)
    rows = torch.cat([found.float(), random_rows(padding, weight.shape[0])])
    return Basis(rows, len(found), padding, int(below.sum()), float(values[-1]), float(values[0]))


def smallest_basis(weight: Tensor, rank: int, threshold: float) -> Basis:
    """The paper's choice: the `rank` left singular vectors with the smallest singular values.

    `threshold` only counts how many of them the other choice would have accepted.
    """
    vectors, values = left_singular(weight)
    below = values < threshold
    rows = vectors.T[-rank:].float()
    return Basis(rows, int(below[-rank:].sum()), 0, int(below.sum()), float(values[-1]), float(values[0]))


def random_basis(dim: int, rank: int) -> Basis:
    """The ablation: `rank` random directions, whatever the next block does."""
    return Basis(random_rows(rank, dim), from_null_space=0, random_padding=rank)


def random_rows(count: int, dim: int) -> Tensor:
    """`count` random directions from torch's global generator: [count, dim] float32, rows of unit norm."""
    return F.normalize(torch.randn(count, dim, device="cpu"), dim=1)


def _exact(tensor: Tensor) -> Tensor:
    """float64 on the CPU, so that a GPU and a laptop find the same basis."""
    return tensor.detach().cpu().double()


def left_singular(weight: Tensor) -> tuple[Tensor, Tensor]:
    """U [D, D], its columns the left singular vectors, and the singular values [D], descending."""
    vectors, values, _ = torch.linalg.svd(weight.double())
    return vectors, values
