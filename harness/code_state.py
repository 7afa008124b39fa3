"""Which state of this code a result was made with: commit, changes, or the snapshot that a job runs. No torch."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

SNAPSHOT = "snapshot.json"  # beside the packages of a snapshot: what `code_state` said when it was taken
HERE = Path(__file__).resolve().parents[1]


def code_state() -> dict[str, Any]:
    """commit: of git, None outside a repository. modified: whether files that git knows differ from it.

    A snapshot has two more. diff: sha256 of the difference, None where there is none. code: hash of all of its files.
    """
    if (HERE / SNAPSHOT).is_file():
        return json.loads((HERE / SNAPSHOT).read_text())
    commit = _git("rev-parse", "HEAD")
    modified = None if commit is None else bool(_git("status", "--porcelain", "-uno"))
    return {"commit": None if commit is None else commit.strip(), "modified": modified}


def difference() -> str | None:
    """sha256 of all changes to files that git knows; None where there are none, or no repository."""
    changes = _git("diff", "HEAD", "--binary")
    return hashlib.sha256(changes.encode()).hexdigest() if changes else None


def _git(*args: str) -> str | None:
    command = ["git", "-C", str(HERE / "harness"), *args]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
