"""Feature files: arrays on disk that appear whole, are checked before they are used, and keep within a budget.

A file is an .npy with its own SHA-256 behind the array; numpy maps the array and never sees the rest. It is written
under another name (`.NAME.part`), row by row, and renamed when all rows are there. What a killed pass has left is gone
on with: of its rows, those count that were on the disk, for certain, when the progress beside them was written. One
process at a time makes the files of one pass (`harness.storage.locks`); others wait, and find them.

A budget counts what is in the folder; the files that nobody has used for longest go first. On Linux and macOS a file
that goes stays readable for whoever has it mapped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import io
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from harness.errors import UserError
from harness.records import write_atomic
from harness.storage.disk import now_in
from harness.storage.integrity import MARK, PIECE, sealed
from harness.storage.locks import Lock

SYNC_S = 20.0  # seconds between moments at which a pass that dies can be gone on from
ABANDONED_S = 86_400  # a part that nobody has written to for a day belongs to a pass that will not be gone on with
_VERIFIED: set[tuple[str, int, int]] = set()  # path, inode, size: once a process is enough


@dataclasses.dataclass(frozen=True)
class Spec:
    """A file as it has to be: [rows, *shape] of a dtype."""

    path: Path
    rows: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize

    @property
    def bytes(self) -> int:
        """Of the whole file, about."""
        return self.rows * self.row_bytes + 256

    @property
    def part(self) -> Path:
        return self.path.with_name(f".{self.path.name}.part")

    @property
    def progress(self) -> Path:
        return self.path.with_name(f".{self.path.name}.progress")

    def header(self) -> bytes:
        stream = io.BytesIO()
        header = {"descr": np.dtype(self.dtype).str, "fortran_order": False, "shape": (self.rows, *self.shape)}
        np.lib.format.write_array_header_1_0(stream, header)
        return stream.getvalue()


def read(spec: Spec) -> np.ndarray | None:
    """The array as a read-only memory map, marked as used now; None where there is no such file, or it is damaged.

    A damaged file is removed: it is made again from the images.
    """
    try:
        array = np.load(spec.path, mmap_mode="r")
    except (FileNotFoundError, ValueError, EOFError):
        return None
    if array.shape != (spec.rows, *spec.shape) or array.dtype != spec.dtype:
        return None
    found = spec.path.stat()
    key = (str(spec.path), found.st_ino, found.st_size)
    if key not in _VERIFIED:
        if not sealed(spec.path):
            spec.path.unlink(missing_ok=True)
            return None
        _VERIFIED.add(key)
    with contextlib.suppress(OSError):  # a read-only folder is read all the same
        os.utime(spec.path)
    return array


@contextlib.contextmanager
def only_one(path: Path, poll_s: float = 0.5) -> Iterator[None]:
    """Wait until no other process makes the files of this pass, and keep others waiting meanwhile."""
    with Lock(path) as lock:
        while not lock.acquire():
            time.sleep(poll_s)
        yield


class Writer:
    """The files of one pass, row by row, all of them in step.

    Attributes:
        start: rows that are there already, of all files; a multiple of `step`, so that batches are those of a pass
        that was never stopped.
    """

    def __init__(self, specs: Sequence[Spec], step: int) -> None:
        self.specs = list(specs)
        self.start = rows_there(self.specs, step)
        self.files: dict[Path, io.BufferedRandom] = {}
        self.digests = {spec.path: hashlib.sha256() for spec in self.specs}
        self.rows = dict.fromkeys((spec.path for spec in self.specs), self.start)
        self.synced_s = time.monotonic()

    def __enter__(self) -> Writer:
        try:
            for spec in self.specs:
                self._open(spec)
        except OSError as error:
            self._close()
            raise full_disk(error, self.specs) from error
        return self

    def _open(self, spec: Spec) -> None:
        spec.path.parent.mkdir(parents=True, exist_ok=True)
        header = spec.header()
        kept = len(header) + self.start * spec.row_bytes
        if not self.start:
            spec.progress.unlink(missing_ok=True)
            spec.part.write_bytes(header)
        file = self.files[spec.path] = open(spec.part, "r+b")  # noqa: SIM115 - closed by __exit__
        file.truncate(kept)
        left = kept
        while left:
            piece = file.read(min(PIECE, left))
            self.digests[spec.path].update(piece)
            left -= len(piece)

    def write(self, spec: Spec, block: np.ndarray) -> None:
        """The next rows [B, *shape] of a file."""
        data = np.ascontiguousarray(block, dtype=spec.dtype).data.cast("B")
        try:
            self.files[spec.path].write(data)
        except OSError as error:
            raise full_disk(error, self.specs) from error
        self.digests[spec.path].update(data)
        self.rows[spec.path] += len(block)

    def sync(self) -> None:
        """Note how far the files are, now and then; called when all of them have the same number of rows."""
        if time.monotonic() - self.synced_s >= SYNC_S:
            self._note_progress()

    def _note_progress(self) -> None:
        for spec in self.specs:
            self._flush(spec)
            write_atomic(spec.progress, json.dumps({"rows": self.rows[spec.path]}))
        self.synced_s = time.monotonic()

    def _flush(self, spec: Spec) -> None:
        try:
            self.files[spec.path].flush()
            os.fsync(self.files[spec.path].fileno())
        except OSError as error:
            raise full_disk(error, self.specs) from error

    def finish(self) -> None:
        """All rows are written: the files appear under their own names."""
        for spec in self.specs:
            if self.rows[spec.path] != spec.rows:
                raise ValueError(f"{spec.path.name} has {self.rows[spec.path]} rows of {spec.rows}")
            try:
                self.files[spec.path].write(MARK + self.digests[spec.path].hexdigest().encode())
            except OSError as error:
                raise full_disk(error, self.specs) from error
            self._flush(spec)
            os.replace(spec.part, spec.path)
            spec.progress.unlink(missing_ok=True)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, UserError):
            self._close()
            self._discard()  # a full disk gets back what this pass took; a broken image changes the data's identity
            return
        if error is not None:  # asked to stop, or something that nobody foresaw: what is there is not lost
            with contextlib.suppress(OSError, UserError):
                self._note_progress()
        self._close()

    def _close(self) -> None:
        for file in self.files.values():
            with contextlib.suppress(OSError):  # what could not be written a moment ago
                file.close()

    def _discard(self) -> None:
        for spec in self.specs:
            spec.part.unlink(missing_ok=True)
            spec.progress.unlink(missing_ok=True)


def rows_there(specs: Sequence[Spec], step: int) -> int:
    """Rows that a pass which was stopped has left in the parts of all files: a multiple of `step`, or all."""
    rows = min((_resumable(spec) for spec in specs), default=0)
    return min(rows // step * step, min(spec.rows for spec in specs))


def _resumable(spec: Spec) -> int:
    """How many rows of a part can be relied on."""
    try:
        rows = int(json.loads(spec.progress.read_text())["rows"])
        with open(spec.part, "rb") as file:
            header = spec.header()
            same = file.read(len(header)) == header
        enough = spec.part.stat().st_size >= len(header) + rows * spec.row_bytes
    except (OSError, ValueError, KeyError, TypeError):
        return 0
    return rows if same and enough and 0 <= rows <= spec.rows else 0


def full_disk(error: OSError, specs: Sequence[Spec]) -> Exception:
    """A full disk in words; any other error as it is."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return error
    needed = sum(spec.bytes for spec in specs)
    return UserError(
        f"no room for features in {str(specs[0].path.parent.parent)!r} ({error.strerror}): this pass needs "
        f"{needed / 1e9:.2f} GB. Free some, or set runtime.cache_gb (--cache-gb) so that older features go first"
    )


