"""Maps of a ViT's patch tokens: norms, principal components as colours, similarity to one patch. No drawing.

A column is whatever gives patch tokens for images: a ViT, a repaired one, or the teacher's tokens as a method has
its student imitate them. Norms are of tokens before the final norm, which would hide artifacts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from harness.api import Method, Vit
from harness.errors import UserError
from harness.norms import OUTLIER_Z, outlier_share, token_norms

BATCH = 16  # images a pass; it changes no more than rounding
ROBUST = (0.02, 0.98)  # quantiles of a component that become 0 and 1 of its colour
Kind = Literal["teacher", "target", "student"]


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of a picture.

    Attributes:
        title: what it is called. kind: a teacher, a method's targets, or a student.
        layer: the block that is shown. layers: the blocks whose norms are counted, `layer` among them.
        depth: blocks of the model. grid: rows and columns of the patches.
        patches: (images [B, 3, H, W] in [0, 1], blocks) -> block -> [B, P, D].
    """

    title: str
    kind: Kind
    layer: int
    layers: tuple[int, ...]
    depth: int
    grid: tuple[int, int]
    patches: Callable[[Tensor, Iterable[int]], Mapping[int, Tensor]] = dataclasses.field(repr=False, compare=False)


@dataclasses.dataclass(frozen=True)
class Maps:
    """What one column shows of n images, and what it counts over a larger sample of S images. Holds no model.

    Attributes:
        title, kind, layer, depth, grid: of the column.
        norms: [n, rows, columns]. rgb: [n, rows, columns, 3] in [0, 1]. similarity: [n, rows, columns] in [-1, 1].
        mark: row and column of the patch that similarity is to, on this column's grid.
        shown_share: outlier share of the n images. sample_share: of the sample; both at the shown block.
        levels: block -> norms of the sample's patches [S, P]. limits: block -> the norm over which a patch is an
            outlier, the median over the sample's images, each of which has its own.
    """

    title: str
    kind: Kind
    layer: int
    depth: int
    grid: tuple[int, int]
    norms: np.ndarray
    rgb: np.ndarray
    similarity: np.ndarray
    mark: tuple[int, int]
    shown_share: float
    sample_share: float
    levels: Mapping[int, np.ndarray]
    limits: Mapping[int, float]


def vit_column(title: str, kind: Kind, vit: Vit, layer: int) -> Column:
    """A ViT's own tokens.

    Raises:
        UserError: a layer that it does not have, or patches without a grid.
    """
    try:
        layer = vit.layer(layer)
    except ValueError as error:
        raise UserError(f"{title}: {error}") from error
    if not vit.grid or min(vit.grid) < 1:
        raise UserError(f"{title} has no grid of patches to draw (its grid is {vit.grid}); choose a plain ViT")

    def patches(images: Tensor, layers: Iterable[int]) -> dict[int, Tensor]:
        layers = tuple(layers)
        outputs = vit(images, layers)
        return {i: outputs.patches(i) for i in layers}

    return Column(title, kind, layer, tuple(range(vit.depth)), vit.depth, vit.grid, patches)


def changed_layers(method: Method, teacher: Vit, probe: Tensor) -> tuple[int, ...]:
    """The teacher's blocks whose tokens a method has its student imitate in another form, ascending.

    Args:
        probe: images [B, 3, H, W] on which its targets are compared with the teacher's own tokens.
    """
    targets, raw = _targets(method, teacher, probe)
    return tuple(sorted(i for i, found in targets.items() if i not in raw or not _equal(found, raw[i])))


def targets_column(title: str, method: Method, teacher: Vit, layers: tuple[int, ...], layer: int) -> Column:
    """The teacher's tokens as a method has its student imitate them.

    Args:
        layers: those of `changed_layers`. layer: the one to show.
    """
    count = teacher.grid[0] * teacher.grid[1]

    def patches(images: Tensor, layers: Iterable[int]) -> dict[int, Tensor]:
        targets, _ = _targets(method, teacher, images)
        return {i: targets[i][:, -count:] for i in layers}  # patches come last

    return Column(title, "target", layer, layers, teacher.depth, teacher.grid, patches)


@torch.no_grad()
def _targets(method: Method, teacher: Vit, images: Tensor) -> tuple[Mapping[int, Tensor], Mapping[int, Tensor]]:
    """What the student imitates, and the teacher's own tokens: block -> [B, N, D] each."""
    outputs = teacher(images, method.teacher_layers, method.teacher_attention)
    return method.targets(outputs), outputs.tokens


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def counterpart(layer: int, depth: int, of_depth: int) -> int:
    """The block of a model of `depth` blocks that stands for block `layer` of one of `of_depth`: last to last."""
    return max(0, math.floor((layer + 1) * depth / of_depth + 0.5) - 1)


