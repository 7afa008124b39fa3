"""Commands that say what there is: table, list, check."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.cli_options import Plugins, WorkspaceArgument, existing
from harness.errors import UserError, unknown


def table(
    workspace: WorkspaceArgument,
    format: Annotated[str, typer.Option(help="markdown, latex, csv, json or plain.")] = "markdown",
    metrics: Annotated[str, typer.Option(help="primary, all, or names with commas between.")] = "primary",
    costs: Annotated[bool, typer.Option(help="Time, memory and parameters too.")] = True,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="A file instead of the screen.")
    ] = None,
    chart: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the first metric as bars: a .png, .svg or .pdf.")
    ] = None,
    gap: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="LOW HIGH", help="Two rows: how much of the gap between them every row recovers."),
    ] = None,
) -> None:
    """The leaderboard of a workspace."""
    from harness.records import write_atomic
    from leaderboard.render import FORMATS, render
    from leaderboard.write import load

    if format not in FORMATS:
        raise UserError(unknown("table format", format, FORMATS))
    chosen: Any = metrics if metrics in ("primary", "all") else [m.strip() for m in metrics.split(",")]
    board = load(existing(workspace).root, metrics=chosen, costs=costs, gap=gap)
    if chart is not None:
        from leaderboard.chart import chart as draw

        print(draw(board, chart))
        return
    text = render(board, format)
    if output is None:
        print(text, end="")
        return
    try:
        write_atomic(output, text)
    except OSError as error:
        raise UserError(f"cannot write {str(output)!r}: {error.strerror}") from error


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
