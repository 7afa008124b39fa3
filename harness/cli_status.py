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


def status(workspace: WorkspaceArgument) -> None:
    """What is done, running, pending; what failed, why."""
    from harness.results import status as described

    print(described(existing(workspace)))
