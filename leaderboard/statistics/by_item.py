"""What test items say of one method against others in one column: p under swaps of answers, draws of the difference."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from harness.items import Items
from harness.records import Record
from harness.storage.items import ItemsError, read_items
from leaderboard.board import Column
from leaderboard.statistics import resampling
from leaderboard.statistics.pairing import Student
from leaderboard.statistics.resampling import ItemDraws, Sums
from leaderboard.statistics.significance import sign_flip_of_counts

_WIDTH = 512  # terms that are multiplied by resamples at once
_BYTES = 1 << 28  # that they may take
MOST_ITEMS = 300_000  # 3,000 resamples and swaps of so many are about a gigabyte
_FEW_SEEDS = 5  # up to so many, resamples of right and wrong answers are drawn faster by their numbers

ByRow = dict[str, "tuple[ByItem | None, str]"]  # label -> what items say, or the clause why they say nothing


class Reader:
    """Items of records, read once each; `problems` says in sentences what could not be read."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.problems: set[str] = set()

    def read(self, records: Mapping[int, Record], seeds: Sequence[int], metric: str) -> dict[int, Items] | str:
        """Items of a row's seeds, or the clause why they cannot be used."""
        if self.folder is None:
            return "no items were given"
        found: dict[int, Items] = {}
        for seed in seeds:
            record = records[seed]
            if record.items is None or metric not in record.items.metrics:
                return f"seed {seed} of {record.run.label} was recorded without items"
            try:
                found[seed] = _of_record(self.folder, record, metric)
            except ItemsError as error:
                self.problems.add(str(error))
                return f"{error.reason}"
        return found


def _of_record(folder: Path, record: Record, metric: str) -> Items:
    """Raises ItemsError where they cannot be read, or are not those of which the record's number was made."""
    items, value = read_items(folder, record), record.values[metric]
    if (made := items.contradiction(metric, value)) is not None:
        assert record.items is not None
        raise ItemsError(record, f"{record.items.file} gives {metric} {made:.6g}, and the record says {value:.6g}")
    return items


@dataclasses.dataclass(frozen=True)
class ByItem:
    """What items say of a pair: p, the least p, the difference [B] in resamples of seeds and items."""

    count: int
    p: float | None
    smallest: float
    draws: np.ndarray


def by_item(
    column: Column,
    number: int,
    mine: Student,
    others: Sequence[Student],
    common: Mapping[str, tuple[int, ...]],
    reader: Reader,
    seed: int,
) -> ByRow:
    """Each other row -> what items say of it, or the clause why they say nothing. common: seeds of both, by label."""
    wanted = sorted({one for other in others for one in common[other.label]})
    own = reader.read(mine.records[number], wanted, column.metric)
    if isinstance(own, str):
        return {other.label: (None, own) for other in others}
    metric, rule = column.metric, next(iter(own.values()))
    if why := _unlike(metric, rule, own.values(), f"the seeds of {mine.label} have different items"):
        return {other.label: (None, why) for other in others}
    if rule.count < 2:
        return {other.label: (None, "there is one item") for other in others}
    found: ByRow = {}

    def readable() -> Iterator[tuple[str, dict[int, Items]]]:
        for other in others:
            theirs = reader.read(other.records[number], common[other.label], metric)
            if isinstance(theirs, str):
                found[other.label] = None, theirs
            else:
                found[other.label] = (
                    None,
                    _unlike(metric, rule, theirs.values(), f"{other.label} has other items than {mine.label}"),
                )
                if not found[other.label][1]:
                    yield other.label, theirs

    if _right_or_wrong(metric, own.values()):
        return found | _counted(mine.label, metric, own, readable(), seed)
    if rule.count > MOST_ITEMS:
        return {other.label: (None, _too_many(rule.count)) for other in others}
    return found | _multiplied(metric, own, readable(), seed)


