"""UNIC with one teacher: a ladder of heads towards its standardised tokens (Sariyildiz 2024, arXiv 2408.05088)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.api import Batch, Method, Outputs, Vit
from harness.matching import paired_patches

EPSILON = 1e-6  # under a standard deviation, the source's


class UNIC(Method):
    """The mean over CLS and patches of w_cosine (1 - cos) + w_smooth_l1 SmoothL1 to standardised tokens; no labels.

    The teacher's tokens are those of its last block after its final norm, standardised channel by channel with a
    running mean and standard deviation, of CLS and of patches apart. Each step's tokens are standardised with what
    is known before it (at first 0 and 1) and then counted, with a momentum that falls from `momentum_start` to
    `momentum_end` by a half cosine over the training: the source's rule and values. Its standard deviation divides
    by n - 1, this one by n, so that a batch of one image has one.

    The student's side is a ladder: a two-layer GELU head on every block's tokens before the final norm, one for CLS
    and one for patches, and their sum over the blocks. Hidden widths are D_S, and 4 D_S at the last block: 768 and
    3072 for the source's ViT-B. With a single teacher there is no teacher to drop.

    Where a model has no CLS its mean patch stands in. Where the grids differ the teacher's patches are resampled.

    Args:
        ladder: False leaves only the last block's head.
        momentum_start, momentum_end: the weight of the newest batch in the running statistics.

    Attributes:
        cls_heads, patch_heads: ModuleList, a rung each, the last block's last.
        cls_mean, cls_std, patch_mean, patch_std: [D_T], of the teacher.
    """

    name = "unic"
    family = "feature"
    cite = "Sariyildiz et al. 2024, arXiv 2408.05088"
    search: ClassVar[Mapping[str, Any]] = {
        "w_cosine": ("uniform", 0.0, 1.0),
        "w_smooth_l1": ("uniform", 0.0, 1.0),
        "momentum_end": ("log", 1e-4, 1e-2),
        "ladder": ("choice", True, False),
    }

    cls_mean: Tensor
    cls_std: Tensor
    patch_mean: Tensor
    patch_std: Tensor

    def __init__(
        self,
        student: Vit,
        teacher: Vit,
        *,
        ladder: bool = True,
        w_cosine: float = 0.5,
        w_smooth_l1: float = 0.5,
        momentum_start: float = 1.0,
        momentum_end: float = 0.001,
    ) -> None:
        super().__init__(student, teacher)
        last = student.depth - 1
        self.rungs = tuple(range(student.depth)) if ladder else (last,)
        self.of_student, self.of_teacher = last, teacher.depth - 1
        self.student_layers, self.teacher_layers = frozenset(self.rungs), frozenset({self.of_teacher})
        self.w_cosine, self.w_smooth_l1 = w_cosine, w_smooth_l1
        self.momentum_start, self.momentum_end = momentum_start, momentum_end
        hidden = [4 * student.dim if rung == last else student.dim for rung in self.rungs]
        self.cls_heads = nn.ModuleList(_head(student.dim, width, teacher.dim) for width in hidden)
        self.patch_heads = nn.ModuleList(_head(student.dim, width, teacher.dim) for width in hidden)
        for kind in ("cls", "patch"):
            self.register_buffer(f"{kind}_mean", torch.zeros(teacher.dim))
            self.register_buffer(f"{kind}_std", torch.ones(teacher.dim))

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        normed = teacher.normed(self.of_teacher).float()  # [B, N, D_T]
        vector = (_vector(normed, teacher) - self.cls_mean) / (self.cls_std + EPSILON)  # [B, D_T]
        refined = self._standardised(normed, teacher)
        patches = paired_patches(student, teacher, self.of_student, self.of_teacher, refined)[1]  # [B, P, D_T]
        cls_rungs = [head(student.vector(rung)) for rung, head in zip(self.rungs, self.cls_heads, strict=True)]
        patch_rungs = [head(student.patches(rung)) for rung, head in zip(self.rungs, self.patch_heads, strict=True)]
        if self.training:
            self._count(normed, teacher, batch.progress)
        return {
            "cls": 0.5 * self._distance(torch.stack(cls_rungs).float().sum(dim=0), vector),
            "patches": 0.5 * self._distance(torch.stack(patch_rungs).float().sum(dim=0), patches),
        }

    def targets(self, teacher: Outputs) -> Mapping[int, Tensor]:
        """The normed tokens with CLS and patches standardised, as they are at this moment; registers as they are."""
        return {self.of_teacher: self._standardised(teacher.normed(self.of_teacher).float(), teacher)}

    def _standardised(self, normed: Tensor, teacher: Outputs) -> Tensor:
        """[B, N, D_T] -> the same with CLS and patches standardised."""
        prefix, patches = normed[:, : teacher.num_prefix_tokens], normed[:, teacher.num_prefix_tokens :]
        if teacher.has_cls:
            cls = (prefix[:, :1] - self.cls_mean) / (self.cls_std + EPSILON)
            prefix = torch.cat([cls, prefix[:, 1:]], dim=1)
        return torch.cat([prefix, (patches - self.patch_mean) / (self.patch_std + EPSILON)], dim=1)

    def _distance(self, tokens: Tensor, target: Tensor) -> Tensor:
        """[..., D_T] twice -> the mean over tokens."""
        cosine = 1 - F.cosine_similarity(tokens, target, dim=-1).mean()
        return self.w_cosine * cosine + self.w_smooth_l1 * F.smooth_l1_loss(tokens, target)

    @torch.no_grad()
    def _count(self, normed: Tensor, teacher: Outputs, progress: float) -> None:
        """Let the running statistics follow this batch's tokens [B, N, D_T]."""
        fall = 0.5 * (1 + math.cos(math.pi * progress))
        momentum = self.momentum_end + (self.momentum_start - self.momentum_end) * fall
        patches = normed[:, teacher.num_prefix_tokens :].flatten(0, 1)  # [B P, D_T]
        vectors = _vector(normed, teacher)
        for rows, mean, std in ((vectors, self.cls_mean, self.cls_std), (patches, self.patch_mean, self.patch_std)):
            mean.lerp_(rows.mean(dim=0), momentum)
            std.lerp_(rows.std(dim=0, correction=0) + EPSILON, momentum)


def _vector(normed: Tensor, teacher: Outputs) -> Tensor:
    """CLS, or the mean patch without one: [B, N, D_T] -> [B, D_T]."""
    return normed[:, 0] if teacher.has_cls else normed[:, teacher.num_prefix_tokens :].mean(dim=1)


def _head(width: int, hidden: int, out: int) -> nn.Sequential:
    """Linear, GELU, linear, initialised as the source does."""
    first, second = nn.Linear(width, hidden), nn.Linear(hidden, out)
    for linear in (first, second):
        nn.init.trunc_normal_(linear.weight, std=0.02)
        nn.init.zeros_(linear.bias)
    return nn.Sequential(first, nn.GELU(), second)
