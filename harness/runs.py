"""Experiment -> runs (identity = content hash) -> what is pending -> groups that share a teacher. No torch."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from harness.config import Experiment, MethodSpec, ModelSpec, TaskSpec, TeacherSpec
from harness.errors import UserError
from harness.identity import data_identity, model_identity, protocol_code, teacher_identity
from harness.records import RunInfo, has_record, write_atomic
from harness.seeds import content_hash
from harness.specs import REPAIRS
from harness.storage.integrity import generations, read_json
from harness.storage.sizes import largest
from harness.twins import twin

IDENTITY = 1  # raised when the harness changes what a student becomes for the same specification


@dataclasses.dataclass(frozen=True)
class Run:
    """One encoder that is measured: a method's student of one seed, or a bound.

    Attributes:
        info: what its records say of it. spec: everything that decides it; hashed into info.id.
        teacher, student: the specifications to build from, with the paths of this machine.
        shared: hash of all that runs must agree in to share teacher passes.
    """

    info: RunInfo
    spec: dict[str, Any]
    teacher: TeacherSpec
    student: ModelSpec
    shared: str

    @property
    def id(self) -> str:
        return self.info.id

    @property
    def title(self) -> str:
        return f"{self.info.label} seed {self.info.seed}"


@dataclasses.dataclass(frozen=True)
class TaskRun:
    """One task under one protocol. id is known once the protocol is: see `Workspace.task_id`."""

    spec: TaskSpec
    key: str  # hash of kind, options and data: what a configuration alone tells, and of the code
    asked: str  # the same without the code


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that are trained on one teacher pass a batch."""

    runs: tuple[Run, ...]

    @property
    def id(self) -> str:
        return content_hash(sorted(run.id for run in self.runs))

    @property
    def shared(self) -> str:
        return self.runs[0].shared


class Workspace:
    """The folder of results; every path in it is named here.

    students/<run id>/    run.yaml, config.json + model.safetensors (timm), method.safetensors, train.jsonl
    records/              <run id>.<task id>.json
    groups/<group id>/    group.json, checkpoint.pt and checkpoint.previous.pt of trainings under way
    teachers/<key>/       report.json, statistics.safetensors: what was found when a teacher was repaired
    sizes/                <hash>.json: how many students fit on a device, `harness.storage.sizes`
    jobs/                 what was submitted: `harness.dispatch.ledger`
    live/<logger>/        what TensorBoard and others show of trainings: `harness.live`
    merged.json, merged/  where records of others came from, and what belongs to them: `leaderboard.publishing`
    failures/<run id>.json, features/ (cache), protocols/, data/, locks/, leaderboard.md, leaderboard.csv
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.students, self.records, self.groups = self.root / "students", self.root / "records", self.root / "groups"
        self.failures, self.features, self.locks = self.root / "failures", self.root / "features", self.root / "locks"
        self.protocols, self.data = self.root / "protocols", self.root / "data"
        self.items = self.root / "items"
        self.teachers, self.jobs, self.sizes = self.root / "teachers", self.root / "jobs", self.root / "sizes"
        self.live = self.root / "live"

    def student(self, run_id: str) -> Path:
        return self.students / run_id

    def teacher(self, key: str) -> Path:
        """Of a repaired teacher, by `teacher_key`."""
        return self.teachers / key

    def partial(self, run_id: str) -> Path:
        """Where a student is written until it is complete and renamed."""
        return self.students / f"{run_id}.partial"

    def is_trained(self, run: Run) -> bool:
        return run.info.kind != "student" or self.student(run.id).is_dir()

    def checkpoint(self, group_id: str) -> Path:
        return self.groups / group_id / "checkpoint.pt"

    def run_ids(self) -> dict[str, list[str]]:
        """Group id -> ids of the runs that its checkpoint holds or will hold. Raises UserError for a damaged file."""
        found = {}
        for path in sorted(self.groups.glob("*/group.json")):
            with contextlib.suppress(FileNotFoundError):  # its training has just ended
                remedy = f"remove {path.parent} to start that group from its beginning"
                found[path.parent.name] = read_json(path, remedy)["runs"]
        return found

    def failure(self, run_id: str) -> dict[str, Any] | None:
        path = self.failures / f"{run_id}.json"
        return read_json(path, "remove it to train that run again") if path.is_file() else None

    def fail(self, run: Run, *, reason: str, step: int, **facts: Any) -> None:
        """Note why a run has no student: it is not trained again until somebody asks for that."""
        failure = {"reason": reason, "step": step, **facts, "label": run.info.label, "seed": run.info.seed}
        write_atomic(self.failures / f"{run.id}.json", json.dumps(failure, indent=2))

    def forgive(self, run_id: str) -> Path | None:
        """Set a failure aside, so that its run is trained again: it stays as failures/<run id>.<number>.json.

        Returns:
            Where it is now; None where there was none.
        """
        path, number = self.failures / f"{run_id}.json", 1
        while (kept := path.with_suffix(f".{number}.json")).exists():
            number += 1
        with contextlib.suppress(FileNotFoundError):
            return path.rename(kept)
        return None

    def unforgive(self, run_id: str, kept: Path) -> None:
        """Take `forgive` back; a failure that the run has had since stays."""
        path = self.failures / f"{run_id}.json"
        if not path.exists():
            kept.rename(path)

    def task_id(self, task: TaskRun) -> str | None:
        """Hash of the task's protocol, or None where nothing has been evaluated under it here."""
        path = self.protocols / f"{task.key}.json"
        return read_json(path, "remove it: it is written anew")["task_id"] if path.is_file() else None

    def has_record(self, run: Run, task: TaskRun) -> bool:
        """Whether there is a valid record; a damaged one counts as none. A fifth of a millisecond each.

        Raises:
            RecordError: a newer version of the program wrote it.
        """
        task_id = self.task_id(task)
        return task_id is not None and has_record(self.records, run.id, task_id)


