"""What can be read linearly from single tokens: their place, their patch's pixels, their image's class.

Two sets of tokens, outliers and others, are compared on equal terms: equally many from each image, the same images
held out, the same ridge regression. A classifier is a ridge regression onto one-hot rows, of which the largest wins.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.api import Outputs
from harness.features import Encoder
from harness.norms import outliers, token_norms
from harness.probes import stratified_hold_out
from harness.seeds import derive
from harness.sources import Source

HELD_OUT = 0.25  # of the images, every class with its share
RIDGE = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # penalties in multiples of the number of tokens
LEAST, LEAST_HELD_OUT = 100, 20  # outliers in all, and in the images held out, that a probe needs


@dataclasses.dataclass
class Tokens:
    """Tokens with what is to be read from them.

    Attributes:
        tokens: [n, D]. places: [n] int64, number of the patch. pixels: [n, K]. images: [n] int64, number of the
        image. All but the tokens are on the CPU.
    """

    tokens: Tensor
    places: Tensor
    pixels: Tensor
    images: Tensor

    def of(self, chosen: Tensor) -> Tokens:
        """Those at bool [n]."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return Tokens(**{name: values[chosen.to(values.device)] for name, values in fields.items()})

    @classmethod
    def joined(cls, parts: list[Tokens]) -> Tokens:
        return cls(*(torch.cat([getattr(p, field.name) for p in parts]) for field in dataclasses.fields(cls)))


def drawn(outlier: Tensor, image: int, most: int) -> tuple[Tensor, Tensor]:
    """Places of at most `most` outliers of an image, and of as many other patches: two int64 [k].

    The order in which patches are drawn depends on the image's number alone, so that encoders are asked about the
    same patches wherever they can be.

    Args:
        outlier: [P] bool, at most half of them.
    """
    generator = torch.Generator().manual_seed(derive("token probes", image))
    order = torch.randperm(len(outlier), generator=generator)
    first = order[outlier[order]][:most]
    return first, order[~outlier[order]][: len(first)]


def patch_pixels(images: Tensor, grid: tuple[int, int], image_size: tuple[int, int]) -> Tensor:
    """Pixels of each patch, images brought to the encoder's size: [B, 3, H, W] -> [B, P, 3 h w]."""
    if tuple(images.shape[-2:]) != image_size:
        images = F.interpolate(images, size=image_size, mode="bicubic", align_corners=False, antialias=True)
    rows, columns = grid
    tall, wide = image_size[0] // rows, image_size[1] // columns
    cut = images[..., : rows * tall, : columns * wide].unflatten(3, (columns, wide)).unflatten(2, (rows, tall))
    return cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # from [B, 3, rows, h, columns, w]


def split(labels: np.ndarray) -> tuple[Tensor, Tensor | None] | None:
    """Which images are held out, bool [n], and their classes, int64 [n]; the same for every encoder and seed.

    Classes are None where an image has none, where there is one class only, or where no class has two images, so
    that none can be both learnt and tested; images are then held out whatever they show. None with a single image.
    """
    classes, counts = np.unique(labels, return_counts=True)
    has_classes = len(classes) > 1 and classes[0] >= 0 and counts.max() > 1
    if len(labels) < 2:
        return None
    _, chosen = stratified_hold_out(labels if has_classes else np.zeros_like(labels), HELD_OUT, seed=0)
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    held_out[torch.from_numpy(chosen)] = True
    return held_out, torch.from_numpy(labels.copy()) if has_classes else None


