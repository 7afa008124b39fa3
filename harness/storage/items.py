"""Items of a record on disk: `items/<run id>.<task id>.safetensors` of a workspace, named by the record. No torch.

Written before the record that has their SHA-256, so that a record never names what was not whole. Whether an image was
right is one bit. A file that is missing or not what its record names is an error in words, and no part of it is read.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from harness.errors import UserError
from harness.items import Items
from harness.records import ItemsInfo, Record, items_name, write_atomic

_BITS = "bits/"  # before the name of a column of bools, eight to a byte


class ItemsError(UserError):
    """A record's items cannot be used: none, missing, changed, or not what the record says. reason: one clause."""

    def __init__(self, record: Record, reason: str) -> None:
        self.reason = reason
        super().__init__(f"items of {record.run.label} (seed {record.run.seed}) on {record.task}: {reason}")


def packed(items: Items) -> bytes:
    """The file of some items. Raises ValueError for what `Items.checked` refuses."""
    arrays = {}
    for name, column in items.checked().columns.items():
        if column.dtype == bool:
            arrays[_BITS + name] = np.packbits(column, axis=0)
        elif column.dtype == np.float32:
            arrays[name] = np.ascontiguousarray(column)
        else:
            arrays[name] = np.ascontiguousarray(column, dtype=np.min_scalar_type(int(column.max())))
    return save(arrays)


def unpacked(data: bytes, info: ItemsInfo) -> Items:
    """The items in a file's bytes. Raises ValueError for what is not what `info` says."""
    try:
        arrays = load(data)
    except SafetensorError as error:
        raise ValueError(f"not a safetensors file ({error})") from None
    except KeyError as error:  # such as bfloat16
        raise ValueError(f"numpy has no type {error}") from None
    columns = {}
    for name, array in arrays.items():
        if not name.startswith(_BITS):
            columns[name] = array
            continue
        if array.dtype != np.uint8 or array.ndim not in (1, 2) or len(array) != (info.count + 7) // 8:
            raise ValueError(f"{name!r} does not hold {info.count} bits")
        columns[name.removeprefix(_BITS)] = np.unpackbits(array, axis=0, count=info.count).astype(bool)
    items = Items(columns, info.metrics, info.independent).checked()
    if items.count != info.count:
        raise ValueError(f"{items.count} items, and the record says {info.count}")
    return items


def write_items(folder: Path, run_id: str, task_id: str, items: Items) -> ItemsInfo:
    """Write `folder/<run id>.<task id>.safetensors` atomically; gives what the record is to say of it.

    Raises:
        ValueError: items that break their contract.
    """
    name, data = items_name(run_id, task_id), packed(items)
    write_atomic(Path(folder) / name, data)
    metrics = {metric: tuple(rule) for metric, rule in items.metrics.items()}
    return ItemsInfo(
        file=name,
        sha256=hashlib.sha256(data).hexdigest(),
        count=items.count,
        metrics=metrics,
        independent=items.independent,
    )


def read_items(folder: Path, record: Record) -> Items:
    """The items that a record names, checked.

    Raises:
        ItemsError: it names none, the file is not there or cannot be read, or it is not what the record names.
    """
    if record.items is None:
        raise ItemsError(record, "the record names none")
    try:
        data = (Path(folder) / record.items.file).read_bytes()
    except FileNotFoundError:
        raise ItemsError(record, f"{record.items.file} is not there") from None
    except OSError as error:
        raise ItemsError(record, f"{record.items.file} cannot be read ({error.strerror})") from None
    if hashlib.sha256(data).hexdigest() != record.items.sha256:
        raise ItemsError(record, f"{record.items.file} is damaged: its checksum is not the one that the record names")
    try:
        return unpacked(data, record.items)
    except ValueError as error:
        raise ItemsError(record, f"{record.items.file}: {error}") from None
