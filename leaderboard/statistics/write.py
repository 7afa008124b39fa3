"""The comparison of a workspace, and its diagrams as files: the one place here that touches the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.records import read_records, write_atomic
from leaderboard.legend import heading_of
from leaderboard.statistics.comparison import Comparison
from leaderboard.statistics.diagram import diagram
from leaderboard.statistics.report import compared


def load(workspace: Path, **options: Any) -> Comparison:
    """`compared` of `workspace/records` and `workspace/items`.

    Raises:
        UserError: no record there, or what `compared` raises.
    """
    root = Path(workspace)
    records, problems = read_records(root / "records")
    if not records:
        unread = "".join(f"\n  - {problem}" for problem in problems)
        raise UserError(f"no records in {root / 'records'}{':' if unread else '; run an experiment first'}{unread}")
    return compared(records, root / "items", **options)


def write(path: Path, text: str) -> Path:
    """Write a text atomically. Raises UserError where it cannot be written."""
    try:
        return write_atomic(path, text)
    except OSError as error:
        raise UserError(f"cannot write {str(path)!r}: {error.strerror}") from error


def write_diagram(comparison: Comparison, path: Path) -> list[Path]:
    """The diagram of each section that has ranks: FILE.svg, and FILE-2.svg and so on where there are several.

    Raises:
        UserError: another ending than .svg, no section with ranks, or it cannot be written.
    """
    if path.suffix != ".svg":
        raise UserError(f"{str(path)!r} has another ending than .svg, which is what is drawn")
    ranked = [section for section in comparison.sections if section.ranks is not None]
    if not ranked:
        raise UserError("no ranks to draw: they need two tasks and two students that have them all")
    written = []
    for number, section in enumerate(ranked, start=1):
        place = path if number == 1 else path.with_name(f"{path.stem}-{number}.svg")
        assert section.ranks is not None
        written.append(write(place, diagram(section.ranks, heading_of(section.key, section.condition))))
    return written
