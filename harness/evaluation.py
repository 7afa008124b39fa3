"""Every trained encoder on every task that has no record of it yet."""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import time
from collections.abc import Sequence
from typing import Any, cast

from harness import models, students
from harness.api import Task
from harness.data import Data
from harness.errors import ConfigError, UserError
from harness.feature_arrays import ArrayName
from harness.features import Encoder, Share
from harness.items import Scores
from harness.live.live import Live
from harness.progress import Console
from harness.records import (
    Cost,
    MetricInfo,
    Record,
    RecordError,
    has_record,
    read_record,
    record_path,
    write_atomic,
    write_record,
)
from harness.reference import Reference
from harness.registry import task_class
from harness.runs import Run, TaskRun, task_runs, waiting_for_tasks
from harness.seeds import content_hash
from harness.sources import Source, View
from harness.specs import REPAIRS
from harness.storage.feature_files import Spec
from harness.storage.integrity import Damaged, set_aside
from harness.storage.items import write_items
from harness.storage.locks import Lock
from harness.teachers.repairs import vit_identity
from harness.training.builder import Builder, open_data
from harness.training.distributed import ONE, Ranks
from harness.training.shared_passes import PassOrder, encode, lead


class Evaluation:
    """The tasks of an experiment. `written` counts the records of this process.

    With several ranks, rank 0 evaluates, and the others encode with it whatever its cache lacks.
    """

    def __init__(
        self, builder: Builder, console: Console, environment: dict[str, Any], live: Live, ranks: Ranks = ONE
    ) -> None:
        self.builder, self.console, self.environment, self.live, self.ranks = builder, console, environment, live, ranks
        self.experiment, self.workspace, self.device = builder.experiment, builder.workspace, builder.device
        self.cache_gb = self.experiment.runtime.cache_gb
        self.written = 0
        self._followed: dict[str, Encoder] = {}  # the last one, for a pass after a pass

    def preflight(self, runs: Sequence[Run]) -> None:
        """Build every task that has something to do and open its data, so that a mistake costs no training.

        Raises:
            ConfigError: options that a task refuses, data that cannot be opened, all of them at once.
        """
        mistakes = []
        for task in task_runs(self.experiment):
            if all(self.workspace.has_record(run, task) for run in runs):
                continue
            try:
                data = self._built(task)[1]
                for split in ("train", "test"):
                    data.open(split)
            except UserError as error:
                mistakes.append(f"task {task.spec.title()!r}: {error}")
        if mistakes:
            raise ConfigError(mistakes)

    def pending(self, runs: Sequence[Run]) -> bool:
        """Evaluate every trained encoder that is free on the tasks it lacks; True where others are at work."""
        tasks = self.tasks()
        waiting = waiting_for_tasks(runs, [t for t, _ in tasks], self.workspace)
        instances = {t.key: task for t, task in tasks}
        if waiting:
            for task, _ in tasks:
                data = open_data(task.spec.data or self.experiment.data)
                for split in ("train", "test"):
                    self.builder.same_as_before(data, split)
        busy = False
        with self.console.bar("evaluating", len(waiting)) as bar:
            for number, (run, missing) in enumerate(waiting, start=1):
                with Lock(self.workspace.locks / f"evaluate-{run.id}.lock") as lock:
                    if not lock.acquire():
                        busy = True
                        continue
                    left = [t for t in missing if not self.workspace.has_record(run, t)]
                    if left and self._is_whole(run):
                        self._set_damaged_aside(run, left)
                        self._evaluate(run, [(t, instances[t.key]) for t in left])
                bar.update(number)
        return busy

    def tasks(self) -> list[tuple[TaskRun, Task]]:
        """The tasks, built, with the hash of each one's protocol noted in the workspace."""
        built = []
        for task in task_runs(self.experiment):
            instance, _ = self._built(task)
            protocol = instance.protocol()
            task_id = content_hash({"task": task.spec.task, **protocol})
            noted = {"task_id": task_id, "asked": task.asked, "protocol": protocol}
            path = self.workspace.protocols / f"{task.key}.json"
            text = json.dumps(noted, indent=2, sort_keys=True)
            if not path.is_file() or path.read_text() != text:
                write_atomic(path, text)
            built.append((task, instance))
        return built

    def _built(self, task: TaskRun) -> tuple[Task, Data]:
        """A task and the data that it reads, neither of them opened."""
        data = open_data(task.spec.data or self.experiment.data)
        options = self.experiment.known().resolve("task", task.spec.task, task.spec.options)
        return task_class(task.spec.task)(data=data, **options), data  # type: ignore[call-arg]

    def _is_whole(self, run: Run) -> bool:
        """Whether a student is as it was written; one that is not is set aside, and its run fails."""
        if run.info.kind != "student":
            return True
        try:
            students.checked(self.workspace.student(run.id))
        except Damaged as damage:
            reason = students.lose(self.workspace, run, damage)
            self.console.say(f"{run.title} cannot be evaluated: {reason}; --retry-failed trains it again")
            return False
        return True

    def _set_damaged_aside(self, run: Run, missing: Sequence[TaskRun]) -> None:
        """What lies where these records go is none that can be trusted; it is measured anew, and kept."""
        for task in missing:
            path = record_path(self.workspace.records, run.id, str(self.workspace.task_id(task)))
            with contextlib.suppress(FileNotFoundError):
                try:
                    read_record(path)
                except RecordError as error:
                    self.console.say(f"{error}; it is set aside as {set_aside(path).name} and measured anew")

    def follow(self, order: PassOrder, run: Run) -> None:
        """Other ranks than the first: encode a part of what rank 0 asks for."""

        def built() -> Encoder:
            if run.id not in self._followed:
                self._followed = {run.id: self._encoder(run)[0]}
            return self._followed[run.id]

        encode(self.ranks, built, order)

    def _share(self, run: Run) -> Share | None:
        def share(
            encoder: Encoder, source: Source, view: View, names: tuple[ArrayName, ...], specs: tuple[Spec, ...]
        ) -> None:
            lead(self.ranks, encoder, PassOrder(run.id, source, view, names, specs, encoder.batch_size, 0))

        return None if self.ranks.alone else share

    def _encoder(self, run: Run) -> tuple[Encoder, dict[str, Any]]:
        """The frozen encoder of a run, and what is known of how it came to be."""
        described: dict[str, Any] = {}
        if run.info.kind == "teacher":
            vit = self.builder.teacher(run.teacher)
            # Its logits are the data's classes where it was trained on them, or is mapped onto them.
            head_trained = run.teacher.fit is not None or run.teacher.classes is not None
        elif run.info.kind == "untrained":
            vit = self.builder.student(run)
            models.frozen(vit.model)
            head_trained = False
        else:
            folder = self.workspace.student(run.id)
            vit = models.load_exported(folder, self.device)
            described = students.described(folder)
            head_trained = described["head_trained"]
        encoder = Encoder(
            vit,
            identity=vit_identity(vit),
            cache=self.workspace.features,
            device=self.device,
            batch_size=self.experiment.runtime.batch_size,
            num_workers=self.experiment.runtime.num_workers,
            head_classes=self.builder.source.classes if head_trained else None,
            reference=self._reference(run),
            cache_bytes=None if self.cache_gb is None else round(self.cache_gb * 1e9),
            share=self._share(run),
        )
        return encoder, described

    def _reference(self, run: Run) -> Reference:
        """Where a run's encoder came from, nothing of it built yet."""
        builder, spec, clean = self.builder, run.teacher, None
        if spec.planted is not None:
            bare = {"planted": spec.planted.model_copy(update={"size": 0.0}), **dict.fromkeys(REPAIRS)}
            clean = functools.partial(builder.teacher, spec.model_copy(update=bare))
        method = functools.partial(builder.trained_method, run) if run.info.kind == "student" else None
        return Reference(functools.partial(builder.teacher, spec), clean, method)

    def _evaluate(self, run: Run, tasks: Sequence[tuple[TaskRun, Task]]) -> None:
        encoder, described = self._encoder(run)
        cost = (
            Cost(**described["cost"])
            if described
            else Cost(student_parameters=sum(p.numel() for p in cast(Any, encoder.vit).model.parameters()))
        )
        for task_run, task in tasks:
            begin_s = time.perf_counter()
            found = task.evaluate(encoder, seed=run.info.seed)
            declared = {name: float(found[name]) for name in task.metrics if name in found}  # others do not exist
            task_id = self.workspace.task_id(task_run)
            assert task_id is not None
            record = Record(
                task=task_run.spec.title(),
                task_kind=task_run.spec.task,
                task_id=task_id,
                metrics={k: MetricInfo(**cast(Any, m._asdict())) for k, m in task.metrics.items()},
                values=declared,
                details={k: v for k, v in found.items() if k not in declared},
                protocol=task.protocol(),
                run=run.info,
                cost=cost.model_copy(update={"evaluation_s": time.perf_counter() - begin_s}),
                seed=run.info.seed,
                environment=self.environment,
                created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            )
            if not has_record(self.workspace.records, run.id, task_id):
                if isinstance(found, Scores):
                    items = write_items(self.workspace.items, run.id, task_id, found.per_item)
                    record = record.model_copy(update={"items": items})
                write_record(self.workspace.records, record)
            self.live.measured(run, record.task, record.values, record.cost.steps or 0)
            self.written += 1
