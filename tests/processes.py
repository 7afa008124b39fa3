"""Trainings in processes of their own, forked so that torch is imported once, to be signalled and killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from pathlib import Path

from experiments import run

from harness.job import Interrupted

FORK = multiprocessing.get_context("fork")
SLOW = {"training": {"steps": 40}, "runtime": {"checkpoint_steps": 7, "log_steps": 2}}


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
