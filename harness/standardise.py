"""Linear standardisations of tokens: statistics of a layer -> a shift and a matrix. Imports torch only.

x' = (x - shift) @ matrix.T, `standardised`. `channel` gives every channel the variance 1 and changes the shape of
the space; `phi_s` (PHI-S, Ranzinger et al. 2024, arXiv 2410.01680) gives every channel the same variance by a
rotation and one scale, so that distances and angles are kept. Everything here works in float64 on the CPU and is
meant to be computed once.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

EMPTY = 1e-12  # a variance below this share of the mean one is none: rounding, not data


class Moments:
    """Mean and covariance of tokens that come in batches, in float64; the order changes no more than rounding.

    Batches are merged around their own means (Chan, Golub and LeVeque 1979), so that a mean far larger than the
    spread costs no digits.
    """

    def __init__(self, dim: int) -> None:
        self.dim, self.count = dim, 0
        self._mean = torch.zeros(dim, dtype=torch.float64)
        self._scatter = torch.zeros(dim, dim, dtype=torch.float64)  # sum of (x - mean) (x - mean)^T

    def add(self, tokens: Tensor) -> None:
        """Tokens [..., D] of any precision and device."""
        rows = tokens.detach().reshape(-1, self.dim).double()  # [n, D]
        if not len(rows):
            return
        mean = rows.mean(dim=0)
        centred = rows - mean
        scatter, mean = (centred.T @ centred).cpu(), mean.cpu()
        step, total = mean - self._mean, self.count + len(rows)
        self._scatter += scatter + torch.outer(step, step) * (self.count * len(rows) / total)
        self._mean += step * (len(rows) / total)
        self.count = total

    @property
    def mean(self) -> Tensor:
        """[D]. Raises ValueError before the first token."""
        self._need(1)
        return self._mean.clone()

    @property
    def covariance(self) -> Tensor:
        """[D, D], over the number of tokens. Raises ValueError before the second token."""
        self._need(2)
        return self._scatter / self.count

    def _need(self, tokens: int) -> None:
        if self.count < tokens:
            raise ValueError(f"statistics of {self.count} tokens do not exist; give at least {tokens}")


def standardised(tokens: Tensor, shift: Tensor, matrix: Tensor) -> Tensor:
    """(x - shift) @ matrix.T in fp32, under autocast too: [..., D], [D], [D, D] -> [..., D].

    Massive activations make a token's norm hundreds of times its neighbours'; in bf16 they would drown the rest.
    """
    with torch.autocast(tokens.device.type, enabled=False):
        return (tokens.float() - shift.float()) @ matrix.float().T


def channel(mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Every channel for itself: zero mean, variance 1. [D], [D, D] -> shift [D], diagonal matrix [D, D].

    A channel that does not vary becomes 0.

    Raises:
        ValueError: no channel varies.
    """
    variance = covariance.double().diagonal()  # [D]
    varies = variance > EMPTY * _mean_variance(variance)
    scale = torch.where(varies, variance.where(varies, torch.ones_like(variance)).rsqrt(), 0.0)
    return mean.double(), torch.diag(scale)


def phi_s(mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """PHI-S: (1 / phi) H U^T, C = U Lambda U^T, phi = sqrt(mean Lambda). [D], [D, D] -> shift [D], matrix [D, D].

    Rows of H hold only +-1 / sqrt(D), so every channel of H U^T (x - mean) has the variance mean(Lambda). The
    sign of an eigenvector is free; its largest entry is made positive, so that the matrix is always the same one.

    Raises:
        ValueError: no Hadamard matrix of order D is known here (`hadamard`), or no channel varies.
    """
    values, vectors = torch.linalg.eigh(covariance.double())  # ascending [D], columns of [D, D]
    largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))  # [1, D]
    rotation = hadamard(len(values)).to(vectors.device) @ (vectors * largest.sign()).T  # [D, D]
    return mean.double(), rotation / _mean_variance(values).sqrt()


def _mean_variance(variances: Tensor) -> Tensor:
    mean = variances.mean()
    if not mean > 0:
        raise ValueError(f"these tokens do not vary (mean variance {mean.item():g}): there is nothing to standardise")
    return mean


def hadamard(n: int) -> Tensor:
    """An orthonormal Hadamard matrix, [n, n] in float64: entries +-1 / sqrt(n), H H^T = I.

    Sylvester's doubling, Paley's two constructions over the primes, and Kronecker products of those: all powers
    of two, and all widths of timm's ViTs (192, 384, 768, 1152, 1280, 1408, 1536, 1664, ...).

    Raises:
        ValueError: no such matrix is known here; names the nearest orders that are.
    """
    signs = _signs(n) if n > 0 else None
    if signs is None:
        lower = next((m for m in range(n - 1, 0, -1) if _signs(m) is not None), 1)
        upper = next(m for m in range(max(n, 0) + 1, 2 * max(n, 1) + 2) if _signs(m) is not None)
        raise ValueError(
            f"no Hadamard matrix of order {n} is known here (orders are 1, 2 and multiples of 4); the nearest are "
            f"{lower} and {upper}. Take a model of another width, or a standardisation that needs none"
        )
    return signs / n**0.5


@functools.cache
def _signs(n: int) -> Tensor | None:
    """A Hadamard matrix of +-1, or None where none of the constructions gives one."""
    if n == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    if n != 2 and n % 4:
        return None
    if (half := _signs(n // 2)) is not None:
        return torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), half)
    if _prime(n - 1):  # n is a multiple of 4, so n - 1 = 3 mod 4
        return _paley(n - 1)
    if n // 2 % 4 == 2 and _prime(n // 2 - 1):  # 1 mod 4
        return _paley(n // 2 - 1)
    for part in range(4, int(n**0.5) + 1, 4):
        if n % part == 0 and (one := _signs(part)) is not None and (other := _signs(n // part)) is not None:
            return torch.kron(one, other)
    return None


def _prime(q: int) -> bool:
    return q > 1 and all(q % d for d in range(2, int(q**0.5) + 1))


def _paley(q: int) -> Tensor:
    """Paley's matrix of an odd prime q: order q + 1 where q = 3 mod 4 (I + S), 2 (q + 1) where q = 1 mod 4."""
    squares = {x * x % q for x in range(1, q)}
    symbol = torch.tensor([0.0] + [1.0 if x in squares else -1.0 for x in range(1, q)], dtype=torch.float64)
    steps = torch.arange(q)
    core = torch.ones(q + 1, q + 1, dtype=torch.float64)  # the conference matrix S
    core[0, 0] = 0
    core[1:, 1:] = symbol[(steps[:, None] - steps) % q]
    eye = torch.eye(q + 1, dtype=torch.float64)
    if q % 4 == 3:
        core[1:, 0] = -1  # skew: S + S^T = 0
        return eye + core
    one = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    other = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
    return torch.kron(core, one) + torch.kron(eye, other)
