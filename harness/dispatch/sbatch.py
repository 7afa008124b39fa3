"""What sbatch is given: submitit's executor with all that a job asks for, and its shell around Python. No torch."""

from __future__ import annotations

import re
import secrets
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from harness.dispatch.arrays import Array
from harness.dispatch.ledger import Entry
from harness.dispatch.shell import strict
from harness.dispatch.slurm_programs import SlurmError
from harness.dispatch.snapshot import shell_lines
from harness.runs import Workspace
from harness.specs import Submission

if TYPE_CHECKING:
    from submitit import SlurmExecutor

ALL = 10**6  # submitit has 256 of an array run at once where nobody says; Slurm allows no array of so many
KILLED = 3  # how often a job whose processes were killed goes on by itself: what kills them may do so every time


def new_name(experiment: str, kind: str) -> str:
    """The name of an array, which no other has."""
    return f"{re.sub(r'[^A-Za-z0-9_-]', '_', experiment)}.{kind}.{secrets.token_hex(4)}"


def dependency(array: Array, known: Mapping[str, Entry], after: str | None) -> str | None:
    """What sbatch is told: what is needed has to end well, and a job that is requeued has not ended.

    Args:
        after: the number of an array that has to end, however it does.
    """
    conditions = [f"aftercorr:{known[array.follows[0]].array}"] if array.follows else []
    conditions += ["afterok:" + ":".join(known[need].job or "" for need in array.needs)] if array.needs else []
    conditions += [f"afterany:{after}"] if after is not None else []
    return ",".join(conditions) or None


def executor(
    workspace: Workspace,
    name: str,
    asked: Submission,
    snapshot: str,
    dependency: str | None = None,
    at_once: int | None = None,
) -> SlurmExecutor:
    """submitit's executor with everything that a job asks for. Raises SlurmError where there is no Slurm."""
    from submitit import SlurmExecutor

    folder = workspace.root.resolve() / "jobs" / "submitit" / name
    try:
        made = SlurmExecutor(folder, max_num_timeout=asked.requeues)
    except RuntimeError:
        raise SlurmError("there is no srun here: submit on a machine of the cluster") from None
    given = {
        "partition": asked.partition,
        "account": asked.account,
        "qos": asked.qos,
        "constraint": asked.constraint,
        "gpus_per_node": asked.gpus or None,
        "mem": None if asked.memory_gb is None else f"{round(asked.memory_gb * 1024)}MB",
        "dependency": dependency,
        "array_parallelism": at_once or ALL,
    }
    made.update_parameters(
        **{key: value for key, value in given.items() if value is not None},
        job_name=name,
        time=asked.minutes,
        nodes=asked.nodes,
        ntasks_per_node=asked.ranks,
        cpus_per_task=asked.cpus,
        signal_delay_s=asked.signal_seconds,
        wckey=None,  # submitit's own is one that a cluster need not know
        # An evaluation whose training has failed for good would wait for ever.
        additional_parameters={"requeue": True, "kill-on-invalid-dep": "yes"},
        # srun takes the CPUs of a task over from sbatch no more since Slurm 22.05; ranks wait for one that died.
        srun_args=[f"--cpus-per-task={asked.cpus}", "--kill-on-bad-exit=1"],
        setup=_setup(asked, workspace.root / snapshot),
        teardown=_teardown(asked, folder),
    )
    return made


def _setup(asked: Submission, snapshot: Path) -> list[str]:
    threads = f'export OMP_NUM_THREADS="${{OMP_NUM_THREADS:-{asked.cpus}}}"'
    return strict([*asked.setup, threads, *shell_lines(snapshot)])


def _teardown(asked: Submission, folder: Path) -> list[str]:
    """A process that was killed ends a job without a word, though the node and the job's time are still there.

    Such a job goes on at its checkpoint, whether or not somebody waits for it. Slurm's own ends (time-out, preemption,
    scancel) are not running any more, and are left alone.
    """
    requeues = f'[ "${{SLURM_RESTART_COUNT:-0}}" -lt {asked.requeues} ]'
    return [
        "code=$?",
        # The number of an array's last task is also that of the whole array, which must be neither asked nor requeued.
        'job="${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}"',
        'job="${job:-$SLURM_JOB_ID}"',
        'if [ "$code" -gt 128 ] && [ "$code" -lt 255 ] && [ "$(squeue -h -j "$job" -o %T)" = RUNNING ]; then',
        f'  killed={shlex.quote(str(folder))}/"$job".killed',
        '  touch "$killed"',
        '  [ "$code" -eq 143 ] || echo "$code" >> "$killed"',  # SIGTERM is a request, as of a preemption
        f'  if [ "$(wc -l < "$killed")" -le {KILLED} ] && {requeues}; then scontrol requeue "$job"; fi',
        "fi",
        'exit "$code"',
    ]
