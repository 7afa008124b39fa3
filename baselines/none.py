"""No distillation: the student learns from labels alone."""

from __future__ import annotations

from torch import Tensor

from harness.api import Batch, Method, Outputs, Vit
from harness.matching import label_term


class NoDistillation(Method):
    """Cross-entropy with the labels; the teacher is not read. What every other method has to beat."""

    name = "none"
    family = "control"
    cite = "control; no teacher"
    per_image = True

    def __init__(self, student: Vit, teacher: Vit) -> None:
        super().__init__(student, teacher)

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        return label_term(student, batch, 1.0)
