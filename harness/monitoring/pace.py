"""How fast a training goes and how long it still takes: kept beside its checkpoint for whoever looks on. No torch."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

NAME = "progress.json"
SILENT_S = 120.0  # without a word, or ten steps: worth a person's look


@dataclass(frozen=True)
class Progress:
    """Where a training is.

    Attributes:
        step, steps: done, and in all. per_s: steps a second of late; None where that is not known yet.
        batch_size: images a step. device: as torch calls it. began: when this process began with it, ISO 8601, UTC.
    """

    step: int
    steps: int
    per_s: float | None
    batch_size: int
    device: str
    began: str

    @property
    def left_s(self) -> float | None:
        """Seconds until its last step, at the pace of late."""
        return (self.steps - self.step) / self.per_s if self.per_s else None


class Pace:
    """Writes the progress of one training, seldom enough to cost nothing; `update(step)` is cheap."""

    EVERY_S = 15.0  # at most; more often in the first half minute
    MARKS = 20  # whose first and last tell the pace

    def __init__(self, folder: Path | None, steps: int, batch_size: int, device: str) -> None:
        """folder: of the group, which exists; None: nothing is kept, such as by a rank that is not the first."""
        self.folder, self.steps, self.batch_size = folder, steps, batch_size
        began = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        self.told = device, began
        self.marks: deque[tuple[float, int]] = deque(maxlen=self.MARKS)  # seconds, step
        self.next_s, self.first_s = 0.0, time.monotonic()

    def beside(self, other: Callable[[int], None]) -> Callable[[int], None]:
        """One call that updates `other` and this."""

        def update(step: int) -> None:
            other(step)
            self.update(step)

        return update

    def update(self, step: int) -> None:
        """Call it after every step."""
        now_s = time.monotonic()
        if self.folder is None or (now_s < self.next_s and step < self.steps):
            return
        self.next_s = now_s + min(self.EVERY_S, max(1.0, (now_s - self.first_s) / 2))
        self.marks.append((now_s, step))
        old_s, old = self.marks[0]
        per_s = (step - old) / (now_s - old_s) if now_s > old_s else None
        now = Progress(step, self.steps, per_s, self.batch_size, *self.told)
        fresh = self.folder / f".{NAME}.{os.getpid()}"
        with contextlib.suppress(OSError):  # whoever looks on does without; it is not worth a training's end
            fresh.write_text(json.dumps(asdict(now)))
            os.replace(fresh, self.folder / NAME)


def progress_in(folder: Path) -> Progress | None:
    """What a group's folder says; None where there is nothing that can be read."""
    try:
        return Progress(**json.loads((folder / NAME).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def silence_s(folder: Path, progress: Progress, now_s: float) -> float | None:
    """How long nothing has been heard of a training; None where that is no longer than it may be.

    Args:
        now_s: by the clock that stamps the folder's files: `harness.storage.disk.now_in`.
    """
    try:
        silent_s = now_s - (folder / NAME).stat().st_mtime
    except OSError:
        return None  # it has just ended
    return silent_s if silent_s > max(SILENT_S, Pace.EVERY_S + 10 / (progress.per_s or 1)) else None


def duration(seconds: float) -> str:
    """Seconds in words, in one unit.

    >>> duration(40), duration(600), duration(11520), duration(500000)
    ('40 s', '10 min', '3.2 h', '5.79 days')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.3g} h" if seconds < 48 * 3600 else f"{seconds / 86400:.3g} days"
