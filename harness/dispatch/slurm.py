"""Submission to Slurm through submitit. No torch.

Every array has a name of its own, which the ledger holds before sbatch is called. Who is killed after that leaves an
array that the next submission finds by its name and takes over.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Mapping

from harness.dispatch.arrays import Array
from harness.dispatch.ledger import Entry, Ledger, now
from harness.dispatch.sbatch import dependency, executor
from harness.dispatch.slurm_programs import SlurmError, last_line
from harness.dispatch.states import ENDED, Seen
from harness.dispatch.work import Work
from harness.runs import Workspace
from harness.specs import Submission


def submit(
    ledger: Ledger,
    array: Array,
    name: str,
    asked: Submission,
    at_once: int | None,
    after: str | None,
    snapshot: str,
    attempts: Mapping[str, int],
    known: Mapping[str, Entry],
) -> list[Entry]:
    """Submit one array; its entries, as they are in the ledger.

    Args:
        at_once: how many of its jobs may run at once; None: all. after: the number of an array that must have ended
            before; None: of none. attempts: unit id -> which attempt this is.
        known: entries of all units that the array waits for.

    Raises:
        SlurmError: Slurm refused.
    """
    workspace = ledger.workspace
    folder = f"jobs/submitit/{name}"
    alone = len(array.units) == 1
    entries = [
        Entry(
            unit,
            "slurm",
            folder,
            snapshot,
            now(),
            attempts[unit.id],
            asked.model_dump(mode="json"),
            name,
            None if alone else index,
        )
        for index, unit in enumerate(array.units)
    ]
    made = executor(workspace, name, asked, snapshot, dependency(array, known, after), at_once)
    for entry in entries:
        ledger.write(entry)
    from submitit.core.utils import FailedJobError

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), made.batch():
            jobs = [made.submit(Work.of(workspace, entry)) for entry in entries]
    except FailedJobError as error:
        raise SlurmError(f"sbatch: {last_line(str(error)) or last_line(said.getvalue())}") from error
    entries = [_with_job(entry, job.job_id) for entry, job in zip(entries, jobs, strict=True)]
    for entry in entries:
        ledger.write(entry)
    return entries


def _with_job(entry: Entry, job: str) -> Entry:
    return dataclasses.replace(entry, job=job, log=f"{entry.folder}/{job}_0_log.err")


def adopt(ledger: Ledger, entries: Mapping[str, Entry], seen: Mapping[str, Seen]) -> dict[str, Entry]:
    """The entries, with the numbers of jobs that their submitter did not live to note.

    submitit gives a job what it has to run only after sbatch has told the number, and the job waits a minute for it.
    One that has ended by now is left without its number, which tells that it may never have had anything to run.
    """
    found = dict(entries)
    for i, entry in entries.items():
        if entry.cluster == "slurm" and entry.job is None and i in seen and seen[i].state not in ENDED:
            found[i] = _with_job(entry, seen[i].job)
            _give_work(ledger.workspace, found[i])
            ledger.write(found[i])
    return found


def _give_work(workspace: Workspace, entry: Entry) -> None:
    from submitit.core.utils import DelayedSubmission, JobPaths, temporary_save_path

    path = JobPaths(workspace.root.resolve() / entry.folder, entry.job).submitted_pickle
    if path.exists():
        return
    delayed = DelayedSubmission(Work.of(workspace, entry))
    delayed.set_timeout(entry.resources["minutes"], entry.resources["requeues"])
    with temporary_save_path(path) as temporary:
        delayed.dump(temporary)
