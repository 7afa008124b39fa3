"""A method on toys, or a task on its tiny instance: what the contract checks look at.

The toys are timm ViTs with fresh weights, built as a run builds its own: a teacher of width 48, depth 6 and 4
heads, a student of width 32, depth 4 and 2 heads, 32 px in patches of 8, ten classes. A method whose defaults
want more (a layer 23, a rank 64, 98 patches) gets the first of SIZES that it can be built and run on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.api import Batch, Calibration, Method, Outputs, Task, Tiny, frozen
from harness.catalogue import Entry
from harness.checking.watched import watched
from harness.config import Training
from harness.features import Encoder
from harness.models import TimmVit, as_vit, build_model, build_student
from harness.reference import Reference
from harness.registry import load
from harness.seeds import derive
from harness.teachers.planting import plant
from harness.training.train import build_optimizer

BATCH, CLASSES, PATCH, STEPS = 6, 10, 8, 3
STUDENT_WIDTH, STUDENT_HEADS, TEACHER_HEADS = 32, 2, 4
ENCODERS = ("oracle", "blind", "vit", "no CLS")  # that a task is checked on
# Decay would move a parameter that no term reaches.
TRAINING = Training(steps=10, lr=1e-3, weight_decay=0.0)


class Fault(Exception):
    """A check that failed: what is wrong and what to change, in one message."""


@dataclasses.dataclass(frozen=True)
class Size:
    """Teacher's width and depth, student's depth, and the patches a side of both."""

    width: int = 48
    depth: int = 6
    student_depth: int = 4  # 3 would match two teacher blocks to one of the student: harness.matching
    grid: int = 4

    @property
    def image_size(self) -> int:
        return self.grid * PATCH


SIZES = (Size(), Size(96), Size(96, 12, 6), Size(96, 24, 6), Size(96, 12, 6, 14), Size(96, 24, 6, 14))


def toy_teacher(size: Size, *, finer: bool = False, **options: Any) -> TimmVit:
    """A frozen teacher. finer: twice as many patches a side. options: of the timm class, such as reg_tokens=4."""
    patch = PATCH // 2 if finer else PATCH
    spec = {"width": size.width, "depth": size.depth, "heads": TEACHER_HEADS, "patch": patch, "options": options}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return as_vit(frozen(build_model(spec, size.image_size, CLASSES)))


def planted_teacher(size: Size, height: float) -> TimmVit:
    """The toy teacher with artifacts of `height` median norms, from its middle block on."""
    teacher = toy_teacher(size)
    plant(teacher, size.depth // 2, height)
    return teacher


def toy_batch(size: Size, step: int, labels: bool = True) -> Batch:
    """A batch of noise, the same at every call."""
    rng = torch.Generator().manual_seed(derive("toy batch", step))
    images = torch.rand(BATCH, 3, size.image_size, size.image_size, generator=rng)
    classes = torch.randint(CLASSES, (BATCH,), generator=rng)
    return Batch(images, classes if labels else None, torch.arange(BATCH) + step * BATCH, progress=step / 10)


class ToyCalibration(Calibration):
    """Noise images of the teacher's size, the same at every call."""

    samples = 1000

    def __init__(self, teacher: TimmVit) -> None:
        self.teacher = teacher

    @torch.no_grad()
    def outputs(self, images: int, layers: Iterable[int], attention_layers: Iterable[int] = ()) -> Iterator[Outputs]:
        rng = torch.Generator().manual_seed(derive("toy calibration"))
        layers, attention_layers, left = tuple(layers), tuple(attention_layers), min(images, 8 * BATCH)
        while left > 0:
            yield self.teacher(
                torch.rand(min(left, BATCH), 3, *self.teacher.image_size, generator=rng), layers, attention_layers
            )
            left -= BATCH


class Rig:
    """One method on its toys, with an optimiser; it steps as training does."""

    def __init__(
        self, cls: type[Method], student: TimmVit, teacher: TimmVit, values: dict[str, Any], seed: int
    ) -> None:
        self.student, self.teacher = student, teacher
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive("method", seed))
            self.method = cls(student, teacher, **values).train()
            torch.manual_seed(derive("calibrate", seed))
            self.method.calibrate(ToyCalibration(teacher))
        self.seed = seed

    @functools.cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        return build_optimizer(self.student.model, self.method, TRAINING, "cpu")

    def outputs(self, batch: Batch, every_layer: bool = False) -> tuple[Outputs, Outputs]:
        """Student's and teacher's, watched; `every_layer` gives more than the method asks for, as neighbours do."""
        method = self.method
        ours = self.student(
            batch.images,
            range(self.student.depth) if every_layer else method.student_layers,
            method.student_attention,
        )
        with torch.no_grad():
            theirs = self.teacher(
                batch.images,
                range(self.teacher.depth) if every_layer else method.teacher_layers,
                method.teacher_attention,
            )
        return watched(ours), watched(theirs)

    def terms(self, batch: Batch, step: int = 0) -> dict[str, Tensor]:
        """What losses() gives for a batch, its random stream seeded as training seeds it."""
        torch.manual_seed(derive("step", self.seed, step))
        return self.method.losses(*self.outputs(batch), batch)

    def backward(self, terms: Mapping[str, Tensor]) -> None:
        """The gradient of the terms' sum, in every parameter of student and method."""
        loss = torch.stack([term.float() for term in terms.values()]).sum()
        if not loss.requires_grad:
            raise Fault("no term depends on the student; losses() must not detach it or work under no_grad")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """One step of the optimiser; gives the terms, detached."""
        terms = self.terms(batch, step)
        self.backward(terms)
        for group in self.optimizer.param_groups:
            group["lr"] = TRAINING.lr * group["lr_scale"]
        self.optimizer.step()
        return {name: term.detach() for name, term in terms.items()}

    def blocks_without_gradient(self) -> list[int]:
        """Student blocks of which no parameter has a gradient other than zero."""
        return [
            i
            for i in range(self.student.depth)
            if not any(p.grad is not None and bool(p.grad.any()) for p in self.student.block(i).parameters())
        ]


