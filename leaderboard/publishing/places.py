"""Folders and archives that appear whole or not at all, and what a killed process left beside them."""

from __future__ import annotations

import contextlib
import glob
import os
import platform
import secrets
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

from harness.errors import UserError
from harness.seeds import content_hash

EPOCH = (1980, 1, 1, 0, 0, 0)  # the first time that a zip can tell: every file's, so that the bytes are the same
PARTIAL, OLD = "partial", "old"


def is_zip(target: Path) -> bool:
    """Whether a place is named as a zip, else it is a folder."""
    return target.suffix.lower() == ".zip"


def file_above(place: Path) -> Path | None:
    """The file that stands where a folder above this place would have to be, or None."""
    above = next((path for path in place.absolute().parents if os.path.lexists(path)), None)
    return None if above is None or above.is_dir() else above


@contextlib.contextmanager
def staged(target: Path) -> Iterator[Path]:
    """An empty folder beside `target`, that becomes `target` once the block has ended well: as it is, or as a zip.

    What was at `target` is there until then, and again where the exchange fails. Whether it may go is the caller's
    question.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _clear(target)
        around = _beside(target, PARTIAL)
        folder = around / "content"
        folder.mkdir(parents=True)
        try:
            yield folder
            if is_zip(target):
                _exchange_file(_zipped(folder, _beside(target, PARTIAL)), target)
            else:
                _sync(folder)
                _exchange(folder, target)
        finally:
            shutil.rmtree(around, ignore_errors=True)
    except OSError as error:
        raise UserError(f"cannot write {str(target)!r}: {error.strerror or error}") from error


def _beside(target: Path, what: str) -> Path:
    return target.with_name(f".{target.name}.{_here()}.{os.getpid()}.{secrets.token_hex(4)}.{what}")


def _here() -> str:
    return content_hash(platform.node(), 8)


def _clear(target: Path) -> None:
    """Remove what dead processes of this machine left beside the target; bring the target back from the middle of an
    exchange."""
    for path in sorted(target.parent.glob(f".{glob.escape(target.name)}.{_here()}.*")):
        *_, pid, _, what = path.name.split(".")
        if what not in (PARTIAL, OLD) or not pid.isdigit() or _lives(int(pid)):
            continue
        if what == OLD and not target.exists():
            path.rename(target)
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return pid != os.getpid()


def _zipped(folder: Path, path: Path) -> Path:
    """The files of a folder as a zip, the same bytes for the same files."""
    names = sorted(str(one.relative_to(folder).as_posix()) for one in folder.rglob("*") if one.is_file())
    try:
        with zipfile.ZipFile(path, "x", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
            for name in names:
                info = zipfile.ZipInfo(name, EPOCH)
                info.create_system, info.external_attr, info.compress_type = 3, 0o100644 << 16, zipfile.ZIP_DEFLATED
                info.file_size = (folder / name).stat().st_size  # tells zipfile whether it needs 64 bits
                with open(folder / name, "rb") as source, archive.open(info, "w") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


def _exchange_file(path: Path, target: Path) -> None:
    try:
        os.replace(path, target)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _exchange(folder: Path, target: Path) -> None:
    if not target.exists():
        os.rename(folder, target)
        return
    old = _beside(target, OLD)
    os.rename(target, old)
    try:
        os.rename(folder, target)
    except BaseException:
        os.rename(old, target)
        raise
    shutil.rmtree(old)


def _sync(folder: Path) -> None:
    """All files of a folder survive a power cut once this returns."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