class Readings:
    """Collects outliers and as many other tokens of a pass, and reads them out.

    Args:
        layer: the block whose tokens they are. source: all that is passed, in order. tokens: bound on the outliers.
    """

    def __init__(self, layer: int, encoder: Encoder, source: Source, tokens: int) -> None:
        self.layer, self.grid, self.image_size = layer, encoder.grid, encoder.image_size
        self.labels, self.most = source.labels(), max(1, tokens // len(source))
        self.found: dict[str, list[Tokens]] = {"outlier": [], "inlier": []}
        self.images = 0

    def add(self, images: Tensor, outputs: Outputs) -> None:
        patches = outputs.patches(self.layer)  # [B, P, D]
        pixels = patch_pixels(images, self.grid, self.image_size)  # [B, P, K]
        for i, outlier in enumerate(outliers(token_norms(patches)).cpu()):  # [P]
            chosen = drawn(outlier, self.images + i, self.most)
            for found, places in zip(self.found.values(), chosen, strict=True):
                number = torch.full_like(places, self.images + i)
                found.append(Tokens(patches[i, places.to(patches.device)], places, pixels[i, places], number))
        self.images += len(images)

    def values(self) -> dict[str, float]:
        """`outlier_position_top1`, `inlier_position_top1`, ...; nothing where there are too few outliers."""
        found = {kind: Tokens.joined(parts) for kind, parts in self.found.items()}
        parted = split(self.labels)
        if parted is None or not enough(found["outlier"], parted[0]):
            return {}
        read = {kind: read_out(tokens, *parted, self.grid) for kind, tokens in found.items()}
        return {f"{kind}_{name}": value for kind, values in read.items() for name, value in values.items()}


def enough(outlier: Tokens, held_out: Tensor) -> bool:
    """Whether there are so many outliers, [n] tokens, that a probe says something. held_out: [images] bool."""
    tested = int(held_out[outlier.images].sum())
    return len(outlier.images) >= LEAST and tested >= LEAST_HELD_OUT and tested < len(outlier.images)


def ridge(train: Tensor, targets: list[Tensor], test: Tensor) -> list[Tensor]:
    """Ridge regression of each target on standardised features, its penalty of RIDGE chosen by leave-one-out.

    The error of leaving each row out in turn is exact and in closed form: residual / (1 - leverage).

    Args:
        train: [n, F]. targets: [n, T] each. test: [m, F].

    Returns:
        What is told for `test`, fp64 [m, T] each.
    """
    mean, spread = train.double().mean(dim=0), train.double().std(dim=0, correction=0)
    spread = torch.where(spread > 0, spread, 1.0)
    x, new = (train - mean) / spread, (test - mean) / spread  # fp64
    left, values, right = torch.linalg.svd(x, full_matrices=False)  # [n, k], [k], [k, F]
    found = []
    for target in targets:
        shift = target.mean(dim=0)
        seen = left.T @ (target - shift)  # [k, T]
        best, least = seen, torch.inf
        for penalty in RIDGE:
            shrink = values**2 / (values**2 + penalty * len(x))  # [k]
            residual = target - shift - left @ (shrink[:, None] * seen)  # [n, T]
            leverage = 1 / len(x) + left.square() @ shrink  # [n]
            error = float((residual / (1 - leverage).clamp(min=1e-9)[:, None]).square().mean())
            if error < least:
                best, least = (values / (values**2 + penalty * len(x)))[:, None] * seen, error
        found.append(new @ (right.T @ best) + shift)
    return found


def read_out(found: Tokens, held_out: Tensor, classes: Tensor | None, grid: tuple[int, int]) -> dict[str, float]:
    """What the tokens of the held-out images tell, learnt on those of the other images.

    Args:
        held_out: [images] bool. classes: [images] int64, or None.

    Returns:
        position_top1: share of tokens whose patch is told. position_distance: mean distance between told and true
        patch, in patches, by a regression of row and column. pixel_error: squared error of the patch's pixels over
        that of the mean of the patches trained on; 1 tells nothing. class_top1, with `classes`: share of tokens that
        tell their image's class. position_top1_chance, position_distance_chance, class_top1_chance: what the most
        frequent answer, or the mean place, of the tokens trained on reaches; outliers may sit in few places.
    """
    tested = held_out[found.images]
    train, test = found.of(~tested), found.of(tested)
    targets = {
        "patch": F.one_hot(train.places, grid[0] * grid[1]),  # [n, P]
        "place": coordinates(train.places, grid),  # [n, 2]
        "pixels": train.pixels,  # [n, K]
    }
    if classes is not None:
        targets["class"] = F.one_hot(classes[train.images])  # [n, C]
    on_device = [target.double().to(found.tokens.device) for target in targets.values()]
    answers = [answer.cpu() for answer in ridge(train.tokens, on_device, test.tokens)]
    told = dict(zip(targets, answers, strict=True))
    mean = {name: target.double().mean(dim=0) for name, target in targets.items()}  # what no token decides

    where = coordinates(test.places, grid)  # [m, 2]
    error, plain = ((p - test.pixels).square().sum() for p in (told["pixels"], mean["pixels"]))
    values = {
        "position_top1": (told["patch"].argmax(dim=1) == test.places).double().mean(),
        "position_top1_chance": (mean["patch"].argmax() == test.places).double().mean(),
        "position_distance": (told["place"] - where).norm(dim=1).mean(),
        "position_distance_chance": (mean["place"] - where).norm(dim=1).mean(),
        "pixel_error": error / plain if plain > 0 else torch.ones(()),  # pixels that are all equal tell nothing
    }
    if classes is not None:
        truth = classes[test.images]
        values["class_top1"] = (told["class"].argmax(dim=1) == truth).double().mean()
        values["class_top1_chance"] = (mean["class"].argmax() == truth).double().mean()
    return {name: float(value) for name, value in values.items()}


def coordinates(places: Tensor, grid: tuple[int, int]) -> Tensor:
    """Row and column of patches by number: int64 [n] -> fp64 [n, 2]."""
    return torch.stack([places // grid[1], places % grid[1]], dim=1).double()
