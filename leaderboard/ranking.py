"""Means, spreads, the best of a column and ranks over columns. Pure functions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from leaderboard.board import Cell, Column, Row

TIE = 1e-12  # relative; means this close differ by rounding only


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (n - 1), None for one value; the same for any order of the values."""
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, None
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))


def _tied(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=TIE)


def _competing(rows: Sequence[Row], line: Sequence[Cell | None]) -> dict[int, float]:
    """Row number -> mean, of the competing rows that have a number in this column."""
    return {i: cell.mean for i, (row, cell) in enumerate(zip(rows, line, strict=True)) if cell and row.competes}


def mark_best(
    columns: Sequence[Column], rows: Sequence[Row], cells: Sequence[Sequence[Cell | None]]
) -> list[tuple[Cell | None, ...]]:
    """The cells, the best mean of each column marked, ties all; where one student stands alone none is best."""
    marked = [list(line) for line in cells]
    for j, column in enumerate(columns):
        means = _competing(rows, [line[j] for line in cells])
        if len(means) < 2:
            continue
        best = (max if column.direction == "up" else min)(means.values())
        for i, mean in means.items():
            cell = cells[i][j]
            if cell is not None and _tied(mean, best):
                marked[i][j] = dataclasses.replace(cell, best=True)
    return [tuple(line) for line in marked]


def _ranks(means: dict[int, float], direction: str) -> dict[int, float]:
    """Rank of each, 1 is best; ties share the mean of their ranks."""
    sign = -1.0 if direction == "up" else 1.0
    ranks = {}
    for i, mine in means.items():
        others = [mean for k, mean in means.items() if k != i]
        better = sum(sign * mean < sign * mine and not _tied(mean, mine) for mean in others)
        ranks[i] = 1 + better + sum(_tied(mean, mine) for mean in others) / 2
    return ranks


def average_ranks(
    columns: Sequence[Column], rows: Sequence[Row], cells: Sequence[Sequence[Cell | None]]
) -> list[float | None]:
    """Each row's mean rank over the primary columns that rank, 1 is best, ties share the mean of their ranks.

    Only rows with a number in every primary column that any competing row has are ranked, and only against
    one another: an average over what happens to be there would compare different things.
    """
    primary = [
        (c, _competing(rows, [line[j] for line in cells])) for j, c in enumerate(columns) if c.primary and c.ranked
    ]
    measured = [(column, means) for column, means in primary if means]
    complete = [i for i in range(len(rows)) if measured and all(i in means for _, means in measured)]
    if len(complete) < 2:
        return [None] * len(rows)
    ranks = [_ranks({i: means[i] for i in complete}, column.direction) for column, means in measured]
    return [math.fsum(r[i] for r in ranks) / len(ranks) if i in complete else None for i in range(len(rows))]
