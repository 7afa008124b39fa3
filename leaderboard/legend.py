"""What stands under a table: what its signs mean, the protocols, and what is missing."""

from __future__ import annotations

from collections.abc import Iterator

from leaderboard.board import Leaderboard, Row, Section
from leaderboard.labels import DASH

MOST_ROWS, MOST_TASKS = 12, 8  # of the missing that are named; a line of hundreds helps nobody


def legend(section: Section, costs: bool, best: str, bound: str) -> list[str]:
    """Sentences, plain text. best, bound: how the format marks them, e.g. "bold" and "in italics"."""
    lines = [*_spread(section), *_signs(section, best, bound), *_ranks(section), *_trials(section), *_gaps(section)]
    if costs:
        lines.append(
            "Costs are means over a row's students: own s, the student's own training; teacher s, the teacher's "
            "passes, and how many students shared them; memory GB, the largest peak; extra M, millions of "
            "parameters that the method trained beside the student; eval s, all its evaluations."
        )
    return [*lines, *_protocols(section), *_missing(section)]


def problems(board: Leaderboard) -> list[str]:
    """Sentences about record files that could not be read, for the end of everything."""
    return [f"Not in these tables, as it cannot be read: {problem}" for problem in board.problems]


def _spread(section: Section) -> Iterator[str]:
    cells = [(cell, len(row.runs)) for row, line in zip(section.rows, section.cells, strict=True) for cell in line]
    found = [(cell, seeds) for cell, seeds in cells if cell is not None]
    text = "Each cell is a mean over seeds"
    if any(cell.spread is not None for cell, _ in found):
        text += ", ± the sample standard deviation (n - 1)"
    text += "; the column seeds counts them."
    if any(cell.spread is None for cell, _ in found):
        text += " A cell without ± is one seed, whose spread is not known."
    if any(cell.n < seeds for cell, seeds in found):
        text += " (2 of 3): only two of the row's three seeds have this number."
    yield text


def _signs(section: Section, best: str, bound: str) -> Iterator[str]:
    if any(cell and cell.best for line in section.cells for cell in line):
        yield f"The best mean of a column is {best}, ties all; students compete, bounds and reported numbers do not."
    if any(row.kind != "student" for row in section.rows):
        yield f"Rows {bound} are bounds: the teacher itself, and the student as it was before any training."
    if any(row.origin == "reported" for row in section.rows):
        yield "Rows with (reported) are numbers of a publication, not measured here."
    borrowed = [row.label for row in section.rows if row.borrowed]
    if borrowed:
        yield f"Measured on the same model outside this condition: {', '.join(borrowed)}."
    yield "↑: higher is better; ↓: lower is better; %: a fraction times 100."


def has_ranks(section: Section) -> bool:
    """Whether the table has a column of average ranks: where two students or more compete."""
    counted = any(column.primary and column.ranked for column in section.columns)
    return counted and sum(row.competes for row in section.rows) > 1


def _ranks(section: Section) -> Iterator[str]:
    if not has_ranks(section):
        return
    counted = ", ".join(dict.fromkeys(column.title for column in section.columns if column.primary and column.ranked))
    text = f"avg. rank: mean rank over {counted}; 1 is best, ties share the mean of their ranks."
    if any(row.competes and row.average_rank is None for row in section.rows):
        text += f" Only rows with a number in every such column are ranked, against one another; {DASH} for the others."
    yield text


def has_trials(section: Section) -> bool:
    """Whether the table has a column of trials: where a row was tuned."""
    return any(row.trials is not None for row in section.rows)


def _trials(section: Section) -> Iterator[str]:
    if has_trials(section):
        yield (
            "trials: settings among which a row's hyperparameters were chosen, the method as it was configured among "
            f"them; {DASH}: it was not tuned."
        )


def _gaps(section: Section) -> Iterator[str]:
    for low, high in dict.fromkeys((gap.low, gap.high) for gap in section.gaps):
        yield (
            f"recovered: (row - low) / (high - low), low: {low}, high: {high}, of the means over the seeds that all "
            "three have; ± is the sample standard deviation over seeds of each seed's own share, and is left out for "
            "one seed and where some seed's gap is not larger than the gap's spread over seeds."
        )
        if any(cell is None for gap in section.gaps for cell in gap.cells):
            yield (
                f"{DASH} under recovered: a number is missing, or high is not better than low by more than that spread."
            )


def _protocols(section: Section) -> Iterator[str]:
    summaries = {(column.title, column.task_id): "" for column in section.columns}
    for column in section.columns:
        summaries[column.title, column.task_id] = summaries[column.title, column.task_id] or column.summary
    for (title, task_id), summary in summaries.items():
        yield f"Protocol of {title}: {task_id}{', ' + summary if summary else ''}"
    if any(column.title.endswith("]") for column in section.columns):
        yield "A name with [digits] was measured under several protocols; the digits begin the protocol's id."


def _missing(section: Section) -> Iterator[str]:
    found = [(row, _titles_without(section, row, i)) for i, row in enumerate(section.rows)]
    lacking = [(row, titles) for row, titles in found if titles and row.origin == "measured"]
    if not lacking:
        return
    parts = [f"{row.label} lacks {_some(titles, MOST_TASKS)}" for row, titles in lacking[:MOST_ROWS]]
    if len(lacking) > MOST_ROWS:
        parts.append(f"and {len(lacking) - MOST_ROWS} more rows")
    yield f"Missing ({DASH}): {'; '.join(parts)}."


def _titles_without(section: Section, row: Row, i: int) -> list[str]:
    """Columns of row i without a number, by task where all of a task's columns lack it."""
    empty: dict[str, list[str]] = {}
    full: set[str] = set()
    for column, cell in zip(section.columns, section.cells[i], strict=True):
        if cell is None:
            empty.setdefault(column.title, []).append(column.metric)
        else:
            full.add(column.title)
    return [f"{title} ({', '.join(metrics)})" if title in full else title for title, metrics in empty.items()]


def _some(names: list[str], most: int) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
