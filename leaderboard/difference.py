"""One row minus the best other student, column by column. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.errors import UserError, unknown
from leaderboard.board import Cell, Column, Difference, Row, Section
from leaderboard.choice import rows_called
from leaderboard.ranking import TIE, mean_and_spread

Values = Mapping[int, float]  # seed -> value


def difference(
    name: str,
    columns: Sequence[Column],
    rows: Sequence[Row],
    cells: Sequence[Sequence[Cell | None]],
    values: Sequence[Sequence[Values]],
) -> Difference | None:
    """Row `name` minus the best other student of each column; None in a table that has no such student.

    It is a difference of the means that the table shows, in the column's unit and with its sign: of a metric that
    goes down, below 0 is better. Among equal others the first counts.

    Args:
        name: a row's label, or a method's name. values: values[i][j] is row i's in column j, by seed.

    Raises:
        UserError: several rows are meant.
    """
    called = rows_called(name, [row for row in rows if row.competes])
    mine = [i for i, row in enumerate(rows) if row.competes and row.label in called]
    if len(mine) > 1:
        raise UserError(
            f"--difference: {name!r} means several rows, {', '.join(rows[i].label for i in mine)}; name one"
        )
    if not mine:
        return None
    (row,) = mine
    found, others = [], []
    for j, column in enumerate(columns):
        rivals = [(cell.mean, i) for i, line in enumerate(cells) if i != row and rows[i].competes and (cell := line[j])]
        own = cells[row][j]
        if own is None or not rivals:
            found.append(None)
            others.append(None)
            continue
        sign = -1.0 if column.direction == "up" else 1.0
        best, other = min(rivals, key=lambda rival: (sign * rival[0], rival[1]))
        found.append(_between(own.mean - best, values[row][j], values[other][j]))
        others.append(rows[other].label)
    return Difference(rows[row].label, tuple(others), tuple(found))


def _between(mean: float, own: Values, other: Values) -> Cell:
    """The difference of the means; its spread is that of the seeds' own ones, where both have the same seeds."""
    both = sorted(own.keys() & other.keys())
    if own.keys() != other.keys() or len(both) < 2:
        return Cell(mean, None, len(both))
    spread = mean_and_spread([own[s] - other[s] for s in both])[1] or 0.0
    largest = max(abs(value) for values in (own, other) for value in values.values())
    return Cell(mean, spread if spread > TIE * largest else 0.0, len(both))  # rounding alone is no spread


def check_difference(sections: Sequence[Section], name: str) -> None:
    """Raises UserError where no table has the row, or none has anything to compare it with."""
    found = [section.difference for section in sections if section.difference is not None]
    if not found:
        labels = {row.label for section in sections for row in section.rows if row.competes}
        raise UserError(f"--difference: {unknown('student', name, labels)}")
    if not any(cell for one in found for cell in one.cells):
        raise UserError(f"--difference: no column has numbers of both {name!r} and another student")
