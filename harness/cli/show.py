"""Commands that say what there is: list, check."""

from __future__ import annotations

import shutil
from typing import Annotated

import typer

from harness.cli.options import Plugins


def list_(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="methods, tasks or sources.")],
    verbose: Annotated[bool, typer.Option(help="Hyperparameters with their defaults too.")] = False,
    plugin: Plugins = None,
) -> None:
    """What can be named in a configuration."""
    from harness.results import listing

    # Where it is no terminal, such as in a pipe, the width is 120, unless COLUMNS says otherwise.
    print(listing(kind, verbose, [str(p) for p in plugin or ()], shutil.get_terminal_size((120, 24)).columns))


def check(
    name: Annotated[
        str, typer.Argument(metavar="NAME|FILE", help="A registered method or task, or a file of your own.")
    ],
    plugin: Plugins = None,
) -> None:
    """The contract tests on a method, task or file."""
    from harness.results import check as checked

    lines, good = checked(name, [str(p) for p in plugin or ()])
    print("\n".join(lines))
    if not good:
        raise typer.Exit(1)
