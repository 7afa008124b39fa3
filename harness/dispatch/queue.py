"""The queue of this machine: what was submitted to "local" starts as GPUs and CPU slots become free. No torch.

One process a workspace and machine serves it (`server`): in the foreground, or apart from who asked for it.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from harness.dispatch.inventory import inventory
from harness.dispatch.ledger import LIVE, Ledger
from harness.dispatch.server import POLL_S, Server
from harness.dispatch.signals import Asked
from harness.dispatch.work import Work
from harness.errors import UserError
from harness.interrupts import Interrupted
from harness.progress import Console
from harness.runs import Workspace
from harness.storage.locks import Lock, holder, is_stale, owner


def serve(
    workspace: Workspace, console: Console, *, wait: bool, gpus: str | None = None, slots: int | None = None
) -> None:
    """See to it that what is queued in a workspace is done on this machine.

    Args:
        wait: serve the queue here, or wait for who serves it, until nothing is left that can start; else see to it
            that somebody serves it, and return.
        gpus, slots: which GPUs, and how many jobs at once without one: `inventory`.

    Raises:
        UserError: no such GPU; or what is left can never start here.
        Interrupted: a signal asked to stop. Jobs that this process started have saved and ended, and are queued again.
    """
    if not Path("/proc/self/stat").exists():
        raise UserError("this machine's queue tells its jobs by /proc, which Linux alone has; use `singer-bench run`")
    machine = inventory(gpus, slots)
    if not wait:
        if any(entry.cluster == "local" and entry.state in LIVE for entry in Ledger(workspace).entries().values()):
            _serve_apart(workspace, console, gpus, slots)
        return
    server = Server(workspace, console, machine, Work.of)
    with Asked() as asked:
        while True:
            with Lock(lock_of(workspace)) as lock:
                if lock.acquire():
                    console.say(f"queue on {socket.gethostname()}: {machine}")
                    server.run(asked)
                else:
                    _watch(workspace, console, asked)
                    continue
            if not server.has_more():  # who came while the lock was still held has left it to this process
                break
    if left := server.left():
        raise UserError("\n  ".join(["what stays queued cannot start here:", *left]))


def lock_of(workspace: Workspace) -> Path:
    """Held by who serves this machine's queue."""
    return workspace.locks / f"queue-{socket.gethostname()}.lock"


def is_served(workspace: Workspace) -> bool:
    """Whether a living process serves this machine's queue."""
    path = lock_of(workspace)
    return owner(path) is not None and not is_stale(path)


def _serve_apart(workspace: Workspace, console: Console, gpus: str | None, slots: int | None) -> None:
    """Start a server in a session of its own, where none lives."""
    path = lock_of(workspace)
    if is_served(workspace):
        kept = ", with the GPUs and slots that it was started with" if gpus is not None or slots is not None else ""
        console.say(f"{holder(path)} serves the queue and goes on with them{kept}")
        return
    log = workspace.jobs / "queue.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "harness.cli", "queue", str(workspace.root.resolve())]
    command += ["--gpus", gpus] if gpus is not None else []
    command += ["--slots", str(slots)] if slots is not None else []
    with open(log, "a", encoding="utf-8") as said:
        # `python -m` looks into the working directory first: a workspace holds no code.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True, cwd=workspace.root
        )
    while process.poll() is None and not is_served(workspace):
        time.sleep(0.05)
    if process.returncode:
        lines = log.read_text(errors="replace").strip().splitlines() or ["nothing was said"]
        raise UserError(f"the queue could not be started: {lines[-1]} ({log})")
    console.say(f"process {process.pid} serves the queue, log {log}; `kill {process.pid}` has it stop politely")


def _watch(workspace: Workspace, console: Console, asked: Asked) -> None:
    """Wait until nobody else serves the queue, and say how it goes on. Raises Interrupted, and leaves it alone then."""
    path, said = lock_of(workspace), ""
    who = holder(path)
    console.say(f"{who} serves the queue; waiting for it")
    while is_served(workspace):
        if asked.times:
            console.say(f"{who} goes on serving the queue without this command")
            raise Interrupted(asked.name)
        entries = Ledger(workspace).entries().values()
        count = Counter(entry.state for entry in entries if entry.cluster == "local")
        now = ", ".join(f"{count[state]} {state}" for state in ("queued", "running", "done", "failed") if count[state])
        if now != said:
            said = now
            console.say(now)
        asked.wait(POLL_S)
