"""The result record: schema, atomic write, read. Imports no torch.

A record is one number-bearing fact: this encoder, on this task, under this protocol. `records/` of a
workspace holds one JSON file a record, `<run id>.<task id>.json`; the leaderboard is a pure function of them.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA = 1  # raised when a field changes its meaning


class MetricInfo(BaseModel):
    """What a value means: unit ("fraction" is shown as a percentage) and which direction is better."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    unit: str
    direction: Literal["up", "down"]


class RunInfo(BaseModel):
    """Who was measured. kind "student" was trained here; "teacher" and "untrained" are bounds."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    id: str
    kind: Literal["student", "teacher", "untrained"]
    label: str  # the row's name
    method: str  # the registered name, or the kind for a bound
    seed: int
    teacher: str  # short name of the teacher, e.g. its timm name
    student: str  # short name of the student; "" for a teacher's own row
    data: str  # name of the distillation data
    condition: str  # hash of all that decides the student but method, hyperparameters and seed
    hyperparameters: dict[str, Any] = Field(default_factory=dict)
    spec: dict[str, Any] = Field(default_factory=dict)  # everything that was hashed into id


class Cost(BaseModel):
    """What it took. None where it does not apply (a bound was not trained)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    steps: int | None = None
    images_seen: int | None = None
    teacher_s: float | None = None  # the group's shared teacher passes, seconds, undivided
    own_s: float | None = None  # this student's own forward, loss, backward, update
    group_size: int | None = None  # how many students shared the teacher's passes
    evaluation_s: float | None = None
    peak_memory_gb: float | None = None  # of the whole process on CPU, of the device on a GPU
    student_parameters: int | None = None
    method_parameters: int | None = None  # extra modules the method trained


class Record(BaseModel):
    """One run on one task. `values` holds the task's declared metrics; `details` whatever else it gave."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    schema_version: int = SCHEMA
    task: str  # the column's name: the task's label in the configuration
    task_kind: str  # the registered task
    task_id: str  # hash of the protocol: different ids never share a column
    metrics: dict[str, MetricInfo]  # primary first
    values: dict[str, float]
    details: dict[str, Any] = Field(default_factory=dict)
    protocol: dict[str, Any]
    run: RunInfo
    cost: Cost = Field(default_factory=Cost)
    seed: int  # of the evaluation
    environment: dict[str, Any] = Field(default_factory=dict)  # versions, device, git commit
    created: str = ""  # ISO 8601, UTC
    origin: Literal["measured", "reported"] = "measured"
