"""A publication opened without trust in it: a folder as it is, a zip unpacked into a folder of its own.

Nothing is unpacked whose name could lead out of that folder, that is no plain file, or that is larger than the manifest
says. The sum of sizes is bounded before the first byte is written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.errors import UserError
from leaderboard.labels import clean
from leaderboard.publishing import manifest
from leaderboard.publishing.manifest import Manifest

MOST_FILES = 200_000
MOST_BYTES = 16 << 30  # of all files of a publication
MOST_MANIFEST = 64 << 20
MOST_RATIO = 200  # unpacked to packed, beyond the size of a manifest; JSON and safetensors stay far below
PIECE = 1 << 20
_COMPRESSED = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}  # others may ask for memory without bound
_UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)


@dataclasses.dataclass(frozen=True)
class Opened:
    """root: where the files lie. raw: the manifest's bytes. names: of all files. faults: what could not be opened."""

    root: Path
    manifest: Manifest
    raw: bytes
    names: frozenset[str]
    faults: tuple[str, ...]


class NotWhole(UserError):
    """A publication that cannot be opened, though it is meant to be one: cut short, or made to do harm.

    Attributes:
        faults: a sentence each.
    """

    def __init__(self, place: Path, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        super().__init__(f"{place}: {'; '.join(faults)}")


@contextlib.contextmanager
def opened(place: Path) -> Iterator[Opened]:
    """The files of a publication, for as long as the block lasts.

    Raises:
        NotWhole: it cannot be opened. UserError: there is nothing, or no publication.
    """
    if os.path.isdir(place):  # unlike Path's, no error where a folder above may not be looked into
        yield _folder(place)
    elif os.path.isfile(place):
        try:
            temporary = tempfile.TemporaryDirectory(prefix="singer-bench-")
        except OSError as error:
            raise UserError(
                f"{str(place)!r} cannot be unpacked: {error.strerror or error}; set TMPDIR to a folder with room"
            ) from error
        with temporary as folder:
            yield _unpacked(place, Path(folder))
    else:
        raise UserError(f"no publication {str(place)!r}; `singer-bench publish WORKSPACE -o {place.name}` makes one")


def is_publication(place: Path) -> bool:
    """Whether a folder or file is meant to be one."""
    return os.path.isfile(place) or os.path.isfile(place / manifest.NAME)


def _folder(root: Path) -> Opened:
    path = root / manifest.NAME
    try:
        if path.is_symlink() or not path.is_file():
            raise _none(root)
        if path.stat().st_size > MOST_MANIFEST:
            raise NotWhole(root, [f"{manifest.NAME}: larger than {MOST_MANIFEST} bytes"])
        raw = path.read_bytes()
        said = manifest.parsed(raw, root)
        names, faults = _listed(root)
    except OSError as error:
        raise UserError(f"{str(error.filename or root)!r} cannot be read: {error.strerror or error}") from error
    return Opened(root, said, raw, frozenset(names), tuple(faults))


def _none(place: Path) -> UserError:
    remedy = "name what `singer-bench publish` made"
    if (place / "records").is_dir():
        remedy = f"`singer-bench publish {place} -o FOLDER` makes one of a workspace"
    return UserError(f"{str(place)!r} is no publication, since there is no {manifest.NAME} in it; {remedy}")


def _raise(error: OSError) -> None:
    raise error  # `os.walk` passes over what it cannot list, unless it is told otherwise


def _listed(root: Path) -> tuple[list[str], list[str]]:
    """All plain files below a folder; what else is there, as faults. Raises OSError."""
    names: list[str] = []
    faults: list[str] = []
    for folder, below, files in os.walk(root, onerror=_raise):
        for name in [*below, *files]:
            path = Path(folder, name)
            mode = path.lstat().st_mode
            shown = path.relative_to(root).as_posix()
            if stat.S_ISREG(mode):
                names.append(shown)
            elif not stat.S_ISDIR(mode):
                faults.append(f"{clean(shown)}: {'a link' if stat.S_ISLNK(mode) else 'no plain file'}")
        if len(names) > MOST_FILES:
            raise NotWhole(root, [f"more than {MOST_FILES} files, and no more are looked at"])
    return names, faults


def _unpacked(place: Path, folder: Path) -> Opened:
    try:
        with open(place, "rb") as file:
            if file.read(2) != b"PK":
                raise UserError(f"{str(place)!r} is neither a folder nor a zip")
        with zipfile.ZipFile(place) as archive:
            return _checked(place, archive, folder)
    except _UNREADABLE as error:
        raise NotWhole(place, [f"the zip is cut short or damaged ({error})"]) from None
    except OSError as error:
        remedy = "; set TMPDIR to a folder with room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise UserError(f"{str(place)!r} cannot be unpacked: {error.strerror or error}{remedy}") from error


def _checked(place: Path, archive: zipfile.ZipFile, folder: Path) -> Opened:
    infos = [info for info in archive.infolist() if not _is_empty_folder(info)]
    if len(infos) > MOST_FILES:
        raise NotWhole(place, [f"{len(infos)} files, and at most {MOST_FILES} are looked at"])
    found = {info.filename: info for info in infos}
    if manifest.NAME not in found:
        if below := [name for name in found if name.endswith(f"/{manifest.NAME}") and name.count("/") == 1]:
            inner = clean(below[0].removesuffix(f"/{manifest.NAME}"))
            raise UserError(f"{str(place)!r} has its files in a folder {inner!r}; unpack it, and name that folder")
        raise _none(place)
    if faults := _bad(infos):
        raise NotWhole(place, faults)
    raw = _read(archive, found[manifest.NAME], MOST_MANIFEST)
    if raw is None:
        raise NotWhole(place, [f"{manifest.NAME}: larger than {MOST_MANIFEST} bytes"])
    said = manifest.parsed(raw, place)
    most = min(MOST_BYTES, MOST_RATIO * place.stat().st_size + MOST_MANIFEST)
    if (size := sum(entry.bytes for entry in said.files.values())) > most:
        raise NotWhole(place, [f"{size} bytes would be unpacked from {place.stat().st_size}; at most {most} are"])
    faults = []
    for name, info in found.items():
        if name in said.files and (fault := _unpack(archive, info, folder / name, said.files[name].bytes)):
            faults.append(f"{name}: {fault}")
    return Opened(folder, said, raw, frozenset(found), tuple(faults))


def _is_empty_folder(info: zipfile.ZipInfo) -> bool:
    """As other programs put them into a zip; they are not unpacked, since files bring their folders with them."""
    return info.filename.endswith("/") and info.file_size == 0 and manifest.fits(f"page/{info.filename}file")


def _bad(infos: Sequence[zipfile.ZipInfo]) -> list[str]:
    """Faults that are told before anything is unpacked: names that lead out or come twice, no plain files."""
    faults = [f"{clean(name)}: twice in the zip" for name in manifest.twins(info.filename for info in infos)]
    for info in infos:
        name, mode = info.filename, info.external_attr >> 16
        if name != manifest.NAME and not manifest.fits(name):
            faults.append(f"{clean(name)}: no name of a file in a publication")
        elif mode and not stat.S_ISREG(mode) and stat.S_IFMT(mode):
            faults.append(f"{name}: {'a link' if stat.S_ISLNK(mode) else 'no plain file'}")
    if strange := [clean(info.filename) for info in infos if info.compress_type not in _COMPRESSED]:
        more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
        faults.append(f"{strange[0]}: compressed in an unusual way{more}; pack it as an ordinary zip (deflate)")
    return faults


def _unpack(archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, size: int) -> str | None:
    """Unpack one file that has `size` bytes; why that is not possible, or None."""
    if info.file_size != size:  # zipfile reads no more than this, however much is there
        return f"the zip says {info.file_size} bytes and the manifest {size}"
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with archive.open(info) as source, open(target, "xb") as file:
            shutil.copyfileobj(source, file, PIECE)
    except _UNREADABLE as error:
        return f"cannot be unpacked ({error})"
    return None


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo, most: int) -> bytes | None:
    with archive.open(info) as source:
        data = source.read(most + 1)
    return data if len(data) <= most else None
