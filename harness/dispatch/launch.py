"""Start one job on this machine, apart from who asks for it. No torch.

submitit's LocalExecutor starts a job as a child in the caller's terminal session: Ctrl-C would reach its processes at
once, and they would be killed a second later. So this file is also a program, run in a session of its own, which has
submitit start the job, and ends. It runs after the job's lines of shell, so that the job finds the same code.
"""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from harness.dispatch import processes
from harness.dispatch.shell import strict
from harness.errors import UserError

STARTED = "started.json"  # in the job's folder: its controller's process, and when that began


def launch(
    work: Callable[[], Any], folder: Path, parameters: dict[str, Any], requeues: int, setup: Sequence[str]
) -> None:
    """Start `work` as a submitit job; `controller` then tells its process.

    Args:
        work: what submitit pickles. folder: the job's own, absolute. parameters: of submitit's LocalExecutor.
        requeues: how often it may go on after its time-out. setup: lines of shell, of which none may fail.

    Raises:
        UserError: it did not start; the last line of what was said is told.
    """
    import cloudpickle

    program = [sys.executable, "-m", "harness.dispatch.launch", str(folder)]
    command = ["bash", "-c", "\n".join([*strict(setup), 'exec "$@"']), "bash", *program]
    log = folder / "launch.log"
    with open(log, "w", encoding="utf-8") as said:  # a pipe would stay open as long as the job
        asked = cloudpickle.dumps((work, parameters, requeues))
        done = subprocess.run(command, input=asked, stdout=said, stderr=said, start_new_session=True, check=False)
    if done.returncode != 0:
        lines = log.read_text(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
        raise UserError(f"it could not be started: {lines[-1]} ({log})")


def controller(folder: Path) -> tuple[int, str] | None:
    """The process that was started for the job in `folder`, and when it began; None where none was."""
    try:
        found = json.loads((folder / STARTED).read_text())
    except FileNotFoundError:
        return None
    return found["pid"], found["began"]


def main(folder: Path) -> None:
    """Submit what comes on standard input."""
    from submitit import LocalExecutor

    work, parameters, requeues = pickle.load(sys.stdin.buffer)
    executor = LocalExecutor(folder, max_num_timeout=requeues)
    executor.update_parameters(**parameters)
    pid = int(executor.submit(work).job_id)
    fresh = folder / f".{STARTED}"  # whole or not there
    fresh.write_text(json.dumps({"pid": pid, "began": processes.started(pid)}))
    fresh.rename(folder / STARTED)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
