"""Watch a workspace until nothing is left to do: redrawn on a terminal, elsewhere a line for what has changed."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

from harness.monitoring.status import Status, status
from harness.monitoring.status_text import described
from harness.runs import Workspace


def watch(workspace: Workspace, every_s: float, everything: bool = False) -> bool:
    """Whether all went well. Raises UserError where there is nothing to watch; KeyboardInterrupt passes."""
    show = _drawn if sys.stdout.isatty() else _told
    last = show(_looks(workspace, every_s), everything)
    return not last.bad


def _looks(workspace: Workspace, every_s: float) -> Iterator[Status]:
    """One now and then, the last one when all has ended."""
    while True:
        found = status(workspace)
        yield found
        if found.ended:
            return
        time.sleep(every_s)


def _told(looks: Iterator[Status], everything: bool) -> Status:
    """Lines that were not there before, without what changes all the time."""
    before: set[str] = set()
    for found in looks:
        lines = described(found, everything, moving=False)
        for line in lines:
            if line not in before:
                print(line, flush=True)
        before = set(lines)
    return found


def _drawn(looks: Iterator[Status], everything: bool) -> Status:
    from rich.live import Live
    from rich.text import Text

    with Live(auto_refresh=False) as live:
        for found in looks:
            live.update(Text("\n".join(described(found, everything))), refresh=True)
    return found
