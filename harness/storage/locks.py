"""One process at a time on a group: a lock that a dead process does not keep. No torch.

The lock is a file that appears whole, by a hard link, which fails where there is one already: local disks and every
version of NFS promise that, while the locks of fcntl and flock depend on a daemon, on how the disk is mounted, and do
not reach other machines everywhere. A server whose answer was lost may say that the link is there already when it is
ours, so what counts is which file the name leads to.

The owner touches its lock every `BEAT_S`. It is stale when its process is gone on this very machine, or when nobody
has touched it for `STALE_S` by the clock that stamps the files, which is the server's: machines whose clocks differ by
hours agree on it. Who finds it stale removes it while holding a second lock, named after the first one's nonce: of
several who saw it stale, none can remove the lock that another has taken in the meantime. A lock also says which job
of Slurm its owner is part of, since Slurm knows that a job of another machine is dead minutes earlier.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from harness.errors import UserError
from harness.storage.disk import now_in
from harness.storage.living import living, started

BEAT_S = 20.0
STALE_S = 300.0
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


class Lock:
    """A context manager; `acquire` tells whether the lock was free.

    >>> with Lock(folder / "group.lock") as lock:
    ...     if lock.acquire(): ...
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content: dict[str, Any] | None = None  # of the file while it is ours, or about to be
        self._stop = threading.Event()
        self._beat: threading.Thread | None = None

    def acquire(self) -> bool:
        """Take the lock if it is free or stale. Raises UserError on a file system without hard links."""
        if self.content is not None:
            return False
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = {**_me(), "nonce": secrets.token_hex(8)}
        whole = self.path.with_name(f".{content['nonce']}.new")
        try:
            whole.write_text(json.dumps(content))
            self.content = content  # before it is ours: a signal may come at any time, and `release` looks for itself
            if not _linked(whole, self.path) and not (self._remove_stale() and _linked(whole, self.path)):
                self.content = None
                return False
        except Exception:
            self.content = None
            raise
        finally:
            whole.unlink(missing_ok=True)
        self._stop.clear()
        self._beat = threading.Thread(target=self._keep_alive, daemon=True)
        self._beat.start()
        return True

    def release(self) -> None:
        """Give the lock back, if it is still ours."""
        if self.content is None:
            return
        self._stop.set()
        if self._beat is not None:
            with contextlib.suppress(RuntimeError):  # a signal came before it was started
                self._beat.join()
        if owner(self.path) == self.content:
            with contextlib.suppress(OSError):  # on a disk that became read-only it is stale once this process ends
                self.path.unlink(missing_ok=True)
        self.content = self._beat = None

    def _keep_alive(self) -> None:
        while not self._stop.wait(BEAT_S):
            try:
                if _read(self.path) != self.content:
                    return  # somebody judged it stale: the machine slept for minutes; results are renamed, not shared
                os.utime(self.path)
            except FileNotFoundError:
                return
            except OSError:
                continue  # a server that does not answer now may do so at the next beat

    def _remove_stale(self) -> bool:
        """Whether the lock may be free now: it was stale, and nobody else is about to remove it."""
        seen = owner(self.path)
        if not is_stale(self.path):
            return False
        return take_away(self.path, seen, lambda: is_stale(self.path))

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()


def take_away(path: Path, dead: dict[str, Any] | None, still: Callable[[], bool] = lambda: True) -> bool:
    """Remove a lock whose owner is dead; whoever holds it by now keeps it.

    Args:
        dead: what `owner` told of the lock. still: whether that is so yet, asked when nobody else can remove it.

    Returns:
        False where somebody else is about to remove it.
    """
    nonce = (dead or {}).get("nonce", "unreadable")
    with Lock(path.with_name(f".{path.name}.{nonce}")) as removal:
        if not removal.acquire():
            return False
        if owner(path) == dead and still():
            path.unlink(missing_ok=True)
    return True


def _linked(whole: Path, path: Path) -> bool:
    """Whether `path` now is `whole`: False where there is such a file already."""
    try:
        os.link(whole, path)
    except FileExistsError:
        return _same(whole, path)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        raise UserError(
            f"the file system of {str(path.parent)!r} has no hard links, which locks need; "
            "put the workspace on a local disk or NFS (--workspace)"
        ) from error
    return True


def _same(whole: Path, path: Path) -> bool:
    try:
        return os.path.samefile(whole, path)
    except FileNotFoundError:
        return False


def _me() -> dict[str, Any]:
    pid = os.getpid()
    mine = {"host": socket.gethostname(), "space": _pid_space(), "pid": pid, "started": started(pid)}
    return {**mine, "job": slurm_job()}


def slurm_job() -> dict[str, Any] | None:
    """The job of Slurm that this process is part of, and how often it was started again; None outside of jobs.

    cluster: its name. number: "123_4" in an array, as in a workspace's ledger. restarts: 0 for the first start.
    """
    told = os.environ.get
    array, task, number = told("SLURM_ARRAY_JOB_ID"), told("SLURM_ARRAY_TASK_ID"), told("SLURM_JOB_ID")
    if number is None:
        return None
    return {
        "cluster": told("SLURM_CLUSTER_NAME"),
        "number": number if array is None else f"{array}_{task}",
        "restarts": int(told("SLURM_RESTART_COUNT", "0")),
    }


def _pid_space() -> str | None:
    """Containers may share a host's name but not its process numbers."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def owner(path: Path) -> dict[str, Any] | None:
    """Who holds a lock (host, pid, ...), or None where it is free or cannot be read."""
    try:
        return _read(path)
    except OSError:
        return None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text())
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def holder(path: Path) -> str:
    """Who holds a lock, in words."""
    found = owner(path)
    return "nobody" if found is None else f"process {found.get('pid')} on {found.get('host')}"


def is_stale(path: Path) -> bool:
    """Whether a lock's owner is gone."""
    found = owner(path) or {}
    try:
        touched_s = path.stat().st_mtime
    except OSError:
        return False
    here = {"host": socket.gethostname(), "space": _pid_space()}
    if here.items() <= found.items() and isinstance(found.get("pid"), int):
        return not living(found["pid"], found.get("started"))
    return now_in(path.parent) - touched_s > STALE_S
