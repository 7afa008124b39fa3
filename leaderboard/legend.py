"""What stands under a table: what its signs mean, the protocols, and what is missing and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

from leaderboard.board import Cell, Column, Difference, Leaderboard, Missing, Row, Section, SectionKey
from leaderboard.labels import DASH, MINUS, clean
from leaderboard.markup import Markup

MOST_ROWS, MOST_TASKS, MOST_LINES = 6, 8, 12  # that are named; a line of hundreds helps nobody


def legend(sections: Sequence[Section], costs: bool, markup: Markup) -> list[str]:
    """Sentences, plain text, about a table of these sections."""
    rows = [row for section in sections for row in section.rows]
    lines = [*_spread(sections), *_signs(sections, rows, markup), *_ranks(sections), *_trials(sections)]
    lines += [*_gaps(sections), *_differences(sections)]
    if costs:
        lines.append(
            "Costs are means over a row's students: own s, the student's own training; teacher s, the teacher's "
            "passes, and how many students shared them; memory GB, the largest peak; extra M, millions of "
            "parameters that the method trained beside the student; eval s, all its evaluations."
        )
    return [*lines, *_protocols(sections), *_missing(sections), *_failures(rows), *_left_out(sections)]


def heading(section: Section) -> str:
    """`teacher → student on data [condition]`, without what a section does not have."""
    return heading_of(section.key, section.condition)


def heading_of(key: SectionKey, condition: str) -> str:
    """The same of a section's key and its short condition."""
    names = " → ".join(clean(name) for name in (key.teacher, key.student) if name)
    data = f" on {clean(key.data)}" if key.data else ""
    return names + data + (f" [{condition}]" if condition else "")


def group_name(section: Section, sections: Sequence[Section]) -> str:
    """What a section is called among these: by its models alone, unless another has the same."""
    if any(one.key[:2] == section.key[:2] and one is not section for one in sections):
        return heading(section)
    return heading(dataclasses.replace(section, key=section.key._replace(data=""), condition=""))


def problems(board: Leaderboard) -> list[str]:
    """Sentences about record files that could not be read, for the end of everything."""
    return [f"Not in these tables, as it cannot be read: {problem}" for problem in board.problems]


def hints(board: Leaderboard) -> list[str]:
    """What may be done about tasks that stand in several columns, for the screen and not for the table."""
    ids: dict[str, dict[str, None]] = {}
    for column in (column for section in board.sections for column in section.columns):
        ids.setdefault(column.task, {})[column.task_id] = None
    several = {task: list(found) for task, found in ids.items() if len(found) > 1}
    return [
        f"{task} stands in {len(found)} columns, since it was measured under {len(found)} protocols: "
        f"`--tasks {found[0]}` shows one of them, `--exclude {found[0]}` leaves it out, "
        "`singer-bench protocols diff` tells how they differ"
        for task, found in several.items()
    ]


def _measured(sections: Sequence[Section]) -> Iterator[tuple[Row, Cell]]:
    for section in sections:
        for row, line in zip(section.rows, section.cells, strict=True):
            yield from ((row, cell) for cell in line if cell is not None and row.origin == "measured")


def _spread(sections: Sequence[Section]) -> Iterator[str]:
    found = list(_measured(sections))
    if not found:
        return
    text = "Each cell is a mean over seeds"
    if any(cell.spread is not None for _, cell in found):
        text += f", ± the sample standard deviation (n {MINUS} 1)"
    text += "; the column seeds counts them."
    if any(cell.spread is None for _, cell in found):
        text += " A cell without ± is one seed, whose spread is not known."
    if any(cell.n < len(row.runs) for row, cell in found):
        text += " (2 of 3): only two of the row's three seeds have this number."
    if any((row.asked or 0) > len(row.runs) > 0 for section in sections for row in section.rows):
        text += " Under seeds, 2 of 3: the third that was asked for has no result."
    yield text


