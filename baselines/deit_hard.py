"""DeiT's hard distillation through a token of its own (Touvron et al. 2021, arXiv 2012.12877)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from harness.api import Batch, Method, Outputs, Vit
from harness.matching import label_term, same_classes


class DeiTHard(Method):
    """(1 - alpha) CE(head(CLS), y) + alpha CE(head_dist(distillation token), argmax z_T), DeiT's equation 3.

    The distillation token is a register of the student, which any fresh timm ViT can have; it stands behind CLS
    and has a position embedding wherever CLS has one, as in DeiT. It starts at that embedding (std .02) where
    DeiT's starts at embedding plus token (.02 each). Its head belongs to this method, so that the exported
    student is a plain ViT with one register. DeiT averages both heads at inference; the exported student's logits
    are the head of CLS alone. Its tokens, which tasks read, are not affected. Name a plain ViT as student: the logits
    of timm's own distilled models are already the mean of two heads, which the first term would then train.

    Args:
        alpha: share of the distillation term; 1 leaves the labels out.

    Attributes:
        head_dist: [D] -> [C], initialised as DeiT's heads are.

    Raises:
        ValueError: other classes than the teacher's, or a student without CLS or with another number of registers.
    """

    name = "deit_hard"
    family = "vanilla"
    cite = "Touvron et al. 2021, arXiv 2012.12877"
    per_image = True
    student_options: ClassVar[Mapping[str, Any]] = {"reg_tokens": 1}
    search: ClassVar[Mapping[str, Any]] = {
        "alpha": ("uniform", 0.1, 0.9),
    }

    def __init__(self, student: Vit, teacher: Vit, *, alpha: float = 0.5) -> None:
        super().__init__(student, teacher)
        same_classes(student, teacher)
        if not student.has_cls or student.num_prefix_tokens != 2:
            raise ValueError(
                f"the student has {'a' if student.has_cls else 'no'} CLS token and {student.num_prefix_tokens} tokens "
                "before the patches; this method needs CLS and one more, the distillation token. Name a plain ViT "
                "with CLS as student"
            )
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is {alpha:g}; it is the share of the distillation term, from 0 to 1")
        self.alpha = alpha
        self.of_student = student.depth - 1
        self.student_layers = frozenset({self.of_student})
        self.head_dist = nn.Linear(student.dim, student.num_classes)
        nn.init.trunc_normal_(self.head_dist.weight, std=0.02)
        nn.init.zeros_(self.head_dist.bias)

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        logits = self.head_dist(student.normed(self.of_student)[:, 1])  # [B, C]
        hard = F.cross_entropy(logits.float(), teacher.logits.argmax(dim=1))
        return {**label_term(student, batch, 1 - self.alpha), "kd": self.alpha * hard}
