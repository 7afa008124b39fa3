"""A workspace -> a publication: one folder or zip that anyone can verify and merge.

records/      as they are in the workspace, byte for byte, but for paths of the machine and for older schemas
items/        the files of single test items that records name
experiments/  the configurations, without paths and without what was asked of a cluster
tables/       the leaderboard in every format, a function of records/ and asked.json
page/         the same to look at, where the page could be built
asked.json    students that the configurations name, and which of them failed
merged.json   where merged records came from
manifest.json checksums and sizes of all of these, the program, what it is about
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from harness.errors import ConfigError, UserError
from harness.records import SCHEMA, Record, RecordError, RunInfo, read_record, record_text
from leaderboard.publishing import archive, manifest
from leaderboard.publishing.contents import (
    AskedFile,
    AskedRun,
    MergedFile,
    configuration,
    plain_text,
    read,
    read_merged,
    tables,
    words_in,
)
from leaderboard.publishing.manifest import ASKED, MERGED, Manifest, Program
from leaderboard.publishing.paths import MARK, marked, record_without_paths, without_paths
from leaderboard.publishing.places import file_above, is_zip, staged
from leaderboard.publishing.verifying import altered

LEFT_OUT = "submit"  # the section of an experiment that names partitions, accounts and a shell's lines
_ARCHIVES = (".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")  # endings that promise what is not made
HEAD = "# As it was run. A path of the machine is (path)/NAME; what was asked of a cluster is left out.\n"

Asked = Iterable[tuple[RunInfo, str | None]]
Page = Callable[..., object]  # (folder with records/, folder to make, asked=, notes=, title=): `leaderboard.page.build`


@dataclasses.dataclass(frozen=True)
class Published:
    """fingerprint: SHA-256 of the manifest, which stands for all of it. notes: what to look at before it is sent."""

    path: Path
    manifest: Manifest
    fingerprint: str
    notes: tuple[str, ...]


def publish(
    workspace: Path,
    output: Path,
    *,
    version: str,
    commit: str | None = None,
    modified: bool | None = None,
    asked: Asked = (),
    unknown: Sequence[str] = (),
    words: Sequence[str] = (),
    page: Page | None = None,
) -> Published:
    """Pack the results of a workspace; the same workspace gives the same bytes.

    Args:
        output: a folder, or a zip where it ends in .zip. An older publication there is replaced.
        version, commit, modified: of the program and its code.
        asked: students that the experiments name, with why their training failed. unknown: what is not known of it.
        words: names that should not be told, such as the user's; where they are found is said.
        page: makes a page of a folder of records.

    Raises:
        ConfigError: records or configurations that are damaged, all of them at once.
        UserError: no records, a name or a place that is none for a publication, a disk that refuses, a record that
            changes meanwhile.
    """
    check_name(output)
    records, faults = read(workspace)
    if not records and not faults:
        raise UserError(
            f"no records in {workspace / 'records'}, so there is nothing to publish; run an experiment first"
        )
    texts, more = _experiments(workspace)
    if faults + more:
        raise ConfigError(faults + more, f"{workspace} is not published, since it is damaged in part")
    check_target(output)
    cleared = {name: record_without_paths(record) for name, record in records.items()}
    for name, record in cleared.items():
        texts[f"records/{name}"] = _text(workspace / "records" / name, records[name], record)
    if strange := [name for name in texts if not manifest.fits(name)]:
        raise UserError(f"{strange[0]!r} cannot be the name of a file in a publication; rename it in {workspace}")
    if twins := manifest.twins(sorted(texts)):
        raise UserError(f"{twins[0]!r} and another name are one where capitals do not count; rename it in {workspace}")
    asked_file = _asked(asked, unknown)
    texts[ASKED] = plain_text(asked_file)
    merged = _merged(workspace, records)
    if merged.records:
        texts[MERGED] = plain_text(merged)
    texts |= tables(cleared.values(), asked_file)
    with staged(output) as folder:
        for name, text in texts.items():
            _write(folder / name, text)
        for record in records.values():
            if record.items is not None:
                _copy(workspace / "items" / record.items.file, folder / "items" / record.items.file)
        if page is not None:
            try:
                page(folder, folder / "page", asked=asked_file.asked(), notes=asked_file.notes, title=_title(texts))
            except UserError as error:
                if isinstance(error.__cause__, OSError):  # the disk's, which is said of the place that was named
                    raise error.__cause__ from None
                raise
        made = Manifest(
            program=Program(version=version, commit=commit, modified=modified, tables=manifest.tables_code()),
            summary=manifest.summary(cleared.values()),
            removed=removed(texts),
            files={name: manifest.entry(folder / name) for name in _names(folder)},
        )
        for record in records.values():
            if record.items is not None and made.files[f"items/{record.items.file}"].sha256 != record.items.sha256:
                raise _moving(workspace / "items" / record.items.file)
        _write(folder / manifest.NAME, made.text())
    said = words_in(((name, text) for name, text in texts.items() if not name.startswith("tables/")), words)
    return Published(output, made, hashlib.sha256(made.text().encode()).hexdigest(), tuple(said))


def removed(texts: dict[str, str]) -> dict[str, tuple[str, ...]]:
    """File -> places in it where a path was taken out."""
    found = {}
    for name, text in sorted(texts.items()):
        if name.startswith("tables/") or MARK not in text:
            continue
        plain = yaml.safe_load(text) if name.endswith(".yaml") else json.loads(text)
        if places := marked(plain):
            found[name] = tuple(places)
    return found


def check_name(output: Path) -> None:
    """Raises UserError where `output` names nothing that can be made."""
    if output.name in ("", "..") or output.name.lower() == ".zip":
        raise UserError(f"{str(output)!r} is no name for a publication; give it one, such as results or results.zip")
    if (above := file_above(output)) is not None:
        raise UserError(f"{str(output)!r} cannot be made, since {str(above)!r} is a file; name another place")
    if output.suffix.lower() in _ARCHIVES and not output.is_dir():
        name = output.stem.removesuffix(".tar")
        raise UserError(f"{str(output)!r}: a publication is a folder or a zip, no {output.suffix}; name it {name}.zip")


def check_target(output: Path) -> None:
    """Raises UserError unless nothing is at `output`, an empty folder, or an older publication and nothing else."""
    remedy = "name another place, or remove it yourself"
    if output.is_symlink():
        raise UserError(f"{str(output)!r} exists and is a link; {remedy}")
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    try:
        with archive.opened(output) as there:
            changed = altered(there)
    except UserError as error:
        raise UserError(f"{str(output)!r} exists and is no publication ({error}); {remedy}") from None
    if changed:
        raise UserError(f"{str(output)!r} exists, and is not what was published there ({changed[0]}); {remedy}")
    if is_zip(output) != output.is_file():
        raise UserError(f"{str(output)!r} is a {'file' if output.is_file() else 'folder'}; {remedy}")


def experiment_text(plain: Any) -> str:
    """A configuration as it is published."""
    kept = {key: value for key, value in plain.items() if key != LEFT_OUT}
    return HEAD + yaml.safe_dump(without_paths(kept), sort_keys=False, allow_unicode=True)


def experiment_files(root: Path) -> dict[str, Path]:
    """The configurations of a workspace, those of merged results in folders of their own: published name -> path."""
    found = {f"experiments/{path.name}": path for path in sorted((root / "experiments").glob("*.yaml"))}
    for path in sorted((root / "merged").glob("*/experiments/*.yaml")):
        found[f"experiments/{path.parents[1].name}/{path.name}"] = path
    return found


def _experiments(workspace: Path) -> tuple[dict[str, str], list[str]]:
    texts, faults = {}, []
    for name, path in experiment_files(workspace).items():
        try:
            texts[name] = experiment_text(configuration(path))
        except (ValueError, RecursionError) as error:
            faults.append(f"{name}: {error}")
    return texts, faults


def _title(texts: Iterable[str]) -> str:
    """Of the page: what the experiments are called. Not what the folder is, since equal results give equal bytes."""
    names = sorted({Path(name).stem for name in texts if name.startswith("experiments/")})
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "results"


def _text(path: Path, record: Record, cleared: Record) -> str:
    """The file's own text where it can be published as it is. Raises UserError if it is another record by now."""
    try:
        if read_record(path) != record:
            raise _moving(path)
        text = path.read_bytes().decode()
    except (RecordError, OSError):
        raise _moving(path) from None
    return text if cleared is record and json.loads(text)["schema_version"] == SCHEMA else record_text(cleared)


def _moving(path: Path) -> UserError:
    return UserError(f"{path} was changed while it was packed; the same command packs it anew")


def _asked(asked: Asked, unknown: Sequence[str]) -> AskedFile:
    runs = {run.id: AskedRun(run=run, failure=failure) for run, failure in asked}
    plain = AskedFile(runs=tuple(runs[i] for i in sorted(runs)), notes=tuple(unknown)).model_dump(mode="json")
    return AskedFile.model_validate(without_paths(plain))


def _merged(workspace: Path, records: dict[str, Record]) -> MergedFile:
    found = read_merged(workspace)
    kept = {name: source for name, source in sorted(found.records.items()) if name in records}
    return MergedFile(sources={i: found.sources[i] for i in sorted(set(kept.values()))}, records=kept)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _names(folder: Path) -> Iterator[str]:
    return iter(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()))
