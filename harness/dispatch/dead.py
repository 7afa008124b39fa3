"""Locks of jobs that Slurm knows to be dead, taken away at once instead of minutes later. No torch.

A job that died with its node leaves its locks. From another machine it looks as if it were at work until its locks grow
old; but Slurm says which jobs run, and one that was started again is another start than the one that took the lock.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from harness.dispatch.slurm_jobs import running
from harness.dispatch.slurm_programs import SlurmError
from harness.runs import Workspace
from harness.storage.locks import owner, slurm_job, take_away

Job = dict[str, Any]  # of `slurm_job`


def release(workspace: Workspace) -> list[Path]:
    """Take away the locks whose owners are earlier starts of this job, or jobs of this cluster that do not run.

    For a job of Slurm itself, before it takes locks of its own. Where Slurm does not answer, nothing is known of other
    jobs, and their locks are left to grow old.

    Returns:
        The locks that were taken away.
    """
    me = slurm_job()
    if me is None:
        return []
    held = {path: found for path in _locks(workspace) if (found := owner(path)) is not None and _is_ours(found, me)}
    others = {found["job"]["number"] for found in held.values()} - {me["number"]}
    try:
        starts = running(others)
    except SlurmError:
        held = {path: found for path, found in held.items() if found["job"]["number"] == me["number"]}
        starts = {}
    starts[me["number"]] = me["restarts"]
    dead = {path: found for path, found in held.items() if _is_dead(found["job"], starts)}
    return [path for path, found in dead.items() if take_away(path, found)]


def _locks(workspace: Workspace) -> Iterable[Path]:
    return sorted(path for folder in (workspace.locks, workspace.features) for path in folder.glob("*.lock"))


def _is_ours(found: dict[str, Any], me: Job) -> bool:
    """Whether its owner is in a job of this cluster."""
    job = found.get("job")
    return isinstance(job, dict) and job.keys() == me.keys() and job["cluster"] == me["cluster"]


def _is_dead(job: Job, starts: dict[str, int]) -> bool:
    """starts: of the jobs that run, how often each was started again."""
    return job["number"] not in starts or job["restarts"] < starts[job["number"]]
