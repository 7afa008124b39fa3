"""Records -> what a leaderboard says. Pure functions; nothing is formatted here.

One section per (teacher, student, data, condition): methods are compared under equal conditions or not at
all. In a section a column is one metric of one task under one protocol, and a row one method with one set of
hyperparameters over its seeds.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from harness.errors import UserError, unknown
from harness.records import MetricInfo, Record, RunInfo
from harness.seeds import content_hash
from leaderboard.board import Cell, Column, Costs, Leaderboard, Row, Section, SectionKey
from leaderboard.gap import check_gap, gap_columns
from leaderboard.labels import clean, short_hashes, unique_labels
from leaderboard.ranking import average_ranks, mark_best, mean_and_spread

Titles = Mapping[tuple[str, str], str]  # (task label, task id) -> column title
Name = tuple[str, str, str, str, str]  # a column's identity: title, task id, metric, unit, direction
Wanted = Callable[[str, MetricInfo], bool]


def rows_and_columns(
    records: Iterable[Record],
    *,
    metrics: str | Sequence[str] = "primary",
    costs: bool = False,
    problems: Iterable[object] = (),
    gap: tuple[str, str] | None = None,
) -> Leaderboard:
    """The leaderboard of these records, whatever their order.

    Args:
        metrics: "primary" (the first of each task, and what it declares as shown beside it), "all", or a list of
            metric names besides the first ones.
        costs: whether the tables show cost columns.
        problems: what `read_records` could not read, to be said under the tables.
        gap: labels of two rows; the tables show what every row recovers of the gap between them.

    Raises:
        UserError: a metric that no record has, or rows between which there is no gap.
        ValueError: two records of the same run and task id.
    """
    ordered = sorted(records, key=lambda r: (r.run.id, r.task_id))
    for one, other in itertools.pairwise(ordered):
        if (one.run.id, one.task_id) == (other.run.id, other.task_id):
            raise ValueError(f"two records of run {one.run.id} on task {one.task_id}")
    titles = _titles(ordered)
    wanted = _wanted(ordered, metrics)
    short = short_hashes([r.run.condition for r in ordered])
    sections = [
        _section(key, short[key.condition], own, borrowed, titles, wanted, gap)
        for key, (own, borrowed) in sorted(_homes(ordered).items())
    ]
    if gap is not None:
        check_gap(sections, *gap)
    return Leaderboard(tuple(sections), costs, tuple(clean(str(p)) for p in problems))


def _titles(records: Sequence[Record]) -> Titles:
    """(task label, task id) -> title. A label with several protocols gets the protocol's hash."""
    ids: dict[str, set[str]] = {}
    for record in records:
        ids.setdefault(clean(record.task), set()).add(record.task_id)
    short = short_hashes([record.task_id for record in records])
    titles = {}
    for task, task_id in {(r.task, r.task_id) for r in records}:
        label = clean(task)
        titles[task, task_id] = label if len(ids[label]) == 1 else f"{label} [{short[task_id]}]"
    return titles


def _wanted(records: Sequence[Record], metrics: str | Sequence[str]) -> Wanted:
    """Whether a metric that is not its task's first is to be shown: name, declaration -> bool."""
    if metrics == "all":
        return lambda name, info: True
    if metrics == "primary":
        return lambda name, info: info.shown
    if isinstance(metrics, str):
        raise UserError(f"metrics: {unknown('choice', metrics, ['all', 'primary'])}, or a list of metric names")
    known = {name for record in records for name in record.metrics}
    for name in metrics:
        if name not in known:
            raise UserError(unknown("metric", name, known))
    return lambda name, info: name in metrics


