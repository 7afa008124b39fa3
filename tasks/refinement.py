"""Refinement: what a method makes of its teacher's tokens before its student imitates them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.api import Metric, Outputs, Task, Tiny
from harness.data import Data
from harness.errors import UserError
from harness.features import Encoder
from harness.norms import OUTLIER_Z, outlier_share, outliers, over_median, token_norms
from harness.reference import Reference
from harness.sources import Source, balanced_subset
from harness.toys import Colours, Cured, PixelVit

SCALE_IMAGES = 64  # that a layer's scale is fitted on


class Refinement(Task):
    """The tokens that a method has its student imitate, against the teacher's raw ones and, where known, clean ones.

    The student itself is not looked at: the method is, `Method.targets`, as it was after training, on test images. A
    bound has no method: its row is of the teacher's own tokens after the last block, what imitation without any
    refinement has. A method that imitates no tokens has no metrics, and neither has an encoder without a reference.
    Raw tokens are those of the run's own teacher, after its repairs; clean ones are the model's without repairs and
    with planted artifacts of size 0. Of patches alone; each metric is the mean over the method's layers that have it,
    and details have every layer, `cosine_to_raw/block8`. An outlier is a patch whose raw token has robust z over 5.5.
    All is a diagnosis and counts in no rank. The seed changes nothing.

    Scale: targets that are normalised or standardised have another one, which a student's projector takes up.
    Before anything but cosines is compared, a layer's targets are multiplied by the one number that brings them
    nearest to the raw inliers of at most 64 images, by least squares (`scale/block8`; at least 0); before errors to
    clean tokens by the one for these, which is the same unless the teacher is repaired. Cosines do not see it, except
    next_*. Targets that are rotated (phi_s) are far from raw ones by this, whatever they hold.

    outlier_share, max_over_median: of the targets' own norms, each image for itself, mean over images.
    cosine_to_raw, error_to_raw: of the targets to the raw tokens, inliers. A cosine is a mean over tokens; an error is
        the L2 norm of the difference over that of what it is compared with, all tokens together.
    next_cosine, next_error: of block l + 1's output for the targets to its output for the raw tokens, inliers; of
        layers before the last block.
    cosine_to_clean, error_to_clean: of the targets to the clean tokens, all patches; cosine_to_clean_outliers,
        error_to_clean_outliers: outliers alone. Left out where none are planted.

    Args:
        data: the test split is looked at; labels are not needed.
        images: at most so many, every class keeping its share, the same on every machine.
    """

    name = "refinement"
    metrics: ClassVar[Mapping[str, Metric]] = {
        "max_over_median": Metric("ratio", "down", ranked=False),
        "cosine_to_raw": Metric("ratio", "up", ranked=False, shown=True),
        "next_cosine": Metric("ratio", "up", ranked=False, shown=True),
        "cosine_to_clean_outliers": Metric("ratio", "up", ranked=False, shown=True),
        "outlier_share": Metric("fraction", "down", ranked=False),
        "error_to_raw": Metric("ratio", "down", ranked=False),
        "next_error": Metric("ratio", "down", ranked=False),
        "cosine_to_clean": Metric("ratio", "up", ranked=False),
        "error_to_clean": Metric("ratio", "down", ranked=False),
        "error_to_clean_outliers": Metric("ratio", "down", ranked=False),
    }

    def __init__(self, *, data: Data, images: int = 256) -> None:
        if images < 1:
            raise UserError(f"images of the refinement task is {images}; give 1 or more")
        self.data, self.images = data, images

    def protocol(self) -> dict[str, Any]:
        return {
            "summary": f"targets of the trained method against the teacher's tokens, {self.images} test images",
            "data": self.data.identity(),
            "images": self.images,
            "outlier": f"robust z > {OUTLIER_Z} of the raw token",
            "scale": f"least squares on inliers of {SCALE_IMAGES} images",
            "version": 1,
        }

    @torch.no_grad()
    def evaluate(self, encoder: Encoder, *, seed: int) -> dict[str, float]:
        """Metric -> value; the seed changes nothing.

        Raises:
            UserError: an empty test split, an image that cannot be read, tokens that are not finite.
        """
        if encoder.reference is None:
            return {}
        split = self.data.open("test")
        if not len(split):
            raise UserError("the test split of the refinement data is empty")
        pairs = _Pairs(encoder, encoder.reference, self.data)
        found: dict[int, _Layer] = {}
        for images, teacher, targets in pairs.of(balanced_subset(split, min(SCALE_IMAGES, self.images))):
            clean = pairs.clean(images, targets)
            for layer, target in targets.items():
                found.setdefault(layer, _Layer(layer)).fit(target, teacher, clean)
        for images, teacher, targets in pairs.of(balanced_subset(split, self.images)):
            clean = pairs.clean(images, targets)
            for layer, target in targets.items():
                last, scaled = layer + 1 == pairs.teacher.depth, found[layer].to_raw.value * target  # [B, N, D]
                after = None if last else pairs.teacher.through(layer + 1, scaled)  # [B, N, D]
                found[layer].add(target, after, teacher, clean)
        details: dict[str, dict[int, float]] = {}
        for layer, one in found.items():
            for name, value in one.values().items():
                details.setdefault(name, {})[layer] = value
        metrics = {k: sum(v.values()) / len(v) for k, v in details.items() if k in self.metrics}
        return metrics | {f"{k}/block{layer}": value for k, v in details.items() for layer, value in v.items()}

    @classmethod
    def tiny(cls) -> Tiny:
        sources: dict[str, Source] = {"test": Colours(16, split="test")}
        task = cls(data=Data.of_sources(sources, image_size=32, name="colours"), images=16)
        planted, clean = PixelVit(planted=2), PixelVit()
        known = {"oracle": Reference.of(planted, clean, Cured(clean, planted)), "blind": Reference.of(planted, clean)}
        encoders = {k: Encoder(clean, identity=k, cache=None, reference=reference) for k, reference in known.items()}
        return Tiny(task, encoders["oracle"], encoders["blind"])


class _Pairs:
    """Batches of a source with the teacher's outputs and a method's targets."""

    def __init__(self, encoder: Encoder, reference: Reference, data: Data) -> None:
        self.encoder, self.view = encoder, data.view()
        self.teacher, self.method = encoder.beside(reference.teacher), reference.method
        self.twin = None if reference.clean is None else encoder.beside(reference.clean)
        last = self.teacher.depth - 1
        read = {last} if self.method is None else self.method.teacher_layers
        self.layers = sorted(read | {min(i + 1, last) for i in read})

    def of(self, source: Source) -> Iterator[tuple[Tensor, Outputs, Mapping[int, Tensor]]]:
        """Images, the teacher's outputs, targets by layer [B, N, D]; nothing for a method without targets."""
        if not self.layers:
            return
        for images in self.encoder.images(source, self.view):
            outputs = self.teacher(images, self.layers)
            last = self.teacher.depth - 1
            targets = {last: outputs.tokens[last]} if self.method is None else self.method.targets(outputs)
            yield images, outputs, {layer: target.float() for layer, target in targets.items()}

    def clean(self, images: Tensor, targets: Mapping[int, Tensor]) -> Outputs | None:
        return None if self.twin is None or not targets else self.twin(images, targets)


