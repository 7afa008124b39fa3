"""Records -> sections before anything is chosen, counted or ranked: every column, every row, its values by seed.

One section per (teacher, student, data, condition): methods are compared under equal conditions or not at
all. In a section a column is one metric of one task under one protocol, and a row one method with one set of
hyperparameters over its seeds.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from harness.records import Record, RunInfo
from harness.seeds import content_hash
from leaderboard.board import Column, Costs, Failure, Name, Row, SectionKey
from leaderboard.labels import clean, short_hashes, unique_labels

Values = Mapping[Name, Mapping[int, float]]  # a column's name -> seed -> value


class Asked(NamedTuple):
    """A student that an experiment names; why its training failed, in a clause, or None."""

    run: RunInfo
    failure: str | None


@dataclasses.dataclass(frozen=True)
class Line:
    """A row with its values; recorded: ids of the tasks on which it has a record, whatever that holds."""

    row: Row
    values: Values
    recorded: frozenset[str]


@dataclasses.dataclass(frozen=True)
class Draft:
    """A section with all that its records hold. waiting: labels of students of which nothing is known yet."""

    key: SectionKey
    condition: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    waiting: tuple[str, ...] = ()


def drafts(records: Iterable[Record], asked: Sequence[Asked] = ()) -> list[Draft]:
    """The sections of these records, whatever their order, and of students that failed.

    Raises:
        ValueError: two records of the same run and task id.
    """
    ordered = sorted(records, key=lambda r: (r.run.id, r.task_id))
    for one, other in itertools.pairwise(ordered):
        if (one.run.id, one.task_id) == (other.run.id, other.task_id):
            raise ValueError(f"two records of run {one.run.id} on task {one.task_id}")
    homes = _homes(ordered, [run for run, failure in asked if failure is not None])
    mine: dict[SectionKey, list[Asked]] = {}
    for one in asked:
        mine.setdefault(_key(one.run), []).append(one)
    short = short_hashes([key.condition for key in homes])
    found = [
        _draft(key, short[key.condition], own, borrowed, mine.get(key, ()))
        for key, (own, borrowed) in sorted(homes.items())
    ]
    return retitled(found)


def retitled(found: Sequence[Draft]) -> list[Draft]:
    """The drafts with columns called by their task's label, and its protocol's hash where it has several of them."""
    ids: dict[str, set[str]] = {}
    for column in (c for draft in found for c in draft.columns):
        ids.setdefault(column.task, set()).add(column.task_id)
    short = short_hashes([one for several in ids.values() for one in several])

    def titled(column: Column) -> Column:
        title = column.task if len(ids[column.task]) == 1 else f"{column.task} [{short[column.task_id]}]"
        return dataclasses.replace(column, title=title)

    return [dataclasses.replace(draft, columns=tuple(map(titled, draft.columns))) for draft in found]


def _homes(records: Sequence[Record], failed: Sequence[RunInfo]) -> dict[SectionKey, tuple[list[Record], list[Record]]]:
    """Section -> its own records, and the bounds' records of other conditions that are shown in it too.

    A bound belongs to the sections of its condition. Where there is none (a teacher does not depend on how
    the student is trained) it is shown in every section of the same model.
    """
    students = {_key(r.run) for r in records if r.run.kind == "student"} | {_key(run) for run in failed}
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


def _draft(
    key: SectionKey, condition: str, own: Sequence[Record], borrowed: Sequence[Record], asked: Sequence[Asked]
) -> Draft:
    strangers = {r.run.id for r in borrowed}
    columns = _columns(own)
    groups = _groups([*own, *borrowed])
    lines = {name: _line(runs, runs[0][0].run.id in strangers) for name, runs in groups.items()}
    measured = {column.name for column in columns}
    for name in [name for name, line in lines.items() if line.row.borrowed and not measured & line.values.keys()]:
        del groups[name], lines[name]  # a borrowed bound without a number here says nothing
    naming = {name: (runs[0][0].run.label, runs[0][0].run.hyperparameters, name) for name, runs in groups.items()}
    places = {run_id: name for name, line in lines.items() for run_id in line.row.runs}
    unlabelled = {_identity(runs[0][0].run): name for name, runs in groups.items()} if asked else {}
    waiting = []
    for identity, members in _by_identity(asked).items():
        known = (places.get(one.run.id) for one in members)
        name = next((place for place in known if place is not None), unlabelled.get(identity))
        first, failures = members[0].run, _failures([one for one in members if one.run.id not in places])
        if name is not None:
            seeds = {one.run.seed for one in members}
            changed = dataclasses.replace(lines[name].row, asked=len(seeds), failures=failures)
            lines[name] = dataclasses.replace(lines[name], row=changed)
        elif failures:
            lines[identity] = _without_records(first, len(members), failures)
            naming[identity] = (first.label, first.hyperparameters, identity)
        else:
            waiting.append(clean(first.label))
    labels = unique_labels(naming)
    named = [
        dataclasses.replace(lines[name], row=dataclasses.replace(lines[name].row, label=labels[name]))
        for name in sorted(lines)
    ]
    return Draft(key, condition, columns, tuple(named), tuple(sorted(waiting)))


def _columns(records: Sequence[Record]) -> tuple[Column, ...]:
    """What ranks first, then by label, then as the task declares its metrics. Titles are given later."""
    found: dict[Name, tuple[int, str, bool, bool, str, str]] = {}
    for record in records:
        task, summary, data = clean(record.task), record.protocol.get("summary"), record.protocol.get("data")
        said = clean(summary) if isinstance(summary, str) and summary else ""
        of = data.get("name") if isinstance(data, dict) else None
        about = (clean(record.task_kind), clean(of) if isinstance(of, str) else "")
        for rank, (metric, info) in enumerate(record.metrics.items()):
            name = (task, record.task_id, metric, info.unit, info.direction)
            place = (rank, said, info.ranked, info.shown, *about)
            found[name] = min(found.get(name, place), place)  # of those that records of one protocol give
    columns = [
        Column("", task_id, metric, unit, direction, rank, summary, ranked, shown, task, kind, data)
        for (task, task_id, metric, unit, direction), (rank, summary, ranked, shown, kind, data) in found.items()
    ]
    return tuple(sorted(columns, key=lambda c: (not c.ranked, c.task, c.task_id, c.rank, c.name)))


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
        groups.setdefault(content_hash([_identity(run), of_run[0].origin, run.label]), []).append(of_run)
    split: dict[str, list[list[Record]]] = {}
    for name, runs in groups.items():
        if len({of_run[0].run.seed for of_run in runs}) == len(runs):
            split[name] = runs
        else:  # one seed twice: something that the record does not tell differs, so nothing is merged
            split.update({content_hash([name, of_run[0].run.id]): [of_run] for of_run in runs})
    return {name: split[name] for name in sorted(split)}


def _identity(run: RunInfo) -> str:
    """Hash of what the seeds of a row have in common, whatever the row is called."""
    spec = {name: value for name, value in run.spec.items() if name != "seed"}
    return content_hash([run.kind, run.method, run.hyperparameters, spec])


def _by_identity(asked: Sequence[Asked]) -> dict[str, list[Asked]]:
    found: dict[str, list[Asked]] = {}
    for one in asked:
        found.setdefault(_identity(one.run), []).append(one)
    return found


def _failures(members: Sequence[Asked]) -> tuple[Failure, ...]:
    found = {Failure(one.run.seed, clean(one.failure)) for one in members if one.failure is not None}
    return tuple(sorted(found, key=lambda failure: (failure.seed, failure.reason)))


def _line(runs: Sequence[Sequence[Record]], borrowed: bool) -> Line:
    first, values = runs[0][0], {}
    for record in (r for of_run in runs for r in of_run):
        task = clean(record.task)
        for metric, value in record.values.items():
            info = record.metrics[metric]
            name = (task, record.task_id, metric, info.unit, info.direction)
            values.setdefault(name, {})[record.run.seed] = value
    row = Row(
        label="",
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
    return Line(row, values, frozenset(r.task_id for of_run in runs for r in of_run))


def _without_records(run: RunInfo, asked: int, failures: tuple[Failure, ...]) -> Line:
    kind, method, hyperparameters = run.kind, run.method, run.hyperparameters
    row = Row("", kind, "measured", method, hyperparameters, (), None, Costs(), False, run.trials, asked, failures)
    return Line(row, {}, frozenset())


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
