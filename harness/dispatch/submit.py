"""An experiment -> jobs: checked at the door, submitted once, waited for. No torch but in the preflight."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.config import Experiment
from harness.dispatch import sbatch, slurm, slurm_jobs, snapshot
from harness.dispatch.arrays import Array, arrays, turns
from harness.dispatch.inventory import Request, inventory, never
from harness.dispatch.ledger import LIVE, Cluster, Entry, Kind, Ledger, Unit, now
from harness.dispatch.resources import for_slurm, for_this_machine
from harness.dispatch.slurm_programs import SlurmError, ask, cluster
from harness.dispatch.states import Standing, standings
from harness.dispatch.units import plan
from harness.errors import ConfigError, UserError, unknown
from harness.progress import Console
from harness.results import remember
from harness.runs import Workspace, bound_runs, student_runs
from harness.specs import Submission
from harness.storage.locks import Lock, holder

HASH = "jobs/snapshots/HASH"  # in a script that nobody submits


@dataclass(frozen=True)
class Door:
    """What has been checked before anything is written. asked: with everything filled in."""

    cluster: Cluster
    asked: Submission
    longest_array: int


@dataclass(frozen=True)
class Look:
    """The ledger as it stands, and what of an experiment is to be submitted.

    Attributes:
        entries, standings: by unit id, of everything in the workspace. live: those of them that are under way.
        units: to be submitted. failed: held back, since they ended with an error. elsewhere: held back, since what
            they need is under way on this machine, and Slurm cannot wait for that.
    """

    entries: dict[str, Entry]
    standings: dict[str, Standing]
    live: dict[str, Entry]
    units: tuple[Unit, ...]
    failed: tuple[Unit, ...]
    elsewhere: tuple[Unit, ...]


def cluster_named(name: str) -> Cluster:
    """The kind of cluster that is meant. Raises UserError where there is no such kind."""
    if name not in ("slurm", "local"):
        raise UserError(unknown("cluster", name, ("slurm", "local")))
    return name  # type: ignore[return-value]


def door(experiment: Experiment, where: Cluster) -> Door:
    """Check what jobs ask for. Raises ConfigError with every mistake; SlurmError where there is no Slurm."""
    if where == "slurm":
        found = cluster()
        return Door(where, for_slurm(experiment.submit, experiment.runtime, found), found.longest_array)
    machine = inventory()
    asked = for_this_machine(experiment.submit, experiment.runtime, len(machine.gpus))
    reason = never(Request.of(asked.model_dump()), machine)
    if reason is not None:
        raise ConfigError([f"submit: a job {reason}"])
    return Door(where, asked, 1)


def submit(
    experiment: Experiment,
    workspace: Workspace,
    where: Cluster,
    console: Console,
    *,
    preflight: bool = True,
    only: Collection[str] | None = None,
) -> list[Entry]:
    """Submit what nobody is at work on; the new entries. A unit that has failed stays until it is set aside.

    Args:
        only: ids of runs, beside which nothing is submitted but the teachers that they need; None: all.

    Raises:
        UserError: whatever is wrong, before anything is submitted; or Slurm's refusal of a part of it.
    """
    checked = door(experiment, where)
    with _alone(workspace, console):
        ledger = Ledger(workspace)
        found = look(experiment, workspace, where, only, adopting=True)
        if found.units and where == "slurm":
            test_only(experiment, workspace, checked)
        if found.units and preflight:
            _preflight(experiment, workspace, console, found.units)
            found = look(
                experiment, workspace, where, only
            )  # evaluations that this code would not change are known by now
        remember(experiment, workspace)  # not before: `status` and `retry` would go by what was refused
        for line in _about(found, workspace):
            console.say(line)
        if not found.units:
            return []
        folder = snapshot.take(workspace, experiment)
        attempts = _attempts(ledger, found)
        if where == "local":
            entries = _queue(ledger, found.units, checked.asked, folder, attempts)
            console.say(
                f"queued: {', '.join(_counted(kind, number) for kind, number in _by_kind(found.units).items())}"
            )
            return entries
        return _submit_arrays(ledger, experiment, checked, found, folder, attempts, console)


def look(
    experiment: Experiment,
    workspace: Workspace,
    where: Cluster,
    only: Collection[str] | None = None,
    *,
    adopting: bool = False,
) -> Look:
    """What is under way, and what is to be submitted. adopting: take over what a killed submitter left in Slurm."""
    ledger = Ledger(workspace)
    entries = ledger.entries()
    seen = slurm_jobs.seen(workspace, entries)
    if adopting:
        entries = slurm.adopt(ledger, entries, seen)
    standing = standings(workspace, entries, seen)
    live = {i: entry for i, entry in entries.items() if _is_live(entry, standing[i], where)}
    failed = {i: entry for i, entry in entries.items() if standing[i].state == "failed" and i not in live}
    planned = plan(experiment, workspace, live, failed, only)
    elsewhere = [unit for unit in planned.units if where == "slurm" and _needs_local(unit, live)]
    units = tuple(unit for unit in planned.units if unit not in elsewhere)
    return Look(entries, standing, live, units, planned.failed, tuple(elsewhere))


def _is_live(entry: Entry, standing: Standing, where: Cluster) -> bool:
    """Whether somebody is at work on it; a machine's queue goes on by itself with a job whose process died."""
    return standing.state in LIVE or (standing.state == "lost" and entry.cluster == where == "local")


