"""What was submitted: one JSON file a unit in `WORKSPACE/jobs/`, replaced whole. No torch.

jobs/<unit id>.json            the latest submission of a unit
jobs/<unit id>.<attempt>.json  one before it, set aside
jobs/ends/<unit id>.<attempt>.json   how its job says it ended; written by the job itself
jobs/submitit/, jobs/snapshots/      submitit's folders with the logs; the code that jobs run

An entry says what was asked for, not what has become of it: a unit is done when the workspace holds its students or
records, whatever its job says (`harness.dispatch.states`).
"""

from __future__ import annotations

import datetime
import re
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from harness.errors import UserError
from harness.records import write_atomic
from harness.runs import Workspace

Kind = Literal["fit", "train", "evaluate"]
Cluster = Literal["slurm", "local"]
State = Literal["waiting", "queued", "running", "requeued", "done", "failed", "lost", "cancelled"]
LIVE: tuple[State, ...] = ("waiting", "queued", "running", "requeued")
BAD: tuple[State, ...] = ("failed", "lost", "cancelled")

_STRICT = ConfigDict(extra="forbid")
_NAME = re.compile(r"[A-Za-z0-9_-]+")  # no dot: `<unit id>.<attempt>.json` splits without doubt


@dataclass(frozen=True, config=_STRICT)
class Unit:
    """What one job does.

    Attributes:
        id: "fit-<run id>", "train-<group id>" or "evaluate-<run id>", the last with a hash of its tasks behind it
            where another evaluation of the same run was still to come when it was submitted.
        runs: ids of runs that are trained together, or evaluated. titles: of the runs, for people.
        experiment: name of experiments/<name>.yaml in the workspace.
        needs: units that must have ended well before this one can begin.
        tasks: keys of the tasks that an evaluation has to do. asked: the same without the state of the code, so that
            an edit does not make another evaluation of one that is still to come.
    """

    id: str
    kind: Kind
    runs: tuple[str, ...]
    titles: tuple[str, ...]
    experiment: str
    needs: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()

    def __str__(self) -> str:
        # A fit is the training of a teacher, whose title says so: "teacher fit seed 0".
        return f"{'evaluate' if self.kind == 'evaluate' else 'train'} {', '.join(self.titles)}"


@dataclass(frozen=True, config=_STRICT)
class Entry:
    """One submission of a unit. Never changed in place: `dataclasses.replace`, then `Ledger.write`.

    Attributes:
        folder: submitit's, relative to the workspace. snapshot: of the code, relative to the workspace.
        submitted: ISO 8601, UTC. attempt: how often the unit has been submitted, this time included.
        resources: what was asked for: the plain values of `harness.specs.Submission`.
        name: of the Slurm job, by which it is found where whoever submitted it died before noting its number.
        index: in its job array, or among what was queued with it; None: it is no part of an array.
        job: Slurm's number, "123_4" in an array, or submitit's local one; None: not started, or not noted.
        log: standard error of the job, relative to the workspace; None: not known yet.
        state, pid, started, host, gpus, restarts: of a local job, written by the queue. started: in kernel ticks.
        ended: ISO 8601, UTC. reason: the last error, in one line.
    """

    unit: Unit
    cluster: Cluster
    folder: str
    snapshot: str
    submitted: str
    attempt: int = 1
    resources: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    index: int | None = None
    job: str | None = None
    log: str | None = None
    state: State = "queued"
    pid: int | None = None
    started: str | None = None
    host: str | None = None
    gpus: tuple[int, ...] = ()
    restarts: int = 0
    ended: str | None = None
    reason: str | None = None

    @property
    def array(self) -> str:
        """Slurm's number of the array that its job is in, or of the job alone."""
        return (self.job or "").partition("_")[0]


@dataclass(frozen=True, config=_STRICT)
class End:
    """How a job says that it ended.

    Attributes:
        outcome: "done": it did all that it could. "failed": an error, which would come again. "stopped": it was asked
            to stop, has saved, and is not started again by itself.
        reason: one line.
    """

    outcome: Literal["done", "failed", "stopped"]
    ended: str
    reason: str | None = None


