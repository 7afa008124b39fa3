"""Small labs whose records have the ids that their content gives them, and hands that tamper with publications."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from test_leaderboard import DEPTH, record, seeds

from harness.items import Items
from harness.records import Record, write_record
from harness.seeds import content_hash
from harness.storage.items import write_items
from leaderboard.publishing.packing import Published, publish

PATH = "/home/lovelace/data/imagenet"


def named(record: Record, **changes: Any) -> Record:
    """With the ids that `harness.runs` would give it; changes are to its run's specification."""
    run = record.run
    spec = {**run.spec, "condition": run.condition, **changes}
    bound = {"kind": run.kind, "seed": run.seed, "condition": run.condition}
    run_id = content_hash(spec if run.kind == "student" else bound)
    task_id = content_hash({"task": record.task_kind, **record.protocol})
    return record.model_copy(update={"task_id": task_id, "run": run.model_copy(update={"id": run_id, "spec": spec})})


def lab(root: Path, *labels: str, condition: str = "c0ffee00", shift: float = 0.0) -> Path:
    """A workspace: three seeds of each method on two tasks, an untrained student, an experiment with paths."""
    records = [r for label in labels for r in seeds(label, 0.5 + shift, 0.6, 0.7, condition=condition)]
    for label in labels:
        records += seeds(label, 1.5, 1.6, task="depth", metrics=DEPTH, condition=condition, own_s=2.0)
    records += seeds("untrained", 0.1, kind="untrained", condition=condition)
    return filled(root, map(named, records))


def filled(root: Path, records: Iterable[Record]) -> Path:
    for one in records:
        write_record(root / "records", one)
    (root / "experiments").mkdir(exist_ok=True)
    plain = {"name": root.name, "data": {"root": PATH}, "submit": {"account": "lovelace"}, "seeds": [0, 1, 2]}
    (root / "experiments" / f"{root.name}.yaml").write_text(yaml.safe_dump(plain))
    return root


def with_items(root: Path) -> Path:
    """A workspace of one record whose value is made of two test items; a file of items that none names."""
    one = named(record("fitnet", value=0.5))
    items = Items({"right": np.array([True, False])}, {"top1": ("mean", "right")})
    filled(root, [one.model_copy(update={"items": write_items(root / "items", one.run.id, one.task_id, items)})])
    (root / "items" / "stray.safetensors").write_bytes(b"of no record")
    return root


def items_of(root: Path) -> Path:
    (path,) = [path for path in (root / "items").iterdir() if path.name != "stray.safetensors"]
    return path


def published(workspace: Path, output: Path, **options: Any) -> Published:
    return publish(workspace, output, version="0", commit="c0ffee", modified=False, **options)


def first_record(folder: Path) -> Path:
    return min((folder / "records").glob("*.json"))


def resealed(path: Path, change: Callable[[dict[str, Any]], object]) -> str:
    """Change a record as somebody would who seals it anew; the name that it keeps."""
    plain = json.loads(path.read_text())
    del plain["sha256"]
    change(plain)
    text = json.dumps(plain, indent=2) + "\n"
    seal = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(text.removesuffix("\n}\n") + f',\n  "sha256": "{seal}"\n}}\n')
    return f"records/{path.name}"


def claimed(folder: Path, **changes: Any) -> None:
    """Write checksums and sizes of what is there into the manifest, as somebody who tampers would."""
    plain = json.loads((folder / "manifest.json").read_text())
    plain["files"] = {
        path.relative_to(folder).as_posix(): {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "bytes": path.stat().st_size,
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }
    (folder / "manifest.json").write_text(json.dumps({**plain, **changes}))


def rezipped(path: Path, change: Callable[[dict[str, bytes]], object]) -> Path:
    """The zip with its files changed: name -> bytes."""
    with zipfile.ZipFile(path) as archive:
        files = {info.filename: archive.read(info) for info in archive.infolist()}
    change(files)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones too."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
