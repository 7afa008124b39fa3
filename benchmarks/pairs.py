"""Two ways of doing the same work, timed in turns in one process, so that whatever else the machine does meets both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch


class Seconds(NamedTuple):
    """Of one turn. wall_s: as a clock on the wall has it. processor_s: of all this process's threads together."""

    wall_s: float
    processor_s: float


Pairs = Sequence[tuple[Seconds, Seconds]]


def in_turns(one: Callable[[], object], other: Callable[[], object], rounds: int, device: str) -> Pairs:
    """Call both `rounds` times, each first in every second round; a pair of times a round.

    On a GPU a turn ends when the GPU has finished it.
    """
    found = []
    for number in range(rounds):
        if number % 2:
            second, first = timed(other, device), timed(one, device)
        else:
            first, second = timed(one, device), timed(other, device)
        found.append((first, second))
    return found


def timed(work: Callable[[], object], device: str) -> Seconds:
    synchronise(device)
    wall, processor = time.perf_counter(), time.process_time()
    work()
    synchronise(device)
    return Seconds(time.perf_counter() - wall, time.process_time() - processor)


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def ratio(pairs: Pairs, of: str = "wall_s") -> float:
    """Median over the rounds of the first's time against the second's."""
    return statistics.median(getattr(a, of) / getattr(b, of) for a, b in pairs)


def spread(pairs: Pairs) -> str:
    """The ratios' quarters, which say how far the median may be trusted."""
    ratios = [a.wall_s / b.wall_s for a, b in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return f"{middle:.3f}, half of {len(ratios)} rounds within {low:.3f} .. {high:.3f}"
