"""An experiment from start to records, on this machine: build, train group by group, evaluate, write.

Whatever is finished is never done again; whatever is interrupted goes on where it was.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import yaml

from harness import checkpoint, models, train
from harness.api import Task
from harness.config import DataSpec, Experiment, TeacherSpec
from harness.data import Augment, Data, Source, batch_indices, batches, steps_an_epoch
from harness.errors import ConfigError, UserError
from harness.features import Encoder, weights_identity
from harness.locks import Lock, holder
from harness.planting import plant
from harness.progress import Console
from harness.records import Cost, MetricInfo, Record, has_record, write_atomic, write_record
from harness.registry import build_method, load_plugin, method_class, task_class
from harness.runs import (
    Group,
    Run,
    TaskRun,
    Workspace,
    bound_runs,
    fit_run,
    groups,
    student_runs,
    task_runs,
    waiting_for_tasks,
)
from harness.seeds import content_hash, derive


class Interrupted(Exception):
    """A signal asked to stop; everything is saved, and the same command goes on."""


class Stop:
    """SIGINT, SIGTERM and SIGUSR2 ask for a stop: training saves first, anything else ends at once."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)

    def __init__(self) -> None:
        self.asked: int | None = None
        self.saving = False  # whether the code that runs now looks at `asked` by itself

    def __enter__(self) -> Stop:
        self.before = {s: signal.signal(s, self._handle) for s in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        return self.asked is not None

    def _handle(self, number: int, _: Any) -> None:
        again, self.asked = self.asked is not None, number
        if not self.saving or again:
            raise Interrupted(signal.Signals(number).name)


@dataclasses.dataclass
class Outcome:
    """What one call did: ids of students trained, records written, and runs that failed with their reasons."""

    trained: list[str] = dataclasses.field(default_factory=list)
    evaluated: int = 0
    failed: dict[str, str] = dataclasses.field(default_factory=dict)


def device_of(experiment: Experiment) -> str:
    """The device that `runtime.device` names; "auto" is the first GPU, or the CPU."""
    wanted = experiment.runtime.device
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros((), device=wanted)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"runtime.device {wanted!r} cannot be used here: {reason}; try auto or cpu") from error
    return wanted


def open_data(spec: DataSpec) -> Data:
    """The data that a configuration describes."""
    plain = spec.model_dump(exclude={"augment", "name"})
    return Data(name=spec.title(), **plain)


def environment(device: str) -> dict[str, Any]:
    """Versions, machine and code state, for the record."""
    packages = {}
    for name in ("singer-bench", "torch", "torchvision", "timm", "numpy"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "not installed"
    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or platform.machine()
    return {
        "python": platform.python_version(),
        "packages": packages,
        "device": device,
        "device_name": name,
        "threads": torch.get_num_threads(),
        **_code_state(),
    }


def _code_state() -> dict[str, Any]:
    here = Path(__file__).parent

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(here), *args], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    return {"commit": commit, "modified": None if commit is None else bool(git("status", "--porcelain", "-uno"))}


