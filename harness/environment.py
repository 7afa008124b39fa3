"""What a result was made on: device, versions, state of the code."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from harness.code_state import code_state
from harness.config import Experiment
from harness.errors import UserError


def device_of(experiment: Experiment) -> str:
    """The device that `runtime.device` names; "auto" is the first GPU, or the CPU."""
    wanted = experiment.runtime.device
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros((), device=wanted)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"runtime.device {wanted!r} cannot be used here: {reason}; try auto or cpu") from error
    return wanted


def environment(device: str) -> dict[str, Any]:
    """Versions, machine and code state, for the record."""
    packages = {}
    for name in ("singer-bench", "torch", "torchvision", "timm", "numpy"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "not installed"
    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or platform.machine()
    return {
        "python": platform.python_version(),
        "packages": packages,
        "device": device,
        "device_name": name,
        "threads": torch.get_num_threads(),
        **code_state(),
    }
