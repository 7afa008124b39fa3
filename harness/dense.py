"""What tasks about pixels share: token maps that are read batch by batch, labels brought to size, many heads at once.

Dense tasks see the whole image, squashed to the encoder's square (`whole_view`), so that every pixel of a label map has
its place in the features. Labels keep their own resolution for measuring, and are brought to the encoder's resolution
by nearest neighbours for training.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from harness.features import Tokens
from harness.probes import minibatches
from harness.seeds import derive
from harness.sources import View


def whole_view(image_size: int, mirror: bool = False) -> View:
    """The view of dense tasks: nothing is cut off, whatever the image's shape."""
    return View(image_size, "squash", mirror=mirror)


def nearest(labels: np.ndarray, size: int, mirror: bool = False) -> np.ndarray:
    """A label map [H, W] as `whole_view` sees it: [size, size], each pixel the label at its centre; no labels mix."""
    rows, columns = (np.floor((np.arange(size) + 0.5) * side / size).astype(np.int64) for side in labels.shape)
    return labels[:, ::-1][rows[:, None], columns] if mirror else labels[rows[:, None], columns]


class TokenMaps:
    """Feature maps that stay where they are, on disk as a rule, until a batch asks for some of them.

    Args:
        tokens: of `Encoder.tokens`, of one view or of several, one view's images after the other's.
        layers: blocks whose patches are concatenated. cls: whether the last of them gives its CLS to every patch, too.
    """

    def __init__(self, tokens: Sequence[Tokens], layers: Sequence[int], cls: bool = False) -> None:
        self.tokens, self.layers, self.grid = list(tokens), list(layers), tokens[0].grid
        self.with_cls = cls and bool(tokens[0].cls)
        self.sizes = [len(t.patches[self.layers[0]]) for t in self.tokens]
        self.width = sum(tokens[0].patches[i].shape[-1] for i in self.layers)
        self.width += tokens[0].cls[self.layers[-1]].shape[-1] if self.with_cls else 0

    def __len__(self) -> int:
        return sum(self.sizes)

    def take(self, index: np.ndarray, device: str = "cpu") -> Tensor:
        """Feature maps [B, F, rows, columns] float32 by number [B]."""
        out = np.empty((len(index), self.grid[0] * self.grid[1], self.width), dtype=np.float16)
        start = 0
        for tokens, size in zip(self.tokens, self.sizes, strict=True):
            here = np.flatnonzero((index >= start) & (index < start + size))
            rows, column = index[here] - start, 0
            for i in self.layers:
                part = tokens.patches[i]
                out[here, :, column : column + part.shape[-1]] = part[rows]
                column += part.shape[-1]
            if self.with_cls:
                out[here, :, column:] = tokens.cls[self.layers[-1]][rows][:, None]
            start += size
        flat = torch.from_numpy(out).to(device).float()  # [B, P, F]
        return flat.transpose(1, 2).unflatten(2, self.grid)


@dataclasses.dataclass
class DenseHead:
    """One head and how it is trained. features: the name of its token maps. rate: AdamW's, at the first step after
    warm-up. failed: whether its loss was not finite once; it is trained no further then.
    """

    name: str
    features: str
    module: nn.Module
    rate: float
    weight_decay: float
    failed: bool = False


def make_heads(
    build: Callable[[int], nn.Module],
    features: Mapping[str, TokenMaps],
    rates: Sequence[float],
    decays: Sequence[float],
    seed: int,
    device: str = "cpu",
) -> list[DenseHead]:
    """A head for every (features, rate, decay); build: features' width -> module. Initial values depend on the seed
    and the features' name alone, so that heads differ in how they are trained only.
    """
    heads = []
    for name, maps in features.items():
        for rate in rates:
            for decay in decays:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(derive("dense head", seed, name))
                    module = build(maps.width).to(device)
                heads.append(DenseHead(f"{name}, lr {rate:g}, decay {decay:g}", name, module, rate, decay))
    return heads


def train_heads(
    heads: Sequence[DenseHead],
    features: Mapping[str, TokenMaps],
    targets: Callable[[np.ndarray], Tensor],
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    index: np.ndarray,
    steps: int,
    batch: int,
    seed: int,
    warmup_share: float = 0.1,
    device: str = "cpu",
) -> None:
    """Train all heads at once, in place: the same batches for all, read once. Each has its own AdamW, a linear warm-up
    and a cosine to 0; none sees another, so a head alone ends as it does among others. Heads are left in eval mode.

    Args:
        targets: numbers [B] -> what `loss` compares a head's output on them with, on the CPU.
        loss: (output, targets) -> scalar, of one head.
        index: the numbers that are trained on.
    """
    optimisers = [torch.optim.AdamW(h.module.parameters(), lr=h.rate, weight_decay=h.weight_decay) for h in heads]
    for head in heads:
        head.module.train()
    warmup = max(1, round(warmup_share * steps))
    for step, picked in enumerate(minibatches(index, min(batch, len(index)), steps, seed)):
        ramp = (step + 1) / warmup
        share = ramp if step < warmup else (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) / 2
        wanted = {head.features for head in heads if not head.failed}
        maps = {name: features[name].take(picked, device) for name in wanted}
        truth = targets(picked).to(device)
        for head, optimiser in zip(heads, optimisers, strict=True):
            if head.failed:
                continue
            value = loss(head.module(maps[head.features]), truth)
            if not torch.isfinite(value):
                head.failed = True
                continue
            for group in optimiser.param_groups:
                group["lr"] = head.rate * share
            optimiser.zero_grad(set_to_none=True)
            value.backward()
            optimiser.step()
    for head in heads:
        head.module.eval()
