"""Where every run of a workspace stands: what is done, who is at work on what and how fast, what went wrong. No torch.

The workspace says what is done, its locks and progress files who is at work, the ledger what was submitted, and Slurm,
asked once for all jobs, what has become of that.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from harness.config import Experiment, parse
from harness.dispatch import slurm_jobs
from harness.dispatch.ledger import BAD, LIVE, Cluster, Entry, Ledger
from harness.dispatch.slurm_programs import SlurmError
from harness.dispatch.states import Standing, standings
from harness.errors import UserError
from harness.monitoring.glance import Glance
from harness.monitoring.pace import Progress, progress_in, silence_s
from harness.parsing.yaml_files import read_yaml
from harness.runs import Run, TaskRun, Workspace, bound_runs, fit_runs, student_runs, task_runs
from harness.storage.disk import now_in
from harness.storage.locks import is_stale, owner
from harness.students import logged_step

Kind = Literal["fit", "train", "evaluate"]
State = Literal[
    "done",
    "unchecked",
    "running",
    "requeued",
    "queued",
    "waiting",
    "submitted",
    "pending",
    "failed",
    "lost",
    "cancelled",
]
UNDER_WAY: tuple[State, ...] = ("running", "requeued", "queued", "waiting", "submitted")


@dataclass(frozen=True)
class Item:
    """One training or evaluation.

    Attributes:
        run, title: of the run. state: "submitted" where Slurm does not say more; "unchecked" where all records of an
            evaluation are there and some were made by other code, which may measure otherwise. reason: why.
        together: what items that are one piece of work have in common: a group's or unit's id.
        step: the last one that is known. progress: steps in all, pace, since when, on what device.
        silent_s: how long nothing has been heard of it; None where that is no longer than it may be.
        host, pid: of who is at work. cluster, job, gpus, log, requeued: of its last submission.
        since: when its Slurm job began, ISO 8601 local time.
    """

    kind: Kind
    run: str
    title: str
    state: State
    reason: str | None = None
    together: str | None = None
    step: int | None = None
    progress: Progress | None = None
    silent_s: float | None = None
    host: str | None = None
    pid: int | None = None
    cluster: Cluster | None = None
    job: str | None = None
    gpus: tuple[int, ...] = ()
    log: str | None = None
    requeued: int = 0
    since: str | None = None


@dataclass(frozen=True)
class ExperimentStatus:
    """One experiment of a workspace.

    Attributes:
        problem: why nothing else can be said of it. fits, students, evaluations: evaluations are of one encoder each,
            without those whose training has failed. records: how many there are of how many. unchecked: how many more
            there are by other code. submitted: whether any of it was submitted as jobs. gone: how many jobs under way
            are of runs that it has no more, since it or a plugin was changed.
    """

    name: str
    problem: str | None = None
    fits: tuple[Item, ...] = ()
    students: tuple[Item, ...] = ()
    evaluations: tuple[Item, ...] = ()
    records: tuple[int, int] = (0, 0)
    unchecked: int = 0
    submitted: bool = False
    gone: int = 0

    @property
    def items(self) -> tuple[Item, ...]:
        return self.fits + self.students + self.evaluations

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of it. Who trains without jobs holds no lock between two groups."""
        going = UNDER_WAY if self.submitted else (*UNDER_WAY, "pending")
        return not self.gone and not any(item.state in going for item in self.items)

    @property
    def bad(self) -> bool:
        return self.problem is not None or any(item.state in BAD for item in self.items)


@dataclass(frozen=True)
class Status:
    """A workspace. slurm: why it does not answer. served: whether somebody serves this machine's queue."""

    workspace: str
    experiments: tuple[ExperimentStatus, ...]
    slurm: str | None = None
    served: bool = False

    @property
    def ended(self) -> bool:
        return all(experiment.ended for experiment in self.experiments)

    @property
    def bad(self) -> bool:
        return any(experiment.bad for experiment in self.experiments)


