"""Records -> what the page shows, as plain values: one set for the tables, one more for each row. Pure functions."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness.errors import UserError
from harness.records import Record
from harness.seeds import content_hash
from leaderboard.board import Cell, Column, Leaderboard, Row, Section, SectionKey
from leaderboard.drafts import Asked
from leaderboard.labels import DASH, clean
from leaderboard.legend import has_ranks, has_trials, heading, legend
from leaderboard.legend import problems as unread
from leaderboard.markup import MARKUPS
from leaderboard.numbers import number_format, shown_unit, three_digits
from leaderboard.page.behind import Curves, detail, one_a_run
from leaderboard.published import reported_too
from leaderboard.ranking import mean_and_spread
from leaderboard.table import rows_and_columns

_MARKUP = dataclasses.replace(MARKUPS["plain"], best="bold", second="underlined", bounds="whose name is in italics")
_COSTS = (
    # key, title, unit, what it is
    ("hours", "training", "h", "hours of a student's own training and of its share of the teacher's passes, mean"),
    (
        "memory_gb",
        "memory",
        "GB",
        "the largest peak of the GPU, on a CPU of the process, with all students of the group",
    ),
    ("method_parameters", "extra parameters", "M", "millions that the method trained beside the student"),
    ("student_parameters", "student parameters", "M", "millions of the student itself"),
)


@dataclasses.dataclass(frozen=True)
class Picture:
    """A map of a run: its kind in a word or two, what is on it, and the file's bytes, PNG or SVG."""

    kind: str
    text: str
    data: bytes = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class Differences:
    """What may be said of a section.

    Attributes:
        plain: method, statements, pairs (lines of a table), legend. diagram: of average ranks.
    """

    plain: dict[str, Any]
    diagram: Picture | None


@dataclasses.dataclass(frozen=True)
class Content:
    """What a page shows.

    Attributes:
        board: plain values for the tables, with "detail" of every row its place in `details`.
        diagrams: of the sections' average ranks.
    """

    board: dict[str, Any]
    details: tuple[dict[str, Any], ...]
    diagrams: tuple[Picture | None, ...]


_NOTHING = Differences({"method": "", "statements": [], "pairs": [], "legend": ""}, None)


def content(
    records: Sequence[Record],
    *,
    title: str,
    asked: Sequence[Asked] = (),
    problems: Iterable[object] = (),
    notes: Iterable[str] = (),
    curves: Curves = lambda run_id: None,
    differences: Mapping[SectionKey, Differences] | None = None,
) -> Content:
    """All that the page shows, whatever the order of the records.

    Args:
        title: of the page. asked, problems, notes: see `rows_and_columns`. curves: what is known of a run's training.
        differences: by section.

    Raises:
        ValueError: two records of the same run and task id.
    """
    board = _board(records, asked, problems, notes)
    by_run: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda record: (record.run.id, record.task_id)):
        by_run.setdefault(record.run.id, []).append(record)
    protocols = _Protocols(records)
    details: list[dict[str, Any]] = []
    told = [(differences or {}).get(section.key, _NOTHING) for section in board.sections]
    sections = [
        {**_section(section, by_run, protocols, details, curves), "differences": one.plain}
        for section, one in zip(board.sections, told, strict=True)
    ]
    plain = {
        "title": clean(title),
        "newest": max((record.created for record in records), default=""),
        "records": len(records),
        "sections": sections,
        "protocols": protocols.plain(),
        "costs": [{"key": key, "title": name, "unit": unit, "about": about} for key, name, unit, about in _COSTS],
        "notes": [*board.notes, *unread(board)],
    }
    return Content(plain, tuple(details), tuple(one.diagram for one in told))


def _board(
    records: Sequence[Record], asked: Sequence[Asked], problems: Iterable[object], notes: Iterable[str]
) -> Leaderboard:
    board = rows_and_columns(records, metrics="all", asked=asked, problems=problems, notes=notes)
    try:
        return dataclasses.replace(board, sections=tuple(reported_too(board.sections)))
    except UserError:  # nothing that was published is of these models and data
        return board


