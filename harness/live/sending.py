"""A thread for each logger, so that a slow server or disk keeps no training waiting. No torch."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping

from harness.live.logger import Logger, Outcome, Shown


class Sender:
    """Shows runs by one kind of logger; a logger that raises is said once, and no more is sent to it."""

    def __init__(self, kind: type[Logger], say: Callable[[str], None]) -> None:
        self.kind, self.say = kind, say
        self.lost = False
        self._loggers: dict[str, Logger] = {}
        self._last: dict[str, int] = {}  # steps of training that are shown already
        self._waiting: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self, run: Shown) -> None:
        def work() -> None:
            logger = self.kind()
            self._last[run.id] = logger.start(run)
            self._loggers[run.id] = logger  # not before: one that has not begun is not finished

        self._do(work)

    def scalars(self, run_id: str, step: int, values: Mapping[str, float], training: bool) -> None:
        """training: whether these are numbers of a step that may have been shown before."""

        def work() -> None:
            if not (training and step <= self._last[run_id]):
                self._loggers[run_id].scalars(step, values)

        self._do(work)

    def finish(self, run_id: str, outcome: Outcome) -> None:
        self._do(lambda: self._loggers.pop(run_id).finish(outcome))

    def close(self, wait_s: float) -> None:
        """Let it send what is left, for so long at most."""
        if self._thread is None:
            return
        self._waiting.put(None)
        self._thread.join(wait_s)
        if self._thread.is_alive():
            self.say(f"{self.kind.name} has not taken everything in {wait_s:.0f} s; the rest is not waited for")
        self._thread = None

    def _do(self, work: Callable[[], None]) -> None:
        if self.lost:
            return
        if self._thread is None:
            # Its own queue: an earlier thread may still be at what it has not finished.
            self._waiting = queue.SimpleQueue()
            self._thread = threading.Thread(
                target=self._send, args=(self._waiting,), name=f"live-{self.kind.name}", daemon=True
            )
            self._thread.start()
        self._waiting.put(work)

    def _send(self, waiting: queue.SimpleQueue[Callable[[], None] | None]) -> None:
        while (work := waiting.get()) is not None:
            if self.lost:
                continue
            try:
                work()
            except Exception as error:  # a stranger's code, server or disk; the training goes on
                self.lost = True
                reason = str(error).split("\n")[0] or type(error).__name__
                self.say(f"{self.kind.name} shows no more of this: {reason}; the training itself goes on")