def status(workspace: Workspace) -> Status:
    """Look at a workspace. Raises UserError where it holds no experiment, or its ledger cannot be read."""
    experiments = experiments_of(workspace)
    look = _Look(workspace)
    found = []
    for name, experiment in experiments.items():
        try:
            if isinstance(experiment, UserError):
                raise experiment
            found.append(look.experiment(experiment))
        except UserError as error:  # such as a plugin that was moved: the others can be told of all the same
            found.append(ExperimentStatus(name, str(error)))
    return Status(str(workspace.root), tuple(found), look.slurm, _served(workspace))


def experiments_of(workspace: Workspace) -> dict[str, Experiment | UserError]:
    """The experiments that a workspace has seen, or why one cannot be read. Raises UserError where there is none."""
    paths = sorted((workspace.root / "experiments").glob("*.yaml"))
    if not paths:
        where = str(workspace.root)
        raise UserError(
            f"{where!r} holds no experiment; `singer-bench run CONFIG --workspace {shlex.quote(where)}` starts one"
        )
    found: dict[str, Experiment | UserError] = {}
    for path in paths:
        try:
            found[path.stem] = parse(read_yaml(path), str(path))
        except UserError as error:
            found[path.stem] = error
    return found


def _served(workspace: Workspace) -> bool:
    from harness.dispatch.queue import is_served

    return is_served(workspace)


