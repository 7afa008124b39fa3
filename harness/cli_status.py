"""Commands about what is to do and what goes on: plan, status."""

from __future__ import annotations

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


def plan(config: Config, settings: Settings = None, workspace: WorkspaceOption = None, plugin: Plugins = None) -> None:
    """What would run, in which groups; what is done."""
    from harness.results import plan as described

    experiment = read_experiment(config, settings, plugin)
    print(described(experiment, workspace_of(experiment, workspace)))


def status(workspace: WorkspaceArgument) -> None:
    """What is done, running, pending; what failed, why."""
    from harness.results import status as described

    print(described(existing(workspace)))
