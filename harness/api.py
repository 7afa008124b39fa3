"""The contracts: Outputs, Batch, Vit, Method, Task. Imports torch only. Read it first.

One letter, one meaning, throughout the project: B batch, N tokens (prefix + patches), P patches,
D width, C classes, H attention heads, L layers (blocks). Token order is [cls?, registers..., patches...].
Layers are blocks, 0-based, counted after the block and before the final norm.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn


class _Lazy:
    """A dataclass field that takes a value or a function that makes it, called at the first reading.

    It is what lets a ViT stop at the last block that anyone asked for, and go on to its head only if a
    method reads the logits.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self.slot = f"_{name}"

    def __set__(self, instance: Any, value: Any) -> None:
        object.__setattr__(instance, self.slot, value)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            raise AttributeError(self.slot)  # so that dataclass sees a field without a default
        value = getattr(instance, self.slot)
        if not isinstance(value, Tensor) and callable(value):
            value = value()
            object.__setattr__(instance, self.slot, value)
        return value


class Layers(dict):
    """Tensors by block index; a layer that was not asked for is a clear error."""

    def __missing__(self, layer: int) -> Tensor:
        raise KeyError(
            f"layer {layer} was not asked for; given: {sorted(self)}. "
            "A method declares what it reads in student_layers and teacher_layers "
            "(maps in student_attention and teacher_attention)."
        )


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What one ViT makes of one batch.

    Attributes:
        tokens: block index -> [B, N, D], after that block, before the final norm.
        logits: [B, C]; the blocks after the last asked-for layer run only when this is read.
        attention: block index -> [B, H, N, N], rows sum to one; only the layers asked for.
        num_prefix_tokens: how many of the N tokens come before the patches.
        has_cls: whether token 0 is a CLS token.
        grid: rows and columns of the patches.
        norm: the model's final norm, [..., D] -> [..., D].
    """

    tokens: Mapping[int, Tensor]
    logits: _Lazy = _Lazy()  # type: ignore[assignment]
    attention: Mapping[int, Tensor] = dataclasses.field(default_factory=Layers)
    num_prefix_tokens: int = 1
    has_cls: bool = True
    grid: tuple[int, int] | None = None
    norm: Callable[[Tensor], Tensor] | None = None

    @property
    def logits_read(self) -> bool:
        """Whether somebody has read the logits, so that they exist."""
        return isinstance(self._logits, Tensor)  # type: ignore[attr-defined]

    def cls(self, layer: int) -> Tensor:
        """CLS token after `layer`, [B, D]. Raises ValueError for a model without one: see `vector`."""
        if not self.has_cls:
            raise ValueError("this model has no CLS token; use vector(layer), which is the mean patch there")
        return self.tokens[layer][:, 0]

    def patches(self, layer: int) -> Tensor:
        """Patch tokens after `layer`, without CLS and registers: [B, P, D]."""
        return self.tokens[layer][:, self.num_prefix_tokens :]

    def vector(self, layer: int) -> Tensor:
        """One vector an image, [B, D]: CLS, or the mean patch where the model has no CLS token."""
        return self.cls(layer) if self.has_cls else self.patches(layer).mean(dim=1)

    def normed(self, layer: int) -> Tensor:
        """All tokens after `layer` through the model's final norm: [B, N, D]."""
        if self.norm is None:
            raise ValueError("these outputs carry no final norm; they were not made by a Vit")
        return self.norm(self.tokens[layer])


@dataclasses.dataclass(frozen=True)
class Batch:
    """One batch, the same for every student of a group.

    Attributes:
        images: [B, 3, H, W] in [0, 1]; each model normalises for itself.
        labels: [B] int64, or None where the data has none.
        index: [B] int64, the sample's number in its source.
        progress: how far the training is, in [0, 1).
    """

    images: Tensor
    labels: Tensor | None
    index: Tensor
    progress: float = 0.0


