"""Attention transfer: where the features' energy lies (Zagoruyko and Komodakis 2017, arXiv 1612.03928)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor
from torch.nn import functional as F

from harness.api import Batch, Method, Outputs, Vit
from harness.matching import chosen, label_term, match_layers, paired_patches, reduce_layers


class AttentionTransfer(Method):
    """w_ce CE + weight * reduce over layers of MSE(Q_S, Q_T), Q an image's unit vector of mean squared channels.

    The source's activation-based form, on the patch tokens, which are a ViT's feature map; CLS and registers
    have no place on it. Layers and their mean are those of the other feature methods here.

    Args:
        layers, student_layers, reduction: as in FitNet.
        weight: 1000, the customary beta.
    """

    name = "attention_transfer"
    family = "feature"
    cite = "Zagoruyko and Komodakis 2017, arXiv 1612.03928"
    per_image = True
    search: ClassVar[Mapping[str, Any]] = {
        "weight": ("log", 100.0, 10000.0),
        "w_ce": ("uniform", 0.0, 2.0),
    }

    def __init__(
        self,
        student: Vit,
        teacher: Vit,
        *,
        layers: tuple[int, ...] | None = None,
        student_layers: tuple[int, ...] | None = None,
        reduction: Literal["mean", "sum"] = "mean",
        weight: float = 1000.0,
        w_ce: float = 1.0,
    ) -> None:
        super().__init__(student, teacher)
        self.of_student, self.of_teacher = match_layers(student, teacher, layers, student_layers)
        self.student_layers, self.teacher_layers = frozenset(self.of_student), frozenset(self.of_teacher)
        self.reduction, self.weight = chosen("reduction", reduction, ("mean", "sum")), weight
        self.w_ce = w_ce

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        errors = []
        for ours, theirs in zip(self.of_student, self.of_teacher, strict=True):
            patches, target = paired_patches(student, teacher, ours, theirs)  # [B, P, D_S], [B, P, D_T]
            errors.append(F.mse_loss(energy_map(patches), energy_map(target)))
        kd = self.weight * reduce_layers(errors, self.reduction)
        return {**label_term(student, batch, self.w_ce), "kd": kd}


def energy_map(patches: Tensor) -> Tensor:
    """Mean squared channel of each patch, a unit vector an image: [B, P, D] -> [B, P]."""
    return F.normalize(patches.float().pow(2).mean(dim=-1), dim=1)
