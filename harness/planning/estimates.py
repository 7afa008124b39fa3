"""What is still to be done of an experiment, in seconds of a machine, as far as past work tells. No torch.

A past training counts for a run whose steps do the same arithmetic: the same models, image size, batch size, precision
and method; with the same hyperparameters where there is one, with others where there is none. A past evaluation counts
for the same protocol, or else for the same task on the same data, with an encoder of the same name. One estimate is of
one machine, the one of which most is known.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, TypeVar

from harness.config import Experiment
from harness.planning.past import Evaluated, Machine, Past, Step, Work, encoder_of, read_of
from harness.runs import Group, Run, TaskRun
from harness.seeds import content_hash
from harness.specs import Submission, Training

FIT = "fit"  # the condition of a teacher's own training
NO_PAST = "nothing of the kind is known"
NO_IMAGES = "how many images there are to train on is not known"
Item = TypeVar("Item", Step, Evaluated)


@dataclass
class Estimate:
    """Of trainings or of evaluations.

    Attributes:
        machine: where it would take so long; None where nothing is known.
        seconds: of each group by its position, or of each run's evaluations by its id; without what is not known.
        sources: where it is known from -> names of rows or columns. unknown: why it is not -> names.
    """

    machine: Machine | None = None
    seconds: dict[Any, float] = field(default_factory=dict)
    sources: dict[str, list[str]] = field(default_factory=dict)
    unknown: dict[str, list[str]] = field(default_factory=dict)

    @property
    def total_s(self) -> float:
        return sum(self.seconds.values())


def of_trainings(experiment: Experiment, groups: Sequence[Group], past: Past) -> Estimate:
    """Of groups that are still to be trained; a teacher's own training is a group of one."""
    rows = {_row(run): run for group in groups for run in group.runs}
    wanted = {row: _keys_of_work(Work.of(run.spec)) for row, run in rows.items()}
    machine, found = _known(past.steps, lambda step: _keys_of_work(step.work), wanted, _allowed(experiment))
    estimate = Estimate(machine)
    lengths = {row: _steps(run, experiment, past) for row, run in rows.items()}
    for row, run in rows.items():
        if row not in found:
            why = past.unmeasured.get(Work.of(run.spec), NO_PAST)
            estimate.unknown.setdefault(why, []).append(run.info.label)
        elif lengths[row] is None:
            estimate.unknown.setdefault(NO_IMAGES, []).append(run.info.label)
        else:
            source = found[row][0][0].source + (", of other hyperparameters" if found[row][1] else "")
            estimate.sources.setdefault(source, []).append(run.info.label)
    a_step = {
        row: (fmean(s.teacher_s for s in steps), fmean(s.own_s for s in steps)) for row, (steps, _) in found.items()
    }
    for position, group in enumerate(groups):
        mine, steps = [_row(run) for run in group.runs], lengths[_row(group.runs[0])]
        if steps is not None and a_step.keys() >= set(mine):
            teacher_s = fmean(a_step[row][0] for row in mine)
            estimate.seconds[position] = steps * (teacher_s + sum(a_step[row][1] for row in mine))
    return estimate


def _row(run: Run) -> str:
    """What runs that differ in the seed alone have in common; trainings of teachers are all labelled alike."""
    return run.id if run.info.condition == FIT else run.info.label


def _keys_of_work(work: Work) -> tuple[Hashable, ...]:
    """The most exact first."""
    return work, (work.shape, work.method)


