"""Real processes that act as the ranks of one job, on this machine's CPU, by gloo."""

from __future__ import annotations

import io
import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch

from harness.training import distributed, orders
from harness.training.distributed import Ranks, joined

FORK = multiprocessing.get_context("fork")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(work: Callable[[Ranks], Any], world: int = 2, timeout_s: float = 30.0) -> list[tuple[Any, Any]]:
    """A process a rank, each with the end of a pipe that its result comes from."""
    port, found = free_port(), []
    for rank in range(world):
        ours, theirs = FORK.Pipe(duplex=False)
        child = FORK.Process(target=_child, args=(work, rank, world, port, timeout_s, theirs))
        child.start()
        theirs.close()
        found.append((child, ours))
    return found


def results(started: list[tuple[Any, Any]], limit_s: float = 120.0) -> list[Any]:
    """What each rank returned; what it raised is returned too, and a rank that died without a word is None."""
    found = []
    for _, pipe in started:
        assert pipe.poll(limit_s), "a rank gives no answer"
        try:
            found.append(torch.load(io.BytesIO(pipe.recv_bytes()), weights_only=False))
        except EOFError:
            found.append(None)
    for child, _ in started:
        child.join(limit_s)
        assert not child.is_alive(), "a rank does not end"
    return found


def on_ranks(work: Callable[[Ranks], Any], world: int = 2, timeout_s: float = 30.0) -> list[Any]:
    """What `work` returns on every rank. Raises AssertionError with the traceback of one that failed."""
    found = results(start(work, world, timeout_s))
    for one in found:
        assert not isinstance(one, BaseException), one.__notes__[0] if hasattr(one, "__notes__") else repr(one)
    return found


def _child(work: Callable[[Ranks], Any], rank: int, world: int, port: int, timeout_s: float, pipe: Any) -> None:
    distributed.GRACE_S = orders.PARTING_S = 0.3
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    torch.set_num_threads(1)
    try:
        ranks = joined("cpu", timeout_s)
        result = work(ranks)
        ranks.left()
    except BaseException as error:
        result = error
        result.__notes__ = [traceback.format_exc()]
    buffer = io.BytesIO()
    torch.save(result, buffer)
    pipe.send_bytes(buffer.getvalue())
    pipe.close()
    os._exit(0)