class MethodSpecimen:
    """A method with what all checks share: its class, its default values, the toys that it fits."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry

    @functools.cached_property
    def cls(self) -> type[Method]:
        return load(self.entry)

    @functools.cached_property
    def values(self) -> dict[str, Any]:
        return self.entry.typed({})

    @functools.cached_property
    def _fitted(self) -> Size | Exception:
        _ = self.cls, self.values  # what these raise no other size would mend
        built, error = None, None
        for size in SIZES:
            try:
                rig = self.build(size)
                built = built or size
                rig.terms(toy_batch(size, 0))
                return size
            except Exception as raised:
                error = raised
        # Where losses() fails on all, the first on which it can be built: the checks tell why.
        return built or error or SIZES[0]

    @property
    def size(self) -> Size:
        """The first of SIZES that the method can be built and run on.

        Raises:
            Exception: what __init__ raised on the largest, where it can be built on none.
        """
        if isinstance(self._fitted, Exception):
            raise self._fitted
        return self._fitted

    def student(self, size: Size, **options: Any) -> TimmVit:
        """A fresh student as the method wants it built."""
        depth = options.pop("depth", size.student_depth)
        spec = {"width": STUDENT_WIDTH, "depth": depth, "heads": STUDENT_HEADS, "patch": PATCH}
        return build_student(spec, size.image_size, CLASSES, 0, {**options, **self.cls.student_options})

    def build(self, size: Size | None = None, teacher: TimmVit | None = None, seed: int = 0, **options: Any) -> Rig:
        """The method on a student and a teacher of its own; `options` change the student."""
        size = size or self.size
        teacher = toy_teacher(size) if teacher is None else teacher
        return Rig(self.cls, self.student(size, **options), teacher, self.values, seed)

    @functools.cached_property
    def learns_everywhere(self) -> bool:
        """Whether every block of the student gets a gradient on the plain toys."""
        rig = self.build()
        with torch.autocast("cpu", enabled=False):  # whoever asks
            rig.backward(rig.terms(self.batch()))
        return not rig.blocks_without_gradient()

    @functools.cached_property
    def alone(self) -> list[dict[str, Tensor]]:
        """The terms of the first STEPS steps of seed 0, with nothing else going on."""
        return self.trained()

    def trained(self) -> list[dict[str, Tensor]]:
        """The same, computed again."""
        with streams(0):
            rig = self.build()
            return [rig.step(self.batch(step), step) for step in range(STEPS)]

    def batch(self, step: int = 0, labels: bool = True) -> Batch:
        return toy_batch(self.size, step, labels)


class TaskSpecimen:
    """A task with its tiny instance and the values that its encoders reach, evaluated once."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self._values: dict[str, dict[str, float]] = {}

    @functools.cached_property
    def cls(self) -> type[Task]:
        return load(self.entry)

    @functools.cached_property
    def tiny(self) -> Tiny:
        return self.cls.tiny()

    def encoder(self, which: str) -> Encoder:
        """One of ENCODERS: the "oracle", the "blind" one, or a real ViT: "vit", or "no CLS".

        The real ones come from a teacher with planted artifacts, whose clean twin is known, by no method.
        """
        if which in ("oracle", "blind"):
            given = getattr(self.tiny, which)
            return given if isinstance(given, Encoder) else Encoder(given, identity=which, cache=None)
        size = Size(grid=max(1, self.tiny.oracle.image_size[0] // PATCH))
        options: dict[str, Any] = {"reg_tokens": 4} if which == "vit" else {"class_token": False, "global_pool": "avg"}
        reference = Reference(lambda: planted_teacher(size, 20.0), lambda: planted_teacher(size, 0.0))
        return Encoder(toy_teacher(size, **options), identity=which, cache=None, reference=reference)

    def evaluate(self, encoder: Encoder) -> dict[str, float]:
        return self.tiny.task.evaluate(encoder, seed=0)

    def values(self, which: str) -> dict[str, float]:
        """Metric -> value of an encoder."""
        if which not in self._values:
            self._values[which] = self.evaluate(self.encoder(which))
        return self._values[which]


@contextlib.contextmanager
def streams(seed: int | None = None) -> Iterator[None]:
    """Keep the global random streams of torch, Python and numpy as they were; inside, seeded where a seed is given."""
    kept = torch.get_rng_state(), random.getstate(), np.random.get_state()
    if seed is not None:
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(kept[0])
        random.setstate(kept[1])
        np.random.set_state(kept[2])


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal in shape, type and every bit that counts; NaN equals NaN."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return bool(((a == b) | ((a != a) & (b != b))).all())


def listed(items: Iterable[Any]) -> str:
    """Up to four of them, in words."""
    names = [str(item) for item in items]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
