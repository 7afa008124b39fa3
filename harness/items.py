"""One value a test item beside a task's numbers: what statistics over items need. numpy only.

A task gives `Scores`, a dict of its numbers that carries `Items`. A metric's number is made of its items by a rule:
terms of each item are added up over the test set, and the number is a function of the sums. So it can be made again
from any resample of the items, and of the items of two methods swapped.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

NEAR = 1e-5  # relative; items are float32 at most, so a number that is made of them again differs by rounding
ROUNDING = 10 * NEAR  # NEAR holds for the small test sets of the contract, and rounding grows with their size


class Rule(NamedTuple):
    """terms: columns, [n] or [n, C] each -> [n, K]. value: sums of terms [..., K], number of items -> number [...].

    Where a resample leaves nothing to divide by, the number is NaN.
    """

    columns: int
    terms: Callable[..., np.ndarray]
    value: Callable[[np.ndarray, int], np.ndarray]


def _divided(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)


def _weighted(*columns: np.ndarray) -> np.ndarray:
    """The last column weighs the others: [n, K], the weights themselves last."""
    *values, weights = (np.asarray(column, dtype=np.float64) for column in columns)
    return np.stack([*(value * weights for value in values), weights], axis=-1)


def _log_spread(sums: np.ndarray, _: int) -> np.ndarray:
    """sqrt(mean d^2 - mean(d)^2 / 2), the depth task's silog."""
    mean, squared = _divided(sums[..., 0], sums[..., 2]), _divided(sums[..., 1], sums[..., 2])
    return np.sqrt(np.maximum(squared - mean**2 / 2, 0.0))


