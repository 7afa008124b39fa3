"""What a training logs and what is measured afterwards, shown by the loggers that `runtime.log` names. No torch.

It takes what train.jsonl gets, when train.jsonl gets it: nothing is computed, read from a GPU or drawn for it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import UserError
from harness.live.logger import Logger, Outcome, Shown
from harness.live.mlflow import MLflow
from harness.live.sending import Sender
from harness.live.tensorboard import TensorBoard
from harness.live.wandb import WandB

if TYPE_CHECKING:
    from harness.config import Experiment
    from harness.runs import Run
    from harness.training.train import Group

LOGGERS: dict[str, type[Logger]] = {kind.name: kind for kind in (TensorBoard, WandB, MLflow)}
BY_DEFAULT = TensorBoard
WAIT_S = 30.0  # at the end of a job, for what a server has not taken yet


class Live:
    """Shows the runs of one experiment. Used by one thread."""

    def __init__(
        self, experiment: Experiment, folder: Path, say: Callable[[str], None] = print, active: bool = True
    ) -> None:
        """
        Args:
            folder: `live` of the workspace. say: hears of a logger that fails. active: False for ranks but the first.

        Raises:
            UserError: a logger that `runtime.log` names is not installed, or cannot be used as it is set up.
        """
        self.folder, self.project = folder, experiment.name
        self.senders = [Sender(kind, say) for kind in _prepared(experiment.runtime.log, say)] if active else []
        self._measured: str | None = None  # the run whose metrics came last

    @contextlib.contextmanager
    def training(self, runs: Sequence[Run], group: Group) -> Iterator[None]:
        """While it lasts, whatever the group logs of its members, which are these runs, is shown."""
        if not self.senders:
            yield
            return
        self._end_measured()
        for run in runs:
            self._start(run, group.step)
        speed = _Speed(group.step, group.training.batch_size)

        def logged(run_id: str, line: Mapping[str, float]) -> None:
            step = int(line["step"])
            values = {f"train/{key}": value for key, value in {**line, **speed.at(step)}.items() if key != "step"}
            for sender in self.senders:
                sender.scalars(run_id, step, values, training=True)

        group.logged = logged
        try:
            yield
        finally:
            for member in group.members:
                over: Outcome = "finished" if group.step == group.steps else "stopped"
                for sender in self.senders:
                    sender.finish(member.id, over if member.failure is None else "failed")

    def measured(self, run: Run, column: str, values: Mapping[str, float], steps: int) -> None:
        """Metrics of one task. steps: of the run's training, all of them; 0 for what was not trained."""
        if run.id != self._measured:
            self._end_measured()
            self._start(run, None)
            self._measured = run.id
        for sender in self.senders:
            sender.scalars(run.id, steps, {f"{column}/{name}": v for name, v in values.items()}, training=False)

    def close(self) -> None:
        """No more comes for now; what is on its way is waited for, `WAIT_S` a logger at most."""
        self._end_measured()
        for sender in self.senders:
            sender.close(WAIT_S)

    def _start(self, run: Run, step: int | None) -> None:
        for sender in self.senders:
            folder = self.folder / sender.kind.name
            sender.start(Shown(run.id, run.title, self.project, _settings(run), folder, step))

    def _end_measured(self) -> None:
        if self._measured is not None:
            for sender in self.senders:
                sender.finish(self._measured, "finished")
            self._measured = None


def _prepared(asked: Sequence[str] | None, say: Callable[[str], None]) -> list[type[Logger]]:
    """The loggers that are asked for, ready; or the default one where it is installed."""
    if asked is None:
        try:
            BY_DEFAULT.prepare()
        except ModuleNotFoundError as absent:
            if absent.name != BY_DEFAULT.package:
                say(f"{BY_DEFAULT.name} is installed and cannot be used: {absent}")
            return []
        except Exception as broken:
            say(f"{BY_DEFAULT.name} is installed and cannot be used: {broken}")
            return []
        return [BY_DEFAULT]
    found = [LOGGERS[name] for name in dict.fromkeys(asked)]
    for kind in found:
        try:
            kind.prepare()
        except ImportError as error:
            raise UserError(
                f"runtime.log asks for {kind.name}, which cannot be imported ({error}); install the package "
                f"{kind.package}, or leave it out"
            ) from error
    return found


def _settings(run: Run) -> dict[str, Any]:
    """What decides a run, for people: plain values."""
    said = run.info.model_dump(mode="json", exclude={"spec", "condition", "trials"})
    return {**said, "training": run.spec["training"]} if "training" in run.spec else said


class _Speed:
    """How fast steps are between two lines of a log, by the clock on the wall."""

    def __init__(self, step: int, batch_size: int) -> None:
        self.batch_size, self.said = batch_size, {}
        self.mark, self.step = time.monotonic(), step

    def at(self, step: int) -> dict[str, float]:
        """The same for every member of a group that has logged this step."""
        now = time.monotonic()
        if step > self.step and now > self.mark:
            each_s = (now - self.mark) / (step - self.step)
            self.said = {"step_s": each_s, "images_per_s": self.batch_size / each_s}
            self.mark, self.step = now, step
        return self.said