@dataclass
class _Look:
    """All that is asked once for all runs."""

    root: Workspace
    slurm: str | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.workspace = Glance(self.root.root)
        self.entries = Ledger(self.root).entries()
        self.standings = self._standings()
        self.held = _held(self.root)
        self.now_s = now_in(self.root.groups) if self.held.groups else 0.0
        self.jobs: dict[tuple[bool, str], tuple[Entry, Standing]] = {}  # (whether it evaluates, run) -> its submission
        for i, entry in self.entries.items():
            for run in entry.unit.runs:
                key = (entry.unit.kind == "evaluate", run)
                if key not in self.jobs or self.jobs[key][1].state not in LIVE:  # a live one hides those before it
                    self.jobs[key] = entry, self.standings[i]

    def _standings(self) -> dict[str, Standing]:
        try:
            return slurm_jobs.look(self.root, self.entries)
        except SlurmError as error:
            self.slurm = str(error)
            return standings(self.root, self.entries, {})

    def experiment(self, experiment: Experiment) -> ExperimentStatus:
        students, tasks = student_runs(experiment), task_runs(experiment)
        everyone, fits = bound_runs(experiment) + students, fit_runs(experiment)
        evaluations = [self._evaluation(run, tasks) for run in everyone] if tasks else []
        return ExperimentStatus(
            experiment.name,
            fits=tuple(self._training(run, "fit") for run in fits),
            students=tuple(self._training(run, "train") for run in students),
            evaluations=tuple(item for item in evaluations if item is not None),
            records=(sum(self.workspace.has_record(r, t) for r in everyone for t in tasks), len(everyone) * len(tasks)),
            unchecked=sum(self.workspace.is_unchecked(r, t) for r in everyone for t in tasks),
            gone=self._gone(experiment.name, {run.id for run in fits + everyone}),
            submitted=any((evaluates, run.id) in self.jobs for run in everyone for evaluates in (False, True)),
        )

    def _gone(self, name: str, runs: set[str]) -> int:
        mine = [i for i, entry in self.entries.items() if entry.unit.experiment == name]
        return sum(self._may_live(i) for i in mine if runs.isdisjoint(self.entries[i].unit.runs))

    def _may_live(self, unit_id: str) -> bool:
        state, cluster = self.standings[unit_id].state, self.entries[unit_id].cluster
        return state in LIVE or (state == "lost" and cluster == "slurm" and self.slurm is not None)

    def _training(self, run: Run, kind: Kind) -> Item:
        failure, group = self.workspace.failure(run.id), self.held.groups.get(run.id)
        if failure is not None:
            reason = f"at step {failure['step']}: {failure['reason']}"
            return self._item(run, kind, "failed", reason, together=None, step=failure["step"])
        if self.workspace.is_trained(run):
            return self._item(run, kind, "done", None)
        if group is None:
            return self._unattended(run, kind)
        folder, known = self.root.groups / group, self.held.owner(f"train-{group}")
        progress = progress_in(folder)
        if progress is None:
            known["step"] = logged_step(self.root.partial(run.id)) or None
        else:
            known |= {"step": progress.step, "silent_s": silence_s(folder, progress, self.now_s)}
        return self._item(run, kind, "running", None, together=group, progress=progress, **known)

    def _evaluation(self, run: Run, tasks: Sequence[TaskRun]) -> Item | None:
        if self.workspace.failure(run.id) is not None:
            return None
        if all(self.workspace.has_record(run, task) for task in tasks):
            return self._item(run, "evaluate", "done", None)
        if run.id in self.held.evaluated:
            return self._item(run, "evaluate", "running", None, **self.held.owner(f"evaluate-{run.id}"))
        item = self._unattended(run, "evaluate")
        if item.state == "pending" and all(
            self.workspace.has_record(run, task) or self.workspace.is_unchecked(run, task) for task in tasks
        ):
            return self._item(run, "evaluate", "unchecked", None)
        return item

    def _unattended(self, run: Run, kind: Kind) -> Item:
        """Of what is not done and has nobody at work on it in the workspace: as its job stands, if it has one."""
        job = self.jobs.get((kind == "evaluate", run.id))
        if job is None or job[1].state == "done":  # its student or record was removed since
            return self._item(run, kind, "pending", None)
        entry, standing = job
        if self.slurm is not None and entry.cluster == "slurm":
            return self._item(run, kind, "submitted", None, together=entry.unit.id)
        reason = standing.reason or (standing.seen.reason if standing.seen and standing.state in LIVE else None)
        return self._item(run, kind, standing.state, reason or None, together=entry.unit.id)

    def _item(self, run: Run, kind: Kind, state: State, reason: str | None, **known) -> Item:
        """With what is known of its submission."""
        job = self.jobs.get((kind == "evaluate", run.id))
        if job is not None:
            entry, standing = job
            seen = standing.seen
            known["cluster"] = entry.cluster
            known["log"] = None if entry.log is None else str(self.root.root / entry.log)
            known["requeued"] = entry.restarts if seen is None else seen.restarts
            if standing.state in LIVE and standing.state == state:  # else somebody else is at work on it
                known["job"] = entry.job if entry.cluster == "slurm" else None
                known["gpus"] = entry.gpus
                known["since"] = (seen.since or None) if seen is not None else None
                known.setdefault("host", (seen.node or None) if seen is not None else entry.host)
                known.setdefault("pid", entry.pid)
        return Item(kind, run.id, run.title, state, reason, **known)


@dataclass(frozen=True)
class _Held:
    """What living processes hold locks on: run -> its group, and runs that are evaluated."""

    locks: Path
    groups: dict[str, str]
    evaluated: set[str]

    def owner(self, name: str) -> dict[str, Any]:
        found = owner(self.locks / f"{name}.lock") or {}
        return {"host": found.get("host"), "pid": found.get("pid")}


def _held(workspace: Workspace) -> _Held:
    locks = [path for path in workspace.locks.glob("*.lock") if path.name.startswith(("train-", "evaluate-"))]
    names = {path.stem for path in locks if not is_stale(path)}
    held = {name.removeprefix("train-") for name in names if name.startswith("train-")}
    groups = {run: group for group, runs in workspace.run_ids().items() if group in held for run in runs}
    return _Held(workspace.locks, groups, {n.removeprefix("evaluate-") for n in names if n.startswith("evaluate-")})
