"""Control: FitNet on a random part of the patches. Does leaving out any patches help?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor

from harness.api import Batch, Method, Outputs, Vit
from harness.matching import (
    chosen,
    linear_projectors,
    masked_mse,
    match_layers,
    paired_tokens,
    random_keep,
    reduce_layers,
)


class RandomMask(Method):
    """weight * reduce over layers of MSE(P_l F_S, F_T) over CLS and the kept patches; no labels.

    Each image keeps the same number of patches, drawn anew at every step from torch's global stream and the same
    for all layers. CLS always counts, so that the mask is the only difference from FitNet.

    Args:
        ratio: the share of patches that is left out, in [0, 1].
        layers, student_layers, reduction, weight: as in FitNet.

    Attributes:
        projectors: ModuleList in the order of `layers`.
    """

    name = "random_mask"
    family = "masking"
    cite = "control"
    search: ClassVar[Mapping[str, Any]] = {
        "ratio": ("uniform", 0.1, 0.9),
        "weight": ("log", 0.1, 10.0),
    }

    def __init__(
        self,
        student: Vit,
        teacher: Vit,
        *,
        layers: tuple[int, ...] | None = None,
        student_layers: tuple[int, ...] | None = None,
        ratio: float = 0.5,
        reduction: Literal["mean", "sum"] = "mean",
        weight: float = 1.0,
    ) -> None:
        super().__init__(student, teacher)
        self.of_student, self.of_teacher = match_layers(student, teacher, layers, student_layers)
        self.student_layers, self.teacher_layers = frozenset(self.of_student), frozenset(self.of_teacher)
        self.ratio = ratio
        self.reduction, self.weight = chosen("reduction", reduction, ("mean", "sum")), weight
        self.projectors = linear_projectors(student, teacher, len(self.of_teacher))

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        keep = random_keep(student.patches(self.of_student[0]), self.ratio)
        errors = []
        for ours, theirs, project in zip(self.of_student, self.of_teacher, self.projectors, strict=True):
            tokens, target = paired_tokens(student, teacher, ours, theirs)  # [B, N', D_S], [B, N', D_T]
            errors.append(masked_mse(project(tokens), target, keep))
        return {"kd": self.weight * reduce_layers(errors, self.reduction)}
