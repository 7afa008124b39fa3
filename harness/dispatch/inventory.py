"""This machine's GPUs and CPU slots, and which waiting jobs may start on them. No torch.

A job asks for whole GPUs, for so much memory of one GPU, or for one CPU slot. `place` is pure: what waits, what runs
and what the machine has decide it. First come, first served: a job that does not fit yet keeps back the GPUs on which
it will start soonest, and jobs behind it may start on the others only. So nothing overtakes it for ever, and what it
cannot use does not stand idle.
"""

from __future__ import annotations

import csv
import dataclasses
import os
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

from harness.errors import ConfigError, UserError, unknown

QUERY = ("nvidia-smi", "--query-gpu=index,uuid,name,memory.total", "--format=csv,noheader,nounits")


@dataclasses.dataclass(frozen=True)
class Gpu:
    """One GPU. index: nvidia-smi's. memory_gb: all of it, in 1e9 bytes."""

    index: int
    name: str
    memory_gb: float
    uuid: str = ""


@dataclasses.dataclass(frozen=True)
class Inventory:
    """What jobs may be placed on.

    Attributes:
        cores: for jobs without a GPU. slots: how many of these at once; None: as the cores allow.
        no_gpu: why there is no GPU, where there is none.
    """

    gpus: tuple[Gpu, ...]
    cores: int = 1
    slots: int | None = None
    no_gpu: str = ""

    def cpu_slots(self, cpus: int) -> int:
        """How many jobs may run at once without a GPU, each of which wants so many cores: one at least."""
        return self.slots or max(1, self.cores // cpus)

    def __str__(self) -> str:
        named = ", ".join(f"GPU {gpu.index} ({gpu.name}, {gpu.memory_gb:.0f} GB)" for gpu in self.gpus)
        slots = _count(self.cores, "core") if self.slots is None else _count(self.slots, "CPU slot")
        return f"{named or self.no_gpu or 'no GPU'}; {slots}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


@dataclasses.dataclass(frozen=True)
class Request:
    """What one job asks for: whole GPUs, or memory of one GPU, or (neither) a CPU slot, which has `cpus` cores."""

    gpus: int = 0
    gpu_memory_gb: float | None = None
    cpus: int = 1

    @classmethod
    def of(cls, resources: dict[str, Any]) -> Request:
        """From the resources of a submission."""
        gpus, memory_gb = resources.get("gpus") or 0, resources.get("gpu_memory_gb")
        if gpus or memory_gb is not None:
            return cls(gpus, memory_gb)
        return cls(cpus=(resources.get("cpus") or 1) * (resources.get("ranks") or 1))

    @property
    def on_cpu(self) -> bool:
        return not self.gpus and self.gpu_memory_gb is None

    def __str__(self) -> str:
        if self.gpu_memory_gb is not None:
            return f"{self.gpu_memory_gb:g} GB of one GPU"
        return _count(self.gpus, "GPU") if self.gpus else "a CPU slot"


@dataclasses.dataclass(frozen=True)
class Placed:
    """A request with the indices of the GPUs that it was given; none for a CPU slot."""

    request: Request
    gpus: tuple[int, ...] = ()


def inventory(gpus: str | None = None, slots: int | None = None) -> Inventory:
    """What this machine has, as far as it may be used.

    Args:
        gpus: indices with commas between, such as "0,1"; "" for none; None: those that CUDA_VISIBLE_DEVICES allows.
        slots: jobs at once without a GPU; None: as many as fit on the cores that this process may use.

    Raises:
        UserError: a GPU that is not there, or a number of slots that is none.
    """
    if slots is not None and slots < 1:
        raise UserError(f"--slots is {slots}; give 1 or more")
    there, why = _queried()
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES") if gpus is None else gpus
    where = "CUDA_VISIBLE_DEVICES" if gpus is None else "--gpus"
    chosen = there if wanted is None else _chosen(wanted, there, where, why)
    if not chosen and there:
        why = "no GPU is allowed here"
    return Inventory(chosen, len(os.sched_getaffinity(0)), slots, "" if chosen else why)


def _queried() -> tuple[tuple[Gpu, ...], str]:
    """The GPUs that the driver knows; where there are none, why."""
    if shutil.which(QUERY[0]) is None:
        return (), "no GPU (nvidia-smi is not installed)"
    try:
        done = subprocess.run(QUERY, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return (), f"no GPU (nvidia-smi: {error})"
    if done.returncode != 0:
        said = (done.stdout + done.stderr).strip().splitlines() or [f"exit code {done.returncode}"]
        return (), f"no GPU (nvidia-smi: {said[0]})"
    found = []
    for row in csv.reader(done.stdout.splitlines(), skipinitialspace=True):
        index, uuid, name, memory_mib = (field.strip() for field in row)
        memory_gb = int(memory_mib) * 2**20 / 1e9 if memory_mib.isdecimal() else 0.0  # "[N/A]" where it is the CPU's
        found.append(Gpu(int(index), name, memory_gb, uuid))
    return tuple(found), "no GPU (nvidia-smi lists none)"


def _chosen(wanted: str, there: Sequence[Gpu], where: str, why: str) -> tuple[Gpu, ...]:
    """The GPUs of a list of indices, or of beginnings of UUIDs as CUDA takes them; -1 ends the list, as in CUDA."""
    found: dict[int, Gpu] = {}
    known = {str(gpu.index): gpu for gpu in there}
    mistakes = []
    for name in (part.strip() for part in wanted.split(",") if part.strip()):
        if name == "-1":
            break
        gpu = known.get(name) or next((g for g in there if name.startswith("GPU-") and g.uuid.startswith(name)), None)
        if gpu is None:
            mistakes.append(f"{unknown('GPU', name, known)}{'' if there else ' ' + why}")
        else:
            found[gpu.index] = gpu
    if mistakes:
        raise ConfigError(mistakes, where)
    return tuple(found.values())


def never(request: Request, machine: Inventory) -> str | None:
    """Why this machine can never serve a request, in words; None where it can."""
    if request.gpu_memory_gb is not None and all(gpu.memory_gb < request.gpu_memory_gb for gpu in machine.gpus):
        largest = max((gpu.memory_gb for gpu in machine.gpus), default=0)
        has = f"the largest here has {largest:.1f}" if machine.gpus else machine.no_gpu or "there is none here"
        return f"asks for {request}; {has}"
    if request.gpus > len(machine.gpus):
        there = f"here {'is' if len(machine.gpus) == 1 else 'are'} {len(machine.gpus)}"
        return f"asks for {request}; {there if machine.gpus else machine.no_gpu or there}"
    return None


def place(waiting: Sequence[Request], running: Sequence[Placed], machine: Inventory) -> dict[int, Placed]:
    """Which waiting requests can start now, by their position in the queue, and where.

    Args:
        waiting: in the order in which they came. running: what holds GPUs and slots now.
    """
    room = _Room(waiting, running, machine)
    starts = {}
    for position, request in enumerate(waiting):
        if never(request, machine) is None:
            placed = room.place(request)
            if placed is not None:
                starts[position] = placed
    return starts


class _Room:
    """What is free while `place` goes through the queue.

    Attributes:
        free_gb: of each GPU. jobs: how many are on each. slots: free ones for jobs without a GPU.
        open: the GPUs that nobody in front keeps back.
    """

    def __init__(self, waiting: Sequence[Request], running: Sequence[Placed], machine: Inventory) -> None:
        self.machine = {gpu.index: gpu for gpu in machine.gpus}
        self.free_gb = {index: gpu.memory_gb for index, gpu in self.machine.items()}
        self.jobs = dict.fromkeys(self.machine, 0)
        on_cpu = [request for request in (*waiting, *(placed.request for placed in running)) if request.on_cpu]
        self.slots = machine.cpu_slots(max((request.cpus for request in on_cpu), default=1))
        self.open = list(self.machine)
        for placed in running:
            self._take(placed)

    def place(self, request: Request) -> Placed | None:
        """Give it what it asks for; where that is not free, keep back what will be free soonest and return None."""
        if request.gpu_memory_gb is not None:
            chosen = self._shared(request.gpu_memory_gb)
        elif request.gpus:
            chosen = self._whole(request.gpus)
        else:
            chosen = () if self.slots > 0 else None
        if chosen is None:
            return None
        placed = Placed(request, chosen)
        self._take(placed)
        return placed

    def _take(self, placed: Placed) -> None:
        self.slots -= not placed.gpus
        for index in placed.gpus:
            if index in self.machine:  # an earlier server may have been allowed further GPUs
                self.free_gb[index] -= placed.request.gpu_memory_gb or self.machine[index].memory_gb
                self.jobs[index] += 1

    def _whole(self, count: int) -> tuple[int, ...] | None:
        # The sum of the jobs on those kept back can only fall, since nothing starts on them: the turn comes.
        emptiest = sorted(self.open, key=lambda index: self.jobs[index])[:count]
        if len(emptiest) == count and not any(self.jobs[index] for index in emptiest):
            return tuple(emptiest)
        self._keep_back(emptiest)
        return None

    def _shared(self, memory_gb: float) -> tuple[int, ...] | None:
        fits = [index for index in self.open if self.free_gb[index] >= memory_gb]
        if fits:  # the fullest of them, so that whole GPUs stay free
            return (min(fits, key=lambda index: self.free_gb[index]),)
        large = [index for index in self.open if self.machine[index].memory_gb >= memory_gb]
        self._keep_back(sorted(large, key=lambda index: -self.free_gb[index])[:1])
        return None

    def _keep_back(self, indices: Sequence[int]) -> None:
        self.open = [index for index in self.open if index not in indices]
