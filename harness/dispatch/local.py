"""One job of this machine: how it is started, whether it lives, how it is asked to stop. No torch."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.dispatch import processes
from harness.dispatch.inventory import Placed
from harness.dispatch.launch import controller, launch
from harness.dispatch.ledger import Entry
from harness.dispatch.snapshot import shell_lines
from harness.errors import UserError
from harness.runs import Workspace

NO_LIMIT_MIN = 365 * 24 * 60  # submitit's own is two minutes


def new_folder(workspace: Workspace, entry: Entry) -> str:
    """Make a folder for one start of an entry's job, which no other start has; relative to the workspace.

    Raises:
        UserError: the workspace cannot be written.
    """
    parent, number = workspace.jobs / "submitit", 0
    while True:
        number += 1
        folder = parent / f"{entry.unit.id}.{entry.attempt}.{number}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"cannot write into {str(parent)!r}: {error.strerror}") from error
        return str(folder.relative_to(workspace.root))


def start(workspace: Workspace, entry: Entry, placed: Placed, work: Callable[[], Any]) -> Entry:
    """Start the job of an entry that has its folder; the entry with its process. Raises UserError if it cannot be."""
    asked = entry.resources
    folder = absolute(workspace, entry)
    parameters = {
        "tasks_per_node": _ranks(entry),
        "gpus_per_node": len(placed.gpus),
        "visible_gpus": placed.gpus,
        "timeout_min": asked.get("minutes") or NO_LIMIT_MIN,
        "signal_delay_s": asked.get("signal_seconds", 30),
    }
    setup = ["export CUDA_DEVICE_ORDER=PCI_BUS_ID"]  # as nvidia-smi numbers them; CUDA's own order is by speed
    if asked.get("cpus") and "OMP_NUM_THREADS" not in os.environ:
        setup.append(f"export OMP_NUM_THREADS={min(asked['cpus'], len(os.sched_getaffinity(0)))}")
    setup += [*asked.get("setup", ()), *shell_lines(workspace.root / entry.snapshot)]
    launch(work, folder, parameters, asked.get("requeues", 0), setup)
    return found(workspace, entry)


def found(workspace: Workspace, entry: Entry) -> Entry:
    """The entry with the process and the log that its folder tells of."""
    process = controller(absolute(workspace, entry))
    if process is None:
        return entry
    pid, began = process
    return dataclasses.replace(entry, job=str(pid), pid=pid, started=began, log=f"{entry.folder}/{pid}_0_log.err")


def absolute(workspace: Workspace, entry: Entry) -> Path:
    """The job's folder, under the one name by which its processes are known."""
    return workspace.root.resolve() / entry.folder


def lives(workspace: Workspace, entry: Entry) -> bool:
    """Whether anything of the job still runs: its controller, or ranks that outlived it."""
    if entry.pid is not None and entry.started is not None and processes.living(entry.pid, entry.started):
        return True
    return absolute(workspace, entry) in processes.jobs()


def ask_to_stop(workspace: Workspace, entry: Entry) -> None:
    """Have it save and end. The controller hands the signal on; without one every rank is asked."""
    if entry.pid is not None and entry.started is not None and processes.living(entry.pid, entry.started):
        processes.send([entry.pid], signal.SIGTERM)
    else:
        processes.send(processes.jobs().get(absolute(workspace, entry), []), signal.SIGTERM)


def kill(workspace: Workspace, entry: Entry) -> None:
    """End it at once; its checkpoints stay."""
    processes.send(processes.jobs().get(absolute(workspace, entry), []), signal.SIGKILL)


def raised(workspace: Workspace, entry: Entry) -> bool:
    """Whether submitit noted how every rank ended, which it does not for one that was killed."""
    return len(list(absolute(workspace, entry).glob("*_result.pkl"))) >= _ranks(entry)


def _ranks(entry: Entry) -> int:
    return entry.resources.get("ranks") or len(entry.gpus) or 1


def last_lines(workspace: Workspace, entry: Entry, count: int) -> list[str]:
    """The end of what the job wrote to standard error, without empty lines."""
    if entry.log is None:
        return []
    try:
        with open(workspace.root / entry.log, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 20_000))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    return [line.strip() for line in lines if line.strip()][-count:]
