"""Probabilistic knowledge transfer (Passalis and Tefas 2018, arXiv 1803.10837)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from harness.api import Batch, Method, Outputs, Vit
from harness.matching import label_term, paired_vectors

EPSILON = 1e-7  # inside the logarithm and under every norm, the source's


class PKT(Method):
    """w_ce CE + weight * mean over pairs of t log(t / s), t and s the batch's similarity distributions.

    A row of the distribution is (1 + cosine) / 2 of one image with each of the batch, itself included, over its
    sum. The vectors are the final-normed CLS of the last block, or the mean patch without a CLS.
    """

    name = "pkt"
    family = "relation"
    cite = "Passalis and Tefas 2018, arXiv 1803.10837"
    search: ClassVar[Mapping[str, Any]] = {
        "weight": ("log", 3000.0, 300000.0),
        "w_ce": ("uniform", 0.0, 2.0),
    }

    def __init__(self, student: Vit, teacher: Vit, *, weight: float = 30000.0, w_ce: float = 1.0) -> None:
        super().__init__(student, teacher)
        self.of_student, self.of_teacher = student.depth - 1, teacher.depth - 1
        self.student_layers, self.teacher_layers = frozenset({self.of_student}), frozenset({self.of_teacher})
        self.weight, self.w_ce = weight, w_ce

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        with torch.autocast(batch.images.device.type, enabled=False):
            vectors = paired_vectors(student, teacher, self.of_student, self.of_teacher)
            s, t = (similarity_distribution(x) for x in vectors)
            kd = self.weight * (t * ((t + EPSILON) / (s + EPSILON)).log()).mean()
        return {**label_term(student, batch, self.w_ce), "kd": kd}


def similarity_distribution(vectors: Tensor) -> Tensor:
    """Shifted cosines between the images, rows summing to one: [B, D] -> [B, B]."""
    unit = F.normalize(vectors, dim=1, eps=EPSILON)
    similarity = (unit @ unit.T + 1) / 2
    return similarity / similarity.sum(dim=1, keepdim=True)
