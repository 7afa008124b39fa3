"""The memory of a device: what becomes of a group that needs more than there is, and how much there is."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch

from harness import students
from harness.runs import Group, Workspace
from harness.storage.sizes import note

MARGIN = 0.1  # of the memory that is left alone: fragments, other layers of other methods, torch's own workspaces


class Gpu:
    """The memory of the GPU in use, in bytes."""

    def budget(self) -> float:
        """What this process may use: what it has and what is free, less a margin."""
        free, _ = torch.cuda.mem_get_info()
        return (1 - MARGIN) * (free + torch.cuda.memory_reserved())

    def peak(self, work: Callable[[], None]) -> float:
        """The most that is in use while this is done, with what was in use before."""
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()


def memory_of(device: str) -> Gpu | None:
    """The memory that decides how many students are trained at once; None on a CPU, where it cannot be told apart from
    that of everything else."""
    return Gpu() if device.startswith("cuda") else None


def give_back(device: str) -> None:
    """Let go of memory that nothing refers to any more."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def halve(workspace: Workspace, group: Group, reason: str, say: Callable[[str], None]) -> None:
    """A group does not fit: note that half of it is the most that does. A run that is alone already fails.

    Args:
        reason: what the device said.
    """
    count = len(group.runs)
    if count > 1:
        half = (count + 1) // 2
        note(workspace.sizes, group.runs[0].spec, half, f"{count} did not fit: {reason}")
        say(
            f"{count} students do not fit into the device's memory at once ({reason}); they go on in groups of at most "
            f"{half}, one after the other, from the last checkpoint"
        )
        return
    run = group.runs[0]
    why = f"it does not fit into the device's memory, not even alone ({reason}); lower training.batch_size"
    workspace.fail(run, reason=why, step=students.logged_step(workspace.partial(run.id)))
    say(f"{run.title} cannot be trained: {why}")
