"""An experiment and its workspace -> the units that are to be submitted now. No torch.

First the teachers that are trained here, then the groups, then an evaluation for every encoder, each needing what it
needs. What is under way is taken out before the rest is grouped, so that an experiment which has grown, or is
submitted twice, submits only what nobody is at work on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from harness.config import Experiment
from harness.dispatch.ledger import Entry, Kind, Unit
from harness.runs import Run, TaskRun, Workspace, bound_runs, fit_run, fit_runs, groups, student_runs, task_runs
from harness.seeds import content_hash


@dataclass(frozen=True)
class Plan:
    """What is to be submitted, in the order in which it can begin; and what is held back since it failed before."""

    units: tuple[Unit, ...]
    failed: tuple[Unit, ...]


def plan(
    experiment: Experiment,
    workspace: Workspace,
    live: Mapping[str, Entry],
    failed: Mapping[str, Entry],
    only: Collection[str] | None = None,
) -> Plan:
    """What of an experiment is to be submitted.

    Args:
        live: entries of units under way, by unit id. failed: of those that ended with an error, which are not
            submitted again before they are set aside, nor is what needs them.
        only: ids of the runs that are trained and evaluated, with the teachers that these need; None: all.
    """
    return _Planner(experiment, workspace, live, failed, only).plan()


class _Planner:
    def __init__(
        self,
        experiment: Experiment,
        workspace: Workspace,
        live: Mapping[str, Entry],
        failed: Mapping[str, Entry],
        only: Collection[str] | None,
    ) -> None:
        self.experiment, self.workspace = experiment, workspace
        self.live, self.failed = live, failed
        self.trains = {run: i for i, entry in live.items() if entry.unit.kind != "evaluate" for run in entry.unit.runs}
        self.coming: dict[str, set[str]] = {}  # run -> the tasks that evaluations under way will do
        for entry in live.values():
            for run in entry.unit.runs:
                self.coming.setdefault(run, set()).update(entry.unit.asked)
        self.students = [run for run in student_runs(experiment) if only is None or run.id in only]
        self.bounds = [run for run in bound_runs(experiment) if only is None or run.id in only]
        self.fits = fit_runs(experiment)
        if only is not None:
            needed = {*only, *(self._fit(run) for run in self.students + self.bounds)}
            self.fits = [run for run in self.fits if run.id in needed]
        self.units: list[Unit] = []
        self.held: list[Unit] = []
        self.stuck: set[str] = set()  # runs that wait for one that failed

    def plan(self) -> Plan:
        self._fits()
        self._trainings()
        self._evaluations()
        return Plan(tuple(self.units), tuple(self.held))

    def _add(self, unit: Unit) -> None:
        """Submit a unit, unless it failed before."""
        if unit.id in self.failed:
            self.held.append(unit)
            self.stuck.update(unit.runs)
            return
        self.units.append(unit)
        if unit.kind != "evaluate":
            self.trains.update(dict.fromkeys(unit.runs, unit.id))

    def _unit(self, kind: Kind, name: str, runs: Sequence[Run], needs: Iterable[str], tasks: Sequence[TaskRun] = ()):
        return Unit(
            f"{kind}-{name}",
            kind,
            tuple(run.id for run in runs),
            tuple(run.title for run in runs),
            self.experiment.name,
            tuple(needs),
            tuple(task.key for task in tasks),
            tuple(task.asked for task in tasks),
        )

    def _fits(self) -> None:
        for run in self.fits:
            if self.workspace.failure(run.id) is not None:
                self.stuck.add(run.id)
            elif run.id not in self.trains and not self.workspace.is_trained(run):
                self._add(self._unit("fit", run.id, [run], ()))

    def _trainings(self) -> None:
        free = [run for run in self.students if run.id not in self.trains and not self._is_stuck(run)]
        for group in groups(free, self.workspace, self.experiment.runtime.max_group):
            self._add(self._unit("train", group.id, group.runs, self._fit_of(group.runs[0])))

    def _is_stuck(self, run: Run) -> bool:
        """Whether a run waits for a teacher whose own training failed."""
        return self._fit(run) in self.stuck

    def _fit(self, run: Run) -> str | None:
        """The run that trains a run's teacher; None where the teacher is not trained here."""
        return None if run.teacher.fit is None else fit_run(self.experiment, run.teacher).id

    def _fit_of(self, run: Run) -> list[str]:
        """The unit that trains a run's teacher, where that is still to come."""
        fit = self._fit(run)
        return [self.trains[fit]] if fit in self.trains else []

    def _evaluations(self) -> None:
        tasks = task_runs(self.experiment)
        for run in self.bounds + self.students:
            if self._is_stuck(run) or run.id in self.stuck or self.workspace.failure(run.id) is not None:
                continue
            wanted = self._missing(run, tasks)
            if wanted:
                # Students wait for their own training alone, since that has waited for the teacher's.
                needs = [self.trains[run.id]] if run.id in self.trains else self._fit_of(run)
                name = (
                    run.id
                    if f"evaluate-{run.id}" not in self.live
                    else f"{run.id}-{content_hash([task.asked for task in wanted], 8)}"
                )
                self._add(self._unit("evaluate", name, [run], needs, wanted))

    def _missing(self, run: Run, tasks: list[TaskRun]) -> list[TaskRun]:
        """The tasks that have no record of a run, and that no evaluation under way will give one."""
        coming, trained = self.coming.get(run.id, ()), self.workspace.is_trained(run)
        return [t for t in tasks if t.asked not in coming and not (trained and self.workspace.has_record(run, t))]
