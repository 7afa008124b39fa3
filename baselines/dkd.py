"""Decoupled knowledge distillation (Zhao et al. 2022, arXiv 2203.08679)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from harness.api import Batch, Method, Outputs, Vit
from harness.matching import label_term, labels_of, same_classes, soft_divergence, without_target


class DKD(Method):
    """w_ce CE + (alpha TCKD + beta NCKD) T^2.

    TCKD is the KL of the two-way distribution (labelled class, all others), NCKD that of the softmax over the
    other classes; both are means over the batch. The source's warm-up of the weight is left out: the schedule
    is the same for every method here.

    Args:
        alpha, beta, temperature: the defaults are the source's for ImageNet, the preset its for small images.

    Raises:
        ValueError: student and teacher have different classes; at a step without labels.
    """

    name = "dkd"
    family = "vanilla"
    cite = "Zhao et al. 2022, arXiv 2203.08679"
    per_image = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"dkd_small_images": {"beta": 8.0, "temperature": 4.0}}
    search: ClassVar[Mapping[str, Any]] = {
        "alpha": ("log", 0.25, 4.0),
        "beta": ("log", 0.1, 10.0),
        "temperature": ("log", 0.5, 4.0),
    }

    def __init__(
        self,
        student: Vit,
        teacher: Vit,
        *,
        alpha: float = 1.0,
        beta: float = 0.5,
        temperature: float = 1.0,
        w_ce: float = 1.0,
    ) -> None:
        super().__init__(student, teacher)
        same_classes(student, teacher)
        self.alpha, self.beta, self.temperature, self.w_ce = alpha, beta, temperature, w_ce

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        labels = labels_of(batch)
        ours, theirs = student.logits.float(), teacher.logits.float()
        target = F.kl_div(
            self._two_way(ours, labels), self._two_way(theirs, labels), reduction="batchmean", log_target=True
        )
        others = soft_divergence(without_target(ours, labels), without_target(theirs, labels), self.temperature)
        kd = self.alpha * self.temperature**2 * target + self.beta * others
        return {**label_term(student, batch, self.w_ce), "kd": kd}

    def _two_way(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Log-probability of the labelled class and of all others together, at T: [B, 2]."""
        scaled = logits / self.temperature
        labelled = scaled.gather(1, labels.unsqueeze(1))
        others = without_target(scaled, labels).logsumexp(dim=1, keepdim=True)
        return F.log_softmax(torch.cat([labelled, others], dim=1), dim=1)
