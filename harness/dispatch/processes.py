"""Processes of this machine: which belong to a job, and whether one still lives. No torch."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from harness.storage.living import living, started

__all__ = ["jobs", "living", "send", "started"]

JOB_PROGRAMS = (b"submitit.local._local", b"submitit.core._submit", b"harness.dispatch.launch")  # FOLDER follows


def jobs() -> dict[Path, list[int]]:
    """Folder of each job that has processes -> these: its controller, its ranks, their data workers.

    Told by their command lines, since they outlive one another when they are killed one by one.
    """
    found: dict[Path, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            try:
                words = Path(entry.path, "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
            except OSError:
                continue  # it has ended, or is not ours to see
            if any(program in words for program in JOB_PROGRAMS):
                found.setdefault(Path(os.fsdecode(words[-1])), []).append(int(entry.name))
    return found


def send(pids: list[int], number: signal.Signals) -> None:
    """Send a signal to each that is still there."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
