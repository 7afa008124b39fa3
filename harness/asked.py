"""What a workspace's experiments ask for, for tables that say why a number is not there. No torch."""

from __future__ import annotations

from harness.config import Experiment, parse
from harness.errors import UserError
from harness.parsing.yaml_files import read_yaml
from harness.records import RunInfo
from harness.runs import Workspace, student_runs
from harness.storage.integrity import read_json

AskedFor = list[tuple[RunInfo, str | None]]  # students, with why a training failed, or None


def asked_by(experiment: Experiment, workspace: Workspace) -> AskedFor:
    """Every student that an experiment names. Raises UserError where a file that decides a run's identity is gone."""
    runs = student_runs(experiment)
    whys = [workspace.failure(run.id) for run in runs]
    said = [None if why is None else f"at step {why['step']}: {why['reason']}" for why in whys]
    return [(run.info, why) for run, why in zip(runs, said, strict=True)]


def asked_for(workspace: Workspace) -> tuple[AskedFor, list[str]]:
    """Every student that the workspace's experiments and merged results name; sentences about what is unknown.

    A run that several experiments name comes once. A publication is a folder of results too; its asked.json tells all.
    """
    found: dict[str, tuple[RunInfo, str | None]] = {}
    unknown = []
    published = [path for path in [workspace.root / "asked.json"] if path.is_file()]
    for path in [] if published else sorted((workspace.root / "experiments").glob("*.yaml")):
        try:
            asked = asked_by(parse(read_yaml(path), str(path)), workspace)
        except UserError as error:  # such as a checkpoint that was moved: its records can be shown all the same
            unknown.append(f"What experiment {path.stem} asks for is not known: {error}")
            continue
        found |= {info.id: (info, why) for info, why in asked}
    for path in [*published, *sorted((workspace.root / "merged").glob("*/asked.json"))]:
        try:
            said = read_json(path, "take it from its source again")
            theirs = [(RunInfo.model_validate(one["run"]), one["failure"]) for one in said["runs"]]
        except (UserError, ValueError, KeyError, TypeError) as error:
            unknown.append(f"What merged results were asked for is not known: {error}")
            continue
        found = {info.id: (info, why) for info, why in theirs} | found
        unknown += [note for note in said.get("notes", ()) if note not in unknown]
    return list(found.values()), unknown
