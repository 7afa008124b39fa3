"""What a job runs: one unit of one experiment, from the snapshot, until it is done or asked to stop.

submitit calls it in every task of a job, and asks it to go on where SIGUSR2 says that the time is nearly over or that
somebody more important waits: training saves at the end of its step, and submitit's own handler requeues the job.
SIGTERM alone saves too, and ends: Slurm requeues what it has preempted by itself.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from subprocess import SubprocessError
from typing import TYPE_CHECKING

from harness.code_state import HERE, strangers
from harness.dispatch import snapshot
from harness.dispatch.dead import release
from harness.dispatch.ledger import End, Entry, Ledger, Unit, now
from harness.errors import UserError
from harness.interrupts import Interrupted
from harness.progress import Console
from harness.runs import Workspace

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

    from harness.job import Job


@dataclass(frozen=True)
class Work:
    """The callable that submitit pickles: plain values only, so that the job's own code gives them their meaning.

    Attributes:
        workspace: absolute. snapshot: relative to it. requeues: how often a job may be started again.
    """

    workspace: str
    snapshot: str
    unit: Unit
    attempt: int
    requeues: int

    @classmethod
    def of(cls, workspace: Workspace, entry: Entry) -> Work:
        """What the job of an entry runs."""
        root = str(workspace.root.resolve())
        return cls(root, entry.snapshot, entry.unit, entry.attempt, entry.resources["requeues"])

    def __call__(self) -> None:
        """Raises whatever kept the unit from being done; a method that diverges is a result, not an error."""
        from submitit.core.utils import UncompletedJobError

        self._same_code()
        _heed_sigterm()
        self._begin()
        job = None
        try:
            job = self._job()
            self._do(job)
        except Interrupted:
            self._stopped(job.stop.asked if job is not None else None)
        except (UncompletedJobError, SubprocessError) as error:  # submitit's handler, while nothing had to be saved
            self._out_of_time(error)
            raise
        except Exception as error:
            if _is_about_another_rank(error):
                raise  # which may have been killed: no error that would come again
            self._end("failed", " ".join(str(error).split()) or type(error).__name__)
            raise
        else:
            self._end("done")

    def checkpoint(self) -> DelayedSubmission:
        """What submitit submits in place of this: the same again, which goes on where the workspace says."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _same_code(self) -> None:
        """Raises UserError where something put other code before the snapshot, such as a line of `setup`."""
        wanted = Path(self.workspace, self.snapshot).resolve()
        if wanted != HERE:
            raise UserError(f"this job should run the code in {wanted}, but Python found {HERE} first: see PYTHONPATH")
        if others := strangers():
            raise UserError(f"this job should run the code in {wanted} alone, but has imported {', '.join(others)}")

    def _begin(self) -> None:
        if _rank() == 0:
            self._ledger().begin(self.unit.id, self.attempt)
            for lock in release(Workspace(self.workspace)):
                Console().say(f"{lock.name} was held by a job that Slurm knows to be dead")
        restarts = int(os.environ.get("SLURM_RESTART_COUNT", 0))
        if restarts > self.requeues:
            reason = f"started again {restarts} times, and requeues is {self.requeues}; what is saved is kept"
            self._end("stopped", reason)
            raise UserError(f"{reason}: `singer-bench submit` goes on there")

    def _job(self) -> Job:
        from harness.environment import device_of
        from harness.job import Job
        from harness.training.distributed import joined_by_submitit

        experiment = snapshot.experiment_of(Path(self.workspace, self.snapshot))
        ranks = joined_by_submitit(device_of(experiment))
        return Job(experiment, Workspace(self.workspace), Console(), ranks)

    def _do(self, job: Job) -> None:
        if self.unit.kind == "fit":
            job.fit(self.unit.runs)
        elif self.unit.kind == "train":
            job.run(train=self.unit.runs, evaluate=())
        else:
            job.run(train=(), evaluate=self.unit.runs)
        job.ranks.left()

    def _stopped(self, asked: int | None) -> None:
        """Everything is saved: requeue through submitit, or end as a process ends that a signal has ended."""
        from submitit.core.utils import UncompletedJobError

        if _rank() != 0:
            return  # the first rank decides, and Slurm ends the others with it
        if asked != signal.SIGUSR2:
            number = signal.Signals(asked or signal.SIGTERM)
            self._end("stopped", f"stopped by {number.name}")
            raise SystemExit(128 + number)
        requeue = signal.getsignal(signal.SIGUSR2)
        assert callable(requeue)
        try:
            requeue(asked, None)
        except (UncompletedJobError, SubprocessError) as error:
            self._out_of_time(error)
            raise

    def _out_of_time(self, error: Exception) -> None:
        reason = str(error).rstrip(".")
        self._end("stopped", f"{reason}; what is saved is kept: `singer-bench submit` goes on there")

    def _end(self, outcome: str, reason: str | None = None) -> None:
        if _rank() == 0:
            self._ledger().write_end(self.unit.id, self.attempt, End(outcome, now(), reason))  # type: ignore[arg-type]

    def _ledger(self) -> Ledger:
        return Ledger(Workspace(self.workspace))


def _is_about_another_rank(error: Exception) -> bool:
    from harness.training.distributed import RankLost

    return isinstance(error, RankLost)


def _heed_sigterm() -> None:
    """In this machine's queue, where SIGTERM asks to stop: submitit's handler hears it and goes on, until training
    begins. In Slurm that is right: a preempted job that ended by itself would not be requeued.
    """
    from submitit import JobEnvironment

    if JobEnvironment().cluster == "local":
        signal.signal(signal.SIGTERM, _break_off)


def _break_off(number: int, _: object) -> None:
    raise Interrupted(signal.Signals(number).name)


def _rank() -> int:
    """This task's number among those of its job, as submitit tells it."""
    from submitit import JobEnvironment

    return JobEnvironment().global_rank
