"""A leaderboard -> text: Markdown, LaTeX, plain, CSV or JSON. Pure functions.

Markdown, LaTeX and plain are for people: percentages, few digits, marks, a legend. CSV and JSON are for
programs: every digit, values in the metric's own unit (a fraction stays in [0, 1]), one cell a number.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Callable, Sequence

from tabulate import tabulate

from harness.errors import UserError, unknown
from leaderboard.board import Cell, Column, Costs, Gap, Leaderboard, Row, Section
from leaderboard.labels import DASH, clean
from leaderboard.legend import has_ranks, has_trials, legend, problems
from leaderboard.markup import MARKUPS, Markup, escape_csv
from leaderboard.numbers import NumberFormat, number_format, shown_unit, three_digits

COSTS = ("own s", "teacher s", "memory GB", "extra M", "eval s")


def render(board: Leaderboard, format: str = "markdown") -> str:
    """The board as text that ends with a newline.

    Args:
        format: "markdown", "plain", "latex", "csv" or "json".

    Raises:
        UserError: another format.
    """
    if format not in FORMATS:
        raise UserError(unknown("table format", format, FORMATS))
    return FORMATS[format](board)


def _text(board: Leaderboard, markup: Markup) -> str:
    pages = [_page(section, board.costs, markup) for section in board.sections]
    if not pages:
        pages = [markup.notes(["There are no records yet."])]
    if board.problems:
        pages.append(markup.notes([markup.escape(line) for line in problems(board)]))
    return "\n\n".join(pages) + "\n"


def heading(section: Section) -> str:
    """`teacher → student on data [condition]`, without what a section does not have."""
    names = " → ".join(clean(name) for name in (section.key.teacher, section.key.student) if name)
    data = f" on {clean(section.key.data)}" if section.key.data else ""
    return f"{names}{data} [{section.condition}]"


def _page(section: Section, costs: bool, markup: Markup) -> str:
    header = ["method", "seeds", *["trials"] * has_trials(section), *(_title(column) for column in section.columns)]
    header += [f"{gap.column.title} {clean(gap.column.metric)} recovered (%)" for gap in section.gaps]
    header += ["avg. rank"] * has_ranks(section) + list(COSTS) * costs
    formats = [
        number_format(column.unit, [line[j].mean for line in section.cells if line[j]])  # type: ignore[union-attr]
        for j, column in enumerate(section.columns)
    ]
    shares = [number_format("fraction", [cell.mean for cell in gap.cells if cell]) for gap in section.gaps]
    body = []
    for i, (row, cells) in enumerate(zip(section.rows, section.cells, strict=True)):
        line = [_label(row, markup), str(len(row.runs))]
        line += [markup.escape(DASH if row.trials is None else str(row.trials))] * has_trials(section)
        line += [_cell(cell, how, len(row.runs), markup) for cell, how in zip(cells, formats, strict=True)]
        for gap, how in zip(section.gaps, shares, strict=True):
            line.append(_cell(gap.cells[i], how, len(row.runs), markup))
        if has_ranks(section):
            line.append(markup.escape(DASH if row.average_rank is None else f"{row.average_rank:.2f}"))
        body.append(line + [markup.escape(text) for text in _costs(row.costs)] * costs)
    table = tabulate(
        body,
        headers=[markup.escape(title) for title in header],
        tablefmt=markup.tabulate,
        disable_numparse=True,  # else it would write our numbers anew
        colalign=("left", *["right"] * (len(header) - 1)) if body else None,
    )
    lines = legend(section, costs, markup.best_word, markup.bound_word)
    return markup.page(markup.escape(heading(section)), table, [markup.escape(line) for line in lines])


def _title(column: Column) -> str:
    unit = shown_unit(column.unit)
    arrow = "↑" if column.direction == "up" else "↓"
    return f"{column.title} {clean(column.metric)}{f' ({clean(unit)})' if unit else ''} {arrow}"


def _label(row: Row, markup: Markup) -> str:
    label = markup.escape(row.label + " (reported)" * (row.origin == "reported"))
    return label if row.kind == "student" else markup.bound(label)


def _cell(cell: Cell | None, how: NumberFormat, seeds: int, markup: Markup) -> str:
    if cell is None:
        return markup.escape(DASH)
    mean = markup.escape(how.mean(cell.mean))
    text = markup.best(mean) if cell.best else mean
    if cell.spread is not None:
        text += " " + markup.escape(f"± {how.spread(cell.spread)}")
    return text if cell.n == seeds else text + f" ({cell.n} of {seeds})"


def _costs(costs: Costs) -> list[str]:
    def number(value: float | None, factor: float = 1.0) -> str:
        return DASH if value is None else three_digits(value * factor)

    teacher = number(costs.teacher_s)
    if costs.teacher_s is not None and costs.group_sizes:
        low, high = min(costs.group_sizes), max(costs.group_sizes)
        teacher += f" / {low}" if low == high else f" / {low} to {high}"
    return [
        number(costs.own_s),
        teacher,
        number(costs.peak_memory_gb),
        number(costs.method_parameters, 1e-6),
        number(costs.evaluation_s),
    ]


def _csv(board: Leaderboard) -> str:
    """One header for all sections; a column that a section does not have is empty there."""
    columns = list({column.name: column for section in board.sections for column in section.columns}.values())
    tuned = any(has_trials(section) for section in board.sections)
    header = ["teacher", "student", "data", "condition", "label", "method", "kind", "origin", "seeds"]
    header += ["trials"] * tuned + ["avg_rank"]
    for column in columns:
        name = f"{column.title} {column.metric} ({column.unit})"
        header += [f"{name} mean", f"{name} std", f"{name} n"]
    gaps = list({_gap_name(gap): gap for section in board.sections for gap in section.gaps})
    header += [f"{name} {part}" for name in gaps for part in ("mean", "std", "n")]
    costs = [field.name for field in dataclasses.fields(Costs)] if board.costs else []
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([escape_csv(name) for name in [*header, *costs]])
    for section in board.sections:
        for i, (row, cells) in enumerate(zip(section.rows, section.cells, strict=True)):
            names = [*section.key[:3], section.condition, row.label, row.method, row.kind, row.origin]
            line: list[object] = [escape_csv(name) if name else "" for name in names]
            line += [len(row.runs), *[row.trials] * tuned, row.average_rank]
            found = {column.name: cell for column, cell in zip(section.columns, cells, strict=True)}
            shares = {_gap_name(gap): gap.cells[i] for gap in section.gaps}
            for cell in [*(found.get(column.name) for column in columns), *(shares.get(name) for name in gaps)]:
                line += [cell.mean, cell.spread, cell.n] if cell else [None, None, 0]
            writer.writerow(line + [_plain(getattr(row.costs, name)) for name in costs])
    return out.getvalue()


def _gap_name(gap: Gap) -> str:
    column = gap.column
    return f"{column.title} {column.metric} recovered of {gap.low} to {gap.high}"


def _plain(value: object) -> object:
    return " ".join(map(str, value)) if isinstance(value, tuple) else value


def _json(board: Leaderboard) -> str:
    return json.dumps({"sections": [_section(s) for s in board.sections], "problems": board.problems}, indent=2) + "\n"


def _section(section: Section) -> dict[str, object]:
    rows = []
    for row, cells in zip(section.rows, section.cells, strict=True):
        values = [cell and dataclasses.asdict(cell) for cell in cells]
        rows.append({**dataclasses.asdict(row), "cells": values})
    columns: Sequence[object] = [dataclasses.asdict(column) for column in section.columns]
    gaps: Sequence[object] = [dataclasses.asdict(gap) for gap in section.gaps]
    return {**section.key._asdict(), "columns": columns, "rows": rows, "gaps": gaps}


FORMATS: dict[str, Callable[[Leaderboard], str]] = {
    "markdown": lambda board: _text(board, MARKUPS["markdown"]),
    "plain": lambda board: _text(board, MARKUPS["plain"]),
    "latex": lambda board: _text(board, MARKUPS["latex"]),
    "csv": _csv,
    "json": _json,
}
