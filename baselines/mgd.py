"""MGD: generate the teacher's features from the student's masked ones (Yang et al. 2022, arXiv 2205.01529)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from harness.api import Batch, Method, Outputs, Vit
from harness.matching import PatchGenerator, chosen, label_term, mask_share, paired_patches


class MGD(Method):
    """w_ce CE + weight / B ||Gen(mask(A F_S)) - F_T||^2 over all patches of the last block, a sum and not a mean.

    mask() sets each channel of an image, or each patch, to zero with probability `ratio`, and scales nothing up.
    Gen is a convolution 3 x 3, a ReLU and another one, over the patches' grid; it and the aligner are trained with
    the student. The source works on the feature maps of CNNs: here they are the patches before the final norm,
    which FitNet imitates too. The aligner is there for models of equal width as well, as FitNet's projectors are.

    Args:
        weight: alpha, the source's for classification. Its dense tasks take 5e-7 to 2e-5 on larger maps.
        ratio: lambda, likewise; .45 to .75 on patches for dense tasks, .45 in the preset `mgd_dense`.
        mask: what falls out as a whole.

    Raises:
        ValueError: an unknown mask; a ratio outside [0, 1).
    """

    name = "mgd"
    family = "masking"
    cite = "Yang et al. 2022, arXiv 2205.01529"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"mgd_dense": {"mask": "spatial", "ratio": 0.45}}
    search: ClassVar[Mapping[str, Any]] = {
        "weight": ("log", 7e-6, 7e-4),
        "ratio": ("uniform", 0.0, 0.75),
        "mask": ("choice", "channel", "spatial"),
    }

    def __init__(
        self,
        student: Vit,
        teacher: Vit,
        *,
        weight: float = 7e-5,
        ratio: float = 0.15,
        mask: Literal["channel", "spatial"] = "channel",
        w_ce: float = 1.0,
    ) -> None:
        super().__init__(student, teacher)
        self.of_student, self.of_teacher = student.depth - 1, teacher.depth - 1
        self.student_layers, self.teacher_layers = frozenset({self.of_student}), frozenset({self.of_teacher})
        self.weight, self.w_ce = weight, w_ce
        self.ratio, self.mask = mask_share("ratio", ratio), chosen("mask", mask, ("channel", "spatial"))
        self.aligner = nn.Linear(student.dim, teacher.dim)
        self.generator = PatchGenerator(teacher.dim, student.grid)

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        ours, theirs = paired_patches(student, teacher, self.of_student, self.of_teacher)
        aligned = self.aligner(ours)  # [B, P, D_T]
        made = self.generator(aligned * self._keep(aligned))
        error = (made.float() - theirs.float()).square().sum() / len(batch.images)
        return {**label_term(student, batch, self.w_ce), "kd": self.weight * error}

    def _keep(self, patches: Tensor) -> Tensor:
        """What stays, drawn from torch's global stream: [B, P, D] -> bool [B, 1, D] or [B, P, 1]."""
        size, count, width = patches.shape
        shape = (size, 1, width) if self.mask == "channel" else (size, count, 1)
        return torch.rand(shape, device=patches.device) >= self.ratio
