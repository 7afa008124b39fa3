"""Signals that a server counts instead of being broken off by them. No torch."""

from __future__ import annotations

import signal
import time
from typing import Any

SLICE_S = 0.1


class Asked:
    """SIGINT and SIGTERM, counted: the first asks to stop politely, the second at once.

    Attributes:
        times: how often. name: of the last one.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.times, self.name = 0, ""

    def __enter__(self) -> Asked:
        self._before = {number: signal.signal(number, self._count) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def wait(self, seconds: float) -> None:
        """Sleep, until the next signal at most."""
        # In slices: a sleep goes on after a signal, and what wakes a thread may not be touched in a signal's handler.
        times, until_s = self.times, time.monotonic() + seconds
        while self.times == times and (left_s := until_s - time.monotonic()) > 0:
            time.sleep(min(SLICE_S, left_s))

    def _count(self, number: int, _: Any) -> None:
        self.times, self.name = self.times + 1, signal.Signals(number).name
