"""Seconds and memory that a training has taken so far, measured without making a GPU wait."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch


class Clock:
    """Seconds by name. On a GPU by events, which are read only when somebody asks, so nothing waits in a step."""

    def __init__(self, device: str, totals: Mapping[str, float] | None = None) -> None:
        self.cuda = device.startswith("cuda")
        self._totals = dict(totals or {})
        self._events: list[tuple[str, Any, Any]] = []

    @contextlib.contextmanager
    def time(self, name: str) -> Iterator[None]:
        if self.cuda:
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            yield
            end.record()
            self._events.append((name, begin, end))
        else:
            begin_s = time.perf_counter()
            yield
            self._totals[name] = self._totals.get(name, 0.0) + time.perf_counter() - begin_s

    def totals(self) -> dict[str, float]:
        if self._events:
            torch.cuda.synchronize()
            for name, begin, end in self._events:
                self._totals[name] = self._totals.get(name, 0.0) + begin.elapsed_time(end) / 1000
            self._events.clear()
        return dict(self._totals)


def peak_memory_gb(device: str) -> float:
    """The most memory held so far: of the device on a GPU, of this process on a CPU. In units of 1e9 bytes."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 1e9
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
