"""Planted artifacts: high-norm tokens of known place, direction and size on a teacher that is blind to them.

A fresh teacher of some thousand images has no artifacts, and a pretrained one has artifacts whose clean value
nobody knows. Here both are known. After block `layer` a fixed vector a u is added to a few patch tokens; every
later block reads its input with the direction u projected out, so that its update is the same with and without
the artifact, and the residual stream carries a u to the last block unchanged:

    planted_l = clean_l + a u,  l >= layer;   block_l(x) = x + update_l(x - (x u) u)

The clean teacher is this same model at size 0. The affine of a blind block's two norms is folded into the
weights behind them and u is orthogonal to the ones vector, so that fc1 and qkv are exactly zero on u: a method
that looks for the null space of the next block's MLP can find u there.

The places are the patches with the smallest clean norm at `layer`, those with the least in them, as in
Darcet et al., arXiv 2309.16588, where artifacts sit in low-information background. Or they are chance, as far as an
image's content can be: the patches whose direction is nearest to a random one. Then a norm tells nothing of them.
"""

from __future__ import annotations

import math
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from harness.errors import UserError
from harness.models import TimmVit
from harness.seeds import derive


class _Blind(nn.Module):
    """A norm without affine behind a projection: x -> LN(x - (x u) u)."""

    def __init__(self, norm: nn.LayerNorm, direction: Tensor) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(list(norm.normalized_shape), eps=norm.eps, elementwise_affine=False)
        self.register_buffer("direction", direction)

    def forward(self, x: Tensor) -> Tensor:
        u = cast(Tensor, self.direction).to(x.dtype)
        return self.norm(x - (x @ u)[..., None] * u)


class _Planting(nn.Module):
    """A block that adds the artifact to some patches among its outputs.

    `chance`: a random direction [D], and the patches nearest to it are chosen; None: those with the smallest norm.
    """

    def __init__(
        self, block: nn.Module, direction: Tensor, size: float, share: float, prefix: int, chance: Tensor | None
    ) -> None:
        super().__init__()
        self.block, self.size, self.share = block, size, share
        self.num_prefix_tokens = prefix  # as timm's attentions call it, so that appended registers are counted
        self.register_buffer("direction", direction)
        self.register_buffer("chance", chance)

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        tokens = self.block(x, **kwargs)
        patches = tokens[:, self.num_prefix_tokens :]
        norms = patches.norm(dim=-1)  # [B, P]
        count = max(1, round(self.share * norms.shape[1]))
        order = norms if self.chance is None else -(patches @ cast(Tensor, self.chance).to(patches.dtype)) / norms
        places = order.topk(count, dim=1, largest=False).indices + self.num_prefix_tokens  # [B, count]
        height = self.size * norms.median(dim=1).values  # [B]
        mark = torch.zeros(tokens.shape[:2], dtype=tokens.dtype, device=tokens.device)
        mark.scatter_(1, places, height[:, None].expand(-1, count).to(tokens.dtype))
        return tokens + mark[..., None] * cast(Tensor, self.direction).to(tokens.dtype)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)  # mlp, attn, norm1: of the block inside


def plant(
    teacher: TimmVit,
    layer: int,
    size: float,
    share: float = 0.03,
    places: Literal["smallest", "random"] = "smallest",
) -> Tensor:
    """Plant artifacts onto `teacher`, in place.

    Args:
        layer: the block after which they appear; at least one block must follow it or it is the last.
        size: norm of the added vector, in multiples of the image's median patch norm after `layer`.
        share: of the patches of an image; at least one. places: which they are.

    Returns:
        The direction u, [D], of unit norm and orthogonal to the ones vector.

    Raises:
        UserError: a layer outside the model, or blocks without plain LayerNorms.
    """
    try:
        layer = teacher.layer(layer)
    except ValueError as error:
        raise UserError(f"teacher.planted.layer: {error}") from error
    if not 0 < share <= 1 or not math.isfinite(size):
        raise UserError(f"teacher.planted: share {share} must lie in (0, 1] and size {size} be finite")
    model = cast(Any, teacher.model)
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(derive("planted direction", teacher.dim))
    u = torch.randn(teacher.dim, generator=generator, dtype=torch.float64)
    u = u - u.mean()  # a LayerNorm's mean then holds nothing of u
    u = (u / u.norm()).float().to(device)
    for i in range(layer + 1, teacher.depth):
        _blind(teacher.block(i), u, i)
    chance = torch.randn(teacher.dim, generator=generator).to(device) if places == "random" else None
    model.blocks[layer] = _Planting(model.blocks[layer], u, size, share, teacher.num_prefix_tokens, chance)
    if isinstance(model.norm, nn.LayerNorm):
        # The head must be as blind as the blocks, or the teacher's logits would depend on the artifact.
        model.norm = _affine_after(_Blind(model.norm, u), model.norm)
    return u


def _affine_after(blind: nn.Module, norm: nn.LayerNorm) -> nn.Module:
    class Affine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blind, self.weight, self.bias = blind, norm.weight, norm.bias

        def forward(self, x: Tensor) -> Tensor:
            return self.blind(x) * self.weight + self.bias

    return Affine().eval()


@torch.no_grad()
def _blind(block: Any, u: Tensor, number: int) -> None:
    """Make both halves of a block blind to u, exactly equal to the old block on inputs without u."""
    pairs = [("norm1", getattr(block.attn, "qkv", None)), ("norm2", getattr(block.mlp, "fc1", None))]
    for name, linear in pairs:
        norm = getattr(block, name)
        if not isinstance(norm, nn.LayerNorm) or not isinstance(linear, nn.Linear):
            raise UserError(
                f"teacher.planted: block {number} has {type(norm).__name__} in front of {type(linear).__name__}; "
                "planting needs LayerNorm in front of qkv and fc1 (a plain ViT)"
            )
        shift = linear.weight @ norm.bias
        if linear.bias is None:
            linear.bias = nn.Parameter(shift, requires_grad=False)
        else:
            linear.bias.add_(shift)
        folded = linear.weight * norm.weight  # the norm's affine, moved behind it
        linear.weight.copy_(folded - (folded @ u)[:, None] * u)
        setattr(block, name, _Blind(norm, u))
