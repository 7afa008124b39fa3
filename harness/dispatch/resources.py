"""What jobs ask for, held against what the cluster or this machine has; all mistakes at once. No torch."""

from __future__ import annotations

from collections.abc import Iterator

from harness.dispatch.slurm_programs import Cluster, Partition
from harness.errors import ConfigError, unknown
from harness.specs import Runtime, Submission

MINUTES = 240  # of one start, where nobody says


def for_slurm(asked: Submission, runtime: Runtime, cluster: Cluster) -> Submission:
    """What is asked for with everything filled in that Slurm must be told.

    Raises:
        ConfigError: every mistake that the cluster can tell.
    """
    mistakes = list(_unknown_names(asked, cluster))
    partitions = _partitions(asked, cluster)
    filled = _filled(asked, runtime, partitions)
    mistakes += _too_much(filled, partitions)
    if mistakes:
        raise ConfigError([f"submit.{mistake}" for mistake in mistakes])
    return filled


def for_this_machine(asked: Submission, runtime: Runtime, gpus: int) -> Submission:
    """What is asked for with everything filled in that this machine's queue must be told.

    Args:
        gpus: how many this machine has.

    Raises:
        ConfigError: it asks for other machines.
    """
    if asked.nodes != 1:
        raise ConfigError([f"submit.nodes is {asked.nodes}, and this machine is one; submit to slurm, or leave it out"])
    count = asked.gpus
    if count is None:
        count = int(gpus > 0 and _may_be_gpu(runtime) and asked.gpu_memory_gb is None)
    return asked.model_copy(
        update={"gpus": count, "ranks": asked.ranks or max(1, count), "cpus": asked.cpus or 1 + runtime.num_workers}
    )


def _may_be_gpu(runtime: Runtime) -> bool:
    return not runtime.device.startswith("cpu")


def _unknown_names(asked: Submission, cluster: Cluster) -> Iterator[str]:
    for name in (asked.partition or "").split(",") if asked.partition else ():
        if name not in cluster.partitions:
            yield f"partition: {unknown('partition', name, cluster.partitions)}"
    for kind, name, known in (("account", asked.account, cluster.accounts), ("qos", asked.qos, cluster.qos)):
        if name is not None and known is not None and name not in known:
            yield f"{kind}: {unknown(kind, name, known)}"


def _partitions(asked: Submission, cluster: Cluster) -> list[Partition]:
    """Those that a job may run in and that are known."""
    if asked.partition is None:
        return [partition for partition in cluster.partitions.values() if partition.default]
    return [cluster.partitions[name] for name in asked.partition.split(",") if name in cluster.partitions]


def _filled(asked: Submission, runtime: Runtime, partitions: list[Partition]) -> Submission:
    gpus = asked.gpus
    if gpus is None:
        gpus = int(_may_be_gpu(runtime) and bool(partitions) and all(p.gpus for p in partitions))
    ranks = asked.ranks or max(1, gpus)
    room = min((p.cpus // ranks for p in partitions), default=1)
    limits = [p.minutes for p in partitions if p.minutes is not None]
    return asked.model_copy(
        update={
            "gpus": gpus,
            "ranks": ranks,
            "cpus": asked.cpus or max(1, min(1 + runtime.num_workers, room)),
            "minutes": asked.minutes or min([MINUTES, *limits]),
        }
    )


def _too_much(asked: Submission, partitions: list[Partition]) -> Iterator[str]:
    """What no partition that was named can give."""
    if asked.signal_seconds >= 60 * (asked.minutes or MINUTES):
        yield f"signal_seconds is {asked.signal_seconds}, and a job may take {asked.minutes} min; ask for less"
    for partition in partitions:
        where = f"in partition {partition.name!r}"
        if partition.minutes is not None and (asked.minutes or 0) > partition.minutes:
            yield f"minutes is {asked.minutes}; {where} a job may take {partition.minutes}"
        processors = (asked.cpus or 1) * (asked.ranks or 1)
        for what, count, most in (
            ("nodes", asked.nodes, partition.nodes),
            ("gpus", asked.gpus or 0, partition.gpus),
            ("cpus times ranks", processors, partition.cpus),
            ("memory_gb", asked.memory_gb or 0, partition.memory_gb),
        ):
            if count > most:
                yield f"{what} is {count:g}; {where} {'there are' if what == 'nodes' else 'a node has'} {most:g}"