def _spec(
    experiment: Experiment, method: str, given: dict[str, Any], teacher: dict[str, Any], student: ModelSpec, seed: int
) -> dict[str, Any]:
    known = experiment.known()
    entry = known.methods[method]
    return {
        "identity": IDENTITY,
        "method": entry.preset_of or method,
        "source": entry.source_hash,
        "hyperparameters": known.resolve("method", method, given),
        "seed": seed,
        "teacher": teacher,
        "student": model_identity(student),
        "data": data_identity(known, experiment.data),
        "training": experiment.training.identity(),
    }


def fit_run(experiment: Experiment, teacher: TeacherSpec) -> Run:
    """The run that trains the teacher itself, for `teacher.fit`: a student of the teacher's shape."""
    fit = teacher.fit
    assert fit is not None
    done_to_it = dict.fromkeys(("fit", "planted", "classes", *REPAIRS))
    bare = TeacherSpec.model_validate({**twin(teacher).model_dump(), **done_to_it})
    student = ModelSpec.model_validate(bare.model_dump(include=set(ModelSpec.model_fields)))
    changed = experiment.model_copy(update={"training": fit.training})
    spec = _spec(changed, fit.method, {}, teacher_identity(bare), student, fit.seed)
    return _run(experiment, spec, MethodSpec(method=fit.method, label="teacher fit"), bare, student, "fit")


def teacher_key(experiment: Experiment, teacher: TeacherSpec) -> str:
    """Hash of all that decides a repaired teacher: itself, and the training images that its repairs look at."""
    return content_hash(
        {
            "identity": IDENTITY,
            "teacher": teacher_identity(teacher),
            "fit": fit_run(experiment, teacher).id if teacher.fit is not None else None,
            "data": {k: v for k, v in data_identity(experiment.known(), experiment.data).items() if k != "augment"},
        }
    )


def _run(
    experiment: Experiment,
    spec: dict[str, Any],
    method: MethodSpec,
    teacher: TeacherSpec,
    student: ModelSpec,
    base: str,
) -> Run:
    shown = dict(spec["hyperparameters"])
    shown.update({f"teacher.{k}": v for k, v in method.teacher.items()})
    info = RunInfo(
        id=content_hash(spec),
        kind="student",
        label=method.title(),
        method=method.method,
        seed=spec["seed"],
        teacher=experiment.teacher.title(),
        student=student.title(),
        data=experiment.data.title(),
        condition=base,
        hyperparameters=shown,
        trials=method.trials,
        spec=spec,
    )
    return Run(info, spec, teacher, student, _shared(spec))


def _shared(spec: dict[str, Any]) -> str:
    return content_hash({k: spec[k] for k in ("identity", "seed", "teacher", "data", "training")})


def _of_seed(run: Run, seed: int) -> Run:
    """The same row with another seed. Thousands of runs differ in nothing else, so nothing else is looked at again."""
    spec = {**run.spec, "seed": seed}
    changes = {"id": content_hash(spec), "seed": seed, "spec": {**run.info.spec, "seed": seed}}
    return dataclasses.replace(run, info=run.info.model_copy(update=changes), spec=spec, shared=_shared(spec))


def condition(experiment: Experiment) -> str:
    """Hash of what all rows of one table have in common."""
    return content_hash(
        {
            "identity": IDENTITY,
            "teacher": teacher_identity(experiment.teacher),
            "student": model_identity(experiment.student),
            "data": data_identity(experiment.known(), experiment.data),
            "training": experiment.training.identity(),
        }
    )


