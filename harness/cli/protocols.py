"""`singer-bench protocols`: what decides the numbers of a workspace, and how two protocols differ."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="What decides a number, and how two differ.")

Protocol = Annotated[
    str,
    typer.Argument(
        metavar="WORKSPACE/NAME|RECORD",
        help="A column's title or hash in a workspace, or a record's file.",
        show_default=False,
    ),
]


@app.command()
def diff(a: Protocol, b: Protocol) -> None:
    """What differs between two protocols, in words."""
    from harness.protocols import described, find

    print(described(find(a), find(b)))


@app.command("list")
def list_(
    workspace: Annotated[Path, typer.Argument(metavar="WORKSPACE", help="A folder of results.", show_default=False)],
) -> None:
    """The protocols of a workspace, with their hashes."""
    from harness.protocols import listing

    print(listing(workspace))


@app.command()
def show(protocol: Protocol) -> None:
    """One protocol in full, as JSON."""
    import json

    from harness.protocols import find

    print(json.dumps(find(protocol).protocol, indent=2, ensure_ascii=False))
