"""Commands that train and evaluate: run, demo, tune."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.cli.options import (
    Config,
    Plugins,
    Quiet,
    Settings,
    WorkspaceOption,
    read_experiment,
    shown_as,
    workspace_of,
)
from harness.errors import UserError


def run(
    config: Config,
    settings: Settings = None,
    workspace: WorkspaceOption = None,
    plugin: Plugins = None,
    retry_failed: Annotated[bool, typer.Option(help="Train failed runs again.")] = False,
    cache_gb: Annotated[
        float | None,
        typer.Option(metavar="GB", help="Limit of features on disk; what was used longest ago goes first."),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Train and evaluate what is pending, here."""
    if cache_gb is not None:
        settings = [*(settings or ()), f"runtime.cache_gb={cache_gb}"]
    experiment = read_experiment(config, settings, plugin)
    _run(experiment, workspace_of(experiment, workspace), retry_failed, quiet)


def _run(experiment: Any, workspace: Any, retry_failed: bool, quiet: bool) -> None:
    from harness.progress import Console
    from harness.results import leaderboard, remember
    from harness.runs import fit_runs, pending, student_runs

    ranks = _ranks(experiment)
    if ranks is not None and not ranks.first:
        _job(experiment, workspace, Console(quiet=True), ranks)
        return
    console = Console(quiet)
    runs = student_runs(experiment)
    remember(experiment, workspace)
    if retry_failed:
        for one in fit_runs(experiment) + runs:
            workspace.forgive(one.id)
    if ranks is not None or pending(experiment, workspace):
        outcome = _job(experiment, workspace, console, ranks)
        console.say(f"students trained: {len(outcome.trained)}; evaluations: {outcome.evaluated}")
    else:
        console.say("nothing is pending")
    print(leaderboard(experiment, workspace, *shown_as()), end="", flush=True)
    failed = {one.title: why for one in runs if (why := workspace.failure(one.id)) is not None}
    for title, why in failed.items():
        print(f"failed: {title} at step {why['step']}: {why['reason']}", file=sys.stderr)
    if failed:
        print("the same command with --retry-failed trains failed ones again", file=sys.stderr)
        raise typer.Exit(1)


def _ranks(experiment: Any):
    """This process among those that torchrun has started; None for a single one, which may be done without torch."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return None
    from harness.environment import device_of
    from harness.training.distributed import joined

    return joined(device_of(experiment))


def _job(experiment: Any, workspace: Any, console: Any, ranks: Any):
    """What a job of this experiment has done. Raises typer.Exit where it was asked to stop."""
    from harness.job import Interrupted, Job
    from harness.training.distributed import ONE

    try:
        outcome = Job(experiment, workspace, console, ranks or ONE).run()
    except Interrupted as signal:
        console.say(f"stopped by {signal}; everything is saved, the same command goes on")
        raise typer.Exit(130) from None
    if ranks is not None:
        ranks.left()
    return outcome


def demo(workspace: WorkspaceOption = None, settings: Settings = None, quiet: Quiet = False) -> None:
    """The whole job on embedded data, in minutes."""
    from harness.results import shipped

    experiment = read_experiment(shipped("demo.yaml"), settings, None)
    _run(experiment, workspace_of(experiment, workspace), False, quiet)


def tune(
    config: Config,
    trials: Annotated[int, typer.Option(metavar="N", help="Settings a method; the first is its own.")],
    seed: Annotated[int, typer.Option(help="Of the settings.")] = 0,
    sampler: Annotated[str, typer.Option(help="sobol or random.")] = "sobol",
    halving: Annotated[
        int | None,
        typer.Option(metavar="ETA", help="Short trainings first; the best 1/ETA go on to longer ones."),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(metavar="TASK.METRIC", help="What decides. Default: the first task's first ranked.")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="A,B", help="Of the trainings. Default: the experiment's first.")
    ] = None,
    settings: Settings = None,
    plugin: Plugins = None,
    workspace: WorkspaceOption = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Default: tuned.yaml in the workspace.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Choose hyperparameters with equal budgets, on held-out images."""
    experiment = read_experiment(config, settings, plugin)
    from harness.interrupts import Interrupted
    from harness.progress import Console
    from harness.tuning.tune import Plan
    from harness.tuning.tune import tune as tuned
    from harness.tuning.tuned import not_itself, without_result, write_tuned
    from harness.tuning.tuned import table as described

    if seeds is not None and not all(part.strip().isdecimal() for part in seeds.split(",")):
        raise UserError(f"--seeds is {seeds!r}; give whole numbers with commas between, such as 0,1")
    chosen = None if seeds is None else tuple(dict.fromkeys(int(part) for part in seeds.split(",")))
    console, place = Console(quiet), workspace_of(experiment, workspace)
    file = not_itself(output or place.root / "tuned.yaml", config)
    try:
        found = tuned(experiment, place, Plan(trials, seed, sampler, halving, metric, chosen), console)
    except Interrupted as signal:
        console.say(f"stopped by {signal}; everything is saved, the same command goes on")
        raise typer.Exit(130) from None
    write_tuned(found, config, settings or (), [str(p) for p in plugin or ()], file)
    print(f"{described(found)}\n\n{file}: `singer-bench run {shlex.quote(str(file))}` trains and tests what was chosen")
    if failed := without_result(found):
        print(f"every trial failed of {', '.join(failed)}: they stay as they were", file=sys.stderr)
        raise typer.Exit(1)
