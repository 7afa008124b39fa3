"""Records -> what is compared: sections, columns, students with their values and records by seed. Pure functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from harness.errors import UserError, unknown
from harness.records import Record
from leaderboard.board import Column, Row, SectionKey
from leaderboard.choice import Choice, Names, choose, names, rows_called
from leaderboard.drafts import Line, drafts

DEFAULT = "singer"  # the method that is compared with the others where none is named and it is there


@dataclasses.dataclass(frozen=True)
class Student:
    """A row of measured students. values, records: of each column, by seed."""

    row: Row
    values: tuple[Mapping[int, float], ...]
    records: tuple[Mapping[int, Record], ...]

    @property
    def label(self) -> str:
        return self.row.label


@dataclasses.dataclass(frozen=True)
class Table:
    """A section: its primary metrics that rank, and its students by label."""

    key: SectionKey
    condition: str
    columns: tuple[Column, ...]
    students: tuple[Student, ...]


def tables(records: Iterable[Record], tasks: Names | None = None) -> list[Table]:
    """The sections of these records, whatever their order. tasks: as of `singer-bench table --tasks`.

    Raises:
        UserError: a task that nothing is called. ValueError: two records of the same run and task id.
    """
    known = list(records)
    every = drafts(known)
    if not every:
        return []
    by_run = {(record.run.id, record.task_id): record for record in known}
    seeds = {record.run.id: record.run.seed for record in known}
    found = []
    for draft in choose(every, Choice(tasks=tasks)).drafts:
        columns = tuple(column for column in draft.columns if column.primary and column.ranked)
        students = [_student(line, columns, by_run, seeds) for line in draft.lines if _competes(line)]
        students = [student for student in students if any(student.values)]
        if columns and students:
            ordered = sorted(students, key=lambda student: student.label)
            found.append(Table(draft.key, draft.condition, columns, tuple(ordered)))
    return found


def _competes(line: Line) -> bool:
    return line.row.competes and not line.row.borrowed


def _student(
    line: Line, columns: Sequence[Column], by_run: Mapping[tuple[str, str], Record], seeds: Mapping[str, int]
) -> Student:
    records = []
    for column in columns:
        of_column = {seeds[run]: by_run.get((run, column.task_id)) for run in line.row.runs}
        records.append({seed: record for seed, record in sorted(of_column.items()) if record is not None})
    values = tuple(dict(sorted(line.values.get(column.name, {}).items())) for column in columns)
    return Student(line.row, values, tuple(records))


def chosen(found: Sequence[Table], method: str | None) -> list[Student | None]:
    """The row of each section that is compared with the others; None where a section has no such row.

    By default "singer", of several the one with the most numbers, and any row where there is none.

    Raises:
        UserError: a name that no student is called, or that several of a section are.
    """
    rows = []
    for table in found:
        called = rows_called(method or DEFAULT, [student.row for student in table.students])
        mine = [student for student in table.students if student.label in called]
        if method is not None and len(mine) > 1:
            raise UserError(f"{method!r} means several rows, {', '.join(s.label for s in mine)}; name one")
        if method is None:
            mine = sorted(mine or table.students, key=lambda s: (-sum(map(len, s.values)), s.label))
        rows.append(mine[0] if mine else None)
    if method is not None and found and not any(rows):
        raise UserError(unknown("student", method, {s.label for table in found for s in table.students}))
    return rows


def rivals(table: Table, mine: Student, against: Names | None) -> list[Student]:
    """The rows that `mine` is compared with: all others, or those that are named."""
    others = [student for student in table.students if student is not mine]
    if against is None:
        return others
    rows = [student.row for student in others]
    called = [rows_called(name, rows) for name in names(against, [row.label for row in rows])]
    return [student for student in others if any(student.label in labels for labels in called)]


def check_against(found: Sequence[Table], against: Names | None) -> None:
    """Raises UserError for a name that no student of any section is called."""
    rows = [student.row for table in found for student in table.students]
    labels = [row.label for row in rows]
    for name in names(against, labels):
        if not rows_called(name, rows):
            raise UserError(unknown("student", name, set(labels)))
