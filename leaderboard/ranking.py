"""Means, spreads, the best and second best of a column, ranks over columns. Pure functions."""

from __future__ import annotations

import dataclasses
import itertools
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


def _places(means: dict[int, float], direction: str) -> list[list[int]]:
    """Row numbers from the best, those that tie together."""
    order = sorted(means, key=lambda i: means[i], reverse=direction == "up")
    found = [order[:1]]
    for before, i in itertools.pairwise(order):
        if _tied(means[before], means[i]):
            found[-1].append(i)
        else:
            found.append([i])
    return found


def mark(
    columns: Sequence[Column], rows: Sequence[Row], cells: Sequence[Sequence[Cell | None]]
) -> list[tuple[Cell | None, ...]]:
    """The cells, the best mean of each column marked, ties all, and the second best.

    Of one student alone none is best. None is second where several are best, or where there are two students.
    """
    marked = [list(line) for line in cells]
    for j, column in enumerate(columns):
        means = _competing(rows, [line[j] for line in cells])
        if len(means) < 2:
            continue
        best, *others = _places(means, column.direction)
        second = others[0] if len(best) == 1 and len(means) > 2 else []
        for i in (*best, *second):
            cell = cells[i][j]
            assert cell is not None
            marked[i][j] = dataclasses.replace(cell, best=i in best, second=i in second)
    return [tuple(line) for line in marked]


def _ranks(means: dict[int, float], direction: str) -> dict[int, float]:
    """Rank of each, 1 is best; ties share the mean of their ranks."""
    ranks: dict[int, float] = {}
    for together in _places(means, direction):
        shared = len(ranks) + (1 + len(together)) / 2
        ranks.update(dict.fromkeys(together, shared))
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
