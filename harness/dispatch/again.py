"""What people do about jobs: submit again what went wrong, end what is under way. No torch but in the preflight."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

from harness.dispatch import local, slurm_jobs
from harness.dispatch.ledger import LIVE, Cluster, Entry, Ledger, now
from harness.dispatch.states import Standing
from harness.dispatch.submit import submit
from harness.errors import UserError, unknown
from harness.monitoring.status import Item, State, experiments_of, status
from harness.progress import Console
from harness.runs import Workspace
from harness.storage.locks import Lock


def retry(workspace: Workspace, console: Console, states: Collection[State], titles: Sequence[str]) -> set[Cluster]:
    """Set failures aside, and submit these runs again where they ran before, with what was cancelled because of them.

    Args:
        states: what counts as gone wrong: failed, lost. titles: of runs or rows, or ids of runs; none: all of them.

    Returns:
        The clusters that something was submitted to.

    Raises:
        UserError: no such run; nothing of what went wrong was ever submitted; Slurm does not answer; whatever `submit`
            refuses.
    """
    found, experiments = status(workspace), experiments_of(workspace)
    if found.slurm is not None:
        raise UserError(f"{found.slurm}; what has become of its jobs is not known, and nothing was submitted")
    items = [item for one in found.experiments for item in one.items]
    _all_known(titles, [(item.run, item.title) for item in items])
    wrong = [item for item in items if item.state in states and _is_meant(titles, [(item.run, item.title)])]
    jobs = {item.run for item in wrong if item.cluster is not None}
    if wrong and not jobs:
        raise UserError(
            f"{_titles(wrong)}: never submitted; `singer-bench run CONFIG --retry-failed` trains failed ones again"
        )
    if not jobs:
        console.say(f"nothing is {' or '.join(states)}")
        return set()
    again: set[Cluster] = set()
    with contextlib.ExitStack() as refused:  # what is not submitted after all is as before
        meant = jobs | _set_aside(workspace, jobs, refused)
        for one in found.experiments:
            mine = [item for item in one.items if item.state in states and item.run in jobs]
            clusters: list[Cluster] = [item.cluster for item in mine if item.cluster is not None]
            experiment = experiments[one.name]
            if clusters and not isinstance(experiment, UserError):
                console.say(f"{one.name}: again: {_titles(mine)}")
                where = max(clusters, key=clusters.count)
                submit(experiment, workspace, where, console, only=meant)
                again.add(where)
        refused.pop_all()
    return again


def _set_aside(workspace: Workspace, runs: Collection[str], refused: contextlib.ExitStack) -> set[str]:
    """So that neither a run's failure nor its job that failed counts any more; both stay readable.

    Args:
        refused: when it is closed, what was not submitted by then counts as failed again.

    Returns:
        The runs that were cancelled since they needed a teacher among these.
    """
    ledger = Ledger(workspace)
    entries = ledger.entries()
    standing = slurm_jobs.look(workspace, entries)
    fits = {i for i, entry in entries.items() if entry.unit.kind == "fit" and not set(runs).isdisjoint(entry.unit.runs)}
    waited = [e for i, e in entries.items() if standing[i].state == "cancelled" and not fits.isdisjoint(e.unit.needs)]
    failed = [e for i, e in entries.items() if standing[i].state == "failed" and not set(runs).isdisjoint(e.unit.runs)]
    kept = {run: path for run in runs if (path := workspace.forgive(run)) is not None}
    for entry in failed:
        ledger.set_aside(entry)
    refused.callback(_restore, workspace, entries, failed, kept)
    return {run for entry in waited for run in entry.unit.runs}


def _restore(
    workspace: Workspace, before: Mapping[str, Entry], failed: Iterable[Entry], kept: Mapping[str, Path]
) -> None:
    """Take `_set_aside` back, but of what was submitted anew: a part may have been, before Slurm refused the rest."""
    ledger = Ledger(workspace)
    entries = ledger.entries()
    trained = [e for i, e in entries.items() if e.unit.kind != "evaluate" and e != before.get(i)]
    anew = {run for entry in trained for run in entry.unit.runs}
    for entry in failed:
        if entry.unit.id not in entries:
            ledger.restore(entry)
    for run, path in kept.items():
        if run not in anew:
            workspace.unforgive(run, path)


def cancel(
    workspace: Workspace, console: Console, titles: Sequence[str], sure: Callable[[list[str]], bool]
) -> list[Entry]:
    """End jobs that are under way; those that run save first, and `submit` goes on where they were.

    Args:
        titles: of runs or rows, or ids of runs; none: all. A group that trains one of them ends as a whole.
        sure: is shown a line for each job, and says whether to end them.

    Returns:
        The entries of what was ended.

    Raises:
        UserError: no such run; nothing was submitted; Slurm refuses.
    """
    ledger = Ledger(workspace)
    entries = ledger.entries()
    if not entries:
        raise UserError("nothing was submitted from this workspace; Ctrl-C stops a `singer-bench run`")
    _all_known(titles, [pair for entry in entries.values() for pair in _runs(entry)])
    meant = {i for i, entry in entries.items() if _is_meant(titles, _runs(entry))}
    going = [i for i in _going(workspace, entries) if i in meant]
    if not going:
        console.say("nothing of it is under way")
    elif sure([str(entries[i].unit) for i in going]):
        return _end(workspace, console, going)
    return []


def _going(workspace: Workspace, entries: dict[str, Entry]) -> dict[str, Standing]:
    """What is under way; a machine's queue goes on by itself with a job whose process died."""
    standing = slurm_jobs.look(workspace, entries)
    at_work = (*LIVE, "lost")
    return {
        i: one
        for i, one in standing.items()
        if one.state in LIVE or (entries[i].cluster == "local" and entries[i].state in LIVE and one.state in at_work)
    }


