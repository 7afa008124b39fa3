"""Jobs that do what they are told in a moment, without torch, for the tests of the queue.

`resources["what"]` says what: "end", "hold" (until the file LET/<unit id> is there, or a signal asks to stop),
"ignore" (the same, deaf to SIGTERM), "raise", "die" (killed at once), "lose" (one of two ranks is killed).
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from harness.dispatch.ledger import End, Entry, Ledger, Unit, now
from harness.runs import Workspace


@dataclass(frozen=True)
class FakeWork:
    root: str
    unit: Unit
    attempt: int
    what: str

    @classmethod
    def of(cls, workspace: Workspace, entry: Entry) -> FakeWork:
        return cls(str(workspace.root.resolve()), entry.unit, entry.attempt, entry.resources["what"])

    def __call__(self) -> None:
        self.ledger.begin(self.unit.id, self.attempt)
        signal.signal(signal.SIGTERM, signal.SIG_IGN if self.what == "ignore" else self._stop)
        seen = " ".join(f"{name}={os.environ.get(name)}" for name in ("CUDA_VISIBLE_DEVICES", "MINE"))
        self._note(f"begin {os.getpid()} {seen}")
        if self.what == "raise":
            raise ValueError("the data are gone")
        if self.what == "lose":
            self._lose_a_rank()
        if self.what == "die":
            print("about to be killed", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        while self.what in ("hold", "ignore") and not Path(self.root, "let", self.unit.id).exists():
            time.sleep(0.02)
        if self.unit.kind != "evaluate":
            for run in self.unit.runs:
                Path(self.root, "students", run).mkdir(parents=True)
        self._note("end")
        self.ledger.write_end(self.unit.id, self.attempt, End("done", now()))

    def _lose_a_rank(self) -> None:
        gone = Path(self.root, "gone")
        if os.environ["SUBMITIT_LOCAL_GLOBALID"] == "1":
            gone.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        while not gone.exists():
            time.sleep(0.02)
        raise RuntimeError("another rank is gone")

    def checkpoint(self):
        from submitit.helpers import DelayedSubmission

        self._note("requeued")
        return DelayedSubmission(self)

    def _stop(self, *_: object) -> None:
        self._note("saved")
        self.ledger.write_end(self.unit.id, self.attempt, End("stopped", now(), "stopped by SIGTERM"))
        raise SystemExit(143)

    @property
    def ledger(self) -> Ledger:
        return Ledger(Workspace(self.root))

    def _note(self, text: str) -> None:
        with open(Path(self.root, "notes"), "a") as file:
            file.write(f"{self.unit.id} {text}\n")
