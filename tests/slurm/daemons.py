"""The processes of a Slurm of one node: munged, MariaDB, slurmdbd, slurmctld, slurmd. Run as a program.

`python -m slurm.daemons FOLDER` starts them, says in one line of JSON that the node is idle, or why not, and keeps them
until its input ends. So whoever started it can be killed and still nothing is left: orphaned jobs become this process's
children, it ends all that descends from it by process id, and removes the folder.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from slurm import settings

SYSTEM_TABLES = Path("/usr/share/mysql/mysql_system_tables.sql")
MEMORY, ROOM = Path("/dev/shm"), 256 * 2**20  # bytes; the database has about 50 MB
LIMIT_S = 120  # some seconds are usual
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # prctl(2)
LIBC = ctypes.CDLL(None)


class NotStarted(Exception):
    """A daemon that ended or did not answer in time; the text has the ends of the logs."""


class Daemons:
    """What is started in one folder, in order."""

    def __init__(self, folder: Path, database: Path) -> None:
        self.folder, self.database = folder, database
        self.ports = settings.write(folder)
        self.running: dict[str, subprocess.Popen] = {}
        self.until = time.monotonic() + LIMIT_S

    def start(self) -> None:
        socket_ = f"--socket={self.folder / 'munge.socket'}"
        own = [f"--{name}-file={self.folder / 'munge'}.{name}" for name in ("key", "pid", "seed")]
        self.daemon("munged", "--foreground", "--force", socket_, *own)
        self.prepare_database()
        self.daemon(*self.mariadb(), f"--init-file={self.folder / 'database.sql'}")
        self.wait("database", lambda: listens(self.ports["mariadb"]))
        self.wait("munge", lambda: asked("munge", "--no-input", socket_).returncode == 0)
        self.daemon("slurmdbd", "-D")
        add = ("sacctmgr", "--immediate", "add", "cluster", "tests")
        # slurmctld gives up at once where the accounting does not know its cluster.
        self.wait("accounting", lambda: asked(*add).returncode == 0)
        self.daemon("slurmctld", "-D")
        self.daemon("slurmd", "-D")
        show = ("sinfo", "--noheader", "--partition=main", "--format=%T")
        self.wait("idle node", lambda: asked(*show).stdout.strip() == "idle")

    def mariadb(self) -> list[str]:
        """A small server of its own, which need not survive a power cut."""
        places = {"datadir": self.database, "socket": self.folder / "mariadb.socket"}
        sizes = {"innodb-log-file-size": "4M", "innodb-buffer-pool-size": "16M", "innodb-flush-log-at-trx-commit": 0}
        address = {"bind-address": "127.0.0.1", "port": self.ports["mariadb"], "user": settings.user()}
        values = {**places, **sizes, **address, "pid-file": self.folder / "mariadb.pid"}
        return ["mariadbd", "--no-defaults", "--skip-name-resolve", *(f"--{key}={values[key]}" for key in values)]

    def prepare_database(self) -> None:
        """The server's own tables; the package's script does more and takes longer."""
        tables = "CREATE DATABASE mysql;\nUSE mysql;\n" + SYSTEM_TABLES.read_text()
        with (self.folder / "bootstrap.log").open("w") as log:
            subprocess.run([*self.mariadb(), "--bootstrap"], input=tables, text=True, stdout=log, stderr=log)

    def daemon(self, *command: str) -> None:
        with (self.folder / f"{command[0]}.log").open("w") as log:
            self.running[command[0]] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=die_with_parent
            )

    def wait(self, what: str, there: Callable[[], bool]) -> None:
        """Until it is there. Whatever was started must be alive."""
        while not there():
            codes = {name: process.poll() for name, process in self.running.items()}
            ended = [f"{name} ended ({code})" for name, code in codes.items() if code is not None]
            if ended or time.monotonic() > self.until:
                reason = ", ".join(ended) or f"no {what} after {LIMIT_S} s"
                raise NotStarted(f"{reason}\n{tails(self.folder)}")
            time.sleep(0.05)


def asked(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=LIMIT_S, text=True)


def die_with_parent() -> None:
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def tails(folder: Path, lines: int = 15) -> str:
    """The last lines of every log in the folder."""
    logs = {log.name: log.read_text(errors="replace").splitlines()[-lines:] for log in sorted(folder.glob("*.log"))}
    return "\n".join("\n".join([f"--- {name}", *end]) for name, end in logs.items() if end)


def descendants(of: int) -> list[int]:
    """Process ids of the children of a process, of theirs, and so on."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            stat = entry.read_text()
        except OSError:  # it ended meanwhile
            continue
        parent = int(stat.rpartition(")")[2].split()[1])  # after the name, which may contain anything
        children.setdefault(parent, []).append(int(entry.parent.name))
    found = children.get(of, [])
    for pid in found:  # grows while it is read
        found.extend(children.get(pid, []))
    return found


def end_all() -> None:
    """Kill until nothing is left: a process may start another while the list is read."""
    while pids := descendants(os.getpid()):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def quick_place() -> Path | None:
    """Where the database's syncs cost nothing: making it takes a thousand. None is the usual place."""
    there = os.access(MEMORY, os.W_OK | os.X_OK) and shutil.disk_usage(MEMORY).free > ROOM
    return MEMORY if there else None


def main() -> None:
    folder = Path(sys.argv[1])
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    database = Path(tempfile.mkdtemp(prefix="slurm-", dir=quick_place()))
    try:
        try:
            Daemons(folder, database).start()
            answer = {"error": None}
        except NotStarted as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system buries whoever ends from now on
        sys.stdin.read()
    finally:
        end_all()
        shutil.rmtree(database)
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
