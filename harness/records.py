"""The result record: schema, atomic write, read. Imports no torch.

A record is one number-bearing fact: this encoder, on this task, under this protocol. `records/` of a
workspace holds one JSON file a record, `<run id>.<task id>.json`; the leaderboard is a pure function of them.
The last field of a file is the SHA-256 of the rest, so that nobody trusts one that was cut short or changed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import hashlib
import json
import math
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, model_validator

from harness.errors import UserError
from harness.migrations import FIRST, migrated

SCHEMA = 4  # raised when what a file holds changes; harness/migrations.py brings older ones to this one
SEALED = 2  # the first schema whose files have a checksum at their end
LARGEST = 1e150  # its square is still a double, so every mean and spread of values is finite

_ENCODER = json.JSONEncoder(allow_nan=False, ensure_ascii=False)
_END = "\n}\n"
_PRESENT = f'{{\n  "schema_version": {SCHEMA},'.encode()  # how `record_text` begins; what does not is looked at closely
_SEAL = re.compile(rb',\n  "sha256": "([0-9a-f]{64})"\n}\n\Z')
_NAME = re.compile(r"[A-Za-z0-9_-]+")  # no dot: the file's name splits into run and task without doubt


def _blame(value: Any, place: str) -> str | None:
    """The sentence about the first leaf of `value` that JSON cannot hold, or None."""
    if isinstance(value, dict):
        return next(filter(None, (_blame(item, f"{place}.{key}") for key, item in value.items())), None)
    if isinstance(value, list | tuple):
        return next(filter(None, (_blame(item, f"{place}[{i}]") for i, item in enumerate(value))), None)
    if isinstance(value, float) and not math.isfinite(value):
        return f"{place} is {value}; a record holds finite numbers only: leave it out or write None"
    if not isinstance(value, str | int | float | None):
        return f"{place} is a {type(value).__name__}; a record holds plain numbers, strings, lists and dicts"
    return None


def _plain(value: Any, info: ValidationInfo) -> Any:
    """The dict as its own JSON file would give it back, so that reading a written record returns an equal one."""
    if info.mode == "json" or not isinstance(value, dict):
        return value  # plain already, or pydantic's to refuse
    try:
        text = _ENCODER.encode(value)
        text.encode()  # a lone surrogate cannot be written
    except (TypeError, ValueError) as error:
        raise ValueError(_blame(value, info.field_name or "value") or f"{info.field_name}: {error}") from None
    return json.loads(text)


Plain = Annotated[dict[str, Any], BeforeValidator(_plain)]


class MetricInfo(BaseModel):
    """What a value means: unit ("fraction" is shown as a percentage), which direction is better, whether it ranks.

    shown: whether the short table has it beside the primary one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    unit: str
    direction: Literal["up", "down"]
    ranked: bool = True
    shown: bool = False


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
    hyperparameters: Plain = Field(default_factory=dict)
    trials: Annotated[int, Field(gt=0)] | None = None  # settings tried before these were chosen; None: not tuned
    spec: Plain = Field(default_factory=dict)  # everything that was hashed into id


class Cost(BaseModel):
    """What it took. None where it does not apply (a bound was not trained)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    steps: int | None = None
    images_seen: int | None = None
    teacher_s: float | None = None  # the group's shared teacher passes, seconds, undivided
    own_s: float | None = None  # this student's own forward, loss, backward, update
    group_size: int | None = None  # how many students shared the teacher's passes
    evaluation_s: float | None = None
    peak_memory_gb: float | None = None  # of the whole process on CPU, of the device on a GPU
    student_parameters: int | None = None
    method_parameters: int | None = None  # extra modules the method trained


class ItemsInfo(BaseModel):
    """The file of `items/` in which a record's values stand item by item: `harness.storage.items` reads it.

    Attributes:
        file: its name. sha256: of its bytes. count: how many test items there are.
        metrics: metric -> the rule by which its value is made of the items, and the columns that the rule takes.
        independent: whether each is a draw of its own, see `harness.items.Items`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    file: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    count: Annotated[int, Field(gt=0)]
    metrics: dict[str, Annotated[tuple[str, ...], Field(min_length=1)]]
    independent: bool = True