class Vit(abc.ABC):
    """A ViT as a method may see it. Not an nn.Module, so a method that stores one owns none of its weights.

    Attributes:
        depth: number of blocks. dim: width D. num_classes: C. has_cls: whether token 0 is a CLS token.
        num_prefix_tokens: CLS, distillation and register tokens before the patches.
        grid: rows and columns of the patches. image_size: (height, width) in pixels that it works at.
    """

    depth: int
    dim: int
    num_classes: int
    num_prefix_tokens: int
    has_cls: bool
    grid: tuple[int, int]
    image_size: tuple[int, int]

    @abc.abstractmethod
    def block(self, layer: int) -> nn.Module:
        """The module of block `layer`."""

    @abc.abstractmethod
    def through(self, layer: int, tokens: Tensor) -> Tensor:
        """Run tokens [B, N, D] through block `layer` (rotary embeddings and the like handled): [B, N, D]."""

    @abc.abstractmethod
    def __call__(
        self,
        images: Tensor,
        layers: Iterable[int] = (),
        attention_layers: Iterable[int] = (),
        keep: Tensor | None = None,
    ) -> Outputs:
        """Images [B, 3, H, W] in [0, 1] -> Outputs; normalises itself; stops at the last layer asked for.

        Args:
            keep: [B, K] int64, numbers of the patches that are seen; the others are dropped after the position
                embedding, and the outputs have K patches and no grid. None: all of them.
        """

    def layer(self, layer: int) -> int:
        """`layer` counted from the front: -1 is the last block. Raises ValueError outside the model."""
        if not -self.depth <= layer < self.depth:
            raise ValueError(f"layer {layer} does not exist; this model has blocks 0 .. {self.depth - 1}")
        return layer % self.depth


class Calibration(abc.ABC):
    """What a method may look at once before its first step: the training images and the teacher on them.

    Attributes:
        samples: how many training images there are; `Batch.index` counts them from 0.
    """

    samples: int

    @abc.abstractmethod
    def outputs(self, images: int, layers: Iterable[int], attention_layers: Iterable[int] = ()) -> Iterator[Outputs]:
        """The teacher's outputs, without gradient, in batches, on `images` training images (fewer where there are
        fewer), every class keeping its share, without augmentation: the same ones for every method and seed.
        """


