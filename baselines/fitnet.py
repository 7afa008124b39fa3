"""FitNet: the student's tokens, linearly projected, imitate the teacher's (Romero et al. 2015, arXiv 1412.6550)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor
from torch.nn import functional as F

from harness.api import Batch, Method, Outputs, Vit
from harness.matching import chosen, linear_projectors, match_layers, paired_tokens, reduce_layers


class FitNet(Method):
    """weight * reduce over layers of MSE(P_l F_S, F_T), all tokens that both models have; no labels.

    Layers, matching and projectors are SiNGER's, so that the two differ in the refiner alone. The preset
    `fitnet_published` is what SiNGER's authors compared with: three layers of ViT-L, summed, weight 10.

    Args:
        layers: the teacher's, ascending; None: three quarters up and the last block.
        student_layers: None matches proportionally, last to last.

    Attributes:
        projectors: ModuleList in the order of `layers`.
    """

    name = "fitnet"
    family = "feature"
    cite = "Romero et al. 2015, arXiv 1412.6550"
    per_image = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "fitnet_published": {"layers": (11, 17, 23), "reduction": "sum", "weight": 10.0}
    }
    search: ClassVar[Mapping[str, Any]] = {
        "weight": ("log", 0.1, 10.0),
    }

    def __init__(
        self,
        student: Vit,
        teacher: Vit,
        *,
        layers: tuple[int, ...] | None = None,
        student_layers: tuple[int, ...] | None = None,
        reduction: Literal["mean", "sum"] = "mean",
        weight: float = 1.0,
    ) -> None:
        super().__init__(student, teacher)
        self.of_student, self.of_teacher = match_layers(student, teacher, layers, student_layers)
        self.student_layers, self.teacher_layers = frozenset(self.of_student), frozenset(self.of_teacher)
        self.reduction, self.weight = chosen("reduction", reduction, ("mean", "sum")), weight
        self.projectors = linear_projectors(student, teacher, len(self.of_teacher))

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        errors = []
        for ours, theirs, project in zip(self.of_student, self.of_teacher, self.projectors, strict=True):
            tokens, target = paired_tokens(student, teacher, ours, theirs)  # [B, N', D_S], [B, N', D_T]
            errors.append(F.mse_loss(project(tokens).float(), target.float()))
        return {"kd": self.weight * reduce_layers(errors, self.reduction)}
