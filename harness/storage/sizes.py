"""How many students are trained at once on one device: as asked, as measured, or as its memory has shown. No torch.

What was found is noted in the workspace, for all runs that share teacher, student, data and training settings, whatever
their methods and seeds. All processes read it there, so that they plan the same groups.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from harness.records import write_atomic
from harness.seeds import content_hash
from harness.storage.integrity import read_json

UNMEASURED = 8  # what "auto" means where nothing has been measured


def noted(folder: Path, spec: Mapping[str, Any]) -> int | None:
    """How many students fit, as a run's like have found; None where nobody has.

    Args:
        folder: `Workspace.sizes`. spec: of a run.

    Raises:
        UserError: the note is damaged.
    """
    path = _path(folder, spec)
    return read_json(path, "remove it: it is found anew")["students"] if path.is_file() else None


def note(folder: Path, spec: Mapping[str, Any], students: int, why: str) -> None:
    """Note how many fit, unless it is known that fewer do.

    Args:
        why: for people, in one sentence.
    """
    if students < (noted(folder, spec) or students + 1):
        write_atomic(_path(folder, spec), json.dumps({"students": students, "why": why}, indent=2))


def largest(folder: Path, spec: Mapping[str, Any], asked: int | Literal["auto"]) -> int:
    """How many runs like this one make a group at most."""
    found = noted(folder, spec)
    wanted = (found or UNMEASURED) if asked == "auto" else asked
    return min(wanted, found or wanted)


def _path(folder: Path, spec: Mapping[str, Any]) -> Path:
    alike = {part: spec[part] for part in ("teacher", "student", "data", "training")}
    return folder / f"{content_hash(alike)}.json"
