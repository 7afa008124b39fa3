"""What stands behind a row's numbers, as plain values: its runs with all that decided them. Pure functions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from harness.records import Record
from leaderboard.board import Column, Row
from leaderboard.labels import clean

Curves = Callable[[str], Mapping[str, Any] | None]  # a run's id -> its curve


def detail(
    row: Row, records: Sequence[Record], columns: Sequence[Column], keys: Sequence[str], curves: Curves
) -> dict[str, Any]:
    """What stands behind a row's cells: its runs with all that decided them."""
    runs: dict[str, list[Record]] = {}
    for record in records:
        runs.setdefault(record.run.id, []).append(record)
    places = {column.name: key for column, key in zip(columns, keys, strict=True)}
    found, environments = [], _Numbered()
    for run_id, mine in sorted(runs.items(), key=lambda item: (item[1][0].run.seed, item[0])):
        values = {}
        for record in mine:
            for metric, value in record.values.items():
                info = record.metrics[metric]
                key = places.get((clean(record.task), record.task_id, metric, info.unit, info.direction))
                if key is not None:
                    values[key] = value
        first = one_a_run(mine)[0]
        found.append(
            {
                "id": clean(run_id),
                "seed": first.run.seed,
                "values": values,
                "evaluations": [
                    {
                        "task_id": record.task_id,
                        "created": record.created,
                        "environment": environments.place(record.environment),
                    }
                    for record in sorted(mine, key=lambda record: (record.created, record.task_id))
                ],
                "cost": _told(first),
                "spec": {name: value for name, value in first.run.spec.items() if name != "hyperparameters"},
                "curve": curves(run_id) if row.kind == "student" and row.origin == "measured" else None,
                "pictures": [],
            }
        )
    return {
        "label": row.label,
        "hyperparameters": dict(row.hyperparameters),
        "source": row.source,
        "borrowed": row.borrowed,
        "failures": [[failure.seed, failure.reason] for failure in row.failures],
        "environments": environments.found,
        "runs": found,
    }


class _Numbered:
    """Equal values once: evaluations on one machine repeat its environment."""

    def __init__(self) -> None:
        self.found: list[Any] = []
        self.places: dict[str, int] = {}

    def place(self, value: Any) -> int:
        text = json.dumps(value, sort_keys=True)
        if text not in self.places:
            self.places[text] = len(self.found)
            self.found.append(value)
        return self.places[text]


def _told(record: Record) -> dict[str, Any]:
    return {name: value for name, value in record.cost.model_dump().items() if value is not None}


def one_a_run(records: Sequence[Record]) -> list[Record]:
    """Each run's record with the largest cost: they repeat what its training cost."""
    found: dict[str, Record] = {}
    for record in records:
        held = found.get(record.run.id)
        if held is None or (record.cost.own_s or 0) > (held.cost.own_s or 0):
            found[record.run.id] = record
    return list(found.values())
