"""Which rows and columns a table shows, by the names that people give: labels, globs, a protocol's first digits."""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from harness.errors import UserError, unknown
from leaderboard.board import Column, Row
from leaderboard.drafts import Draft, retitled

Names = str | Sequence[str]  # names with commas between, or a list of them

_ID = re.compile(r"[0-9a-f]{4,}")  # the first digits of a protocol's hash; fewer may be a word
_Task = tuple[str, str]  # label, id


@dataclasses.dataclass(frozen=True)
class Choice:
    """What is shown. None: everything; metrics: "primary", "all" and names, in the order in which they are given.

    Attributes:
        rows: labels, methods where no label is called so, or globs of labels. tasks: titles, labels, the first digits
        of a protocol's id, or globs. exclude: any of these, or metrics.
    """

    rows: Names | None = None
    tasks: Names | None = None
    metrics: Names = "primary"
    exclude: Names | None = None


def names(given: Names | None, known: Collection[str]) -> list[str]:
    """The names in a text with commas between; a known name that has commas itself is taken as one.

    Of all ways to read the text, the one with the fewest unknown names, then with the fewest names; then the first
    name is as long as it can be.

    >>> names("x10, warm-up .1, fitnet", ["x10, warm-up .1", "fitnet"])
    ['x10, warm-up .1', 'fitnet']
    """
    if given is None or not isinstance(given, str):
        return list(given or ())
    parts = given.split(",")
    best: list[tuple[int, int, list[str]]] = [(0, 0, [])]  # of the parts from i on, the last i first
    for i in reversed(range(len(parts))):
        ways = []
        for j in range(len(parts), i, -1):
            name, (strange, many, after) = ",".join(parts[i:j]).strip(), best[len(parts) - j]
            if name in known:
                ways.append((strange, many + 1, [name, *after]))
            elif j == i + 1:
                ways.append((strange + bool(name), many + bool(name), [name, *after] if name else after))
        best.append(min(ways, key=lambda way: way[:2]))
    return best[-1][2]


@dataclasses.dataclass(frozen=True)
class Chosen:
    """What a choice comes to.

    Attributes:
        drafts: with the columns that are shown, in their order; without a draft that has none.
        places: label of a named row -> its place; None where no row is named. excluded: labels of rows.
    """

    drafts: tuple[Draft, ...]
    places: Mapping[str, int] | None
    excluded: frozenset[str]

    def shows(self, row: Row) -> bool:
        return self.names(row.label)

    def names(self, label: str) -> bool:
        """Whether a row called so is shown."""
        return label not in self.excluded and (self.places is None or label in self.places)


def choose(drafts: Sequence[Draft], choice: Choice) -> Chosen:
    """Names -> columns and rows.

    Raises:
        UserError: a name that nothing is called, or nothing is left to show.
    """
    columns = [column for draft in drafts for column in draft.columns]
    rows = [line.row for draft in drafts for line in draft.lines]
    order, shows = _task_order(choice.tasks, columns), _metric_order(choice.metrics, columns)
    in_order = choice.tasks is not None or choice.metrics not in ("primary", "all")  # else what ranks comes first
    no_task, no_metric, no_row = _excluded(choice.exclude, columns, rows)
    found = []
    for draft in drafts:
        placed = []
        for place, column in enumerate(draft.columns):
            task, metric = (column.task, column.task_id), shows(column)
            if metric is not None and task in order and task not in no_task and column.metric not in no_metric:
                placed.append((*((order[task], metric) if in_order else ()), place, column))
        mine = tuple(column for *_, column in sorted(placed, key=lambda p: p[:-1]))
        if mine:
            found.append(dataclasses.replace(draft, columns=mine))
    chosen = Chosen(tuple(retitled(found)), _row_places(choice.rows, rows), frozenset(no_row))
    if drafts and not any(chosen.shows(line.row) for draft in found for line in draft.lines):
        raise UserError("nothing is left to show: no row has a column that is neither excluded nor not named")
    return chosen


