"""The command that makes a workspace's page."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.options import WorkspaceArgument, existing
from harness.errors import UserError

if TYPE_CHECKING:
    from harness.runs import Workspace


def page(
    workspace: WorkspaceArgument,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FOLDER", help="Default: WORKSPACE/page.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Make it anew as results come, until nothing is left to do.")
    ] = False,
    every: Annotated[float, typer.Option(metavar="S", min=0.1, help="Seconds between two looks of --watch.")] = 10.0,
    maps: Annotated[bool, typer.Option(help="Maps of students beside their teacher, where the data are here.")] = True,
    hide_images: Annotated[
        bool, typer.Option("--hide-images", help="Maps alone, for images that may not be published.")
    ] = False,
) -> None:
    """The results as a page that any browser opens, with no server."""
    place = existing(workspace)
    folder = output or place.root / "page"
    beside = None
    if maps:
        from harness.pictures.beside import Beside

        beside = Beside(place, hide_images, lambda sentence: print(f"hint: {sentence}", file=sys.stderr))

    def make() -> None:
        from harness.asked import asked_for
        from leaderboard.page.build import write_page
        from leaderboard.page.content import Picture

        drawn = beside.maps() if beside else {}
        pictures = {run: [Picture(one.kind, one.text, one.data) for one in found] for run, found in drawn.items()}
        asked, notes = asked_for(place)
        made = write_page(place.root, folder, asked=asked, notes=notes, pictures=pictures, live=watch)
        print(made, flush=True)

    if not watch:
        return make()
    from leaderboard.page.site import check_folder

    check_folder(folder)
    for _ in _changes(place, every):
        make()


def _changes(workspace: Workspace, every_s: float) -> Iterator[None]:
    """Whenever there are other records or failures than before, until nothing is left to do."""
    from harness.monitoring.status import status

    before = None
    while True:
        ended = status(workspace).ended  # asked first: what came until it ended is seen below
        now = _listing(workspace)
        if now != before and now[0]:
            yield
        elif ended and before is None:
            raise UserError(f"no records in {workspace.records}, and nothing goes on that would write one")
        before = now
        if ended:
            return
        time.sleep(every_s)


def _listing(workspace: Workspace) -> tuple[list[tuple[str, int, int]], ...]:
    """Names, sizes and times of records and failures."""
    found = []
    for folder in (workspace.records, workspace.failures):
        files = []
        for path in sorted(folder.glob("*.json")):
            try:
                seen = path.stat()
            except FileNotFoundError:  # replaced just now
                continue
            files.append((path.name, seen.st_size, seen.st_mtime_ns))
        found.append(files)
    return tuple(found)
