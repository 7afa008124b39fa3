"""What methods share by function: which layers, which tokens, which projectors. Imports harness.api only."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, cat, nn

from harness.api import Outputs, Vit


def default_layers(teacher: Vit) -> tuple[int, ...]:
    """Three quarters up and the last block: 8, 11 of 12 and 17, 23 of 24, as SiNGER's configurations have."""
    return tuple(sorted({math.floor(0.75 * teacher.depth + 0.5) - 1, teacher.depth - 1} - {-1}))


def match_layers(
    student: Vit, teacher: Vit, layers: Sequence[int] | None, student_layers: Sequence[int] | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Student and teacher layers of equal number, ascending, counted from the front.

    Args:
        layers: the teacher's, negative allowed; None: `default_layers`.
        student_layers: None matches proportionally: floor((l + 1) depth_s / depth_t + 1/2) - 1, last to last.

    Raises:
        ValueError: layers outside a model, not strictly increasing, or of unequal number.
    """
    of_teacher = default_layers(teacher) if layers is None else tuple(teacher.layer(i) for i in layers)
    if student_layers is None:
        ratio = student.depth / teacher.depth
        of_student = tuple(math.floor((i + 1) * ratio + 0.5) - 1 for i in of_teacher)
    else:
        of_student = tuple(student.layer(i) for i in student_layers)
    for whose, found in (("teacher", of_teacher), ("student", of_student)):
        if not found or any(b <= a for a, b in zip((-1, *found), found, strict=False)):
            raise ValueError(
                f"the {whose}'s layers {found} are not strictly increasing (teacher layers {of_teacher} of "
                f"{teacher.depth}, student layers {of_student} of {student.depth}); give fewer layers or "
                "name student_layers"
            )
    if len(of_teacher) != len(of_student):
        raise ValueError(
            f"{len(of_teacher)} teacher layers {of_teacher} against {len(of_student)} student layers {of_student}"
        )
    return of_student, of_teacher


def resample_patches(patches: Tensor, grid: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Patch tokens [B, P, D] on `grid` -> [B, P', D] on `new`, bilinearly."""
    maps = patches.transpose(1, 2).unflatten(2, grid)  # [B, D, rows, columns]
    return F.interpolate(maps, size=new, mode="bilinear", align_corners=False, antialias=True).flatten(2).transpose(1, 2)


def shared_tokens(of: Outputs, layer: int, other: Outputs, tokens: Tensor | None = None) -> Tensor:
    """The tokens of `of` that `other` has a counterpart for: CLS where both have one, and the patches.

    Registers and distillation tokens have no counterpart and are left out. `tokens` [B, N, D] stands in for
    `of.tokens[layer]` where a method has transformed them. Returns [B, N', D].
    """
    tokens = of.tokens[layer] if tokens is None else tokens
    with_cls = of.has_cls and other.has_cls
    if of.num_prefix_tokens == int(with_cls):
        return tokens
    patches = tokens[:, of.num_prefix_tokens :]
    return cat([tokens[:, :1], patches], dim=1) if with_cls else patches


def paired_tokens(
    student: Outputs, teacher: Outputs, student_layer: int, teacher_layer: int, refined: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Student and teacher tokens that stand for the same place: [B, N', D_S] and [B, N', D_T].

    `refined` [B, N, D_T] stands in for the teacher's own tokens. Where the grids differ the teacher's patches
    are resampled bilinearly onto the student's.
    """
    ours = shared_tokens(student, student_layer, teacher)
    theirs = shared_tokens(teacher, teacher_layer, student, refined)
    if student.grid != teacher.grid and student.grid is not None and teacher.grid is not None:
        prefix = theirs.shape[1] - teacher.grid[0] * teacher.grid[1]
        moved = resample_patches(theirs[:, prefix:], teacher.grid, student.grid)
        theirs = cat([theirs[:, :prefix], moved], dim=1) if prefix else moved
    return ours, theirs


def linear_projectors(student: Vit, teacher: Vit, count: int) -> nn.ModuleList:
    """`count` linear maps with bias from the student's width to the teacher's."""
    return nn.ModuleList(nn.Linear(student.dim, teacher.dim) for _ in range(count))
