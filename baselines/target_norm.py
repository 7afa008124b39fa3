"""Control: FitNet towards normalised teacher tokens, so that no token's norm counts more than another's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor
from torch.nn import functional as F

from harness.api import Batch, Method, Outputs, Vit
from harness.matching import chosen, linear_projectors, match_layers, paired_tokens, reduce_layers


class TargetNorm(Method):
    """weight * reduce over layers of loss(P_l F_S, normalised F_T), each token for itself, CLS too; no labels.

    Args:
        kind: "layernorm": zero mean and unit variance over the D channels, no affine; "l2": scaled to the norm
            sqrt(D), which a LayerNorm'd token has too, so that the two kinds' losses are of one size.
        loss: "mse", "smooth_l1", or "cosine", 1 - cos of projected student and target, which looks at the
            direction alone (of an "l2" target it is that of the raw token).
        layers, student_layers, reduction, weight: as in FitNet.

    Attributes:
        projectors: ModuleList in the order of `layers`.
    """

    name = "target_norm"
    family = "clipping"
    cite = "control; LayerNorm'd or unit-norm targets"
    per_image = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"target_norm_l2": {"kind": "l2"}}
    search: ClassVar[Mapping[str, Any]] = {
        "kind": ("choice", "layernorm", "l2"),
        "loss": ("choice", "mse", "cosine", "smooth_l1"),
        "weight": ("log", 0.1, 10.0),
    }

    def __init__(
        self,
        student: Vit,
        teacher: Vit,
        *,
        layers: tuple[int, ...] | None = None,
        student_layers: tuple[int, ...] | None = None,
        kind: Literal["layernorm", "l2"] = "layernorm",
        loss: Literal["mse", "cosine", "smooth_l1"] = "mse",
        reduction: Literal["mean", "sum"] = "mean",
        weight: float = 1.0,
    ) -> None:
        super().__init__(student, teacher)
        self.of_student, self.of_teacher = match_layers(student, teacher, layers, student_layers)
        self.student_layers, self.teacher_layers = frozenset(self.of_student), frozenset(self.of_teacher)
        self.kind = chosen("kind", kind, ("layernorm", "l2"))
        self.loss = chosen("loss", loss, ("mse", "cosine", "smooth_l1"))
        self.reduction, self.weight = chosen("reduction", reduction, ("mean", "sum")), weight
        self.projectors = linear_projectors(student, teacher, len(self.of_teacher))

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        errors = []
        for ours, theirs, project in zip(self.of_student, self.of_teacher, self.projectors, strict=True):
            tokens, target = paired_tokens(student, teacher, ours, theirs)  # [B, N', D_S], [B, N', D_T]
            errors.append(self._distance(project(tokens).float(), self._normalised(target.float())))
        return {"kd": self.weight * reduce_layers(errors, self.reduction)}

    def targets(self, teacher: Outputs) -> Mapping[int, Tensor]:
        """Of the teacher's own grid; `losses` normalises after resampling, where the student's grid is another."""
        return {layer: self._normalised(teacher.tokens[layer].float()) for layer in self.of_teacher}

    def _normalised(self, target: Tensor) -> Tensor:
        if self.kind == "layernorm":
            return F.layer_norm(target, target.shape[-1:])
        return F.normalize(target, dim=-1) * target.shape[-1] ** 0.5

    def _distance(self, tokens: Tensor, target: Tensor) -> Tensor:
        if self.loss == "cosine":
            return (1 - F.cosine_similarity(tokens, target, dim=-1)).mean()
        return F.mse_loss(tokens, target) if self.loss == "mse" else F.smooth_l1_loss(tokens, target)
