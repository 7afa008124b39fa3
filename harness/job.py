"""An experiment from start to records, on this machine: build, train group by group, evaluate, write.

Whatever is finished is never done again; whatever is interrupted goes on where it was.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from harness import checkpoint, integrity, models, students, train
from harness.api import Method, Vit
from harness.builder import Builder
from harness.config import Experiment, Training
from harness.data import Augment, batch_indices, batches, steps_an_epoch
from harness.disk import in_words
from harness.environment import device_of, environment
from harness.errors import UserError
from harness.evaluation import Evaluation
from harness.interrupts import Interrupted, Stop
from harness.locks import Lock, holder
from harness.progress import Console
from harness.records import Cost, write_atomic
from harness.registry import load_plugin
from harness.runs import Group, Run, Workspace, bound_runs, fit_runs, groups, student_runs


@dataclasses.dataclass
class Outcome:
    """What one call did: ids of students trained, records written, and runs that failed with their reasons."""

    trained: list[str] = dataclasses.field(default_factory=list)
    evaluated: int = 0
    failed: dict[str, str] = dataclasses.field(default_factory=dict)


class Job:
    """One experiment in one workspace."""

    def __init__(self, experiment: Experiment, workspace: Workspace, console: Console | None = None) -> None:
        self.experiment, self.workspace, self.console = experiment, workspace, console or Console()
        for plugin in experiment.plugins:
            load_plugin(plugin)
        self.device = device_of(experiment)
        self.environment = environment(self.device)
        self.builder = Builder(experiment, workspace, self.device, self._fit)
        self.evaluation = Evaluation(self.builder, self.console, self.environment)
        self.outcome = Outcome()
        self.stop = Stop()
        self._said: set[str] = set()

    def run(self, train: Collection[str] | None = None, evaluate: Collection[str] | None = None) -> Outcome:
        """Train and evaluate whatever is pending. Raises Interrupted when a signal asked to stop.

        Args:
            train, evaluate: ids of the runs that this call may train and evaluate; None: all of the experiment.
        """
        runs = [run for run in student_runs(self.experiment) if train is None or run.id in train]
        everyone = bound_runs(self.experiment) + student_runs(self.experiment)
        encoders = [run for run in everyone if evaluate is None or run.id in evaluate]
        with self.stop, in_words(self.workspace.root):
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
        with self.stop, in_words(self.workspace.root):
            self.builder.same_as_before(self.builder.data, "train")
            for run in fit_runs(self.experiment):
                if run.id in ids:
                    self._fit(run)

    def _train_pending(self, runs: Sequence[Run]) -> bool:
        """Train every group that is free; True where others are still at work on some."""
        busy = False
        for group in groups(runs, self.workspace, self.experiment.runtime.max_group):
            path = self.workspace.locks / f"train-{group.id}.lock"
            with Lock(path) as lock:
                if not lock.acquire():
                    busy = True
                    if group.id not in self._said:
                        self._said.add(group.id)
                        self.console.say(f"waiting for {holder(path)}, which trains {_names(group.runs)}")
                    continue
                # Somebody may have finished it between the plan and the lock.
                left = tuple(r for r in group.runs if not self.workspace.is_trained(r))
                if left:
                    self._train_group(Group(left), group)
        return busy

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

    def _train_group(self, group: Group, planned: Group) -> None:
        training = train_settings(group)
        teacher = self.builder.teacher(group.runs[0].teacher)
        members = [self._member(run, teacher) for run in group.runs]
        an_epoch = steps_an_epoch(len(self.builder.source), training.batch_size)
        steps = training.steps_of(an_epoch)
        runtime = self.experiment.runtime
        trained = train.Group(members, teacher, training, steps, an_epoch, self.device, runtime.log_steps)
        try:
            path = self._resume(planned, trained)
        except checkpoint.Lost as lost:
            self._lose(group, str(lost))
            return
        titles = f"training {len(members)} students ({_names(group.runs)})"

        def save() -> None:
            for member in members:
                integrity.sync(member.folder / "train.jsonl")  # its lines up to this step will not be written again
            checkpoint.save(path, trained.state())

        self.stop.saving = True
        with self.console.bar(titles, steps, trained.step) as bar:
            finished = train.run(
                trained,
                saved_first(self._stream(training, group.runs[0].info.seed, steps, trained.step), save),
                save=save,
                save_steps=runtime.checkpoint_steps,
                save_minutes=runtime.checkpoint_minutes,
                stop=self.stop,
                progress=bar.update,
            )
        self.stop.saving = False
        if not finished:
            raise Interrupted(signal.Signals(self.stop.asked or signal.SIGTERM).name)
        for run, member in zip(group.runs, members, strict=True):
            self._finish(run, member, trained)
        self._clear_groups()
        if self.stop():
            raise Interrupted(signal.Signals(self.stop.asked or signal.SIGTERM).name)

    def _member(self, run: Run, teacher: Vit) -> train.Member:
        student = self.builder.student(run)
        folder = self.workspace.partial(run.id)
        folder.mkdir(parents=True, exist_ok=True)
        return train.Member(run.id, run.info.seed, student, self.builder.method(run, student, teacher), folder)

    def _resume(self, planned: Group, trained: train.Group) -> Path:
        """Where the group's checkpoint goes; one that holds all its members is loaded where there is one.

        Raises:
            checkpoint.Lost: there is one, and it is damaged.
        """
        path = self.workspace.checkpoint(planned.id)
        ids = {member.id for member in trained.members}
        candidates = []
        for group, known in self.workspace.run_ids().items():
            if ids <= set(known) and integrity.generations(self.workspace.checkpoint(group)):
                candidates.append((len(known), self.workspace.checkpoint(group)))
        write_atomic(path.with_name("group.json"), json.dumps({"runs": sorted(ids)}))
        if candidates:
            # A larger group's checkpoint is read but never written: it still holds the others.
            trained.load_state(self._first_whole([candidate for _, candidate in sorted(candidates)]))
            self.console.say(f"going on at step {trained.step} of {trained.steps}")
        else:
            for member in trained.members:
                (member.folder / "train.jsonl").unlink(missing_ok=True)
        return path

    def _first_whole(self, paths: Sequence[Path]) -> dict[str, Any]:
        lost = []
        for path in paths:
            try:
                return checkpoint.load(path, self.console.say)
            except checkpoint.Lost as error:
                lost.append(str(error))
        raise checkpoint.Lost("; ".join(lost))

    def _lose(self, group: Group, reason: str) -> None:
        """A group that cannot go on where it was: it is not trained from its beginning until somebody asks for that."""
        for run in group.runs:
            self.workspace.fail(run, reason=reason, step=students.logged_step(self.workspace.partial(run.id)))
            self.console.say(f"{run.title} cannot go on: {reason}; --retry-failed trains it from its beginning")

    def _clear_groups(self) -> None:
        """Remove the checkpoints that nobody needs any more; damaged ones stay until their runs have students."""
        for group, ids in self.workspace.run_ids().items():
            folder = self.workspace.groups / group
            missing = [i for i in ids if not self.workspace.student(i).is_dir()]
            waiting = any(self.workspace.failure(i) is None for i in missing)
            if not waiting and not (missing and integrity.damaged(folder)):
                shutil.rmtree(folder, ignore_errors=True)

    def _stream(self, training: Training, seed: int, steps: int, start: int) -> Iterator[Any]:
        spec = self.experiment.data.augment
        augment = None if spec is None else Augment(spec.scale, spec.ratio, spec.flip)
        return batches(
            self.builder.source,
            self.builder.data,
            augment,
            batch_size=training.batch_size,
            steps=steps,
            seed=seed,
            start=start,
            num_workers=self.experiment.runtime.num_workers,
            device=self.device,
        )

    def _finish(self, run: Run, member: train.Member, group: train.Group) -> None:
        """A member's student as a folder that timm loads, or its failure as a file."""
        if member.failure is not None:
            batch_size, step = group.training.batch_size, member.failure["step"]
            indices = batch_indices(len(self.builder.source), batch_size, run.info.seed, step)
            self.workspace.fail(run, **member.failure, batch=indices)
            self.console.say(f"{run.title} failed at step {step}: {member.failure['reason']}")
            return
        final = self.workspace.student(run.id)
        if final.is_dir():
            return  # another process was quicker; the bits are the same
        folder = member.folder
        fresh = self.builder.student(run)
        moved = not torch.equal(_head(fresh), _head(member.student))
        member.student.model.eval()
        models.export(member.student, folder, {"run": run.id, "method": run.info.method, "seed": run.info.seed})
        save_method(member.method, folder / "method.safetensors")
        seconds = group.clock.totals()
        cost = Cost(
            steps=group.steps,
            images_seen=group.steps * group.training.batch_size - group.skipped,
            teacher_s=seconds.get("teacher", 0.0),
            own_s=seconds.get(member.id, 0.0),
            group_size=len(group.members),
            peak_memory_gb=group.peak_memory_gb,
            student_parameters=sum(p.numel() for p in member.student.model.parameters()),
            method_parameters=sum(p.numel() for p in member.method.parameters()),
        )
        described = {
            "info": run.info.model_dump(mode="json"),
            "cost": cost.model_dump(mode="json"),
            "head_trained": moved,
            "report": member.method.report(),
            "skipped_images": group.skipped,
            "environment": self.environment,
        }
        found = self.builder.teacher_report(run.teacher)
        if found is not None:
            described["teacher"] = found
        students.describe(folder, described)
        os.rename(folder, final)
        integrity.sync_folder(final.parent)
        self.outcome.trained.append(run.id)


def saved_first(stream: Iterator[Any], save: Callable[[], None]) -> Iterator[Any]:
    """The stream; where there is no more of it because something failed, what was trained so far is saved first."""
    try:
        yield from stream
    except Exception:
        save()
        raise


def save_method(method: Method, path: Path) -> None:
    """The method's own state, less what only training needs."""
    state = {
        key: value.detach().cpu().contiguous().clone()
        for key, value in method.state_dict().items()
        if key.split(".")[0] not in method.training_only
    }
    safetensors.torch.save_file(state, str(path))


def train_settings(group: Group) -> Training:
    """The training settings that a group's runs agree on (they are part of each run's identity)."""
    return Training.model_validate(group.runs[0].spec["training"])


def _head(vit: models.TimmVit) -> torch.Tensor:
    parts = [p.detach().flatten().cpu() for k, p in vit.model.named_parameters() if k.startswith("head")]
    return torch.cat(parts) if parts else torch.empty(0)


def _names(runs: Sequence[Run]) -> str:
    labels = list(dict.fromkeys(run.info.label for run in runs))
    return f"{', '.join(labels)}; seed {runs[0].info.seed}"
