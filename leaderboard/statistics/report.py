"""Records -> comparison: one method against the others, in every section. What other rooms call."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from harness.errors import UserError
from harness.records import Record
from leaderboard.choice import Names
from leaderboard.statistics.by_item import Reader
from leaderboard.statistics.comparison import (
    Comparison,
    OverTasks,
    Pair,
    Ranks,
    SectionComparison,
    Significance,
)
from leaderboard.statistics.pairing import Student, Table, check_against, chosen, rivals, tables
from leaderboard.statistics.pairs import compare
from leaderboard.statistics.ranks import rank
from leaderboard.statistics.significance import holm, smallest_p, wilcoxon
from leaderboard.statistics.statements import statements

LEVEL = 0.05


def compared(
    records: Iterable[Record],
    items_folder: Path | None = None,
    *,
    seed: int = 0,
    method: str | None = None,
    against: Names | None = None,
    tasks: Names | None = None,
    level: float = LEVEL,
) -> Comparison:
    """One method against the others, in each section's primary metrics that rank; the same for records in any order.

    Args:
        items_folder: `items/` of the workspace; None: over seeds only.
        seed: of the random resamples.
        method: a row's label or a method's name; None: "singer" where there is one, else the row with most numbers.
        against: rows that it is compared with, labels or globs; None: all other students. tasks: as of a table.
        level: of significance; intervals have confidence 1 - level.

    Raises:
        UserError: a name that nothing is called or that several rows are, a level outside 0 .. 1.
        ValueError: two records of the same run and task id.
    """
    if not 0 < level < 1:
        raise UserError(f"level is {level:g}; give a number between 0 and 1, such as 0.05")
    found = tables(records, tasks)
    check_against(found, against)
    reader = Reader(items_folder)
    sections = [
        _section(table, mine, against, reader, level, seed)
        for table, mine in zip(found, chosen(found, method), strict=True)
    ]
    return Comparison(level, tuple(sections), tuple(sorted(reader.problems)))


def _section(
    table: Table, mine: Student | None, against: Names | None, reader: Reader, level: float, seed: int
) -> SectionComparison:
    others = [] if mine is None else rivals(table, mine, against)
    pairs: list[Pair] = []
    over_tasks: list[OverTasks] = []
    if mine is not None:
        for number in sorted(range(len(table.columns)), key=lambda number: _items(mine, number)):
            if mine.values[number]:
                pairs += compare(table.columns[number], number, mine, others, reader, level, seed)
        pairs.sort(key=lambda pair: (pair.other, pair.column))
        over_tasks = _over_tasks(table, pairs, seed)
    pairs, families = _adjusted(pairs)
    families["tasks"] = len(over_tasks)
    known = {(pair.other, pair.column) for pair in pairs}
    there = [(other.label, j) for other in others for j in range(len(table.columns))]
    section = SectionComparison(
        key=table.key,
        condition=table.condition,
        method="" if mine is None else mine.label,
        others=tuple(other.label for other in others),
        columns=table.columns,
        pairs=tuple(pairs),
        over_tasks=tuple(over_tasks),
        missing=tuple(place for place in there if place not in known),
        ranks=_ranks(table, level),
        families=families,
        statements=(),
    )
    return dataclasses.replace(section, statements=tuple(statements(section, level)))


def _items(student: Student, number: int) -> int:
    """How many there are in a column; columns of equally many share their resamples, one after the other."""
    return max((record.items.count for record in student.records[number].values() if record.items), default=0)


def _adjusted(pairs: Sequence[Pair]) -> tuple[list[Pair], dict[str, int]]:
    """The pairs with p values adjusted, over seeds and over items each, and how many each family has."""
    found, families = list(pairs), {}
    for scope, field in (("seeds", "by_seed"), ("items", "by_item")):
        tested = [(i, test) for i, pair in enumerate(found) if (test := getattr(pair, field)) is not None]
        families[scope] = len(tested)
        for (i, test), adjusted in zip(tested, holm([test.p for _, test in tested]), strict=True):
            found[i] = dataclasses.replace(found[i], **{field: dataclasses.replace(test, adjusted=adjusted)})
    return found, families


def _over_tasks(table: Table, pairs: Sequence[Pair], seed: int) -> list[OverTasks]:
    """Columns have units of their own, so each is divided by the spread of its students' means.

    A task that stands in several columns counts once, with their mean.
    """
    spreads = [_spread(table, number) for number in range(len(table.columns))]
    found: dict[str, dict[str, list[float]]] = {}
    for pair in pairs:
        column = table.columns[pair.column]  # one in which all are equal counts as a tie
        scaled = pair.better * abs(pair.difference) / (spreads[pair.column] or 1.0)
        found.setdefault(pair.other, {}).setdefault(column.task, []).append(scaled)
    means = {other: [math.fsum(c) / len(c) for c in of_task.values()] for other, of_task in sorted(found.items())}
    several = {other: scaled for other, scaled in means.items() if len(scaled) > 1}
    tested = [wilcoxon(scaled, seed) for scaled in several.values()]
    return [
        OverTasks(other, len(scaled), int(np.sign(total)), Significance(p, adjusted, smallest_p(len(scaled))))
        for (other, scaled), (total, p), adjusted in zip(
            several.items(), tested, holm([p for _, p in tested]), strict=True
        )
    ]


def _spread(table: Table, number: int) -> float:
    """Of the students' means; 0 where only bounds have a number."""
    means = [np.mean(list(student.values[number].values())) for student in table.students if student.values[number]]
    return float(np.std(means)) if means else 0.0


def _ranks(table: Table, level: float) -> Ranks | None:
    """Of the students that have a number in every column in which any has one."""
    measured = [j for j in range(len(table.columns)) if any(student.values[j] for student in table.students)]
    complete = [student for student in table.students if all(student.values[j] for j in measured)]
    if not complete or not measured:
        return None
    means = np.array([[np.mean(list(student.values[j].values())) for j in measured] for student in complete])
    columns = [table.columns[j] for j in measured]
    ups = [column.direction == "up" for column in columns]
    return rank([student.label for student in complete], means, ups, level, [column.task for column in columns])
