"""Arguments and options that several commands have, and what they mean. No torch."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.errors import UserError

if TYPE_CHECKING:
    from harness.config import Experiment
    from harness.runs import Workspace

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="An experiment in YAML.", show_default=False)]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change one setting; may be repeated.")
]
Plugins = Annotated[
    list[Path] | None, typer.Option("--plugin", metavar="FILE", help="A file with methods or tasks; may be repeated.")
]
WorkspaceOption = Annotated[
    Path | None,
    typer.Option(
        "--workspace", metavar="DIR", help="Where results are kept. Default: workspace/NAME of the experiment."
    ),
]
WorkspaceArgument = Annotated[
    Path, typer.Argument(metavar="WORKSPACE", help="A folder of results.", show_default=False)
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress, only the result.")]


def read_experiment(config: Path, settings: list[str] | None, plugins: list[Path] | None) -> Experiment:
    """The experiment of a file, changed by --set, with the files of --plugin."""
    from harness.config import load

    return load(config, settings or (), [str(p) for p in plugins or ()])


def workspace_of(experiment: Experiment, given: Path | None) -> Workspace:
    """The folder of --workspace, or the default one."""
    from harness.runs import Workspace

    return Workspace(given or Path("workspace") / experiment.name)


def existing(workspace: Path) -> Workspace:
    """A folder of results that is there. Raises UserError where it is not."""
    from harness.runs import Workspace

    if not workspace.is_dir():
        raise UserError(f"no workspace {str(workspace)!r}; `singer-bench run CONFIG` makes one")
    return Workspace(workspace)


def shown_as() -> tuple[str, int]:
    """The format of a table on the standard output, and its width: plain text on a terminal, in a pipe Markdown."""
    # Where it is no terminal the width is 120, unless COLUMNS says otherwise.
    return "plain" if sys.stdout.isatty() else "markdown", shutil.get_terminal_size((120, 24)).columns
