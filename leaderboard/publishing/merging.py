"""Publications and workspaces merged into a workspace: all of it fits, or nothing is written.

The same record twice is one. Two records of one run and task that say different things are a conflict; there is no
telling which is right, so both are named and people decide. Everything is read and compared before the first write,
every file is written whole, and where a merge is interrupted the same command goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.errors import ConfigError, UserError
from harness.records import Problem, Record, RunInfo, write_atomic
from harness.seeds import content_hash
from leaderboard.labels import clean
from leaderboard.publishing.archive import NotWhole, is_publication, opened
from leaderboard.publishing.contents import (
    AskedFile,
    AskedRun,
    MergedFile,
    Source,
    plain_text,
    read,
    read_asked,
    read_merged,
    read_one,
)
from leaderboard.publishing.manifest import ASKED, MERGED
from leaderboard.publishing.manifest import NAME as MANIFEST
from leaderboard.publishing.packing import experiment_files
from leaderboard.publishing.paths import record_without_paths
from leaderboard.publishing.places import file_above
from leaderboard.publishing.verifying import check

Asked = tuple[list[tuple[RunInfo, str | None]], list[str]]
_MEASURED = ("metrics", "values", "details", "protocol", "task_kind", "seed", "origin")
_OF_WORKSPACES = {"records", "experiments", "students", "groups", "failures", MERGED, "merged"}
_RUN = ("kind", "method", "seed", "condition", "hyperparameters", "spec")


@dataclasses.dataclass(frozen=True)
class Merged:
    """new: names of the records that were written. same: how many were there already."""

    new: tuple[str, ...]
    same: int


@dataclasses.dataclass(frozen=True)
class _Incoming:
    """A source that was verified. origins: record -> the source that it was merged from, where it has one before."""

    id: str
    source: Source
    root: Path
    records: dict[str, Record]
    before: MergedFile
    asked: AskedFile


def merge(sources: Sequence[Path], into: Path, *, asked: Callable[[Path], Asked] | None = None) -> Merged:
    """Merge records, their items and configurations; `merged.json` in the workspace tells where each came from.

    Args:
        asked: of a workspace, the students that its experiments name, and sentences about what is not known.

    Raises:
        ConfigError: records that cannot be trusted or contradict one another, all of them at once. UserError: no
            source there, no workspace to merge into, a disk that refuses.
    """
    _check_workspace(into)
    with contextlib.ExitStack() as stack:
        incoming, faults = _opened(sources, stack, asked)
        if faults:
            raise ConfigError(faults, "nothing is merged")
        new, same, conflicts = _compared(incoming, into)
        if conflicts:
            raise ConfigError(conflicts, "nothing is merged")
        known = {run.id for run, _ in asked(into)[0]} if asked is not None and into.is_dir() else set()
        _kept(incoming, new, into, known)
        for name, one in new.items():
            record = one.records[name]
            target = into / "records" / name
            if target.exists():  # such as a run's that goes on in this workspace; it may say something else
                raise UserError(f"{target} came while the others were merged; the same command compares it and goes on")
            if record.items is not None:
                data = (one.root / "items" / record.items.file).read_bytes()
                _write(into / "items" / record.items.file, data)
            _write(target, (one.root / "records" / name).read_bytes())
    return Merged(tuple(new), same)


def _check_workspace(into: Path) -> None:
    """Raises UserError unless it is a workspace, an empty folder, or none yet where one can be made."""
    if is_publication(into):
        raise UserError(f"{str(into)!r} is a publication or a file, which others may verify; name a workspace")
    if (above := file_above(into)) is not None:
        raise UserError(f"{str(into)!r} cannot be made, since {str(above)!r} is a file; name another place")
    if into.is_dir():
        there = [path.name for path in into.iterdir() if not path.name.startswith(".")]
        if there and not _OF_WORKSPACES.intersection(there):
            raise UserError(
                f"{str(into)!r} is no workspace, and there is {min(there)!r} in it; name a workspace or a new folder"
            )


def _opened(
    sources: Sequence[Path], stack: contextlib.ExitStack, asked: Callable[[Path], Asked] | None
) -> tuple[list[_Incoming], list[str]]:
    incoming, faults = [], []
    for place in sources:
        try:
            one, more = _publication(place, stack) if is_publication(place) else _workspace(place, asked)
        except NotWhole as error:
            one, more = None, list(error.faults)
        faults += [f"{place}: {fault}" for fault in more]
        if one is not None:
            incoming.append(one)
    return incoming, faults


def _publication(place: Path, stack: contextlib.ExitStack) -> tuple[_Incoming | None, list[str]]:
    there = stack.enter_context(opened(place))
    found = check(there)
    if found.faults:
        return None, list(found.faults)
    source = Source(name=clean(place.resolve().name), kind="publication")
    before, asked = read_merged(there.root), read_asked(there.root)
    return _Incoming(found.fingerprint[:16], source, there.root, found.records, before, asked), []


def _workspace(place: Path, asked: Callable[[Path], Asked] | None) -> tuple[_Incoming | None, list[str]]:
    if not place.is_dir():
        raise UserError(f"no publication or workspace {str(place)!r}; name a folder or a zip")
    if (place / ASKED).is_file():  # only publications have one
        return None, [f"{MANIFEST}: missing, so nobody can see whether the rest is what was published"]
    records, faults = read(place)
    if not records and not faults:
        faults = ["no records there, and it is no publication"]
    if faults:
        return None, faults
    identity = content_hash({name: record.model_dump(mode="json") for name, record in records.items()})
    runs, unknown = asked(place) if asked is not None else ([], [])
    said = AskedFile(runs=tuple(AskedRun(run=run, failure=why) for run, why in runs), notes=tuple(unknown))
    source = Source(name=clean(place.resolve().name), kind="workspace")
    return _Incoming(identity, source, place, records, read_merged(place), said), []


def _compared(incoming: Sequence[_Incoming], into: Path) -> tuple[dict[str, _Incoming], int, list[str]]:
    """Which source each new record is taken from, how many are there already, what contradicts."""
    new: dict[str, _Incoming] = {}
    known: dict[str, tuple[Record, str]] = {}
    conflicts, same = [], set()
    for one in incoming:
        for name, record in sorted(one.records.items()):
            if name not in known:
                there = read_one(into / "records" / name)
                if isinstance(there, Problem):
                    conflicts.append(f"records/{name}: the one in {into} is damaged ({there.reason}); set it aside")
                    known[name] = record, one.source.name
                    continue
                known[name] = (there, str(into)) if there is not None else (record, one.source.name)
                if there is None:
                    new[name] = one
                    continue
            other, where = known[name]
            if (what := difference(other, record)) is not None:
                conflicts.append(
                    f"records/{name}: {what[0]} is {what[1]} in {where} and {what[2]} in {one.source.name}"
                )
            elif name not in new:
                same.add(name)
    return new, len(same), conflicts


def difference(one: Record, other: Record) -> tuple[str, str, str] | None:
    """The first thing in which two records of one run and task contradict: its place, and what each says.

    When, where and how fast it was measured may differ, and what the row is called.
    """
    if one == other:
        return None
    ours, theirs = (record_without_paths(record).model_dump(mode="json") for record in (one, other))
    for key in _RUN:
        ours[f"run.{key}"], theirs[f"run.{key}"] = ours["run"][key], theirs["run"][key]
    places = [*(f"run.{key}" for key in _RUN), *_MEASURED]
    if one.items is not None and other.items is not None:
        places.append("items")
    for place in places:
        if ours.get(place) != theirs.get(place):
            where, a, b = _leaf(place, ours.get(place), theirs.get(place))
            return where, _said(a), _said(b)
    return None


def _leaf(place: str, one: Any, other: Any) -> tuple[str, Any, Any]:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in [*one, *(k for k in other if k not in one)]:
            if one.get(key) != other.get(key) or (key in one) != (key in other):
                return _leaf(f"{place}.{clean(key)}", one.get(key, "not there"), other.get(key, "not there"))
    return place, one, other


def _said(value: Any) -> str:
    text = clean(str(value))
    return text if len(text) <= 60 else f"{text[:57]}..."


def _kept(incoming: Sequence[_Incoming], new: dict[str, _Incoming], into: Path, known: set[str]) -> None:
    """Note where the records come from, before the first of them is there, and keep what belongs to them.

    What a source says of another one, or of its configurations, never replaces what is known of that here.

    Args:
        known: ids of the runs that are asked for here already.
    """
    told = read_merged(into)
    sources, records = dict(told.sources), dict(told.records)
    for name, one in new.items():
        origin = one.before.records.get(name, one.id)
        records[name] = origin
        sources.setdefault(origin, one.before.sources.get(origin, one.source))
    kept = MergedFile(sources=dict(sorted(sources.items())), records=dict(sorted(records.items())))
    if kept != told:
        _write(into / MERGED, plain_text(kept).encode())
    for one in incoming:
        failed = any(asked.failure is not None and asked.run.id not in known for asked in one.asked.runs)
        if failed or any(mine is one for mine in new.values()):
            for target, data in _beside(one):
                if not (into / "merged" / target).exists():
                    _write(into / "merged" / target, data)


def _beside(one: _Incoming) -> Iterator[tuple[str, bytes]]:
    """The configurations of a source, and what they ask for."""
    if one.source.kind == "publication":
        folder = one.root / "experiments"
        files = {f"experiments/{p.relative_to(folder).as_posix()}": p for p in sorted(folder.rglob("*.yaml"))}
    else:
        files = experiment_files(one.root)
    for name, path in files.items():
        owner, _, rest = name.removeprefix("experiments/").rpartition("/")
        yield f"{owner or one.id}/experiments/{rest}", path.read_bytes()
    yield f"{one.id}/{ASKED}", plain_text(one.asked).encode()


def _write(path: Path, data: bytes) -> None:
    try:
        write_atomic(path, data)
    except OSError as error:
        raise UserError(f"cannot write {str(path)!r}: {error.strerror}; the same command goes on") from error
