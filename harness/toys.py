"""Toy encoders and images whose truth is known: the oracle and the blind encoder of a task's `tiny()`, and tests.

Hand-made, without weights: what they see is what their tokens are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from harness.api import Batch, Layers, Method, Outputs, Vit
from harness.seeds import derive
from harness.sources import Sample, Source

CELLS = 2  # a patch is pooled to CELLS x CELLS pixels
SCALE = 4.0  # channels from -2 to 2, of the size that a normed token has


class PixelVit(Vit):
    """A patch's token is the patch itself, pooled to 2 x 2 pixels in [-2, 2]: [B, N, 12], the same after every block.

    Its attention map, one head, is as if every token looked at each in proportion to the norm of that one's output.

    Args:
        image_size, patch: pixels, square. depth: number of blocks, which do nothing.
        has_cls: whether token 0 is the mean of the patches.
        num_classes: the logits are the first so many channels of the mean patch, which means little.
        blind: see a black image whatever the image is.
        planted: the first so many patches get `planted_norm` times their norm, after block `planted_from` and later.
    """

    def __init__(
        self,
        *,
        image_size: int = 32,
        patch: int = 8,
        depth: int = 2,
        has_cls: bool = True,
        num_classes: int = 0,
        blind: bool = False,
        planted: int = 0,
        planted_norm: float = 50.0,
        planted_from: int = 0,
    ) -> None:
        self.depth, self.dim, self.num_classes = depth, 3 * CELLS**2, num_classes
        self.has_cls, self.num_prefix_tokens = has_cls, int(has_cls)
        rows = image_size // patch
        self.grid, self.image_size = (rows, rows), (image_size, image_size)
        self.blind, self.planted, self.planted_norm, self.planted_from = blind, planted, planted_norm, planted_from

    def block(self, layer: int) -> nn.Module:
        self.layer(layer)
        return nn.Identity()

    def through(self, layer: int, tokens: Tensor) -> Tensor:
        self.layer(layer)
        return tokens

    def __call__(
        self,
        images: Tensor,
        layers: Iterable[int] = (),
        attention_layers: Iterable[int] = (),
        keep: Tensor | None = None,
    ) -> Outputs:
        if keep is not None:
            raise ValueError("a PixelVit drops no patches")
        patches = self._patches(torch.zeros_like(images) if self.blind else images)  # [B, P, 12]
        mean = patches.mean(dim=1)  # [B, 12]
        clean = torch.cat([mean[:, None], patches], dim=1) if self.has_cls else patches
        scale = torch.ones(clean.shape[1], 1, device=images.device)
        scale[self.num_prefix_tokens :][: self.planted] = self.planted_norm

        def tokens(layer: int) -> Tensor:
            return clean * scale if layer >= self.planted_from else clean

        return Outputs(
            tokens=Layers({i: tokens(i) for i in map(self.layer, layers)}),
            attention=Layers({i: _by_norm(tokens(i)) for i in map(self.layer, attention_layers)}),
            logits=mean[:, : self.num_classes],  # type: ignore[arg-type]
            num_prefix_tokens=self.num_prefix_tokens,
            has_cls=self.has_cls,
            grid=self.grid,
            norm=lambda x: x,
        )

    def _patches(self, images: Tensor) -> Tensor:
        rows, columns = self.grid
        cells = F.adaptive_avg_pool2d(images, (rows * CELLS, columns * CELLS))  # [B, 3, 2 rows, 2 columns]
        return F.pixel_unshuffle(SCALE * (cells - 0.5), CELLS).flatten(2).transpose(1, 2).contiguous()  # [B, P, 12]


def _by_norm(tokens: Tensor) -> Tensor:
    """Attention in proportion to norm: [B, N, D] -> [B, 1, N, N]."""
    norms = tokens.norm(dim=-1) + 1e-6  # [B, N], equal for all where every token is 0
    rows = norms / norms.sum(dim=1, keepdim=True)  # [B, N]
    return rows[:, None, None, :].expand(-1, 1, norms.shape[1], -1)


class Cured(Method):
    """Has the student imitate a planted PixelVit's last two blocks as they were before anything was planted."""

    name = "cured"
    cite = "a toy"

    def __init__(self, student: Vit, teacher: PixelVit) -> None:
        super().__init__(student, teacher)
        self.teacher, self.last = teacher, teacher.depth - 1
        self.teacher_layers = frozenset({max(0, self.last - 1), self.last})

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        return {"kd": F.mse_loss(student.tokens[self.last], self.targets(teacher)[self.last])}

    def targets(self, teacher: Outputs) -> Mapping[int, Tensor]:
        found = {}
        for layer in self.teacher_layers:
            found[layer] = teacher.tokens[layer].clone()  # [B, N, 12]
            if layer >= self.teacher.planted_from:
                found[layer][:, self.teacher.num_prefix_tokens :][:, : self.teacher.planted] /= (
                    self.teacher.planted_norm
                )
        return found