class _Scale:
    """The least-squares scale of rows on others: sum of products over sum of squares."""

    def __init__(self) -> None:
        self.products = self.squares = 0.0

    def add(self, rows: Tensor, others: Tensor) -> None:
        self.products += float((rows.double() * others.double()).sum())
        self.squares += float(rows.double().square().sum())

    @property
    def value(self) -> float:
        """At least 0; 1 for rows that are all 0, which no scale brings nearer."""
        return max(0.0, self.products / self.squares) if self.squares else 1.0


class _Agreement:
    """Mean cosine and relative L2 error of rows [n, D] to others."""

    def __init__(self) -> None:
        self.count, self.cosine, self.error, self.size = 0, 0.0, 0.0, 0.0

    def add(self, rows: Tensor, others: Tensor, scale: float = 1.0) -> None:
        rows, others = rows.double(), others.double()
        self.count += len(rows)
        self.cosine += float(F.cosine_similarity(rows, others, dim=-1).sum())
        self.error += float((scale * rows - others).square().sum())
        self.size += float(others.square().sum())

    def values(self, cosine: str, error: str) -> dict[str, float]:
        """Nothing without rows, no error where there is nothing to divide by."""
        found = {cosine: self.cosine / self.count} if self.count else {}
        return found | ({error: (self.error / self.size) ** 0.5} if self.size else {})


class _Layer:
    """All that is measured of one layer."""

    def __init__(self, layer: int) -> None:
        self.layer, self.to_raw, self.to_clean = layer, _Scale(), _Scale()
        self.raw, self.next, self.clean, self.cured = (_Agreement() for _ in range(4))
        self.share = self.ratio = 0.0
        self.images = 0

    def fit(self, targets: Tensor, teacher: Outputs, clean: Outputs | None) -> None:
        """targets: [B, N, D]."""
        raw = teacher.patches(self.layer).float()  # [B, P, D]
        inlier = ~outliers(token_norms(raw))  # [B, P]
        target = targets[:, teacher.num_prefix_tokens :][inlier]  # [n, D]
        self.to_raw.add(target, raw[inlier])
        if clean is not None:
            self.to_clean.add(target, clean.patches(self.layer)[inlier])

    def add(self, targets: Tensor, after: Tensor | None, teacher: Outputs, clean: Outputs | None) -> None:
        """targets: [B, N, D]. after: the next block's output for the scaled targets, [B, N, D]."""
        prefix, raw = teacher.num_prefix_tokens, teacher.patches(self.layer).float()
        target = targets[:, prefix:]  # [B, P, D]
        if not target.isfinite().all() or not raw.isfinite().all():
            raise UserError(f"what is imitated of the teacher's block {self.layer} is not finite")
        outlier, norms = outliers(token_norms(raw)), token_norms(target)  # [B, P]
        self.share += float(outlier_share(norms).double().sum())
        self.ratio += float(over_median(norms, 1.0).double().sum())
        self.images += len(raw)
        self.raw.add(target[~outlier], raw[~outlier], self.to_raw.value)
        if after is not None:
            self.next.add(after[:, prefix:][~outlier], teacher.patches(self.layer + 1)[~outlier])
        if clean is not None:
            truth, scale = clean.patches(self.layer), self.to_clean.value
            self.clean.add(target.flatten(0, 1), truth.flatten(0, 1), scale)
            self.cured.add(target[outlier], truth[outlier], scale)

    def values(self) -> dict[str, float]:
        return {
            "scale": self.to_raw.value,
            "outlier_share": self.share / self.images,
            "max_over_median": self.ratio / self.images,
            **self.raw.values("cosine_to_raw", "error_to_raw"),
            **self.next.values("next_cosine", "next_error"),
            **self.clean.values("cosine_to_clean", "error_to_clean"),
            **self.cured.values("cosine_to_clean_outliers", "error_to_clean_outliers"),
        }
