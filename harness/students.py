"""A finished student's folder: run.yaml with the checksums of what decides its numbers, and whether they still hold.

No torch. run.yaml ends with a checksum of its own, in a comment. A folder whose files are not what was written is set
aside, and its run counts as failed: it is neither measured nor trained again until somebody asks for that.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from harness.errors import UserError
from harness.records import write_atomic
from harness.runs import Run, Workspace
from harness.storage.integrity import NOT_ITS_OWN, Damaged, digest, set_aside

SCHEMA = 2  # of run.yaml; the first one had no checksums
CHECKED = ("config.json", "model.safetensors", "method.safetensors")
SEAL = "# sha256 "


def describe(folder: Path, described: Mapping[str, Any]) -> None:
    """Write run.yaml beside the files of a student that is complete; all of them are on the disk when this returns."""
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    files = {name: digest(folder / name) for name in CHECKED}
    text = yaml.safe_dump({"schema_version": SCHEMA, "files": files, **described}, sort_keys=False)
    write_atomic(folder / "run.yaml", f"{text}{SEAL}{_hash(text)}\n")


def described(folder: Path) -> dict[str, Any]:
    """What run.yaml of a student says. One without checksums, of an earlier version, is taken as it is.

    Raises:
        Damaged: it is missing or not as it was written. UserError: a newer version of the program wrote it.
    """
    path = folder / "run.yaml"
    try:
        text = path.read_bytes().decode()
        found = yaml.safe_load(text)
    except FileNotFoundError:
        raise Damaged(path, "it is missing") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise Damaged(path, " ".join(str(error).split())) from None
    if not isinstance(found, dict):
        raise Damaged(path, "it is cut short")
    version = found.get("schema_version", 1)
    if isinstance(version, int) and version > SCHEMA:
        raise UserError(f"{path}: schema {version} is newer than this program's {SCHEMA}; update singer-bench")
    body, mark, seal = text.rpartition(SEAL)
    if mark and seal != f"{_hash(body)}\n":
        raise Damaged(path, NOT_ITS_OWN)
    if version == SCHEMA and not mark:
        raise Damaged(path, "it is cut short")
    return found


def checked(folder: Path, names: Sequence[str] = CHECKED) -> dict[str, Any]:
    """What run.yaml says, once every file that decides numbers has been found to be the one that was written.

    Args:
        names: of the files that are looked at; an exported folder does not have them all.

    Raises:
        Damaged: one is missing or is another. UserError: a newer version of the program wrote it.
    """
    found = described(folder)
    for name, written in found.get("files", {}).items():
        path = folder / name
        try:
            if name in names and digest(path) != written:
                raise Damaged(path, NOT_ITS_OWN)
        except FileNotFoundError:
            raise Damaged(path, "it is missing") from None
    return found


def lose(workspace: Workspace, run: Run, damage: Damaged) -> str:
    """Set a damaged student aside and note its run as failed; returns why, in words."""
    folder = workspace.student(run.id)
    step = logged_step(folder)
    aside = set_aside(folder)
    where = aside.relative_to(workspace.root)
    reason = f"its student was damaged after it was trained ({damage.path.name}: {damage.reason}); set aside as {where}"
    workspace.fail(run, reason=reason, step=step)
    return reason


def logged_step(folder: Path) -> int:
    """The last step that a run has logged, 0 where it has logged none."""
    try:
        lines = (folder / "train.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return 0
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):
            continue  # cut short
    return 0


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
