"""Equal-budget tuning: every method gets as many settings, trained as long, and measured on held-out training images.

Each setting ("trial") is an ordinary row of an ordinary experiment in the same workspace: trials of one teacher share
its passes, every one is kept as a student and a record, and what was killed goes on when the same command is given
again. The test split is never opened. The first trial is the method as it is configured.

Successive halving (Jamieson & Talwalkar 2016, arXiv 1502.07943), synchronous: on each rung all trials that are left
train equally long, from the beginning, and the best 1/eta of each method's go on to a training that is eta times as
long; the last rung is the experiment's own training, and the others are that one, warm-up included, made shorter.
Of each method equally many go on, so that all have the same number of steps.

Why no library (optuna, ray, ...): those ask for one trial at a time and choose the next by the last one's result. Here
a rung is known before it starts, so that its trials share teacher passes, which is what they cost most; and what is
known of a trial is its record, so that there is no second store to resume from.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from harness.config import Experiment
from harness.data import steps_an_epoch
from harness.errors import ConfigError, UserError, unknown
from harness.job import Job
from harness.progress import Console
from harness.records import MetricInfo, read_record, record_path
from harness.registry import load_plugin, task_class
from harness.results import remember
from harness.runs import Run, Workspace, student_runs, task_runs
from harness.search import settings
from harness.specs import MethodSpec, TaskSpec, Training
from harness.training.builder import open_data

HELD_OUT = 0.1  # of the training split, where the experiment does not say


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is asked for.

    Attributes:
        trials: settings a method. seed: of the settings. sampler: "sobol" or "random". halving: eta, or None.
        metric: "TASK.METRIC"; None: the first task's first ranked metric. seeds: of the trainings; a trial's value is
        the mean over them; None: the experiment's first.
    """

    trials: int
    seed: int = 0
    sampler: str = "sobol"
    halving: int | None = None
    metric: str | None = None
    seeds: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Goal:
    """What decides: a metric of a task."""

    task: TaskSpec
    metric: str
    info: MetricInfo

    def better(self, value: float) -> float:
        """A number that is smaller for what is better."""
        return -value if self.info.direction == "up" else value


@dataclasses.dataclass(frozen=True)
class Rung:
    """One length of training. count: how many trials of a method train so long, where it has as many."""

    count: int
    steps: int
    experiment: Experiment  # without its methods' trials


@dataclasses.dataclass
class Trial:
    """One setting of a row. values: rung -> the metric's mean over seeds; reached: the last rung it was trained on.

    failures: sentences, of runs that diverged: a trial with one has no value there, and counts all the same.
    """

    number: int
    spec: MethodSpec
    values: dict[int, float] = dataclasses.field(default_factory=dict)
    reached: int | None = None
    failures: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Tuned:
    """A row with its trials, the method as it is configured first. steps, images: what they were given to train on."""

    entry: MethodSpec
    trials: list[Trial]
    steps: int = 0
    images: int = 0

    def best(self, goal: Goal) -> Trial | None:
        """The best of the longest training that any trial has a value of; of equals the first. None: all failed."""
        rung = max((rung for trial in self.trials for rung in trial.values), default=None)
        return None if rung is None else _ranking(self.trials, rung, goal)[0]


@dataclasses.dataclass(frozen=True)
class Tuning:
    """A tuning that is done."""

    experiment: Experiment
    plan: Plan
    goal: Goal
    rungs: tuple[Rung, ...]
    rows: tuple[Tuned, ...]


