"""What the artifacts task measures on the outputs of each batch: norms, a loss's gradient, attention, likeness."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from harness.api import Outputs, Vit
from harness.errors import UserError
from harness.features import Encoder
from harness.matching import resample_patches
from harness.norms import outlier_energy, outlier_share, outliers, over_median, token_norms
from harness.similarity import LinearCka, gram_distance

PER_LAYER = ("outlier_share", "max_over_median", "p99_over_median", "outlier_energy")


class Measure(Protocol):
    """Sees every batch of a pass once, and then says what it found."""

    def add(self, images: Tensor, outputs: Outputs) -> None:
        """images: [B, 3, H, W] in [0, 1], as they went into the encoder."""
        ...

    def values(self) -> dict[str, float]:
        """Metric or detail -> value over all images."""
        ...


class Norms:
    """PER_LAYER: each image for itself, mean over images, of every block; the metrics are those of block `layer`."""

    def __init__(self, layer: int, encoder: Encoder) -> None:
        self.layer, self.precision, self.images = layer, encoder.precision, 0
        self.total = torch.zeros(len(PER_LAYER), encoder.depth, dtype=torch.float64)

    def add(self, images: Tensor, outputs: Outputs) -> None:
        """Raises UserError where norms are not finite."""
        for block in range(self.total.shape[1]):
            norms = token_norms(outputs.patches(block))  # [B, P]
            if not norms.isfinite().all():
                raise UserError(
                    f"patch norms after block {block} are not finite: the model has diverged, or precision "
                    f"{self.precision!r} is too narrow for it: use fp32"
                )
            found = [outlier_share(norms), over_median(norms, 1.0), over_median(norms, 0.99), outlier_energy(norms)]
            self.total[:, block] += torch.stack(found).double().sum(dim=1).cpu()
        self.images += len(images)

    def values(self) -> dict[str, float]:
        rows = dict(zip(PER_LAYER, (self.total / self.images).tolist(), strict=True))  # name -> a value each block
        details = {f"{name}/block{i}": value for name, row in rows.items() for i, value in enumerate(row)}
        return {**{name: row[self.layer] for name, row in rows.items()}, **details}


class Gradient:
    """outlier_gradient: sum over outliers of ||x - m||^2 over that of all patches, m their mean over all images.

    The MSE of a prediction that is m everywhere has the gradient 2 (m - x) / size at each token: this is the share
    of its squared norm. Sums in fp64, since m is large beside the spread; 0 where all tokens are equal.
    """

    def __init__(self, layer: int) -> None:
        self.layer = layer
        self.of_outliers, self.of_all = _Spread(), _Spread()

    def add(self, images: Tensor, outputs: Outputs) -> None:
        patches = outputs.patches(self.layer)  # [B, P, D]
        self.of_outliers.add(patches[outliers(token_norms(patches))])
        self.of_all.add(patches.flatten(0, 1))

    def values(self) -> dict[str, float]:
        mean = self.of_all.rows / self.of_all.count  # [D]
        whole, part = self.of_all.about(mean), self.of_outliers.about(mean)
        equal = whole <= 1e-14 * self.of_all.squares  # within fp32's resolution of the tokens
        return {"outlier_gradient": 0.0 if equal else part / whole}


class _Spread:
    """Number, sum and sum of squares of rows [n, D]."""

    def __init__(self) -> None:
        self.count, self.rows, self.squares = 0, torch.zeros(1, dtype=torch.float64), 0.0

    def add(self, rows: Tensor) -> None:
        rows = rows.double()
        self.count, self.squares = self.count + len(rows), self.squares + float(rows.square().sum())
        self.rows = self.rows + rows.sum(dim=0).cpu()

    def about(self, mean: Tensor) -> float:
        """Sum of ||x - mean||^2, at least 0."""
        return max(0.0, self.squares - 2 * float(mean @ self.rows) + self.count * float(mean @ mean))


class Attention:
    """Where CLS looks in block `layer`; mean over images. Outliers are told by the block's output."""

    def __init__(self, layer: int) -> None:
        self.layer, self.images = layer, 0
        self.total = torch.zeros(3, dtype=torch.float64)

    def add(self, images: Tensor, outputs: Outputs) -> None:
        weights = cls_attention(outputs.attention[self.layer], outputs.num_prefix_tokens)  # [B, P]
        found = [
            entropy(weights),
            weights.amax(dim=1),
            (weights * outliers(token_norms(outputs.patches(self.layer)))).sum(dim=1),
        ]
        self.total += torch.stack(found).double().sum(dim=1).cpu()
        self.images += len(images)

    def values(self) -> dict[str, float]:
        names = ("attention_entropy", "attention_largest", "attention_on_outliers")
        return dict(zip(names, (self.total / self.images).tolist(), strict=True))


def cls_attention(attention: Tensor, prefix: int) -> Tensor:
    """What CLS gives to the patches, mean over heads, scaled to sum 1: [B, H, N, N] -> fp32 [B, P]."""
    weights = attention[:, :, 0, prefix:].float().mean(dim=1)  # [B, P]
    return weights / weights.sum(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)


def entropy(weights: Tensor) -> Tensor:
    """Entropy of each row over that of equal weights, log P: [B, P] -> [B], in [0, 1]; 1 where there is one patch."""
    if weights.shape[1] == 1:
        return torch.ones(len(weights), device=weights.device)
    return -torch.special.xlogy(weights, weights).sum(dim=1) / math.log(weights.shape[1])


class Likeness:
    """CKA and Gram distance of patches to those of a teacher at the block of the same share of its depth."""

    def __init__(self, layer: int, encoder: Encoder, teacher: Vit) -> None:
        self.layer, self.itself = layer, teacher is encoder.vit
        self.teacher = encoder.beside(teacher)
        self.theirs = max(0, math.floor((layer + 1) * teacher.depth / encoder.depth + 0.5) - 1)  # as methods match
        self.cka = {"inliers": LinearCka(), "all": LinearCka()}
        self.gram, self.images = dict.fromkeys(self.cka, 0.0), dict.fromkeys(self.cka, 0)

    def add(self, images: Tensor, outputs: Outputs) -> None:
        given = outputs if self.itself else self.teacher(images, [self.theirs])
        ours, theirs = outputs.patches(self.layer), given.patches(self.theirs)  # [B, P, D], [B, P', D']
        outlier = outliers(token_norms(theirs))  # [B, P'], by the teacher's norms
        if given.grid != outputs.grid and given.grid is not None and outputs.grid is not None:
            theirs = resample_patches(theirs.float(), given.grid, outputs.grid)  # [B, P, D']
            outlier = resample_patches(outlier[..., None].float(), given.grid, outputs.grid)[..., 0] > 1e-6
        for name, kept in (("inliers", ~outlier), ("all", torch.ones_like(outlier))):
            self.cka[name].add(ours[kept], theirs[kept])
            some = kept.any(dim=1)  # [B]; where no place is left there is no distance
            self.gram[name] += float(gram_distance(ours, theirs, kept)[some].double().sum())
            self.images[name] += int(some.sum())

    def values(self) -> dict[str, float]:
        """Raises UserError where the teacher's tokens are not finite."""
        cka = {f"cka_{name}": found.value() for name, found in self.cka.items()}
        gram = {f"gram_{name}": total / self.images[name] for name, total in self.gram.items() if self.images[name]}
        if not all(map(math.isfinite, (cka | gram).values())):
            raise UserError(f"the teacher's patches after block {self.theirs} are not finite")
        return cka | gram
