"""Knowledge distillation on logits (Hinton et al. 2015, arXiv 1503.02531)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from harness.api import Batch, Method, Outputs, Vit
from harness.matching import label_term, same_classes, soft_divergence


class LogitKD(Method):
    """w_ce CE + w_kd T^2 KL(p_T || p_S), p the softmax of logits / T; KL is the mean over the batch.

    Args:
        temperature: T. The defaults are usual on ImageNet, the preset on small images.
        w_ce: 0 leaves the labels, and the term, out.

    Raises:
        ValueError: student and teacher have different classes.
    """

    name = "logit_kd"
    family = "vanilla"
    cite = "Hinton et al. 2015, arXiv 1503.02531"
    per_image = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "logit_kd_small_images": {"temperature": 4.0, "w_ce": 0.1, "w_kd": 0.9}
    }
    search: ClassVar[Mapping[str, Any]] = {
        "temperature": ("log", 0.5, 4.0),
        "w_kd": ("log", 0.05, 5.0),
    }

    def __init__(
        self, student: Vit, teacher: Vit, *, temperature: float = 1.0, w_ce: float = 0.5, w_kd: float = 0.5
    ) -> None:
        super().__init__(student, teacher)
        same_classes(student, teacher)
        self.temperature, self.w_ce, self.w_kd = temperature, w_ce, w_kd

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        divergence = soft_divergence(student.logits, teacher.logits, self.temperature)
        return {**label_term(student, batch, self.w_ce), "kd": self.w_kd * divergence}
