"""Slurm's programs, asked, and what their answers mean. No torch."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

from harness.errors import UserError

LONGEST_S = 120  # a busy controller takes its time, but not for ever
SILENT = ("Unable to contact slurm", "Socket timed out", "Connection refused")  # what programs say when it is down


class SlurmError(UserError):
    """Slurm is not there, or has refused, or does not answer."""


def ask(*command: str) -> str:
    """The standard output of one of Slurm's programs.

    Raises:
        SlurmError: there is no such program, it says no, or it does not answer.
    """
    if shutil.which(command[0]) is None:
        raise SlurmError(
            f"there is no {command[0]} here: submit on a machine of the cluster, or with --cluster local for this one"
        )
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST_S)
    except subprocess.TimeoutExpired:
        raise SlurmError(f"Slurm does not answer: {command[0]} took more than {LONGEST_S} s") from None
    if done.returncode != 0:
        said = f"{command[0]}: {last_line(done.stderr) or f'exit code {done.returncode}'}"
        raise SlurmError(f"Slurm does not answer ({said})" if any(one in said for one in SILENT) else said)
    return done.stdout


def last_line(text: str) -> str:
    """What a program complained about last, without its own name, or that of a function of Slurm's, in front.

    >>> last_line("sbatch: error: Invalid qos"), last_line("slurm_load_jobs error: Unable to contact slurm controller")
    ('Invalid qos', 'Unable to contact slurm controller')
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return re.sub(r"^(\w+: )?((\w+ )?error: )?", "", lines[-1]) if lines else ""


@dataclass(frozen=True)
class Partition:
    """What sinfo tells of a partition; cpus, memory_gb and gpus are those of its largest node.

    minutes: the longest job; None: no limit.
    """

    name: str
    default: bool
    minutes: int | None
    nodes: int
    cpus: int
    memory_gb: float
    gpus: int


@dataclass(frozen=True)
class Cluster:
    """What a cluster tells of itself. accounts, qos: None where it does not say, or does not care."""

    partitions: dict[str, Partition]
    accounts: tuple[str, ...] | None
    qos: tuple[str, ...] | None
    longest_array: int


def cluster() -> Cluster:
    """Ask the cluster of this machine. Raises SlurmError where there is none."""
    ask("sbatch", "--version")
    config = dict(line.split("=", 1) for line in ask("scontrol", "show", "config").splitlines() if "=" in line)
    plain = {key.strip(): value.strip() for key, value in config.items()}
    enforced = plain.get("AccountingStorageEnforce", "none")
    return Cluster(
        _partitions(ask("sinfo", "--noheader", "--all", "--format=%P|%l|%D|%c|%m|%G").splitlines()),
        _names("account") if "associations" in enforced else None,
        _names("qos") if "qos" in enforced else None,
        int(plain.get("MaxArraySize", "1001")),
    )


def _names(what: str) -> tuple[str, ...] | None:
    """Names that the accounting knows; None where it does not answer."""
    try:
        return tuple(ask("sacctmgr", "--noheader", "--parsable2", "show", what, "format=name").split()) or None
    except SlurmError:
        return None


def _partitions(lines: Iterable[str]) -> dict[str, Partition]:
    """sinfo has a line for each kind and state of nodes."""
    found: dict[str, Partition] = {}
    for line in lines:
        name, limit, nodes, cpus, memory_mb, gres = line.split("|")
        partition = Partition(
            name.rstrip("*"),
            name.endswith("*"),
            minutes_of(limit),
            int(nodes),
            _number(cpus),
            _number(memory_mb) / 1024,
            sum(int(count) for count in re.findall(r"gpu(?::[^:,()]+)?:(\d+)", gres)),
        )
        other = found.get(partition.name)
        if other is not None:
            largest = {key: max(getattr(partition, key), getattr(other, key)) for key in ("cpus", "memory_gb", "gpus")}
            partition = Partition(
                partition.name, partition.default, partition.minutes, partition.nodes + other.nodes, **largest
            )
        found[partition.name] = partition
    return found


def _number(text: str) -> int:
    """sinfo writes 16+ where some nodes have more."""
    return int(text.rstrip("+"))


def minutes_of(limit: str) -> int | None:
    """Slurm's [days-][hours:]minutes:seconds in whole minutes; None for no limit.

    >>> minutes_of("2-12:00:00"), minutes_of("30:00"), minutes_of("infinite")
    (3600, 30, None)
    """
    if not re.fullmatch(r"(\d+-)?[\d:]+", limit):
        return None
    days, _, clock = limit.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    hours, minutes = ([0, *parts[:-1]] if len(parts) > 1 else [0, 0])[-2:]
    return int(days or 0) * 24 * 60 + hours * 60 + minutes
