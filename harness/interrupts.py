"""Signals that ask to stop: training saves first, anything else ends at once."""

from __future__ import annotations

import signal
from types import TracebackType
from typing import Any


class Interrupted(BaseException):
    """A signal asked to stop; everything is saved, and the same command goes on.

    No Exception, as KeyboardInterrupt is none: whoever catches what a stranger's code may raise must not catch this.
    """


class Stop:
    """SIGINT, SIGTERM and SIGUSR2 ask for a stop: training saves first, anything else ends at once."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)

    def __init__(self) -> None:
        self.asked: int | None = None
        self._seen: set[int] = set()
        self.saving = False  # whether the code that runs now looks at `asked` by itself
        self._raised: Interrupted | None = None

    def __enter__(self) -> Stop:
        self.before = {s: signal.signal(s, self._handle) for s in self.SIGNALS}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Raises Interrupted where an error is what became of one: compiled code may lose the exception that a signal
        raised inside it, and fail with one of its own.
        """
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if isinstance(error, Exception) and self._raised is not None:
            raise self._raised from error

    def __call__(self) -> bool:
        return self.asked is not None

    def _handle(self, number: int, _: Any) -> None:
        again = number in self._seen
        self._seen.add(number)
        # A scheduler that preempts sends SIGTERM and SIGUSR2, which is one request: the second may not break off the
        # saving, and SIGUSR2 is the one that says what follows.
        if self.asked != signal.SIGUSR2:
            self.asked = number
        if not self.saving or again:
            self._raised = Interrupted(signal.Signals(number).name)
            raise self._raised


def left_to_the_parent(_worker: int) -> None:
    """For a data worker: a scheduler signals every process of a job, and a worker that dies of it would take the
    training down before it has saved. It ends with its parent anyway.
    """
    for number in Stop.SIGNALS:
        signal.signal(number, signal.SIG_IGN)
