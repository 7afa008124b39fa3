"""FitNet from the teacher's twin that was trained with registers (Darcet et al. 2023, arXiv 2309.16588)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor
from torch.nn import functional as F

from harness.api import Batch, Method, Outputs, Vit
from harness.matching import chosen, linear_projectors, match_layers, paired_tokens, reduce_layers


class RegisterTeacher(Method):
    """weight * reduce over layers of MSE(P_l F_S, F_T), F_T of the teacher's twin trained with registers; no labels.

    The loss is FitNet's, and registers have no target; only the teacher differs, so that FitNet in the same table
    is what it is compared with. `teacher_options` ask for the twin; a method's own `teacher` entry may name it.

    Args:
        layers, student_layers, reduction, weight: as in FitNet.

    Attributes:
        projectors: ModuleList in the order of `layers`.
    """

    name = "register_teacher"
    family = "registers"
    cite = "Darcet et al. 2023, arXiv 2309.16588"
    per_image = True
    teacher_options: ClassVar[Mapping[str, Any]] = {"register_teacher": {}}
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
