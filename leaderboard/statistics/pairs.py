"""One column: the chosen method against every other row, by seed and by item, before p values are adjusted."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from harness.items import Items
from harness.records import Record
from harness.seeds import derive
from harness.storage.items import ItemsError, read_items
from leaderboard.board import Column
from leaderboard.ranking import TIE
from leaderboard.statistics import resampling
from leaderboard.statistics.comparison import Interval, Pair, Significance
from leaderboard.statistics.pairing import Student
from leaderboard.statistics.resampling import LEAST_SEEDS, ItemDraws, Sums
from leaderboard.statistics.significance import sign_flip, smallest_p, standardised, superiority

_WIDTH = 512  # terms that are multiplied by resamples at once
_BYTES = 1 << 28  # that they may take
MOST_ITEMS = 300_000  # 3,000 resamples and swaps of so many are about a gigabyte


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
                found[seed] = read_items(self.folder, record)
            except ItemsError as error:
                self.problems.add(str(error))
                return f"{error.reason}"
        return found


@dataclasses.dataclass(frozen=True)
class _ByItem:
    """What items say of a pair: p, the least p, draws of the difference [B, s] for each of the seeds."""

    count: int
    p: float | None
    smallest: float
    draws: np.ndarray


def compare(
    column: Column, number: int, mine: Student, others: Sequence[Student], reader: Reader, level: float, seed: int
) -> list[Pair]:
    """A pair for each of the others that has a seed of this column in common; `adjusted` is p as it is."""
    own = mine.values[number]
    common = {o.label: tuple(sorted(own.keys() & o.values[number].keys())) for o in others}
    others = [other for other in others if common[other.label]]
    if not others:
        return []
    by_item = _by_item(column, number, mine, others, common, reader, seed)
    differences = {o.label: _differences(own, o.values[number], common[o.label]) for o in others}
    p_of_seeds = _by_seed(differences, seed)
    found = []
    for other in others:
        seeds, raw = common[other.label], differences[other.label]
        better = raw if column.direction == "up" else -raw
        items, note = by_item[other.label]
        unpaired = tuple(sorted(own.keys() ^ other.values[number].keys()))
        mean = float(raw.mean())
        found.append(
            Pair(
                other=other.label,
                column=number,
                difference=mean,
                better=int(np.sign(better.mean())) if _is_more_than_rounding(raw) else 0,
                seeds=seeds,
                unpaired=unpaired,
                items=items.count if items else None,
                interval=_interval(raw, items, level, seed),
                by_seed=p_of_seeds.get(other.label),
                by_item=Significance(items.p, items.p, items.smallest) if items and items.p is not None else None,
                effect=standardised(better),
                superiority=superiority(better),
                note=note,
            )
        )
    return found


def _differences(own: Mapping[int, float], other: Mapping[int, float], seeds: Sequence[int]) -> np.ndarray:
    """Seed by seed; one that is rounding only is 0."""
    mine, theirs = (np.array([values[seed] for seed in seeds]) for values in (own, other))
    found = mine - theirs
    found[np.abs(found) <= TIE * np.maximum(np.abs(mine), np.abs(theirs))] = 0.0
    return found


def _is_more_than_rounding(differences: np.ndarray) -> bool:
    return abs(float(differences.mean())) > TIE * float(np.abs(differences).max())


def _by_seed(differences: Mapping[str, np.ndarray], seed: int) -> dict[str, Significance]:
    """Of rows with seeds enough; those with equally many are tested at once."""
    sized: dict[int, list[str]] = {}
    for label, found in differences.items():
        if len(found) >= LEAST_SEEDS:
            sized.setdefault(len(found), []).append(label)
    tested = {}
    for size, labels in sized.items():
        p = sign_flip(np.stack([differences[label] for label in labels]), seed)
        tested |= {
            label: Significance(float(one), float(one), smallest_p(size)) for label, one in zip(labels, p, strict=True)
        }
    return tested


def _interval(differences: np.ndarray, items: _ByItem | None, level: float, seed: int) -> Interval | None:
    """By seeds and items, by items where seeds are too few, by seeds where there are no items; else none."""
    seeds = len(differences)
    if items is None and seeds < LEAST_SEEDS:
        return None
    weights = resampling.seed_weights(seeds, seed)  # [B, s]
    each = differences[None] if items is None else items.draws  # [1 or B, s]
    size = seeds if seeds >= LEAST_SEEDS or items is None else items.count
    ends = resampling.percentiles((weights * each).sum(axis=1), level, size)
    if ends is None:
        return None
    if seeds < LEAST_SEEDS:
        return Interval(float(ends[0]), float(ends[1]), "items", 1 - level)
    of = "seeds" if items is None else "seeds and items"
    return Interval(float(ends[0]), float(ends[1]), of, min(1 - level, 1 - smallest_p(seeds)))


def _by_item(
    column: Column,
    number: int,
    mine: Student,
    others: Sequence[Student],
    common: Mapping[str, tuple[int, ...]],
    reader: Reader,
    seed: int,
) -> dict[str, tuple[_ByItem | None, str]]:
    """Each other row -> what items say of it, or the clause why they say nothing."""
    wanted = sorted({one for other in others for one in common[other.label]})
    own = reader.read(mine.records[number], wanted, column.metric)
    if isinstance(own, str):
        return {other.label: (None, own) for other in others}
    (count, *more) = {items.count for items in own.values()}
    if more or count < 2:
        why = "there is one item" if count == 1 else f"the seeds of {mine.label} have different numbers of items"
        return {other.label: (None, why) for other in others}
    if count > MOST_ITEMS:
        return {
            other.label: (None, f"{count} items are more than the {MOST_ITEMS} that are resampled") for other in others
        }
    draws = ItemDraws(count, derive(seed, column.task_id))
    metric, rule = column.metric, next(iter(own.values()))
    own_terms = {one: items.terms(metric) for one, items in own.items()}
    own_sums = dict(zip(own_terms, draws.sums(list(own_terms.values())), strict=True))
    found: dict[str, tuple[_ByItem | None, str]] = {}

    def readable() -> Iterator[tuple[str, dict[int, np.ndarray]]]:
        for other in others:
            theirs = reader.read(other.records[number], common[other.label], metric)
            if isinstance(theirs, str):
                found[other.label] = None, theirs
            elif any(i.count != count or i.metrics[metric] != rule.metrics[metric] for i in theirs.values()):
                found[other.label] = None, f"{other.label} has other items than {mine.label}"
            else:
                found[other.label] = None, ""
                yield other.label, {one: items.terms(metric) for one, items in theirs.items()}

    for batch in _batches(readable(), count):
        flat = [terms for _, of_seed in batch for terms in of_seed.values()]
        if any(terms.shape[1] != flat[0].shape[1] for terms in flat) or flat[0].shape != own_terms[wanted[0]].shape:
            found |= {label: (None, "items of other classes") for label, _ in batch}
            continue
        sums = iter(draws.sums(flat))
        for label, terms in batch:
            theirs = {one: next(sums) for one in terms}
            differing = np.any([np.any(own_terms[one] != terms[one], axis=1) for one in terms], axis=0)
            ours = {one: own_sums[one] for one in terms}
            found[label] = _said(draws, rule, metric, ours, theirs, int(differing.sum())), ""
    return found


def _batches(
    rows: Iterator[tuple[str, dict[int, np.ndarray]]], count: int
) -> Iterator[list[tuple[str, dict[int, np.ndarray]]]]:
    """Rows together, as many as can be multiplied at once."""
    batch: list[tuple[str, dict[int, np.ndarray]]] = []
    width = 0
    for label, terms in rows:
        batch.append((label, terms))
        width += sum(part.shape[1] for part in terms.values())
        if width >= min(_WIDTH, _BYTES // (8 * count)):
            yield batch
            batch, width = [], 0
    if batch:
        yield batch


def _said(
    draws: ItemDraws, items: Items, metric: str, own: Mapping[int, Sums], other: Mapping[int, Sums], differing: int
) -> _ByItem:
    """The difference of two rows under resamples and swaps of their items, the same in all seeds."""

    def value(sums: np.ndarray) -> np.ndarray:
        return np.asarray(items.value(metric, sums))

    resampled = [value(own[s].resampled) - value(other[s].resampled) for s in own]  # each [B]
    observed = float(np.mean([value(own[s].whole) - value(other[s].whole) for s in own]))
    swapped = np.zeros(len(draws.swaps))
    for s in own:
        moved = other[s].swapped - own[s].swapped  # [R, K]
        swapped += (value(own[s].whole + moved) - value(other[s].whole - moved)) / len(own)
    smallest = smallest_p(draws.count) if draws.exact else 0.0
    p = resampling.swap_p(observed, swapped, draws.exact, differing)
    return _ByItem(draws.count, p, smallest, np.stack(resampled, axis=1))
