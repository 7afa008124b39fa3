"""What a workspace's experiments ask for, for tables that say why a number is not there. No torch."""

from __future__ import annotations

from harness.config import parse
from harness.errors import UserError
from harness.parsing.yaml_files import read_yaml
from harness.records import RunInfo
from harness.runs import Workspace, student_runs


def asked_for(workspace: Workspace) -> tuple[list[tuple[RunInfo, str | None]], list[str]]:
    """Every student that the experiments name, with why its training failed, or None; sentences about what is unknown.

    A run that several experiments name comes once.
    """
    found: dict[str, tuple[RunInfo, str | None]] = {}
    unknown = []
    for path in sorted((workspace.root / "experiments").glob("*.yaml")):
        try:
            runs = student_runs(parse(read_yaml(path), str(path)))
            whys = [workspace.failure(run.id) for run in runs]
        except UserError as error:  # such as a checkpoint that was moved: its records can be shown all the same
            unknown.append(f"What experiment {path.stem} asks for is not known: {error}")
            continue
        for run, why in zip(runs, whys, strict=True):
            found[run.id] = run.info, None if why is None else f"at step {why['step']}: {why['reason']}"
    return list(found.values()), unknown