def student_runs(experiment: Experiment) -> list[Run]:
    """Every student of the grid, seed by seed."""
    base, first = condition(experiment), experiment.seeds[0]
    rows = []
    for method in experiment.methods:
        teacher = experiment.teacher_of(method)
        spec = _spec(
            experiment, method.method, method.hyperparameters, teacher_identity(teacher), experiment.student, first
        )
        rows.append(_run(experiment, spec, method, teacher, experiment.student, base))
    runs = rows + [_of_seed(row, seed) for seed in experiment.seeds[1:] for row in rows]
    counts = Counter(run.id for run in runs)
    twice = {i for i, count in counts.items() if count > 1}
    if twice:
        names = ", ".join(run.title for run in runs if run.id in twice)
        raise UserError(f"these rows are the same run: {names}; change a hyperparameter or leave one out")
    return runs


def fit_runs(experiment: Experiment) -> list[Run]:
    """The trainings of teachers, before any student's; teachers that differ in planting or repairs share one."""
    teachers = [experiment.teacher, *(experiment.teacher_of(method) for method in experiment.methods)]
    runs = [fit_run(experiment, teacher) for teacher in teachers if teacher.fit is not None]
    return list({run.id: run for run in runs}.values())


def bound_runs(experiment: Experiment) -> list[Run]:
    """The teacher itself, and a student that was never trained, one a seed."""
    if not experiment.bounds:
        return []
    base = condition(experiment)
    kinds: list[tuple[Literal["teacher", "untrained"], int]] = [("teacher", 0)]
    kinds.extend(("untrained", seed) for seed in experiment.seeds)
    runs = []
    for kind, seed in kinds:
        info = RunInfo(
            id=content_hash({"kind": kind, "seed": seed, "condition": base}),
            kind=kind,
            label=kind,
            method=kind,
            seed=seed,
            teacher=experiment.teacher.title(),
            student="" if kind == "teacher" else experiment.student.title(),
            data=experiment.data.title(),
            condition=base,
            spec={"condition": base, "seed": seed},
        )
        runs.append(Run(info, info.spec, experiment.teacher, experiment.student, ""))
    return runs


def task_runs(experiment: Experiment) -> list[TaskRun]:
    """Every task of the grid with its hash."""
    known = experiment.known()
    found = []
    for spec in experiment.tasks:
        entry = known.tasks[spec.task]
        data = spec.data or experiment.data
        asked = {
            "task": spec.task,
            "options": known.resolve("task", spec.task, spec.options),
            "data": {k: v for k, v in data_identity(known, data).items() if k != "augment"},
        }
        key = content_hash({**asked, "source": entry.source_hash, "code": protocol_code()})
        found.append(TaskRun(spec, key, content_hash(asked)))
    keys = [task.key for task in found]
    twice = ", ".join(task.spec.title() for task in found if keys.count(task.key) > 1)
    if twice:
        raise UserError(f"these columns are the same task: {twice}; change an option or leave one out")
    return found


def groups(runs: Iterable[Run], workspace: Workspace, max_group: int | Literal["auto"]) -> list[Group]:
    """What is still to be trained, in groups of at most `max_group` that share a teacher, or fewer where it is noted
    that no more fit.

    Trainings under way keep their company while they fit, since their checkpoint holds them at one step.
    """
    waiting = {run.id: run for run in runs if not workspace.is_trained(run) and workspace.failure(run.id) is None}
    found: list[Group] = []
    for members in _under_way(workspace):
        mine = [waiting.pop(i) for i in members if i in waiting]
        if mine:
            found += _cut(mine, largest(workspace.sizes, mine[0].spec, len(mine)))
    fresh: dict[str, list[Run]] = {}
    for run in waiting.values():
        fresh.setdefault(run.shared, []).append(run)
    for together in fresh.values():
        found += _cut(together, largest(workspace.sizes, together[0].spec, max_group))
    return found


def _cut(together: Sequence[Run], size: int) -> list[Group]:
    return [Group(tuple(together[i : i + size])) for i in range(0, len(together), size)]


def _under_way(workspace: Workspace) -> list[list[str]]:
    """Run ids of each group that has a checkpoint, in a fixed order; small groups were split off larger ones."""
    ids = workspace.run_ids()
    return sorted((ids[group] for group in ids if generations(workspace.checkpoint(group))), key=len)


def waiting_for_tasks(
    runs: Sequence[Run], tasks: Sequence[TaskRun], workspace: Workspace
) -> list[tuple[Run, list[TaskRun]]]:
    """Trained encoders with the tasks that have no record of them yet."""
    found = []
    for run in runs:
        if workspace.is_trained(run):
            missing = [task for task in tasks if not workspace.has_record(run, task)]
            if missing:
                found.append((run, missing))
    return found


def pending(experiment: Experiment, workspace: Workspace) -> bool:
    """Whether anything is left to train or to evaluate."""
    runs = student_runs(experiment)
    if groups(runs, workspace, experiment.runtime.max_group):
        return True
    return bool(waiting_for_tasks(bound_runs(experiment) + runs, task_runs(experiment), workspace))
