"""How many students a GPU holds at once: measured by dry steps on noise, before anything is trained."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import torch

from harness.progress import Console
from harness.runs import Group, Run, groups
from harness.storage.locks import Lock
from harness.storage.sizes import note, noted
from harness.training import train
from harness.training.builder import Builder
from harness.training.dry_steps import Dry
from harness.training.memory import Gpu, give_back, memory_of

PROBED = 8  # rows that are measured; those behind them count as much as the dearest of these
STEPS = 2  # the second one has the optimiser's state beside everything that the first one had
ENDLESS = 10_000  # no step of a dry training is its last, and none is logged


def measure(builder: Builder, runs: Sequence[Run], console: Console) -> None:
    """Note for the runs that wait to be trained how many of them fit at once, where that is not known yet.

    Does nothing on a CPU, nor for a run that shares its teacher with no other.
    """
    memory, workspace = memory_of(builder.device), builder.workspace
    if memory is None:
        return
    together: dict[str, list[Run]] = {}
    for group in groups(runs, workspace, "auto"):
        together.setdefault(group.shared, []).extend(group.runs)
    for alike in together.values():
        spec = alike[0].spec
        if len(alike) == 1 or noted(workspace.sizes, spec) is not None:
            continue
        with Lock(workspace.locks / "sizes.lock") as lock:
            while not lock.acquire():
                time.sleep(1)  # another process measures
            if noted(workspace.sizes, spec) is None:
                students = _measured(builder, alike, memory)
                note(workspace.sizes, spec, students, f"measured on {builder.device}")
                console.say(f"{students} students fit into the GPU's memory at once, as dry steps tell")


def _measured(builder: Builder, runs: Sequence[Run], memory: Gpu) -> int:
    dry, teacher = Dry(builder, Group(tuple(runs))), builder.teacher(runs[0].teacher)
    training = dry.training.model_copy(update={"compile": False})
    members: list[train.Member] = []

    def peak_with(number: int) -> float:
        members.append(dry.member(runs[number], teacher, Path(folder)))
        group = train.Group(members, teacher, training, ENDLESS, ENDLESS, builder.device, log_steps=ENDLESS)

        def steps() -> None:
            for step in range(STEPS):
                group.train_step(dry.batch(step))

        return memory.peak(steps)

    with tempfile.TemporaryDirectory() as folder:
        found = how_many(peak_with, len(runs), memory.budget())
    members.clear()
    give_back(builder.device)
    return found


def how_many(peak_with: Callable[[int], float], rows: int, budget: float) -> int:
    """How many students fit: as many as are measured to, and behind them as many as the dearest of these would.

    Args:
        peak_with: adds a student of row 0 .. rows - 1 to those before and gives the peak of a step of all of them, in
            bytes; may raise torch.OutOfMemoryError. budget: bytes.
    """
    peaks: list[float] = []
    while len(peaks) < max(2, min(rows, PROBED)):
        try:
            peak = peak_with(len(peaks) % rows)
        except torch.OutOfMemoryError:
            peak = float("inf")
        if peak > budget:
            return max(1, len(peaks))
        peaks.append(peak)
    dearest = max(1.0, *(after - before for before, after in pairwise(peaks)))
    return len(peaks) + int((budget - peaks[-1]) // dearest)
