"""The command that says whether one method is better than others, and how surely."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.options import WorkspaceArgument, existing
from harness.errors import UserError, unknown

ENDINGS = {".txt": "plain", ".md": "markdown", ".tex": "latex", ".json": "json"}


def compare(
    workspace: WorkspaceArgument,
    method: Annotated[
        str | None, typer.Option(metavar="METHOD", help="The row that is compared with the others. Default: singer.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="A,B", help="Only these rows, labels or globs with commas between.")
    ] = None,
    tasks: Annotated[str | None, typer.Option(metavar="A,B", help="Only these, as of `table`.")] = None,
    level: Annotated[float, typer.Option(help="Of significance.")] = 0.05,
    format: Annotated[
        str | None,
        typer.Option(
            help="plain, markdown, latex or json. Default: by -o's ending; plain on a terminal, else markdown."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="A file instead of the screen.")
    ] = None,
    diagram: Annotated[
        Path | None, typer.Option(metavar="FILE.svg", help="Draw the average ranks with their critical difference.")
    ] = None,
) -> None:
    """Whether a method is better than others, and how surely.

    Paired tests, intervals and effects over seeds and over test items, ranks over tasks, and what may be said of them.
    """
    from leaderboard.statistics.show import FORMATS, render
    from leaderboard.statistics.write import load, write, write_diagram

    if format is not None and format not in FORMATS:
        raise UserError(unknown("format of a comparison", format, FORMATS))
    place = existing(workspace)
    found = load(place.root, method=method, against=against, tasks=tasks, level=level)
    if diagram is not None:
        for path in write_diagram(found, diagram):
            print(path)
        return
    if format is None:
        on_terminal = output is None and sys.stdout.isatty()
        format = "plain" if on_terminal else ENDINGS.get(output.suffix if output else "", "markdown")
    text = render(found, format, 120 if output else shutil.get_terminal_size((120, 24)).columns)
    if output is None:
        print(text, end="")
    else:
        write(output, text)
