"""Registers for a teacher that was trained without any (Jiang et al. 2025, arXiv 2506.08010).

A handful of MLP hidden neurons make a ViT's high-norm tokens. They are found on a few images: those whose mean
|activation| at high-norm patches is largest. Then zero tokens, the registers, are appended to the sequence, and
in each of these neurons' blocks the activation of largest magnitude over an image's patches is put onto the
registers and the patches' own is zeroed. The high norms then grow there instead, and the head never sees them.

An activation is what the second linear map of the MLP reads: behind the nonlinearity, the gate of a gated MLP, and
the inner norm where there is one. CLS and a model's own registers keep theirs. The registers are zero in front of
block 0, that is behind `norm_pre`; several registers are copies of one another.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from harness.errors import UserError
from harness.models import TimmVit
from harness.norms import OUTLIER_Z, robust_z, token_norms
from harness.specs import RegistersAppended

AT_ONCE = 8  # images of a pass that keeps the tokens of all blocks
GROWN = 0.5  # of the norm that the high-norm tokens have where they are told: by then they exist
TOP_SHARE = 10 / (6 * 3072)  # of the searched neurons: the top 10 in CLIP ViT-B/16's first six blocks, as published
SETTING = "teacher.test_time_registers"


@dataclasses.dataclass(frozen=True)
class RegisterNeurons:
    """What was found.

    Attributes:
        neurons: (block, neuron) each, the strongest first. activations: mean |activation| of each at the
            high-norm tokens. elsewhere: the same at all other patches.
        layer: the block after which the high norms were told. last_layer: the last block that was searched.
        images, high_tokens: how many images were looked at, and how many of their patches are high.
        growth: block by block, the mean norm of these patches, which tells `last_layer`.
    """

    neurons: tuple[tuple[int, int], ...]
    activations: tuple[float, ...]
    elsewhere: tuple[float, ...]
    layer: int
    last_layer: int
    images: int
    high_tokens: int
    growth: tuple[float, ...]


@torch.no_grad()
def find_neurons(vit: TimmVit, batches: Iterable[Tensor], settings: RegistersAppended) -> RegisterNeurons:
    """The neurons that make high norms on images [B, 3, H, W] in [0, 1].

    Where `last_layer` is not given, blocks are searched up to the first one after which the high-norm patches have
    half the norm, on average, that they have after `layer`: later neurons read artifacts and do not make them.
    Where `top` is not given, it is the published share of the neurons of these blocks: 3 of ViT-Ti's first eight.

    Raises:
        UserError: no patch of these images has a high norm, a block outside the model, or more neurons than there
            are.
    """
    layer = _block(vit, "layer", settings.layer)
    sums = _Sums(vit)
    images = 0
    for batch in batches:
        for some in batch.split(AT_ONCE):
            images += len(some)
            norms = patch_norms(vit, some)  # [L, B, P]
            at = norms[layer]
            high = at > settings.threshold if settings.threshold is not None else robust_z(at) > OUTLIER_Z
            if high.any():
                sums.add(some, norms, high)
    if not sums.high:
        rule = "robust z over 5.5" if settings.threshold is None else f"norm over {settings.threshold:g}"
        raise UserError(
            f"{SETTING}: none of the patches of {images} training images has a high norm ({rule}) after block "
            f"{layer}, so there is nothing to repair in this teacher. Leave this row out, take more `images`, or "
            "another `layer` or `threshold`"
        )
    growth = (sums.norms / sums.high).tolist()  # L
    if settings.last_layer is None:
        last = next(i for i, norm in enumerate(growth) if norm >= GROWN * growth[layer])
    else:
        last = _block(vit, "last_layer", settings.last_layer)
    ranked = sums.ranked(last)
    top = settings.top or max(1, round(TOP_SHARE * len(ranked)))
    if top > len(ranked):
        raise UserError(f"{SETTING}.top: blocks 0 .. {last} have {len(ranked)} neurons, not {top}")
    best = ranked[:top]
    return RegisterNeurons(
        neurons=tuple((block, neuron) for _, block, neuron, _ in best),
        activations=tuple(mean for mean, *_ in best),
        elsewhere=tuple(rest for *_, rest in best),
        layer=layer,
        last_layer=last,
        images=images,
        high_tokens=sums.high,
        growth=tuple(growth),
    )


def append_registers(vit: TimmVit, neurons: Iterable[tuple[int, int]], registers: int) -> TimmVit:
    """The same model with `registers` more prefix tokens that take what these (block, neuron) would put on patches.

    The model is changed in place: `vit` itself is of no use afterwards. Without neurons the registers are empty.

    Raises:
        UserError: a block whose MLP is not one of timm's (Mlp, GluMlp, SwiGLU).
    """
    model = cast(Any, vit.model)
    own = vit.num_prefix_tokens
    for module in model.blocks.modules():
        if isinstance(vars(module).get("num_prefix_tokens"), int):  # of attention with rotary embeddings, of planting
            module.num_prefix_tokens += registers
    by_block: dict[int, list[int]] = {}
    for block, neuron in neurons:
        by_block.setdefault(block, []).append(neuron)
    for block, chosen in sorted(by_block.items()):
        mlp = _mlp(vit, block)
        mlp.norm = _Moving(mlp.norm, chosen, own, registers).to(mlp.fc2.weight.device).eval()
    return TimmVit(vit.model, vit.mean, vit.std, vit.classes, registers=vit.registers + registers)


def patch_norms(vit: Any, images: Tensor) -> Tensor:
    """Norm of every patch after every block: images [B, 3, H, W] -> [L, B, P]."""
    outputs = vit(images, layers=range(vit.depth))
    return torch.stack([token_norms(outputs.patches(i)) for i in range(vit.depth)])


class _Moving(nn.Module):
    """An MLP's inner norm, and behind it some neurons' strongest patch activation moved to the registers."""

    def __init__(self, norm: nn.Module, neurons: list[int], own: int, registers: int) -> None:
        super().__init__()
        self.norm, self.own, self.registers = norm, own, registers
        self.register_buffer("neurons", torch.tensor(sorted(neurons)))

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = self.norm(hidden)  # [B, N, H]
        neurons = cast(Tensor, self.neurons)
        chosen = hidden[..., neurons]  # [B, N, K]
        patches = chosen[:, self.own + self.registers :]  # [B, P, K]
        place = patches.abs().argmax(dim=1, keepdim=True)  # [B, 1, K]
        strongest = patches.gather(1, place).expand(-1, self.registers, -1)  # [B, R, K]
        moved = torch.cat([chosen[:, : self.own], strongest, torch.zeros_like(patches)], dim=1)
        return hidden.index_copy(2, neurons, moved)


class _Sums:
    """Sums over the high-norm patches of all images so far: of norms after each block, of each neuron's |activation|.

    The activations need a pass of their own, since which patches are high is known only after `layer`.
    """

    def __init__(self, vit: TimmVit) -> None:
        self.vit = vit
        self.high = self.rest = 0
        self.norms = torch.zeros(vit.depth, dtype=torch.float64)
        widths = [_mlp(vit, i).fc2.in_features for i in range(vit.depth)]
        self.at_high, self.at_rest = ([torch.zeros(width, dtype=torch.float64) for width in widths] for _ in range(2))

    def add(self, images: Tensor, norms: Tensor, high: Tensor) -> None:
        """images [B, 3, H, W], norms [L, B, P], high [B, P] bool."""
        count = int(high.sum())
        self.high, self.rest = self.high + count, self.rest + high.numel() - count
        self.norms += norms[:, high].sum(dim=1).double().cpu()
        hooks = [
            _mlp(self.vit, block).fc2.register_forward_pre_hook(functools.partial(self._count, block, high))
            for block in range(self.vit.depth)
        ]
        try:
            self.vit(images, layers=(self.vit.depth - 1,))
        finally:
            for hook in hooks:
                hook.remove()

    def _count(self, block: int, high: Tensor, _: nn.Module, inputs: tuple[Tensor]) -> None:
        size = inputs[0][:, self.vit.num_prefix_tokens :].abs()  # [B, P, H]
        self.at_high[block] += size[high].sum(dim=0).double().cpu()
        self.at_rest[block] += size[~high].sum(dim=0).double().cpu()

    def ranked(self, last: int) -> list[tuple[float, int, int, float]]:
        """(mean |activation| at high patches, block, neuron, the same elsewhere), strongest first, to block `last`."""
        found = []
        for block in range(last + 1):
            at_high = (self.at_high[block] / self.high).tolist()
            at_rest = (self.at_rest[block] / max(self.rest, 1)).tolist()
            found += [(mean, block, i, at_rest[i]) for i, mean in enumerate(at_high)]
        return sorted(found, key=lambda one: (-one[0], one[1], one[2]))


def _mlp(vit: TimmVit, block: int) -> Any:
    mlp = getattr(vit.block(block), "mlp", None)
    if not isinstance(getattr(mlp, "norm", None), nn.Module) or not isinstance(getattr(mlp, "fc2", None), nn.Linear):
        raise UserError(
            f"{SETTING}: block {block} is a {type(vit.block(block)).__name__} with the MLP {type(mlp).__name__}; "
            "neurons are known of timm's Mlp, GluMlp and SwiGLU only"
        )
    return mlp


def _block(vit: TimmVit, setting: str, layer: int) -> int:
    try:
        return vit.layer(layer)
    except ValueError as error:
        raise UserError(f"{SETTING}.{setting}: {error}") from error
