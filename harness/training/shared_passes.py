"""A pass over a data set that several ranks make together: each encodes its batches, all into the same files.

Batches are those of one rank, dealt out in turn, so the files have the same bits, and what is there after a round is a
whole beginning that any number of ranks can go on from. Rank 0 makes the files and closes them with their checksums;
before it reads what others have written, all have closed them, which is when a network file system shows it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.errors import UserError
from harness.feature_arrays import ArrayName
from harness.records import write_atomic
from harness.sources import Source, Subset, View
from harness.storage.feature_files import MARK, PIECE, SYNC_S, Spec, full_disk, rows_there
from harness.training import orders
from harness.training.distributed import RankLost, Ranks

if TYPE_CHECKING:
    from harness.features import Encoder


@dataclasses.dataclass(frozen=True)
class PassOrder:
    """What rank 0 tells the others: encode your batches of these samples with the encoder of this run.

    Attributes:
        names: of the arrays, in the order of specs. start: rows that are there already.
    """

    run: str
    source: Source
    view: View
    names: tuple[ArrayName, ...]
    specs: tuple[Spec, ...]
    batch_size: int
    start: int


def lead(ranks: Ranks, encoder: Encoder, order: PassOrder) -> None:
    """Rank 0: the files of a pass, made by all ranks.

    Raises:
        UserError: whatever any rank could not read, encode or write. What is there is removed then.
    """
    order = dataclasses.replace(order, start=rows_there(order.specs, order.batch_size))
    try:
        for spec in order.specs:
            _prepare(spec, order)
        orders.tell(ranks, order)
        encode(ranks, lambda: encoder, order)
        for spec in order.specs:
            _finish(spec, order)
    except RankLost:
        raise  # what is there is gone on with
    except UserError:
        for spec in order.specs:
            spec.part.unlink(missing_ok=True)
            spec.progress.unlink(missing_ok=True)
        raise


def encode(ranks: Ranks, built: Callable[[], Encoder], order: PassOrder) -> None:
    """Every rank: its batches of a pass. Returns when all ranks have written theirs.

    Args:
        built: gives the encoder, which may have to be loaded first.
    """
    rows = _own_rows(ranks, order)
    noted_s = time.monotonic()
    with contextlib.ExitStack() as stack:
        with ranks.together():
            encoder = built()
            files = [stack.enter_context(open(spec.part, "r+b")) for spec in order.specs]
            blocks = encoder.blocks(Subset(order.source, rows), order.view, order.names)
        batches = math.ceil((order.specs[0].rows - order.start) / order.batch_size)
        for number in range(math.ceil(batches / ranks.world)):
            with ranks.together(), _disk(order):
                for at, arrays in _one(blocks):
                    for file, spec, array in zip(files, order.specs, arrays, strict=True):
                        file.seek(len(spec.header()) + int(rows[at]) * spec.row_bytes)
                        file.write(np.ascontiguousarray(array, dtype=spec.dtype).data.cast("B"))
            if ranks.any(time.monotonic() - noted_s >= SYNC_S):
                with ranks.together(), _disk(order):
                    _flush(files)
                if ranks.first:
                    done = order.start + (number + 1) * ranks.world * order.batch_size
                    for spec in order.specs:
                        write_atomic(spec.progress, json.dumps({"rows": min(done, spec.rows)}))
                noted_s = time.monotonic()
        with ranks.together(), _disk(order):
            _flush(files)
            stack.close()


def _own_rows(ranks: Ranks, order: PassOrder) -> np.ndarray:
    """The numbers of this rank's samples: every world-th batch."""
    left = np.arange(order.start, order.specs[0].rows)
    return left[(left - order.start) // order.batch_size % ranks.world == ranks.rank]


def _one(blocks: Iterator[Any]) -> list[Any]:
    found = next(blocks, None)
    return [] if found is None else [found]


@contextlib.contextmanager
def _disk(order: PassOrder) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise full_disk(error, order.specs) from error


def _flush(files: Sequence[Any]) -> None:
    for file in files:
        file.flush()
        os.fsync(file.fileno())


def _prepare(spec: Spec, order: PassOrder) -> None:
    """A part with the header, as long as it will be."""
    with _disk(order):
        spec.path.parent.mkdir(parents=True, exist_ok=True)
        if not order.start:
            spec.progress.unlink(missing_ok=True)
            spec.part.write_bytes(spec.header())
        os.truncate(spec.part, len(spec.header()) + spec.rows * spec.row_bytes)


def _finish(spec: Spec, order: PassOrder) -> None:
    """All rows are there: the file appears under its own name, with its checksum."""
    digest = hashlib.sha256()
    with _disk(order):
        with open(spec.part, "r+b") as file:
            while piece := file.read(PIECE):
                digest.update(piece)
            file.write(MARK + digest.hexdigest().encode())
            _flush([file])
        os.replace(spec.part, spec.path)
        spec.progress.unlink(missing_ok=True)
