"""Is a publication what it says: every checksum, every record's own seal and ids, its values those of its test items,
nothing missing, nothing added, and the tables those of its records. Nothing of it is run.

What this cannot tell is whether somebody measured what he says: who writes a value, makes test items to it, seals the
record and makes tables and manifest anew has made another publication. Its fingerprint is another one, and it conflicts
with the first.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.records import Problem, Record
from leaderboard.labels import clean
from leaderboard.publishing import manifest
from leaderboard.publishing.archive import NotWhole, Opened, opened
from leaderboard.publishing.contents import (
    Damaged,
    configuration,
    items_fault,
    numbers,
    read_asked,
    read_merged,
    read_one,
    tables,
    unfit,
)
from leaderboard.publishing.manifest import ASKED, MERGED, Manifest, entry, fits, tables_code, twins
from leaderboard.publishing.paths import MARK, marked

MOST_RECORD = 64 << 20  # bytes
LONGEST = 400  # characters of a fault: names and values in it may be anybody's


@dataclasses.dataclass(frozen=True)
class Verified:
    """What was found.

    Attributes:
        manifest, fingerprint: None and "" where there was none to read. records: those that can be trusted, by file
            name. faults: sentences, each begins with the file that it is about. notes: what could not be told.
    """

    manifest: Manifest | None
    fingerprint: str
    records: dict[str, Record]
    faults: tuple[str, ...]
    notes: tuple[str, ...] = ()


def verify(place: Path) -> Verified:
    """Look at a folder or zip. Raises UserError where there is no publication at all."""
    try:
        with opened(place) as there:
            return check(there)
    except NotWhole as error:
        return Verified(None, "", {}, error.faults)


def check(there: Opened) -> Verified:
    """Look at a publication that is open."""
    faults = altered(there)
    bad = {fault.split(":")[0] for fault in faults}
    records, more = _records(there, bad)
    faults += more
    notes: list[str] = []
    if not faults:  # else every number that follows from the records is wrong too
        faults += [*_derived(there, records), *_experiments(there)]
    if not faults:
        more, notes = _tables(there, records)
        faults += more
        if any(name.startswith("page/") for name in there.names):
            notes.append(
                "page/ holds scripts that a browser runs, and only its checksums were looked at; "
                "`singer-bench page FOLDER -o NEW` makes it anew from the records"
            )
    said = tuple(sorted(map(_short, faults)))
    return Verified(there.manifest, hashlib.sha256(there.raw).hexdigest(), records, said, tuple(notes))


def altered(there: Opened) -> list[str]:
    """What of the files is not as the manifest says: missing, added, changed, not to be read."""
    return [*there.faults, *_names(there), *_sums(there)]


def _short(fault: str) -> str:
    line = clean(fault)
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}..."


def _names(there: Opened) -> list[str]:
    said = there.manifest.files
    known = {fault.split(":")[0] for fault in there.faults}
    faults = [f"{clean(name)}: no name of a file in a publication" for name in said if not fits(name)]
    faults += [f"{clean(name)}: a second name of another file where capitals do not count" for name in twins(said)]
    faults += [f"{name}: missing" for name in said if name not in there.names and name not in known]
    strange = there.names - said.keys() - {manifest.NAME}
    return faults + [f"{clean(name)}: not in the manifest, so it was added" for name in strange]


def _sums(there: Opened) -> list[str]:
    faults = []
    known = {fault.split(":")[0] for fault in there.faults}
    for name, said in there.manifest.files.items():
        path = there.root / name
        if name not in there.names or name in known or not fits(name):
            continue
        try:
            if path.stat().st_size != said.bytes:
                faults.append(f"{name}: it has {path.stat().st_size} bytes, and the manifest says {said.bytes}")
            elif entry(path) != said:
                faults.append(f"{name}: changed, its checksum is not the manifest's")
        except OSError as error:
            faults.append(f"{name}: cannot be read ({error.strerror or error})")
    return faults


def _records(there: Opened, bad: set[str]) -> tuple[dict[str, Record], list[str]]:
    """The records that can be trusted; what is wrong with the others, whether their checksum holds or not."""
    found: dict[str, Record] = {}
    faults = []
    for name in sorted(there.names):
        folder, _, file = name.partition("/")
        path = there.root / name
        if folder != "records" or not fits(name) or not path.is_file():  # not unpacked, which is said already
            continue
        fault = "too large for a record" if path.stat().st_size > MOST_RECORD else None
        record = None if fault else read_one(path)
        if record is None or isinstance(record, Problem):
            faults.append(f"{name}: {record.reason if record else fault}")
            continue
        fault = _unsealed(path) or unfit(record) or _items(there, record, bad)
        if fault:
            faults.append(f"{name}: {fault}")
        elif name not in bad:
            found[file] = record
    named = {f"items/{record.items.file}" for record in found.values() if record.items is not None}
    if not faults and not bad:
        strange = sorted(n for n in there.manifest.files if n.startswith("items/") and n not in named)
        faults += [f"{name}: no record names it" for name in strange]
    return found, faults


def _unsealed(path: Path) -> str | None:
    """`read_record` takes the oldest records without a checksum; a publication has none of these."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 100))
        return None if b'"sha256": "' in file.read() else "it has no checksum of its own"


