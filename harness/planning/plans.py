"""What `singer-bench plan` says: what would run, in which groups, what is done, and how long the rest would take.

No torch, but for steps that are measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.config import Experiment
from harness.monitoring.glance import Glance
from harness.monitoring.pace import duration
from harness.planning.estimates import FIT, NO_PAST, Estimate, of_evaluations, of_trainings, wall_s
from harness.planning.past import Past, add_past, past_here
from harness.runs import Group, Run, TaskRun, Workspace, bound_runs, fit_runs, groups, student_runs, task_runs
from harness.specs import Submission, Training

RETRY = "  `singer-bench run CONFIG --retry-failed` trains failed ones again"
SHOWN = 20  # lines of one kind, unless all are asked for
NAMES = 12  # in one line
REMEDIES = {
    "training": "--records WORKSPACE looks at what such trainings took there, --benchmark measures steps here",
    "evaluation": "--records WORKSPACE looks at what such evaluations took there",
}


def plan(
    experiment: Experiment,
    workspace: Workspace,
    records: Sequence[Path] = (),
    benchmark: bool = False,
    everything: bool = False,
) -> str:
    """In words.

    Args:
        records: further folders whose past work is looked at. benchmark: measure steps here and now instead.
        everything: every group and every failure has its line.

    Raises:
        UserError: a folder that tells nothing; a step that cannot be measured.
    """
    return _Plan(experiment, Glance(workspace.root), records, benchmark, everything).text()


class _Plan:
    def __init__(
        self, experiment: Experiment, workspace: Glance, records: Sequence[Path], benchmark: bool, everything: bool
    ) -> None:
        self.experiment, self.workspace, self.everything = experiment, workspace, everything
        self.runs, self.bounds = student_runs(experiment), bound_runs(experiment)
        self.fits, self.tasks = fit_runs(experiment), task_runs(experiment)
        self.groups = groups(self.runs, workspace, experiment.runtime.max_group)
        fitted = [run for run in self.fits if not workspace.is_trained(run) and workspace.failure(run.id) is None]
        self.trainings = [Group((run,)) for run in fitted] + self.groups
        past = self._past(records, benchmark)
        self.training = of_trainings(experiment, self.trainings, past)
        ids = {task.key: workspace.task_id(task) for task in self.tasks}
        self.evaluation = of_evaluations(experiment, self._missing(), ids, past)

    def _past(self, records: Sequence[Path], benchmark: bool) -> Past:
        past = past_here(self.fits + self.bounds + self.runs, self.tasks, self.experiment.data, self.workspace)
        for folder in records:
            add_past(past, folder, self.experiment.data)
        if benchmark and self.trainings:
            from harness.training.dry_steps import measure

            measure(self.experiment, self.workspace, self.trainings, past)
        return past

    def _missing(self) -> list[tuple[Run, list[TaskRun]]]:
        """Every encoder that is there or may come, with the tasks that have no record of it."""
        found = []
        for run in self.bounds + self.runs:
            trained = self.workspace.is_trained(run)
            if trained or self.workspace.failure(run.id) is None:
                tasks = [task for task in self.tasks if not (trained and self._may_be_done(run, task))]
                found += [(run, tasks)] * bool(tasks)
        return found

    def _may_be_done(self, run: Run, task: TaskRun) -> bool:
        return self.workspace.has_record(run, task) or self.workspace.is_unchecked(run, task)

    def text(self) -> str:
        lines = [*self._head(), *self._groups(), *self._passes(), *self._estimated("training", self.training)]
        lines += self._evaluations()
        asked = self.experiment.submit
        if asked != Submission():
            total_s = wall_s(asked, self.trainings, self.training, self.evaluation)
            at_once = "all jobs at once" if asked.max_jobs is None else f"{count(asked.max_jobs, 'job')} at once"
            lines += [f"from start to end: about {duration(total_s)} with {at_once}"] if total_s else []
        failures = failed(self.fits + self.runs, self.workspace)
        return "\n".join(lines + self._cut(failures, "failures") + [RETRY] * bool(failures))

    def _head(self) -> list[str]:
        experiment, workspace = self.experiment, self.workspace
        return [
            f"{experiment.name}: {count(len(self.runs), 'student')} ({count(len(experiment.methods), 'row')} x "
            f"{count(len(experiment.seeds), 'seed')}), {length(experiment.training)} each, "
            f"batch {experiment.training.batch_size}",
            f"workspace: {workspace.root}{'' if workspace.root.is_dir() else ' (new)'}",
            f"trained: {sum(workspace.is_trained(run) for run in self.runs)} of {len(self.runs)}",
        ]

    def _groups(self) -> list[str]:
        lines = []
        for position, group in enumerate(self.trainings):
            run, labels = group.runs[0], [run.info.label for run in group.runs]
            if run.info.condition == FIT:
                training = Training.model_validate(run.spec["training"])
                line = f"  train the teacher first: {run.student.title()}, {length(training)}"
            else:
                line = (
                    f"  train {'together' if len(labels) > 1 else 'alone'}, seed {run.info.seed}: {', '.join(labels)}"
                )
            seconds = self.training.seconds.get(position)
            lines.append(line if seconds is None else f"{line} (about {duration(seconds)})")
        return self._cut(lines, "groups")

    def _passes(self) -> list[str]:
        each, left = length(self.experiment.training), sum(len(group.runs) for group in self.groups)
        if left <= len(self.groups):
            return []
        return [f"teacher passes: {len(self.groups)} x {each}; one student at a time would take {left} x {each}"]

    def _evaluations(self) -> list[str]:
        if not self.tasks:
            return []
        everyone = self.bounds + self.runs
        done = sum(self.workspace.has_record(run, task) for run in everyone for task in self.tasks)
        other = sum(self.workspace.is_unchecked(run, task) for run in everyone for task in self.tasks)
        titles = ", ".join(task.spec.title() for task in self.tasks)
        more = f", {other} to be checked" if other else ""
        line = f"evaluated: {done} of {len(everyone) * len(self.tasks)}{more} ({titles})"
        return [line, *unchecked(other), *self._estimated("evaluation", self.evaluation)]

    def _estimated(self, what: str, estimate: Estimate) -> list[str]:
        """How long, on what, and who says so; nothing where nothing is left."""
        if not estimate.sources and not estimate.unknown:
            return []
        if not estimate.sources and set(estimate.unknown) == {NO_PAST}:
            return [f"{what} left: how long is not known; {REMEDIES[what]}"]
        lines = [f"{what} left: " + (f"about {_spent(estimate)}" if estimate.seconds else "how long is not known")]
        lines += [f"  from {source}: {self._names(names)}" for source, names in estimate.sources.items()]
        return lines + [f"  not in it: {self._names(names)}: {why}" for why, names in estimate.unknown.items()]

    def _names(self, names: Sequence[str]) -> str:
        hidden = 0 if self.everything else max(0, len(names) - NAMES)
        return ", ".join(names[: len(names) - hidden]) + (f" and {hidden} more" if hidden else "")

    def _cut(self, lines: list[str], what: str) -> list[str]:
        return cut(lines, what, self.everything)


def _spent(estimate: Estimate) -> str:
    machine, seconds = estimate.machine, estimate.total_s
    assert machine is not None
    if not machine.gpu:
        return f"{duration(seconds)} on {machine}"
    return f"{seconds / 3600:.3g} GPU hours on {machine}"


def cut(lines: list[str], what: str, everything: bool) -> list[str]:
    """The first of many lines, and how many there are more."""
    if everything or len(lines) <= SHOWN + 1:
        return lines
    return [*lines[:SHOWN], f"  ... and {len(lines) - SHOWN} {what} more: --all shows them"]


def length(training: Training) -> str:
    """How long a training is, in words."""
    return f"{training.steps} steps" if training.steps else f"{training.epochs:g} epochs"


def count(number: int, what: str) -> str:
    """So many of something."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def unchecked(records: int) -> list[str]:
    """What it means that so many records were made by other code."""
    if not records:
        return []
    made, counts = ("was", "it still counts") if records == 1 else ("were", "they still count")
    return [f"  {count(records, 'record')} {made} made by other code: `run` and `submit` look whether {counts}"]


def failed(runs: Sequence[Run], workspace: Workspace) -> list[str]:
    """A line for each run that failed, with the reason."""
    found = [(run, workspace.failure(run.id)) for run in runs]
    return [f"  failed: {run.title} at step {why['step']}: {why['reason']}" for run, why in found if why is not None]
