"""manifest.json of a publication: what is in it, with checksums; and the names that files of one may have."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.errors import UserError
from harness.records import Record
from leaderboard.labels import clean
from leaderboard.write import SUFFIXES

NAME = "manifest.json"
ASKED = "asked.json"  # the students that the experiments name, and which of them failed
MERGED = "merged.json"  # where merged records came from
FORMAT = 1
_ID = r"[A-Za-z0-9_-]{1,100}"
_PLAIN = r"(?!\.)[^/\\:*?\"<>|\x00-\x1f\x7f]{1,200}(?<![. ])"  # a file's name on any system
_NAMES = re.compile(
    rf"records/{_ID}\.{_ID}\.json|items/{_ID}\.{_ID}\.safetensors|experiments/(?:[0-9a-f]{{16}}/)?{_PLAIN}\.yaml"
    rf"|tables/leaderboard\.(?:{'|'.join(SUFFIXES.values())})|{re.escape(ASKED)}|{re.escape(MERGED)}"
    rf"|page(?:/{_PLAIN}){{1,6}}"
)
_DEVICES = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?", re.IGNORECASE)  # no files on Windows
_LONGEST = 255  # bytes of one part of a path, on most disks


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Entry(_Strict):
    """One file: SHA-256 in hexadecimal, and its size."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(ge=0)]


class Program(_Strict):
    """What packed it. commit, modified: of its code. tables: hash of the code that lays out tables."""

    version: str
    commit: str | None = None
    modified: bool | None = None
    tables: str


class Summary(_Strict):
    """What the records are about, each list sorted."""

    records: int
    runs: int
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    tasks: tuple[str, ...]
    pairs: tuple[str, ...]  # teacher -> student
    data: tuple[str, ...]


class Manifest(_Strict):
    """removed: file -> the places in it where a path of a machine was taken out. files: all but the manifest itself."""

    format: Literal[1] = FORMAT
    program: Program
    summary: Summary
    removed: dict[str, tuple[str, ...]]
    files: dict[str, Entry]

    def text(self) -> str:
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"


def summary(records: Iterable[Record]) -> Summary:
    """Of the records alone, so that anyone can make it again."""
    every = list(records)
    students = [r.run for r in every if r.run.kind == "student"]
    return Summary(
        records=len(every),
        runs=len({r.run.id for r in every}),
        methods=tuple(sorted({run.method for run in students})),
        seeds=tuple(sorted({run.seed for run in students})),
        tasks=tuple(sorted({r.task for r in every})),
        pairs=tuple(sorted({f"{run.teacher} -> {run.student}" for run in students})),
        data=tuple(sorted({r.run.data for r in every})),
    )


def fits(name: str) -> bool:
    """Whether a file of a publication may have this name: no path out of it, nothing hidden, no surprise elsewhere."""
    try:
        return _NAMES.fullmatch(name) is not None and all(
            part != ".." and len(part.encode()) <= _LONGEST and not _DEVICES.fullmatch(part) for part in name.split("/")
        )
    except UnicodeEncodeError:  # bytes that are no text, as some disks allow them
        return False


def twins(names: Iterable[str]) -> list[str]:
    """Names that are one with an earlier one where capitals, or ways to write an accent, are not told apart.

    >>> twins(["page/a", "page/b", "page/A"])
    ['page/A']
    """
    seen: set[str] = set()
    found = []
    for name in names:
        folded = unicodedata.normalize("NFC", name).casefold()
        if folded in seen:
            found.append(name)
        seen.add(folded)
    return found


def parsed(data: bytes, where: Path) -> Manifest:
    """The manifest in these bytes. Raises UserError for what is none."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: {NAME} is cut short or not JSON ({error})") from None
    number = found.get("format") if isinstance(found, dict) else None
    if isinstance(number, int) and number > FORMAT:
        raise UserError(f"{where}: {NAME} has format {number}, newer than this program's {FORMAT}; update singer-bench")
    try:
        return Manifest.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = "".join(f"{clean(str(part))}: " for part in first["loc"])
        raise UserError(f"{where}: {NAME} is no manifest of a publication: {place}{first['msg']}") from None


def entry(path: Path) -> Entry:
    """Checksum and size of a file."""
    digest, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
            size += len(piece)
    return Entry(sha256=digest.hexdigest(), bytes=size)


@functools.cache
def tables_code() -> str:
    """Hash of the code that lays out tables: where it is the same, a table's text must be the same."""
    here = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(here.glob("*.py"), key=os.fspath):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
