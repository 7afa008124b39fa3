"""Control: FitNet towards teacher tokens whose norm is clipped. Does a rule do what a learnt adapter does?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor, cat
from torch.nn import functional as F

from harness.api import Batch, Method, Outputs, Vit
from harness.matching import chosen, linear_projectors, match_layers, paired_tokens, reduce_layers
from harness.norms import clip_norms


class NormClip(Method):
    """weight * reduce over layers of MSE(P_l F_S, F_T min(1, q / ||F_T||)); no labels.

    q is the image's quantile of patch norms, the same as SiNGER's. Only patches are clipped: CLS is not an
    artifact, its norm is of another scale, and SiNGER's refiner leaves it alone as well.

    Args:
        quantile: of an image's patch norms; what is over it is brought down to it.
        layers, student_layers, reduction, weight: as in FitNet.

    Attributes:
        projectors: ModuleList in the order of `layers`.
    """

    name = "norm_clip"
    family = "clipping"
    cite = "control; quantile of SiNGER, arXiv 2509.20986"
    per_image = True
    search: ClassVar[Mapping[str, Any]] = {
        "quantile": ("uniform", 0.9, 0.995),
        "weight": ("log", 0.1, 10.0),
    }

    def __init__(
        self,
        student: Vit,
        teacher: Vit,
        *,
        layers: tuple[int, ...] | None = None,
        student_layers: tuple[int, ...] | None = None,
        quantile: float = 0.97,
        reduction: Literal["mean", "sum"] = "mean",
        weight: float = 1.0,
    ) -> None:
        super().__init__(student, teacher)
        self.of_student, self.of_teacher = match_layers(student, teacher, layers, student_layers)
        self.student_layers, self.teacher_layers = frozenset(self.of_student), frozenset(self.of_teacher)
        self.quantile = quantile
        self.reduction, self.weight = chosen("reduction", reduction, ("mean", "sum")), weight
        self.projectors = linear_projectors(student, teacher, len(self.of_teacher))

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        clipped, errors = self.targets(teacher), []
        for ours, theirs, project in zip(self.of_student, self.of_teacher, self.projectors, strict=True):
            tokens, target = paired_tokens(student, teacher, ours, theirs, clipped[theirs])
            errors.append(F.mse_loss(project(tokens).float(), target.float()))
        return {"kd": self.weight * reduce_layers(errors, self.reduction)}

    def targets(self, teacher: Outputs) -> Mapping[int, Tensor]:
        return {layer: self._clipped(teacher, layer) for layer in self.of_teacher}

    def _clipped(self, teacher: Outputs, layer: int) -> Tensor:
        prefix = teacher.tokens[layer][:, : teacher.num_prefix_tokens]
        return cat([prefix, clip_norms(teacher.patches(layer), self.quantile)], dim=1)  # [B, N, D]
