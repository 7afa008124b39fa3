"""Batches from data workers, of which any may be killed: for lack of memory, or by an administrator.

What a batch holds depends on its number alone, so new workers go on with the batch that was missing.
"""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader

from harness.errors import UserError
from harness.progress import Console

DEATHS = 3  # in one pass; more is no accident
DIED = re.compile(r"DataLoader worker \(pid.*(killed|exited unexpectedly)", re.DOTALL)
BROKEN_OFF = (ConnectionError, EOFError, FileNotFoundError)  # one that dies while a batch is fetched from it


def loaded(loader_from: Callable[[int], DataLoader]) -> Iterator[Any]:
    """The batches of `loader_from(0)`; after a worker's death those of `loader_from(n)`, n being the first missing one.

    Raises:
        UserError: workers die again and again.
    """
    number = deaths = 0
    while True:
        batches = _begun(loader_from(number))
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (RuntimeError, *BROKEN_OFF) as error:
                reason = str(error).split("\n")[0]
                if isinstance(error, RuntimeError) and not DIED.match(reason):
                    raise
                deaths += 1
                if deaths > DEATHS:
                    raise UserError(
                        f"data workers died {deaths} times, the last time: {reason}. Mostly memory is short, or "
                        "/dev/shm: lower runtime.num_workers, 0 needs none. What is saved is kept"
                    ) from error
                Console().say(f"a data worker died ({reason}); new data workers go on with the same batch")
                break
            number += 1
            yield batch


def _begun(loader: DataLoader) -> Iterator[Any]:
    """The loader's iterator, without the handler by which torch raises a worker's death in the middle of whatever runs,
    such as a method's step, which then would be to blame. `next` notices the death too, after some seconds.
    """
    if threading.current_thread() is not threading.main_thread():
        return iter(loader)
    before = signal.getsignal(signal.SIGCHLD)
    found = iter(loader)
    signal.signal(signal.SIGCHLD, before)
    return found
