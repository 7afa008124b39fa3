"""Artifacts: patches whose norms stand far out, what they do to a student's loss, what they hold, who looks at them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from harness.api import Metric, Task, Tiny
from harness.data import Data
from harness.errors import UserError
from harness.features import Encoder
from harness.norms import OUTLIER_Z
from harness.sources import Source, balanced_subset
from harness.toys import Colours, PixelVit
from tasks.artifact_measures import Attention, Gradient, Likeness, Measure, Norms
from tasks.token_probes import HELD_OUT, LEAST, LEAST_HELD_OUT, RIDGE, Readings


class Artifacts(Task):
    """How far patch norms of the frozen encoder stand out, what such tokens hold, and how like its teacher it is.

    n is the Euclidean norm of a patch token after a block and before the final norm, which would hide it. An outlier is
    a patch with robust z = .6745 (n - median) / MAD over 5.5 in its image; a quantile would fix the share by
    construction. Where more than half of an image's norms are equal (MAD 0) every larger one is an outlier.
    All is a diagnosis and counts in no rank: a model that sees nothing has no artifacts either. The metrics are of
    block `layer`; a metric that does not exist for an encoder is left out. The seed changes nothing.

    Norms, each image for itself, mean over images; details have them of every block, `outlier_share/block3`:
        outlier_share, max_over_median, p99_over_median; outlier_energy: share of the squared norm on outliers.
    Gradient: outlier_gradient, the share of the squared norm of a FitNet loss's gradient that falls on outliers, for a
        student that imitates these tokens by MSE and still says the same of every patch, their mean m (the best such
        answer): sum over outliers ||x - m||^2 over the sum over all patches, all images together.
    Likeness to the teacher, `encoder.reference`, at the block of the same share of its depth, last for last; left out
        where it is not known. Of patches alone; the teacher's are resampled onto the encoder's grid where grids differ:
        cka_*: linear CKA over all patches of all images. gram_*: ||X^ X^T^ - Y^ Y^T^||_F / P, row-normalised, mean over
        images. *_inliers: without places where the teacher has an outlier (or whose resampled token holds a part of
        one); *_all: with them.
    Attention of CLS over patches in block `layer`, mean over heads, scaled to sum 1, mean over images; left out without
        CLS: attention_entropy over log P, attention_largest, attention_on_outliers.
    What single tokens tell, linearly, `outlier_*` against `inlier_*`, see `tasks.token_probes`: *_position_top1,
        *_position_distance (patches), *_pixel_error (1: no better than the mean), *_class_top1 (where images have
        labels). Details have what the tokens' frequencies alone reach, *_chance: outliers may sit in few places.
        Learnt on three quarters of the images, tested on the others; from each image equally many outliers and other
        patches. Left out where there are fewer than 100 outliers, or 20 in the images held out.

    Args:
        data: the test split is looked at; labels are needed for *_class_top1 only.
        images: at most so many, every class keeping its share, the same on every machine.
        tokens: at most so many outliers for the probes, equally many an image but at least one, and as many others.
        layer: the block that the metrics are of; -1 is the last.
    """

    name = "artifacts"
    metrics: ClassVar[Mapping[str, Metric]] = {
        "outlier_share": Metric("fraction", "down", ranked=False),
        "max_over_median": Metric("ratio", "down", ranked=False, shown=True),
        "outlier_gradient": Metric("fraction", "down", ranked=False, shown=True),
        "cka_inliers": Metric("ratio", "up", ranked=False, shown=True),
        "p99_over_median": Metric("ratio", "down", ranked=False),
        "outlier_energy": Metric("fraction", "down", ranked=False),
        "cka_all": Metric("ratio", "up", ranked=False),
        "gram_inliers": Metric("ratio", "down", ranked=False),
        "gram_all": Metric("ratio", "down", ranked=False),
        "attention_entropy": Metric("ratio", "up", ranked=False),
        "attention_largest": Metric("fraction", "down", ranked=False),
        "attention_on_outliers": Metric("fraction", "down", ranked=False),
        "outlier_position_top1": Metric("fraction", "up", ranked=False),
        "inlier_position_top1": Metric("fraction", "up", ranked=False),
        "outlier_position_distance": Metric("patches", "down", ranked=False),
        "inlier_position_distance": Metric("patches", "down", ranked=False),
        "outlier_pixel_error": Metric("ratio", "down", ranked=False),
        "inlier_pixel_error": Metric("ratio", "down", ranked=False),
        "outlier_class_top1": Metric("fraction", "up", ranked=False),
        "inlier_class_top1": Metric("fraction", "up", ranked=False),
    }

    def __init__(self, *, data: Data, images: int = 512, tokens: int = 4096, layer: int = -1) -> None:
        for what, value in (("images", images), ("tokens", tokens)):
            if value < 1:
                raise UserError(f"{what} of the artifacts task is {value}; give 1 or more")
        self.data, self.images, self.tokens, self.layer = data, images, tokens, layer

    def protocol(self) -> dict[str, Any]:
        block = "the last block" if self.layer == -1 else f"block {self.layer}"
        norms = f"patch norms after {block} and before the final norm, {self.images} test images"
        return {
            "summary": f"{norms}; an outlier has robust z > {OUTLIER_Z}",
            "data": self.data.identity(),
            "images": self.images,
            "tokens": self.tokens,
            "layer": self.layer,
            "outlier": f"robust z > {OUTLIER_Z}",
            "final_norm": False,
            "probes": {"held_out": HELD_OUT, "ridge": list(RIDGE), "least": [LEAST, LEAST_HELD_OUT]},
            "version": 2,
        }

    def evaluate(self, encoder: Encoder, *, seed: int) -> dict[str, float]:
        """Metric -> value; the seed changes nothing.

        Raises:
            UserError: an empty test split, an image that cannot be read, a layer that the encoder has not, tokens that
                are not finite.
        """
        source = balanced_subset(self.data.open("test"), self.images)
        if not len(source):
            raise UserError("the test split of the artifacts data is empty")
        try:
            layer = encoder.layer(self.layer)
        except ValueError as error:
            raise UserError(f"layer of the artifacts task: {error}") from error
        measures: list[Measure] = [Norms(layer, encoder), Gradient(layer)]
        if encoder.has_cls:
            measures.append(Attention(layer))
        if encoder.reference is not None:
            measures.append(Likeness(layer, encoder, encoder.reference.teacher))
        measures.append(Readings(layer, encoder, source, self.tokens))
        for images in encoder.images(source, self.data.view()):
            outputs = encoder(images, range(encoder.depth), [layer] if encoder.has_cls else [])
            for measure in measures:
                measure.add(images, outputs)
        return {name: value for measure in measures for name, value in measure.values().items()}

    @classmethod
    def tiny(cls) -> Tiny:
        sources: dict[str, Source] = {"test": Colours(64, split="test")}
        task = cls(data=Data.of_sources(sources, image_size=32, name="colours"), images=64)
        # Nothing to see, and patches that stand out, against clean ones: what a blind encoder is to this task.
        return Tiny(task, PixelVit(), PixelVit(planted=2))
