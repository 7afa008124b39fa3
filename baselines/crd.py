"""Contrastive representation distillation with memory banks (Tian et al. 2020, arXiv 1910.10699)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.api import Batch, Calibration, Method, Outputs, Vit
from harness.matching import label_term, paired_vectors

EPS = 1e-7  # of the source, in the denominators of equation 18
COUNTED = 8  # up to so many places for each negative it is cheaper to compare all of a bank than to gather the drawn


class CRD(Method):
    """w_ce CE + weight (NCE of the student against the teacher's bank + NCE of the teacher against the student's).

    Each training image has a place in two banks of `dim`-vectors, one of student and one of teacher embeddings. An
    image's embedding is contrasted with its own place in the other model's bank and with `negatives` places drawn
    uniformly with replacement, the same ones in both directions, by noise-contrastive estimation (equation 18):
    h = exp(u v / T) / Z / (exp(u v / T) / Z + K / n). Then its own place moves to it by `momentum` and is
    normalised. Z is n times the mean exp(u v / T) of the first batch and then fixed, one for each direction.

    Both embeddings are linear, of the final-normed CLS or mean patch, L2-normalised, and trained. As in the source
    a place may be drawn more than once, and an image's own among its negatives; more negatives than images are
    therefore no mistake, but repetitions. Negatives depend on no label.

    Two banks of n images take n * dim * 8 bytes, 1.3 GB for ImageNet, and are part of checkpoints.

    Args:
        negatives: K. temperature: T. momentum: of a place, 0 replaces it.

    Attributes:
        bank_student, bank_teacher: [n, dim], empty until `calibrate`. z: [2], Z of both directions, -1 until set.
    """

    name = "crd"
    family = "relation"
    cite = "Tian et al. 2020, arXiv 1910.10699"
    training_only: ClassVar[tuple[str, ...]] = ("bank_student", "bank_teacher", "z")
    search: ClassVar[Mapping[str, Any]] = {
        "temperature": ("log", 0.02, 0.25),
        "weight": ("log", 0.08, 8.0),
        "negatives": ("choice", 1024, 4096, 16384),
    }

    bank_student: Tensor
    bank_teacher: Tensor
    z: Tensor

    def __init__(
        self,
        student: Vit,
        teacher: Vit,
        *,
        dim: int = 128,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
        weight: float = 0.8,
        w_ce: float = 1.0,
    ) -> None:
        super().__init__(student, teacher)
        for what, value, legal in (
            ("dim", dim, dim > 0),
            ("negatives", negatives, negatives > 0),
            ("temperature", temperature, temperature > 0),
            ("momentum", momentum, 0 <= momentum < 1),
        ):
            if not legal:
                must = "must be in [0, 1)" if what == "momentum" else "must be more than 0"
                raise ValueError(f"{what} is {value:g}; it {must}, such as the published defaults")
        self.of_student, self.of_teacher = student.depth - 1, teacher.depth - 1
        self.student_layers, self.teacher_layers = frozenset({self.of_student}), frozenset({self.of_teacher})
        self.dim, self.negatives, self.temperature, self.momentum = dim, negatives, temperature, momentum
        self.weight, self.w_ce = weight, w_ce
        self.embed_student, self.embed_teacher = nn.Linear(student.dim, dim), nn.Linear(teacher.dim, dim)
        self.register_buffer("bank_student", torch.empty(0, dim))
        self.register_buffer("bank_teacher", torch.empty(0, dim))
        self.register_buffer("z", torch.full((2,), -1.0))

    def calibrate(self, calibration: Calibration) -> None:
        """A place for every training image in both banks, uniform in +-sqrt(3 / dim) as in the source: norm 1 or so."""
        bound = (3 / self.dim) ** 0.5
        self.bank_student = torch.empty(calibration.samples, self.dim).uniform_(-bound, bound)
        self.bank_teacher = torch.empty(calibration.samples, self.dim).uniform_(-bound, bound)

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        images = len(self.bank_student)
        if images == 0:
            raise ValueError("the memory banks are empty: calibrate(calibration) sizes them and must be called first")
        with torch.autocast(batch.images.device.type, enabled=False):
            ours, theirs = paired_vectors(student, teacher, self.of_student, self.of_teacher)
            u = F.normalize(self.embed_student(ours), dim=1)  # [B, dim]
            v = F.normalize(self.embed_teacher(theirs), dim=1)
            own = batch.index  # [B]
            drawn = torch.randint(images, (len(own), self.negatives), device=own.device)  # [B, K]
            kd = self._contrast(0, u, self.bank_teacher, own, drawn) + self._contrast(
                1, v, self.bank_student, own, drawn
            )
            self._move(self.bank_student, own, u)
            self._move(self.bank_teacher, own, v)
        return {**label_term(student, batch, self.w_ce), "kd": self.weight * kd}

    def _contrast(self, side: int, anchors: Tensor, bank: Tensor, own: Tensor, drawn: Tensor) -> Tensor:
        """Equation 18, the sum over positive and negatives and the mean over the batch."""
        positive = ((anchors * bank[own]).sum(dim=1) / self.temperature).exp()  # [B]
        similarity, times = similarities(anchors, bank, drawn)  # [B, M]
        negative = (similarity / self.temperature).exp()
        with torch.no_grad():
            mean = (positive.sum() + (times * negative).sum()) / (len(own) * (1 + self.negatives))
            self.z[side] = torch.where(self.z[side] < 0, mean * len(bank), self.z[side])
            z = self.z[side].clone()
        noise = self.negatives / len(bank)
        is_own = (positive / z / (positive / z + noise + EPS)).log()
        is_noise = (noise / (negative / z + noise + EPS)).log()
        return -(is_own.sum() + (times * is_noise).sum()) / len(own)

    @torch.no_grad()
    def _move(self, bank: Tensor, own: Tensor, vectors: Tensor) -> None:
        """The places `own` of a bank go towards the embeddings, and back onto the sphere."""
        bank.index_copy_(0, own, F.normalize(self.momentum * bank[own] + (1 - self.momentum) * vectors, dim=1))


def similarities(anchors: Tensor, bank: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Dot products with what was drawn, and how often each was: [B, D], [n, D], [B, K] -> [B, M] twice.

    Of a bank of at most COUNTED * K places every place is compared once and counted, M = n; of a larger one the
    drawn places are gathered, M = K. Sums over M are the same, but a gathered place takes D numbers, a counted one 1.
    """
    if len(bank) <= COUNTED * drawn.shape[1]:
        similarity = anchors @ bank.clone().T  # the bank moves before the backward pass reads it
        return similarity, torch.zeros_like(similarity).scatter_add_(1, drawn, torch.ones_like(drawn, dtype=bank.dtype))
    similarity = torch.bmm(bank[drawn], anchors.unsqueeze(2)).squeeze(2)
    return similarity, torch.ones_like(similarity)
