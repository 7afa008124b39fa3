"""What a tuning found, for people and for the next run: a table, and a configuration with what was chosen. No torch."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from tabulate import tabulate

from harness.config import SHORT
from harness.errors import UserError
from harness.parsing.yaml_files import change, read_yaml
from harness.records import write_atomic

if TYPE_CHECKING:
    from harness.tuning.tune import Trial, Tuned, Tuning

DASH = "\u2013"  # where there is no number
HEADER = ("method", "trials", "best", "default", "chosen", "budget, steps x images")


def table(tuning: Tuning) -> str:
    """A row a method, and under it the trials that failed. Values are of held-out training images."""
    rows = []
    for row in tuning.rows:
        best = row.best(tuning.goal)
        budget = f"{row.steps} x {tuning.experiment.training.batch_size} = {row.images}"
        values = [_value(tuning, best), _value(tuning, row.trials[0])]
        rows.append([row.entry.title(), _trials(tuning, row), *values, _chosen(tuning, row, best), budget])
    goal, data = tuning.goal, tuning.rungs[-1].experiment.data
    unit = "%" if goal.info.unit == "fraction" else goal.info.unit
    arrow = "\u2191" if goal.info.direction == "up" else "\u2193"
    shorter = " A value (after N steps) is of a shorter training." if len(tuning.rungs) > 1 else ""
    lines = [
        tabulate(rows, HEADER, disable_numparse=True, colalign=("left", *["right"] * 3, "left", "right")),
        "",
        f"best, default: {goal.task.title()} {goal.metric} ({unit}) {arrow} on {data.held_out:g} of the training "
        f"split, which was held out of everything else; default is the method as it was configured.{shorter}",
    ]
    for row in tuning.rows:
        for trial in row.trials:
            lines += [f"failed: {trial.spec.title()} ({_changes(row, trial)}), {why}" for why in trial.failures]
    return "\n".join(lines)


def without_result(tuning: Tuning) -> list[str]:
    """The rows of which every trial failed."""
    return [row.entry.title() for row in tuning.rows if row.best(tuning.goal) is None]


def _trials(tuning: Tuning, row: Tuned) -> str:
    """How many, and why fewer than were asked for."""
    count, asked = len(row.trials), tuning.plan.trials
    text = str(count) if count == asked else f"{count} of {asked}, there are no more"
    failed = sum(bool(trial.failures) for trial in row.trials)
    return f"{text}, {failed} failed" if failed else text


def _value(tuning: Tuning, trial: Trial | None) -> str:
    """The value after the longest training that has one."""
    if trial is None or not trial.values:
        return DASH
    rung = max(trial.values)
    value = trial.values[rung]
    text = f"{100 * value:.2f}" if tuning.goal.info.unit == "fraction" else f"{value:.4g}"
    steps = tuning.rungs[rung].steps
    return text if rung == len(tuning.rungs) - 1 else f"{text} (after {steps} step{'s' * (steps != 1)})"


def _chosen(tuning: Tuning, row: Tuned, best: Trial | None) -> str:
    return "every trial failed" if best is None else f"#{best.number}: {_changes(row, best)}"


def _changes(row: Tuned, trial: Trial) -> str:
    """The hyperparameters in which a trial differs from the row as it was configured."""
    before = row.entry.hyperparameters
    found = {k: v for k, v in trial.spec.hyperparameters.items() if k not in before or before[k] != v}
    return ", ".join(f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in found.items()) or "as configured"


def not_itself(output: Path, config: Path) -> Path:
    """The output; a UserError where it would replace the configuration that it inherits from."""
    if output.resolve() == config.resolve():
        raise UserError(f"{str(output)!r} is the configuration itself; name another file with -o")
    return output


def write_tuned(tuning: Tuning, config: Path, settings: Sequence[str], plugins: Sequence[str], output: Path) -> Path:
    """A configuration that inherits `config`, with the chosen hyperparameters, and with nothing held out any more.

    Args:
        settings, plugins: what changed `config` on the command line; it is kept.

    Raises:
        UserError: it cannot be written, or would replace the configuration itself.
    """
    not_itself(output, config)
    plain: dict[str, Any] = {"base": os.path.relpath(config.resolve(), output.resolve().parent)}
    plain |= _changed(config, settings, plugins)
    plain["name"] = f"{tuning.experiment.name}-tuned"
    plain["methods"] = [_entry(tuning, row) for row in tuning.rows]
    if tuning.experiment.data.held_out is not None:
        plain["data"] = {**plain.get("data", {}), "held_out": None}
    if any(task.data is not None and task.data.held_out is not None for task in tuning.experiment.tasks):
        plain["tasks"] = [_opened(task.model_dump(mode="json")) for task in tuning.experiment.tasks]
    said = [f"# {line}".rstrip() for line in [*_summary(tuning), "", *table(tuning).splitlines()]]
    try:
        return write_atomic(output, "\n".join(said) + "\n" + yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))
    except OSError as error:
        raise UserError(f"cannot write {str(output)!r}: {error.strerror}") from error


def _summary(tuning: Tuning) -> list[str]:
    plan = tuning.plan
    halving = f", halving {plan.halving}" if plan.halving else ""
    return [f"Chosen by singer-bench tune: {plan.trials} trials a method, {plan.sampler}, seed {plan.seed}{halving}."]


def _changed(config: Path, settings: Sequence[str], plugins: Sequence[str]) -> dict[str, Any]:
    """The top-level settings that the command line changed."""
    before = read_yaml(config)
    after = copy.deepcopy(before)
    for setting in settings:
        change(after, setting, SHORT)
    if plugins:
        after["plugins"] = [*(after.get("plugins") or []), *plugins]
    return {key: value for key, value in after.items() if key not in before or before[key] != value}


def _entry(tuning: Tuning, row: Tuned) -> dict[str, Any]:
    best = row.best(tuning.goal)
    chosen = row.entry.hyperparameters if best is None else best.spec.hyperparameters
    changes = {"hyperparameters": chosen, "trials": len(row.trials)}
    return row.entry.model_copy(update=changes).model_dump(mode="json", exclude_defaults=True)


def _opened(task: dict[str, Any]) -> dict[str, Any]:
    return task if task["data"] is None else {**task, "data": {**task["data"], "held_out": None}}
