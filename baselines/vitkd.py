"""ViTKD: mimic the shallow layers, generate the masked deep one (Yang et al. 2022, arXiv 2209.02432)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from harness.api import Batch, Method, Outputs, Vit
from harness.matching import (
    PatchGenerator,
    label_term,
    labels_of,
    linear_projectors,
    mask_share,
    match_layers,
    nkd_divergence,
    paired_normed,
    paired_patches,
    random_keep,
    same_classes,
)


class ViTKD(Method):
    """w_ce CE + alpha / B sum over shallow l ||A_l F_S - F_T||^2 + beta / (ratio B) ||M (Gen(mask(A F_S)) - F_T)||^2.

    Patches only, sums and not means. The shallow layers are blocks of the same number in both models. The deep one
    is the last, after the final norm in student and teacher: the authors' ViTs apply it to the last layer's tokens
    before they hand them out. M marks the patches that mask() has replaced by a learnt token; Gen is a convolution
    3 x 3, a ReLU and another one, over the patches' grid.

    Aligners, generator and mask token are trained with the student. The source leaves out the aligners between
    models of equal width; here they are always there, as every feature method's projectors are.

    Args:
        layers: the shallow blocks, of student and teacher alike.
        ratio: the share of each image's patches that is masked, lambda.
        w_nkd: weight of NKD (arXiv 2303.13005) with gamma and T 1, the source's second loss; 1 in `vitkd_nkd`.

    Attributes:
        aligners: ModuleList in the order of `layers`. aligner: of the last block. mask_token: [D_T].

    Raises:
        ValueError: layers that a model does not have; a ratio outside (0, 1); with w_nkd models with different
            classes, and data without labels.
    """

    name = "vitkd"
    family = "masking"
    cite = "Yang et al. 2022, arXiv 2209.02432"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"vitkd_nkd": {"w_nkd": 1.0}}
    search: ClassVar[Mapping[str, Any]] = {
        "alpha": ("log", 3e-6, 3e-4),
        "beta": ("log", 3e-7, 3e-5),
        "ratio": ("uniform", 0.25, 0.75),
    }

    def __init__(
        self,
        student: Vit,
        teacher: Vit,
        *,
        layers: tuple[int, ...] = (0, 1),
        alpha: float = 3e-5,  # this and the next two: published configurations
        beta: float = 3e-6,
        ratio: float = 0.5,
        w_ce: float = 1.0,
        w_nkd: float = 0.0,
    ) -> None:
        super().__init__(student, teacher)
        self.of_student, self.of_teacher = match_layers(student, teacher, layers, layers)
        self.last = student.depth - 1, teacher.depth - 1
        self.student_layers = frozenset({*self.of_student, self.last[0]})
        self.teacher_layers = frozenset({*self.of_teacher, self.last[1]})
        if ratio == 0:
            raise ValueError("ratio is 0, so no patch is masked and none generated; give a share such as 0.5")
        self.alpha, self.beta, self.ratio = alpha, beta, mask_share("ratio", ratio)
        self.w_ce, self.w_nkd = w_ce, w_nkd
        if w_nkd:
            same_classes(student, teacher)
        self.aligners = linear_projectors(student, teacher, len(self.of_student))
        self.aligner = nn.Linear(student.dim, teacher.dim)
        self.mask_token = nn.Parameter(torch.zeros(teacher.dim))
        self.generator = PatchGenerator(teacher.dim, student.grid)

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        size = len(batch.images)
        mimic = torch.stack(list(self._mimicked(student, teacher))).sum() / size
        terms = {
            **label_term(student, batch, self.w_ce),
            "mimic": self.alpha * mimic,
            "generate": self.beta / (self.ratio * size) * self._generated(student, teacher),
        }
        if self.w_nkd:
            nkd = nkd_divergence(student.logits, teacher.logits, labels_of(batch), gamma=1.0, temperature=1.0)
            terms["nkd"] = self.w_nkd * nkd
        return terms

    def _mimicked(self, student: Outputs, teacher: Outputs) -> Iterator[Tensor]:
        """Squared error of each shallow layer, summed over the batch."""
        for ours, theirs, align in zip(self.of_student, self.of_teacher, self.aligners, strict=True):
            patches, target = paired_patches(student, teacher, ours, theirs)  # [B, P, D_S], [B, P, D_T]
            yield (align(patches).float() - target.float()).square().sum()

    def _generated(self, student: Outputs, teacher: Outputs) -> Tensor:
        """Squared error of the masked patches of the last block, summed over the batch."""
        ours, theirs = paired_normed(student, teacher, *self.last)
        count = student.patches(self.last[0]).shape[1]
        aligned = self.aligner(ours[:, -count:])  # [B, P, D_T]
        keep = random_keep(aligned, self.ratio).unsqueeze(-1)  # [B, P, 1]
        made = self.generator(torch.where(keep, aligned, self.mask_token.to(aligned.dtype)))
        return ((made.float() - theirs[:, -count:].float()).square() * ~keep).sum()

    def targets(self, teacher: Outputs) -> Mapping[int, Tensor]:
        return {**super().targets(teacher), self.last[1]: teacher.normed(self.last[1])}
