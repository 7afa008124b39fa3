"""A group's training in a workspace: built, resumed, saved, and its students left where others find them.

With several ranks all of them build and train; rank 0 alone reads and writes the workspace, and the others begin with
the state that it has.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from harness import models, students
from harness.api import Method, Vit
from harness.config import Training
from harness.data import Augment, batch_indices, batches, steps_an_epoch
from harness.errors import UserError
from harness.interrupts import Interrupted, Stop
from harness.live.live import Live
from harness.monitoring.pace import Pace
from harness.progress import Console
from harness.records import Cost, write_atomic
from harness.runs import Group, Run
from harness.storage import integrity
from harness.training import checkpoint, train
from harness.training.builder import Builder
from harness.training.distributed import RankLost, Ranks
from harness.training.joint import agreed_batches, elsewhere, in_words
from harness.training.memory import give_back, halve


@dataclasses.dataclass(frozen=True)
class TrainOrder:
    """What rank 0 tells the others: train these runs together, which were planned as group `planned`."""

    runs: tuple[str, ...]
    planned: str


class GroupTraining:
    """Trains the groups of one experiment."""

    def __init__(
        self, builder: Builder, console: Console, environment: dict[str, Any], stop: Stop, ranks: Ranks, live: Live
    ) -> None:
        self.builder, self.console, self.environment, self.stop, self.ranks = builder, console, environment, stop, ranks
        self.live = live
        self.experiment, self.workspace, self.device = builder.experiment, builder.workspace, builder.device

    def train(self, group: Group, planned: str) -> list[str] | None:
        """Train to the end, on all ranks at the same time; the ids of new students, which rank 0 has written.

        None where the group is too large for the device's memory. That is noted then, and what is planned anew are
        smaller groups, which go on from this one's last checkpoint.

        Args:
            planned: the group's id in the plan, of which some may have been finished since.

        Raises:
            Interrupted: a signal asked to stop, and all is saved.
        """
        try:
            return self._train(group, planned)
        except torch.OutOfMemoryError as error:
            reason = str(error).split("\n")[0]
        self.stop.saving = False
        give_back(self.device)  # not before: the error held the whole group
        if self.ranks.first:
            halve(self.workspace, group, reason, self.console.say)
        self._agree_on_stop()
        if self.stop():
            raise self._interrupted()
        return None

    def _train(self, group: Group, planned: str) -> list[str]:
        training, runtime = train_settings(group), self.experiment.runtime
        with self.ranks.together(in_words, elsewhere(UserError)):
            teacher = self.builder.teacher(group.runs[0].teacher)
            members = [self._member(run, teacher) for run in group.runs]
            an_epoch = steps_an_epoch(len(self.builder.source), training.batch_size)
            steps = training.steps_of(an_epoch)
            trained = train.Group(
                members,
                teacher,
                training,
                steps,
                an_epoch,
                self.device,
                runtime.log_steps,
                self.ranks,
                self.console.say,
            )
            path = self._begin(group, planned, trained) if self.ranks.first else None
        if not self._as_rank_0(trained, path is not None):
            return []

        def save() -> None:
            with self.ranks.together():
                if path is not None:
                    self._save(path, trained)

        titles = f"training {len(members)} students ({named(group.runs)})"
        pace = Pace(None if path is None else path.parent, steps, training.batch_size, self.device)
        self.stop.saving = True
        with self.live.training(group.runs, trained), self.console.bar(titles, steps, trained.step) as bar:
            finished = train.run(
                trained,
                saved_first(self._stream(training, group.runs[0].info.seed, trained), save),
                save=save,
                save_steps=runtime.checkpoint_steps,
                save_minutes=runtime.checkpoint_minutes,
                stop=self.stop,
                progress=pace.beside(bar.update),
            )
        self.stop.saving = False
        self._agree_on_stop()
        new = []
        if finished and self.ranks.first:
            new = [
                run.id for run, member in zip(group.runs, members, strict=True) if self._finish(run, member, trained)
            ]
            self._clear_groups()
        if not finished or self.stop():
            raise self._interrupted()
        return new

    def _begin(self, group: Group, planned: str, trained: train.Group) -> Path | None:
        """Where checkpoints go, the last one loaded; None where it was there and is lost."""
        try:
            return self._resume(planned, trained)
        except checkpoint.Lost as lost:
            self._lose(group, str(lost))
            return None

    def _as_rank_0(self, trained: train.Group, begun: bool) -> bool:
        """Bring all ranks to the state of rank 0's training; whether it has begun there."""
        if self.ranks.alone:
            return begun
        state = self.ranks.shared(trained.state() if begun else None)
        if state is not None and not self.ranks.first:
            trained.load_state(state)
        return state is not None

    def _agree_on_stop(self) -> None:
        """A signal to one rank is one to all, and SIGUSR2 among them the one that says what follows."""
        asked = [number for number in self.ranks.of_each(self.stop.asked or 0) if number]
        if asked:
            self.stop.asked = signal.SIGUSR2 if signal.SIGUSR2 in asked else asked[0]

    def _interrupted(self) -> Interrupted:
        return Interrupted(signal.Signals(self.stop.asked or signal.SIGTERM).name)

    def _save(self, path: Path, trained: train.Group) -> None:
        for member in trained.members:
            integrity.sync(member.folder / "train.jsonl")  # its lines up to this step will not be written again
        checkpoint.save(path, trained.state())

    def _member(self, run: Run, teacher: Vit) -> train.Member:
        student = self.builder.student(run)
        folder = self.workspace.partial(run.id)
        if self.ranks.first:
            folder.mkdir(parents=True, exist_ok=True)
        return train.Member(run.id, run.info.seed, student, self.builder.method(run, student, teacher), folder)

    def _resume(self, planned: str, trained: train.Group) -> Path:
        """Where the checkpoint of group `planned` goes; one that holds all its members is loaded where there is one.

        Raises:
            checkpoint.Lost: there is one, and it is damaged.
        """
        path = self.workspace.checkpoint(planned)
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

    def _stream(self, training: Training, seed: int, trained: train.Group) -> Iterator[Any]:
        spec = self.experiment.data.augment
        augment = None if spec is None else Augment(spec.scale, spec.ratio, spec.flip)
        images = self.ranks.part(training.batch_size)
        part = batches(
            self.builder.source,
            self.builder.data,
            augment,
            batch_size=training.batch_size,
            steps=trained.steps,
            seed=seed,
            start=trained.step,
            part=slice(self.ranks.rank * images, (self.ranks.rank + 1) * images),
            num_workers=self.experiment.runtime.num_workers,
            device=self.device,
        )
        return agreed_batches(part, self.ranks)

    def _finish(self, run: Run, member: train.Member, group: train.Group) -> bool:
        """A member's student as a folder that timm loads, or its failure as a file. Whether there is a new student."""
        if member.failure is not None:
            batch_size, step = group.training.batch_size, member.failure["step"]
            indices = batch_indices(len(self.builder.source), batch_size, run.info.seed, step)
            self.workspace.fail(run, **member.failure, batch=indices)
            self.console.say(f"{run.title} failed at step {step}: {member.failure['reason']}")
            return False
        final = self.workspace.student(run.id)
        if final.is_dir():
            return False  # another process was quicker; the bits are the same
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
            "environment": self.environment | noticed(group),
        }
        found = self.builder.teacher_report(run.teacher)
        if found is not None:
            described["teacher"] = found
        students.describe(folder, described)
        os.rename(folder, final)
        integrity.sync_folder(final.parent)
        return True


def saved_first(stream: Iterator[Any], save: Callable[[], None]) -> Iterator[Any]:
    """The stream; where there is no more of it because something failed, what was trained so far is saved first."""
    try:
        yield from stream
    except RankLost:
        raise  # what was saved last is where all ranks were
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


def noticed(group: train.Group) -> dict[str, Any]:
    """What a training has to say of its environment: why blocks ran eagerly where torch.compile was asked for."""
    failure = group.compiled.failure
    return {} if failure is None else {"compile": f"failed, blocks ran eagerly: {failure}"}


def train_settings(group: Group) -> Training:
    """The training settings that a group's runs agree on (they are part of each run's identity)."""
    return Training.model_validate(group.runs[0].spec["training"])


def _head(vit: models.TimmVit) -> torch.Tensor:
    parts = [p.detach().flatten().cpu() for k, p in vit.model.named_parameters() if k.startswith("head")]
    return torch.cat(parts) if parts else torch.empty(0)


def named(runs: Sequence[Run]) -> str:
    """The runs of a group, for people."""
    labels = list(dict.fromkeys(run.info.label for run in runs))
    return f"{', '.join(labels)}; seed {runs[0].info.seed}"