def _needs_local(unit: Unit, live: Mapping[str, Entry]) -> bool:
    return any(need in live and live[need].cluster == "local" for need in unit.needs)


@contextlib.contextmanager
def _alone(workspace: Workspace, console: Console) -> Iterator[None]:
    """One submitter a workspace: two would not see what the other is about to submit."""
    path = workspace.locks / "submit.lock"
    with Lock(path) as lock:
        said = False
        while not lock.acquire():
            if not said:
                console.say(f"waiting for {holder(path)}, which submits")
                said = True
            time.sleep(1)
        yield


def _about(found: Look, workspace: Workspace) -> list[str]:
    """What is not submitted, and why, a line each."""
    lines = [f"under way already: {_jobs(len(found.live))}"] if found.live else []
    lines += [f"not submitted: {unit}; it failed: {found.standings[unit.id].reason}" for unit in found.failed]
    if found.failed:
        lines.append(f"`singer-bench retry {workspace.root}` submits what failed again")
    if found.elsewhere:
        lines.append(
            f"not submitted: {_jobs(len(found.elsewhere))} that need what this machine's own queue is at work on; "
            "submit again when it is done"
        )
    return lines if found.units else [*lines, "nothing to submit"]


def _jobs(count: int) -> str:
    return f"{count} job{'' if count == 1 else 's'}"


def _preflight(experiment: Experiment, workspace: Workspace, console: Console, units: tuple[Unit, ...]) -> None:
    """Build every method and task once, and open the data: a mistake costs seconds here, and a queue's wait there.

    It runs on what this machine has, which need not be what the jobs will have.
    """
    from harness.job import Job

    runtime = experiment.runtime.model_copy(update={"device": "auto"})
    job = Job(experiment.model_copy(update={"runtime": runtime}), workspace, console)
    wanted = {(unit.kind, run) for unit in units for run in unit.runs}
    students = student_runs(experiment)
    job.builder.same_as_before(job.builder.data, "train")
    job.evaluation.preflight([r for r in bound_runs(experiment) + students if ("evaluate", r.id) in wanted])
    job.builder.preflight([run for run in students if ("train", run.id) in wanted])
    job.evaluation.tasks()


def _attempts(ledger: Ledger, found: Look) -> dict[str, int]:
    """How often each unit has been submitted with this time; what was submitted before is set aside."""
    for unit in found.units:
        if unit.id in found.entries:
            ledger.set_aside(found.entries[unit.id])
    before = ledger.set_aside_attempts()
    return {unit.id: 1 + before.get(unit.id, 0) for unit in found.units}


