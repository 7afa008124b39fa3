"""Commands about what is to do and what goes on: plan, status."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli_options import (
    Config,
    Plugins,
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
    from harness.plans import plan as described

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
    from harness.status import status as look
    from harness.status_text import described

    place = existing(workspace)
    if watching:
        if as_json:
            raise UserError("--json is one look; leave out --watch, and ask again as often as needed")
        from harness.watching import watch

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
