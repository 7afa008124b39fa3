"""Who serves this machine's queue: looks at the ledger, starts jobs, notes what becomes of them. No torch.

All that it knows is on disk. Killed, it leaves its jobs alone: the next server finds those that live, has those that
died go on at their checkpoint, and places new ones beside them.
"""

from __future__ import annotations

import dataclasses
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from harness.dispatch import local, processes
from harness.dispatch.inventory import Inventory, Placed, Request, never, place
from harness.dispatch.ledger import BAD, Entry, Ledger, State, Unit, now
from harness.dispatch.signals import Asked
from harness.dispatch.states import Found
from harness.errors import UserError
from harness.interrupts import Interrupted
from harness.progress import Console
from harness.runs import Workspace
from harness.storage.locks import Lock

POLL_S = 1.0
AT_ONCE_S = 60.0  # a job that is killed sooner than this after its start has got nowhere ...
AT_ONCE = 3  # ... and is given up when that has happened so often in a row
LAST_LINES = 5  # of its log, said when a job failed
ENDED: tuple[State, ...] = ("done", *BAD)

WorkOf = Callable[[Workspace, Entry], Callable[[], Any]]


class Server:
    """One server. `run` is its life, `step` one look at everything.

    Args:
        machine: what jobs are placed on. work: what submitit runs for an entry.
    """

    def __init__(self, workspace: Workspace, console: Console, machine: Inventory, work: WorkOf) -> None:
        self.workspace, self.console, self.machine, self.work = workspace, console, machine, work
        self.ledger, self.host = Ledger(workspace), socket.gethostname()
        self.live: dict[str, Entry] = {}  # by folder: jobs of which something runs
        self.stopping = False
        self._reading_s = 0.0  # the last time that the ledger was read
        self._begun_s: dict[str, float] = {}  # by folder: of jobs that were started here
        self._at_once: Counter[str] = Counter()  # by unit: how often in a row it was killed at once

    def run(self, asked: Asked) -> None:
        """Until nothing runs and nothing can start. Raises Interrupted when a signal asked to stop."""
        self.adopt()
        while True:
            if asked.times:
                self._stop(asked)
            if not self.step():
                return
            # Thousands of entries take a while to read, which should not be all that this process does.
            asked.wait(max(POLL_S, 10 * self._reading_s))

    def adopt(self) -> None:
        """Take over what an earlier server of this machine left."""
        folders = processes.jobs()
        for entry in self.ledger.entries().values():
            if entry.cluster == "local" and entry.host == self.host and entry.state in ("running", "cancelled"):
                entry = local.found(self.workspace, entry)
                if local.absolute(self.workspace, entry) in folders:
                    self.console.say(f"still running: {entry.unit}")
                    self.live[entry.folder] = entry
                    self._write(entry)
                elif entry.state == "running":
                    self._ended(entry, unseen=True)

    def step(self) -> bool:
        """Note what ended, start what can start; whether anything runs or is about to."""
        self._look()
        began_s = time.monotonic()
        entries = self.ledger.entries()
        self._reading_s = time.monotonic() - began_s
        hopeless = self._hopeless(entries)
        for entry, needed in hopeless:
            self._close(entry, "cancelled", f"it needs {needed}, which did not end well")
        starts = self._starts(entries)
        if starts:
            with Lock(self.workspace.locks / "start.lock") as lock:  # another machine's server may want the same
                if lock.acquire():
                    for entry, placed in starts:
                        if self.ledger.entry(entry.unit.id) == entry:
                            self._start(entry, placed)
        return bool(starts or hopeless or self.live)

    def _look(self) -> None:
        """Note which jobs ended."""
        for folder, entry in list(self.live.items()):
            if not local.lives(self.workspace, entry):
                del self.live[folder]
                self._ended(local.found(self.workspace, entry))

    def has_more(self) -> bool:
        """Whether another step would find something to do, where nothing runs."""
        entries = self.ledger.entries()
        return bool(self._starts(entries) or self._hopeless(entries))

    def left(self) -> list[str]:
        """What is queued and can never start here, where nothing runs: a sentence each."""
        entries, found, sentences = self.ledger.entries(), Found(self.workspace), []
        for entry in filter(_is_queued, entries.values()):
            if _can_begin(entry.unit, entries, found):
                why = never(Request.of(entry.resources), self.machine)
            else:  # another machine's queue may be at work on what it needs, and will take it then
                strange = [i for i in entry.unit.needs if i not in entries or entries[i].cluster != "local"]
                why = f"waits for {', '.join(strange)}, which is not in this queue" if strange else None
            if why is not None:
                sentences.append(f"{entry.unit} {why}")
        return sentences

    def _starts(self, entries: Mapping[str, Entry]) -> list[tuple[Entry, Placed]]:
        """What can start now, and where. What was submitted first comes first, and evaluations before trainings."""
        found = Found(self.workspace)
        ready = [e for e in entries.values() if _is_queued(e) and _can_begin(e.unit, entries, found)]
        ready.sort(key=lambda entry: (entry.submitted, entry.unit.kind != "evaluate"))
        ready = self._within_bounds(ready, entries)
        running = [_placed(entry) for entry in self.live.values()]
        starts = place([Request.of(entry.resources) for entry in ready], running, self.machine)
        return [(ready[position], placed) for position, placed in starts.items()]

    def _within_bounds(self, ready: Sequence[Entry], entries: Mapping[str, Entry]) -> list[Entry]:
        """Those that may start before more than `max_jobs` of one submission run at once, on whatever machine."""
        running = {i: e for i, e in entries.items() if e.cluster == "local" and e.state == "running"}
        running.update((entry.unit.id, entry) for entry in self.live.values())  # also those that end, being cancelled
        at_once, found = Counter(map(_submission, running.values())), []
        for entry in ready:
            most = entry.resources.get("max_jobs")
            if most is None or at_once[_submission(entry)] < most:
                at_once[_submission(entry)] += 1
                found.append(entry)
        return found

    def _start(self, entry: Entry, placed: Placed) -> None:
        # The place is on disk before anything runs there: whoever finds the folder knows what its processes hold.
        folder = local.new_folder(self.workspace, entry)
        fresh = {"pid": None, "started": None, "job": None, "log": None, "ended": None, "reason": None}
        entry = dataclasses.replace(entry, state="running", host=self.host, gpus=placed.gpus, folder=folder, **fresh)
        self.ledger.begin(entry.unit.id, entry.attempt)
        self.ledger.write(entry)
        try:
            entry = local.start(self.workspace, entry, placed, self.work(self.workspace, entry))
        except (UserError, OSError) as error:
            self._close(entry, "failed", str(error))
            return
        self.live[folder], self._begun_s[folder] = entry, time.monotonic()
        self._write(entry)
        where = f"GPU {', '.join(map(str, placed.gpus))}" if placed.gpus else "the CPU"
        self.console.say(f"started: {entry.unit}; on {where}, log {self.workspace.root / (entry.log or '')}")

    def _ended(self, entry: Entry, unseen: bool = False) -> None:
        """Note what became of a job of which nothing runs. unseen: it ended while there was no server."""
        end = self.ledger.end(entry)
        if not self._is_current(entry):
            self.console.say(f"cancelled: {entry.unit}")
        elif Found(self.workspace).done(entry.unit) or (end is not None and end.outcome == "done"):
            self._close(entry, "done", None)
        elif end is not None and end.outcome == "failed":
            self._close(entry, "failed", end.reason)
        elif self.stopping or entry.pid is None or (unseen and end is not None):
            self._again(entry)
        elif end is not None:  # somebody else's signal, or out of time too often
            self._close(entry, "cancelled", end.reason)
        elif local.raised(self.workspace, entry):
            self._close(entry, "failed", self._last_line(entry))
        else:
            self._killed(entry)

    def _killed(self, entry: Entry) -> None:
        """Have it go on at its checkpoint, unless that leads nowhere."""
        begun_s = self._begun_s.get(entry.folder)
        unit, restarts = entry.unit.id, entry.restarts + 1
        self._at_once[unit] = self._at_once[unit] + 1 if begun_s and time.monotonic() - begun_s < AT_ONCE_S else 0
        why = f"its processes ended without a word; its log ends with: {self._last_line(entry)}"
        if self._at_once[unit] >= AT_ONCE:
            self._close(entry, "failed", f"{self._at_once[unit]} times in a row, soon after their start, {why}")
        elif restarts > entry.resources.get("requeues", 0):
            self._close(entry, "failed", f"started again {entry.restarts} times; {why}")
        else:
            self.console.say(f"goes on at its checkpoint: {entry.unit}; {why}")
            self._again(dataclasses.replace(entry, restarts=restarts, reason=why))

    def _again(self, entry: Entry) -> None:
        self._write(dataclasses.replace(entry, state="queued", host=None, pid=None, started=None, job=None, gpus=()))

    def _close(self, entry: Entry, state: State, reason: str | None) -> None:
        if state == "done":
            self.console.say(f"done: {entry.unit}")
        else:
            self.console.say(f"{state}: {entry.unit}: {reason}")
            for line in local.last_lines(self.workspace, entry, LAST_LINES):
                self.console.say(f"  | {line}")
            if entry.log is not None:
                self.console.say(f"  log: {self.workspace.root / entry.log}")
        self._write(dataclasses.replace(entry, state=state, ended=now(), reason=reason))

    def _last_line(self, entry: Entry) -> str:
        return next(iter(local.last_lines(self.workspace, entry, 1)), "nothing")

    def _is_current(self, entry: Entry) -> bool:
        """Whether nobody has cancelled it, or submitted its unit anew, since it was started."""
        there = self.ledger.entry(entry.unit.id)
        return there is not None and there.attempt == entry.attempt and there.state != "cancelled"

    def _write(self, entry: Entry) -> None:
        if self._is_current(entry):
            self.ledger.write(entry)

    def _hopeless(self, entries: Mapping[str, Entry]) -> list[tuple[Entry, Unit]]:
        """What needs a unit that has ended without what it was to make, and that unit."""
        there = Found(self.workspace).students  # read after the entries: a unit is called done when all is there
        bad = {i for i, one in entries.items() if one.state in ENDED and not there.issuperset(one.unit.runs)}
        return [
            (entry, entries[need].unit)
            for entry in filter(_is_queued, entries.values())
            for need in bad.intersection(entry.unit.needs)
            if not (entry.unit.kind == "evaluate" and there.issuperset(entry.unit.runs))
        ]

    def _stop(self, asked: Asked) -> None:
        """Ask every job to stop, at once when asked again, and leave the queue as it is. Raises Interrupted."""
        self.stopping, killed = True, False
        if self.live:
            jobs = f"{len(self.live)} job{'' if len(self.live) == 1 else 's'}"
            self.console.say(f"stopping: {jobs} to save and end; asked once more, they are killed")
        for entry in self.live.values():
            if self._is_current(entry):  # what was cancelled has been asked already, and a second time breaks off
                local.ask_to_stop(self.workspace, entry)
        while self.live:
            if asked.times > 1 and not killed:
                killed = True
                for entry in self.live.values():
                    local.kill(self.workspace, entry)
            self._look()
            asked.wait(POLL_S)
        raise Interrupted(asked.name)


def _is_queued(entry: Entry) -> bool:
    return entry.cluster == "local" and entry.state == "queued"


def _can_begin(unit: Unit, entries: Mapping[str, Entry], found: Found) -> bool:
    """Whether what a unit needs is there: its own student, or every student of the units that it needs."""
    if unit.kind == "evaluate" and found.students.issuperset(unit.runs):
        return True
    return all(need in entries and found.students.issuperset(entries[need].unit.runs) for need in unit.needs)


def _submission(entry: Entry) -> tuple[str, str]:
    """What all that was submitted at once has in common."""
    return entry.unit.experiment, entry.submitted


def _placed(entry: Entry) -> Placed:
    return Placed(Request.of(entry.resources), entry.gpus)
