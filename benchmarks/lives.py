"""A real training that is ended and started again: toy models, images in files, one process a life. Used by faults.py.

Processes are forked, so that torch is imported once; each tells what it has done through a pipe, and is signalled at a
moment that somebody has drawn. What a training gives is compared with what one gives that nobody disturbed.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from harness.config import Experiment, parse
from harness.errors import UserError
from harness.interrupts import Interrupted
from harness.job import Job
from harness.progress import Bar, Console
from harness.records import read_records
from harness.runs import Workspace, student_runs
from harness.storage.integrity import generations, sealed

STEPS, IMAGES, SIZE = 40, 40, 32
EXPERIMENT: dict[str, Any] = {
    "name": "faults",
    "teacher": {"width": 48, "depth": 3, "heads": 4, "patch": 8},
    "student": {"width": 32, "depth": 3, "heads": 2, "patch": 8},
    "training": {"steps": STEPS, "batch_size": 8, "lr": 1e-3, "warmup_epochs": 0.5},
    "methods": ["none", "fitnet"],
    "tasks": ["artifacts"],
    "bounds": False,
}
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
ASKED = 130  # the code of a process that stopped because it was asked to, and saved
Moment = Callable[[], object]


def images(root: Path) -> Path:
    """Noise, as files in class folders."""
    draws = np.random.default_rng(0)
    for number in range(2 * IMAGES):
        path = root / ("train" if number < IMAGES else "test") / f"class{number % 4}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draws.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)).save(path)
    return root


def experiment(root: Path, **runtime: Any) -> Experiment:
    """The training on the images of `root`."""
    raw = copy.deepcopy(EXPERIMENT)
    raw["data"] = {"source": "folder", "name": "noise", "root": str(root), "image_size": SIZE}
    raw["runtime"] = {"num_workers": 0, "log_steps": 2, "device": "cpu", **runtime}
    return parse(raw)


@dataclasses.dataclass(frozen=True)
class Event:
    """What a process tells: it goes on at a step ("begin"), has done one ("step"), or does something else ("other")."""

    at_s: float
    kind: str
    step: int


@dataclasses.dataclass
class Life:
    """One process, from its start to its end.

    Attributes:
        events: in their order. ended_s: when it was signalled, or had ended. code: as subprocess has it.
    """

    events: list[Event] = dataclasses.field(default_factory=list)
    ended_s: float = 0.0
    code: int = 0

    def reached(self) -> list[Event]:
        return [event for event in self.events if event.kind != "other"]


class Telling(Console):
    """Writes events into a pipe, and calls `then` at the one of a number."""

    def __init__(self, pipe: int, number: int, then: Moment) -> None:
        super().__init__(quiet=True)
        self.pipe, self.left, self.then = pipe, number, then

    def bar(self, title: str, total: int, start: int = 0) -> Bar:
        bar, training = super().bar(title, total, start), title.startswith("training")
        self._tell("begin" if training else "other", start)
        bar.update = lambda step: self._tell("step" if training else "other", step)  # type: ignore[method-assign]
        return bar

    def _tell(self, kind: str, step: int) -> None:
        os.write(self.pipe, f"{time.monotonic()} {kind} {step}\n".encode())
        self.left -= 1
        if self.left == 0:
            self.then()


class Trial:
    """One workspace from its first life to its results.

    Attributes:
        truth: what a training gives that nobody disturbed, see `results`. lives: so far.
    """

    def __init__(self, made: Experiment, workspace: Path, truth: dict[str, str]) -> None:
        self.made, self.workspace, self.truth = made, workspace, truth
        self.lives: list[Life] = []

    def live(
        self, number: int = -1, signalled: signal.Signals | None = None, delay_s: float = 0.0, then: Moment = int
    ) -> Life:
        """Start a process and wait for its end.

        Args:
            number: of the event at which it calls `then` and gets the signal `delay_s` later; 0: its start.
        """
        read, write = os.pipe()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the child may not take it for ours
        child = os.fork()
        if child == 0:
            os._exit(_work(self.made, self.workspace, Telling(write, number, then)))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        os.close(write)
        life = Life()

        def strike() -> None:
            time.sleep(delay_s)
            life.ended_s = time.monotonic()
            os.kill(child, signalled or 0)

        if number == 0:
            strike()
        with open(read, encoding="ascii") as lines:
            for line in iter(lines.readline, ""):
                at_s, kind, step = line.split()
                life.events.append(Event(float(at_s), kind, int(step)))
                if len(life.events) == number and signalled is not None:
                    strike()
        life.code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        life.ended_s = life.ended_s or time.monotonic()
        self.lives.append(life)
        return life

    def torture(self, draws: random.Random, kinds: Sequence[signal.Signals], reach: int) -> Iterator[Life]:
        """Signal it at random moments until it has come to its end all the same: every life that was ended.

        Args:
            reach: a life sees at most so many events.
        """
        while True:
            number = draws.randint(0, reach)
            life = self.live(number, draws.choice(list(kinds)), draws.uniform(0, 0.05 if number else 0.5))
            if life.code == 0:
                return
            if life.code not in (ASKED, *(-kind for kind in kinds)):
                raise SystemExit(f"the training ended with code {life.code}, which no signal explains")
            yield life

    def again(self) -> tuple[int, float]:
        """Steps and seconds of work that the fault which ended the last life has cost."""
        done = max((event.step for event in self.lives[-1].reached()), default=0)
        kept = self._kept()
        if kept is None or kept >= done:
            return 0, 0.0
        reached = [event for life in self.lives for event in life.reached() if event.step == kept]
        return done - kept, self.lives[-1].ended_s - reached[-1].at_s

    def _kept(self) -> int | None:
        """The step that the next life goes on at; None where the training is over."""
        if len(list((self.workspace / "students").glob("*/run.yaml"))) == len(self.truth):
            return None
        for path in self.workspace.glob("groups/*/group.json"):
            for one in generations(path.with_name("checkpoint.pt")):
                if sealed(one):
                    return torch.load(one, weights_only=True)["step"]
        return 0

    def lost(self) -> int:
        """Runs that have not come to what they come to when nobody disturbs them."""
        found = results(self.made, self.workspace)
        return sum(found.get(title) != digest for title, digest in self.truth.items())


def _work(made: Experiment, workspace: Path, console: Console) -> int:
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        outcome = Job(made, Workspace(workspace), console).run()
    except (Interrupted, KeyboardInterrupt):
        return ASKED
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BaseException:
        traceback.print_exc()
        return 3
    return 1 if outcome.failed else 0


def results(made: Experiment, workspace: Path) -> dict[str, str]:
    """Title of each run -> hash of its student, its log and what was measured; none for a run without a student."""
    records, _ = read_records(workspace / "records")
    found = {}
    for run in student_runs(made):
        folder = Workspace(workspace).student(run.id)
        if folder.is_dir():
            digest = hashlib.sha256()
            for name in ("config.json", "model.safetensors", "method.safetensors", "train.jsonl"):
                digest.update((folder / name).read_bytes())
            measured = [[r.task_id, r.values, r.details] for r in records if r.run.id == run.id]
            digest.update(json.dumps(measured, sort_keys=True).encode())
            found[run.title] = digest.hexdigest()
    return found
