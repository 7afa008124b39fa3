"""Artifacts: patches whose norms stand far out of their image's, layer by layer, before the final norm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from harness.api import Metric, Task, Tiny
from harness.data import Data
from harness.errors import UserError
from harness.features import Encoder
from harness.norms import OUTLIER_Z, outlier_share, over_median, token_norms
from harness.sources import Source, balanced_subset
from harness.toys import Colours, PixelVit


class Artifacts(Task):
    """How far patch norms of the frozen encoder stand out, each image for itself, mean over images.

    n is the Euclidean norm of a patch token after a block and before the final norm, which would hide it. An
    artifact is a patch with robust z = .6745 (n - median) / MAD over 5.5; a quantile would fix the share by
    construction. In an image where more than half of the norms are equal (MAD 0) every larger one is an artifact.
    The metrics are the last block's; details have those of every block, `outlier_share/block3`, 0-based. They are a
    diagnosis and count in no rank: a model that sees nothing has no artifacts either.

    Args:
        data: the test split is looked at; labels are not needed.
        images: at most so many, every class keeping its share, the same on every machine.
    """

    name = "artifacts"
    metrics: ClassVar[Mapping[str, Metric]] = {
        "outlier_share": Metric("fraction", "down", ranked=False),
        "max_over_median": Metric("ratio", "down", ranked=False),
        "p99_over_median": Metric("ratio", "down", ranked=False),
    }

    def __init__(self, *, data: Data, images: int = 512) -> None:
        if images < 1:
            raise UserError(f"images of the artifacts task is {images}; give 1 or more")
        self.data, self.images = data, images

    def protocol(self) -> dict[str, Any]:
        norms = f"patch norms after the last block and before the final norm, {self.images} test images"
        return {
            "summary": f"{norms}; an outlier has robust z > {OUTLIER_Z}",
            "data": self.data.identity(),
            "images": self.images,
            "outlier": f"robust z > {OUTLIER_Z}",
            "final_norm": False,
            "version": 1,
        }

    def evaluate(self, encoder: Encoder, *, seed: int) -> dict[str, float]:
        """Metric -> value; the seed changes nothing.

        Raises:
            UserError: an empty test split, an image that cannot be read, norms that are not finite.
        """
        source = balanced_subset(self.data.open("test"), self.images)
        if not len(source):
            raise UserError("the test split of the artifacts data is empty")
        layers = range(encoder.depth)
        total = torch.zeros(len(self.metrics), encoder.depth, dtype=torch.float64)
        for images in encoder.images(source, self.data.view()):
            outputs = encoder(images, layers=layers)
            total += torch.stack([_sums(token_norms(outputs.patches(i))) for i in layers], dim=1).cpu()
        mean = total / len(source)
        if not mean.isfinite().all():
            block = int(mean.isfinite().all(dim=0).int().argmin())
            raise UserError(
                f"patch norms after block {block} are not finite: the model has diverged, or precision "
                f"{encoder.precision!r} is too narrow for it: use fp32"
            )
        values = dict(zip(self.metrics, mean.tolist(), strict=True))  # metric -> a value each block
        details = {f"{name}/block{i}": value for name, row in values.items() for i, value in enumerate(row)}
        return {**{name: row[-1] for name, row in values.items()}, **details}

    @classmethod
    def tiny(cls) -> Tiny:
        sources: dict[str, Source] = {"test": Colours(16, split="test")}
        task = cls(data=Data.of_sources(sources, image_size=32, name="colours"), images=16)
        # Nothing to see, and patches that stand out, against clean ones: what a blind encoder is to this task.
        return Tiny(task, PixelVit(), PixelVit(planted=2))


def _sums(norms: Tensor) -> Tensor:
    """Each metric summed over the images of a batch: norms [B, P] -> [3]."""
    found = [outlier_share(norms), over_median(norms, 1.0), over_median(norms, 0.99)]  # [B] each
    return torch.stack(found).double().sum(dim=1)