class Record(BaseModel):
    """One run on one task. `values` holds the declared metrics that exist for it; `details` whatever else it gave.

    Raises:
        ValueError: a number that is not finite, a value whose metric is not declared, details that are not
            plain (numbers, strings, lists, dicts, None). Tuples become lists and keys strings, as in the file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    schema_version: int = SCHEMA
    task: str  # the column's name: the task's label in the configuration
    task_kind: str  # the registered task
    task_id: str  # hash of the protocol: different ids never share a column
    metrics: dict[str, MetricInfo]  # primary first
    values: dict[str, float]
    details: Plain = Field(default_factory=dict)
    protocol: Plain
    run: RunInfo
    cost: Cost = Field(default_factory=Cost)
    seed: int  # of the evaluation
    environment: Plain = Field(default_factory=dict)  # versions, device, git commit
    created: str = ""  # ISO 8601, UTC
    origin: Literal["measured", "reported"] = "measured"
    items: ItemsInfo | None = None  # None: the task gave none, or the record is older than they are

    @model_validator(mode="after")
    def _values_are_numbers(self) -> Record:
        for name, value in self.values.items():
            if not abs(value) <= LARGEST:  # written so that nan is refused too
                raise ValueError(
                    f"values.{name} of task {self.task!r} is {value}; a metric is a finite number of at most "
                    f"{LARGEST:g}. The task must decide what to report where it has none"
                )
            if name not in self.metrics:
                raise ValueError(
                    f"values.{name} of task {self.task!r} is not a declared metric ({', '.join(self.metrics)}); "
                    "what else a task gives belongs into details"
                )
        return self

    @model_validator(mode="after")
    def _items_are_its_own(self) -> Record:
        if self.items is None:
            return self
        if self.items.file != items_name(self.run.id, self.task_id):
            raise ValueError(f"items.file is {self.items.file!r}, and not {items_name(self.run.id, self.task_id)!r}")
        if strange := [name for name in self.items.metrics if name not in self.values]:
            raise ValueError(f"items.metrics.{strange[0]} of task {self.task!r} is of a metric without a value")
        return self


class RecordError(UserError):
    """A record file that cannot be trusted: cut short, invalid, misnamed, or of another schema.

    Attributes:
        path: the file. reason: one clause. newer: whether a newer version of the program wrote it.
    """

    def __init__(self, path: Path, reason: str, newer: bool = False) -> None:
        self.path, self.reason, self.newer = path, reason, newer
        super().__init__(f"{path}: {reason}")


@dataclasses.dataclass(frozen=True)
class Problem:
    """A file among the records that is not one, and why."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path.name}: {self.reason}"


def write_atomic(path: Path, content: str | bytes) -> Path:
    """Write `content` (a text in UTF-8) so that `path` holds, at any moment and after a power cut, the old or the new
    whole.

    The folder is made where it does not exist. Line ends are written as given.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if hasattr(os, "O_DIRECTORY"):  # the rename itself is only durable once its folder is
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    return path


def record_path(folder: Path, run_id: str, task_id: str) -> Path:
    """Where the record of this run on this task lies.

    Raises:
        ValueError: an id with other characters than letters, digits, "_" and "-".
    """
    return Path(folder) / f"{_stem(run_id, task_id)}.json"


def items_name(run_id: str, task_id: str) -> str:
    """What the file of this run's items on this task is called in `items/`. Raises ValueError as `record_path` does."""
    return f"{_stem(run_id, task_id)}.safetensors"


def _stem(run_id: str, task_id: str) -> str:
    for what, name in (("run", run_id), ("task", task_id)):
        if not _NAME.fullmatch(name):
            raise ValueError(f"{what} id {name!r} cannot name a file; use letters, digits, '_' and '-'")
    return f"{run_id}.{task_id}"


def write_record(folder: Path, record: Record) -> Path:
    """Write one record atomically over whatever was there for the same run and task; returns its path."""
    return write_atomic(record_path(folder, record.run.id, record.task_id), record_text(record))


def record_text(record: Record) -> str:
    """A record as its file has it: JSON, its last field "sha256" that of the same text without this field."""
    text = record.model_dump_json(indent=2, warnings="error") + "\n"
    return f'{text.removesuffix(_END)},\n  "sha256": "{hashlib.sha256(text.encode()).hexdigest()}"{_END}'