def _steps(run: Run, experiment: Experiment, past: Past) -> int | None:
    training = Training.model_validate(run.spec["training"])
    images = past.images.get(content_hash(read_of(experiment.data)))
    if training.steps is None and images is None:
        return None
    return training.steps_of((images or 0) // training.batch_size)


def of_evaluations(
    experiment: Experiment,
    missing: Sequence[tuple[Run, Sequence[TaskRun]]],
    task_ids: Mapping[str, str | None],
    past: Past,
) -> Estimate:
    """Of runs with the tasks that are still to be done of each. task_ids: by the key of a task, where it is known."""
    columns = {task.key: task for _, tasks in missing for task in tasks}
    pairs = dict.fromkeys((encoder_of(run.info), task.key) for run, tasks in missing for task in tasks)
    wanted = {pair: _keys_of_evaluation(*pair, columns[pair[1]], task_ids, experiment) for pair in pairs}
    machine, found = _known(
        past.evaluations,
        lambda e: ((e.encoder, e.task_id), (e.encoder, e.task, e.data)),
        wanted,
        _allowed(experiment),
    )
    estimate = Estimate(machine)
    for pair in wanted:
        title = columns[pair[1]].spec.title()
        if pair in found:
            source = found[pair][0][0].source + (", of other settings" if found[pair][1] else "")
            names = estimate.sources.setdefault(source, [])
        else:
            names = estimate.unknown.setdefault(NO_PAST, [])
        names += [title] * (title not in names)
    one = {pair: fmean(e.seconds for e in evaluations) for pair, (evaluations, _) in found.items()}
    for run, tasks in missing:
        known = [one[pair] for task in tasks if (pair := (encoder_of(run.info), task.key)) in one]
        if known:
            estimate.seconds[run.id] = sum(known)
    return estimate


def _keys_of_evaluation(
    encoder: str, key: str, task: TaskRun, task_ids: Mapping[str, str | None], experiment: Experiment
) -> tuple[Hashable, ...]:
    read = content_hash(read_of(task.spec.data or experiment.data))
    return (encoder, task_ids.get(key)), (encoder, task.spec.task, read)


def _allowed(experiment: Experiment) -> Callable[[Machine], bool]:
    """Whether a machine is of the kind that the experiment would run on, as far as it says."""
    device, asked = experiment.runtime.device, experiment.submit
    if asked.gpus or asked.gpu_memory_gb or device.startswith("cuda"):
        return lambda machine: machine.gpu
    if asked.gpus == 0 or device == "cpu":
        return lambda machine: not machine.gpu
    return lambda machine: True


def _known(
    past: Iterable[Item],
    keys_of: Callable[[Item], Iterable[Hashable]],
    wanted: Mapping[Any, Sequence[Hashable]],
    allowed: Callable[[Machine], bool],
) -> tuple[Machine | None, dict[Any, tuple[list[Item], int]]]:
    """The machine of which most is known, and what that is: for each key that is wanted, past items and which of its
    keys they have, all of one source."""
    machines: dict[Machine, dict[Hashable, list[Item]]] = {}
    for item in past:
        if allowed(item.machine):
            index = machines.setdefault(item.machine, {})
            for key in keys_of(item):
                index.setdefault(key, []).append(item)
    best: tuple[Machine | None, dict[Any, tuple[list[Item], int]]] = (None, {})
    for machine, index in machines.items():
        found = {}
        for name, keys in wanted.items():
            at = next((i for i, key in enumerate(keys) if key in index), None)
            if at is not None:
                items = index[keys[at]]
                found[name] = [item for item in items if item.source == items[0].source], at
        if len(found) > len(best[1]):
            best = machine, found
    return best


def wall_s(asked: Submission, groups: Sequence[Group], trainings: Estimate, evaluations: Estimate) -> float | None:
    """Seconds until all is done where jobs run as `submit:` asks and several processes of a job are worth their number.

    None where something is not known. Waiting in Slurm's own queue is not in it.
    """
    if trainings.unknown or evaluations.unknown:
        return None
    on_gpu = all(estimate.machine is None or estimate.machine.gpu for estimate in (trainings, evaluations))
    workers = ((asked.gpus if on_gpu else asked.ranks) or 1) * asked.nodes
    fits = {i for i, group in enumerate(groups) if group.runs[0].info.condition == FIT}
    trained_by = {run.id: i for i, group in enumerate(groups) for run in group.runs}
    jobs = [_Job(trainings.seconds[i] / workers, set() if i in fits else fits) for i in range(len(groups))]
    for run, seconds in evaluations.seconds.items():
        jobs.append(_Job(seconds / workers, {trained_by[run]} if run in trained_by else set()))
    return _end_s(jobs, asked.max_jobs or len(jobs))


@dataclass
class _Job:
    """seconds: that it takes. needs: positions of the jobs before it that must have ended."""

    seconds: float
    needs: set[int]


def _end_s(jobs: Sequence[_Job], at_once: int) -> float:
    """When the last of these jobs ends: so many run at once, and what can begin first does."""
    followers: dict[int, list[int]] = {}
    for i, job in enumerate(jobs):
        for need in job.needs:
            followers.setdefault(need, []).append(i)
    waits, ends = [len(job.needs) for job in jobs], [0.0] * len(jobs)
    ready = [(0.0, i) for i, job in enumerate(jobs) if not job.needs]  # when each can begin
    slots = [0.0] * min(at_once, len(jobs))
    while ready:
        begin_s, i = heapq.heappop(ready)
        ends[i] = max(heapq.heappop(slots), begin_s) + jobs[i].seconds
        heapq.heappush(slots, ends[i])
        for follower in followers.get(i, ()):
            waits[follower] -= 1
            if not waits[follower]:
                heapq.heappush(ready, (max(ends[need] for need in jobs[follower].needs), follower))
    return max(ends, default=0.0)
