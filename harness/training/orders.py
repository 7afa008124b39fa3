"""Who decides among several ranks: rank 0 does what a single process does, and tells the others when they are needed.

So locks, files and decisions are those of one process, and the others wait at no cost, however long rank 0 fits a head
or waits for another job. They ask for orders by the store through which the ranks found each other, which is gone as
soon as rank 0 is.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import pickle
import time
from collections.abc import Iterator
from typing import Any

from harness.errors import UserError
from harness.interrupts import Interrupted
from harness.training.distributed import Ranks

POLL_S = 0.05
PARTING_S = 2.0  # that rank 0 waits for the others to have read that it has ended

_NUMBERS = itertools.count()  # orders of this process's job so far: the same on all ranks


def tell(ranks: Ranks, order: Any) -> None:
    """Rank 0: what all ranks are to do now, which rank 0 then does too. Nothing with one rank.

    Raises:
        UserError: something in it cannot be sent to another process.
    """
    if ranks.alone:
        return
    try:
        packed = pickle.dumps(order)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UserError(
            f"what the other ranks need cannot be sent to them: {error}. A source must be picklable, as it must be for "
            "data workers that are spawned; mend that, or run on one rank"
        ) from error
    with ranks.linked():
        ranks.store.set(_key(next(_NUMBERS)), "{}")
    ranks.shared(packed)
    with ranks.together():
        pass  # they may be unable to read it


def told(ranks: Ranks) -> Iterator[Any]:
    """Other ranks: what they are told, until rank 0 has ended.

    Raises:
        UserError: rank 0 has ended with an error. Interrupted: it was asked to stop. RankLost: it is gone.
    """
    while True:
        key = _key(next(_NUMBERS))
        with ranks.linked():
            while not ranks.store.check([key]):
                time.sleep(POLL_S)
            end = json.loads(ranks.store.get(key))
            if end:
                ranks.store.add(f"{key} read", 1)
        if not end:
            packed = ranks.shared(None)
            with ranks.together():
                order = pickle.loads(packed)
            yield order
        elif end["interrupted"]:
            raise Interrupted(end["reason"])
        elif end["reason"] is not None:
            raise UserError(f"on rank 0: {end['reason']}")
        else:
            return


@contextlib.contextmanager
def leading(ranks: Ranks) -> Iterator[None]:
    """Rank 0, around everything: however it ends, the others are told and end the same way."""
    if ranks.alone:
        yield
        return
    end = {"reason": None, "interrupted": False}
    try:
        yield
    except BaseException as error:
        end = {"reason": str(error) or type(error).__name__, "interrupted": isinstance(error, Interrupted)}
        raise
    finally:
        key = _key(next(_NUMBERS))
        with contextlib.suppress(RuntimeError):  # whoever is gone need not be told
            ranks.store.set(key, json.dumps(end))
            until_s = time.monotonic() + PARTING_S
            while ranks.store.add(f"{key} read", 0) < ranks.world - 1 and time.monotonic() < until_s:
                time.sleep(POLL_S)


def _key(number: int) -> str:
    return f"singer-bench order {number}"
