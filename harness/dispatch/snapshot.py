"""The code that jobs run: a copy taken at submission, so that an edit in the meantime changes no job. No torch.

jobs/snapshots/<hash of all that it holds>/
  harness/, singer/, ...   the packages, as they were on disk
  plugins/<number>/        the experiment's plugin files
  experiment.yaml          the experiment; plugins relative to the snapshot, other paths absolute
  snapshot.json            commit, changes and hash of the code, for the records

The same content is copied once. A snapshot that no entry of the ledger names may be deleted.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import yaml

from harness.code_state import HERE, PACKAGES, SNAPSHOT, code_state, difference
from harness.config import Experiment, parse
from harness.errors import UserError
from harness.parsing.yaml_files import read_yaml
from harness.records import write_atomic
from harness.runs import Workspace

EXPERIMENT = "experiment.yaml"


def take(workspace: Workspace, experiment: Experiment) -> str:
    """Copy code, plugins and the experiment as the workspace remembers it; the folder, relative to the workspace.

    Raises:
        UserError: the workspace cannot be written, or a snapshot in it is not what it was.
    """
    parent = workspace.jobs / "snapshots"
    fresh = parent / f".{os.getpid()}.{secrets.token_hex(4)}.new"
    try:
        for package in PACKAGES:
            shutil.copytree(HERE / package, fresh / package, ignore=shutil.ignore_patterns("__pycache__"))
        _copy_experiment(workspace, experiment, fresh)
        code = _digest(fresh, [path for path in _files(fresh) if path.name != EXPERIMENT])
        state = {**code_state(), "diff": difference(), "code": code}
        (fresh / SNAPSHOT).write_text(json.dumps(state, indent=2) + "\n")
        final = parent / _digest(fresh, _files(fresh))[:16]
        if not final.is_dir():
            os.rename(fresh, final)
        elif _digest(final, _files(final))[:16] != final.name:
            raise UserError(f"{final} has been changed since it was taken; move it away, for jobs must not run it")
    except OSError as error:
        raise UserError(f"cannot copy the code into {str(parent)!r}: {error}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return str(final.relative_to(workspace.root))


def _copy_experiment(workspace: Workspace, experiment: Experiment, fresh: Path) -> None:
    """The remembered experiment, with its plugins copied beside it."""
    plain = read_yaml(workspace.root / "experiments" / f"{experiment.name}.yaml")
    plugins = []
    for number, plugin in enumerate(plain["plugins"]):
        path = Path(plugin)
        if path.is_relative_to(HERE) and path.relative_to(HERE).parts[0] in PACKAGES:
            plugins.append(str(path.relative_to(HERE)))  # one of our own is there already
            continue
        copy = Path("plugins", str(number), path.name)
        (fresh / copy).parent.mkdir(parents=True)
        shutil.copyfile(path, fresh / copy)
        plugins.append(str(copy))
    write_atomic(fresh / EXPERIMENT, yaml.safe_dump({**plain, "plugins": plugins}, sort_keys=False))


def experiment_of(snapshot: Path) -> Experiment:
    """The experiment as it was submitted, with the snapshot's copies of its plugins."""
    plain = read_yaml(snapshot / EXPERIMENT)
    plain["plugins"] = [str(snapshot / plugin) for plugin in plain["plugins"]]
    return parse(plain, str(snapshot / EXPERIMENT))


def shell_lines(snapshot: Path) -> list[str]:
    """What a job's shell does so that Python finds the snapshot before any installation, editable or not.

    `python -m` looks into the working directory first, and only then along PYTHONPATH; what is installed comes last.
    """
    folder = shlex.quote(str(snapshot.resolve()))
    return [f'export PYTHONPATH={folder}"${{PYTHONPATH:+:$PYTHONPATH}}"', f"cd {folder}"]


def _files(folder: Path) -> list[Path]:
    return sorted(_walk(folder))


def _walk(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path


def _digest(folder: Path, files: list[Path]) -> str:
    """sha256 over names and contents."""
    digest = hashlib.sha256()
    for path in files:
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder)}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()
