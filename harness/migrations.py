"""Records of older schemas brought to the present one: one function a version. No torch.

Files on disk stay as they are; a record is brought up to date each time it is read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

FIRST = 1  # the oldest schema that is read
Plain = dict[str, Any]


def _from_1(record: Plain) -> Plain:
    """Schema 2 has a checksum behind the record, which is no part of it."""
    return record


def _from_2(record: Plain) -> Plain:
    """Schema 3 names the file of its items, which no older record has."""
    return record


def _from_3(record: Plain) -> Plain:
    """Schema 4 says whether items are independent; of the tasks that were there, episodes alone are not."""
    items = record.get("items")
    if not isinstance(items, dict):
        return record
    return {**record, "items": {**items, "independent": record.get("task_kind") != "few_shot"}}


MIGRATIONS: dict[int, Callable[[Plain], Plain]] = {
    1: _from_1,
    2: _from_2,
    3: _from_3,
}  # version -> what makes of it one of the next


def migrated(record: Plain, to: int) -> Plain:
    """A record's JSON object, `record["schema_version"]` at least FIRST, as one of schema `to`."""
    for version in range(record["schema_version"], to):
        record = {**MIGRATIONS[version](record), "schema_version": version + 1}
    return record
