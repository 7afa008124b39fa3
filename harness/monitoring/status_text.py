"""The status of a workspace in words: a summary first, then what needs attention. No torch."""

from __future__ import annotations

import datetime
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby

from harness.dispatch.ledger import BAD
from harness.monitoring.pace import duration
from harness.monitoring.status import ExperimentStatus, Item, State, Status
from harness.planning.plans import RETRY, count, cut, unchecked

SHOWN: tuple[State, ...] = (
    *("running", "requeued", "queued", "waiting", "submitted", "pending"),
    *BAD,
)


def described(status: Status, everything: bool = False, moving: bool = True) -> list[str]:
    """Lines.

    Args:
        everything: long lists in full. moving: also what changes all the time: steps, pace, time left.
    """
    lines = [] if status.slurm is None else [f"{status.slurm}; of its jobs only what the workspace shows is known"]
    for experiment in status.experiments:
        lines += _experiment(experiment, everything, moving)
    return lines + _remedies(status)


def _experiment(experiment: ExperimentStatus, everything: bool, moving: bool) -> list[str]:
    if experiment.problem is not None:
        return [f"{experiment.name}: cannot be shown: {experiment.problem}"]
    states = Counter(item.state for item in experiment.students)
    said = [f"{states['done']} trained", *(f"{states[state]} {state}" for state in SHOWN if states[state])]
    lines = [f"{experiment.name}: students: {', '.join(said)}{_evaluated(experiment)}"]
    trainings = experiment.fits + experiment.students
    at_work = [
        *(f"  running: {_titles(items)}{_work(items[0], moving)}" for items in _together(trainings, "running")),
        *(
            f"  evaluating: {_titles(items)}{_work(items[0], moving)}"
            for items in _together(experiment.evaluations, "running")
        ),
    ]
    lines += cut(at_work, "at work", everything)
    lines += _waiting(experiment)
    lines += unchecked(experiment.unchecked)
    if experiment.gone:
        lines.append(f"  under way: {count(experiment.gone, 'job')} of runs that this experiment has no more")
    for state in BAD:
        bad = [f"  {state}: {_titles(items)}{_why(items[0])}" for items in _together(trainings, state)]
        bad += [
            f"  {state}: evaluation of {_titles(items)}{_why(items[0])}"
            for items in _together(experiment.evaluations, state)
        ]
        lines += cut(bad, state, everything)
    return lines


def _evaluated(experiment: ExperimentStatus) -> str:
    there, of = experiment.records
    if not of:
        return ""
    states = Counter(item.state for item in experiment.evaluations)
    said = ", ".join(f"{states[state]} {state}" for state in SHOWN if states[state] and state != "pending")
    more = f", {experiment.unchecked} to be checked" if experiment.unchecked else ""
    return f"; evaluated: {there} of {of}{more}" + (f" (encoders: {said})" if said else "")


def _together(items: Iterable[Item], state: State) -> list[list[Item]]:
    """Items of a state; those that are one piece of work, for the same reason, are one."""
    found: dict[object, list[Item]] = {}
    for item in items:
        if item.state == state:
            found.setdefault((item.together or item.run, item.reason), []).append(item)
    return list(found.values())


def _titles(items: Sequence[Item]) -> str:
    """`none, fitnet seed 1` for `none seed 1` and `fitnet seed 1`."""
    named = [item.title.rpartition(" seed ") for item in items]
    by_seed = groupby(named, key=lambda parts: parts[2])
    return "; ".join(f"{', '.join(label for label, _, _ in parts)} seed {seed}" for seed, parts in by_seed)


def _work(item: Item, moving: bool) -> str:
    """How far it is, how fast, how long it still takes; since when and where."""
    facts, progress = [], item.progress
    if moving and item.step is not None:
        facts.append(f"step {item.step}" + (f" of {progress.steps}" if progress is not None else ""))
    if moving and progress is not None and progress.per_s is not None and progress.left_s is not None:
        images = progress.per_s * progress.batch_size
        facts.append(f"{progress.per_s:.3g} steps/s, {images:.3g} images/s, {duration(progress.left_s)} left")
    if moving and item.silent_s is not None:
        facts.append(f"no step for {duration(item.silent_s)}")
    since = progress.began if progress is not None else item.since
    facts += [f"since {_clock(since)}"] if since else []
    facts += [_where(item)] if _where(item) else []
    facts += [f"requeued {count(item.requeued, 'time')}"] if item.requeued else []
    return f": {', '.join(facts)}" if facts else ""


def _where(item: Item) -> str:
    device = item.progress.device if item.progress is not None else ""
    parts = [
        f"on {item.host}" if item.host else "",
        f"process {item.pid}" if item.pid is not None else "",
        f"job {item.job}" if item.job else "",
        f"GPU {', '.join(map(str, item.gpus))}" if item.gpus else device if device.startswith("cuda") else "",
    ]
    return ", ".join(part for part in parts if part)


def _clock(when: str) -> str:
    """An ISO 8601 time as a clock on the wall has it; with the date where it is another day's."""
    there = datetime.datetime.fromisoformat(when).astimezone()
    today = there.date() == datetime.datetime.now().astimezone().date()
    return f"{there:%H:%M}" if today else f"{there:%Y-%m-%d %H:%M}"


def _waiting(experiment: ExperimentStatus) -> list[str]:
    """Why jobs wait, as Slurm says."""
    waiting = {item.together: item.reason for item in experiment.items if item.state in ("queued", "requeued")}
    reasons = Counter(reason for reason in waiting.values() if reason)
    said = ", ".join(f"{number} for {reason}" for reason, number in reasons.most_common())
    return [f"  jobs wait: {said}"] if said else []


def _why(item: Item) -> str:
    said = "" if item.reason is None else f" {item.reason}" if item.reason.startswith("at step") else f": {item.reason}"
    return said + (f"; log: {item.log}" if item.log is not None and item.state != "cancelled" else "")


def _remedies(status: Status) -> list[str]:
    """What to do now, a line each."""
    items = [item for experiment in status.experiments for item in experiment.items]
    place = shlex.quote(status.workspace)
    jobs = {item.state for item in items if item.cluster is not None}
    lines = []
    if any(item.state == "failed" and item.cluster is None for item in items):
        lines.append(RETRY)
    if jobs & {"failed", "lost"}:
        lines.append(f"  `singer-bench retry {place}` submits failed and lost ones again")
    if "cancelled" in jobs:
        lines.append("  `singer-bench submit CONFIG` goes on with cancelled ones where they were")
    queued = [item for item in items if item.cluster == "local" and item.state in ("queued", "waiting")]
    if queued and not status.served:
        lines.append(f"  nobody serves this machine's queue; `singer-bench queue {place}` does")
    return lines
