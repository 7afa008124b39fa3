"""MaskedKD: the teacher sees only the patches that the student looks at (Son et al. 2023, arXiv 2302.10494)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from harness.api import Batch, Method, Outputs, Vit
from harness.matching import label_term, resample_patches, same_classes, soft_divergence


class MaskedKD(Method):
    """w_ce CE + w_kd T^2 KL(p_T || p_S), z_T the teacher's logits on the patches of the largest student attention.

    The attention is the student's last block's from CLS to each patch, the mean over heads, without gradient. The
    patches are dropped after the position embedding. Where the grids differ the student's map is resampled
    bilinearly onto the teacher's. The pass belongs to this student alone, so it counts as the method's own
    seconds and not as the shared teacher's.

    Args:
        keep_share: share of the teacher's patches that it sees; the source has 98 of 196. 1 is logit_kd.
        temperature, w_ce, w_kd: as in logit_kd.

    Raises:
        ValueError: a student without CLS, or other classes than the teacher's.
    """

    name = "maskedkd"
    family = "masking"
    cite = "Son et al. 2023, arXiv 2302.10494"
    per_image = True
    search: ClassVar[Mapping[str, Any]] = {
        "keep_share": ("uniform", 0.25, 0.75),
        "temperature": ("log", 0.5, 4.0),
        "w_kd": ("log", 0.05, 5.0),
    }

    def __init__(
        self,
        student: Vit,
        teacher: Vit,
        *,
        keep_share: float = 0.5,
        temperature: float = 1.0,
        w_ce: float = 0.5,
        w_kd: float = 0.5,
    ) -> None:
        super().__init__(student, teacher)
        same_classes(student, teacher)
        if not student.has_cls:
            raise ValueError(
                "the student has no CLS token, and this method chooses patches by where CLS looks; take a student "
                "with one, or random_mask"
            )
        if not 0 < keep_share <= 1:
            raise ValueError(f"keep_share is {keep_share:g}; it must be more than 0 and at most 1, such as 0.5")
        self.teacher, self.student_grid = teacher, student.grid
        self.of_student = student.depth - 1
        self.student_attention = frozenset({self.of_student})
        self.keep_share, self.temperature = keep_share, temperature
        self.w_ce, self.w_kd = w_ce, w_kd

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        keep = self.kept_patches(student)
        with torch.no_grad():
            logits = self.teacher(batch.images, keep=keep).logits
        kd = self.w_kd * soft_divergence(student.logits, logits, self.temperature)
        return {**label_term(student, batch, self.w_ce), "kd": kd}

    def kept_patches(self, student: Outputs) -> Tensor:
        """Numbers of the teacher's patches that it is shown, ascending: [B, K] int64."""
        rows = student.attention[self.of_student][:, :, 0, student.num_prefix_tokens :]  # [B, H, P]
        looked = rows.detach().float().mean(dim=1)  # [B, P]
        if self.student_grid != self.teacher.grid:
            looked = resample_patches(looked.unsqueeze(2), self.student_grid, self.teacher.grid).squeeze(2)
        count = max(1, round(self.keep_share * looked.shape[1]))
        return looked.topk(count, dim=1).indices.sort(dim=1).values
