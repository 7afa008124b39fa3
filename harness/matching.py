"""What methods share by function: which layers, which tokens, which projectors, which labels, which logits."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, cat, nn

from harness.api import Batch, Outputs, Vit
from harness.errors import unknown


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
    return (
        F.interpolate(maps, size=new, mode="bilinear", align_corners=False, antialias=True).flatten(2).transpose(1, 2)
    )


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


def paired_normed(student: Outputs, teacher: Outputs, student_layer: int, teacher_layer: int) -> tuple[Tensor, Tensor]:
    """`paired_tokens` after each model's final norm: [B, N', D_S] and [B, N', D_T]."""
    theirs = paired_tokens(student, teacher, student_layer, teacher_layer, teacher.normed(teacher_layer))[1]
    return shared_tokens(student, student_layer, teacher, student.normed(student_layer)), theirs


def paired_patches(
    student: Outputs, teacher: Outputs, student_layer: int, teacher_layer: int, refined: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The patches of `paired_tokens`: [B, P, D_S] and [B, P, D_T], P of the student."""
    ours, theirs = paired_tokens(student, teacher, student_layer, teacher_layer, refined)
    patches = student.tokens[student_layer].shape[1] - student.num_prefix_tokens
    return ours[:, -patches:], theirs[:, -patches:]


def paired_vectors(student: Outputs, teacher: Outputs, student_layer: int, teacher_layer: int) -> tuple[Tensor, Tensor]:
    """One vector an image after the final norm: [B, D_S] and [B, D_T] in fp32.

    CLS, or the mean of the normed patches where a model has none; each model for itself.
    """
    return _normed_vector(student, student_layer), _normed_vector(teacher, teacher_layer)


def _normed_vector(of: Outputs, layer: int) -> Tensor:
    tokens = of.normed(layer)
    return (tokens[:, 0] if of.has_cls else tokens[:, of.num_prefix_tokens :].mean(dim=1)).float()


def reduce_layers(terms: Sequence[Tensor], reduction: str) -> Tensor:
    """One scalar of one scalar a layer: "mean" or "sum"."""
    stacked = torch.stack(list(terms))
    return stacked.mean() if chosen("reduction", reduction, ("mean", "sum")) == "mean" else stacked.sum()


def chosen(what: str, value: str, known: Sequence[str]) -> str:
    """`value` if it is one of the known. Raises ValueError naming the nearest otherwise."""
    if value not in known:
        raise ValueError(unknown(what, value, known))
    return value


def same_classes(student: Vit, teacher: Vit) -> None:
    """Raises ValueError where two models' logits cannot be compared."""
    if student.num_classes != teacher.num_classes or teacher.num_classes == 0:
        raise ValueError(
            f"the student has {student.num_classes} classes and the teacher {teacher.num_classes}: their logits "
            "cannot be compared. Give the teacher a head for the student's classes, or use a method on features"
        )


def labels_of(batch: Batch) -> Tensor:
    """The labels [B]. Raises ValueError where the data has none."""
    if batch.labels is None:
        raise ValueError("this method learns from labels and the data has none; set its w_ce to 0 or use another")
    return batch.labels


def label_term(student: Outputs, batch: Batch, weight: float) -> dict[str, Tensor]:
    """{"ce": weight * cross-entropy of the student's logits}; empty at weight 0, so no labels are needed then."""
    if weight == 0:
        return {}
    return {"ce": weight * F.cross_entropy(student.logits.float(), labels_of(batch))}


def soft_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(z_T / T) || softmax(z_S / T)), the mean over the batch: [B, C] twice -> scalar."""
    ours = F.log_softmax(student.float() / temperature, dim=1)
    theirs = F.log_softmax(teacher.float() / temperature, dim=1)
    return temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


def without_target(logits: Tensor, labels: Tensor) -> Tensor:
    """The logits of all classes but the labelled one, in order: [B, C], [B] -> [B, C - 1]."""
    others = torch.arange(logits.shape[1] - 1, device=logits.device)
    return logits.gather(1, others + (others >= labels.unsqueeze(1)))


def nkd_divergence(student: Tensor, teacher: Tensor, labels: Tensor, gamma: float, temperature: float) -> Tensor:
    """NKD's loss (arXiv 2303.13005), the mean over the batch: logits [B, C] twice, labels [B] -> scalar.

    -t_y log s_y - gamma T^2 sum over c != y of t^_c log s^_c: t, s the softmax at T = 1; t^, s^ the softmax at T
    over all classes but the labelled one.
    """
    ours, theirs, y = student.float(), teacher.float(), labels.unsqueeze(1)
    target = -(theirs.softmax(dim=1).gather(1, y) * F.log_softmax(ours, dim=1).gather(1, y)).mean()
    s, t = (without_target(z, labels) / temperature for z in (ours, theirs))  # [B, C - 1]
    others = -(t.softmax(dim=1) * F.log_softmax(s, dim=1)).sum(dim=1).mean()
    return target + gamma * temperature**2 * others


def mask_share(what: str, ratio: float) -> float:
    """`ratio` if it is a share of which something is left, in [0, 1). Raises ValueError otherwise."""
    if not 0 <= ratio < 1:
        raise ValueError(
            f"{what} is {ratio}; it is the share that is masked, so give it from 0 to below 1, such as 0.5"
        )
    return ratio


def random_keep(patches: Tensor, ratio: float) -> Tensor:
    """Which patches stay: all but round(ratio P) of each image's, [B, P, D] -> [B, P] bool.

    Drawn from torch's global stream, which the harness seeds at every step.
    """
    count = patches.shape[1]
    draws = torch.rand(patches.shape[:2], device=patches.device)
    return draws.argsort(dim=1).argsort(dim=1) >= round(ratio * count)


class PatchGenerator(nn.Sequential):
    """Convolution 3 x 3, ReLU, convolution 3 x 3 over the patches' grid: [B, P, D] -> [B, P, D].

    ViTKD's and MGD's generator (arXiv 2209.02432, 2205.01529).
    """

    def __init__(self, width: int, grid: tuple[int, int]) -> None:
        super().__init__(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))
        self.grid = grid

    def forward(self, patches: Tensor) -> Tensor:
        maps = patches.transpose(1, 2).unflatten(2, self.grid)  # [B, D, rows, columns]
        return super().forward(maps).flatten(2).transpose(1, 2)


def masked_mse(tokens: Tensor, target: Tensor, keep: Tensor) -> Tensor:
    """Mean squared error over the kept patches, and over whatever tokens precede the patches.

    Args:
        tokens, target: [B, N', D]. keep: [B, P] bool, of the last P tokens.
    """
    error = F.mse_loss(tokens.float(), target.float(), reduction="none").mean(dim=-1)  # [B, N']
    weight = F.pad(keep.float(), (error.shape[1] - keep.shape[1], 0), value=1.0)
    return (weight * error).sum() / weight.sum().clamp(min=1)