def read_record(path: Path | str) -> Record:
    """The record in one file.

    Raises:
        FileNotFoundError: no such file. Other OSErrors: it cannot be read.
        RecordError: it holds no whole record of this schema, or that of another run and task than its name says.
    """
    with open(path, "rb") as file:
        data = file.read()
    text = _unsealed(data)
    try:
        if text is None or not text.startswith(_PRESENT):
            text = _older(data, text)
        if b"NaN" in text or b"Infinity" in text:  # either part of a string, or not JSON at all
            json.loads(text, parse_constant=_refuse)
        record = Record.model_validate_json(text)
    except ValueError as error:
        raise _explain(Path(path), data, error) from None
    if record.schema_version != SCHEMA or "schema_version" not in record.model_fields_set:
        raise _explain(Path(path), data, None)
    if os.path.basename(path) != f"{record.run.id}.{record.task_id}.json":
        raise RecordError(
            Path(path), f"the name does not fit what is in it, run {record.run.id} on task {record.task_id}"
        )
    return record


def _unsealed(data: bytes) -> bytes | None:
    """The text that a checksum at its end is of; None where there is none, or it is not that of the text."""
    found = _SEAL.search(data, max(0, len(data) - 100))
    if found is None:
        return None
    text = data[: found.start()] + _END.encode()
    return text if hashlib.sha256(text).hexdigest().encode() == found[1] else None


def _older(data: bytes, text: bytes | None) -> bytes:
    """A record of an older schema as one of this schema. Raises ValueError for what is none.

    Args:
        text: what the file's checksum is of; None where it has none, or it is not that of the text.
    """
    found = json.loads(data if text is None else text, parse_constant=_refuse)
    version = found.get("schema_version") if isinstance(found, dict) else None
    if not isinstance(version, int) or not FIRST <= version <= SCHEMA:
        raise ValueError(f"schema_version is {version!r}")
    if text is None and version >= SEALED:
        raise ValueError("changed or cut short since it was written: its checksum is not that of its content")
    return text if text and version == SCHEMA else json.dumps(migrated(found, SCHEMA)).encode()


def _refuse(constant: str) -> None:
    raise ValueError(f"it holds {constant}, and a record holds finite numbers only")


def _explain(path: Path, data: bytes, error: ValueError | None) -> RecordError:
    """Why `data` is not a record; a wrong schema is said before what follows from it."""
    try:
        found = json.loads(data)
    except ValueError as broken:
        return RecordError(path, f"cut short or not JSON ({broken})")
    version = found.get("schema_version") if isinstance(found, dict) else None
    if isinstance(version, int) and version > SCHEMA:
        return RecordError(path, f"schema {version} is newer than this program's {SCHEMA}; update singer-bench", True)
    if not isinstance(version, int) or version < FIRST:
        return RecordError(path, f"not a record of schema {FIRST} to {SCHEMA} (schema_version: {version!r})")
    if not isinstance(error, ValidationError):
        return RecordError(path, str(error))
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return RecordError(path, f"not a valid record: {where + ': ' if where else ''}{first['msg']}{more}")


def read_records(folder: Path) -> tuple[list[Record], list[Problem]]:
    """All records of a folder, sorted by file name, and the .json files there that cannot be trusted as records.

    Temporary files of interrupted writes are not records and no problem. A folder that does not exist yet
    holds none: a workspace has no `records` before its first result.
    """
    try:
        names = sorted(n for n in os.listdir(folder) if n.endswith(".json") and not n.startswith("."))
    except FileNotFoundError:
        return [], []
    records: list[Record] = []
    problems: list[Problem] = []
    with _no_collector():
        for name in names:
            path = os.path.join(folder, name)
            try:
                records.append(read_record(path))
            except RecordError as error:
                problems.append(Problem(error.path, error.reason))
            except OSError as error:
                problems.append(Problem(Path(path), f"cannot be read ({error.strerror})"))
    return records, problems


@contextlib.contextmanager
def _no_collector() -> Iterator[None]:
    """Thousands of records are trees without cycles; looking for cycles in them takes twice as long as reading."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def has_record(folder: Path, run_id: str, task_id: str) -> bool:
    """Whether a valid record of this run on this task exists; a damaged one counts as none.

    Raises:
        RecordError: it was written by a newer version, and must not be overwritten by an older one.
    """
    try:
        read_record(record_path(folder, run_id, task_id))
    except FileNotFoundError:
        return False
    except RecordError as error:
        if error.newer:
            raise
        return False
    return True
