"""Teachers and students of the sizes that people use, with fresh weights, and groups of them on made-up images."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from harness.api import Batch
from harness.config import Training
from harness.models import TimmVit, build_student, build_teacher
from harness.registry import build_method
from harness.seeds import derive
from harness.training.train import Group, Member


@dataclasses.dataclass(frozen=True)
class Shape:
    """A teacher and a student, as a configuration would name them; image size in pixels, images a batch."""

    title: str
    teacher: Mapping[str, Any]
    student: Mapping[str, Any]
    image_size: int
    classes: int
    batch_size: int


LARGE = Shape(
    "ViT-L/16 -> ViT-Ti/16, 224 px",
    {"model": "vit_large_patch16_224"},
    {"model": "vit_tiny_patch16_224"},
    image_size=224,
    classes=1000,  # the teacher's own, which logit_kd needs
    batch_size=4,
)
LAPTOP = Shape(  # configs/tiny-imagenet.yaml
    "ViT-Ti/16 -> width 96, depth 6, 160 px",
    {"model": "vit_tiny_patch16_224"},
    {"width": 96, "depth": 6, "heads": 3, "patch": 16},
    image_size=160,
    classes=1000,
    batch_size=64,
)
DEMO = Shape(  # configs/demo.yaml
    "width 96, depth 6 -> width 48, depth 4, 64 px",
    {"width": 96, "depth": 6, "heads": 3, "patch": 8},
    {"width": 48, "depth": 4, "heads": 3, "patch": 8},
    image_size=64,
    classes=1000,
    batch_size=64,
)


def teacher_of(shape: Shape, device: str) -> TimmVit:
    torch.manual_seed(0)
    return build_teacher(shape.teacher, shape.image_size, device=device)


def group_of(
    shape: Shape,
    methods: Sequence[str],
    teacher: TimmVit,
    training: Training,
    folder: Path,
    device: str,
    **options: Any,
) -> Group:
    """A group as `harness.job` makes it: one student a method, with the method's defaults. Logs go into `folder`."""
    members = []
    for name in methods:
        student = build_student(shape.student, shape.image_size, shape.classes, seed=0, device=device)
        torch.manual_seed(derive("method", 0))
        method = build_method(name, student, teacher, {})
        log = folder / f"{len(methods)} {name}"
        log.mkdir()
        members.append(Member(name, 0, student, method, log))
    steps = training.steps or 1
    return Group(members, teacher, training, steps, steps_an_epoch=steps, device=device, **options)


def stream(shape: Shape, steps: int, device: str) -> Iterator[Batch]:
    """Batches number 0 .. steps - 1: four batches of noise images, in turn. They are made before any is given."""
    made = [noise(shape, number, device) for number in range(4)]
    for step, batch in zip(range(steps), itertools.cycle(made), strict=False):
        yield dataclasses.replace(batch, progress=step / steps)


def noise(shape: Shape, number: int, device: str) -> Batch:
    draws = torch.Generator().manual_seed(number)
    images = torch.rand(shape.batch_size, 3, shape.image_size, shape.image_size, generator=draws)
    labels = torch.randint(shape.classes, (shape.batch_size,), generator=draws)
    return Batch(images.to(device), labels.to(device), torch.arange(shape.batch_size))
