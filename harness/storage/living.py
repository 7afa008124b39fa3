"""Whether a process of this machine still lives. No torch."""

from __future__ import annotations

import os
from pathlib import Path


def started(pid: int) -> str | None:
    """When a living process began, in the kernel's ticks since the machine's own start; None where none is to be seen.

    A number alone may have been given to another process since. One that only waits for its parent is dead.
    """
    state, began = _stat(pid)
    return None if state in ("Z", "X") else began


def living(pid: int, began: str | None) -> bool:
    """Whether the process that had this number, and began then, still lives. None: whoever has the number now."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's: it lives
    state, now = _stat(pid)
    if began is None or state is None:  # there is no /proc, or it hides other users' processes
        return True
    return state not in ("Z", "X") and now == began


def _stat(pid: int) -> tuple[str | None, str | None]:
    """The state of a process and when it began; None, None where /proc does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[0], fields[19]
    except (OSError, IndexError):
        return None, None
