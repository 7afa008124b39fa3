"""One process at a time on a group: a lock that a dead process does not keep. No torch.

The lock is a file that appears whole, by a hard link, which is atomic on local disks and on NFS. Its owner
touches it every `BEAT_S`. It is stale when its process is gone on this very machine, or when nobody has touched
it for `STALE_S`; a stale lock is set aside by a rename, which only one of several waiting processes wins.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from pathlib import Path
from types import TracebackType

BEAT_S = 20.0
STALE_S = 300.0


class Lock:
    """A context manager; `acquire` tells whether the lock was free.

    >>> lock = Lock(folder / "group.lock")
    >>> if lock.acquire(): ...
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stop = threading.Event()
        self._beat: threading.Thread | None = None

    def acquire(self) -> bool:
        """Take the lock if it is free or stale."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        mine = self.path.with_name(f".{self.path.name}.{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}")
        mine.write_text(json.dumps(_me()))
        try:
            for _ in range(2):
                try:
                    os.link(mine, self.path)
                except FileExistsError:
                    if not self._set_aside_if_stale():
                        return False
                else:
                    self._stop.clear()
                    self._beat = threading.Thread(target=self._keep_alive, daemon=True)
                    self._beat.start()
                    return True
            return False
        finally:
            mine.unlink(missing_ok=True)

    def release(self) -> None:
        """Give the lock back, if it is still ours."""
        if self._beat is None:
            return
        self._stop.set()
        self._beat.join()
        self._beat = None
        if owner(self.path) == _me():
            self.path.unlink(missing_ok=True)

    def _keep_alive(self) -> None:
        while not self._stop.wait(BEAT_S):
            try:
                os.utime(self.path)
            except FileNotFoundError:
                return  # somebody judged it stale: the machine slept for minutes; results are renamed, not shared

    def _set_aside_if_stale(self) -> bool:
        if not is_stale(self.path):
            return False
        aside = self.path.with_name(f".{self.path.name}.stale.{os.getpid()}.{threading.get_ident()}")
        try:
            os.rename(self.path, aside)
        except FileNotFoundError:
            return True  # another process was quicker; try the link again
        aside.unlink(missing_ok=True)
        return True

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()


def _me() -> dict[str, object]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}


def _started(pid: int) -> str | None:
    """When a process began, in the kernel's ticks: a pid alone may have been given to another since."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def owner(path: Path) -> dict[str, object] | None:
    """Who holds a lock, or None where it is free."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None


def is_stale(path: Path) -> bool:
    """Whether a lock's owner is gone."""
    holder = owner(path)
    try:
        age_s = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return False
    if holder is not None and holder.get("host") == socket.gethostname() and isinstance(holder.get("pid"), int):
        return not _alive(int(str(holder["pid"])), holder.get("started"))
    return age_s > STALE_S


def _alive(pid: int, started: object) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's: it lives
    now = _started(pid)
    return started is None or now is None or now == started