def make_room(folder: Path, specs: Sequence[Spec], keep: Sequence[Path], budget: int | None) -> None:
    """Remove the features that nobody has used for longest until those of `specs` fit into the budget.

    Args:
        keep: files that stay whatever happens. budget: bytes; None: no limit.

    Raises:
        UserError: the budget is too small for this one pass.
    """
    _remove_abandoned(folder)
    if budget is None:
        return
    needed = sum(spec.bytes for spec in specs)
    mine = {spec.part for spec in specs}
    there = [path for path in folder.rglob("*.npy*") if path not in mine]
    sizes, ages = {}, {}
    for path in there:
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            found = path.stat()
            sizes[path], ages[path] = found.st_size, found.st_mtime
    kept = set(keep)
    pinned = sum(size for path, size in sizes.items() if path in kept)
    if needed + pinned > budget:
        raise UserError(
            f"the features of one pass take {(needed + pinned) / 1e9:.2f} GB, and runtime.cache_gb (--cache-gb) allows "
            f"{budget / 1e9:.2f}; allow more, or take fewer images or layers"
        )
    total = sum(sizes.values())
    for path in sorted(sizes, key=lambda p: ages[p]):
        if total + needed <= budget:
            return
        if path in kept or path.name.startswith("."):  # parts and their progress are somebody's who is at work
            continue
        path.unlink(missing_ok=True)
        total -= sizes[path]


def _remove_abandoned(folder: Path) -> None:
    parts = list(folder.rglob(".*.part"))
    now_s = now_in(folder) if parts else 0.0
    for path in parts:
        with contextlib.suppress(FileNotFoundError):
            if now_s - path.stat().st_mtime > ABANDONED_S:
                path.unlink()
                path.with_suffix(".progress").unlink(missing_ok=True)
