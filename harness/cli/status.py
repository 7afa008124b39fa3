"""Commands about what is to do and what goes on: plan, status, retry, cancel."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.options import (
    Config,
    Plugins,
    Quiet,
    Settings,
    WorkspaceArgument,
    WorkspaceOption,
    existing,
    read_experiment,
    workspace_of,
)
from harness.errors import UserError


def plan(
    config: Config,
    settings: Settings = None,
    workspace: WorkspaceOption = None,
    plugin: Plugins = None,
    records: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="A workspace, or a folder of records, that tells times; may be repeated."),
    ] = None,
    benchmark: Annotated[bool, typer.Option("--benchmark", help="Measure steps of trainings here, on noise.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Every group and every failure.")] = False,
) -> None:
    """What would run, in which groups, how long; what is done."""
    from harness.planning.plans import plan as described

    experiment = read_experiment(config, settings, plugin)
    print(described(experiment, workspace_of(experiment, workspace), records or (), benchmark, everything))


def status(
    workspace: WorkspaceArgument,
    everything: Annotated[bool, typer.Option("--all", help="Long lists in full.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Every run and evaluation, for programs.")] = False,
    watching: Annotated[
        bool, typer.Option("--watch", help="Until nothing is left to do; exit code 1 if anything went wrong.")
    ] = False,
    every: Annotated[float, typer.Option(metavar="S", min=0.1, help="Seconds between two looks of --watch.")] = 5.0,
) -> None:
    """What is done, running, pending; what failed, why."""
    from harness.monitoring.status import status as look
    from harness.monitoring.status_text import described

    place = existing(workspace)
    if watching:
        if as_json:
            raise UserError("--json is one look; leave out --watch, and ask again as often as needed")
        from harness.monitoring.watching import watch

        if not watch(place, every, everything):
            raise typer.Exit(1)
        return
    found = look(place)
    if as_json:
        import dataclasses
        import json

        print(json.dumps(dataclasses.asdict(found), indent=2))
    else:
        print("\n".join(described(found, everything)))


Titles = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[TITLE]...", help="Runs, such as 'fitnet seed 0', or rows. Default: all.", show_default=False
    ),
]


def retry(
    workspace: WorkspaceArgument,
    titles: Titles = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only what failed.")] = False,
    lost: Annotated[bool, typer.Option("--lost", help="Only what ended without a word.")] = False,
    quiet: Quiet = False,
) -> None:
    """Submit again what failed or was lost, where it ran."""
    from harness.cli import queue as cli_queue
    from harness.dispatch import again
    from harness.monitoring.status import State
    from harness.progress import Console

    only: State = "failed" if failed else "lost"
    states: tuple[State, ...] = ("failed", "lost") if failed == lost else (only,)
    place, console = existing(workspace), Console(quiet)
    if "local" in again.retry(place, console, states, titles or ()):
        cli_queue.serve(place, console, wait=False)


def cancel(
    workspace: WorkspaceArgument,
    titles: Titles = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    quiet: Quiet = False,
) -> None:
    """End jobs that are under way; what is saved stays."""
    from harness.dispatch import again
    from harness.planning.plans import count
    from harness.progress import Console

    console = Console(quiet)

    def sure(lines: list[str]) -> bool:
        if yes:
            return True
        if not sys.stdin.isatty():
            raise UserError(f"nobody can be asked whether to end {count(len(lines), 'job')}; --yes ends them")
        print("\n".join(f"  {line}" for line in lines), file=sys.stderr)
        return typer.confirm(f"end {count(len(lines), 'job')}?", err=True)

    ended = again.cancel(existing(workspace), console, titles or (), sure)
    if ended:
        console.say(f"cancelled: {count(len(ended), 'job')}; `singer-bench submit CONFIG` goes on where they were")
