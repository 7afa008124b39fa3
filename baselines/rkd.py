"""Relational knowledge distillation (Park et al. 2019, arXiv 1904.05068)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from harness.api import Batch, Method, Outputs, Vit
from harness.matching import label_term, paired_vectors


class RKD(Method):
    """w_ce CE + w_distance SmoothL1(distances / their mean) + w_angle SmoothL1(angles).

    Distances are between every two images of the batch, angles cosines at every image between every two others
    (B^3 of them). The vectors are the final-normed CLS of the last block, or the mean patch without a CLS.
    """

    name = "rkd"
    family = "relation"
    cite = "Park et al. 2019, arXiv 1904.05068"
    search: ClassVar[Mapping[str, Any]] = {
        "w_distance": ("log", 2.5, 250.0),
        "w_angle": ("log", 5.0, 500.0),
    }

    def __init__(
        self, student: Vit, teacher: Vit, *, w_distance: float = 25.0, w_angle: float = 50.0, w_ce: float = 1.0
    ) -> None:
        super().__init__(student, teacher)
        self.of_student, self.of_teacher = student.depth - 1, teacher.depth - 1
        self.student_layers, self.teacher_layers = frozenset({self.of_student}), frozenset({self.of_teacher})
        self.w_distance, self.w_angle, self.w_ce = w_distance, w_angle, w_ce

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        with torch.autocast(batch.images.device.type, enabled=False):
            ours, theirs = (relations(x) for x in paired_vectors(student, teacher, self.of_student, self.of_teacher))
            distance, angle = (F.smooth_l1_loss(a, b) for a, b in zip(ours, theirs, strict=True))
            kd = self.w_distance * distance + self.w_angle * angle
        return {**label_term(student, batch, self.w_ce), "kd": kd}


def relations(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Distances over their mean, [B, B], and cosines at the first index, [B, B, B], of vectors [B, D]."""
    steps = vectors.unsqueeze(0) - vectors.unsqueeze(1)  # [B, B, D], from the first index to the second
    distances = torch.linalg.vector_norm(steps, dim=-1)
    mean = distances.sum() / (distances > 0).sum().clamp(min=1)  # an image's distance to itself does not count
    directions = F.normalize(steps, dim=-1)
    return distances / mean.clamp(min=1e-12), directions @ directions.transpose(1, 2)