def _wide(count: int) -> int:
    """How many terms of so many items are multiplied at once."""
    return min(_WIDTH, _BYTES // (8 * count))


def _too_many(count: int) -> str:
    return f"{count} items are more than the {MOST_ITEMS} that are resampled"


def _unlike(metric: str, rule: Items, several: Iterable[Items], why: str) -> str:
    """The clause `why` where some of these have not as many items, of the same rule and classes; else ""."""
    columns = [rule.columns[name].shape for name in rule.metrics[metric][1:]]
    for items in several:
        if items.metrics[metric] != rule.metrics[metric]:
            return why
        if [items.columns[name].shape for name in items.metrics[metric][1:]] != columns:
            return why
    return ""


# ---- items that are right or wrong: their numbers alone decide


def _right_or_wrong(metric: str, several: Iterable[Items]) -> bool:
    return all(
        items.metrics[metric][0] == "mean" and items.columns[items.metrics[metric][1]].dtype == bool
        for items in several
    )


def _answers(metric: str, of_seeds: Mapping[int, Items], seeds: Iterable[int]) -> np.ndarray:
    """[n, s], 0 or 1."""
    return np.stack([of_seeds[one].columns[of_seeds[one].metrics[metric][1]] for one in seeds], axis=1).astype(np.int8)


def _counted(
    label: str, metric: str, own: Mapping[int, Items], rows: Iterable[tuple[str, dict[int, Items]]], seed: int
) -> ByRow:
    """p is exact. Resamples are drawn by the number of items of a kind where that is less work than item by item."""
    found: ByRow = {}
    by_matrix: list[tuple[str, np.ndarray]] = []
    for other, theirs in rows:
        if not _right_or_wrong(metric, theirs.values()):
            found[other] = None, f"{other} has other items than {label}"
            continue
        # The same draws whichever of the two is asked about, so that nothing but the sign differs.
        sign = 1 if label < other else -1
        differences = sign * (_answers(metric, own, theirs) - _answers(metric, theirs, theirs))  # [n, s]
        count, seeds = differences.shape
        p, smallest = sign_flip_of_counts(differences.sum(axis=1)), smallest_by_swaps(count)
        if seeds <= _FEW_SEEDS or count > MOST_ITEMS:
            draws = resampling.resampled_answers(differences, seed)
            found[other] = ByItem(count, p, smallest, sign * draws), ""
        else:
            found[other] = ByItem(count, p, smallest, np.empty(0)), ""
            by_matrix.append((other, sign * differences))
        if by_matrix and len(by_matrix) * seeds >= _wide(count):
            _fill(found, by_matrix, seed)
    if by_matrix:
        _fill(found, by_matrix, seed)
    return found


def _fill(found: ByRow, by_matrix: list[tuple[str, np.ndarray]], seed: int) -> None:
    """Draws of these differences, multiplied at once."""
    draws = resampling.item_draws(len(by_matrix[0][1]), seed)
    for (other, _), sums in zip(by_matrix, draws.sums([one for _, one in by_matrix], swaps=False), strict=True):
        said, note = found[other]
        assert said is not None
        resampled = _over_seeds(sums.resampled / draws.count, seed)
        found[other] = dataclasses.replace(said, draws=resampled), note
    by_matrix.clear()


def _over_seeds(draws: np.ndarray, seed: int) -> np.ndarray:
    """Means over resamples of the seeds too, [B, s] -> [B]."""
    return (resampling.seed_weights(draws.shape[1], seed) * draws).sum(axis=1)


# ---- other items: each is resampled and swapped


def _multiplied(
    metric: str, own: Mapping[int, Items], rows: Iterable[tuple[str, dict[int, Items]]], seed: int
) -> ByRow:
    rule = next(iter(own.values()))
    draws = resampling.item_draws(rule.count, seed)
    own_terms = {one: items.terms(metric) for one, items in own.items()}
    own_sums = dict(zip(own_terms, draws.sums(list(own_terms.values())), strict=True))
    own_draws = {one: _value(rule, metric, sums.resampled) for one, sums in own_sums.items()}
    found: ByRow = {}
    with_terms = ((label, {one: items.terms(metric) for one, items in theirs.items()}) for label, theirs in rows)
    for batch in _batches(with_terms, rule.count):
        sums = iter(draws.sums([terms for _, of_seed in batch for terms in of_seed.values()]))
        for label, terms in batch:
            theirs = {one: next(sums) for one in terms}
            differing = np.any([np.any(own_terms[one] != terms[one], axis=1) for one in terms], axis=0)
            found[label] = _said(draws, rule, metric, own_sums, own_draws, theirs, int(differing.sum()), seed), ""
    return found


def _batches(
    rows: Iterable[tuple[str, dict[int, np.ndarray]]], count: int
) -> Iterator[list[tuple[str, dict[int, np.ndarray]]]]:
    """Rows together, as many as can be multiplied at once."""
    batch: list[tuple[str, dict[int, np.ndarray]]] = []
    width = 0
    for label, terms in rows:
        batch.append((label, terms))
        width += sum(part.shape[1] for part in terms.values())
        if width >= _wide(count):
            yield batch
            batch, width = [], 0
    if batch:
        yield batch


def _value(items: Items, metric: str, sums: np.ndarray) -> np.ndarray:
    return np.asarray(items.value(metric, sums))


def smallest_by_swaps(count: int) -> float:
    """The least p that swaps of so many items can give, were they all counted."""
    return min(1.0, 2.0 * 0.5 ** min(count, 1000))


def _said(
    draws: ItemDraws,
    items: Items,
    metric: str,
    own: Mapping[int, Sums],
    own_draws: Mapping[int, np.ndarray],
    other: Mapping[int, Sums],
    differing: int,
    seed: int,
) -> ByItem:
    """The difference of two rows under resamples and swaps of their items, the same in all seeds."""
    resampled = [own_draws[s] - _value(items, metric, other[s].resampled) for s in other]  # each [B]
    observed = float(
        np.mean([_value(items, metric, own[s].whole) - _value(items, metric, other[s].whole) for s in other])
    )
    swapped = np.zeros(len(draws.swaps))
    for s in other:
        moved = other[s].swapped - own[s].swapped  # [R, K]
        with_theirs, with_ours = own[s].whole + moved, other[s].whole - moved
        swapped += (_value(items, metric, with_theirs) - _value(items, metric, with_ours)) / len(other)
    p = resampling.swap_p(observed, swapped, draws.exact, differing)
    return ByItem(draws.count, p, smallest_by_swaps(draws.count), _over_seeds(np.stack(resampled, axis=1), seed))
