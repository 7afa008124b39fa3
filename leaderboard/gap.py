"""What a row recovers of the gap between two others, such as a baseline and an oracle. Pure functions.

recovered = (row - low) / (high - low), of the means over the seeds that all three rows have: 0 is the lower row, 1 the
upper one. A ratio of means, since a mean of ratios is ruled by the seed whose own gap happens to be smallest.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from harness.errors import UserError, unknown
from leaderboard.board import Cell, Column, Gap, Row
from leaderboard.ranking import TIE, mean_and_spread

Values = Mapping[int, float]  # seed -> value


def recovered(row: Values, low: Values, high: Values, direction: str) -> Cell | None:
    """The share of the gap that a row recovers, with the sample standard deviation over seeds of each seed's own.

    None where there is no gap to speak of: no seed that all three have, or high is not better than low by more than
    the spread over seeds of their difference (of one seed: not better). The spread is None for one seed, and where
    the gap of some seed is not larger than that spread, so that its own share would be noise.
    """
    seeds = sorted(row.keys() & low.keys() & high.keys())
    if not seeds:
        return None
    sign = 1.0 if direction == "up" else -1.0
    gaps = [sign * (high[s] - low[s]) for s in seeds]
    gained = [sign * (row[s] - low[s]) for s in seeds]
    gap, spread = mean_and_spread(gaps)
    largest = max(max(abs(high[s]), abs(low[s])) for s in seeds)
    noise = max(spread or 0.0, TIE * largest)  # rounding alone is no gap either
    if gap <= noise:
        return None
    share = (math.fsum(gained) / len(gained)) / gap
    own = [mine / whole for mine, whole in zip(gained, gaps, strict=True)] if min(gaps) > noise else []
    return Cell(share, mean_and_spread(own)[1] if own else None, len(seeds))


def gap_columns(
    columns: Sequence[Column], rows: Sequence[Row], values: Sequence[Sequence[Values]], low: str, high: str
) -> tuple[Gap, ...]:
    """A column of shares for each primary metric that ranks; none in a table that lacks one of the two rows.

    Args:
        values: values[i][j] is row i's in column j, by seed.
        low, high: labels of rows. A teacher's one run stands for every seed.
    """
    places = {row.label: i for i, row in enumerate(rows)}
    if low not in places or high not in places:
        return ()
    found = []
    for j, column in enumerate(columns):
        if not column.primary or not column.ranked:
            continue
        seeds = {seed for line in values for seed in line[j]}
        every = [_for_all(row, line[j], seeds) for row, line in zip(rows, values, strict=True)]
        ends = every[places[low]], every[places[high]]
        cells = (recovered(mine, *ends, column.direction) for mine in every)
        counted = [
            dataclasses.replace(cell, n=min(cell.n, len(line[j]))) if cell else None
            for cell, line in zip(cells, values, strict=True)
        ]
        found.append(Gap(low, high, column, tuple(counted)))
    return tuple(found)


def _for_all(row: Row, values: Values, seeds: set[int]) -> Values:
    if row.kind != "teacher" or len(values) != 1:
        return values
    (value,) = values.values()
    return dict.fromkeys(seeds, value)


def check_gap(tables: Sequence[tuple[Sequence[str], Sequence[Gap]]], low: str, high: str) -> None:
    """Raises UserError where no table can have the column: rows that do not exist, or not in one table.

    Args:
        tables: labels of all rows of each, and its gaps.
    """
    labels = list(dict.fromkeys(label for mine, _ in tables for label in mine))
    for label in (low, high):
        if label not in labels:
            raise UserError(f"--gap: {unknown('row', label, labels)}")
    if low == high:
        raise UserError(f"--gap: {low!r} is named twice; name the lower row and the upper one")
    both = [gaps for mine, gaps in tables if {low, high} <= set(mine)]
    if not both:
        raise UserError(f"--gap: no table has both {low!r} and {high!r}, so there is no gap between them")
    if not any(both):
        raise UserError("--gap: no first metric of a task is ranked in that table, so there is nothing to recover")