def _items(there: Opened, record: Record, bad: set[str]) -> str | None:
    if record.items is None:
        return None
    name = f"items/{record.items.file}"
    if name in bad:  # which is said already
        return None
    if name not in there.names:  # nor may a link lead to one
        return f"{name}, which it names, is missing"
    return items_fault(there.root, record)


def _experiments(there: Opened) -> list[str]:
    faults = []
    for name in there.manifest.files:
        if name.startswith("experiments/"):
            try:
                configuration(there.root / name)
            except ValueError as error:
                faults.append(f"{name}: {error}")
    return faults


def _derived(there: Opened, records: dict[str, Record]) -> list[str]:
    """What the manifest and merged.json say of the records."""
    faults = []
    if not records:
        faults.append("records: there is none")
    if manifest.summary(records.values()) != there.manifest.summary:
        faults.append(f"{manifest.NAME}: its summary is not that of the records")
    places = {f"records/{name}": tuple(marked(record.model_dump(mode="json"))) for name, record in records.items()}
    said = {name: where for name, where in there.manifest.removed.items() if name.startswith("records/")}
    if said != {name: where for name, where in places.items() if where}:
        faults.append(f"{manifest.NAME}: the places where it says that {MARK} stands are others")
    if strange := sorted(there.manifest.removed.keys() - there.manifest.files.keys()):
        faults.append(f"{manifest.NAME}: a path was taken out of {strange[0]}, and there is no such file")
    try:
        merged = read_merged(there.root)
        lost = [name for name in merged.records if name not in records]
        lost += [name for name, source in merged.records.items() if source not in merged.sources]
        if lost:
            faults.append(f"{MERGED}: {clean(lost[0])} is no record here, or its source is not told")
    except Damaged as error:
        faults.append(f"{MERGED}: {error.reason}")
    return faults


def _tables(there: Opened, records: dict[str, Record]) -> tuple[list[str], list[str]]:
    """Are the tables those of the records? The text, where the same code lays them out; else the numbers."""
    try:
        made = tables(records.values(), read_asked(there.root))
    except Damaged as error:
        return [f"{ASKED}: {error.reason}"], []
    except (UserError, ValueError, RecursionError) as error:
        return [f"{ASKED}: no table can be made with it ({error})"], []
    if lost := [name for name in made if name not in there.manifest.files]:
        return [f"{lost[0]}: missing"], []
    there_are = {name: (there.root / name).read_bytes() for name in made}
    if there.manifest.program.tables == tables_code():
        return [f"{n}: not the table of these records" for n in made if there_are[n] != made[n].encode()], []
    name = "tables/leaderboard.json"
    if _numbers(there_are[name]) != numbers(made[name]):
        return [f"{name}: its numbers are not those of the records"], []
    return [], [
        f"the tables were laid out by another version of the program ({clean(there.manifest.program.version)}): the "
        "numbers of leaderboard.json are those of the records, and the other formats cannot be compared"
    ]


def _numbers(data: bytes) -> Any:
    try:
        return numbers(data.decode())
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
