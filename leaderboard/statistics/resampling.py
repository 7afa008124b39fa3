"""Resamples of seeds and test items: bootstrap intervals, and tests that swap two methods' answers item by item.

What is added up over items (see `harness.items`) of many students is multiplied by the same resamples at once, so that
all comparisons of a column share them: that is fast, and pairs them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from scipy import stats

from harness.seeds import derive
from leaderboard.statistics.significance import EXACT, all_signs

RESAMPLES = 2_000
SWAPS = 1_000
LEAST_SEEDS = 3  # fewer say nothing about training again
FEW = 10  # with fewer extreme swaps than so many the normal tail is the better estimate ...
DIFFERING = 30  # ... where at least so many items differ
UNDEFINED = 0.05  # share of resamples without a number beyond which there is no interval
_AT_ONCE = 1 << 24  # entries of a resample matrix that are float32 at once


@dataclasses.dataclass(frozen=True)
class Sums:
    """Of one student's terms: over all items [K], over each resample [B, K], over each set of swapped items [R, K]."""

    whole: np.ndarray
    resampled: np.ndarray
    swapped: np.ndarray


class ItemDraws:
    """Resamples and swaps of n items, the same for whoever asks with the same seed.

    Attributes:
        counts: [B, n] uint8, how often each item is in a resample. swaps: [R, n] uint8, which items are swapped; every
        way to do it where there are few items. exact: whether it is every way.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.exact = count, count <= EXACT
        rng = np.random.default_rng(derive("items", seed, count))
        self.counts = np.empty((RESAMPLES, count), dtype=np.uint8)
        for rows in _parts(RESAMPLES, count):
            many = len(range(*rows.indices(RESAMPLES)))
            drawn = rng.integers(0, count, (many, count)) + np.arange(many)[:, None] * count
            found = np.bincount(drawn.ravel(), minlength=many * count)
            self.counts[rows] = found.reshape(many, count).clip(max=255)
        if self.exact:
            self.swaps = (all_signs(count) < 0).astype(np.uint8)
        else:
            self.swaps = rng.integers(0, 2, (SWAPS, count), dtype=np.uint8)

    def sums(self, terms: Sequence[np.ndarray]) -> list[Sums]:
        """Of several students' terms, [n, K] each."""
        side_by_side = np.concatenate(terms, axis=1).astype(np.float32)
        ends = np.cumsum([part.shape[1] for part in terms])[:-1]
        resampled, swapped = (
            np.split(_multiplied(matrix, side_by_side), ends, axis=1) for matrix in (self.counts, self.swaps)
        )
        whole = [part.sum(axis=0) for part in terms]
        return [Sums(*parts) for parts in zip(whole, resampled, swapped, strict=True)]


def _parts(rows: int, wide: int) -> list[slice]:
    step = max(1, _AT_ONCE // max(1, wide))
    return [slice(start, min(rows, start + step)) for start in range(0, rows, step)]


def _multiplied(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """uint8 [R, n] times float32 [n, K], a piece of the rows at a time: float64 [R, K]."""
    pieces = [matrix[rows].astype(np.float32) @ right for rows in _parts(*matrix.shape)]
    return np.concatenate(pieces).astype(np.float64)


@functools.cache
def seed_weights(seeds: int, seed: int) -> np.ndarray:
    """Share of each seed in each resample of them, [B, s]; equal shares where they are too few to be resampled."""
    if seeds < LEAST_SEEDS:
        return np.full((RESAMPLES, seeds), 1.0 / seeds)
    rng = np.random.default_rng(derive("seeds", seed, seeds))
    return rng.multinomial(seeds, np.full(seeds, 1.0 / seeds), RESAMPLES) / seeds


def percentiles(draws: np.ndarray, level: float, size: int) -> np.ndarray | None:
    """Ends of the bootstrap interval of confidence 1 - level: [B] or [B, m] -> [2] or [2, m].

    Percentiles are widened as for a Student t of `size` units that were resampled, without which intervals of small
    samples are too narrow (Hesterberg, arXiv 1411.5279, section 5.3). None where too many draws have no number.
    """
    undefined = np.isnan(draws)
    if undefined.mean() > UNDEFINED:
        return None
    tail = stats.norm.cdf(-np.sqrt(size / (size - 1)) * stats.t.ppf(1 - level / 2, size - 1))
    if undefined.any():
        return np.nanquantile(draws, (tail, 1 - tail), axis=0)
    return np.quantile(draws, (tail, 1 - tail), axis=0)


def swap_p(observed: float, swapped: np.ndarray, exact: bool, differing: int) -> float | None:
    """Two-sided p of a difference [] among those with items swapped [R]; None where there is no number.

    Where hardly any of the random swaps is as extreme, and enough items differ, the tail is a normal's with the swaps'
    own spread: a thousand swaps cannot tell one in a million.
    """
    defined = swapped[~np.isnan(swapped)]
    if not len(defined) or np.isnan(observed):
        return None
    extreme = int((np.abs(defined) >= abs(observed) * (1 - 1e-6)).sum())
    if exact:
        return extreme / len(defined)
    p = (1 + extreme) / (1 + len(defined))
    spread = float(np.sqrt(np.square(defined).mean()))
    if extreme < FEW and differing >= DIFFERING and spread > 0:
        return min(p, float(2 * stats.norm.sf(abs(observed) / spread)))
    return p
