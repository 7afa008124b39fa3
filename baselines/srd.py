"""SRD: correlate each projected channel with the teacher's (Miles and Mikolajczyk 2023, arXiv 2303.11098)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from harness.api import Batch, Method, Outputs, Vit
from harness.matching import label_term, paired_vectors

EPSILON = 1e-5  # variance floor, BatchNorm's; and under the logarithm, which a perfect student would send to -inf


class SRD(Method):
    """w_ce CE + weight * log of the sum over channels of |c_ii - 1|^4.

    c_ii is the batch correlation of channel i of P f_S with channel i of f_T, both standardised over the batch as
    an affine-free BatchNorm in training does. P is linear without bias, which the standardisation would remove.
    The vectors are the final-normed CLS of the last block, or the mean patch without a CLS.

    Args:
        weight: the source's formula carries none.

    Attributes:
        projector: Linear, student width -> teacher width.
    """

    name = "srd"
    family = "projector"
    cite = "Miles and Mikolajczyk 2023, arXiv 2303.11098"
    search: ClassVar[Mapping[str, Any]] = {
        "weight": ("log", 0.1, 10.0),
        "w_ce": ("uniform", 0.0, 2.0),
    }

    def __init__(self, student: Vit, teacher: Vit, *, weight: float = 1.0, w_ce: float = 1.0) -> None:
        super().__init__(student, teacher)
        self.of_student, self.of_teacher = student.depth - 1, teacher.depth - 1
        self.student_layers, self.teacher_layers = frozenset({self.of_student}), frozenset({self.of_teacher})
        self.weight, self.w_ce = weight, w_ce
        self.projector = nn.Linear(student.dim, teacher.dim, bias=False)

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        with torch.autocast(batch.images.device.type, enabled=False):
            ours, theirs = paired_vectors(student, teacher, self.of_student, self.of_teacher)
            correlation = (standardised(self.projector(ours)) * standardised(theirs)).mean(dim=0)  # [D_T]
            kd = self.weight * ((correlation - 1).pow(4).sum() + EPSILON).log()
        return {**label_term(student, batch, self.w_ce), "kd": kd}


def standardised(vectors: Tensor) -> Tensor:
    """Zero mean and unit variance of each channel over the batch, [B, D] -> [B, D]."""
    centred = vectors - vectors.mean(dim=0)
    return centred * (centred.pow(2).mean(dim=0) + EPSILON).rsqrt()
