"""A leaderboard -> text: Markdown, LaTeX, plain, CSV or JSON. Pure functions.

Markdown, LaTeX and plain are for people: `leaderboard.text`. CSV and JSON are for programs: every digit, values in the
metric's own unit (a fraction stays in [0, 1]), one cell a number.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Sequence

from harness.errors import UserError, unknown
from leaderboard.board import Cell, Costs, Gap, Leaderboard, Row, Section
from leaderboard.legend import difference_label, has_trials
from leaderboard.markup import escape_csv
from leaderboard.text import text

FORMATS = ("markdown", "plain", "latex", "csv", "json")


def render(board: Leaderboard, format: str = "markdown", width: int | None = None) -> str:
    """The board as text that ends with a newline.

    Args:
        format: "markdown", "plain", "latex", "csv" or "json".
        width: characters to a line of plain text; wider tables are continued below. None: lines of any width.

    Raises:
        UserError: another format.
    """
    if format not in FORMATS:
        raise UserError(unknown("table format", format, FORMATS))
    if format == "csv":
        return _csv(board)
    return _json(board) if format == "json" else text(board, format, width)


def _csv(board: Leaderboard) -> str:
    """One header for all sections; a column that a section does not have is empty there."""
    columns = list({column.name: column for section in board.sections for column in section.columns}.values())
    gaps = list({_gap_name(gap): gap for section in board.sections for gap in section.gaps})
    tuned = any(has_trials(section) for section in board.sections)
    sourced = any(row.source for section in board.sections for row in section.rows)
    header = ["teacher", "student", "data", "condition", "label", "method", "kind", "origin"]
    header += ["source"] * sourced + ["seeds"] + ["trials"] * tuned + ["avg_rank"]
    for name in [*(f"{c.title} {c.metric} ({c.unit})" for c in columns), *gaps]:
        header += [f"{name} mean", f"{name} std", f"{name} n"]
    header += [field.name for field in dataclasses.fields(Costs)] if board.costs else []
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([escape_csv(name) for name in [*header, "missing"]])
    for section in board.sections:
        at = {column.name: j for j, column in enumerate(section.columns)}
        shares = {_gap_name(gap): gap.cells for gap in section.gaps}
        for i, (row, cells) in enumerate(_lines(section)):
            names = [*section.key[:3], section.condition, row.label, row.method, row.kind, row.origin]
            line: list[object] = [*map(_name, names), *[_name(row.source)] * sourced]
            seeds = None if row.kind == "difference" else len(row.runs)
            line += [seeds, *[row.trials] * tuned, row.average_rank]
            every = [cells[at[column.name]] if column.name in at else None for column in columns]
            every += [shares[name][i] if name in shares and i < len(section.rows) else None for name in gaps]
            for cell in every:
                line += [cell.mean, cell.spread, cell.n] if cell else [None, None, 0]
            line += [_plain(value) for value in dataclasses.astuple(row.costs)] * board.costs
            writer.writerow([*line, _name(_why(section, i))])
    return out.getvalue()


def _lines(section: Section) -> list[tuple[Row, Sequence[Cell | None]]]:
    """The rows with their cells; the differences as a row of a kind of its own."""
    lines: list[tuple[Row, Sequence[Cell | None]]] = list(zip(section.rows, section.cells, strict=True))
    if section.difference is not None:
        label = difference_label(section.difference)
        row = Row(label, "difference", "measured", "", {}, (), None, Costs(), False)
        lines.append((row, section.difference.cells))
    return lines


def _name(name: str) -> str:
    return escape_csv(name) if name else ""


def _why(section: Section, i: int) -> str:
    """Which numbers row i lacks and why: `depth rmse: not run; ...`."""
    if i >= len(section.rows) or section.rows[i].origin == "reported":
        return ""
    pairs = zip(section.columns, section.missing[i], strict=True)
    lacks = [f"{column.title} {column.metric}: {why}" for column, why in pairs if why]
    return "; ".join(lacks + [f"seed {failure.seed} failed {failure.reason}" for failure in section.rows[i].failures])


def _gap_name(gap: Gap) -> str:
    column = gap.column
    return f"{column.title} {column.metric} recovered of {gap.low} to {gap.high}"


def _plain(value: object) -> object:
    return " ".join(map(str, value)) if isinstance(value, tuple) else value


def _json(board: Leaderboard) -> str:
    """Indented, and the same whatever the order of the records."""
    sections = [_section(section) for section in board.sections]
    return json.dumps({"sections": sections, "notes": board.notes, "problems": board.problems}, indent=2) + "\n"


def _section(section: Section) -> dict[str, object]:
    rows = []
    for row, cells, missing in zip(section.rows, section.cells, section.missing, strict=True):
        values = [cell and dataclasses.asdict(cell) for cell in cells]
        rows.append({**dataclasses.asdict(row), "cells": values, "missing": missing})
    plain: dict[str, object] = {**section.key._asdict(), "columns": list(map(dataclasses.asdict, section.columns))}
    plain |= {"rows": rows, "gaps": list(map(dataclasses.asdict, section.gaps))}
    plain["difference"] = section.difference and dataclasses.asdict(section.difference)
    return plain | {"hidden_rows": section.hidden_rows, "waiting": section.waiting}
