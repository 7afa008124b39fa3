"""What has become of what was submitted, told by the workspace first and by the cluster second. No torch."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from harness.dispatch import processes
from harness.dispatch.ledger import BAD, LIVE, Entry, Ledger, State, Unit
from harness.runs import Workspace
from harness.storage.integrity import read_json


@dataclass(frozen=True)
class Seen:
    """What Slurm says of a job.

    Attributes:
        job: its number, "123_4" in an array. state: Slurm's, such as PENDING. reason: of that state, "" for none.
        signalled: whether a signal ended it, and no exit of its own. node: where it runs or ran, "" for nowhere yet.
        restarts: how often it was requeued. since: when it began last, ISO 8601 local time, "" for not yet.
    """

    job: str
    state: str
    reason: str = ""
    signalled: bool = False
    node: str = ""
    restarts: int = 0
    since: str = ""


@dataclass(frozen=True)
class Standing:
    """What has become of one unit. reason: why, where it is failed, lost or cancelled. seen: of a Slurm job."""

    state: State
    reason: str | None = None
    seen: Seen | None = None


class Found:
    """What a workspace holds, by one listing of each folder: thousands of units ask."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.students = _names(workspace.students)  # under way: "<run id>.partial"
        self.failures = {name.removesuffix(".json") for name in _names(workspace.failures) if name.endswith(".json")}
        self.records = _names(workspace.records)
        self._task_ids: dict[str, str | None] = {}

    def done(self, unit: Unit) -> bool:
        """Whether nothing is left to do of a unit: a run that failed has nothing to evaluate."""
        if unit.kind != "evaluate":
            return all(run in self.students or run in self.failures for run in unit.runs)
        left = [run for run in unit.runs if run not in self.failures]
        return all(self._has_record(run, task) for run in left for task in unit.tasks)

    def _has_record(self, run: str, task: str) -> bool:
        if task not in self._task_ids:
            path = self.workspace.protocols / f"{task}.json"
            noted = read_json(path, "remove it: it is written anew") if path.is_file() else {"task_id": None}
            self._task_ids[task] = noted["task_id"]
        return f"{run}.{self._task_ids[task]}.json" in self.records

    def failure(self, unit: Unit) -> str | None:
        """Why a training failed; None where it did not, and for an evaluation, whose training says it."""
        if unit.kind == "evaluate":
            return None
        for run, title in zip(unit.runs, unit.titles, strict=True):
            if run in self.failures and (failure := self.workspace.failure(run)) is not None:
                return f"{title} at step {failure['step']}: {failure['reason']}"
        return None


def _names(folder: os.PathLike[str]) -> set[str]:
    try:
        return set(os.listdir(folder))
    except FileNotFoundError:
        return set()


def standings(workspace: Workspace, entries: Mapping[str, Entry], seen: Mapping[str, Seen]) -> dict[str, Standing]:
    """Unit id -> what has become of it.

    Args:
        seen: unit id -> what Slurm says (`harness.dispatch.slurm_jobs.seen`); a Slurm job that is not in it has ended.
    """
    found, ledger = Found(workspace), Ledger(workspace)
    told = {i: _standing(entry, found, ledger, seen.get(i)) for i, entry in entries.items()}
    for i, entry in entries.items():
        needed = [told[need].state for need in entry.unit.needs if need in told]
        if told[i].state == "queued" and any(state in LIVE for state in needed):
            told[i] = Standing("waiting", None, told[i].seen)
        # Slurm says so for some minutes only.
        if told[i].state == "cancelled" and entry.cluster == "slurm" and any(state in BAD for state in needed):
            told[i] = Standing("cancelled", "what it needs did not end well", told[i].seen)
    return told


def _standing(entry: Entry, found: Found, ledger: Ledger, seen: Seen | None) -> Standing:
    failure = found.failure(entry.unit)
    if found.done(entry.unit):
        return Standing("done" if failure is None else "failed", failure, seen)
    if entry.cluster == "local":
        state, reason = _local(entry)
    elif seen is not None and seen.state not in ENDED:
        state, reason = _live(seen), None
    else:
        state, reason = _ended(entry, ledger, seen)
    return Standing(state, reason, seen)


# Slurm's words for a job that will not go on by itself. COMPLETING is none of them: it may yet be requeued.
ENDED = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
    *("OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
}
WAITING = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"}


def _live(seen: Seen) -> State:
    if seen.state not in WAITING:
        return "running"
    if seen.restarts:
        return "requeued"
    return "waiting" if seen.reason.startswith("Dependency") else "queued"


def _ended(entry: Entry, ledger: Ledger, seen: Seen | None) -> tuple[State, str | None]:
    """Of a Slurm job that is no more and has left something undone."""
    if entry.job is None and seen is None:
        return "lost", "it was never submitted: Slurm refused, or whoever submitted it was stopped"
    if seen is not None and seen.state == "CANCELLED":
        return "cancelled", "what it needs did not end well" if seen.reason.startswith("Dependency") else "by scancel"
    end = ledger.end(entry)
    if end is not None and end.outcome == "failed":
        return "failed", end.reason
    if end is not None and end.outcome == "stopped":
        return "lost", end.reason
    if seen is None or seen.state == "COMPLETED":
        return "lost", "its job has ended and left nothing"
    if seen.state == "FAILED" and entry.job is None:  # a job waits a minute for what it has to run
        return "lost", "whoever submitted it was stopped before it was given its work"
    if seen.state == "FAILED" and not seen.signalled:
        return "failed", "its job ended with an error before it could begin; see the log"
    return "lost", f"its job has ended: {seen.state}"


def _local(entry: Entry) -> tuple[State, str | None]:
    """Of a job of a machine's own queue, whose server may have died and left a word that is no longer true."""
    told = entry.pid is not None and entry.started is not None and entry.host in (None, socket.gethostname())
    if entry.state == "running" and told and not processes.living(entry.pid or 0, entry.started or ""):
        return "lost", "its process is gone"
    return entry.state, entry.reason
