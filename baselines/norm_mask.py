"""Control: FitNet without the patches whose teacher norm is an outlier."""

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
    reduce_layers,
)
from harness.norms import norm_quantile, robust_z, token_norms


class NormMask(Method):
    """weight * reduce over layers of MSE(P_l F_S, F_T) over CLS and the patches that are no outliers; no labels.

    Each layer has its own outliers, found on the teacher's patches as they are compared (on the student's grid).

    Args:
        rule: "quantile" leaves out what is over the image's quantile of norms, a fixed share; "robust_z" what is
            over the median by more than `max_z` robust standard deviations, so possibly nothing.
        quantile, max_z: of the two rules. max_z 5.5 is also what the artifacts task counts as an outlier.
        layers, student_layers, reduction, weight: as in FitNet.

    Attributes:
        projectors: ModuleList in the order of `layers`.
    """

    name = "norm_mask"
    family = "masking"
    cite = "control; quantile of SiNGER, arXiv 2509.20986"
    search: ClassVar[Mapping[str, Any]] = {
        "rule": ("choice", "quantile", "robust_z"),
        "quantile": ("uniform", 0.9, 0.995),
        "max_z": ("log", 3.0, 10.0),
        "weight": ("log", 0.1, 10.0),
    }

    def __init__(
        self,
        student: Vit,
        teacher: Vit,
        *,
        layers: tuple[int, ...] | None = None,
        student_layers: tuple[int, ...] | None = None,
        rule: Literal["quantile", "robust_z"] = "quantile",
        quantile: float = 0.97,
        max_z: float = 5.5,
        reduction: Literal["mean", "sum"] = "mean",
        weight: float = 1.0,
    ) -> None:
        super().__init__(student, teacher)
        self.of_student, self.of_teacher = match_layers(student, teacher, layers, student_layers)
        self.student_layers, self.teacher_layers = frozenset(self.of_student), frozenset(self.of_teacher)
        self.rule, self.quantile, self.max_z = chosen("rule", rule, ("quantile", "robust_z")), quantile, max_z
        self.reduction, self.weight = chosen("reduction", reduction, ("mean", "sum")), weight
        self.projectors = linear_projectors(student, teacher, len(self.of_teacher))

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        errors = []
        for ours, theirs, project in zip(self.of_student, self.of_teacher, self.projectors, strict=True):
            tokens, target = paired_tokens(student, teacher, ours, theirs)  # [B, N', D_S], [B, N', D_T]
            keep = self._inliers(target[:, -student.patches(ours).shape[1] :])
            errors.append(masked_mse(project(tokens), target, keep))
        return {"kd": self.weight * reduce_layers(errors, self.reduction)}

    def _inliers(self, patches: Tensor) -> Tensor:
        """[B, P, D] -> [B, P] bool."""
        norms = token_norms(patches)
        if self.rule == "quantile":
            return norms <= norm_quantile(norms, self.quantile)
        return robust_z(norms) <= self.max_z
