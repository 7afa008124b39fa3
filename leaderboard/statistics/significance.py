"""Tests and effect sizes of paired differences. Pure functions of arrays."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from scipy import stats
from scipy.fft import next_fast_len

from harness.seeds import derive

EXACT = 30  # up to so many pairs every one of the 2^n sign flips is counted
FLIPS = 9_999  # drawn at random beyond
_NOTHING = 1e-25
TINY = 1e-12  # probabilities that are made by a Fourier transform are right to about so much
ROUNDING = 1e-9  # relative; sums of the same numbers in another order differ by this much at most


def smallest_p(pairs: int) -> float:
    """The smallest two-sided p that a sign-flip or signed-rank test of so many pairs can give: 2 / 2^n.

    Where flips are drawn at random it is that of one in all that are drawn.

    >>> [smallest_p(n) for n in (1, 3, 6, 40)]
    [1.0, 0.25, 0.03125, 0.0001]
    """
    return min(1.0, 2.0 * 0.5**pairs) if pairs <= EXACT else 1 / (1 + FLIPS)


@functools.cache
def all_signs(pairs: int) -> np.ndarray:
    """Every way to choose signs: [2^n, n] of -1.0 and 1.0; not to be written to."""
    signs = 1.0 - 2.0 * (np.arange(2**pairs)[:, None] >> np.arange(pairs) & 1)
    signs.flags.writeable = False
    return signs


def sign_flip(differences: np.ndarray, seed: int = 0) -> np.ndarray:
    """Two-sided p of the mean of paired differences, [m, n] -> [m], under flips of their signs (Fisher's test).

    Exact for at most EXACT pairs; FLIPS random flips beyond, the same ones for all m.
    """
    found = np.asarray(differences, dtype=np.float64)
    count = found.shape[1]
    least = np.abs(found.sum(axis=1)) - ROUNDING * np.abs(found).sum(axis=1)  # [m], what is as extreme
    if count <= EXACT:
        first, second = all_signs(count // 2), all_signs(count - count // 2)
        halves = zip(found[:, : count // 2] @ first.T, found[:, count // 2 :] @ second.T, least, strict=True)
        return np.array([_as_extreme(*half) for half in halves]) / 2.0**count
    signs = np.random.default_rng(derive("sign flips", seed, count)).choice((-1.0, 1.0), (FLIPS, count))
    return (1 + (np.abs(signs @ found.T) >= least).sum(axis=0)) / (1 + FLIPS)


def _as_extreme(one: np.ndarray, other: np.ndarray, least: float) -> float:
    """Of all sums of a number of each, how many are at least `least` away from 0.

    So the 2^n flips of n numbers are counted by the 2^(n/2) of each half.
    """
    if least <= 0:
        return float(len(one) * len(other))
    ordered = np.sort(other)
    above = len(ordered) - np.searchsorted(ordered, least - one, side="left")
    return float((above + np.searchsorted(ordered, -least - one, side="right")).sum())


def sign_flip_of_counts(differences: np.ndarray) -> float:
    """`sign_flip` of whole numbers [n], exact for any n: that of right and wrong answers.

    With differences of -1, 0 and 1 it is McNemar's exact test. The sum of the flips is 2 U - S, where S is the sum of
    the sizes and U adds each size with chance 1/2; the chances of U are made of its characteristic function. What is
    below TINY is given as TINY.
    """
    sizes = np.bincount(np.abs(np.asarray(differences, dtype=np.int64)))
    total, most = abs(int(np.sum(differences, dtype=np.int64))), int(sizes @ np.arange(len(sizes)))
    if total == 0:
        return 1.0
    length = int(next_fast_len(most + 1, real=True))  # type: ignore[arg-type]
    turns = np.arange(length // 2 + 1)  # of the characteristic function; where it has become nothing it is left out
    values = np.ones(len(turns))
    for size in np.argsort(-sizes[1:], kind="stable") + 1:
        values *= np.cos(np.pi / length * (turns * size % (2 * length))) ** int(sizes[size])
        alive = np.abs(values) > _NOTHING
        turns, values = turns[alive], values[alive]
    spectrum = np.zeros(length // 2 + 1, dtype=np.complex128)
    spectrum[turns] = values * np.exp(-1j * np.pi / length * (turns * most % (2 * length)))
    tail = float(np.fft.irfft(spectrum, length)[(most + total) // 2 : most + 1].sum())
    return min(1.0, max(2 * tail, TINY, 2 * 0.5 ** min(1000, int(sizes[1:].sum()))))


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
