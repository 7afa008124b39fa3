"""AttnDistill: the student's CLS looks where the teacher's does (Wang et al. 2022, arXiv 2210.00944)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.api import Batch, Method, Outputs, Vit
from harness.matching import paired_vectors, resample_patches

FLOOR = 1e-8  # an attention weight below it counts as this: log 0 where half precision has rounded it away


class AttnDistill(Method):
    """w_cls MSE(P cls_S, cls_T) + w_attention KL(a_T || a_S), the mean over the batch; no labels.

    a = softmax(sum over heads of log(row) / T), row the last block's attention from CLS to the patches. The source
    combines heads in this way where student and teacher differ in their number, which is what they do here; it is
    always done, so that one formula serves every pair. CLS's weight on itself and on registers is left out, since a
    teacher with registers keeps there what others put on patches; the softmax renormalises the rest. CLS vectors
    are final-normed. P is linear, as in the other baselines (the source: an MLP of four layers). Where the grids
    differ the teacher's rows are resampled bilinearly onto the student's (the source: bicubic, which can give
    negative weights).

    Args:
        temperature: T. w_cls, w_attention: as published.

    Attributes:
        projector: [D_S] -> [D_T].

    Raises:
        ValueError: a model without CLS.
    """

    name = "attn_distill"
    family = "feature"
    cite = "Wang et al. 2022, arXiv 2210.00944"
    per_image = True
    search: ClassVar[Mapping[str, Any]] = {
        "temperature": ("log", 1.0, 100.0),
        "w_attention": ("log", 0.01, 1.0),
    }

    def __init__(
        self,
        student: Vit,
        teacher: Vit,
        *,
        temperature: float = 10.0,
        w_cls: float = 1.0,
        w_attention: float = 0.1,
    ) -> None:
        super().__init__(student, teacher)
        for whose, vit in (("student", student), ("teacher", teacher)):
            if not vit.has_cls:
                raise ValueError(
                    f"the {whose} has no CLS token, and this method compares where CLS looks; take a {whose} with "
                    "one, or a method on patches such as fitnet"
                )
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature:g}; it must be more than 0, such as 10.0")
        self.of_student, self.of_teacher = student.depth - 1, teacher.depth - 1
        self.student_layers = self.student_attention = frozenset({self.of_student})
        self.teacher_layers = self.teacher_attention = frozenset({self.of_teacher})
        self.temperature, self.w_cls, self.w_attention = temperature, w_cls, w_attention
        self.projector = nn.Linear(student.dim, teacher.dim)

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        cls, target = paired_vectors(student, teacher, self.of_student, self.of_teacher)
        aligned = F.mse_loss(self.projector(cls).float(), target)
        with torch.autocast(batch.images.device.type, enabled=False):
            ours = cls_rows(student, self.of_student)  # [B, H_S, P]
            theirs = cls_rows(teacher, self.of_teacher)
            if student.grid != teacher.grid and student.grid is not None and teacher.grid is not None:
                theirs = resample_patches(theirs.transpose(1, 2), teacher.grid, student.grid).transpose(1, 2)
            a_s, a_t = (combined_heads(rows, self.temperature) for rows in (ours, theirs))  # [B, P]
            guidance = F.kl_div(a_s, a_t, reduction="batchmean", log_target=True)
        return {"kd": self.w_cls * aligned, "attention": self.w_attention * guidance}


def cls_rows(of: Outputs, layer: int) -> Tensor:
    """What CLS pays to each patch, by head: fp32 [B, H, P]; a row sums to less than one."""
    return of.attention[layer][:, :, 0, of.num_prefix_tokens :].float()


def combined_heads(rows: Tensor, temperature: float) -> Tensor:
    """log softmax over the patches of sum over heads of log(row) / T: [B, H, P] -> [B, P]."""
    return F.log_softmax(rows.clamp(min=FLOOR).log().sum(dim=1) / temperature, dim=-1)
