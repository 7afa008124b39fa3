"""Files that are whole, or are known not to be: checksums, the generation before, damaged files set aside. No torch.

A checksum stands behind what it is of, in the same file, so that no moment exists at which one of them is missing:
torch's archives and numpy's arrays are read as if nothing followed them. A damaged file is never removed and never
written over: it is renamed to NAME.damaged-1, and people decide.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any, BinaryIO

from harness.errors import UserError

MARK = b"\nsha256 "
TRAILER = len(MARK) + 64  # bytes behind the content
PIECE = 1 << 24  # bytes that are hashed at once
NOT_ITS_OWN = "its checksum is not that of its content"


class Damaged(UserError):
    """A file that cannot be trusted.

    Attributes:
        path: the file. reason: one clause.
    """

    def __init__(self, path: Path, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(f"{path} is damaged: {reason}")


class Sealing:
    """A binary file that is hashed while it is written, front to back; `seal` ends it with its checksum.

    Attributes:
        refused: what the disk said when it took no more; torch puts words of its own in its place.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest = file, hashlib.sha256()
        self.refused: OSError | None = None

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.refused = error
            raise

    def flush(self) -> None:
        self.file.flush()

    def seal(self) -> None:
        self.file.write(MARK + self.digest.hexdigest().encode())


def sealed(path: Path) -> bool | None:
    """Whether the checksum behind a file's content is that of the content; None where there is no checksum.

    Raises:
        OSError: it cannot be read.
    """
    size = path.stat().st_size - TRAILER
    if size < 0:
        return None
    with open(path, "rb") as file:
        file.seek(size)
        trailer = file.read()
        if not trailer.startswith(MARK):
            return None
        file.seek(0)
        return trailer == MARK + _digest(file, size).encode()


def digest(path: Path) -> str:
    """SHA-256 of a whole file, in hexadecimal. Raises OSError where it cannot be read."""
    with open(path, "rb") as file:
        return _digest(file, path.stat().st_size)


def _digest(file: BinaryIO, size: int) -> str:
    found = hashlib.sha256()
    while size > 0 and (piece := file.read(min(PIECE, size))):
        found.update(piece)
        size -= len(piece)
    return found.hexdigest()


def previous(path: Path) -> Path:
    """Where the generation before `path` is kept."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def generations(path: Path) -> list[Path]:
    """What there is of a file and the generation before it, the newest first."""
    return [one for one in (path, previous(path)) if one.is_file()]


def set_aside(path: Path) -> Path:
    """Rename a damaged file or folder so that its name says so; returns the new path.

    Of several processes that find it damaged one renames it; the others get the name that it has now.
    """
    number = 1
    while path.with_name(f"{path.name}.damaged-{number}").exists():
        number += 1
    aside = path.with_name(f"{path.name}.damaged-{number}")
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, aside)
        sync_folder(path.parent)
        return aside
    return path.with_name(f"{path.name}.damaged-{max(1, number - 1)}")


def damaged(folder: Path) -> list[Path]:
    """What was set aside in a folder."""
    return sorted(folder.glob("*.damaged-*"))


def sync(path: Path) -> None:
    """Make what was written to a file survive a power failure; nothing where there is no such file."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """A small file of the workspace that holds one JSON object.

    Args:
        remedy: what to do about a damaged one, to end the sentence.

    Raises:
        UserError: it holds no JSON object. OSError: it cannot be read.
    """
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); {remedy}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged (no JSON object); {remedy}")
    return found
