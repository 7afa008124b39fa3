"""What a person sees while it runs: a bar on a terminal, plain lines elsewhere. No torch."""

from __future__ import annotations

import sys
import time
from types import TracebackType


class Console:
    """Messages and bars. `quiet` says nothing but errors (which are exceptions)."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.terminal = sys.stderr.isatty()

    def say(self, text: str) -> None:
        """One line to standard error, so that standard output holds results alone."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def bar(self, title: str, total: int, start: int = 0) -> Bar:
        return Bar(self, title, total, start)


class Bar:
    """Progress of `total` steps, as a context manager; `update(step)` is cheap."""

    EVERY_S = 15.0  # between plain lines

    def __init__(self, console: Console, title: str, total: int, start: int) -> None:
        self.console, self.title, self.total, self.start = console, title, total, start

    def __enter__(self) -> Bar:
        self.begin_s = self.said_s = time.monotonic()
        self.rich = None
        if self.console.terminal and not self.console.quiet and self.total:
            from rich.console import Console as RichConsole
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            title = TextColumn("{task.description}", markup=False)  # a label may hold [brackets]
            columns = (title, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self.rich = Progress(*columns, console=RichConsole(stderr=True))
            self.rich.start()
            self.task = self.rich.add_task(self.title, total=self.total, completed=self.start)
        return self

    def update(self, step: int) -> None:
        if self.rich is not None:
            self.rich.update(self.task, completed=step)
            return
        now_s = time.monotonic()
        if step < self.total and now_s - self.said_s < self.EVERY_S:
            return
        self.said_s = now_s
        rate = max(step - self.start, 1) / max(now_s - self.begin_s, 1e-9)
        left_s = (self.total - step) / rate
        self.console.say(f"{self.title}: {step}/{self.total}, {rate:.3g}/s, {left_s / 60:.1f} min left")

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.rich is not None:
            self.rich.stop()