class Job:
    """One experiment in one workspace."""

    def __init__(self, experiment: Experiment, workspace: Workspace, console: Console | None = None) -> None:
        self.experiment, self.workspace, self.console = experiment, workspace, console or Console()
        for plugin in experiment.plugins:
            load_plugin(plugin)
        self.device = device_of(experiment)
        self.data = open_data(experiment.data)
        self.environment = environment(self.device)
        self.outcome = Outcome()
        self.stop = Stop()
        self._said: set[str] = set()
        self._teachers: dict[str, models.TimmVit] = {}

    # ---- what is built

    @property
    def source(self) -> Source:
        """The training images."""
        return self.data.open("train")

    @property
    def num_classes(self) -> int:
        return len(self.source.classes)

    def _same_as_before(self, data: Data, split: str) -> None:
        """Refuse data that has changed under its name since this workspace first read it."""
        source = data.open(split)
        path = self.workspace.data / f"{content_hash({**data.identity(), 'split': split})}.json"
        now = {"identity": source.identity(), "count": len(source), "name": data.name, "split": split}
        if not path.is_file():
            write_atomic(path, json.dumps(now, indent=2))
            return
        before = json.loads(path.read_text())
        if before["identity"] != now["identity"]:
            raise UserError(
                f"data {data.name!r} ({split}) is not what this workspace was started with: {before['count']} samples "
                f"then, {now['count']} now, or other names. Restore it, or give the new data its own data.name"
            )

    def teacher(self, spec: TeacherSpec) -> models.TimmVit:
        """The frozen teacher of a run; trained first where the specification says so."""
        key = content_hash(spec.model_dump(mode="json"))
        if key not in self._teachers:
            self._teachers.clear()  # one at a time in memory
            self._teachers[key] = self._build_teacher(spec)
        return self._teachers[key]

    def _build_teacher(self, spec: TeacherSpec, fitted: bool = True) -> models.TimmVit:
        size = self.data.image_size
        if spec.fit is None:
            plain = spec.model_dump()
            teacher = models.build_teacher(plain, size, self.source.classes, self.device)
        elif fitted:
            run = fit_run(self.experiment, spec)
            if not self.workspace.is_trained(run):
                self.console.say(f"training the teacher ({spec.title()}) first; it is kept in the workspace")
                self._train_alone(run)
            teacher = models.load_exported(self.workspace.student(run.id), self.device)
        else:
            teacher = models.build_student(spec.model_dump(), size, self.num_classes, 0, device=self.device)
            models.frozen(teacher.model)
        if spec.planted is not None:
            plant(teacher, spec.planted.layer, spec.planted.size, spec.planted.share)
        return teacher

    def student(self, run: Run) -> models.TimmVit:
        """A run's student as it is before training."""
        options = method_class(run.spec["method"]).student_options if run.info.kind == "student" else {}
        size, seed = self.data.image_size, run.info.seed
        return models.build_student(run.student.model_dump(), size, self.num_classes, seed, options, self.device)

    def preflight(self, runs: Sequence[Run]) -> None:
        """Build every method once before anything trains, so that a mistake costs seconds.

        Raises:
            ConfigError: all methods that cannot be built for this teacher and student, with their reasons.
        """
        mistakes = []
        seen: set[str] = set()
        teachers: dict[str, models.TimmVit] = {}
        for run in runs:
            if run.info.label in seen or self.workspace.is_trained(run):
                continue
            seen.add(run.info.label)
            key = content_hash(run.teacher.model_dump(mode="json"))
            if key not in teachers:
                teachers = {key: self._build_teacher(run.teacher, fitted=False)}
            try:
                self._method(run, self.student(run), teachers[key])
            except (ValueError, UserError) as error:
                reason = str(error).removeprefix(f"method {run.spec['method']!r}: ")
                mistakes.append(f"method {run.info.label!r}: {reason}")
        if mistakes:
            raise ConfigError(mistakes)
        steps_an_epoch(len(self.source), self.experiment.training.batch_size)

    def _method(self, run: Run, student: models.TimmVit, teacher: models.TimmVit):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive("method", run.info.seed))
            return build_method(run.spec["method"], student, teacher, run.spec["hyperparameters"])

    # ---- training

    def run(self) -> Outcome:
        """Train and evaluate whatever is pending. Raises Interrupted when a signal asked to stop."""
        runs = student_runs(self.experiment)
        encoders = bound_runs(self.experiment) + runs
        with self.stop:
            self._same_as_before(self.data, "train")
            if groups(runs, self.workspace, self.experiment.runtime.max_group):
                self.preflight(runs)
            while self._train_pending(runs) | self._evaluate_pending(encoders):
                time.sleep(5)  # another process is at work on the rest
        for run in runs:
            failure = self.workspace.failure(run.id)
            if failure is not None:
                self.outcome.failed[run.title] = f"{failure['reason']} (step {failure['step']})"
        return self.outcome

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

    def _train_alone(self, run: Run) -> None:
        while not self.workspace.is_trained(run):
            failure = self.workspace.failure(run.id)
            if failure is not None:
                raise UserError(f"the teacher's own training failed: {failure['reason']}")
            if self._train_pending([run]):
                time.sleep(5)

    def _train_group(self, group: Group, planned: Group) -> None:
        training = train_settings(group)
        teacher = self.teacher(group.runs[0].teacher)
        members = [self._member(run, teacher) for run in group.runs]
        an_epoch = steps_an_epoch(len(self.source), training.batch_size)
        steps = training.steps or max(1, round((training.epochs or 0) * an_epoch))
        runtime = self.experiment.runtime
        trained = train.Group(members, teacher, training, steps, an_epoch, self.device, runtime.log_steps)
        folder = self._resume(planned, trained)
        titles = f"training {len(members)} students ({_names(group.runs)})"

        def save() -> None:
            checkpoint.save(folder / "checkpoint.pt", trained.state())

        self.stop.saving = True
        with self.console.bar(titles, steps, trained.step) as bar:
            finished = train.run(
                trained,
                self._stream(training, group.runs[0].info.seed, steps, trained.step),
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

    def _member(self, run: Run, teacher: models.TimmVit) -> train.Member:
        student = self.student(run)
        folder = self.workspace.partial(run.id)
        folder.mkdir(parents=True, exist_ok=True)
        return train.Member(run.id, run.info.seed, student, self._method(run, student, teacher), folder)

    def _resume(self, planned: Group, trained: train.Group) -> Path:
        """The group's folder, with a checkpoint that holds all its members loaded where there is one."""
        folder = self.workspace.groups / planned.id
        ids = {member.id for member in trained.members}
        candidates = []
        for path in self.workspace.groups.glob("*/group.json"):
            known = set(json.loads(path.read_text())["runs"])
            if ids <= known and (path.parent / "checkpoint.pt").is_file():
                candidates.append((len(known), path.parent))
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "group.json", json.dumps({"runs": sorted(ids)}))
        if candidates:
            # A larger group's checkpoint is read but never written: it still holds the others.
            trained.load_state(checkpoint.load(min(candidates)[1] / "checkpoint.pt"))
            self.console.say(f"going on at step {trained.step} of {trained.steps}")
        else:
            for member in trained.members:
                (member.folder / "train.jsonl").unlink(missing_ok=True)
        return folder

    def _clear_groups(self) -> None:
        """Remove the checkpoints that nobody needs any more."""
        for path in self.workspace.groups.glob("*/group.json"):
            ids = json.loads(path.read_text())["runs"]
            if all(self.workspace.student(i).is_dir() or self.workspace.failure(i) for i in ids):
                shutil.rmtree(path.parent, ignore_errors=True)

    def _stream(self, training: Any, seed: int, steps: int, start: int) -> Iterator[Any]:
        spec = self.experiment.data.augment
        augment = None if spec is None else Augment(spec.scale, spec.ratio, spec.flip)
        return batches(
            self.source,
            self.data,
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
            indices = batch_indices(len(self.source), batch_size, run.info.seed, step)
            failure = {**member.failure, "label": run.info.label, "seed": run.info.seed, "batch": indices}
            write_atomic(self.workspace.failures / f"{run.id}.json", json.dumps(failure, indent=2))
            self.console.say(f"{run.title} failed at step {step}: {member.failure['reason']}")
            return
        final = self.workspace.student(run.id)
        if final.is_dir():
            return  # another process was quicker; the bits are the same
        folder = member.folder
        fresh = self.student(run)
        moved = not torch.equal(_head(fresh), _head(member.student))
        member.student.model.eval()
        models.export(member.student, folder, {"run": run.id, "method": run.info.method, "seed": run.info.seed})
        state = {k: v.detach().cpu().contiguous().clone() for k, v in member.method.state_dict().items()}
        safetensors.torch.save_file(state, str(folder / "method.safetensors"))
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
        write_atomic(folder / "run.yaml", yaml.safe_dump(described, sort_keys=False))
        os.rename(folder, final)
        checkpoint.sync_folder(final.parent)
        self.outcome.trained.append(run.id)

    # ---- evaluation

    def _evaluate_pending(self, runs: Sequence[Run]) -> bool:
        """Evaluate every trained encoder that is free on the tasks it lacks; True where others are at work."""
        tasks = self._tasks()
        waiting = waiting_for_tasks(runs, [t for t, _ in tasks], self.workspace)
        instances = {t.key: task for t, task in tasks}
        if waiting:
            for task, _ in tasks:
                data = open_data(task.spec.data or self.experiment.data)
                for split in ("train", "test"):
                    self._same_as_before(data, split)
        busy = False
        with self.console.bar("evaluating", len(waiting)) as bar:
            for number, (run, missing) in enumerate(waiting, start=1):
                with Lock(self.workspace.locks / f"evaluate-{run.id}.lock") as lock:
                    if not lock.acquire():
                        busy = True
                        continue
                    left = [t for t in missing if not self.workspace.has_record(run, t)]
                    if left:
                        self._evaluate(run, [(t, instances[t.key]) for t in left])
                bar.update(number)
        return busy

    def _tasks(self) -> list[tuple[TaskRun, Task]]:
        """The tasks, built, with the hash of each one's protocol noted in the workspace."""
        known = self.experiment.known()
        built = []
        for task in task_runs(self.experiment):
            data = open_data(task.spec.data or self.experiment.data)
            options = known.resolve("task", task.spec.task, task.spec.options)
            instance = task_class(task.spec.task)(data=data, **options)  # type: ignore[call-arg]
            protocol = instance.protocol()
            noted = {"task_id": content_hash({"task": task.spec.task, **protocol}), "protocol": protocol}
            path = self.workspace.protocols / f"{task.key}.json"
            text = json.dumps(noted, indent=2, sort_keys=True)
            if not path.is_file() or path.read_text() != text:
                write_atomic(path, text)
            built.append((task, instance))
        return built

    def _encoder(self, run: Run) -> tuple[Encoder, dict[str, Any]]:
        """The frozen encoder of a run, and what is known of how it came to be."""
        described: dict[str, Any] = {}
        if run.info.kind == "teacher":
            vit = self.teacher(run.teacher)
            # Its logits are the data's classes where it was trained on them, or is mapped onto them.
            head_trained = run.teacher.fit is not None or run.teacher.classes is not None
        elif run.info.kind == "untrained":
            vit = self.student(run)
            models.frozen(vit.model)
            head_trained = False
        else:
            folder = self.workspace.student(run.id)
            vit = models.load_exported(folder, self.device)
            described = yaml.safe_load((folder / "run.yaml").read_text())
            head_trained = described["head_trained"]
        encoder = Encoder(
            vit,
            identity=weights_identity(vit.model),
            cache=self.workspace.features,
            device=self.device,
            batch_size=self.experiment.runtime.batch_size,
            num_workers=self.experiment.runtime.num_workers,
            head_classes=self.source.classes if head_trained else None,
        )
        return encoder, described

    def _evaluate(self, run: Run, tasks: Sequence[tuple[TaskRun, Task]]) -> None:
        encoder, described = self._encoder(run)
        cost = (
            Cost(**described["cost"])
            if described
            else Cost(student_parameters=sum(p.numel() for p in encoder.vit.model.parameters()))
        )
        for task_run, task in tasks:
            begin_s = time.perf_counter()
            found = task.evaluate(encoder, seed=run.info.seed)
            declared = {name: float(found[name]) for name in task.metrics}
            task_id = self.workspace.task_id(task_run)
            assert task_id is not None
            record = Record(
                task=task_run.spec.title(),
                task_kind=task_run.spec.task,
                task_id=task_id,
                metrics={
                    k: MetricInfo(unit=m.unit, direction=m.direction, ranked=m.ranked) for k, m in task.metrics.items()
                },  # type: ignore[arg-type]
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
                write_record(self.workspace.records, record)
            self.outcome.evaluated += 1


def train_settings(group: Group) -> Any:
    """The training settings that a group's runs agree on (they are part of each run's identity)."""
    from harness.config import Training

    return Training.model_validate(group.runs[0].spec["training"])


def _head(vit: models.TimmVit) -> torch.Tensor:
    parts = [p.detach().flatten().cpu() for k, p in vit.model.named_parameters() if k.startswith("head")]
    return torch.cat(parts) if parts else torch.empty(0)


def _names(runs: Sequence[Run]) -> str:
    labels = list(dict.fromkeys(run.info.label for run in runs))
    return f"{', '.join(labels)}; seed {runs[0].info.seed}"
