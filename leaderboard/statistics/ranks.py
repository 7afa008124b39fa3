"""Average ranks over tasks, and which of them can be told apart: Friedman's and Nemenyi's tests. Pure functions.

As in J. Demšar, Statistical comparisons of classifiers over multiple data sets, JMLR 7 (2006).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from harness.seeds import derive
from leaderboard.statistics.comparison import Ranks
from leaderboard.statistics.significance import FLIPS, ROUNDING, sign_flip

LEAST_TASKS = 2
ENOUGH = 10  # tasks from which on chi-squared is near enough
_AT_ONCE = 1 << 22  # numbers that are permuted together


def critical_difference(rows: int, tasks: int, level: float) -> float:
    """Nemenyi's: average ranks of `rows` over `tasks` that are at least so far apart are told apart at `level`.

    >>> round(critical_difference(4, 14, 0.05), 2)
    1.25
    """
    q = float(stats.studentized_range.ppf(1 - level, rows, np.inf)) / math.sqrt(2)
    return q * math.sqrt(rows * (rows + 1) / (6 * tasks))


def friedman(ranks: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Statistic and p of ranks [tasks, rows]; 0 and 1 where all are tied.

    p is chi-squared's from ten tasks on. With fewer, where that rejects too often (three rows on four tasks: 7 % of the
    time at .05), it is by permutations of each task's ranks; of two rows, where it is the sign test, by all of them.
    """
    if np.ptp(ranks, axis=1).max() == 0:
        return 0.0, 1.0
    tasks, rows = ranks.shape
    off = ranks.sum(axis=0) - tasks * (rows + 1) / 2
    statistic = float((rows - 1) * np.square(off).sum() / np.square(ranks - (rows + 1) / 2).sum())
    if rows == 2:
        return statistic, float(sign_flip((ranks[:, 0] - ranks[:, 1])[None], seed)[0])
    if tasks >= ENOUGH:
        return statistic, float(stats.chi2.sf(statistic, rows - 1))
    rng = np.random.default_rng(derive("permuted ranks", seed, tasks, rows))
    extreme, done, least = 0, 0, np.square(off).sum() * (1 - ROUNDING)
    while done < FLIPS:
        many = min(FLIPS - done, max(1, _AT_ONCE // (tasks * rows)))
        drawn = rng.permuted(np.broadcast_to(ranks, (many, tasks, rows)), axis=2)
        extreme += int((np.square(drawn.sum(axis=1) - tasks * (rows + 1) / 2).sum(axis=1) >= least).sum())
        done += many
    return statistic, (1 + extreme) / (1 + FLIPS)


def rank(
    labels: Sequence[str], means: np.ndarray, ups: Sequence[bool], level: float, tasks: Sequence[str] | None = None
) -> Ranks | None:
    """Ranks of rows by their means [rows, columns]; None with one row or fewer than two tasks.

    Means that differ by rounding only are tied.

    Args:
        ups: whether more is better, by column. tasks: the task of each column, None: each has its own; columns of one
        task give one rank, that of their mean rank, since they are no two witnesses.
    """
    rows, columns = means.shape
    places: dict[object, list[int]] = {}
    for j in range(columns):
        places.setdefault(tasks[j] if tasks else j, []).append(j)
    if rows < 2 or len(places) < LEAST_TASKS:
        return None
    shown = np.array([[float(f"{value:.11e}") for value in line] for line in means])
    of_columns = stats.rankdata(np.where(ups, -shown, shown), axis=0)  # [rows, columns]
    of_tasks = np.stack([of_columns[:, js].mean(axis=1) for js in places.values()])
    ranks = stats.rankdata(of_tasks, axis=1)  # [tasks, rows]
    average = ranks.mean(axis=0)
    order = sorted(range(rows), key=lambda i: (average[i], labels[i]))
    names, ascending = tuple(labels[i] for i in order), tuple(float(average[i]) for i in order)
    statistic, p = friedman(ranks)
    apart = critical_difference(rows, len(places), level)
    # Where Friedman's test finds no difference at all, none is looked for between pairs.
    joined = [(0, rows - 1)] if p >= level else bars(ascending, apart)
    return Ranks(names, ascending, len(places), statistic, p, apart, level, tuple(joined))


def bars(average: Sequence[float], apart: float) -> list[tuple[int, int]]:
    """First and last of each largest group within less than `apart`, of ascending ranks; groups of one are left out.

    >>> bars([1.0, 1.5, 2.2, 4.0], 1.0)
    [(0, 1), (1, 2)]
    """
    found: list[tuple[int, int]] = []
    for first in range(len(average)):
        last = max(j for j in range(first, len(average)) if j == first or average[j] - average[first] < apart)
        if last > first and (not found or last > found[-1][1]):
            found.append((first, last))
    return found
