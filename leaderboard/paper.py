"""The SiNGER paper's Table 1, measured beside reported: its pairs, its columns, its order.

A column is a data set and a metric, or the mean over several data sets. What was measured keeps the protocol that it
was measured by, and what was reported that of the publication: the two are shown beside each other, and only what was
measured is marked and ranked.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

from harness.errors import UserError
from harness.records import MetricInfo, Record, RunInfo
from leaderboard.board import Cell, Column, Leaderboard, Missing, Section, SectionKey
from leaderboard.choice import Choice, Names, choose
from leaderboard.drafts import Asked, drafts
from leaderboard.labels import clean
from leaderboard.published import COLUMNS, PaperColumn, model, pairs, rows_of
from leaderboard.table import rows_and_columns

ORDER = ("teacher", "none", "fitnet", "vitkd", "singer")  # of the methods in the paper's table
Part = tuple[PaperColumn, str]  # a column and one of its data sets


def like_paper(
    records: Iterable[Record],
    *,
    problems: Iterable[object] = (),
    rows: Names | None = None,
    tasks: Names | None = None,
    exclude: Names | None = None,
    difference: str | None = None,
    asked: Sequence[Asked] = (),
    notes: Iterable[str] = (),
) -> Leaderboard:
    """Table 1 of the paper as one table: every pair that it has, what these records measure of it, what it reports.

    Args: see `rows_and_columns`; tasks and exclude choose among protocols where a data set was measured under several.

    Raises:
        UserError: a name that nothing is called, or several protocols of one data set, none of them the published one.
    """
    every = list(records)
    mine = [record for record in every if _pair(record.run) in pairs()]
    hopes = [one for one in asked if _pair(one.run) in pairs()]
    chosen = choose(drafts(mine, hopes), Choice(rows, tasks, "all", exclude))
    shown = {run for d in chosen.drafts for line in d.lines if chosen.shows(line.row) for run in line.row.runs}
    columns = {column.name: column for draft in chosen.drafts for column in draft.columns}
    parts = _parts(columns.values(), mine)
    mine = [record for record in mine if record.run.id in shown]
    hopes = [one for one in hopes if chosen.names(clean(one.run.label))]
    board = rows_and_columns(_table_1(mine, parts), metrics="all", difference=difference, asked=hopes)
    measured = [_as_published(section) for section in board.sections if _models(section) in pairs()]
    empty = [
        _as_published(Section(SectionKey(*pair, "", ""), "", (), (), (), ()))
        for pair in pairs()
        if pair not in map(_models, measured)
    ]
    order = {pair: place for place, pair in enumerate(pairs())}
    return Leaderboard(
        sections=tuple(sorted([*measured, *empty], key=lambda section: order[_models(section)])),
        problems=tuple(clean(str(problem)) for problem in problems),
        grouped=True,
        title="SiNGER (arXiv 2509.20986, Table 1): measured here, and as reported",
        notes=(*_notes(every, mine, parts), *map(clean, notes)),
    )


def _pair(run: RunInfo) -> tuple[str, str]:
    """A run's models as the publication calls them; a teacher's own run stands with the teacher's first pair."""
    teacher, student = model(run.teacher), model(run.student)
    return next((pair for pair in pairs() if not student and pair[0] == teacher), (teacher, student))


def _models(section: Section) -> tuple[str, str]:
    return model(section.key.teacher), model(section.key.student)


def _parts(columns: Iterable[Column], records: Sequence[Record]) -> dict[str, Part]:
    """Task id -> what it is of Table 1. Of several protocols of one data set the published one."""
    kinds = {record.task_id: record.protocol.get("kind") for record in records}
    found: dict[Part, dict[str, Column]] = {}
    for column in columns:
        for paper in COLUMNS:
            if (data := paper.fits(column.kind, column.metric, column.data)) is not None:
                found.setdefault((paper, data), {})[column.task_id] = column
    parts = {}
    for part, several in found.items():
        ids = [task_id for task_id in several if kinds[task_id] == "published"] if len(several) > 1 else list(several)
        if len(ids) != 1:
            titles = ", ".join(sorted(column.title for column in several.values()))
            raise UserError(f"{part[1]} was measured under several protocols, {titles}: leave all but one to --exclude")
        parts[ids[0]] = part
    return parts