def rows_called(name: str, rows: Iterable[Row]) -> set[str]:
    """Labels of the rows that a name means: that very label, else all of that method, else all that the glob fits."""
    every = list(rows)
    labels = {row.label for row in every}
    by_method = {row.label for row in every if row.method == name}
    return ({name} & labels) or by_method or _called(name, labels)


def _row_places(given: Names | None, rows: Sequence[Row]) -> dict[str, int] | None:
    if given is None:
        return None
    known = _labels(rows)
    places: dict[str, int] = {}
    for place, name in enumerate(names(given, known)):
        called = rows_called(name, rows)
        if not called:
            raise UserError(unknown("row", name, known))
        places = {**dict.fromkeys(called, place), **places}
    return places


def _labels(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(row.label for row in rows))


def _called(name: str, known: Collection[str]) -> set[str]:
    """Which of the known names are meant: that very one, else all that the glob fits."""
    if name in known:
        return {name}
    return {one for one in known if fnmatch.fnmatchcase(one, name)}


def _tasks_called(name: str, columns: Iterable[Column]) -> list[_Task]:
    """Tasks that a name means, in the order of the columns: by title, label, glob, or the first digits of the id."""
    tasks = {(column.task, column.task_id): column.title for column in columns}
    ways: tuple[Callable[[_Task, str], bool], ...] = (
        lambda task, title: title == name,
        lambda task, title: task[0] == name,
        lambda task, title: fnmatch.fnmatchcase(title, name) or fnmatch.fnmatchcase(task[0], name),
        lambda task, title: task[1].startswith(name) and _ID.fullmatch(name) is not None,
    )
    found = ([task for task, title in tasks.items() if means(task, title)] for means in ways)
    return next(filter(None, found), [])


def _task_order(given: Names | None, columns: Sequence[Column]) -> dict[_Task, int]:
    """The tasks that are shown -> their place; that of their first column where none is named."""
    tasks = list(dict.fromkeys((column.task, column.task_id) for column in columns))
    if given is not None:
        known = _task_names(columns)
        found = {name: _tasks_called(name, columns) for name in names(given, known)}
        for name in (name for name, called in found.items() if not called):
            raise UserError(unknown("task", name, known))
        tasks = list(dict.fromkeys(task for called in found.values() for task in called))
    return {task: place for place, task in enumerate(tasks)}


def _task_names(columns: Iterable[Column]) -> list[str]:
    return list(dict.fromkeys(name for column in columns for name in (column.title, column.task)))


def _metric_order(given: Names, columns: Sequence[Column]) -> Callable[[Column], int | None]:
    """A column's place among its task's, or None where its metric is not shown."""
    known = {column.metric for column in columns}
    asked = names(given, known)
    choices: list[Callable[[Column], bool]] = []
    for name in asked:
        if name == "all":
            choices.append(lambda column: True)
        elif name == "primary":
            choices.append(lambda column: column.primary or column.shown)
        elif called := _called(name, known):
            choices.append(lambda column, called=called: column.metric in called)
        else:
            raise UserError(unknown("metric", name, [*known, "all", "primary"]))
    return lambda column: next((place for place, wanted in enumerate(choices) if wanted(column)), None)


def _excluded(
    given: Names | None, columns: Sequence[Column], rows: Sequence[Row]
) -> tuple[set[_Task], set[str], set[str]]:
    """Tasks, metrics and labels of rows that are left out."""
    labels, metrics = _labels(rows), {column.metric for column in columns}
    known = [*labels, *_task_names(columns), *metrics]
    no_task: set[_Task] = set()
    no_metric: set[str] = set()
    no_row: set[str] = set()
    for name in names(given, known):
        found = _tasks_called(name, columns), _called(name, metrics), rows_called(name, rows)
        if not any(found):
            raise UserError(f"--exclude: {unknown('row, task or metric', name, known)}")
        no_task.update(found[0])
        no_metric.update(found[1])
        no_row.update(found[2])
    return no_task, no_metric, no_row