class _Protocols:
    """Every protocol once, by its id."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.texts = {record.task_id: record.protocol for record in records}
        self.found: dict[str, tuple[int, dict[str, Any]]] = {}

    def place(self, column: Column) -> int:
        if column.task_id not in self.found:
            text = json.dumps(self.texts.get(column.task_id, {}), indent=2, ensure_ascii=False)
            about = {"id": column.task_id, "title": column.title, "summary": column.summary, "text": text}
            self.found[column.task_id] = len(self.found), about
        return self.found[column.task_id][0]

    def plain(self) -> list[dict[str, Any]]:
        return [about for _, about in self.found.values()]


def _section(
    section: Section,
    by_run: Mapping[str, Sequence[Record]],
    protocols: _Protocols,
    details: list[dict[str, Any]],
    curves: Curves,
) -> dict[str, Any]:
    keys = _keys(section.columns)
    rows = []
    for row in section.rows:
        mine = [record for run in row.runs for record in by_run.get(run, ()) if record.origin == row.origin]
        rows.append({**_row(row, mine), "detail": len(details)})
        details.append(detail(row, mine, section.columns, keys, curves))
    columns = [
        {
            "key": key,
            "title": column.title,
            "metric": clean(column.metric),
            "unit": clean(shown_unit(column.unit)) if shown_unit(column.unit) else "",
            "own_unit": column.unit,
            "up": column.direction == "up",
            "main": column.primary or column.shown,
            "primary": column.primary and column.ranked,
            "protocol": protocols.place(column),
        }
        for column, key in zip(section.columns, keys, strict=True)
    ]
    return {
        "key": content_hash(list(section.key)),
        "title": heading(section),
        "columns": columns,
        "has_ranks": has_ranks(section),
        "has_trials": has_trials(section),
        "rows": rows,
        "cells": _cells(section),
        "legend": [line for line in legend([section], False, _MARKUP) if not line.startswith("Protocol of ")],
    }


def _keys(columns: Sequence[Column]) -> list[str]:
    """A name for each column that links can hold, the same as long as the column is."""
    keys = [f"{column.title} {clean(column.metric)}" for column in columns]
    counts = Counter(keys)
    pairs = zip(columns, keys, strict=True)
    return [key if counts[key] == 1 else f"{key} {content_hash(list(column.name))[:8]}" for column, key in pairs]


def _cells(section: Section) -> list[list[Any]]:
    """By row and column: [mean, spread, seeds, the same as text, the mark], or why there is none."""
    formats = [_format(section, j) for j in range(len(section.columns))]
    found = []
    for row, cells, missing in zip(section.rows, section.cells, section.missing, strict=True):
        line: list[Any] = []
        for cell, why, how in zip(cells, missing, formats, strict=True):
            if cell is None:
                line.append(str(why) if row.origin == "measured" else "not reported")
                continue
            text, spread = how.mean(cell.mean), "" if cell.spread is None else how.spread(cell.spread)
            if row.origin == "reported":
                text = f"[{text}]"
            mark = 2 if cell.best else 1 if cell.second else 0
            line.append([cell.mean, cell.spread, cell.n, text, spread, mark])
        found.append(line)
    return found


def _format(section: Section, j: int) -> Any:
    column = section.columns[j]
    cells = [(row, line[j]) for row, line in zip(section.rows, section.cells, strict=True)]
    measured: list[Cell] = [cell for row, cell in cells if cell is not None and row.origin == "measured"]
    every = measured or [cell for _, cell in cells if cell is not None]
    spreads = [cell.spread or 0.0 for cell in measured]
    return number_format(column.unit, [cell.mean for cell in every], spreads, column.decimals)


def _row(row: Row, records: Sequence[Record]) -> dict[str, Any]:
    costs = _costs(row, records)
    seeds = len(row.runs) if row.origin == "measured" else None
    return {
        "label": row.label,
        "method": clean(row.method),
        "kind": row.kind,
        "reported": row.origin == "reported",
        "source": row.source,
        "seeds": seeds,
        "asked": row.asked,
        "trials": row.trials,
        "rank": row.average_rank,
        "rank_text": DASH if row.average_rank is None else f"{row.average_rank:.2f}",
        "costs": {key: [value, three_digits(value * factor)] for key, (value, factor) in costs.items()},
    }


def _costs(row: Row, records: Sequence[Record]) -> dict[str, tuple[float, float]]:
    """What is known of the costs with the factor of their unit: hours with the student's share of the teacher's passes.

    Means over runs; memory is the largest.
    """
    found: dict[str, tuple[float, float]] = {}
    hours = [hour for hour in (_hours(r) for r in one_a_run(records)) if hour is not None]
    if hours:
        found["hours"] = mean_and_spread(hours)[0], 1.0
    if row.costs.peak_memory_gb is not None:
        found["memory_gb"] = row.costs.peak_memory_gb, 1.0
    if row.costs.method_parameters is not None:
        found["method_parameters"] = row.costs.method_parameters, 1e-6
    sizes = [r.cost.student_parameters for r in records if r.cost.student_parameters is not None]
    if sizes:
        found["student_parameters"] = float(max(sizes)), 1e-6
    return found


def _hours(record: Record) -> float | None:
    cost = record.cost
    if cost.own_s is None:
        return None
    return (cost.own_s + (cost.teacher_s or 0.0) / (cost.group_size or 1)) / 3600
