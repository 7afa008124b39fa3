"""Submission to Slurm through submitit, and what Slurm says of the jobs. No torch.

Every array has a name of its own, which the ledger holds before sbatch is called. Who is killed after that leaves an
array that the next submission finds by its name and takes over.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import io
from collections.abc import Iterable, Mapping

from harness.dispatch.arrays import Array
from harness.dispatch.ledger import Entry, Ledger, now
from harness.dispatch.sbatch import dependency, executor, number
from harness.dispatch.slurm_programs import SlurmError, ask, last_line
from harness.dispatch.states import ENDED, Found, Seen, Standing, standings
from harness.dispatch.work import Work
from harness.runs import Workspace
from harness.specs import Submission


def submit(
    ledger: Ledger,
    array: Array,
    name: str,
    asked: Submission,
    at_once: int | None,
    snapshot: str,
    attempts: Mapping[str, int],
    known: Mapping[str, Entry],
) -> list[Entry]:
    """Submit one array; its entries, as they are in the ledger.

    Args:
        at_once: how many of its jobs may run at once; None: all. attempts: unit id -> which attempt this is.
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
    made = executor(workspace, name, asked, snapshot, dependency(array, known), at_once)
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
    """
    found = dict(entries)
    for i, entry in entries.items():
        if entry.cluster == "slurm" and entry.job is None and i in seen:
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


def look(workspace: Workspace, entries: Mapping[str, Entry]) -> dict[str, Standing]:
    """Unit id -> what has become of it. Slurm is asked only about what the workspace does not show to be done.

    Raises:
        SlurmError: it does not answer; `standings` with an empty `seen` tells what the workspace alone knows.
    """
    return standings(workspace, entries, seen(workspace, entries))


def seen(workspace: Workspace, entries: Mapping[str, Entry]) -> dict[str, Seen]:
    """Unit id -> what Slurm says of its job, for those that have left something undone; not of jobs it forgot."""
    found = Found(workspace)
    mine = {i: e for i, e in entries.items() if e.cluster == "slurm" and not found.done(e.unit)}
    if not mine:
        return {}
    queue = _Answers()
    numbers = sorted({number(entry) for entry in mine.values() if entry.job is not None}, key=int)
    orphans = sorted({entry.name for entry in mine.values() if entry.job is None})
    if numbers:
        queue.read(_squeue(f"--jobs={','.join(numbers)}"))
    if orphans:
        queue.read(_squeue(f"--name={','.join(orphans)}"))
    left = [entry for entry in mine.values() if (answer := queue.of(entry)) is None or answer.state in ENDED]
    if left:
        queue.read(_sacct(left))
    return {i: answer for i, entry in mine.items() if (answer := queue.of(entry)) is not None}


class _Answers:
    """Jobs by name and index; a name is never used twice, as a number may be."""

    def __init__(self) -> None:
        self.jobs: dict[tuple[str, int | None], Seen] = {}

    def read(self, found: Iterable[tuple[str, Seen]]) -> None:
        """What is told later counts, but the accounting knows neither why a job waits nor how often it was requeued."""
        for name, job in found:
            index = job.job.partition("_")[2]
            key = (name, int(index) if index.isdecimal() else None)
            before = self.jobs.get(key, job)
            self.jobs[key] = dataclasses.replace(job, reason=before.reason, restarts=before.restarts)

    def of(self, entry: Entry) -> Seen | None:
        """A task that never began has no answer of its own, where its whole array was cancelled."""
        return self.jobs.get((entry.name, entry.index)) or self.jobs.get((entry.name, None))


_FIELDS = ("ArrayJobID:32", "ArrayTaskID:32", "JobID:32", "State:32", "Reason:64", "RestartCnt:12", "NodeList:128")
_FIELDS += ("StartTime:32", "Name:256")


def _squeue(which: str) -> list[tuple[str, Seen]]:
    """Jobs that wait, run, or have ended some minutes ago."""
    try:
        text = ask("squeue", "--noheader", "--array", "--states=all", which, f"--Format={','.join(_FIELDS)}")
    except SlurmError as error:
        if "Invalid job id" in str(error):  # none of them is known any more
            return []
        raise
    return [_job(line) for line in text.splitlines() if line.strip()]


def _job(line: str) -> tuple[str, Seen]:
    values, start = [], 0
    for field in _FIELDS:
        width = int(field.partition(":")[2])
        values.append(line[start : start + width].strip())
        start += width
    array, index, job, state, reason, restarts, node, since, name = values
    number = f"{array}_{index}" if index.isdecimal() else job
    return name, Seen(number, state, _said(reason), False, _said(node), int(restarts or 0), _said(since))


def _said(text: str) -> str:
    return "" if text in ("None", "N/A", "(null)", "Unknown") else text


def _sacct(entries: Iterable[Entry]) -> list[tuple[str, Seen]]:
    """Jobs that have ended, from the accounting; none where it is not kept."""
    entries = list(entries)
    begin = datetime.datetime.fromisoformat(min(entry.submitted for entry in entries)) - datetime.timedelta(minutes=1)
    names = ",".join(sorted({entry.name for entry in entries}))
    columns = "JobID,State,ExitCode,NodeList,Start,JobName"
    try:
        text = ask(
            *("sacct", "--noheader", "--parsable2", "--allocations", f"--format={columns}", f"--name={names}"),
            f"--starttime={begin.astimezone():%Y-%m-%dT%H:%M:%S}",
        )
    except SlurmError:
        return []
    found = []
    for line in text.splitlines():
        job, state, code, node, since, name = line.split("|", 5)
        status, _, number = code.partition(":")
        signalled = number not in ("", "0") or int(status or 0) > 128
        found.append((name, Seen(job, state.split()[0], "", signalled, _said(node), 0, _said(since))))
    return [(name, job) for name, job in found if job.state in ENDED]


def cancel(entries: Iterable[Entry]) -> None:
    """End jobs of Slurm; what they have saved stays. Raises SlurmError where it refuses."""
    jobs = [entry.job for entry in entries if entry.cluster == "slurm" and entry.job is not None]
    if jobs:
        ask("scancel", *jobs)
