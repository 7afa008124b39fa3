"""What a leaderboard holds: sections, columns, rows, cells. Plain frozen values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple


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
        summary: the protocol in a sentence, or "".
    """

    title: str
    task_id: str
    metric: str
    unit: str
    direction: str
    rank: int
    summary: str
    ranked: bool = True

    @property
    def primary(self) -> bool:
        return self.rank == 0

    @property
    def name(self) -> tuple[str, str, str, str, str]:
        """What makes it this column: the same metric in another unit would be another one."""
        return self.title, self.task_id, self.metric, self.unit, self.direction


@dataclasses.dataclass(frozen=True)
class Cell:
    """Mean and sample standard deviation (n - 1) of a metric over a row's n seeds; spread is None for one seed."""

    mean: float
    spread: float | None
    n: int
    best: bool = False


@dataclasses.dataclass(frozen=True)
class Costs:
    """Means over a row's runs, None where nothing was recorded. Seconds, gigabytes, numbers of parameters.

    Attributes:
        teacher_s: the group's teacher passes, undivided. group_sizes: how many students shared them, over
        the runs. peak_memory_gb: the largest. evaluation_s: summed over a run's tasks.
    """

    own_s: float | None
    teacher_s: float | None
    group_sizes: tuple[int, ...]
    peak_memory_gb: float | None
    method_parameters: float | None
    evaluation_s: float | None


@dataclasses.dataclass(frozen=True)
class Row:
    """One method with one set of hyperparameters, or a bound.

    Attributes:
        kind: "student", "teacher" or "untrained". origin: "measured" or "reported".
        runs: their ids, one a seed. average_rank: mean rank over the primary columns among the complete
        rows, 1 is best; None for a row that is not complete, a bound, or a reported one.
        borrowed: a bound of another condition, shown here because it is of the same model.
        trials: settings among which its hyperparameters were chosen; None: it was not tuned.
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
class Section:
    """A table. cells[i][j] belongs to rows[i] and columns[j]; None where nothing was measured. gaps: if asked for."""

    key: SectionKey
    condition: str  # short
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    cells: tuple[tuple[Cell | None, ...], ...]
    gaps: tuple[Gap, ...] = ()


@dataclasses.dataclass(frozen=True)
class Leaderboard:
    """All tables of a workspace. problems: sentences about record files that could not be read."""

    sections: tuple[Section, ...]
    costs: bool = False
    problems: tuple[str, ...] = ()
