"""What tasks about pixels share: token maps that are read batch by batch, labels brought to size, many heads at once.

Dense tasks see the whole image, squashed to the encoder's square (`whole_view`), so that every pixel of a label map has
its place in the features. Labels keep their own resolution for measuring, and are brought to the encoder's resolution
by nearest neighbours for training.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from harness.errors import UserError
from harness.features import Tokens
from harness.probes import minibatches
from harness.seeds import derive
from harness.sources import Source, Subset, View

HELD_OUT = 10  # one training image of so many


def whole_view(image_size: int, mirror: bool = False) -> View:
    """The view of dense tasks: nothing is cut off, whatever the image's shape."""
    return View(image_size, "squash", mirror=mirror)


def nearest(labels: np.ndarray, size: int, mirror: bool = False) -> np.ndarray:
    """A label map [H, W] as `whole_view` sees it: [size, size], each pixel the label at its centre; no labels mix."""
    rows, columns = (np.floor((np.arange(size) + 0.5) * side / size).astype(np.int64) for side in labels.shape)
    return labels[:, ::-1][rows[:, None], columns] if mirror else labels[rows[:, None], columns]


def spread(source: Source, limit: int | None) -> Source:
    """At most so many samples, one of each of `limit` equal stretches, the same for every method and seed.

    Not at equal distances: those would meet some classes of a source that goes through them in turn, and not others.
    """
    if limit is None or limit >= len(source):
        return source
    edges = np.arange(limit + 1) * len(source) // limit
    draw = np.random.default_rng(derive("dense images", limit))
    return Subset(source, edges[:-1] + (draw.random(limit) * np.diff(edges)).astype(np.int64))


def hold_out_images(count: int) -> tuple[np.ndarray, np.ndarray]:
    """(kept, held out): numbers, ascending; of each stretch of about ten one is held out, drawn, the same always.

    Evenly spread, since the frames of a video lie side by side; drawn, since a source that goes through its classes in
    turn has only some of them at equal distances.

    Raises:
        UserError: fewer than two images.
    """
    if count < 2:
        raise UserError(f"a head is chosen on held-out training images, and the split has {count}; give two or more")
    stretches = max(1, count // HELD_OUT)
    edges = np.arange(stretches + 1) * count // stretches
    draw = np.random.default_rng(derive("held-out images", count))
    held = edges[:-1] + (draw.random(stretches) * np.diff(edges)).astype(np.int64)
    return np.setdiff1d(np.arange(count), held), held


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
        whole = np.arange(self.grid[0] * self.grid[1])
        flat = self.take_places(index, np.broadcast_to(whole, (len(index), len(whole))), device)  # [B, P, F]
        return flat.transpose(1, 2).unflatten(2, self.grid)

    def take_places(self, index: np.ndarray, places: np.ndarray, device: str = "cpu") -> Tensor:
        """Features [B, P, F] float32 of images [B] at places [B, P] of their grids, row * columns + column; nothing
        else is read.
        """
        out = np.empty((*places.shape, self.width), dtype=np.float16)
        start = 0
        for tokens, size in zip(self.tokens, self.sizes, strict=True):
            here = np.flatnonzero((index >= start) & (index < start + size))
            rows, column = index[here] - start, 0
            for i in self.layers:
                part = tokens.patches[i]
                out[here, :, column : column + part.shape[-1]] = part[rows[:, None], places[here]]
                column += part.shape[-1]
            if self.with_cls:
                out[here, :, column:] = tokens.cls[self.layers[-1]][rows][:, None]
            start += size
        return torch.from_numpy(out).to(device).float()


@dataclasses.dataclass
class DenseHead:
    """One head and how it is trained. features: the name of its token maps. rate: the optimiser's, at the first step
    after warm-up. failed: whether its loss was not finite once; it is trained no further then.
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
    """`heads_for` token maps of these widths."""
    return heads_for(build, {name: maps.width for name, maps in features.items()}, rates, decays, seed, device)


def heads_for(
    build: Callable[[int], nn.Module],
    widths: Mapping[str, int],
    rates: Sequence[float],
    decays: Sequence[float],
    seed: int,
    device: str = "cpu",
) -> list[DenseHead]:
    """A head for every (features, rate, decay); build: features' width -> module. Initial values depend on the seed
    and the features' name alone, so that heads differ in how they are trained only.
    """
    heads = []
    for name, width in widths.items():
        for rate in rates:
            for decay in decays:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(derive("dense head", seed, name))
                    module = build(width).to(device)
                heads.append(DenseHead(f"{name}, lr {rate:g}, decay {decay:g}", name, module, rate, decay))
    return heads


def token_batches(
    heads: Sequence[DenseHead],
    features: Mapping[str, TokenMaps],
    targets: Callable[[np.ndarray], Tensor],
    *,
    index: np.ndarray,
    steps: int,
    batch: int,
    seed: int,
    device: str = "cpu",
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Batches for `fit_heads` from kept tokens; what no head asks for any longer is not read."""
    for picked in minibatches(index, min(batch, len(index)), steps, seed):
        wanted = {head.features for head in heads if not head.failed}
        yield {name: features[name].take(picked, device) for name in wanted}, targets(picked).to(device)


def adamw(head: DenseHead) -> torch.optim.Optimizer:
    return torch.optim.AdamW(head.module.parameters(), lr=head.rate, weight_decay=head.weight_decay, fused=True)


def fit_heads(
    heads: Sequence[DenseHead],
    batches: Iterable[tuple[Mapping[str, Tensor], Tensor]],
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    steps: int,
    warmup_share: float = 0.1,
    final_rate: float = 0.0,
    optimiser: Callable[[DenseHead], torch.optim.Optimizer] = adamw,
) -> None:
    """Train all heads at once, in place. Each has its own optimiser, a linear warm-up and a cosine to `final_rate`;
    none sees another, so a head alone ends as it does among others. Heads are left in eval mode.

    Args:
        batches: `steps` times (name of features -> [B, F, rows, columns], targets), both on the heads' device.
        loss: (output, targets) -> scalar, of one head.
        warmup_share: of the steps; 0: none.
    """
    optimisers = [optimiser(head) for head in heads]
    for head in heads:
        head.module.train()
    warmup = max(1, round(warmup_share * steps)) if warmup_share else 0
    for step, (maps, truth) in enumerate(batches):
        for head, own in zip(heads, optimisers, strict=True):
            if head.failed:
                continue
            value = loss(head.module(maps[head.features]), truth)
            if not torch.isfinite(value):
                head.failed = True
                continue
            for group in own.param_groups:
                group["lr"] = _rate(head.rate, step, steps, warmup, final_rate)
            own.zero_grad(set_to_none=True)
            value.backward()
            own.step()
    for head in heads:
        head.module.eval()


def _rate(peak: float, step: int, steps: int, warmup: int, final: float) -> float:
    if step < warmup:
        return peak * (step + 1) / warmup
    share = (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) / 2
    return final + (peak - final) * share
