"""What a leaderboard holds: sections, columns, rows, cells. Plain frozen values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

Missing = Literal["", "not run", "failed", "no value"]
Name = tuple[str, str, str, str, str]  # what makes a column: task, task id, metric, unit, direction


class SectionKey(NamedTuple):
    """What all rows of a section have in common."""

    teacher: str
    student: str
    data: str
    condition: str


@dataclasses.dataclass(frozen=True)
class Column:
    """One metric of one task under one protocol.

    Attributes:
        title: the task's label, with the protocol's short hash where the label stands for several protocols.
        rank: the metric's place among those the task declares; 0 is the primary one.
        ranked: whether it may count in average ranks; a diagnosis of a model does not.
        shown: whether the short table has it, though it is not the primary one.
        summary: the protocol in a sentence, or "".
        task, kind, data: the task's label and registered name, and the name of its data, or "".
        decimals: after the point where a number is shown to people; None: as many as its size asks for.
    """

    title: str
    task_id: str
    metric: str
    unit: str
    direction: str
    rank: int
    summary: str
    ranked: bool = True
    shown: bool = False
    task: str = ""
    kind: str = ""
    data: str = ""
    decimals: int | None = None

    @property
    def primary(self) -> bool:
        return self.rank == 0

    @property
    def name(self) -> Name:
        """What makes it this column: the same metric in another unit would be another one."""
        return self.task, self.task_id, self.metric, self.unit, self.direction


@dataclasses.dataclass(frozen=True)
class Cell:
    """Mean and sample standard deviation (n - 1) of a metric over a row's n seeds; spread is None for one seed.

    best, second: among the students that are shown and were measured here.
    """

    mean: float
    spread: float | None
    n: int
    best: bool = False
    second: bool = False


@dataclasses.dataclass(frozen=True)
class Costs:
    """Means over a row's runs, None where nothing was recorded. Seconds, gigabytes, numbers of parameters.

    Attributes:
        teacher_s: the group's teacher passes, undivided. group_sizes: how many students shared them, over
        the runs. peak_memory_gb: the largest. evaluation_s: summed over a run's tasks.
    """

    own_s: float | None = None
    teacher_s: float | None = None
    group_sizes: tuple[int, ...] = ()
    peak_memory_gb: float | None = None
    method_parameters: float | None = None
    evaluation_s: float | None = None


@dataclasses.dataclass(frozen=True)
class Failure:
    """A run that gave no student: its seed, and why in a clause."""

    seed: int
    reason: str


@dataclasses.dataclass(frozen=True)
class Row:
    """One method with one set of hyperparameters, or a bound.

    Attributes:
        kind: "student", "teacher" or "untrained". origin: "measured" or "reported".
        runs: their ids, one a seed. average_rank: mean rank over the primary columns among the complete
        rows, 1 is best; None for a row that is not complete, a bound, or a reported one.
        borrowed: a bound of another condition, shown here because it is of the same model.
        trials: settings among which its hyperparameters were chosen; None: it was not tuned.
        asked: seeds that the workspace's experiments name; None: they are not known.
        failures: of these, the ones whose training failed.
        source: where a reported row was published, or "".
    """

    label: str
    kind: str
    origin: str
    method: str
    hyperparameters: Mapping[str, Any]
    runs: tuple[str, ...]
    average_rank: float | None
    costs: Costs
    borrowed: bool
    trials: int | None = None
    asked: int | None = None
    failures: tuple[Failure, ...] = ()
    source: str = ""

    @property
    def competes(self) -> bool:
        """Whether it is a measured student: only these are ranked, or best."""
        return self.kind == "student" and self.origin == "measured"


@dataclasses.dataclass(frozen=True)
class Gap:
    """What each row recovers of the gap from row `low` to row `high` in one column: 1 is all of it, None unknown."""

    low: str
    high: str
    column: Column
    cells: tuple[Cell | None, ...]


@dataclasses.dataclass(frozen=True)
class Difference:
    """Row `label` minus the best other student of each column, in the column's own unit.

    Attributes:
        others: the best other's label, by column; None where there is no number.
        cells: n is how many seeds both have. spread: of the differences seed by seed; None unless both have the
        same seeds, two at least.
    """

    label: str
    others: tuple[str | None, ...]
    cells: tuple[Cell | None, ...]


@dataclasses.dataclass(frozen=True)
class Section:
    """A table. cells[i][j] belongs to rows[i] and columns[j]; None where there is no number, and missing says why.

    Attributes:
        condition: short. gaps, difference: if asked for. hidden_rows: how many were left out by choice.
        waiting: labels of students that the experiments name and of which nothing is known yet.
    """

    key: SectionKey
    condition: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    cells: tuple[tuple[Cell | None, ...], ...]
    missing: tuple[tuple[Missing, ...], ...]
    gaps: tuple[Gap, ...] = ()
    difference: Difference | None = None
    hidden_rows: int = 0
    waiting: tuple[str, ...] = ()

    def with_rows(self, rows: Sequence[Row], cells: Sequence[Sequence[Cell | None]]) -> Section:
        """With more rows at the end, that have no share in gaps."""
        missing = tuple(tuple[Missing, ...]("" if cell else "no value" for cell in line) for line in cells)
        gaps = (dataclasses.replace(gap, cells=(*gap.cells, *[None] * len(rows))) for gap in self.gaps)
        return dataclasses.replace(
            self,
            rows=(*self.rows, *rows),
            cells=(*self.cells, *map(tuple, cells)),
            missing=(*self.missing, *missing),
            gaps=tuple(gaps),
        )

    def in_order(self, order: Sequence[int]) -> Section:
        """With its rows in another order, by their numbers."""
        gaps = (dataclasses.replace(gap, cells=tuple(gap.cells[i] for i in order)) for gap in self.gaps)
        return dataclasses.replace(
            self,
            rows=tuple(self.rows[i] for i in order),
            cells=tuple(self.cells[i] for i in order),
            missing=tuple(self.missing[i] for i in order),
            gaps=tuple(gaps),
        )


@dataclasses.dataclass(frozen=True)
class Leaderboard:
    """All tables of a workspace.

    Attributes:
        costs: whether texts have cost columns. grouped: one table, in which each section is a group of rows.
        title: of a grouped table. notes: sentences for the end of everything.
        problems: sentences about record files that could not be read.
    """

    sections: tuple[Section, ...]
    costs: bool = False
    problems: tuple[str, ...] = ()
    grouped: bool = False
    title: str = ""
    notes: tuple[str, ...] = ()
