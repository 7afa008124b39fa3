"""Which state of this code a result was made with: commit, changes, or the snapshot that a job runs. No torch.

A snapshot is closed: where `harness` itself is one, our packages come from it and from nowhere else. Otherwise a module
that it lacks would silently be taken from wherever the project is installed, which may be the checkout that was edited.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

SNAPSHOT = "snapshot.json"  # beside the packages of a snapshot: what `code_state` said when it was taken
HERE = Path(__file__).resolve().parents[1]
PACKAGES = ("harness", "singer", "baselines", "tasks", "leaderboard", "configs")
PLUGINS = "harness.plugins."  # files of users, which are modules under this name wherever they lie


class _Snapshot(MetaPathFinder):
    """Finds modules of our packages in one folder; what is not there is an error, and nobody else is asked."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        *parents, _ = parts = fullname.split(".")
        if parts[0] not in PACKAGES or fullname.startswith(PLUGINS):
            return None
        spec = PathFinder.find_spec(fullname, [str(HERE.joinpath(*parents))])
        if spec is None:
            raise ModuleNotFoundError(
                f"no module {fullname!r} in {HERE}, the code that this job was submitted with", name=fullname
            )
        return spec


def close_snapshot() -> None:
    """From now on our packages are imported from the snapshot alone, where this is one."""
    if (HERE / SNAPSHOT).is_file():
        sys.meta_path.insert(0, _Snapshot())


def strangers() -> list[str]:
    """Modules of our packages that were imported from somewhere else than `harness`, such as before it."""
    found = []
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name.partition(".")[0] in PACKAGES and not name.startswith(PLUGINS) and file is not None:
            found += [f"{name} ({file})"] * (not Path(file).resolve().is_relative_to(HERE))
    return sorted(found)


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