def _signs(sections: Sequence[Section], rows: Sequence[Row], markup: Markup) -> Iterator[str]:
    cells = [cell for _, cell in _measured(sections)]
    if any(cell.best for cell in cells):
        second = f", the second best {markup.second}" if any(cell.second for cell in cells) else ""
        among = " of its group" if len(sections) > 1 else ""
        yield (
            f"The best mean of a column{among} is {markup.best}, ties all{second}; students compete, bounds and "
            "reported numbers do not."
        )
    if any(row.kind != "student" for row in rows):
        yield f"Rows {markup.bounds} are bounds: the teacher itself, and the student as it was before any training."
    sources = dict.fromkeys(row.source for row in rows if row.origin == "reported")
    if sources:
        named = f" ({'; '.join(filter(None, sources))})" if any(sources) else ""
        yield (
            f"Rows with (reported) are numbers of a publication{named}, not measured here: in brackets, since they are "
            "of the publication's protocol."
        )
    borrowed = list(dict.fromkeys(row.label for row in rows if row.borrowed))
    if borrowed:
        yield f"Measured on the same model outside this condition: {', '.join(borrowed)}."
    yield "↑: higher is better; ↓: lower is better; %: a fraction times 100."


def has_ranks(section: Section) -> bool:
    """Whether the table has a column of average ranks: where two students or more compete."""
    return bool(_ranked(section)) and sum(row.competes for row in section.rows) > 1


def _ranked(section: Section) -> list[Column]:
    """The columns over which ranks are averaged: where a student has a number."""
    lines = [line for row, line in zip(section.rows, section.cells, strict=True) if row.competes]
    return [c for j, c in enumerate(section.columns) if c.primary and c.ranked and any(line[j] for line in lines)]


def _ranks(sections: Sequence[Section]) -> Iterator[str]:
    with_ranks = [section for section in sections if has_ranks(section)]
    if not with_ranks:
        return
    counted = [", ".join(dict.fromkeys(column.title for column in _ranked(section))) for section in with_ranks]
    over, among = counted[0], " among the students of a group" if len(sections) > 1 else ""
    if len(set(counted)) > 1:
        each = zip(with_ranks, counted, strict=True)
        over = (
            f"the tasks that any of them has ({'; '.join(f'{group_name(s, sections)}: {tasks}' for s, tasks in each)})"
        )
    text = f"avg. rank: mean rank{among} over {over}; 1 is best, ties share the mean of their ranks."
    if any(row.competes and row.average_rank is None for section in with_ranks for row in section.rows):
        text += f" Only rows with a number in every such column are ranked, against one another; {DASH} for the others."
    if any(_alone(section) for section in with_ranks):
        text += " One such row alone has no rank."
    yield text


def _alone(section: Section) -> bool:
    """Whether one row alone has all numbers that would be ranked."""
    places = [section.columns.index(column) for column in _ranked(section)]
    lines = [line for row, line in zip(section.rows, section.cells, strict=True) if row.competes]
    return sum(all(line[j] for j in places) for line in lines) == 1


def has_trials(section: Section) -> bool:
    """Whether the table has a column of trials: where a row was tuned."""
    return any(row.trials is not None for row in section.rows)


def _trials(sections: Sequence[Section]) -> Iterator[str]:
    if any(map(has_trials, sections)):
        yield (
            "trials: settings among which a row's hyperparameters were chosen, the method as it was configured among "
            f"them; {DASH}: it was not tuned."
        )


def _gaps(sections: Sequence[Section]) -> Iterator[str]:
    gaps = [gap for section in sections for gap in section.gaps]
    for low, high in dict.fromkeys((gap.low, gap.high) for gap in gaps):
        yield (
            f"recovered: (row - low) / (high - low), low: {low}, high: {high}, of the means over the seeds that all "
            "three have; ± is the sample standard deviation over seeds of each seed's own share, and is left out for "
            "one seed and where some seed's gap is not larger than the gap's spread over seeds."
        )
    if any(cell is None for gap in gaps for cell in gap.cells):
        yield f"{DASH} under recovered: a number is missing, or high is not better than low by more than that spread."


def difference_label(difference: Difference) -> str:
    return f"{difference.label} {MINUS} best other"


