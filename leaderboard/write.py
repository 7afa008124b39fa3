"""The leaderboard of a workspace, written beside its records: the one place here that touches the disk."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from harness.errors import UserError, unknown
from harness.records import read_records, write_atomic
from leaderboard.board import Leaderboard
from leaderboard.render import FORMATS, render
from leaderboard.table import rows_and_columns

SUFFIXES = {"markdown": "md", "plain": "txt", "latex": "tex", "csv": "csv", "json": "json"}


def load(
    workspace: Path,
    *,
    metrics: str | Sequence[str] = "primary",
    costs: bool = False,
    gap: tuple[str, str] | None = None,
) -> Leaderboard:
    """The leaderboard of `workspace/records`, see `rows_and_columns`; files that cannot be read are named in it.

    Raises:
        UserError: no record there, a metric that none has, or rows between which there is no gap.
    """
    folder = Path(workspace) / "records"
    records, problems = read_records(folder)
    if not records:
        unread = "".join(f"\n  - {problem}" for problem in problems)
        remedy = "every file there is damaged:" + unread if problems else "run an experiment into this workspace first"
        raise UserError(f"no records in {folder}; {remedy}")
    return rows_and_columns(records, metrics=metrics, costs=costs, problems=problems, gap=gap)


def write(
    workspace: Path,
    formats: Iterable[str] = ("markdown", "csv"),
    *,
    metrics: str | Sequence[str] = "primary",
    costs: bool = False,
) -> list[Path]:
    """Write `workspace/leaderboard.md`, `.csv`, ... atomically; returns their paths.

    Raises:
        UserError: no records, or a format that does not exist; then nothing is written.
    """
    chosen = list(formats)
    for format in chosen:
        if format not in FORMATS:
            raise UserError(unknown("table format", format, FORMATS))
    board = load(workspace, metrics=metrics, costs=costs)
    return [write_atomic(Path(workspace) / f"leaderboard.{SUFFIXES[f]}", render(board, f)) for f in chosen]
