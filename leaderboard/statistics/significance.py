"""Tests and effect sizes of paired differences. Pure functions of arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from harness.seeds import derive

EXACT = 15  # up to so many pairs every one of the 2^n sign flips is counted
FLIPS = 9_999  # drawn at random beyond
ROUNDING = 1e-9  # relative; sums of the same numbers in another order differ by this much at most


def smallest_p(pairs: int) -> float:
    """The smallest two-sided p that a sign-flip or signed-rank test of so many pairs can give: 2 / 2^n.

    >>> [smallest_p(n) for n in (1, 3, 6)]
    [1.0, 0.25, 0.03125]
    """
    return min(1.0, 2.0 * 0.5**pairs)


def all_signs(pairs: int) -> np.ndarray:
    """Every way to choose signs: [2^n, n] of -1.0 and 1.0."""
    return 1.0 - 2.0 * (np.arange(2**pairs)[:, None] >> np.arange(pairs) & 1)


def sign_flip(differences: np.ndarray, seed: int = 0) -> np.ndarray:
    """Two-sided p of the mean of paired differences, [m, n] -> [m], under flips of their signs (Fisher's test).

    Exact for at most EXACT pairs; FLIPS random flips beyond, the same ones for all m.
    """
    found = np.asarray(differences, dtype=np.float64)
    count = found.shape[1]
    exact = count <= EXACT
    if exact:
        signs = all_signs(count)
    else:
        signs = np.random.default_rng(derive("sign flips", seed, count)).choice((-1.0, 1.0), (FLIPS, count))
    sums, size = signs @ found.T, np.abs(found).sum(axis=1)  # [flips, m], [m]
    extreme = (np.abs(sums) >= np.abs(found.sum(axis=1)) - ROUNDING * size).sum(axis=0)
    return extreme / len(signs) if exact else (1 + extreme) / (1 + FLIPS)


def wilcoxon(differences: Sequence[float] | np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Wilcoxon's signed-rank test: sum of the signed ranks, two-sided p; exact up to EXACT pairs.

    Zeros are left out, ties share ranks. It is the sign-flip test of the signed ranks, which is exact with ties too,
    where tables are not.
    """
    found = np.asarray(differences, dtype=np.float64)
    found = found[found != 0]
    if not len(found):
        return 0.0, 1.0
    ranks = np.sign(found) * stats.rankdata(np.abs(found))
    return float(ranks.sum()), float(sign_flip(ranks[None], seed)[0])


def holm(p: Sequence[float]) -> list[float]:
    """p values adjusted for their family by Holm's step-down procedure (Scandinavian J. Statistics 6, 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(np.asarray(p, dtype=np.float64), kind="stable")
    scaled = np.asarray(p, dtype=np.float64)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted.tolist()


def standardised(differences: Sequence[float] | np.ndarray) -> float | None:
    """Cohen's d_z: mean over sample standard deviation of the differences; None for one, or where they are equal.

    Differences that are all 0 have effect 0.
    """
    found = np.asarray(differences, dtype=np.float64)
    if not found.any():
        return 0.0
    if len(found) < 2:
        return None
    spread = float(found.std(ddof=1))
    return float(found.mean()) / spread if spread > ROUNDING * float(np.abs(found).max()) else None


def superiority(differences: Sequence[float] | np.ndarray) -> float:
    """Share of the pairs whose difference is above 0, ties count half: the probability of superiority."""
    found = np.asarray(differences, dtype=np.float64)
    return float((found > 0).mean() + (found == 0).mean() / 2)
