"""One column: the chosen method against every other row, by seed and by item, before p values are adjusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from leaderboard.board import Column
from leaderboard.ranking import TIE
from leaderboard.statistics import resampling
from leaderboard.statistics.by_item import ByItem, Reader, by_item
from leaderboard.statistics.comparison import Interval, Pair, Significance
from leaderboard.statistics.pairing import Student
from leaderboard.statistics.resampling import LEAST_SEEDS
from leaderboard.statistics.significance import sign_flip, smallest_p, standardised, superiority


def compare(
    column: Column, number: int, mine: Student, others: Sequence[Student], reader: Reader, level: float, seed: int
) -> list[Pair]:
    """A pair for each of the others that has a seed of this column in common; `adjusted` is p as it is."""
    own = mine.values[number]
    common = {o.label: tuple(sorted(own.keys() & o.values[number].keys())) for o in others}
    others = [other for other in others if common[other.label]]
    if not others:
        return []
    by_items = by_item(column, number, mine, others, common, reader, seed)
    differences = {o.label: _differences(own, o.values[number], common[o.label]) for o in others}
    p_of_seeds = _by_seed(differences, seed)
    found = []
    for other in others:
        seeds, raw = common[other.label], differences[other.label]
        better = raw if column.direction == "up" else -raw
        items, note = by_items[other.label]
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
                effect=standardised(better) if len(seeds) >= LEAST_SEEDS else None,
                superiority=superiority(better),
                note=note,
                independent=all(r.items is None or r.items.independent for r in mine.records[number].values()),
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


def _interval(differences: np.ndarray, items: ByItem | None, level: float, seed: int) -> Interval | None:
    """By seeds and items, by items where seeds are too few, by seeds where there are no items; else none."""
    seeds = len(differences)
    if items is None and seeds < LEAST_SEEDS:
        return None
    draws = resampling.seed_weights(seeds, seed) @ differences if items is None else items.draws  # [B]
    size = seeds if seeds >= LEAST_SEEDS or items is None else items.count
    ends = resampling.percentiles(draws, level, size)
    if ends is None:
        return None
    if seeds < LEAST_SEEDS:
        return Interval(float(ends[0]), float(ends[1]), "items", 1 - level)
    of = "seeds" if items is None else "seeds and items"
    return Interval(float(ends[0]), float(ends[1]), of, min(1 - level, 1 - smallest_p(seeds)))
