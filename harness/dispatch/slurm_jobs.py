"""What Slurm says of jobs: squeue first, the accounting for those that squeue has forgotten. No torch."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterable, Mapping

from harness.dispatch.ledger import Entry
from harness.dispatch.slurm_programs import SlurmError, ask
from harness.dispatch.states import ENDED, WAITING, Found, Seen, Standing, standings
from harness.runs import Workspace


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
    numbers = sorted({entry.array for entry in mine.values() if entry.job is not None}, key=int)
    orphans = sorted({entry.name for entry in mine.values() if entry.job is None})
    if numbers:
        queue.read(_squeue(f"--jobs={','.join(numbers)}"))
    if orphans:
        queue.read(_squeue(f"--name={','.join(orphans)}"))
    left = [entry for entry in mine.values() if (answer := queue.of(entry)) is None or answer.state in ENDED]
    if left:
        queue.read(_sacct(left))
    return {i: answer for i, entry in mine.items() if (answer := queue.of(entry)) is not None}


def running(numbers: Iterable[str]) -> dict[str, int]:
    """Those of these jobs that have processes, or may have: number -> how often it was started again.

    Raises:
        SlurmError: it does not answer.
    """
    asked = sorted({number.partition("_")[0] for number in numbers}, key=int)
    if not asked:
        return {}
    found = (job for _, job in _squeue(f"--jobs={','.join(asked)}"))
    return {job.job: job.restarts for job in found if job.state not in ENDED | WAITING}


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
            "--allusers",  # else it tells of one's own alone, and two may submit into one workspace
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