def _queue(
    ledger: Ledger, units: tuple[Unit, ...], asked: Submission, folder: str, attempts: Mapping[str, int]
) -> list[Entry]:
    """Put units into this machine's queue in their order; it gives each a folder when it starts."""
    submitted, resources, entries = now(), asked.model_dump(mode="json"), []
    for index, unit in enumerate(units):
        entry = Entry(unit, "local", "", folder, submitted, attempts[unit.id], resources, index=index)
        ledger.write(entry)
        entries.append(entry)
    return entries


def _submit_arrays(
    ledger: Ledger,
    experiment: Experiment,
    checked: Door,
    found: Look,
    folder: str,
    attempts: Mapping[str, int],
    console: Console,
) -> list[Entry]:
    entries: dict[str, Entry] = {}
    planned = arrays(found.units, checked.longest_array)
    numbers: list[str] = []
    for array, turn in zip(planned, turns(planned, checked.asked.max_jobs), strict=True):
        known = {**found.live, **entries}
        name = sbatch.new_name(experiment.name, array.kind)
        after = None if turn.after is None else numbers[turn.after]
        try:
            fresh = slurm.submit(ledger, array, name, checked.asked, turn.at_once, after, folder, attempts, known)
        except SlurmError as error:
            raise SlurmError(
                f"{error}; {len(entries)} of {_jobs(len(found.units))} were submitted before, and the same command "
                "submits the rest"
            ) from error
        numbers.append(fresh[0].array)
        entries.update((entry.unit.id, entry) for entry in fresh)
        console.say(f"submitted: {_described(array)}; job {fresh[0].array}")
    return list(entries.values())


def _described(array: Array) -> str:
    needs = f", after what {'it needs' if len(array.units) == 1 else 'they need'}" if array.needs else ""
    after = ", each after its own training" if array.follows else needs
    return f"{_counted(array.kind, len(array.units))}{after}"


def _counted(kind: Kind, number: int) -> str:
    one, more = {
        "fit": ("teacher to train", "teachers to train"),
        "train": ("training", "trainings"),
        "evaluate": ("evaluation", "evaluations"),
    }[kind]
    return f"{number} {one if number == 1 else more}"


def _by_kind(units: Iterable[Unit]) -> dict[Kind, int]:
    """How many there are of each kind, in the order of the units."""
    return dict(Counter([unit.kind for unit in units]))


def test_only(experiment: Experiment, workspace: Workspace, checked: Door) -> None:
    """Have Slurm look at a job without submitting it. Raises SlurmError with what it does not like."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "job.sh")
        path.write_text(script(experiment, workspace, checked))
        ask("sbatch", "--test-only", str(path))


def script(experiment: Experiment, workspace: Workspace, checked: Door) -> str:
    """What sbatch is given for a training that waits for nothing."""
    made = sbatch.executor(workspace, sbatch.new_name(experiment.name, "train"), checked.asked, HASH)
    return made._make_submission_file_text(made._submitit_command_str, "")


def dry_run(experiment: Experiment, workspace: Workspace, where: Cluster) -> str:
    """What would be submitted, in words, and for Slurm one script; nothing is written."""
    checked = door(experiment, where)
    found = look(experiment, workspace, where)
    lines = _about(found, workspace)
    if not found.units:
        return "\n".join(lines)
    if where == "local":
        return "\n".join([*lines, *(f"would queue: {unit}" for unit in found.units)])
    test_only(experiment, workspace, checked)
    planned = arrays(found.units, checked.longest_array)
    for array, turn in zip(planned, turns(planned, checked.asked.max_jobs), strict=True):
        bounded = turn.at_once is not None and turn.at_once < len(array.units)
        bound = f", at most {turn.at_once} at once" if bounded else ""
        if turn.after is not None:
            before = planned[turn.after]
            have = "has" if len(before.units) == 1 else "have"
            bound += f", once the {_counted(before.kind, len(before.units))} before {have} ended"
        lines.append(f"would submit: {_described(array)}{bound}")
        lines += [f"  {', '.join(unit.titles)}" for unit in array.units]
    return "\n".join([*lines, "", script(experiment, workspace, checked).rstrip()])
