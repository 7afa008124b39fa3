"""The command that shows tables."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.cli.options import WorkspaceArgument, existing, shown_as
from harness.errors import UserError, unknown

NAMES = "Labels or globs with commas between."


def table(
    workspace: WorkspaceArgument,
    format: Annotated[
        str | None,
        typer.Option(
            help="markdown, latex, csv, json or plain. Default: by -o's ending; plain on a terminal, else markdown."
        ),
    ] = None,
    rows: Annotated[str | None, typer.Option(metavar="A,B", help=f"Only these rows, in this order. {NAMES}")] = None,
    tasks: Annotated[
        str | None,
        typer.Option(metavar="A,B", help=f"Only these, in this order. {NAMES} Or a protocol's first digits."),
    ] = None,
    metrics: Annotated[str, typer.Option(metavar="A,B", help="primary, all, or names, in this order.")] = "primary",
    exclude: Annotated[str | None, typer.Option(metavar="A,B", help="Rows, tasks or metrics to leave out.")] = None,
    group_by: Annotated[
        str | None,
        typer.Option(metavar="pair", help="One table, a group of rows for each pair of teacher and student."),
    ] = None,
    difference: Annotated[
        str | None, typer.Option(metavar="METHOD", help="Add a row: this method minus the best other of each column.")
    ] = None,
    gap: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="LOW HIGH", help="Two rows: how much of the gap between them every row recovers."),
    ] = None,
    reported: Annotated[
        bool, typer.Option("--reported", help="Published numbers of the same models and data too.")
    ] = False,
    like_paper: Annotated[
        bool, typer.Option("--like-paper", help="Table 1 of the SiNGER paper, measured beside reported.")
    ] = False,
    costs: Annotated[bool, typer.Option(help="Time, memory and parameters too.")] = True,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="A file instead of the screen.")
    ] = None,
    chart: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the first metric as bars: a .png, .svg or .pdf.")
    ] = None,
) -> None:
    """The leaderboard of a workspace."""
    from harness.asked import asked_for
    from harness.records import write_atomic
    from leaderboard.legend import hints
    from leaderboard.render import FORMATS, render
    from leaderboard.write import SUFFIXES, load

    if format is not None and format not in FORMATS:
        raise UserError(unknown("table format", format, FORMATS))
    if group_by not in (None, "pair"):
        raise UserError(f"--group-by: {unknown('grouping', group_by, ['pair'])}")
    place = existing(workspace)
    asked, untold = asked_for(place)
    options: dict[str, Any] = {
        "rows": rows,
        "tasks": tasks,
        "exclude": exclude,
        "difference": difference,
        "asked": asked,
    }
    if not like_paper:
        options |= {
            "metrics": metrics,
            "costs": costs,
            "gap": gap,
            "by_pair": group_by is not None,
            "reported": reported,
        }
    elif metrics != "primary" or gap is not None:
        raise UserError("--like-paper has the paper's metrics, and no gap; leave out --metrics and --gap")
    board = load(place.root, as_paper=like_paper, notes=untold, **options)
    if chart is not None:
        from leaderboard.chart import chart as draw

        print(draw(board, chart))
        return
    if format is None:
        endings = {f".{suffix}": name for name, suffix in SUFFIXES.items()}
        format = endings.get(output.suffix, "markdown") if output else shown_as()[0]
    text = render(board, format, 120 if output else shown_as()[1])
    for hint in hints(board):
        print(f"hint: {hint}", file=sys.stderr)
    if output is None:
        print(text, end="")
        return
    try:
        write_atomic(output, text)
    except OSError as error:
        raise UserError(f"cannot write {str(output)!r}: {error.strerror}") from error
