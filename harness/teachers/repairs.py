"""What can be done to a teacher's tokens from outside: shifted views, clipping, standardising. Each gives a Vit.

The model itself runs as it is. So logits and attention maps are those of its own stream, which is not repaired;
only the tokens that a method reads are. `Repaired.through` runs a block on repaired tokens: standardised ones are
brought back first and standardised with the block's own statistics afterwards, so that through(l + 1, tokens[l]) is
tokens[l + 1]; after clipping and averaging there is no way back, and the block runs on the tokens as they are.
"""

from __future__ import annotations

import abc
import dataclasses
import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.api import Layers, Outputs, Vit
from harness.errors import UserError
from harness.features import weights_identity
from harness.models import TimmVit, resized
from harness.norms import norm_quantile, token_norms
from harness.seeds import content_hash
from harness.specs import Clip, ShiftedViews
from harness.standardise import standardised


class Repair(abc.ABC):
    """What is done to the tokens."""

    @abc.abstractmethod
    def outputs(self, vit: Vit, images: Tensor, layers: set[int], maps: set[int], keep: Tensor | None) -> Outputs:
        """What `vit` makes of the images, with repaired tokens."""

    @abc.abstractmethod
    def through(self, vit: Vit, layer: int, tokens: Tensor) -> Tensor:
        """Repaired tokens [B, N, D] through block `layer`."""

    @abc.abstractmethod
    def identity(self) -> Any:
        """All that decides what is done, as plain values."""


class Repaired(Vit):
    """A teacher whose tokens are repaired.

    Attributes:
        vit: the teacher before this repair. model: the module behind all of them.
    """

    def __init__(self, vit: Vit, repair: Repair) -> None:
        self.vit, self.repair = vit, repair
        self.depth, self.dim, self.num_classes = vit.depth, vit.dim, vit.num_classes
        self.has_cls, self.num_prefix_tokens = vit.has_cls, vit.num_prefix_tokens
        self.grid, self.image_size = vit.grid, vit.image_size

    @property
    def model(self) -> nn.Module:
        vit = self.vit
        while isinstance(vit, Repaired):
            vit = vit.vit
        assert isinstance(vit, TimmVit)
        return vit.model

    def block(self, layer: int) -> nn.Module:
        return self.vit.block(layer)

    def through(self, layer: int, tokens: Tensor) -> Tensor:
        return self.repair.through(self.vit, self.layer(layer), tokens)

    def __call__(
        self,
        images: Tensor,
        layers: Iterable[int] = (),
        attention_layers: Iterable[int] = (),
        keep: Tensor | None = None,
    ) -> Outputs:
        wanted, maps = {self.layer(i) for i in layers}, {self.layer(i) for i in attention_layers}
        return self.repair.outputs(self.vit, images, wanted, maps, keep)


def vit_identity(vit: Vit) -> str:
    """Hash of all that decides a ViT's features: weights, structure, and every repair of it.

    Raises:
        TypeError: another kind of Vit, which must say for itself what it is.
    """
    if isinstance(vit, Repaired):
        return content_hash([vit_identity(vit.vit), _normalisation(vit), vit.repair.identity()], 64)
    if not isinstance(vit, TimmVit):
        raise TypeError(f"{type(vit).__name__} is neither a timm model nor a repaired one")
    weights = weights_identity(vit.model)
    return content_hash([weights, vit.registers], 64) if vit.registers else weights


def _normalisation(vit: Repaired) -> Any:
    inner = vit.vit
    return [inner.mean, inner.std, inner.classes] if isinstance(inner, TimmVit) else None


@dataclasses.dataclass(frozen=True)
class Clipping(Repair):
    """Patches whose norm is over the image's limit are scaled down to it; CLS and registers stay as they are."""

    limit: Clip

    def outputs(self, vit: Vit, images: Tensor, layers: set[int], maps: set[int], keep: Tensor | None) -> Outputs:
        found = vit(images, layers, maps, keep)
        return _with_tokens(found, {i: self._clipped(found.tokens[i], vit.num_prefix_tokens) for i in layers})

    def _clipped(self, tokens: Tensor, prefix: int) -> Tensor:
        norms = token_norms(tokens[:, prefix:])  # [B, P]
        if self.limit.median is not None:
            limit = self.limit.median * norm_quantile(norms, 0.5)  # [B, 1]
        else:
            assert self.limit.quantile is not None
            limit = norm_quantile(norms, self.limit.quantile)
        scale = torch.where(norms > limit, limit / norms, 1.0)  # [B, P]
        return tokens * F.pad(scale, (prefix, 0), value=1.0).unsqueeze(-1).to(tokens.dtype)

    def through(self, vit: Vit, layer: int, tokens: Tensor) -> Tensor:
        return vit.through(layer, tokens)

    def identity(self) -> Any:
        return ["clip", self.limit.model_dump(mode="json")]


