"""PHI-S: FitNet towards teacher tokens standardised by one rotation and one scale (Ranzinger et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from harness.api import Batch, Calibration, Method, Outputs, Vit
from harness.matching import chosen, linear_projectors, match_layers, paired_tokens, reduce_layers
from harness.standardise import Moments, hadamard, phi_s, standardised


class PhiS(Method):
    """weight * reduce over layers of MSE(P_l F_S, (1 / phi) H U^T (F_T - mu)); no labels.

    mu and C = U Lambda U^T are of the teacher's tokens on training images, one pair a layer; H is an orthonormal
    Hadamard matrix, phi = sqrt(mean Lambda). Every channel of the target has the variance 1, and distances between
    tokens are the teacher's over phi, so that artifacts stay as far out as they were.

    The statistics are over patches, which are all but one of the tokens and what the source standardises: CLS
    is of another distribution and would shift the mean. CLS passes through the same map, so that its distances to
    the patches are kept as well. Registers have no target and do not count.

    Args:
        images: how many training images the statistics are of.
        layers, student_layers, reduction, weight: as in FitNet.

    Attributes:
        projectors: ModuleList in the order of `layers`.
        shift: [L, D_T]. matrix: [L, D_T, D_T], 0 until `calibrate`.

    Raises:
        ValueError: no Hadamard matrix of the teacher's width is known (`harness.standardise.hadamard`).
    """

    name = "phi_s"
    family = "standardise"
    cite = "Ranzinger et al. 2024, arXiv 2410.01680"
    per_image = True
    search: ClassVar[Mapping[str, Any]] = {
        "weight": ("log", 0.1, 10.0),
    }

    shift: Tensor
    matrix: Tensor

    def __init__(
        self,
        student: Vit,
        teacher: Vit,
        *,
        layers: tuple[int, ...] | None = None,
        student_layers: tuple[int, ...] | None = None,
        images: int = 512,
        reduction: Literal["mean", "sum"] = "mean",
        weight: float = 1.0,
    ) -> None:
        super().__init__(student, teacher)
        self.of_student, self.of_teacher = match_layers(student, teacher, layers, student_layers)
        self.student_layers, self.teacher_layers = frozenset(self.of_student), frozenset(self.of_teacher)
        if images < 1:
            raise ValueError(f"images is {images}; the statistics need at least 1 image, by default 512")
        hadamard(teacher.dim)  # a width without one is refused now, not after the statistics
        self.images = images
        self.reduction, self.weight = chosen("reduction", reduction, ("mean", "sum")), weight
        self.projectors = linear_projectors(student, teacher, len(self.of_teacher))
        count, dim = len(self.of_teacher), teacher.dim
        self.register_buffer("shift", torch.zeros(count, dim))
        self.register_buffer("matrix", torch.zeros(count, dim, dim))
        self._known = False

    def calibrate(self, calibration: Calibration) -> None:
        """Mean and covariance of the teacher's patches, and the maps that follow from them."""
        moments = [Moments(self.matrix.shape[1]) for _ in self.of_teacher]
        for outputs in calibration.outputs(self.images, self.of_teacher):
            for layer, found in zip(self.of_teacher, moments, strict=True):
                found.add(outputs.patches(layer))
        for i, found in enumerate(moments):
            shift, matrix = phi_s(found.mean, found.covariance)
            self.shift[i], self.matrix[i] = shift.float(), matrix.float()

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        targets, errors = self.targets(teacher), []
        for ours, theirs, project in zip(self.of_student, self.of_teacher, self.projectors, strict=True):
            tokens, target = paired_tokens(student, teacher, ours, theirs, targets[theirs])
            errors.append(F.mse_loss(project(tokens).float(), target))
        return {"kd": self.weight * reduce_layers(errors, self.reduction)}

    def targets(self, teacher: Outputs) -> Mapping[int, Tensor]:
        self._need_statistics()
        return {
            layer: standardised(teacher.tokens[layer], self.shift[i], self.matrix[i])
            for i, layer in enumerate(self.of_teacher)
        }

    def _need_statistics(self) -> None:
        """Raises ValueError before `calibrate`, or a state that was loaded, has filled the buffers."""
        if not self._known and not bool(self.matrix.any()):  # waits for the device, once
            raise ValueError("the teacher's statistics are not known: calibrate(calibration) must be called first")
        self._known = True
