"""Records -> what a leaderboard says. Pure functions; nothing is formatted here."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness.records import Record
from leaderboard.board import Cell, Column, Gap, Leaderboard, Missing, Row, Section
from leaderboard.choice import Choice, Chosen, Names, choose
from leaderboard.difference import check_difference
from leaderboard.difference import difference as row_minus_best
from leaderboard.drafts import Asked, Draft, Line, drafts
from leaderboard.gap import check_gap, gap_columns
from leaderboard.labels import clean
from leaderboard.published import reported_too
from leaderboard.ranking import average_ranks, mark, mean_and_spread


def rows_and_columns(
    records: Iterable[Record],
    *,
    metrics: Names = "primary",
    costs: bool = False,
    problems: Iterable[object] = (),
    gap: tuple[str, str] | None = None,
    rows: Names | None = None,
    tasks: Names | None = None,
    exclude: Names | None = None,
    difference: str | None = None,
    by_pair: bool = False,
    reported: bool = False,
    asked: Sequence[Asked] = (),
    notes: Iterable[str] = (),
) -> Leaderboard:
    """The leaderboard of these records, whatever their order.

    Args:
        metrics: "primary" (the first of each task, and what it declares as shown beside it), "all", or names.
        costs: whether the tables show cost columns.
        problems: what `read_records` could not read, to be said under the tables.
        gap: labels of two rows; the tables show what every row recovers of the gap between them.
        rows, tasks, exclude: see `Choice`. Marks, ranks and differences are among the rows and columns that are shown.
        difference: a row, from which the best other student of each column is subtracted.
        by_pair: one table, with a group of rows for every pair of teacher and student.
        reported: whether published numbers of the same pairs and data sets are shown too.
        asked: students that experiments name, so that those without a number can be told apart from those that failed.
        notes: sentences for the end of everything.

    Raises:
        UserError: a name that nothing is called, rows between which there is no gap, nothing to subtract from, nothing
            that was published.
        ValueError: two records of the same run and task id.
    """
    every = drafts(records, asked)
    choice = Choice(rows, tasks, metrics, exclude)
    chosen = choose(every, choice) if every else Chosen((), None, frozenset())
    tables = [_Table(draft, gap) for draft in chosen.drafts]
    if gap is not None:
        check_gap([(table.labels, table.gaps) for table in tables], *gap)
    sections = [table.section(chosen, difference) for table in tables]
    sections = [section for section in sections if section.rows]
    if difference is not None:
        check_difference(sections, difference)
    if reported:
        sections = reported_too(sections)
    said = tuple(clean(str(problem)) for problem in problems)
    return Leaderboard(tuple(sections), costs, said, by_pair, notes=tuple(map(clean, notes)))


class _Table:
    """A draft with its numbers, before rows are chosen: a gap may be between rows that are not shown."""

    def __init__(self, draft: Draft, gap: tuple[str, str] | None) -> None:
        self.draft, self.lines = draft, draft.lines
        self.values = [[line.values.get(column.name, {}) for column in draft.columns] for line in self.lines]
        self.cells = [[_cell(values) for values in line] for line in self.values]
        self.labels = [line.row.label for line in self.lines]
        self.gaps: tuple[Gap, ...] = ()
        if gap is not None:
            self.gaps = gap_columns(draft.columns, [line.row for line in self.lines], self.values, *gap)

    def section(self, chosen: Chosen, difference: str | None) -> Section:
        """The rows that are chosen, marked and ranked among one another."""
        draft, columns = self.draft, self.draft.columns
        known = [i for i, line in enumerate(self.lines) if not line.row.borrowed or any(self.cells[i])]
        kept = [i for i in known if chosen.shows(self.lines[i].row)]
        rows = [self.lines[i].row for i in kept]
        cells = mark(columns, rows, [self.cells[i] for i in kept])
        ranks = average_ranks(columns, rows, cells)
        rows = [dataclasses.replace(row, average_rank=rank) for row, rank in zip(rows, ranks, strict=True)]
        order = sorted(range(len(kept)), key=lambda k: _place(rows[k], chosen.places))
        kept, rows, cells = [kept[k] for k in order], [rows[k] for k in order], [cells[k] for k in order]
        return Section(
            key=draft.key,
            condition=draft.condition,
            columns=columns,
            rows=tuple(rows),
            cells=tuple(cells),
            missing=tuple(_missing(self.lines[i], columns, self.cells[i]) for i in kept),
            gaps=tuple(dataclasses.replace(gap, cells=tuple(gap.cells[i] for i in kept)) for gap in self.gaps),
            difference=None
            if difference is None
            else row_minus_best(difference, columns, rows, cells, [self.values[i] for i in kept]),
            hidden_rows=len(known) - len(kept),
            waiting=draft.waiting,
        )


def _cell(values: Mapping[int, float]) -> Cell | None:
    return Cell(*mean_and_spread(list(values.values())), len(values)) if values else None


def _missing(line: Line, columns: Sequence[Column], cells: Sequence[Cell | None]) -> tuple[Missing, ...]:
    def why(column: Column) -> Missing:
        if column.task_id in line.recorded:
            return "no value"
        return "failed" if line.row.failures and not line.row.runs else "not run"

    return tuple("" if cell else why(column) for column, cell in zip(columns, cells, strict=True))


def _place(row: Row, places: Mapping[str, int] | None) -> tuple[Any, ...]:
    """As they were named; else teachers, students from the best, incomplete ones, reported ones, untrained ones."""
    group = 0 if row.kind == "teacher" else 3 if row.kind == "untrained" else 1 if row.competes else 2
    named = 0 if places is None else places[row.label]
    return named, group, row.average_rank is None, row.average_rank or 0.0, row.label
