"""Stay until what was submitted is done, and say what becomes of it. No torch."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Collection, Mapping

from harness.config import Experiment
from harness.dispatch import slurm_jobs
from harness.dispatch.ledger import BAD, LIVE, Entry, Ledger
from harness.dispatch.slurm_programs import SlurmError
from harness.dispatch.states import Standing
from harness.progress import Console
from harness.runs import Workspace, bound_runs, student_runs

POLL_S = 3.0


def wait(experiment: Experiment, workspace: Workspace, console: Console) -> list[str]:
    """Stay until nothing of the experiment is under way, and say what changes; a sentence for each unit gone wrong."""
    runs = {run.id for run in bound_runs(experiment) + student_runs(experiment)}
    said = ""
    while True:
        began_s = time.monotonic()
        entries = _entries(workspace, runs)
        standing = None
        try:
            standing = slurm_jobs.look(workspace, entries)
        except SlurmError as error:
            line = f"{error}; the jobs go on, and so does this as soon as it answers"
        else:
            count = Counter(one.state for one in standing.values())
            line = f"jobs: {', '.join(f'{number} {state}' for state, number in sorted(count.items()))}"
        if line != said:
            console.say(line)
            said = line
        if standing is not None and not any(one.state in LIVE for one in standing.values()):
            return gone_wrong(workspace, entries, standing)
        time.sleep(max(POLL_S, 5 * (time.monotonic() - began_s)))  # thousands of entries take a while to read


def _entries(workspace: Workspace, runs: Collection[str]) -> dict[str, Entry]:
    """The entries of these runs, whoever submitted them, and of what they need."""
    entries = Ledger(workspace).entries()
    mine = {i for i, entry in entries.items() if not set(entry.unit.runs).isdisjoint(runs)}
    mine |= {need for i in mine for need in entries[i].unit.needs}
    return {i: entry for i, entry in entries.items() if i in mine}


def gone_wrong(workspace: Workspace, entries: Mapping[str, Entry], standing: Mapping[str, Standing]) -> list[str]:
    """A sentence for each unit that did not end well, with its log; not for those that waited for one of them."""
    bad = {i: one for i, one in standing.items() if one.state in BAD}
    sentences = []
    for i, one in bad.items():
        entry = entries[i]
        if any(need in bad for need in entry.unit.needs):
            continue
        log = f"; log: {os.path.join(workspace.root, entry.log)}" if entry.log else ""
        sentences.append(f"{one.state}: {entry.unit}: {one.reason}{log}")
    return sentences
