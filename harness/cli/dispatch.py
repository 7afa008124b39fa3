"""The command that submits jobs."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from harness.cli import queue as cli_queue
from harness.cli.options import Config, Plugins, Quiet, Settings, WorkspaceOption, shown_as, workspace_of


def _asked(name: str, metavar: str, help: str) -> Any:
    return typer.Option(f"--{name}", metavar=metavar, help=help, show_default=False)


def submit(
    config: Config,
    cluster: Annotated[str, typer.Option(help="slurm, or local: this machine's own queue.", show_default=False)],
    settings: Settings = None,
    workspace: WorkspaceOption = None,
    plugin: Plugins = None,
    partition: Annotated[str | None, _asked("partition", "NAME", "Of Slurm.")] = None,
    account: Annotated[str | None, _asked("account", "NAME", "Of Slurm.")] = None,
    qos: Annotated[str | None, _asked("qos", "NAME", "Of Slurm.")] = None,
    constraint: Annotated[str | None, _asked("constraint", "FEATURES", "Of Slurm's nodes.")] = None,
    nodes: Annotated[str | None, _asked("nodes", "N", "A job.")] = None,
    gpus: Annotated[str | None, _asked("gpus", "N", "A node. Default: one, where there are any.")] = None,
    gpu_memory_gb: Annotated[
        str | None, _asked("gpu-memory-gb", "GB", "Of one GPU, which jobs then share: local only.")
    ] = None,
    ranks: Annotated[str | None, _asked("ranks", "N", "Processes a node. Default: one a GPU.")] = None,
    cpus: Annotated[str | None, _asked("cpus", "N", "A process. Default: one, and one a data worker.")] = None,
    memory_gb: Annotated[str | None, _asked("memory-gb", "GB", "A node. Default: Slurm's.")] = None,
    minutes: Annotated[str | None, _asked("minutes", "N", "Of one start; what is not done goes on later.")] = None,
    setup: Annotated[
        list[str] | None, _asked("setup", "LINE", "Of shell, before Python starts; may be repeated.")
    ] = None,
    max_jobs: Annotated[str | None, _asked("max-jobs", "N", "Of this submission at once.")] = None,
    requeues: Annotated[str | None, _asked("requeues", "N", "How often a job is started again.")] = None,
    signal_seconds: Annotated[
        str | None, _asked("signal-seconds", "N", "That a job has for saving before its time is over.")
    ] = None,
    preflight: Annotated[
        bool, typer.Option(help="Build methods and tasks and open the data here, before anything is submitted.")
    ] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be submitted.")] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Stay until all is done; exit code 1 if anything failed.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Train and evaluate what is pending, as jobs."""
    words = {"partition": partition, "account": account, "qos": qos, "constraint": constraint}
    numbers = {
        **{"nodes": nodes, "gpus": gpus, "gpu_memory_gb": gpu_memory_gb, "ranks": ranks, "cpus": cpus},
        **{"memory_gb": memory_gb, "minutes": minutes, "max_jobs": max_jobs, "requeues": requeues},
        "signal_seconds": signal_seconds,
    }
    given = {**words, **{name: _number(text) for name, text in numbers.items()}, "setup": setup or None}

    from harness.config import load
    from harness.dispatch import submit as dispatch
    from harness.progress import Console

    where = dispatch.cluster_named(cluster)
    changes = {name: value for name, value in given.items() if value is not None}
    experiment = load(config, settings or (), [str(p) for p in plugin or ()], changes)
    place, console = workspace_of(experiment, workspace), Console(quiet)
    if dry_run:
        print(dispatch.dry_run(experiment, place, where))
        return
    dispatch.submit(experiment, place, where, console, preflight=preflight)
    if where == "local":
        cli_queue.serve(place, console, wait=wait)
    if wait:
        _wait(experiment, place, console)
    else:
        console.say(f"`singer-bench status {place.root}` tells how it goes on")


def _number(text: str | None) -> Any:
    """A number where it is one; the configuration refuses anything else, together with its other mistakes."""
    if text is None:
        return None
    try:
        return int(text)
    except ValueError:
        try:
            return float(text)
        except ValueError:
            return text


def _wait(experiment: Any, workspace: Any, console: Any) -> None:
    from harness.dispatch.waiting import wait
    from harness.results import leaderboard

    try:
        bad = wait(experiment, workspace, console)
    except KeyboardInterrupt:
        console.say(f"the jobs go on without this; `singer-bench status {workspace.root}` tells how")
        raise typer.Exit(130) from None
    print(leaderboard(experiment, workspace, *shown_as()), end="", flush=True)
    for sentence in bad:
        print(sentence, file=sys.stderr)
    if bad:
        raise typer.Exit(1)
