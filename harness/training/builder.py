"""The data, teachers, students and methods of an experiment, built on this machine."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from harness import models, students
from harness.api import Method, Vit, frozen
from harness.config import DataSpec, Experiment, TeacherSpec
from harness.data import Data, steps_an_epoch
from harness.errors import ConfigError, UserError
from harness.records import write_atomic
from harness.registry import build_method, method_class
from harness.runs import Run, Workspace, fit_run, teacher_key
from harness.seeds import content_hash, derive
from harness.sources import Source
from harness.storage.integrity import Damaged, read_json
from harness.storage.locks import Lock
from harness.teachers.planting import plant
from harness.teachers.repaired import repaired, repairs_of, unfound
from harness.training.calibration import SourceCalibration, calibration_images
from harness.twins import twin

TEACHERS = 3  # in memory at once: the experiment's, its clean twin, and a control's


def open_data(spec: DataSpec) -> Data:
    """The data that a configuration describes."""
    plain = spec.model_dump(exclude={"augment", "name"})
    return Data(name=spec.title(), **plain)


class Builder:
    """Builds what an experiment names.

    Attributes:
        data: what is distilled on. device: where models go.
        fit: trains a teacher's own run and returns when its student is in the workspace (`teacher.fit`).
    """

    def __init__(self, experiment: Experiment, workspace: Workspace, device: str, fit: Callable[[Run], None]) -> None:
        self.experiment, self.workspace, self.device, self.fit = experiment, workspace, device, fit
        self.data = open_data(experiment.data)
        self._teachers: dict[str, Vit] = {}

    @property
    def source(self) -> Source:
        """The training images."""
        return self.data.open("train")

    @property
    def num_classes(self) -> int:
        return len(self.source.classes)

    def same_as_before(self, data: Data, split: str) -> None:
        """Refuse data that has changed under its name since this workspace first read it."""
        source = data.open(split)
        path = self.workspace.data / f"{content_hash({**data.identity(), 'split': split})}.json"
        now = {"identity": source.identity(), "count": len(source), "name": data.name, "split": split}
        if not path.is_file():
            write_atomic(path, json.dumps(now, indent=2))
            return
        before = read_json(path, "remove it once you know that the data is what it was")
        if before["identity"] != now["identity"]:
            raise UserError(
                f"data {data.name!r} ({split}) is not what this workspace was started with: {before['count']} samples "
                f"then, {now['count']} now, or other names. Restore it, or give the new data its own data.name"
            )

    def teacher(self, spec: TeacherSpec) -> Vit:
        """The frozen teacher of a run; trained first where the specification says so, then repaired."""
        key = content_hash(spec.model_dump(mode="json"))
        if key not in self._teachers:
            while len(self._teachers) >= TEACHERS:
                del self._teachers[next(iter(self._teachers))]  # the one that was asked for longest ago
            self._teachers[key] = self._build_teacher(spec)
        self._teachers[key] = self._teachers.pop(key)
        return self._teachers[key]

    def _build_teacher(self, spec: TeacherSpec, fitted: bool = True) -> Vit:
        """`fitted` False: one that is trained here stays as it was initialised, and its repairs know no data."""
        spec, size = twin(spec), self.data.image_size
        if spec.fit is None:
            teacher = models.build_teacher(spec.model_dump(), size, self.source.classes, self.device)
        elif fitted:
            run = fit_run(self.experiment, spec)
            self.fit(run)
            teacher = models.load_exported(self._fitted(run), self.device)
        else:
            teacher = models.build_student(spec.model_dump(), size, self.num_classes, 0, device=self.device)
            frozen(teacher.model)
        if spec.planted is not None:
            plant(teacher, **spec.planted.model_dump())
        if not repairs_of(spec):
            return teacher
        return self._repaired(teacher, spec) if fitted or spec.fit is None else unfound(teacher, spec)

    def untrained_teacher(self, spec: TeacherSpec) -> Vit:
        """A teacher of this shape with `teacher.fit`, as it is before that: its weights fresh, its repairs empty."""
        return self._build_teacher(spec, fitted=False)

    def _fitted(self, run: Run) -> Path:
        """The folder of a teacher that was trained here. Raises UserError where it is damaged, having set it aside."""
        folder = self.workspace.student(run.id)
        try:
            students.checked(folder)
        except Damaged as damage:
            reason = students.lose(self.workspace, run, damage)
            raise UserError(f"the teacher that was trained here: {reason}; --retry-failed trains it again") from damage
        return folder

    def _repaired(self, teacher: models.TimmVit, spec: TeacherSpec) -> Vit:
        """What a repair needs of the data is found by one process and read by all others."""
        folder = self._teacher_folder(spec)
        with Lock(self.workspace.locks / f"teacher-{folder.name}.lock") as lock:
            while not lock.acquire():
                time.sleep(1)
            return repaired(teacher, spec, lambda n: calibration_images(self.source, self.data, n, self.device), folder)

    def _teacher_folder(self, spec: TeacherSpec) -> Path:
        return self.workspace.teacher(teacher_key(self.experiment, spec))

    def teacher_report(self, spec: TeacherSpec) -> dict[str, Any] | None:
        """What was found when a teacher was repaired; None where nothing was repaired, or not yet."""
        path = self._teacher_folder(spec) / "report.json"
        return json.loads(path.read_text()) if repairs_of(spec) and path.is_file() else None

    def student(self, run: Run) -> models.TimmVit:
        """A run's student as it is before training."""
        options = method_class(run.spec["method"]).student_options if run.info.kind == "student" else {}
        size, seed = self.data.image_size, run.info.seed
        return models.build_student(run.student.model_dump(), size, self.num_classes, seed, options, self.device)

    def preflight(self, runs: Sequence[Run]) -> None:
        """Build every method once before anything trains, so that a mistake costs seconds.

        A teacher's repairs look at the data here, unless it is yet to be trained; what they find is kept.

        Raises:
            ConfigError: all methods that cannot be built for this teacher and student, and all teachers that cannot
                be built, with their reasons.
        """
        mistakes = []
        seen: set[str] = set()
        teachers: dict[str, Vit] = {}
        failed: set[str] = set()  # teachers that cannot be built, which was said once
        for run in runs:
            key = content_hash(run.teacher.model_dump(mode="json"))
            if run.info.label in seen or key in failed or self.workspace.is_trained(run):
                continue
            seen.add(run.info.label)
            try:
                if key not in teachers:
                    teachers.clear()
                    teachers[key] = self._build_teacher(run.teacher, fitted=self._is_fitted(run.teacher))
                self.method(run, self.student(run), teachers[key], calibrate=False)
            except (ValueError, UserError) as error:
                if key not in teachers:
                    failed.add(key)
                reason = str(error).removeprefix(f"method {run.spec['method']!r}: ")
                mistakes.append(f"method {run.info.label!r}: {reason}")
        if mistakes:
            raise ConfigError(mistakes)
        steps_an_epoch(len(self.source), self.experiment.training.batch_size)

    def _is_fitted(self, spec: TeacherSpec) -> bool:
        return spec.fit is not None and self.workspace.is_trained(fit_run(self.experiment, spec))

    def method(self, run: Run, student: models.TimmVit, teacher: Vit, *, calibrate: bool = True) -> Method:
        """A run's method, its own modules initialised from the seed alone, and shown the data unless told not to."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive("method", run.info.seed))
            method = build_method(run.spec["method"], student, teacher, run.spec["hyperparameters"])
            if calibrate:
                torch.manual_seed(derive("calibrate", run.info.seed))
                method.calibrate(SourceCalibration(self.source, self.data, teacher, self.device))
            return method

    def trained_method(self, run: Run, teacher: Vit) -> Method:
        """A finished run's method, frozen, with the state that was kept beside its student.

        Raises:
            UserError: the file is missing, damaged, or not of this method.
        """
        method = self.method(run, self.student(run), teacher, calibrate=False)
        folder = self.workspace.student(run.id)
        students.checked(folder)
        path = folder / "method.safetensors"
        try:
            state = load_file(str(path), device=self.device)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{str(path)!r} cannot be read: {error}; train the run again") from error
        found = method.to(self.device).load_state_dict(state, strict=False)
        missing = [key for key in found.missing_keys if key.split(".")[0] not in method.training_only]
        if missing or found.unexpected_keys:
            raise UserError(
                f"{str(path)!r} is not the state of {run.title}: missing {missing}, unexpected {found.unexpected_keys}"
            )
        frozen(method)
        return method
