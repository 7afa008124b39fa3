"""What moves a student and its method: the optimiser over both, and the learning rate of a step."""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.optim._param_groups import param_groups_weight_decay
from torch import nn

from harness.api import Method
from harness.config import Training


def build_optimizer(student: nn.Module, method: Method, training: Training, device: str) -> torch.optim.Optimizer:
    """AdamW or SGD; no decay on biases, norms and position embeddings (timm's rule); `Method.lr_scale` applied.

    Raises:
        ValueError: lr_scale names no submodule or parameter of the method.
    """
    skip = set(student.no_weight_decay()) if hasattr(student, "no_weight_decay") else set()  # type: ignore[operator]
    groups = _grouped(student, training.weight_decay, 1.0, skip)
    owned: dict[str, nn.Module | nn.Parameter] = {**dict(method.named_children())}
    owned |= dict(method.named_parameters(recurse=False))
    strange = set(method.lr_scale) - set(owned)
    if strange:
        raise ValueError(f"lr_scale of {method.name!r} names {sorted(strange)}; its submodules are {sorted(owned)}")
    for name, part in owned.items():
        module = part if isinstance(part, nn.Module) else nn.ParameterList([part])
        groups += _grouped(module, training.weight_decay, float(method.lr_scale.get(name, 1.0)), set())
    if training.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=training.lr, momentum=training.momentum)
    return torch.optim.AdamW(groups, lr=training.lr, betas=training.betas, fused=device.startswith("cuda"))


def _grouped(module: nn.Module, weight_decay: float, lr_scale: float, skip: set[str]) -> list[dict[str, Any]]:
    found = param_groups_weight_decay(module, weight_decay=weight_decay, no_weight_decay_list=tuple(skip))
    return [{**group, "lr_scale": lr_scale} for group in found if group["params"]]


def lr_share(step: int, steps: int, warmup_steps: int, minimum: float) -> float:
    """Learning rate of a step as a share of the peak: linear warm-up, then a half cosine down to `minimum`."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    way = (step - warmup_steps) / max(1, steps - warmup_steps)
    return minimum + (1 - minimum) * 0.5 * (1 + math.cos(math.pi * way))
