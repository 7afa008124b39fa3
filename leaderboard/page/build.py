"""A workspace's records -> its page."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from harness.errors import UserError
from harness.records import RunInfo, read_records
from leaderboard.drafts import Asked
from leaderboard.page.content import Picture, content
from leaderboard.page.curves import curve
from leaderboard.page.differences import differences
from leaderboard.page.site import check_folder, write_site


def write_page(
    workspace: Path,
    folder: Path,
    *,
    asked: Iterable[tuple[RunInfo, str | None]] = (),
    notes: Iterable[str] = (),
    pictures: Mapping[str, Sequence[Picture]] | None = None,
    live: bool = False,
    title: str | None = None,
) -> Path:
    """Make the page of `workspace/records` in `folder`, or replace the one there; returns the path of its index.html.

    Args:
        asked: students that experiments name, see `Asked`. notes: sentences for its end.
        pictures: maps of students, by run id. live: whether the page offers to show newer ones as they come.
        title: of the page; the workspace's name unless given.

    Raises:
        UserError: no record, or a folder that holds something else or cannot be written into.
    """
    workspace = Path(workspace)
    check_folder(Path(folder))
    records, problems = read_records(workspace / "records")
    if not records:
        raise UserError(f"no records in {workspace / 'records'}; run an experiment into this workspace first")
    told, unread = differences(records, workspace / "items")
    found = content(
        records,
        title=workspace.resolve().name if title is None else title,
        asked=[Asked(*one) for one in asked],
        problems=problems,
        notes=[*notes, *unread],
        differences=told,
        curves=functools.partial(curve, workspace),
    )
    return write_site(Path(folder), found, pictures or {}, live)
