"""Similarity-preserving distillation (Tung and Mori 2019, arXiv 1907.09682)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from harness.api import Batch, Method, Outputs, Vit
from harness.matching import label_term, paired_vectors


class SP(Method):
    """w_ce CE + weight ||rownorm(F_S F_S^T) - rownorm(F_T F_T^T)||^2 / B^2.

    The vectors are the final-normed CLS of the last block, or the mean patch without a CLS.
    """

    name = "sp"
    family = "relation"
    cite = "Tung and Mori 2019, arXiv 1907.09682"
    search: ClassVar[Mapping[str, Any]] = {
        "weight": ("log", 300.0, 30000.0),
        "w_ce": ("uniform", 0.0, 2.0),
    }

    def __init__(self, student: Vit, teacher: Vit, *, weight: float = 3000.0, w_ce: float = 1.0) -> None:
        super().__init__(student, teacher)
        self.of_student, self.of_teacher = student.depth - 1, teacher.depth - 1
        self.student_layers, self.teacher_layers = frozenset({self.of_student}), frozenset({self.of_teacher})
        self.weight, self.w_ce = weight, w_ce

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        with torch.autocast(batch.images.device.type, enabled=False):
            vectors = paired_vectors(student, teacher, self.of_student, self.of_teacher)
            ours, theirs = (F.normalize(x @ x.T, dim=1) for x in vectors)  # [B, B]
            kd = self.weight * F.mse_loss(ours, theirs)  # the mean over B^2 entries
        return {**label_term(student, batch, self.w_ce), "kd": kd}
