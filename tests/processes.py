"""Trainings that are disturbed at a certain step, or run in processes of their own, to be signalled and killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

from experiments import run

from harness.job import Interrupted, Job
from harness.progress import Bar, Console
from harness.runs import Workspace

FORK = multiprocessing.get_context("fork")  # torch is imported once
SLOW = {"training": {"steps": 40}, "runtime": {"checkpoint_steps": 7, "log_steps": 2}}


class Crash(BaseException):
    """What ends a training as a kill would, in this process: nothing is saved."""


class Disturbed(Console):
    """Keeps what it is told in `said`, and calls `then` when a training has done `step`."""

    def __init__(self, step: int | None = None, then: Callable[[], object] = lambda: None) -> None:
        super().__init__(quiet=True)
        self.step, self.then = step, then
        self.said: list[str] = []
        self.begun: list[int] = []  # the step at which each training went on

    def say(self, text: str) -> None:
        self.said.append(text)

    def bar(self, title: str, total: int, start: int = 0) -> Bar:
        bar = super().bar(title, total, start)
        if title.startswith("training"):
            self.begun.append(start)
            bar.update = self._updated  # type: ignore[method-assign]
        return bar

    def _updated(self, step: int) -> None:
        if step == self.step:
            self.step = None  # once
            self.then()


def crash() -> None:
    raise Crash


def crashed_at(step: int, experiment, workspace: Path) -> None:
    """Train up to `step`, and no further."""
    try:
        Job(experiment, Workspace(workspace), Disturbed(step, crash)).run()
    except Crash:
        return
    raise AssertionError("it ended before it could be disturbed")


def in_child(experiment, workspace: Path):
    """Start it in a process of its own, which can be killed."""

    def work() -> None:
        os.setsid()  # a job of its own, with its data workers
        try:
            run(experiment, workspace)
        except Interrupted:
            os._exit(130)
        os._exit(0)

    child = FORK.Process(target=work)
    child.start()
    return child


def when_at(workspace: Path, step: int, child) -> None:
    """Wait until some student has logged `step`."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and child.is_alive():
        for path in workspace.glob("students/*.partial/train.jsonl"):
            lines = path.read_text().splitlines()
            if lines and json.loads(lines[-1])["step"] >= step:
                return
        time.sleep(0.002)
    assert child.is_alive(), "it ended before it could be disturbed"
