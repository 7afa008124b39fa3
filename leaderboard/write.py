"""The leaderboard of a workspace, written beside its records: the one place here that touches the disk."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from harness.errors import UserError, unknown
from harness.records import RunInfo, read_records, write_atomic
from leaderboard.board import Leaderboard
from leaderboard.drafts import Asked
from leaderboard.paper import like_paper
from leaderboard.render import FORMATS, render
from leaderboard.table import rows_and_columns

SUFFIXES = {"markdown": "md", "plain": "txt", "latex": "tex", "csv": "csv", "json": "json"}


def load(
    workspace: Path, *, as_paper: bool = False, asked: Iterable[tuple[RunInfo, str | None]] = (), **options: Any
) -> Leaderboard:
    """The leaderboard of `workspace/records`; files that cannot be read are named in it.

    Args:
        as_paper: Table 1 of the SiNGER paper, by `like_paper`. asked: students that experiments name, see `Asked`.
        options: of `rows_and_columns`, or of `like_paper`.

    Raises:
        UserError: no record there, or what these raise.
    """
    folder = Path(workspace) / "records"
    records, problems = read_records(folder)
    if not records:
        unread = "".join(f"\n  - {problem}" for problem in problems)
        remedy = "every file there is damaged:" + unread if problems else "run an experiment into this workspace first"
        raise UserError(f"no records in {folder}; {remedy}")
    build = like_paper if as_paper else rows_and_columns
    return build(records, problems=problems, asked=[Asked(*one) for one in asked], **options)


def write(
    workspace: Path,
    formats: Iterable[str] = ("markdown", "csv"),
    **options: Any,
) -> list[Path]:
    """Write `workspace/leaderboard.md`, `.csv`, ... atomically; returns their paths.

    Raises:
        UserError: no records, or a format that does not exist; then nothing is written.
    """
    chosen = list(formats)
    for format in chosen:
        if format not in FORMATS:
            raise UserError(unknown("table format", format, FORMATS))
    board = load(workspace, **options)
    return [write_atomic(Path(workspace) / f"leaderboard.{SUFFIXES[f]}", render(board, f)) for f in chosen]
