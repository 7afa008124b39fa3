"""Resamples of seeds and test items: bootstrap intervals, and tests that swap two methods' answers item by item.

What is added up over items (see `harness.items`) of many students is multiplied by the same resamples at once, so that
all comparisons of a column share them: that is fast, and pairs them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from harness.seeds import derive
from leaderboard.statistics.significance import all_signs

RESAMPLES = 2_000
SWAPS = 1_000
EVERY = 15  # up to so many items every one of the 2^n ways to swap them is counted
LEAST_SEEDS = 3  # fewer say nothing about training again
FEW = 10  # with fewer extreme swaps than so many the normal tail is the better estimate ...
DIFFERING = 30  # ... where at least so many items differ
UNDEFINED = 0.05  # share of resamples without a number beyond which there is no interval
_AT_ONCE = 1 << 24  # entries of a resample matrix that are float32 at once


@dataclasses.dataclass(frozen=True)
class Sums:
    """Of one student's terms: over all items [K], over each resample [B, K], over each set of swapped items [R, K].

    swapped: empty, [0, K], where no swaps were asked for.
    """

    whole: np.ndarray
    resampled: np.ndarray
    swapped: np.ndarray


class ItemDraws:
    """Resamples and swaps of n items, the same for whoever asks with the same seed; each is drawn when it is needed.

    Attributes:
        counts: [B, n] uint8, how often each item is in a resample. swaps: [R, n] uint8, which items are swapped; every
        way to do it where there are few items. exact: whether it is every way.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed, self.exact = count, seed, count <= EVERY

    @functools.cached_property
    def counts(self) -> np.ndarray:
        rng = np.random.default_rng(derive("items", self.seed, self.count))
        found = np.empty((RESAMPLES, self.count), dtype=np.uint8)  # of fewer than 256 none is in it 256 times
        for rows in _parts(RESAMPLES, self.count):
            many = len(range(*rows.indices(RESAMPLES)))
            drawn = rng.integers(0, self.count, (many, self.count)) + np.arange(many)[:, None] * self.count
            found[rows] = np.bincount(drawn.ravel(), minlength=many * self.count).reshape(many, self.count)
        return found

    @functools.cached_property
    def swaps(self) -> np.ndarray:
        if self.exact:
            return (all_signs(self.count) < 0).astype(np.uint8)
        rng = np.random.default_rng(derive("swaps", self.seed, self.count))
        return rng.integers(0, 2, (SWAPS, self.count), dtype=np.uint8)

    def sums(self, terms: Sequence[np.ndarray], swaps: bool = True) -> list[Sums]:
        """Of several students' terms, [n, K] each."""
        side_by_side = np.concatenate(terms, axis=1, dtype=np.float32)
        ends = np.cumsum([part.shape[1] for part in terms])[:-1]
        matrices = self.counts, self.swaps if swaps else np.empty((0, self.count), dtype=np.uint8)
        resampled, swapped = (np.split(_multiplied(matrix, side_by_side), ends, axis=1) for matrix in matrices)
        whole = [part.sum(axis=0) for part in terms]
        return [Sums(*parts) for parts in zip(whole, resampled, swapped, strict=True)]


@functools.lru_cache(maxsize=1)  # one may be a gigabyte
def item_draws(count: int, seed: int) -> ItemDraws:
    """`ItemDraws` of these, the last ones kept: columns of equally many items share them."""
    return ItemDraws(count, seed)


def resampled_answers(differences: np.ndarray, seed: int) -> np.ndarray:
    """Mean of -1, 0 and 1 over resampled items and seeds, [n, s] -> [B], distributed as by `ItemDraws` and weights.

    With given seeds an item adds one of 2 s + 1 numbers, and how often each comes in a resample of the items is
    multinomial: that takes so many draws a resample, however many items there are.
    """
    count, seeds = differences.shape
    places = 3 ** np.arange(seeds)
    codes, sizes = _distinct((differences.astype(np.int64) + 1) @ places, 3**seeds)
    kinds = codes[:, None] // places % 3 - 1  # [K, s]
    rng = np.random.default_rng(derive("kinds of items", seed, count))
    means = np.empty(RESAMPLES)
    for shares, rows in _seed_shares(seeds, seed):
        found = np.bincount(kinds @ shares + seeds, weights=sizes, minlength=2 * seeds + 1)
        (there,) = np.nonzero(found)
        drawn = rng.multinomial(count, found[there] / count, len(rows))  # [rows, 2 s + 1 at most]
        means[rows] = drawn @ (there - seeds) / (count * seeds)
    return means


def _distinct(codes: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The numbers that occur, ascending, and how often."""
    if most > 1 << 16:
        return np.unique(codes, return_counts=True)
    counts = np.bincount(codes, minlength=most)
    (there,) = np.nonzero(counts)
    return there, counts[there]


@functools.cache
def _seed_shares(seeds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """How often each seed is in a resample, [s], and which resamples have it so."""
    times = np.rint(seed_weights(seeds, seed) * seeds).astype(np.int64)
    distinct, which = np.unique(times, axis=0, return_inverse=True)
    return [(shares, np.flatnonzero(which.ravel() == i)) for i, shares in enumerate(distinct)]


def _parts(rows: int, wide: int) -> list[slice]:
    step = max(1, _AT_ONCE // max(1, wide))
    return [slice(start, min(rows, start + step)) for start in range(0, rows, step)]


def _multiplied(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """uint8 [R, n] times float32 [n, K], a piece of the rows at a time: float64 [R, K]."""
    pieces = [matrix[rows].astype(np.float32) @ right for rows in _parts(*matrix.shape)]
    return np.concatenate([np.empty((0, right.shape[1])), *pieces])


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
    tail = _tail(level, size)
    if undefined.any():
        return np.nanquantile(draws, (tail, 1 - tail), axis=0)
    return np.quantile(draws, (tail, 1 - tail), axis=0)


@functools.cache
def _tail(level: float, size: int) -> float:
    return float(stats.norm.cdf(-math.sqrt(size / (size - 1)) * stats.t.ppf(1 - level / 2, size - 1)))


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