def _homes(records: Sequence[Record]) -> dict[SectionKey, tuple[list[Record], list[Record]]]:
    """Section -> its own records, and the bounds' records of other conditions that are shown in it too.

    A bound belongs to the sections of its condition. Where there is none (a teacher does not depend on how
    the student is trained) it is shown in every section of the same model.
    """
    students = {_key(r.run) for r in records if r.run.kind == "student"}
    homes: dict[SectionKey, tuple[list[Record], list[Record]]] = {key: ([], []) for key in students}
    for record in records:
        run, key = record.run, _key(record.run)
        if run.kind == "student":
            homes[key][0].append(record)
            continue
        own = [k for k in students if k.condition == run.condition]
        others = [] if own else [k for k in students if _same_model(run, k)]
        for home in own:
            homes[home][0].append(record)
        for home in others:
            homes[home][1].append(record)
        if not own and not others:
            homes.setdefault(key, ([], []))[0].append(record)
    return homes


def _key(run: RunInfo) -> SectionKey:
    return SectionKey(run.teacher, run.student, run.data, run.condition)


def _same_model(run: RunInfo, key: SectionKey) -> bool:
    if run.kind == "teacher":
        return run.teacher == key.teacher
    return run.student == key.student and run.teacher in ("", key.teacher)


def _section(
    key: SectionKey,
    condition: str,
    own: Sequence[Record],
    borrowed: Sequence[Record],
    titles: Titles,
    wanted: Wanted,
    gap: tuple[str, str] | None,
) -> Section:
    columns = _columns(own, titles, wanted)
    strangers = {r.run.id for r in borrowed}
    groups = _groups([*own, *borrowed])
    found = {name: _cells(columns, runs, titles) for name, runs in groups.items()}
    for name in [n for n, runs in groups.items() if runs[0][0].run.id in strangers and not any(found[n])]:
        del groups[name]  # a borrowed bound without a number here says nothing
    labels = unique_labels(
        {name: (runs[0][0].run.label, runs[0][0].run.hyperparameters, name) for name, runs in groups.items()}
    )
    rows = [_row(labels[name], runs, runs[0][0].run.id in strangers) for name, runs in groups.items()]
    cells = [found[name] for name in groups]
    cells = mark_best(columns, rows, cells)
    ranks = average_ranks(columns, rows, cells)
    rows = [dataclasses.replace(row, average_rank=rank) for row, rank in zip(rows, ranks, strict=True)]
    order = sorted(range(len(rows)), key=lambda i: _place(rows[i]))
    rows, cells = [rows[i] for i in order], [cells[i] for i in order]
    gaps = ()
    if gap is not None:
        runs_of = list(groups.values())
        gaps = gap_columns(columns, rows, [_by_seed(columns, runs_of[i], titles) for i in order], *gap)
    return Section(key, condition, columns, tuple(rows), tuple(cells), gaps)


def _place(row: Row) -> tuple[Any, ...]:
    """Teachers on top, students from the best, incomplete ones after them, reported ones, untrained ones."""
    group = 0 if row.kind == "teacher" else 3 if row.kind == "untrained" else 1 if row.competes else 2
    return group, row.average_rank is None, row.average_rank or 0.0, row.label


def _columns(records: Sequence[Record], titles: Titles, wanted: Wanted) -> tuple[Column, ...]:
    """What ranks first, then by title, then as the task declares its metrics."""
    found: dict[Name, tuple[int, str, bool]] = {}
    for record in records:
        title = titles[record.task, record.task_id]
        summary = record.protocol.get("summary")
        for rank, (metric, info) in enumerate(record.metrics.items()):
            if rank == 0 or wanted(metric, info):
                name = (title, record.task_id, metric, info.unit, info.direction)
                place = (rank, summary if isinstance(summary, str) else "", info.ranked)
                found[name] = min(found.get(name, place), place)  # of those that records of one protocol give
    columns = [
        Column(*name, rank, clean(summary) if summary else "", ranked)
        for name, (rank, summary, ranked) in found.items()
    ]
    return tuple(sorted(columns, key=lambda c: (not c.ranked, c.title, c.task_id, c.rank, c.name)))


