"""A whole experiment that takes a second: random images on disk, a fresh toy teacher, toy students."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from harness.config import Experiment, merge, parse
from harness.job import Job
from harness.progress import Console
from harness.runs import Workspace, student_runs

TINY: dict[str, Any] = {
    "name": "tiny",
    "teacher": {"width": 48, "depth": 4, "heads": 4, "patch": 8},
    "student": {"width": 32, "depth": 4, "heads": 2, "patch": 8},
    "data": {"source": "array", "name": "noise", "image_size": 32},
    "training": {"steps": 12, "batch_size": 8, "lr": 1e-3, "warmup_epochs": 0.5},
    "methods": ["none", "fitnet", {"method": "singer", "hyperparameters": {"rank": 8}}],
    "seeds": [0],
    "tasks": [],
    "bounds": False,
    "runtime": {"num_workers": 0, "checkpoint_steps": 5, "log_steps": 4, "device": "cpu"},
}


def images(folder: Path, count: int = 40, classes: int = 4) -> Path:
    """train.npz and test.npz with images whose mean colour tells their class."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        labels = np.arange(count) % classes
        noise = generator.integers(0, 120, (count, 32, 32, 3))
        shade = (labels[:, None] == np.arange(3))[:, None, None, :] * 100
        np.savez(folder / f"{split}.npz", images=(noise + shade).astype(np.uint8), labels=labels)
    return folder


def tiny(folder: Path, **changes: Any) -> Experiment:
    """The tiny experiment with changes laid over it; its images are made in `folder`."""
    raw = merge(copy.deepcopy(TINY), changes)
    raw["data"]["root"] = str(folder / "images")
    if not (folder / "images").is_dir():
        images(folder / "images")
    return parse(raw)


def write(folder: Path, **changes: Any) -> Path:
    """The tiny experiment as a file."""
    path = folder / "tiny.yaml"
    plain = tiny(folder, **changes).model_dump(mode="json")
    path.write_text(yaml.safe_dump(plain))
    return path


def run(experiment: Experiment, workspace: Path) -> Job:
    """Run it to the end, quietly."""
    job = Job(experiment, Workspace(workspace), Console(quiet=True))
    job.run()
    return job


def students(experiment: Experiment, workspace: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Title of each run -> its student's weights and its method's, under names that tell them apart."""
    from safetensors.torch import load_file

    found = {}
    for one in student_runs(experiment):
        folder = Workspace(workspace).student(one.id)
        weights = load_file(folder / "model.safetensors")
        weights.update({f"method.{k}": v for k, v in load_file(folder / "method.safetensors").items()})
        found[one.title] = weights
    return found


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
