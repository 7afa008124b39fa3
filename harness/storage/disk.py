"""Faults of the disk under a workspace, in words; and the clock that stamps its files. No torch."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from harness.errors import UserError

REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "your quota is used up; free some space",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EROFS: "make the file system writable, or name another place (--workspace)",
    errno.EACCES: "",
    errno.EPERM: "",
    errno.EIO: "the disk or its server fails",
    errno.ESTALE: "the server of the file system was restarted or moved; mount it again",
    errno.ENOTCONN: "the file system is not connected; mount it again",
    errno.ETIMEDOUT: "the server of the file system does not answer",
}


@contextlib.contextmanager
def in_words(workspace: Path) -> Iterator[None]:
    """What the disk refuses while a workspace is worked in becomes a UserError with the remedy; all else passes."""
    try:
        yield
    except Exception as error:
        number = _number(error)
        if number not in REMEDIES:
            raise
        place = Path(getattr(error, "filename", None) or workspace)
        raise UserError(
            f"{str(place)!r}: {refusal(number, place)}. What is saved is kept, and the same command goes on"
        ) from error


def refusal(number: int, place: Path) -> str:
    """What the disk said, by the system's number of it, and what to do about it: two clauses."""
    return f"{os.strerror(number)}; {REMEDIES.get(number, 'see to the disk') or _whose(place)}"


def _number(error: Exception) -> int | None:
    """The system's error number. safetensors has its own exception and leaves the number to the text."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error)) if type(error).__module__.startswith("safetensors") else None
    return None if found is None else int(found[1])


def _whose(place: Path) -> str:
    """Whom the nearest existing folder or file belongs to, and what lets two users share it."""
    share = "two users share a workspace through a group: docs/operations.md"
    for one in (place, *place.parents):
        with contextlib.suppress(OSError):
            found = one.stat()
            return f"{str(one)!r} is {stat.filemode(found.st_mode)} and belongs to {_user(found.st_uid)}; {share}"
    return share


def _user(number: int) -> str:
    try:
        import pwd

        return pwd.getpwuid(number).pw_name
    except (ImportError, KeyError):
        return f"user {number}"


def now_in(folder: Path) -> float:
    """What time it is for the files of `folder`, seconds: the server's time on a network file system.

    Two machines' clocks may differ by hours, and only one of them stamps the files. This machine's own time where
    nothing can be written, such as in another user's folder.
    """
    probe = folder / f".{secrets.token_hex(8)}.now"
    try:
        probe.touch(exist_ok=False)
        try:
            return probe.stat().st_mtime
        finally:
            probe.unlink()
    except OSError:
        return time.time()