def _end(workspace: Workspace, console: Console, ids: Collection[str]) -> list[Entry]:
    """Under the lock with which a queue starts jobs: none may start while it is cancelled."""
    ledger = Ledger(workspace)
    with Lock(workspace.locks / "start.lock") as lock:
        while not lock.acquire():
            time.sleep(0.1)
        entries = ledger.entries()
        standing = _going(workspace, entries)
        mine = [i for i in ids if i in standing]
        slurm_jobs.cancel([_numbered(entries[i], standing[i]) for i in mine])
        for i in mine:
            if entries[i].cluster == "local":
                _end_here(ledger, console, entries[i])
    return [entries[i] for i in mine]


def _numbered(entry: Entry, standing: Standing) -> Entry:
    """With the number of a job that its submitter did not live to note."""
    return (
        entry if entry.job is not None or standing.seen is None else dataclasses.replace(entry, job=standing.seen.job)
    )


def _end_here(ledger: Ledger, console: Console, entry: Entry) -> None:
    ledger.write(dataclasses.replace(entry, state="cancelled", ended=now(), reason="by `singer-bench cancel`"))
    if entry.state != "running":
        return
    if entry.host == socket.gethostname():
        local.ask_to_stop(ledger.workspace, entry)
    else:
        console.say(f"{entry.unit} runs on {entry.host}: its queue there, or `singer-bench cancel` there, ends it")


def _runs(entry: Entry) -> list[tuple[str, str]]:
    return list(zip(entry.unit.runs, entry.unit.titles, strict=True))


def _names(run: str, title: str) -> set[str]:
    """What a person may call a run: its title, its row's label, its id."""
    return {run, title, title.rpartition(" seed ")[0]}


def _is_meant(titles: Collection[str], runs: Iterable[tuple[str, str]]) -> bool:
    return not titles or any(not _names(*pair).isdisjoint(titles) for pair in runs)


def _all_known(titles: Iterable[str], runs: Iterable[tuple[str, str]]) -> None:
    """Raises UserError for the first title that no run has."""
    known = set().union(*(_names(*pair) for pair in runs))
    for title in titles:
        if title not in known:
            raise UserError(unknown("run or row", title, known - {run for run, _ in runs}))


def _titles(items: Iterable[Item]) -> str:
    return ", ".join(dict.fromkeys(item.title for item in items))
