"""The commands by which results go from one lab to another: publish, verify, merge; and the record's schema."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.options import WorkspaceArgument, existing

SHOWN = 10  # files of which it is told one by one what was taken out


def publish(
    workspace: WorkspaceArgument,
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="FOLDER|FILE.zip", help="What to make; an older one there is replaced."),
    ],
) -> None:
    """Pack results for others, with tables and checksums."""
    from harness import __version__
    from harness.asked import asked_for
    from harness.code_state import code_state
    from leaderboard.page.build import write_page
    from leaderboard.publishing.packing import publish as packed

    place = existing(workspace)
    asked, unknown = asked_for(place)
    state = code_state()
    done = packed(
        place.root,
        output,
        version=__version__,
        commit=state["commit"],
        modified=state["modified"],
        asked=asked,
        unknown=unknown,
        words=_private(),
        page=write_page,
    )
    about = done.manifest.summary
    print(f"{output}: {about.records} records of {about.runs} runs, {len(done.manifest.files)} files")
    print(f"fingerprint {done.fingerprint}")
    removed = list(done.manifest.removed.items())
    for name, places in removed[:SHOWN]:
        print(f"note: paths taken out of {name}: {', '.join(places)}")
    if len(removed) > SHOWN:
        print(f"note: and of {len(removed) - SHOWN} further files, which manifest.json lists under `removed`")
    for note in done.notes:
        print(f"note: {note}")


def verify(
    publication: Annotated[Path, typer.Argument(metavar="FOLDER|ZIP", help="What `publish` made.", show_default=False)],
) -> None:
    """Whether a publication is whole, and what it says.

    Exit code 0 if all of it holds, 1 if something does not, 2 if it is no publication.
    """
    from leaderboard.publishing.verifying import verify as verified

    found = verified(publication)
    for fault in found.faults:
        print(f"FAIL  {fault}")
    for note in found.notes:
        print(f"note: {note}")
    if found.faults or found.manifest is None:
        print(f"{publication}: {len(found.faults)} fault{'s' * (len(found.faults) != 1)}; do not use it")
        raise typer.Exit(1)
    about = found.manifest.summary
    print(f"{publication}: {about.records} records of {about.runs} runs, {len(found.manifest.files)} files; all hold")
    print(f"fingerprint {found.fingerprint}")


def merge(
    sources: Annotated[
        list[Path], typer.Argument(metavar="SOURCE...", help="Publications and workspaces.", show_default=False)
    ],
    into: Annotated[
        Path, typer.Option("--into", metavar="WORKSPACE", help="Where their records go; made if it is not there.")
    ],
) -> None:
    """Others' results beside one's own, all of them or none."""
    from harness.asked import asked_for
    from harness.runs import Workspace
    from leaderboard.publishing.merging import merge as merged

    done = merged(sources, into, asked=lambda place: asked_for(Workspace(place)))
    print(f"{into}: {len(done.new)} records merged, {done.same} were there already")


def schema() -> None:
    """The JSON Schema of a record's file."""
    from leaderboard.publishing.schema import schema_text

    print(schema_text(), end="")


def _private() -> list[str]:
    """The user's and the machine's name, where they are names and not what every machine has."""
    import contextlib
    import getpass
    import platform

    names = [platform.node().split(".")[0]]
    with contextlib.suppress(OSError, KeyError):  # a user without a name
        names.append(getpass.getuser())
    return [name for name in names if len(name) > 2 and name not in ("root", "localhost", "user", "admin")]