def _table_1(records: Sequence[Record], parts: dict[str, Part]) -> list[Record]:
    """Records whose tasks are the columns of Table 1. A run that lacks a data set of a mean has no number there."""
    found: dict[tuple[str, PaperColumn], dict[str, Record]] = {}
    for record in records:
        if record.task_id in parts:
            paper, data = parts[record.task_id]
            found.setdefault((record.run.id, paper), {})[data] = record
    made = []
    for (_, paper), several in found.items():
        values = [several[data].values.get(paper.metric) for data in paper.data if data in several]
        numbers = [value for value in values if value is not None]
        if len(numbers) < len(paper.data):
            continue
        changes = {
            "task": paper.title,
            "task_id": paper.key,
            "task_kind": paper.kind,
            "metrics": {paper.metric: MetricInfo(unit=paper.unit, direction=paper.direction)},
            "values": {paper.metric: math.fsum(numbers) / len(numbers)},
            "protocol": {},
        }
        made.append(next(iter(several.values())).model_copy(update=changes))
    return made


def _as_published(section: Section) -> Section:
    """With all columns of Table 1 and with its rows, each beside the measured one of the same method."""
    places = {column.task_id: j for j, column in enumerate(section.columns)}
    wide = [
        dataclasses.replace(section.columns[places[c.key]], decimals=c.decimals)
        if c.key in places
        else Column(c.title, c.key, c.metric, c.unit, c.direction, 0, "", True, False, c.title, c.kind, "", c.decimals)
        for c in COLUMNS
    ]
    absent: list[Missing] = ["failed" if row.failures and not row.runs else "not run" for row in section.rows]

    def widened(line: Sequence, fill: object) -> tuple:
        return tuple(line[places[c.key]] if c.key in places else fill for c in COLUMNS)

    difference = section.difference and dataclasses.replace(
        section.difference,
        others=widened(section.difference.others, None),
        cells=widened(section.difference.cells, None),
    )
    whole = dataclasses.replace(
        section,
        columns=tuple(wide),
        cells=tuple(widened(line, None) for line in section.cells),
        missing=tuple(widened(line, why) for line, why in zip(section.missing, absent, strict=True)),
        difference=difference,
    )
    reported = rows_of(*_models(section))
    whole = whole.with_rows(
        [row for row, _ in reported], [[Cell(values[c.key], None, 1) for c in COLUMNS] for _, values in reported]
    )

    def place(i: int) -> int:
        row = whole.rows[i]
        return ORDER.index(row.method) if row.method in ORDER else len(ORDER) + (row.kind == "untrained")

    return whole.in_order(sorted(range(len(whole.rows)), key=place))  # of one method the measured ones stay in front


def _notes(every: Sequence[Record], mine: Sequence[Record], parts: dict[str, Part]) -> tuple[str, ...]:
    """Which protocol each measured column is of, and what was measured and has no place in Table 1."""
    notes = []
    summaries = {record.task_id: record.protocol.get("summary") for record in mine}
    for paper in COLUMNS:
        of = {data: task_id for task_id, (column, data) in parts.items() if column == paper}
        said = []
        for data, task_id in of.items():
            summary = summaries.get(task_id)
            said.append(f"{data} by {task_id}{', ' + clean(summary) if isinstance(summary, str) and summary else ''}")
        lacking = [data for data in paper.data if data not in of]
        if said and lacking:
            notes.append(f"{paper.title} needs all of {', '.join(paper.data)}; missing: {', '.join(lacking)}.")
        elif said:
            mean = "mean over " * (len(said) > 1)
            notes.append(f"{paper.title}, measured: {mean}{'; '.join(said)}")
    others = {(r.run.teacher, r.run.student) for r in every if r.run.student and _pair(r.run) not in pairs()}
    if not parts:
        notes.append("Nothing in these records is of the pairs and data sets of Table 1: all that is here is reported.")
    elif others:
        named = ", ".join(f"{clean(teacher)} to {clean(student)}" for teacher, student in sorted(others))
        notes.append(f"Measured pairs that Table 1 does not have: {named}.")
    return tuple(notes)