def norm_map(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """[n, P, D] -> norms [n, rows, columns]."""
    return token_norms(patches).unflatten(1, grid)


def similarity_map(patches: Tensor, grid: tuple[int, int], mark: tuple[int, int]) -> Tensor:
    """Cosine similarity of every patch to the patch at `mark` (row, column): [n, P, D] -> [n, rows, columns]."""
    unit = torch.nn.functional.normalize(patches.double(), dim=-1)
    chosen = unit[:, mark[0] * grid[1] + mark[1], :, None]  # [n, D, 1]
    return (unit @ chosen).squeeze(-1).clamp(-1, 1).unflatten(1, grid)


def pca_map(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """The first three principal components of all patches as red, green, blue: [n, P, D] -> [n, rows, columns, 3].

    Tokens are scaled to unit length first: of raw ones, the components would be the artifacts' and nothing else's.
    Components are of all n images together, so that a colour means the same in each. Quantiles `ROBUST` of each
    component become 0 and 1. A component's sign is chosen so that its distribution leans to the right; the map is
    the same for rotated tokens. A component without variance is .5.
    """
    unit = torch.nn.functional.normalize(patches.double(), dim=-1).flatten(0, 1)  # [n P, D]
    centred = unit - unit.mean(dim=0)
    values, directions = torch.linalg.eigh(centred.T @ centred / len(unit))  # ascending; [D], [D, D]
    colours = torch.full((len(unit), 3), 0.5, dtype=torch.float64, device=unit.device)
    for i in range(min(3, len(values))):
        if values[-1 - i] <= 1e-12:  # of unit vectors: nothing but rounding
            break
        score = centred @ directions[:, -1 - i]  # [n P]
        score = score * torch.where(score.pow(3).sum() < 0, -1.0, 1.0)
        low, high = (torch.quantile(score, q) for q in ROBUST)
        colours[:, i] = ((score - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    return colours.unflatten(0, (len(patches), *grid))


def outlier_limits(norms: Tensor) -> Tensor:
    """The norm over which a patch has robust z > `OUTLIER_Z`, each image's own: [B, P] -> [B]."""
    median = torch.quantile(norms, 0.5, dim=-1)
    mad = torch.quantile((norms - median[:, None]).abs(), 0.5, dim=-1)
    return median + OUTLIER_Z / 0.6745 * mad


@torch.no_grad()
def compute(column: Column, shown: Tensor, sample: Tensor, mark: tuple[float, float], device: str = "cpu") -> Maps:
    """All maps of one column.

    Args:
        shown: images [n, 3, H, W] that are drawn. sample: images [S, 3, H, W] that are counted.
        mark: the place of the marked patch, down and right in [0, 1), so that it is the same one on any grid.

    Raises:
        UserError: tokens that do not fill the grid, or are not finite.
    """
    patches = torch.cat([found[column.layer] for found in _passes(column, shown, (column.layer,), device)])
    place = (int(mark[0] * column.grid[0]), int(mark[1] * column.grid[1]))
    counted: dict[int, list[Tensor]] = {i: [] for i in column.layers}
    for found in _passes(column, sample, column.layers, device):
        for i, tokens in found.items():
            counted[i].append(token_norms(tokens))
    norms = {i: torch.cat(parts) for i, parts in counted.items()}  # [S, P] each
    return Maps(
        title=column.title,
        kind=column.kind,
        layer=column.layer,
        depth=column.depth,
        grid=column.grid,
        norms=norm_map(patches, column.grid).cpu().numpy(),
        rgb=pca_map(patches, column.grid).cpu().numpy(),
        similarity=similarity_map(patches, column.grid, place).cpu().numpy(),
        mark=place,
        shown_share=float(outlier_share(token_norms(patches)).mean()),
        sample_share=float(outlier_share(norms[column.layer]).mean()),
        levels={i: found.cpu().numpy() for i, found in norms.items()},
        limits={i: float(outlier_limits(found).median()) for i, found in norms.items()},
    )


def _passes(column: Column, images: Tensor, layers: tuple[int, ...], device: str) -> Iterable[Mapping[int, Tensor]]:
    """Checked patch tokens of `layers`, a batch at a time."""
    count = column.grid[0] * column.grid[1]
    for start in range(0, len(images), BATCH):
        found = column.patches(images[start : start + BATCH].to(device), layers)
        for i in layers:
            if found[i].ndim != 3 or found[i].shape[1] != count:
                raise UserError(
                    f"{column.title}: its tokens after block {i} have shape {tuple(found[i].shape)}, which is not "
                    f"the {count} patches of its grid {column.grid[0]} x {column.grid[1]}"
                )
            if not found[i].isfinite().all():
                raise UserError(f"{column.title}: its tokens after block {i} are not finite: the model has diverged")
        yield found
