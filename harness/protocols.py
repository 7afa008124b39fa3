"""Protocols by the name of a column, by hash or by a record; and how two differ, in words."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.errors import UserError, unknown
from harness.records import RecordError, read_record, read_records

LEFT_OUT = ("summary",)  # it says in words what the rest says in full


@dataclasses.dataclass(frozen=True)
class Named:
    """A protocol with what it is called: the column's title, the registered task, the hash."""

    title: str
    kind: str
    id: str
    protocol: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.title} ({self.id})"


def of_workspace(workspace: Path) -> list[Named]:
    """The protocols of all records of a workspace, each once, by title.

    Raises:
        UserError: no such workspace, or one without records.
    """
    if not workspace.is_dir():
        raise UserError(f"no workspace {str(workspace)!r}; `singer-bench run CONFIG` makes one")
    records, _ = read_records(workspace / "records")
    found = {r.task_id: Named(r.task, r.task_kind, r.task_id, r.protocol) for r in records}
    if not found:
        raise UserError(f"workspace {str(workspace)!r} has no records yet")
    return sorted(found.values(), key=lambda named: (named.title, named.id))


def find(where: str) -> Named:
    """A record's file, or WORKSPACE/NAME with the title of a column or the beginning of a protocol's hash.

    Raises:
        UserError: nothing of that name, a hash or title that fits several, or a file that is no record.
    """
    path = Path(where)
    if path.is_file():
        try:
            record = read_record(path)
        except RecordError as error:
            raise UserError(f"{where!r} is no record: {error.reason}") from error
        return Named(record.task, record.task_kind, record.task_id, record.protocol)
    known = of_workspace(path.parent)
    name = path.name
    fitting = [n for n in known if n.title == name] or [n for n in known if n.id.startswith(name)]
    if not fitting:
        raise UserError(unknown("protocol", name, [n.title for n in known] + [n.id for n in known]))
    if len(fitting) > 1:
        ids = ", ".join(f"{path.parent / n.id}" for n in fitting)
        raise UserError(f"{where!r} fits {len(fitting)} protocols; name one by its hash: {ids}")
    return fitting[0]


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """What differs, a sentence each: `data.image_size is 160 here and 224 there`."""
    ours, theirs = dict(_flat(one)), dict(_flat(other))
    found = []
    for key in [*ours, *(k for k in theirs if k not in ours)]:
        if key in LEFT_OUT:
            continue
        here, there = (_shown(values[key]) if key in values else None for values in (ours, theirs))
        if here == there:
            continue
        if here is None:
            found.append(f"{key} is not set in the first and {there} in the second")
        elif there is None:
            found.append(f"{key} is {here} in the first and not set in the second")
        else:
            found.append(f"{key} is {here} in the first and {there} in the second")
    return found


def described(one: Named, other: Named) -> str:
    """Both protocols and what differs, in words."""
    head = f"first:  {one}\n        {one.protocol.get('summary', '')}\n"
    head += f"second: {other}\n        {other.protocol.get('summary', '')}\n\n"
    if one.kind != other.kind:
        head += f"They are of different tasks, {one.kind} and {other.kind}.\n"
    found = differences(one.protocol, other.protocol)
    if not found and one.kind == other.kind:
        return head + "Nothing differs: their numbers share a column."
    count = f"{len(found)} setting{'s differ' if len(found) > 1 else ' differs'}: their numbers never share a column."
    return head + "\n".join([count, *(f"  - {line}" for line in found)])


def listing(workspace: Path) -> str:
    """The protocols of a workspace: hash, column, summary."""
    return "\n".join(f"{n.id}  {n.title}: {n.protocol.get('summary', n.kind)}" for n in of_workspace(workspace))


def _flat(value: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves by dotted name; an empty dict is a leaf."""
    for key, item in value.items():
        name = f"{place}{key}"
        if isinstance(item, Mapping) and item:
            yield from _flat(item, f"{name}.")
        else:
            yield name, item


def _shown(value: Any) -> str:
    return "none" if value is None else json.dumps(value, ensure_ascii=False)
