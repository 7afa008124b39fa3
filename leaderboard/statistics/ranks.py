"""Average ranks over tasks, and which of them can be told apart: Friedman's and Nemenyi's tests. Pure functions.

As in J. Demšar, Statistical comparisons of classifiers over multiple data sets, JMLR 7 (2006).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from leaderboard.statistics.comparison import Ranks

LEAST_TASKS = 2


def critical_difference(rows: int, tasks: int, level: float) -> float:
    """Nemenyi's: average ranks of `rows` over `tasks` that are at least so far apart are told apart at `level`.

    >>> round(critical_difference(4, 14, 0.05), 2)
    1.25
    """
    q = float(stats.studentized_range.ppf(1 - level, rows, np.inf)) / math.sqrt(2)
    return q * math.sqrt(rows * (rows + 1) / (6 * tasks))


def friedman(ranks: np.ndarray) -> tuple[float, float]:
    """Statistic and p (chi-squared) of ranks [tasks, rows], three rows at least; 0 and 1 where all are tied."""
    if np.ptp(ranks, axis=1).max() == 0:
        return 0.0, 1.0
    found = stats.friedmanchisquare(*ranks.T)
    return float(found.statistic), float(found.pvalue)


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
    statistic, p = friedman(ranks) if rows > 2 else (None, None)
    apart = critical_difference(rows, len(places), level)
    # Where Friedman's test finds no difference at all, none is looked for between pairs.
    joined = [(0, rows - 1)] if p is not None and p >= level else bars(ascending, apart)
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