def _differences(sections: Sequence[Section]) -> Iterator[str]:
    found = [(section, section.difference) for section in sections if section.difference is not None]
    if not found:
        return
    units = "percentage points where the column has %" if _has_percent(sections) else "the column's unit"
    yield (
        f"{difference_label(found[0][1])}: the difference of the two means, in {units}; ± is the sample standard "
        "deviation of the seeds' own differences, where both have the same seeds. Under ↓ less than 0 is better."
    )
    for section, one in found:
        of: dict[str, list[str]] = {}
        for column, other in zip(section.columns, one.others, strict=True):
            if other is not None:
                of.setdefault(other, []).append(f"{column.title} {clean(column.metric)}")
        where = f" of {group_name(section, sections)}" if len(sections) > 1 else ""
        if len(of) == 1:
            yield f"The best other{where} is {next(iter(of))} everywhere."
        elif of:
            named = "; ".join(f"{other} ({_some(columns, MOST_TASKS)})" for other, columns in of.items())
            yield f"The best others{where}: {named}."


def _has_percent(sections: Sequence[Section]) -> bool:
    return any(column.unit == "fraction" for section in sections for column in section.columns)


def _protocols(sections: Sequence[Section]) -> Iterator[str]:
    summaries: dict[tuple[str, str], str] = {}
    for column in (column for section in sections for column in section.columns if column.data or column.summary):
        summaries[column.title, column.task_id] = summaries.get((column.title, column.task_id), "") or column.summary
    for (title, task_id), summary in summaries.items():
        yield f"Protocol of {title}: {task_id}{', ' + summary if summary else ''}"
    if any(column.title.endswith("]") for section in sections for column in section.columns):
        yield "A name with [digits] was measured under several protocols; the digits begin the protocol's id."


def _missing(sections: Sequence[Section]) -> Iterator[str]:
    """Which measured rows have no number where, those that lack the same together."""
    whys: tuple[tuple[Missing, str], ...] = (
        ("not run", f"Not run ({DASH})"),
        ("no value", "No such number of this encoder (n/a)"),
    )
    for why, title in whys:
        parts = []
        for section in sections:
            lacking: dict[tuple[str, ...], list[str]] = {}
            for i, row in enumerate(section.rows):
                if row.origin == "measured" and (titles := _titles_without(section, i, why)):
                    lacking.setdefault(titles, []).append(row.label)
            said = [
                f"{_some(rows, MOST_ROWS)} lack{'s' * (len(rows) == 1)} {_some(titles, MOST_TASKS)}"
                for titles, rows in lacking.items()
            ]
            if said and len(sections) > 1:
                said[0] = f"{group_name(section, sections)}: {said[0]}"
            parts += said
        if parts:
            yield f"{title}: {_some(parts, MOST_LINES, '; ')}."


def _titles_without(section: Section, i: int, why: Missing) -> tuple[str, ...]:
    """Columns of row i without a number for that reason, by task where all of a task's columns lack it."""
    empty: dict[str, list[str]] = {}
    full: set[str] = set()
    for column, reason in zip(section.columns, section.missing[i], strict=True):
        if reason == why:
            empty.setdefault(column.title, []).append(clean(column.metric))
        else:
            full.add(column.title)
    return tuple(f"{title} ({', '.join(metrics)})" if title in full else title for title, metrics in empty.items())


def _failures(rows: Iterable[Row]) -> Iterator[str]:
    found = [f"{row.label} seed {failure.seed} {failure.reason}" for row in rows for failure in row.failures]
    if found:
        yield f"Training failed: {_some(found, MOST_ROWS, '; ')}."


def _left_out(sections: Sequence[Section]) -> Iterator[str]:
    hidden = sum(section.hidden_rows for section in sections)
    if hidden:
        yield f"Left out by choice: {hidden} row{'s' * (hidden > 1)}; marks and ranks are among those that are shown."
    waiting = list(dict.fromkeys(label for section in sections for label in section.waiting))
    if waiting:
        yield f"Without any result yet, so not shown: {_some(waiting, MOST_ROWS)}."


def _some(names: Sequence[str], most: int, between: str = ", ") -> str:
    rest = len(names) - most
    return between.join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