@dataclasses.dataclass(frozen=True)
class Averaging(Repair):
    """Each patch is the mean of its tokens in views of the image that are shifted by whole patches.

    What moves into a view at its border is the image mirrored there, and its patches are not used: a patch at the
    border is the mean of fewer views. CLS and registers are those of the image as it is: a view has another CLS.
    """

    views: ShiftedViews

    def outputs(self, vit: Vit, images: Tensor, layers: set[int], maps: set[int], keep: Tensor | None) -> Outputs:
        if keep is not None and layers:
            raise ValueError("a teacher with shifted_views drops no patches where its tokens are read; use another")
        images = resized(images, vit.image_size)
        found = vit(images, layers, maps, keep)
        if not layers:
            return found
        rows, columns = vit.grid
        grids = {i: _grid(found, i).clone() for i in layers}  # [B, rows, columns, D]
        count = images.new_ones(rows, columns, 1)
        for down, right in self.shifts():
            seen = vit(shifted(images, down * images.shape[-2] // rows, right * images.shape[-1] // columns), layers)
            there, here = _overlap(rows, down), _overlap(columns, right)
            count[there[1], here[1]] += 1
            for i in layers:
                grids[i][:, there[1], here[1]] += _grid(seen, i)[:, there[0], here[0]]
        prefix = vit.num_prefix_tokens
        return _with_tokens(
            found,
            {i: torch.cat([found.tokens[i][:, :prefix], (grids[i] / count).flatten(1, 2)], dim=1) for i in layers},
        )

    def shifts(self) -> list[tuple[int, int]]:
        """(patches down, patches right) of every view but the image itself."""
        reach = range(-self.views.reach, self.views.reach + 1)
        every = [(down, right) for down in reach for right in reach if (down, right) != (0, 0)]
        return [s for s in every if self.views.pattern == "square" or 0 in s]

    def through(self, vit: Vit, layer: int, tokens: Tensor) -> Tensor:
        return vit.through(layer, tokens)

    def identity(self) -> Any:
        return ["shifted_views", self.views.model_dump(mode="json")]


class Standardising(Repair):
    """Tokens after block l become (x - shift_l) matrix_l^T, CLS and registers too; they are fp32.

    Args:
        shifts: [L, D]. matrices: [L, D, D], with orthogonal rows, or rows of zeros (`harness.standardise`). Both
            where the teacher is.
    """

    def __init__(self, shifts: Tensor, matrices: Tensor) -> None:
        self.shifts, self.matrices = shifts, matrices
        squares = matrices.double().square().sum(dim=2)  # [L, D], of each row
        scale = torch.where(squares > 0, 1 / squares, 0.0)
        # Rows are orthogonal, so this is the pseudo-inverse; a channel that does not vary comes back as its mean.
        self._back = (matrices.double() * scale.unsqueeze(2)).transpose(1, 2).float()  # [L, D, D]

    def outputs(self, vit: Vit, images: Tensor, layers: set[int], maps: set[int], keep: Tensor | None) -> Outputs:
        found = vit(images, layers, maps, keep)
        last = vit.depth - 1
        return StandardisedOutputs(
            tokens=Layers({i: self._forth(i, found.tokens[i]) for i in layers}),
            logits=lambda: found.logits,  # type: ignore[arg-type]
            attention=found.attention,
            num_prefix_tokens=found.num_prefix_tokens,
            has_cls=found.has_cls,
            grid=found.grid,
            norm=None if found.norm is None else lambda tokens: found.norm(self.back(last, tokens)),  # type: ignore[misc]
            as_of_last=lambda layer, tokens: self._forth(last, self.back(layer, tokens)),
        )

    def _forth(self, layer: int, tokens: Tensor) -> Tensor:
        return standardised(tokens, self.shifts[layer], self.matrices[layer])

    def back(self, layer: int, tokens: Tensor) -> Tensor:
        """Standardised tokens after `layer` -> the model's own: [..., D]."""
        with torch.autocast(tokens.device.type, enabled=False):
            return tokens.float() @ self._back[layer].T + self.shifts[layer]

    def through(self, vit: Vit, layer: int, tokens: Tensor) -> Tensor:
        own = tokens if layer == 0 else self.back(layer - 1, tokens)  # in front of block 0 nothing is standardised
        return self._forth(layer, vit.through(layer, own))

    def identity(self) -> Any:
        digest = hashlib.sha256()
        for tensor in (self.shifts, self.matrices):
            digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().data)
        return ["standardise", digest.hexdigest()]


@dataclasses.dataclass(frozen=True)
class StandardisedOutputs(Outputs):
    """Outputs whose tokens are standardised, each layer by its own statistics.

    `norm` takes tokens as they are after the last block. `as_of_last` brings those after another layer there.
    """

    as_of_last: Callable[[int, Tensor], Tensor] | None = None

    def normed(self, layer: int) -> Tensor:
        if self.norm is None or self.as_of_last is None:
            return super().normed(layer)
        return self.norm(self.as_of_last(layer, self.tokens[layer]))


def shifted(images: Tensor, down: int, right: int) -> Tensor:
    """Images [B, C, H, W] moved by so many pixels, mirrored at the borders where nothing is left."""
    height, width = images.shape[-2:]
    if abs(down) >= height or abs(right) >= width:
        raise UserError(f"images of {height} x {width} pixels cannot be shifted by {down} and {right}")
    padded = F.pad(images, (max(right, 0), max(-right, 0), max(down, 0), max(-down, 0)), mode="reflect")
    return padded[..., max(-down, 0) :, max(-right, 0) :][..., :height, :width]


def _overlap(count: int, shift: int) -> tuple[slice, slice]:
    """Where, along one axis of `count` patches, those lie that both have: in the shifted view, and in the image."""
    return slice(max(shift, 0), count + min(shift, 0)), slice(max(-shift, 0), count + min(-shift, 0))


def _grid(outputs: Outputs, layer: int) -> Tensor:
    assert outputs.grid is not None
    return outputs.patches(layer).unflatten(1, outputs.grid)  # [B, rows, columns, D]


def _with_tokens(found: Outputs, tokens: dict[int, Tensor]) -> Outputs:
    # Outputs' logits are lazy, so they are handed on as a function and not copied.
    return dataclasses.replace(found, tokens=Layers(tokens), logits=lambda: found.logits)  # type: ignore[arg-type]