class Colours(Source):
    """Noisy images of one colour a class, classes in turn; the same on every machine.

    Args:
        count: images. classes: at most 8, the corners of the colour cube. size: pixels, square.
        noise: standard deviation of a pixel's channel, of 1. cast: the same of an image's channel as a whole,
            which no pooling averages out. split: another one has other noise.
    """

    name = "colours"
    needs_root = False

    def __init__(
        self,
        count: int,
        *,
        classes: int = 4,
        size: int = 32,
        noise: float = 0.25,
        cast: float = 0.0,
        split: str = "train",
    ) -> None:
        if not 1 <= classes <= 8:
            raise ValueError(f"{classes} classes: the colour cube has 8 corners, give 1 to 8")
        self.count, self.size, self.noise, self.cast, self.split = count, size, noise, cast, split
        self.classes = tuple(f"colour {i}" for i in range(classes))

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> Sample:
        label = index % len(self.classes)
        colour = np.array([0.25 + 0.5 * (label >> bit & 1) for bit in range(3)])
        rng = np.random.default_rng(derive("colours", self.split, index))
        pixels = colour + self.noise * rng.standard_normal((self.size, self.size, 3))
        pixels += self.cast * rng.standard_normal(3)
        return Sample(Image.fromarray((255 * pixels.clip(0, 1)).round().astype(np.uint8)), label)

    def labels(self) -> np.ndarray:
        return np.arange(self.count, dtype=np.int64) % len(self.classes)

    def sample_name(self, index: int) -> str:
        return f"{self.split}/{index}"

    def identity(self) -> str:
        return f"colours {self.count} {len(self.classes)} {self.size} {self.noise} {self.cast} {self.split}"


class Patchwork(Source):
    """Noisy images of square cells of one colour each, whose mask says which; the same on every machine.

    Args:
        count: images. classes: colours, at most 8. size: pixels, square. cell: pixels, square. split: another one has
            other images. ignored: the share of cells that the mask ignores.
    """

    name = "patchwork"
    needs_root = False

    def __init__(
        self,
        count: int,
        *,
        classes: int = 4,
        size: int = 32,
        cell: int = 8,
        split: str = "train",
        ignored: float = 0.1,
    ) -> None:
        self.count, self.size, self.cell, self.split, self.ignored = count, size, cell, split, ignored
        self.classes = ()
        self.segmentation_classes = tuple(f"colour {i}" for i in range(classes))

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> Sample:
        rng = np.random.default_rng(derive("patchwork", self.split, index))
        cells = self.size // self.cell
        colours = rng.integers(0, len(self.segmentation_classes), (cells, cells))
        mask = np.where(rng.random((cells, cells)) < self.ignored, 255, colours).astype(np.uint8)
        corners = 0.25 + 0.5 * (colours[..., None] >> np.arange(3) & 1)  # [cells, cells, 3]
        pixels = _enlarged(corners, self.cell) + 0.1 * rng.standard_normal((self.size, self.size, 3))
        image = Image.fromarray((255 * pixels.clip(0, 1)).round().astype(np.uint8))
        return Sample(image, mask=_enlarged(mask, self.cell))

    def labels(self) -> np.ndarray:
        return np.full(self.count, -1, dtype=np.int64)

    def sample_name(self, index: int) -> str:
        return f"{self.split}/{index}"

    def identity(self) -> str:
        options = (self.count, len(self.segmentation_classes), self.size, self.cell, self.split, self.ignored)
        return f"patchwork {options}"


def _enlarged(cells: np.ndarray, factor: int) -> np.ndarray:
    return cells.repeat(factor, axis=0).repeat(factor, axis=1)


class Slopes(Source):
    """Noisy images of tilted planes: the brighter a pixel, the farther it is; the same on every machine.

    Depth is 0.5 to 4.5 m, grey is depth / 5 m; a corner, elsewhere in every image, has no known depth.

    Args:
        count: images. size: pixels, square. noise: standard deviation of a pixel's channel, of 1. split: another one
            has other planes.
    """

    name = "slopes"
    needs_root = False
    classes = ()
    depth_range_m = (0.5, 4.5)

    def __init__(self, count: int, *, size: int = 32, noise: float = 0.05, split: str = "train") -> None:
        self.count, self.size, self.noise, self.split = count, size, noise, split

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> Sample:
        rng = np.random.default_rng(derive("slopes", self.split, index))
        place = np.linspace(-1, 1, self.size)
        middle, (down, across) = rng.uniform(1.5, 3.5), rng.uniform(-0.5, 0.5, 2)
        depth_m = middle + down * place[:, None] + across * place  # [S, S]
        grey = (depth_m / 5)[..., None] + self.noise * rng.standard_normal((self.size, self.size, 3))
        rows, columns = rng.integers(0, self.size // 2, 2)
        depth_m[:rows, :columns] = 0
        image = Image.fromarray((255 * grey.clip(0, 1)).round().astype(np.uint8))
        return Sample(image, depth_m=depth_m.astype(np.float32))

    def labels(self) -> np.ndarray:
        return np.full(self.count, -1, dtype=np.int64)

    def sample_name(self, index: int) -> str:
        return f"{self.split}/{index}"

    def identity(self) -> str:
        return f"slopes {self.count} {self.size} {self.noise} {self.split}"