def tune(experiment: Experiment, workspace: Workspace, plan: Plan, console: Console | None = None) -> Tuning:
    """Train and measure every trial that is not there yet, and say which is the best of each method.

    Raises:
        UserError: a plan that cannot be: no trials, an unknown metric or one that does not rank, spaces that are none,
            settings with which a method cannot be built.
        Interrupted: a signal asked to stop; the same call goes on.
    """
    console = console or Console()
    for plugin in experiment.plugins:
        load_plugin(plugin)
    goal = find_goal(experiment, plan.metric)
    rungs = make_rungs(experiment, plan, goal)
    rows = [Tuned(entry, _trials(experiment, entry, plan)) for entry in experiment.methods]
    for number, rung in enumerate(rungs):
        # A row with fewer settings begins on the rung that takes them all: nobody has to leave it before.
        starts = number + 1 == len(rungs)
        active = [
            (row, trial)
            for row in rows
            if starts or len(row.trials) > rungs[number + 1].count
            for trial in _going_on(row, number, rung.count, goal)
        ]
        if active:
            _climb(number, rung, active, goal, workspace, console)
    return Tuning(experiment, plan, goal, tuple(rungs), tuple(rows))


def find_goal(experiment: Experiment, metric: str | None) -> Goal:
    """The task and the metric that decide.

    Raises:
        UserError: no task, no such task or metric, or a metric that does not rank.
    """
    tasks = {task.title(): task for task in experiment.tasks}
    if not tasks:
        raise UserError("tuning needs a task to measure on, and the experiment has none; set tasks: [classification]")
    title, name = next(iter(tasks)), None
    if metric is not None:
        title, dot, name = metric.rpartition(".")
        if not dot:
            raise UserError(f"--metric is {metric!r}; give TASK.METRIC, such as {next(iter(tasks))}.top1")
    if title not in tasks:
        raise UserError(unknown("task", title, tasks))
    metrics = task_class(tasks[title].task, experiment.plugins).metrics
    ranked = [key for key, info in metrics.items() if info.ranked]
    if name is None and not ranked:
        raise UserError(
            f"no metric of {title!r}, the first task, is ranked: they describe a model and do not say how good it is. "
            "Name another task's with --metric TASK.METRIC"
        )
    name = ranked[0] if name is None else name
    if name not in metrics:
        raise UserError(unknown(f"metric of {title}", name, metrics))
    if name not in ranked:
        raise UserError(
            f"{title}.{name} is not ranked: it describes a model and does not say how good it is"
            + (f"; ranked are {', '.join(ranked)}" if ranked else "")
        )
    info = metrics[name]
    return Goal(tasks[title], name, MetricInfo(unit=info.unit, direction="up" if info.direction == "up" else "down"))


