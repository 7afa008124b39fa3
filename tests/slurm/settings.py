"""The settings of a Slurm of one node, on loopback, in a folder of its own with keys, sockets and ports of its own."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import socket
from pathlib import Path

SLURM = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={slurmctld}
SlurmdPort={slurmd}
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
AuthType=auth/munge
# A requeued job waits until the credential of its last start has expired: 120 s where nothing is said.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
MpiDefault=none
ReturnToService=2
KillWait=3
MinJobAge=86400

AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={slurmdbd}
AccountingStoragePass={folder}/munge.socket

SchedulerParameters=sched_interval=1,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal

# The node is what is said here, whatever the machine has.
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=20000 Gres=gpu:2
PartitionName=main Nodes={host} Default=YES PriorityTier=1 GraceTime=5
PartitionName=urgent Nodes={host} PriorityTier=2
"""

SLURMDBD = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={slurmdbd}
SlurmUser={user}
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={mariadb}
StorageUser=slurm
StoragePass={password}
StorageLoc=slurm_acct_db
"""

# Slurm wants devices and never opens them: it counts them and says their numbers to jobs.
GRES = """\
NodeName={host} Name=gpu File={folder}/gpu0
NodeName={host} Name=gpu File={folder}/gpu1
"""

DATABASE = """\
CREATE DATABASE slurm_acct_db;
CREATE USER slurm@'127.0.0.1' IDENTIFIED BY '{password}';
GRANT ALL ON slurm_acct_db.* TO slurm@'127.0.0.1';
"""

FILES = {"slurm.conf": SLURM, "slurmdbd.conf": SLURMDBD, "gres.conf": GRES, "database.sql": DATABASE}
LISTENING = ("mariadb", "slurmdbd", "slurmctld", "slurmd")


def host() -> str:
    return socket.gethostname().split(".")[0]


def user() -> str:
    return pwd.getpwuid(os.geteuid()).pw_name


def free_ports() -> dict[str, int]:
    """For each daemon a port of the loopback that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = {name: stack.enter_context(socket.socket()) for name in LISTENING}
        for each in sockets.values():
            each.bind(("127.0.0.1", 0))
        return {name: each.getsockname()[1] for name, each in sockets.items()}


def write(folder: Path) -> dict[str, int]:
    """Write all that the daemons read into the folder; gives their ports."""
    ports = free_ports()
    values = {"folder": folder, "host": host(), "user": user(), "password": secrets.token_hex(16), **ports}
    for name, text in FILES.items():
        write_private(folder / name, text.format(**values).encode())
    write_private(folder / "munge.key", secrets.token_bytes(128))
    for index, device in enumerate(("/dev/null", "/dev/zero")):
        (folder / f"gpu{index}").symlink_to(device)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    return ports


def write_private(path: Path, content: bytes) -> None:
    """munged and slurmdbd refuse secrets that others can read."""
    path.touch(mode=0o600)
    path.write_bytes(content)