class Method(nn.Module, abc.ABC):
    """One way of teaching a student from a frozen teacher: one final class, one file.

    parameters() are exactly the extra modules that it trains; the harness optimises student + method
    together. Hyperparameters are keyword-only, annotated, with literal defaults: the command line reads
    them from the source without importing it.

    Class attributes:
        name: the registered name. family: one word for the table of methods. cite: where it comes from.
        student_options: how the student must be built, e.g. {"reg_tokens": 4}.
        teacher_options: how the run's teacher differs from the experiment's, in the words of a configuration's
            `teacher`, e.g. {"test_time_registers": {}}; a method's own entry may change them.
        training_only: own submodules or buffers that only training needs (a memory bank); they are part of
            checkpoints and are not kept beside the student.
        presets: further registered names -> hyperparameter values that define them.
        per_image: whether each term is the mean over images of something that depends on one image alone, without
            random draws or state that `losses` changes. Several ranks then compute it on their own images each;
            else every rank computes it on all of them.
        search: hyperparameter -> space, for equal-budget tuning: ("log", low, high), ("uniform", low, high),
            ("int", low, high) with both ends, or ("choice", a, b, ...); `harness.search` reads them.
    Instance attributes that __init__ may set:
        lr_scale: own submodule's name -> learning-rate multiplier.
        student_layers, teacher_layers: blocks whose tokens it wants.
        student_attention, teacher_attention: blocks whose attention maps it wants.
    Instance attributes that losses() may set:
        seen: further facts of this step for train.jsonl, detached scalars by name; they are averaged as the terms
            are, and are no part of the loss.
    """

    name: ClassVar[str]
    family: ClassVar[str] = "other"
    cite: ClassVar[str]
    student_options: ClassVar[Mapping[str, Any]] = {}
    teacher_options: ClassVar[Mapping[str, Any]] = {}
    training_only: ClassVar[tuple[str, ...]] = ()
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    per_image: ClassVar[bool] = False
    search: ClassVar[Mapping[str, Any]] = {}

    lr_scale: Mapping[str, float] = {}
    student_layers: frozenset[int] = frozenset()
    teacher_layers: frozenset[int] = frozenset()
    student_attention: frozenset[int] = frozenset()
    teacher_attention: frozenset[int] = frozenset()
    seen: Mapping[str, Tensor] = {}

    def __init__(self, student: Vit, teacher: Vit) -> None:
        super().__init__()

    def calibrate(self, calibration: Calibration) -> None:
        """Called once after __init__ and before the optimiser is built, its random stream seeded by the run.

        For what depends on the data: statistics of the teacher's tokens, a memory bank's size. What it finds
        belongs into parameters or buffers, whose shapes it may set.
        """

    @abc.abstractmethod
    def losses(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """The weighted scalar terms; the harness sums and logs them. teacher: detached, shared, read-only."""

    def targets(self, teacher: Outputs) -> Mapping[int, Tensor]:
        """The teacher's tokens as this method has the student imitate them: block index -> [B, N, D].

        For maps and for measuring what a method does to artifacts; training does not call it. By default the
        teacher's own tokens at `teacher_layers`. `teacher` has the tokens of `teacher_layers`.
        """
        return {layer: teacher.tokens[layer] for layer in sorted(self.teacher_layers)}

    def report(self) -> dict[str, Any]:
        """What the method wants kept beside its student: plain numbers, strings and lists."""
        return {}

    def diagnose(self, calibration: Calibration) -> dict[str, Any]:
        """What can be told of the trained method on real images: plain numbers, strings, lists and dicts of them.

        `calibration.samples` is how many images are meant to be looked at.
        `singer-bench diagnose` asks a method that was built from its run's seed and then given its trained state.
        """
        return {}


class Metric(NamedTuple):
    """unit: "fraction" (shown as a percentage), "m", "ratio", ...; direction: "up" or "down" is better.

    ranked: whether it counts in average ranks; False for what describes a model rather than how good it is.
    shown: whether the short table has it beside the task's primary metric, which is always there.
    """

    unit: str
    direction: str
    ranked: bool = True
    shown: bool = False


class Tiny(NamedTuple):
    """A task's smallest instance, with an encoder that sees the truth and one that sees nothing.

    Each is a Vit, or a whole `harness.features.Encoder` where the task asks where it came from (its `reference`).
    """

    task: Task
    oracle: Any
    blind: Any


class Task(abc.ABC):
    """One way of measuring a frozen encoder: one final class, one file.

    Options are keyword-only with literal defaults, like a method's hyperparameters; `data` is given by the
    harness (`harness.data.Data`).

    Class attributes:
        name: the registered name. metrics: name -> Metric, the primary one first.
    """

    name: ClassVar[str]
    metrics: ClassVar[Mapping[str, Metric]]

    @abc.abstractmethod
    def protocol(self) -> dict[str, Any]:
        """All that decides the number, as plain values; its hash is part of a result's identity."""

    @abc.abstractmethod
    def evaluate(self, encoder: Any, *, seed: int) -> dict[str, float]:
        """Metric -> value for `encoder` (`harness.features.Encoder`). Further keys are kept as details.

        `harness.items.Scores` in place of a dict has values of single test items too, in the test source's order, for
        any of the metrics: statistics compare methods item by item with them.

        A metric that does not exist for this encoder is left out (of CLS where it has none, of a clean teacher where
        `encoder.reference` has none); the table shows it as missing, and a row that lacks a primary metric which
        others have gets no average rank. What cannot be computed although it should is an error, never left out.
        """

    @classmethod
    @abc.abstractmethod
    def tiny(cls) -> Tiny:
        """An instance that runs in about a second, for the contract tests.

        Oracle and blind encoder both give the primary metric. Every other metric is given by one of them, or by one of
        the ViTs that the checks evaluate too (fresh weights, with registers or without CLS, from a planted teacher).
        """


def frozen(module: nn.Module) -> nn.Module:
    """The module in evaluation mode with no parameter asking for a gradient."""
    return module.eval().requires_grad_(False)


__all__ = ["Batch", "Calibration", "Layers", "Method", "Metric", "Outputs", "Task", "Tiny", "Vit", "frozen"]