def make_rungs(experiment: Experiment, plan: Plan, goal: Goal) -> list[Rung]:
    """The lengths of training, the shortest first; one without halving."""
    trials, eta = plan.trials, plan.halving
    if trials < 1:
        raise UserError(f"--trials is {trials}; give 1 or more: the first is the method as it is configured")
    if eta is not None and not 2 <= eta <= trials:
        raise UserError(f"--halving is {eta}; with {trials} trials give 2 .. {trials}, or leave it out")
    data = experiment.data if experiment.data.held_out else experiment.data.model_copy(update={"held_out": HELD_OUT})
    training = experiment.training
    an_epoch = steps_an_epoch(len(open_data(data).open("train")), training.batch_size)
    whole = training.steps_of(an_epoch)
    found = []
    for left in reversed(range(1 if eta is None else 1 + _whole_logarithm(trials, eta))):
        shorter = (eta or 1) ** left
        steps = max(1, round(whole / shorter))
        changes: dict[str, Any] = {
            "name": f"{experiment.name}-tuning" + (f"-{steps}-steps" if left else ""),
            "data": data,
            "training": _shortened(training, steps, shorter) if left else training,
            "seeds": plan.seeds or experiment.seeds[:1],
            "tasks": (_on_held_out(goal.task),),
            "bounds": False,
        }
        count = trials if eta is None else max(1, trials // eta ** (_whole_logarithm(trials, eta) - left))
        found.append(Rung(count, steps, experiment.model_copy(update=changes)))
    return found


def _whole_logarithm(value: int, base: int) -> int:
    """The largest n with base^n <= value."""
    n = 0
    while base ** (n + 1) <= value:
        n += 1
    return n


def _shortened(training: Training, steps: int, times: int) -> Training:
    """The same schedule with so many steps."""
    plain = training.model_dump()
    return Training.model_validate(
        {**plain, "epochs": None, "steps": steps, "warmup_epochs": training.warmup_epochs / times}
    )


def _on_held_out(task: TaskSpec) -> TaskSpec:
    """The task under another name, its own data's test split closed too."""
    data = task.data
    if data is not None and data.held_out is None:
        data = data.model_copy(update={"held_out": HELD_OUT})
    return task.model_copy(update={"data": data, "label": f"{task.title()} (held out)"})


def _trials(experiment: Experiment, entry: MethodSpec, plan: Plan) -> list[Trial]:
    try:
        found = settings(experiment.known(), entry, plan.trials, plan.seed, plan.sampler)
    except ConfigError as error:
        raise ConfigError(error.mistakes, f"method {entry.title()!r}") from error
    alone = {"search": None, "trials": None}
    return [
        Trial(n, entry.model_copy(update={**alone, "label": f"{entry.title()} #{n}", "hyperparameters": values}))
        for n, values in enumerate(found)
    ]


def _going_on(row: Tuned, number: int, count: int, goal: Goal) -> list[Trial]:
    """The trials of a row that train on this rung, the best of the one before; all, where it is their first."""
    before = [trial.reached for trial in row.trials if trial.reached is not None]
    return _ranking(row.trials, max(before), goal)[:count] if before else row.trials


def _ranking(trials: Sequence[Trial], rung: int, goal: Goal) -> list[Trial]:
    """Those with a value on a rung, from the best; of equals the first comes first."""
    measured = [trial for trial in trials if rung in trial.values]
    return sorted(measured, key=lambda trial: (goal.better(trial.values[rung]), trial.number))


def _climb(
    number: int, rung: Rung, active: list[tuple[Tuned, Trial]], goal: Goal, workspace: Workspace, console: Console
) -> None:
    """Train and measure the trials of one rung, each run once, and note what came of them."""
    runs = {id(trial): _runs(rung, trial.spec) for _, trial in active}
    specs: dict[str, MethodSpec] = {}
    for _, trial in active:
        specs.setdefault(runs[id(trial)][0].id, trial.spec)  # rows of one method may share a setting
    experiment = rung.experiment.model_copy(update={"methods": tuple(specs.values())})
    remember(experiment, workspace)
    console.say(f"tuning: {len(specs)} trials of {len({id(row) for row, _ in active})} rows, {rung.steps} steps each")
    try:
        Job(experiment, workspace, console).run()
    except ConfigError as error:
        remedy = "narrow methods.N.search to settings that this teacher and student allow, or take one out with null"
        raise ConfigError([*error.mistakes, remedy], "trials that cannot be built") from error
    (task,) = task_runs(experiment)
    task_id = workspace.task_id(task)
    assert task_id is not None
    for row, trial in active:
        trial.reached = number
        row.steps += rung.steps * len(runs[id(trial)])
        row.images += rung.steps * len(runs[id(trial)]) * experiment.training.batch_size
        values = []
        for run in runs[id(trial)]:
            failure = workspace.failure(run.id)
            if failure is not None:
                trial.failures.append(f"seed {run.info.seed}, step {failure['step']}: {failure['reason']}")
                continue
            found = read_record(record_path(workspace.records, run.id, task_id)).values
            if goal.metric in found:
                values.append(found[goal.metric])
            else:
                trial.failures.append(f"seed {run.info.seed}: {goal.task.title()} gave no {goal.metric}")
        if len(values) == len(runs[id(trial)]):
            trial.values[number] = math.fsum(values) / len(values)


def _runs(rung: Rung, spec: MethodSpec) -> list[Run]:
    """A trial's runs, one a seed."""
    return student_runs(rung.experiment.model_copy(update={"methods": (spec,)}))
