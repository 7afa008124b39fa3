"""A Slurm of one node for tests: start it, submit to it, look at it, stop it.

    with Cluster() as cluster:
        job = cluster.submit("sleep 60")
        cluster.wait(job, "RUNNING")
        cluster.scontrol("requeue", job)

The node has 2 CPUs and 2 GPUs that do not exist. Jobs in the partition `urgent` preempt those in `main`, the default:
steps get SIGTERM, or the signal that was asked for, then all is killed after a dozen seconds, and the job starts again.
A job that ends by itself on that signal has ended: Slurm does not start it again. `with cluster.without(SETTING)` is a
cluster that lacks a line of its settings. Slurm looks at time limits every 30 s
only, sacct knows a state some seconds late, and a requeued job waits about six seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from slurm.daemons import tails
from slurm.settings import user

PROGRAMS = ("munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd", "sbatch", "srun", "sacct", "sacctmgr")
ENDED = ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "OUT_OF_MEMORY", "TIMEOUT")


def search_path() -> str:
    """Debian's daemons are in a folder that not everybody searches."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"])


def reason_not_available() -> str | None:
    """Why no cluster can be started here, as a sentence for a skipped test."""
    missing = [name for name in PROGRAMS if not shutil.which(name, path=search_path())]
    if missing:
        return f"Slurm's tests need {', '.join(missing)} (Debian: slurm-wlm munge slurmdbd mariadb-server)"
    return None


class Cluster:
    """While it is open, the cluster runs and Slurm's programs find it through SLURM_CONF."""

    def __enter__(self) -> Cluster:
        """Raises RuntimeError, with the ends of the logs, where the node is not idle in time."""
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.keeper = subprocess.Popen(
            [sys.executable, "-m", "slurm.daemons", str(self.folder)],
            cwd=Path(__file__).parents[1],
            env={**os.environ, "PATH": search_path()},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the tests, which then stop the cluster
        )
        self.before = os.environ.get("SLURM_CONF")
        os.environ["SLURM_CONF"] = str(self.folder / "slurm.conf")
        try:
            answer = self.keeper.stdout.readline()
            error = json.loads(answer)["error"] if answer else "the program that keeps its processes ended"
            if error:
                raise RuntimeError(f"Slurm did not start: {error}")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.before is None:
            del os.environ["SLURM_CONF"]
        else:
            os.environ["SLURM_CONF"] = self.before
        self.keeper.communicate(timeout=60)  # the end of its input stops it, and it stops all others

    @contextlib.contextmanager
    def without(self, setting: str) -> Iterator[None]:
        """Without one line of slurm.conf, for as long as this lasts."""
        path = self.folder / "slurm.conf"
        text = path.read_text()
        assert f"{setting}\n" in text
        try:
            path.write_text(text.replace(f"{setting}\n", ""))
            self.scontrol("reconfigure")
            yield
        finally:
            path.write_text(text)
            self.scontrol("reconfigure")

    def run(self, *command: str) -> str:
        """What one of Slurm's programs prints. Raises RuntimeError with what it says where it fails."""
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()}")
        return done.stdout.strip()

    def scontrol(self, *arguments: str) -> str:
        return self.run("scontrol", *arguments)

    def submit(self, script: str, *options: str) -> str:
        """Submit lines of a shell, with options of sbatch; gives the job's id."""
        job = self.run("sbatch", "--parsable", f"--output={self.folder}/job-%j.out", *options, f"--wrap={script}")
        return job.partition(";")[0]

    def output(self, job_id: str) -> str:
        """What a job of `submit` has printed so far."""
        path = self.folder / f"job-{job_id}.out"
        return path.read_text() if path.exists() else ""

    def job(self, job_id: str) -> dict[str, str]:
        """What slurmctld knows of a job or of one task of an array: JobState, Restarts, Reason, ..."""
        return dict(re.findall(r"(\S+?)=(.*?)(?=\s+\S+?=|$)", self.scontrol("show", "job", "--oneliner", job_id)))

    def state(self, job_id: str) -> str:
        return self.job(job_id)["JobState"]

    def restarts(self, job_id: str) -> int:
        return int(self.job(job_id)["Restarts"])

    def processes(self, job_id: str) -> list[int]:
        """Ids of a job's processes; none before it runs and after it has ended."""
        try:
            lines = self.scontrol("listpids", job_id).splitlines()[1:]
        except RuntimeError as error:
            if "does not exist on node" in str(error):
                return []
            raise
        return [int(line.split()[0]) for line in lines]

    def until(self, holds: Callable[[], bool], what: str, limit_s: float = 60) -> None:
        """Wait until it holds. Raises TimeoutError with the queue and the logs."""
        end = time.monotonic() + limit_s
        while not holds():
            if time.monotonic() > end:
                queue = self.run("squeue", "--states=all")
                raise TimeoutError(f"{what}: not within {limit_s} s\n{queue}\n{tails(self.folder)}")
            time.sleep(0.1)

    def wait(self, job_id: str, state: str, limit_s: float = 60) -> None:
        """Until the job is in this state. Raises RuntimeError as soon as it has ended in another one."""

        def reached() -> bool:
            now = self.state(job_id)
            if now != state and now in ENDED:
                raise RuntimeError(f"job {job_id} is {now}, not {state}\n{self.output(job_id)}{tails(self.folder)}")
            return now == state

        self.until(reached, f"job {job_id} is {state}", limit_s)

    def cancel_all(self) -> None:
        """Cancel every job and wait until the node is free."""
        self.run("scancel", f"--user={user()}")
        self.until(lambda: not self.run("squeue", "--noheader"), "no job is left")