_ENTRY, _END = TypeAdapter(Entry), TypeAdapter(End)


def now() -> str:
    """This second as ISO 8601, UTC."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


class Ledger:
    """The entries of a workspace. Who submits holds `locks/submit.lock`; a local queue writes its own entries."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace, self.folder = workspace, workspace.jobs

    def entries(self) -> dict[str, Entry]:
        """Unit id -> its latest submission, in the order of submission. Raises UserError for a damaged file."""
        found = [_read(path, _ENTRY) for path in self.folder.glob("*.json") if _NAME.fullmatch(path.stem)]
        return {entry.unit.id: entry for entry in sorted(found, key=lambda e: (e.submitted, e.name, e.index or 0))}

    def entry(self, unit_id: str) -> Entry | None:
        """A unit's latest submission, None where there is none. Raises UserError for a damaged file."""
        path = self.folder / f"{unit_id}.json"
        return _read(path, _ENTRY) if path.is_file() else None

    def attempts(self, unit_id: str) -> list[Entry]:
        """The submissions of a unit that were set aside, the first one first."""
        kept = self.folder.glob(f"{unit_id}.*.json")
        return sorted((_read(path, _ENTRY) for path in kept), key=lambda entry: entry.attempt)

    def set_aside_attempts(self) -> dict[str, int]:
        """Unit id -> the number of its last submission that was set aside."""
        found: dict[str, int] = {}
        for path in self.folder.glob("*.*.json"):
            unit_id, _, attempt = path.stem.partition(".")
            if attempt.isdecimal():
                found[unit_id] = max(int(attempt), found.get(unit_id, 0))
        return found

    def write(self, entry: Entry) -> None:
        """Replace a unit's entry. Raises UserError where the workspace cannot be written."""
        self._write(f"{entry.unit.id}.json", _ENTRY.dump_json(entry, indent=2))

    def set_aside(self, entry: Entry) -> None:
        """Keep an entry under its attempt's number, so that the unit counts as not submitted."""
        self._write(f"{entry.unit.id}.{entry.attempt}.json", _ENTRY.dump_json(entry, indent=2))
        (self.folder / f"{entry.unit.id}.json").unlink(missing_ok=True)

    def restore(self, entry: Entry) -> None:
        """Take `set_aside` back."""
        self.write(entry)
        (self.folder / f"{entry.unit.id}.{entry.attempt}.json").unlink(missing_ok=True)

    def end(self, entry: Entry) -> End | None:
        """How the entry's job says that it ended; None: it has not, or it could not say."""
        path = self._end_of(entry.unit.id, entry.attempt)
        return _read(path, _END) if path.is_file() else None

    def write_end(self, unit_id: str, attempt: int, end: End) -> None:
        """For the job itself."""
        self._write(self._end_of(unit_id, attempt).relative_to(self.folder), _END.dump_json(end, indent=2))

    def begin(self, unit_id: str, attempt: int) -> None:
        """For the job itself: what it said when it was stopped before holds no more."""
        self._end_of(unit_id, attempt).unlink(missing_ok=True)

    def _end_of(self, unit_id: str, attempt: int) -> Path:
        return self.folder / "ends" / f"{unit_id}.{attempt}.json"

    def _write(self, name: str | Path, text: bytes) -> None:
        try:
            write_atomic(self.folder / name, text.decode() + "\n")
        except OSError as error:
            raise UserError(f"cannot write into {str(self.folder)!r}: {error.strerror}") from error


def _read(path: Path, kind: TypeAdapter[Any]) -> Any:
    try:
        return kind.validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        reason = ".".join(str(part) for part in first["loc"]) + ": " + first["msg"]
        raise UserError(
            f"{path} is damaged or of another version ({reason.removeprefix(': ')}); move it away: what it submitted "
            "counts as not submitted then"
        ) from None
