"""Atomic save and exact load of a training under way.

One file holds all students of a group at one step. It is written under a temporary name, synced and renamed;
the previous one stays until then, so a kill at any moment leaves a whole file.
"""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from harness.errors import UserError


def save(path: Path, payload: dict[str, Any]) -> None:
    """Write tensors and plain values to `path`. Raises UserError where the disk is full or read-only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(payload, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        temporary.unlink(missing_ok=True)
        kept = "the checkpoint before it is whole" if path.is_file() else "there is none yet"
        raise UserError(
            f"cannot write the checkpoint {path}: {error}; {kept}. Free some space and start again"
        ) from error


def load(path: Path) -> dict[str, Any]:
    """Read what `save` wrote; never runs code. Raises UserError for a damaged file, which it leaves in place."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, zipfile.BadZipFile, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(
            f"the checkpoint {path} is damaged ({reason}); move it away to start this group from its beginning"
        ) from error


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
