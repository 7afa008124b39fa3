"""Proteus: imitate a foundation model's CLS, all tokens, and masked patches (Zhang et al. 2024, arXiv 2407.10366)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.api import Batch, Method, Outputs, Vit
from harness.matching import mask_share, masked_mse, paired_normed, paired_vectors, random_keep
from harness.models import resized

GREY = 0.5  # of a masked patch before training: about what the source's mask token is, a zero


class Proteus(Method):
    """w_cls MSE(CLS) + w_tokens MSE(all tokens) + w_masked MSE(masked patches); no labels.

    All of the last block, after the final norm in both models; a head is a LayerNorm and a linear map to the
    teacher's width, one for CLS, one for the patches and one for the masked patches. "All tokens" are CLS, through
    the head of CLS, and the patches.

    For the masked patches the student runs a second time, as in the source: on the first half of the batch, with
    half of each image's patches replaced by a learnt mask, and the teacher seeing all. The source puts a learnt token
    in the place of the patch embedding, before the position is added. Here the mask is a patch of pixels, which the
    method trains: the embedding of a patch is linear, so this is such a token too (any token, as long as a patch has
    no fewer pixel values than the student has channels), and it asks nothing of the student but its call. Dropping
    the patches instead, or masking features, would be another task: masked places have to be filled by every block.

    Where a model has no CLS its mean patch stands in for it, and "all tokens" are the patches. Where the grids
    differ the teacher's patches are resampled. A weight of 0 leaves its part out, with its head.

    Args:
        ratio: the share of an image's patches that is masked. masked_images: the share of the batch.
        w_cls, w_tokens, w_masked: the source's lambdas, 1 each.

    Attributes:
        heads: ModuleDict of "cls", "patches" and "masked". mask: [3, h, w], a masked patch's pixels less mid-grey,
            in units of 1 = white, so that weight decay draws it to grey.

    Raises:
        ValueError: a share outside [0, 1), or none at all to mask; a student whose patches do not tile its image.
    """

    name = "proteus"
    family = "feature"
    cite = "Zhang et al. 2024, arXiv 2407.10366"
    search: ClassVar[Mapping[str, Any]] = {
        "w_cls": ("log", 0.1, 10.0),
        "w_tokens": ("log", 0.1, 10.0),
        "w_masked": ("log", 0.1, 10.0),
        "ratio": ("uniform", 0.25, 0.75),
    }

    def __init__(
        self,
        student: Vit,
        teacher: Vit,
        *,
        ratio: float = 0.5,
        masked_images: float = 0.5,
        w_cls: float = 1.0,
        w_tokens: float = 1.0,
        w_masked: float = 1.0,
    ) -> None:
        super().__init__(student, teacher)
        self.student = student  # no module: the harness owns its weights
        self.of_student, self.of_teacher = student.depth - 1, teacher.depth - 1
        self.student_layers, self.teacher_layers = frozenset({self.of_student}), frozenset({self.of_teacher})
        self.w_cls, self.w_tokens, self.w_masked = w_cls, w_tokens, w_masked
        self.heads = nn.ModuleDict()
        if w_cls or (w_tokens and student.has_cls and teacher.has_cls):
            self.heads["cls"] = _head(student.dim, teacher.dim)
        if w_tokens:
            self.heads["patches"] = _head(student.dim, teacher.dim)
        if w_masked:
            self.ratio, self.masked_images = mask_share("ratio", ratio), masked_images
            if ratio == 0 or not 0 < masked_images <= 1:
                raise ValueError(
                    f"ratio {ratio} of the patches of {masked_images} of the images leaves nothing to mask, or more "
                    "than there is; give shares such as 0.5, or set w_masked to 0"
                )
            self.heads["masked"] = _head(student.dim, teacher.dim)
            self.mask = nn.Parameter(torch.zeros(3, *_patch_size(student)))

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        ours, theirs = paired_normed(student, teacher, self.of_student, self.of_teacher)  # [B, N', D_S], [B, N', D_T]
        count = student.patches(self.of_student).shape[1]
        terms = {}
        if self.w_cls:
            vector, target = paired_vectors(student, teacher, self.of_student, self.of_teacher)
            terms["cls"] = self.w_cls * F.mse_loss(self.heads["cls"](vector).float(), target)
        if self.w_tokens:
            tokens = self.heads["patches"](ours[:, -count:])
            if ours.shape[1] > count:
                tokens = torch.cat([self.heads["cls"](ours[:, :1]), tokens], dim=1)
            terms["tokens"] = self.w_tokens * F.mse_loss(tokens.float(), theirs.float())
        if self.w_masked:
            terms["masked"] = self.w_masked * self._masked_error(batch.images, theirs[:, -count:])
        return terms

    def _masked_error(self, images: Tensor, target: Tensor) -> Tensor:
        """MSE of the masked patches of the first images; target: the teacher's patches [B, P, D_T]."""
        some = max(1, round(self.masked_images * len(images)))
        keep = random_keep(target[:some], self.ratio)  # [B', P]
        seen = self.student(self.masked(images[:some], keep), (self.of_student,))
        patches = seen.normed(self.of_student)[:, seen.num_prefix_tokens :]  # [B', P, D_S]
        return masked_mse(self.heads["masked"](patches), target[:some], ~keep)

    def masked(self, images: Tensor, keep: Tensor) -> Tensor:
        """The images at the student's size, with the mask for all patches but those of `keep` [B, P]."""
        images = resized(images, self.student.image_size)  # before masking, or a patch's neighbours would show it
        rows, columns = self.student.grid
        height, width = self.mask.shape[1:]
        seen = keep.view(-1, 1, rows, columns).repeat_interleave(height, 2).repeat_interleave(width, 3)  # [B, 1, H, W]
        return torch.where(seen, images, GREY + self.mask.repeat(1, rows, columns))

    def targets(self, teacher: Outputs) -> Mapping[int, Tensor]:
        return {self.of_teacher: teacher.normed(self.of_teacher)}


def _head(width: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, out))


def _patch_size(student: Vit) -> tuple[int, int]:
    """Height and width of the student's patches in pixels."""
    sizes = [divmod(side, count) for side, count in zip(student.image_size, student.grid, strict=True)]
    if any(rest for _, rest in sizes):
        raise ValueError(
            f"the student's {student.grid} patches do not tile its image of {student.image_size} pixels, so they "
            "cannot be masked; give it an image size that its patch size divides, or set w_masked to 0"
        )
    return sizes[0][0], sizes[1][0]