def _groups(records: Sequence[Record]) -> dict[str, list[list[Record]]]:
    """Hash of a row's identity -> its runs, one a seed, each the list of its records.

    Runs make one row if they are of the same kind, origin, label, method and hyperparameters and nothing but
    the seed differs in what was hashed into their ids.
    """
    by_run: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        by_run.setdefault((record.run.id, record.run.label, record.origin), []).append(record)
    groups: dict[str, list[list[Record]]] = {}
    for of_run in by_run.values():
        run = of_run[0].run
        spec = {name: value for name, value in run.spec.items() if name != "seed"}
        identity = [run.kind, of_run[0].origin, run.label, run.method, run.hyperparameters, spec]
        groups.setdefault(content_hash(identity), []).append(of_run)
    split: dict[str, list[list[Record]]] = {}
    for name, runs in groups.items():
        if len({of_run[0].run.seed for of_run in runs}) == len(runs):
            split[name] = runs
        else:  # one seed twice: something that the record does not tell differs, so nothing is merged
            split.update({content_hash([name, of_run[0].run.id]): [of_run] for of_run in runs})
    return {name: split[name] for name in sorted(split)}


def _cells(columns: Sequence[Column], runs: Sequence[Sequence[Record]], titles: Titles) -> tuple[Cell | None, ...]:
    """A row's cells. Its runs come in any order."""
    values: dict[Name, list[float]] = {}
    for record in (r for of_run in runs for r in of_run):
        title = titles[record.task, record.task_id]
        for metric, value in record.values.items():
            info = record.metrics[metric]
            values.setdefault((title, record.task_id, metric, info.unit, info.direction), []).append(value)
    found = [values.get(column.name) for column in columns]
    return tuple(Cell(*mean_and_spread(v), len(v)) if v else None for v in found)


def _by_seed(columns: Sequence[Column], runs: Sequence[Sequence[Record]], titles: Titles) -> list[dict[int, float]]:
    """A row's values in each column, by its runs' seeds, which differ."""
    places = {column.name: j for j, column in enumerate(columns)}
    found: list[dict[int, float]] = [{} for _ in columns]
    for record in (r for of_run in runs for r in of_run):
        title = titles[record.task, record.task_id]
        for metric, value in record.values.items():
            info = record.metrics[metric]
            j = places.get((title, record.task_id, metric, info.unit, info.direction))
            if j is not None:
                found[j][record.run.seed] = value
    return found


def _row(label: str, runs: Sequence[Sequence[Record]], borrowed: bool) -> Row:
    first = runs[0][0]
    return Row(
        label=label,
        kind=first.run.kind,
        origin=first.origin,
        method=first.run.method,
        hyperparameters=first.run.hyperparameters,
        runs=tuple(sorted(of_run[0].run.id for of_run in runs)),
        average_rank=None,
        costs=_costs(runs),
        borrowed=borrowed,
        trials=max((r.run.trials for of_run in runs for r in of_run if r.run.trials is not None), default=None),
    )


def _costs(runs: Sequence[Sequence[Record]]) -> Costs:
    def of_runs(field: str) -> list[float]:
        """A run's records repeat what its training cost: the largest, where they differ."""
        found = ([getattr(r.cost, field) for r in of_run if getattr(r.cost, field) is not None] for of_run in runs)
        return [max(values) for values in found if values]

    def mean(values: Sequence[float]) -> float | None:
        return math.fsum(values) / len(values) if values else None

    seconds = [[r.cost.evaluation_s for r in of_run if r.cost.evaluation_s is not None] for of_run in runs]
    return Costs(
        own_s=mean(of_runs("own_s")),
        teacher_s=mean(of_runs("teacher_s")),
        group_sizes=tuple(sorted({int(size) for size in of_runs("group_size")})),
        peak_memory_gb=max(of_runs("peak_memory_gb"), default=None),
        method_parameters=mean(of_runs("method_parameters")),
        evaluation_s=mean([math.fsum(s) for s in seconds if s]),
    )
