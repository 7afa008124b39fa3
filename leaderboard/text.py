"""Sections -> a table for people, with a legend: Markdown, LaTeX, plain. Pure functions.

Percentages, few digits, equally many down a column, the best and the second best marked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable, Mapping, Sequence

from leaderboard.board import Cell, Column, Gap, Leaderboard, Missing, Row, Section
from leaderboard.labels import DASH, clean
from leaderboard.layout import LAYOUTS, Head, Sheet
from leaderboard.legend import difference_label, group_name, has_ranks, has_trials, heading, legend, problems
from leaderboard.markup import MARKUPS, Markup, Piece
from leaderboard.numbers import number_format, shown_unit, three_digits

COSTS = (("own", "s"), ("teacher", "s"), ("memory", "GB"), ("extra", "M"), ("eval", "s"))
SIGNS: Mapping[Missing, str] = {"not run": DASH, "failed": "failed", "no value": "n/a"}


def text(board: Leaderboard, format: str, width: int | None) -> str:
    """The board as text that ends with a newline. width: characters to a line of plain text; None: as it comes."""
    markup, layout = MARKUPS[format], LAYOUTS[format]
    groups = [board.sections] if board.grouped and board.sections else [(section,) for section in board.sections]
    pages = []
    for sections in groups:
        title = (board.title or "Pairs of teacher and student") if board.grouped else heading(sections[0])
        lines = [markup.escape(line) for line in legend(sections, board.costs, markup)]
        sheet = _sheet(sections, board, markup)
        pages.append(layout.page(markup.escape(title), sheet, lines, width))
    ends = [*board.notes, *problems(board)] if pages else ["There are no records yet.", *problems(board)]
    if ends:
        pages.append(layout.notes([markup.escape(line) for line in ends], width))
    return "\n\n".join(pages) + "\n"


@dataclasses.dataclass(frozen=True)
class _Line:
    """One line of a table. row None: it is the difference row. scores: by column, with the sign of no number."""

    row: Row | None
    label: str
    scores: Sequence[tuple[Cell | None, str]]
    shares: Sequence[Cell | None]


def _sheet(sections: Sequence[Section], board: Leaderboard, markup: Markup) -> Sheet:
    """One table of these sections: the rows of each stand together, its difference row below them."""
    columns = list({column.name: column for section in sections for column in section.columns}.values())
    gaps = list({_gap_name(gap): gap for section in sections for gap in section.gaps}.values())
    lines: list[_Line] = []
    groups: dict[int, str] = {}
    for section in sections:
        if board.grouped:
            groups[len(lines)] = markup.strong(markup.escape(group_name(section, sections)))
        lines += _lines(section, columns, gaps, markup)
    heads = [Head("", "method"), Head("", "seeds")]
    texts = [[line.label for line in lines], _escaped([_seeds(line.row) for line in lines], markup)]
    if any(map(has_trials, sections)):
        heads.append(Head("", "trials"))
        texts.append(_escaped([_of_row(line.row, line.row and line.row.trials, "d") for line in lines], markup))
    for j, column in enumerate(columns):
        heads.append(Head(column.title, _metric(column)))
        texts.append(markup.cells(_numbers(column, [(line.row, *line.scores[j]) for line in lines])))
    for j, gap in enumerate(gaps):
        share = dataclasses.replace(gap.column, unit="fraction", decimals=None)
        heads.append(Head(gap.column.title, f"{clean(gap.column.metric)} recovered (%)"))
        texts.append(markup.cells(_numbers(share, [(line.row, line.shares[j], DASH) for line in lines])))
    if any(map(has_ranks, sections)):
        heads.append(Head("avg.", "rank"))
        ranks = [_of_row(line.row, line.row and line.row.average_rank, ".2f") for line in lines]
        texts.append(_escaped(ranks, markup))
    costs = len(heads)
    if board.costs:
        heads += [Head(*name) for name in COSTS]
        several = zip(*(_costs(line.row) for line in lines), strict=True)
        texts += [_escaped(column, markup) for column in several]
    differences = [i for i, line in enumerate(lines) if line.row is None]
    return Sheet(heads, texts, groups, differences, costs)


def _escaped(texts: Iterable[str], markup: Markup) -> list[str]:
    return [markup.escape(text) if text else "" for text in texts]


def _lines(section: Section, columns: Sequence[Column], gaps: Sequence[Gap], markup: Markup) -> list[_Line]:
    at = {column.name: j for j, column in enumerate(section.columns)}
    mine = {_gap_name(gap): gap.cells for gap in section.gaps}
    places = [at.get(column.name) for column in columns]
    found = []
    for i, row in enumerate(section.rows):
        cells, signs = section.cells[i], section.missing[i]
        known = SIGNS if row.origin == "measured" else {}
        scores = [(None, DASH) if j is None else (cells[j], known.get(signs[j], DASH)) for j in places]
        shares = [mine[name][i] if (name := _gap_name(gap)) in mine else None for gap in gaps]
        found.append(_Line(row, _label(row, markup), scores, shares))
    if section.difference is not None:
        cells = section.difference.cells
        scores = [(None if j is None else cells[j], DASH) for j in places]
        label = markup.escape(difference_label(section.difference))
        found.append(_Line(None, label, scores, [None for _ in gaps]))
    return found


def _gap_name(gap: Gap) -> Hashable:
    return gap.low, gap.high, gap.column.name


def _label(row: Row, markup: Markup) -> str:
    label = markup.escape(row.label + " (reported)" * (row.origin == "reported"))
    return label if row.kind == "student" else markup.bound(label)


def _metric(column: Column) -> str:
    unit = shown_unit(column.unit)
    arrow = "↑" if column.direction == "up" else "↓"
    return f"{clean(column.metric)}{f' ({clean(unit)})' if unit else ''} {arrow}"


def _numbers(column: Column, cells: Sequence[tuple[Row | None, Cell | None, str]]) -> list[Piece]:
    """A column of means; of a row None they are differences, and what was reported stands in brackets."""
    measured = [cell for row, cell, _ in cells if cell and row and row.origin == "measured"]
    means = [cell.mean for cell in measured or [cell for row, cell, _ in cells if cell and row]]
    how = number_format(column.unit, means, [cell.spread or 0.0 for cell in measured], column.decimals)
    found = []
    for row, cell, sign in cells:
        if cell is None:
            found.append(Piece(sign))
        elif row is None:
            found.append(Piece(how.difference(cell.mean), "", "" if cell.spread is None else how.spread(cell.spread)))
        elif row.origin == "reported":
            found.append(Piece(f"[{how.mean(cell.mean)}]"))
        else:
            mark = "best" if cell.best else "second" if cell.second else ""
            spread = "" if cell.spread is None else how.spread(cell.spread)
            tail = "" if cell.n == len(row.runs) else f"({cell.n} of {len(row.runs)})"
            found.append(Piece(how.mean(cell.mean), mark, spread, tail))
    return found


def _of_row(row: Row | None, value: float | None, digits: str) -> str:
    """A number about a row; nothing for a difference row."""
    return "" if row is None else DASH if value is None else f"{value:{digits}}"


def _seeds(row: Row | None) -> str:
    if row is None or row.origin == "reported":
        return _of_row(row, None, "")
    return f"{len(row.runs)}" if (row.asked or 0) <= len(row.runs) else f"{len(row.runs)} of {row.asked}"


def _costs(row: Row | None) -> list[str]:
    def number(value: float | None, factor: float = 1.0) -> str:
        return DASH if value is None else three_digits(value * factor)

    if row is None:
        return [""] * len(COSTS)
    costs = row.costs
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
