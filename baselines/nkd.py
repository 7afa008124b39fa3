"""Normalised knowledge distillation (Yang et al. 2023, arXiv 2303.13005)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from harness.api import Batch, Method, Outputs, Vit
from harness.matching import label_term, labels_of, nkd_divergence, same_classes


class NKD(Method):
    """w_ce CE - t_y log s_y - gamma T^2 sum over c != y of t^_c log s^_c, means over the batch.

    t, s are the teacher's and the student's softmax at T = 1; t^, s^ the softmax at T over all classes but the
    labelled one.

    Args:
        gamma: 1 as in the pairing with ViTKD (arXiv 2209.02432).

    Raises:
        ValueError: student and teacher have different classes; at a step without labels.
    """

    name = "nkd"
    family = "vanilla"
    cite = "Yang et al. 2023, arXiv 2303.13005"
    per_image = True
    search: ClassVar[Mapping[str, Any]] = {
        "gamma": ("log", 0.25, 4.0),
        "temperature": ("log", 0.5, 4.0),
    }

    def __init__(
        self, student: Vit, teacher: Vit, *, gamma: float = 1.0, temperature: float = 1.0, w_ce: float = 1.0
    ) -> None:
        super().__init__(student, teacher)
        same_classes(student, teacher)
        self.gamma, self.temperature, self.w_ce = gamma, temperature, w_ce

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        labels = labels_of(batch)
        kd = nkd_divergence(student.logits, teacher.logits, labels, self.gamma, self.temperature)
        return {**label_term(student, batch, self.w_ce), "kd": kd}
