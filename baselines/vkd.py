"""VkD: an orthogonal projector towards a normalised teacher (Miles et al. 2024, arXiv 2403.06213)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from harness.api import Batch, Method, Outputs, Vit
from harness.matching import label_term, paired_vectors


class VkD(Method):
    """w_ce CE + weight * SmoothL1(P f_S, LayerNorm(f_T)), P orthogonal at every step.

    P keeps the student's distances, so that the student and not the projector has to learn the teacher's
    geometry. It is torch's orthogonal parametrisation (Cayley) of a linear map without bias: orthonormal columns
    where the teacher is the wider, rows where the student is. The vectors are the final-normed CLS of the last block,
    or the mean patch without a CLS; the LayerNorm has no affine.

    Args:
        weight: the source's formula carries none.

    Attributes:
        projector: Linear, student width -> teacher width.
    """

    name = "vkd"
    family = "projector"
    cite = "Miles et al. 2024, arXiv 2403.06213"
    per_image = True
    search: ClassVar[Mapping[str, Any]] = {
        "weight": ("log", 0.1, 10.0),
        "w_ce": ("uniform", 0.0, 2.0),
    }

    def __init__(self, student: Vit, teacher: Vit, *, weight: float = 1.0, w_ce: float = 1.0) -> None:
        super().__init__(student, teacher)
        self.of_student, self.of_teacher = student.depth - 1, teacher.depth - 1
        self.student_layers, self.teacher_layers = frozenset({self.of_student}), frozenset({self.of_teacher})
        self.weight, self.w_ce = weight, w_ce
        linear = nn.Linear(student.dim, teacher.dim, bias=False)
        # not torch's default for oblong maps, Householder, whose signs weight decay truncates to a zero matrix
        self.projector = parametrizations.orthogonal(linear, orthogonal_map="cayley")

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        with torch.autocast(batch.images.device.type, enabled=False):  # bf16 would not stay orthogonal
            ours, theirs = paired_vectors(student, teacher, self.of_student, self.of_teacher)
            target = F.layer_norm(theirs, theirs.shape[-1:])
            kd = self.weight * F.smooth_l1_loss(self.projector(ours), target)
        return {**label_term(student, batch, self.w_ce), "kd": kd}
