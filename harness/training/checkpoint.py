"""Atomic save and exact load of a training under way.

One file holds all students of a group at one step, with its checksum behind it. It is written under a temporary name,
synced and renamed; the one before it is kept as a second generation. A kill at any moment leaves a whole file, and a
file that is damaged later is noticed, set aside, and the other one is used.
"""

from __future__ import annotations

import os
import pickle
import secrets
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from harness.errors import UserError
from harness.storage.disk import refusal
from harness.storage.integrity import (
    NOT_ITS_OWN,
    Damaged,
    Sealing,
    generations,
    previous,
    sealed,
    set_aside,
    sync_folder,
)

ARCHIVE_END = b"PK\x05\x06"  # of an archive's last record, 22 bytes before its end


class Lost(UserError):
    """Neither generation is whole. Both are set aside."""


def save(path: Path, payload: dict[str, Any]) -> None:
    """Write tensors and plain values to `path`, and keep what was there as the generation before.

    Raises:
        UserError: the disk is full or read-only.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{path.name}.*.tmp"):  # of processes that were killed; each as large as this one
        left.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        _write(temporary, payload)
        if path.is_file():
            os.replace(path, previous(path))  # a kill after this leaves that one, which `generations` finds
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        kept = "the checkpoint before it is whole" if generations(path) else "there is none yet"
        said = refusal(error.errno or 0, path)
        raise UserError(f"cannot write the checkpoint {path}: {said}; {kept}. Then start again") from error


def _write(path: Path, payload: dict[str, Any]) -> None:
    with open(path, "wb") as file:
        sealing = Sealing(file)
        try:
            torch.save(payload, sealing)  # type: ignore[arg-type] - it writes front to back and asks for no more
        except RuntimeError as error:  # torch's own, about an archive that is not as long as it should be
            raise sealing.refused or error from None
        sealing.seal()
        file.flush()
        os.fsync(file.fileno())


def load(path: Path, say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Read what `save` wrote; never runs code. A damaged generation is set aside, and `say` hears of it.

    Raises:
        Lost: no generation is whole. UserError: there is none at all.
    """
    damages = []
    for one in generations(path):
        try:
            payload = _read(one)
        except FileNotFoundError:
            continue  # its training has just ended, or is renaming it
        except Damaged as damage:
            damages.append(f"{damage}; it is set aside as {set_aside(one).name}")
            continue
        for damage in damages:
            say(f"{damage}, and the checkpoint before it is used")
        return payload
    if not damages:
        raise UserError(f"there is no checkpoint {path}")
    raise Lost("; ".join(damages))


def _read(path: Path) -> dict[str, Any]:
    """One generation. One without a checksum, of an earlier version, is read with the archive's own checks alone."""
    try:
        whole = sealed(path)
        if whole is False:
            raise Damaged(path, NOT_ITS_OWN)
        if whole is None and not _ends_as_an_archive(path):
            raise Damaged(path, "it is cut short")
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, zipfile.BadZipFile, ValueError) as error:
        raise Damaged(path, str(error).split("\n")[0]) from error


def _ends_as_an_archive(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 22))
        return file.read(len(ARCHIVE_END)) == ARCHIVE_END
