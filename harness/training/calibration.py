"""The training images and the teacher on them, as a method may look at them once before its first step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from harness.api import Calibration, Outputs, Vit
from harness.data import Data
from harness.errors import UserError
from harness.sources import Source, Unread, balanced_subset

BATCH = 64  # of the passes; it changes no more than rounding


class SourceCalibration(Calibration):
    """Calibration on a source: the images that `harness.sources.balanced_subset` chooses, by the evaluation view."""

    def __init__(self, source: Source, data: Data, teacher: Vit, device: str = "cpu") -> None:
        self.source, self.data, self.teacher, self.device = source, data, teacher, device
        self.samples = len(source)

    def images(self, count: int) -> Iterator[Tensor]:
        """[B, 3, H, W] in [0, 1], on the device. Raises UserError for a broken image, unless the data skips those."""
        yield from calibration_images(self.source, self.data, count, self.device)

    @torch.no_grad()
    def outputs(self, images: int, layers: Iterable[int], attention_layers: Iterable[int] = ()) -> Iterator[Outputs]:
        layers, attention_layers = tuple(layers), tuple(attention_layers)
        for batch in self.images(images):
            yield self.teacher(batch, layers, attention_layers)


def calibration_images(source: Source, data: Data, count: int, device: str = "cpu") -> Iterator[Tensor]:
    """At most `count` images, every class keeping its share, without augmentation: [B, 3, H, W] in [0, 1].

    The same on every machine, whatever the run's seed.

    Raises:
        UserError: an image that cannot be read, where data.on_bad_image is "raise"; or none at all.
    """
    chosen, view, found = balanced_subset(source, count), data.view(), 0
    waiting: list[Tensor] = []
    for i in range(len(chosen)):
        try:
            waiting.append(view(chosen.read(i).image))
        except (OSError, ValueError, SyntaxError) as error:  # what PIL raises for damaged files
            unread = Unread.of(chosen, i, error)
            if unread.gone or data.on_bad_image == "raise":
                raise UserError(unread.sentence("Mend or remove it, or set data.on_bad_image: skip")) from error
            continue
        if len(waiting) == BATCH:
            found += len(waiting)
            yield torch.stack(waiting).to(device)
            waiting = []
    if waiting:
        found += len(waiting)
        yield torch.stack(waiting).to(device)
    if not found:
        raise UserError(f"there is no readable image to calibrate on in {data.name!r}")
