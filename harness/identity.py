"""What a model, a teacher or a data set is, as plain values to hash: content instead of paths. Imports no torch."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

from harness.catalogue import Catalogue
from harness.errors import UserError, no_file
from harness.specs import EXPORTED, LOCAL, REPAIRS, DataSpec, ModelSpec, TeacherSpec
from harness.twins import twin


def _file_hash(path: Path) -> str:
    """sha256 of a file's content: a checkpoint is known by what it holds, not by where it lies."""
    stat = path.stat()
    return _hash_of(path.resolve(), stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=64)
def _hash_of(path: Path, changed_ns: int, size: int) -> str:
    """Read again whenever the file has changed: gigabytes take seconds, and every run asks."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def model_identity(spec: ModelSpec) -> dict[str, Any]:
    """A model's specification with its files replaced by their content."""
    plain = spec.model_dump(mode="json", exclude={"fit", "planted", "register_teacher", *REPAIRS})
    if spec.checkpoint is not None:
        path = Path(spec.checkpoint)
        if not path.is_file():
            raise UserError(no_file("checkpoint", path))
        plain["checkpoint"] = _file_hash(path)
    folder = spec.exported()
    if folder is not None:
        missing = [name for name in EXPORTED if not (folder / name).is_file()]
        if missing:
            raise UserError(f"{spec.model!r}: {no_file('file', folder / missing[0])}; name an exported model's folder")
        plain["model"] = LOCAL + "-".join(_file_hash(folder / name) for name in EXPORTED)
    return plain


def teacher_identity(spec: TeacherSpec) -> dict[str, Any]:
    """All that decides a teacher's tokens, as plain values. A repair that is not made is not mentioned."""
    spec = twin(spec)
    plain = model_identity(spec)
    plain["fit"] = spec.fit.identity() if spec.fit else None
    # A clean teacher without planting differs from one planted at size 0, whose later blocks are blind.
    plain["planted"] = spec.planted.identity() if spec.planted else None
    repairs = spec.model_dump(mode="json", include=set(REPAIRS), exclude_none=True)
    # Whole, with the settings that are None: a default that changes is another identity.
    return {**plain, **{name: getattr(spec, name).model_dump(mode="json") for name in repairs}}


def data_identity(known: Catalogue, data: DataSpec) -> dict[str, Any]:
    """All that decides what is read: options however they were written, and a plugin source's code."""
    entry = known.entry("source", data.source)
    given, defaults = (known.resolve("source", data.source, options) for options in (data.options, {}))
    plain = {**data.identity(), "options": {k: v for k, v in given.items() if v != defaults[k]}}
    return plain if entry.source_hash is None else {**plain, "code": entry.source_hash}


@functools.cache
def protocol_code() -> str:
    """Hash of the code that a protocol may come from, this project's tasks and harness, file by file.

    Protocols are noted in a workspace so that a plan need not build tasks. What is noted is asked anew after a change
    of this code; records are known by the protocol itself, so nothing is measured again unless that has changed.
    """
    digest = hashlib.sha256()
    here = Path(__file__).resolve().parents[1]
    for folder in ("harness", "tasks"):
        for path in sorted((here / folder).glob("*.py")):
            digest.update(f"{folder}/{path.name}".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()