def _side_by_side(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.concatenate([above, below], axis=-1, dtype=np.float64)


def _class_mean(sums: np.ndarray, _: int) -> np.ndarray:
    """Mean over classes of the quotient of two sums; classes with nothing to divide by are left out."""
    above, below = np.split(sums, 2, axis=-1)
    counted = below > 0
    shares = np.divide(above, below, out=np.zeros_like(above), where=counted)
    return _divided(shares.sum(axis=-1), counted.sum(axis=-1).astype(shares.dtype))


def _over_classes(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.stack([part.sum(axis=-1, dtype=np.float64) for part in (above, below)], axis=-1)


RULES: Mapping[str, Rule] = {
    "mean": Rule(1, lambda x: np.asarray(x, dtype=np.float64)[:, None], lambda sums, n: sums[..., 0] / n),
    "weighted_mean": Rule(2, _weighted, lambda sums, _: _divided(sums[..., 0], sums[..., 1])),
    "root_weighted_mean": Rule(2, _weighted, lambda sums, _: np.sqrt(_divided(sums[..., 0], sums[..., 1]))),
    "log_spread": Rule(3, _weighted, _log_spread),  # mean d and mean d^2 of each item, weights
    "class_mean": Rule(2, _side_by_side, _class_mean),  # counts [n, C] above and below the stroke
    "pooled": Rule(2, _over_classes, lambda sums, _: _divided(sums[..., 0], sums[..., 1])),  # the same, all classes
}


@dataclasses.dataclass(frozen=True)
class Items:
    """What each test item gave, in the order of the test source.

    Attributes:
        columns: name -> [n] or [n, C], of bool, unsigned integers or float32; n is the same for all.
        metrics: metric -> (a name of RULES, the columns that it takes).
        independent: whether each is a draw of its own. Episodes that show the same images are not: what they say is of
            these images, and no statement about others is made of them.
    """

    columns: Mapping[str, np.ndarray]
    metrics: Mapping[str, tuple[str, ...]]
    independent: bool = True

    @property
    def count(self) -> int:
        """n, the number of items."""
        return len(next(iter(self.columns.values())))

    def checked(self) -> Items:
        """Itself.

        Raises:
            ValueError: no item, columns of different lengths or of another type, a rule or column that is not known, a
                number that is not finite. Names it.
        """
        for name, column in self.columns.items():
            if column.ndim not in (1, 2):
                raise ValueError(f"column {name!r} has shape {column.shape}; an item has one number or one a class")
        if not self.columns or not self.count:
            raise ValueError("there is no item")
        for name, column in self.columns.items():
            if len(column) != self.count:
                raise ValueError(f"column {name!r} has shape {column.shape}, and there are {self.count} items")
            if column.dtype.kind not in "bu" and column.dtype != np.float32:
                raise ValueError(f"column {name!r} is {column.dtype}; give bool, unsigned integers or float32")
            if column.dtype == np.float32 and not np.isfinite(column).all():
                raise ValueError(f"column {name!r} has a value that is not finite")
        for metric, (rule, *names) in self.metrics.items():
            if rule not in RULES:
                raise ValueError(f"rule {rule!r} of {metric!r} is not one of {', '.join(RULES)}")
            strange = [name for name in names if name not in self.columns]
            if strange or len(names) != RULES[rule].columns:
                raise ValueError(f"{metric!r} by {rule!r} of columns {names}; there are {', '.join(self.columns)}")
            if (rule in ("class_mean", "pooled")) != all(self.columns[name].ndim == 2 for name in names):
                raise ValueError(f"{metric!r}: {rule!r} does not take columns of these shapes")
            if len({self.columns[name].shape for name in names}) > 1:
                raise ValueError(f"{metric!r} is of columns of different shapes")
        return self

    def terms(self, metric: str) -> np.ndarray:
        """What is added up over the items for a metric: [n, K] float64."""
        rule, *names = self.metrics[metric]
        return RULES[rule].terms(*(self.columns[name] for name in names))

    def value(self, metric: str, sums: np.ndarray) -> np.ndarray:
        """The metric of sums of as many items' terms: [..., K] -> [...]."""
        return RULES[self.metrics[metric][0]].value(sums, self.count)

    def number(self, metric: str) -> float:
        """The metric of all items, as the record has it but for rounding."""
        return float(self.value(metric, self.terms(metric).sum(axis=0)))

    def contradiction(self, metric: str, value: float) -> float | None:
        """The metric's number where it is not `value` but for rounding; None where it is."""
        made = self.number(metric)
        return None if math.isclose(made, value, rel_tol=ROUNDING, abs_tol=ROUNDING) else made


class Scores(dict[str, float]):
    """What a task's `evaluate` gives: metric -> value, with items for some of them: `per_item`.

    >>> Scores({"top1": 0.5}, Items({"top1": np.array([True, False])}, {"top1": ("mean", "top1")})).per_item.count
    2
    """

    def __init__(self, values: Mapping[str, float], items: Items) -> None:
        super().__init__(values)
        self.per_item = items


def classified(
    right: Mapping[str, np.ndarray],
    labels: np.ndarray,
    balanced: str | None = None,
    parts: Mapping[str, np.ndarray] | None = None,
) -> Items:
    """Items of a classifier.

    Args:
        right: metric -> which images [n] are right. labels: [n] int64.
        balanced: the metric of which balanced_accuracy is the mean over classes; None: there is none.
        parts: further metric -> which images [n] it is the accuracy on, of the first metric.
    """
    first = next(iter(right))
    columns = {name: np.asarray(column, dtype=bool) for name, column in right.items()}
    metrics: dict[str, tuple[str, ...]] = {name: ("mean", name) for name in right}
    if balanced is not None:
        # Each image of a class weighs one over the class's images, so that every class weighs the same.
        columns["class_weight"] = (1 / np.bincount(labels)[labels]).astype(np.float32)
        metrics["balanced_accuracy"] = ("weighted_mean", balanced, "class_weight")
    for name, shown in (parts or {}).items():
        columns[f"in_{name}"] = np.asarray(shown, dtype=bool)
        metrics[name] = ("weighted_mean", first, f"in_{name}")
    return Items(columns, metrics)


def right_of(best: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """top1 and top5 of each image, bool [n], by its likeliest classes, [n, 5] or fewer, best first, and labels [n]."""
    return {"top1": best[:, 0] == labels, "top5": (best == labels[:, None]).any(axis=1)}
