"""A workspace at one moment: each folder is listed once, where ten thousand runs would ask one by one. No torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from harness.records import Record, read_record, record_path
from harness.runs import Run, TaskRun, Workspace
from harness.storage.integrity import read_json


class Glance(Workspace):
    """Answers as the workspace would have done when this was made; files are read when somebody asks, and once."""

    def __init__(self, root: str | Path) -> None:
        super().__init__(root)
        self._trained = _names(self.students)
        self._failed = {name.removesuffix(".json") for name in _names(self.failures) if name.endswith(".json")}
        self._recorded = _names(self.records)
        self._failures: dict[str, dict[str, Any] | None] = {}
        self._task_ids: dict[str, str | None] = {}
        self._whole: dict[str, bool] = {}
        self._noted: dict[str, set[str]] | None = None  # TaskRun.asked -> task ids, whatever code it was noted with

    def is_trained(self, run: Run) -> bool:
        return run.info.kind != "student" or run.id in self._trained

    def failure(self, run_id: str) -> dict[str, Any] | None:
        if run_id not in self._failed:
            return None
        if run_id not in self._failures:
            self._failures[run_id] = super().failure(run_id)
        return self._failures[run_id]

    def task_id(self, task: TaskRun) -> str | None:
        if task.key not in self._task_ids:
            self._task_ids[task.key] = super().task_id(task)
        return self._task_ids[task.key]

    def has_record(self, run: Run, task: TaskRun) -> bool:
        task_id = self.task_id(task)
        name = f"{run.id}.{task_id}.json"
        if task_id is None or name not in self._recorded:
            return False
        if name not in self._whole:
            self._whole[name] = super().has_record(run, task)
        return self._whole[name]

    def is_unchecked(self, run: Run, task: TaskRun) -> bool:
        """Whether there is a record that may count: it was made by other code, and this code's protocol is not known.

        To know it the task has to be built, which `run` and `submit` do.
        """
        if self.task_id(task) is not None:
            return False
        if self._noted is None:
            self._noted = {}
            for path in self.protocols.glob("*.json"):
                noted = read_json(path, "remove it: it is written anew")
                self._noted.setdefault(noted.get("asked", ""), set()).add(noted["task_id"])
        return any(f"{run.id}.{task_id}.json" in self._recorded for task_id in self._noted.get(task.asked, ()))

    def record(self, run: Run, task: TaskRun) -> Record | None:
        """The record itself, read again; None where there is none that is valid."""
        task_id = self.task_id(task)
        if task_id is None or not self.has_record(run, task):
            return None
        return read_record(record_path(self.records, run.id, task_id))


def _names(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except FileNotFoundError:
        return set()
