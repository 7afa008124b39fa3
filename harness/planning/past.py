"""How long past trainings and evaluations took, from records and students. No torch.

A past training tells the seconds of a step of its teacher and of its student, on its machine. They are those of
computing, of all processes that shared it together: reading images is not in them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.monitoring.glance import Glance
from harness.records import Record, RecordError, RunInfo, read_record
from harness.runs import IDENTITY, Run, TaskRun, Workspace
from harness.seeds import content_hash
from harness.specs import DataSpec
from harness.storage.integrity import Damaged
from harness.students import described

HERE = "records here"
A_ROW = 3  # past runs of a row that are looked at
WEIGHTS = ("pretrained", "checkpoint", "fit", "classes")  # of a model: they change no step's seconds


@dataclass(frozen=True)
class Machine:
    """Where something was measured. threads: of a CPU; None for a GPU."""

    name: str
    threads: int | None = None

    @classmethod
    def of(cls, environment: Mapping[str, Any]) -> Machine:
        """From the environment of a record."""
        gpu = str(environment.get("device", "cpu")).startswith("cuda")
        return cls(str(environment.get("device_name", "unknown")), None if gpu else environment.get("threads", 1))

    @property
    def gpu(self) -> bool:
        return self.threads is None

    def __str__(self) -> str:
        return self.name if self.gpu else f"{self.name}, {self.threads} thread{'' if self.threads == 1 else 's'}"


@dataclass(frozen=True)
class Work:
    """What decides the seconds of a step: hashes of models and sizes, the method, a hash of its hyperparameters."""

    shape: str
    method: str
    settings: str

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> Work:
        """From the specification of a run."""
        models = [{k: v for k, v in spec[part].items() if k not in WEIGHTS} for part in ("teacher", "student")]
        training = {k: spec["training"].get(k) for k in ("batch_size", "optimizer", "precision", "tf32", "compile")}
        shape = content_hash([models, spec["data"]["image_size"], training])
        return cls(shape, spec["method"], content_hash(spec["hyperparameters"]))


@dataclass(frozen=True)
class Step:
    """Seconds of one step of a past training: the pass that its group shared, and its own. source: who says so."""

    work: Work
    machine: Machine
    teacher_s: float
    own_s: float
    source: str


@dataclass(frozen=True)
class Evaluated:
    """Seconds of one past evaluation. encoder: of whom. data: hash of what the task read. source: who says so."""

    task: str
    task_id: str
    data: str
    encoder: str
    machine: Machine
    seconds: float
    source: str


@dataclass
class Past:
    """What is known of past work.

    Attributes:
        images: how many there are to train on, by the hash of their data. unmeasured: why a step could not be measured.
    """

    steps: list[Step] = field(default_factory=list)
    evaluations: list[Evaluated] = field(default_factory=list)
    images: dict[str, int] = field(default_factory=dict)
    unmeasured: dict[Work, str] = field(default_factory=dict)
    _known: set[str] = field(default_factory=set)  # runs whose steps are among them

    def add(self, record: Record, source: str) -> None:
        """What a record tells."""
        run, cost, environment = record.run, record.cost, record.environment
        if run.kind == "student":
            self.add_training(run, cost.model_dump(), environment, source)
        if cost.evaluation_s is not None:
            data = content_hash(record.protocol.get("data"))
            seconds = cost.evaluation_s * _processes(environment)
            told = (record.task_kind, record.task_id, data, encoder_of(run), Machine.of(environment), seconds, source)
            self.evaluations.append(Evaluated(*told))

    def add_training(self, run: RunInfo, cost: Mapping[str, Any], environment: Mapping[str, Any], source: str) -> None:
        """What a finished training tells, once; nothing where it does not say how long it was."""
        told = all(cost.get(part) is not None for part in ("steps", "teacher_s", "own_s"))
        if told and run.id not in self._known and run.spec.get("identity") == IDENTITY:
            self._known.add(run.id)
            seconds = (cost[part] / cost["steps"] * _processes(environment) for part in ("teacher_s", "own_s"))
            self.steps.append(Step(Work.of(run.spec), Machine.of(environment), *seconds, source=source))

    def add_student(self, folder: Path, source: str) -> None:
        """What the description beside a student tells, which may not have been evaluated yet."""
        if folder.name in self._known:
            return
        try:
            plain = described(folder)
        except Damaged:
            return  # whoever evaluates it says so
        info = RunInfo.model_validate(plain["info"])
        self.add_training(info, plain["cost"], plain.get("environment", {}), source)

    def add_images(self, data: DataSpec, workspace: Workspace) -> None:
        """How many there are, where the workspace has noted it."""
        path = workspace.data / f"{content_hash({**read_of(data), 'split': 'train'})}.json"
        if path.is_file():
            self.images[content_hash(read_of(data))] = json.loads(path.read_text())["count"]


def _processes(environment: Mapping[str, Any]) -> int:
    """How many shared the work, each with a GPU or some threads of its own."""
    return environment.get("ranks", 1)


def encoder_of(info: RunInfo) -> str:
    """Whose passes an evaluation pays for."""
    return f"teacher {info.teacher}" if info.kind == "teacher" else f"student {info.student}"


def read_of(data: DataSpec) -> dict[str, Any]:
    """What is read, as protocols and workspaces note it: `harness.data.Data.identity`."""
    return {key: value for key, value in data.identity().items() if key != "augment"}


def past_here(runs: Sequence[Run], tasks: Sequence[TaskRun], data: DataSpec, workspace: Glance) -> Past:
    """What a workspace tells of its own rows: a few runs of each, since thousands say no more."""
    past, seen = Past(), Counter[str]()
    for run in runs:
        if seen[run.info.label] == A_ROW or not workspace.is_trained(run):
            continue
        records = [record for task in tasks if (record := workspace.record(run, task)) is not None]
        for record in records:
            past.add(record, HERE)
        if run.info.kind == "student" and not seen[run.info.label]:  # its record may not be there yet
            past.add_student(workspace.student(run.id), HERE)
        seen[run.info.label] += 1
    past.add_images(data, workspace)
    return past


def add_past(past: Past, folder: Path, data: DataSpec) -> None:
    """Add what another folder tells, a workspace or one of records alone. Raises UserError where that is nothing."""
    if not folder.is_dir():
        raise UserError(f"--records: no folder {str(folder)!r}; name a workspace, or a folder of records")
    workspace, source = Workspace(folder), f"records in {folder}"
    place = workspace.records if workspace.records.is_dir() else folder
    before = len(past.steps) + len(past.evaluations)
    for path in sorted(place.glob("*.json")):
        try:
            past.add(read_record(path), source)
        except RecordError:
            continue  # `table` tells of it
    for student in sorted(workspace.students.glob("*")):
        if student.suffix != ".partial":
            past.add_student(student, source)
    if len(past.steps) + len(past.evaluations) == before:
        raise UserError(f"--records: {str(folder)!r} holds no record that says how long something took")
    past.add_images(data, workspace)
