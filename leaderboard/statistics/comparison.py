"""What a comparison holds: pairs, ranks, sentences. Plain frozen values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

from leaderboard.board import Column, SectionKey

Scope = Literal["seeds", "items", "tasks", "ranks", "data"]


@dataclasses.dataclass(frozen=True)
class Interval:
    """A paired bootstrap interval of the difference, in the column's unit.

    Attributes:
        of: what was resampled, "seeds", "items" or "seeds and items". confidence: what it can claim; few seeds cannot
        cover more than 1 - 2/2^n, whatever is asked for.
    """

    low: float
    high: float
    of: str
    confidence: float


@dataclasses.dataclass(frozen=True)
class Significance:
    """p two-sided; adjusted: by Holm over the family of the section; smallest: the least p that it could have given."""

    p: float
    adjusted: float
    smallest: float

    def below(self, level: float) -> bool:
        return self.adjusted < level


@dataclasses.dataclass(frozen=True)
class Pair:
    """The chosen method against another row in one column.

    Attributes:
        other: the row's label. column: its number in the section.
        difference: method minus other, mean over the seeds that both have, in the column's unit and with its sign.
        better: 1, 0 or -1: whether the method is better, equal but for rounding, or worse.
        seeds: that both have. unpaired: that one of them has alone.
        items: how many test items are compared; None: not by item.
        independent: whether each of them is a draw of its own; where not, by_item is about these items alone.
        effect: Cohen's d_z over seeds, positive where the method is better; None: fewer than three, or no spread.
        superiority: share of the seeds on which the method is better, ties half.
        note: why there is no comparison by item, or "".
    """

    other: str
    column: int
    difference: float
    better: int
    seeds: tuple[int, ...]
    unpaired: tuple[int, ...]
    items: int | None
    interval: Interval | None
    by_seed: Significance | None
    by_item: Significance | None
    effect: float | None
    superiority: float
    note: str = ""
    independent: bool = True


@dataclasses.dataclass(frozen=True)
class OverTasks:
    """Wilcoxon's signed-rank test of the columns' differences, each over the spread of its column's students.

    better: 1, 0 or -1, by the sum of the signed ranks.
    """

    other: str
    tasks: int
    better: int
    test: Significance


@dataclasses.dataclass(frozen=True)
class Ranks:
    """Average ranks over tasks, 1 is best, of the rows that have every task; from the best.

    Attributes:
        statistic, p: Friedman's, which of two rows is the sign test's. critical_difference: Nemenyi's.
        bars: first and last row (numbers) of every group that is not told apart, of two at least.
    """

    labels: tuple[str, ...]
    average: tuple[float, ...]
    tasks: int
    statistic: float
    p: float
    critical_difference: float
    level: float
    bars: tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Statement:
    """One sentence, and what it is about. other: the row, or "" where it is about all."""

    scope: Scope
    text: str
    other: str = ""


@dataclasses.dataclass(frozen=True)
class SectionComparison:
    """One teacher, student, data and condition.

    Attributes:
        method: label of the row that is compared with the others; "" where the section has none.
        columns: the primary metrics that rank. missing: (other, number of a column) without a number of both.
        ranks: None where there is nothing to rank. families: scope -> how many comparisons Holm's adjustment counts.
    """

    key: SectionKey
    condition: str
    method: str
    others: tuple[str, ...]
    columns: tuple[Column, ...]
    pairs: tuple[Pair, ...]
    over_tasks: tuple[OverTasks, ...]
    missing: tuple[tuple[str, int], ...]
    ranks: Ranks | None
    families: Mapping[str, int]
    statements: tuple[Statement, ...]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All sections. level: of significance. problems: sentences about items that could not be read."""

    level: float
    sections: tuple[SectionComparison, ...]
    problems: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        """As JSON holds it: no number in it is infinite or NaN."""
        return {
            "level": self.level,
            "sections": [_section(section) for section in self.sections],
            "problems": list(self.problems),
        }


def _section(section: SectionComparison) -> dict[str, Any]:
    columns = [
        {
            "title": column.title,
            "task_id": column.task_id,
            "metric": column.metric,
            "unit": column.unit,
            "direction": column.direction,
        }
        for column in section.columns
    ]
    return {
        **section.key._asdict(),
        "method": section.method,
        "others": list(section.others),
        "columns": columns,
        "pairs": [_finite(dataclasses.asdict(pair)) for pair in section.pairs],
        "over_tasks": [_finite(dataclasses.asdict(one)) for one in section.over_tasks],
        "missing": [{"other": other, "column": column} for other, column in section.missing],
        "ranks": None if section.ranks is None else _finite(dataclasses.asdict(section.ranks)),
        "families": dict(section.families),
        "statements": [dataclasses.asdict(statement) for statement in section.statements],
    }


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
