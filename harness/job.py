"""An experiment from start to records, on this machine: build, train group by group, evaluate, write.

Whatever is finished is never done again; whatever is interrupted goes on where it was. With several ranks, rank 0 does
all that and calls the others to train and to encode with it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Collection, Iterator, Sequence

from harness.config import Experiment
from harness.environment import device_of, environment
from harness.errors import UserError
from harness.evaluation import Evaluation
from harness.interrupts import Interrupted, Stop
from harness.live.live import Live
from harness.progress import Console
from harness.registry import load_plugin
from harness.runs import Group, Run, Workspace, bound_runs, fit_runs, groups, student_runs
from harness.storage.disk import in_words
from harness.storage.locks import Lock, holder
from harness.training import orders
from harness.training.builder import Builder
from harness.training.distributed import ONE, Ranks
from harness.training.fitting import measure
from harness.training.group_training import GroupTraining, TrainOrder, named, train_settings
from harness.training.precision import tf32

__all__ = ["Interrupted", "Job", "Outcome"]

VISIBLE_S = 300.0  # a network file system may show a new folder to other machines only after a minute


@dataclasses.dataclass
class Outcome:
    """What one call did: ids of students trained, records written, and runs that failed with their reasons."""

    trained: list[str] = dataclasses.field(default_factory=list)
    evaluated: int = 0
    failed: dict[str, str] = dataclasses.field(default_factory=dict)


class Job:
    """One experiment in one workspace."""

    def __init__(
        self, experiment: Experiment, workspace: Workspace, console: Console | None = None, ranks: Ranks = ONE
    ) -> None:
        """
        Args:
            ranks: what `harness.training.distributed.joined` gave in each of the processes that do this together; each
                of them makes its own Job and calls the same methods.
        """
        self.experiment, self.workspace, self.ranks = experiment, workspace, ranks
        self.console = (console or Console()) if ranks.first else Console(quiet=True)
        for plugin in experiment.plugins:
            load_plugin(plugin)
        self.device = device_of(experiment)
        self.environment = environment(self.device)
        if not ranks.alone:
            self.environment["ranks"] = ranks.world
        self.builder = Builder(experiment, workspace, self.device, self._fit if ranks.first else self._await)
        self.live = Live(experiment, workspace.live, self.console.say, ranks.first)
        self.evaluation = Evaluation(self.builder, self.console, self.environment, self.live, ranks)
        self.outcome = Outcome()
        self.stop = Stop()
        self.training = GroupTraining(self.builder, self.console, self.environment, self.stop, ranks, self.live)
        self._said: set[str] = set()

    def run(self, train: Collection[str] | None = None, evaluate: Collection[str] | None = None) -> Outcome:
        """Train and evaluate whatever is pending. Raises Interrupted when a signal asked to stop.

        Args:
            train, evaluate: ids of the runs that this call may train and evaluate; None: all of the experiment.

        Returns:
            What was done. Ranks other than the first know nothing of it.
        """
        if not self.ranks.first:
            return self._follow()
        runs = [run for run in student_runs(self.experiment) if train is None or run.id in train]
        everyone = bound_runs(self.experiment) + student_runs(self.experiment)
        encoders = [run for run in everyone if evaluate is None or run.id in evaluate]
        with self._leading():
            self.builder.same_as_before(self.builder.data, "train")
            if groups(runs, self.workspace, self.experiment.runtime.max_group):
                self.evaluation.preflight(encoders)
                self.builder.preflight(runs)
            while self._train_pending(runs) | self.evaluation.pending(encoders):
                time.sleep(5)  # another process is at work on the rest
        self.outcome.evaluated = self.evaluation.written
        for run in {run.id: run for run in [*runs, *encoders]}.values():
            failure = self.workspace.failure(run.id)
            if failure is not None:
                self.outcome.failed[run.title] = f"{failure['reason']} (step {failure['step']})"
        return self.outcome

    def fit(self, ids: Collection[str]) -> None:
        """Train teachers' own runs that are not there yet. Raises UserError where one fails; Interrupted as `run`."""
        if not self.ranks.first:
            self._follow()
            return
        with self._leading():
            self.builder.same_as_before(self.builder.data, "train")
            for run in fit_runs(self.experiment):
                if run.id in ids:
                    self._fit(run)

    @contextlib.contextmanager
    def _leading(self) -> Iterator[None]:
        with (
            self.stop,
            in_words(self.workspace.root),
            tf32(False),
            orders.leading(self.ranks),
            contextlib.closing(self.live),
        ):
            yield

    def _follow(self) -> Outcome:
        """Do what rank 0 says until it has ended."""
        everyone = [*fit_runs(self.experiment), *bound_runs(self.experiment), *student_runs(self.experiment)]
        runs = {run.id: run for run in everyone}
        with self.stop, in_words(self.workspace.root), tf32(False):
            for order in orders.told(self.ranks):
                if isinstance(order, TrainOrder):
                    self.training.train(Group(tuple(runs[i] for i in order.runs)), order.planned)
                else:
                    self.evaluation.follow(order, runs[order.run])
        return self.outcome

    def _train_pending(self, runs: Sequence[Run]) -> bool:
        """Train every group that is free; True where others are still at work on some."""
        busy, max_group = False, self.experiment.runtime.max_group
        if max_group == "auto" and self.ranks.alone:
            measure(self.builder, runs, self.console)
        for group in groups(runs, self.workspace, max_group):
            path = self.workspace.locks / f"train-{group.id}.lock"
            with Lock(path) as lock:
                if not lock.acquire():
                    busy = True
                    if group.id not in self._said:
                        self._said.add(group.id)
                        self.console.say(f"waiting for {holder(path)}, which trains {named(group.runs)}")
                    continue
                # Somebody may have finished it between the plan and the lock.
                left = tuple(r for r in group.runs if not self.workspace.is_trained(r))
                if left and not self._train_group(Group(left), group.id):
                    break
        else:
            return busy
        return self._train_pending(runs)  # planned anew, in smaller groups

    def _train_group(self, group: Group, planned: str) -> bool:
        """Whether it fitted into the device's memory."""
        self.ranks.part(train_settings(group).batch_size)
        self.builder.teacher(group.runs[0].teacher)  # it may have to be trained first, by all ranks too
        orders.tell(self.ranks, TrainOrder(tuple(run.id for run in group.runs), planned))
        new = self.training.train(group, planned)
        self.outcome.trained += new or []
        return new is not None

    def _fit(self, run: Run) -> None:
        """Train a teacher's own run, unless it is there already."""
        if not self.workspace.is_trained(run):
            self.console.say(f"training the teacher ({run.info.student}) first; it is kept in the workspace")
        while not self.workspace.is_trained(run):
            failure = self.workspace.failure(run.id)
            if failure is not None:
                raise UserError(f"the teacher's own training failed: {failure['reason']}")
            if self._train_pending([run]):
                time.sleep(5)

    def _await(self, run: Run) -> None:
        """Ranks other than the first: rank 0 has trained a teacher; its student may take a while to be seen here."""
        until_s = time.monotonic() + VISIBLE_S
        while not self.workspace.is_trained(run):
            if time.monotonic() > until_s:
                raise UserError(f"rank 0 has trained a teacher that this machine does not see: {run.id}")
            time.sleep(0.2)
