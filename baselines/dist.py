"""DIST: agreement up to scale and shift, within and across images (Huang et al. 2022, arXiv 2205.10536)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional as F

from harness.api import Batch, Method, Outputs, Vit
from harness.matching import label_term, same_classes


class DIST(Method):
    """w_ce CE + beta (1 - Pearson over each image's classes) + gamma (1 - Pearson over each class's images).

    Both correlations are of softmax probabilities, averaged over images and over classes.

    Raises:
        ValueError: student and teacher have different classes.
    """

    name = "dist"
    family = "vanilla"
    cite = "Huang et al. 2022, arXiv 2205.10536"
    search: ClassVar[Mapping[str, Any]] = {
        "beta": ("log", 0.25, 4.0),
        "gamma": ("log", 0.25, 4.0),
    }

    def __init__(self, student: Vit, teacher: Vit, *, beta: float = 1.0, gamma: float = 1.0, w_ce: float = 1.0) -> None:
        super().__init__(student, teacher)
        same_classes(student, teacher)
        self.beta, self.gamma, self.w_ce = beta, gamma, w_ce

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        ours, theirs = (z.float().softmax(dim=1) for z in (student.logits, teacher.logits))  # [B, C]
        inter, intra = 1 - pearson(ours, theirs), 1 - pearson(ours.T, theirs.T)
        return {**label_term(student, batch, self.w_ce), "kd": self.beta * inter + self.gamma * intra}


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Mean over rows of the rows' correlation; a constant row correlates with nothing. [R, K] twice -> scalar."""
    centred = [x - x.mean(dim=1, keepdim=True) for x in (a, b)]
    return F.cosine_similarity(*centred, dim=1).mean()
